//! Super-blocks with integer scales and minima: Q2_K, Q4_K, Q5_K.
//!
//! Objective: `sum w (x - y)^2` with w of the column. Searched: scale and minimum of each sub-block, then
//! their integers together with the super-block's d and dmin; see [`crate::search::affine`].

use ikq_formats::{QuantType, layout};
use ikq_simd::Isa;

use super::Encode;
use crate::search::affine::{self, Affine, Rung};
use crate::search::gain::Scales;
use crate::search::tile::{Codes, LANES, Tile, lane_codes};

/// Elements per super-block.
const SUPER: usize = 256;

/// The properties by which the types of this file differ.
#[derive(Clone, Copy)]
struct Search {
    /// Largest code.
    levels: f32,
    /// Largest integer scale and minimum.
    steps: f32,
    ladder: &'static [Rung],
}

/// Working memory of a row whose sub-blocks have `N` elements.
pub struct Scratch<const N: usize> {
    tile: Box<Tile<N>>,
    codes: Box<Codes<N>>,
}

impl<const N: usize> Default for Scratch<N> {
    fn default() -> Self {
        Scratch { tile: Box::default(), codes: Box::new([[0.0; LANES]; N]) }
    }
}

#[inline(always)]
fn encode_row<I: Isa, const N: usize>(
    isa: I,
    ty: QuantType,
    Search { levels, steps, ladder }: Search,
    (x, w): (&[f32], &[f32]),
    scales: Scales,
    s: &mut Scratch<N>,
    out: &mut [u8],
) {
    let layout = layout(ty).expect("types of this file have layouts");
    let per_super = SUPER / N;
    let affine = Affine { levels, steps, per_super, ladder };
    // d, dmin, sc, m, q
    let mut values = [0u32; 2 + 2 * 16 + SUPER];
    let values = &mut values[..2 + 2 * per_super + SUPER];
    let tiles = x.chunks(LANES * N).zip(w.chunks(LANES * N));
    for ((x, w), out) in tiles.zip(out.chunks_mut(LANES / per_super * layout.bytes)) {
        s.tile.load(isa, x, w, per_super);
        let found = affine::encode(isa, &s.tile, affine, scales, &mut s.codes);
        let up = isa.load_f(&s.tile.up);
        let d = isa.f16_bits(isa.mul_f(isa.load_f(&found.d), up));
        let dmin = isa.f16_bits(isa.mul_f(isa.load_f(&found.dmin), up));
        for (k, block) in out.chunks_exact_mut(layout.bytes).enumerate() {
            let first = k * per_super;
            values[0] = u32::from(d[first]);
            values[1] = u32::from(dmin[first]);
            for j in 0..per_super {
                values[2 + j] = found.sc[first + j] as u32;
                values[2 + per_super + j] = found.m[first + j] as u32;
                lane_codes(&s.codes, first + j, &mut values[2 + 2 * per_super + N * j..][..N]);
            }
            layout.pack(values, block);
        }
    }
}

macro_rules! affine_super_blocks {
    ($($(#[$doc:meta])* $ty:ident: $n:expr, $search:expr;)*) => { $(
        $(#[$doc])*
        #[allow(non_camel_case_types)]
        pub struct $ty;

        impl Encode for $ty {
            const TYPE: QuantType = QuantType::$ty;
            type Scratch = Scratch<$n>;

            #[inline(always)]
            fn encode_row<I: Isa>(
                isa: I,
                x: &[f32],
                w: &[f32],
                scales: Scales,
                scratch: &mut Scratch<$n>,
                out: &mut [u8],
            ) {
                encode_row(isa, Self::TYPE, $search, (x, w), scales, scratch, out);
            }
        }
    )* };
}

affine_super_blocks! {
    /// Four levels, sub-blocks of 16, four-bit scales and minima.
    Q2_K: 16, Search { levels: 3.0, steps: 15.0, ladder: LADDER_4 };
    /// Sixteen levels, sub-blocks of 32, six-bit scales and minima.
    Q4_K: 32, Search { levels: 15.0, steps: 63.0, ladder: LADDER };
    /// Thirty-two levels, otherwise like Q4_K.
    Q5_K: 32, Search { levels: 31.0, steps: 63.0, ladder: LADDER };
}

/// Step sizes to start from for 16 and 32 levels.
#[rustfmt::skip]
pub(super) const LADDER: &[Rung] = &[
    (0.0, 0.0), (-3.4, 0.0), (-2.0, 0.0), (-1.2, 0.0), (-0.7, 0.0), (-0.4, 0.0), (-0.2, 0.0),
    (0.2, 0.0), (0.4, 0.0), (0.7, 0.3), (1.1, 0.0), (1.2, 0.6), (1.2, 1.2), (1.8, 0.9), (2.2, 0.0),
    (2.4, 1.2), (2.4, 2.4), (3.4, 0.0), (3.4, 1.7), (4.6, 0.8), (4.6, 3.8),
];
/// Step sizes to start from for 4 levels. They reach farther to both sides, from more of the range clipped to fewer
/// levels used.
#[rustfmt::skip]
const LADDER_4: &[Rung] = &[
    (0.0, 0.0), (-0.9, 0.0), (-0.5, 0.0), (-0.2, 0.0), (0.2, 0.0), (0.2, 0.2), (0.5, 0.0), (0.5, 0.25),
    (0.5, 0.5), (0.9, 0.0), (0.9, 0.45), (0.9, 0.9), (1.5, 0.0), (1.5, 0.7), (1.5, 1.5), (2.4, 0.0), (2.4, 1.2), (2.4, 2.4),
];
