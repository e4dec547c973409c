//! Q2_K to Q6_K: super-blocks of 256 elements with an f16 `d` (and `dmin`) and integer scales per 16 or 32
//! elements. The comment of each type lists the fields of its super-block in order.

use ikq_simd::{Isa, array, map, written_out};

use crate::decode::{Decode, Scales, bytes, u16_at, u32_at};
use crate::lane_integers::{Integers, LaneIntegers, Place, nibble_words};
use crate::lane_planes::{
    crumbs as crumbs_lanes, crumbs_and_bits, eight, nibbles_32 as nibbles_32_lanes, nibbles_and_bits,
    signed_byte, times, times_less,
};
use crate::lanes::{Decoding, LaneCodes, LaneScales, LaneUnit};
use crate::planes::{crumbs, nibbles_32, with_plane};

/// Two f16 at once: d and dmin.
#[inline(always)]
fn two_f16<I: Isa>(isa: I, unit: &[u8], at: usize) -> [f32; 2] {
    let (a, b) = (u16_at(unit, at), u16_at(unit, at + 2));
    let v = isa.f16_8([a, b, a, b, a, b, a, b]);
    [v[0], v[1]]
}

/// Four u32 as sixteen bytes, each less `offset`.
#[inline(always)]
fn words_to_scales(words: [u32; 4], offset: i16) -> [i16; 16] {
    let words = map(words, u32::to_le_bytes);
    array(|k| i16::from(words[k / 4][k % 4]) - offset)
}

/// d and dmin in word `at`.
#[inline(always)]
fn two_halves<I: Isa>(isa: I, unit: &LaneUnit<'_>, at: usize) -> (I::F, I::F) {
    let both = unit.int(isa, at);
    (isa.float_of_f16(both), isa.float_of_f16(isa.shr_i(both, 16)))
}

/// Scales and mins of Q4_K and Q5_K for sixteen rows, one row per lane: four bytes in a word.
#[inline(always)]
fn six_bit_bytes<I: Isa>(isa: I, unit: &LaneUnit<'_>) -> [[I::I; 2]; 2] {
    let (a, b, c) = (unit.int(isa, 1), unit.int(isa, 2), unit.int(isa, 3));
    let (six, low, high) = (isa.splat_i(0x3f3f_3f3f), isa.splat_i(0x0f0f_0f0f), isa.splat_i(0x3030_3030));
    let mut s = [isa.and_i(a, six), isa.and_i(c, low)];
    let mut m = [isa.and_i(b, six), isa.and_i(isa.shr_i(c, 4), low)];
    s[1] = isa.or_i(s[1], isa.and_i(isa.shr_i(a, 2), high));
    m[1] = isa.or_i(m[1], isa.and_i(isa.shr_i(b, 2), high));
    [s, m]
}

/// Scales and mins of Q4_K and Q5_K for sixteen rows, one row per lane.
#[inline(always)]
fn six_bit_lanes<I: Isa>(isa: I, unit: &LaneUnit<'_>, out: &mut LaneScales<I::F>) {
    let (d, dmin) = two_halves(isa, unit, 0);
    let [s, m] = six_bit_bytes(isa, unit);
    for k in 0..8 {
        out.scale[k] = times(isa, d, isa.byte(s[k / 4], k % 4));
        out.min[k] = times(isa, dmin, isa.byte(m[k / 4], k % 4));
    }
}

/// scales[16] (nibbles: scale, min), qs[64], f16 d, f16 dmin.
pub struct Q2_K;

impl<I: Isa> Decode<I> for Q2_K {
    const UNIT_BYTES: usize = 84;
    const BLOCK_BYTES: usize = 84;
    const SUB_BLOCK: usize = 16;
    const HAS_MIN: bool = true;
    const MAX_ABS_CODE: i32 = 3;
    const UNSIGNED: bool = true;
    const TOGETHER: usize = 4;

