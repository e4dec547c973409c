//! IQ4_NL and IQ4_XS: codes are values of a non-linear table. The comment of each type lists the fields of its block in order.

use ikq_formats::codebook::IQ4NL_VALUES;
use ikq_simd::{Isa, array};

use crate::decode::{Decode, Scales, bytes, u16_at, u32_at};
use crate::lane_integers::{Integers, LaneIntegers, Place, six_bits_in_turn};
use crate::lane_planes::{lut16, nibble_and_high, nibbles_16 as nibbles_16_lanes, plus};
use crate::lanes::{Decoding, LaneScales, LaneUnit};
use crate::legacy::{blocks_of_half, f16_of_blocks};
use crate::planes::nibbles_16;

/// f16 d, 16 bytes of nibbles: indices of a non-linear table. Blocks of 32.
pub struct IQ4_NL;

impl<I: Isa> Decode<I> for IQ4_NL {
    const UNIT_BYTES: usize = 8 * 18;
    const BLOCK_BYTES: usize = 18;
    const FRONT_BYTES: usize = 2;
    const SUB_BLOCK: usize = 256;
    const N_FLOAT_SCALES: usize = 8;
    const MAX_ABS_CODE: i32 = 127;
    const DECODING: Decoding = Decoding::Light;

    #[inline(always)]
    fn scales(isa: I, _: f32, unit: &[u8]) -> Scales {
        Scales::floats(f16_of_blocks(isa, unit, 18, 0))
    }

    #[inline(always)]
    fn codes(isa: I, unit: &[u8], j: usize) -> I::B64 {
        let q = nibbles_16(isa, bytes(unit, 36 * j + 2), bytes(unit, 36 * j + 20));
        isa.lut16(&IQ4NL_VALUES, q)
    }

    #[inline(always)]
    fn lanes(isa: I, unit: &LaneUnit<'_>, b: usize) -> [I::B64; 8] {
        lut16(isa, const { &plus(&IQ4NL_VALUES, I::CODE_BIAS) }, nibbles_16_lanes(isa, unit, 4 * b))
    }

    #[inline(always)]
    fn lane_scales(isa: I, _: I::F, unit: &LaneUnit<'_>, out: &mut LaneScales<I::F>) {
        blocks_of_half(isa, unit, out);
    }
}

/// f16 d, u16 and four bytes of 6-bit scales, qs[128].
pub struct IQ4_XS;

impl<I: Isa> Decode<I> for IQ4_XS {
    const UNIT_BYTES: usize = 136;
    const BLOCK_BYTES: usize = 136;
    const SUB_BLOCK: usize = 32;
    const MAX_ABS_CODE: i32 = 127;
    const TOGETHER: usize = 4;
    const DECODING: Decoding = Decoding::Light;
    const ASKS_AHEAD: bool = false;

    #[inline(always)]
    fn scales(isa: I, _: f32, unit: &[u8]) -> Scales {
        let (high, low) = (u32::from(u16_at(unit, 2)), u32_at(unit, 4));
        let s = |b: usize| (low >> (4 * b) & 15 | (high >> (2 * b) & 3) << 4) as i16 - 32;
        Scales::by_32(isa.f16(u16_at(unit, 0)), array(s))
    }

    #[inline(always)]
    fn codes(isa: I, unit: &[u8], j: usize) -> I::B64 {
        let at = 8 + 32 * j;
        isa.lut16(&IQ4NL_VALUES, nibbles_16(isa, bytes(unit, at), bytes(unit, at + 16)))
    }

    #[inline(always)]
    fn lanes(isa: I, unit: &LaneUnit<'_>, b: usize) -> [I::B64; 8] {
        lut16(isa, const { &plus(&IQ4NL_VALUES, I::CODE_BIAS) }, nibbles_16_lanes(isa, unit, 2 + 4 * b))
    }

    #[inline(always)]
    fn lane_scales(isa: I, _: I::F, unit: &LaneUnit<'_>, out: &mut LaneScales<I::F>) {
        let (head, low) = (unit.int(isa, 0), unit.int(isa, 1));
        let d = isa.float_of_f16(head);
        for b in 0..8 {
            let s = nibble_and_high::<I, 2, -32>(isa, (low, 4 * b as u32), (head, 16 + 2 * b as u32));
            out.scale[b] = isa.mul_f(d, s);
        }
    }

    const INTEGERS: Option<Integers> = Integers::signed(Place::InTurn);

    #[inline(always)]
    fn lane_integers(isa: I, unit: &LaneUnit<'_>, out: &mut LaneIntegers<I::I, I::F>) {
        let head = unit.int(isa, 0);
        out.d = isa.float_of_f16(head);
        [out.scale[0], out.scale[1]] = six_bits_in_turn(isa, unit.int(isa, 1), head, 16);
    }
}
