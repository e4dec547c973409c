//! Cholesky factors in double precision: the lower triangle L of `A = L L^T`, and its inverse.
//!
//! The inner loops run over contiguous rows with one operation per element, so that the compiler vectorizes them
//! without changing a bit. Rows are taken in blocks, so that data that are read again stay in the cache.

use ikq_simd::{Isa, IsaOp};

/// Columns of a panel of the factorization, and rows of the inverse that are computed together.
const PANEL: usize = 64;
const SIDE_BY_SIDE: usize = 16;

/// Replaces the lower triangle of `a` (`k` rows of `k`) with its factor L; false if a pivot is not positive.
pub(crate) struct Factor<'a> {
    pub a: &'a mut [f64],
    pub k: usize,
}

impl IsaOp for Factor<'_> {
    type Output = bool;

    #[inline(always)]
    fn run<I: Isa>(self, _: I) -> bool {
        let Factor { a, k } = self;
        // the transposed panel: row m has column m of the rows below the panel
        let mut turned = vec![0.0; PANEL.min(k) * k];
        for start in (0..k).step_by(PANEL) {
            let end = k.min(start + PANEL);
            for i in start..k {
                let (above, row) = a.split_at_mut(i * k);
                for j in start..end.min(i) {
                    let other = &above[j * k..][..k];
                    let mut v = row[j];
                    for m in start..j {
                        v -= row[m] * other[m];
                    }
                    row[j] = v / other[j];
                }
                if i < end {
                    let mut v = row[i];
                    for l in &row[start..i] {
                        v -= l * l;
                    }
                    // false for NaN too
                    if !(v > 0.0 && v.is_finite()) {
                        return false;
                    }
                    row[i] = v.sqrt();
                } else {
                    for m in start..end {
                        turned[(m - start) * k + i] = row[m];
                    }
                }
            }
            for i in end..k {
                let row = &mut a[i * k..][..=i];
                let (panel, rest) = row.split_at_mut(end);
                for (l, column) in panel[start..].iter().zip(turned.chunks_exact(k)) {
                    subtract(rest, *l, &column[end..=i]);
                }
            }
        }
        true
    }
}

/// Writes the inverse of the lower triangle `l` to the lower triangle of `inverse`.
pub(crate) struct Inverse<'a> {
    pub l: &'a [f64],
    pub inverse: &'a mut [f64],
    pub k: usize,
}

impl IsaOp for Inverse<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, _: I) {
        let Inverse { l, inverse, k } = self;
        for start in (0..k).step_by(SIDE_BY_SIDE) {
            let end = k.min(start + SIDE_BY_SIDE);
            let (done, rows) = inverse.split_at_mut(start * k);
            let rows = &mut rows[..(end - start) * k];
            rows.fill(0.0);
            for (m, above) in done.chunks_exact(k).enumerate() {
                for (i, row) in rows.chunks_exact_mut(k).enumerate() {
                    subtract(&mut row[..=m], l[(start + i) * k + m], &above[..=m]);
                }
            }
            for i in start..end {
                let (above, row) = rows.split_at_mut((i - start) * k);
                let (row, own) = (&mut row[..=i], &l[i * k..][..=i]);
                for (m, above) in above.chunks_exact(k).enumerate() {
                    subtract(&mut row[..=start + m], own[start + m], &above[..=start + m]);
                }
                row[i] = 1.0;
                let pivot = own[i];
                row.iter_mut().for_each(|v| *v /= pivot);
            }
        }
    }
}

/// Replaces `rows` (`k` floats each) with `rows A^-1`, where `inverse` has the lower triangle L^-1 of `A = L L^T`.
pub(crate) struct Divide<'a> {
    pub inverse: &'a [f64],
    pub rows: &'a mut [f64],
    pub k: usize,
}

impl IsaOp for Divide<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, _: I) {
        let Divide { inverse, rows, k } = self;
        // A^-1 = (L^-1)^T L^-1, so rows are multiplied with the first factor, whose rows are the columns of L^-1,
        // then with the second
        let mut turned = vec![0.0; k * k];
        for (m, row) in inverse.chunks_exact(k).enumerate() {
            row[..=m].iter().enumerate().for_each(|(j, v)| turned[j * k + m] = *v);
        }
        let mut between = vec![0.0; SIDE_BY_SIDE * k];
        for rows in rows.chunks_mut(SIDE_BY_SIDE * k) {
            let between = &mut between[..rows.len()];
            between.fill(0.0);
            for (m, column) in turned.chunks_exact(k).enumerate() {
                for (row, out) in rows.chunks_exact(k).zip(between.chunks_exact_mut(k)) {
                    subtract(&mut out[m..], -row[m], &column[m..]);
                }
            }
            rows.fill(0.0);
            for (m, row) in inverse.chunks_exact(k).enumerate() {
                for (between, out) in between.chunks_exact(k).zip(rows.chunks_exact_mut(k)) {
                    subtract(&mut out[..=m], -between[m], &row[..=m]);
                }
            }
        }
    }
}

/// `row -= l * other`.
#[inline(always)]
fn subtract(row: &mut [f64], l: f64, other: &[f64]) {
    row.iter_mut().zip(other).for_each(|(v, o)| *v -= l * o);
}
