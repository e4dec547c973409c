//! The inner loops: products of small matrices, dot products, transposition, softmax of a block.
//!
//! Matrices are slices with a stride; rows of keys and values are bytes as the cache has them, of one of the
//! [`Element`]s. Column counts are multiples of 16, which callers see to by padding.

use std::marker::PhantomData;

use ikq_simd::{Isa, IsaKind, IsaOp, run};

use crate::ops::math;

/// A number of the cache that is loaded directly, sixteen at a time.
pub(super) trait Element: 'static {
    const BYTES: usize;
    fn load<I: Isa>(isa: I, bytes: &[u8]) -> I::F;
}

pub(super) struct F32;
pub(super) struct F16;
pub(super) struct BF16;

impl Element for F32 {
    const BYTES: usize = 4;
    #[inline(always)]
    fn load<I: Isa>(isa: I, bytes: &[u8]) -> I::F {
        isa.load_f32(bytes.as_array().expect("sixteen numbers"))
    }
}

impl Element for F16 {
    const BYTES: usize = 2;
    #[inline(always)]
    fn load<I: Isa>(isa: I, bytes: &[u8]) -> I::F {
        isa.load_f16(bytes.as_array().expect("sixteen numbers"))
    }
}

impl Element for BF16 {
    const BYTES: usize = 2;
    #[inline(always)]
    fn load<I: Isa>(isa: I, bytes: &[u8]) -> I::F {
        isa.load_bf16(bytes.as_array().expect("sixteen numbers"))
    }
}

/// A matrix of floats: `data[row * stride + column]`.
#[derive(Clone, Copy)]
pub(super) struct Floats<'a> {
    pub data: &'a [f32],
    pub stride: usize,
}

/// A matrix of stored numbers; the stride is in bytes.
#[derive(Clone, Copy)]
pub(super) struct Stored<'a> {
    pub data: &'a [u8],
    pub stride: usize,
}

/// `c[i, j] = sum over l of a[i, l] b[l, j]`, added to what `c` holds or not; `m x k` times `k x n`.
pub(super) struct Product<'a, E> {
    pub a: Floats<'a>,
    pub b: Stored<'a>,
    pub c: &'a mut [f32],
    pub c_stride: usize,
    pub shape: Shape,
    pub add: bool,
    pub ty: PhantomData<E>,
}

/// Rows of the result, its columns (a multiple of 16), and the length of the sums.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    pub m: usize,
    pub n: usize,
    pub k: usize,
}

impl<E: Element> IsaOp for Product<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(mut self, isa: I) {
        let n = self.shape.n;
        let mut j = 0;
        // accumulators of 6 x 4 or 6 x 1 registers of sixteen lanes
        if I::N_REGISTERS >= 32 {
            while j + 64 <= n {
                self.panel::<I, 4>(isa, j);
                j += 64;
            }
            while j + 32 <= n {
                self.panel::<I, 2>(isa, j);
                j += 32;
            }
        }
        while j + 16 <= n {
            self.panel::<I, 1>(isa, j);
            j += 16;
        }
    }
}

impl<E: Element> Product<'_, E> {
    /// Columns `j..j + 16 N` of all rows.
    #[inline(always)]
    fn panel<I: Isa, const N: usize>(&mut self, isa: I, j: usize) {
        let m = self.shape.m;
        let mut i = 0;
        while i + 6 <= m {
            self.tile::<I, 6, N>(isa, i, j);
            i += 6;
        }
        match m - i {
            1 => self.tile::<I, 1, N>(isa, i, j),
            2 => self.tile::<I, 2, N>(isa, i, j),
            3 => self.tile::<I, 3, N>(isa, i, j),
            4 => self.tile::<I, 4, N>(isa, i, j),
            5 => self.tile::<I, 5, N>(isa, i, j),
            _ => {}
        }
    }

    #[inline(always)]
    fn tile<I: Isa, const M: usize, const N: usize>(&mut self, isa: I, i: usize, j: usize) {
        let k = self.shape.k;
        let mut a: [&[f32]; M] = [&[]; M];
        for (r, a) in a.iter_mut().enumerate() {
            *a = &self.a.data[(i + r) * self.a.stride..][..k];
        }
        let mut acc = [[isa.splat_f(0.0); N]; M];
        let (first, width) = (j * E::BYTES, 16 * E::BYTES);
        let rows = self.b.data[first..].chunks(self.b.stride);
        for (l, row) in rows.take(k).enumerate() {
            let row = &row[..N * width];
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
        for (r, acc) in acc.into_iter().enumerate() {
            let c = &mut self.c[(i + r) * self.c_stride + j..][..16 * N];
            for (c, v) in c.as_chunks_mut::<16>().0.iter_mut().zip(acc) {
                let v = if self.add { isa.add_f(isa.load_f(c), v) } else { v };
                isa.store_f(v, c);
            }
        }
    }
}

/// `c[i, j] = a row i . b row j`, rows of `k` (a multiple of 16): for few rows of `a`, where transposing `b` does
/// not pay.
pub(super) struct Dots<'a, E> {
    pub a: Floats<'a>,
    pub b: Stored<'a>,
    pub c: &'a mut [f32],
    pub c_stride: usize,
    pub shape: Shape,
    pub ty: PhantomData<E>,
}

