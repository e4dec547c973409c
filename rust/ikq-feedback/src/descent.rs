//! Choosing codes again when all codes of a unit are known: coordinate descent.
//!
//! Column by column, a code is chosen for its own error alone, as if all later columns could follow it exactly. They
//! cannot: they have codes too. So when a unit of 256 columns is done, every code is compared with its alternatives
//! in terms of the whole error of the unit, `d H d^T` with `d = m - y` and [`Factors::inner`] as H, and replaced where
//! that becomes smaller. With `g = d H`, changing column j by c changes the error by `c^2 H_jj - 2 c g_j`.

use std::marker::PhantomData;

use ikq_covariance::steps::PER_UNIT;
use ikq_covariance::{Factors, Strips, UNIT};
use ikq_encode::EncodeOptions;
use ikq_simd::{Isa, IsaOp};

use crate::coder::{Coder, MOST_SUB};
use crate::form::Choice;
use crate::groups::MOST;
use crate::integers::{pull_part, round};
use crate::lanes::{InLanes, Scales};
use crate::passes::{LANES, Lane, OfUnit, SIDE_BY_SIDE};
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
    /// By how much changes made `d R` smaller.
    pub less: [f32; UNIT],
}

/// What is known of a unit's columns.
#[derive(Clone, Copy)]
pub(crate) struct Matrices<'a> {
    /// The rows of [`Factors::inner`], one for each column of the unit.
    pub inner: &'a [[f32; UNIT]],
    /// The diagonal of H.
    pub diagonal: &'a [f32; UNIT],
    /// The factor R, and the unit's first column in it; `None` if nothing needs `less`.
    pub root: Option<(&'a Strips, usize)>,
}

impl OfRow {
    pub const NOTHING: OfRow = OfRow { y: [0.0; UNIT], g: [0.0; UNIT], less: [0.0; UNIT] };

    /// Makes `y` in column `column` larger by `change`.
    #[inline(always)]
    pub fn change<I: Isa>(&mut self, isa: I, column: usize, change: f32, of: Matrices<'_>) {
        let by = isa.splat_f(change);
        let n = of.inner.len().div_ceil(LANES);
        let g = self.g.as_chunks_mut::<LANES>().0.iter_mut();
        for (g, h) in g.zip(of.inner[column].as_chunks::<LANES>().0).take(n) {
            isa.store_f(isa.sub_f(isa.load_f(g), isa.mul_f(by, isa.load_f(h))), g);
        }
        let Some((root, first)) = of.root else { return };
        // R is 0 before its diagonal
        let less = self.less.as_chunks_mut::<LANES>().0.iter_mut().enumerate();
        for (s, less) in less.take(n).skip(column / LANES) {
            let root = isa.load_f(&root.strip(first / LANES + s)[column]);
            isa.store_f(isa.mul_add_f(by, root, isa.load_f(less)), less);
        }
    }
}

/// Up to sixteen rows of a unit whose codes are chosen again.
pub(crate) struct Unit<'a> {
    pub rows: &'a mut [OfRow],
    pub of: Matrices<'a>,
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

/// [`Coder::descend`] of a type, compiled once for all places that need it.
pub(crate) struct InUnit<'a, T> {
    pub options: EncodeOptions,
    pub unit: Unit<'a>,
    pub of_type: PhantomData<T>,
}

impl<T: Columns> IsaOp for InUnit<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        T::coder(isa, self.options).descend(isa, self.unit);
    }
}

/// Chooses codes again for one unit of every row, and corrects the errors.
pub(crate) struct Descend<'a, 'b, T>(pub &'a mut OfUnit<'b, T>);

