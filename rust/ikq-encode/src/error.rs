//! [`Error`]: the reasons why floats cannot be encoded.

use ikq_formats::QuantType;

use crate::encode::encodable;

/// Errors of encoding.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Format(#[from] ikq_formats::Error),

    #[error("{n_elements} elements are not whole rows of {n_per_row}")]
    PartRow { n_elements: usize, n_per_row: usize },

    #[error("row {row}, column {column} is {value}: only finite numbers can be quantized")]
    NotFinite { row: usize, column: usize, value: f32 },

    #[error(
        "row {row}, column {column} is {value}, and {ty:?} ends at {end}: take another type (BF16 keeps every size), or \
         clamp=True to cut such numbers off"
    )]
    OutOfRange { ty: QuantType, row: usize, column: usize, value: f32, end: f32 },

    #[error("importance of column {column} is {value}: it must be finite and not negative")]
    Importance { column: usize, value: f32 },

    #[error("{expected} importance values are needed, one per column, got {found}")]
    ImportanceLength { expected: usize, found: usize },

    #[error("{ty:?} cannot be written; types that can: {}", writable())]
    NoEncoder { ty: QuantType },
}

/// Names of the types that have an encoder.
pub fn writable() -> String {
    encodable().iter().map(|t| t.name()).collect::<Vec<_>>().join(", ")
}
