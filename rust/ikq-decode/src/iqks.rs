//! IQ2_KS to IQ5_KS, IQ4_KSS, IQ2_KL: non-linear tables (those of [`crate::iqk`], but for IQ2_KL) with one float
//! scale per row, in the row header, and one integer scale per 32 elements. The comment of each type lists the
//! fields of its block in order, then the type of its row header.

use ikq_formats::codebook::{IQ2KL_VALUES, IQ2NL_VALUES, IQ3NL_VALUES, IQ4K_VALUES, IQ5NL_VALUES};
use ikq_simd::{Isa, array, map, written_out};

use crate::decode::{Decode, Scales, bytes, nib, u16_at, u32_at};
use crate::iqk::{IQ2_SHIFT, IQ2_TABLE, IQ3_SHIFT, IQ3_TABLE, IQ4_SHIFT, IQ5_SHIFT, max_abs};
use crate::lane_integers::{Integers, LaneIntegers, Place, less_bytes};
use crate::lane_planes::{
    both, crumbs as crumbs_lanes, crumbs_and_bits, eight, field, lut16_of_2, lut32_of_2, nibble_and_high,
    nibbles_16 as nibbles_16_lanes, nibbles_and_bits, plus, second, times_less,
};
use crate::lanes::{Decoding, LaneCodes, LaneScales, LaneUnit};
use crate::planes::{crumbs, nibbles_16, nibbles_32, nibbles_low_high, with_plane};

/// A row header that is one f32.
#[inline(always)]
pub(crate) fn f32_header(header: &[u8]) -> f32 {
    f32::from_bits(u32_at(header, 0))
}

/// A row header that is one f16.
#[inline(always)]
pub(crate) fn f16_header(header: &[u8]) -> f32 {
    half::f16::from_bits(u16_at(header, 0)).to_f32()
}

/// Adds `shift` to the codes of each 32 elements for which bit 0 of their byte of `bits` is set.
#[inline(always)]
fn shifted<I: Isa>(isa: I, codes: I::B64, bits: [u8; 2], shift: u8) -> I::B64 {
    let [a, b] = map(bits, |bit| u64::from(bit & 1) * 0xffff_ffff);
    isa.add(codes, isa.mask_bytes(a | b << 32, shift))
}

/// The scale, an odd number, that the upper seven bits of a scale byte hold.
#[inline(always)]
fn odd_scale(c: u8) -> i16 {
    i16::from(c & 254) - 127
}

/// The bit where nibble `b` of a word begins: low nibbles of four bytes, then the high ones.
pub(crate) const fn low_high(b: usize) -> u32 {
    8 * (b as u32 % 4) + 4 * (b as u32 / 4)
}

/// [`odd_scale`] of the eight scale bytes of sixteen rows, times the float scale of each row.
#[inline(always)]
fn odd_byte_lanes<I: Isa>(isa: I, header: I::F, unit: &LaneUnit<'_>, out: &mut LaneScales<I::F>) {
    for b in 0..8 {
        let s = isa.shr_i(unit.int(isa, b / 4), 8 * (b as u32 % 4));
        out.scale[b] = times_less(isa, header, isa.and_i(s, isa.splat_i(254)), 127);
    }
}

/// [`odd_scale`] of the eight scale bytes of sixteen rows.
#[inline(always)]
fn odd_byte_integers<I: Isa>(isa: I, unit: &LaneUnit<'_>, out: &mut LaneIntegers<I::I, I::F>) {
    for q in 0..2 {
        out.scale[q] = odd_scales(isa, unit.int(isa, q));
    }
}

/// [`odd_scale`] of each byte.
#[inline(always)]
fn odd_scales<I: Isa>(isa: I, v: I::I) -> I::I {
    less_bytes(isa, isa.and_i(v, isa.splat_i(0xfefe_fefe_u32 as i32)), 127)
}

/// u16 extra (shift bits, then upper scale bits), four bytes of scales, qs[64]. Header f16.
pub struct IQ2_KS;

impl<I: Isa> Decode<I> for IQ2_KS {
    const UNIT_BYTES: usize = 70;
    const BLOCK_BYTES: usize = 70;
    const FRONT_BYTES: usize = 2;
    const HEADER_BYTES: usize = 2;
    const SUB_BLOCK: usize = 32;
    const MAX_ABS_CODE: i32 = max_abs(&IQ2NL_VALUES);
    const LANE_CODES: LaneCodes = LaneCodes::Offset(5);
    const TOGETHER: usize = 4;

