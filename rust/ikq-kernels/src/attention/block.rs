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
use super::few::{FEW_ROWS, Few};
use super::fold::CHUNK;
use super::lanes::{LANES, VECTOR, widen};
use super::pages::{NO_PAGE, PAGE, Pages};
use super::partial::Partial;
use super::scratch::{Scratch, room};
use super::softmax::SoftmaxRows;
use super::types::CacheType;
use crate::ops::matrix::{
    BF16, ByElement, Element, F16, F32, Floats, PANEL, Product, Shape, Stored, Transpose, bytes_of,
};

/// Keys of a block: those that stand side by side.
const BLOCK: usize = LANES;
const _: () = assert!(PAGE.is_multiple_of(BLOCK) && CHUNK.is_multiple_of(BLOCK));

/// The keys and values of one head of a sequence, and how they are attended to.
pub(super) struct Head<'a> {
    pub keys: &'a Pages,
    /// `None`: values are the first elements of the keys' rows.
    pub values: Option<&'a Pages>,
    /// The number of the key/value head.
    pub head: usize,
    /// Number of the page of each [`PAGE`] positions.
    pub table: &'a [u32],
    pub softcap: Option<f32>,
    /// How many positions a query sees, its own included.
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

    /// The stored keys of the block from `start` on, if the sequence has one.
    fn keys_at(&self, start: usize) -> &[u8] {
        match self.table.get(start / PAGE) {
            None | Some(&NO_PAGE) => &[],
            Some(page) => self.keys.slots(self.head, *page, start % PAGE..start % PAGE + BLOCK),
        }
    }

    /// Computes what the keys of chunk number `chunk` contribute to the query rows in `scratch`; the result is
    /// `scratch.chunk`.
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

    /// Takes in the block of keys that begins at position `start`.
    fn block(&self, kind: IsaKind, rows: Rows, start: usize, scratch: &mut Scratch, partial: &mut Partial) {
        let Rows { group, first, n_tokens } = rows;
        let end = start + BLOCK;
        // the tokens that see some of them, and what those see
        let from = start.saturating_sub(first);
        let to = n_tokens.min(end.saturating_add(self.window - 1).saturating_sub(first));
        let tokens = first + from..first + to;
        let seen = self.seen(tokens.start).start.max(start)..tokens.end.min(end);
        let page = self.table[start / PAGE];
        assert!(page != NO_PAGE, "a page that is seen was given away");
        // positions belong to the same lanes whatever is seen
        let (slot, seen) = (start % PAGE, seen.start - start..seen.end - start);
        let lanes = seen.start / VECTOR * VECTOR..seen.end.next_multiple_of(VECTOR);
        let keys = Block { page, slot, seen, lanes, next: self.keys_at(end) };

        let (m, row, columns) = (tokens.len() * group, from * group, keys.lanes.len());
        let mut scores = std::mem::take(&mut scratch.scores);
        let scores_of_rows = room(&mut scores, m * columns);
        self.scores(kind, &keys, row, m, scores_of_rows, scratch);
        let is_masked = self.mask(&keys, start, group, &tokens, scores_of_rows);

        let stride = partial.stride;
        let values = &mut partial.values[row * stride..(row + m) * stride];
        let (max, sum) = (&mut partial.max[row..row + m], &mut partial.sum[row..row + m]);
        let softmax = SoftmaxRows {
            scores: scores_of_rows,
            stride: columns,
            n: columns,
            softcap: self.softcap,
            max,
            sum,
            values,
            value_stride: stride,
        };
        run(kind, softmax);

        let weights = Floats { data: &scores[keys.seen.start - keys.lanes.start..], stride: columns };
        let values = &mut partial.values[row * stride..(row + m) * stride];
        if is_masked && !self.values_are_finite(kind, &keys, stride, scratch) {
            // zero times infinity is NaN, which must not reach those who do not see it
            for ((i, position), values) in tokens.enumerate().zip(values.chunks_exact_mut(group * stride)) {
                let seen = self.seen(position);
                let seen = seen.start.max(start) - start..seen.end.min(end) - start;
                let first = i * group * columns + seen.start - keys.seen.start;
                let weights = Floats { data: &weights.data[first..], stride: columns };
                self.add_values(kind, &Block { seen, ..keys.clone() }, weights, group, values, scratch);
            }
        } else {
            self.add_values(kind, &keys, weights, m, values, scratch);
        }
        scratch.scores = scores;
    }

    /// Computes the scores of `m` query rows, from number `row` on, with all keys of the block.
    fn scores(
        &self,
        kind: IsaKind,
        keys: &Block<'_>,
        row: usize,
        m: usize,
        scores: &mut [f32],
        scratch: &mut Scratch,
    ) {
        let Scratch { d, queries, transposed, panel, keys: floats, .. } = scratch;
        let (d, stride) = (*d, d.next_multiple_of(VECTOR));
        let a = Floats { data: &queries[row * stride..], stride };
        let (shape, n) = (self.keys.shape(), keys.lanes.len());
        let group = || self.keys.slots(self.head, keys.page, keys.slot..keys.slot + BLOCK);
        let next = self.values.map_or(&[][..], |v| v.slots(self.head, keys.page, keys.slots(&keys.lanes)));
        let add = false;
        if m <= FEW_ROWS {
            scores.fill(0.0);
        }
        if let (true, Some(bytes)) = (shape.in_lanes(), shape.ty().element_bytes()) {
            let b = Stored { data: &group()[keys.lanes.start * bytes..], stride: LANES * bytes };
            by_type(
                shape.ty(),
                kind,
                Times { a, b, c: scores, shape: Shape { m, n, k: d }, add, panel, next },
            );
        } else if shape.in_lanes() {
            // few rows: decoded in parts that stay near
            let part = if m <= FEW_ROWS { PART_OF_KEY } else { d };
            let group = group().chunks(part * shape.row_bytes() / d * LANES);
            let n_parts = d.div_ceil(part);
            let nexts = next.chunks(next.len().div_ceil(n_parts).max(1)).chain(std::iter::repeat(&[][..]));
            for ((first, group), next) in (0..d).step_by(part).zip(group).zip(nexts) {
                let k = part.min(d - first);
                let out = room(transposed, k * n);
                widen(kind, shape.ty(), group, keys.lanes.clone(), out);
                let b = Stored { data: bytes_of(out), stride: 4 * n };
                let a = Floats { data: &a.data[first..], stride };
                Times { a, b, c: scores, shape: Shape { m, n, k }, add, panel, next }.go::<F32>(kind);
            }
        } else {
            let rows = StoredRows::of(kind, self.keys, self.head, keys.page, keys.slots(&keys.lanes), floats);
            let out = room(transposed, stride * n);
            let ty = PhantomData;
            rows.go(kind, Transpose { b: rows.stored, n, k: stride, out, stride: n, ty });
            let b = Stored { data: bytes_of(out), stride: 4 * n };
            Times { a, b, c: scores, shape: Shape { m, n, k: d }, add, panel, next: keys.next }
                .go::<F32>(kind);
        }
    }

    /// Sets scores of keys that a token does not see to -inf. Returns whether some key of `keys.seen` is not seen by
    /// all rows.
    fn mask(
        &self,
        keys: &Block<'_>,
        start: usize,
        group: usize,
        tokens: &Range<usize>,
        scores: &mut [f32],
    ) -> bool {
        let n = keys.lanes.len();
        let mut is_masked = false;
        for (scores, position) in scores.chunks_exact_mut(group * n).zip(tokens.clone()) {
            let seen = self.seen(position);
            let column =
                |at: usize| at.saturating_sub(start).clamp(keys.seen.start, keys.seen.end) - keys.lanes.start;
            let seen = column(seen.start)..column(seen.end);
            is_masked |= seen.len() < keys.seen.len();
            if seen.len() < n {
                for scores in scores.chunks_exact_mut(n) {
                    scores[..seen.start].fill(f32::NEG_INFINITY);
                    scores[seen.end..].fill(f32::NEG_INFINITY);
                }
            }
        }
        is_masked
    }

    /// Adds the weighted sum of the values of the keys seen to `m` rows of the result.
    fn add_values(
        &self,
        kind: IsaKind,
        keys: &Block<'_>,
        weights: Floats<'_>,
        m: usize,
        values: &mut [f32],
        scratch: &mut Scratch,
    ) {
        let n = values.len() / m;
        let Scratch { panel, values: floats, keys: key_floats, sums, .. } = scratch;
        let mut product = |part: &Range<usize>, next, c: &mut [f32], add| {
            let rows = match self.values {
                Some(pages) => StoredRows::of(kind, pages, self.head, keys.page, keys.slots(part), floats),
                // decoded for scores already
                None => StoredRows::of_keys(self.keys, keys, part, key_floats),
            };
            let a = Floats { data: &weights.data[part.start - keys.seen.start..], stride: weights.stride };
            let shape = Shape { m, n, k: part.len() };
            rows.go(kind, Times { a, b: rows.stored, c, shape, add, panel, next });
        };
        if m > FEW_ROWS {
            product(&keys.seen, keys.next, values, true);
            return;
        }
        // decoded in parts that stay near
        let pages = self.values.unwrap_or(self.keys);
        let part = if pages.shape().ty().element_bytes().is_none() { PART_OF_VALUES } else { BLOCK };
        let n_parts = keys.seen.len().div_ceil(part);
        let mut nexts = keys.next.chunks(keys.next.len().div_ceil(n_parts).max(1));
        let sums = room(sums, values.len());
        sums.fill(0.0);
        for first in keys.seen.clone().step_by(part) {
            let part = first..keys.seen.end.min(first + part);
            product(&part, nexts.next().unwrap_or_default(), sums, false);
        }
        run(kind, AddTo { sums, values });
    }

    /// Whether the first `n` elements of the values seen are neither NaN nor infinite.
    fn values_are_finite(&self, kind: IsaKind, keys: &Block<'_>, n: usize, scratch: &mut Scratch) -> bool {
        let Scratch { values: floats, keys: key_floats, .. } = scratch;
        let rows = match self.values {
            Some(pages) => StoredRows::of(kind, pages, self.head, keys.page, keys.slots(&keys.seen), floats),
            None => StoredRows::of_keys(self.keys, keys, &keys.seen, key_floats),
        };
        let mut sum = 0.0;
        rows.go(kind, TimesZero { b: rows.stored, n: keys.seen.len(), k: n, sum: &mut sum, ty: PhantomData });
        sum == 0.0
    }
}

