//! Blocks of 32 with a scale and a minimum, both f16: Q4_1, Q5_1.
//!
//! Objective: `sum w (x - d q - m)^2` with w of the column. Searched: scale and minimum of either sign
//! together, then the halves of both; see [`crate::search::affine_block`].

use ikq_formats::{QuantType, layout};
use ikq_simd::Isa;

use super::Encode;
use super::affine::LADDER;
use crate::search::affine_block;
use crate::search::tile::{Codes, LANES, Tile, lane_codes};

/// Elements per block.
const N: usize = 32;

/// Working memory of a row.
#[derive(Default)]
pub struct Scratch {
    tile: Box<Tile<N>>,
}

/// Encodes one row; `levels` is the largest code.
#[inline(always)]
fn encode_row<I: Isa>(
    isa: I,
    ty: QuantType,
    levels: f32,
    (x, w): (&[f32], &[f32]),
    tile: &mut Tile<N>,
    out: &mut [u8],
) {
    let layout = layout(ty).expect("types of this file have layouts");
    // d, m, q
    let mut values = [0u32; 2 + N];
    let mut codes: Codes<N> = [[0.0; LANES]; N];
    let tiles = x.chunks(LANES * N).zip(w.chunks(LANES * N));
    for ((x, w), out) in tiles.zip(out.chunks_mut(LANES * layout.bytes)) {
        tile.load(isa, x, w, 1);
        let found = affine_block::encode(isa, tile, levels, LADDER, &mut codes);
        for (lane, block) in out.chunks_exact_mut(layout.bytes).enumerate() {
            values[0] = u32::from(found.d[lane]);
            values[1] = u32::from(found.m[lane]);
            lane_codes(&codes, lane, &mut values[2..]);
            layout.pack(&values, block);
        }
    }
}

macro_rules! affine_blocks {
    ($($(#[$doc:meta])* $ty:ident: $levels:literal;)*) => { $(
        $(#[$doc])*
        #[allow(non_camel_case_types)]
        pub struct $ty;

        impl Encode for $ty {
            const TYPE: QuantType = QuantType::$ty;
            type Scratch = Scratch;

            #[inline(always)]
            fn encode_row<I: Isa>(isa: I, x: &[f32], w: &[f32], scratch: &mut Scratch, out: &mut [u8]) {
                encode_row(isa, Self::TYPE, $levels, (x, w), &mut scratch.tile, out);
            }
        }
    )* };
}

affine_blocks! {
    /// Sixteen levels.
    Q4_1: 15.0;
    /// Thirty-two levels.
    Q5_1: 31.0;
}
