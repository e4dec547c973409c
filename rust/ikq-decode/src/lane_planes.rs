//! Arrangements of bits that several families share, for sixteen rows at once. Functions give the codes of elements
//! `32 b..32 b + 32` as eight vectors, each with four neighbouring elements of every row. `at` is the word of the
//! unit where an arrangement begins. [`crate::planes`] has the counterparts for single rows.

use ikq_simd::Isa;

use crate::lanes::{LaneScales, LaneUnit};

/// Eight vectors, `$value` for each index `$i`. This is a macro because a closure may not be inlined.
macro_rules! eight {
    ($isa:expr, $i:ident => $value:expr) => {{
        let mut out = [$isa.splat(0); 8];
        for ($i, out) in out.iter_mut().enumerate() {
            *out = $value;
        }
        out
    }};
}
pub(crate) use eight;

/// Nibbles, four words for 32 elements: the low ones, then the high ones.
#[inline(always)]
pub(crate) fn nibbles_16<I: Isa>(isa: I, unit: &LaneUnit<'_>, at: usize) -> [I::B64; 8] {
    eight!(isa, i => isa.bits(unit.word(isa, at + i % 4), 4 * (i as u32 / 4), 15))
}

/// Nibbles, eight words for 64 elements: the low ones, then the high ones.
#[inline(always)]
pub(crate) fn nibbles_32<I: Isa>(isa: I, unit: &LaneUnit<'_>, at: usize, b: usize) -> [I::B64; 8] {
    eight!(isa, i => isa.bits(unit.word(isa, at + 8 * (b / 2) + i), 4 * (b as u32 % 2), 15))
}

/// Two-bit codes: eight words hold four layers of 32 elements, one above the other.
#[inline(always)]
pub(crate) fn crumbs<I: Isa>(isa: I, unit: &LaneUnit<'_>, at: usize, b: usize) -> [I::B64; 8] {
    eight!(isa, i => isa.bits(unit.word(isa, at + 8 * (b / 4) + i), 2 * (b as u32 % 4), 3))
}

/// Codes of three bits: the lower two are [`crumbs`] from word `at[0]` on, the third is bit b of the bytes of eight
/// words from `at[1]` on.
#[inline(always)]
pub(crate) fn crumbs_and_bits<I: Isa>(isa: I, unit: &LaneUnit<'_>, at: [usize; 2], b: usize) -> [I::B64; 8] {
    eight!(isa, i => {
        let (low, high) = (unit.word(isa, at[0] + 8 * (b / 4) + i), unit.word(isa, at[1] + i));
        isa.two_fields(low, high, [2 * (b as u32 % 4), b as u32], [2, 1])
    })
}

/// Codes of five bits, as [`crumbs_and_bits`] but with [`nibbles_32`] as the lower four.
#[inline(always)]
pub(crate) fn nibbles_and_bits<I: Isa>(isa: I, unit: &LaneUnit<'_>, at: [usize; 2], b: usize) -> [I::B64; 8] {
    eight!(isa, i => {
        let (low, high) = (unit.word(isa, at[0] + 8 * (b / 2) + i), unit.word(isa, at[1] + i));
        isa.two_fields(low, high, [4 * (b as u32 % 2), b as u32], [4, 1])
    })
}

/// Codes of six bits: [`nibbles_32`] from word `at[0]` on, and above them [`crumbs`] from `at[1]` on.
#[inline(always)]
pub(crate) fn nibbles_and_crumbs<I: Isa>(
    isa: I,
    unit: &LaneUnit<'_>,
    at: [usize; 2],
    b: usize,
) -> [I::B64; 8] {
    eight!(isa, i => {
        let (low, high) = (unit.word(isa, at[0] + 8 * (b / 2) + i), unit.word(isa, at[1] + 8 * (b / 4) + i));
        isa.two_fields(low, high, [4 * (b as u32 % 2), 2 * (b as u32 % 4)], [4, 2])
    })
}

/// Each value's entry in a table.
#[inline(always)]
pub(crate) fn lut16<I: Isa>(isa: I, table: &[i8; 16], codes: [I::B64; 8]) -> [I::B64; 8] {
    eight!(isa, i => isa.lut16(table, codes[i]))
}

/// A table with `plus` added, wrapping around: the offset or bias that products expect of codes.
pub(crate) const fn plus<const N: usize>(table: &[i8; N], plus: i32) -> [i8; N] {
    let mut out = [0; N];
    let mut i = 0;
    while i < N {
        out[i] = (table[i] as i32 + plus) as i8;
        i += 1;
    }
    out
}

