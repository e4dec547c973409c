//! Encoders of all tensor types (from floats to blocks), and the searches that they share.
//!
//! [`encode_rows`] is the entry point; [`Encode`] is the trait that types implement, and each module of a family
//! says what its encoder minimises. [`search`] has the searches: level sets, affine, tables, grids, trellis. Files,
//! imatrices and threads are in `ikq-quantize`, so that changing them does not compile the encoders again.

mod encode;
mod error;
pub mod search;

pub use encode::{
    Encode, EncodeOptions, can_encode, encodable, encode_rows, grid_search, is_ternary,
    magnitudes_of_16_bits, points_of_13_bits, points_of_16_bits, two_sets_of_points, undoes_bias, weights,
};
pub use error::{Error, writable};
