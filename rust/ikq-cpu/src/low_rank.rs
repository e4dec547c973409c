//! What LoRA adapters add to products: `scale * B (A x)`.
//!
//! A x of all columns is made in a phase before the product's, as it is short and every block of rows reads it; the
//! product's units then add their rows of B times that. Scales belong to columns, so texts with other scales stand
//! side by side in a batch. A column whose scale is 0 is left as it is. Both products are in float32, adapter after
//! adapter, and a column's bits do not depend on other columns.

use std::ops::Range;

use ikq_formats::QuantType;
use ikq_gguf::{Bytes, PageBuffer};
use ikq_kernels::act::Activations;
use ikq_kernels::matmul::{self, Compute, Matrix, lane_bytes, pack};
use ikq_kernels::tiles::tiles;
use ikq_model::error::Error;
use ikq_model::network;
use ikq_simd::IsaKind;

use crate::exec::{Exec, ROWS_OF_MANY_COLUMNS, ThreadScratch, room};
use crate::weight::Weight;

/// Matrices start at multiples of this: a cache line.
const ALIGNMENT: usize = 64;
/// Columns of a unit of A x: enough that there are units for all threads, and that A is not read too often.
const COLUMNS: usize = 32;

/// The pairs that an adapter has for a weight, in the device's form.
#[derive(Debug)]
pub struct LowRank {
    adapter: usize,
    rank: usize,
    factors: Vec<f32>,
    a: Factor,
    b: Factor,
}

/// One half of all pairs.
#[derive(Debug)]
struct Factor {
    ty: QuantType,
    n_rows: usize,
    k: usize,
    lanes: Vec<Bytes>,
}

/// The pairs for embeddings: a row of A for each token, as the file has it.
#[derive(Debug)]
pub struct Embedded {
    adapter: usize,
    rank: usize,
    factor: f32,
    a: network::Factor,
    b: Factor,
}

/// The scales of a step's columns.
#[derive(Clone, Copy, Default)]
pub struct Scales<'a> {
    /// Adapter after adapter, a scale for each of `n` columns, or (`n` is 0) one for all.
    pub values: &'a [f32],
    pub n: usize,
}

impl Scales<'_> {
    fn get(&self, adapter: usize, column: u32) -> f32 {
        match self.n {
            0 => self.values[adapter],
            n => self.values[adapter * n + column as usize],
        }
    }
}

/// A x of an adapter, which a product's units read.
pub struct Addition<'a> {
    pairs: &'a LowRank,
    /// Scaled; a column for each of the product's.
    low: Activations,
    /// The product's columns that have a scale, ascending.
    scaled: Vec<u32>,
}

impl Factor {
    fn bytes(factor: &network::Factor) -> Result<usize, ikq_formats::Error> {
        Ok(lane_bytes(factor.ty, factor.n_rows, factor.k)?.next_multiple_of(ALIGNMENT)
            * factor.matrices.len())
    }

    fn matrix(&self, expert: usize) -> Matrix<'_> {
        Matrix::lanes(self.ty, self.n_rows, self.k, &self.lanes[expert], 1.0)
            .expect("made when it was loaded")
    }
}

/// Brings the matrices of factors into the device's form; gives the bytes that they take as well.
fn packed(kind: IsaKind, factors: &[&network::Factor]) -> Result<(Vec<Factor>, usize), Error> {
    let format = |source| Error::Format { tensor: "a LoRA adapter's".to_string(), source };
    let sizes = factors.iter().map(|f| Factor::bytes(f)).collect::<Result<Vec<_>, _>>().map_err(format)?;
    let needed = sizes.iter().sum();
    let refused = |e: std::io::Error| Error::Memory { needed, reason: e.to_string() };
    let mut buffer = PageBuffer::new(needed).map_err(refused)?;
    let mut rest = buffer.as_mut_slice();
    for factor in factors {
        let n = lane_bytes(factor.ty, factor.n_rows, factor.k).map_err(format)?;
        for matrix in &factor.matrices {
            let (to, behind) = rest.split_at_mut(n.next_multiple_of(ALIGNMENT));
            rest = behind;
            pack(kind, factor.ty, factor.k, matrix, &mut to[..n]);
        }
    }
    let all = buffer.freeze().map_err(refused)?;
    let mut at = 0;
    let mut slice = |factor: &network::Factor, size: usize| -> Result<Factor, Error> {
        let step = size / factor.matrices.len().max(1);
        let n = lane_bytes(factor.ty, factor.n_rows, factor.k).map_err(format)?;
        let first = at;
        at += size;
        let places = (0..factor.matrices.len()).map(|e| first + e * step);
        let lanes = places.map(|p| all.slice(p..p + n).expect("the buffer has all matrices")).collect();
        Ok(Factor { ty: factor.ty, n_rows: factor.n_rows, k: factor.k, lanes })
    };
    let found = factors.iter().zip(&sizes).map(|(f, size)| slice(f, *size)).collect::<Result<Vec<_>, _>>()?;
    Ok((found, needed))
}

