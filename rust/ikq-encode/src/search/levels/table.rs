//! Value tables of 4, 8, 16, 32 and 64 levels.
//!
//! To round t to a table, a smooth function that is close to the inverse of the table first gives a code c such
//! that level c or c + 1 is nearest (tests check many t). One comparison with the middle between the two levels
//! then gives the code. Four levels only take three comparisons.

use ikq_simd::Isa;

use super::Levels;
use crate::search::scale::round_each_element;

/// `slot = middle + u * (steep - bend * |u|)` with `u = t + centre` between -`inside` and `inside`.
#[derive(Clone, Copy)]
struct Curve {
    /// First value of the table row that the numbers are for; other rows are shifted.
    first: f32,
    /// Added to t so that the table is (nearly) symmetric about 0.
    centre: f32,
    steep: f32,
    bend: f32,
    middle: f32,
    /// Bound of u, at which the function gives the first code and the last but one.
    inside: f32,
}

/// The curve of the tables of `n` values.
const fn curve(n: usize) -> Curve {
    match n {
        // IQ3NL
        8 => Curve { first: -63.0, centre: 0.0, steep: 1.0 / 13.0, bend: 0.0, middle: 3.0385, inside: 44.0 },
        // IQ4NL, IQ4K
        16 => {
            Curve { first: -127.0, centre: 4.5, steep: 0.0925, bend: 0.000_244, middle: 7.0, inside: 115.0 }
        }
        // IQ5NL
        32 => Curve {
            first: -126.0,
            centre: 4.832,
            steep: 0.181_16,
            bend: 0.000_458_6,
            middle: 14.802,
            inside: 117.0,
        },
        // IQ6NL
        64 => Curve {
            first: -127.0,
            centre: 4.771,
            steep: 0.372_64,
            bend: 0.000_970_3,
            middle: 30.6725,
            inside: 121.0,
        },
        _ => panic!("no table has so many values"),
    }
}

/// A row of one of the tables `IQ3NL`, `IQ4NL` (`IQ4K`), `IQ5NL`, `IQ6NL`.
pub struct Table<I: Isa, const N: usize> {
    /// The values, sixteen per register.
    values: [I::F; 4],
    /// The middles between each value and the next, with `centre` added.
    middles: [I::F; 4],
    /// Added to t, to centre the table and to remove the row's shift.
    centre: I::F,
}

/// The table of four-bit codes.
pub type Table4<I> = Table<I, 16>;

impl<I: Isa, const N: usize> Clone for Table<I, N> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<I: Isa, const N: usize> Copy for Table<I, N> {}

impl<I: Isa, const N: usize> Table<I, N> {
    const CURVE: Curve = curve(N);

    /// A row of the table.
    #[inline(always)]
    pub fn new(isa: I, row: &[i8; N]) -> Self {
        let centre = Self::CURVE.centre - (f32::from(row[0]) - Self::CURVE.first);
        let zero = isa.splat_f(0.0);
        let (mut values, mut middles) = ([zero; 4], [zero; 4]);
        for (k, sixteen) in row.chunks(16).enumerate() {
            let (mut v, mut m) = ([0.0; 16], [f32::MAX; 16]);
            for i in 0..sixteen.len() {
                v[i] = f32::from(sixteen[i]);
                if let Some(next) = row.get(16 * k + i + 1) {
                    m[i] = 0.5 * (v[i] + f32::from(*next)) + centre;
                }
            }
            (values[k], middles[k]) = (isa.load_f(&v), isa.load_f(&m));
        }
        Table { values, middles, centre: isa.splat_f(centre) }
    }

    #[inline(always)]
    fn look_up(isa: I, table: [I::F; 4], slots: I::F) -> I::F {
        let [a, b, c, d] = table;
        match N {
            8 => isa.lut8_f(a, isa.bits_i(slots)),
            16 => isa.lut16_f(a, isa.bits_i(slots)),
            32 => isa.lut32_f([a, b], isa.bits_i(slots)),
            _ => isa.lut64_f([a, b, c, d], isa.bits_i(slots)),
        }
    }

