//! IQ2_XXS to IQ3_S, whose codes are indices of a codebook (a grid of entries of 8 or 4 elements) with separate signs.
//! The comment of each type lists the fields of its block in order.
//!
//! The formats' fractional factors are folded into `d` as powers of two, so that codes and scales
//! are integers: `d * (0.5 + s) * 0.25 * g` is `(d / 8) * (2 s + 1) * g`.

use ikq_formats::codebook::{
    IQ2S_GRID, IQ2S_LEVELS, IQ2XS_GRID, IQ2XS_LEVELS, IQ2XXS_GRID, IQ2XXS_LEVELS, IQ3S_GRID, IQ3S_LEVELS,
    IQ3XXS_GRID, IQ3XXS_LEVELS,
};
use ikq_simd::{Codebook4, Codebook8, Isa, LaneIndices, TakeLanes, array, map, written_out};

use crate::decode::{Decode, Scales, bytes, nib, u16_at, u32_at};
use crate::lane_integers::{Integers, LaneIntegers, Place, nibble_words, odd_bytes};
use crate::lanes::{Decoding, LaneCodes, LaneScales, LaneUnit};
use crate::planes::nibbles_in_turn;

/// The little-endian u64 at byte `at`.
#[inline(always)]
fn u64_at(unit: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(*bytes(unit, at))
}

/// Sign bits of 64 elements from eight 7-bit codes, one per byte: the eighth bit makes the number of negative
/// elements even.
#[inline(always)]
fn even(codes: u64) -> u64 {
    let x = codes ^ codes >> 4;
    let x = x ^ x >> 2;
    codes | ((x ^ x >> 1) & 0x0101_0101_0101_0101) << 7
}

/// Sign bits of 64 elements: four 7-bit codes in the low 28 bits of each word.
#[inline(always)]
fn signs_of_64(a: u32, b: u32) -> u64 {
    let x = u64::from(a) | u64::from(b) << 32;
    let code = |l: u32| x << l & 0x0000_007f_0000_007f << (8 * l);
    even(code(0) | code(1) | code(2) | code(3))
}

/// `2 s + 1` of the nibbles of eight bytes: the scales of IQ2_XS and IQ2_S.
#[inline(always)]
fn odd_nibbles(b: &[u8; 8]) -> [i16; 16] {
    map(nibbles_in_turn(b), |s| 2 * i16::from(s) + 1)
}

/// `2 s + 1` of the nibbles of a word's bytes, the low ones and the high ones.
#[inline(always)]
fn odd_nibble_words<I: Isa>(isa: I, v: I::I) -> [I::I; 2] {
    let [low, high] = nibble_words(isa, v);
    [odd_bytes(isa, low), odd_bytes(isa, high)]
}

/// Sign bits of 32 elements from four 7-bit codes in the low 28 bits.
#[inline(always)]
fn seven_bit_signs<I: Isa>(isa: I, v: I::I) -> I::I {
    // two codes in each 16 bits; adding the upper one once more moves it up by a bit
    let two =
        isa.or_i(isa.and_i(v, isa.splat_i(0x3fff)), isa.and_i(isa.shl_i(v, 2), isa.splat_i(0x3fff << 16)));
    let codes = isa.add_i(two, isa.and_i(two, isa.splat_i(0x3f80_3f80)));
    isa.with_parity(codes)
}

/// The entries of a grid of eight magnitudes, each magnitude replaced by its index in `values`.
pub(crate) const fn levels_8<const N: usize>(grid: &[u64; N], values: [u8; 3]) -> [u64; N] {
    let mut out = [0; N];
    let mut i = 0;
    while i < 8 * N {
        let byte = (grid[i / 8] >> (8 * (i % 8))) as u8;
        let mut level = 0;
        while values[level] != byte {
            level += 1;
        }
        out[i / 8] |= (level as u64) << (8 * (i % 8));
        i += 1;
    }
    out
}

/// The entries of a grid of four magnitudes, each magnitude replaced by its index in `values`.
const fn levels_4<const N: usize>(grid: &[u32; N], values: [u8; 8]) -> [u32; N] {
    let mut out = [0; N];
    let mut i = 0;
    while i < 4 * N {
        let byte = (grid[i / 4] >> (8 * (i % 4))) as u8;
        let mut level = 0;
        while values[level] != byte {
            level += 1;
        }
        out[i / 4] |= (level as u32) << (8 * (i % 4));
        i += 1;
    }
    out
}

