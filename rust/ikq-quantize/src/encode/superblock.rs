//! Super-blocks of 256 with one f16 scale and an integer scale per sub-block: Q6_K, IQ4_XS.
//!
//! Objective: `sum w (x - d k v)^2` with w of the column. Searched: a scale for every sub-block
//! ([`crate::search::scale`]), then d, the integers k and the codes together
//! ([`crate::search::block_scales`]).

use ikq_formats::codebook::IQ4NL_VALUES;
use ikq_formats::{QuantType, layout};
use ikq_simd::Isa;

use super::Encode;
use crate::search::block_scales::{Grid, refit, settle, super_scale};
use crate::search::levels::{Integers, Levels, Table4};
use crate::search::scale::{self, Fit, Ladder};
use crate::search::tile::{Codes, LANES, Tile, lane_codes};

/// Elements per super-block.
const SUPER: usize = 256;

/// What tells the types apart.
struct Search<L> {
    levels: L,
    ladder: Ladder,
    grid: Grid,
    /// Subtracted from the integer scale in the block's field.
    stored_offset: f32,
}

/// Working memory of a row.
pub struct Scratch<const N: usize> {
    tile: Box<Tile<N>>,
    codes: Box<Codes<N>>,
}

impl<const N: usize> Default for Scratch<N> {
    fn default() -> Self {
        Scratch { tile: Box::default(), codes: Box::new([[0.0; LANES]; N]) }
    }
}

/// Encodes one row whose sub-blocks have `N` elements.
#[inline(always)]
fn encode_row<I: Isa, L: Levels<I>, const N: usize>(
    isa: I,
    ty: QuantType,
    Search { levels, ladder, grid, stored_offset }: Search<L>,
    (x, w): (&[f32], &[f32]),
    Scratch { tile, codes }: &mut Scratch<N>,
    out: &mut [u8],
) {
    let layout = layout(ty).expect("types of this file have layouts");
    let per_super = SUPER / N;
    // d, scales, q
    let mut values = [0u32; 1 + 16 + SUPER];
    let values = &mut values[..1 + per_super + SUPER];
    let tiles = x.chunks(LANES * N).zip(w.chunks(LANES * N));
    for ((x, w), out) in tiles.zip(out.chunks_mut(LANES / per_super * layout.bytes)) {
        tile.load(isa, x, w, per_super);
        let (up, down) = (isa.load_f(&tile.up), isa.load_f(&tile.down));
        let half = |d: I::F| isa.mul_f(isa.f16_round(isa.mul_f(d, up)), down);
        let fit = scale::best_scale(isa, tile, levels, tile.peak(isa), ladder, Fit::nothing(isa));
        let (scales, curvatures) = (isa.array(fit.scale), isa.array(fit.curvature));
        let mut d = [0.0; LANES];
        for (k, d) in d.chunks_mut(per_super).enumerate() {
            let lanes = k * per_super..(k + 1) * per_super;
            let (up, down) = (isa.splat_f(tile.up[lanes.start]), isa.splat_f(tile.down[lanes.start]));
            let half = |d: I::F| isa.mul_f(isa.f16_round(isa.mul_f(d, up)), down);
            d.fill(super_scale(isa, &scales[lanes.clone()], &curvatures[lanes], grid, half));
        }
        let settled = settle(isa, tile, &[levels], fit.scale, isa.load_f(&d), grid);
        let d = half(isa.load_f(&refit(isa, settled, per_super)));
        scale::codes(isa, tile, levels, isa.mul_f(d, settled.k), codes);
        let d = isa.f16_bits(isa.mul_f(d, up));
        let mut k = [0.0; LANES];
        isa.store_f(isa.slot(isa.sub_f(settled.k, isa.splat_f(stored_offset))), &mut k);
        for (block, out) in out.chunks_exact_mut(layout.bytes).enumerate() {
            let first = block * per_super;
            values[0] = u32::from(d[first]);
            for j in 0..per_super {
                values[1 + j] = k[first + j].to_bits() & 0xff;
                lane_codes(codes, first + j, &mut values[1 + per_super + j * N..][..N]);
            }
            layout.pack(values, out);
        }
    }
}

/// 64 levels -32..=31, sixteen sub-blocks with 8-bit scales.
#[allow(non_camel_case_types)]
pub struct Q6_K;

impl Encode for Q6_K {
    const TYPE: QuantType = QuantType::Q6_K;
    type Scratch = Scratch<16>;

    #[inline(always)]
    fn encode_row<I: Isa>(isa: I, x: &[f32], w: &[f32], scratch: &mut Scratch<16>, out: &mut [u8]) {
        let search = Search {
            levels: Integers { lo: -32.0, hi: 31.0 },
            ladder: Ladder { anchors: Q6_ANCHORS, stretches: Q6_STRETCHES, rounds: 2 },
            grid: Grid { lo: -128.0, hi: 127.0, odd: false },
            stored_offset: 0.0,
        };
        encode_row(isa, Self::TYPE, search, (x, w), scratch, out);
    }
}

/// Sixteen levels of a table, eight sub-blocks with 6-bit scales.
#[allow(non_camel_case_types)]
pub struct IQ4_XS;

impl Encode for IQ4_XS {
    const TYPE: QuantType = QuantType::IQ4_XS;
    type Scratch = Scratch<32>;

    #[inline(always)]
    fn encode_row<I: Isa>(isa: I, x: &[f32], w: &[f32], scratch: &mut Scratch<32>, out: &mut [u8]) {
        let search = Search {
            levels: Table4::new(isa, &IQ4NL_VALUES),
            ladder: super::single::NL_LADDER,
            grid: Grid { lo: -32.0, hi: 31.0, odd: false },
            stored_offset: -32.0,
        };
        encode_row(isa, Self::TYPE, search, (x, w), scratch, out);
    }
}

/// The largest element on the first level, and around the last one of both sides.
const Q6_ANCHORS: &[f32] = &[
    -32.0, -31.0, -31.5, -32.4, -33.0, -33.8, -35.0, -37.0, -40.0, -45.0, -52.0, 31.0, 30.2, 30.6, 31.5,
    32.0, 32.7, 33.5, 35.0, 37.0, 41.0, 47.0,
];
/// Between the rungs.
const Q6_STRETCHES: &[f32] = &[0.984, 0.992, 0.996, 1.004, 1.008, 1.016];
