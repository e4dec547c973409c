//! What the bits of every ggml tensor type mean. No IO, no threads, no intrinsics.
#![forbid(unsafe_code)]

pub mod codebook;
pub mod error;
pub mod layout;
pub mod row;
pub mod types;

pub use error::Error;
pub use layout::Layout;
pub use row::{check_matrix, fallback_for_row, matrix_bytes, row_bytes};
pub use types::{Family, ImatrixUse, KnownTo, QuantType, TypeInfo};
