//! Interleaved types store groups of 4, 8 or 16 rows with their blocks interleaved. A group is first taken apart
//! into rows (`ikq_formats::interleave`), which are then decoded as rows of the plain type.
//!
//! Five types have no plain type, so the decoders of their rows are here. Their layouts are those of
//! `ikq_formats::layouts::interleaved`:
//!
//! | type | row header | block of a row |
//! |---|---|---|
//! | IQ1_S_R4 | f16 d | 32 elements: four low index bytes, u16 as in IQ1_S |
//! | IQ1_M_R4 | f16 d | 32 elements: four low index bytes, four nibbles as in IQ1_M, two scale nibbles |
//! | Q8_K_R8, Q8_K_R16 | | 256 elements: f16 d, codes |
//! | Q8_KV_R8 | f32 d | 32 codes |

use ikq_formats::{Error, QuantType, deinterleave_group};
use ikq_simd::{Isa, LaneIndices, TakeLanes, array, map};

use crate::decode::{Decode, Scales, bytes, nib, u16_at};
use crate::iq1::{
    delta_byte, nibble_deltas, nibble_lanes, ternary_entries, ternary_lanes, three_bits, upper_bits,
};
use crate::iqks::{f16_header, f32_header};
use crate::lane_planes::{eight, same_scale};
use crate::lanes::{Decoding, LaneCodes, LaneScales, LaneUnit};

/// Takes the groups of `data` apart, one after another, and hands each one's rows to `decode` with
/// its part of `out`.
///
/// `data` and `out` must hold the same number of whole groups.
///
/// # Errors
/// Those of [`deinterleave_group`] (rows of odd length for BF16_R16), which shapes that were checked do not cause,
/// and those of `decode`.
pub(crate) fn each_group(
    ty: QuantType,
    data: &[u8],
    n_per_row: usize,
    out: &mut [f32],
    mut decode: impl FnMut(&[u8], &mut [f32]) -> Result<(), Error>,
) -> Result<(), Error> {
    if out.is_empty() {
        return Ok(());
    }
    let group = ty.info().rows * n_per_row;
    let group_bytes = data.len() / (out.len() / group);
    let mut rows = vec![0; group_bytes];
    for (data, out) in data.chunks_exact(group_bytes).zip(out.chunks_exact_mut(group)) {
        deinterleave_group(ty, data, n_per_row, &mut rows)?;
        decode(&rows, out)?;
    }
    Ok(())
}

/// A row of IQ1_S_R4.
pub struct IQ1_S_R4;

impl<I: Isa> Decode<I> for IQ1_S_R4 {
    const UNIT_BYTES: usize = 8 * 6;
    const BLOCK_BYTES: usize = 6;
    const HEADER_BYTES: usize = 2;
    const SUB_BLOCK: usize = 32;
    const MAX_ABS_CODE: i32 = 9;
    const DECODING: Decoding = Decoding::Heavy;
    const LANE_CODES: LaneCodes = LaneCodes::Offset(4);

    #[inline(always)]
    fn header(header: &[u8]) -> f32 {
        f16_header(header)
    }

    #[inline(always)]
    fn scales(_: I, header: f32, unit: &[u8]) -> Scales {
        let s = array(|b| (u16_at(unit, 6 * b + 4) >> 11 & 14 | 1) as i16);
        Scales::by_32(header * 0.125, s)
    }

    #[inline(always)]
    fn codes(isa: I, unit: &[u8], j: usize) -> I::B64 {
        let at = 12 * j;
        let h = [u16_at(unit, at + 4), u16_at(unit, at + 10)];
        let index = |l: usize| {
            let low = unit[at + 6 * (l / 4) + l % 4];
            u32::from(low) | u32::from(h[l / 4] >> (3 * (l % 4)) & 7) << 8
        };
        let [a, b] = map(h, |h| delta_byte(h >> 15));
        ternary_entries(isa, array(index), isa.splat_4x16([a, a, b, b]))
    }

    const CODEBOOK: usize = 2048;

    #[inline(always)]
    fn lane_indices(isa: I, unit: &LaneUnit<'_>, b: usize, out: &mut LaneIndices) {
        isa.indices_8(&unit.words[b], three_bits(isa, unit.half(isa, 2 * b)), out);
    }

    #[inline(always)]
    fn lanes_in_turn(
        isa: I,
        unit: &LaneUnit<'_>,
        b: usize,
        indices: &LaneIndices,
        take: &mut impl TakeLanes<I>,
    ) {
        let high = unit.half(isa, 2 * b);
        let index = (&unit.words[b], three_bits(isa, high));
        ternary_lanes(isa, index, indices, isa.where_bit(high, 15, -1), take);
    }