impl<T: Columns> IsaOp for Descend<'_, '_, T> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let OfUnit { factors, options, first, n, block, n_values, n_rows, places, of_rows, .. } = *self.0;
        let OfUnit { decoded, errors, values, .. } = self.0;
        let Some(replaces) = T::coder(isa, options).replaces() else { return };
        let (k, sub) = (factors.k(), T::FORM.sub);
        let inner = &factors.inner[first..first + n];
        let mut diagonal = [1.0; UNIT];
        diagonal.iter_mut().zip(inner).enumerate().for_each(|(j, (d, row))| *d = row[j]);
        let of = Matrices { inner, diagonal: &diagonal, root: Some((&factors.root, first)) };
        let mut rows = [OfRow::NOTHING; LANES];
        let mut scales = [[Choice::default(); LANES]; UNIT / LANES];
        let mut changes = Vec::new();
        let mut lanes = [[0.0; LANES]; UNIT];
        let lanes = &mut lanes[..n];
        let groups = decoded.chunks_exact_mut(n).zip(errors.chunks_exact_mut(k));
        for (group, (decoded, errors)) in groups.enumerate() {
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
            let errors = &mut errors[first..first + n];
            gradients(isa, errors, factors, first, lanes);
            turn(isa, lanes, &mut rows, |row| &mut row.g);
            turn(isa, decoded, &mut rows, |row| &mut row.y);
            rows.iter_mut().for_each(|row| row.less = [0.0; UNIT]);
            changes.clear();
            let of_rows = &mut rows[..in_group];
            let unit = Unit { rows: of_rows, of, sub, scales: &scales[..n / sub], changes: &mut changes };
            isa.apart(InUnit { options, unit, of_type: PhantomData::<T> });
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
            correct(isa, &rows, &factors.weights[first..], errors);
            turn_back(isa, &rows, |row| &row.y, decoded);
        }
    }
}

/// Writes columns of sixteen rows to each of the rows.
#[inline(always)]
pub(crate) fn turn<I: Isa>(
    isa: I,
    columns: &[Lane],
    rows: &mut [OfRow; LANES],
    to: impl Fn(&mut OfRow) -> &mut [f32; UNIT],
) {
    for (s, columns) in columns.as_chunks::<LANES>().0.iter().enumerate() {
        let turned = isa.transpose(columns.each_ref());
        for (row, turned) in rows.iter_mut().zip(turned) {
            isa.store_f(turned, &mut to(row).as_chunks_mut::<LANES>().0[s]);
        }
    }
}

/// Writes what [`turn`] reads.
#[inline(always)]
pub(crate) fn turn_back<I: Isa>(
    isa: I,
    rows: &[OfRow; LANES],
    of: impl Fn(&OfRow) -> &[f32; UNIT],
    columns: &mut [Lane],
) {
    for (s, columns) in columns.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
        let turned = isa.transpose(rows.each_ref().map(|row| &of(row).as_chunks::<LANES>().0[s]));
        columns.iter_mut().zip(turned).for_each(|(column, turned)| isa.store_f(turned, column));
    }
}

/// Computes g of sixteen rows: `d R` is v with `v_j = e_j R_jj`, so `d H` is `v R^T`.
#[inline(always)]
fn gradients<I: Isa>(isa: I, errors: &[Lane], factors: &Factors, first: usize, out: &mut [Lane]) {
    // what is subtracted has the other sign
    for ((v, e), w) in out.iter_mut().zip(errors).zip(&factors.weights[first..]) {
        isa.store_f(isa.mul_f(isa.load_f(e), isa.splat_f(-w.sqrt())), v);
    }
    let (mut pairs, mut size) = ([[0; 4 * LANES]; PER_UNIT], [0.0; LANES]);
    round(isa, out, &mut pairs, &mut size);
    let pairs = &pairs[..out.len() / 2];
    out.fill([0.0; LANES]);
    for (eight, out) in out.chunks_exact_mut(SIDE_BY_SIDE).enumerate() {
        let (rows, sizes) = factors.turned_root_steps.part(first / SIDE_BY_SIDE + eight);
        // R is 0 in columns before these
        let pairs = &pairs[eight * SIDE_BY_SIDE / 2..];
        let rows = &rows[eight * SIDE_BY_SIDE / 2..][..pairs.len()];
        pull_part(isa, (rows, sizes), [(pairs, &size)], [out]);
    }
}

/// Corrects the errors e of a unit's columns: `e_j R_jj` is column j of `d R`.
#[inline(always)]
fn correct<I: Isa>(isa: I, rows: &[OfRow; LANES], weights: &[f32], errors: &mut [Lane]) {
    let columns = errors.as_chunks_mut::<LANES>().0.iter_mut().zip(weights.as_chunks::<LANES>().0);
    for (s, (errors, weights)) in columns.enumerate() {
        let less = isa.transpose(rows.each_ref().map(|row| &row.less.as_chunks::<LANES>().0[s]));
        for ((e, less), w) in errors.iter_mut().zip(less).zip(weights) {
            let change = isa.div_f(less, isa.splat_f(w.sqrt()));
            isa.store_f(isa.sub_f(isa.load_f(e), change), e);
        }
    }
}

