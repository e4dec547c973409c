//! Codes of a 4-bit table where every group of four codes must have an even number of one bits in all (IQ4_KSS).
//!
//! Rounding is exact: where the codes of the nearest levels of a group have an odd number of one bits, one element,
//! the one for which it adds the least error, moves to the nearest level whose code has the other parity. (Any
//! valid choice changes the parity of at least one code.)

use ikq_simd::Isa;

use super::levels::{Levels, Table4};
use super::scale::{Coder, Sums};
use super::tile::{Codes, LANES, Tile};

/// The elements of a group, counted from its first one. Groups begin at the even elements of a sub-block's first
/// half.
const GROUP: [usize; 4] = [0, 16, 1, 17];
const HALF: usize = 16;

/// A table whose codes come in groups of even parity.
pub struct EvenGroups<I: Isa> {
    table: Table4<I>,
    /// For each code: its value, and -1 where it has an odd number of one bits, else 1.
    values: I::F,
    signs: I::F,
    /// For each code: the next values above and below whose codes have the other parity; where there is only one,
    /// it is both.
    above: I::F,
    below: I::F,
}

impl<I: Isa> Clone for EvenGroups<I> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<I: Isa> Copy for EvenGroups<I> {}

/// An element's nearest level, the nearest one of the other parity, and the error that the change adds.
#[derive(Clone, Copy)]
struct Choice<F> {
    nearest: F,
    other: F,
    sign: F,
    /// `w (other - nearest)`, and `other + nearest`.
    step: F,
    sum: F,
    /// Added error, in units of the scale.
    cost: F,
}

impl<I: Isa> EvenGroups<I> {
    /// A row of the table.
    #[inline(always)]
    pub fn new(isa: I, row: &[i8; 16]) -> Self {
        let (mut above, mut below, mut signs) = ([0.0; 16], [0.0; 16], [0.0; 16]);
        let v = ikq_simd::map(*row, f32::from);
        for code in 0..16usize {
            let odd = |c: usize| c.count_ones() % 2;
            let up = (code + 1..16).find(|c| odd(*c) != odd(code));
            let down = (0..code).rev().find(|c| odd(*c) != odd(code));
            (above[code], below[code]) = match (up, down) {
                (Some(up), Some(down)) => (v[up], v[down]),
                (Some(one), None) | (None, Some(one)) => (v[one], v[one]),
                (None, None) => (v[code], v[code]),
            };
            signs[code] = 1.0 - 2.0 * odd(code) as f32;
        }
        EvenGroups {
            table: Table4::new(isa, row),
            values: isa.load_f(&v),
            signs: isa.load_f(&signs),
            above: isa.load_f(&above),
            below: isa.load_f(&below),
        }
    }

    #[inline(always)]
    fn choice<const N: usize>(self, isa: I, tile: &Tile<N>, i: usize, inverse: I::F) -> Choice<I::F> {
        let t = isa.mul_f(isa.load_f(&tile.x[i]), inverse);
        let code = self.table.code(isa, t);
        let nearest = isa.lut16_slot(self.values, code);
        let (above, below) = (isa.lut16_slot(self.above, code), isa.lut16_slot(self.below, code));
        let twice = isa.add_f(t, t);
        let other = isa.if_gt(twice, isa.add_f(above, below), above, below);
        let step = isa.mul_f(isa.load_f(&tile.w[i]), isa.sub_f(other, nearest));
        let sum = isa.add_f(other, nearest);
        // w ((t - other)^2 - (t - nearest)^2)
        let cost = isa.mul_f(step, isa.sub_f(sum, twice));
        Choice { nearest, other, sign: isa.lut16_slot(self.signs, code), step, sum, cost }
    }
}

