//! IQ2_K to IQ6_K: codes are indices of a non-linear table, of which there are two variants; a bit of the field
//! `extra` chooses one per 16 elements. The comment of each type lists the fields of its block in order.
//!
//! The second variant of every table is the first plus a constant ([`shift_of`] proves it when the
//! crate is compiled), so that decoding is one look-up and one addition.

use ikq_formats::codebook::{IQ2NL_VALUES, IQ3NL_VALUES, IQ4K_VALUES, IQ5NL_VALUES, IQ6NL_VALUES};
use ikq_simd::{Isa, array, map, written_out};

use crate::decode::{Decode, Scales, bytes, u16_at, u32_at};
use crate::lane_integers::{
    Integers, LaneIntegers, Place, less_bytes, nibble_words, odd_bytes, six_bits_in_turn,
};
use crate::lane_planes::{
    both, crumbs as crumbs_lanes, crumbs_and_bits, eight, every_byte, lut16, lut16_of_2, lut32_of_2,
    nibble_and_high, nibbles_16 as nibbles_16_lanes, nibbles_and_bits, nibbles_and_crumbs, plus, second,
    signed_byte, times,
};
use crate::lanes::{Decoding, LaneCodes, LaneScales, LaneUnit};
use crate::planes::{crumbs, nibbles_16, nibbles_32, nibbles_in_turn, with_plane};

/// The constant by which the second variant of a table exceeds the first.
pub(crate) const fn shift_of<const N: usize>(rows: &[[i8; N]; 2]) -> u8 {
    let shift = rows[1][0] - rows[0][0];
    let mut q = 0;
    while q < N {
        assert!(rows[1][q] as i32 == rows[0][q] as i32 + shift as i32);
        q += 1;
    }
    shift as u8
}

/// The largest absolute value of a table.
pub(crate) const fn max_abs<const N: usize>(rows: &[[i8; N]; 2]) -> i32 {
    let (mut max, mut q) = (0, 0);
    while q < 2 * N {
        let v = (rows[q / N][q % N] as i32).abs();
        if v > max {
            max = v;
        }
        q += 1;
    }
    max
}

/// The first row of a short table, made sixteen long for the look-up.
const fn sixteen<const N: usize>(row: &[i8; N]) -> [i8; 16] {
    let mut out = [0; 16];
    let mut q = 0;
    while q < N {
        out[q] = row[q];
        q += 1;
    }
    out
}

pub(crate) const IQ2_TABLE: [i8; 16] = sixteen(&IQ2NL_VALUES[0]);
pub(crate) const IQ3_TABLE: [i8; 16] = sixteen(&IQ3NL_VALUES[0]);
pub(crate) const IQ2_SHIFT: u8 = shift_of(&IQ2NL_VALUES);
pub(crate) const IQ3_SHIFT: u8 = shift_of(&IQ3NL_VALUES);
pub(crate) const IQ4_SHIFT: u8 = shift_of(&IQ4K_VALUES);
pub(crate) const IQ5_SHIFT: u8 = shift_of(&IQ5NL_VALUES);
const IQ6_SHIFT: u8 = shift_of(&IQ6NL_VALUES);

/// Adds `shift` to the codes of each 16 elements whose bit of `extra` (at byte 2 of the block) is set.
#[inline(always)]
fn shifted<I: Isa>(isa: I, codes: I::B64, unit: &[u8], j: usize, shift: u8) -> I::B64 {
    let bits = u64::from(u16_at(unit, 2) >> (4 * j) & 15);
    // four copies fifteen bits apart: bit k of copy k is at bit 16 k
    let spread = (bits * (1 | 1 << 15 | 1 << 30 | 1 << 45)) & 0x0001_0001_0001_0001;
    isa.add(codes, isa.mask_bytes(spread * 0xffff, shift))
}