/// A table of `magnitudes` with `offset` added, then, from entry `N` on, of the negated ones.
const fn signed<const L: usize, const N: usize, const OUT: usize>(
    magnitudes: [u8; L],
    offset: i8,
) -> [i8; OUT] {
    assert!(OUT == 2 * N && L <= N);
    let mut out = [0; OUT];
    let mut l = 0;
    while l < L {
        out[l] = offset + magnitudes[l] as i8;
        out[N + l] = offset - magnitudes[l] as i8;
        l += 1;
    }
    out
}

static IQ2XXS_BOOK: Codebook8<256> =
    Codebook8::new(levels_8(&IQ2XXS_GRID, IQ2XXS_LEVELS), signed::<3, 4, 8>(IQ2XXS_LEVELS, 64));
static IQ2XS_BOOK: Codebook8<512> =
    Codebook8::new(levels_8(&IQ2XS_GRID, IQ2XS_LEVELS), signed::<3, 4, 8>(IQ2XS_LEVELS, 64));
static IQ2S_BOOK: Codebook8<1024> =
    Codebook8::new(levels_8(&IQ2S_GRID, IQ2S_LEVELS), signed::<3, 4, 8>(IQ2S_LEVELS, 64));
static IQ3XXS_BOOK: Codebook4<256> =
    Codebook4::new(levels_4(&IQ3XXS_GRID, IQ3XXS_LEVELS), signed::<8, 8, 16>(IQ3XXS_LEVELS, 64));
static IQ3S_BOOK: Codebook4<512> =
    Codebook4::new(levels_4(&IQ3S_GRID, IQ3S_LEVELS), signed::<8, 8, 16>(IQ3S_LEVELS, 16));

/// f16 d; per 32 elements four grid indices and a u32 of four sign codes and a scale.
pub struct IQ2_XXS;

impl<I: Isa> Decode<I> for IQ2_XXS {
    const UNIT_BYTES: usize = 66;
    const BLOCK_BYTES: usize = 66;
    const FRONT_BYTES: usize = 2;
    const SUB_BLOCK: usize = 32;
    const MAX_ABS_CODE: i32 = 43;
    const DECODING: Decoding = Decoding::Heavy;
    const LANE_CODES: LaneCodes = LaneCodes::Offset(6);
    const TOGETHER: usize = 4;

    #[inline(always)]
    fn scales(isa: I, _: f32, unit: &[u8]) -> Scales {
        let s = array(|b| 2 * i16::from(unit[8 * b + 9] >> 4) + 1);
        Scales::by_32(isa.f16(u16_at(unit, 0)) * 0.125, s)
    }

    #[inline(always)]
    fn codes(isa: I, unit: &[u8], j: usize) -> I::B64 {
        let at = 2 + 16 * j;
        let index = u64::from(u32_at(unit, at)) | u64::from(u32_at(unit, at + 8)) << 32;
        let grid = isa.gather_u64(&IQ2XXS_GRID, map(index.to_le_bytes(), u32::from));
        isa.negate_where(grid, signs_of_64(u32_at(unit, at + 4), u32_at(unit, at + 12)))
    }

    const CODEBOOK: usize = 256;

    #[inline(always)]
    fn lanes_in_turn(
        isa: I,
        unit: &LaneUnit<'_>,
        b: usize,
        indices: &LaneIndices,
        take: &mut impl TakeLanes<I>,
    ) {
        let signs = seven_bit_signs(isa, unit.int(isa, 2 * b + 1));
        isa.codebook_8(&IQ2XXS_BOOK, &unit.words[2 * b], isa.splat_i(0), indices, signs, take);
    }

    #[inline(always)]
    fn lane_scales(isa: I, _: I::F, unit: &LaneUnit<'_>, out: &mut LaneScales<I::F>) {
        let d = isa.mul_f(unit.half_float(isa, 0), isa.splat_f(0.125));
        for b in 0..8 {
            out.scale[b] = isa.mul_f(d, isa.linear::<4, 2, 1>(unit.int(isa, 2 * b + 1), 28));
        }
    }
}