/// Elements of keys that are decoded together for few rows.
const PART_OF_KEY: usize = 64;
/// Values that are decoded together for few rows.
const PART_OF_VALUES: usize = 16;

/// Where the keys of a block stand.
#[derive(Clone)]
struct Block<'a> {
    page: u32,
    /// The slot of the first key in its page.
    slot: usize,
    /// Keys from the first to the last that some row sees, counted from the block's start.
    seen: Range<usize>,
    /// The keys in `seen`, widened to whole vectors.
    lanes: Range<usize>,
    /// Bytes of keys that are read next, to be fetched into the cache meanwhile.
    next: &'a [u8],
}

impl Block<'_> {
    /// The slots of the page that these keys have.
    fn slots(&self, of: &Range<usize>) -> Range<usize> {
        self.slot + of.start..self.slot + of.end
    }
}

/// A product into rows of as many floats as it has columns, by the way that is best for so many rows. Few rows go on from
/// what `c` holds; for many, the product is what `c` becomes, or what is added to it.
struct Times<'a> {
    a: Floats<'a>,
    b: Stored<'a>,
    c: &'a mut [f32],
    shape: Shape,
    add: bool,
    panel: &'a mut Vec<f32>,
    /// Bytes that are read next, to be fetched into the cache meanwhile.
    next: &'a [u8],
}

