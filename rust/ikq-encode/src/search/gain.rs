//! Undoing the gain: fitted scales are stored somewhat larger, so that codes of few bits do not make a matrix
//! smaller.
//!
//! With x the elements, y what their codes decode to and w the weights, the gain is `g = sum w x y / sum w x^2`. A
//! least-squares fit leaves an error that is orthogonal to y, so its g is below 1 (by as much as its relative
//! squared error), and results of matrix products with y are too small by the factor g. That is a bias, which
//! accumulates from layer to layer, where the rest of the error averages out. The same codes with scales 1 / g
//! times as large have a gain of 1, at a squared error that is larger by 1 / g. The best codes are the same for
//! both, so an encoder searches by least squares, and stores the float that all of its integer scales share divided
//! by g.

use ikq_simd::Isa;

/// How the float scales of a format are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scales {
    /// As fitted, which gives the least squared error.
    LeastSquares,
    /// As fitted, by fewer trials; codes are not wanted.
    Only,
    /// Divided by the gain.
    Unbiased,
}

/// The largest factor. Where more would be needed the fit is too poor to be scaled up, as for a row with a single
/// number that is not 0, and scales stay as fitted. (Twice a least-squares fit with a gain of 1/2 has the error of
/// zeros.)
const MOST: f32 = 2.0;

/// From this gain on, what is missing to 1 is the rounding of sums, and nothing is undone.
const EXACT: f32 = 1.0 - 1e-5;

impl Scales {
    /// Factors on scales, between 1 and 2, from `xy = sum w x y` and `xx = sum w x^2`; 1 where the gain is below
    /// one half.
    #[inline(always)]
    pub fn factors<I: Isa>(self, isa: I, xy: I::F, xx: I::F) -> I::F {
        let one = isa.splat_f(1.0);
        if self != Scales::Unbiased {
            return one;
        }
        let zero = isa.splat_f(0.0);
        // a quotient, because products of both could leave the range of floats; where xx is 0 so is xy
        let factor = isa.if_gt(xy, zero, isa.div_f(xx, isa.max_f(xy, isa.splat_f(f32::MIN_POSITIVE))), one);
        let factor = isa.if_gt(factor, isa.splat_f(1.0 / EXACT), factor, one);
        isa.if_gt(factor, isa.splat_f(MOST), one, factor)
    }

    /// [`Scales::factors`] for a single scale.
    #[inline(always)]
    pub fn factor(self, xy: f32, xx: f32) -> f32 {
        if self == Scales::Unbiased && xy > 0.0 {
            let factor = xx / xy.max(f32::MIN_POSITIVE);
            if factor > 1.0 / EXACT && factor <= MOST { factor } else { 1.0 }
        } else {
            1.0
        }
    }
}

#[cfg(test)]
mod tests {
    use ikq_simd::Scalar;

    use super::*;

    #[test]
    fn a_gain_is_undone_within_bounds() {
        let cases = [
            (0.8, 1.0, 1.25),
            (2e-30, 3e-30, 1.5),
            (0.5, 1.0, MOST),
            (0.49, 1.0, 1.0),
            (-0.5, 1.0, 1.0),
            (0.0, 0.0, 1.0),
            (0.0, 1.0, 1.0),
            (1.0 - 4e-6, 1.0, 1.0),
            // more than there is: a clipped element may pull the rest along
            (1.1, 1.0, 1.0),
        ];
        for (xy, xx, expected) in cases {
            let of = |scales: Scales| (scales.factor(xy, xx), scales.factors(Scalar, [xy; 16], [xx; 16])[0]);
            let (one, many) = of(Scales::Unbiased);
            assert_eq!(one, many);
            assert!((one - expected).abs() < 1e-6, "{xy} of {xx}: {one}");
            assert_eq!(of(Scales::LeastSquares), (1.0, 1.0));
        }
    }
}
