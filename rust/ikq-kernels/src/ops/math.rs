//! Functions of sixteen lanes. Relative errors are a few units of the last place (tested against f64).

use ikq_simd::Isa;

/// Below this, [`exp`] gives 0: results there are smaller than 2e-38.
const EXP_LOWEST: f32 = -86.9;
/// At and above this, exp is infinite in f32.
const EXP_HIGHEST: f32 = 88.8;
/// Adding it to |x| < 2^21 leaves round(x) + 126 in the lowest bits of the sum.
const ROUND_AND_BIAS: f32 = 12_582_912.0 + 126.0;

/// e^x. NaN stays NaN, -inf gives 0.
///
/// x = n ln 2 + r with |r| <= ln 2 / 2; e^r is a polynomial (the minimax of Cephes' `expf`, relative error
/// 1e-8 on that range), 2^n is made of exponent bits.
#[inline(always)]
pub(crate) fn exp<I: Isa>(isa: I, x: I::F) -> I::F {
    // operands in this order keep NaN
    let inside = isa.min_f(isa.splat_f(EXP_HIGHEST), isa.max_f(isa.splat_f(EXP_LOWEST), x));
    let slot = isa.fma(inside, isa.splat_f(std::f32::consts::LOG2_E), isa.splat_f(ROUND_AND_BIAS));
    let n = isa.sub_f(slot, isa.splat_f(ROUND_AND_BIAS));
    // ln 2 in two parts, the first of few bits so that its product with n is exact
    let r = isa.fma(n, isa.splat_f(-0.693_359_4), inside);
    let r = isa.fma(n, isa.splat_f(2.121_944_4e-4), r);
    let mut p = isa.splat_f(1.987_569_1e-4);
    p = isa.fma(p, r, isa.splat_f(1.398_199_9e-3));
    p = isa.fma(p, r, isa.splat_f(8.333_452e-3));
    p = isa.fma(p, r, isa.splat_f(4.166_579_6e-2));
    p = isa.fma(p, r, isa.splat_f(1.666_666_5e-1));
    p = isa.fma(p, r, isa.splat_f(0.5));
    let r2 = isa.mul_f(r, r);
    let y = isa.fma(p, r2, r);
    let y = isa.add_f(y, isa.splat_f(1.0));
    // 2^(n - 1), then doubled: n may be 128
    let half = isa.of_bits(isa.shl_i(isa.bits_i(slot), 23));
    let y = isa.mul_f(isa.mul_f(y, half), isa.splat_f(2.0));
    isa.if_gt(isa.splat_f(EXP_LOWEST), x, isa.splat_f(0.0), y)
}

/// 1 / (1 + e^-x).
#[inline(always)]
pub(crate) fn sigmoid<I: Isa>(isa: I, x: I::F) -> I::F {
    let one = isa.splat_f(1.0);
    let e = exp(isa, isa.sub_f(isa.splat_f(0.0), x));
    isa.div_f(one, isa.add_f(one, e))
}

/// x / (1 + e^-x).
#[inline(always)]
pub(crate) fn silu<I: Isa>(isa: I, x: I::F) -> I::F {
    let e = exp(isa, isa.sub_f(isa.splat_f(0.0), x));
    isa.div_f(x, isa.add_f(isa.splat_f(1.0), e))
}

/// The hyperbolic tangent: a polynomial near 0 (Cephes' `tanhf`), else through [`exp`].
#[inline(always)]
pub(crate) fn tanh<I: Isa>(isa: I, x: I::F) -> I::F {
    let z = isa.mul_f(x, x);
    let mut p = isa.splat_f(-5.704_988_7e-3);
    p = isa.fma(p, z, isa.splat_f(2.063_909e-2));
    p = isa.fma(p, z, isa.splat_f(-5.373_971_6e-2));
    p = isa.fma(p, z, isa.splat_f(1.333_144_2e-1));
    p = isa.fma(p, z, isa.splat_f(-3.333_328e-1));
    let near = isa.fma(isa.mul_f(p, z), x, x);
    let size = isa.abs_f(x);
    let (one, two) = (isa.splat_f(1.0), isa.splat_f(2.0));
    let e = exp(isa, isa.mul_f(two, size));
    let far = isa.sub_f(one, isa.div_f(two, isa.add_f(e, one)));
    let zero = isa.splat_f(0.0);
    let far = isa.if_gt(zero, x, isa.sub_f(zero, far), far);
    isa.if_gt(size, isa.splat_f(0.625), far, near)
}

