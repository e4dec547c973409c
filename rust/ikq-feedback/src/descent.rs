//! Choosing codes again when all codes of a unit are known: coordinate descent.
//!
//! Column by column, a code is chosen for its own error alone, as if all later columns could follow it exactly. They
//! cannot: they have codes too. So when a unit of 256 columns is done, every code is compared with its alternatives
//! in terms of the whole error of the unit, `d H d^T` with `d = m - y` and [`Factors::inner`] as H, and replaced where
//! that becomes smaller. With `g = d H`, changing column j by c changes the error by `c^2 H_jj - 2 c g_j`.

use std::marker::PhantomData;

use ikq_covariance::{Factors, UNIT};
use ikq_encode::EncodeOptions;
use ikq_simd::{Isa, IsaOp};

use crate::coder::{Coder, MOST_SUB};
use crate::form::{Choice, Places};
use crate::groups::MOST;
use crate::lanes::{InLanes, Scales};
use crate::passes::{LANES, Lane, SIDE_BY_SIDE, pull};
use crate::types::Columns;

/// How often all codes of a unit are gone through at most.
pub(crate) const SWEEPS: usize = 4;

/// The least gain for which a code is changed, as a share of what the change itself would cost. Rounding must not
/// make codes change back and forth.
pub(crate) const LEAST_GAIN: f32 = 0.01;

/// A row's columns in a unit.
pub(crate) struct OfRow {
    /// What the codes decode to, and g of the module's comment.
    pub y: [f32; UNIT],
    pub g: [f32; UNIT],
}

impl OfRow {
    /// Makes `y` in column `column` larger by `change`. `inner` has the rows of [`Factors::inner`] for the unit.
    #[inline(always)]
    pub fn change<I: Isa>(&mut self, isa: I, column: usize, change: f32, inner: &[[f32; UNIT]]) {
        let by = isa.splat_f(change);
        let g = self.g.as_chunks_mut::<LANES>().0.iter_mut();
        for (g, h) in g.zip(inner[column].as_chunks::<LANES>().0).take(inner.len().div_ceil(LANES)) {
            isa.store_f(isa.sub_f(isa.load_f(g), isa.mul_f(by, isa.load_f(h))), g);
        }
    }
}

/// Up to sixteen rows of a unit whose codes are chosen again.
pub(crate) struct Unit<'a> {
    pub rows: &'a mut [OfRow],
    /// The rows of [`Factors::inner`], one for each column of the unit.
    pub inner: &'a [[f32; UNIT]],
    /// The diagonal of H.
    pub diagonal: &'a [f32; UNIT],
    /// Elements that share a scale, and the scale of each such sub-block and row.
    pub sub: usize,
    pub scales: &'a [[Choice; LANES]],
    /// The result, in the order in which changes were made.
    pub changes: &'a mut Vec<Change>,
}

/// A change of codes: those that stand for a column, or for a group of columns.
pub(crate) struct Change {
    pub row: usize,
    /// The first of the columns.
    pub column: usize,
    pub codes: [u16; 2],
    pub beside: [u8; MOST],
}

/// How many numbers of a sub-block's fields [`Change`] replaces, and for how many columns.
#[derive(Clone, Copy)]
pub(crate) struct Replaces {
    pub columns: usize,
    pub codes: usize,
    pub beside: usize,
}

/// Chooses codes again for one unit of every row, and corrects the errors.
pub(crate) struct Descend<'a, T> {
    /// The unit's columns, adjusted for the errors of earlier units, and what their codes decode to.
    pub moved: &'a [Lane],
    pub decoded: &'a mut [Lane],
    pub errors: &'a mut [Lane],
    pub factors: &'a Factors,
    /// The unit's first column, and the number of its columns.
    pub first: usize,
    pub n: usize,
    /// The numbers of the unit's blocks: for each block, those of each row.
    pub values: &'a mut [u32],
    pub n_values: usize,
    /// Columns of a block.
    pub block: usize,
    pub n_rows: usize,
    pub places: Places,
    pub of_rows: &'a [f32],
    pub options: EncodeOptions,
    pub of_type: PhantomData<T>,
}

