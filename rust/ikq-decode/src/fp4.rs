//! MXFP4 and NVFP4: 4-bit floats, twice their value being an integer, with one-byte float scales.

use ikq_formats::codebook::{FP4_E2M1_X2, ue4m3_half};
use ikq_simd::{Isa, array};

use crate::decode::{Decode, Scales, bytes};
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

/// Blocks of 32: exponent byte, 16 bytes of nibbles (low: first half).
pub struct MXFP4;

impl<I: Isa> Decode<I> for MXFP4 {
    const UNIT_BYTES: usize = 8 * 17;
    const BLOCK_BYTES: usize = 17;
    const FRONT_BYTES: usize = 1;
    const SUB_BLOCK: usize = 256;
    const N_FLOAT_SCALES: usize = 8;
    const MAX_ABS_CODE: i32 = 12;

    #[inline(always)]
    fn scales(_: I, _: f32, unit: &[u8]) -> Scales {
        Scales::floats::<8>(array(|b| E8M0_HALF[usize::from(unit[17 * b])]))
    }

    #[inline(always)]
    fn codes(isa: I, unit: &[u8], j: usize) -> I::B64 {
        let q = nibbles_16(isa, bytes(unit, 34 * j + 1), bytes(unit, 34 * j + 18));
        isa.lut16(&FP4_E2M1_X2, q)
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
}
