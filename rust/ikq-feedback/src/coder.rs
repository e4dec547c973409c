//! [`Coder`]: the interface between error feedback and a type. A sub-block of sixteen rows goes in; scales and
//! codes come out.
//!
//! A [`Coder`] chooses one of a few scales for every row, and codes for all columns. Codes that stand for one or
//! two columns are found for sixteen rows at a time (`lanes.rs`). Those that stand for four or eight (codebook
//! entries, trellis points) are found row by row, because there the search itself compares many points at once
//! (`groups.rs`).

use ikq_covariance::Factors;
use ikq_simd::Isa;

use crate::descent::{Replaces, Unit};
use crate::form::Choice;
use crate::passes::{LANES, Lane};

/// The largest number of elements that share a scale in any type.
pub(crate) const MOST_SUB: usize = 32;

/// A sub-block of up to sixteen rows for which codes are to be found.
pub(crate) struct SubBlock<'a> {
    /// Its columns, adjusted for the errors of all earlier ones.
    pub x: &'a [Lane],
    pub factors: &'a Factors,
    /// Its first column.
    pub at: usize,
    /// Scales to choose from, beginning with the one that the type's own encoder chose.
    pub choices: &'a [[Choice; LANES]],
    /// How many of the lanes hold rows; the others are padding.
    pub n_rows: usize,
}

/// The codes that were found for a sub-block.
pub(crate) struct Coded<'a> {
    pub kept: [Choice; LANES],
    /// The error e of each column: the adjusted element less the value that its code decodes to.
    pub errors: &'a mut [Lane],
    /// What the codes of each column decode to.
    pub decoded: &'a mut [Lane],
    /// The numbers of the field of codes, and of the field beside it (signs or shifts), as many as a sub-block of
    /// the type has.
    pub codes: [[u16; LANES]; MOST_SUB],
    pub beside: [[u8; LANES]; MOST_SUB],
}

/// Finds scales and codes for sub-blocks. Implementations must be `#[inline(always)]`.
pub(crate) trait Coder<I: Isa> {
    /// Finds the choice of scale with the least sum of `e^2 w`, with error feedback inside the sub-block too, and
    /// its codes. Of equal choices it is the first.
    fn code(&self, isa: I, sub: &SubBlock<'_>, out: &mut Coded<'_>);

    /// What changes of codes by [`Coder::descend`] replace; `None` if codes are never chosen again.
    fn replaces(&self) -> Option<Replaces>;

    /// Chooses codes of a unit again ([`crate::descent`]).
    fn descend(&self, isa: I, unit: Unit<'_>);
}