/// Scales of IQ4_K and IQ5_K for sixteen rows, one row per lane.
#[inline(always)]
fn six_bit_lanes<I: Isa>(isa: I, unit: &LaneUnit<'_>, out: &mut LaneScales<I::F>) {
    let d = isa.float_of_f16(unit.int(isa, 0));
    written_out!(16, k => {
        let (low, high) = (unit.int(isa, 2 + k / 8), unit.int(isa, 1));
        let s = nibble_and_high::<I, 2, -32>(isa, (low, 4 * (k as u32 % 8)), (high, 2 * k as u32));
        out.scale[k] = isa.mul_f(d, s);
    });
}

/// The same as integers.
#[inline(always)]
fn six_bit_integers<I: Isa>(isa: I, unit: &LaneUnit<'_>, out: &mut LaneIntegers<I::I, I::F>) {
    out.d = isa.float_of_f16(unit.int(isa, 0));
    for q in 0..2 {
        [out.scale[2 * q], out.scale[2 * q + 1]] =
            six_bits_in_turn(isa, unit.int(isa, 2 + q), unit.int(isa, 1), 16 * q as u32);
    }
}

/// f16 d, u16 extra, eight bytes of scales, qs[64].
pub struct IQ2_K;

impl<I: Isa> Decode<I> for IQ2_K {
    const UNIT_BYTES: usize = 76;
    const BLOCK_BYTES: usize = 76;
    const SUB_BLOCK: usize = 16;
    const MAX_ABS_CODE: i32 = max_abs(&IQ2NL_VALUES);
    const LANE_CODES: LaneCodes = LaneCodes::Offset(5);
    const TOGETHER: usize = 4;

    #[inline(always)]
    fn scales(isa: I, _: f32, unit: &[u8]) -> Scales {
        let s = map(nibbles_in_turn(bytes(unit, 4)), |s| i16::from(s) - 8);
        Scales::by_16(isa.f16(u16_at(unit, 0)), s)
    }

    #[inline(always)]
    fn codes(isa: I, unit: &[u8], j: usize) -> I::B64 {
        let v = isa.lut16(&IQ2_TABLE, crumbs(isa, bytes(unit, 12), j));
        shifted(isa, v, unit, j, IQ2_SHIFT)
    }

    #[inline(always)]
    fn lanes(isa: I, unit: &LaneUnit<'_>, b: usize) -> [I::B64; 8] {
        let second = second(isa, unit.int(isa, 0), [16 + 2 * b as u32, 17 + 2 * b as u32], 16, IQ2_SHIFT);
        lut16_of_2(
            isa,
            const { &both::<4, 16, 32>(&IQ2NL_VALUES, 32) },
            crumbs_lanes(isa, unit, 3, b),
            second,
        )
    }

    const SECOND: u8 = IQ2_SHIFT;

    #[inline(always)]
    fn lane_seconds(isa: I, unit: &LaneUnit<'_>) -> I::I {
        isa.shr_i(unit.int(isa, 0), 16)
    }

    #[inline(always)]
    fn lanes_by_first(isa: I, unit: &LaneUnit<'_>, b: usize) -> [I::B64; 8] {
        lut16(isa, const { &plus(&IQ2_TABLE, 32) }, crumbs_lanes(isa, unit, 3, b))
    }

    #[inline(always)]
    fn lane_scales(isa: I, _: I::F, unit: &LaneUnit<'_>, out: &mut LaneScales<I::F>) {
        let d = isa.float_of_f16(unit.int(isa, 0));
        written_out!(16, k => {
            let s = isa.linear::<4, 1, -8>(unit.int(isa, 1 + k / 8), 4 * (k as u32 % 8));
            out.scale[k] = isa.mul_f(d, s);
        });
    }

    const INTEGERS: Option<Integers> = Integers::signed(Place::InTurn);

