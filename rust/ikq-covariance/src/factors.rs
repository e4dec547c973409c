//! [`Factors`]: the triangular factors of a covariance of inputs, which error feedback works with.
//!
//! When a row x of weights becomes y, the error of its products with inputs of covariance H (damped) is `d H d^T`
//! with `d = x - y`. H is `R R^T` with R upper triangular, so the error is `|d R|^2`, whose column j depends only
//! on the columns of d up to j:
//!
//! ```text
//! e_j = m_j - y_j            m_j = x_j - sum over p < j of e_p N_pj      the column, adjusted for errors of
//! earlier ones
//! d H d^T = sum over j of e_j^2 w_j                                       w_j = R_jj^2
//! ```
//! N is the inverse of R with every row divided by its diagonal element. Error feedback rounds `m_j` instead of
//! `x_j`.
//!
//! The rows may get other inputs u (those of a quantized model) than the inputs v for which the products should be
//! right. Then the rows are *aimed* first: with D the sum of `(v - u) u^T` over all tokens, the sum of `|x v - y
//! u|^2` is `d H d^T` for `d = x + x D H^-1 - y`, plus a part that does not depend on y. So `x + x D H^-1` is
//! approximated instead of x. Where it is known what the *product* of each token should have more than x gives, as
//! where it is added to something that has an error of its own, e is the row's sum of that times u^T, and
//! `x + e H^-1` is approximated, drawn to x where the covariance says little.

use std::borrow::Cow;

use ikq_simd::{IsaKind, run};

use crate::cholesky::{Divide, Factor, Inverse};
use crate::steps::Steps;
use crate::whole::Whole;
use crate::{Missing, add_cross_products, triangle};

/// The damping: what is added to the diagonal of a covariance of `k` columns from `n` tokens, as a share of the
/// diagonal's mean. It is 1/20, plus k / n because a covariance from few tokens underestimates some directions.
/// With much damping, errors are hardly passed on to later columns, and all columns count alike.
pub fn damping(k: usize, n: f64) -> f64 {
    0.05 + k as f64 / n.max(1.0)
}

/// Factors on the damping, tried in turn. Those above 1 are for matrices that are not positive because of rounding.
const MORE: [f64; 3] = [1.0, 10.0, 100.0];

/// Columns of a *unit*, within which codes are chosen again with all of the unit's other codes known. Every block of
/// every type is inside one.
pub const UNIT: usize = 256;

/// How many times more `e H^-1` is drawn to 0 where the covariance says little: each time by H H^-1, with the damped
/// inverse. What products lack has little to do with their inputs, so chance has a larger part in e than in D. Beside D
/// for the last matrices, layer by layer, the divergence is 0.94 of it with Q2_K and IQ3_K from 5120 tokens (0.98 and 1.00 if it is
/// not drawn), and 0.95 from 20480 (0.95 and 0.94).
const DRAWN: usize = 1;

/// The error for a matrix that cannot be a covariance: no sum of outer products gives it, even with rounding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotPositive;

/// The factors of a covariance.
#[derive(Debug)]
pub struct Factors {
    k: usize,
    /// The weights w_j of the columns' errors.
    pub weights: Vec<f32>,
    /// The factor N of the module's comment, within units.
    pub spread: Strips,
    /// N between units as integers, in the order of [`crate::steps::between`].
    pub spread_steps: Steps,
    /// The factor R of the module's comment, within units.
    pub root: Strips,
    /// The transpose of R within units as integers: a part has eight rows of R.
    pub turned_root_steps: Steps,
    /// The columns of R in which gains are measured, as integers, in all units: [`crate::steps::measured`].
    pub measured: Steps,
    /// For each column p, how the errors of its unit's columns count together with its own, if later units are
    /// adjusted for all of them: `sum over m of R_pm R_jm`, where m runs over the unit, at the place of j in it.
    pub inner: Vec<[f32; UNIT]>,
    /// H itself, where codes and scales are chosen again with all other columns known.
    pub whole: Option<Whole>,
    /// `D H^-1`, or `e H^-1` of all rows, where rows are aimed.
    aim: Option<(Missing, Vec<f32>)>,
}

/// What [`Factors`] have besides the factors.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wanted<'a> {
    /// For aiming rows: D, `k` rows of `k`, or e of all rows of the matrix, in the scale of the covariance.
    pub cross: Option<(Missing, &'a [f32])>,
    /// H, for choosing codes and scales again.
    pub whole: bool,
}

