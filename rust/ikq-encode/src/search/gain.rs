//! What is stored of a fitted scale, so that codes of few bits do not make a matrix smaller.
//!
//! With x the elements, y what their codes decode to and w the weights, the gain is `g = sum w x y / sum w x^2`. A
//! least-squares fit leaves an error that is orthogonal to y, so its g is below 1 (by as much as its relative squared
//! error), and what a matrix product makes of y is smaller than it should be by g. That is a bias and adds up from
//! layer to layer, where the rest of the error does not. The same codes with scales 1 / g times as large have a gain of
//! 1, at a squared error that is larger by 1 / g: which codes are best is the same question for both, so an encoder
//! searches by least squares, and stores the float that all of its integer scales share divided by g.

use ikq_simd::Isa;

/// How the floats of a format are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scales {
    /// As fitted: the least squared error.
    LeastSquares,
    /// Divided by the gain.
    Unbiased,
}

/// The largest factor. A fit that leaves less is none, as of a row with one number that is not 0: what is left of it
/// stays as it is. (Twice a least-squares fit is as far from the row as nothing at all.)
const MOST: f32 = 2.0;

/// From this gain on there is nothing to undo but the rounding of sums.
const EXACT: f32 = 1.0 - 1e-5;

impl Scales {
    /// Factors on scales whose codes leave `xy = sum w x y` of `xx = sum w x^2`, between 1 and 2; 1 where less than half is left.
    #[inline(always)]
    pub fn factors<I: Isa>(self, isa: I, xy: I::F, xx: I::F) -> I::F {
        let one = isa.splat_f(1.0);
        if self == Scales::LeastSquares {
            return one;
        }
        let zero = isa.splat_f(0.0);
        // products of both could leave the range of floats; where xx is 0 so is xy
        let factor = isa.if_gt(xy, zero, isa.div_f(xx, isa.max_f(xy, isa.splat_f(f32::MIN_POSITIVE))), one);
        let factor = isa.if_gt(factor, isa.splat_f(1.0 / EXACT), factor, one);
        isa.if_gt(factor, isa.splat_f(MOST), one, factor)
    }

    /// The same factor for a single scale.
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