    #[inline(always)]
    fn lane_integers(isa: I, unit: &LaneUnit<'_>, out: &mut LaneIntegers<I::I, I::F>) {
        out.d = isa.float_of_f16(unit.int(isa, 0));
        for q in 0..2 {
            for (h, s) in nibble_words(isa, unit.int(isa, 1 + q)).into_iter().enumerate() {
                out.scale[2 * q + h] = less_bytes(isa, s, 8);
            }
        }
    }
}

/// f16 d, u16 extra, u16 of scale signs, eight bytes of scale magnitudes, qs[64], qh[32].
pub struct IQ3_K;

impl<I: Isa> Decode<I> for IQ3_K {
    const UNIT_BYTES: usize = 110;
    const BLOCK_BYTES: usize = 110;
    const FRONT_BYTES: usize = 2;
    const SUB_BLOCK: usize = 16;
    const MAX_ABS_CODE: i32 = max_abs(&IQ3NL_VALUES);
    const LANE_CODES: LaneCodes = LaneCodes::Offset(6);
    const TOGETHER: usize = 8;
    const DECODING: Decoding = Decoding::Heavy;

    #[inline(always)]
    fn scales(isa: I, _: f32, unit: &[u8]) -> Scales {
        let magnitude = nibbles_in_turn(bytes(unit, 6));
        let signs = u16_at(unit, 4);
        let s = |k: usize| {
            let negative = -((signs >> k & 1) as i16);
            ((2 * i16::from(magnitude[k]) + 1) ^ negative) - negative
        };
        Scales::by_16(isa.f16(u16_at(unit, 0)), array(s))
    }

    #[inline(always)]
    fn codes(isa: I, unit: &[u8], j: usize) -> I::B64 {
        let q = with_plane(isa, crumbs(isa, bytes(unit, 14), j), bytes(unit, 78), j, 2);
        shifted(isa, isa.lut16(&IQ3_TABLE, q), unit, j, IQ3_SHIFT)
    }

    #[inline(always)]
    fn lanes(isa: I, unit: &LaneUnit<'_>, b: usize) -> [I::B64; 8] {
        let second = second(isa, unit.int(isa, 0), [2 * b as u32, 2 * b as u32 + 1], 16, IQ3_SHIFT);
        let codes = crumbs_and_bits(isa, unit, [3, 19], b);
        lut16_of_2(isa, const { &both::<8, 16, 32>(&IQ3NL_VALUES, 64) }, codes, second)
    }

    const SECOND: u8 = IQ3_SHIFT;

    #[inline(always)]
    fn lane_seconds(isa: I, unit: &LaneUnit<'_>) -> I::I {
        isa.and_i(unit.int(isa, 0), isa.splat_i(0xffff))
    }

    #[inline(always)]
    fn lanes_by_first(isa: I, unit: &LaneUnit<'_>, b: usize) -> [I::B64; 8] {
        lut16(isa, const { &plus(&IQ3_TABLE, 64) }, crumbs_and_bits(isa, unit, [3, 19], b))
    }

    #[inline(always)]
    fn lane_scales(isa: I, _: I::F, unit: &LaneUnit<'_>, out: &mut LaneScales<I::F>) {
        let d = unit.half_float(isa, 0);
        let signs = unit.int(isa, 0);
        written_out!(16, k => {
            let s = isa.linear::<4, 2, 1>(unit.int(isa, 1 + k / 8), 4 * (k as u32 % 8));
            // the scale's sign bit is moved to the sign bit of the float
            let negative = isa.and_i(isa.shl_i(signs, 15 - k as u32), isa.splat_i(i32::MIN));
            let scale = isa.bits_i(isa.mul_f(d, s));
            out.scale[k] = isa.of_bits(isa.xor_i(scale, negative));
        });
    }

    const INTEGERS: Option<Integers> = Integers::signed(Place::InTurn);