/// The low bytes of the indices of IQ2_XS of 32 elements, and what stands above them: the ninth bit and the sign code.
#[inline(always)]
fn iq2_xs_bytes<I: Isa>(isa: I, unit: &LaneUnit<'_>, b: usize) -> ([u8; 64], I::I) {
    let (x, y) = (unit.int(isa, 2 * b), unit.int(isa, 2 * b + 1));
    // four u16 of nine and seven bits: low index bytes, the ninth bits, and the sign codes, a byte each
    let pair = isa.splat_i(0x00ff_00ff);
    let low = isa.or_i(isa.and_i(x, isa.splat_i(0xff)), isa.and_i(isa.shr_i(x, 8), isa.splat_i(0xff00)));
    let low_y = isa.or_i(isa.and_i(y, isa.splat_i(0xff)), isa.and_i(isa.shr_i(y, 8), isa.splat_i(0xff00)));
    let low = isa.or_i(low, isa.shl_i(low_y, 16));
    let (x, y) = (isa.and_i(isa.shr_i(x, 8), pair), isa.and_i(isa.shr_i(y, 8), pair));
    let (x, y) = (isa.or_i(x, isa.shr_i(x, 8)), isa.or_i(y, isa.shr_i(y, 8)));
    let upper = isa.or_i(isa.and_i(x, isa.splat_i(0xffff)), isa.shl_i(y, 16));
    let mut lows = [0; 64];
    isa.store(isa.of_ints(low), &mut lows);
    (lows, upper)
}

/// f16 d, u16[32] (grid index and sign code), eight bytes of scales.
pub struct IQ2_XS;

impl<I: Isa> Decode<I> for IQ2_XS {
    const UNIT_BYTES: usize = 74;
    const BLOCK_BYTES: usize = 74;
    const FRONT_BYTES: usize = 2;
    const SUB_BLOCK: usize = 16;
    const MAX_ABS_CODE: i32 = 43;
    const DECODING: Decoding = Decoding::Heavy;
    const LANE_CODES: LaneCodes = LaneCodes::Offset(6);
    const TOGETHER: usize = 4;

    #[inline(always)]
    fn scales(isa: I, _: f32, unit: &[u8]) -> Scales {
        Scales::by_16(isa.f16(u16_at(unit, 0)) * 0.125, odd_nibbles(bytes(unit, 66)))
    }

    #[inline(always)]
    fn codes(isa: I, unit: &[u8], j: usize) -> I::B64 {
        let at = 2 + 16 * j;
        let v: [u16; 8] = array(|l| u16_at(unit, at + 2 * l));
        let grid = isa.gather_u64(&IQ2XS_GRID, map(v, u32::from));
        // the upper seven bits of four words, brought together
        let four = |at: usize| {
            let x = u64_at(unit, at) >> 9 & 0x007f_007f_007f_007f;
            let x = (x | x >> 8) & 0x0000_ffff_0000_ffff;
            (x | x >> 16) & 0xffff_ffff
        };
        isa.negate_where(grid, even(four(at) | four(at + 8) << 32))
    }

    const CODEBOOK: usize = 512;

    #[inline(always)]
    fn lane_indices(isa: I, unit: &LaneUnit<'_>, b: usize, out: &mut LaneIndices) {
        let (lows, upper) = iq2_xs_bytes(isa, unit, b);
        isa.indices_8(&lows, isa.and_i(upper, isa.splat_i(0x0101_0101)), out);
    }

    #[inline(always)]
    fn lanes_in_turn(
        isa: I,
        unit: &LaneUnit<'_>,
        b: usize,
        indices: &LaneIndices,
        take: &mut impl TakeLanes<I>,
    ) {
        let (lows, upper) = iq2_xs_bytes(isa, unit, b);
        let high = isa.and_i(upper, isa.splat_i(0x0101_0101));
        let signs = isa.with_parity(isa.and_i(isa.shr_i(upper, 1), isa.splat_i(0x7f7f_7f7f)));
        isa.codebook_8(&IQ2XS_BOOK, &lows, high, indices, signs, take);
    }

    #[inline(always)]
    fn lane_scales(isa: I, _: I::F, unit: &LaneUnit<'_>, out: &mut LaneScales<I::F>) {
        let d = isa.mul_f(unit.half_float(isa, 0), isa.splat_f(0.125));
        written_out!(16, k => {
            out.scale[k] = isa.mul_f(d, isa.linear::<4, 2, 1>(unit.int(isa, 16 + k / 8), 4 * (k as u32 % 8)));
        });
    }

    const INTEGERS: Option<Integers> = Integers::unsigned(Place::InTurn);

    #[inline(always)]
    fn lane_integers(isa: I, unit: &LaneUnit<'_>, out: &mut LaneIntegers<I::I, I::F>) {
        out.d = isa.mul_f(unit.half_float(isa, 0), isa.splat_f(0.125));
        for q in 0..2 {
            [out.scale[2 * q], out.scale[2 * q + 1]] = odd_nibble_words(isa, unit.int(isa, 16 + q));
        }
    }
}

