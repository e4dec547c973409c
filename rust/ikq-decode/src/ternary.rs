//! Ternary, one-bit and two-bit types: codes -1, 0, 1 (and 2) with one scale per block, row or tensor. The comment
//! of each type lists the fields of its block in order.

use ikq_formats::codebook::{IQ1BN_POWERS, IQ1BN_TRITS, trit};
use ikq_simd::{Isa, array, map};

use crate::decode::{Decode, Scales, bytes, u16_at};
use crate::iqks::{f16_header, f32_header};
use crate::lane_planes::{crumbs as crumbs_lanes, eight, same_scale};
use crate::lanes::{Decoding, LaneCodes, LaneScales, LaneUnit};
use crate::planes::crumbs;

/// Factors by which a byte is multiplied, modulo 256, to bring its trit k to the top.
const TQ1_POWERS: [u8; 5] = [1, 3, 9, 27, 81];

/// qs[48] (five trits per byte), qh[4] (four), f16 d.
pub struct TQ1_0;

impl<I: Isa> Decode<I> for TQ1_0 {
    const UNIT_BYTES: usize = 54;
    const BLOCK_BYTES: usize = 54;
    const SUB_BLOCK: usize = 256;
    const MAX_ABS_CODE: i32 = 1;
    const LANE_CODES: LaneCodes = LaneCodes::Offset(0);

    #[inline(always)]
    fn scales(isa: I, _: f32, unit: &[u8]) -> Scales {
        Scales::floats([isa.f16(u16_at(unit, 52))])
    }

    #[inline(always)]
    fn codes(isa: I, unit: &[u8], j: usize) -> I::B64 {
        // loops over plain arrays, which the compiler vectorizes
        let long = |power: u8| map(*bytes::<32>(unit, 0), |b| trit(b, power));
        let short = |power: u8| map(*bytes::<16>(unit, 32), |b| trit(b, power));
        let last = || -> [u8; 16] {
            let b = bytes::<4>(unit, 48);
            array(|i| trit(b[i % 4], [1, 3, 9, 27][i / 4]))
        };
        let q = match j {
            0 => isa.load_2x32(&long(1), &long(3)),
            1 => isa.load_2x32(&long(9), &long(27)),
            2 => {
                let a = long(81);
                isa.load_4x16([bytes(&a, 0), bytes(&a, 16), &short(1), &short(3)])
            }
            _ => isa.load_4x16([&short(9), &short(27), &short(81), &last()]),
        };
        isa.sub(q, isa.splat(1))
    }

    #[inline(always)]
    fn lanes(isa: I, unit: &LaneUnit<'_>, b: usize) -> [I::B64; 8] {
        let mut out = [isa.splat(0); 8];
        for (i, out) in out.iter_mut().enumerate() {
            // the bytes of runs of 32, 16 and 4 hold five, five and four trits, whose elements are 32, 16 and 4
            // apart
            let (word, power) = match (b, i / 4) {
                (0..5, _) => (i, TQ1_POWERS[b]),
                (5..7, h) => (8 + i % 4, TQ1_POWERS[2 * (b - 5) + h]),
                (_, 0) => (8 + i, TQ1_POWERS[4]),
                _ => (12, TQ1_POWERS[i - 4]),
            };
            *out = isa.trits(unit.word(isa, word), [power; 4]);
        }
        out
    }

    #[inline(always)]
    fn lane_scales(isa: I, _: I::F, unit: &LaneUnit<'_>, out: &mut LaneScales<I::F>) {
        same_scale::<I>(unit.half_float(isa, 0), out);
    }
}

/// qs[64], f16 d; the unused code 3 decodes to 2.
pub struct TQ2_0;

impl<I: Isa> Decode<I> for TQ2_0 {
    const UNIT_BYTES: usize = 66;
    const BLOCK_BYTES: usize = 66;
    const SUB_BLOCK: usize = 256;
    const MAX_ABS_CODE: i32 = 2;
    const LANE_CODES: LaneCodes = LaneCodes::Offset(0);
    const DECODING: Decoding = Decoding::Light;

