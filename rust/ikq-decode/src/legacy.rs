//! Q4_0, Q4_1, Q5_0, Q5_1, Q6_0, Q8_0, Q8_KV: blocks of 32 elements.
//!
//! Each block starts with an f16 scale `d`; `_1` types have an f16 `m` next that is *added*, so the min that
//! [`Scales`] subtracts is `-m`. Q8_KV has one f32 scale per row instead. The comment of each type lists the fields
//! of its block in order.

use ikq_simd::{Isa, array};

use crate::decode::{Decode, Scales, bytes, u16_at, u32_at};
use crate::lane_planes::{eight, nibbles_16 as nibbles_16_lanes, same_scale};
use crate::lanes::{Decoding, LaneCodes, LaneScales, LaneUnit};
use crate::planes::nibbles_16;

/// The eight f16 that stand `at` bytes into blocks of `block` bytes.
#[inline(always)]
pub(crate) fn f16_of_blocks<I: Isa>(isa: I, unit: &[u8], block: usize, at: usize) -> [f32; 8] {
    isa.f16_8(array(|b| u16_at(unit, block * b + at)))
}

/// Scales of blocks that start with d and m.
#[inline(always)]
fn scale_and_offset<I: Isa>(isa: I, unit: &[u8], block: usize) -> Scales {
    let d = f16_of_blocks(isa, unit, block, 0);
    let m = f16_of_blocks(isa, unit, block, 2);
    Scales::floats(d).with_min(array(|k| -m[k / 2]), [1; 16])
}

/// The nibbles of blocks `2 j` and `2 j + 1`; they stand `at` bytes into the block.
#[inline(always)]
fn nibbles_of_blocks<I: Isa>(isa: I, unit: &[u8], block: usize, at: usize, j: usize) -> I::B64 {
    let a = 2 * j * block + at;
    nibbles_16(isa, bytes(unit, a), bytes(unit, a + block))
}

/// Bit 4 of the codes of blocks `2 j` and `2 j + 1`: bit i of a u32, `at` bytes into the block.
#[inline(always)]
fn fifth_bits<I: Isa>(isa: I, unit: &[u8], block: usize, at: usize, j: usize) -> I::B64 {
    let a = 2 * j * block + at;
    let mask = u64::from(u32_at(unit, a)) | u64::from(u32_at(unit, a + block)) << 32;
    isa.mask_bytes(mask, 16)
}

/// The scales of blocks that start with an f16.
#[inline(always)]
pub(crate) fn blocks_of_half<I: Isa>(isa: I, unit: &LaneUnit<'_>, out: &mut LaneScales<I::F>) {
    for b in 0..8 {
        out.scale[b] = unit.half_float(isa, 2 * b);
    }
}

/// Scales and mins of blocks of `words` 32-bit words that start with d and m.
#[inline(always)]
fn scale_and_offset_lanes<I: Isa>(isa: I, unit: &LaneUnit<'_>, words: usize, out: &mut LaneScales<I::F>) {
    for b in 0..8 {
        let head = unit.int(isa, words * b);
        out.scale[b] = isa.float_of_f16(head);
        out.min[b] = isa.mul_f(isa.splat_f(-1.0), isa.float_of_f16(isa.shr_i(head, 16)));
    }
}

/// `codes` with a bit of `bits` for each of the 32 elements as bit 4.
#[inline(always)]
fn with_bits<I: Isa>(isa: I, codes: [I::B64; 8], bits: I::I) -> [I::B64; 8] {
    eight!(isa, i => isa.or(codes[i], isa.spread_bits(bits, i, 4)))
}

/// f16 d, 16 bytes of nibbles (low nibbles: the first 16 elements).
pub struct Q4_0;

impl<I: Isa> Decode<I> for Q4_0 {
    const UNIT_BYTES: usize = 8 * 18;
    const BLOCK_BYTES: usize = 18;
    const FRONT_BYTES: usize = 2;
    const SUB_BLOCK: usize = 256;
    const N_FLOAT_SCALES: usize = 8;
    const MAX_ABS_CODE: i32 = 8;
    const LANE_CODES: LaneCodes = LaneCodes::Offset(3);
    const DECODING: Decoding = Decoding::Light;

    #[inline(always)]
    fn scales(isa: I, _: f32, unit: &[u8]) -> Scales {
        Scales::floats(f16_of_blocks(isa, unit, 18, 0))
    }

    #[inline(always)]
    fn codes(isa: I, unit: &[u8], j: usize) -> I::B64 {
        isa.sub(nibbles_of_blocks(isa, unit, 18, 2, j), isa.splat(8))
    }

    #[inline(always)]
    fn lanes(isa: I, unit: &LaneUnit<'_>, b: usize) -> [I::B64; 8] {
        nibbles_16_lanes(isa, unit, 4 * b)
    }

