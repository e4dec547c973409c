//! The walk over blocks of keys.
//!
//! ```text
//! for each block of keys:
//!     scores = queries x keys^T        few rows: dot products; many: the block transposed once, then a product
//!     mask; softmax with the rows' running maximum
//!     values += exponentials x values of the block
//! ```
//! Floats and halves are read where they stand; other types, and heads that are no multiple of 16, are decoded
//! to floats once per block, whatever the number of query heads that share them.

use std::marker::PhantomData;
use std::ops::Range;

use ikq_simd::{IsaKind, run};

use super::cache::Cache;
use super::encode::decode;
use super::kernels::Dots;
use super::partial::Partial;
use super::scratch::{Scratch, room};
use super::softmax::SoftmaxRows;
use super::types::CacheType;
use crate::ops::matrix::{
    BF16, ByElement, F16, F32, Floats, PANEL, Product, Shape, Stored, Transpose, bytes_of,
};

/// Query rows of a tile for prompts: keys are decoded once for so many.
pub const TILE_ROWS: usize = 96;
/// Rows up to which dot products beat transposing the keys.
const FEW_ROWS: usize = 8;
/// Keys of a block for few and for many rows.
const BLOCK_FEW: usize = 256;
const BLOCK_MANY: usize = 64;

/// The keys and values of one head, and how they are attended to.
#[derive(Clone, Copy)]
pub struct KvHead<'a> {
    pub keys: &'a Cache,
    /// `None`: values are the first elements of the keys' rows.
    pub values: Option<&'a Cache>,
    /// Which head of the caches.
    pub head: usize,
    /// Elements of a value.
    pub head_dim_v: usize,
    pub softcap: Option<f32>,
    /// A query sees so many positions, its own included.
    pub window: Option<usize>,
}

/// Adds what `keys` (positions) contribute to `partial` for the query rows of `scratch`. Row r belongs to the token
/// at position `first + r / group`; masks follow from that.
///
/// # Panics
/// When shapes do not fit together.
pub fn attend(
    kind: IsaKind,
    head: &KvHead<'_>,
    group: usize,
    first: usize,
    keys: Range<usize>,
    scratch: &mut Scratch,
    partial: &mut Partial,
) {
    let n_rows = scratch.n_rows;
    assert_eq!(scratch.d, head.keys.d(), "queries are as long as keys");
    let values_fit = match head.values {
        Some(values) => values.d() == head.head_dim_v,
        None => head.keys.d() >= head.head_dim_v,
    };
    assert!(values_fit && partial.d() == head.head_dim_v, "values of {} elements", head.head_dim_v);
    assert!(n_rows == partial.n_rows() && n_rows > 0, "a partial result per row");
    let last = first + (n_rows - 1) / group;
    let window = head.window.unwrap_or(usize::MAX);
    // what any row sees
    let keys = keys.start.max((first + 1).saturating_sub(window))..keys.end.min(last + 1);
    let block = if n_rows <= FEW_ROWS { BLOCK_FEW } else { BLOCK_MANY };
    for start in keys.clone().step_by(block) {
        let range = start..keys.end.min(start + block);
        one_block(kind, head, [group, first, window], range, scratch, partial);
    }
}

/// Whether kernels read the cache's rows where they stand.
fn is_direct(cache: &Cache) -> bool {
    matches!(cache.ty(), CacheType::F32 | CacheType::F16 | CacheType::BF16) && cache.d().is_multiple_of(16)
}

/// Rows of a block as the kernels read them: where they stand, or decoded.
struct Rows<'a> {
    ty: CacheType,
    stored: Stored<'a>,
}