    #[inline(always)]
    fn scales(isa: I, _: f32, unit: &[u8]) -> Scales {
        Scales::floats([isa.f16(u16_at(unit, 64))])
    }

    #[inline(always)]
    fn codes(isa: I, unit: &[u8], j: usize) -> I::B64 {
        isa.sub(crumbs(isa, bytes(unit, 0), j), isa.splat(1))
    }

    #[inline(always)]
    fn lanes(isa: I, unit: &LaneUnit<'_>, b: usize) -> [I::B64; 8] {
        crumbs_lanes(isa, unit, 0, b)
    }

    #[inline(always)]
    fn lane_scales(isa: I, _: I::F, unit: &LaneUnit<'_>, out: &mut LaneScales<I::F>) {
        same_scale::<I>(unit.half_float(isa, 0), out);
    }
}

/// For each byte its five trits less 1, as the low five bytes of the entry.
static BN_CODES: [u64; 256] = {
    let mut out = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut k = 0;
        while k < 5 {
            out[byte] |= (IQ1BN_TRITS[byte][k].wrapping_sub(1) as u64) << (8 * k);
            k += 1;
        }
        byte += 1;
    }
    out
};

/// Blocks of 64: twelve bytes of five trits, three per 16 elements, and one with the last trit of
/// each sixteen. Header f16.
pub struct IQ1_BN;

impl<I: Isa> Decode<I> for IQ1_BN {
    const UNIT_BYTES: usize = 4 * 13;
    const BLOCK_BYTES: usize = 13;
    const HEADER_BYTES: usize = 2;
    const SUB_BLOCK: usize = 256;
    const MAX_ABS_CODE: i32 = 1;
    const LANE_CODES: LaneCodes = LaneCodes::Offset(0);

    #[inline(always)]
    fn header(header: &[u8]) -> f32 {
        f16_header(header)
    }

    #[inline(always)]
    fn scales(_: I, header: f32, _: &[u8]) -> Scales {
        Scales::floats([header])
    }

    #[inline(always)]
    fn codes(isa: I, unit: &[u8], j: usize) -> I::B64 {
        let block = bytes::<13>(unit, 13 * j);
        let five = |i: usize| BN_CODES[usize::from(block[i])];
        let last = five(12);
        let word = |l: usize| {
            let (a, b, c) = (five(3 * (l / 2)), five(3 * (l / 2) + 1), five(3 * (l / 2) + 2));
            match l % 2 {
                0 => a | b << 40,
                _ => b >> 24 | c << 16 | last >> (8 * (l / 2)) << 56,
            }
        };
        isa.of_u64(array(word))
    }

    #[inline(always)]
    fn lanes(isa: I, unit: &LaneUnit<'_>, b: usize) -> [I::B64; 8] {
        let (block, half) = (b / 2, b % 2);
        let at = 3 * block;
        let last = isa.shl_i(unit.byte(isa, block), 24);
        let mut out = [isa.splat(0); 8];
        for h in 0..2 {
            // three bytes of five trits, and above them the byte that has one more of each sixteen elements
            let g = 2 * half + h;
            let low = unit.int(isa, at + 3 * g / 4);
            let high = unit.int(isa, at + (3 * g + 2) / 4);
            let low = isa.shr_i(low, 8 * (3 * g as u32 % 4));
            let by = 8 * (4 - 3 * g as u32 % 4) % 32;
            let three = if g == 1 || g == 2 { isa.or_i(low, isa.shl_i(high, by)) } else { low };
            let bytes = isa.of_ints(isa.or_i(isa.and_i(three, isa.splat_i(0x00ff_ffff)), last));
            let last = IQ1BN_POWERS[g];
            let p = IQ1BN_POWERS;
            out[4 * h] = isa.trits(isa.pick(bytes, [0, 0, 0, 0]), [p[0], p[1], p[2], p[3]]);
            out[4 * h + 1] = isa.trits(isa.pick(bytes, [0, 1, 1, 1]), [p[4], p[0], p[1], p[2]]);
            out[4 * h + 2] = isa.trits(isa.pick(bytes, [1, 1, 2, 2]), [p[3], p[4], p[0], p[1]]);
            out[4 * h + 3] = isa.trits(isa.pick(bytes, [2, 2, 2, 3]), [p[2], p[3], p[4], last]);
        }
        out
    }

