//! Blocks of 32 with a scale and a minimum, both f16: Q4_1, Q5_1.
//!
//! Objective: `sum w (x - d q - m)^2` with w of the column. Searched: scale and minimum of either sign
//! together, then both rounded to f16; see [`crate::search::affine_block`]. Rows without importance try fewer
//! step sizes, and leave weights out of their sums.

use ikq_formats::{QuantType, layout};
use ikq_simd::Isa;

use super::Encode;
use super::affine::LADDER;
use super::pack::{half_numbers, pack_lanes};
use super::weights::are_ones;
use crate::search::affine::{ROUNDS, Rung};
use crate::search::affine_block::{self, Search};
use crate::search::gain::Scales;
use crate::search::tile::{LANES, Plain, Tile, Weighted};

/// Elements per block.
const N: usize = 32;

/// Working memory of a row.
#[derive(Default)]
pub struct Scratch {
    tile: Box<Tile<N>>,
}

/// Encodes one row; `levels` is the largest code. `plain` has the step sizes to try for rows without importance,
/// which the reference only rounds.
#[inline(always)]
fn encode_row<I: Isa>(
    isa: I,
    ty: QuantType,
    (levels, plain): (f32, &'static [Rung]),
    (x, w): (&[f32], &[f32]),
    scales: Scales,
    tile: &mut Tile<N>,
    out: &mut [u8],
) {
    let layout = layout(ty).expect("types of this file have layouts");
    let is_plain = are_ones(w);
    // d, m, q
    let mut numbers = [[0.0; LANES]; 2 + N];
    let tiles = x.chunks(LANES * N).zip(w.chunks(LANES * N));
    for ((x, w), out) in tiles.zip(out.chunks_mut(LANES * layout.bytes)) {
        let [d, m, codes @ ..] = &mut numbers;
        let found = if is_plain {
            tile.load_plain(isa, x, 1);
            affine_block::encode(isa, tile, Plain, Search { levels, ladder: plain, rounds: 1, scales }, codes)
        } else {
            tile.load(isa, x, w, 1);
            let search = Search { levels, ladder: LADDER, rounds: ROUNDS, scales };
            affine_block::encode(isa, tile, Weighted, search, codes)
        };
        (*d, *m) = (half_numbers(found.d), half_numbers(found.m));
        pack_lanes(isa, layout, &numbers, out);
    }
}

macro_rules! affine_blocks {
    ($($(#[$doc:meta])* $ty:ident: $levels:literal, $plain:expr;)*) => { $(
        $(#[$doc])*
        #[allow(non_camel_case_types)]
        pub struct $ty;

        impl Encode for $ty {
            const TYPE: QuantType = QuantType::$ty;
            type Scratch = Scratch;

            #[inline(always)]
            fn encode_row<I: Isa>(
                isa: I,
                x: &[f32],
                w: &[f32],
                scales: Scales,
                scratch: &mut Scratch,
                out: &mut [u8],
            ) {
                encode_row(isa, Self::TYPE, ($levels, $plain), (x, w), scales, &mut scratch.tile, out);
            }
        }
    )* };
}

affine_blocks! {
    /// Sixteen levels.
    Q4_1: 15.0, Q4_PLAIN;
    /// Thirty-two levels.
    Q5_1: 31.0, Q5_PLAIN;
}

/// Step sizes for rows without importance: one with nearly the whole range, others with both ends clipped.
const Q4_PLAIN: &[Rung] = &[(0.2, 0.1), (1.8, 0.9)];
const Q5_PLAIN: &[Rung] = &[(-0.5, -0.2), (0.2, 0.1), (1.1, 0.5), (2.3, 1.2)];
