//! Activations: the input of matrix products, column after column, as floats and as 8-bit codes.
//!
//! A column is one token's vector of `k` elements. It is quantized once and read by every matrix and expert
//! that takes it.

use ikq_decode::UNIT;
use ikq_simd::{Isa, IsaKind, IsaOp, array, run};

use crate::aligned::Aligned;

/// 256 elements in 8 bits: each 32 share a scale.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub struct ActUnit {
    /// The codes, in -127..=127; zeros behind the column's end.
    pub codes: [i8; UNIT],
    /// Scale of each 16 elements (pairs are equal: a scale belongs to 32).
    pub d: [f32; 16],
    /// `d` times the sum of the codes, per 16.
    pub sums: [f32; 16],
    /// `d` times the sum of the codes, per 32.
    pub sums_32: [f32; 8],
    /// What a sum of products starts from when weights carry [`CODE_BIAS`]: minus the bias times the sum of the
    /// codes, per 16.
    pub debts: [i32; 16],
    /// What `debts` has per 16, per 32.
    pub debts_32: [i32; 8],
}

/// The codes of an [`ActUnit`] as 16-bit numbers, two in each word: of each four codes the two that
/// [`ikq_simd::Products::widened`] gives first, then the others.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub struct WideUnit(pub [i32; 128]);

/// The bias that [`ActUnit::debts`] makes up for: that of the instruction sets which need one.
pub const CODE_BIAS: i32 = 128;

impl Default for ActUnit {
    fn default() -> Self {
        ActUnit {
            codes: [0; UNIT],
            d: [0.0; 16],
            sums: [0.0; 16],
            sums_32: [0.0; 8],
            debts: [0; 16],
            debts_32: [0; 8],
        }
    }
}

/// Units from one column to the next: an odd number, so that the same unit of many columns does not fall into a
/// few sets of a cache.
fn units_per_column(k: usize) -> usize {
    k.div_ceil(UNIT) | 1
}

/// Columns of `k` elements as floats, and as 8-bit codes once they are quantized.
#[derive(Default)]
pub struct Activations {
    k: usize,
    n_columns: usize,
    floats: Aligned,
    units: Vec<ActUnit>,
    /// Each column's codes as 16-bit numbers, where the instruction set has products that read those: they are made
    /// once here, because blocks of few rows that each made their own would take as long as their products.
    wide: Vec<Vec<WideUnit>>,
}

/// One column of [`Activations`], to be written by one thread.
pub struct ColumnMut<'a> {
    pub floats: &'a mut [f32],
    units: &'a mut [ActUnit],
    wide: &'a mut Vec<WideUnit>,
}

impl Activations {
    /// Makes room for `n_columns` columns of `k` elements; what they hold is unspecified.
    pub fn resize(&mut self, k: usize, n_columns: usize) {
        (self.k, self.n_columns) = (k, n_columns);
        // grow only: a smaller step leaves the tail alone
        let (n_floats, n_units) = (k * n_columns, units_per_column(k) * n_columns);
        self.floats.reserve(n_floats);
        if self.units.len() < n_units {
            self.units.resize(n_units, ActUnit::default());
        }
        if self.wide.len() < n_columns {
            self.wide.resize(n_columns, Vec::new());
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
        let floats = self.floats.get_mut().chunks_exact_mut(self.k);
        let units = self.units.chunks_exact_mut(units_per_column(self.k));
        let columns = floats.zip(units).zip(&mut self.wide).take(self.n_columns);
        columns.map(|((floats, units), wide)| ColumnMut { floats, units, wide }).collect()
    }

    /// The floats of all columns, for callers that write blocks of rows.
    pub fn floats_mut(&mut self) -> &mut [f32] {
        &mut self.floats.get_mut()[..self.k * self.n_columns]
    }

    /// A column's floats.
    pub fn floats(&self, column: usize) -> &[f32] {
        &self.floats.get()[column * self.k..(column + 1) * self.k]
    }

    /// A column's 8-bit form, valid after [`ColumnMut::quantize`].
    pub fn units(&self, column: usize) -> &[ActUnit] {
        &self.units[column * units_per_column(self.k)..][..self.k.div_ceil(UNIT)]
    }

    /// The codes of [`Activations::units`] as 16-bit numbers, on instruction sets with
    /// [`ikq_simd::Products::IS_FAST_WIDE`].
    pub fn wide(&self, column: usize) -> &[WideUnit] {
        &self.wide[column][..self.k.div_ceil(UNIT)]
    }
}

impl ColumnMut<'_> {
    /// Makes the 8-bit form from the floats.
    pub fn quantize(&mut self, kind: IsaKind) {
        run(kind, Quantize { x: self.floats, units: self.units, wide: self.wide });
    }
}

