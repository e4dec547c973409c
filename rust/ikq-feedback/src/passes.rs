//! Operations on sixteen rows at a time: adjusting columns for errors, choosing scales and codes, and measuring the
//! gain.

use std::marker::PhantomData;

use ikq_covariance::steps::measured;
use ikq_covariance::{Factors, Strips, UNIT};
use ikq_encode::EncodeOptions;
use ikq_simd::{Isa, IsaOp};

use crate::coder::{Coded, Coder, MOST_SUB, SubBlock};
use crate::form::{Choice, MOST_CHOICES, Places};
use crate::integers::{Integers, pull_part};
use crate::types::Columns;

/// Rows that are worked on side by side, one per lane.
pub(crate) const LANES: usize = 16;
pub(crate) type Lane = [f32; LANES];
/// Columns that are computed together, in registers.
pub(crate) const SIDE_BY_SIDE: usize = 8;

/// `columns -= errors * factor` for columns from `first` on; `first` and their number are multiples of eight.
/// `errors` belong to rows `from..from + errors.len()` of the factor, in the unit of these columns.
#[inline(always)]
pub(crate) fn pull<I: Isa>(
    isa: I,
    columns: &mut [Lane],
    errors: &[Lane],
    factor: &Strips,
    first: usize,
    from: usize,
) {
    for (i, columns) in columns.as_chunks_mut::<SIDE_BY_SIDE>().0.iter_mut().enumerate() {
        let column = first + i * SIDE_BY_SIDE;
        let half = column % LANES / SIDE_BY_SIDE;
        let mut sums: [I::F; SIDE_BY_SIDE] = std::array::from_fn(|j| isa.load_f(&columns[j]));
        for (e, row) in errors.iter().zip(&factor.strip(column / LANES)[from % UNIT..]) {
            let e = isa.load_f(e);
            let row = &row.as_chunks::<SIDE_BY_SIDE>().0[half];
            for (sum, n) in sums.iter_mut().zip(row) {
                *sum = isa.sub_f(*sum, isa.mul_f(e, isa.splat_f(*n)));
            }
        }
        for (sum, column) in sums.into_iter().zip(columns) {
            isa.store_f(sum, column);
        }
    }
}

/// Adjusts columns of a unit for the errors of its earlier ones, for each group of sixteen rows.
pub(crate) struct Move<'a> {
    /// Columns of the unit, `width` for each group of sixteen rows, group after group; those to be adjusted begin at
    /// `at`.
    pub x: &'a [Lane],
    pub width: usize,
    pub at: usize,
    /// The errors of all columns of the rows, of which those of the unit before `at` count.
    pub errors: &'a [Lane],
    pub factors: &'a Factors,
    /// The unit's first column.
    pub first: usize,
    /// The result, one group of sixteen rows after another.
    pub out: &'a mut [Lane],
    /// The number of columns that are adjusted.
    pub n: usize,
}

impl IsaOp for Move<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let k = self.factors.k();
        let groups = self.x.chunks_exact(self.width).zip(self.errors.chunks_exact(k));
        for ((x, errors), out) in groups.zip(self.out.chunks_exact_mut(self.n)) {
            out.copy_from_slice(&x[self.at..][..self.n]);
            let errors = &errors[self.first..][..self.at];
            pull(isa, out, errors, &self.factors.spread, self.first + self.at, self.first);
        }
    }
}

/// One unit of up to 64 rows: what choosing scales and codes reads and writes. Rows are sixteen side by side, one group
/// after another.
pub(crate) struct OfUnit<'a, T> {
    pub factors: &'a Factors,
    pub options: EncodeOptions,
    /// The unit's first column, the number of its columns, and that of a block's.
    pub first: usize,
    pub n: usize,
    pub block: usize,
    /// The unit's columns, adjusted for the errors of earlier units, and what their codes decode to.
    pub moved: &'a [Lane],
    pub decoded: &'a mut [Lane],
    /// The errors of all columns of the rows.
    pub errors: &'a mut [Lane],
    /// The numbers of the unit's blocks: for each block, those of each row.
    pub values: &'a mut [u32],
    pub n_values: usize,
    pub n_rows: usize,
    pub places: Places,
    /// The float scale of each row, where the type has one.
    pub of_rows: &'a [f32],
    pub of_type: PhantomData<T>,
}

/// Chooses scales and codes of one block of every row, and records the errors. The block's numbers have the encoder's
/// scales, which are the first choice.
pub(crate) struct Settle<'a, 'b, T> {
    pub unit: &'a mut OfUnit<'b, T>,
    /// The block's columns, adjusted by [`Move`], and its place in the unit.
    pub moved: &'a [Lane],
    pub at: usize,
}

