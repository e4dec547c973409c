//! Searches that the encoders share. They choose scales and codes; how those are stored as bytes is not their
//! concern.
//!
//! Words in comments: a *half* is an f16 number; a *slot* is an integer in the low bits of a float
//! ([`ikq_simd::Lanes::slot`]); a *ladder* is a list of scales to try, and a *rung* one of them; *gain* is by how
//! much a fit lowers the squared error, except in [`gain`], where it is a ratio of sizes.

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
