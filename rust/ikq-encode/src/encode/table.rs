//! The list of types with their encoders.

use std::marker::PhantomData;
use std::sync::LazyLock;

use ikq_formats::{Family, QuantType};
use ikq_simd::{IsaKind, run};

use super::{
    EncodeOptions, EncodeRows, affine, affine_block, floats, fp4, igrid, q8, row_scale, single, superblock,
    ternary, trellis,
};
use crate::search::gain::Scales;

macro_rules! encoders {
    ($($encoder:ty: $ty:ident),* $(,)?) => {
        /// Types with an encoder of their own.
        const ENCODERS: &[QuantType] = &[$(QuantType::$ty,)* QuantType::I2_S];

        /// Encodes rows of a type that [`row_encoder`] gives; false where a float is not finite.
        pub(super) fn encode(
            kind: IsaKind,
            ty: QuantType,
            options: EncodeOptions,
            x: &[f32],
            w: &[f32],
            out: &mut [u8],
        ) -> bool {
            let scales = match (options.scales_only, options.biased || !undoes_bias(ty)) {
                (true, _) => Scales::Only,
                (_, true) => Scales::LeastSquares,
                _ => Scales::Unbiased,
            };
            match ty {
                QuantType::Q4_0 if options.symmetric_q40 => {
                    run(kind, EncodeRows::<single::SymmetricQ4_0> { x, w, out, scales, encoder: PhantomData })
                }
                $(QuantType::$ty => run(kind, EncodeRows::<$encoder> { x, w, out, scales, encoder: PhantomData }),)*
                // all rows at once, because they share one scale
                QuantType::I2_S => run(kind, ternary::EncodeMatrix { x, w, out }),
                _ => unreachable!("a type without encoder is refused at the door"),
            }
        }
    };
}

encoders! {
    floats::F32: F32,
    floats::F16: F16,
    floats::BF16: BF16,
    q8::Q8_0: Q8_0,
    q8::Q8_KV: Q8_KV,
    q8::Q8_KV_R8: Q8_KV_R8,
    q8::Q8_K_R8: Q8_K_R8,
    q8::Q8_K_R16: Q8_K_R16,
    single::Q4_0: Q4_0,
    affine::Q2_K: Q2_K,
    affine::Q4_K: Q4_K,
    affine::Q5_K: Q5_K,
    single::Q5_0: Q5_0,
    superblock::Q3_K: Q3_K,
    affine_block::Q4_1: Q4_1,
    affine_block::Q5_1: Q5_1,
    single::Q6_0: Q6_0,
    superblock::Q6_K: Q6_K,
    single::IQ4_NL: IQ4_NL,
    superblock::IQ4_XS: IQ4_XS,
    superblock::IQ2_K: IQ2_K,
    superblock::IQ3_K: IQ3_K,
    superblock::IQ4_K: IQ4_K,
    superblock::IQ5_K: IQ5_K,
    superblock::IQ6_K: IQ6_K,
    row_scale::IQ2_KS: IQ2_KS,
    row_scale::IQ3_KS: IQ3_KS,
    row_scale::IQ4_KS: IQ4_KS,
    row_scale::IQ4_KSS: IQ4_KSS,
    row_scale::IQ5_KS: IQ5_KS,
    row_scale::IQ2_KL: IQ2_KL,
    igrid::IQ1_S: IQ1_S,
    igrid::IQ1_M: IQ1_M,
    igrid::IQ1_S_R4: IQ1_S_R4,
    igrid::IQ1_M_R4: IQ1_M_R4,
    igrid::IQ2_XXS: IQ2_XXS,
    igrid::IQ2_XS: IQ2_XS,
    igrid::IQ2_S: IQ2_S,
    igrid::IQ3_XXS: IQ3_XXS,
    igrid::IQ3_S: IQ3_S,
    trellis::IQ1_KT: IQ1_KT,
    trellis::IQ2_KT: IQ2_KT,
    trellis::IQ3_KT: IQ3_KT,
    trellis::IQ4_KT: IQ4_KT,
    fp4::MXFP4: MXFP4,
    fp4::NVFP4: NVFP4,
    ternary::TQ1_0: TQ1_0,
    ternary::TQ2_0: TQ2_0,
    ternary::IQ1_BN: IQ1_BN,
    ternary::IQ2_BN: IQ2_BN,
    ternary::Q1_0: Q1_0_G128,
    single::Q2_0: Q2_0,
}

/// The type whose encoder makes the rows of `ty`: the plain twin of an interleaved type, else `ty`.
pub(super) fn row_encoder(ty: QuantType) -> Option<QuantType> {
    let row_type = ty.info().base.unwrap_or(ty);
    ENCODERS.contains(&row_type).then_some(row_type)
}

/// Types that can be written, in order of id.
pub fn encodable() -> &'static [QuantType] {
    static ENCODABLE: LazyLock<Vec<QuantType>> =
        LazyLock::new(|| QuantType::ALL.iter().copied().filter(|ty| can_encode(*ty)).collect());
    &ENCODABLE
}

/// Whether the type can be written.
pub fn can_encode(ty: QuantType) -> bool {
    row_encoder(ty).is_some()
}

/// Whether the type is stored with scales that undo the gain of their fit ([`crate::search::gain`]), unless
/// [`EncodeOptions::biased`] is set. Some types are not, because there is nothing to undo or it cannot be undone:
///
/// | types | why not |
/// |---|---|
/// | floats, and integers of 8 bits | the gain is 1 |
/// | ternary and BitNet | the models they are for are stored without error |
/// | IQ6_K | its fit loses 2e-4, less than half a step of its f16 scale |
/// | MXFP4, NVFP4 | their scales are powers of two, or floats of 8 bits |
/// | IQ2_KT, IQ3_KT | products multiply them by 1.05 and 1.01, which undoes much of it |
pub fn undoes_bias(ty: QuantType) -> bool {
    use QuantType::*;
    let plain = ty.info().base.unwrap_or(ty);
    let has_eight_bits = matches!(plain, Q8_0 | Q8_KV | Q8_KV_R8 | Q8_K_R8 | Q8_K_R16);
    match plain.info().family {
        Family::Float | Family::Integer | Family::Activation | Family::Ternary | Family::Fp4 => false,
        _ => can_encode(ty) && !has_eight_bits && !matches!(plain, IQ6_K | IQ2_KT | IQ3_KT),
    }
}
