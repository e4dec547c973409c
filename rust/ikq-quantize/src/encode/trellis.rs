//! Trellis types: IQ2_KT.

use std::sync::OnceLock;

use ikq_formats::codebook::{IQ4K_VALUES, KT_OFFSET, kt_values};
use ikq_formats::{QuantType, layout};
use ikq_simd::Isa;

use super::Encode;
use super::weights::normalizer;
use crate::search::trellis::Trellis;
use crate::search::trellis_row::{RowFit, TableScales};

/// 16-bit codes for groups of 8.
#[allow(non_camel_case_types)]
pub struct IQ2_KT;

/// Factor on the row scale. Matrix products multiply this type by 1.05 (`PRODUCT_FACTOR` of its decoder), which
/// the squared error does not know of.
const IQ2_KT_SCALE_BIAS: f32 = 1.0;

/// Less than 1 by more than the roundings of two products.
const ALMOST_ONE: f32 = 1.0 - 1e-6;

#[derive(Default)]
pub struct Scratch {
    x: Vec<f32>,
    fit: RowFit,
}

fn point(code: u32) -> [i32; 8] {
    kt_values(code, KT_OFFSET)
}

impl Encode for IQ2_KT {
    const TYPE: QuantType = QuantType::IQ2_KT;
    type Scratch = Scratch;

    #[inline(always)]
    fn encode_row<I: Isa>(isa: I, x: &[f32], w: &[f32], scratch: &mut Scratch, out: &mut [u8]) {
        static TRELLIS: OnceLock<Trellis<4>> = OnceLock::new();
        let trellis = TRELLIS.get_or_init(|| Trellis::new(1 << 16, point));
        let search = TableScales {
            trellis,
            point,
            values: &IQ4K_VALUES[0].map(|v| v as f32),
            scale_bias: IQ2_KT_SCALE_BIAS,
        };
        let (down, up) = normalizer(x);
        scratch.x.clear();
        scratch.x.extend(x.iter().map(|x| x * down));
        let fit = &mut scratch.fit;
        search.fit(isa, &scratch.x, w, fit);
        let layout = layout(Self::TYPE).expect("trellis types have layouts");
        let (header, blocks) = out.split_at_mut(4);
        // rows near the largest float must not decode to infinity
        let largest = search.largest(fit);
        let d = if fit.d * largest < f32::MAX / up { fit.d } else { f32::MAX / up / largest * ALMOST_ONE };
        header.copy_from_slice(&(d * up).to_le_bytes());
        let parts = fit.scales.chunks_exact(8).zip(fit.codes.chunks_exact(32));
        for ((scales, codes), block) in parts.zip(blocks.chunks_exact_mut(layout.bytes)) {
            let mut values = [0; 8 + 32];
            for (v, s) in values[..8].iter_mut().zip(scales) {
                *v = u32::from(*s);
            }
            for (v, c) in values[8..].iter_mut().zip(codes) {
                *v = u32::from(*c);
            }
            layout.pack(&values, block);
        }
    }
}