/// What adapters add to the products of all `weights`, weight after weight, and the bytes that it takes.
///
/// # Errors
/// [`Error::Memory`], [`Error::Format`].
pub fn load(kind: IsaKind, weights: &[&network::Weight]) -> Result<(Vec<Vec<LowRank>>, usize), Error> {
    let factors: Vec<&network::Factor> =
        weights.iter().flat_map(|w| &w.low_rank).flat_map(|p| [&p.a, &p.b]).collect();
    if factors.is_empty() {
        return Ok((weights.iter().map(|_| Vec::new()).collect(), 0));
    }
    let (factors, bytes) = packed(kind, &factors)?;
    let mut factors = factors.into_iter();
    let mut next = || factors.next().expect("as many as there were");
    let of_weight = |weight: &&network::Weight| {
        let pairs = weight.low_rank.iter().map(|p| LowRank {
            adapter: p.adapter,
            rank: p.rank,
            factors: p.factors.clone(),
            a: next(),
            b: next(),
        });
        pairs.collect()
    };
    Ok((weights.iter().map(of_weight).collect(), bytes))
}

/// What adapters add to embeddings, and the bytes that it takes.
///
/// # Errors
/// As [`load`].
pub fn load_embedded(kind: IsaKind, pairs: &[network::LowRank]) -> Result<(Vec<Embedded>, usize), Error> {
    if pairs.is_empty() {
        return Ok((Vec::new(), 0));
    }
    let (factors, bytes) = packed(kind, &pairs.iter().map(|p| &p.b).collect::<Vec<_>>())?;
    let found = pairs.iter().zip(factors).map(|(p, b)| Embedded {
        adapter: p.adapter,
        rank: p.rank,
        factor: p.factors[0],
        a: p.a.clone(),
        b,
    });
    Ok((found.collect(), bytes))
}

