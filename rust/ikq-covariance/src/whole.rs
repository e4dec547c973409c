//! [`Whole`]: a covariance itself, for choosing codes again with all other columns known.

use crate::UNIT;
use crate::steps::{SIDE_BY_SIDE, Steps};

/// A damped covariance of `k` columns.
#[derive(Debug)]
pub struct Whole {
    k: usize,
    /// All of it as integers: [`Whole::part`] says in which order.
    pub steps: Steps,
    /// For each column, the elements of its row in the columns of its unit.
    pub own: Vec<[f32; UNIT]>,
}

impl Whole {
    pub(crate) fn new(k: usize, value: impl Fn(usize, usize) -> f32) -> Whole {
        let own = |p: usize| {
            std::array::from_fn(|j| {
                let column = p / UNIT * UNIT + j;
                if column < k { value(p, column) } else { 0.0 }
            })
        };
        Whole { k, own: (0..k).map(own).collect(), steps: Steps::all(k, value) }
    }

    /// The number of columns.
    pub fn k(&self) -> usize {
        self.k
    }

    /// The number of the part of [`Whole::steps`] for the eight columns from `column` on, and a unit of rows.
    #[inline(always)]
    pub fn part(&self, column: usize, unit: usize) -> usize {
        column / SIDE_BY_SIDE * self.k.div_ceil(UNIT) + unit
    }

    /// The element in a row and a column, as the integers have it.
    pub fn get(&self, row: usize, column: usize) -> f32 {
        let (pairs, sizes) = self.steps.part(self.part(column, row / UNIT));
        let pair = pairs[row % UNIT / 2][column % SIDE_BY_SIDE].map(|b| b as u8);
        let at = row % 2 * 2;
        f32::from(i16::from_le_bytes([pair[at], pair[at + 1]])) * sizes[column % SIDE_BY_SIDE]
    }

    /// Bytes that it takes.
    pub(crate) fn bytes(k: usize) -> usize {
        4 * UNIT * k + Steps::bytes_of_all(k)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::steps::MOST_OF_FACTOR;

    #[test]
    fn integers_and_floats_are_the_covariance() {
        let k = 2 * UNIT + 48;
        let value = |p: usize, j: usize| ((p * j + p + j) % 103) as f32 / 9.0 - 5.0;
        let whole = Whole::new(k, value);
        for p in 0..k {
            for j in 0..k {
                // the largest magnitude is at most 7
                let step = 7.0 / MOST_OF_FACTOR as f32;
                assert!((whole.get(p, j) - value(p, j)).abs() <= 0.51 * step, "{p}, {j}");
                if p / UNIT == j / UNIT {
                    assert_eq!(whole.own[p][j % UNIT], value(p, j));
                }
            }
        }
        assert!(whole.own[k - 1][48..].iter().all(|h| *h == 0.0));
        assert_eq!(size_of_val(&whole.own[..]) + whole.steps.n_bytes(), Whole::bytes(k));
    }
}
