//! Searches shared by the encoders: choose scales and codes, know nothing of bytes.

pub mod grid;
pub mod grid_block;