    #[inline(always)]
    fn lane_scales(isa: I, _: I::F, unit: &LaneUnit<'_>, out: &mut LaneScales<I::F>) {
        blocks_of_half(isa, unit, out);
    }
}

/// f16 d, f16 m, 16 bytes of nibbles.
pub struct Q4_1;

impl<I: Isa> Decode<I> for Q4_1 {
    const UNIT_BYTES: usize = 8 * 20;
    const BLOCK_BYTES: usize = 20;
    const SUB_BLOCK: usize = 256;
    const N_FLOAT_SCALES: usize = 8;
    const HAS_MIN: bool = true;
    const MAX_ABS_CODE: i32 = 15;
    const UNSIGNED: bool = true;
    const DECODING: Decoding = Decoding::Light;

    #[inline(always)]
    fn scales(isa: I, _: f32, unit: &[u8]) -> Scales {
        scale_and_offset(isa, unit, 20)
    }

    #[inline(always)]
    fn codes(isa: I, unit: &[u8], j: usize) -> I::B64 {
        nibbles_of_blocks(isa, unit, 20, 4, j)
    }

    #[inline(always)]
    fn lanes(isa: I, unit: &LaneUnit<'_>, b: usize) -> [I::B64; 8] {
        nibbles_16_lanes(isa, unit, 5 * b + 1)
    }

    #[inline(always)]
    fn lane_scales(isa: I, _: I::F, unit: &LaneUnit<'_>, out: &mut LaneScales<I::F>) {
        scale_and_offset_lanes(isa, unit, 5, out);
    }
}

/// f16 d, u32 of fifth bits, 16 bytes of nibbles.
pub struct Q5_0;

impl<I: Isa> Decode<I> for Q5_0 {
    const UNIT_BYTES: usize = 8 * 22;
    const BLOCK_BYTES: usize = 22;
    const FRONT_BYTES: usize = 2;
    const SUB_BLOCK: usize = 256;
    const N_FLOAT_SCALES: usize = 8;
    const MAX_ABS_CODE: i32 = 16;
    const LANE_CODES: LaneCodes = LaneCodes::Offset(4);
    const DECODING: Decoding = Decoding::Light;

    #[inline(always)]
    fn scales(isa: I, _: f32, unit: &[u8]) -> Scales {
        Scales::floats(f16_of_blocks(isa, unit, 22, 0))
    }

    #[inline(always)]
    fn codes(isa: I, unit: &[u8], j: usize) -> I::B64 {
        let q = isa.or(nibbles_of_blocks(isa, unit, 22, 6, j), fifth_bits(isa, unit, 22, 2, j));
        isa.sub(q, isa.splat(16))
    }

    #[inline(always)]
    fn lanes(isa: I, unit: &LaneUnit<'_>, b: usize) -> [I::B64; 8] {
        with_bits(isa, nibbles_16_lanes(isa, unit, 5 * b + 1), unit.int(isa, 5 * b))
    }

    #[inline(always)]
    fn lane_scales(isa: I, _: I::F, unit: &LaneUnit<'_>, out: &mut LaneScales<I::F>) {
        blocks_of_half(isa, unit, out);
    }
}

/// f16 d, f16 m, u32 of fifth bits, 16 bytes of nibbles.
pub struct Q5_1;

impl<I: Isa> Decode<I> for Q5_1 {
    const UNIT_BYTES: usize = 8 * 24;
    const BLOCK_BYTES: usize = 24;
    const SUB_BLOCK: usize = 256;
    const N_FLOAT_SCALES: usize = 8;
    const HAS_MIN: bool = true;
    const MAX_ABS_CODE: i32 = 31;
    const UNSIGNED: bool = true;

    #[inline(always)]
    fn scales(isa: I, _: f32, unit: &[u8]) -> Scales {
        scale_and_offset(isa, unit, 24)
    }

    #[inline(always)]
    fn codes(isa: I, unit: &[u8], j: usize) -> I::B64 {
        isa.or(nibbles_of_blocks(isa, unit, 24, 8, j), fifth_bits(isa, unit, 24, 4, j))
    }

    #[inline(always)]
    fn lanes(isa: I, unit: &LaneUnit<'_>, b: usize) -> [I::B64; 8] {
        with_bits(isa, nibbles_16_lanes(isa, unit, 6 * b + 2), unit.int(isa, 6 * b + 1))
    }

    #[inline(always)]
    fn lane_scales(isa: I, _: I::F, unit: &LaneUnit<'_>, out: &mut LaneScales<I::F>) {
        scale_and_offset_lanes(isa, unit, 6, out);
    }
}

/// f16 d, 8 bytes of upper bit pairs, 16 bytes of nibbles.
pub struct Q6_0;

