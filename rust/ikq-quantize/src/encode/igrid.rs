//! i-quants that store codebook entries: IQ3_S.

use std::sync::OnceLock;

use ikq_formats::codebook::{IQ3S_GRID, IQ3S_LEVELS};
use ikq_formats::{QuantType, layout};
use ikq_simd::Isa;

use super::Encode;
use super::weights::normalizer;
use crate::search::grid::Grid;
use crate::search::grid_block::OddScales;

/// Four magnitudes per entry, signs free, sub-blocks of 32.
#[allow(non_camel_case_types)]
pub struct IQ3_S;

/// A factor on the stored scales. The reference has 1.033, which is 11 % more squared error.
const IQ3_S_SCALE_BIAS: f32 = 1.0;

impl Encode for IQ3_S {
    const TYPE: QuantType = QuantType::IQ3_S;
    type Scratch = ();

    #[inline(always)]
    fn encode_row<I: Isa>(isa: I, x: &[f32], w: &[f32], _: &mut (), out: &mut [u8]) {
        static GRID: OnceLock<Grid> = OnceLock::new();
        let grid = GRID.get_or_init(|| {
            Grid::new(4, &IQ3S_LEVELS.map(|l| l as i8), IQ3S_GRID.iter().map(|e| u64::from(*e)))
        });
        let search = OddScales { grid, sub_block: 32, n_scales: 16, unit: 1.0, scale_bias: IQ3_S_SCALE_BIAS };
        let layout = layout(Self::TYPE).expect("codebook types have layouts");
        let (down, up) = normalizer(x);
        let blocks = x.as_chunks::<256>().0.iter().zip(w.as_chunks::<256>().0);
        for ((x, w), out) in blocks.zip(out.chunks_exact_mut(layout.bytes)) {
            let magnitudes = x.map(|x| x.abs() * down);
            let fit = search.fit(isa, &magnitudes, w, up);
            // d, scales, grid, signs
            let mut values = [0; 1 + 8 + 64 + 32];
            values[0] = fit.d.into();
            for (v, n) in values[1..9].iter_mut().zip(fit.scales) {
                *v = n.into();
            }
            for (v, entry) in values[9..73].iter_mut().zip(fit.entries) {
                *v = entry.into();
            }
            for (v, x) in values[73..].iter_mut().zip(x.as_chunks::<8>().0) {
                *v = minus_signs(x);
            }
            layout.pack(&values, out);
        }
    }
}

/// Bit j is set where element j is negative.
#[inline(always)]
fn minus_signs(x: &[f32; 8]) -> u32 {
    x.iter().enumerate().map(|(j, x)| u32::from(*x < 0.0) << j).sum()
}
