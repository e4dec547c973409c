//! The angles that a rotary embedding turns pairs of elements by.
//!
//! Pair i of a head of `n_rot` rotated elements turns by `position * f[i]` with
//! `f[i] = base^(-2 i / n_rot)`, divided by a factor of its own (long contexts of Llama 3), by the linear
//! factor, or mixed by YaRN between plain and divided.

use super::Rope;
use crate::spec::Yarn;

/// The angles per position of each pair.
#[derive(Clone, Debug)]
pub struct RopeTable {
    per_position: Vec<f64>,
    magnitude: f64,
}

impl RopeTable {
    /// The table of a rope.
    ///
    /// # Panics
    /// When `n_rot` is odd or `factors` are not one per pair.
    pub fn new(rope: &Rope) -> RopeTable {
        let (n_rot, base, yarn) = (rope.spec.n_rot, rope.spec.base, rope.spec.yarn);
        let factors = rope.factors.as_deref();
        assert!(n_rot.is_multiple_of(2), "elements rotate in pairs");
        assert!(factors.is_none_or(|f| f.len() == n_rot / 2), "a factor per pair");
        let per_position = (0..n_rot / 2).map(|i| {
            let mut angle = base.powf(-2.0 * i as f64 / n_rot as f64) / rope.spec.linear;
            if let Some(factors) = factors {
                angle /= f64::from(factors[i]);
            }
            let share = yarn.map_or(1.0, |y| plain_share(&y, i, n_rot, base));
            angle * share + angle / yarn.map_or(1.0, |y| y.factor) * (1.0 - share)
        });
        RopeTable { per_position: per_position.collect(), magnitude: yarn.map_or(1.0, |y| y.magnitude) }
    }

    /// Elements of a head that are rotated.
    pub fn n_rot(&self) -> usize {
        2 * self.per_position.len()
    }

    /// What turns a head to position `pos`: the cosines of all pairs, then their sines.
    ///
    /// # Panics
    /// When `out` is not `n_rot` long.
    pub fn cos_sin(&self, pos: u32, out: &mut [f32]) {
        self.fill(f64::from(pos), self.magnitude, out);
    }

    /// What moves a head that was turned to some position to one that is `by` lower. There is no magnitude in it: the first
    /// rotation applied that.
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

/// How much of pair `i` turns as if there were no scaling: fast pairs turn as they are, slow ones `factor` times slower.
fn plain_share(yarn: &Yarn, i: usize, n_rot: usize, base: f64) -> f64 {
    let (n_rot, n_ctx) = (n_rot as f64, yarn.n_ctx_orig as f64);
    // the pair that turns `beta` times over the trained context
    let pair = |beta: f64| n_rot * (n_ctx / (2.0 * std::f64::consts::PI * beta)).ln() / (2.0 * base.ln());
    let (mut low, mut high) = (pair(yarn.beta_fast), pair(yarn.beta_slow));
    if yarn.truncate {
        (low, high) = (low.floor(), high.ceil());
    }
    let (low, high) = (low.max(0.0), high.min(n_rot - 1.0));
    1.0 - ((i as f64 - low) / (high - low).max(0.001)).clamp(0.0, 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{self, Pairing};

    fn rope(n_rot: usize, base: f64, linear: f64, factors: Option<Vec<f32>>, yarn: Option<Yarn>) -> Rope {
        Rope {
            spec: spec::Rope {
                pairing: Pairing::Neox,
                n_rot,
                base,
                linear,
                factors: None,
                yarn,
                n_factors: None,
            },
            factors,
        }
    }

    #[test]
    fn angles_follow_base_linear_factor_and_factors() {
        let factors: Vec<f32> = (0..24).map(|i| 1.0 + i as f32 / 4.0).collect();
        let table = RopeTable::new(&rope(48, 5e5, 2.0, Some(factors.clone()), None));
        let mut cos_sin = vec![0.0; 48];
        for pos in [0, 1, 77, 131_071] {
            table.cos_sin(pos, &mut cos_sin);
            for (i, factor) in factors.iter().enumerate() {
                let angle = f64::from(pos) * 5e5f64.powf(-(i as f64) / 24.0) / 2.0 / f64::from(*factor);
                // half a step of numbers below 1, and angles whose rounding in f64 is up to 1e5 times 1e-16
                assert!((f64::from(cos_sin[i]) - angle.cos()).abs() < 3.1e-8, "{pos} {i}");
                assert!((f64::from(cos_sin[24 + i]) - angle.sin()).abs() < 3.1e-8, "{pos} {i}");
            }
        }
    }

    #[test]
    fn turning_back_undoes_positions_but_not_the_magnitude() {
        let yarn = Yarn {
            factor: 4.0,
            n_ctx_orig: 4096,
            beta_fast: 32.0,
            beta_slow: 1.0,
            magnitude: 1.5,
            truncate: true,
        };
        let table = RopeTable::new(&rope(64, 10_000.0, 1.0, None, Some(yarn)));
        let of = |fill: &dyn Fn(&mut [f32])| {
            let mut out = vec![0.0; 64];
            fill(&mut out);
            out
        };
        let there = of(&|out| table.cos_sin(1000, out));
        let back = of(&|out| table.cos_sin_back(900, out));
        let direct = of(&|out| table.cos_sin(100, out));
        for i in 0..32 {
            // one turn after another is their product as complex numbers
            let (c, s) = (
                there[i] * back[i] - there[32 + i] * back[32 + i],
                there[i] * back[32 + i] + there[32 + i] * back[i],
            );
            assert!((c - direct[i]).abs() < 1e-6 && (s - direct[32 + i]).abs() < 1e-6, "{i}");
        }
    }

    #[test]
    fn yarn_slows_slow_pairs_only() {
        let yarn = |truncate| Yarn {
            factor: 32.0,
            n_ctx_orig: 4096,
            beta_fast: 32.0,
            beta_slow: 1.0,
            magnitude: 1.0,
            truncate,
        };
        // bounds for these numbers: 8.09 and 17.4 pairs
        let per_position = |yarn| RopeTable::new(&rope(64, 150_000.0, 1.0, None, yarn)).per_position;
        let (plain, cut, smooth) =
            (per_position(None), per_position(Some(yarn(true))), per_position(Some(yarn(false))));
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
