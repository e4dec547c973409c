//! [`Cache`]: keys or values of all positions, head after head, in few bits.

use std::ops::Range;

use ikq_simd::IsaKind;

use super::encode::{decode, encode};
use super::types::{CacheError, CacheType};
use crate::ops::{Pairing, rotate};

/// Alignment of the first row, so that rows whose size is a power of two do not straddle cache lines.
const ALIGN: usize = 64;

/// Rows of `d` elements for `n_head` heads at up to `n_ctx` positions. A head's positions follow one another.
///
/// Memory is asked for whole and touched when rows are stored.
pub struct Cache {
    ty: CacheType,
    n_head: usize,
    d: usize,
    n_ctx: usize,
    row_bytes: usize,
    /// Where the rows begin in `data`.
    start: usize,
    data: Vec<u8>,
}

/// A run of positions of one head, to be written.
pub struct CacheRows<'a> {
    pub head: usize,
    pub positions: Range<usize>,
    ty: CacheType,
    n_head: usize,
    d: usize,
    row_bytes: usize,
    bytes: &'a mut [u8],
}

impl Cache {
    /// A cache of nothing.
    ///
    /// # Errors
    /// [`CacheError`].
    pub fn new(ty: CacheType, n_head: usize, d: usize, n_ctx: usize) -> Result<Cache, CacheError> {
        let row_bytes = ty.row_bytes(d).ok_or(CacheError::HeadSize { ty, d })?;
        let no_memory = CacheError::Memory { n_head, row_bytes, n_ctx };
        let bytes = n_head
            .checked_mul(row_bytes)
            .and_then(|b| b.checked_mul(n_ctx))
            .and_then(|b| b.checked_add(ALIGN))
            .ok_or(no_memory)?;
        // asks whether there is so much; only `vec!` asks for zeroed pages without touching them
        Vec::<u8>::new().try_reserve_exact(bytes).map_err(|_| no_memory)?;
        let data = vec![0u8; bytes];
        let start = data.as_ptr().align_offset(ALIGN).min(ALIGN);
        Ok(Cache { ty, n_head, d, n_ctx, row_bytes, start, data })
    }

    pub fn ty(&self) -> CacheType {
        self.ty
    }

    pub fn n_head(&self) -> usize {
        self.n_head
    }

    /// Elements of a head's row.
    pub fn d(&self) -> usize {
        self.d
    }

    /// Positions there is room for.
    pub fn n_ctx(&self) -> usize {
        self.n_ctx
    }

    /// Bytes of a head's row.
    pub fn row_bytes(&self) -> usize {
        self.row_bytes
    }

    /// Bytes of the whole cache.
    pub fn bytes(&self) -> usize {
        self.n_head * self.n_ctx * self.row_bytes
    }

    /// Where the rows of positions of a head stand in `data`.
    fn range(&self, head: usize, positions: &Range<usize>) -> Range<usize> {
        assert!(head < self.n_head && positions.end <= self.n_ctx, "head {head} at {positions:?}");
        let at = |position| self.start + (head * self.n_ctx + position) * self.row_bytes;
        at(positions.start)..at(positions.end)
    }

    /// The stored rows of positions of a head, one after another.
    pub fn rows(&self, head: usize, positions: Range<usize>) -> &[u8] {
        &self.data[self.range(head, &positions)]
    }

    /// Stores one position: `row` holds all heads.
    pub fn store(&mut self, kind: IsaKind, position: usize, row: &[f32]) {
        for mut part in self.rows_mut(position..position + 1, 1) {
            part.store(kind, row);
        }
    }

