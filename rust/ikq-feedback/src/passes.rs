//! What is done on sixteen rows at a time: moving errors, choosing scales and codes, and measuring the gain.

use std::marker::PhantomData;

use ikq_covariance::{Factors, Strips};
use ikq_encode::EncodeOptions;
use ikq_encode::search::levels::Levels;
use ikq_simd::{Isa, IsaOp};

use crate::form::{Choice, MOST_CHOICES, Places};
use crate::types::Columns;

/// Rows side by side.
pub(crate) const LANES: usize = 16;
pub(crate) type Lane = [f32; LANES];
/// Most elements that share a scale.
const MOST_SUB: usize = 32;
/// Columns that are computed side by side.
const SIDE_BY_SIDE: usize = 8;
/// Quotients beyond this are on the last level of any type, and rounding wants small numbers.
const LARGE: f32 = 65536.0;

/// `columns -= errors * factor` for columns from `first`, a multiple of eight as their number is; `errors` are those of rows
/// `from..from + errors.len()` of the factor.
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
        for (e, row) in errors.iter().zip(&factor.strip(column / LANES)[from..]) {
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

/// The columns of a block as all earlier errors have moved them; for each group of sixteen rows.
pub(crate) struct Move<'a> {
    /// All columns of the rows, group after group, `k` each; and their errors so far.
    pub x: &'a [Lane],
    pub errors: &'a [Lane],
    pub factors: &'a Factors,
    /// The block's first column.
    pub first: usize,
    /// Group after group.
    pub out: &'a mut [Lane],
    /// Columns of the block.
    pub n: usize,
}

impl IsaOp for Move<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let k = self.factors.k();
        let groups = self.x.chunks_exact(k).zip(self.errors.chunks_exact(k));
        for ((x, errors), out) in groups.zip(self.out.chunks_exact_mut(self.n)) {
            out.copy_from_slice(&x[self.first..][..self.n]);
            pull(isa, out, &errors[..self.first], &self.factors.spread, self.first, 0);
        }
    }
}

/// Chooses scales and codes of one block of every row, and notes the errors.
pub(crate) struct Settle<'a, T> {
    /// What [`Move`] gave.
    pub moved: &'a mut [Lane],
    pub errors: &'a mut [Lane],
    pub factors: &'a Factors,
    pub first: usize,
    pub n: usize,
    /// The numbers of the block of each row, one behind the other: with scales of the encoder, which are the first choice.
    pub values: &'a mut [u32],
    pub n_values: usize,
    pub places: Places,
    /// The float scale of each row, where the type has one.
    pub of_rows: &'a [f32],
    pub options: EncodeOptions,
    pub of_type: PhantomData<T>,
}

impl<T: Columns> IsaOp for Settle<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Settle { moved, errors, factors, first, n, values, n_values, places, of_rows, options, .. } =
            self;
        let (k, sub) = (factors.k(), T::FORM.sub);
        let levels = T::levels(isa, options);
        let groups = moved.chunks_exact_mut(n).zip(errors.chunks_exact_mut(k));
        let rows = values.chunks_mut(LANES * n_values).zip(of_rows.chunks(LANES));
        for ((moved, errors), (values, of_rows)) in groups.zip(rows) {
            for s in 0..n / sub {
                let at = first + s * sub;
                let x = &mut moved[s * sub..][..sub];
                // errors of this block's own columns
                pull(isa, x, &errors[first..at], &factors.spread, at, first);
                let mut choices = [[Choice::default(); LANES]; MOST_CHOICES];
                // rows that are not there have no scale either
                let rows = values.chunks_exact(n_values).zip(of_rows);
                for (lane, (values, float)) in rows.enumerate() {
                    let mut of_row = [Choice::default(); MOST_CHOICES];
                    T::FORM.choices(values, places, s, *float, &mut of_row);
                    for (all, one) in choices.iter_mut().zip(of_row) {
                        all[lane] = one;
                    }
                }
                let kept = choose::<I, T>(isa, x, levels, factors, at, &choices);
                let mut codes = [[0u8; LANES]; MOST_SUB];
                take::<I, T>(isa, x, levels, factors, at, &kept, &mut errors[at..at + sub], &mut codes);
                for (lane, values) in values.chunks_exact_mut(n_values).enumerate() {
                    T::FORM.keep(values, places, s, &kept[lane]);
                    let out = &mut values[places.codes + s * sub..][..sub];
                    out.iter_mut().zip(&codes).for_each(|(out, codes)| *out = u32::from(codes[lane]));
                }
            }
        }
    }
}

/// `x` in units of the scale, and what the code nearest to it stands for.
#[inline(always)]
fn nearest<I: Isa, L: Levels<I>>(
    isa: I,
    levels: L,
    x: I::F,
    (a, b, inverse): (I::F, I::F, I::F),
) -> (I::F, I::F) {
    let t = isa.mul_f(isa.sub_f(x, b), inverse);
    let t = isa.max_f(isa.min_f(t, isa.splat_f(LARGE)), isa.splat_f(-LARGE));
    (t, isa.mul_add_f(a, levels.nearest(isa, t), b))
}

