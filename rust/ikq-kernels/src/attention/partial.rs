//! [`Partial`]: the state of query rows' attention after some of the keys.

use ikq_simd::{Isa, IsaKind, IsaOp, run};

/// Per query row: the largest score, the sum of exponentials and the weighted sum of values, both relative to
/// the largest score.
#[derive(Clone, Debug, Default)]
pub struct Partial {
    n_rows: usize,
    d: usize,
    /// Elements from row to row of `values`.
    pub(super) stride: usize,
    pub(super) max: Vec<f32>,
    pub(super) sum: Vec<f32>,
    pub(super) values: Vec<f32>,
}

impl Partial {
    /// Starts anew: `n_rows` rows that have seen no key, with values of `d` elements.
    pub fn reset(&mut self, n_rows: usize, d: usize) {
        (self.n_rows, self.d, self.stride) = (n_rows, d, d.next_multiple_of(16));
        self.max.clear();
        self.max.resize(n_rows, f32::NEG_INFINITY);
        self.sum.clear();
        self.sum.resize(n_rows, 0.0);
        self.values.clear();
        self.values.resize(n_rows * self.stride, 0.0);
    }

    pub fn n_rows(&self) -> usize {
        self.n_rows
    }

    /// Elements of a value.
    pub fn d(&self) -> usize {
        self.d
    }

    /// Adds what `other` knows of the same rows from other keys.
    ///
    /// # Panics
    /// When shapes differ.
    pub fn merge(&mut self, other: &Partial) {
        assert!(self.n_rows == other.n_rows && self.d == other.d, "partial results of the same rows");
        for row in 0..self.n_rows {
            let (a, b) = (self.max[row], other.max[row]);
            if b == f32::NEG_INFINITY {
                continue;
            }
            // NaN counts as larger, and stays
            let max = if a > b { a } else { b };
            let (fa, fb) = ((a - max).exp(), (b - max).exp());
            self.max[row] = max;
            self.sum[row] = self.sum[row] * fa + other.sum[row] * fb;
            let values = &mut self.values[row * self.stride..][..self.stride];
            for (v, o) in values.iter_mut().zip(&other.values[row * self.stride..]) {
                *v = *v * fa + o * fb;
            }
        }
    }

    /// Adds what `other` knows of the same rows from later keys. What knows of no keys changes nothing, and nothing is
    /// lost or rounded where only one knows of some.
    ///
    /// # Panics
    /// When shapes differ.
    pub(super) fn combine(&mut self, kind: IsaKind, other: &Partial) {
        assert!(self.n_rows == other.n_rows && self.d == other.d, "partial results of the same rows");
        run(kind, Combine { into: self, other });
    }

    /// The result of a row, with a sink's score if there is one; zeros where there were no keys.
    ///
    /// # Panics
    /// When `out` is not as long as a row's values.
    pub fn finish(&self, row: usize, sink: Option<f32>, out: &mut [f32]) {
        assert_eq!(out.len(), self.d, "values of {} elements", self.d);
        let mut factor = 1.0;
        let mut sum = self.sum[row];
        if let Some(sink) = sink {
            let max = if self.max[row] > sink { self.max[row] } else { sink };
            factor = (self.max[row] - max).exp();
            sum = sum * factor + (sink - max).exp();
        }
        // no keys: 0 / 0, and with a sink of -inf besides, NaN
        let scale = if self.max[row] == f32::NEG_INFINITY { 0.0 } else { factor / sum };
        for (out, v) in out.iter_mut().zip(&self.values[row * self.stride..]) {
            *out = v * scale;
        }
    }
}

struct Combine<'a> {
    into: &'a mut Partial,
    other: &'a Partial,
}

impl IsaOp for Combine<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Combine { into, other } = self;
        for row in 0..into.n_rows {
            let values = row * into.stride..(row + 1) * into.stride;
            // a sum of exponentials has a 1 in it, or NaN
            if other.sum[row] == 0.0 {
                continue;
            }
            if into.sum[row] == 0.0 {
                (into.max[row], into.sum[row]) = (other.max[row], other.sum[row]);
                into.values[values.clone()].copy_from_slice(&other.values[values]);
                continue;
            }
            let (a, b) = (into.max[row], other.max[row]);
            let max = if a > b { a } else { b };
            let (fa, fb) = ((a - max).exp(), (b - max).exp());
            into.max[row] = max;
            into.sum[row] = into.sum[row] * fa + other.sum[row] * fb;
            let (fa, fb) = (isa.splat_f(fa), isa.splat_f(fb));
            let others = other.values[values.clone()].as_chunks::<16>().0;
            for (v, o) in into.values[values].as_chunks_mut::<16>().0.iter_mut().zip(others) {
                isa.store_f(isa.fma(isa.load_f(v), fa, isa.mul_f(isa.load_f(o), fb)), v);
            }
        }
    }
}
