//! Decoders of all tensor types: from stored bytes to codes and scales, and to floats.
//!
//! A block type is decoded in one place: its `impl Decode<I>`, generic over the instruction set. Dequantizing
//! ([`rows`]), matrix products, requantizing and the planner for GPUs all see a type only through [`Decode`]: as
//! 256 elements at a time (a *unit*: one super-block, or 256 elements of small blocks), with `i8` codes in element
//! order and their scales.
//!
//! ```text
//! y[i] = (d * s[i / 16]) * code[i]  -  dm * m[i / 16]         i in 0..256
//!         float  integer      i8      only where HAS_MIN
//! ```
//! The products are rounded in the order written. That is what makes decoding bit-exact: with the scales of the
//! formats, at most the last rounding is inexact, or, with a float32 row scale, just these two.
//!
//! | type of data | path |
//! |---|---|
//! | block types | `Decode` -> [`rows::dequantize_rows`] |
//! | interleaved groups | `ikq_formats::interleave` to row form, then as above |
//! | F32, F16, BF16, F64, integers | `floats` |
//! | activation types | `activation` |
//!
//! [`dequantize`] chooses by type.

// types are named as ggml spells them
#![allow(non_camel_case_types)]

pub mod decode;
pub mod lanes;
pub mod rows;

mod activation;
mod floats;
mod fp4;
mod interleaved;
mod iq1;
mod iq4;
mod iqk;
mod iqks;
mod iquants;
mod kquants;
mod lane_integers;
mod lane_planes;
mod legacy;
mod planes;
mod table;
mod ternary;
mod trellis;

pub use decode::{Decode, Scales, UNIT};
pub use lane_integers::{Integers, LaneIntegers, Place};
pub use lanes::{Decoding, LaneCodes, LaneScales, LaneUnit};
pub use rows::BlockType;
pub use table::{DecodeFacts, Visitor, dequantize, dequantize_i2_s, facts, with_type};
