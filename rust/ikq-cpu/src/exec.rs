//! What every phase of a step has at hand: the team, the kernels, each thread's memory; and the phases that all
//! parts of a model share (products, norms).

use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use ikq_kernels::act::Activations;
use ikq_kernels::matmul::{self, Compute, Input, Scratch};
use ikq_kernels::ops;
use ikq_kernels::tiles::{Tile, tiles};
use ikq_model::batch::Batch;
use ikq_model::spec::NormKind;
use ikq_model::statistics::{Collector, Observed};
use ikq_pool::Team;
use ikq_simd::IsaKind;

use crate::attention::Cuts;
use crate::low_rank::{Addition, Scales};
use crate::rope::Angles;
use crate::weight::Weight;

/// Memory that belongs to one thread.
#[derive(Default)]
pub struct ThreadScratch {
    pub matmul: Scratch,
    /// Results of products before they are written out: those of gate, then those of up.
    pub first: Vec<f32>,
    pub second: Vec<f32>,
    /// What adapters add to results, before it is added.
    pub added: Vec<f32>,
    pub attention: ikq_kernels::attention::Scratch,
    pub delta: ikq_kernels::delta::Scratch,
}

/// What every phase of a step needs: the threads, the instruction set, the batch, and the memory that is reused.
#[derive(Clone, Copy)]
pub struct Exec<'a> {
    pub team: &'a Team<'a>,
    pub kind: IsaKind,
    pub compute: Compute,
    /// Epsilon of the model's norms.
    pub norm_eps: f32,
    /// The tokens of the step, and how their attention is cut.
    pub batch: &'a Batch,
    pub cuts: &'a Cuts,
    pub threads: &'a [Mutex<ThreadScratch>],
    /// The numbers 0, 1, 2, ...: the columns of a product that takes all tokens.
    pub all_columns: &'a [u32],
    /// The token of each column of a product that is not of groups: the same numbers, but where columns were chosen.
    pub tokens: &'a [u32],
    /// Scales of adapters.
    pub scales: Scales<'a>,
    /// Cosines and sines of this step's positions, for each of the model's ropes.
    pub angles: &'a [Angles],
    /// Collects statistics of what weights are multiplied with, if there is one.
    pub collector: Option<&'a Collector>,
}

/// Units per thread that a phase of few columns is cut into: several, so that threads end together, but few, as memory
/// is read fastest in long runs.
const UNITS_PER_THREAD: usize = 2;
/// Most rows of a unit: longer runs are not read faster, and the threads that are done wait for the last one.
pub const MOST_ROWS: usize = 768;
/// Fewest rows of a unit: what the kernels take at once.
const FEWEST_ROWS: usize = 16;
/// Rows of a unit when there are many columns, so that its output stays in the cache.
pub const ROWS_OF_MANY_COLUMNS: usize = 64;
/// Columns above which a phase is bound by arithmetic, not by reading weights.
pub const MANY_COLUMNS: usize = 16;