    #[inline(always)]
    fn scales(isa: I, _: f32, unit: &[u8]) -> Scales {
        let [d, dmin] = two_f16(isa, unit, 80);
        let s = *bytes::<16>(unit, 0);
        Scales::by_16(d, map(s, |s| i16::from(s & 15))).with_min([dmin; 16], map(s, |s| i16::from(s >> 4)))
    }

    #[inline(always)]
    fn codes(isa: I, unit: &[u8], j: usize) -> I::B64 {
        crumbs(isa, bytes(unit, 16), j)
    }

    #[inline(always)]
    fn lanes(isa: I, unit: &LaneUnit<'_>, b: usize) -> [I::B64; 8] {
        crumbs_lanes(isa, unit, 4, b)
    }

    #[inline(always)]
    fn lane_scales(isa: I, _: I::F, unit: &LaneUnit<'_>, out: &mut LaneScales<I::F>) {
        let (d, dmin) = two_halves(isa, unit, 20);
        written_out!(16, k => {
            let s = unit.int(isa, k / 4);
            let at = 8 * (k as u32 % 4);
            out.scale[k] = isa.mul_f(d, isa.linear::<4, 1, 0>(s, at));
            out.min[k] = isa.mul_f(dmin, isa.linear::<4, 1, 0>(s, at + 4));
        });
    }

    const INTEGERS: Option<Integers> = Integers::unsigned(Place::InOrder);

    #[inline(always)]
    fn lane_integers(isa: I, unit: &LaneUnit<'_>, out: &mut LaneIntegers<I::I, I::F>) {
        (out.d, out.dmin) = two_halves(isa, unit, 20);
        for q in 0..4 {
            [out.scale[q], out.min[q]] = nibble_words(isa, unit.int(isa, q));
        }
    }
}

/// hmask[32], qs[64], scales[12], f16 d.
pub struct Q3_K;

impl<I: Isa> Decode<I> for Q3_K {
    const UNIT_BYTES: usize = 110;
    const BLOCK_BYTES: usize = 110;
    const SUB_BLOCK: usize = 16;
    const MAX_ABS_CODE: i32 = 4;
    const LANE_CODES: LaneCodes = LaneCodes::Offset(2);
    const TOGETHER: usize = 8;

    #[inline(always)]
    fn scales(isa: I, _: f32, unit: &[u8]) -> Scales {
        // four 6-bit scales per word: low nibbles from a and b, two upper bits each from h
        let (a, b, h) = (u32_at(unit, 96), u32_at(unit, 100), u32_at(unit, 104));
        let words = [a, b, a >> 4, b >> 4];
        let words = array(|k| words[k] & 0x0f0f_0f0f | (h >> (2 * k) & 0x0303_0303) << 4);
        Scales::by_16(isa.f16(u16_at(unit, 108)), words_to_scales(words, 32))
    }

    #[inline(always)]
    fn codes(isa: I, unit: &[u8], j: usize) -> I::B64 {
        let q = with_plane(isa, crumbs(isa, bytes(unit, 32), j), bytes(unit, 0), j, 2);
        isa.sub(q, isa.splat(4))
    }

    #[inline(always)]
    fn lanes(isa: I, unit: &LaneUnit<'_>, b: usize) -> [I::B64; 8] {
        crumbs_and_bits(isa, unit, [8, 0], b)
    }

    #[inline(always)]
    fn lane_scales(isa: I, _: I::F, unit: &LaneUnit<'_>, out: &mut LaneScales<I::F>) {
        let d = unit.half_float(isa, 0);
        let high = unit.int(isa, 26);
        for q in 0..4 {
            // four 6-bit scales in the bytes of a word
            let low = isa.shr_i(unit.int(isa, 24 + q % 2), 4 * (q as u32 / 2));
            let low = isa.and_i(low, isa.splat_i(0x0f0f_0f0f));
            let high = isa.and_i(isa.shr_i(high, 2 * q as u32), isa.splat_i(0x0303_0303));
            let s = isa.or_i(low, isa.shl_i(high, 4));
            for e in 0..4 {
                out.scale[4 * q + e] = times_less(isa, d, isa.byte(s, e), 32);
            }
        }
    }
}

