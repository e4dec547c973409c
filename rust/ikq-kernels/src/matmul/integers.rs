//! Sums of products that are scaled while they are integers, on instruction sets where that is free: those which add up pairs of
//! products by multiplying them with 16-bit numbers ([`ikq_simd::Products::scaled_pairs`]).
//!
//! A sum of 32 products is multiplied by the integer scales of its elements, and added, times the activations' scale, to the
//! unit's sum of floats; that is multiplied by the unit's float scale when all of the unit is there. Mins go the same way. Integer
//! sums are exact, so [`super::direct`] and [`super::tile`] may add them up in any order.

#![allow(
    clippy::needless_range_loop,
    reason = "with other loops than counted ones sums do not stay in registers"
)]

use ikq_decode::{Decode, Integers, LaneCodes, LaneIntegers, LaneUnit};
use ikq_simd::{Isa, written_out};

use super::direct::fours;
use crate::act::{ActBlock, ActUnit};

/// Whether an instruction set scales sums of a type that has integer scales while they are integers.
pub(super) const fn is_integer<I: Isa>(has_integers: bool) -> bool {
    I::SCALES_PAIRS && has_integers
}

/// The same for the type of a decoder.
pub(super) const fn scales_integers<I: Isa, D: Decode<I>>() -> bool {
    is_integer::<I>(D::INTEGERS.is_some())
}

/// Factors of a unit of sixteen rows, as products take them: each lane has two 16-bit numbers.
pub(super) struct Factors<I: Isa> {
    /// Twice the scale of each 16 or 32 elements.
    pub scale: [I::I; 16],
    /// The mins of each 32 elements: those of both halves, or, where they have one, that as a float.
    pub min: [I::I; 8],
    /// Of types with a second table ([`Decode::SECOND`]): bits 2 b and 2 b + 16 say whether the first and the second 16 elements of
    /// part b use it.
    seconds: I::I,
    /// Float scales of the unit and its mins.
    pub d: I::F,
    pub dmin: I::F,
}

impl<I: Isa> Factors<I> {
    /// Zeros, to be overwritten.
    #[inline(always)]
    pub fn new(isa: I) -> Factors<I> {
        let d = isa.splat_f(0.0);
        let zero = isa.splat_i(0);
        Factors { scale: [zero; 16], min: [zero; 8], seconds: zero, d, dmin: d }
    }

    /// Makes those of `unit`.
    #[inline(always)]
    pub fn set<D: Decode<I>>(&mut self, isa: I, unit: &LaneUnit<'_>) {
        let Some(integers) = D::INTEGERS else { return };
        let mut bytes = LaneIntegers::new(isa);
        D::lane_integers(isa, unit, &mut bytes);
        (self.d, self.dmin) = (bytes.d, bytes.dmin);
        if D::SECOND > 0 {
            let seconds = D::lane_seconds(isa, unit);
            self.seconds = isa.or_i(seconds, isa.shl_i(seconds, 15));
        }
        written_out!(8, k => self.scale[k] = twice(isa, integers, &bytes.scale, k));
        if D::PER_16 {
            written_out!(8, k => self.scale[8 + k] = twice(isa, integers, &bytes.scale, 8 + k));
        }
        if D::HAS_MIN {
            written_out!(8, b => self.min[b] = match D::PER_16 {
                true => isa.two_bytes::<false>(bytes.min[b / 2], [2 * b % 4, 2 * b % 4 + 1]),
                false => isa.bits_i(isa.float_i(isa.byte(bytes.min[b / 4], b % 4))),
            });
        }
    }

    /// What the activations' codes count too often where weights have 2^`n` added, less what they count too little where codes by the
    /// first table stand for those by the second: as many times the scales of both halves.
    #[inline(always)]
    fn offset<D: Decode<I>>(&self, isa: I, b: usize, n: u32) -> I::I {
        let both = match D::PER_16 {
            true => isa.join_16(self.scale[2 * b], self.scale[2 * b + 1]),
            false => self.scale[b],
        };
        if D::SECOND == 0 {
            return isa.shl_16(both, n);
        }
        let is_second = isa.and_i(isa.shr_i(self.seconds, 2 * b as u32), isa.splat_i(0x0001_0001));
        let less = isa.mul_16(isa.of_ints(is_second), both_16(isa, D::SECOND.into()));
        // as bytes, since numbers below 128 take no more
        let times = isa.sub(both_16(isa, 1 << n), less);
        isa.ints(isa.mul_16(isa.of_ints(both), times))
    }
}

/// A number below 2^15 as both 16-bit numbers of each lane.
#[inline(always)]
fn both_16<I: Isa>(isa: I, v: i32) -> I::B64 {
    isa.of_ints(isa.splat_i(v | v << 16))
}

/// Scale `k` as both 16-bit numbers of each lane.
#[inline(always)]
fn twice<I: Isa>(isa: I, integers: Integers, words: &[I::I; 8], k: usize) -> I::I {
    let (word, at) = integers.at(k);
    match integers.signed {
        true => isa.two_bytes::<true>(words[word], [at; 2]),
        false => isa.two_bytes::<false>(words[word], [at; 2]),
    }
}