/// Chooses codes of a unit again where each column has a level of its own.
#[inline(always)]
pub(crate) fn descend_in_columns<I: Isa, C: InLanes<I, N>, const N: usize>(isa: I, unit: Unit<'_>, coder: C) {
    let Unit { rows, of, sub, scales, changes } = unit;
    let n_vectors = of.inner.len() / LANES;
    for (number, row) in rows.iter_mut().enumerate() {
        // vectors of columns that were found as good as they can be, one after another, since the last change
        let mut settled = 0;
        for vector in (0..SWEEPS).flat_map(|_| 0..n_vectors) {
            let at = vector * LANES;
            let before = changes.len();
            let mut is_settled = false;
            let h = isa.load_f(of_sixteen(of.diagonal, at));
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
                row.change(isa, column, isa.array(change)[best], of);
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

#[cfg(test)]
mod tests {
    use ikq_simd::Scalar;

    use super::*;
    use crate::tests::{factors, noise};

    /// `d R` of a unit, for differences d.
    fn products(factors: &Factors, first: usize, d: &[f64]) -> Vec<f64> {
        let root = |p: usize, j: usize| f64::from(factors.root.get(first + p, first + j));
        (0..d.len()).map(|j| (0..=j).map(|p| d[p] * root(p, j)).sum()).collect()
    }

    #[test]
    fn gradients_follow_from_errors_and_errors_follow_changes() {
        let (k, n) = (UNIT + 96, 96);
        let first = k - n;
        let factors = factors(k);
        let d: Vec<f64> = noise(4, n).iter().map(|d| f64::from(*d)).collect();
        let root = |j: usize| f64::from(factors.weights[first + j].sqrt());
        let v = products(&factors, first, &d);
        let mut errors: Vec<Lane> = (0..n).map(|j| [(v[j] / root(j)) as f32; LANES]).collect();
        let mut g = vec![[0.0; LANES]; n];
        gradients(Scalar, &errors, &factors, first, &mut g);
        // both factors are rounded to half a step: 1 / 1023 of the largest v, 1 / 8191 of the largest element of a row of R
        let inner = &factors.inner[first..];
        let peak = v.iter().fold(0.0, |peak: f64, v| peak.max(v.abs()));
        for (p, g) in g.iter().enumerate() {
            let wanted: f64 = d.iter().enumerate().map(|(j, d)| d * f64::from(inner[p][j])).sum();
            let row: Vec<f64> =
                (p..n).map(|m| f64::from(factors.root.get(first + p, first + m)).abs()).collect();
            let (of_v, of_row) =
                (0.51 * peak / 1023.0, 0.51 * row.iter().fold(0.0, |a: f64, b| a.max(*b)) / 8191.0);
            let bound: f64 =
                row.iter().zip(&v[p..]).map(|(r, v)| of_v * (r + of_row) + of_row * v.abs()).sum();
            assert!((f64::from(g[5]) - wanted).abs() <= bound + 1e-5, "{p}: {} is not {wanted}", g[5]);
        }
        // changes of two columns of a row
        let mut diagonal = [1.0; UNIT];
        diagonal.iter_mut().zip(inner).enumerate().for_each(|(j, (d, row))| *d = row[j]);
        let of = Matrices { inner, diagonal: &diagonal, root: Some((&factors.root, first)) };
        let mut rows = [OfRow::NOTHING; LANES];
        turn(Scalar, &g, &mut rows, |row| &mut row.g);
        rows[5].change(Scalar, 40, 0.5, of);
        rows[5].change(Scalar, 11, -0.25, of);
        let before = errors.clone();
        correct(Scalar, &rows, &factors.weights[first..], &mut errors);
        let mut other = d.clone();
        other[40] -= 0.5;
        other[11] += 0.25;
        let v = products(&factors, first, &other);
        for j in 0..n {
            let found = f64::from(errors[j][5]) * root(j);
            assert!((found - v[j]).abs() < 1e-4, "{j}: {found}, not {}", v[j]);
            assert_eq!(errors[j][6].to_bits(), before[j][6].to_bits());
            let change = 0.25 * f64::from(inner[11][j]) - 0.5 * f64::from(inner[40][j]);
            assert!((f64::from(rows[5].g[j] - g[j][5]) - change).abs() < 1e-4);
        }
    }
}
