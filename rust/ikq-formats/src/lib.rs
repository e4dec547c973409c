//! What the bits of every ggml tensor type mean. No IO, no threads, no intrinsics.
#![forbid(unsafe_code)]

pub mod codebook;
pub mod error;
pub mod interleave;
pub mod lanes;
pub mod layout;
pub mod layouts;
pub mod repack;
pub mod row;
pub mod types;

pub use error::Error;
pub use interleave::{RowForm, deinterleave_group, interleave_group, row_form};
pub use lanes::{LANES, LaneForm, LanePiece, LaneRun, lane_form};
pub use layout::Layout;
pub use layouts::layout;
pub use repack::repack;
pub use row::{check_matrix, fallback_for_row, matrix_bytes, row_bytes, row_multiple};
pub use types::{Family, ImatrixUse, KnownTo, QuantType, TypeInfo};