/// Two 16-bit numbers of each lane times minus the sums of the activations' codes: of the first and of the second 16 elements.
#[inline(always)]
pub(super) fn times_sums<I: Isa>(isa: I, numbers: I::I, x: &ActBlock) -> I::I {
    let [low, high] = x.less;
    let less = isa.splat_i(i32::from(low as u16) | i32::from(high) << 16);
    isa.dot2(isa.splat_i(0), isa.of_ints(numbers), isa.of_ints(less))
}

/// Sums of a unit of `C` columns, of which the activations' scales are part, but not yet the unit's.
#[derive(Clone, Copy)]
pub(super) struct UnitSums<I: Isa, const C: usize> {
    pub products: [I::F; C],
    pub mins: [I::F; C],
}

impl<I: Isa, const C: usize> UnitSums<I, C> {
    /// Begins a unit: types whose float scale is the row's go on with the rows' sums.
    #[inline(always)]
    pub fn begin(isa: I, has_header: bool, rows: &[I::F; C]) -> UnitSums<I, C> {
        let zeros = [isa.splat_f(0.0); C];
        UnitSums { products: if has_header { *rows } else { zeros }, mins: zeros }
    }

    /// Adds the scaled sum of 32 elements of column `c`, and what [`Factors::min`] has for them.
    #[inline(always)]
    pub fn add(&mut self, isa: I, c: usize, sum: I::I, min: Option<I::I>, per_16: bool, x: &ActBlock) {
        let d = isa.splat_f(x.d);
        self.products[c] = isa.fused_add(isa.float_i(sum), d, self.products[c]);
        let Some(min) = min else { return };
        self.mins[c] = match per_16 {
            true => isa.fused_add(isa.float_i(times_sums(isa, min, x)), d, self.mins[c]),
            false => isa.fused_sub(isa.of_bits(min), isa.splat_f(x.sum), self.mins[c]),
        };
    }

    /// Adds the unit to the rows' sums.
    #[inline(always)]
    pub fn end(&self, isa: I, has_header: bool, has_min: bool, d: I::F, dmin: I::F, rows: &mut [I::F; C]) {
        for c in 0..C {
            rows[c] = match has_header {
                true => self.products[c],
                false => isa.fused_add(self.products[c], d, rows[c]),
            };
            if has_min {
                rows[c] = isa.fused_add(self.mins[c], dmin, rows[c]);
            }
        }
    }
}

/// Scaled sums of products of the 32 elements `b`, whose codes are those of [`Decode::lanes_by_first`].
#[inline(always)]
pub(super) fn sums<I: Isa, D: Decode<I>, const C: usize>(
    isa: I,
    codes: &[I::B64; 8],
    columns: &[&ActUnit; C],
    factors: &Factors<I>,
    b: usize,
) -> [I::I; C] {
    let (n_scales, n) = if D::PER_16 { (2, 4) } else { (1, 8) };
    let together = if D::SMALL < n { D::SMALL } else { n };
    let mut sums = starts::<I, D, C>(isa, columns, factors, b);
    // a second sum where there is one column, so that not every product waits for the one before
    let mut others = [isa.splat_i(0); C];
    for g in 0..8 / together {
        let scale = factors.scale[n_scales * b + g * together / n];
        for c in 0..C {
            let x = fours(&columns[c][b]);
            let mut pairs = pairs::<I, D>(isa, codes[g * together], &x[g * together]);
            for i in 1..together {
                let i = g * together + i;
                pairs = isa.add_pairs(pairs, self::pairs::<I, D>(isa, codes[i], &x[i]));
            }
            let sum = if C == 1 && g % 2 == 1 { &mut others[c] } else { &mut sums[c] };
            *sum = isa.scaled_pairs(*sum, pairs, scale);
        }
    }
    if C == 1 {
        sums[0] = isa.add_i(sums[0], others[0]);
    }
    sums
}

/// What sums of the 32 elements `b` start from.
#[inline(always)]
pub(super) fn starts<I: Isa, D: Decode<I>, const C: usize>(
    isa: I,
    columns: &[&ActUnit; C],
    factors: &Factors<I>,
    b: usize,
) -> [I::I; C] {
    let mut starts = [isa.splat_i(0); C];
    if let LaneCodes::Offset(n) = D::LANE_CODES {
        let offset = factors.offset::<D>(isa, b, n);
        for c in 0..C {
            starts[c] = times_sums(isa, offset, &columns[c][b]);
        }
    }
    starts
}

/// Products of four codes of each row, two added up.
#[inline(always)]
fn pairs<I: Isa, D: Decode<I>>(isa: I, codes: I::B64, x: &[i8; 4]) -> I::Pairs {
    let x = isa.splat_4_codes(x);
    match D::LANE_CODES {
        LaneCodes::Biased => isa.biased_pair_products(codes, x),
        _ => isa.pair_products(codes, x),
    }
}
