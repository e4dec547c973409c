//! A factor between units of columns in integers, so that sums of its products are exact in any order, and take half
//! the time of those of floats.

use crate::UNIT;

/// Columns that stand beside each other.
pub const SIDE_BY_SIDE: usize = 8;

/// The largest magnitude of an integer of the factor, and of one that it is multiplied with: 256 products of both,
/// those of a unit's rows, have a sum below 2^31.
pub const MOST_OF_FACTOR: i32 = 8191;
pub const MOST_OF_ERROR: i32 = 1023;

const _: () = assert!(MOST_OF_FACTOR as i64 * MOST_OF_ERROR as i64 * (UNIT as i64) < 1 << 31);

/// Two rows of eight columns: for each column, two integers of 16 bits, little-endian.
pub type Pairs = [[i8; 4]; SIDE_BY_SIDE];

/// Parts of a matrix as integers: each is all rows of a unit in eight columns.
#[derive(Debug)]
pub struct Steps {
    /// For each part its rows, two by two.
    pairs: Vec<Pairs>,
    /// What the integers of each part are multiples of.
    sizes: Vec<[f32; SIDE_BY_SIDE]>,
}

/// The number of the part for eight columns and an earlier unit: those of a unit's columns stand together, those of the
/// first eight in all earlier units first.
pub fn between(column: usize, unit: usize) -> usize {
    let (own, per_unit) = (column / UNIT, UNIT / SIDE_BY_SIDE);
    per_unit * (own * own.saturating_sub(1) / 2) + column % UNIT / SIDE_BY_SIDE * own + unit
}

/// About how many columns of `x R` are used to measure the gain of a row x; with so many the result is accurate enough.
const OF_GAIN: usize = 256;

/// The first of each eight columns of R in which gains are measured, among `k`.
pub fn measured(k: usize) -> impl Iterator<Item = usize> {
    (0..k).step_by(SIDE_BY_SIDE * (k / OF_GAIN).max(1))
}

/// Pairs of rows in a unit.
pub const PER_UNIT: usize = UNIT / 2;

/// Bytes of a part.
const BYTES: usize = PER_UNIT * size_of::<Pairs>() + size_of::<[f32; SIDE_BY_SIDE]>();

impl Steps {
    /// The parts of a matrix of `k` columns in all units before those of the columns, in the order of [`between`].
    pub(crate) fn between(k: usize, value: impl Fn(usize, usize) -> f32) -> Steps {
        let parts = (UNIT..k).step_by(SIDE_BY_SIDE);
        Steps::new(k, parts.flat_map(|first| (0..first / UNIT).map(move |unit| (first, unit))), value)
    }

    /// The parts of a matrix of `k` columns within units, one for every eight columns.
    pub(crate) fn within(k: usize, value: impl Fn(usize, usize) -> f32) -> Steps {
        Steps::new(k, (0..k).step_by(SIDE_BY_SIDE).map(|first| (first, first / UNIT)), value)
    }

    /// The parts of an upper triangle in the columns from each of [`measured`] on, in all units up to the columns' own.
    pub(crate) fn of_measured(k: usize, value: impl Fn(usize, usize) -> f32) -> Steps {
        let parts = measured(k).flat_map(|first| (0..=first / UNIT).map(move |unit| (first, unit)));
        Steps::new(k, parts, |p, j| if p <= j { value(p, j) } else { 0.0 })
    }

    /// All parts of a matrix of `k` columns: those of the first eight columns in all units first.
    pub(crate) fn all(k: usize, value: impl Fn(usize, usize) -> f32) -> Steps {
        let units = k.div_ceil(UNIT);
        let parts = (0..k).step_by(SIDE_BY_SIDE);
        Steps::new(k, parts.flat_map(|first| (0..units).map(move |unit| (first, unit))), value)
    }

    /// Parts of a matrix of `k` columns, each in the eight columns from the first number on and a unit of rows.
    fn new(
        k: usize,
        parts: impl Iterator<Item = (usize, usize)>,
        value: impl Fn(usize, usize) -> f32,
    ) -> Steps {
        let mut steps = Steps { pairs: Vec::new(), sizes: Vec::new() };
        for (first, unit) in parts {
            let inside = |p, j| if p < k && first + j < k { value(p, first + j) } else { 0.0 };
            steps.push(UNIT * unit, inside);
        }
        steps
    }

