//! Further rounds over rows that are done: codes and scales chosen again with all other columns of the row known.
//!
//! [`crate::descent`] chooses codes again as if later units could make good what is left, and never looks at a
//! unit again. When a row is done, nothing is left to make good, and its error is `d H d^T` with the whole covariance H
//! and `d = x - y`. With `g = d H`, changing columns by c changes the error by `c H c^T - 2 c g^T`. So a round goes from unit
//! to unit, and in each it
//!
//! ```text
//! computes g                                         matrix product with H, in integers
//! tries other scales for every sub-block             codes as they are, rescaled, then coordinate descent in the sub-block
//! refits the float scales of blocks, codes as they are    closed form
//! chooses all codes of the unit again                coordinate descent
//! ```
//! What a unit of a row became is kept if the error of the row is smaller with it.

use ikq_covariance::{UNIT, Whole};
use ikq_simd::{Isa, IsaOp};

use crate::coder::MOST_SUB;
use crate::descent::{Change, LEAST_GAIN, Matrices, OfRow, Replaces, Unit, turn, turn_back};
use crate::form::{Choice, Form, MOST_CHOICES, Places, float, half};
use crate::passes::{LANES, Lane};

/// How often all columns of a row are gone through at most.
pub(crate) const ROUNDS: usize = 4;

type Descent<'a> = &'a dyn Fn(Unit<'_>);

/// One unit of up to 64 rows that are done.
pub(crate) struct Again<'a> {
    pub whole: &'a Whole,
    pub form: Form,
    /// How codes are chosen again, and what is replaced then; `None` if codes stay.
    pub descent: Option<(Descent<'a>, Replaces)>,
    /// The unit's first column, the number of its columns, and that of a block's.
    pub first: usize,
    pub n: usize,
    pub block: usize,
    /// `d H` in the unit's columns, `n` for each group of sixteen rows.
    pub gradients: &'a [Lane],
    /// The rows, what their codes decode to, and that less the rows: all columns of each group.
    pub x: &'a [Lane],
    pub decoded: &'a mut [Lane],
    pub differences: &'a mut [Lane],
    /// The numbers of the unit's blocks: for each block, those of each row.
    pub values: &'a mut [u32],
    pub n_values: usize,
    pub n_rows: usize,
    pub places: Places,
    /// The float scale of each row, where the type has one.
    pub of_rows: &'a [f32],
}

impl IsaOp for Again<'_> {
    /// Whether anything was changed.
    type Output = bool;

    #[inline(always)]
    fn run<I: Isa>(mut self, isa: I) -> bool {
        let k = self.whole.k();
        let before = self.values.to_vec();
        let mut diagonal = [1.0; UNIT];
        let inner = &self.whole.own[self.first..self.first + self.n];
        diagonal.iter_mut().zip(inner).enumerate().for_each(|(j, (d, row))| *d = row[j]);
        let of = Matrices { inner, diagonal: &diagonal, root: None };
        let mut rows = [OfRow::NOTHING; LANES];
        let mut scales = [[Choice::default(); LANES]; UNIT / LANES];
        let mut changes = Vec::new();
        let mut any = false;
        for group in 0..self.n_rows.div_ceil(LANES) {
            let at = group * LANES;
            let in_group = LANES.min(self.n_rows - at);
            let columns = group * k + self.first..group * k + self.first + self.n;
            turn(isa, &self.gradients[group * self.n..][..self.n], &mut rows, |row| &mut row.g);
            turn(isa, &self.decoded[columns.clone()], &mut rows, |row| &mut row.y);
            let start: [[[f32; UNIT]; 2]; LANES] = std::array::from_fn(|lane| [rows[lane].y, rows[lane].g]);
            self.rescale(isa, of, at, &mut rows[..in_group]);
            if self.places.d.is_some() {
                for (lane, row) in rows[..in_group].iter_mut().enumerate() {
                    self.refit(isa, of, at + lane, row);
                }
            }
            if let Some((descend, replaces)) = self.descent {
                self.scales(at, in_group, &mut scales);
                changes.clear();
                let (rows, scales) = (&mut rows[..in_group], &scales[..self.n / self.form.sub]);
                let unit = Unit { rows, of, sub: self.form.sub, scales, changes: &mut changes };
                descend(unit);
                for change in &changes {
                    self.write(at + change.row, change.column, replaces, change);
                }
            }
            for (lane, [y, g]) in start.iter().enumerate().take(in_group) {
                let row = &mut rows[lane];
                if row.y == *y {
                    continue;
                }
                if gain(y, g, row, self.n) > 0.0 {
                    any = true;
                    continue;
                }
                row.y = *y;
                for block in 0..self.n / self.block {
                    let of_block = (block * self.n_rows + at + lane) * self.n_values;
                    self.values[of_block..][..self.n_values]
                        .copy_from_slice(&before[of_block..][..self.n_values]);
                }
            }
            turn_back(isa, &rows, |row| &row.y, &mut self.decoded[columns.clone()]);
            let out = self.differences[columns.clone()].iter_mut();
            for ((out, y), x) in out.zip(&self.decoded[columns.clone()]).zip(&self.x[columns]) {
                isa.store_f(isa.sub_f(isa.load_f(y), isa.load_f(x)), out);
            }
        }
        any
    }
}

