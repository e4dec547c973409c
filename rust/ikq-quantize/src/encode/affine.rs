//! Super-blocks with integer scales and minima: Q4_K, Q5_K.
//!
//! Objective: `sum w (x - y)^2` with w of the column. Searched: scale and minimum of each sub-block, then
//! their integers together with the super-block's two halves; see [`crate::search::affine`].

use ikq_formats::{QuantType, layout};
use ikq_simd::Isa;

use super::Encode;
use crate::search::affine::{self, Affine};
use crate::search::tile::{Codes, LANES, Tile, lane_codes};

/// Elements per sub-block.
const N: usize = 32;
/// Sub-blocks per super-block.
const PER_SUPER: usize = 8;

/// Working memory of a row.
pub struct Scratch {
    tile: Box<Tile<N>>,
    codes: Box<Codes<N>>,
}

impl Default for Scratch {
    fn default() -> Self {
        Scratch { tile: Box::default(), codes: Box::new([[0.0; LANES]; N]) }
    }
}

#[inline(always)]
fn encode_row<I: Isa>(
    isa: I,
    ty: QuantType,
    levels: f32,
    x: &[f32],
    w: &[f32],
    s: &mut Scratch,
    out: &mut [u8],
) {
    let layout = layout(ty).expect("types of this file have layouts");
    let affine = Affine { levels, steps: 63.0, per_super: PER_SUPER };
    // d, dmin, sc, m, q
    let mut values = [0u32; 2 + 2 * PER_SUPER + PER_SUPER * N];
    let tiles = x.chunks(LANES * N).zip(w.chunks(LANES * N));
    for ((x, w), out) in tiles.zip(out.chunks_mut(LANES / PER_SUPER * layout.bytes)) {
        s.tile.load(isa, x, w, PER_SUPER);
        let found = affine::encode(isa, &s.tile, affine, &mut s.codes);
        let up = isa.load_f(&s.tile.up);
        let d = isa.f16_bits(isa.mul_f(isa.load_f(&found.d), up));
        let dmin = isa.f16_bits(isa.mul_f(isa.load_f(&found.dmin), up));
        for (k, block) in out.chunks_exact_mut(layout.bytes).enumerate() {
            let first = k * PER_SUPER;
            values[0] = u32::from(d[first]);
            values[1] = u32::from(dmin[first]);
            for j in 0..PER_SUPER {
                values[2 + j] = found.sc[first + j] as u32;
                values[2 + PER_SUPER + j] = found.m[first + j] as u32;
                lane_codes(&s.codes, first + j, &mut values[2 + 2 * PER_SUPER + N * j..][..N]);
            }
            layout.pack(&values, block);
        }
    }
}

/// Sixteen levels, six-bit scales and minima.
#[allow(non_camel_case_types)]
pub struct Q4_K;

impl Encode for Q4_K {
    const TYPE: QuantType = QuantType::Q4_K;
    type Scratch = Scratch;

    #[inline(always)]
    fn encode_row<I: Isa>(isa: I, x: &[f32], w: &[f32], scratch: &mut Scratch, out: &mut [u8]) {
        encode_row(isa, Self::TYPE, 15.0, x, w, scratch, out);
    }
}

/// Thirty-two levels, six-bit scales and minima.
#[allow(non_camel_case_types)]
pub struct Q5_K;

impl Encode for Q5_K {
    const TYPE: QuantType = QuantType::Q5_K;
    type Scratch = Scratch;

    #[inline(always)]
    fn encode_row<I: Isa>(isa: I, x: &[f32], w: &[f32], scratch: &mut Scratch, out: &mut [u8]) {
        encode_row(isa, Self::TYPE, 31.0, x, w, scratch, out);
    }
}