impl<E: Element> IsaOp for Dots<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(mut self, isa: I) {
        let Shape { m, n, .. } = self.shape;
        let mut j = 0;
        while j + 4 <= n {
            let mut i = 0;
            if I::N_REGISTERS >= 32 {
                while i + 4 <= m {
                    self.tile::<I, 4, 4>(isa, i, j);
                    i += 4;
                }
                while i + 2 <= m {
                    self.tile::<I, 2, 4>(isa, i, j);
                    i += 2;
                }
            }
            while i < m {
                self.tile::<I, 1, 4>(isa, i, j);
                i += 1;
            }
            j += 4;
        }
        while j < n {
            for i in 0..m {
                self.tile::<I, 1, 1>(isa, i, j);
            }
            j += 1;
        }
    }
}

impl<E: Element> Dots<'_, E> {
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
            let mut x = [isa.splat_f(0.0); N];
            for (x, b) in x.iter_mut().zip(b) {
                *x = E::load(isa, &b[l * width..(l + 1) * width]);
            }
            for (acc, a) in acc.iter_mut().zip(a) {
                let a = isa.load_f(a[16 * l..16 * l + 16].as_array().expect("sixteen"));
                for (acc, x) in acc.iter_mut().zip(x) {
                    *acc = isa.fma(a, x, *acc);
                }
            }
        }
        for (r, acc) in acc.into_iter().enumerate() {
            let c = &mut self.c[(i + r) * self.c_stride + j..][..N];
            for (c, v) in c.iter_mut().zip(acc) {
                *c = isa.total(v);
            }
        }
    }
}

/// Rows of `k` stored numbers as columns: `out[l * stride + j] = b[j, l]` for `n` rows, whole sixteens of them
/// written.
pub(super) struct Transpose<'a, E> {
    pub b: Stored<'a>,
    pub n: usize,
    pub k: usize,
    pub out: &'a mut [f32],
    pub stride: usize,
    pub ty: PhantomData<E>,
}

impl<E: Element> IsaOp for Transpose<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let width = 16 * E::BYTES;
        // rows behind the last are repeats of it: what is made of them is never read
        let row = |j: usize| &self.b.data[j.min(self.n - 1) * self.b.stride..][..self.k * E::BYTES];
        for first in (0..self.n).step_by(16) {
            let mut rows: [&[u8]; 16] = [&[]; 16];
            for (j, r) in rows.iter_mut().enumerate() {
                *r = row(first + j);
            }
            for l in 0..self.k / 16 {
                let mut square = [[0.0; 16]; 16];
                for (s, r) in square.iter_mut().zip(rows) {
                    isa.store_f(E::load(isa, &r[l * width..(l + 1) * width]), s);
                }
                let mut refs = [&square[0]; 16];
                for (r, s) in refs.iter_mut().zip(&square) {
                    *r = s;
                }
                let columns = isa.transpose(refs);
                for (e, column) in columns.into_iter().enumerate() {
                    let at = (16 * l + e) * self.stride + first;
                    isa.store_f(column, self.out[at..at + 16].as_mut_array().expect("sixteen"));
                }
            }
        }
    }
}

/// Stored numbers to floats, `k` (a multiple of 16) of each of `n` rows.
pub(super) struct Widen<'a, E> {
    pub b: Stored<'a>,
    pub n: usize,
    pub k: usize,
    pub out: &'a mut [f32],
    pub ty: PhantomData<E>,
}

impl<E: Element> IsaOp for Widen<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        for (row, out) in
            self.b.data.chunks(self.b.stride).zip(self.out.chunks_exact_mut(self.k)).take(self.n)
        {
            let row = row[..self.k * E::BYTES].chunks_exact(16 * E::BYTES);
            for (x, out) in row.zip(out.as_chunks_mut::<16>().0) {
                isa.store_f(E::load(isa, x), out);
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

/// Runs [`Product`] or another kernel for a type that is known at run time.
pub(super) trait ByElement {
    fn go<E: Element>(self, kind: IsaKind);
}

impl ByElement for Product<'_, ()> {
    fn go<E: Element>(self, kind: IsaKind) {
        let Product { a, b, c, c_stride, shape, add, .. } = self;
        run(kind, Product::<E> { a, b, c, c_stride, shape, add, ty: PhantomData });
    }
}

impl ByElement for Dots<'_, ()> {
    fn go<E: Element>(self, kind: IsaKind) {
        let Dots { a, b, c, c_stride, shape, .. } = self;
        run(kind, Dots::<E> { a, b, c, c_stride, shape, ty: PhantomData });
    }
}

impl ByElement for Transpose<'_, ()> {
    fn go<E: Element>(self, kind: IsaKind) {
        let Transpose { b, n, k, out, stride, .. } = self;
        run(kind, Transpose::<E> { b, n, k, out, stride, ty: PhantomData });
    }
}

impl ByElement for Widen<'_, ()> {
    fn go<E: Element>(self, kind: IsaKind) {
        let Widen { b, n, k, out, .. } = self;
        run(kind, Widen::<E> { b, n, k, out, ty: PhantomData });
    }
}