impl Factors {
    /// Factors a covariance of `k` columns from `n` tokens, given as its lower triangle in any scale, after damping
    /// it ([`damping`]).
    ///
    /// # Errors
    /// [`NotPositive`] for a matrix that is not a covariance.
    ///
    /// # Panics
    /// If the triangle has another size.
    pub fn new(kind: IsaKind, lower: &[f32], k: usize, n: f64) -> Result<Factors, NotPositive> {
        Factors::with(kind, lower, k, n, Wanted::default())
    }

    /// [`Factors::new`] with more.
    ///
    /// # Errors
    /// [`NotPositive`] for a matrix that is not a covariance.
    ///
    /// # Panics
    /// If the triangle or the matrix has another size.
    pub fn with(
        kind: IsaKind,
        lower: &[f32],
        k: usize,
        n: f64,
        Wanted { cross, whole }: Wanted<'_>,
    ) -> Result<Factors, NotPositive> {
        assert_eq!(lower.len(), triangle(k), "floats of the triangle");
        assert!(cross.is_none_or(|(missing, c)| c.len() == missing.n_rows(k) * k), "floats of the matrix");
        let diagonal = |i: usize| f64::from(lower[triangle(i) + i]);
        let mean = (0..k).map(diagonal).sum::<f64>() / k.max(1) as f64;
        if !mean.is_finite() || mean < 0.0 {
            return Err(NotPositive);
        }
        // if all columns are always 0, any scale will do
        let per_mean = if mean > 0.0 { 1.0 / mean } else { 0.0 };
        let mut a = vec![0.0; k * k];
        for more in MORE {
            // rows and columns are reversed, because the lower factor of the reversed matrix is the upper one that
            // is wanted, reversed
            for i in 0..k {
                for j in 0..=i {
                    a[i * k + j] = f64::from(lower[triangle(k - 1 - j) + k - 1 - i]) * per_mean;
                }
                a[i * k + i] += damping(k, n) * more;
            }
            if run(kind, Factor { a: &mut a, k }) {
                let mut inverse = vec![0.0; k * k];
                run(kind, Inverse { l: &a, inverse: &mut inverse, k });
                let at = |p: usize, j: usize| (k - 1 - p) * k + k - 1 - j;
                let weights = (0..k).map(|j| a[at(j, j)].powi(2) as f32).collect();
                let spread = |p: usize, j: usize| (inverse[at(p, j)] / inverse[at(p, p)]) as f32;
                let root = |p: usize, j: usize| a[at(p, j)] as f32;
                let turned = |m: usize, p: usize| if p <= m { root(p, m) } else { 0.0 };
                let (spread_steps, turned_root_steps) = (Steps::between(k, spread), Steps::within(k, turned));
                let (spread, measured) = (Strips::new(k, spread), Steps::of_measured(k, root));
                let root = Strips::new(k, root);
                let inner = inner(k, |p, j| a[at(p, j)]);
                let aim = cross.map(|(missing, cross)| {
                    // reversed as `a` is
                    let mut rows: Vec<f64> = cross.iter().rev().map(|v| f64::from(*v) * per_mean).collect();
                    run(kind, Divide { inverse: &inverse, rows: &mut rows, k });
                    for _ in 0..if missing == Missing::Inputs { 0 } else { DRAWN } {
                        let mut less = rows.clone();
                        run(kind, Divide { inverse: &inverse, rows: &mut less, k });
                        let damped = damping(k, n) * more;
                        rows.iter_mut().zip(less).for_each(|(v, less)| *v -= damped * less);
                    }
                    (missing, rows.iter().rev().map(|v| *v as f32).collect())
                });
                let whole = whole.then(|| {
                    Whole::new(k, |p, j| {
                        let (a, b) = (p.max(j), p.min(j));
                        let damped = if p == j { damping(k, n) * more } else { 0.0 };
                        (f64::from(lower[triangle(a) + b]) * per_mean + damped) as f32
                    })
                });
                return Ok(Factors {
                    k,
                    weights,
                    spread,
                    spread_steps,
                    root,
                    turned_root_steps,
                    measured,
                    inner,
                    whole,
                    aim,
                });
            }
        }
        Err(NotPositive)
    }

    /// The number of columns.
    pub fn k(&self) -> usize {
        self.k
    }