    #[inline(always)]
    fn lane_scales(isa: I, header: I::F, unit: &LaneUnit<'_>, out: &mut LaneScales<I::F>) {
        let d = isa.mul_f(header, isa.splat_f(0.125));
        for b in 0..8 {
            out.scale[b] = isa.mul_f(d, isa.linear::<3, 2, 1>(unit.half(isa, 2 * b), 12));
        }
    }
}

/// A row of IQ1_M_R4. Scales are the plain nibbles, not `2 s + 1` as in IQ1_M.
pub struct IQ1_M_R4;

impl<I: Isa> Decode<I> for IQ1_M_R4 {
    const UNIT_BYTES: usize = 8 * 7;
    const BLOCK_BYTES: usize = 7;
    const HEADER_BYTES: usize = 2;
    const SUB_BLOCK: usize = 16;
    const MAX_ABS_CODE: i32 = 9;
    const DECODING: Decoding = Decoding::Heavy;
    const LANE_CODES: LaneCodes = LaneCodes::Offset(4);

    #[inline(always)]
    fn header(header: &[u8]) -> f32 {
        f16_header(header)
    }

    #[inline(always)]
    fn scales(_: I, header: f32, unit: &[u8]) -> Scales {
        let s = array(|k| i16::from(nib(unit[7 * (k / 2) + 6], k % 2)));
        Scales::by_16(header * 0.125, s)
    }

    #[inline(always)]
    fn codes(isa: I, unit: &[u8], j: usize) -> I::B64 {
        let at = 14 * j;
        let h = u32::from(u16_at(unit, at + 4)) | u32::from(u16_at(unit, at + 11)) << 16;
        let index = |l: usize| {
            let low = unit[at + 7 * (l / 4) + l % 4];
            u32::from(low) | (h >> (4 * l) & 7) << 8
        };
        ternary_entries(isa, array(index), nibble_deltas(isa, h))
    }

    const CODEBOOK: usize = 2048;

    #[inline(always)]
    fn lane_indices(isa: I, unit: &LaneUnit<'_>, b: usize, out: &mut LaneIndices) {
        isa.indices_8(&unit.words[b], upper_bits(isa, unit.half(isa, 3 * b)), out);
    }

    #[inline(always)]
    fn lanes_in_turn(
        isa: I,
        unit: &LaneUnit<'_>,
        b: usize,
        indices: &LaneIndices,
        take: &mut impl TakeLanes<I>,
    ) {
        nibble_lanes(isa, &unit.words[b], unit.half(isa, 3 * b), indices, take);
    }

    #[inline(always)]
    fn lane_scales(isa: I, header: I::F, unit: &LaneUnit<'_>, out: &mut LaneScales<I::F>) {
        let d = isa.mul_f(header, isa.splat_f(0.125));
        for k in 0..16 {
            let s = unit.byte(isa, 3 * (k / 2) + 2);
            out.scale[k] = isa.mul_f(d, isa.linear::<4, 1, 0>(s, 4 * (k as u32 % 2)));
        }
    }
}

macro_rules! q8_k_rows {
    ($($name:ident)*) => {$(
        #[doc = concat!("A row of ", stringify!($name), ".")]
        pub struct $name;

        impl<I: Isa> Decode<I> for $name {
            const UNIT_BYTES: usize = 258;
            const BLOCK_BYTES: usize = 258;
            const FRONT_BYTES: usize = 2;
            const SUB_BLOCK: usize = 256;
            const MAX_ABS_CODE: i32 = 128;

            #[inline(always)]
            fn scales(isa: I, _: f32, unit: &[u8]) -> Scales {
                Scales::floats([isa.f16(u16_at(unit, 0))])
            }

            #[inline(always)]
            fn codes(isa: I, unit: &[u8], j: usize) -> I::B64 {
                isa.load(bytes(unit, 2 + 64 * j))
            }

            #[inline(always)]
            fn lanes(isa: I, unit: &LaneUnit<'_>, b: usize) -> [I::B64; 8] {
                eight!(isa, i => isa.biased(unit.word(isa, 8 * b + i)))
            }

            #[inline(always)]
            fn lane_scales(isa: I, _: I::F, unit: &LaneUnit<'_>, out: &mut LaneScales<I::F>) {
                same_scale::<I>(unit.half_float(isa, 0), out);
            }
        }
    )*};
}

q8_k_rows! { Q8_K_R8 Q8_K_R16 }

/// A row of Q8_KV_R8; unlike Q8_KV, its header has no sum of the codes.
pub struct Q8_KV_R8;

impl<I: Isa> Decode<I> for Q8_KV_R8 {
    const UNIT_BYTES: usize = 256;
    const BLOCK_BYTES: usize = 32;
    const HEADER_BYTES: usize = 4;
    const SUB_BLOCK: usize = 256;
    const MAX_ABS_CODE: i32 = 128;

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