    #[inline(always)]
    fn header(header: &[u8]) -> f32 {
        f16_header(header)
    }

    #[inline(always)]
    fn scales(_: I, header: f32, unit: &[u8]) -> Scales {
        let high = unit[1];
        let s = |b: usize| i16::from(nib(unit[2 + b / 2], b % 2) | (high >> b & 1) << 4) - 16;
        Scales::by_32(header, array(s))
    }

    #[inline(always)]
    fn codes(isa: I, unit: &[u8], j: usize) -> I::B64 {
        let v = isa.lut16(&IQ2_TABLE, crumbs(isa, bytes(unit, 6), j));
        shifted(isa, v, [unit[0] >> (2 * j), unit[0] >> (2 * j + 1)], IQ2_SHIFT)
    }

    #[inline(always)]
    fn lanes(isa: I, unit: &LaneUnit<'_>, b: usize) -> [I::B64; 8] {
        let second = second(isa, unit.half(isa, 0), [b as u32; 2], 16, IQ2_SHIFT);
        lut16_of_2(
            isa,
            const { &both::<4, 16, 32>(&IQ2NL_VALUES, 32) },
            crumbs_lanes(isa, unit, 1, b),
            second,
        )
    }

    #[inline(always)]
    fn lane_scales(isa: I, header: I::F, unit: &LaneUnit<'_>, out: &mut LaneScales<I::F>) {
        let (extra, low) = (unit.half(isa, 0), unit.int(isa, 0));
        for b in 0..8 {
            let s = nibble_and_high::<I, 1, -16>(isa, (low, 4 * b as u32), (extra, 8 + b as u32));
            out.scale[b] = isa.mul_f(header, s);
        }
    }
}

/// u16 extra (upper scale bits, then shift bits), four bytes of scales, qs[64], qh[32]. Header f16.
pub struct IQ3_KS;

impl<I: Isa> Decode<I> for IQ3_KS {
    const UNIT_BYTES: usize = 102;
    const BLOCK_BYTES: usize = 102;
    const FRONT_BYTES: usize = 2;
    const HEADER_BYTES: usize = 2;
    const SUB_BLOCK: usize = 32;
    const MAX_ABS_CODE: i32 = max_abs(&IQ3NL_VALUES);
    const LANE_CODES: LaneCodes = LaneCodes::Offset(6);
    const TOGETHER: usize = 8;

    #[inline(always)]
    fn header(header: &[u8]) -> f32 {
        f16_header(header)
    }

    #[inline(always)]
    fn scales(_: I, header: f32, unit: &[u8]) -> Scales {
        let low = nibbles_low_high(bytes(unit, 2));
        let high = unit[0];
        let s = |b: usize| i16::from(low[b] | (high >> b & 1) << 4) - 16;
        Scales::by_32(header, array(s))
    }

    #[inline(always)]
    fn codes(isa: I, unit: &[u8], j: usize) -> I::B64 {
        let q = with_plane(isa, crumbs(isa, bytes(unit, 6), j), bytes(unit, 70), j, 2);
        let v = isa.lut16(&IQ3_TABLE, q);
        shifted(isa, v, [unit[1] >> (2 * j), unit[1] >> (2 * j + 1)], IQ3_SHIFT)
    }

    #[inline(always)]
    fn lanes(isa: I, unit: &LaneUnit<'_>, b: usize) -> [I::B64; 8] {
        let second = second(isa, unit.half(isa, 0), [8 + b as u32; 2], 16, IQ3_SHIFT);
        let codes = crumbs_and_bits(isa, unit, [1, 17], b);
        lut16_of_2(isa, const { &both::<8, 16, 32>(&IQ3NL_VALUES, 64) }, codes, second)
    }

    #[inline(always)]
    fn lane_scales(isa: I, header: I::F, unit: &LaneUnit<'_>, out: &mut LaneScales<I::F>) {
        let (extra, low) = (unit.half(isa, 0), unit.int(isa, 0));
        for b in 0..8 {
            let s = nibble_and_high::<I, 1, -16>(isa, (low, low_high(b)), (extra, b as u32));
            out.scale[b] = isa.mul_f(header, s);
        }
    }
}

