//! Sums of outer products of two vectors per token. The same loop also multiplies matrices.

use std::ops::Range;

use ikq_simd::{Isa, IsaKind, IsaOp, run};

/// Rows that are summed together, and vectors of sixteen columns of each.
const ROWS: usize = 4;
const VECTORS: usize = 2;
const WIDTH: usize = 16 * VECTORS;

/// Adds `sum over t of a_t[i] b_t[j]` to rows `rows` (i) of a matrix of `n_b` columns (j).
///
/// `a` has `n_a` and `b` has `n_b` floats per token; `sums` has the rows `rows`, one after another. The sum over
/// tokens is computed in single precision, in their order, and then added. So the result does not depend on which
/// rows are computed together, or on the machine.
///
/// # Panics
/// If lengths do not fit one another.
pub fn add_cross_products(
    kind: IsaKind,
    (a, n_a): (&[f32], usize),
    (b, n_b): (&[f32], usize),
    rows: Range<usize>,
    sums: &mut [f32],
) {
    assert!(rows.end <= n_a && a.len().is_multiple_of(n_a.max(1)), "rows and tokens of {n_a} floats");
    assert_eq!(a.len() / n_a.max(1), b.len() / n_b.max(1), "tokens of both");
    assert_eq!(sums.len(), rows.len() * n_b, "floats of the rows");
    run(kind, AddCross { a, n_a, b, n_b, rows, sums });
}

struct AddCross<'a> {
    a: &'a [f32],
    n_a: usize,
    b: &'a [f32],
    n_b: usize,
    rows: Range<usize>,
    sums: &'a mut [f32],
}

impl IsaOp for AddCross<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let AddCross { a, n_a, b, n_b, rows, sums } = self;
        // a strip of columns of all tokens stays in the cache while all rows are computed
        for column in (0..n_b).step_by(WIDTH) {
            let width = WIDTH.min(n_b - column);
            for first in rows.clone().step_by(ROWS) {
                let n_rows = ROWS.min(rows.end - first);
                let mut found = [[isa.splat_f(0.0); VECTORS]; ROWS];
                let mut last = [0.0; WIDTH];
                for (a, b) in a.chunks_exact(n_a).zip(b.chunks_exact(n_b)) {
                    let columns = match b.get(column..column + WIDTH) {
                        Some(columns) => columns,
                        None => {
                            last[..width].copy_from_slice(&b[column..]);
                            &last
                        }
                    };
                    let columns = columns.as_chunks::<16>().0;
                    let columns: [I::F; VECTORS] = std::array::from_fn(|v| isa.load_f(&columns[v]));
                    for (r, found) in found.iter_mut().enumerate().take(n_rows) {
                        let own = isa.splat_f(a[first + r]);
                        for (sum, column) in found.iter_mut().zip(columns) {
                            *sum = isa.mul_add_f(own, column, *sum);
                        }
                    }
                }
                for (r, found) in found.into_iter().enumerate().take(n_rows) {
                    let mut floats = [[0.0; 16]; VECTORS];
                    found.into_iter().zip(&mut floats).for_each(|(f, out)| isa.store_f(f, out));
                    let sums = &mut sums[(first + r - rows.start) * n_b + column..][..width];
                    sums.iter_mut().zip(floats.as_flattened()).for_each(|(sum, found)| *sum += found);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use ikq_simd::available;

    use super::*;

    fn tokens(n: usize, k: usize, seed: usize) -> Vec<f32> {
        (0..n * k).map(|i| (((i + seed) * 2_654_435_761 % 1000) as f32 - 500.0) / 250.0).collect()
    }

    #[test]
    fn sums_are_those_of_the_products_in_order() {
        for (n_a, n_b) in [(1, 1), (5, 16), (33, 70), (6, 31)] {
            let (a, b) = (tokens(7, n_a, 0), tokens(7, n_b, 9));
            let mut expected = vec![1.0; n_a * n_b];
            for i in 0..n_a {
                for j in 0..n_b {
                    let pairs = a.chunks_exact(n_a).zip(b.chunks_exact(n_b));
                    expected[i * n_b + j] += pairs.fold(0.0f32, |sum, (a, b)| a[i] * b[j] + sum);
                }
            }
            for kind in available() {
                let mut parts = vec![1.0; n_a * n_b];
                let cut = n_a / 3;
                let (head, tail) = parts.split_at_mut(cut * n_b);
                add_cross_products(kind, (&a, n_a), (&b, n_b), cut..n_a, tail);
                add_cross_products(kind, (&a, n_a), (&b, n_b), 0..cut, head);
                assert_eq!(parts, expected, "{n_a} x {n_b}, {kind:?}");
            }
        }
    }
}