    /// The rows that are to be approximated instead of rows `x` of the matrix, from `first_row` on. These are `x` itself
    /// if rows are not aimed, and where aimed rows would leave the range of floats.
    ///
    /// # Panics
    /// If rows of a matrix of which it is known what all products lack are not in it.
    pub fn aimed<'a>(&self, kind: IsaKind, x: &'a [f32], first_row: usize) -> Cow<'a, [f32]> {
        let Some((missing, aim)) = &self.aim else { return Cow::Borrowed(x) };
        let (k, n_rows) = (self.k, x.len() / self.k);
        let mut out = x.to_vec();
        match missing {
            Missing::Inputs => {
                let mut turned = vec![0.0; x.len()];
                for (row, x) in x.chunks_exact(k).enumerate() {
                    x.iter().enumerate().for_each(|(p, x)| turned[p * n_rows + row] = *x);
                }
                add_cross_products(kind, (&turned, n_rows), (aim, k), 0..n_rows, &mut out);
            }
            Missing::Products(_) => {
                let aim = &aim[first_row * k..][..out.len()];
                out.iter_mut().zip(aim).for_each(|(x, more)| *x += more);
            }
        }
        for (out, x) in out.chunks_exact_mut(k).zip(x.chunks_exact(k)) {
            if !out.iter().all(|v| v.is_finite()) {
                out.copy_from_slice(x);
            }
        }
        Cow::Owned(out)
    }

    /// Bytes that the factors of `k` columns take.
    pub fn bytes(k: usize, missing: Option<Missing>, has_whole: bool) -> usize {
        4 * (2 * Strips::floats(k) + k + UNIT * k + missing.map_or(0, |m| m.n_rows(k) * k))
            + Steps::bytes(k)
            + if has_whole { Whole::bytes(k) } else { 0 }
    }

    /// Bytes of memory that computing the factors takes besides the factors themselves.
    pub fn working_bytes(k: usize, missing: Option<Missing>) -> usize {
        // the factor and its inverse; with an aim also the rows that are divided (again to draw them), and the transposed
        // inverse
        16 * k * k + missing.map_or(0, |m| 8 * k * (2 * m.n_rows(k) + k))
    }
}

/// [`Factors::inner`] of the factor with `root(row, column)` at `row <= column`.
fn inner(k: usize, root: impl Fn(usize, usize) -> f64) -> Vec<[f32; UNIT]> {
    let mut out = vec![[0.0; UNIT]; k];
    for first in (0..k).step_by(UNIT) {
        let end = k.min(first + UNIT);
        let rows: Vec<Vec<f64>> = (first..end)
            .map(|p| (first..end).map(|m| if p <= m { root(p, m) } else { 0.0 }).collect())
            .collect();
        for (p, a) in rows.iter().enumerate() {
            for (j, b) in rows[..=p].iter().enumerate() {
                let sum: f64 = a[p..].iter().zip(&b[p..]).map(|(a, b)| a * b).sum();
                out[first + p][j] = sum as f32;
                out[first + j][p] = sum as f32;
            }
        }
    }
    out
}

/// An upper triangle within units of columns, stored in strips of sixteen columns. A strip has its columns of the unit's
/// first row, of the next one, and so on, so that the elements of a column in all rows above it are read from one run of
/// memory.
#[derive(Debug)]
pub struct Strips {
    values: Vec<[f32; LANES]>,
}

/// Columns of a strip, and strips of a unit.
const LANES: usize = 16;
const PER_UNIT: usize = UNIT / LANES;

/// Rows of `n` strips in a unit.
const fn rows(n: usize) -> usize {
    LANES * (n * (n + 1) / 2)
}

impl Strips {
    /// The triangle with `value(row, column)` at `row <= column` in the same unit, 0 elsewhere.
    fn new(k: usize, value: impl Fn(usize, usize) -> f32) -> Strips {
        let mut values = Vec::with_capacity(Strips::floats(k) / LANES);
        for first in (0..k).step_by(LANES) {
            for row in first / UNIT * UNIT..first + LANES {
                values.push(std::array::from_fn(|i| {
                    let column = first + i;
                    if row <= column && column < k { value(row, column) } else { 0.0 }
                }));
            }
        }
        Strips { values }
    }

    fn floats(k: usize) -> usize {
        let n = k.div_ceil(LANES);
        LANES * (n / PER_UNIT * rows(PER_UNIT) + rows(n % PER_UNIT))
    }

    /// Columns `16 strip..16 strip + 16` in the rows of their unit up to the last of them; below these the triangle is
    /// 0.
    #[inline(always)]
    pub fn strip(&self, strip: usize) -> &[[f32; LANES]] {
        let (unit, own) = (strip / PER_UNIT, strip % PER_UNIT);
        &self.values[unit * rows(PER_UNIT) + rows(own)..][..LANES * (own + 1)]
    }

