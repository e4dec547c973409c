//! The inner loops of attention beside matrix products: dot products, softmax of a block.

use std::marker::PhantomData;

use ikq_simd::{Isa, IsaKind, IsaOp, prefetch, run};

use crate::ops::math;
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

/// One row's scores of a block become exponentials; the row's state moves on.
pub(super) struct Exponentials<'a> {
    /// A multiple of 16; masked scores are -inf.
    pub scores: &'a mut [f32],
    pub softcap: Option<f32>,
    pub max: &'a mut f32,
    pub sum: &'a mut f32,
    /// The weighted sum of values so far.
    pub values: &'a mut [f32],
}

impl IsaOp for Exponentials<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let scores = self.scores.as_chunks_mut::<16>().0;
        if let Some(cap) = self.softcap {
            let (inverse, cap) = (isa.splat_f(1.0 / cap), isa.splat_f(cap));
            let masked = isa.splat_f(f32::MIN);
            for s in scores.iter_mut() {
                let x = isa.load_f(s);
                let y = isa.mul_f(cap, math::tanh(isa, isa.mul_f(x, inverse)));
                // what is masked stays so
                isa.store_f(isa.if_gt(masked, x, x, y), s);
            }
        }
        let mut most = isa.splat_f(*self.max);
        for s in scores.iter() {
            // keeps the other operand where a score is NaN: its exponential will tell
            most = isa.max_f(isa.load_f(s), most);
        }
        let negated = isa.sub_f(isa.splat_f(0.0), most);
        let max = -isa.least(negated);
        if max > *self.max {
            let factor = (*self.max - max).exp();
            *self.max = max;
            *self.sum *= factor;
            let factor = isa.splat_f(factor);
            for v in self.values.as_chunks_mut::<16>().0 {
                isa.store_f(isa.mul_f(isa.load_f(v), factor), v);
            }
        }
        // nothing seen yet: any finite number makes exponentials of -inf zeros
        let max = isa.splat_f(if max == f32::NEG_INFINITY { 0.0 } else { max });
        let mut sum = isa.splat_f(0.0);
        for s in scores {
            let p = math::exp(isa, isa.sub_f(isa.load_f(s), max));
            sum = isa.add_f(sum, p);
            isa.store_f(p, s);
        }
        *self.sum += isa.total(sum);
    }
}

/// Softmax of a block for several rows: see [`Exponentials`].
pub(super) struct SoftmaxRows<'a> {
    pub scores: &'a mut [f32],
    pub stride: usize,
    /// Columns, a multiple of 16.
    pub n: usize,
    pub softcap: Option<f32>,
    pub max: &'a mut [f32],
    pub sum: &'a mut [f32],
    pub values: &'a mut [f32],
    pub value_stride: usize,
}

impl IsaOp for SoftmaxRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let rows = self.scores.chunks_mut(self.stride).zip(self.values.chunks_exact_mut(self.value_stride));
        for ((scores, values), (max, sum)) in rows.zip(self.max.iter_mut().zip(self.sum)) {
            let scores = &mut scores[..self.n];
            isa.apart(Exponentials { scores, softcap: self.softcap, max, sum, values });
        }
    }
}

impl ByElement for Dots<'_, ()> {
    fn go<E: Element>(self, kind: IsaKind) {
        let Dots { a, b, c, c_stride, shape, next, .. } = self;
        run(kind, Dots::<E> { a, b, c, c_stride, shape, next, ty: PhantomData });
    }
}
