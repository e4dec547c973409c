//! Products of rows and matrices in integers: their sums are exact in any order, and on most machines take half the
//! time of sums of floats. So columns of a unit are adjusted for the errors of earlier units.

use ikq_covariance::steps::{MOST_OF_ERROR, PER_UNIT, Pairs, SIDE_BY_SIDE, between};
use ikq_covariance::{Factors, UNIT, Whole};
use ikq_simd::{Isa, IsaOp};

use crate::passes::{LANES, Lane};

/// Numbers of sixteen rows in two columns: for each row, two integers of 16 bits, little-endian.
pub(crate) type TwoColumns = [i8; 4 * LANES];

/// Numbers of rows as integers, for all units of their columns; behind the last column they are 0.
pub(crate) struct Integers {
    /// For each unit, each group of sixteen rows: its columns, two by two.
    pairs: Vec<TwoColumns>,
    /// What the integers of each row are multiples of: for each unit, each group of sixteen rows.
    sizes: Vec<Lane>,
    n_groups: usize,
}

impl Integers {
    /// Room for groups of sixteen rows of `k` columns.
    pub fn new(n_groups: usize, k: usize) -> Self {
        let n = k.div_ceil(UNIT) * n_groups;
        Integers { pairs: vec![[0; 4 * LANES]; n * PER_UNIT], sizes: vec![[0.0; LANES]; n], n_groups }
    }

    /// Bytes for `n_rows` rows of `k` columns.
    pub const fn bytes(n_rows: usize, k: usize) -> usize {
        (2 * UNIT + 4) * n_rows * k.div_ceil(UNIT)
    }

    /// The columns of a unit of a group of rows, two by two, and what their integers are multiples of.
    #[inline(always)]
    pub fn of(&self, unit: usize, group: usize) -> (&[TwoColumns], &Lane) {
        let at = unit * self.n_groups + group;
        (&self.pairs[at * PER_UNIT..][..PER_UNIT], &self.sizes[at])
    }
}

/// Takes over the numbers of one unit, rounded.
pub(crate) struct Round<'a> {
    /// The columns of all groups, `k` for each.
    pub x: &'a [Lane],
    pub k: usize,
    pub unit: usize,
    pub out: &'a mut Integers,
}

impl IsaOp for Round<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Integers { pairs, sizes, n_groups } = self.out;
        let groups = pairs[self.unit * *n_groups * PER_UNIT..].chunks_exact_mut(PER_UNIT);
        let groups = groups.zip(&mut sizes[self.unit * *n_groups..]);
        for (x, (pairs, size)) in self.x.chunks_exact(self.k).zip(groups) {
            let x = &x[self.unit * UNIT..];
            round(isa, &x[..x.len().min(UNIT)], pairs, size);
        }
    }
}

/// Rounds columns of a unit (an even number of them) to integers.
#[inline(always)]
pub(crate) fn round<I: Isa>(isa: I, x: &[Lane], pairs: &mut [TwoColumns], size: &mut Lane) {
    let x = x.as_chunks::<2>().0;
    let (least, most) = (isa.splat_f(f32::MIN_POSITIVE), isa.splat_f(MOST_OF_ERROR as f32));
    let mut peaks = [isa.splat_f(0.0); 2];
    for both in x {
        for (x, peak) in both.iter().zip(&mut peaks) {
            // in this order, an infinity stays the peak beside what is no number
            *peak = isa.max_f(isa.abs_f(isa.load_f(x)), *peak);
        }
    }
    let one = isa.div_f(isa.max_f(peaks[0], peaks[1]), most);
    // where a step is none, all integers are 0
    let per_one = isa.if_gt(one, least, isa.div_f(isa.splat_f(1.0), one), isa.splat_f(0.0));
    let integer = |x: &Lane| {
        let n = isa.mul_f(isa.load_f(x), per_one);
        isa.bits_i(isa.slot(isa.max_f(isa.min_f(n, most), isa.sub_f(isa.splat_f(0.0), most))))
    };
    for ([a, b], out) in x.iter().zip(pairs) {
        let low = isa.and_i(integer(a), isa.splat_i(0xffff));
        let mut both = [0; LANES];
        isa.store_i(isa.or_i(low, isa.shl_i(integer(b), 16)), &mut both);
        for (out, n) in out.as_chunks_mut::<4>().0.iter_mut().zip(both) {
            *out = n.to_le_bytes().map(|b| b as i8);
        }
    }
    isa.store_f(one, size);
}

