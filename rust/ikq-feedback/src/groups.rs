//! Codes that stand for four or eight columns. They are found row by row; each search compares many points at once.
//!
//! Inside a group, too, later columns are adjusted for the errors of earlier ones, but a search takes columns as
//! they are, weighed by w. So a group first gets the point nearest to its columns. Then the columns are adjusted
//! for the errors of that point, and the point nearest to the adjusted columns replaces it if its loss is smaller.

use ikq_covariance::UNIT;
use ikq_encode::weights::normalizer;
use ikq_simd::Isa;

use crate::coder::{Coded, Coder, MOST_SUB, SubBlock};
use crate::descent::{Change, LEAST_GAIN, OfRow, Replaces, SWEEPS, Unit};
use crate::form::Choice;
use crate::passes::LANES;

/// The largest number of columns in a group.
pub(crate) const MOST: usize = 8;

/// How often the columns of a group are gone through to find the numbers that would be best for them.
const ROUNDS: usize = 2;

/// Codes of a group.
#[derive(Clone, Copy, Default)]
pub(crate) struct Point {
    /// The values that the codes decode to.
    pub values: [f32; MOST],
    pub codes: [u16; 2],
    pub beside: [u8; MOST],
}

/// The points (codebook entries, trellis points) that the groups of a type choose from.
pub(crate) trait Points<I: Isa> {
    /// Columns of a group, and how many numbers it has in the field of codes and in the one beside it.
    const COLUMNS: usize;
    const CODES: usize;
    const BESIDE: usize;
    type Weights: Copy;

    fn weights(&self, isa: I, w: &[f32; MOST]) -> Self::Weights;

    /// The point nearest to `x` with the scale of a choice. Implementations must be `#[inline(always)]`.
    fn nearest(&self, isa: I, x: &[f32; MOST], weights: &Self::Weights, choice: &Choice) -> Point;
}

/// Makes [`Points`] a [`Coder`].
pub(crate) struct InGroups<P>(pub P);

/// The result of one choice of scale for a row's sub-block.
#[derive(Clone, Copy)]
struct Found {
    loss: f32,
    errors: [f32; MOST_SUB],
    points: [Point; MOST_SUB / 4],
}

const NOTHING: Found = Found {
    loss: f32::INFINITY,
    errors: [0.0; MOST_SUB],
    points: [Point { values: [0.0; MOST], codes: [0; 2], beside: [0; MOST] }; MOST_SUB / 4],
};

impl<I: Isa, P: Points<I>> Coder<I> for InGroups<P> {
    #[inline(always)]
    fn code(&self, isa: I, sub: &SubBlock<'_>, out: &mut Coded<'_>) {
        let n_groups = sub.x.len() / P::COLUMNS;
        let mut weights = [None; MOST_SUB / 4];
        for (g, weights) in weights.iter_mut().enumerate().take(n_groups) {
            let mut w = [1.0; MOST];
            w[..P::COLUMNS].copy_from_slice(&sub.factors.weights[sub.at + g * P::COLUMNS..][..P::COLUMNS]);
            *weights = Some(self.0.weights(isa, &w));
        }
        for lane in 0..sub.n_rows {
            let mut x = [0.0; MOST_SUB];
            x.iter_mut().zip(sub.x).for_each(|(x, columns)| *x = columns[lane]);
            // normalised, so that squares are in the range of floats
            let (down, up) = normalizer(&x);
            x.iter_mut().for_each(|x| *x *= down);
            let mut best = NOTHING;
            let mut kept = sub.choices[0][lane];
            for (number, choices) in sub.choices.iter().enumerate() {
                let choice = choices[lane];
                let normal = Choice { a: choice.a * down, b: choice.b * down, ..choice };
                let limit = if number == 0 { f32::INFINITY } else { best.loss };
                let found = self.row(isa, sub, &weights[..n_groups], &x, &normal, limit);
                if number == 0 || found.loss < best.loss {
                    (best, kept) = (found, choice);
                }
            }
            out.kept[lane] = kept;
            out.errors.iter_mut().zip(best.errors).for_each(|(out, e)| out[lane] = e * up);
            for (g, point) in best.points[..n_groups].iter().enumerate() {
                let decoded = out.decoded[g * P::COLUMNS..].iter_mut();
                decoded.zip(&point.values[..P::COLUMNS]).for_each(|(out, y)| out[lane] = y * up);
                for (i, code) in point.codes[..P::CODES].iter().enumerate() {
                    out.codes[g * P::CODES + i][lane] = *code;
                }
                for (i, beside) in point.beside[..P::BESIDE].iter().enumerate() {
                    out.beside[g * P::BESIDE + i][lane] = *beside;
                }
            }
        }
    }

    #[inline(always)]
    fn replaces(&self) -> Option<Replaces> {
        Some(Replaces { columns: P::COLUMNS, codes: P::CODES, beside: P::BESIDE })
    }

    #[inline(always)]
    fn descend(&self, isa: I, unit: Unit<'_>) {
        let Unit { rows, of, sub, scales, changes } = unit;
        let n = P::COLUMNS;
        for at in (0..SWEEPS).flat_map(|_| (0..of.inner.len()).step_by(n)) {
            let mut h = [[0.0; MOST]; MOST];
            let mut w = [1.0; MOST];
            for i in 0..n {
                h[i][..n].copy_from_slice(&of.inner[at + i][at..at + n]);
                w[i] = of.diagonal[at + i];
            }
            let weights = self.0.weights(isa, &w);
            for (number, row) in rows.iter_mut().enumerate() {
                let choice = &scales[at / sub][number];
                if let Some(point) = self.other(isa, row, at, &h, &weights, choice) {
                    for i in 0..n {
                        let change = point.values[i] - row.y[at + i];
                        row.y[at + i] = point.values[i];
                        row.change(isa, at + i, change, of);
                    }
                    changes.push(Change {
                        row: number,
                        column: at,
                        codes: point.codes,
                        beside: point.beside,
                    });
                }
            }
        }
    }
}