impl<I: Isa> Coder<I> for EvenGroups<I> {
    #[inline(always)]
    fn sums<const N: usize>(self, isa: I, tile: &Tile<N>, inverse: I::F) -> Sums<I::F> {
        let zero = isa.splat_f(0.0);
        let (mut xv, mut vv) = (zero, zero);
        for first in (0..HALF).step_by(2) {
            let mut sign = isa.splat_f(1.0);
            let (mut least, mut by_xv, mut by_vv) = (isa.splat_f(f32::INFINITY), zero, zero);
            for i in GROUP {
                let i = first + i;
                let c = self.choice(isa, tile, i, inverse);
                xv = isa.mul_add_f(isa.load_f(&tile.wx[i]), c.nearest, xv);
                vv = isa.mul_add_f(isa.mul_f(isa.load_f(&tile.w[i]), c.nearest), c.nearest, vv);
                sign = isa.mul_f(sign, c.sign);
                by_xv = isa.if_gt(least, c.cost, isa.mul_f(c.step, isa.load_f(&tile.x[i])), by_xv);
                by_vv = isa.if_gt(least, c.cost, isa.mul_f(c.step, c.sum), by_vv);
                least = isa.min_f(c.cost, least);
            }
            xv = isa.add_f(xv, isa.if_gt(zero, sign, by_xv, zero));
            vv = isa.add_f(vv, isa.if_gt(zero, sign, by_vv, zero));
        }
        Sums { xv, vv }
    }

    #[inline(always)]
    fn values<const N: usize>(self, isa: I, tile: &Tile<N>, inverse: I::F, out: &mut Codes<N>) {
        for first in (0..HALF).step_by(2) {
            let mut sign = isa.splat_f(1.0);
            let (mut least, mut at) = (isa.splat_f(f32::INFINITY), isa.splat_f(0.0));
            let mut others = [[0.0; LANES]; GROUP.len()];
            for (j, i) in GROUP.into_iter().enumerate() {
                let c = self.choice(isa, tile, first + i, inverse);
                isa.store_f(c.nearest, &mut out[first + i]);
                isa.store_f(c.other, &mut others[j]);
                sign = isa.mul_f(sign, c.sign);
                at = isa.if_gt(least, c.cost, isa.splat_f(j as f32), at);
                least = isa.min_f(c.cost, least);
            }
            let (sign, at) = (isa.array(sign), isa.array(at));
            for lane in 0..LANES {
                if sign[lane] < 0.0 {
                    let j = at[lane] as usize;
                    out[first + GROUP[j]][lane] = others[j][lane];
                }
            }
        }
    }

    #[inline(always)]
    fn codes<const N: usize>(self, isa: I, tile: &Tile<N>, inverse: I::F, out: &mut Codes<N>) {
        self.values(isa, tile, inverse, out);
        for v in out {
            isa.store_f(self.table.code(isa, isa.load_f(v)), v);
        }
    }
}

#[cfg(test)]
mod tests {
    use ikq_formats::codebook::IQ4K_VALUES;
    use ikq_simd::Scalar;

    use super::*;

    #[test]
    fn groups_are_even_and_nearest() {
        let mut seed = 1u32;
        let mut random = || {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (seed >> 8) as f32 / (1 << 24) as f32
        };
        let mut tile = Tile::<32>::default();
        for i in 0..32 {
            for lane in 0..LANES {
                tile.x[i][lane] = 300.0 * (random() - 0.5);
                tile.w[i][lane] = 0.1 + random();
                tile.wx[i][lane] = tile.w[i][lane] * tile.x[i][lane];
            }
        }
        for values in &IQ4K_VALUES {
            let coder = EvenGroups::new(Scalar, values);
            let mut codes = [[0.0; LANES]; 32];
            coder.codes(Scalar, &tile, [1.0; LANES], &mut codes);
            let energy = tile.energy(Scalar);
            let errors = coder.sums(Scalar, &tile, [1.0; LANES]).error(Scalar, [1.0; LANES], energy);
            for (lane, error) in errors.into_iter().enumerate() {
                let mut total = 0.0;
                for first in (0..HALF).step_by(2) {
                    let elements = GROUP.map(|i| first + i);
                    let of = |code: &dyn Fn(usize) -> usize| -> f32 {
                        let errors = elements.iter().enumerate().map(|(j, i)| {
                            tile.w[*i][lane] * (f32::from(values[code(j)]) - tile.x[*i][lane]).powi(2)
                        });
                        errors.sum()
                    };
                    let even = (0..1usize << 16).filter(|all| all.count_ones() % 2 == 0);
                    let least = even.map(|all| of(&|j| all >> (4 * j) & 15)).fold(f32::MAX, f32::min);
                    let found = elements.map(|i| codes[i][lane].to_bits() as usize & 15);
                    assert_eq!(found.iter().fold(0, |x, c| x ^ c).count_ones() % 2, 0);
                    assert!(of(&|j| found[j]) <= least * 1.0001, "{found:?}");
                    total += least;
                }
                assert!((error - total).abs() <= 1e-5 * energy[lane], "{error} {total}");
            }
        }
    }
}
