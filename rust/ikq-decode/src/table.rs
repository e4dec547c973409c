//! Which decoder a tensor type has: the one list, and what is asked of it.

use ikq_formats::{Error, QuantType, check_matrix};
use ikq_simd::{IsaKind, Scalar};

use crate::decode::Decode;
use crate::rows::{BlockType, dequantize_rows};

/// Code to run for a block type that is known at run time only: [`with_type`] calls `visit` with the
/// type. All code that is instantiated per type (dequantizing, matmul bodies) goes through here.
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

        /// Calls `visitor` with the decoder of block type `ty`; `None` for types that are no plain
        /// block types: floats, integers, interleaved and most activation types.
        pub fn with_type<V: Visitor>(ty: QuantType, visitor: V) -> Option<V::Output> {
            match ty {
                $($(QuantType::$name => Some(visitor.visit::<crate::$file::$name>()),)*)*
                _ => None,
            }
        }
    };
}

decoders! {
    legacy: Q4_0 Q4_1 Q5_0 Q5_1 Q6_0 Q8_0 Q8_KV;
    kquants: Q2_K Q3_K Q4_K Q5_K Q6_K;
}

/// What a planner asks about a block type; the constants of [`Decode`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DecodeFacts {
    /// Elements that share an integer scale (256: there is none).
    pub sub_block: usize,
    /// Float scales per 256 elements.
    pub n_float_scales: usize,
    /// Mins are subtracted.
    pub has_min: bool,
    /// Largest absolute code.
    pub max_abs_code: i32,
    /// Codes are never negative.
    pub unsigned: bool,
    /// Factor of matrix products.
    pub product_factor: f32,
}

/// The facts of a block type; `None` as for [`with_type`].
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
/// of more dimensions is the matrix of all its rows.
///
/// # Errors
/// As [`ikq_formats::check_matrix`] for a shape or byte count that does not fit.
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
    with_type(ty, Rows { kind, data, n_per_row, out }).ok_or(Error::NoLayout { ty })
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