/// The upper two bits of the indices of IQ2_S of 32 elements, a byte each.
#[inline(always)]
fn iq2_s_upper_bits<I: Isa>(isa: I, unit: &LaneUnit<'_>, b: usize) -> I::I {
    let high = isa.shr_i(unit.int(isa, 16 + b / 4), 8 * (b as u32 % 4));
    isa.ints(isa.spread_crumbs(high, 0))
}

/// f16 d, qs[32], signs[32], qh[8] (two index bits per entry), eight bytes of scales.
pub struct IQ2_S;

impl<I: Isa> Decode<I> for IQ2_S {
    const UNIT_BYTES: usize = 82;
    const BLOCK_BYTES: usize = 82;
    const FRONT_BYTES: usize = 2;
    const SUB_BLOCK: usize = 16;
    const MAX_ABS_CODE: i32 = 43;
    const DECODING: Decoding = Decoding::Heavy;
    const LANE_CODES: LaneCodes = LaneCodes::Offset(6);
    const TOGETHER: usize = 4;

    #[inline(always)]
    fn scales(isa: I, _: f32, unit: &[u8]) -> Scales {
        Scales::by_16(isa.f16(u16_at(unit, 0)) * 0.125, odd_nibbles(bytes(unit, 74)))
    }

    #[inline(always)]
    fn codes(isa: I, unit: &[u8], j: usize) -> I::B64 {
        let high = u32::from(u16_at(unit, 66 + 2 * j));
        let low = bytes::<8>(unit, 2 + 8 * j);
        let index = |l: usize| u32::from(low[l]) | (high >> (2 * l) & 3) << 8;
        isa.negate_where(isa.gather_u64(&IQ2S_GRID, array(index)), u64_at(unit, 34 + 8 * j))
    }

    const CODEBOOK: usize = 1024;

    #[inline(always)]
    fn lane_indices(isa: I, unit: &LaneUnit<'_>, b: usize, out: &mut LaneIndices) {
        isa.indices_8(&unit.words[b], iq2_s_upper_bits(isa, unit, b), out);
    }

    #[inline(always)]
    fn lanes_in_turn(
        isa: I,
        unit: &LaneUnit<'_>,
        b: usize,
        indices: &LaneIndices,
        take: &mut impl TakeLanes<I>,
    ) {
        let high = iq2_s_upper_bits(isa, unit, b);
        isa.codebook_8(&IQ2S_BOOK, &unit.words[b], high, indices, unit.int(isa, 8 + b), take);
    }

    #[inline(always)]
    fn lane_scales(isa: I, _: I::F, unit: &LaneUnit<'_>, out: &mut LaneScales<I::F>) {
        let d = isa.mul_f(unit.half_float(isa, 0), isa.splat_f(0.125));
        written_out!(16, k => {
            out.scale[k] = isa.mul_f(d, isa.linear::<4, 2, 1>(unit.int(isa, 18 + k / 8), 4 * (k as u32 % 8)));
        });
    }

    const INTEGERS: Option<Integers> = Integers::unsigned(Place::InTurn);

    #[inline(always)]
    fn lane_integers(isa: I, unit: &LaneUnit<'_>, out: &mut LaneIntegers<I::I, I::F>) {
        out.d = isa.mul_f(unit.half_float(isa, 0), isa.splat_f(0.125));
        for q in 0..2 {
            [out.scale[2 * q], out.scale[2 * q + 1]] = odd_nibble_words(isa, unit.int(isa, 18 + q));
        }
    }
}

/// f16 d, qs[64] (an index per four elements), u32[8] (four sign codes and a scale).
pub struct IQ3_XXS;

impl<I: Isa> Decode<I> for IQ3_XXS {
    const UNIT_BYTES: usize = 98;
    const BLOCK_BYTES: usize = 98;
    const FRONT_BYTES: usize = 2;
    const SUB_BLOCK: usize = 32;
    const MAX_ABS_CODE: i32 = 62;
    const DECODING: Decoding = Decoding::Heavy;
    const LANE_CODES: LaneCodes = LaneCodes::Offset(6);
    const TOGETHER: usize = 4;

    #[inline(always)]
    fn scales(isa: I, _: f32, unit: &[u8]) -> Scales {
        let s = array(|b| 2 * i16::from(unit[4 * b + 69] >> 4) + 1);
        Scales::by_32(isa.f16(u16_at(unit, 0)) * 0.25, s)
    }