/// Adjusts the columns of a unit for the errors of all earlier ones.
pub(crate) struct MoveUnit<'a> {
    /// The columns of the rows, `k` for each group of sixteen.
    pub x: &'a [Lane],
    pub errors: &'a Integers,
    pub factors: &'a Factors,
    /// The unit's first column.
    pub first: usize,
    /// The result, `n` columns for each group.
    pub out: &'a mut [Lane],
    pub n: usize,
}

impl IsaOp for MoveUnit<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let MoveUnit { x, errors, factors, first, out, n } = self;
        for (x, out) in x.chunks_exact(factors.k()).zip(out.chunks_exact_mut(n)) {
            out.copy_from_slice(&x[first..first + n]);
        }
        let part = |column, unit| factors.spread_steps.part(between(first + column, unit));
        pull_units(isa, errors, first / UNIT, part, out, n);
    }
}

/// Adds the products of rows and a covariance, `x H` for the columns of a unit.
pub(crate) struct TimesWhole<'a> {
    /// The rows with the other sign.
    pub minus: &'a Integers,
    pub whole: &'a Whole,
    /// The unit's first column.
    pub first: usize,
    /// The result, `n` columns for each group.
    pub out: &'a mut [Lane],
    pub n: usize,
}

impl IsaOp for TimesWhole<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let TimesWhole { minus, whole, first, out, n } = self;
        out.fill([0.0; LANES]);
        let part = |column, unit| whole.steps.part(whole.part(first + column, unit));
        pull_units(isa, minus, whole.k().div_ceil(UNIT), part, out, n);
    }
}

/// `columns -= numbers * matrix` for the first units of the numbers, and `n` columns of each group.
#[inline(always)]
fn pull_units<'a, I: Isa>(
    isa: I,
    numbers: &Integers,
    n_units: usize,
    part: impl Fn(usize, usize) -> (&'a [Pairs], &'a [f32; SIDE_BY_SIDE]),
    out: &mut [Lane],
    n: usize,
) {
    // numbers of one unit stay in the cache while all columns take their part of them
    for unit in 0..n_units {
        for column in (0..n).step_by(SIDE_BY_SIDE) {
            let part = part(column, unit);
            let group = |g: usize| numbers.of(unit, g);
            let mut g = 0;
            // registers hold the sums of two groups, or of one
            if I::REGISTERS >= 32 {
                while g + 2 <= numbers.n_groups {
                    let (one, other) = out[g * n..].split_at_mut(n);
                    let out = [one, other].map(|out| &mut out[column..column + SIDE_BY_SIDE]);
                    pull_part(isa, part, [group(g), group(g + 1)], out);
                    g += 2;
                }
            }
            for g in g..numbers.n_groups {
                pull_part(isa, part, [group(g)], [&mut out[g * n + column..][..SIDE_BY_SIDE]]);
            }
        }
    }
}

/// `columns -= numbers * matrix` for `N` groups of rows and eight columns.
#[inline(always)]
pub(crate) fn pull_part<I: Isa, const N: usize>(
    isa: I,
    (rows, sizes): (&[Pairs], &[f32; SIDE_BY_SIDE]),
    numbers: [(&[TwoColumns], &Lane); N],
    columns: [&mut [Lane]; N],
) {
    let mut sums = [[isa.splat_i(0); SIDE_BY_SIDE]; N];
    let numbers = numbers.map(|(pairs, size)| (&pairs[..rows.len()], size));
    for (p, factors) in rows.iter().enumerate() {
        for (j, factor) in factors.iter().enumerate() {
            let factor = isa.splat_4_codes(factor);
            for g in 0..N {
                sums[g][j] = isa.dot2(sums[g][j], isa.load_codes(&numbers[g].0[p]), factor);
            }
        }
    }
    for ((sums, columns), (_, size)) in sums.iter().zip(columns).zip(numbers) {
        let size = isa.load_f(size);
        for ((sum, column), by) in sums.iter().zip(columns).zip(sizes) {
            let change = isa.mul_f(isa.float_i(*sum), isa.mul_f(size, isa.splat_f(*by)));
            isa.store_f(isa.sub_f(isa.load_f(column), change), column);
        }
    }
}