    /// The rows of `positions`, in runs of at most `step`, for threads to write.
    ///
    /// # Panics
    /// When the positions lie outside the context or `step` is 0.
    pub fn rows_mut(&mut self, positions: Range<usize>, step: usize) -> Vec<CacheRows<'_>> {
        assert!(positions.end <= self.n_ctx && step > 0, "{positions:?} of {}", self.n_ctx);
        let (ty, n_head, d, row_bytes) = (self.ty, self.n_head, self.d, self.row_bytes);
        let per_head = (self.n_ctx * row_bytes).max(1);
        let heads = self.data[self.start..][..n_head * self.n_ctx * row_bytes].chunks_exact_mut(per_head);
        let mut all = Vec::new();
        for (head, bytes) in heads.enumerate() {
            let mut bytes = &mut bytes[positions.start * row_bytes..positions.end * row_bytes];
            for first in positions.clone().step_by(step) {
                let positions = first..positions.end.min(first.saturating_add(step));
                let (part, rest) = bytes.split_at_mut(positions.len() * row_bytes);
                bytes = rest;
                all.push(CacheRows { head, positions, ty, n_head, d, row_bytes, bytes: part });
            }
        }
        all
    }

    /// The rows of positions of a head as floats.
    ///
    /// # Panics
    /// When `out` does not hold them.
    pub fn decode(&self, kind: IsaKind, head: usize, positions: Range<usize>, out: &mut [f32]) {
        assert_eq!(out.len(), positions.len() * self.d, "{} floats per position", self.d);
        decode(kind, self.ty, self.rows(head, positions), out);
    }

    /// Forgets the positions `gone` of the first `n_past`; later rows move down. Rows of a rotated key are turned
    /// back by `turn`: the pairing, [`RopeTable::cos_sin_back`](crate::ops::RopeTable::cos_sin_back) of
    /// `gone.len()`, and where in the row the rotated part begins.
    ///
    /// # Panics
    /// When `gone` does not lie in the first `n_past` of the cache's positions.
    pub fn remove(
        &mut self,
        kind: IsaKind,
        gone: Range<usize>,
        n_past: usize,
        turn: Option<(Pairing, &[f32], usize)>,
    ) {
        assert!(gone.start <= gone.end && gone.end <= n_past && n_past <= self.n_ctx, "{gone:?} of {n_past}");
        for head in 0..self.n_head {
            let from = self.range(head, &(gone.end..n_past));
            let to = self.range(head, &(gone.start..n_past));
            self.data.copy_within(from, to.start);
        }
        let Some((pairing, cos_sin, offset)) = turn else {
            return;
        };
        let mut floats = vec![0.0; self.d];
        for rows in &mut self.rows_mut(gone.start..n_past - gone.len(), usize::MAX) {
            for row in rows.bytes.chunks_exact_mut(rows.row_bytes) {
                decode(kind, rows.ty, row, &mut floats);
                rotate(kind, pairing, cos_sin, &mut floats[offset..]);
                encode(kind, rows.ty, &floats, row);
            }
        }
    }
}

