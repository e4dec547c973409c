//! IQ1_S and IQ1_M: codes are entries of a grid of eight ternary levels, all shifted by an eighth up or down. The comment of each type
//! lists the fields of its block in order.
//!
//! `grid + 1/8` is `(8 * grid + 1) / 8`, so that codes are integers; the factor is folded into `d`.

use ikq_formats::codebook::IQ1S_GRID;
use ikq_simd::{Codebook8, Isa, LaneIndices, TakeLanes, array, map, written_out};

use crate::decode::{Decode, Scales, bytes, u16_at, u32_at};
use crate::iquants::levels_8;
use crate::lane_integers::{Integers, LaneIntegers, Place, odd_bytes};
use crate::lane_planes::field;
use crate::lanes::{Decoding, LaneCodes, LaneScales, LaneUnit};

/// The upper three bits of four indices, packed from bit 0 on, spread to one byte each.
#[inline(always)]
pub(crate) fn three_bits<I: Isa>(isa: I, v: I::I) -> I::I {
    let mut out = isa.and_i(v, isa.splat_i(7));
    for l in 1..4 {
        out = isa.or_i(out, isa.and_i(isa.shl_i(v, 5 * l), isa.splat_i(7 << (8 * l))));
    }
    out
}

/// Codes of IQ1 types from the low bytes of the indices, their upper bits, and a mask of the elements whose shift
/// is negative.
#[inline(always)]
pub(crate) fn ternary_lanes<I: Isa>(
    isa: I,
    (low, high): (&[u8; 64], I::I),
    indices: &LaneIndices,
    negative: I::I,
    take: &mut impl TakeLanes<I>,
) {
    isa.codebook_8(&IQ1_BOOK, low, high, indices, negative, take);
}

/// The upper three bits of four indices and, as bit 3, the sign of a shift, from nibbles to a byte each.
#[inline(always)]
fn nibble_bytes<I: Isa>(isa: I, nibbles: I::I) -> I::I {
    let mut bytes = isa.and_i(nibbles, isa.splat_i(15));
    for l in 1..4 {
        bytes = isa.or_i(bytes, isa.and_i(isa.shl_i(nibbles, 4 * l), isa.splat_i(15 << (8 * l))));
    }
    bytes
}

/// The upper three bits of four indices, a byte each, from nibbles.
#[inline(always)]
pub(crate) fn upper_bits<I: Isa>(isa: I, nibbles: I::I) -> I::I {
    isa.and_i(nibble_bytes(isa, nibbles), isa.splat_i(0x0707_0707))
}

/// [`ternary_lanes`] where a nibble has the upper three index bits and, as bit 3, the shift's sign.
#[inline(always)]
pub(crate) fn nibble_lanes<I: Isa>(
    isa: I,
    low: &[u8; 64],
    nibbles: I::I,
    indices: &LaneIndices,
    take: &mut impl TakeLanes<I>,
) {
    let bytes = nibble_bytes(isa, nibbles);
    // 0 - 1 is a byte of ones
    let bit = isa.and_i(isa.shr_i(bytes, 3), isa.splat_i(0x0101_0101));
    let negative = isa.ints(isa.sub(isa.splat(0), isa.of_ints(bit)));
    let high = isa.and_i(bytes, isa.splat_i(0x0707_0707));
    ternary_lanes(isa, (low, high), indices, negative, take);
}

/// The codes of levels -1, 0, 1: `8 * level + 1`, or `8 * level - 1` where the shift is negative, with 16 added.
static IQ1_BOOK: Codebook8<2048> = Codebook8::new(
    levels_8(&IQ1S_GRID, [0xff, 0, 1]),
    [16 - 7, 16 + 1, 16 + 9, 0, 16 - 9, 16 - 1, 16 + 7, 0],
);

/// `8 * grid + delta`, where each byte of `delta` is 1 or -1.
#[inline(always)]
pub(crate) fn ternary_entries<I: Isa>(isa: I, index: [u32; 8], delta: I::B64) -> I::B64 {
    let g = isa.gather_u64(&IQ1S_GRID, index);
    let g = isa.add(g, g);
    let g = isa.add(g, g);
    isa.add(isa.add(g, g), delta)
}