impl Exec<'_> {
    /// The scratch of thread `thread`. Only that thread asks, so the lock is free.
    pub fn scratch(&self, thread: usize) -> MutexGuard<'_, ThreadScratch> {
        self.threads[thread].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many rows a unit of work has, where `n_rows` rows in all are multiplied with `n_columns` columns each; a
    /// multiple of `step`.
    pub fn row_block(&self, n_rows: usize, n_columns: usize, step: usize) -> usize {
        let most = if n_columns > MANY_COLUMNS { ROWS_OF_MANY_COLUMNS } else { MOST_ROWS };
        rows_of_unit(n_rows, self.team.n_threads(), most).next_multiple_of(step)
    }

    /// Cuts `n` items into runs, one per unit of work, for phases that do little per item.
    pub fn runs(&self, n: usize) -> impl Iterator<Item = Range<usize>> + use<> {
        let step = n.div_ceil(self.team.n_threads() * UNITS_PER_THREAD).max(1);
        (0..n).step_by(step).map(move |first| first..n.min(first + step))
    }

    /// Writes the norm of each column of `x` to `acts`, in the forms that the products to come read. A norm of the
    /// kind `Layer` is the RMS norm of what is left when the mean is subtracted.
    pub fn norm_of(&self, kind: NormKind, x: &[f32], weight: &[f32], acts: &mut Activations, forms: Forms) {
        if kind == NormKind::Rms {
            self.norm(x, weight, self.norm_eps, acts, forms);
            return;
        }
        let k = weight.len();
        acts.resize(k, x.len() / k);
        let mut columns: Vec<_> = acts.columns_mut().into_iter().zip(x.chunks_exact(k)).collect();
        self.team.for_each(&mut columns, |(column, x), _| {
            let mean = x.iter().map(|v| f64::from(*v)).sum::<f64>() / k as f64;
            let left = column.floats.iter_mut().zip(x.iter());
            left.for_each(|(left, x)| *left = (f64::from(*x) - mean) as f32);
            ops::rms_norm_in_place(self.kind, column.floats, weight, self.norm_eps);
            if forms.q8 {
                column.quantize(self.kind);
            }
        });
    }

    /// Writes the RMS norm of each column of `x` to `acts`, in the forms that the products to come read.
    pub fn norm(&self, x: &[f32], weight: &[f32], eps: f32, acts: &mut Activations, forms: Forms) {
        let k = weight.len();
        acts.resize(k, x.len() / k);
        let mut columns: Vec<_> = acts.columns_mut().into_iter().zip(x.chunks_exact(k)).collect();
        let step = self.runs(columns.len()).next().map_or(1, |r| r.len());
        let mut units: Vec<_> = columns.chunks_mut(step).collect();
        self.team.for_each(&mut units, |columns, _| {
            for (column, x) in columns.iter_mut() {
                ops::rms_norm(self.kind, x, weight, eps, column.floats);
                if forms.q8 {
                    column.quantize(self.kind);
                }
            }
        });
    }

    /// Makes the 8-bit form of all columns of `acts` from their floats, if `forms` has it.
    pub fn quantize(&self, acts: &mut Activations, forms: Forms) {
        if !forms.q8 {
            return;
        }
        let mut columns = acts.columns_mut();
        let step = self.runs(columns.len()).next().map_or(1, |r| r.len());
        let mut units: Vec<_> = columns.chunks_mut(step).collect();
        self.team.for_each(&mut units, |columns, _| {
            columns.iter_mut().for_each(|c| c.quantize(self.kind));
        });
    }

    /// Tells the collector of activations that all columns of `acts` are an input of these weights.
    pub fn observe(&self, weights: &[&Weight], acts: &Activations) {
        let all = 0..acts.n_columns();
        let columns = &self.all_columns[all.clone()];
        self.observe_groups(weights, 1, &[(0, all)], (columns, columns), acts);
    }

    /// Tells the collector of the inputs of groups (experts or heads), given as for [`Exec::grouped`]; `n_groups` is
    /// the number of all groups, and each column comes with its token.
    pub fn observe_groups(
        &self,
        weights: &[&Weight],
        n_groups: usize,
        groups: &[(usize, Range<usize>)],
        (columns, tokens): (&[u32], &[u32]),
        acts: &Activations,
    ) {
        if let Some(collector) = self.collector {
            let floats = &|column: u32| acts.floats(column as usize);
            let owners: Vec<_> = weights.iter().map(|w| w.owner().clone()).collect();
            collector.observe(
                self.team,
                &owners,
                &Observed { k: acts.k(), n_groups, groups, columns, tokens, floats },
            );
        }
    }

    /// Several products of the same input, in one phase, after the collector was told of it.
    pub fn project(&self, acts: &Activations, products: Vec<Product<'_>>) {
        if self.collector.is_some() {
            let weights: Vec<&Weight> = products.iter().map(|p| p.weight).collect();
            self.observe(&weights, acts);
        }
        self.multiply(acts, products);
    }

    /// Several products of the same input, in one phase.
    pub fn multiply(&self, acts: &Activations, products: Vec<Product<'_>>) {
        let n = acts.n_columns();
        let n_rows = products.iter().map(|p| p.weight.n_rows).sum();
        let weights: Vec<&Weight> = products.iter().map(|p| p.weight).collect();
        let columns = (&self.all_columns[..n], self.tokens);
        let additions = self.additions(&weights, &[(0, 0..n)], columns, acts);
        let mut units = Vec::new();
        for (p, additions) in products.into_iter().zip(&additions) {
            let step = self.row_block(n_rows, n, p.weight.row_step());
            let all = std::iter::once(0..n);
            units.extend(
                tiles(p.out, p.weight.n_rows, step, all).into_iter().map(|t| (p.weight, additions, t)),
            );
        }
        self.team.for_each(&mut units, |(weight, additions, tile), thread| {
            let scratch = &mut *self.scratch(thread);
            let factors = (*weight, 0, &additions[..]);
            self.product(factors, tile.rows(), acts, (&self.all_columns[..n], 0), scratch);
            store(tile, &scratch.first);
        });
    }

    /// One product per group (expert or head): columns `columns[range]` of `acts` with the group's matrix, into
    /// columns `range` of `out`. Ranges ascend; each column comes with its token. The collector is told by the caller.
    pub fn grouped(
        &self,
        weight: &Weight,
        groups: &[(usize, Range<usize>)],
        (columns, tokens): (&[u32], &[u32]),
        acts: &Activations,
        out: &mut [f32],
    ) {
        let n_columns = groups.last().map_or(0, |(_, range)| range.end);
        let per_group = n_columns.div_ceil(groups.len().max(1));
        let step = self.row_block(weight.n_rows * groups.len(), per_group, weight.row_step());
        let n_blocks = weight.n_rows.div_ceil(step);
        let additions = &self.additions(&[weight], groups, (columns, tokens), acts)[0];
        let ranges = groups.iter().map(|(_, range)| range.clone());
        let mut units: Vec<_> = tiles(out, weight.n_rows, step, ranges).into_iter().enumerate().collect();
        self.team.for_each(&mut units, |(i, tile), thread| {
            let (expert, range) = &groups[*i / n_blocks];
            let scratch = &mut *self.scratch(thread);
            let columns = (&columns[range.clone()], range.start);
            self.product((weight, *expert, additions), tile.rows(), acts, columns, scratch);
            store(tile, &scratch.first);
        });
    }

    /// Computes some rows of a product, with scale and bias and what adapters add, into `scratch.first`, column after
    /// column. The columns are those from `first` on of the columns for which the additions were made.
    pub fn product(
        &self,
        (weight, expert, additions): (&Weight, usize, &[Addition<'_>]),
        rows: Range<usize>,
        acts: &Activations,
        (columns, first): (&[u32], usize),
        scratch: &mut ThreadScratch,
    ) {
        let out = room(&mut scratch.first, rows.len() * columns.len());
        let matrix = weight.matrix(expert);
        matmul::multiply(
            self.kind,
            self.compute,
            &matrix,
            rows.clone(),
            acts,
            columns,
            &mut scratch.matmul,
            out,
        );
        if !weight.is_plain() {
            out.chunks_exact_mut(rows.len()).for_each(|c| weight.finish(expert, rows.start, c));
        }
        if !additions.is_empty() {
            self.add(additions, expert, rows, first, (&mut scratch.matmul, &mut scratch.added), out);
        }
    }
}

/// Rows of a unit: at most `most`, and such that every thread has as many units as the others. A last unit of few rows
/// would have the threads wait for the one that took a whole unit more.
fn rows_of_unit(n_rows: usize, n_threads: usize, most: usize) -> usize {
    let of_thread = n_rows.div_ceil(n_threads);
    let units = of_thread.div_ceil(most).max(UNITS_PER_THREAD);
    n_rows.div_ceil(n_threads * units).next_multiple_of(FEWEST_ROWS).clamp(FEWEST_ROWS, most)
}

/// The first `len` elements of a vector, which grows if it is shorter.
pub fn room(v: &mut Vec<f32>, len: usize) -> &mut [f32] {
    if v.len() < len {
        v.resize(len, 0.0);
    }
    &mut v[..len]
}

/// One product of [`Exec::project`].
pub struct Product<'a> {
    pub weight: &'a Weight,
    /// Where the result goes: a column of `weight.n_rows` floats for each column of the input.
    pub out: &'a mut [f32],
}