/// Two tables of the same length, the second from `M` on, with `plus` added.
pub(crate) const fn both<const N: usize, const M: usize, const OUT: usize>(
    rows: &[[i8; N]; 2],
    plus: i32,
) -> [i8; OUT] {
    assert!(OUT == 2 * M && N <= M);
    let mut out = [0; OUT];
    let mut i = 0;
    while i < N {
        out[i] = (rows[0][i] as i32 + plus) as i8;
        out[M + i] = (rows[1][i] as i32 + plus) as i8;
        i += 1;
    }
    out
}

/// Which of two tables the codes of a row use, for each 16 of 32 elements; see [`second`].
pub(crate) type Second<I> = [<I as ikq_simd::Lanes>::I; 2];

/// Chooses between two tables of `m` entries, the second of which is the first plus `shift`: for half h of 32
/// elements, rows with bit `bits[h]` of `v` set use the second. The result is for [`lut16_of_2`] and
/// [`lut32_of_2`].
#[inline(always)]
pub(crate) fn second<I: Isa>(isa: I, v: I::I, bits: [u32; 2], m: u8, shift: u8) -> Second<I> {
    let mut out = [v; 2];
    for (out, bit) in out.iter_mut().zip(bits) {
        // where look-ups in long tables are as fast as in short ones, an index bit chooses the table; else `shift`
        // is added
        *out = match I::WIDE_LUT {
            true => isa.shl_i(every_byte(isa, v, bit), m.trailing_zeros()),
            false => isa.where_bit(v, bit, i32::from(shift) * 0x0101_0101),
        };
    }
    out
}

/// Bytes of 1 in the lanes whose bit `bit` is set, else 0.
#[inline(always)]
pub(crate) fn every_byte<I: Isa>(isa: I, v: I::I, bit: u32) -> I::I {
    let one = isa.and_i(isa.shr_i(v, bit), isa.splat_i(1));
    isa.ints(isa.pick(isa.of_ints(one), [0; 4]))
}

/// Values of codes below 16 by the two tables in `tables`.
#[inline(always)]
pub(crate) fn lut16_of_2<I: Isa>(
    isa: I,
    tables: &[i8; 32],
    codes: [I::B64; 8],
    second: Second<I>,
) -> [I::B64; 8] {
    eight!(isa, i => {
        let second = isa.of_ints(second[i / 4]);
        match I::WIDE_LUT {
            true => isa.lut32(tables, isa.or(codes[i], second)),
            false => isa.add(isa.lut16(tables.first_chunk().expect("two tables"), codes[i]), second),
        }
    })
}

/// Values of codes below 32 by the two tables in `tables`.
#[inline(always)]
pub(crate) fn lut32_of_2<I: Isa>(
    isa: I,
    tables: &[i8; 64],
    codes: [I::B64; 8],
    second: Second<I>,
) -> [I::B64; 8] {
    eight!(isa, i => {
        let second = isa.of_ints(second[i / 4]);
        match I::WIDE_LUT {
            true => isa.lut64(tables, isa.or(codes[i], second)),
            false => isa.add(isa.lut32(tables.first_chunk().expect("two tables"), codes[i]), second),
        }
    })
}

/// The `width` bits from bit `from` of each lane.
#[inline(always)]
pub(crate) fn field<I: Isa>(isa: I, v: I::I, from: u32, width: u32) -> I::I {
    isa.and_i(isa.shr_i(v, from), isa.splat_i((1 << width) - 1))
}

/// The nibble from bit `at` of `low` and the `HIGH` bits from bit `high_at` of `high` above it, plus `OFFSET`.
#[inline(always)]
pub(crate) fn nibble_and_high<I: Isa, const HIGH: u32, const OFFSET: i32>(
    isa: I,
    (low, at): (I::I, u32),
    (high, high_at): (I::I, u32),
) -> I::F {
    isa.add_f(isa.linear::<4, 1, 0>(low, at), isa.linear::<HIGH, 16, OFFSET>(high, high_at))
}

/// The signed byte `k` of each lane.
#[inline(always)]
pub(crate) fn signed_byte<I: Isa>(isa: I, v: I::I, k: u32) -> I::I {
    isa.sra_i(isa.shl_i(v, 24 - 8 * k), 24)
}

/// `d` times an integer scale.
#[inline(always)]
pub(crate) fn times<I: Isa>(isa: I, d: I::F, s: I::I) -> I::F {
    isa.mul_f(d, isa.float_i(s))
}

/// `d` times an integer scale from which `offset` is subtracted first.
#[inline(always)]
pub(crate) fn times_less<I: Isa>(isa: I, d: I::F, s: I::I, offset: i32) -> I::F {
    times(isa, d, isa.add_i(s, isa.splat_i(-offset)))
}

/// The same scale for all elements, as types that have one scale per row or unit need it.
#[inline(always)]
pub(crate) fn same_scale<I: Isa>(scale: I::F, out: &mut LaneScales<I::F>) {
    for out in out.scale.iter_mut().take(8) {
        *out = scale;
    }
}
