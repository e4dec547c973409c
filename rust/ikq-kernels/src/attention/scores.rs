//! Scores of a block of keys: sixteen keys side by side, a chain of products over the elements of a head in each lane.
//!
//! ```text
//! score[i, j] = fma(q[i, d - 1], k[d - 1, j], ... fma(q[i, 0], k[0, j], 0))
//! ```
//! That is the only way in which scores are summed, whatever the number of rows: where there are many, the block is made
//! floats in lanes first ([`Widen`], or `Transpose` of rows) and multiplied by `ops::matrix::Product`, whose
//! accumulators are the same chains.

use std::marker::PhantomData;

use ikq_simd::{Isa, IsaKind, IsaOp, prefetch, run};

use super::pages::LANES;
use crate::ops::matrix::{ByElement, Element, Floats};

/// Scores of few rows with keys in lanes, read where they stand.
pub(super) struct Scores<'a, E> {
    pub queries: Floats<'a>,
    pub n_rows: usize,
    /// Elements of a key.
    pub d: usize,
    /// Whole groups.
    pub keys: &'a [u8],
    pub scores: &'a mut [f32],
    pub stride: usize,
    /// What is read next: with several rows it comes from memory while these are multiplied.
    pub next: &'a [u8],
    pub ty: PhantomData<E>,
}

impl<E: Element> IsaOp for Scores<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(mut self, isa: I) {
        let mut i = 0;
        while i < self.n_rows {
            // accumulators that hide each other's latency, as many as there are registers for
            let wide = I::N_REGISTERS >= 32;
            i += match self.n_rows - i {
                8 if wide => self.rows::<I, 8, 2>(isa, i),
                7 if wide => self.rows::<I, 7, 2>(isa, i),
                6.. if wide => self.rows::<I, 6, 4>(isa, i),
                5 if wide => self.rows::<I, 5, 4>(isa, i),
                4 if wide => self.rows::<I, 4, 4>(isa, i),
                3 if wide => self.rows::<I, 3, 4>(isa, i),
                2 if wide => self.rows::<I, 2, 4>(isa, i),
                _ if wide => self.rows::<I, 1, 8>(isa, i),
                6.. => self.rows::<I, 6, 1>(isa, i),
                5 => self.rows::<I, 5, 1>(isa, i),
                4 => self.rows::<I, 4, 1>(isa, i),
                3 => self.rows::<I, 3, 2>(isa, i),
                2 => self.rows::<I, 2, 2>(isa, i),
                _ => self.rows::<I, 1, 4>(isa, i),
            };
        }
    }
}

impl<E: Element> Scores<'_, E> {
    /// Rows `i..i + M` with all keys; gives M.
    #[inline(always)]
    fn rows<I: Isa, const M: usize, const N: usize>(&mut self, isa: I, i: usize) -> usize {
        let n_groups = self.keys.len() / (LANES * self.d * E::BYTES);
        let mut g = 0;
        while g + N <= n_groups {
            if i == 0 && self.n_rows > 1 {
                let share = |g: usize| g * self.next.len() / n_groups;
                prefetch(&self.next[share(g)..share(g + N)]);
            }
            self.tile::<I, M, N>(isa, i, g);
            g += N;
        }
        while g < n_groups {
            self.tile::<I, M, 1>(isa, i, g);
            g += 1;
        }
        M
    }

    #[inline(always)]
    fn tile<I: Isa, const M: usize, const N: usize>(&mut self, isa: I, i: usize, g: usize) {
        let (d, width) = (self.d, LANES * E::BYTES);
        let mut queries: [&[f32]; M] = [&[]; M];
        for (r, q) in queries.iter_mut().enumerate() {
            *q = &self.queries.data[(i + r) * self.queries.stride..][..d];
        }
        let mut keys: [&[u8]; N] = [&[]; N];
        for (k, group) in keys.iter_mut().zip(self.keys[g * d * width..].chunks_exact(d * width)) {
            *k = &group[..d * width];
        }
        let mut acc = [[isa.splat_f(0.0); N]; M];
        for l in 0..d {
            let mut k = [isa.splat_f(0.0); N];
            for (k, group) in k.iter_mut().zip(keys) {
                *k = E::load(isa, &group[l * width..(l + 1) * width]);
            }
            for (acc, q) in acc.iter_mut().zip(queries) {
                let q = isa.splat_f(q[l]);
                for (acc, k) in acc.iter_mut().zip(k) {
                    *acc = isa.fma(q, k, *acc);
                }
            }
        }
        for (r, acc) in acc.into_iter().enumerate() {
            let out = &mut self.scores[(i + r) * self.stride + LANES * g..][..LANES * N];
            for (out, v) in out.as_chunks_mut::<LANES>().0.iter_mut().zip(acc) {
                isa.store_f(v, out);
            }
        }
    }
}

/// Groups in lanes to floats: element l of all keys in row l of `out`.
pub(super) struct Widen<'a, E> {
    pub d: usize,
    /// Whole groups.
    pub keys: &'a [u8],
    pub out: &'a mut [f32],
    /// Elements of a row of `out`: the keys.
    pub stride: usize,
    pub ty: PhantomData<E>,
}

impl<E: Element> IsaOp for Widen<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let width = LANES * E::BYTES;
        for (g, group) in self.keys.chunks_exact(self.d * width).enumerate() {
            let rows = self.out.chunks_exact_mut(self.stride);
            for (row, k) in rows.zip(group.chunks_exact(width)) {
                let out = row[LANES * g..][..LANES].as_mut_array().expect("sixteen keys");
                isa.store_f(E::load(isa, k), out);
            }
        }
    }
}

impl ByElement for Scores<'_, ()> {
    fn go<E: Element>(self, kind: IsaKind) {
        let Scores { queries, n_rows, d, keys, scores, stride, next, .. } = self;
        run(kind, Scores::<E> { queries, n_rows, d, keys, scores, stride, next, ty: PhantomData });
    }
}

impl ByElement for Widen<'_, ()> {
    fn go<E: Element>(self, kind: IsaKind) {
        let Widen { d, keys, out, stride, .. } = self;
        run(kind, Widen::<E> { d, keys, out, stride, ty: PhantomData });
    }
}