/// a, b and 1 / a (0 where a is 0) of a choice per lane.
#[inline(always)]
fn scales<I: Isa>(isa: I, choices: &[Choice; LANES]) -> (I::F, I::F, I::F) {
    let a = isa.load_f(&choices.map(|c| c.a));
    let b = isa.load_f(&choices.map(|c| c.b));
    let (zero, least) = (isa.splat_f(0.0), isa.splat_f(f32::MIN_POSITIVE));
    let inverse = isa.if_gt(isa.abs_f(a), least, isa.div_f(isa.splat_f(1.0), a), zero);
    (a, b, inverse)
}

/// The choice with the least error of each row, the first of equals.
#[inline(always)]
fn choose<I: Isa, T: Columns>(
    isa: I,
    x: &[Lane],
    levels: T::Levels<I>,
    factors: &Factors,
    at: usize,
    choices: &[[Choice; LANES]; MOST_CHOICES],
) -> [Choice; LANES] {
    let mut best = choices[0];
    let mut least = isa.splat_f(f32::MAX);
    for choices in &choices[..T::FORM.n_choices()] {
        let scales = scales(isa, choices);
        let mut loss = isa.splat_f(0.0);
        column_by_column::<I, T>(isa, x, factors, at, |x, j| {
            let (_, y) = nearest(isa, levels, x, scales);
            let e = isa.sub_f(x, y);
            loss = isa.mul_add_f(isa.mul_f(e, e), isa.splat_f(factors.weights[at + j]), loss);
            e
        });
        let better = isa.bits_gt(least, loss);
        least = isa.min_f(loss, least);
        for (lane, (best, choice)) in best.iter_mut().zip(choices).enumerate() {
            if better >> lane & 1 == 1 {
                *best = *choice;
            }
        }
    }
    best
}

/// Codes and errors with the choice that was made.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "what is read, and what is written")]
fn take<I: Isa, T: Columns>(
    isa: I,
    x: &[Lane],
    levels: T::Levels<I>,
    factors: &Factors,
    at: usize,
    kept: &[Choice; LANES],
    errors: &mut [Lane],
    codes: &mut [[u8; LANES]; MOST_SUB],
) {
    let scales = scales(isa, kept);
    column_by_column::<I, T>(isa, x, factors, at, |x, j| {
        let (t, y) = nearest(isa, levels, x, scales);
        codes[j] = isa.slot_bytes(levels.code(isa, t));
        let e = isa.sub_f(x, y);
        isa.store_f(e, &mut errors[j]);
        e
    });
}

/// Goes through the columns of a sub-block: `code` has the error of a column, which moves those behind it.
#[inline(always)]
fn column_by_column<I: Isa, T: Columns>(
    isa: I,
    x: &[Lane],
    factors: &Factors,
    at: usize,
    mut code: impl FnMut(I::F, usize) -> I::F,
) {
    let mut errors = [[0.0; LANES]; MOST_SUB];
    for j in 0..T::FORM.sub {
        let column = at + j;
        let mut moved = isa.load_f(&x[j]);
        let strip = &factors.spread.strip(column / LANES)[at..column];
        for (e, row) in errors.iter().zip(strip) {
            moved = isa.sub_f(moved, isa.mul_f(isa.load_f(e), isa.splat_f(row[column % LANES])));
        }
        isa.store_f(code(moved, j), &mut errors[j]);
    }
}

/// `sum x H y` and `sum x H x` of each row, H being what the factors are of.
pub(crate) struct Gains<'a> {
    pub x: &'a [Lane],
    pub errors: &'a [Lane],
    pub factors: &'a Factors,
    /// Of each group.
    pub out: &'a mut [(Lane, Lane)],
}

impl IsaOp for Gains<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let k = self.factors.k();
        let groups = self.x.chunks_exact(k).zip(self.errors.chunks_exact(k));
        for ((x, errors), out) in groups.zip(self.out) {
            let (mut xy, mut xx) = (isa.splat_f(0.0), isa.splat_f(0.0));
            for first in (0..k).step_by(SIDE_BY_SIDE) {
                // v = -x R of these columns; with e the error, d R is e times the root of w
                let mut v = [[0.0; LANES]; SIDE_BY_SIDE];
                pull(isa, &mut v, &x[..first + SIDE_BY_SIDE], &self.factors.root, first, 0);
                for (j, v) in v.iter().enumerate() {
                    let v = isa.load_f(v);
                    let root = self.factors.weights[first + j].sqrt();
                    let d = isa.mul_f(isa.load_f(&errors[first + j]), isa.splat_f(root));
                    xx = isa.mul_add_f(v, v, xx);
                    // x H y = x H x - x H d, and -v is x R
                    xy = isa.mul_add_f(v, isa.add_f(v, d), xy);
                }
            }
            isa.store_f(xy, &mut out.0);
            isa.store_f(xx, &mut out.1);
        }
    }
}