/// Eight scale bytes (bit 0: shift), qs[128]. Header f32.
pub struct IQ4_KS;

impl<I: Isa> Decode<I> for IQ4_KS {
    const UNIT_BYTES: usize = 136;
    const BLOCK_BYTES: usize = 136;
    const HEADER_BYTES: usize = 4;
    const SUB_BLOCK: usize = 32;
    const MAX_ABS_CODE: i32 = max_abs(&IQ4K_VALUES);
    const TOGETHER: usize = 4;
    const DECODING: Decoding = Decoding::Light;

    #[inline(always)]
    fn header(header: &[u8]) -> f32 {
        f32_header(header)
    }

    #[inline(always)]
    fn scales(_: I, header: f32, unit: &[u8]) -> Scales {
        Scales::by_32(header, map(*bytes::<8>(unit, 0), odd_scale))
    }

    #[inline(always)]
    fn codes(isa: I, unit: &[u8], j: usize) -> I::B64 {
        let at = 8 + 32 * j;
        let v = isa.lut16(&IQ4K_VALUES[0], nibbles_16(isa, bytes(unit, at), bytes(unit, at + 16)));
        shifted(isa, v, *bytes(unit, 2 * j), IQ4_SHIFT)
    }

    #[inline(always)]
    fn lanes(isa: I, unit: &LaneUnit<'_>, b: usize) -> [I::B64; 8] {
        let extra = isa.shr_i(unit.int(isa, b / 4), 8 * (b as u32 % 4));
        let second = second(isa, extra, [0; 2], 16, IQ4_SHIFT);
        lut16_of_2(
            isa,
            const { &both::<16, 16, 32>(&IQ4K_VALUES, I::CODE_BIAS) },
            nibbles_16_lanes(isa, unit, 2 + 4 * b),
            second,
        )
    }

    #[inline(always)]
    fn lane_scales(isa: I, header: I::F, unit: &LaneUnit<'_>, out: &mut LaneScales<I::F>) {
        odd_byte_lanes(isa, header, unit, out);
    }

    const INTEGERS: Option<Integers> = Integers::signed(Place::InOrder);

    #[inline(always)]
    fn lane_integers(isa: I, unit: &LaneUnit<'_>, out: &mut LaneIntegers<I::I, I::F>) {
        odd_byte_integers(isa, unit, out);
    }
}

/// Eight scale bytes (bit 0: shift), qs[128], qh[32]. Header f32.
pub struct IQ5_KS;

impl<I: Isa> Decode<I> for IQ5_KS {
    const UNIT_BYTES: usize = 168;
    const BLOCK_BYTES: usize = 168;
    const HEADER_BYTES: usize = 4;
    const SUB_BLOCK: usize = 32;
    const MAX_ABS_CODE: i32 = max_abs(&IQ5NL_VALUES);
    const TOGETHER: usize = 8;

    #[inline(always)]
    fn header(header: &[u8]) -> f32 {
        f32_header(header)
    }

    #[inline(always)]
    fn scales(_: I, header: f32, unit: &[u8]) -> Scales {
        Scales::by_32(header, map(*bytes::<8>(unit, 0), odd_scale))
    }

    #[inline(always)]
    fn codes(isa: I, unit: &[u8], j: usize) -> I::B64 {
        let q = with_plane(isa, nibbles_32(isa, bytes(unit, 8 + 32 * j)), bytes(unit, 136), j, 4);
        shifted(isa, isa.lut32(&IQ5NL_VALUES[0], q), *bytes(unit, 2 * j), IQ5_SHIFT)
    }

    #[inline(always)]
    fn lanes(isa: I, unit: &LaneUnit<'_>, b: usize) -> [I::B64; 8] {
        let extra = isa.shr_i(unit.int(isa, b / 4), 8 * (b as u32 % 4));
        let second = second(isa, extra, [0; 2], 32, IQ5_SHIFT);
        let codes = nibbles_and_bits(isa, unit, [2, 34], b);
        lut32_of_2(isa, const { &both::<32, 32, 64>(&IQ5NL_VALUES, I::CODE_BIAS) }, codes, second)
    }

    #[inline(always)]
    fn lane_scales(isa: I, header: I::F, unit: &LaneUnit<'_>, out: &mut LaneScales<I::F>) {
        odd_byte_lanes(isa, header, unit, out);
    }