impl Again<'_> {
    /// Where the numbers of the block of a row begin that has this column of the unit.
    #[inline(always)]
    fn block_of(&self, row: usize, column: usize) -> usize {
        (column / self.block * self.n_rows + row) * self.n_values
    }

    /// The present scale of sub-block `s` of a row, and those next to it.
    #[inline(always)]
    fn choices(&self, row: usize, s: usize, out: &mut [Choice]) {
        let sub = self.form.sub;
        let values = &self.values[self.block_of(row, s * sub)..][..self.n_values];
        self.form.choices(values, self.places, s % (self.block / sub), self.of_rows[row], out);
    }

    /// The present scales of rows from `at` on.
    #[inline(always)]
    fn scales(&self, at: usize, n_rows: usize, out: &mut [[Choice; LANES]; UNIT / LANES]) {
        for (s, out) in out.iter_mut().enumerate().take(self.n / self.form.sub) {
            for (lane, out) in out.iter_mut().enumerate().take(n_rows) {
                self.choices(at + lane, s, std::slice::from_mut(out));
            }
        }
    }

    /// Writes codes of a row.
    #[inline(always)]
    fn write(&mut self, row: usize, column: usize, replaces: Replaces, change: &Change) {
        let (block, sub, places) = (self.block, self.form.sub, self.places);
        let at = self.block_of(row, column);
        let values = &mut self.values[at..][..self.n_values];
        let (s, group) = (column % block / sub, column % sub / replaces.columns);
        let out = &mut places.codes.of(values, s)[group * replaces.codes..][..replaces.codes];
        out.iter_mut().zip(&change.codes).for_each(|(out, code)| *out = u32::from(*code));
        let out = &mut places.beside.of(values, s)[group * replaces.beside..][..replaces.beside];
        out.iter_mut().zip(&change.beside).for_each(|(out, beside)| *out = u32::from(*beside));
    }

    /// Tries scales next to that of each sub-block, for rows from `at` on.
    #[inline(always)]
    fn rescale<I: Isa>(&mut self, isa: I, of: Matrices<'_>, at: usize, rows: &mut [OfRow]) {
        let (sub, n_choices) = (self.form.sub, self.form.n_choices());
        // the sub-block's part of H, at the places that a unit would have it
        let mut inner = [[0.0; UNIT]; MOST_SUB];
        let mut diagonal = [1.0; UNIT];
        let (mut best, mut tried) = ([OfRow::NOTHING], [OfRow::NOTHING]);
        let (mut best_changes, mut changes) = (Vec::new(), Vec::new());
        for s in 0..self.n / sub {
            let first = s * sub;
            for i in 0..sub {
                inner[i][..sub].copy_from_slice(&of.inner[first + i][first..first + sub]);
                diagonal[i] = inner[i][i];
            }
            let own = Matrices { inner: &inner[..sub], diagonal: &diagonal, root: None };
            for (lane, row) in rows.iter_mut().enumerate() {
                let (y, g) = (&row.y[first..first + sub], &row.g[first..first + sub]);
                let mut choices = [Choice::default(); MOST_CHOICES];
                self.choices(at + lane, s, &mut choices);
                let present = choices[0];
                let (mut most, mut kept) = (0.0, None);
                for (number, choice) in choices[..n_choices].iter().enumerate() {
                    let is_present = number == 0;
                    if !is_present && !self.form.rescales(&present, choice)
                        || is_present && self.descent.is_none()
                    {
                        continue;
                    }
                    tried[0].y[..sub].copy_from_slice(y);
                    tried[0].g[..sub].copy_from_slice(g);
                    if !is_present {
                        let by = choice.a / present.a;
                        for (i, y) in y.iter().enumerate() {
                            let change = choice.b + (y - present.b) * by - y;
                            tried[0].y[i] += change;
                            tried[0].change(isa, i, change, own);
                        }
                    }
                    changes.clear();
                    if let Some((descend, _)) = self.descent {
                        let scales = [[*choice; LANES]];
                        let unit =
                            Unit { rows: &mut tried, of: own, sub, scales: &scales, changes: &mut changes };
                        descend(unit);
                    }
                    let gain = gain(y, g, &tried[0], sub);
                    // of choices that are as good, the first
                    if gain > most {
                        (most, kept) = (gain, Some(*choice));
                        best[0].y[..sub].copy_from_slice(&tried[0].y[..sub]);
                        std::mem::swap(&mut changes, &mut best_changes);
                    }
                }
                let Some(choice) = kept else { continue };
                for i in 0..sub {
                    let change = best[0].y[i] - row.y[first + i];
                    if change != 0.0 {
                        row.y[first + i] = best[0].y[i];
                        row.change(isa, first + i, change, of);
                    }
                }
                let block = self.block_of(at + lane, first);
                let values = &mut self.values[block..][..self.n_values];
                self.form.keep(values, self.places, s % (self.block / sub), &choice);
                if let Some((_, replaces)) = self.descent {
                    for change in &best_changes {
                        self.write(at + lane, first + change.column, replaces, change);
                    }
                }
            }
        }
    }

    /// Refits the float scale, and the minimum, of each block of a row.
    #[inline(always)]
    fn refit<I: Isa>(&mut self, isa: I, of: Matrices<'_>, number: usize, row: &mut OfRow) {
        let (sub, block) = (self.form.sub, self.block);
        let Some(at_d) = self.places.d else { return };
        for start in (0..self.n).step_by(block) {
            // what goes with the scale, and what goes with the minimum; both times H
            let mut parts = [[0.0; UNIT]; 2];
            parts[0][start..start + block].copy_from_slice(&row.y[start..start + block]);
            if self.places.m.is_some() {
                for s in start / sub..(start + block) / sub {
                    let mut present = [Choice::default()];
                    self.choices(number, s, &mut present);
                    let [of_scale, of_minimum] = parts.each_mut().map(|part| &mut part[s * sub..][..sub]);
                    of_scale.iter_mut().for_each(|y| *y -= present[0].b);
                    of_minimum.fill(present[0].b);
                }
            }
            let mut products = [[0.0; UNIT]; 2];
            for (part, out) in parts.iter().zip(&mut products) {
                times(isa, &part[start..start + block], &of.inner[start..start + block], out);
            }
            let dot = |a: &[f32; UNIT], b: &[f32; UNIT]| dot(isa, a, b);
            let [pp, pm, mm] =
                [dot(&parts[0], &products[0]), dot(&parts[1], &products[0]), dot(&parts[1], &products[1])];
            let [pg, mg] = [dot(&parts[0], &row.g), dot(&parts[1], &row.g)];
            let det = pp * mm - pm * pm;
            // shares by which both should grow
            let wanted = if mm > 0.0 && det > 1e-4 * pp * mm {
                [(pg * mm - mg * pm) / det, (mg * pp - pg * pm) / det]
            } else {
                [pg / pp, 0.0]
            };
            if !wanted.iter().all(|share| share.abs() < 0.5) {
                continue;
            }
            let at = self.block_of(number, start);
            let mut shares = [0.0; 2];
            let mut stored = [0; 2];
            let places = [Some(at_d), self.places.m];
            for i in 0..2 {
                let Some(place) = places[i] else { continue };
                let present = float(self.values[at + place]);
                stored[i] = half(present * (1.0 + wanted[i]));
                shares[i] = if present == 0.0 { 0.0 } else { float(stored[i]) / present - 1.0 };
            }
            let [a, b] = shares;
            let cost = a * a * pp + 2.0 * a * b * pm + b * b * mm;
            let is_better = 2.0 * (a * pg + b * mg) - cost > LEAST_GAIN * cost;
            if !is_better {
                continue;
            }
            for i in 0..UNIT {
                row.y[i] += a * parts[0][i] + b * parts[1][i];
                row.g[i] -= a * products[0][i] + b * products[1][i];
            }
            for i in 0..2 {
                if let Some(place) = places[i] {
                    self.values[at + place] = stored[i];
                }
            }
        }
    }
}

