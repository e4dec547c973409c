//! Sets of levels, the values that a code may decode to in units of the sub-block's scale.

mod cubic;
mod e2m1;
mod table;

use ikq_simd::Isa;

use super::scale::{Coder, Sums, round_each_element, sums};
use super::tile::{Codes, Plain, Tile};

pub use cubic::Wide;
pub use e2m1::E2M1;
pub use table::{Four, Table, Table4};

/// A set of levels, to which elements of sixteen sub-blocks are rounded at a time.
pub trait Levels<I: Isa>: Coder<I> {
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
        // clamped first, because rounding only works for small numbers
        isa.round(isa.max_f(isa.min_f(t, isa.splat_f(self.hi)), isa.splat_f(self.lo)))
    }

    #[inline(always)]
    fn code(self, isa: I, t: I::F) -> I::F {
        isa.slot(isa.sub_f(self.nearest(isa, t), isa.splat_f(self.lo)))
    }
}

round_each_element!([] Integers);

/// Integers whose codes are all `by` higher, so that the lowest codes are not used.
#[derive(Clone, Copy, Debug)]
pub struct Offset {
    pub levels: Integers,
    pub by: f32,
}

impl<I: Isa> Levels<I> for Offset {
    #[inline(always)]
    fn nearest(self, isa: I, t: I::F) -> I::F {
        self.levels.nearest(isa, t)
    }

    #[inline(always)]
    fn code(self, isa: I, t: I::F) -> I::F {
        isa.add_f(self.levels.code(isa, t), isa.splat_f(self.by))
    }
}

round_each_element!([] Offset);

/// Levels that are higher by an amount that each sub-block has of its own.
#[derive(Clone, Copy)]
pub struct Shifted<L, F> {
    pub levels: L,
    pub by: F,
}

impl<I: Isa, L: Levels<I>> Levels<I> for Shifted<L, I::F> {
    #[inline(always)]
    fn nearest(self, isa: I, t: I::F) -> I::F {
        isa.add_f(self.levels.nearest(isa, isa.sub_f(t, self.by)), self.by)
    }

    #[inline(always)]
    fn code(self, isa: I, t: I::F) -> I::F {
        self.levels.code(isa, isa.sub_f(t, self.by))
    }
}

round_each_element!([L: Levels<I>] Shifted<L, I::F>);

/// Levels whose sums weigh all elements alike, for tiles of [`Tile::load_plain`].
#[derive(Clone, Copy, Debug)]
pub struct Unweighted<L>(pub L);

impl<I: Isa, L: Levels<I>> Levels<I> for Unweighted<L> {
    #[inline(always)]
    fn nearest(self, isa: I, t: I::F) -> I::F {
        self.0.nearest(isa, t)
    }

    #[inline(always)]
    fn code(self, isa: I, t: I::F) -> I::F {
        self.0.code(isa, t)
    }
}

impl<I: Isa, L: Levels<I>> Coder<I> for Unweighted<L> {
    #[inline(always)]
    fn sums<const N: usize>(self, isa: I, tile: &Tile<N>, inverse: I::F) -> Sums<I::F> {
        sums(isa, tile, self.0, Plain, inverse)
    }

    #[inline(always)]
    fn values<const N: usize>(self, isa: I, tile: &Tile<N>, inverse: I::F, out: &mut Codes<N>) {
        self.0.values(isa, tile, inverse, out);
    }

    #[inline(always)]
    fn codes<const N: usize>(self, isa: I, tile: &Tile<N>, inverse: I::F, out: &mut Codes<N>) {
        self.0.codes(isa, tile, inverse, out);
    }
}

#[cfg(test)]
mod tests {
    use ikq_simd::Scalar;

    use super::*;

    /// Checks that levels and codes of many t are those of the nearest value.
    pub(super) fn check<L: Levels<Scalar>>(levels: L, values: &[i8]) {
        let steps = (-20_000..20_000).map(|i| i as f32 / 64.0);
        for t in steps.chain([-1e6, 1e6, 0.0]) {
            let code = levels.code(Scalar, [t; 16])[0].to_bits() as usize & (values.len() - 1);
            let value = f32::from(values[code]);
            assert_eq!(levels.nearest(Scalar, [t; 16])[0], value);
            let nearest = values.iter().map(|v| (f32::from(*v) - t).abs()).fold(f32::MAX, f32::min);
            assert_eq!((value - t).abs(), nearest, "t = {t}, {} values", values.len());
        }
    }

    #[test]
    fn an_offset_moves_codes_alone() {
        let levels = Offset { levels: Integers { lo: -7.0, hi: 7.0 }, by: 1.0 };
        let of =
            |t: f32| (levels.nearest(Scalar, [t; 16])[0], levels.code(Scalar, [t; 16])[0].to_bits() & 15);
        assert_eq!([of(-9.0), of(0.2), of(7.0)], [(-7.0, 1), (0.0, 8), (7.0, 15)]);
    }

    #[test]
    fn integers_are_clamped() {
        let levels = Integers { lo: -8.0, hi: 7.0 };
        let of =
            |t: f32| (levels.nearest(Scalar, [t; 16])[0], levels.code(Scalar, [t; 16])[0].to_bits() & 15);
        assert_eq!([of(-1e9), of(2.5), of(6.6), of(1e30)], [(-8.0, 0), (2.0, 10), (7.0, 15), (7.0, 15)]);
    }
}
