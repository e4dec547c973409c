//! i-quants that store codebook entries: IQ3_S.

use std::sync::OnceLock;

use ikq_formats::codebook::{IQ3S_GRID, IQ3S_LEVELS};
use ikq_formats::{Layout, QuantType, layout};
use ikq_simd::Isa;

use super::Encode;
use super::weights::normalizer;
use crate::search::grid::Grid;
use crate::search::grid_block::OddScales;

/// Four magnitudes per entry, signs free, sub-blocks of 32.
pub struct IQ3_S;

impl Encode for IQ3_S {
    const TYPE: QuantType = QuantType::IQ3_S;
    type Scratch = ();

    #[inline(always)]
    fn encode_row<I: Isa>(isa: I, x: &[f32], w: &[f32], _: &mut (), out: &mut [u8]) {
        static GRID: OnceLock<Grid> = OnceLock::new();
        let grid = GRID.get_or_init(|| {
            Grid::new(4, &IQ3S_LEVELS.map(|l| l as i8), IQ3S_GRID.iter().map(|e| u64::from(*e)))
        });
        let search = OddScales { grid, sub_block: 32, n_scales: 16, unit: 1.0 };
        let layout = layout(Self::TYPE).expect("has a layout");
        let (down, up) = normalizer(x);
        let blocks = x.as_chunks::<256>().0.iter().zip(w.as_chunks::<256>().0);
        for ((x, w), out) in blocks.zip(out.chunks_exact_mut(110)) {
            let magnitudes = x.map(|x| x.abs() * down);
            let fit = search.fit(isa, &magnitudes, w, up);
            let mut values = [0u32; 105];
            values[0] = fit.d.into();
            for b in 0..8 { values[1 + b] = fit.scales[b].into(); }
            for g in 0..64 { values[9 + g] = fit.entries[g].into(); }
            for g in 0..32 {
                for j in 0..8 { values[73 + g] |= u32::from(x[8 * g + j] < 0.0) << j; }
            }
            layout.pack(&values, out);
        }
    }
}