    #[inline(always)]
    fn lane_integers(isa: I, unit: &LaneUnit<'_>, out: &mut LaneIntegers<I::I, I::F>) {
        out.d = unit.half_float(isa, 0);
        for q in 0..2 {
            // bits 0 of these bytes are the signs of even scales, bits 1 those of odd ones
            let signs = isa.spread_crumbs(unit.int(isa, 0), 2 + q);
            for (h, s) in nibble_words(isa, unit.int(isa, 1 + q)).into_iter().enumerate() {
                let s = isa.of_ints(odd_bytes(isa, s));
                out.scale[2 * q + h] = isa.ints(isa.negate_where_bit(s, signs, h as u32));
            }
        }
    }
}

/// Scales of IQ4_K and IQ5_K: six bits less 32, of which the upper two are in the four bytes at 4.
#[inline(always)]
fn six_bit_scales<I: Isa>(isa: I, unit: &[u8]) -> Scales {
    let low = nibbles_in_turn(bytes(unit, 8));
    let high = u32_at(unit, 4);
    let s = |k: usize| i16::from(low[k]) + ((high >> (2 * k) & 3) << 4) as i16 - 32;
    Scales::by_16(isa.f16(u16_at(unit, 0)), array(s))
}

/// f16 d, u16 extra, four and eight bytes of scales, qs[128].
pub struct IQ4_K;

impl<I: Isa> Decode<I> for IQ4_K {
    const UNIT_BYTES: usize = 144;
    const BLOCK_BYTES: usize = 144;
    const SUB_BLOCK: usize = 16;
    const MAX_ABS_CODE: i32 = max_abs(&IQ4K_VALUES);
    const TOGETHER: usize = 4;
    const ASKS_AHEAD: bool = false;

    #[inline(always)]
    fn scales(isa: I, _: f32, unit: &[u8]) -> Scales {
        six_bit_scales(isa, unit)
    }

    #[inline(always)]
    fn codes(isa: I, unit: &[u8], j: usize) -> I::B64 {
        let at = 16 + 32 * j;
        let v = isa.lut16(&IQ4K_VALUES[0], nibbles_16(isa, bytes(unit, at), bytes(unit, at + 16)));
        shifted(isa, v, unit, j, IQ4_SHIFT)
    }

    #[inline(always)]
    fn lanes(isa: I, unit: &LaneUnit<'_>, b: usize) -> [I::B64; 8] {
        let second = second(isa, unit.int(isa, 0), [16 + 2 * b as u32, 17 + 2 * b as u32], 16, IQ4_SHIFT);
        lut16_of_2(
            isa,
            const { &both::<16, 16, 32>(&IQ4K_VALUES, I::CODE_BIAS) },
            nibbles_16_lanes(isa, unit, 4 + 4 * b),
            second,
        )
    }

    #[inline(always)]
    fn lane_scales(isa: I, _: I::F, unit: &LaneUnit<'_>, out: &mut LaneScales<I::F>) {
        six_bit_lanes(isa, unit, out);
    }

    const INTEGERS: Option<Integers> = Integers::signed(Place::InTurn);

    #[inline(always)]
    fn lane_integers(isa: I, unit: &LaneUnit<'_>, out: &mut LaneIntegers<I::I, I::F>) {
        six_bit_integers(isa, unit, out);
    }
}

/// The fields of IQ4_K, then qh[32], the fifth bits; 64 elements share 32 bytes of qs.
pub struct IQ5_K;

impl<I: Isa> Decode<I> for IQ5_K {
    const UNIT_BYTES: usize = 176;
    const BLOCK_BYTES: usize = 176;
    const SUB_BLOCK: usize = 16;
    const MAX_ABS_CODE: i32 = max_abs(&IQ5NL_VALUES);
    const TOGETHER: usize = 8;

    #[inline(always)]
    fn scales(isa: I, _: f32, unit: &[u8]) -> Scales {
        six_bit_scales(isa, unit)
    }

    #[inline(always)]
    fn codes(isa: I, unit: &[u8], j: usize) -> I::B64 {
        let q = with_plane(isa, nibbles_32(isa, bytes(unit, 16 + 32 * j)), bytes(unit, 144), j, 4);
        shifted(isa, isa.lut32(&IQ5NL_VALUES[0], q), unit, j, IQ5_SHIFT)
    }

