//! Sets of levels: what a code may decode to, in units of the sub-block's scale.

use ikq_simd::Isa;

/// Levels that a scale multiplies; sixteen sub-blocks at a time.
pub trait Levels<I: Isa>: Copy {
    /// The level nearest to `t` (any finite number below 2^22).
    fn nearest(self, isa: I, t: I::F) -> I::F;

    /// Its code, as a slot ([`ikq_simd::Lanes::slot`]).
    fn code(self, isa: I, t: I::F) -> I::F;
}

/// All integers from `lo` to `hi`; the code of `lo` is 0.
#[derive(Clone, Copy, Debug)]
pub struct Integers {
    pub lo: f32,
    pub hi: f32,
}

impl<I: Isa> Levels<I> for Integers {
    #[inline(always)]
    fn nearest(self, isa: I, t: I::F) -> I::F {
        // clamped first: rounding wants small numbers
        isa.round(isa.max_f(isa.min_f(t, isa.splat_f(self.hi)), isa.splat_f(self.lo)))
    }

    #[inline(always)]
    fn code(self, isa: I, t: I::F) -> I::F {
        isa.slot(isa.sub_f(self.nearest(isa, t), isa.splat_f(self.lo)))
    }
}

/// The 4-bit non-linear table (`IQ4NL_VALUES`), each sub-block's shifted by an amount of its own.
///
/// Rounding to it: a smooth function of t, close to the inverse of the table, gives a slot c such
/// that t is between the middle below level c and the middle above level c + 1 (tested for all t); one
/// comparison with the middle between the two levels then gives the code.
pub struct Table4<I: Isa> {
    values: I::F,
    middles: I::F,
    shift: I::F,
    /// Added to t: centres the table, takes the shift off.
    centre: I::F,
}

impl<I: Isa> Clone for Table4<I> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<I: Isa> Copy for Table4<I> {}

impl<I: Isa> Table4<I> {
    /// Where the table is (nearly) symmetric.
    const CENTRE: f32 = 4.5;
    /// slot = 7 + u * (STEEP - BEND * |u|) with u = t + CENTRE
    const STEEP: f32 = 0.0925;
    const BEND: f32 = 0.000_244;
    /// Where the first and the last slot have been reached and -1 and 15 not yet.
    const INSIDE: f32 = 115.0;

    /// The table without shift.
    #[inline(always)]
    pub fn new(isa: I, values: &[i8; 16]) -> Self {
        let v = values.map(f32::from);
        let middle = |i: usize| if i < 15 { 0.5 * (v[i] + v[i + 1]) + Self::CENTRE } else { f32::MAX };
        let middles: [f32; 16] = std::array::from_fn(middle);
        let zero = isa.splat_f(0.0);
        Table4 {
            values: isa.load_f(&v),
            middles: isa.load_f(&middles),
            shift: zero,
            centre: isa.splat_f(Self::CENTRE),
        }
    }

    /// All values higher by this much.
    #[inline(always)]
    pub fn shifted(self, isa: I, shift: I::F) -> Self {
        Table4 { shift, centre: isa.sub_f(isa.splat_f(Self::CENTRE), shift), ..self }
    }

    #[inline(always)]
    fn slot(self, isa: I, t: I::F) -> I::F {
        let u = isa.add_f(t, self.centre);
        let inside = isa.max_f(isa.min_f(u, isa.splat_f(Self::INSIDE)), isa.splat_f(-Self::INSIDE));
        let slope = isa.mul_add_f(isa.abs_f(inside), isa.splat_f(-Self::BEND), isa.splat_f(Self::STEEP));
        let slot = isa.slot(isa.mul_add_f(inside, slope, isa.splat_f(7.0)));
        let above = isa.add_f(slot, isa.splat_f(1.0));
        isa.if_gt(u, isa.lut16_slot(self.middles, slot), above, slot)
    }
}

impl<I: Isa> Levels<I> for Table4<I> {
    #[inline(always)]
    fn nearest(self, isa: I, t: I::F) -> I::F {
        isa.add_f(isa.lut16_slot(self.values, self.slot(isa, t)), self.shift)
    }

    #[inline(always)]
    fn code(self, isa: I, t: I::F) -> I::F {
        self.slot(isa, t)
    }
}

#[cfg(test)]
mod tests {
    use ikq_formats::codebook::IQ4K_VALUES;
    use ikq_simd::Scalar;

    use super::*;

    #[test]
    fn the_table_rounds_to_the_nearest_value() {
        for (row, shift) in [0.0, 4.0].into_iter().enumerate() {
            let table = Table4::new(Scalar, &IQ4K_VALUES[0]).shifted(Scalar, [shift; 16]);
            let steps = (-20_000..20_000).map(|i| i as f32 / 64.0);
            for t in steps.chain([-1e6, 1e6, 0.0]) {
                let code = table.code(Scalar, [t; 16])[0].to_bits() as usize & 15;
                let value = f32::from(IQ4K_VALUES[row][code]);
                assert_eq!(table.nearest(Scalar, [t; 16])[0], value);
                let nearest =
                    IQ4K_VALUES[row].iter().map(|v| (f32::from(*v) - t).abs()).fold(f32::MAX, f32::min);
                assert_eq!((value - t).abs(), nearest, "t = {t}");
            }
        }
    }

    #[test]
    fn integers_are_clamped() {
        let levels = Integers { lo: -8.0, hi: 7.0 };
        let of =
            |t: f32| (levels.nearest(Scalar, [t; 16])[0], levels.code(Scalar, [t; 16])[0].to_bits() & 15);
        assert_eq!([of(-1e9), of(2.5), of(6.6), of(1e30)], [(-8.0, 0), (2.0, 10), (7.0, 15), (7.0, 15)]);
    }
}
