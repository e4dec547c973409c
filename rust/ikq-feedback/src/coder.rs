//! The interface between error feedback and a type: a sub-block of sixteen rows goes in, its scales and codes come out.
//!
//! A [`Coder`] chooses one of a few scales for every row, and codes for all columns. Codes that stand for one or two columns are
//! found for sixteen rows at a time (`lanes.rs`); those that stand for four or eight (codebook entries, trellis points) row by row,
//! because there the search itself goes through many points at once (`groups.rs`).

use ikq_covariance::Factors;
use ikq_simd::Isa;

use crate::form::Choice;
use crate::passes::{LANES, Lane};

/// The largest number of elements that share a scale in any type.
pub(crate) const MOST_SUB: usize = 32;

/// A sub-block of up to sixteen rows for which codes are to be found.
pub(crate) struct SubBlock<'a> {
    /// Its columns, after the errors of all earlier columns have moved them.
    pub x: &'a [Lane],
    pub factors: &'a Factors,
    /// Its first column.
    pub at: usize,
    /// Scales to choose from, the encoder's own first.
    pub choices: &'a [[Choice; LANES]],
    /// How many of the lanes hold rows; the rest is padding.
    pub n_rows: usize,
}

/// The codes that were found for a sub-block.
pub(crate) struct Coded<'a> {
    pub kept: [Choice; LANES],
    /// The error e of each column: the moved element less what its code decodes to.
    pub errors: &'a mut [Lane],
    /// Numbers of the field of codes, and of the one beside it (signs or shifts); as many as the type has for a sub-block.
    pub codes: [[u16; LANES]; MOST_SUB],
    pub beside: [[u8; LANES]; MOST_SUB],
}

/// Finds scales and codes for sub-blocks. Implementations are `#[inline(always)]`.
pub(crate) trait Coder<I: Isa> {
    /// The choice with the least `e^2 w` behind the feedback inside the sub-block, the first of equals, and its codes.
    fn code(&self, isa: I, sub: &SubBlock<'_>, out: &mut Coded<'_>);
}
