//! [`Work`]: a layer's attention in a step, as units for threads.
//!
//! Units are independent of one another. Tiles that were cut into several leave partial results, which a second phase
//! merges.

use std::ops::Range;

use ikq_simd::IsaKind;

use super::block::{Head, Rows};
use super::hadamard::Rotation;
use super::pages::Pages;
use super::partial::Partial;
use super::plan::{Plan, TilePlan};
use super::scratch::Scratch;
use crate::tiles::{Tile, tiles};

/// A layer's queries of a step and what they attend to.
#[derive(Clone, Copy)]
pub struct Attention<'a> {
    /// Column after column, head after head, every `q_stride` elements.
    pub queries: &'a [f32],
    /// Elements from one query head to the next; the first ones, as many as a key has, are the query.
    pub q_stride: usize,
    /// Query heads.
    pub n_head: usize,
    pub keys: &'a Pages,
    /// `None`: values are the first elements of latent keys.
    pub values: Option<&'a Pages>,
    pub scale: f32,
    pub softcap: Option<f32>,
    /// The sink of each query head, where the model has them.
    pub sinks: Option<&'a [f32]>,
    /// How many positions a query sees, its own included; `None`: all before it.
    pub window: Option<usize>,
}

impl Attention<'_> {
    /// Elements of a value, and of a head's result.
    ///
    /// # Panics
    /// When there are no values and keys are not latent.
    pub fn head_dim_v(&self) -> usize {
        match self.values {
            Some(values) => values.shape().d(),
            None => self.keys.shape().rank().expect("latent keys where there are no values"),
        }
    }

    /// The rotation of stored values, which is undone on results.
    fn turn_of_results(&self) -> Option<&Rotation> {
        self.values.unwrap_or(self.keys).shape().rotation()
    }
}

/// Tokens of a sequence in a step: the columns that follow those of the sequence before.
#[derive(Clone, Copy)]
pub struct Sequence<'a> {
    /// Number of tokens.
    pub n: usize,
    /// Position of the first of them.
    pub first: usize,
    /// The page of each [`PAGE`](super::PAGE) positions;
    /// [`NO_PAGE`](super::NO_PAGE) where no token of the step sees one.
    pub table: &'a [u32],
}

/// The attention of a layer, cut by a plan.
pub struct Work<'a> {
    jobs: Vec<Job<'a>>,
}

/// A tile with the places of its results.
struct Job<'a> {
    task: Task<'a>,
    out: Tile<'a>,
    /// Partial results, one for each run of keys that the tile is cut into.
    partials: &'a mut [Partial],
}

/// The inputs of a tile.
#[derive(Clone, Copy)]
struct Task<'a> {
    plan: &'a TilePlan,
    attention: &'a Attention<'a>,
    sequence: &'a Sequence<'a>,
    /// Column of the sequence's first token.
    column: usize,
}

impl<'a> Work<'a> {
    /// `out` gets a column per token, the heads' results one after another; `partials` is memory that is reused.
    ///
    /// # Panics
    /// When the plan is not for these sequences and heads, or slices are not as long as those want.
    pub fn new(
        plan: &'a Plan,
        attention: &'a Attention<'a>,
        sequences: &'a [Sequence<'a>],
        mut out: &'a mut [f32],
        partials: &'a mut Vec<Partial>,
    ) -> Work<'a> {
        let Attention { queries, q_stride, n_head, keys, values, sinks, window, .. } = *attention;
        let n: usize = sequences.iter().map(|s| s.n).sum();
        let (n_kv, d, dv) = (keys.shape().n_head(), keys.shape().d(), attention.head_dim_v());
        assert!(n_kv == plan.n_kv && n_head == n_kv * plan.group, "{n_head} heads, {n_kv} of keys: {plan:?}");
        assert!(window.unwrap_or(usize::MAX) == plan.window, "another window than the plan's");
        assert!(values.is_none_or(|v| v.shape().n_head() == n_kv), "values of other heads than keys");
        assert!(sinks.is_none_or(|s| s.len() == n_head), "a sink per head");
        assert_eq!(out.len(), n * n_head * dv, "a column of {n_head} results of {dv} elements per token");
        assert!(d <= q_stride && queries.len() >= n * n_head * q_stride, "a column of queries per token");
        let same = |(cut, s): (&super::plan::Cut, &Sequence<'_>)| cut.n == s.n && cut.first == s.first;
        assert!(
            plan.sequences.len() == sequences.len() && plan.sequences.iter().zip(sequences).all(same),
            "the plan is for other sequences"
        );

        let mut columns = Vec::with_capacity(sequences.len());
        let mut outs = Vec::with_capacity(plan.tiles.len());
        let mut column = 0;
        for cut in &plan.sequences {
            columns.push(column);
            column += cut.n;
            let (mine, rest) = out.split_at_mut(cut.n * n_head * dv);
            out = rest;
            let ranges = (0..cut.n).step_by(cut.n_tokens).map(|t| t..cut.n.min(t + cut.n_tokens));
            outs.extend(tiles(mine, n_head * dv, cut.n_heads * dv, ranges).into_iter().map(Some));
        }
        let n_partials = |t: &TilePlan| if t.step.is_some() { t.partials().count() } else { 0 };
        let all: usize = plan.tiles.iter().map(n_partials).sum();
        partials.resize_with(partials.len().max(all), Partial::default);
        let mut partials = &mut partials[..];
        let jobs = plan.tiles.iter().filter_map(|tile| {
            let (mine, rest) = std::mem::take(&mut partials).split_at_mut(n_partials(tile));
            partials = rest;
            let (sequence, column) = (&sequences[tile.sequence], columns[tile.sequence]);
            let task = Task { plan: tile, attention, sequence, column };
            // every number is there once
            Some(Job { task, out: outs[tile.number].take()?, partials: mine })
        });
        Work { jobs: jobs.collect() }
    }

    /// The units of the first phase, independent of one another.
    pub fn units(&mut self) -> Vec<Unit<'_, 'a>> {
        let mut units = Vec::new();
        for Job { task, out, partials } in &mut self.jobs {
            let task = *task;
            if task.plan.step.is_none() {
                units.push(Unit { task, chunks: task.plan.chunks.clone(), target: Target::Whole(out) });
                continue;
            }
            let mut partials = &mut partials[..];
            for chunks in task.plan.units() {
                let n = task.plan.partials_of(chunks.clone()).count();
                let (mine, rest) = std::mem::take(&mut partials).split_at_mut(n);
                partials = rest;
                units.push(Unit { task, chunks, target: Target::Partials(mine) });
            }
        }
        units
    }

    /// The units of the second phase, to be run after all of the first. There are none where no tile was cut.
    pub fn merges(&mut self) -> Vec<Merge<'_, 'a>> {
        let cut = self.jobs.iter_mut().filter(|job| job.task.plan.step.is_some());
        cut.map(|Job { task, out, partials }| Merge { task: *task, partials, out }).collect()
    }
}

