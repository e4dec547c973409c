//! Rotary position embedding: pairs of elements are turned by an angle that grows with the position.
//!
//! Pair i of a head of `n_rot` rotated elements turns by `position * f[i]` with
//! `f[i] = base^(-2 i / n_rot)`, divided by a factor of its own (long contexts of Llama 3), by the linear
//! factor, or mixed by YaRN between plain and divided.

use ikq_simd::{Isa, IsaKind, IsaOp, run};

/// Which elements of a head are a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pairing {
    /// Neighbours: 2 i and 2 i + 1.
    Norm,
    /// Halves: i and i + n_rot / 2.
    Neox,
}

/// YaRN: fast pairs turn as they are, slow ones `factor` times slower.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Yarn {
    pub factor: f64,
    pub n_ctx_orig: f64,
    /// Turns over the trained context above which a pair is fast, and below which it is slow.
    pub beta_fast: f64,
    pub beta_slow: f64,
    /// Factor that cosines and sines are multiplied by.
    pub magnitude: f64,
    /// Whether the bounds between fast and slow are whole numbers of pairs.
    pub truncate: bool,
}

/// The angles per position of each pair.
#[derive(Clone, Debug)]
pub struct RopeTable {
    per_position: Vec<f64>,
    magnitude: f64,
}

impl RopeTable {
    /// A rope of `n_rot` elements; `factors` divide the angles, one per pair.
    ///
    /// # Panics
    /// When `n_rot` is odd or `factors` are not one per pair.
    pub fn new(
        n_rot: usize,
        base: f64,
        linear: f64,
        factors: Option<&[f32]>,
        yarn: Option<Yarn>,
    ) -> RopeTable {
        assert!(n_rot.is_multiple_of(2), "elements rotate in pairs");
        assert!(factors.is_none_or(|f| f.len() == n_rot / 2), "a factor per pair");
        let share = |i: usize| yarn.map_or(1.0, |y| y.plain_share(i, n_rot, base));
        let per_position = (0..n_rot / 2).map(|i| {
            let mut angle = base.powf(-2.0 * i as f64 / n_rot as f64) / linear;
            if let Some(factors) = factors {
                angle /= f64::from(factors[i]);
            }
            let r = share(i);
            angle * r + angle / yarn.map_or(1.0, |y| y.factor) * (1.0 - r)
        });
        RopeTable { per_position: per_position.collect(), magnitude: yarn.map_or(1.0, |y| y.magnitude) }
    }

    /// Elements of a head that are rotated.
    pub fn n_rot(&self) -> usize {
        2 * self.per_position.len()
    }

    /// What [`rotate`] takes for position `pos`: the cosines of all pairs, then their sines.
    ///
    /// # Panics
    /// When `out` is not `n_rot` long.
    pub fn cos_sin(&self, pos: u32, out: &mut [f32]) {
        self.fill(f64::from(pos), self.magnitude, out);
    }

    /// What [`rotate`] takes to move what was rotated for some position to one that is `by` lower. There is no
    /// magnitude in it: the first rotation applied that.
    ///
    /// # Panics
    /// When `out` is not `n_rot` long.
    pub fn cos_sin_back(&self, by: u32, out: &mut [f32]) {
        self.fill(-f64::from(by), 1.0, out);
    }

    fn fill(&self, position: f64, magnitude: f64, out: &mut [f32]) {
        assert_eq!(out.len(), self.n_rot(), "a cosine and a sine per pair");
        let (cos, sin) = out.split_at_mut(self.per_position.len());
        for ((cos, sin), angle) in cos.iter_mut().zip(sin).zip(&self.per_position) {
            let (s, c) = (position * angle).sin_cos();
            (*cos, *sin) = ((c * magnitude) as f32, (s * magnitude) as f32);
        }
    }
}

impl Yarn {
    /// How much of pair `i` turns as if there were no scaling.
    fn plain_share(&self, i: usize, n_rot: usize, base: f64) -> f64 {
        let n_rot = n_rot as f64;
        // the pair that turns `beta` times over the trained context
        let pair = |beta: f64| {
            n_rot * (self.n_ctx_orig / (2.0 * std::f64::consts::PI * beta)).ln() / (2.0 * base.ln())
        };
        let (mut low, mut high) = (pair(self.beta_fast), pair(self.beta_slow));
        if self.truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        let (low, high) = (low.max(0.0), high.min(n_rot - 1.0));
        1.0 - ((i as f64 - low) / (high - low).max(0.001)).clamp(0.0, 1.0)
    }
}

/// Turns the first elements of `head`, as many as `cos_sin` has numbers (see [`RopeTable::cos_sin`]); the rest
/// stays.
///
/// # Panics
/// When the head is shorter than that.
pub fn rotate(kind: IsaKind, pairing: Pairing, cos_sin: &[f32], head: &mut [f32]) {
    let (cos, sin) = cos_sin.split_at(cos_sin.len() / 2);
    run(kind, Rotate { pairing, cos, sin, rotated: &mut head[..cos_sin.len()] });
}

struct Rotate<'a> {
    pairing: Pairing,
    cos: &'a [f32],
    sin: &'a [f32],
    rotated: &'a mut [f32],
}

