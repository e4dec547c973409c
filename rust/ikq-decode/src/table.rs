//! The list of decoders by tensor type, and the functions that choose one by type at run time.

use ikq_formats::row::I2_S_TRAILER_BYTES;
use ikq_formats::{Error, Family, QuantType, check_matrix};
use ikq_simd::{IsaKind, Scalar};

use crate::activation::dequantize_activations;
use crate::decode::{Decode, u32_at};
use crate::floats::dequantize_floats;
use crate::interleaved::each_group;
use crate::lanes::{Decoding, LaneCodes};
use crate::rows::{BlockType, dequantize_blocks, dequantize_rows};

/// Code that is generic over block types, to be run for a type that is only known at run time: [`with_type`] calls
/// `visit` with the type's decoder. Dequantizing and matrix products choose their code this way.
pub trait Visitor {
    type Output;
    fn visit<T: BlockType>(self) -> Self::Output;
}

macro_rules! decoders {
    ($($file:ident: $($name:ident)*;)*) => {
        $($(
            impl BlockType for crate::$file::$name {
                type Decoder<I: ikq_simd::Isa> = crate::$file::$name;
            }
        )*)*

        /// Calls `visitor` with the decoder of `ty`'s rows; for an interleaved type that is the
        /// decoder of its row form (`ikq_formats::row_form`). `None` for floats, integers, BF16_R16
        /// and activation types, which are not read through [`Decode`]. I2_S has its scale behind the
        /// tensor's codes: callers that decode rows of it pass that scale in place of a header's.
        pub fn with_type<V: Visitor>(ty: QuantType, visitor: V) -> Option<V::Output> {
            match ty.info().base.unwrap_or(ty) {
                $($(QuantType::$name => Some(visitor.visit::<crate::$file::$name>()),)*)*
                _ => None,
            }
        }
    };
}

// each line: a module, and the types whose decoders it has, which are named like the types
decoders! {
    legacy: Q4_0 Q4_1 Q5_0 Q5_1 Q6_0 Q8_0 Q8_KV;
    kquants: Q2_K Q3_K Q4_K Q5_K Q6_K;
    iq1: IQ1_S IQ1_M;
    iquants: IQ2_XXS IQ2_XS IQ2_S IQ3_XXS IQ3_S;
    iq4: IQ4_NL IQ4_XS;
    iqk: IQ2_K IQ3_K IQ4_K IQ5_K IQ6_K;
    iqks: IQ2_KS IQ3_KS IQ4_KS IQ5_KS IQ4_KSS IQ2_KL;
    trellis: IQ1_KT IQ2_KT IQ3_KT IQ4_KT;
    ternary: TQ1_0 TQ2_0 IQ1_BN IQ2_BN I2_S Q1_0_G128 Q2_0;
    fp4: MXFP4 NVFP4;
    interleaved: IQ1_S_R4 IQ1_M_R4 Q8_K_R8 Q8_K_R16 Q8_KV_R8;
}

/// The constants of a type's [`Decode`], for planners, which choose by type at run time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DecodeFacts {
    /// Elements that share an integer scale; 256 where there is none.
    pub sub_block: usize,
    /// Float scales per 256 elements.
    pub n_float_scales: usize,
    /// Whether mins are subtracted.
    pub has_min: bool,
    /// Largest absolute value of a code.
    pub max_abs_code: i32,
    /// Whether codes are never negative.
    pub unsigned: bool,
    /// Factor that matrix products, but not dequantizing, apply.
    pub product_factor: f32,
    /// Whether scales cover 16 elements; otherwise they cover 32 or more.
    pub per_16: bool,
    /// The form of the codes that [`Decode::lanes`] gives.
    pub lane_codes: LaneCodes,
    /// How many vectors of codes may have their products added in 16 bits: [`Decode::SMALL`].
    pub small: usize,
    /// How much work [`Decode::lanes`] is.
    pub decoding: Decoding,
    /// Whether there are integer scales: [`Decode::INTEGERS`].
    pub has_integers: bool,
    /// Whether the float scale is the row's, in its header.
    pub has_header: bool,
}

