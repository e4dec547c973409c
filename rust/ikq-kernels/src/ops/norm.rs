//! RMS and L2 norms.

use ikq_simd::{Isa, IsaKind, IsaOp, run};

use super::{load_tail, store_tail};

/// Sum of squares in 64 lanes, which are added up by a tree: the error grows with k / 64, not k.
struct SumOfSquares<'a>(&'a [f32]);

impl IsaOp for SumOfSquares<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> f32 {
        let mut sums = [isa.splat_f(0.0); 4];
        let (fours, rest) = self.0.as_chunks::<64>();
        for four in fours {
            for (sum, x) in sums.iter_mut().zip(four.as_chunks::<16>().0) {
                let x = isa.load_f(x);
                *sum = isa.fma(x, x, *sum);
            }
        }
        for (i, x) in rest.chunks(16).enumerate() {
            let x = load_tail(isa, x);
            sums[i] = isa.fma(x, x, sums[i]);
        }
        let two = [isa.add_f(sums[0], sums[1]), isa.add_f(sums[2], sums[3])];
        isa.total(isa.add_f(two[0], two[1]))
    }
}

fn sum_of_squares(kind: IsaKind, x: &[f32]) -> f64 {
    let sum = run(kind, SumOfSquares(x));
    match sum.is_finite() {
        true => f64::from(sum),
        // squares that f32 cannot hold
        false => x.iter().map(|x| f64::from(*x) * f64::from(*x)).sum(),
    }
}

/// `out = x * scale * weight`.
struct Scale<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    scale: f32,
    out: &'a mut [f32],
}

impl IsaOp for Scale<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let scale = isa.splat_f(self.scale);
        let (x, x_tail) = self.x.as_chunks::<16>();
        let (w, w_tail) = self.weight.as_chunks::<16>();
        let (out, out_tail) = self.out.as_chunks_mut::<16>();
        for ((x, w), out) in x.iter().zip(w).zip(out) {
            isa.store_f(isa.mul_f(isa.mul_f(isa.load_f(x), scale), isa.load_f(w)), out);
        }
        if !out_tail.is_empty() {
            let y = isa.mul_f(isa.mul_f(load_tail(isa, x_tail), scale), load_tail(isa, w_tail));
            store_tail(isa, y, out_tail);
        }
    }
}

/// `x = x * scale * weight` (weight 1 where there is none).
struct ScaleInPlace<'a> {
    x: &'a mut [f32],
    weight: Option<&'a [f32]>,
    scale: f32,
}

impl IsaOp for ScaleInPlace<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, _: I) {
        // plain code, vectorized by the compiler
        match self.weight {
            Some(weight) => self.x.iter_mut().zip(weight).for_each(|(x, w)| *x = *x * self.scale * w),
            None => self.x.iter_mut().for_each(|x| *x *= self.scale),
        }
    }
}

/// The factor that makes the mean square of `x` one.
fn rms_factor(kind: IsaKind, x: &[f32], eps: f32) -> f32 {
    (1.0 / (sum_of_squares(kind, x) / x.len() as f64 + f64::from(eps)).sqrt()) as f32
}

/// `out = weight * x / sqrt(mean(x^2) + eps)`.
///
/// # Panics
/// When lengths differ.
pub fn rms_norm(kind: IsaKind, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    assert!(x.len() == weight.len() && x.len() == out.len(), "x, weight and output are of one length");
    let scale = rms_factor(kind, x, eps);
    run(kind, Scale { x, weight, scale, out });
}

/// `x = weight * x / sqrt(mean(x^2) + eps)`.
///
/// # Panics
/// When lengths differ.
pub fn rms_norm_in_place(kind: IsaKind, x: &mut [f32], weight: &[f32], eps: f32) {
    assert_eq!(x.len(), weight.len(), "a weight per element");
    let scale = rms_factor(kind, x, eps);
    run(kind, ScaleInPlace { x, weight: Some(weight), scale });
}

/// `x = x / sqrt(sum(x^2) + eps)`.
pub fn l2_norm_in_place(kind: IsaKind, x: &mut [f32], eps: f32) {
    let scale = (1.0 / (sum_of_squares(kind, x) + f64::from(eps)).sqrt()) as f32;
    run(kind, ScaleInPlace { x, weight: None, scale });
}

#[cfg(test)]
mod tests {
    use super::*;
    use ikq_simd::available;

    fn numbers(n: usize, size: f32) -> Vec<f32> {
        (0..n).map(|i| ((i * i) as f32 * 0.7).sin() * size).collect()
    }

    #[test]
    fn norms_agree_with_f64() {
        for kind in available() {
            for n in [1, 15, 16, 31, 64, 65, 127, 128, 4096, 7168] {
                for size in [1e-3, 1.0, 1e4, 1e25] {
                    let (x, w) = (numbers(n, size), numbers(n, 2.0));
                    let square: f64 = x.iter().map(|x| f64::from(*x).powi(2)).sum();
                    let rms = (square / n as f64 + 1e-6).sqrt();
                    let l2 = (square + 1e-6).sqrt();
                    // half the relative error of the sum (n / 64 + 8 roundings at the very most),
                    // and three of the factor and the products
                    let bound = (n as f64 / 128.0 + 7.0) * f64::powi(2.0, -24);
                    let near = |found: f32, truth: f64| {
                        assert!(
                            (f64::from(found) - truth).abs() <= truth.abs() * bound + 1e-44,
                            "{} n {n} size {size}: {found} for {truth}",
                            kind.name()
                        );
                    };
                    let mut out = vec![f32::NAN; n];
                    rms_norm(kind, &x, &w, 1e-6, &mut out);
                    let mut same = x.clone();
                    rms_norm_in_place(kind, &mut same, &w, 1e-6);
                    assert_eq!(out, same);
                    let mut unit = x.clone();
                    l2_norm_in_place(kind, &mut unit, 1e-6);
                    for i in 0..n {
                        near(out[i], f64::from(x[i]) * f64::from(w[i]) / rms);
                        near(unit[i], f64::from(x[i]) / l2);
                    }
                }
            }
        }
    }

    #[test]
    fn zeros_stay_zeros() {
        for kind in available() {
            let mut x = [0.0; 40];
            rms_norm_in_place(kind, &mut x, &[1.0; 40], 1e-6);
            l2_norm_in_place(kind, &mut x, 1e-6);
            assert_eq!(x, [0.0; 40]);
        }
    }
}
