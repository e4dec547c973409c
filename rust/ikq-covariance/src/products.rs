//! Sums of outer products of a vector per token with itself.

use std::ops::Range;

use ikq_simd::{Isa, IsaKind, IsaOp, run};

use crate::triangle;

/// Rows of the triangle that are summed together, and vectors of sixteen columns of each.
const ROWS: usize = 4;
const VECTORS: usize = 2;

/// Adds `sum over t of x_t[i] x_t[j]` to some rows i of a lower triangle.
///
/// `x` has a vector of `k` floats per token. `sums` has the rows `rows` of the triangle, one after another. The sum
/// over tokens is computed in single precision, in their order, and then added. So the result does not depend on
/// which rows are computed together, or on the machine.
///
/// # Panics
/// If lengths do not fit one another.
pub fn add_products(kind: IsaKind, x: &[f32], k: usize, rows: Range<usize>, sums: &mut [f32]) {
    assert!(rows.end <= k && x.len().is_multiple_of(k.max(1)), "rows and tokens of {k} columns");
    assert_eq!(sums.len(), triangle(rows.end) - triangle(rows.start), "floats of the rows");
    run(kind, AddProducts { x, k, rows, sums });
}

struct AddProducts<'a> {
    x: &'a [f32],
    k: usize,
    rows: Range<usize>,
    sums: &'a mut [f32],
}

impl IsaOp for AddProducts<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let AddProducts { x, k, rows, sums } = self;
        let start = triangle(rows.start);
        let mut first = rows.start;
        while first < rows.end {
            let n_rows = ROWS.min(rows.end - first);
            // all columns of the last of these rows; the other rows have fewer
            let mut column = 0;
            while column < first + n_rows {
                let mut found = [[[0.0; 16]; VECTORS]; ROWS];
                block(isa, x, k, first, n_rows, column, &mut found);
                for (r, found) in found.iter().enumerate().take(n_rows) {
                    let row = first + r;
                    let width = (row + 1).saturating_sub(column).min(16 * VECTORS);
                    let at = triangle(row) + column - start;
                    let sums = &mut sums[at..at + width];
                    sums.iter_mut().zip(found.as_flattened()).for_each(|(sum, found)| *sum += found);
                }
                column += 16 * VECTORS;
            }
            first += n_rows;
        }
    }
}

/// Computes the sums of `n_rows` rows from `first` on and of 32 columns from `column` on. Results outside the
/// triangle are not used.
#[inline(always)]
fn block<I: Isa>(
    isa: I,
    x: &[f32],
    k: usize,
    first: usize,
    n_rows: usize,
    column: usize,
    out: &mut [[[f32; 16]; VECTORS]; ROWS],
) {
    let mut sums = [[isa.splat_f(0.0); VECTORS]; ROWS];
    let mut last = [0.0; 16 * VECTORS];
    for x in x.chunks_exact(k) {
        let columns = match x.get(column..column + 16 * VECTORS) {
            Some(columns) => columns,
            None => {
                let rest = &x[column..];
                last[..rest.len()].copy_from_slice(rest);
                &last
            }
        };
        let (columns, _) = columns.as_chunks::<16>();
        let columns: [I::F; VECTORS] = std::array::from_fn(|v| isa.load_f(&columns[v]));
        for (r, sums) in sums.iter_mut().enumerate().take(n_rows) {
            let own = isa.splat_f(x[first + r]);
            for (sum, column) in sums.iter_mut().zip(columns) {
                *sum = isa.mul_add_f(own, column, *sum);
            }
        }
    }
    for (sums, out) in sums.into_iter().zip(out) {
        for (sum, out) in sums.into_iter().zip(out) {
            isa.store_f(sum, out);
        }
    }
}

#[cfg(test)]
mod tests {
    use ikq_simd::available;

    use super::*;

    fn tokens(n: usize, k: usize) -> Vec<f32> {
        (0..n * k).map(|i| ((i * 2_654_435_761 % 1000) as f32 - 500.0) / 250.0).collect()
    }

    #[test]
    fn sums_are_those_of_the_products_in_order() {
        for k in [1, 15, 16, 33, 70] {
            let x = tokens(7, k);
            let mut expected = vec![1.0; triangle(k)];
            for i in 0..k {
                for j in 0..=i {
                    let sum = x.chunks_exact(k).fold(0.0f32, |sum, x| x[i] * x[j] + sum);
                    expected[triangle(i) + j] += sum;
                }
            }
            for kind in available() {
                let mut whole = vec![1.0; triangle(k)];
                add_products(kind, &x, k, 0..k, &mut whole);
                assert_eq!(whole, expected, "{k} columns, {kind:?}");
                let mut parts = vec![1.0; triangle(k)];
                let cut = k / 3;
                let (head, tail) = parts.split_at_mut(triangle(cut));
                add_products(kind, &x, k, cut..k, tail);
                add_products(kind, &x, k, 0..cut, head);
                assert_eq!(parts, expected, "{k} columns in two parts, {kind:?}");
            }
        }
    }

    #[test]
    fn no_tokens_add_nothing() {
        let mut sums = vec![2.0; triangle(5)];
        add_products(available()[0], &[], 5, 0..5, &mut sums);
        assert_eq!(sums, [2.0; 15]);
    }
}