impl<'a> Product<'a> {
    /// The product of `weight` with the input, to be written to `out`.
    pub fn new(weight: &'a Weight, out: &'a mut [f32]) -> Product<'a> {
        Product { weight, out }
    }
}

/// Which forms of activations are read; floats always are there.
#[derive(Clone, Copy, Debug, Default)]
pub struct Forms {
    pub q8: bool,
}

impl Forms {
    /// The forms that products with these weights read.
    pub fn of<'a>(compute: Compute, weights: impl IntoIterator<Item = &'a Weight>) -> Forms {
        Forms { q8: weights.into_iter().any(|w| w.input(compute) == Input::Q8) }
    }
}

/// Writes the columns of a product to their places in a tile of the output.
fn store(tile: &mut Tile<'_>, values: &[f32]) {
    let n_rows = tile.rows().len();
    for (column, values) in tile.columns().zip(values.chunks_exact(n_rows)) {
        tile.column(column).copy_from_slice(values);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_have_equally_many_units_of_nearly_equal_size() {
        for n_threads in [1, 2, 3, 16] {
            for n_rows in [2048, 4096, 6144, 11520, 14336, 151936] {
                let rows = rows_of_unit(n_rows, n_threads, MOST_ROWS);
                assert!((FEWEST_ROWS..=MOST_ROWS).contains(&rows) && rows.is_multiple_of(FEWEST_ROWS));
                // what the busiest thread has, when each takes the next unit as it is done
                let sizes = (0..n_rows).step_by(rows).map(|first| rows.min(n_rows - first));
                let mut busy = vec![0; n_threads];
                for size in sizes {
                    *busy.iter_mut().min().expect("threads") += size;
                }
                let most = *busy.iter().max().expect("threads");
                // rounding to a band of each of its units is all that it has beyond its share
                let units = most.div_ceil(rows);
                assert!(
                    most <= n_rows.div_ceil(n_threads) + units * FEWEST_ROWS,
                    "{n_rows} {n_threads} {most}"
                );
            }
        }
        assert_eq!(rows_of_unit(8, 2, MOST_ROWS), FEWEST_ROWS);
        assert_eq!(rows_of_unit(1 << 20, 2, ROWS_OF_MANY_COLUMNS), ROWS_OF_MANY_COLUMNS);
    }
}