/// A tile, or a run of its keys.
pub struct Unit<'u, 'a> {
    task: Task<'a>,
    chunks: Range<usize>,
    target: Target<'u, 'a>,
}

/// Where results go.
enum Target<'u, 'a> {
    Whole(&'u mut Tile<'a>),
    Partials(&'u mut [Partial]),
}

impl Unit<'_, '_> {
    /// Computes the attention of the unit.
    pub fn run(&mut self, kind: IsaKind, scratch: &mut Scratch) {
        let Unit { task, chunks, target } = self;
        task.gather(kind, scratch);
        match target {
            Target::Whole(out) => {
                task.fold(kind, chunks.clone(), scratch);
                let Scratch { fold, .. } = scratch;
                task.finish(kind, fold.finish(kind), out);
            }
            Target::Partials(partials) => {
                for (chunks, partial) in task.plan.partials_of(chunks.clone()).zip(partials.iter_mut()) {
                    task.fold(kind, chunks, scratch);
                    std::mem::swap(scratch.fold.finish(kind), partial);
                }
            }
        }
    }
}

/// The partial results of a tile.
pub struct Merge<'u, 'a> {
    task: Task<'a>,
    partials: &'u mut [Partial],
    out: &'u mut Tile<'a>,
}

impl Merge<'_, '_> {
    /// Merges them and writes the result.
    pub fn run(&mut self, kind: IsaKind, scratch: &mut Scratch) {
        let fold = &mut scratch.fold;
        fold.begin();
        for (chunks, partial) in self.task.plan.partials().zip(self.partials.iter_mut()) {
            match self.task.plan.are_spans() {
                true => fold.span(kind, partial),
                false => fold.chunk(kind, chunks.start, partial),
            }
        }
        self.task.finish(kind, fold.finish(kind), self.out);
    }
}

impl Task<'_> {
    fn rows(&self) -> Rows {
        let TilePlan { tokens, heads, .. } = self.plan;
        Rows { group: heads.len(), first: self.sequence.first + tokens.start, n_tokens: tokens.len() }
    }

    /// Lays out the queries: head after head of each token.
    fn gather(&self, kind: IsaKind, scratch: &mut Scratch) {
        let Attention { queries, q_stride, n_head, keys, scale, .. } = *self.attention;
        let TilePlan { tokens, heads, .. } = self.plan;
        let d = keys.shape().d();
        scratch.begin(tokens.len() * heads.len(), d);
        for (i, token) in tokens.clone().enumerate() {
            for (g, head) in heads.clone().enumerate() {
                let (row, at) = (i * heads.len() + g, ((self.column + token) * n_head + head) * q_stride);
                scratch.set_query(row, &queries[at..at + d], scale);
                if let Some(rotation) = keys.shape().rotation() {
                    rotation.apply(kind, scratch.query_mut(row));
                }
            }
        }
    }

    /// Computes what the keys of `chunks` contribute, into the scratch's fold.
    fn fold(&self, kind: IsaKind, chunks: Range<usize>, scratch: &mut Scratch) {
        let Attention { n_head, keys, values, softcap, window, .. } = *self.attention;
        let head = Head {
            keys,
            values,
            head: self.plan.heads.start / (n_head / keys.shape().n_head()),
            table: self.sequence.table,
            softcap,
            window: window.unwrap_or(usize::MAX),
        };
        scratch.fold.begin();
        for chunk in chunks {
            head.chunk(kind, self.rows(), chunk, scratch);
            let Scratch { chunk: partial, fold, .. } = scratch;
            fold.chunk(kind, chunk, partial);
        }
    }

    /// Writes the finished rows of a tile to the output.
    fn finish(&self, kind: IsaKind, partial: &Partial, out: &mut Tile<'_>) {
        let (attention, heads) = (self.attention, &self.plan.heads);
        for (i, token) in self.plan.tokens.clone().enumerate() {
            let results = out.column(token).chunks_exact_mut(partial.d());
            for ((g, head), result) in heads.clone().enumerate().zip(results) {
                partial.finish(i * heads.len() + g, attention.sinks.map(|s| s[head]), result);
                if let Some(rotation) = attention.turn_of_results() {
                    rotation.undo(kind, result);
                }
            }
        }
    }
}

#[cfg(test)]
#[path = "work_tests.rs"]
mod tests;
