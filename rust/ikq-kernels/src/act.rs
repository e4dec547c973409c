//! Activations: the input of matrix products, column after column, as floats and as 8-bit codes.
//!
//! A column is one token's vector of `k` elements. It is quantized once and read by every matrix and expert
//! that takes it.

use ikq_decode::UNIT;
use ikq_simd::{Isa, IsaKind, IsaOp, array, run};

use crate::aligned::Aligned;

/// 32 elements in 8 bits that share a scale, and what products take besides: one cache line, so that a product moves one
/// address along a column.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, align(64))]
pub struct ActBlock {
    /// The codes, in -127..=127; zeros behind the column's end.
    pub codes: [i8; 32],
    pub d: f32,
    /// `d` times the sum of the codes.
    pub sum: f32,
    /// The same per 16.
    pub sums: [f32; 2],
    /// What sums of products start from where weights carry [`CODE_BIAS`] and sums are read as floats: [`FLOAT_START`] less
    /// the bias times the sum of the codes.
    pub start: i32,
    /// The same per 16; only the first has [`FLOAT_START`], as the two sums are joined.
    pub starts: [i32; 2],
    /// Minus the sum of the codes, per 16.
    pub less: [i16; 2],
}

/// 256 elements.
pub type ActUnit = [ActBlock; UNIT / 32];

/// What sums of products of a unit start from when weights carry [`CODE_BIAS`]: minus the bias times the sum of the codes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Debts {
    pub per_16: [i32; 16],
    pub per_32: [i32; 8],
}

/// The codes of an [`ActBlock`] as 16-bit numbers, two in each word: of each four codes the two that
/// [`ikq_simd::Products::widened`] gives first, then the others.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub struct WideBlock(pub [i32; 16]);

/// The bias that [`Debts`] make up for: that of the instruction sets which need one.
pub const CODE_BIAS: i32 = 128;

/// What a sum of products may start from so that it need not be converted: 1.5 * 2^23. The bits of this float plus an
/// integer below 2^22 are the bits of the float that is larger by this integer, and a sum of 32 products of two codes is
/// below 2^20. Scales are small integers, or halves times small integers (a scale of a whole row is applied at its end), and
/// have at most 22 bits. So `FLOAT_START * scale`, three times a power of two, is exact, and `(FLOAT_START + sum) * scale -
/// FLOAT_START * scale`, one fused operation, is rounded just as `sum * scale` is.
pub(crate) const FLOAT_START: f32 = 12_582_912.0;

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
    debts: Vec<Debts>,
    /// Each column's codes as 16-bit numbers, where the instruction set has products that read those: they are made
    /// once here, because blocks of few rows that each made their own would take as long as their products.
    wide: Vec<Vec<WideBlock>>,
}

/// One column of [`Activations`], to be written by one thread.
pub struct ColumnMut<'a> {
    pub floats: &'a mut [f32],
    units: &'a mut [ActUnit],
    debts: &'a mut [Debts],
    wide: &'a mut Vec<WideBlock>,
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
            self.debts.resize(n_units, Debts::default());
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
        let debts = self.debts.chunks_exact_mut(units_per_column(self.k));
        let columns = floats.zip(units).zip(debts).zip(&mut self.wide).take(self.n_columns);
        columns.map(|(((floats, units), debts), wide)| ColumnMut { floats, units, debts, wide }).collect()
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

    /// What belongs to [`Activations::units`].
    pub fn debts(&self, column: usize) -> &[Debts] {
        &self.debts[column * units_per_column(self.k)..][..self.k.div_ceil(UNIT)]
    }

    /// The codes of [`Activations::units`] as 16-bit numbers, on instruction sets with
    /// [`ikq_simd::Products::IS_FAST_WIDE`].
    pub fn wide(&self, column: usize) -> &[WideBlock] {
        &self.wide[column][..UNIT / 32 * self.k.div_ceil(UNIT)]
    }
}

impl ColumnMut<'_> {
    /// Makes the 8-bit form from the floats.
    pub fn quantize(&mut self, kind: IsaKind) {
        run(kind, Quantize { x: self.floats, units: self.units, debts: self.debts, wide: self.wide });
    }
}

