//! MXFP4 and NVFP4: blocks of 4-bit floats (E2M1) with one-byte float scales. A code is twice the 4-bit float,
//! which is always an integer, so tables of scales hold half their values.

use ikq_formats::codebook::{FP4_E2M1_X2, ue4m3_half};
use ikq_simd::{Isa, array, written_out};

use crate::decode::{Decode, Scales, bytes};
use crate::lane_planes::{eight, field, lut16, nibbles_16 as nibbles_16_lanes, plus};
use crate::lanes::{Decoding, LaneCodes, LaneScales, LaneUnit};
use crate::planes::nibbles_16;

/// Half the value of an E8M0 byte: `2^(e - 128)`, subnormal for 0 and 1.
static E8M0_HALF: [f32; 256] = {
    let mut out = [0.0; 256];
    let mut e = 0;
    while e < 256 {
        out[e] = f32::from_bits(match e {
            0 | 1 => 0x0020_0000 << e,
            _ => (e as u32 - 1) << 23,
        });
        e += 1;
    }
    out
};

/// Blocks of 32: a byte that is the scale's exponent, then 16 bytes of nibbles (low nibbles: the first 16
/// elements).
pub struct MXFP4;

impl<I: Isa> Decode<I> for MXFP4 {
    const UNIT_BYTES: usize = 8 * 17;
    const BLOCK_BYTES: usize = 17;
    const FRONT_BYTES: usize = 1;
    const SUB_BLOCK: usize = 256;
    const N_FLOAT_SCALES: usize = 8;
    const MAX_ABS_CODE: i32 = 12;
    const LANE_CODES: LaneCodes = LaneCodes::Offset(4);
    const DECODING: Decoding = Decoding::Light;

    #[inline(always)]
    fn scales(_: I, _: f32, unit: &[u8]) -> Scales {
        Scales::floats::<8>(array(|b| E8M0_HALF[usize::from(unit[17 * b])]))
    }

    #[inline(always)]
    fn codes(isa: I, unit: &[u8], j: usize) -> I::B64 {
        let q = nibbles_16(isa, bytes(unit, 34 * j + 1), bytes(unit, 34 * j + 18));
        isa.lut16(&FP4_E2M1_X2, q)
    }

    #[inline(always)]
    fn lanes(isa: I, unit: &LaneUnit<'_>, b: usize) -> [I::B64; 8] {
        lut16(isa, const { &plus(&FP4_E2M1_X2, 16) }, nibbles_16_lanes(isa, unit, 4 * b))
    }

    #[inline(always)]
    fn lane_scales(isa: I, _: I::F, unit: &LaneUnit<'_>, out: &mut LaneScales<I::F>) {
        for b in 0..8 {
            // 2^(e - 128) as a product of two powers, neither of which is subnormal
            let e = unit.byte(isa, b);
            let p = isa.shr_i(e, 1);
            let q = isa.shr_i(isa.add_i(e, isa.splat_i(1)), 1);
            let p = isa.of_bits(isa.shl_i(isa.add_i(p, isa.splat_i(63)), 23));
            let q = isa.of_bits(isa.shl_i(isa.add_i(q, isa.splat_i(63)), 23));
            out.scale[b] = isa.mul_f(p, q);
        }
    }
}

static UE4M3_HALF: [f32; 256] = {
    let mut out = [0.0; 256];
    let mut byte = 0;
    while byte < 256 {
        out[byte] = ue4m3_half(byte as u8);
        byte += 1;
    }
    out
};

/// Blocks of 64: a scale byte per 16 elements, then 8 bytes of nibbles per 16.
pub struct NVFP4;

impl<I: Isa> Decode<I> for NVFP4 {
    const UNIT_BYTES: usize = 4 * 36;
    const BLOCK_BYTES: usize = 36;
    const SUB_BLOCK: usize = 256;
    const N_FLOAT_SCALES: usize = 16;
    const MAX_ABS_CODE: i32 = 12;
    const LANE_CODES: LaneCodes = LaneCodes::Offset(4);

    #[inline(always)]
    fn scales(_: I, _: f32, unit: &[u8]) -> Scales {
        let d = |k: usize| UE4M3_HALF[usize::from(unit[36 * (k / 4) + k % 4])];
        Scales::floats::<16>(array(d))
    }

    #[inline(always)]
    fn codes(isa: I, unit: &[u8], j: usize) -> I::B64 {
        let eight = |l: usize| {
            let x = u64::from_le_bytes(*bytes(unit, 36 * j + 4 + 8 * (l / 2)));
            x >> (4 * (l % 2))
        };
        let q = isa.and(isa.of_u64(array(eight)), isa.splat(15));
        isa.lut16(&FP4_E2M1_X2, q)
    }

    #[inline(always)]
    fn lanes(isa: I, unit: &LaneUnit<'_>, b: usize) -> [I::B64; 8] {
        let at = 9 * (b / 2) + 1 + 4 * (b % 2);
        let codes =
            eight!(isa, i => isa.bits(unit.word(isa, at + 2 * (i / 4) + i % 2), 4 * (i as u32 / 2 % 2), 15));
        lut16(isa, const { &plus(&FP4_E2M1_X2, 16) }, codes)
    }

    #[inline(always)]
    fn lane_scales(isa: I, _: I::F, unit: &LaneUnit<'_>, out: &mut LaneScales<I::F>) {
        written_out!(16, k => {
            let byte = field(isa, unit.int(isa, 9 * (k / 4)), 8 * (k as u32 % 4), 8);
            // a half has the same mantissa and subnormals, and exponents that are eight larger
            let half = isa.shl_i(isa.and_i(byte, isa.splat_i(0x7f)), 7);
            // 0x7f is zero: the only byte without bit 7 whose successor has it
            let next = isa.add_i(byte, isa.splat_i(1));
            let none = isa.where_bit(isa.and_i(next, isa.xor_i(byte, isa.splat_i(0x80))), 7, -1);
            let half = isa.and_i(half, isa.xor_i(none, isa.splat_i(-1)));
            out.scale[k] = isa.mul_f(isa.float_of_f16(half), isa.splat_f(128.0));
        });
    }
}