    /// The element at a row and a column of the same unit.
    pub fn get(&self, row: usize, column: usize) -> f32 {
        assert!(row / UNIT == column / UNIT, "row and column of one unit");
        self.strip(column / LANES)[row % UNIT][column % LANES]
    }
}

#[cfg(test)]
mod tests {
    use ikq_simd::{IsaKind, available};

    use super::*;

    /// The covariance of `n` tokens, one column of which is always 0.
    fn covariance(k: usize, n: usize) -> Vec<f32> {
        let mut sums = vec![0.0; triangle(k)];
        let x: Vec<f32> = (0..n * k)
            .map(|i| if i % k == 3 { 0.0 } else { (i * i * 7 % 101) as f32 / 10.0 - (i % 13) as f32 })
            .collect();
        crate::add_products(IsaKind::Scalar, &x, k, 0..k, &mut sums);
        sums
    }

    /// The diagonal's mean.
    fn mean(lower: &[f32], k: usize) -> f64 {
        (0..k).map(|i| f64::from(lower[triangle(i) + i])).sum::<f64>() / k as f64
    }

    /// An entry of the damped covariance of `n` tokens.
    fn damped(lower: &[f32], k: usize, n: f64, i: usize, j: usize) -> f64 {
        let (a, b) = (i.max(j), i.min(j));
        let more = if i == j { damping(k, n) * mean(lower, k) } else { 0.0 };
        f64::from(lower[triangle(a) + b]) + more
    }

    #[test]
    fn factors_give_back_the_damped_covariance() {
        for (k, n) in [(16, 40), (80, 20), (200, 500)] {
            let lower = covariance(k, n);
            let f = Factors::new(IsaKind::Scalar, &lower, k, n as f64).expect("a covariance");
            let mean = mean(&lower, k);
            for i in 0..k {
                for j in 0..=i {
                    let sum: f64 =
                        (i..k).map(|m| f64::from(f.root.get(i, m)) * f64::from(f.root.get(j, m))).sum();
                    let damped = f64::from(lower[triangle(i) + j]) / mean
                        + if i == j { damping(k, n as f64) } else { 0.0 };
                    assert!((sum - damped).abs() < 1e-5, "{k} columns, ({i}, {j}): {sum}, not {damped}");
                }
            }
        }
    }

    #[test]
    fn what_is_spread_makes_the_error_a_sum_of_squares() {
        let k = 48;
        let f = Factors::new(IsaKind::Scalar, &covariance(k, 100), k, 100.0).expect("a covariance");
        let d: Vec<f64> = (0..k).map(|i| ((i * 5 % 17) as f64 - 8.0) / 8.0).collect();
        // e from d, column after column, and the error computed in both ways
        let mut e = vec![0.0; k];
        for j in 0..k {
            e[j] = d[j] - (0..j).map(|p| e[p] * f64::from(f.spread.get(p, j))).sum::<f64>();
        }
        let sums: f64 = e.iter().zip(&f.weights).map(|(e, w)| e * e * f64::from(*w)).sum();
        let products = (0..k).map(|j| (0..=j).map(|p| d[p] * f64::from(f.root.get(p, j))).sum::<f64>());
        let error: f64 = products.map(|v| v * v).sum();
        assert!((sums / error - 1.0).abs() < 1e-4, "{sums}, not {error}");
    }

    #[test]
    fn aimed_rows_times_the_covariance_are_what_is_asked_for() {
        let k = 40;
        let (lower, n) = (covariance(k, 300), 1e9);
        let cross: Vec<f32> = (0..k * k).map(|i| ((i * 37 % 101) as f32 - 50.0) * 3.0).collect();
        let wanted = Wanted { cross: Some((Missing::Inputs, &cross)), whole: false };
        let f = Factors::with(IsaKind::Scalar, &lower, k, n, wanted).expect("a covariance");
        let x: Vec<f32> = (0..3 * k).map(|i| (i * 7 % 11) as f32 / 5.0 - 1.0).collect();
        let aimed = f.aimed(IsaKind::Scalar, &x, 0);
        for (aimed, x) in aimed.chunks_exact(k).zip(x.chunks_exact(k)) {
            // (aimed - x) H = x D
            for j in 0..k {
                let left: f64 = (0..k).map(|i| f64::from(aimed[i] - x[i]) * damped(&lower, k, n, i, j)).sum();
                let right: f64 = (0..k).map(|i| f64::from(x[i]) * f64::from(cross[i * k + j])).sum();
                assert!((left - right).abs() < 1e-3 * (1.0 + right.abs()), "column {j}: {left}, not {right}");
            }
        }
        for kind in available() {
            let other = Factors::with(kind, &lower, k, n, wanted).expect("a covariance");
            assert_eq!(other.aimed(kind, &x, 0), aimed, "{kind:?}");
        }
        let none = Factors::new(IsaKind::Scalar, &lower, k, n).expect("a covariance");
        assert!(matches!(none.aimed(IsaKind::Scalar, &x, 0), Cow::Borrowed(_)));
    }

