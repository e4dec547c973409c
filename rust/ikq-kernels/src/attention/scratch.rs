//! [`Scratch`]: memory that a thread needs for its tiles besides their results.

use super::fold::Fold;
use super::partial::Partial;

/// Memory that a thread's tiles reuse: queries and what is made of them.
#[derive(Default)]
pub struct Scratch {
    pub(super) n_rows: usize,
    pub(super) d: usize,
    pub(super) queries: Vec<f32>,
    pub(super) scores: Vec<f32>,
    pub(super) transposed: Vec<f32>,
    pub(super) panel: Vec<f32>,
    pub(super) keys: Vec<f32>,
    pub(super) values: Vec<f32>,
    pub(super) sums: Vec<f32>,
    /// The partial result of the rows for the keys of one chunk.
    pub(super) chunk: Partial,
    pub(super) fold: Fold,
    /// The partial result of a tile that was not cut, which is finished where it is made.
    pub partial: Partial,
}

impl Scratch {
    /// Makes room for `n_rows` query rows of `d` elements.
    pub fn begin(&mut self, n_rows: usize, d: usize) {
        (self.n_rows, self.d) = (n_rows, d);
        self.queries.clear();
        self.queries.resize(n_rows * d.next_multiple_of(16), 0.0);
    }

    /// Sets a query row, times the scale of scores.
    pub fn set_query(&mut self, row: usize, query: &[f32], scale: f32) {
        let to = self.query_mut(row);
        to.iter_mut().zip(query).for_each(|(to, q)| *to = q * scale);
    }

    pub(super) fn query_mut(&mut self, row: usize) -> &mut [f32] {
        let stride = self.d.next_multiple_of(16);
        &mut self.queries[row * stride..][..self.d]
    }
}

/// The first `len` elements of a vector, which grows if it is shorter.
pub(super) fn room(v: &mut Vec<f32>, len: usize) -> &mut [f32] {
    if v.len() < len {
        v.resize(len, 0.0);
    }
    &mut v[..len]
}