impl<I: Isa> Decode<I> for Q6_0 {
    const UNIT_BYTES: usize = 8 * 26;
    const BLOCK_BYTES: usize = 26;
    const FRONT_BYTES: usize = 2;
    const SUB_BLOCK: usize = 256;
    const N_FLOAT_SCALES: usize = 8;
    const MAX_ABS_CODE: i32 = 32;
    const LANE_CODES: LaneCodes = LaneCodes::Offset(5);

    #[inline(always)]
    fn scales(isa: I, _: f32, unit: &[u8]) -> Scales {
        Scales::floats(f16_of_blocks(isa, unit, 26, 0))
    }

    #[inline(always)]
    fn codes(isa: I, unit: &[u8], j: usize) -> I::B64 {
        // byte t of qh, from bit 0: two bits of element t, t + 16, t + 8, t + 24
        let high = |block: usize| u64::from_le_bytes(*bytes(unit, 26 * block + 2));
        let (a, b) = (high(2 * j), high(2 * j + 1));
        let high = isa.of_u64([a << 4, a, a << 2, a >> 2, b << 4, b, b << 2, b >> 2]);
        let high = isa.and(high, isa.splat(0x30));
        let q = isa.or(nibbles_of_blocks(isa, unit, 26, 10, j), high);
        isa.sub(q, isa.splat(32))
    }

    #[inline(always)]
    fn lanes(isa: I, unit: &LaneUnit<'_>, b: usize) -> [I::B64; 8] {
        // two bits of elements 0..8, 16..24, 8..16, 24..32, from bit 0 on
        eight!(isa, i => {
            let (low, high) = (unit.word(isa, 6 * b + 2 + i % 4), unit.word(isa, 6 * b + i % 2));
            isa.two_fields(low, high, [4 * (i as u32 / 4), [0, 4, 2, 6][i / 2]], [4, 2])
        })
    }

    #[inline(always)]
    fn lane_scales(isa: I, _: I::F, unit: &LaneUnit<'_>, out: &mut LaneScales<I::F>) {
        blocks_of_half(isa, unit, out);
    }
}

/// f16 d, 32 codes of 8 bits.
pub struct Q8_0;

impl<I: Isa> Decode<I> for Q8_0 {
    const UNIT_BYTES: usize = 8 * 34;
    const BLOCK_BYTES: usize = 34;
    const FRONT_BYTES: usize = 2;
    const SUB_BLOCK: usize = 256;
    const N_FLOAT_SCALES: usize = 8;
    const MAX_ABS_CODE: i32 = 128;
    const DECODING: Decoding = Decoding::Light;

    #[inline(always)]
    fn scales(isa: I, _: f32, unit: &[u8]) -> Scales {
        Scales::floats(f16_of_blocks(isa, unit, 34, 0))
    }

    #[inline(always)]
    fn codes(isa: I, unit: &[u8], j: usize) -> I::B64 {
        isa.load_2x32(bytes(unit, 68 * j + 2), bytes(unit, 68 * j + 36))
    }

    #[inline(always)]
    fn lanes(isa: I, unit: &LaneUnit<'_>, b: usize) -> [I::B64; 8] {
        eight!(isa, i => isa.biased(unit.word(isa, 8 * b + i)))
    }

    #[inline(always)]
    fn lane_scales(isa: I, _: I::F, unit: &LaneUnit<'_>, out: &mut LaneScales<I::F>) {
        blocks_of_half(isa, unit, out);
    }
}

/// Row header f32 d and i32 sum of the codes; then the codes, 8 bits each.
pub struct Q8_KV;

impl<I: Isa> Decode<I> for Q8_KV {
    const UNIT_BYTES: usize = 256;
    const BLOCK_BYTES: usize = 32;
    const HEADER_BYTES: usize = 8;
    const SUB_BLOCK: usize = 256;
    const MAX_ABS_CODE: i32 = 128;
    const DECODING: Decoding = Decoding::Light;

    #[inline(always)]
    fn header(header: &[u8]) -> f32 {
        f32::from_bits(u32_at(header, 0))
    }

    #[inline(always)]
    fn scales(_: I, header: f32, _: &[u8]) -> Scales {
        Scales::floats([header])
    }

    #[inline(always)]
    fn codes(isa: I, unit: &[u8], j: usize) -> I::B64 {
        isa.load(bytes(unit, 64 * j))
    }

    #[inline(always)]
    fn lanes(isa: I, unit: &LaneUnit<'_>, b: usize) -> [I::B64; 8] {
        eight!(isa, i => isa.biased(unit.word(isa, 8 * b + i)))
    }

    #[inline(always)]
    fn lane_scales(_: I, header: I::F, _: &LaneUnit<'_>, out: &mut LaneScales<I::F>) {
        same_scale::<I>(header, out);
    }
}