#[cfg(test)]
mod tests {
    use ikq_simd::{IsaKind, available, run};

    use super::*;
    use crate::tests::{factors, noise};

    const K: usize = 544;
    const GROUPS: usize = 3;

    /// The columns from 512 on, adjusted for `errors` in those before.
    fn moved(kind: IsaKind, factors: &Factors, x: &[Lane], errors: &[Lane]) -> Vec<Lane> {
        let mut integers = Integers::new(GROUPS, K);
        for unit in 0..K / UNIT {
            run(kind, Round { x: errors, k: K, unit, out: &mut integers });
        }
        let (first, n) = (2 * UNIT, K - 2 * UNIT);
        let mut out = vec![[0.0; LANES]; GROUPS * n];
        run(kind, MoveUnit { x, errors: &integers, factors, first, out: &mut out, n });
        out
    }

    fn lanes(seed: u32) -> Vec<Lane> {
        noise(seed, GROUPS * K * LANES).as_chunks::<LANES>().0.to_vec()
    }

    #[test]
    fn columns_are_adjusted_up_to_half_steps_of_errors() {
        let factors = factors(K);
        let (x, mut errors) = (lanes(1), lanes(2));
        // rows of all sizes, with a column of larger errors; and a row without
        for (i, e) in errors.iter_mut().enumerate() {
            let larger = if i % K == 7 { 20.0 } else { 1.0 };
            e.iter_mut().enumerate().for_each(|(lane, e)| *e *= larger * 0.01f32.powi(lane as i32 - 5));
            e[3] = 0.0;
        }
        let found = moved(IsaKind::Scalar, &factors, &x, &errors);
        let (first, n) = (2 * UNIT, K - 2 * UNIT);
        for g in 0..GROUPS {
            let (x, errors) = (&x[g * K..][..K], &errors[g * K..][..K]);
            for lane in 0..LANES {
                let step = |unit: usize| {
                    let of_unit = errors[unit * UNIT..][..UNIT].iter().map(|e| e[lane].abs());
                    f64::from(of_unit.fold(0.0, f32::max)) / f64::from(MOST_OF_ERROR)
                };
                let steps = [step(0), step(1)];
                for j in 0..n {
                    let column = first + j;
                    let (mut wanted, mut bound) = (f64::from(x[column][lane]), 1e-30);
                    for p in 0..first {
                        let (rows, sizes) = factors.spread_steps.part(between(column / 8 * 8, p / UNIT));
                        let pair = rows[p % UNIT / 2][column % 8].map(|b| b as u8);
                        let number = i16::from_le_bytes([pair[p % 2 * 2], pair[p % 2 * 2 + 1]]);
                        let factor = f64::from(number) * f64::from(sizes[column % 8]);
                        wanted -= f64::from(errors[p][lane]) * factor;
                        bound += 0.501 * steps[p / UNIT] * factor.abs();
                    }
                    let found = f64::from(found[g * n + j][lane]);
                    // and the rounding of three floats
                    bound += 1e-6 * (wanted.abs() + f64::from(x[column][lane]).abs());
                    assert!((found - wanted).abs() <= bound, "{g}, {lane}, {j}: {found}, not {wanted}");
                    assert!(lane != 3 || found == f64::from(x[column][lane]));
                }
            }
        }
        for kind in available() {
            assert_eq!(moved(kind, &factors, &x, &errors), found, "{}", kind.name());
        }
    }

    #[test]
    fn rows_whose_errors_are_infinite_stay_recognisable() {
        let factors = factors(K);
        let (x, mut errors) = (lanes(1), lanes(2));
        errors[40][2] = f32::INFINITY;
        errors[41][2] = f32::NAN;
        for kind in available() {
            let found = moved(kind, &factors, &x, &errors);
            assert!(found[..K - 2 * UNIT].iter().all(|m| !m[2].is_finite()), "{}", kind.name());
            assert!(found.iter().all(|m| m[1].is_finite()));
        }
    }
}
