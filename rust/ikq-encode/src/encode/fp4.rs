//! 4-bit floats: MXFP4 (a power of two as scale per 32 elements), NVFP4 (an 8-bit float as scale per 16).
//!
//! Objective: `sum w (x - d v)^2` with w of the column. Searched: the stored scales around the one that
//! puts the largest element on the last level, each with its nearest codes.

use ikq_formats::codebook::{ue4m3_from_f32, ue4m3_half};
use ikq_formats::{QuantType, layout};
use ikq_simd::Isa;

use super::Encode;
use crate::search::gain::Scales;
use crate::search::levels::E2M1;
use crate::search::scale::{self, residual};
use crate::search::tile::{Codes, LANES, Tile, lane_codes};

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

/// The largest level; levels are twice the 4-bit floats.
const LAST: f32 = 12.0;

/// One exponent for 32 elements.
pub struct MXFP4;

/// Scales tried for a block whose largest element is in [1, 2). They put that element between 8 and 16 (nothing or
/// a little is clipped), between 4 and 8, and between 16 and 32.
const POWERS: [f32; 3] = [0.125, 0.25, 0.0625];
/// The value of exponent 0, 2^-128.
const LEAST_POWER: f32 = f32::from_bits(0x0020_0000);

impl Encode for MXFP4 {
    const TYPE: QuantType = QuantType::MXFP4;
    type Scratch = Scratch<32>;

    #[inline(always)]
    fn encode_row<I: Isa>(
        isa: I,
        x: &[f32],
        w: &[f32],
        _: Scales,
        Scratch { tile, codes }: &mut Scratch<32>,
        out: &mut [u8],
    ) {
        const N: usize = 32;
        let layout = layout(Self::TYPE).expect("the type has a layout");
        // e, q
        let mut values = [0u32; 1 + N];
        let tiles = x.chunks(LANES * N).zip(w.chunks(LANES * N));
        for ((x, w), out) in tiles.zip(out.chunks_mut(LANES * layout.bytes)) {
            tile.load(isa, x, w, 1);
            let lowest = isa.mul_f(isa.splat_f(LEAST_POWER), isa.load_f(&tile.down));
            let (mut d, mut least) = (lowest, isa.splat_f(f32::INFINITY));
            for power in POWERS {
                let power = isa.max_f(isa.splat_f(power), lowest);
                let error = residual(isa, tile, E2M1, power);
                d = isa.if_gt(least, error, power, d);
                least = isa.min_f(error, least);
            }
            scale::codes(isa, tile, E2M1, d, codes);
            let d = isa.array(d);
            for (lane, block) in out.chunks_exact_mut(layout.bytes).enumerate() {
                values[0] = (exponent(d[lane]) + exponent(tile.up[lane]) + 128) as u32;
                lane_codes(codes, lane, &mut values[1..]);
                layout.pack(&values, block);
            }
        }
    }
}

/// The exponent of a normal power of two.
fn exponent(power: f32) -> i32 {
    (power.to_bits() >> 23) as i32 - 127
}

/// A scale byte for 16 elements, four to a block.
pub struct NVFP4;

/// Scale bytes tried, counted from the one that puts the largest element on the largest level; eight steps are a
/// factor of two.
const STEPS: std::ops::RangeInclusive<i32> = -3..=10;
/// The byte of the largest scale.
const LARGEST_SCALE: i32 = 0x7e;

impl Encode for NVFP4 {
    const TYPE: QuantType = QuantType::NVFP4;
    type Scratch = Scratch<16>;

    #[inline(always)]
    fn encode_row<I: Isa>(
        isa: I,
        x: &[f32],
        w: &[f32],
        _: Scales,
        Scratch { tile, codes }: &mut Scratch<16>,
        out: &mut [u8],
    ) {
        const N: usize = 16;
        const PER_BLOCK: usize = 4;
        let layout = layout(Self::TYPE).expect("the type has a layout");
        // d, q
        let mut values = [0u32; PER_BLOCK + PER_BLOCK * N];
        let tiles = x.chunks(LANES * N).zip(w.chunks(LANES * N));
        for ((x, w), out) in tiles.zip(out.chunks_mut(LANES / PER_BLOCK * layout.bytes)) {
            tile.load(isa, x, w, 1);
            let down = isa.load_f(&tile.down);
            let peak = isa.abs_f(tile.peak(isa));
            // twice the scale, because levels are twice the 4-bit floats
            let wanted = isa.mul_f(isa.mul_f(peak, isa.splat_f(2.0 / LAST)), isa.load_f(&tile.up));
            let start = ikq_simd::map(isa.array(wanted), |d| i32::from(ue4m3_from_f32(d)));
            let (mut step, mut d, mut least) =
                (isa.splat_f(0.0), isa.splat_f(0.0), isa.splat_f(f32::INFINITY));
            for by in STEPS {
                let stored = ikq_simd::map(start, |b| ue4m3_half((b + by).clamp(0, LARGEST_SCALE) as u8));
                let scale = isa.mul_f(isa.load_f(&stored), down);
                let error = residual(isa, tile, E2M1, scale);
                step = isa.if_gt(least, error, isa.splat_f(by as f32), step);
                d = isa.if_gt(least, error, scale, d);
                least = isa.min_f(error, least);
            }
            scale::codes(isa, tile, E2M1, d, codes);
            let steps = isa.array(step);
            for (block, out) in out.chunks_exact_mut(layout.bytes).enumerate() {
                for j in 0..PER_BLOCK {
                    let lane = block * PER_BLOCK + j;
                    values[j] = (start[lane] + steps[lane] as i32).clamp(0, LARGEST_SCALE) as u32;
                    lane_codes(codes, lane, &mut values[PER_BLOCK + j * N..][..N]);
                }
                layout.pack(&values, out);
            }
        }
    }
}