/// `codes = round(x / d)` with `d = max |x| / 127` of each 32 elements; the same bytes on every instruction set.
struct Quantize<'a> {
    x: &'a [f32],
    units: &'a mut [ActUnit],
    wide: &'a mut Vec<WideUnit>,
}

impl IsaOp for Quantize<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let (whole, tail) = self.x.as_chunks::<UNIT>();
        for (x, unit) in whole.iter().zip(self.units.iter_mut()) {
            quantize_unit(isa, x, unit);
        }
        if let (false, Some(unit)) = (tail.is_empty(), self.units.get_mut(whole.len())) {
            let mut x = [0.0; UNIT];
            x[..tail.len()].copy_from_slice(tail);
            quantize_unit(isa, &x, unit);
        }
        if I::IS_FAST_WIDE {
            let n = self.x.len().div_ceil(UNIT);
            if self.wide.len() < n {
                self.wide.resize(n, WideUnit([0; 128]));
            }
            for (unit, wide) in self.units.iter().zip(&mut self.wide[..n]) {
                widen(isa, unit, wide);
            }
        }
    }
}

/// Makes 16-bit numbers of a unit's codes.
#[inline(always)]
fn widen<I: Isa>(isa: I, unit: &ActUnit, out: &mut WideUnit) {
    for (codes, out) in unit.codes.as_chunks().0.iter().zip(out.0.as_chunks_mut::<32>().0) {
        let wide = isa.widened(isa.load_codes(codes));
        let mut words = [[0; 16]; 2];
        for (wide, words) in wide.into_iter().zip(&mut words) {
            isa.store_i(isa.ints(wide), words);
        }
        for (t, out) in out.as_chunks_mut::<2>().0.iter_mut().enumerate() {
            *out = [words[0][t], words[1][t]];
        }
    }
}

/// Scales below this have no finite reciprocal: such elements become zeros.
const LEAST_SCALE: f32 = 1e-38;

#[inline(always)]
fn quantize_unit<I: Isa>(isa: I, x: &[f32; UNIT], unit: &mut ActUnit) {
    let x = x.as_chunks::<16>().0;
    // the peaks of eight runs of 32: each as sixteen candidates, lane by lane after turning them round
    let mut candidates = [[0.0; 16]; 16];
    for (b, c) in candidates[..8].iter_mut().enumerate() {
        let peaks = isa.max_f(isa.abs_f(isa.load_f(&x[2 * b])), isa.abs_f(isa.load_f(&x[2 * b + 1])));
        isa.store_f(peaks, c);
    }
    let turned = isa.transpose(candidates.each_ref());
    let mut peaks = turned[0];
    for t in &turned[1..] {
        peaks = isa.max_f(peaks, *t);
    }
    let mut d = [0.0; 16];
    isa.store_f(isa.div_f(peaks, isa.splat_f(127.0)), &mut d);
    for (k, h) in unit.d.iter_mut().enumerate() {
        *h = if d[k / 2] >= LEAST_SCALE { d[k / 2] } else { 0.0 };
    }
    for (b, x) in x.as_chunks::<2>().0.iter().enumerate() {
        let d = unit.d[2 * b];
        let per_d = isa.splat_f(if d > 0.0 { 1.0 / d } else { 0.0 });
        for (h, x) in x.iter().enumerate() {
            // |x / d| is at most 127 and a rounding more, which rounds to 127
            let bytes = isa.slot_bytes(isa.slot(isa.mul_f(isa.load_f(x), per_d)));
            let at = 32 * b + 16 * h;
            unit.codes[at..at + 16].copy_from_slice(&array::<i8, 16>(|i| bytes[i] as i8));
        }
    }
    let ones = isa.splat(1);
    let mut quarters = [isa.splat_i(0); 4];
    for (quarter, codes) in quarters.iter_mut().zip(unit.codes.as_chunks::<64>().0) {
        *quarter = isa.dot4_unsigned(*quarter, ones, isa.load_codes(codes));
    }
    let mut sums = [0; 16];
    isa.store_i(isa.sums_of_4(quarters), &mut sums);
    unit.sums = array(|k| unit.d[k] * sums[k] as f32);
    unit.debts = array(|k| -CODE_BIAS * sums[k]);
    unit.sums_32 = array(|b| unit.d[2 * b] * (sums[2 * b] + sums[2 * b + 1]) as f32);
    unit.debts_32 = array(|b| -CODE_BIAS * (sums[2 * b] + sums[2 * b + 1]));
}