/// Eight scales and eight mins of 6 bits in twelve bytes, as bytes.
#[inline(always)]
fn six_bit_pairs(unit: &[u8]) -> [[u8; 8]; 2] {
    let (a, b, c) = (u32_at(unit, 4), u32_at(unit, 8), u32_at(unit, 12));
    let eight = |first: u32, last: u32| (u64::from(first) | u64::from(last) << 32).to_le_bytes();
    let s = eight(a & 0x3f3f_3f3f, c & 0x0f0f_0f0f | a >> 2 & 0x3030_3030);
    let m = eight(b & 0x3f3f_3f3f, c >> 4 & 0x0f0f_0f0f | b >> 2 & 0x3030_3030);
    [s, m]
}

/// Scales and mins of Q4_K and Q5_K: f16 d, f16 dmin, eight 6-bit pairs in twelve bytes.
#[inline(always)]
fn scales_and_mins<I: Isa>(isa: I, unit: &[u8]) -> Scales {
    let [d, dmin] = two_f16(isa, unit, 0);
    let [s, m] = six_bit_pairs(unit);
    Scales::by_32(d, map(s, i16::from)).with_min([dmin; 16], array(|k| i16::from(m[k / 2])))
}

/// [`scales_and_mins`] as vectors with an entry per 16 elements.
#[inline(always)]
fn factors_and_mins<I: Isa>(isa: I, unit: &[u8]) -> (I::F, I::F) {
    let [d, dmin] = two_f16(isa, unit, 0);
    let [s, m] = six_bit_pairs(unit);
    let (s, m) = (isa.twice_i8(map(s, |x| x as i8)), isa.twice_i8(map(m, |x| x as i8)));
    let (s, m) = (isa.float_i(s), isa.float_i(m));
    (isa.mul_f(isa.splat_f(d), s), isa.mul_f(isa.splat_f(dmin), m))
}

/// f16 d, f16 dmin, scales[12], qs[128].
pub struct Q4_K;

impl<I: Isa> Decode<I> for Q4_K {
    const UNIT_BYTES: usize = 144;
    const BLOCK_BYTES: usize = 144;
    const SUB_BLOCK: usize = 32;
    const HAS_MIN: bool = true;
    const MAX_ABS_CODE: i32 = 15;
    const UNSIGNED: bool = true;
    const TOGETHER: usize = 2;
    const DECODING: Decoding = Decoding::Light;
    const ASKS_AHEAD: bool = false;

    #[inline(always)]
    fn scales(isa: I, _: f32, unit: &[u8]) -> Scales {
        scales_and_mins(isa, unit)
    }

    #[inline(always)]
    fn factors(isa: I, _: f32, unit: &[u8]) -> (I::F, I::F) {
        factors_and_mins(isa, unit)
    }

    #[inline(always)]
    fn codes(isa: I, unit: &[u8], j: usize) -> I::B64 {
        nibbles_32(isa, bytes(unit, 16 + 32 * j))
    }

    #[inline(always)]
    fn lanes(isa: I, unit: &LaneUnit<'_>, b: usize) -> [I::B64; 8] {
        nibbles_32_lanes(isa, unit, 4, b)
    }

    #[inline(always)]
    fn lane_scales(isa: I, _: I::F, unit: &LaneUnit<'_>, out: &mut LaneScales<I::F>) {
        six_bit_lanes(isa, unit, out);
    }
}

/// f16 d, f16 dmin, scales[12], qh[32], qs[128].
pub struct Q5_K;

impl<I: Isa> Decode<I> for Q5_K {
    const UNIT_BYTES: usize = 176;
    const BLOCK_BYTES: usize = 176;
    const SUB_BLOCK: usize = 32;
    const HAS_MIN: bool = true;
    const MAX_ABS_CODE: i32 = 31;
    const UNSIGNED: bool = true;
    const TOGETHER: usize = 8;