/// 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))), which is x sigmoid of twice that argument.
#[inline(always)]
pub(crate) fn gelu_tanh<I: Isa>(isa: I, x: I::F) -> I::F {
    const TWICE_ROOT: f32 = 1.595_769;
    let cubic = isa.fma(isa.mul_f(x, x), isa.splat_f(0.044_715 * TWICE_ROOT), isa.splat_f(TWICE_ROOT));
    let e = exp(isa, isa.sub_f(isa.splat_f(0.0), isa.mul_f(cubic, x)));
    isa.div_f(x, isa.add_f(isa.splat_f(1.0), e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ikq_simd::{IsaOp, available, run};

    struct Each<'a>(&'a [f32; 16]);

    impl IsaOp for Each<'_> {
        type Output = [[f32; 16]; 4];

        #[inline(always)]
        fn run<I: Isa>(self, isa: I) -> [[f32; 16]; 4] {
            let x = isa.load_f(self.0);
            [
                isa.array(exp(isa, x)),
                isa.array(sigmoid(isa, x)),
                isa.array(tanh(isa, x)),
                isa.array(silu(isa, x)),
            ]
        }
    }

    /// Units of the last place between a result and the true value.
    fn ulps(found: f32, truth: f64) -> f64 {
        let unit = (truth.abs() * f64::powi(2.0, -23)).max(f64::from(f32::from_bits(1)));
        (f64::from(found) - truth).abs() / unit
    }

    #[test]
    fn errors_are_a_few_units_of_the_last_place() {
        for kind in available() {
            let mut worst = [0.0f64; 4];
            // steps that are no simple fraction of ln 2
            for i in -86_000..88_700 {
                let x: [f32; 16] = std::array::from_fn(|l| (i as f32 + l as f32 / 16.1) * 0.001);
                let found = run(kind, Each(&x));
                for (l, x) in x.into_iter().enumerate() {
                    let y = f64::from(x);
                    let s = 1.0 / (1.0 + (-y).exp());
                    for (k, truth) in [y.exp(), s, y.tanh(), y * s].into_iter().enumerate() {
                        worst[k] = worst[k].max(ulps(found[k][l], truth));
                    }
                }
            }
            // the polynomial and its evaluation: exp 2; the others divide and add on top
            assert!(worst[0] < 2.0, "{} exp {worst:?}", kind.name());
            assert!(worst.iter().all(|w| *w < 4.5), "{} {worst:?}", kind.name());
        }
    }

    #[test]
    fn extremes_have_limits_and_nan_stays() {
        let mut x = [0.0; 16];
        x[..9].copy_from_slice(&[
            f32::NAN,
            f32::INFINITY,
            f32::NEG_INFINITY,
            1e4,
            -1e4,
            -86.95,
            88.722,
            88.723,
            -0.0,
        ]);
        for kind in available() {
            let [e, s, t, silu] = run(kind, Each(&x));
            assert!([e[0], s[0], t[0], silu[0]].iter().all(|y| y.is_nan()));
            assert_eq!(e[1..6], [f32::INFINITY, 0.0, f32::INFINITY, 0.0, 0.0]);
            assert!(e[6].is_finite() && e[7] == f32::INFINITY && e[8] == 1.0, "{e:?}");
            assert_eq!((s[3], s[4], t[3], t[4]), (1.0, 0.0, 1.0, -1.0));
            assert_eq!((silu[3], silu[4]), (1e4, 0.0));
        }
    }
}