    const INTEGERS: Option<Integers> = Integers::signed(Place::InOrder);

    #[inline(always)]
    fn lane_integers(isa: I, unit: &LaneUnit<'_>, out: &mut LaneIntegers<I::I, I::F>) {
        odd_byte_integers(isa, unit, out);
    }
}

/// Sixty-four u16, eight per 32 elements: bit 0 is a bit of the sub-block's scale byte, the others
/// hold four nibbles of even parity, Gray-decoded. Header f32.
pub struct IQ4_KSS;

impl IQ4_KSS {
    /// The eight words of sub-block `b`, four at a time.
    #[inline(always)]
    fn words(unit: &[u8], b: usize) -> [u64; 2] {
        [u64::from_le_bytes(*bytes(unit, 16 * b)), u64::from_le_bytes(*bytes(unit, 16 * b + 8))]
    }

    /// The scale byte of sub-block `b` of sixteen rows: bits 0 of the eight u16, the first of which is not part of the scale.
    #[inline(always)]
    fn scale_byte<I: Isa>(isa: I, unit: &LaneUnit<'_>, b: usize) -> I::I {
        let mut s = isa.splat_i(0);
        for j in 0..4 {
            let word = unit.int(isa, 4 * b + j);
            let both = isa.or_i(field(isa, word, 0, 1), isa.and_i(isa.shr_i(word, 15), isa.splat_i(2)));
            s = isa.or_i(s, isa.shl_i(both, 2 * j as u32));
        }
        s
    }
}

impl<I: Isa> Decode<I> for IQ4_KSS {
    const UNIT_BYTES: usize = 128;
    const BLOCK_BYTES: usize = 128;
    const HEADER_BYTES: usize = 4;
    const SUB_BLOCK: usize = 32;
    const MAX_ABS_CODE: i32 = max_abs(&IQ4K_VALUES);
    const TOGETHER: usize = 4;

    #[inline(always)]
    fn header(header: &[u8]) -> f32 {
        f32_header(header)
    }

    #[inline(always)]
    fn scales(_: I, header: f32, unit: &[u8]) -> Scales {
        // a product moves bit 0 of word t to bit 48 + t
        let gather = |x: u64| {
            let bits = x & 0x0001_0001_0001_0001;
            (bits.wrapping_mul(1 << 48 | 1 << 33 | 1 << 18 | 1 << 3) >> 48 & 15) as u8
        };
        let s = |b: usize| {
            let [a, b] = Self::words(unit, b);
            odd_scale(gather(a) | gather(b) << 4)
        };
        Scales::by_32(header, array(s))
    }

    #[inline(always)]
    fn codes(isa: I, unit: &[u8], j: usize) -> I::B64 {
        // bit 0 of every word is cleared first, so the shift brings in zeros from the next word
        let gray = |w: u64| {
            let w = w & 0xfffe_fffe_fffe_fffe;
            w ^ w >> 1
        };
        let [a, b] = map(Self::words(unit, 2 * j), gray);
        let [c, d] = map(Self::words(unit, 2 * j + 1), gray);
        let nibbles = isa.bits_4x16(isa.of_u64([a, b, a, b, c, d, c, d]), [0, 4, 0, 4], 15);
        let v = isa.lut16(&IQ4K_VALUES[0], nibbles);
        shifted(isa, v, [unit[32 * j], unit[32 * j + 16]], IQ4_SHIFT)
    }

    #[inline(always)]
    fn lanes(isa: I, unit: &LaneUnit<'_>, b: usize) -> [I::B64; 8] {
        let second = second(isa, unit.int(isa, 4 * b), [0; 2], 16, IQ4_SHIFT);
        let codes = eight!(isa, i => {
            // bit 0 of each u16 is cleared first, so the shift brings in zeros from the next one
            let gray = isa.and_i(unit.int(isa, 4 * b + i % 4), isa.splat_i(0xfffe_fffe_u32 as i32));
            let codes = isa.xor_i(gray, isa.shr_i(gray, 1));
            isa.bits(isa.of_ints(codes), 4 * (i as u32 / 4), 15)
        });
        lut16_of_2(isa, const { &both::<16, 16, 32>(&IQ4K_VALUES, I::CODE_BIAS) }, codes, second)
    }