/// `codes = round(x / d)` with `d = max |x| / 127` of each 32 elements; the same bytes on every instruction set.
struct Quantize<'a> {
    x: &'a [f32],
    units: &'a mut [ActUnit],
    debts: &'a mut [Debts],
    wide: &'a mut Vec<WideBlock>,
}

impl IsaOp for Quantize<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let (whole, tail) = self.x.as_chunks::<UNIT>();
        let mut units = self.units.iter_mut().zip(self.debts);
        for (x, (unit, debts)) in whole.iter().zip(&mut units) {
            quantize_unit(isa, x, unit, debts);
        }
        if let (false, Some((unit, debts))) = (tail.is_empty(), units.next()) {
            let mut x = [0.0; UNIT];
            x[..tail.len()].copy_from_slice(tail);
            quantize_unit(isa, &x, unit, debts);
        }
        if I::IS_FAST_WIDE {
            let n = UNIT / 32 * self.x.len().div_ceil(UNIT);
            if self.wide.len() < n {
                self.wide.resize(n, WideBlock([0; 16]));
            }
            for (block, wide) in self.units.as_flattened().iter().zip(&mut self.wide[..n]) {
                widen(isa, block, wide);
            }
        }
    }
}

/// Makes 16-bit numbers of a block's codes.
#[inline(always)]
fn widen<I: Isa>(isa: I, block: &ActBlock, out: &mut WideBlock) {
    let wide = isa.widened(isa.load_codes(&array(|i| block.codes[i % 32])));
    let mut words = [[0; 16]; 2];
    for (wide, words) in wide.into_iter().zip(&mut words) {
        isa.store_i(isa.ints(wide), words);
    }
    for (t, out) in out.0.as_chunks_mut::<2>().0.iter_mut().enumerate() {
        *out = [words[0][t], words[1][t]];
    }
}

/// Scales below this have no finite reciprocal: such elements become zeros.
const LEAST_SCALE: f32 = 1e-38;

#[inline(always)]
fn quantize_unit<I: Isa>(isa: I, x: &[f32; UNIT], unit: &mut ActUnit, debts: &mut Debts) {
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
    for (d, block) in d.iter().zip(unit.iter_mut()) {
        block.d = if *d >= LEAST_SCALE { *d } else { 0.0 };
    }
    let mut codes = [0; UNIT];
    for (b, (x, codes)) in x.as_chunks::<2>().0.iter().zip(codes.as_chunks_mut::<32>().0).enumerate() {
        let d = unit[b].d;
        let per_d = isa.splat_f(if d > 0.0 { 1.0 / d } else { 0.0 });
        for (x, codes) in x.iter().zip(codes.as_chunks_mut::<16>().0) {
            // |x / d| is at most 127 and a rounding more, which rounds to 127
            let bytes = isa.slot_bytes(isa.slot(isa.mul_f(isa.load_f(x), per_d)));
            *codes = array(|i| bytes[i] as i8);
        }
    }
    let ones = isa.splat(1);
    let mut quarters = [isa.splat_i(0); 4];
    for (quarter, codes) in quarters.iter_mut().zip(codes.as_chunks::<64>().0) {
        *quarter = isa.dot4_unsigned(*quarter, ones, isa.load_codes(codes));
    }
    let mut sums = [0; 16];
    isa.store_i(isa.sums_of_4(quarters), &mut sums);
    for (b, block) in unit.iter_mut().enumerate() {
        let sums = [sums[2 * b], sums[2 * b + 1]];
        let both = sums[0] + sums[1];
        let float_start = FLOAT_START.to_bits() as i32;
        *block = ActBlock {
            codes: array(|i| codes[32 * b + i]),
            d: block.d,
            sum: block.d * both as f32,
            sums: sums.map(|s| block.d * s as f32),
            start: float_start - CODE_BIAS * both,
            starts: [float_start - CODE_BIAS * sums[0], -CODE_BIAS * sums[1]],
            // 16 codes of at most 127
            less: sums.map(|s| -s as i16),
        };
    }
    debts.per_16 = array(|k| -CODE_BIAS * sums[k]);
    debts.per_32 = array(|b| -CODE_BIAS * (sums[2 * b] + sums[2 * b + 1]));
}