impl<T: Columns> IsaOp for Settle<'_, '_, T> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let OfUnit { factors, options, first, n, block, n_values, n_rows, places, of_rows, .. } = *self.unit;
        let OfUnit { decoded, errors, values, .. } = self.unit;
        let (k, sub, in_block) = (factors.k(), T::FORM.sub, n_rows * n_values);
        let coder = T::coder(isa, options);
        let groups = self.moved.chunks_exact(block).zip(errors.chunks_exact_mut(k));
        let groups = groups.zip(decoded.chunks_exact_mut(n));
        let values = &mut values[self.at / block * in_block..][..in_block];
        let rows = values.chunks_mut(LANES * n_values).zip(of_rows.chunks(LANES));
        let first = first + self.at;
        for (((moved, errors), decoded), (values, of_rows)) in groups.zip(rows) {
            for s in 0..block / sub {
                let at = first + s * sub;
                let mut x = [[0.0; LANES]; MOST_SUB];
                let x = &mut x[..sub];
                x.copy_from_slice(&moved[s * sub..][..sub]);
                // adjusts for errors of this block's own columns
                pull(isa, x, &errors[first..at], &factors.spread, at, first);
                let mut choices = [[Choice::default(); LANES]; MOST_CHOICES];
                // lanes without rows keep a scale of 0
                let rows = values.chunks_exact(n_values).zip(of_rows);
                for (lane, (values, float)) in rows.enumerate() {
                    let mut of_row = [Choice::default(); MOST_CHOICES];
                    T::FORM.choices(values, places, s, *float, &mut of_row);
                    for (all, one) in choices.iter_mut().zip(of_row) {
                        all[lane] = one;
                    }
                }
                let n_rows = values.len() / n_values;
                let choices = &choices[..T::FORM.n_choices()];
                let mut coded = Coded {
                    kept: choices[0],
                    errors: &mut errors[at..at + sub],
                    decoded: &mut decoded[self.at + s * sub..][..sub],
                    codes: [[0; LANES]; MOST_SUB],
                    beside: [[0; LANES]; MOST_SUB],
                };
                coder.code(isa, &SubBlock { x, factors, at, choices, n_rows }, &mut coded);
                let Coded { kept, codes, beside, .. } = coded;
                for (lane, values) in values.chunks_exact_mut(n_values).enumerate() {
                    T::FORM.keep(values, places, s, &kept[lane]);
                    let out = places.codes.of(values, s);
                    out.iter_mut().zip(&codes).for_each(|(out, codes)| *out = u32::from(codes[lane]));
                    let out = places.beside.of(values, s);
                    out.iter_mut().zip(&beside).for_each(|(out, beside)| *out = u32::from(beside[lane]));
                }
            }
        }
    }
}

/// Computes the errors of rows anew, from what their codes decode to, in the columns that [`Gains`] reads.
pub(crate) struct Errors<'a> {
    /// What codes decode to, less the rows.
    pub differences: &'a Integers,
    pub factors: &'a Factors,
    pub errors: &'a mut [Lane],
}

impl IsaOp for Errors<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let k = self.factors.k();
        let mut part = 0;
        for first in measured(k) {
            let (n_units, n) = (first / UNIT + 1, SIDE_BY_SIDE.min(k - first));
            for (group, errors) in self.errors.chunks_exact_mut(k).enumerate() {
                let mut products = [[0.0; LANES]; SIDE_BY_SIDE];
                for unit in 0..n_units {
                    let numbers = self.differences.of(unit, group);
                    pull_part(isa, self.factors.measured.part(part + unit), [numbers], [&mut products]);
                }
                for (j, d) in products[..n].iter().enumerate() {
                    let root = isa.splat_f(self.factors.weights[first + j].sqrt());
                    isa.store_f(isa.div_f(isa.load_f(d), root), &mut errors[first + j]);
                }
            }
            part += n_units;
        }
    }
}

/// Computes `sum x H y` and `sum x H x` of each row, where H is the covariance that the factors are of. For long
/// rows, both sums run over the same part of the columns of `x R`.
pub(crate) struct Gains<'a> {
    pub x: &'a Integers,
    /// The errors of all columns of the rows.
    pub errors: &'a [Lane],
    pub factors: &'a Factors,
    /// Both sums, for each group of sixteen rows.
    pub out: &'a mut [(Lane, Lane)],
}

impl IsaOp for Gains<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let k = self.factors.k();
        self.out.fill(([0.0; LANES], [0.0; LANES]));
        let mut part = 0;
        for first in measured(k) {
            let (n_units, n) = (first / UNIT + 1, SIDE_BY_SIDE.min(k - first));
            for (group, (errors, out)) in self.errors.chunks_exact(k).zip(&mut *self.out).enumerate() {
                let (mut xy, mut xx) = (isa.load_f(&out.0), isa.load_f(&out.1));
                // v is -x R in these columns; d R is the error e times the root of w
                let mut v = [[0.0; LANES]; SIDE_BY_SIDE];
                for unit in 0..n_units {
                    let numbers = self.x.of(unit, group);
                    pull_part(isa, self.factors.measured.part(part + unit), [numbers], [&mut v]);
                }
                for (j, v) in v[..n].iter().enumerate() {
                    let v = isa.load_f(v);
                    let root = self.factors.weights[first + j].sqrt();
                    let d = isa.mul_f(isa.load_f(&errors[first + j]), isa.splat_f(root));
                    xx = isa.mul_add_f(v, v, xx);
                    // x H y = x H x - x H d, and -v is x R
                    xy = isa.mul_add_f(v, isa.add_f(v, d), xy);
                }
                isa.store_f(xy, &mut out.0);
                isa.store_f(xx, &mut out.1);
            }
            part += n_units;
        }
    }
}