impl IsaOp for Rotate<'_> {
    type Output = ();

    // plain code, vectorized by the compiler for the instruction set
    #[inline(always)]
    fn run<I: Isa>(self, _: I) {
        let angles = self.cos.iter().zip(self.sin);
        match self.pairing {
            Pairing::Norm => {
                for (pair, (c, s)) in self.rotated.as_chunks_mut::<2>().0.iter_mut().zip(angles) {
                    let [u, v] = *pair;
                    *pair = [u * c - v * s, u * s + v * c];
                }
            }
            Pairing::Neox => {
                let (first, second) = self.rotated.split_at_mut(self.cos.len());
                for ((u, v), (c, s)) in first.iter_mut().zip(second).zip(angles) {
                    (*u, *v) = (*u * c - *v * s, *u * s + *v * c);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ikq_simd::available;

    #[test]
    fn pairs_turn_by_their_angles() {
        let n_rot = 48;
        let factors: Vec<f32> = (0..24).map(|i| 1.0 + i as f32 / 4.0).collect();
        let table = RopeTable::new(n_rot, 5e5, 2.0, Some(&factors), None);
        let head: Vec<f32> = (0..60).map(|i| (i as f32).cos()).collect();
        for kind in available() {
            for pos in [0, 1, 77, 131_071] {
                let mut cos_sin = vec![0.0; n_rot];
                table.cos_sin(pos, &mut cos_sin);
                for pairing in [Pairing::Norm, Pairing::Neox] {
                    let mut turned = head.clone();
                    rotate(kind, pairing, &cos_sin, &mut turned);
                    assert_eq!(turned[n_rot..], head[n_rot..]);
                    for (i, factor) in factors.iter().enumerate() {
                        let (a, b) = match pairing {
                            Pairing::Norm => (2 * i, 2 * i + 1),
                            Pairing::Neox => (i, i + 24),
                        };
                        let angle =
                            f64::from(pos) * 5e5f64.powf(-(i as f64) / 24.0) / 2.0 / f64::from(*factor);
                        let (u, v) = (f64::from(head[a]), f64::from(head[b]));
                        let expected = [u * angle.cos() - v * angle.sin(), u * angle.sin() + v * angle.cos()];
                        // roundings of cosine and sine, of two products and a sum, of numbers up to 1
                        for (found, expected) in [turned[a], turned[b]].into_iter().zip(expected) {
                            assert!((f64::from(found) - expected).abs() < 3e-7, "{pairing:?} {pos} {i}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn turning_back_undoes_positions_but_not_the_magnitude() {
        let yarn = Yarn {
            factor: 4.0,
            n_ctx_orig: 4096.0,
            beta_fast: 32.0,
            beta_slow: 1.0,
            magnitude: 1.5,
            truncate: true,
        };
        let table = RopeTable::new(64, 10_000.0, 1.0, None, Some(yarn));
        let head: Vec<f32> = (0..64).map(|i| (i as f32 * 0.3).sin()).collect();
        let (mut there, mut back, mut direct) = (vec![0.0; 64], vec![0.0; 64], vec![0.0; 64]);
        table.cos_sin(1000, &mut there);
        table.cos_sin_back(900, &mut back);
        table.cos_sin(100, &mut direct);
        let (mut moved, mut placed) = (head.clone(), head);
        rotate(IsaKind::Scalar, Pairing::Neox, &there, &mut moved);
        rotate(IsaKind::Scalar, Pairing::Neox, &back, &mut moved);
        rotate(IsaKind::Scalar, Pairing::Neox, &direct, &mut placed);
        for (a, b) in moved.iter().zip(&placed) {
            assert!((a - b).abs() < 1e-6, "{a} {b}");
        }
    }

    #[test]
    fn yarn_slows_slow_pairs_only() {
        let yarn = |truncate| Yarn {
            factor: 32.0,
            n_ctx_orig: 4096.0,
            beta_fast: 32.0,
            beta_slow: 1.0,
            magnitude: 1.0,
            truncate,
        };
        // bounds for these numbers: 8.09 and 17.4 pairs
        let plain = RopeTable::new(64, 150_000.0, 1.0, None, None).per_position;
        let cut = RopeTable::new(64, 150_000.0, 1.0, None, Some(yarn(true))).per_position;
        let smooth = RopeTable::new(64, 150_000.0, 1.0, None, Some(yarn(false))).per_position;
        for i in 0..32 {
            let share = |low: f64, high: f64| 1.0 - ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
            let low = 64.0 * (4096.0 / (64.0 * std::f64::consts::PI)).ln() / (2.0 * 150_000f64.ln());
            let high = 64.0 * (4096.0 / (2.0 * std::f64::consts::PI)).ln() / (2.0 * 150_000f64.ln());
            assert_eq!((low.floor(), high.ceil()), (8.0, 18.0));
            let expected = |r: f64| plain[i] * (r + (1.0 - r) / 32.0);
            assert!((cut[i] / expected(share(8.0, 18.0)) - 1.0).abs() < 1e-12);
            assert!((smooth[i] / expected(share(low, high)) - 1.0).abs() < 1e-12);
        }
    }
}
