//! Activations: the input of matrix products, column after column, as floats and as 8-bit codes.
//!
//! A column is one token's vector of `k` elements. It is quantized once and read by every matrix and expert
//! that takes it.

use ikq_decode::UNIT;
use ikq_simd::IsaKind;

/// 256 elements in 8 bits: each 32 share a scale.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub struct ActUnit {
    /// In -127..=127; zeros behind the column's end.
    pub codes: [i8; UNIT],
    /// Scale of each 16 elements (pairs are equal: a scale belongs to 32).
    pub d: [f32; 16],
    /// `d` times the sum of the codes, per 16.
    pub sums: [f32; 16],
}

impl Default for ActUnit {
    fn default() -> Self {
        ActUnit { codes: [0; UNIT], d: [0.0; 16], sums: [0.0; 16] }
    }
}

/// Columns of `k` elements.
#[derive(Default)]
pub struct Activations {
    k: usize,
    n_columns: usize,
    floats: Vec<f32>,
    units: Vec<ActUnit>,
}

/// One column, to be written.
pub struct ColumnMut<'a> {
    pub floats: &'a mut [f32],
    units: &'a mut [ActUnit],
}

impl Activations {
    /// Makes room for `n_columns` columns of `k` elements; what they hold is unspecified.
    pub fn resize(&mut self, k: usize, n_columns: usize) {
        (self.k, self.n_columns) = (k, n_columns);
        // grow only: a smaller step leaves the tail alone
        let (n_floats, n_units) = (k * n_columns, k.div_ceil(UNIT) * n_columns);
        if self.floats.len() < n_floats {
            self.floats.resize(n_floats, 0.0);
        }
        if self.units.len() < n_units {
            self.units.resize(n_units, ActUnit::default());
        }
    }

    /// Elements of a column.
    pub fn k(&self) -> usize {
        self.k
    }

    pub fn n_columns(&self) -> usize {
        self.n_columns
    }

    /// The columns, each for one writer.
    pub fn columns_mut(&mut self) -> Vec<ColumnMut<'_>> {
        if self.k == 0 {
            return Vec::new();
        }
        let floats = self.floats.chunks_exact_mut(self.k);
        let units = self.units.chunks_exact_mut(self.k.div_ceil(UNIT));
        floats.zip(units).take(self.n_columns).map(|(floats, units)| ColumnMut { floats, units }).collect()
    }

    /// The floats of all columns, for who writes blocks of rows.
    pub fn floats_mut(&mut self) -> &mut [f32] {
        &mut self.floats[..self.k * self.n_columns]
    }

    /// A column's floats.
    pub fn floats(&self, column: usize) -> &[f32] {
        &self.floats[column * self.k..(column + 1) * self.k]
    }

    /// A column's 8-bit form, valid after [`ColumnMut::quantize`].
    pub fn units(&self, column: usize) -> &[ActUnit] {
        let n = self.k.div_ceil(UNIT);
        &self.units[column * n..(column + 1) * n]
    }
}

impl ColumnMut<'_> {
    /// Makes the 8-bit form from the floats.
    pub fn quantize(&mut self, kind: IsaKind) {
        quantize(kind, self.floats, self.units);
    }
}

/// `codes = round(x / d)` with `d = max |x| / 127` of each 32 elements.
pub fn quantize(_kind: IsaKind, x: &[f32], units: &mut [ActUnit]) {
    for (x, unit) in x.chunks(UNIT).zip(units) {
        *unit = ActUnit::default();
        for (b, x) in x.chunks(32).enumerate() {
            let peak = x.iter().fold(0.0f32, |m, v| m.max(v.abs()));
            let d = peak / 127.0;
            let per_d = if d > 0.0 { 1.0 / d } else { 0.0 };
            for (h, x) in x.chunks(16).enumerate() {
                let mut sum = 0i32;
                for (x, code) in x.iter().zip(&mut unit.codes[32 * b + 16 * h..]) {
                    *code = (x * per_d).round_ties_even().clamp(-127.0, 127.0) as i8;
                    sum += i32::from(*code);
                }
                unit.d[2 * b + h] = d;
                unit.sums[2 * b + h] = d * sum as f32;
            }
        }
    }
}
