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

    /// Columns of which anything is wanted, ascending.
    pub fn wanted(&self) -> Vec<u32> {
        let mut all = [&self.logits[..], &self.hidden, &self.best].concat();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// The batch of these columns alone, which are ascending and have all that are wanted.
    pub fn of_columns(&self, columns: &[u32]) -> Batch {
        let at = |column: &u32| columns.partition_point(|c| c < column);
        let renumbered = |wanted: &[u32]| wanted.iter().map(|c| at(c) as u32).collect();
        let of_runs = self.runs.iter().map(|run| Run {
            columns: at(&(run.columns.start as u32))..at(&(run.columns.end as u32)),
            ..run.clone()
        });
        let n_given = self.given.len() / self.n().max(1);
        let given = |c: &u32| &self.given[*c as usize * n_given..][..n_given];
        Batch {
            tokens: columns.iter().map(|c| self.tokens[*c as usize]).collect(),
            positions: columns.iter().map(|c| self.positions[*c as usize]).collect(),
            runs: of_runs.collect(),
            given: columns.iter().flat_map(given).copied().collect(),
            logits: renumbered(&self.logits),
            hidden: renumbered(&self.hidden),
            best: renumbered(&self.best),
            n_best: self.n_best,
            scales: self.scales.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_some_columns_there_is_what_belongs_to_them() {
        let run = |columns| Run { columns, first: 7, tables: Vec::new(), state: None };
        let batch = Batch {
            tokens: vec![10, 11, 12, 13, 14, 15],
            positions: vec![7, 8, 9, 7, 7, 8],
            runs: vec![run(0..3), run(3..4), run(4..6)],
            given: (0..12u8).map(f32::from).collect(),
            logits: vec![2],
            hidden: vec![4, 5],
            best: vec![2],
            ..Batch::default()
        };
        let columns = batch.wanted();
        assert_eq!(columns, [2, 4, 5]);
        let some = batch.of_columns(&columns);
        assert_eq!((some.tokens, some.positions), (vec![12, 14, 15], vec![9, 7, 8]));
        assert_eq!(some.given, [4.0, 5.0, 8.0, 9.0, 10.0, 11.0]);
        assert_eq!((some.logits, some.hidden, some.best), (vec![0], vec![1, 2], vec![0]));
        let runs: Vec<_> = some.runs.into_iter().map(|r| r.columns).collect();
        assert_eq!(runs, [0..1, 1..1, 1..3]);
    }
}