    #[inline(always)]
    fn slot(self, isa: I, t: I::F) -> I::F {
        let Curve { steep, bend, middle, inside, .. } = Self::CURVE;
        let u = isa.add_f(t, self.centre);
        let near = isa.max_f(isa.min_f(u, isa.splat_f(inside)), isa.splat_f(-inside));
        let slope = match bend {
            0.0 => isa.splat_f(steep),
            _ => isa.mul_add_f(isa.abs_f(near), isa.splat_f(-bend), isa.splat_f(steep)),
        };
        let slot = isa.slot(isa.mul_add_f(near, slope, isa.splat_f(middle)));
        let above = isa.add_f(slot, isa.splat_f(1.0));
        isa.if_gt(u, Self::look_up(isa, self.middles, slot), above, slot)
    }
}

impl<I: Isa, const N: usize> Levels<I> for Table<I, N> {
    #[inline(always)]
    fn nearest(self, isa: I, t: I::F) -> I::F {
        Self::look_up(isa, self.values, self.slot(isa, t))
    }

    #[inline(always)]
    fn code(self, isa: I, t: I::F) -> I::F {
        self.slot(isa, t)
    }
}

round_each_element!([const N: usize] Table<I, N>);

/// Any four ascending levels.
pub struct Four<I: Isa> {
    values: [I::F; 4],
    middles: [I::F; 3],
}

impl<I: Isa> Clone for Four<I> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<I: Isa> Copy for Four<I> {}

impl<I: Isa> Four<I> {
    #[inline(always)]
    pub fn new(isa: I, values: &[i8; 4]) -> Self {
        let [a, b, c, d] = values.map(f32::from);
        Four {
            values: [isa.splat_f(a), isa.splat_f(b), isa.splat_f(c), isa.splat_f(d)],
            middles: [isa.splat_f(0.5 * (a + b)), isa.splat_f(0.5 * (b + c)), isa.splat_f(0.5 * (c + d))],
        }
    }

    /// The entry of `of` that belongs to the level nearest to t.
    #[inline(always)]
    fn pick(self, isa: I, t: I::F, of: [I::F; 4]) -> I::F {
        let low = isa.if_gt(t, self.middles[0], of[1], of[0]);
        let high = isa.if_gt(t, self.middles[2], of[3], of[2]);
        isa.if_gt(t, self.middles[1], high, low)
    }
}

impl<I: Isa> Levels<I> for Four<I> {
    #[inline(always)]
    fn nearest(self, isa: I, t: I::F) -> I::F {
        self.pick(isa, t, self.values)
    }

    #[inline(always)]
    fn code(self, isa: I, t: I::F) -> I::F {
        let number = |n: f32| isa.slot(isa.splat_f(n));
        self.pick(isa, t, [number(0.0), number(1.0), number(2.0), number(3.0)])
    }
}

round_each_element!([] Four<I>);

#[cfg(test)]
mod tests {
    use ikq_formats::codebook::{IQ2NL_VALUES, IQ3NL_VALUES, IQ4K_VALUES, IQ5NL_VALUES, IQ6NL_VALUES};
    use ikq_simd::Scalar;

    use super::super::Shifted;
    use super::super::tests::check;
    use super::*;

    fn check_rows<const N: usize>(rows: &[[i8; N]; 2]) {
        for row in rows {
            check(Table::new(Scalar, row), row);
        }
        let shift = f32::from(rows[1][0] - rows[0][0]);
        check(Shifted { levels: Table::new(Scalar, &rows[0]), by: [shift; 16] }, &rows[1]);
    }

    #[test]
    fn tables_round_to_the_nearest_value() {
        for row in &IQ2NL_VALUES {
            check(Four::new(Scalar, row), row);
        }
        check_rows(&IQ3NL_VALUES);
        check_rows(&IQ4K_VALUES);
        check_rows(&IQ5NL_VALUES);
        check_rows(&IQ6NL_VALUES);
    }
}