/// The facts of the decoder of a type's rows; `None` for the types for which [`with_type`] gives `None`.
pub fn facts(ty: QuantType) -> Option<DecodeFacts> {
    struct Facts;
    impl Visitor for Facts {
        type Output = DecodeFacts;
        fn visit<T: BlockType>(self) -> DecodeFacts {
            fn of<D: Decode<Scalar>>() -> DecodeFacts {
                DecodeFacts {
                    sub_block: D::SUB_BLOCK,
                    n_float_scales: D::N_FLOAT_SCALES,
                    has_min: D::HAS_MIN,
                    max_abs_code: D::MAX_ABS_CODE,
                    unsigned: D::UNSIGNED,
                    product_factor: D::PRODUCT_FACTOR,
                    per_16: D::PER_16,
                    lane_codes: D::LANE_CODES,
                    small: D::SMALL,
                    decoding: D::DECODING,
                    has_integers: D::INTEGERS.is_some(),
                    has_header: D::HEADER_BYTES > 0,
                }
            }
            of::<T::Decoder<Scalar>>()
        }
    }
    with_type(ty, Facts)
}

/// Decodes a matrix of `n_rows` rows of `n_per_row` elements to floats, row after row.
///
/// `data` is the tensor as stored (I2_S: with its trailer; interleaved types: whole groups). A tensor
/// of more dimensions is the matrix of all its rows. Every type is decoded; rows of a plain type may
/// be decoded in parts by slicing `data`, I2_S by [`dequantize_i2_s`].
///
/// # Errors
/// As [`ikq_formats::check_matrix`] for a shape or byte count that does not fit, and
/// [`Error::ByteCount`] for Q8_K64 rows too short for their header.
///
/// # Panics
/// When `out` has not `n_rows * n_per_row` elements.
pub fn dequantize(
    kind: IsaKind,
    ty: QuantType,
    data: &[u8],
    n_rows: usize,
    n_per_row: usize,
    out: &mut [f32],
) -> Result<(), Error> {
    check_matrix(ty, n_rows, n_per_row, data.len())?;
    assert_eq!(out.len(), n_rows * n_per_row, "output of {ty} rows has the wrong length");
    if ty.is_interleaved() {
        let rows = ty.info().base.unwrap_or(ty);
        return each_group(ty, data, n_per_row, out, |data, out| {
            decode_rows(kind, rows, data, n_per_row, out)
        });
    }
    decode_rows(kind, ty, data, n_per_row, out)
}

/// The part of [`dequantize`] for rows that stand one after another: those of `ty`, or of the
/// interleaved type `ty` in their row form.
fn decode_rows(
    kind: IsaKind,
    ty: QuantType,
    data: &[u8],
    n_per_row: usize,
    out: &mut [f32],
) -> Result<(), Error> {
    match ty.info().family {
        Family::Float | Family::Integer if dequantize_floats(kind, ty, data, out) => Ok(()),
        Family::Activation if dequantize_activations(ty, data, n_per_row, out)? => Ok(()),
        Family::Ternary if ty == QuantType::I2_S => {
            let (codes, trailer) = data.split_at(data.len() - I2_S_TRAILER_BYTES);
            dequantize_i2_s(kind, codes, f32::from_bits(u32_at(trailer, 0)), out);
            Ok(())
        }
        _ => with_type(ty, Rows { kind, data, n_per_row, out }).ok_or(Error::NoLayout { ty }),
    }
}

/// Decodes a run of I2_S codes (whole groups of 128 elements in 32 bytes) with the tensor's scale.
///
/// # Panics
/// When `out` has not four elements per byte, or its length is not a multiple of 128.
pub fn dequantize_i2_s(kind: IsaKind, codes: &[u8], scale: f32, out: &mut [f32]) {
    assert!(
        out.len() == 4 * codes.len() && out.len().is_multiple_of(128),
        "I2_S codes come in groups of 128"
    );
    dequantize_blocks::<crate::ternary::I2_S>(kind, scale, codes, out);
}

struct Rows<'a> {
    kind: IsaKind,
    data: &'a [u8],
    n_per_row: usize,
    out: &'a mut [f32],
}

impl Visitor for Rows<'_> {
    type Output = ();
    fn visit<T: BlockType>(self) {
        dequantize_rows::<T>(self.kind, self.data, self.n_per_row, self.out);
    }
}