impl CacheRows<'_> {
    /// Stores the head's part of each column of `columns` (all heads of a position, one column per position).
    ///
    /// # Panics
    /// When there is not a column per position.
    pub fn store(&mut self, kind: IsaKind, columns: &[f32]) {
        let n = self.positions.len();
        assert_eq!(columns.len(), n * self.n_head * self.d, "a column of all heads per position");
        for (row, column) in
            self.bytes.chunks_exact_mut(self.row_bytes).zip(columns.chunks_exact(self.n_head * self.d))
        {
            encode(kind, self.ty, &column[self.head * self.d..][..self.d], row);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::RopeTable;
    use ikq_simd::available;

    fn numbers(n: usize, seed: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 31 + seed * 17 + 1) as f32 * 0.618).sin() * 3.0).collect()
    }

    #[test]
    fn names_and_sizes() {
        for ty in CacheType::ALL {
            assert_eq!(CacheType::parse(ty.name()), Some(ty));
            assert_eq!(CacheType::parse(&ty.name().to_uppercase()), Some(ty));
            assert_eq!(ty.quant_type().name().to_lowercase(), ty.name());
        }
        assert_eq!(CacheType::parse("q5_7"), None);
        assert_eq!(CacheType::Q8_0.row_bytes(96), Some(102));
        assert_eq!(CacheType::Q8_0.row_bytes(80), None);
        assert_eq!(CacheType::F16.row_bytes(80), Some(160));
        let error = Cache::new(CacheType::Q4_0, 2, 80, 10).err().map(|e| e.to_string());
        assert!(error.is_some_and(|e| e.contains("80") && e.contains("q4_0")));
        assert!(Cache::new(CacheType::F32, 1 << 40, 128, 1 << 40).is_err());
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn what_is_not_stored_takes_no_memory() {
        let resident_pages = || -> usize {
            let statm = std::fs::read_to_string("/proc/self/statm").expect("linux");
            statm.split_whitespace().nth(1).and_then(|n| n.parse().ok()).expect("a number of pages")
        };
        let before = resident_pages();
        let mut cache = Cache::new(CacheType::F16, 8, 128, 1 << 19).expect("fits");
        cache.store(IsaKind::Scalar, 1 << 18, &[1.0; 1024]);
        // one GiB; other tests run beside this one, and take a few MiB
        assert_eq!(cache.bytes(), 1 << 30);
        assert!(resident_pages() < before + (256 << 20) / 4096);
    }

    #[test]
    fn rows_come_back_and_positions_stay_apart() {
        for kind in available() {
            for ty in CacheType::ALL {
                let (n_head, d, n_ctx) = (3, 96, 9);
                let mut cache = Cache::new(ty, n_head, d, n_ctx).expect("fits");
                assert_eq!(cache.bytes(), n_head * n_ctx * ty.row_bytes(d).expect("fits"));
                let columns = numbers(6 * n_head * d, 1);
                cache.store(kind, 2, &numbers(n_head * d, 2));
                for mut part in cache.rows_mut(3..8, 2) {
                    let range = part.positions.start - 2..part.positions.end - 2;
                    part.store(kind, &columns[range.start * n_head * d..range.end * n_head * d]);
                }
                cache.store(kind, 2, &columns[..n_head * d]);
                for head in 0..n_head {
                    let mut rows = vec![f32::NAN; 6 * d];
                    cache.decode(kind, head, 2..8, &mut rows);
                    for (i, row) in rows.chunks_exact(d).enumerate() {
                        let expected = &columns[(i * n_head + head) * d..][..d];
                        let mut bytes = vec![0; cache.row_bytes()];
                        encode(kind, ty, expected, &mut bytes);
                        let mut again = vec![0.0; d];
                        decode(kind, ty, &bytes, &mut again);
                        assert_eq!(row, again, "{} {} {head} {i}", kind.name(), ty.name());
                    }
                    let mut empty = vec![f32::NAN; 2 * d];
                    cache.decode(kind, head, 0..2, &mut empty);
                    assert_eq!(empty, vec![0.0; 2 * d]);
                }
            }
        }
    }

    #[test]
    fn removing_positions_is_as_if_they_had_never_been() {
        let (n_head, d, n_rot, offset) = (2, 96, 32, 48);
        let table = RopeTable::new(n_rot, 10_000.0, 1.0, None, None);
        let mut cos_sin = vec![0.0; n_rot];
        for kind in available() {
            for (gone, n_past) in [(2..5, 11), (0..4, 11), (5..11, 11), (3..3, 11), (0..11, 11)] {
                for pairing in [Pairing::Norm, Pairing::Neox] {
                    let mut shifted = Cache::new(CacheType::F32, n_head, d, 12).expect("fits");
                    let mut fresh = Cache::new(CacheType::F32, n_head, d, 12).expect("fits");
                    let mut stored = 0;
                    for i in 0..n_past {
                        let row = numbers(n_head * d, i);
                        let mut put = |cache: &mut Cache, position: usize| {
                            let mut row = row.clone();
                            table.cos_sin(position as u32, &mut cos_sin);
                            for head in row.chunks_exact_mut(d) {
                                rotate(kind, pairing, &cos_sin, &mut head[offset..]);
                            }
                            cache.store(kind, position, &row);
                        };
                        put(&mut shifted, i);
                        if !gone.contains(&i) {
                            put(&mut fresh, stored);
                            stored += 1;
                        }
                    }
                    let mut back = vec![0.0; n_rot];
                    table.cos_sin_back(gone.len() as u32, &mut back);
                    shifted.remove(kind, gone.clone(), n_past, Some((pairing, &back, offset)));
                    for head in 0..n_head {
                        let (mut a, mut b) = (vec![0.0; stored * d], vec![0.0; stored * d]);
                        shifted.decode(kind, head, 0..stored, &mut a);
                        fresh.decode(kind, head, 0..stored, &mut b);
                        for (a, b) in a.iter().zip(&b) {
                            // two rotations of numbers up to 4.3 instead of one
                            assert!((a - b).abs() < 2e-6, "{gone:?} {a} {b}");
                        }
                    }
                }
            }
        }
    }
}
