//! IQ1_KT to IQ4_KT: a code seeds a generator (`ikq_formats::codebook`, KT) that yields the values of 8 or 4
//! elements.
//!
//! The row header is an f32 scale; each 32 elements have an integer scale, for IQ1_KT and IQ2_KT from a non-linear
//! table. No code reaches the generator's bounds of +-126: `MAX_ABS_CODE` of each type was found by running through
//! all its codes. The comment of each type lists the fields of its block in order.

use ikq_formats::codebook::{IQ4NL_VALUES, KT_OFFSET, KT_POWERS};
use ikq_simd::{Isa, array, map};

use crate::decode::{Decode, Scales, bytes, nib, u16_at, u32_at};
use crate::iqks::f32_header;
use crate::iqks::low_high;
use crate::lane_integers::{Integers, LaneIntegers, Place, less_bytes, nibble_words};
use crate::lane_planes::{eight, field, times_less};
use crate::lanes::{Decoding, LaneScales, LaneUnit};
use crate::planes::{nibbles_low_high, plane};

static SCALES: [i8; 16] = IQ4NL_VALUES;

/// A scale of the non-linear table.
#[inline(always)]
fn table_scale(nibble: u8) -> i16 {
    i16::from(SCALES[usize::from(nibble & 15)])
}

/// Values of 64 elements from `64 j` on: those of eight 16-bit codes, which begin at byte 4 of the block.
#[inline(always)]
fn eights<I: Isa>(isa: I, unit: &[u8], j: usize) -> I::B64 {
    let seed = |l: usize| u32::from(u16_at(unit, 4 + 16 * j + 2 * l)) + KT_OFFSET;
    isa.trellis_8x8(array(seed), &KT_POWERS)
}

/// Four of the generator's multipliers from `first` on.
const fn powers(first: usize) -> [u32; 4] {
    [KT_POWERS[first], KT_POWERS[first + 1], KT_POWERS[first + 2], KT_POWERS[first + 3]]
}

/// Values of sixteen rows from four codes per row, of eight elements each.
#[inline(always)]
fn eights_lanes<I: Isa>(isa: I, codes: [I::I; 4]) -> [I::B64; 8] {
    let mut out = [isa.splat(0); 8];
    for (l, code) in codes.into_iter().enumerate() {
        let seed = isa.add_i(code, isa.splat_i(KT_OFFSET as i32));
        out[2 * l] = isa.trellis(seed, const { &powers(0) });
        out[2 * l + 1] = isa.trellis(seed, const { &powers(4) });
    }
    out
}

/// The four 16-bit codes of sub-block `b`; codes begin after one word of scales.
#[inline(always)]
fn u16_lanes<I: Isa>(isa: I, unit: &LaneUnit<'_>, b: usize) -> [I::I; 4] {
    let (x, y) = (unit.int(isa, 1 + 2 * b), unit.int(isa, 2 + 2 * b));
    [field(isa, x, 0, 16), isa.shr_i(x, 16), field(isa, y, 0, 16), isa.shr_i(y, 16)]
}

/// Scales that are entries of the non-linear table, as floats.
#[inline(always)]
fn table_scale_lanes<I: Isa>(isa: I, nibbles: I::I) -> I::F {
    isa.lut16_f(isa.load_f(const { &floats(&IQ4NL_VALUES) }), nibbles)
}

/// Scales that are entries of the non-linear table, as bytes.
#[inline(always)]
fn table_scales<I: Isa>(isa: I, nibbles: I::I) -> I::I {
    isa.ints(isa.lut16(&IQ4NL_VALUES, isa.of_ints(nibbles)))
}

/// A table as floats.
const fn floats(table: &[i8; 16]) -> [f32; 16] {
    let mut out = [0.0; 16];
    let mut i = 0;
    while i < 16 {
        out[i] = table[i] as f32;
        i += 1;
    }
    out
}

/// sh[8] (scale and four code bits), ql[32], qh[16]: 13-bit codes of eight elements.
pub struct IQ1_KT;

impl<I: Isa> Decode<I> for IQ1_KT {
    const UNIT_BYTES: usize = 56;
    const BLOCK_BYTES: usize = 56;
    const HEADER_BYTES: usize = 4;
    const SUB_BLOCK: usize = 32;
    const MAX_ABS_CODE: i32 = 121;
    const DECODING: Decoding = Decoding::Heavy;

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

    #[inline(always)]
    fn lanes(isa: I, unit: &LaneUnit<'_>, b: usize) -> [I::B64; 8] {
        let low = unit.int(isa, 2 + b);
        let mid = isa.shr_i(unit.int(isa, 10 + b % 4), 4 * (b as u32 / 4));
        let top = isa.shr_i(unit.int(isa, b / 4), 8 * (b as u32 % 4) + 4);
        let mut seeds = [low; 4];
        for (l, seed) in seeds.iter_mut().enumerate() {
            let by = 8 * l as u32;
            let upper = isa.or_i(field(isa, mid, by, 4), isa.shl_i(field(isa, top, l as u32, 1), 4));
            *seed = isa.or_i(field(isa, low, by, 8), isa.shl_i(upper, 8));
        }
        eights_lanes(isa, seeds)
    }

    #[inline(always)]
    fn lane_scales(isa: I, header: I::F, unit: &LaneUnit<'_>, out: &mut LaneScales<I::F>) {
        for b in 0..8 {
            let s = field(isa, unit.int(isa, b / 4), 8 * (b as u32 % 4), 4);
            out.scale[b] = isa.mul_f(header, table_scale_lanes(isa, s));
        }
    }

