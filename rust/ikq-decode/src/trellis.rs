//! IQ1_KT to IQ4_KT: codes seed a generator (`ikq_formats::codebook`, KT) that yields 8 or 4 values.
//!
//! Row header f32; per 32 elements an integer scale, for IQ1_KT and IQ2_KT from a non-linear table.
//! No code reaches the generator's bounds of +-126: the largest absolute values below come from
//! running through all codes of a type.

use ikq_formats::codebook::{IQ4NL_VALUES, KT_OFFSET, KT_POWERS};
use ikq_simd::{Isa, array, map};

use crate::decode::{Decode, Scales, bytes, nib, u16_at, u32_at};
use crate::iqks::f32_header;
use crate::planes::{nibbles_low_high, plane};

static SCALES: [i8; 16] = IQ4NL_VALUES;

/// A scale of the non-linear table.
#[inline(always)]
fn table_scale(nibble: u8) -> i16 {
    i16::from(SCALES[usize::from(nibble & 15)])
}

/// Values of the eight 16-bit codes of elements `64 j..`, at byte 4.
#[inline(always)]
fn eights<I: Isa>(isa: I, unit: &[u8], j: usize) -> I::B64 {
    let seed = |l: usize| u32::from(u16_at(unit, 4 + 16 * j + 2 * l)) + KT_OFFSET;
    isa.trellis_8x8(array(seed), &KT_POWERS)
}

/// sh[8] (scale and four code bits), ql[32], qh[16]: 13-bit codes of eight elements.
pub struct IQ1_KT;

impl<I: Isa> Decode<I> for IQ1_KT {
    const UNIT_BYTES: usize = 56;
    const BLOCK_BYTES: usize = 56;
    const HEADER_BYTES: usize = 4;
    const SUB_BLOCK: usize = 32;
    const MAX_ABS_CODE: i32 = 121;

    #[inline(always)]
    fn header(header: &[u8]) -> f32 {
        f32_header(header)
    }

    #[inline(always)]
    fn scales(_: I, header: f32, unit: &[u8]) -> Scales {
        Scales::by_32(header, map(*bytes::<8>(unit, 0), table_scale))
    }

    #[inline(always)]
    fn codes(isa: I, unit: &[u8], j: usize) -> I::B64 {
        let low = bytes::<8>(unit, 8 + 8 * j);
        let mid = bytes::<8>(unit, 40 + 8 * (j % 2));
        let top = bytes::<2>(unit, 2 * j);
        let seed = |l: usize| {
            let top = u32::from(top[l / 4] >> (4 + l % 4) & 1);
            (u32::from(low[l]) | u32::from(nib(mid[l], j / 2)) << 8 | top << 12) + KT_OFFSET
        };
        isa.trellis_8x8(array(seed), &KT_POWERS)
    }
}

/// Four bytes of scales, u16[32]: codes of eight elements.
pub struct IQ2_KT;

impl<I: Isa> Decode<I> for IQ2_KT {
    const UNIT_BYTES: usize = 68;
    const BLOCK_BYTES: usize = 68;
    const HEADER_BYTES: usize = 4;
    const SUB_BLOCK: usize = 32;
    const MAX_ABS_CODE: i32 = 123;
    const PRODUCT_FACTOR: f32 = 1.05;

    #[inline(always)]
    fn header(header: &[u8]) -> f32 {
        f32_header(header)
    }

    #[inline(always)]
    fn scales(_: I, header: f32, unit: &[u8]) -> Scales {
        Scales::by_32(header, map(nibbles_low_high(bytes(unit, 0)), table_scale))
    }

    #[inline(always)]
    fn codes(isa: I, unit: &[u8], j: usize) -> I::B64 {
        eights(isa, unit, j)
    }
}

/// Four bytes of scales, u16[32]: codes of eight magnitudes, qh[32]: signs.
pub struct IQ3_KT;

impl<I: Isa> Decode<I> for IQ3_KT {
    const UNIT_BYTES: usize = 100;
    const BLOCK_BYTES: usize = 100;
    const HEADER_BYTES: usize = 4;
    const SUB_BLOCK: usize = 32;
    const MAX_ABS_CODE: i32 = 123;
    const PRODUCT_FACTOR: f32 = 1.01;

    #[inline(always)]
    fn header(header: &[u8]) -> f32 {
        f32_header(header)
    }

    #[inline(always)]
    fn scales(_: I, header: f32, unit: &[u8]) -> Scales {
        Scales::by_32(header, map(nibbles_low_high(bytes(unit, 0)), i16::from))
    }

    #[inline(always)]
    fn codes(isa: I, unit: &[u8], j: usize) -> I::B64 {
        let negative = isa.sub(isa.splat(0), plane(isa, bytes(unit, 68), j));
        isa.sub(isa.xor(isa.abs(eights(isa, unit, j)), negative), negative)
    }
}

/// u32[8] (offset bit, 7-bit scale, eight 3-bit code parts), ql[64], qh[32]: codes of four elements.
pub struct IQ4_KT;

impl<I: Isa> Decode<I> for IQ4_KT {
    const UNIT_BYTES: usize = 128;
    const BLOCK_BYTES: usize = 128;
    const HEADER_BYTES: usize = 4;
    const SUB_BLOCK: usize = 32;
    const MAX_ABS_CODE: i32 = 122;

    #[inline(always)]
    fn header(header: &[u8]) -> f32 {
        f32_header(header)
    }

    #[inline(always)]
    fn scales(_: I, header: f32, unit: &[u8]) -> Scales {
        Scales::by_32(header, array(|b| i16::from(unit[4 * b] >> 1) - 64))
    }

    #[inline(always)]
    fn codes(isa: I, unit: &[u8], j: usize) -> I::B64 {
        let low = bytes::<16>(unit, 32 + 16 * j);
        let mid = bytes::<16>(unit, 96 + 16 * (j % 2));
        let sb = [u32_at(unit, 8 * j), u32_at(unit, 8 * j + 4)];
        // part by part, each as lanes: all at once the compiler makes them one by one
        let low = isa.load_i(&array(|l| i32::from(low[l])));
        let mid = isa.load_i(&array(|l| i32::from(mid[l] >> (4 * (j / 2)) & 15)));
        let top = isa.load_i(&array(|l| (sb[l / 8] >> (8 + 3 * (l % 8)) & 7) as i32));
        // bit 15 of the seed, free in a 15-bit code, makes the other offset
        let offset = isa.load_i(&array(|l| (sb[l / 8] & 1) as i32));
        let seed =
            isa.or_i(isa.or_i(low, isa.shl_i(mid, 8)), isa.or_i(isa.shl_i(top, 12), isa.shl_i(offset, 15)));
        let mut seeds = [0; 16];
        isa.store_i(isa.add_i(seed, isa.splat_i(KT_OFFSET as i32)), &mut seeds);
        isa.trellis_16x4(array(|l| seeds[l] as u32), &KT_POWERS)
    }
}