impl<'a> Rows<'a> {
    /// `k` leading elements of each row are wanted.
    fn of(
        kind: IsaKind,
        cache: &'a Cache,
        head: usize,
        range: Range<usize>,
        scratch: &'a mut Vec<f32>,
    ) -> Rows<'a> {
        let (n, d) = (range.len(), cache.d());
        let data = cache.rows(head, range);
        if is_direct(cache) {
            return Rows { ty: cache.ty(), stored: Stored { data, stride: cache.row_bytes() } };
        }
        let stride = d.next_multiple_of(16);
        let floats = room(scratch, n * stride);
        if stride == d {
            decode(kind, cache.ty(), data, floats);
        } else {
            for (row, out) in data.chunks_exact(cache.row_bytes()).zip(floats.chunks_exact_mut(stride)) {
                let (out, padding) = out.split_at_mut(d);
                decode(kind, cache.ty(), row, out);
                padding.fill(0.0);
            }
        }
        Rows { ty: CacheType::F32, stored: Stored { data: bytes_of(floats), stride: 4 * stride } }
    }

    fn go(&self, kind: IsaKind, kernel: impl ByElement) {
        match self.ty {
            CacheType::F16 => kernel.go::<F16>(kind),
            CacheType::BF16 => kernel.go::<BF16>(kind),
            _ => kernel.go::<F32>(kind),
        }
    }
}

fn one_block(
    kind: IsaKind,
    head: &KvHead<'_>,
    [group, first, window]: [usize; 3],
    range: Range<usize>,
    scratch: &mut Scratch,
    partial: &mut Partial,
) {
    let Scratch { n_rows, queries, scores, transposed, keys, values, .. } = scratch;
    let (m, n) = (*n_rows, range.len());
    let columns = n.next_multiple_of(16);
    let d = head.keys.d().next_multiple_of(16);
    let scores = room(scores, m * columns);
    let queries = Floats { data: queries, stride: d };

    let rows = Rows::of(kind, head.keys, head.head, range.clone(), keys);
    if m <= FEW_ROWS {
        let shape = Shape { m, n, k: d };
        let next = match head.values {
            Some(cache) => Stored { data: cache.rows(head.head, range.clone()), stride: cache.row_bytes() },
            None => Stored { data: &[], stride: 0 },
        };
        let (b, c, ty) = (rows.stored, &mut *scores, PhantomData);
        rows.go(kind, Dots { a: queries, b, c, c_stride: columns, shape, next, ty });
    } else {
        let out = room(transposed, d * columns);
        rows.go(kind, Transpose { b: rows.stored, n, k: d, out, stride: columns, ty: PhantomData });
        let b = Stored { data: bytes_of(transposed), stride: 4 * columns };
        let shape = Shape { m, n: columns, k: d };
        let c = &mut *scores;
        let panel: &mut [f32] = &mut [];
        let ty = PhantomData::<()>;
        let product = Product { a: queries, b, c, c_stride: columns, shape, add: false, panel, ty };
        product.go::<F32>(kind);
    }

    for (row, scores) in scores.chunks_exact_mut(columns).enumerate() {
        let position = first + row / group;
        let seen = (position + 1).saturating_sub(window)..position + 1;
        let in_block = |at: usize| at.clamp(range.start, range.end) - range.start;
        scores[..in_block(seen.start)].fill(f32::NEG_INFINITY);
        scores[in_block(seen.end)..].fill(f32::NEG_INFINITY);
    }
    let Partial { stride, max, sum, values: so_far, .. } = partial;
    run(
        kind,
        SoftmaxRows {
            scores,
            stride: columns,
            n: columns,
            softcap: head.softcap,
            max,
            sum,
            values: so_far,
            value_stride: *stride,
        },
    );

    let rows = match head.values {
        Some(cache) => Rows::of(kind, cache, head.head, range, values),
        None => rows,
    };
    let weights = Floats { data: scores, stride: columns };
    let shape = Shape { m, n: *stride, k: n };
    let (c, c_stride) = (&mut so_far[..], *stride);
    let panel = room(transposed, PANEL * n);
    rows.go(
        kind,
        Product { a: weights, b: rows.stored, c, c_stride, shape, add: true, panel, ty: PhantomData },
    );
}

#[cfg(test)]
#[path = "flash_tests.rs"]
mod tests;