    #[inline(always)]
    fn lane_scales(_: I, header: I::F, _: &LaneUnit<'_>, out: &mut LaneScales<I::F>) {
        same_scale::<I>(header, out);
    }
}

/// Blocks of 64: sixteen bytes, each with elements e, e + 16, e + 32, e + 48. Header f32.
pub struct IQ2_BN;

impl<I: Isa> Decode<I> for IQ2_BN {
    const UNIT_BYTES: usize = 4 * 16;
    const BLOCK_BYTES: usize = 16;
    const HEADER_BYTES: usize = 4;
    const SUB_BLOCK: usize = 256;
    const MAX_ABS_CODE: i32 = 2;
    const LANE_CODES: LaneCodes = LaneCodes::Offset(0);

    #[inline(always)]
    fn header(header: &[u8]) -> f32 {
        f32_header(header)
    }

    #[inline(always)]
    fn scales(_: I, header: f32, _: &[u8]) -> Scales {
        Scales::floats([header])
    }

    #[inline(always)]
    fn codes(isa: I, unit: &[u8], j: usize) -> I::B64 {
        let q = isa.bits_4x16(isa.load_4x16([bytes(unit, 16 * j); 4]), [0, 2, 4, 6], 3);
        isa.sub(q, isa.splat(1))
    }

    #[inline(always)]
    fn lanes(isa: I, unit: &LaneUnit<'_>, b: usize) -> [I::B64; 8] {
        let (at, from) = (4 * (b / 2), 4 * (b as u32 % 2));
        eight!(isa, i => isa.bits(unit.word(isa, at + i % 4), from + 2 * (i as u32 / 4), 3))
    }

    #[inline(always)]
    fn lane_scales(_: I, header: I::F, _: &LaneUnit<'_>, out: &mut LaneScales<I::F>) {
        same_scale::<I>(header, out);
    }
}

/// Runs of 128 elements in 32 bytes, the first 32 elements in the top bits. The one scale stands
/// behind the whole tensor's codes; whoever has the tensor passes it as the header.
pub struct I2_S;

impl<I: Isa> Decode<I> for I2_S {
    const UNIT_BYTES: usize = 64;
    const BLOCK_BYTES: usize = 32;
    const SUB_BLOCK: usize = 256;
    const MAX_ABS_CODE: i32 = 2;
    const LANE_CODES: LaneCodes = LaneCodes::Offset(0);

    #[inline(always)]
    fn scales(_: I, header: f32, _: &[u8]) -> Scales {
        Scales::floats([header])
    }

    #[inline(always)]
    fn codes(isa: I, unit: &[u8], j: usize) -> I::B64 {
        let run = bytes::<32>(unit, 32 * (j / 2));
        let top = 6 - 4 * (j as u32 % 2);
        let q = isa.bits_4x16(isa.load_2x32(run, run), [top, top, top - 2, top - 2], 3);
        isa.sub(q, isa.splat(1))
    }

    #[inline(always)]
    fn lanes(isa: I, unit: &LaneUnit<'_>, b: usize) -> [I::B64; 8] {
        let (at, from) = (8 * (b / 4), 6 - 2 * (b as u32 % 4));
        eight!(isa, i => isa.bits(unit.word(isa, at + i), from, 3))
    }

