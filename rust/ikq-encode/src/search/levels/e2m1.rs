//! The levels of 4-bit floats.

use ikq_simd::Isa;

use super::Levels;
use crate::search::scale::round_each_element;

/// Twice the 4-bit floats: 0, 1, 2, 3, 4, 6, 8, 12 and their negatives (`FP4_E2M1_X2`).
///
/// Neighbours are 1, 2 or 4 apart, depending on the size of t alone.
#[derive(Clone, Copy, Debug)]
pub struct E2M1;

impl E2M1 {
    /// Adding and subtracting this rounds to multiples of the step at t.
    #[inline(always)]
    fn rounder<I: Isa>(isa: I, t: I::F) -> I::F {
        const ROUND: f32 = 12_582_912.0;
        let magnitude = isa.abs_f(t);
        let small = isa.if_gt(isa.splat_f(4.0), magnitude, isa.splat_f(ROUND), isa.splat_f(2.0 * ROUND));
        isa.if_gt(isa.splat_f(8.0), magnitude, small, isa.splat_f(4.0 * ROUND))
    }
}

impl<I: Isa> Levels<I> for E2M1 {
    #[inline(always)]
    fn nearest(self, isa: I, t: I::F) -> I::F {
        // clamped first, because rounding only works for small numbers
        let t = isa.max_f(isa.min_f(t, isa.splat_f(12.0)), isa.splat_f(-12.0));
        let rounder = Self::rounder(isa, t);
        isa.sub_f(isa.add_f(t, rounder), rounder)
    }

    #[inline(always)]
    fn code(self, isa: I, t: I::F) -> I::F {
        let v = self.nearest(isa, t);
        let magnitude = isa.abs_f(v);
        // the codes of levels that are 1, 2 and 4 apart lie on three lines; the lowest line is the right one
        // everywhere
        let fours = isa.mul_add_f(magnitude, isa.splat_f(0.25), isa.splat_f(4.0));
        let twos = isa.mul_add_f(magnitude, isa.splat_f(0.5), isa.splat_f(2.0));
        let code = isa.min_f(isa.min_f(fours, twos), magnitude);
        let sign = isa.if_gt(isa.splat_f(0.0), v, isa.splat_f(8.0), isa.splat_f(0.0));
        isa.slot(isa.add_f(code, sign))
    }
}

round_each_element!([] E2M1);

#[cfg(test)]
mod tests {
    use ikq_formats::codebook::FP4_E2M1_X2;
    use ikq_simd::Scalar;

    use super::*;

    #[test]
    fn four_bit_floats_are_the_nearest() {
        let steps = (-20_000..20_000).map(|i| i as f32 / 1024.0);
        for t in steps.chain([-1e30, 1e30]) {
            let code = E2M1.code(Scalar, [t; 16])[0].to_bits() as usize & 15;
            let value = f32::from(FP4_E2M1_X2[code]);
            assert_eq!(E2M1.nearest(Scalar, [t; 16])[0], value);
            let nearest = FP4_E2M1_X2.iter().map(|v| (f32::from(*v) - t).abs()).fold(f32::MAX, f32::min);
            assert_eq!((value - t).abs(), nearest, "t = {t}");
        }
    }
}
