//! A tile of query rows against blocks of keys.
//!
//! ```text
//! for each block of keys that some row sees:
//!     scores = queries x keys
//!     mask; softmax with the rows' running maximum
//!     values += exponentials x values of the block
//! ```
//! A row's result has the same bits whatever other rows are in the tile: blocks begin at multiples of their size, scores
//! and sums over values are chains in ascending order from 0, lanes belong to positions, and what is masked adds
//! zeros at the ends of chains, where they change nothing.

use std::marker::PhantomData;
use std::ops::Range;

use ikq_simd::{Isa, IsaKind, IsaOp, run};

use super::encode::decode;
use super::fold::CHUNK;
use super::pages::{LANES, NO_PAGE, PAGE, Pages};
use super::partial::Partial;
use super::scores::{Scores, Widen};
use super::scratch::{Scratch, room};
use super::softmax::SoftmaxRows;
use super::types::CacheType;
use crate::ops::matrix::{
    BF16, ByElement, Element, F16, F32, Floats, PANEL, Product, Shape, Stored, Transpose, bytes_of,
};

/// Keys of a block.
const BLOCK: usize = 64;
const _: () =
    assert!(PAGE.is_multiple_of(BLOCK) && CHUNK.is_multiple_of(BLOCK) && BLOCK.is_multiple_of(LANES));
/// Rows up to which keys in lanes are read where they stand; more share floats.
const FEW_ROWS: usize = 8;

/// The keys and values of one head of a sequence, and how they are attended to.
pub(super) struct Head<'a> {
    pub keys: &'a Pages,
    /// `None`: values are the first elements of the keys' rows.
    pub values: Option<&'a Pages>,
    /// Which head of the pages.
    pub head: usize,
    /// Number of the page of each [`PAGE`] positions.
    pub table: &'a [u32],
    pub softcap: Option<f32>,
    /// A query sees so many positions, its own included.
    pub window: usize,
}

/// The rows of a tile: `group` for each token, tokens from position `first` on.
#[derive(Clone, Copy)]
pub(super) struct Rows {
    pub group: usize,
    pub first: usize,
    pub n_tokens: usize,
}

impl Head<'_> {
    /// Positions that the token at `position` sees.
    fn seen(&self, position: usize) -> Range<usize> {
        (position + 1).saturating_sub(self.window)..position + 1
    }

    /// What keys of chunk number `chunk` contribute to the query rows of `scratch`, into its `chunk`.
    pub fn chunk(&self, kind: IsaKind, rows: Rows, chunk: usize, scratch: &mut Scratch) {
        let d = self.values.map_or_else(|| self.keys.shape().rank(), |v| Some(v.shape().d()));
        let mut partial = std::mem::take(&mut scratch.chunk);
        partial.reset(rows.group * rows.n_tokens, d.expect("latent keys where there are no values"));
        let (from, to) = (self.seen(rows.first).start, rows.first + rows.n_tokens);
        let (from, to) = (from.max(chunk * CHUNK), to.min((chunk + 1) * CHUNK));
        for start in (from / BLOCK * BLOCK..to).step_by(BLOCK) {
            self.block(kind, rows, start, scratch, &mut partial);
        }
        scratch.chunk = partial;
    }

    /// The keys from `start` on, a block of them.
    fn block(&self, kind: IsaKind, rows: Rows, start: usize, scratch: &mut Scratch, partial: &mut Partial) {
        let Rows { group, first, n_tokens } = rows;
        let end = start + BLOCK;
        // the tokens that see some of them, and what those see
        let from = start.saturating_sub(first);
        let to = n_tokens.min(end.saturating_add(self.window - 1).saturating_sub(first));
        let tokens = first + from..first + to;
        let range = self.seen(tokens.start).start.max(start)..tokens.end.min(end);
        let sees_all = |p: usize| self.seen(p).start <= range.start && range.end <= p + 1;
        let is_masked = !tokens.clone().all(sees_all);
        let (m, row) = (tokens.len() * group, from * group);

        let page = self.table[start / PAGE];
        assert!(page != NO_PAGE, "a page that is seen was given away");
        // whole groups of lanes
        let slots = range.start % PAGE / LANES * LANES..((range.end - 1) % PAGE + 1).next_multiple_of(LANES);
        let columns = slots.len();
        let lead = range.start % PAGE - slots.start;

        let Scratch { d, queries, scores, transposed, keys, values, .. } = scratch;
        let stride = d.next_multiple_of(16);
        let queries = Floats { data: &queries[row * stride..], stride };
        let scores = room(scores, m * columns);
        let stored = self.keys.groups(self.head, page, slots.clone());
        let next = self.values.map_or(&[][..], |v| v.groups(self.head, page, slots.clone()));
        let shape = self.keys.shape();
        let ty = PhantomData;
        // rows of keys for values, where there are no others
        let mut key_rows = None;
        if shape.in_lanes() && m <= FEW_ROWS {
            let (d, scores) = (*d, &mut *scores);
            let few = Scores { queries, n_rows: m, d, keys: stored, scores, stride: columns, next, ty };
            by_type(shape.ty(), kind, few);
        } else {
            let out = room(transposed, stride * columns);
            if shape.in_lanes() {
                by_type(shape.ty(), kind, Widen { d: *d, keys: stored, out, stride: columns, ty });
            } else {
                let rows = StoredRows::of(kind, self.keys, stored, keys);
                let k = stride;
                rows.go(kind, Transpose { b: rows.stored, n: columns, k, out, stride: columns, ty });
                key_rows = Some(rows);
            }
            let b = Stored { data: bytes_of(transposed), stride: 4 * columns };
            let shape = Shape { m, n: columns, k: *d };
            let c = &mut *scores;
            let panel: &mut [f32] = &mut [];
            Product { a: queries, b, c, c_stride: columns, shape, add: false, panel, ty: PhantomData::<()> }
                .go::<F32>(kind);
        }

        if is_masked || columns > range.len() {
            for (scores, position) in scores.chunks_exact_mut(group * columns).zip(tokens.clone()) {
                let seen = self.seen(position);
                let column = |at: usize| at.clamp(range.start, range.end) - range.start + lead;
                for scores in scores.chunks_exact_mut(columns) {
                    scores[..column(seen.start)].fill(f32::NEG_INFINITY);
                    scores[column(seen.end)..].fill(f32::NEG_INFINITY);
                }
            }
        }
        let value_stride = partial.stride;
        let so_far = &mut partial.values[row * value_stride..];
        let (max, sum) = (&mut partial.max[row..row + m], &mut partial.sum[row..row + m]);
        let (n, softcap) = (columns, self.softcap);
        run(
            kind,
            SoftmaxRows { scores, stride: columns, n, softcap, max, sum, values: so_far, value_stride },
        );

        let rows = match (self.values, key_rows) {
            (Some(pages), _) => StoredRows::of(kind, pages, next, values),
            (None, Some(rows)) => rows,
            (None, None) => StoredRows::of(kind, self.keys, stored, keys),
        };
        let rows = rows.from(lead);
        let scores = &scores[lead..];
        let mut add = |row: usize, m: usize, first: usize, k: usize| {
            let a = Floats { data: &scores[row * columns + first..], stride: columns };
            let b = rows.from(first).stored;
            let c = &mut so_far[row * value_stride..];
            let shape = Shape { m, n: value_stride, k };
            let panel = room(transposed, PANEL * k);
            rows.go(
                kind,
                Product { a, b, c, c_stride: value_stride, shape, add: true, panel, ty: PhantomData },
            );
        };
        if is_masked && !rows.are_finite(kind, range.len(), value_stride) {
            // zero times infinity is NaN, which must not reach those who do not see it
            for (i, position) in tokens.enumerate() {
                let seen = self.seen(position);
                let (from, to) = (seen.start.max(range.start), seen.end.min(range.end));
                add(i * group, group, from - range.start, to - from);
            }
        } else {
            add(0, m, 0, range.len());
        }
    }
}