    /// Adds a part, whose rows begin with `first`.
    fn push(&mut self, first: usize, value: impl Fn(usize, usize) -> f32) {
        let most = MOST_OF_FACTOR as f32;
        let rows = first..first + UNIT;
        let size: [f32; SIDE_BY_SIDE] =
            std::array::from_fn(|j| rows.clone().map(|p| value(p, j).abs()).fold(0.0, f32::max) / most);
        let integer = |p: usize, j: usize| {
            let number = if size[j] > 0.0 { value(p, j) / size[j] } else { 0.0 };
            (number.round().clamp(-most, most) as i16).to_le_bytes().map(|b| b as i8)
        };
        self.pairs.extend(rows.step_by(2).map(|p| {
            std::array::from_fn(|j| {
                let ([a, b], [c, d]) = (integer(p, j), integer(p + 1, j));
                [a, b, c, d]
            })
        }));
        self.sizes.push(size);
    }

    /// The rows of a part, and what their integers are multiples of.
    #[inline(always)]
    pub fn part(&self, number: usize) -> (&[Pairs], &[f32; SIDE_BY_SIDE]) {
        (&self.pairs[number * PER_UNIT..][..PER_UNIT], &self.sizes[number])
    }

    /// Bytes of all three kinds for `k` columns.
    pub(crate) fn bytes(k: usize) -> usize {
        let n = k.div_ceil(SIDE_BY_SIDE);
        let last = SIDE_BY_SIDE * n.saturating_sub(1);
        let n_measured: usize = measured(k).map(|first| first / UNIT + 1).sum();
        (n + between(last, last / UNIT) + n_measured) * BYTES
    }

    /// Bytes that it takes.
    #[cfg(test)]
    pub(crate) fn n_bytes(&self) -> usize {
        size_of_val(&self.pairs[..]) + size_of_val(&self.sizes[..])
    }

    /// Bytes of [`Steps::all`] for `k` columns.
    pub(crate) fn bytes_of_all(k: usize) -> usize {
        k.div_ceil(SIDE_BY_SIDE) * k.div_ceil(UNIT) * BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_are_within_half_a_step_of_the_elements() {
        for k in [64, 256, 264, 800] {
            let value = |p: usize, j: usize| ((p * 31 + j * 17) % 101) as f32 / 7.0 - 6.0;
            let (units, own) = (Steps::between(k, value), Steps::within(k, value));
            let some = Steps::of_measured(k, value);
            assert_eq!(units.n_bytes() + own.n_bytes() + some.n_bytes(), Steps::bytes(k));
            let check =
                |(pairs, sizes): (&[Pairs], &[f32; SIDE_BY_SIDE]), unit: usize, column: usize, is_upper| {
                    let j = column % SIDE_BY_SIDE;
                    for p in 0..UNIT {
                        let [a, b] = [pairs[p / 2][j][p % 2 * 2], pairs[p / 2][j][p % 2 * 2 + 1]];
                        let number = f32::from(i16::from_le_bytes([a as u8, b as u8]));
                        let row = UNIT * unit + p;
                        let is_there = row < k && !(is_upper && row > column);
                        let wanted = if is_there { value(row, column) } else { 0.0 };
                        assert!((number * sizes[j] - wanted).abs() <= 0.501 * sizes[j], "{row}, {column}");
                        assert!(number.abs() <= MOST_OF_FACTOR as f32);
                    }
                };
            for column in 0..k {
                let first = column / SIDE_BY_SIDE * SIDE_BY_SIDE;
                for unit in 0..column / UNIT {
                    check(units.part(between(first, unit)), unit, column, false);
                }
                check(own.part(first / SIDE_BY_SIDE), column / UNIT, column, false);
            }
            let all = measured(k).flat_map(|first| (0..=first / UNIT).map(move |unit| (first, unit)));
            for (number, (first, unit)) in all.enumerate() {
                (first..first + SIDE_BY_SIDE).for_each(|column| check(some.part(number), unit, column, true));
            }
        }
    }
}
