//! A batch: the tokens of a step, sequence after sequence, as devices see them.

use std::ops::Range;
use std::sync::Arc;

/// Positions of a page.
pub const PAGE: usize = 256;

/// Stands in a page table for a page behind a sliding window, which was given back.
pub const NO_PAGE: u32 = u32::MAX;

/// The tokens of one sequence: columns that follow one another.
#[derive(Clone, Debug)]
pub struct Run {
    pub columns: Range<usize>,
    /// Position of the first token.
    pub first: usize,
    /// For each group of layers the page of every 256 positions, those of this step included.
    pub tables: Vec<Arc<[u32]>>,
    /// The sequence's state of the recurrent layers.
    pub state: Option<u32>,
}

/// The tokens that a step computes, sequence after sequence.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// Token of every column.
    pub tokens: Vec<u32>,
    /// Position of every column.
    pub positions: Vec<u32>,
    pub runs: Vec<Run>,
    /// Of a multi-token prediction head, or a part of a model: the hidden state that each column is given, `n_embd` floats.
    pub given: Vec<f32>,
    /// Columns whose logits are wanted, ascending.
    pub logits: Vec<u32>,
    /// Columns whose hidden states are wanted, ascending.
    pub hidden: Vec<u32>,
    /// Columns of which only the largest logits are wanted, ascending, and how many of each: at most
    /// [`MOST_BEST`](crate::results::MOST_BEST), and no more than there are.
    pub best: Vec<u32>,
    pub n_best: usize,
    /// Of a model with adapters: the scales of each run, one per adapter.
    pub scales: Vec<Arc<[f32]>>,
}

impl Batch {
    /// Number of columns: the tokens of all sequences.
    pub fn n(&self) -> usize {
        self.tokens.len()
    }
}
