//! Which types have an encoder: the one list that joins types to encoders.

use std::marker::PhantomData;

use ikq_formats::QuantType;
use ikq_simd::{IsaKind, run};

use super::{EncodeRows, affine, floats, igrid, q8, row_scale, single, superblock, trellis};
use crate::error::Error;

macro_rules! encoders {
    ($($encoder:ty: $ty:ident),* $(,)?) => {
        const ENCODABLE: &[QuantType] = &[$(QuantType::$ty),*];

        /// Encodes checked rows.
        pub(super) fn encode(kind: IsaKind, ty: QuantType, x: &[f32], w: &[f32], out: &mut [u8]) -> Result<(), Error> {
            match ty {
                $(QuantType::$ty => {
                    run(kind, EncodeRows::<$encoder> { x, w, out, encoder: PhantomData });
                    Ok(())
                })*
                _ => Err(Error::NoEncoder { ty }),
            }
        }
    };
}

encoders! {
    floats::F32: F32,
    floats::F16: F16,
    floats::BF16: BF16,
    q8::Q8_0: Q8_0,
    single::Q4_0: Q4_0,
    affine::Q2_K: Q2_K,
    affine::Q4_K: Q4_K,
    affine::Q5_K: Q5_K,
    single::Q5_0: Q5_0,
    superblock::Q3_K: Q3_K,
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
    igrid::IQ3_S: IQ3_S,
    trellis::IQ1_KT: IQ1_KT,
    trellis::IQ2_KT: IQ2_KT,
    trellis::IQ3_KT: IQ3_KT,
    trellis::IQ4_KT: IQ4_KT,
}

/// Types that can be written.
pub fn encodable() -> &'static [QuantType] {
    ENCODABLE
}

/// Whether the type can be written.
pub fn can_encode(ty: QuantType) -> bool {
    ENCODABLE.contains(&ty)
}
