//! Float products: rows of floats, or of decoded weights, times columns of floats, all in float32.
//!
//! Sixteen partial sums per product run along the row; each is rounded once per sixteen elements where the
//! instruction set fuses multiplication and addition.

use std::ops::Range;

use ikq_formats::QuantType;
use ikq_simd::{Isa, IsaKind, IsaOp, run};

use crate::act::Activations;

/// Rows that are converted at a time.
pub(super) const BLOCK_ROWS: usize = 32;

/// A plain array whose elements are converted in registers.
trait Element: 'static {
    const BYTES: usize;
    /// Sixteen elements.
    fn load<I: Isa>(isa: I, bytes: &[u8]) -> I::F;
}

struct Single;
struct Half;
struct BFloat;

impl Element for Single {
    const BYTES: usize = 4;
    #[inline(always)]
    fn load<I: Isa>(isa: I, bytes: &[u8]) -> I::F {
        let bytes: &[u8; 64] = bytes.first_chunk().expect("sixteen floats");
        isa.load_f(&ikq_simd::array(|i| f32::from_le_bytes(*bytes[4 * i..].first_chunk().expect("64 bytes"))))
    }
}

impl Element for Half {
    const BYTES: usize = 2;
    #[inline(always)]
    fn load<I: Isa>(isa: I, bytes: &[u8]) -> I::F {
        isa.load_f16(bytes.first_chunk().expect("sixteen halves"))
    }
}

impl Element for BFloat {
    const BYTES: usize = 2;
    #[inline(always)]
    fn load<I: Isa>(isa: I, bytes: &[u8]) -> I::F {
        isa.load_bf16(bytes.first_chunk().expect("sixteen bfloats"))
    }
}

/// `out[r] = row r . x` for rows of F32, F16 or BF16; `false` for other types.
pub(super) fn rows(kind: IsaKind, ty: QuantType, data: &[u8], x: &[f32], out: &mut [f32]) -> bool {
    match ty {
        QuantType::F32 => run(kind, Rows { data, x, out, element: Single }),
        QuantType::F16 => run(kind, Rows { data, x, out, element: Half }),
        QuantType::BF16 => run(kind, Rows { data, x, out, element: BFloat }),
        _ => return false,
    }
    true
}

struct Rows<'a, E> {
    data: &'a [u8],
    x: &'a [f32],
    out: &'a mut [f32],
    #[expect(dead_code, reason = "names the element type")]
    element: E,
}

impl<E: Element> IsaOp for Rows<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        for (row, out) in self.data.chunks_exact(self.x.len() * E::BYTES).zip(self.out) {
            *out = row_product::<I, E>(isa, row, self.x);
        }
    }
}

#[inline(always)]
fn row_product<I: Isa, E: Element>(isa: I, row: &[u8], x: &[f32]) -> f32 {
    // four sums hide the latency of one
    let mut acc = [isa.splat_f(0.0); 4];
    let x_64 = x.as_chunks::<64>().0;
    let done = 64 * x_64.len();
    for (w, x) in row.chunks_exact(64 * E::BYTES).zip(x_64) {
        for (k, acc) in acc.iter_mut().enumerate() {
            let x = x[16 * k..].first_chunk().expect("64 floats");
            *acc = isa.fused_add(E::load(isa, &w[16 * k * E::BYTES..]), isa.load_f(x), *acc);
        }
    }
    let (mut row, mut x) = (&row[done * E::BYTES..], &x[done..]);
    while let Some((head, rest)) = x.split_first_chunk::<16>() {
        acc[0] = isa.fused_add(E::load(isa, row), isa.load_f(head), acc[0]);
        (row, x) = (&row[16 * E::BYTES..], rest);
    }
    if !x.is_empty() {
        let (mut w, mut last) = ([0; 64], [0.0; 16]);
        w[..row.len()].copy_from_slice(row);
        last[..x.len()].copy_from_slice(x);
        acc[1] = isa.fused_add(E::load(isa, &w), isa.load_f(&last), acc[1]);
    }
    isa.sum(isa.add_f(isa.add_f(acc[0], acc[1]), isa.add_f(acc[2], acc[3])))
}

/// `out[c * stride + r] = row r of floats . column columns[c]`.
pub(super) fn multiply(
    kind: IsaKind,
    rows: &[f32],
    acts: &Activations,
    columns: &[u32],
    out: &mut [f32],
    stride: usize,
) {
    run(kind, Multiply { rows, acts, columns, out, stride });
}