    #[inline(always)]
    fn lanes(isa: I, unit: &LaneUnit<'_>, b: usize) -> [I::B64; 8] {
        let second = second(isa, unit.int(isa, 0), [16 + 2 * b as u32, 17 + 2 * b as u32], 32, IQ5_SHIFT);
        let codes = nibbles_and_bits(isa, unit, [4, 36], b);
        lut32_of_2(isa, const { &both::<32, 32, 64>(&IQ5NL_VALUES, I::CODE_BIAS) }, codes, second)
    }

    #[inline(always)]
    fn lane_scales(isa: I, _: I::F, unit: &LaneUnit<'_>, out: &mut LaneScales<I::F>) {
        six_bit_lanes(isa, unit, out);
    }

    const INTEGERS: Option<Integers> = Integers::signed(Place::InTurn);

    #[inline(always)]
    fn lane_integers(isa: I, unit: &LaneUnit<'_>, out: &mut LaneIntegers<I::I, I::F>) {
        six_bit_integers(isa, unit, out);
    }
}

/// f16 d, u16 extra, scales i8[16], qs[128], qh[64].
pub struct IQ6_K;

impl<I: Isa> Decode<I> for IQ6_K {
    const UNIT_BYTES: usize = 212;
    const BLOCK_BYTES: usize = 212;
    const SUB_BLOCK: usize = 16;
    const MAX_ABS_CODE: i32 = max_abs(&IQ6NL_VALUES);
    const TOGETHER: usize = 8;
    const DECODING: Decoding = Decoding::Heavy;

    #[inline(always)]
    fn scales(isa: I, _: f32, unit: &[u8]) -> Scales {
        let s = map(*bytes::<16>(unit, 4), |s| i16::from(s as i8));
        Scales::by_16(isa.f16(u16_at(unit, 0)), s)
    }

    #[inline(always)]
    fn codes(isa: I, unit: &[u8], j: usize) -> I::B64 {
        let high = isa.shl(crumbs(isa, bytes(unit, 148), j), 4);
        let q = isa.or(nibbles_32(isa, bytes(unit, 20 + 32 * j)), high);
        shifted(isa, isa.lut64(&IQ6NL_VALUES[0], q), unit, j, IQ6_SHIFT)
    }

    #[inline(always)]
    fn lanes(isa: I, unit: &LaneUnit<'_>, b: usize) -> [I::B64; 8] {
        let extra = unit.int(isa, 0);
        const { assert!(IQ6_SHIFT == 1) };
        let shift = [every_byte(isa, extra, 16 + 2 * b as u32), every_byte(isa, extra, 17 + 2 * b as u32)];
        let codes = nibbles_and_crumbs(isa, unit, [5, 37], b);
        eight!(isa, i => {
            let value = isa.lut64(const { &plus(&IQ6NL_VALUES[0], I::CODE_BIAS) }, codes[i]);
            isa.add(value, isa.of_ints(shift[i / 4]))
        })
    }

    #[inline(always)]
    fn lane_scales(isa: I, _: I::F, unit: &LaneUnit<'_>, out: &mut LaneScales<I::F>) {
        let d = isa.float_of_f16(unit.int(isa, 0));
        written_out!(16, k => {
            out.scale[k] = times(isa, d, signed_byte(isa, unit.int(isa, 1 + k / 4), k as u32 % 4));
        });
    }

    const INTEGERS: Option<Integers> = Integers::signed(Place::InOrder);

    #[inline(always)]
    fn lane_integers(isa: I, unit: &LaneUnit<'_>, out: &mut LaneIntegers<I::I, I::F>) {
        out.d = isa.float_of_f16(unit.int(isa, 0));
        for q in 0..4 {
            out.scale[q] = unit.int(isa, 1 + q);
        }
    }
}