impl ByElement for Times<'_> {
    fn go<E: Element>(self, kind: IsaKind) {
        let Times { a, b, c, shape, add, panel, next } = self;
        let ty = PhantomData::<()>;
        if shape.m <= FEW_ROWS {
            Few { a, b, c, shape, next, ty }.go::<E>(kind);
        } else {
            let panel = room(panel, PANEL * shape.k);
            Product { a, b, c, c_stride: shape.n, shape, add, panel, ty }.go::<E>(kind);
        }
    }
}

/// Adds a block's sums to what is there.
struct AddTo<'a> {
    sums: &'a [f32],
    values: &'a mut [f32],
}

impl IsaOp for AddTo<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let sums = self.sums.as_chunks::<16>().0;
        for (v, s) in self.values.as_chunks_mut::<16>().0.iter_mut().zip(sums) {
            isa.store_f(isa.add_f(isa.load_f(v), isa.load_f(s)), v);
        }
    }
}

/// Rows of a block as the kernels read them: where they stand, or decoded.
struct StoredRows<'a> {
    ty: CacheType,
    stored: Stored<'a>,
}

impl<'a> StoredRows<'a> {
    /// The rows of `slots` of a head, in a page that stores rows.
    fn of(
        kind: IsaKind,
        pages: &'a Pages,
        head: usize,
        page: u32,
        slots: Range<usize>,
        floats: &'a mut Vec<f32>,
    ) -> StoredRows<'a> {
        let (shape, n) = (pages.shape(), slots.len());
        let data = pages.slots(head, page, slots);
        if shape.ty().element_bytes().is_some() {
            return StoredRows { ty: shape.ty(), stored: Stored { data, stride: shape.row_bytes() } };
        }
        let floats = room(floats, n * shape.d());
        decode(kind, shape.ty(), data, floats);
        StoredRows { ty: CacheType::F32, stored: Stored { data: bytes_of(floats), stride: 4 * shape.d() } }
    }

    /// The values that are part of latent keys; `floats` has them where they had to be decoded.
    fn of_keys(pages: &'a Pages, keys: &Block<'_>, part: &Range<usize>, floats: &'a [f32]) -> StoredRows<'a> {
        let shape = pages.shape();
        if shape.ty().element_bytes().is_some() {
            let stored =
                Stored { data: pages.slots(0, keys.page, keys.slots(part)), stride: shape.row_bytes() };
            return StoredRows { ty: shape.ty(), stored };
        }
        let data = bytes_of(&floats[(part.start - keys.lanes.start) * shape.d()..]);
        StoredRows { ty: CacheType::F32, stored: Stored { data, stride: 4 * shape.d() } }
    }

    fn go(&self, kind: IsaKind, kernel: impl ByElement) {
        by_type(self.ty, kind, kernel);
    }
}

/// The sum of all elements times zero: zero, or NaN.
struct TimesZero<'a, E> {
    b: Stored<'a>,
    n: usize,
    /// Elements of a row, a multiple of 16.
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

/// Runs a kernel for numbers of type `ty`, a type that stores each number by itself.
fn by_type(ty: CacheType, kind: IsaKind, kernel: impl ByElement) {
    match ty {
        CacheType::F16 => kernel.go::<F16>(kind),
        CacheType::BF16 => kernel.go::<BF16>(kind),
        _ => kernel.go::<F32>(kind),
    }
}