impl<T: Columns> IsaOp for Descend<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Descend { moved, decoded, errors, factors, first, n, values, n_values, block, .. } = self;
        let Descend { n_rows, places, of_rows, options, .. } = self;
        let coder = T::coder(isa, options);
        let Some(replaces) = coder.replaces() else { return };
        let (k, sub) = (factors.k(), T::FORM.sub);
        let inner = &factors.inner[first..first + n];
        let mut diagonal = [1.0; UNIT];
        diagonal.iter_mut().zip(inner).enumerate().for_each(|(j, (d, row))| *d = row[j]);
        let mut rows: Vec<OfRow> = (0..LANES).map(|_| OfRow { y: [0.0; UNIT], g: [0.0; UNIT] }).collect();
        let mut scales = [[Choice::default(); LANES]; UNIT / LANES];
        let mut changes = Vec::new();
        let mut left = [[0.0; LANES]; UNIT];
        let groups = moved.chunks_exact(n).zip(decoded.chunks_exact_mut(n)).zip(errors.chunks_exact_mut(k));
        for (group, ((moved, decoded), errors)) in groups.enumerate() {
            let at = group * LANES;
            let in_group = LANES.min(n_rows - at);
            let block_of = |column: usize, lane: usize| ((column / block) * n_rows + at + lane) * n_values;
            for lane in 0..in_group {
                for s in 0..n / sub {
                    let values = &values[block_of(s * sub, lane)..][..n_values];
                    let present = std::slice::from_mut(&mut scales[s][lane]);
                    T::FORM.choices(values, places, s % (block / sub), of_rows[at + lane], present);
                }
            }
            gradients(isa, &errors[first..first + n], factors, first, &mut rows);
            for (column, decoded) in decoded.iter().enumerate() {
                rows.iter_mut().zip(decoded).for_each(|(row, y)| row.y[column] = *y);
            }
            changes.clear();
            coder.descend(
                isa,
                Unit {
                    rows: &mut rows[..in_group],
                    inner,
                    diagonal: &diagonal,
                    sub,
                    scales: &scales[..n / sub],
                    changes: &mut changes,
                },
            );
            if changes.is_empty() {
                continue;
            }
            for Change { row, column, codes, beside } in &changes {
                let values = &mut values[block_of(*column, *row)..][..n_values];
                let (s, group) = (column % block / sub, column % sub / replaces.columns);
                let out = &mut places.codes.of(values, s)[group * replaces.codes..][..replaces.codes];
                out.iter_mut().zip(codes).for_each(|(out, code)| *out = u32::from(*code));
                let out = &mut places.beside.of(values, s)[group * replaces.beside..][..replaces.beside];
                out.iter_mut().zip(beside).for_each(|(out, beside)| *out = u32::from(*beside));
            }
            for (column, decoded) in decoded.iter_mut().enumerate() {
                decoded.iter_mut().zip(&rows).for_each(|(y, row)| *y = row.y[column]);
            }
            differences(isa, moved, decoded, &mut left);
            correct(isa, &left[..n], factors, first, &mut errors[first..first + n]);
        }
    }
}

/// `left = moved - decoded`.
#[inline(always)]
fn differences<I: Isa>(isa: I, moved: &[Lane], decoded: &[Lane], left: &mut [Lane; UNIT]) {
    for ((moved, decoded), left) in moved.iter().zip(decoded).zip(left) {
        isa.store_f(isa.sub_f(isa.load_f(moved), isa.load_f(decoded)), left);
    }
}

/// Writes g to sixteen rows: `d R` is v with `v_j = e_j R_jj`, so `d H` is `v R^T`.
#[inline(always)]
fn gradients<I: Isa>(isa: I, errors: &[Lane], factors: &Factors, first: usize, rows: &mut [OfRow]) {
    let mut v = [[0.0; LANES]; UNIT];
    for ((v, e), w) in v.iter_mut().zip(errors).zip(&factors.weights[first..]) {
        isa.store_f(isa.mul_f(isa.load_f(e), isa.splat_f(w.sqrt())), v);
    }
    for column in (0..errors.len()).step_by(SIDE_BY_SIDE) {
        let mut sums = [isa.splat_f(0.0); SIDE_BY_SIDE];
        // R is 0 in columns before these
        for later in (column / LANES * LANES..errors.len()).step_by(LANES) {
            let strip = factors.root.strip((first + later) / LANES);
            let own = &strip[first + column..][..SIDE_BY_SIDE];
            for (m, v) in v[later..].iter().take(LANES).enumerate() {
                let v = isa.load_f(v);
                for (sum, row) in sums.iter_mut().zip(own) {
                    *sum = isa.mul_add_f(v, isa.splat_f(row[m]), *sum);
                }
            }
        }
        for (j, sum) in sums.into_iter().enumerate() {
            rows.iter_mut().zip(isa.array(sum)).for_each(|(row, g)| row.g[column + j] = g);
        }
    }
}