impl<P> InGroups<P> {
    /// Finds the codes of a row's sub-block with one choice of scale. Gives up as soon as the loss reaches `limit`.
    #[inline(always)]
    fn row<I: Isa>(
        &self,
        isa: I,
        sub: &SubBlock<'_>,
        weights: &[Option<P::Weights>],
        x: &[f32; MOST_SUB],
        choice: &Choice,
        limit: f32,
    ) -> Found
    where
        P: Points<I>,
    {
        let n = P::COLUMNS;
        let mut out = NOTHING;
        out.loss = 0.0;
        // the columns, adjusted for the errors of earlier ones, in strips as the factors have
        let mut moved = [[0.0; LANES]; MOST_SUB / LANES];
        moved.as_flattened_mut().copy_from_slice(x);
        for (g, weights) in weights.iter().flatten().enumerate() {
            let first = g * n;
            let mut own = [0.0; MOST];
            own[..n].copy_from_slice(&moved.as_flattened()[first..first + n]);
            let (point, errors, loss) = self.group(isa, sub, weights, first, &own, choice);
            out.points[g] = point;
            out.errors[first..first + n].copy_from_slice(&errors[..n]);
            out.loss += loss;
            if out.loss >= limit {
                break;
            }
            for (p, e) in errors[..n].iter().enumerate() {
                let (row, e) = (sub.at + first + p, isa.splat_f(*e));
                for (s, moved) in moved.iter_mut().enumerate().take(sub.x.len() / LANES).skip(first / LANES) {
                    let factor = isa.load_f(&sub.factors.spread.strip(sub.at / LANES + s)[row % UNIT]);
                    isa.store_f(isa.sub_f(isa.load_f(moved), isa.mul_f(e, factor)), moved);
                }
            }
        }
        out
    }

    /// Finds a point that makes the error of a unit smaller than the one that the columns from `at` on have now. `h`
    /// is the covariance of these columns.
    #[inline(always)]
    fn other<I: Isa>(
        &self,
        isa: I,
        row: &OfRow,
        at: usize,
        h: &[[f32; MOST]; MOST],
        weights: &P::Weights,
        choice: &Choice,
    ) -> Option<Point>
    where
        P: Points<I>,
    {
        let n = P::COLUMNS;
        let (y, g) = (&row.y[at..at + n], &row.g[at..at + n]);
        // the numbers that would be best if all were allowed: g = z H, approximately
        let mut target = [0.0; MOST];
        target[..n].copy_from_slice(y);
        let mut left = [0.0; MOST];
        left[..n].copy_from_slice(g);
        for _ in 0..ROUNDS {
            for i in 0..n {
                let step = left[i] / h[i][i];
                target[i] += step;
                left[..n].iter_mut().zip(&h[i]).for_each(|(left, h)| *left -= step * h);
            }
        }
        let (down, up) = normalizer(&target);
        target.iter_mut().for_each(|x| *x *= down);
        let normal = Choice { a: choice.a * down, b: choice.b * down, ..*choice };
        let mut point = self.0.nearest(isa, &target, weights, &normal);
        point.values.iter_mut().for_each(|y| *y *= up);
        let (mut cost, mut gain) = (0.0, 0.0);
        for i in 0..n {
            let change = point.values[i] - y[i];
            let along: f32 = (0..n).map(|j| (point.values[j] - y[j]) * h[i][j]).sum();
            cost += change * along;
            gain += 2.0 * change * g[i];
        }
        (gain - cost > LEAST_GAIN * cost).then_some(point)
    }

    /// Finds the point of a group. Returns it with the errors of its columns and their loss.
    #[inline(always)]
    fn group<I: Isa>(
        &self,
        isa: I,
        sub: &SubBlock<'_>,
        weights: &P::Weights,
        first: usize,
        own: &[f32; MOST],
        choice: &Choice,
    ) -> (Point, [f32; MOST], f32)
    where
        P: Points<I>,
    {
        let n = P::COLUMNS;
        let point = self.0.nearest(isa, own, weights, choice);
        let (errors, loss) = group_errors(sub, first, n, own, &point);
        // the columns, each adjusted for the point's errors in those before it
        let mut target = point.values;
        target.iter_mut().zip(errors).for_each(|(t, e)| *t += e);
        let next = self.0.nearest(isa, &target, weights, choice);
        let (next_errors, next_loss) = group_errors(sub, first, n, own, &next);
        if next_loss < loss { (next, next_errors, next_loss) } else { (point, errors, loss) }
    }
}

/// The errors of the columns if they become `point`, and the weighted sum of their squares.
#[inline(always)]
fn group_errors(
    sub: &SubBlock<'_>,
    first: usize,
    n: usize,
    own: &[f32; MOST],
    point: &Point,
) -> ([f32; MOST], f32) {
    let at = sub.at + first;
    let strip = &sub.factors.spread.strip(at / LANES)[at % UNIT..][..n];
    let mut left = *own;
    let (mut out, mut loss) = ([0.0; MOST], 0.0);
    for (p, row) in strip.iter().enumerate() {
        let e = left[p] - point.values[p];
        out[p] = e;
        loss += e * e * sub.factors.weights[at + p];
        left[..n].iter_mut().zip(&row[at % LANES..]).for_each(|(left, f)| *left -= e * f);
    }
    (out, loss)
}
