//! Rotary position embedding: pairs of elements are turned by an angle that grows with the position.
//!
//! Which angles these are, a model says; here they come as cosines and sines.

use ikq_simd::{Isa, IsaKind, IsaOp, run};

/// Which elements of a head are a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pairing {
    /// Neighbours: 2 i and 2 i + 1.
    Norm,
    /// Halves: i and i + n_rot / 2.
    Neox,
}

/// Turns the first elements of `head`, as many as `cos_sin` has numbers: the cosines of all pairs, then their sines. The
/// rest of the head stays.
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
        let angles: Vec<f64> = (0..24).map(|i| 5e5f64.powf(-f64::from(i) / 24.0)).collect();
        let head: Vec<f32> = (0..60).map(|i| (i as f32).cos()).collect();
        for kind in available() {
            for pos in [0.0, 1.0, 77.0, 131_071.0] {
                let cos = angles.iter().map(|a| (pos * a).cos() as f32);
                let cos_sin: Vec<f32> = cos.chain(angles.iter().map(|a| (pos * a).sin() as f32)).collect();
                for pairing in [Pairing::Norm, Pairing::Neox] {
                    let mut turned = head.clone();
                    rotate(kind, pairing, &cos_sin, &mut turned);
                    assert_eq!(turned[n_rot..], head[n_rot..]);
                    for (i, angle) in angles.iter().enumerate() {
                        let (a, b) = match pairing {
                            Pairing::Norm => (2 * i, 2 * i + 1),
                            Pairing::Neox => (i, i + 24),
                        };
                        let angle = pos * angle;
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
}