    const INTEGERS: Option<Integers> = Integers::signed(Place::InOrder);

    #[inline(always)]
    fn lane_integers(isa: I, unit: &LaneUnit<'_>, out: &mut LaneIntegers<I::I, I::F>) {
        for q in 0..2 {
            let [s, _] = nibble_words(isa, unit.int(isa, q));
            out.scale[q] = table_scales(isa, s);
        }
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
    const DECODING: Decoding = Decoding::Heavy;
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

    #[inline(always)]
    fn lanes(isa: I, unit: &LaneUnit<'_>, b: usize) -> [I::B64; 8] {
        eights_lanes(isa, u16_lanes(isa, unit, b))
    }

    #[inline(always)]
    fn lane_scales(isa: I, header: I::F, unit: &LaneUnit<'_>, out: &mut LaneScales<I::F>) {
        let s = unit.int(isa, 0);
        for b in 0..8 {
            let s = field(isa, s, low_high(b), 4);
            out.scale[b] = isa.mul_f(header, table_scale_lanes(isa, s));
        }
    }

    const INTEGERS: Option<Integers> = Integers::signed(Place::InOrder);

    #[inline(always)]
    fn lane_integers(isa: I, unit: &LaneUnit<'_>, out: &mut LaneIntegers<I::I, I::F>) {
        for (q, s) in nibble_words(isa, unit.int(isa, 0)).into_iter().enumerate() {
            out.scale[q] = table_scales(isa, s);
        }
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
    const DECODING: Decoding = Decoding::Heavy;
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

    #[inline(always)]
    fn lanes(isa: I, unit: &LaneUnit<'_>, b: usize) -> [I::B64; 8] {
        let values = eights_lanes(isa, u16_lanes(isa, unit, b));
        eight!(isa, i => {
            let value = if I::CODE_BIAS == 0 { values[i] } else { isa.biased(values[i]) };
            isa.biased(isa.negate_where_bit(isa.abs(value), unit.word(isa, 17 + i), b as u32))
        })
    }

    #[inline(always)]
    fn lane_scales(isa: I, header: I::F, unit: &LaneUnit<'_>, out: &mut LaneScales<I::F>) {
        let s = unit.int(isa, 0);
        for b in 0..8 {
            out.scale[b] = isa.mul_f(header, isa.linear::<4, 1, 0>(s, low_high(b)));
        }
    }

    const INTEGERS: Option<Integers> = Integers::unsigned(Place::InOrder);

    #[inline(always)]
    fn lane_integers(isa: I, unit: &LaneUnit<'_>, out: &mut LaneIntegers<I::I, I::F>) {
        [out.scale[0], out.scale[1]] = nibble_words(isa, unit.int(isa, 0));
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
    const DECODING: Decoding = Decoding::Heavy;

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
        // each part is made as a vector, because the compiler does not vectorize whole codes
        let low = isa.load_i(&array(|l| i32::from(low[l])));
        let mid = isa.load_i(&array(|l| i32::from(mid[l] >> (4 * (j / 2)) & 15)));
        let top = isa.load_i(&array(|l| (sb[l / 8] >> (8 + 3 * (l % 8)) & 7) as i32));
        // codes have 15 bits, so bit 15 of the seed is free to add the second offset
        let offset = isa.load_i(&array(|l| (sb[l / 8] & 1) as i32));
        let seed =
            isa.or_i(isa.or_i(low, isa.shl_i(mid, 8)), isa.or_i(isa.shl_i(top, 12), isa.shl_i(offset, 15)));
        let mut seeds = [0; 16];
        isa.store_i(isa.add_i(seed, isa.splat_i(KT_OFFSET as i32)), &mut seeds);
        isa.trellis_16x4(array(|l| seeds[l] as u32), &KT_POWERS)
    }

    #[inline(always)]
    fn lanes(isa: I, unit: &LaneUnit<'_>, b: usize) -> [I::B64; 8] {
        let head = unit.int(isa, b);
        // codes have 15 bits, so bit 15 of the seed is free to add the second offset
        let offset = isa.shl_i(field(isa, head, 0, 1), 15);
        let offset = isa.add_i(offset, isa.splat_i(KT_OFFSET as i32));
        eight!(isa, i => {
            let low = field(isa, unit.int(isa, 8 + 2 * b + i / 4), 8 * (i as u32 % 4), 8);
            let mid = isa.shr_i(unit.int(isa, 24 + 2 * (b % 4) + i / 4), 8 * (i as u32 % 4) + 4 * (b as u32 / 4));
            let mid = isa.and_i(mid, isa.splat_i(15));
            let top = field(isa, head, 8 + 3 * i as u32, 3);
            let seed = isa.or_i(low, isa.shl_i(isa.or_i(mid, isa.shl_i(top, 4)), 8));
            isa.trellis(isa.add_i(seed, offset), const { &powers(0) })
        })
    }

    #[inline(always)]
    fn lane_scales(isa: I, header: I::F, unit: &LaneUnit<'_>, out: &mut LaneScales<I::F>) {
        for b in 0..8 {
            out.scale[b] = times_less(isa, header, field(isa, unit.int(isa, b), 1, 7), 64);
        }
    }

    const INTEGERS: Option<Integers> = Integers::signed(Place::Own);

    #[inline(always)]
    fn lane_integers(isa: I, unit: &LaneUnit<'_>, out: &mut LaneIntegers<I::I, I::F>) {
        for b in 0..8 {
            let s = isa.and_i(isa.shr_i(unit.int(isa, b), 1), isa.splat_i(0x7f));
            out.scale[b] = less_bytes(isa, s, 64);
        }
    }
}