    #[inline(always)]
    fn lane_scales(isa: I, header: I::F, unit: &LaneUnit<'_>, out: &mut LaneScales<I::F>) {
        for b in 0..8 {
            let s = isa.and_i(Self::scale_byte(isa, unit, b), isa.splat_i(254));
            out.scale[b] = times_less(isa, header, s, 127);
        }
    }

    const INTEGERS: Option<Integers> = Integers::signed(Place::Own);

    #[inline(always)]
    fn lane_integers(isa: I, unit: &LaneUnit<'_>, out: &mut LaneIntegers<I::I, I::F>) {
        for b in 0..8 {
            out.scale[b] = odd_scales(isa, Self::scale_byte(isa, unit, b));
        }
    }
}

/// In IQ2_KL two elements share a 5-bit code: this has the first values of all codes, then the second ones.
const IQ2KL_TABLE: [i8; 64] = {
    let mut out = [0; 64];
    let mut code = 0;
    while code < 32 {
        out[code] = IQ2KL_VALUES[code][0];
        out[code + 32] = IQ2KL_VALUES[code][1];
        code += 1;
    }
    out
};

/// u16 and four bytes of 6-bit scales, qs[64], qh[16]: pair codes. Header f16.
pub struct IQ2_KL;

impl<I: Isa> Decode<I> for IQ2_KL {
    const UNIT_BYTES: usize = 86;
    const BLOCK_BYTES: usize = 86;
    const FRONT_BYTES: usize = 2;
    const HEADER_BYTES: usize = 2;
    const SUB_BLOCK: usize = 32;
    const MAX_ABS_CODE: i32 = 63;
    const LANE_CODES: LaneCodes = LaneCodes::Offset(6);
    const TOGETHER: usize = 8;

    #[inline(always)]
    fn header(header: &[u8]) -> f32 {
        f16_header(header)
    }

    #[inline(always)]
    fn scales(_: I, header: f32, unit: &[u8]) -> Scales {
        let low = nibbles_low_high(bytes(unit, 2));
        let high = u16_at(unit, 0);
        let s = |b: usize| (u16::from(low[b]) | (high >> (2 * b) & 3) << 4) as i16 - 32;
        Scales::by_32(header, array(s))
    }

    #[inline(always)]
    fn codes(isa: I, unit: &[u8], j: usize) -> I::B64 {
        // both elements of a pair use the same code, the second one in the upper half of the table
        let twice = |b: &[u8; 16]| -> [u8; 32] { array(|i| b[i / 2]) };
        let q = nibbles_32(isa, &twice(bytes(unit, 6 + 16 * j)));
        let q = with_plane(isa, q, &twice(bytes(unit, 70)), j, 4);
        isa.lut64(&IQ2KL_TABLE, isa.or(q, isa.of_u64([0x2000_2000_2000_2000; 8])))
    }

    #[inline(always)]
    fn lanes(isa: I, unit: &LaneUnit<'_>, b: usize) -> [I::B64; 8] {
        let table = const { &plus(&IQ2KL_TABLE, 64) };
        let mut out = [isa.splat(0); 8];
        for j in 0..4 {
            let (low, high) = (unit.word(isa, 1 + 4 * (b / 2) + j), unit.word(isa, 17 + j));
            let pairs = isa.two_fields(low, high, [4 * (b as u32 % 2), b as u32], [4, 1]);
            // both elements of a pair use the same code, the second one in the upper half of the table
            let upper = isa.of_ints(isa.splat_i(0x2000_2000));
            out[2 * j] = isa.lut64(table, isa.or(isa.pick(pairs, [0, 0, 1, 1]), upper));
            out[2 * j + 1] = isa.lut64(table, isa.or(isa.pick(pairs, [2, 2, 3, 3]), upper));
        }
        out
    }

    #[inline(always)]
    fn lane_scales(isa: I, header: I::F, unit: &LaneUnit<'_>, out: &mut LaneScales<I::F>) {
        let (high, low) = (unit.half(isa, 0), unit.int(isa, 0));
        written_out!(8, b => {
            let s = nibble_and_high::<I, 2, -32>(isa, (low, low_high(b)), (high, 2 * b as u32));
            out.scale[b] = isa.mul_f(header, s);
        });
    }
}