/// By how much the error became smaller since the columns were `y` and had gradients `g`; 0 where that is not above what
/// rounding may say.
#[inline(always)]
fn gain(y: &[f32], g: &[f32], row: &OfRow, n: usize) -> f64 {
    let (mut gain, mut cost) = (0.0, 0.0);
    for i in 0..n {
        let change = f64::from(row.y[i]) - f64::from(y[i]);
        gain += change * (f64::from(g[i]) + f64::from(row.g[i]));
        cost += change * (f64::from(g[i]) - f64::from(row.g[i]));
    }
    if gain > f64::from(LEAST_GAIN) * cost { gain } else { 0.0 }
}

/// A part of a row times its rows of H.
#[inline(always)]
fn times<I: Isa>(isa: I, part: &[f32], inner: &[[f32; UNIT]], out: &mut [f32; UNIT]) {
    for (x, row) in part.iter().zip(inner) {
        let x = isa.splat_f(*x);
        for (out, h) in out.as_chunks_mut::<LANES>().0.iter_mut().zip(row.as_chunks::<LANES>().0) {
            isa.store_f(isa.mul_add_f(x, isa.load_f(h), isa.load_f(out)), out);
        }
    }
}

#[inline(always)]
fn dot<I: Isa>(isa: I, a: &[f32; UNIT], b: &[f32; UNIT]) -> f32 {
    let mut sum = isa.splat_f(0.0);
    for (a, b) in a.as_chunks::<LANES>().0.iter().zip(b.as_chunks::<LANES>().0) {
        sum = isa.mul_add_f(isa.load_f(a), isa.load_f(b), sum);
    }
    isa.sum(sum)
}
