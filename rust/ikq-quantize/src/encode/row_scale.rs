//! One float scale per row, sub-blocks of 32 with an odd integer scale and a choice between two rows
//! of a value table: IQ4_KS.
//!
//! Objective: `sum w (x - d k v)^2` with w of the column. Searched: a scale for every sub-block with
//! either table row ([`crate::search::scale`]); then d of the whole row, the integers k, the table
//! rows and the codes together ([`crate::search::block_scales`]), the table row being chosen again
//! at the final scales.

use ikq_formats::codebook::IQ4K_VALUES;
use ikq_formats::{QuantType, layout};
use ikq_simd::Isa;

use super::Encode;
use super::weights::normalizer;
use crate::search::block_scales::{Grid, Settled, settle, super_scale};
use crate::search::levels::Table4;
use crate::search::scale::{self, Fit, Ladder};
use crate::search::tile::{Codes, LANES, Tile, lane_codes};

/// Elements per sub-block and sub-blocks per block.
const N: usize = 32;
const PER_BLOCK: usize = 8;
/// How far the second table row is above the first.
const SHIFT: f32 = 4.0;
/// Bytes of the row header, an f32.
const HEADER: usize = 4;
/// The largest d: with it, no code of any sub-block decodes to infinity (a little less than
/// the largest float over the largest integer and value, for the sake of three roundings).
const LARGEST: f32 = f32::MAX / (127.0 * 127.001);
/// Integer scales.
const GRID: Grid = Grid { lo: -127.0, hi: 127.0, odd: true };

/// A row: its sub-blocks in tiles, what was found for each.
#[derive(Default)]
pub struct Scratch {
    tiles: Vec<Tile<N>>,
    scales: Vec<[f32; LANES]>,
    curvatures: Vec<[f32; LANES]>,
    /// Integer scale and table row of each sub-block.
    k: Vec<[f32; LANES]>,
    table_row: Vec<[f32; LANES]>,
}

impl Scratch {
    fn resize(&mut self, n_tiles: usize) {
        self.tiles.resize_with(n_tiles, Tile::default);
        for v in [&mut self.scales, &mut self.curvatures, &mut self.k, &mut self.table_row] {
            v.resize(n_tiles, [0.0; LANES]);
        }
    }
}

/// Sixteen levels, two table rows.
#[allow(non_camel_case_types)]
pub struct IQ4_KS;

impl Encode for IQ4_KS {
    const TYPE: QuantType = QuantType::IQ4_KS;
    type Scratch = Scratch;

    #[inline(always)]
    fn encode_row<I: Isa>(isa: I, x: &[f32], w: &[f32], s: &mut Scratch, out: &mut [u8]) {
        let layout = layout(Self::TYPE).expect("the type has a layout");
        let table = Table4::new(isa, &IQ4K_VALUES[0]);
        let tables = [table, table.shifted(isa, isa.splat_f(SHIFT))];
        let (down, up) = normalizer(x);
        s.resize(x.len().div_ceil(LANES * N));

        let elements = x.chunks(LANES * N).zip(w.chunks(LANES * N));
        for (i, (x, w)) in elements.enumerate() {
            let tile = &mut s.tiles[i];
            tile.load_row(isa, x, w, (down, up));
            let peak = tile.peak(isa);
            let mut fit = Fit::nothing(isa);
            for table in tables {
                fit = scale::best_scale(isa, tile, table, peak, LADDER, fit);
            }
            isa.store_f(fit.scale, &mut s.scales[i]);
            isa.store_f(fit.curvature, &mut s.curvatures[i]);
        }

        let n_sub = x.len() / N;
        let limit = LARGEST * down;
        let within = |d: I::F| isa.max_f(isa.min_f(d, isa.splat_f(limit)), isa.splat_f(-limit));
        let (scales, curvatures) = (s.scales.as_flattened(), s.curvatures.as_flattened());
        let mut d = super_scale(isa, &scales[..n_sub], &curvatures[..n_sub], GRID, within);
        let (mut xk, mut kk) = (0.0, 0.0);
        for (i, tile) in s.tiles.iter().enumerate() {
            let scale = isa.load_f(&s.scales[i]);
            let found: Settled<I::F> = settle(isa, tile, &tables, scale, isa.splat_f(d), GRID);
            isa.store_f(found.k, &mut s.k[i]);
            isa.store_f(found.row, &mut s.table_row[i]);
            // lanes beyond the row's end hold zeros: no part in xk, and taken out of kk
            let live = n_sub - (i * LANES).min(n_sub);
            xk += isa.sum(found.xk);
            kk += isa.array(found.kk).iter().take(live).sum::<f32>();
        }
        d = if kk > 0.0 { (xk / kk).clamp(-limit, limit) } else { 0.0 };

        // in the unit of the row; the decoder multiplies d by k, rounding, then by the value
        let (header, blocks) = out.split_at_mut(HEADER);
        header.copy_from_slice(&(d * up).to_le_bytes());
        let mut codes: Codes<N> = [[0.0; LANES]; N];
        let mut values = [0u32; PER_BLOCK + PER_BLOCK * N];
        for (i, out) in blocks.chunks_mut(LANES / PER_BLOCK * layout.bytes).enumerate() {
            let table = table.shifted(isa, isa.mul_f(isa.load_f(&s.table_row[i]), isa.splat_f(SHIFT)));
            let dk = isa.mul_f(isa.splat_f(d), isa.load_f(&s.k[i]));
            scale::codes(isa, &s.tiles[i], table, dk, &mut codes);
            for (block, out) in out.chunks_exact_mut(layout.bytes).enumerate() {
                for j in 0..PER_BLOCK {
                    let lane = block * PER_BLOCK + j;
                    values[j] = (s.k[i][lane] + 127.0) as u32 | s.table_row[i][lane] as u32;
                    lane_codes(&codes, lane, &mut values[PER_BLOCK + j * N..][..N]);
                }
                layout.pack(&values, out);
            }
        }
    }
}

/// The largest element around the last level of both sides and beyond; the first level of the second
/// table row is four less.
#[rustfmt::skip]
const ANCHORS: &[f32] = &[
    -127.0, -117.0, -122.0, -132.0, -138.0, -146.0, -155.0, -166.0, -180.0, -200.0, -225.0,
    104.0, 109.0, 114.0, 119.0, 125.0, 132.0, 141.0, 152.0, 166.0, 185.0, 205.0,
];
const LADDER: Ladder = Ladder { anchors: ANCHORS, stretches: &[0.975, 0.988, 1.012, 1.025], rounds: 2 };