/// Rows of a block as the kernels read them: where they stand, or decoded.
struct StoredRows<'a> {
    ty: CacheType,
    stored: Stored<'a>,
}

impl<'a> StoredRows<'a> {
    /// Of whole groups `data` of rows.
    fn of(kind: IsaKind, pages: &'a Pages, data: &'a [u8], room_for: &'a mut Vec<f32>) -> StoredRows<'a> {
        let shape = pages.shape();
        if shape.ty().element_bytes().is_some() {
            return StoredRows { ty: shape.ty(), stored: Stored { data, stride: shape.row_bytes() } };
        }
        let n = data.len() / shape.row_bytes();
        let floats = room(room_for, n * shape.d());
        decode(kind, shape.ty(), data, floats);
        StoredRows { ty: CacheType::F32, stored: Stored { data: bytes_of(floats), stride: 4 * shape.d() } }
    }

    /// The rows from number `first` on.
    fn from(&self, first: usize) -> StoredRows<'a> {
        let Stored { data, stride } = self.stored;
        StoredRows { ty: self.ty, stored: Stored { data: &data[first * stride..], stride } }
    }

    fn go(&self, kind: IsaKind, kernel: impl ByElement) {
        by_type(self.ty, kind, kernel);
    }

    /// Whether the first `k` elements of the first `n` rows are neither NaN nor infinite.
    fn are_finite(&self, kind: IsaKind, n: usize, k: usize) -> bool {
        let mut sum = 0.0;
        self.go(kind, TimesZero { b: self.stored, n, k, sum: &mut sum, ty: PhantomData });
        sum == 0.0
    }
}

/// The sum of all elements times zero: zero, or NaN.
struct TimesZero<'a, E> {
    b: Stored<'a>,
    n: usize,
    /// A multiple of 16.
    k: usize,
    sum: &'a mut f32,
    ty: PhantomData<E>,
}

impl<E: Element> IsaOp for TimesZero<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let zero = isa.splat_f(0.0);
        let mut sum = zero;
        for row in self.b.data.chunks(self.b.stride).take(self.n) {
            for x in row[..self.k * E::BYTES].chunks_exact(16 * E::BYTES) {
                sum = isa.fma(E::load(isa, x), zero, sum);
            }
        }
        *self.sum = isa.total(sum);
    }
}

impl ByElement for TimesZero<'_, ()> {
    fn go<E: Element>(self, kind: IsaKind) {
        let TimesZero { b, n, k, sum, .. } = self;
        run(kind, TimesZero::<E> { b, n, k, sum, ty: PhantomData });
    }
}

/// Runs a kernel for numbers of type `ty`, which stand for themselves.
fn by_type(ty: CacheType, kind: IsaKind, kernel: impl ByElement) {
    match ty {
        CacheType::F16 => kernel.go::<F16>(kind),
        CacheType::BF16 => kernel.go::<BF16>(kind),
        _ => kernel.go::<F32>(kind),
    }
}
