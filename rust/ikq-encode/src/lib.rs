//! Floats to blocks: one encoder per type, and the searches that encoders share.
//!
//! [`encode_rows`] is the door; [`Encode`] is what a type implements, and what it minimises stands in its docs.
//! [`search`] has the searches: level sets, affine, tables, grids, trellis. Files, imatrices and threads are for
//! `ikq-quantize`, which does not have to be compiled with the encoders again.

mod encode;
mod error;
pub mod search;

pub use encode::{
    Encode, EncodeOptions, can_encode, encodable, encode_rows, grid_search, is_ternary,
    magnitudes_of_16_bits, points_of_13_bits, points_of_16_bits, two_sets_of_points, undoes_bias, weights,
};
pub use error::{Error, writable};