impl Exec<'_> {
    /// A x of all adapters of these weights, for products of groups (experts or heads) as [`Exec::grouped`] takes
    /// them; nothing is computed where there are none. Each column comes with its token, whose scale it has.
    pub fn additions<'w>(
        &self,
        weights: &[&'w Weight],
        groups: &[(usize, Range<usize>)],
        (columns, tokens): (&[u32], &[u32]),
        acts: &Activations,
    ) -> Vec<Vec<Addition<'w>>> {
        let addition = |pairs: &'w LowRank| {
            let has_scale = |(at, factor): (usize, f32)| {
                (factor != 0.0 && self.scales.get(pairs.adapter, tokens[at]) != 0.0).then_some(at as u32)
            };
            let places = groups.iter().flat_map(|(e, range)| range.clone().map(|at| (at, pairs.factors[*e])));
            Addition { pairs, low: Activations::default(), scaled: places.filter_map(has_scale).collect() }
        };
        let of_weight = |w: &&'w Weight| -> Vec<Addition<'w>> {
            w.low_rank.iter().map(addition).filter(|a| !a.scaled.is_empty()).collect()
        };
        let mut all: Vec<Vec<Addition<'w>>> = weights.iter().map(of_weight).collect();
        let n = groups.last().map_or(0, |(_, range)| range.end);
        let mut units = Vec::new();
        for Addition { pairs, low, .. } in all.iter_mut().flatten() {
            low.resize(pairs.rank, n);
            let parts: Vec<(usize, Range<usize>)> = groups
                .iter()
                .flat_map(|(e, range)| {
                    let end = range.end;
                    range.clone().step_by(COLUMNS).map(move |first| (*e, first..end.min(first + COLUMNS)))
                })
                .collect();
            let ranges = parts.iter().map(|(_, range)| range.clone());
            let per_part = pairs.rank.div_ceil(ROWS_OF_MANY_COLUMNS);
            let cut = tiles(low.floats_mut(), pairs.rank, ROWS_OF_MANY_COLUMNS, ranges);
            units.extend(cut.into_iter().enumerate().map(|(i, tile)| (*pairs, parts[i / per_part].0, tile)));
        }
        if units.is_empty() {
            return all;
        }
        self.team.for_each(&mut units, |(pairs, expert, tile), thread| {
            let ThreadScratch { matmul: scratch, first, .. } = &mut *self.scratch(thread);
            let (rows, at) = (tile.rows(), tile.columns());
            let out = room(first, rows.len() * at.len());
            let matrix = pairs.a.matrix(*expert);
            let columns = &columns[at.clone()];
            matmul::multiply(self.kind, Compute::F32, &matrix, rows.clone(), acts, columns, scratch, out);
            for (column, values) in at.zip(out.chunks_exact(rows.len())) {
                let scale = self.scales.get(pairs.adapter, tokens[column]) * pairs.factors[*expert];
                tile.column(column).iter_mut().zip(values).for_each(|(to, v)| *to = scale * v);
            }
        });
        drop(units);
        all
    }

    /// Adds rows of B A x to those of a product: `out` has the columns from `first` on, column after column.
    pub fn add(
        &self,
        additions: &[Addition<'_>],
        expert: usize,
        rows: Range<usize>,
        first: usize,
        scratch: (&mut matmul::Scratch, &mut Vec<f32>),
        out: &mut [f32],
    ) {
        let n = rows.len();
        let end = first + out.len() / n;
        for Addition { pairs, low, scaled } in additions {
            let place = |at: usize| scaled.partition_point(|c| (*c as usize) < at);
            let columns = &scaled[place(first)..place(end)];
            if columns.is_empty() {
                continue;
            }
            let sums = room(scratch.1, n * columns.len());
            let matrix = pairs.b.matrix(expert);
            matmul::multiply(self.kind, Compute::F32, &matrix, rows.clone(), low, columns, scratch.0, sums);
            for (column, sums) in columns.iter().zip(sums.chunks_exact(n)) {
                let out = &mut out[(*column as usize - first) * n..][..n];
                out.iter_mut().zip(sums).for_each(|(y, s)| *y += s);
            }
        }
    }

    /// Adds to the embeddings of the batch's tokens, a column of `n_embd` floats each, what adapters have for them.
    pub fn add_embedded(&self, all: &[Embedded], x: &mut [f32]) {
        for Embedded { adapter, rank, factor, a, b } in all {
            let tokens = &self.batch.tokens;
            let scale = |column: u32| self.scales.get(*adapter, column);
            let scaled: Vec<u32> = (0..tokens.len() as u32).filter(|c| scale(*c) != 0.0).collect();
            if scaled.is_empty() {
                continue;
            }
            let mut low = Activations::default();
            low.resize(*rank, tokens.len());
            for (column, low) in low.floats_mut().chunks_exact_mut(*rank).enumerate() {
                a.decode_row(self.kind, tokens[column] as usize, low);
                let scale = scale(column as u32) * factor;
                low.iter_mut().for_each(|v| *v *= scale);
            }
            let n_embd = b.n_rows;
            let step = self.row_block(n_embd, tokens.len(), 1);
            let all_columns = std::iter::once(0..tokens.len());
            let mut units = tiles(x, n_embd, step, all_columns);
            self.team.for_each(&mut units, |tile, thread| {
                let ThreadScratch { matmul: scratch, first, .. } = &mut *self.scratch(thread);
                let rows = tile.rows();
                let out = room(first, rows.len() * scaled.len());
                let matrix = b.matrix(0);
                matmul::multiply(self.kind, Compute::F32, &matrix, rows.clone(), &low, &scaled, scratch, out);
                for (column, values) in scaled.iter().zip(out.chunks_exact(rows.len())) {
                    tile.column(*column as usize).iter_mut().zip(values).for_each(|(x, v)| *x += v);
                }
            });
        }
    }
}