struct Multiply<'a> {
    rows: &'a [f32],
    acts: &'a Activations,
    columns: &'a [u32],
    out: &'a mut [f32],
    stride: usize,
}

impl IsaOp for Multiply<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(mut self, isa: I) {
        let (n_rows, k) = (self.rows.len() / self.acts.k(), self.acts.k());
        for part in (0..k).step_by(PART).map(|start| start..k.min(start + PART)) {
            let mut c = 0;
            while c < self.columns.len() {
                let mut r = 0;
                let left = self.columns.len() - c;
                let n = if I::REGISTERS >= 32 && left >= 4 { 4 } else { 2.min(left) };
                while r < n_rows {
                    r += match (n, n_rows - r) {
                        (4, 4..) => block::<I, 4, 4>(isa, &mut self, &part, r, c),
                        (4, _) => block::<I, 1, 4>(isa, &mut self, &part, r, c),
                        (2, 2..) => block::<I, 2, 2>(isa, &mut self, &part, r, c),
                        (2, _) => block::<I, 1, 2>(isa, &mut self, &part, r, c),
                        (_, 4..) => block::<I, 4, 1>(isa, &mut self, &part, r, c),
                        _ => block::<I, 1, 1>(isa, &mut self, &part, r, c),
                    };
                }
                c += n;
            }
        }
    }
}

/// Elements of rows and columns that are multiplied before the next: what stays in the nearest cache.
const PART: usize = 1024;

/// Elements `part` of `R` rows from `r` on times those of `C` columns from `c` on; returns `R`.
#[inline(always)]
fn block<I: Isa, const R: usize, const C: usize>(
    isa: I,
    m: &mut Multiply<'_>,
    part: &Range<usize>,
    r: usize,
    c: usize,
) -> usize {
    let (row, k) = (m.acts.k(), part.len());
    let mut w: [&[f32]; R] = [&[]; R];
    for (i, w) in w.iter_mut().enumerate() {
        *w = &m.rows[(r + i) * row + part.start..][..k];
    }
    let mut x: [&[f32]; C] = [&[]; C];
    for (i, x) in x.iter_mut().enumerate() {
        *x = &m.acts.floats(m.columns[c + i] as usize)[part.start..][..k];
    }
    let mut acc = [[isa.splat_f(0.0); C]; R];
    for at in (0..k / 16 * 16).step_by(16) {
        let mut vx = [isa.splat_f(0.0); C];
        for i in 0..C {
            vx[i] = isa.load_f(x[i][at..at + 16].first_chunk().expect("sixteen floats"));
        }
        for i in 0..R {
            let vw = isa.load_f(w[i][at..at + 16].first_chunk().expect("sixteen floats"));
            for j in 0..C {
                acc[i][j] = isa.fused_add(vw, vx[j], acc[i][j]);
            }
        }
    }
    if !k.is_multiple_of(16) {
        for i in 0..R {
            let vw = isa.load_f(&padded(&w[i][k / 16 * 16..]));
            for j in 0..C {
                let vx = isa.load_f(&padded(&x[j][k / 16 * 16..]));
                acc[i][j] = isa.fused_add(vw, vx, acc[i][j]);
            }
        }
    }
    let sums = sums(isa, acc.as_flattened());
    for i in 0..R {
        for j in 0..C {
            let out = &mut m.out[(c + j) * m.stride + r + i];
            let before = if part.start == 0 { 0.0 } else { *out };
            *out = before + sums[i * C + j];
        }
    }
    R
}

/// The sums over lanes of at most sixteen values.
#[inline(always)]
fn sums<I: Isa>(isa: I, values: &[I::F]) -> [f32; 16] {
    let mut out = [0.0; 16];
    if values.len() < 16 {
        for (out, v) in out.iter_mut().zip(values) {
            *out = isa.sum(*v);
        }
        return out;
    }
    let mut rows = [[0.0; 16]; 16];
    for (row, v) in rows.iter_mut().zip(values) {
        isa.store_f(*v, row);
    }
    let mut turned = isa.transpose(rows.each_ref());
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            turned[i] = isa.add_f(turned[i], turned[i + half]);
        }
    }
    isa.store_f(turned[0], &mut out);
    out
}

/// A short run of floats with zeros behind.
#[inline(always)]
fn padded(x: &[f32]) -> [f32; 16] {
    let mut out = [0.0; 16];
    out[..x.len()].copy_from_slice(x);
    out
}
