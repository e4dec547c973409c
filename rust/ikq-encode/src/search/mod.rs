//! Searches shared by the encoders: choose scales and codes, know nothing of bytes.

pub mod affine;
pub mod affine_block;
mod argmin;
pub mod block_scales;
pub mod gain;
pub mod grid;
pub mod grid_block;
pub mod grid_candidates;
mod grid_prefixes;
pub mod levels;
pub mod pairs;
pub mod parity;
pub mod scale;
pub mod ternary;
pub mod tile;
pub mod trellis;
mod trellis_match;
pub mod trellis_row;
