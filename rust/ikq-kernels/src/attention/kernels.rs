//! Dot products of few rows.

use std::marker::PhantomData;

use ikq_simd::{Isa, IsaKind, IsaOp, prefetch, run};

use crate::ops::matrix::{ByElement, Element, Floats, Shape, Stored};

/// `c[i, j] = a row i . b row j`, rows of `k` (a multiple of 16): for few rows of `a`, where transposing `b` does
/// not pay.
pub(super) struct Dots<'a, E> {
    pub a: Floats<'a>,
    pub b: Stored<'a>,
    pub c: &'a mut [f32],
    pub c_stride: usize,
    pub shape: Shape,
    /// What is read next, as many rows as `b` has: with several rows it comes from memory while these are multiplied.
    pub next: Stored<'a>,
    pub ty: PhantomData<E>,
}

/// Rows of `b` that are asked for before their turn.
const AHEAD: usize = 32;

impl<E: Element> IsaOp for Dots<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(mut self, isa: I) {
        let mut i = 0;
        while i < self.shape.m {
            // up to sixteen accumulators, or as many as there are registers for
            let wide = I::N_REGISTERS >= 32;
            i += match self.shape.m - i {
                8.. if wide => self.rows::<I, 8, 2>(isa, i),
                7 if wide => self.rows::<I, 7, 2>(isa, i),
                6 if wide => self.rows::<I, 6, 2>(isa, i),
                5 if wide => self.rows::<I, 5, 3>(isa, i),
                4 if wide => self.rows::<I, 4, 4>(isa, i),
                3 if wide => self.rows::<I, 3, 4>(isa, i),
                2 if wide => self.rows::<I, 2, 8>(isa, i),
                _ if wide => self.rows::<I, 1, 16>(isa, i),
                2.. => self.rows::<I, 2, 2>(isa, i),
                _ => self.rows::<I, 1, 4>(isa, i),
            };
        }
    }
}

impl<E: Element> Dots<'_, E> {
    /// Rows `i..i + M` with all rows of `b`; gives M.
    #[inline(always)]
    fn rows<I: Isa, const M: usize, const N: usize>(&mut self, isa: I, i: usize) -> usize {
        let n = self.shape.n;
        let mut j = 0;
        while j + N <= n {
            // with one row the processor keeps ahead by itself
            if i == 0 && self.shape.m > 1 {
                let near = |m: Stored<'_>, from: usize| {
                    let rows = (from * m.stride).min(m.data.len())..((from + N) * m.stride).min(m.data.len());
                    prefetch(&m.data[rows]);
                };
                near(self.b, j + AHEAD);
                near(self.next, j);
            }
            self.tile::<I, M, N>(isa, i, j);
            j += N;
        }
        while j < n {
            self.tile::<I, M, 1>(isa, i, j);
            j += 1;
        }
        M
    }

    #[inline(always)]
    fn tile<I: Isa, const M: usize, const N: usize>(&mut self, isa: I, i: usize, j: usize) {
        let k = self.shape.k;
        let mut a: [&[f32]; M] = [&[]; M];
        for (r, a) in a.iter_mut().enumerate() {
            *a = &self.a.data[(i + r) * self.a.stride..][..k];
        }
        let mut b: [&[u8]; N] = [&[]; N];
        for (r, b) in b.iter_mut().enumerate() {
            *b = &self.b.data[(j + r) * self.b.stride..][..k * E::BYTES];
        }
        let mut acc = [[isa.splat_f(0.0); N]; M];
        let width = 16 * E::BYTES;
        for l in 0..k / 16 {
            let mut q = [isa.splat_f(0.0); M];
            for (q, a) in q.iter_mut().zip(a) {
                *q = isa.load_f(a[16 * l..16 * l + 16].as_array().expect("sixteen"));
            }
            for (n, b) in b.iter().enumerate() {
                let x = E::load(isa, &b[l * width..(l + 1) * width]);
                for (acc, q) in acc.iter_mut().zip(q) {
                    acc[n] = isa.fma(q, x, acc[n]);
                }
            }
        }
        let c = &mut self.c[i * self.c_stride + j..];
        if M * N > 8 {
            let mut flat = [isa.splat_f(0.0); 16];
            for (flat, acc) in flat.iter_mut().zip(acc.as_flattened()) {
                *flat = *acc;
            }
            let sums = isa.totals(&flat);
            for (r, sums) in sums.chunks_exact(N).take(M).enumerate() {
                c[r * self.c_stride..][..N].copy_from_slice(sums);
            }
        } else {
            for (r, acc) in acc.iter().enumerate() {
                for (c, v) in c[r * self.c_stride..][..N].iter_mut().zip(acc) {
                    *c = isa.total(*v);
                }
            }
        }
    }
}

impl ByElement for Dots<'_, ()> {
    fn go<E: Element>(self, kind: IsaKind) {
        let Dots { a, b, c, c_stride, shape, next, .. } = self;
        run(kind, Dots::<E> { a, b, c, c_stride, shape, next, ty: PhantomData });
    }
}