/// Computes the errors e of a unit's columns from their differences d: `e_j^2 w_j` is the square of column j of `d R`.
#[inline(always)]
fn correct<I: Isa>(isa: I, left: &[Lane], factors: &Factors, first: usize, errors: &mut [Lane]) {
    for (at, errors) in (0..left.len()).step_by(SIDE_BY_SIDE).zip(errors.chunks_exact_mut(SIDE_BY_SIDE)) {
        errors.fill([0.0; LANES]);
        pull(isa, errors, &left[..at + SIDE_BY_SIDE], &factors.root, first + at, first);
        for (j, e) in errors.iter_mut().enumerate() {
            // what was subtracted has the other sign
            let root = factors.weights[first + at + j].sqrt();
            isa.store_f(isa.div_f(isa.load_f(e), isa.splat_f(-root)), e);
        }
    }
}

/// Chooses codes of a unit again where each column has a level of its own.
#[inline(always)]
pub(crate) fn descend_in_columns<I: Isa, C: InLanes<I, N>, const N: usize>(isa: I, unit: Unit<'_>, coder: C) {
    let Unit { rows, inner, diagonal, sub, scales, changes } = unit;
    let n_vectors = inner.len() / LANES;
    for (number, row) in rows.iter_mut().enumerate() {
        // vectors of columns that were found as good as they can be, one after another, since the last change
        let mut settled = 0;
        for vector in (0..SWEEPS).flat_map(|_| 0..n_vectors) {
            let at = vector * LANES;
            let before = changes.len();
            let mut is_settled = false;
            let h = isa.load_f(of_sixteen(diagonal, at));
            let scales = Scales::splat(isa, &scales[at / sub][number]);
            for _ in 0..LANES {
                let (y, g) = (isa.load_f(of_sixteen(&row.y, at)), isa.load_f(of_sixteen(&row.g, at)));
                let target = scales.target(isa, isa.add_f(y, isa.div_f(g, h)));
                let (level, code) = coder.level(isa, target);
                let value = scales.value(isa, level);
                let change = isa.sub_f(value, y);
                let cost = isa.mul_f(isa.mul_f(change, change), h);
                let gain = isa.sub_f(isa.mul_f(isa.add_f(g, g), change), cost);
                let least = isa.mul_f(cost, isa.splat_f(LEAST_GAIN));
                let better = isa.bits_gt(gain, least);
                is_settled = better == 0;
                if is_settled {
                    break;
                }
                let gains = isa.array(gain);
                let mut best = better.trailing_zeros() as usize;
                for lane in best + 1..LANES {
                    if better >> lane & 1 == 1 && gains[lane] > gains[best] {
                        best = lane;
                    }
                }
                let column = at + best;
                row.y[column] = isa.array(value)[best];
                row.change(isa, column, isa.array(change)[best], inner);
                let codes = [u16::from(isa.slot_bytes(code)[best]), 0];
                changes.push(Change { row: number, column, codes, beside: [0; MOST] });
            }
            settled = if changes.len() == before { settled } else { 0 } + usize::from(is_settled);
            if settled == n_vectors {
                break;
            }
        }
    }
}

#[inline(always)]
fn of_sixteen(of: &[f32; UNIT], at: usize) -> &[f32; LANES] {
    &of.as_chunks::<LANES>().0[at / LANES]
}

const _: () = assert!(UNIT.is_multiple_of(MOST_SUB) && MOST_SUB.is_multiple_of(LANES));
