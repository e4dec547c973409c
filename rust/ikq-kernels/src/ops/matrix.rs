//! Products and transposition of small matrices, of floats and of the cache's numbers.
//!
//! Matrices are slices with a stride; one operand is bytes as the cache has them, of one of the [`Element`]s.
//! Column counts are multiples of 16, which callers see to by padding.

use std::marker::PhantomData;

use ikq_simd::{Isa, IsaKind, IsaOp, run};

/// A number of the cache that is loaded directly, sixteen at a time.
pub(crate) trait Element: 'static {
    const BYTES: usize;
    fn load<I: Isa>(isa: I, bytes: &[u8]) -> I::F;
}

pub(crate) struct F32;
pub(crate) struct F16;
pub(crate) struct BF16;

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
pub(crate) struct Floats<'a> {
    pub data: &'a [f32],
    pub stride: usize,
}

/// A matrix of stored numbers; the stride is in bytes.
#[derive(Clone, Copy)]
pub(crate) struct Stored<'a> {
    pub data: &'a [u8],
    pub stride: usize,
}

/// `c[i, j] = sum over l of a[i, l] b[l, j]`, added to what `c` holds or not; `m x k` times `k x n`.
pub(crate) struct Product<'a, E> {
    pub a: Floats<'a>,
    pub b: Stored<'a>,
    pub c: &'a mut [f32],
    pub c_stride: usize,
    pub shape: Shape,
    pub add: bool,
    /// Room for [`PANEL`] columns of `b`. Where many rows read them, they are made floats here first, one row
    /// behind the other: rows a power of two apart would share few places of the processor's cache. Empty: never.
    pub panel: &'a mut [f32],
    pub ty: PhantomData<E>,
}

/// Columns of a panel.
pub(crate) const PANEL: usize = 64;

/// Rows from which a panel is worth making, for numbers that are converted and for floats far apart.
const ROWS_OF_PANEL: [usize; 2] = [9, 24];

/// Bytes from row to row that count as far apart.
const FAR: usize = 1024;

/// Rows of the result, its columns (a multiple of 16), and the length of the sums.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    pub m: usize,
    pub n: usize,
    pub k: usize,
}

impl<E: Element> IsaOp for Product<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Product { a, b, c, c_stride, shape, add, panel, .. } = self;
        let Shape { m, n, k } = shape;
        let worth = match E::BYTES == F32::BYTES {
            true => m >= ROWS_OF_PANEL[1] && b.stride > FAR,
            false => m >= ROWS_OF_PANEL[0],
        };
        let packed = worth && !panel.is_empty();
        for j in (0..n).step_by(PANEL) {
            let width = PANEL.min(n - j);
            let out = Out { c: &mut c[j..], stride: c_stride, add };
            if packed {
                for (l, to) in panel.chunks_exact_mut(width).take(k).enumerate() {
                    let row = &b.data[l * b.stride + j * E::BYTES..][..width * E::BYTES];
                    let row = row.chunks_exact(16 * E::BYTES);
                    for (to, x) in to.as_chunks_mut::<16>().0.iter_mut().zip(row) {
                        isa.store_f(E::load(isa, x), to);
                    }
                }
                let b = Stored { data: bytes_of(panel), stride: 4 * width };
                isa.apart(Columns::<F32> { a, b, out, shape: Shape { m, n: width, k }, ty: PhantomData });
            } else {
                let b = Stored { data: &b.data[j * E::BYTES..], stride: b.stride };
                isa.apart(Columns::<E> { a, b, out, shape: Shape { m, n: width, k }, ty: PhantomData });
            }
        }
    }
}

/// Floats as the bytes they are.
pub(crate) fn bytes_of(floats: &[f32]) -> &[u8] {
    // SAFETY: any float is four bytes without padding, and bytes have no alignment.
    unsafe { std::slice::from_raw_parts(floats.as_ptr().cast(), 4 * floats.len()) }
}

/// Where a product is written.
struct Out<'a> {
    c: &'a mut [f32],
    stride: usize,
    add: bool,
}

/// The part of a product that makes up to [`PANEL`] columns.
struct Columns<'a, E> {
    a: Floats<'a>,
    b: Stored<'a>,
    out: Out<'a>,
    shape: Shape,
    ty: PhantomData<E>,
}

impl<E: Element> IsaOp for Columns<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(mut self, isa: I) {
        let Shape { m, n, .. } = self.shape;
        let mut j = 0;
        if I::N_REGISTERS >= 32 {
            // 6 x 4 accumulators of sixteen lanes, 8 x 2 where that takes all rows at once
            while j + 64 <= n && !(7..=8).contains(&m) {
                self.panel::<I, 4>(isa, j);
                j += 64;
            }
            while j + 32 <= n {
                match m {
                    7 => self.tile::<I, 7, 2>(isa, 0, j),
                    8 => self.tile::<I, 8, 2>(isa, 0, j),
                    _ => self.panel::<I, 2>(isa, j),
                }
                j += 32;
            }
        }
        while j + 16 <= n {
            self.panel::<I, 1>(isa, j);
            j += 16;
        }
    }
}

impl<E: Element> Columns<'_, E> {
    /// Computes columns `j..j + 16 N` of all rows.
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
            let c = &mut self.out.c[(i + r) * self.out.stride + j..][..16 * N];
            for (c, v) in c.as_chunks_mut::<16>().0.iter_mut().zip(acc) {
                let v = if self.out.add { isa.add_f(isa.load_f(c), v) } else { v };
                isa.store_f(v, c);
            }
        }
    }
}

/// Rows of `k` stored numbers as columns: `out[l * stride + j] = b[j, l]` for `n` rows, whole sixteens of them
/// written.
pub(crate) struct Transpose<'a, E> {
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

/// Runs [`Product`] or another kernel for a type that is known at run time.
pub(crate) trait ByElement {
    fn go<E: Element>(self, kind: IsaKind);
}

impl ByElement for Product<'_, ()> {
    fn go<E: Element>(self, kind: IsaKind) {
        let Product { a, b, c, c_stride, shape, add, panel, .. } = self;
        run(kind, Product::<E> { a, b, c, c_stride, shape, add, panel, ty: PhantomData });
    }
}

impl ByElement for Transpose<'_, ()> {
    fn go<E: Element>(self, kind: IsaKind) {
        let Transpose { b, n, k, out, stride, .. } = self;
        run(kind, Transpose::<E> { b, n, k, out, stride, ty: PhantomData });
    }
}
