//! What is asked of a type for a sub-block of sixteen rows, and what it answers.
//!
//! A [`Coder`] chooses one of a few scales for every row, and codes for all columns. Codes that stand for one or two columns are
//! found for sixteen rows at a time (`lanes.rs`); those that stand for four or eight (codebook entries, trellis points) row by row,
//! because there the search itself goes through many points at once (`groups.rs`).

use ikq_covariance::Factors;
use ikq_simd::Isa;

use crate::form::Choice;
use crate::passes::{LANES, Lane};

/// Most elements that share a scale.
pub(crate) const MOST_SUB: usize = 32;

/// A sub-block to be coded.
pub(crate) struct SubBlock<'a> {
    /// Its columns, as everything before them has moved them.
    pub x: &'a [Lane],
    pub factors: &'a Factors,
    /// Its first column.
    pub at: usize,
    /// Scales to choose from, the encoder's own first.
    pub choices: &'a [[Choice; LANES]],
    /// Lanes that are rows.
    pub n_rows: usize,
}

/// A sub-block with codes.
pub(crate) struct Coded<'a> {
    pub kept: [Choice; LANES],
    /// e of each column.
    pub errors: &'a mut [Lane],
    /// Numbers of the field of codes, and of the one beside it (signs or shifts); as many as the type has for a sub-block.
    pub codes: [[u16; LANES]; MOST_SUB],
    pub beside: [[u8; LANES]; MOST_SUB],
}

/// What finds codes. `#[inline(always)]`.
pub(crate) trait Coder<I: Isa> {
    /// The choice with the least `e^2 w` behind the feedback inside the sub-block, the first of equals, and its codes.
    fn code(&self, isa: I, sub: &SubBlock<'_>, out: &mut Coded<'_>);
}