/// -1 where the bit is set, else 1.
#[inline(always)]
pub(crate) fn delta_byte(bit: u16) -> u8 {
    1_u8.wrapping_sub(2 * (bit & 1) as u8)
}

/// f16 d, qs[32], u16[8]: per 32 elements four 3-bit upper index parts, a scale, the shift's sign.
pub struct IQ1_S;

impl<I: Isa> Decode<I> for IQ1_S {
    const UNIT_BYTES: usize = 50;
    const BLOCK_BYTES: usize = 50;
    const FRONT_BYTES: usize = 2;
    const SUB_BLOCK: usize = 32;
    const MAX_ABS_CODE: i32 = 9;
    const DECODING: Decoding = Decoding::Heavy;
    const LANE_CODES: LaneCodes = LaneCodes::Offset(4);
    const TOGETHER: usize = 4;

    #[inline(always)]
    fn scales(isa: I, _: f32, unit: &[u8]) -> Scales {
        let s = array(|b| (u16_at(unit, 34 + 2 * b) >> 11 & 14 | 1) as i16);
        Scales::by_32(isa.f16(u16_at(unit, 0)) * 0.125, s)
    }

    #[inline(always)]
    fn codes(isa: I, unit: &[u8], j: usize) -> I::B64 {
        let low = bytes::<8>(unit, 2 + 8 * j);
        let h = [u16_at(unit, 34 + 4 * j), u16_at(unit, 36 + 4 * j)];
        let h = map(h, u32::from);
        let index = |l: usize| u32::from(low[l]) | (h[l / 4] >> (3 * (l % 4)) & 7) << 8;
        let [a, b] = map(h, |h| delta_byte((h >> 15) as u16));
        ternary_entries(isa, array(index), isa.splat_4x16([a, a, b, b]))
    }

    const CODEBOOK: usize = 2048;

    #[inline(always)]
    fn lane_indices(isa: I, unit: &LaneUnit<'_>, b: usize, out: &mut LaneIndices) {
        let high = isa.shr_i(unit.int(isa, 8 + b / 2), 16 * (b as u32 % 2));
        isa.indices_8(&unit.words[b], three_bits(isa, high), out);
    }

    #[inline(always)]
    fn lanes_in_turn(
        isa: I,
        unit: &LaneUnit<'_>,
        b: usize,
        indices: &LaneIndices,
        take: &mut impl TakeLanes<I>,
    ) {
        let high = isa.shr_i(unit.int(isa, 8 + b / 2), 16 * (b as u32 % 2));
        let index = (&unit.words[b], three_bits(isa, high));
        ternary_lanes(isa, index, indices, isa.where_bit(high, 15, -1), take);
    }

    #[inline(always)]
    fn lane_scales(isa: I, _: I::F, unit: &LaneUnit<'_>, out: &mut LaneScales<I::F>) {
        let d = isa.mul_f(unit.half_float(isa, 0), isa.splat_f(0.125));
        for b in 0..8 {
            out.scale[b] =
                isa.mul_f(d, isa.linear::<3, 2, 1>(unit.int(isa, 8 + b / 2), 16 * (b as u32 % 2) + 12));
        }
    }

    const INTEGERS: Option<Integers> = Integers::unsigned(Place::UpperBytes);

    #[inline(always)]
    fn lane_integers(isa: I, unit: &LaneUnit<'_>, out: &mut LaneIntegers<I::I, I::F>) {
        out.d = isa.mul_f(unit.half_float(isa, 0), isa.splat_f(0.125));
        for j in 0..4 {
            let s = isa.and_i(isa.shr_i(unit.int(isa, 8 + j), 3), isa.splat_i(0x0e0e_0e0e));
            out.scale[j] = isa.or_i(s, isa.splat_i(0x0101_0101));
        }
    }
}

/// qs[32], qh[16] (nibbles: upper index part and the shift's sign), u16[4]: sixteen 3-bit scales
/// and, in their top nibbles, the f16 d.
pub struct IQ1_M;

impl IQ1_M {
    /// The float scale of sixteen rows: an eighth of the half that is in the top nibbles of four u16.
    #[inline(always)]
    fn float_scale<I: Isa>(isa: I, s: [I::I; 2]) -> I::F {
        let mut d = isa.shr_i(s[1], 28);
        d = isa.or_i(isa.shl_i(d, 4), field(isa, s[1], 12, 4));
        d = isa.or_i(isa.shl_i(d, 4), isa.shr_i(s[0], 28));
        d = isa.or_i(isa.shl_i(d, 4), field(isa, s[0], 12, 4));
        isa.mul_f(isa.float_of_f16(d), isa.splat_f(0.125))
    }
}

