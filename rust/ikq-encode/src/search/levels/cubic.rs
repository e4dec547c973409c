//! Tables of 32 and 64 levels. Their values are those of a cubic, rounded, and some instruction sets compute them
//! faster than they look them up.

use ikq_simd::Isa;

use super::{Levels, Table};
use crate::search::scale::round_each_element;

/// A row of the table `IQ5NL` (32 values) or `IQ6NL` (64): looked up or computed, with the same result.
pub struct Wide<I: Isa, const N: usize> {
    table: Table<I, N>,
    cubic: Cubic<I, N>,
}

impl<I: Isa, const N: usize> Clone for Wide<I, N> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<I: Isa, const N: usize> Copy for Wide<I, N> {}

impl<I: Isa, const N: usize> Wide<I, N> {
    /// A row of the table.
    #[inline(always)]
    pub fn new(isa: I, row: &[i8; N]) -> Self {
        Wide { table: Table::new(isa, row), cubic: Cubic::new(isa, row) }
    }
}

impl<I: Isa, const N: usize> Levels<I> for Wide<I, N> {
    #[inline(always)]
    fn nearest(self, isa: I, t: I::F) -> I::F {
        if I::WIDE_LUT { self.table.nearest(isa, t) } else { self.cubic.nearest(isa, t) }
    }

    #[inline(always)]
    fn code(self, isa: I, t: I::F) -> I::F {
        if I::WIDE_LUT { self.table.code(isa, t) } else { self.cubic.code(isa, t) }
    }
}

/// A row of the table whose values are computed as a rounded cubic.
///
/// As with [`Table`], a smooth function of t gives a code whose value, or the value after it, is nearest to t
/// (tests check many t); the nearer of the two is taken.
struct Cubic<I: Isa, const N: usize> {
    /// How far the row is above the first one.
    shift: I::F,
    /// Added to t, to centre the table and to remove the shift.
    centre: I::F,
}

struct Curve {
    /// The first row's value of code q is `round(c0 + q (c1 + q (c2 + q c3)))`.
    first: f32,
    value: [f32; 4],
    /// `c = middle + u * (steep - bend * |u|)` with `u = t + centre` between -`inside` and `inside`.
    centre: f32,
    middle: f32,
    steep: f32,
    bend: f32,
    inside: f32,
}

const fn curve(n: usize) -> Curve {
    match n {
        32 => Curve {
            first: -126.0,
            value: [-125.75, 12.378_267, -0.4375, 0.009_517_046],
            centre: 4.832,
            middle: 14.802,
            steep: 0.181_16,
            bend: 0.000_458_6,
            inside: 117.0,
        },
        64 => Curve {
            first: -127.0,
            value: [-127.165_95, 6.280_555_7, -0.113_052_99, 0.001_206_409_4],
            centre: 4.771,
            middle: 30.6725,
            steep: 0.372_64,
            bend: 0.000_970_3,
            inside: 121.0,
        },
        _ => panic!("no cubic has so many values"),
    }
}

impl<I: Isa, const N: usize> Clone for Cubic<I, N> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<I: Isa, const N: usize> Copy for Cubic<I, N> {}

impl<I: Isa, const N: usize> Cubic<I, N> {
    const CURVE: Curve = curve(N);

    #[inline(always)]
    fn new(isa: I, row: &[i8; N]) -> Self {
        let shift = f32::from(row[0]) - Self::CURVE.first;
        Cubic { shift: isa.splat_f(shift), centre: isa.splat_f(Self::CURVE.centre - shift) }
    }

    /// The value of a code, in the unshifted table.
    #[inline(always)]
    fn value(isa: I, q: I::F) -> I::F {
        let [c0, c1, c2, c3] = Self::CURVE.value;
        let v = isa.mul_add_f(q, isa.splat_f(c3), isa.splat_f(c2));
        let v = isa.mul_add_f(q, v, isa.splat_f(c1));
        isa.round(isa.mul_add_f(q, v, isa.splat_f(c0)))
    }

    /// A slot whose level or the next one is nearest, and the values of both.
    #[inline(always)]
    fn near(self, isa: I, t: I::F) -> (I::F, [I::F; 2]) {
        let Curve { middle, steep, bend, inside, .. } = Self::CURVE;
        let u = isa.add_f(t, self.centre);
        let u = isa.max_f(isa.min_f(u, isa.splat_f(inside)), isa.splat_f(-inside));
        let slope = isa.mul_add_f(isa.abs_f(u), isa.splat_f(-bend), isa.splat_f(steep));
        let slot = isa.slot(isa.mul_add_f(u, slope, isa.splat_f(middle)));
        let q = isa.slot_number(slot);
        let (below, above) = (Self::value(isa, q), Self::value(isa, isa.add_f(q, isa.splat_f(1.0))));
        (slot, [isa.add_f(below, self.shift), isa.add_f(above, self.shift)])
    }
}

impl<I: Isa, const N: usize> Levels<I> for Cubic<I, N> {
    #[inline(always)]
    fn nearest(self, isa: I, t: I::F) -> I::F {
        let (_, [below, above]) = self.near(isa, t);
        isa.if_gt(isa.add_f(t, t), isa.add_f(below, above), above, below)
    }

    #[inline(always)]
    fn code(self, isa: I, t: I::F) -> I::F {
        let (slot, [below, above]) = self.near(isa, t);
        let next = isa.add_f(slot, isa.splat_f(1.0));
        isa.if_gt(isa.add_f(t, t), isa.add_f(below, above), next, slot)
    }
}

round_each_element!([const N: usize] Wide<I, N>);
round_each_element!([const N: usize] Cubic<I, N>);

#[cfg(test)]
mod tests {
    use ikq_formats::codebook::{IQ5NL_VALUES, IQ6NL_VALUES};
    use ikq_simd::Scalar;

    use super::super::Shifted;
    use super::super::tests::check;
    use super::*;

    fn check_rows<const N: usize>(rows: &[[i8; N]; 2]) {
        for row in rows {
            check(Cubic::new(Scalar, row), row);
        }
        let shift = f32::from(rows[1][0] - rows[0][0]);
        check(Shifted { levels: Cubic::new(Scalar, &rows[0]), by: [shift; 16] }, &rows[1]);
    }

    #[test]
    fn cubics_round_to_the_nearest_value() {
        check_rows(&IQ5NL_VALUES);
        check_rows(&IQ6NL_VALUES);
    }
}