    #[test]
    fn rows_are_aimed_at_what_their_products_lack() {
        let k = 40;
        let (lower, n) = (covariance(k, 300), 1e9);
        let mean = mean(&lower, k);
        // more rows than columns, of which some are encoded together
        let e: Vec<f32> = (0..50 * k).map(|i| ((i * 37 % 101) as f32 - 50.0) * 3.0).collect();
        let of = |missing, e| {
            let wanted = Wanted { cross: Some((missing, e)), whole: false };
            Factors::with(IsaKind::Scalar, &lower, k, n, wanted).expect("a covariance")
        };
        let f = of(Missing::Products(50), &e[..]);
        let x: Vec<f32> = (0..3 * k).map(|i| (i * 7 % 11) as f32 / 5.0 - 1.0).collect();
        let aimed = f.aimed(IsaKind::Scalar, &x, 45);
        // e H^-1 of these rows is what unit vectors would be aimed at by them as what inputs lack
        let mut units = vec![0.0; 3 * k];
        (0..3).for_each(|row| units[row * k + row] = 1.0);
        let of_inputs: Vec<f32> = e[45 * k..48 * k].iter().chain(&e[..(k - 3) * k]).copied().collect();
        let whole = of(Missing::Inputs, &of_inputs).aimed(IsaKind::Scalar, &units, 0).into_owned();
        for (row, (aimed, x)) in aimed.chunks_exact(k).zip(x.chunks_exact(k)).enumerate() {
            // (aimed - x) H = e - damping e H^-1, as it is drawn once
            for j in 0..k {
                let left: f64 = (0..k).map(|i| f64::from(aimed[i] - x[i]) * damped(&lower, k, n, i, j)).sum();
                let drawn = f64::from(whole[row * k + j] - units[row * k + j]) * damping(k, n) * mean;
                let right = f64::from(e[(45 + row) * k + j]) - drawn;
                assert!((left - right).abs() < 1e-3 * (1.0 + right.abs()), "column {j}: {left}, not {right}");
            }
        }
        assert_eq!(f.aimed(IsaKind::Scalar, &x[k..2 * k], 46)[..], aimed[k..2 * k]);
    }

    #[test]
    fn the_same_bits_on_every_instruction_set() {
        let lower = covariance(150, 90);
        let of = |kind| Factors::new(kind, &lower, 150, 90.0).expect("a covariance");
        let first = of(IsaKind::Scalar);
        for kind in available() {
            let other = of(kind);
            assert_eq!(other.spread.values, first.spread.values, "{kind:?}");
            assert_eq!(other.root.values, first.root.values, "{kind:?}");
            assert_eq!(other.weights, first.weights, "{kind:?}");
        }
    }

    #[test]
    fn what_is_singular_is_damped_and_what_is_none_is_refused() {
        let nothing = Factors::new(IsaKind::Scalar, &[0.0; triangle(32)], 32, 9.0).expect("zeros");
        for p in 0..32 {
            assert_eq!(nothing.spread.get(p, p), 1.0);
        }
        assert!((0..31).all(|p| nothing.spread.get(p, 31) == 0.0));
        // a covariance of a single direction
        let one: Vec<f32> = vec![1.0; triangle(32)];
        let one = Factors::new(IsaKind::Scalar, &one, 32, 1e9).expect("one direction");
        assert!(one.weights.iter().all(|w| w.is_finite() && *w > 0.0));
        let of = |change: &dyn Fn(&mut Vec<f32>)| {
            let mut lower = covariance(32, 50);
            change(&mut lower);
            Factors::new(IsaKind::Scalar, &lower, 32, 50.0).map(|_| ())
        };
        assert_eq!(of(&|l| l[40] = f32::NAN), Err(NotPositive));
        assert_eq!(of(&|l| l.iter_mut().for_each(|v| *v = -*v)), Err(NotPositive));
        assert_eq!(of(&|l| l[triangle(20) + 3] = 1e30), Err(NotPositive));
    }
}