impl<I: Isa> Decode<I> for IQ1_M {
    const UNIT_BYTES: usize = 56;
    const BLOCK_BYTES: usize = 56;
    const SUB_BLOCK: usize = 16;
    const MAX_ABS_CODE: i32 = 9;
    const DECODING: Decoding = Decoding::Heavy;
    const LANE_CODES: LaneCodes = LaneCodes::Offset(4);
    const TOGETHER: usize = 4;

    #[inline(always)]
    fn scales(isa: I, _: f32, unit: &[u8]) -> Scales {
        let sc: [u16; 4] = array(|b| u16_at(unit, 48 + 2 * b));
        let d = sc[0] >> 12 | sc[1] >> 12 << 4 | sc[2] >> 12 << 8 | sc[3] & 0xf000;
        let s = array(|k| 2 * (sc[k / 4] >> (3 * (k % 4)) & 7) as i16 + 1);
        Scales::by_16(isa.f16(d) * 0.125, s)
    }

    #[inline(always)]
    fn codes(isa: I, unit: &[u8], j: usize) -> I::B64 {
        let low = bytes::<8>(unit, 8 * j);
        let h = u32_at(unit, 32 + 4 * j);
        let index = |l: usize| u32::from(low[l]) | (h >> (4 * l) & 7) << 8;
        ternary_entries(isa, array(index), nibble_deltas(isa, h))
    }

    const CODEBOOK: usize = 2048;

    #[inline(always)]
    fn lane_indices(isa: I, unit: &LaneUnit<'_>, b: usize, out: &mut LaneIndices) {
        let high = isa.shr_i(unit.int(isa, 8 + b / 2), 16 * (b as u32 % 2));
        isa.indices_8(&unit.words[b], upper_bits(isa, high), out);
    }

    #[inline(always)]
    fn lanes_in_turn(
        isa: I,
        unit: &LaneUnit<'_>,
        b: usize,
        indices: &LaneIndices,
        take: &mut impl TakeLanes<I>,
    ) {
        let high = isa.shr_i(unit.int(isa, 8 + b / 2), 16 * (b as u32 % 2));
        nibble_lanes(isa, &unit.words[b], high, indices, take);
    }

    #[inline(always)]
    fn lane_scales(isa: I, _: I::F, unit: &LaneUnit<'_>, out: &mut LaneScales<I::F>) {
        let s = [unit.int(isa, 12), unit.int(isa, 13)];
        let d = Self::float_scale(isa, s);
        written_out!(16, k => {
            out.scale[k] =
                isa.mul_f(d, isa.linear::<3, 2, 1>(s[k / 8], 16 * (k as u32 / 4 % 2) + 3 * (k as u32 % 4)));
        });
    }

    const INTEGERS: Option<Integers> = Integers::unsigned(Place::InOrder);

    #[inline(always)]
    fn lane_integers(isa: I, unit: &LaneUnit<'_>, out: &mut LaneIntegers<I::I, I::F>) {
        let s = [unit.int(isa, 12), unit.int(isa, 13)];
        out.d = Self::float_scale(isa, s);
        for q in 0..4 {
            let three = three_bits(isa, isa.shr_i(s[q / 2], 16 * (q as u32 % 2)));
            out.scale[q] = odd_bytes(isa, three);
        }
    }
}

/// Eight times eight bytes of 1, or of -1 where bit 3 of the nibble of `h` is set.
#[inline(always)]
pub(crate) fn nibble_deltas<I: Isa>(isa: I, h: u32) -> I::B64 {
    // spreads nibbles to one byte each
    let x = u64::from(h);
    let x = (x | x << 16) & 0x0000_ffff_0000_ffff;
    let x = (x | x << 8) & 0x00ff_00ff_00ff_00ff;
    let x = (x | x << 4) & 0x0f0f_0f0f_0f0f_0f0f;
    let negative = (x >> 3 & 0x0101_0101_0101_0101) * 0xff;
    isa.or(isa.splat(1), isa.mask_bytes(negative, 0xff))
}