    #[inline(always)]
    fn codes(isa: I, unit: &[u8], j: usize) -> I::B64 {
        let index = bytes::<16>(unit, 2 + 16 * j);
        let grid = isa.gather_u32(&IQ3XXS_GRID, map(*index, u32::from));
        isa.negate_where(grid, signs_of_64(u32_at(unit, 66 + 8 * j), u32_at(unit, 70 + 8 * j)))
    }

    const CODEBOOK: usize = 256;

    #[inline(always)]
    fn lanes_in_turn(
        isa: I,
        unit: &LaneUnit<'_>,
        b: usize,
        indices: &LaneIndices,
        take: &mut impl TakeLanes<I>,
    ) {
        let low = unit.words[2 * b..].first_chunk().expect("two words of indices");
        let signs = seven_bit_signs(isa, unit.int(isa, 16 + b));
        isa.codebook_4(&IQ3XXS_BOOK, low, isa.splat_i(0), indices, signs, take);
    }

    #[inline(always)]
    fn lane_scales(isa: I, _: I::F, unit: &LaneUnit<'_>, out: &mut LaneScales<I::F>) {
        let d = isa.mul_f(unit.half_float(isa, 0), isa.splat_f(0.25));
        for b in 0..8 {
            out.scale[b] = isa.mul_f(d, isa.linear::<4, 2, 1>(unit.int(isa, 16 + b), 28));
        }
    }
}

/// f16 d, qs[64], qh[8] (one index bit per entry), signs[32], four bytes of scales.
pub struct IQ3_S;

impl<I: Isa> Decode<I> for IQ3_S {
    const UNIT_BYTES: usize = 110;
    const BLOCK_BYTES: usize = 110;
    const FRONT_BYTES: usize = 2;
    const SUB_BLOCK: usize = 32;
    const MAX_ABS_CODE: i32 = 15;
    const DECODING: Decoding = Decoding::Heavy;
    const LANE_CODES: LaneCodes = LaneCodes::Offset(4);
    const TOGETHER: usize = 4;

    #[inline(always)]
    fn scales(isa: I, _: f32, unit: &[u8]) -> Scales {
        let s = array(|b| 2 * i16::from(nib(unit[106 + b / 2], b % 2)) + 1);
        Scales::by_32(isa.f16(u16_at(unit, 0)), s)
    }

    #[inline(always)]
    fn codes(isa: I, unit: &[u8], j: usize) -> I::B64 {
        let low = bytes::<16>(unit, 2 + 16 * j);
        let high = u32::from(u16_at(unit, 66 + 2 * j));
        let index = |l: usize| u32::from(low[l]) | (high >> l & 1) << 8;
        isa.negate_where(isa.gather_u32(&IQ3S_GRID, array(index)), u64_at(unit, 74 + 8 * j))
    }

    const CODEBOOK: usize = 512;

    #[inline(always)]
    fn lane_indices(isa: I, unit: &LaneUnit<'_>, b: usize, out: &mut LaneIndices) {
        let low = unit.words[2 * b..].first_chunk().expect("two words of indices");
        isa.indices_4(low, isa.shr_i(unit.int(isa, 16 + b / 4), 8 * (b as u32 % 4)), out);
    }

    #[inline(always)]
    fn lanes_in_turn(
        isa: I,
        unit: &LaneUnit<'_>,
        b: usize,
        indices: &LaneIndices,
        take: &mut impl TakeLanes<I>,
    ) {
        let low = unit.words[2 * b..].first_chunk().expect("two words of indices");
        let high = isa.shr_i(unit.int(isa, 16 + b / 4), 8 * (b as u32 % 4));
        isa.codebook_4(&IQ3S_BOOK, low, high, indices, unit.int(isa, 18 + b), take);
    }

    #[inline(always)]
    fn lane_scales(isa: I, _: I::F, unit: &LaneUnit<'_>, out: &mut LaneScales<I::F>) {
        let d = unit.half_float(isa, 0);
        for b in 0..8 {
            out.scale[b] = isa.mul_f(d, isa.linear::<4, 2, 1>(unit.int(isa, 26), 4 * b as u32));
        }
    }

    const INTEGERS: Option<Integers> = Integers::unsigned(Place::InTurn);

    #[inline(always)]
    fn lane_integers(isa: I, unit: &LaneUnit<'_>, out: &mut LaneIntegers<I::I, I::F>) {
        out.d = unit.half_float(isa, 0);
        [out.scale[0], out.scale[1]] = odd_nibble_words(isa, unit.int(isa, 26));
    }
}
