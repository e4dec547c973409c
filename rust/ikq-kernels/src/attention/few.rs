//! Products of few rows, at the speed of memory.
//!
//! The sums are those of `ops::matrix::Product`, chains over k, but go on from what is there: a chain may be made in
//! parts, each of which is decoded just before. What is read next is asked for while these rows are multiplied, a few
//! cache lines at each step, since a block of keys or values is too short for the processor to keep ahead by itself.

use std::marker::PhantomData;

use ikq_simd::{Isa, IsaKind, IsaOp, prefetch, run};

use crate::ops::matrix::{ByElement, Element, Floats, Shape, Stored};

/// Up to this many rows, the products of this file are faster than `ops::matrix::Product`.
pub(super) const FEW_ROWS: usize = 8;

/// Steps of a chain between two requests for what is read next.
const STEPS: usize = 4;

/// `c[i, j] = fma(a[i, k - 1], b[k - 1, j], ... fma(a[i, 0], b[0, j], c[i, j]))`; rows of `c` are as long as there are
/// columns.
pub(super) struct Few<'a, E> {
    pub a: Floats<'a>,
    pub b: Stored<'a>,
    pub c: &'a mut [f32],
    pub shape: Shape,
    /// Bytes that are read next, to be fetched into the cache meanwhile.
    pub next: &'a [u8],
    pub ty: PhantomData<E>,
}

impl<E: Element> IsaOp for Few<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(mut self, isa: I) {
        let mut i = 0;
        while i < self.shape.m {
            // accumulators that hide each other's latency, as many as there are registers for
            let wide = I::N_REGISTERS >= 32;
            i += match self.shape.m - i {
                1 if wide => self.rows::<I, 1, 8>(isa, i),
                2 if wide => self.rows::<I, 2, 8>(isa, i),
                3 if wide => self.rows::<I, 3, 4>(isa, i),
                4 if wide => self.rows::<I, 4, 4>(isa, i),
                5 if wide => self.rows::<I, 5, 4>(isa, i),
                6 if wide => self.rows::<I, 6, 4>(isa, i),
                7 if wide => self.rows::<I, 7, 2>(isa, i),
                _ if wide => self.rows::<I, 8, 2>(isa, i),
                1 => self.rows::<I, 1, 4>(isa, i),
                2 => self.rows::<I, 2, 2>(isa, i),
                3 => self.rows::<I, 3, 2>(isa, i),
                5 => self.rows::<I, 5, 1>(isa, i),
                6 => self.rows::<I, 6, 1>(isa, i),
                _ => self.rows::<I, 4, 1>(isa, i),
            };
        }
    }
}

impl<E: Element> Few<'_, E> {
    /// Computes rows `i..i + M`, `N` vectors of columns at a time; returns `M`.
    #[inline(always)]
    fn rows<I: Isa, const M: usize, const N: usize>(&mut self, isa: I, i: usize) -> usize {
        let n = self.shape.n;
        let steps = self.shape.k.div_ceil(STEPS) * n.div_ceil(16 * N);
        let lines = self.next.len().div_ceil(64).div_ceil(steps.max(1));
        // asked for once
        let next = std::mem::take(&mut self.next);
        let mut next = next.chunks(64 * lines.max(1));
        let mut j = 0;
        while j + 16 * N <= n {
            self.tile::<I, M, N>(isa, i, j, &mut next);
            j += 16 * N;
        }
        while N > 4 && j + 64 <= n {
            self.tile::<I, M, 4>(isa, i, j, &mut next);
            j += 64;
        }
        while j < n {
            self.tile::<I, M, 1>(isa, i, j, &mut next);
            j += 16;
        }
        M
    }

    #[inline(always)]
    fn tile<I: Isa, const M: usize, const N: usize>(
        &mut self,
        isa: I,
        i: usize,
        j: usize,
        next: &mut std::slice::Chunks<'_, u8>,
    ) {
        let Shape { n, k, .. } = self.shape;
        let mut a: [&[f32]; M] = [&[]; M];
        for (r, a) in a.iter_mut().enumerate() {
            *a = &self.a.data[(i + r) * self.a.stride..][..k];
        }
        let mut acc = [[isa.splat_f(0.0); N]; M];
        for (r, acc) in acc.iter_mut().enumerate() {
            let c = self.c[(i + r) * n + j..][..16 * N].as_chunks::<16>().0;
            for (acc, c) in acc.iter_mut().zip(c) {
                *acc = isa.load_f(c);
            }
        }
        let (data, stride, width) = (&self.b.data[j * E::BYTES..], self.b.stride, 16 * E::BYTES);
        for first in (0..k).step_by(STEPS) {
            if let Some(lines) = next.next() {
                prefetch(lines);
            }
            for l in first..k.min(first + STEPS) {
                let row = &data[l * stride..l * stride + N * width];
                let mut b = [isa.splat_f(0.0); N];
                for (n, b) in b.iter_mut().enumerate() {
                    *b = E::load(isa, &row[n * width..(n + 1) * width]);
                }
                for (acc, a) in acc.iter_mut().zip(a) {
                    let a = isa.splat_f(a[l]);
                    for (acc, b) in acc.iter_mut().zip(b) {
                        *acc = isa.fma(a, b, *acc);
                    }
                }
            }
        }
        for (r, acc) in acc.into_iter().enumerate() {
            let c = &mut self.c[(i + r) * n + j..][..16 * N];
            for (c, v) in c.as_chunks_mut::<16>().0.iter_mut().zip(acc) {
                isa.store_f(v, c);
            }
        }
    }
}

impl ByElement for Few<'_, ()> {
    fn go<E: Element>(self, kind: IsaKind) {
        let Few { a, b, c, shape, next, .. } = self;
        run(kind, Few::<E> { a, b, c, shape, next, ty: PhantomData });
    }
}