    #[inline(always)]
    fn lane_scales(_: I, header: I::F, _: &LaneUnit<'_>, out: &mut LaneScales<I::F>) {
        same_scale::<I>(header, out);
    }
}

/// Blocks of 128: f16 d, one bit per element: d where set, else -d.
pub struct Q1_0_G128;

impl<I: Isa> Decode<I> for Q1_0_G128 {
    const UNIT_BYTES: usize = 2 * 18;
    const BLOCK_BYTES: usize = 18;
    const FRONT_BYTES: usize = 2;
    const SUB_BLOCK: usize = 256;
    const N_FLOAT_SCALES: usize = 2;
    const MAX_ABS_CODE: i32 = 1;
    const LANE_CODES: LaneCodes = LaneCodes::Offset(0);

    #[inline(always)]
    fn scales(isa: I, _: f32, unit: &[u8]) -> Scales {
        Scales::floats([isa.f16(u16_at(unit, 0)), isa.f16(u16_at(unit, 18))])
    }

    #[inline(always)]
    fn codes(isa: I, unit: &[u8], j: usize) -> I::B64 {
        let mask = u64::from_le_bytes(*bytes(unit, 18 * (j / 2) + 2 + 8 * (j % 2)));
        isa.sub(isa.mask_bytes(mask, 2), isa.splat(1))
    }

    #[inline(always)]
    fn lanes(isa: I, unit: &LaneUnit<'_>, b: usize) -> [I::B64; 8] {
        eight!(isa, i => isa.spread_bits(unit.int(isa, b), i, 1))
    }

    #[inline(always)]
    fn lane_scales(isa: I, _: I::F, unit: &LaneUnit<'_>, out: &mut LaneScales<I::F>) {
        for b in 0..8 {
            out.scale[b] = unit.half_float(isa, 2 * (b / 4));
        }
    }
}

/// For each byte its four two-bit codes less 1, as the bytes of the entry.
static Q2_CODES: [u32; 256] = {
    let mut out = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut k = 0;
        while k < 4 {
            out[byte] |= (((byte >> (2 * k) & 3) as u8).wrapping_sub(1) as u32) << (8 * k);
            k += 1;
        }
        byte += 1;
    }
    out
};

/// Blocks of 64: f16 d, sixteen bytes of four neighbouring elements; values -d, 0, d, 2 d.
pub struct Q2_0;

impl<I: Isa> Decode<I> for Q2_0 {
    const UNIT_BYTES: usize = 4 * 18;
    const BLOCK_BYTES: usize = 18;
    const FRONT_BYTES: usize = 2;
    const SUB_BLOCK: usize = 256;
    const N_FLOAT_SCALES: usize = 4;
    const MAX_ABS_CODE: i32 = 2;
    const LANE_CODES: LaneCodes = LaneCodes::Offset(0);

    #[inline(always)]
    fn scales(isa: I, _: f32, unit: &[u8]) -> Scales {
        let d = isa.f16_8(array(|b| u16_at(unit, 18 * (b % 4))));
        Scales::floats([d[0], d[1], d[2], d[3]])
    }

    #[inline(always)]
    fn codes(isa: I, unit: &[u8], j: usize) -> I::B64 {
        isa.gather_u32(&Q2_CODES, map(*bytes(unit, 18 * j + 2), |b: u8| u32::from(b)))
    }

    #[inline(always)]
    fn lanes(isa: I, unit: &LaneUnit<'_>, b: usize) -> [I::B64; 8] {
        let at = 2 * b;
        eight!(isa, i => isa.spread_crumbs(unit.int(isa, at + i / 4), i % 4))
    }

    #[inline(always)]
    fn lane_scales(isa: I, _: I::F, unit: &LaneUnit<'_>, out: &mut LaneScales<I::F>) {
        for b in 0..8 {
            out.scale[b] = unit.half_float(isa, 2 * (b / 2));
        }
    }
}