    #[inline(always)]
    fn scales(isa: I, _: f32, unit: &[u8]) -> Scales {
        scales_and_mins(isa, unit)
    }

    #[inline(always)]
    fn factors(isa: I, _: f32, unit: &[u8]) -> (I::F, I::F) {
        factors_and_mins(isa, unit)
    }

    #[inline(always)]
    fn codes(isa: I, unit: &[u8], j: usize) -> I::B64 {
        with_plane(isa, nibbles_32(isa, bytes(unit, 48 + 32 * j)), bytes(unit, 16), j, 4)
    }

    #[inline(always)]
    fn lanes(isa: I, unit: &LaneUnit<'_>, b: usize) -> [I::B64; 8] {
        nibbles_and_bits(isa, unit, [12, 4], b)
    }

    #[inline(always)]
    fn lane_scales(isa: I, _: I::F, unit: &LaneUnit<'_>, out: &mut LaneScales<I::F>) {
        six_bit_lanes(isa, unit, out);
    }

    const INTEGERS: Option<Integers> = Integers::unsigned(Place::InOrder);

    #[inline(always)]
    fn lane_integers(isa: I, unit: &LaneUnit<'_>, out: &mut LaneIntegers<I::I, I::F>) {
        (out.d, out.dmin) = two_halves(isa, unit, 0);
        let [s, m] = six_bit_bytes(isa, unit);
        [out.scale[0], out.scale[1]] = s;
        [out.min[0], out.min[1]] = m;
    }
}

/// ql[128], qh[64], scales i8[16], f16 d.
pub struct Q6_K;

impl<I: Isa> Decode<I> for Q6_K {
    const UNIT_BYTES: usize = 210;
    const BLOCK_BYTES: usize = 210;
    const SUB_BLOCK: usize = 16;
    const MAX_ABS_CODE: i32 = 32;
    const LANE_CODES: LaneCodes = LaneCodes::Offset(5);
    const TOGETHER: usize = 8;
    const DECODING: Decoding = Decoding::Heavy;

    #[inline(always)]
    fn scales(isa: I, _: f32, unit: &[u8]) -> Scales {
        let s = map(*bytes::<16>(unit, 192), |s| i16::from(s as i8));
        Scales::by_16(isa.f16(u16_at(unit, 208)), s)
    }

    #[inline(always)]
    fn codes(isa: I, unit: &[u8], j: usize) -> I::B64 {
        // 128 elements: low nibbles of 64 bytes, then their high nibbles
        let low = isa.bits_4x16(isa.load(bytes(unit, 64 * (j / 2))), [4 * (j as u32 % 2); 4], 15);
        let high = crumbs(isa, bytes(unit, 128), j);
        isa.sub(isa.or(low, isa.shl(high, 4)), isa.splat(32))
    }

    #[inline(always)]
    fn lanes(isa: I, unit: &LaneUnit<'_>, b: usize) -> [I::B64; 8] {
        // 128 elements: low nibbles of 16 words, then their high nibbles
        let (half, j) = (b / 4, b % 4);
        let at = 16 * half + 8 * (j % 2);
        eight!(isa, i => {
            let (low, high) = (unit.word(isa, at + i), unit.word(isa, 32 + 8 * half + i));
            isa.two_fields(low, high, [4 * (j as u32 / 2), 2 * j as u32], [4, 2])
        })
    }

    #[inline(always)]
    fn lane_scales(isa: I, _: I::F, unit: &LaneUnit<'_>, out: &mut LaneScales<I::F>) {
        let d = unit.half_float(isa, 0);
        written_out!(16, k => {
            out.scale[k] = times(isa, d, signed_byte(isa, unit.int(isa, 48 + k / 4), k as u32 % 4));
        });
    }
}
