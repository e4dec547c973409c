//! What one token sees of its head: the products of [`super::advance`] with the state and the keys of the chunk,
//! for one key and one query.

use ikq_simd::{Isa, IsaOp, prefetch};

use super::state::Sizes;
use super::{BLOCK, CHUNK};
use crate::ops::matrix::bytes_of;

/// The products of two rows (key, query) with the state and with the chunk's keys. Element for element they are the
/// operations of [`crate::ops::matrix::Product`] in its order (sums that start at 0 and go on by fused products, `dk`
/// ascending), so the bits are its too. Here both products take turns, so that enough sums are under way at once, and
/// memory is read once and in order.
pub(super) struct See<'a> {
    /// The key and the query, `dk` elements each.
    pub rows: &'a [f32],
    pub matrix: &'a [f32],
    pub keys: &'a [f32],
    pub sizes: Sizes,
    /// The token's place in the chunk.
    pub token: usize,
    /// What is read next, to be fetched into the cache meanwhile.
    pub next: &'a [f32],
    /// The products of key and query with the state: two rows of `width`.
    pub seen: &'a mut [f32],
    /// The products of key and query with the chunk's keys: two rows of [`CHUNK`].
    pub pairs: &'a mut [f32],
}

impl IsaOp for See<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(mut self, isa: I) {
        let mut block = 0;
        for (at, width) in self.sizes.panels() {
            let mut j = 0;
            if I::N_REGISTERS >= 32 {
                while j + 64 <= width {
                    self.columns::<I, 4>(isa, at, width, j, &mut block);
                    j += 64;
                }
            }
            while j + 32 <= width {
                self.columns::<I, 2>(isa, at, width, j, &mut block);
                j += 32;
            }
            if j < width {
                self.columns::<I, 1>(isa, at, width, j, &mut block);
            }
        }
        // fewer panels than blocks: no columns but those of the keys
        while block <= self.token / BLOCK {
            self.columns::<I, 0>(isa, 0, 16, 0, &mut block);
        }
    }
}

impl See<'_> {
    /// Columns `j..j + 16 N` of the panel of `width` columns that starts at column `at`, and with them the next block
    /// of keys if one is left.
    #[inline(always)]
    fn columns<I: Isa, const N: usize>(
        &mut self,
        isa: I,
        at: usize,
        width: usize,
        j: usize,
        block: &mut usize,
    ) {
        let dk = self.sizes.dk;
        let panel = &self.matrix[at * dk..][..width * dk];
        let (k, q) = self.rows.split_at(dk);
        let rows = panel.chunks_exact(width).zip(k).zip(q);
        let mut acc = [[isa.splat_f(0.0); N]; 2];
        if *block <= self.token / BLOCK {
            let mut lines = self.next.chunks(16);
            let mut of_keys = [isa.splat_f(0.0); 2];
            let keys = self.keys[*block * BLOCK * dk..].as_chunks::<BLOCK>().0;
            for (((row, k), q), keys) in rows.zip(keys) {
                let a = [isa.splat_f(*k), isa.splat_f(*q)];
                add(isa, a, &row[j..j + 16 * N], &mut acc);
                let x = isa.load_f(keys);
                of_keys = [isa.fma(a[0], x, of_keys[0]), isa.fma(a[1], x, of_keys[1])];
                if let Some(line) = lines.next() {
                    prefetch(bytes_of(line));
                }
            }
            for (v, row) in of_keys.into_iter().zip(self.pairs.as_chunks_mut::<CHUNK>().0) {
                isa.store_f(v, &mut row.as_chunks_mut::<BLOCK>().0[*block]);
            }
            self.next = &self.next[self.next.len().min(16 * dk)..];
            *block += 1;
        } else {
            for ((row, k), q) in rows {
                add(isa, [isa.splat_f(*k), isa.splat_f(*q)], &row[j..j + 16 * N], &mut acc);
            }
        }
        for (acc, seen) in acc.into_iter().zip(self.seen.chunks_exact_mut(self.sizes.width)) {
            let to = seen[at + j..][..16 * N].as_chunks_mut::<16>().0;
            for (to, v) in to.iter_mut().zip(acc) {
                isa.store_f(v, to);
            }
        }
    }
}

/// `acc[r] += a[r] row` of both rows.
#[inline(always)]
fn add<I: Isa, const N: usize>(isa: I, a: [I::F; 2], row: &[f32], acc: &mut [[I::F; N]; 2]) {
    let [of_key, of_query] = acc;
    for ((x, k), q) in row.as_chunks::<16>().0.iter().zip(of_key).zip(of_query) {
        let x = isa.load_f(x);
        *k = isa.fma(a[0], x, *k);
        *q = isa.fma(a[1], x, *q);
    }
}
