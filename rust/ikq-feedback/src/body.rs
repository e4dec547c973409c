//! Encodes rows of floats with error feedback, up to 64 rows at a time, one block of columns after another.

use std::marker::PhantomData;

use ikq_covariance::{Factors, UNIT, Whole};
use ikq_encode::{EncodeOptions, Error, undoes_bias};
use ikq_formats::{Layout, QuantType, check_matrix, interleave_group, layout, row_bytes};
use ikq_simd::{IsaKind, Scalar, run};

use crate::coder::Coder;
use crate::descent::{Descend, InUnit, Unit};
use crate::form::float;
use crate::integers::{Integers, MoveUnit, Round, TimesWhole};
use crate::passes::{Errors, Gains, LANES, Lane, Move, OfUnit, Settle};
use crate::rounds::{Again, ROUNDS};
use crate::types::{Columns, ForType, for_type};

/// Rows that are encoded together, so that each part of the factors is read once for all of them.
const ROWS: usize = 64;

/// Encodes rows with error feedback. A row has as many floats as the factors have columns; shapes are otherwise
/// those of [`ikq_encode::encode_rows`]. Rows whose adjusted weights would leave the range of floats are encoded
/// without feedback, with the column weights `importance`. Where rows are aimed, they are given as [`Factors::aimed`]
/// has them.
///
/// # Errors
/// As [`ikq_encode::encode_rows`]; [`Error::NoEncoder`] for types without feedback ([`crate::has_feedback`]).
pub fn encode_rows(
    kind: IsaKind,
    ty: QuantType,
    x: &[f32],
    importance: Option<&[f32]>,
    options: EncodeOptions,
    factors: &Factors,
    out: &mut [u8],
) -> Result<(), Error> {
    let n_per_row = factors.k();
    let n_rows = x.len().checked_div(n_per_row).unwrap_or(0);
    if n_rows * n_per_row != x.len() {
        return Err(Error::PartRow { n_elements: x.len(), n_per_row });
    }
    check_matrix(ty, n_rows, n_per_row, out.len())?;
    if let Some(at) = x.iter().position(|v| !v.is_finite()) {
        return Err(Error::NotFinite { row: at / n_per_row, column: at % n_per_row, value: x[at] });
    }
    let plain = ty.info().base.unwrap_or(ty);
    let row_size = row_bytes(plain, n_per_row)?;
    let group = ty.info().rows;
    let work = |x: &[f32], out: &mut [u8]| {
        let rows = Rows { kind, x, n_per_row, importance, options, factors, out };
        for_type(plain, rows).unwrap_or(Err(Error::NoEncoder { ty }))
    };
    if group == 1 {
        return work(x, out);
    }
    let mut rows = vec![0; n_rows * row_size];
    work(x, &mut rows)?;
    for (rows, out) in rows.chunks_exact(group * row_size).zip(out.chunks_exact_mut(group * row_size)) {
        interleave_group(ty, rows, n_per_row, out)?;
    }
    Ok(())
}

/// Bytes of working memory that [`encode_rows`] takes for rows of `n_per_row` floats; `in_rounds`: with factors that
/// have the whole covariance.
pub fn working_bytes(n_per_row: usize, in_rounds: bool) -> usize {
    // floats and errors of the rows that are encoded together, and what they decode to; their adjusted blocks, and the
    // numbers of blocks
    let columns = if in_rounds { 3 } else { 2 };
    ROWS * (columns * 4 * n_per_row + 5 * 4 * 512) + Integers::bytes(ROWS, n_per_row)
}

/// Up to so many bits per weight, scales that the feedback's own are next to are searched with fewer trials.
const MOST_BITS: usize = 5;

/// Rows that have all codes.
struct Done<'a> {
    layout: &'a Layout,
    /// The rows, and what their codes decode to.
    x: &'a [Lane],
    decoded: &'a mut [Lane],
    /// The float scale of each row, where the type has one.
    of_rows: &'a [f32],
}

struct Rows<'a> {
    kind: IsaKind,
    x: &'a [f32],
    n_per_row: usize,
    importance: Option<&'a [f32]>,
    options: EncodeOptions,
    factors: &'a Factors,
    out: &'a mut [u8],
}

impl ForType for Rows<'_> {
    type Output = Result<(), Error>;

    fn run<T: Columns>(mut self) -> Result<(), Error> {
        let layout = layout(T::TYPE).expect("these types have layouts");
        let (n, row_size) = (self.n_per_row, row_bytes(T::TYPE, self.n_per_row)?);
        let out = std::mem::take(&mut self.out);
        for (x, out) in self.x.chunks(ROWS * n).zip(out.chunks_mut(ROWS * row_size)) {
            self.chunk::<T>(layout, x, out)?;
        }
        Ok(())
    }
}

impl Rows<'_> {
    /// Encodes up to [`ROWS`] rows as the plain (not interleaved) type `T`.
    fn chunk<T: Columns>(&self, layout: &Layout, x: &[f32], out: &mut [u8]) -> Result<(), Error> {
        let Rows { kind, n_per_row: k, options, factors, .. } = *self;
        // codes are chosen with scales of the least error; the gain is undone afterwards
        let (n_rows, n, n_values) = (x.len() / k, layout.block_size, layout.n_values());
        // with more levels, a scale that is a little better counts for more
        let scales_only = 8 * layout.bytes <= MOST_BITS * n;
        let fitted = EncodeOptions { biased: true, scales_only, ..options };
        let (row_size, header) = (row_bytes(T::TYPE, k)?, T::TYPE.info().row_header_bytes);
        let n_groups = n_rows.div_ceil(LANES);
        let places = T::FORM.places(layout);
        let mut lanes = vec![[0.0; LANES]; n_groups * k];
        for (row, x) in x.chunks_exact(k).enumerate() {
            let group = &mut lanes[row / LANES * k..][..k];
            group.iter_mut().zip(x).for_each(|(lane, x)| lane[row % LANES] = *x);
        }
        if header > 0 {
            // the float scale of a row is chosen for the row without adjustments
            ikq_encode::encode_rows(kind, T::TYPE, x, k, Some(&factors.weights), fitted, out)?;
        }
        let of_rows: Vec<f32> = out.chunks_exact(row_size).map(|row| of_row(&row[..header])).collect();
        let mut errors = vec![[0.0; LANES]; n_groups * k];
        let mut integers = Integers::new(n_groups, k);
        let unit = UNIT.min(k);
        // columns of a unit adjusted for earlier units, those of a block adjusted for earlier blocks of the unit too,
        // and what codes of the unit decode to
        let mut of_unit = vec![[0.0; LANES]; n_groups * unit];
        let mut moved = vec![[0.0; LANES]; n_groups * n];
        let mut decoded = vec![[0.0; LANES]; n_groups * unit];
        let mut all_decoded = vec![[0.0; LANES]; if factors.whole.is_some() { n_groups * k } else { 0 }];
        let mut values = vec![0; unit / n * n_rows * n_values];
        let mut fits = vec![true; n_rows];
        let mut floats = vec![0.0; n_rows * n];
        let mut bytes = vec![0; n_rows * layout.bytes];
        let at = |row: usize, column: usize| row * row_size + header + column / n * layout.bytes;
        for start in (0..k).step_by(UNIT) {
            let width = UNIT.min(k - start);
            let of_unit = &mut of_unit[..n_groups * width];
            let decoded = &mut decoded[..n_groups * width];
            let values = &mut values[..width / n * n_rows * n_values];
            let op = MoveUnit { x: &lanes, errors: &integers, factors, first: start, out: of_unit, n: width };
            run(kind, op);
            let mut unit = OfUnit {
                factors,
                options,
                first: start,
                n: width,
                block: n,
                moved: of_unit,
                decoded,
                errors: &mut errors,
                values,
                n_values,
                n_rows,
                places,
                of_rows: &of_rows,
                of_type: PhantomData::<T>,
            };
            for (block, in_unit) in (0..width).step_by(n).enumerate() {
                let first = start + in_unit;
                let op = Move {
                    x: unit.moved,
                    width,
                    at: in_unit,
                    errors: unit.errors,
                    factors,
                    first: start,
                    out: &mut moved,
                    n,
                };
                run(kind, op);
                for (row, floats) in floats.chunks_exact_mut(n).enumerate() {
                    let lane = row % LANES;
                    let moved = &mut moved[row / LANES * n..][..n];
                    floats.iter_mut().zip(&*moved).for_each(|(x, m)| *x = m[lane]);
                    if !floats.iter().all(|x| x.is_finite()) {
                        fits[row] = false;
                        floats.fill(0.0);
                        moved.iter_mut().for_each(|m| m[lane] = 0.0);
                    }
                }
                if header == 0 {
                    let weights = Some(&factors.weights[first..first + n]);
                    ikq_encode::encode_rows(kind, T::TYPE, &floats, n, weights, fitted, &mut bytes)?;
                }
                let values = &mut unit.values[block * n_rows * n_values..][..n_rows * n_values];
                for (row, values) in values.chunks_exact_mut(n_values).enumerate() {
                    let bytes = match header {
                        0 => &bytes[row * layout.bytes..],
                        _ => &out[at(row, first)..],
                    };
                    layout.unpack(&bytes[..layout.bytes], values);
                }
                run(kind, Settle { unit: &mut unit, moved: &moved, at: in_unit });
            }
            run(kind, Descend(&mut unit));
            let (errors, values) = (&*unit.errors, &*unit.values);
            for (all, decoded) in all_decoded.chunks_exact_mut(k).zip(unit.decoded.chunks_exact(width)) {
                all[start..start + width].copy_from_slice(decoded);
            }
            if start + width < k {
                run(kind, Round { x: errors, k, unit: start / UNIT, out: &mut integers });
            }
            let blocks = (start..start + width).step_by(n).zip(values.chunks_exact(n_rows * n_values));
            for (first, values) in blocks {
                for (row, values) in values.chunks_exact(n_values).enumerate() {
                    layout.pack(values, &mut out[at(row, first)..][..layout.bytes]);
                }
            }
        }
        if let Some(whole) = &factors.whole {
            let rows = Done { layout, x: &lanes, decoded: &mut all_decoded, of_rows: &of_rows };
            self.go_round::<T>(whole, rows, &mut errors, &mut integers, out);
        }
        if undoes_bias(T::TYPE) && !options.biased {
            // errors as integers are not needed any more
            for unit in 0..k.div_ceil(UNIT) {
                run(kind, Round { x: &lanes, k, unit, out: &mut integers });
            }
            self.undo_gains::<T>(layout, &integers, &errors, out);
        }
        for ((x, out), _) in x.chunks(k).zip(out.chunks_mut(row_size)).zip(&fits).filter(|(_, fits)| !**fits)
        {
            ikq_encode::encode_rows(kind, T::TYPE, x, k, self.importance, options, out)?;
        }
        Ok(())
    }

    /// Chooses codes and scales of rows that are done again, and their errors; the integers are used up.
    fn go_round<T: Columns>(
        &self,
        whole: &Whole,
        rows: Done<'_>,
        errors: &mut [Lane],
        integers: &mut Integers,
        out: &mut [u8],
    ) {
        let Rows { kind, n_per_row: k, options, factors, .. } = *self;
        let Done { layout, x, decoded, of_rows } = rows;
        let (n, n_values, n_rows, n_groups) =
            (layout.block_size, layout.n_values(), of_rows.len(), x.len() / k);
        let header = T::TYPE.info().row_header_bytes;
        let row_size = out.len() / n_rows;
        let at = |row: usize, column: usize| row * row_size + header + column / n * layout.bytes;
        // errors are not needed any more
        for ((d, y), x) in errors.iter_mut().zip(&*decoded).zip(x) {
            *d = std::array::from_fn(|lane| y[lane] - x[lane]);
        }
        for unit in 0..k.div_ceil(UNIT) {
            run(kind, Round { x: errors, k, unit, out: integers });
        }
        let replaces = T::coder(Scalar, options).replaces();
        let descend: &dyn Fn(Unit<'_>) =
            &|unit| run(kind, InUnit { options, unit, of_type: PhantomData::<T> });
        let width = UNIT.min(k);
        let mut gradients = vec![[0.0; LANES]; n_groups * width];
        let mut values = vec![0; width / n * n_rows * n_values];
        for _ in 0..ROUNDS {
            let mut any = false;
            for first in (0..k).step_by(UNIT) {
                let width = UNIT.min(k - first);
                let gradients = &mut gradients[..n_groups * width];
                run(kind, TimesWhole { minus: integers, whole, first, out: gradients, n: width });
                let values = &mut values[..width / n * n_rows * n_values];
                let blocks = (first..first + width).step_by(n);
                for (column, values) in blocks.clone().zip(values.chunks_exact_mut(n_rows * n_values)) {
                    for (row, values) in values.chunks_exact_mut(n_values).enumerate() {
                        layout.unpack(&out[at(row, column)..][..layout.bytes], values);
                    }
                }
                let again = Again {
                    whole,
                    form: T::FORM,
                    descent: replaces.map(|replaces| (descend, replaces)),
                    first,
                    n: width,
                    block: n,
                    gradients,
                    x,
                    decoded,
                    differences: errors,
                    values,
                    n_values,
                    n_rows,
                    places: T::FORM.places(layout),
                    of_rows,
                };
                if !run(kind, again) {
                    continue;
                }
                any = true;
                run(kind, Round { x: errors, k, unit: first / UNIT, out: integers });
                for (column, values) in blocks.zip(values.chunks_exact(n_rows * n_values)) {
                    for (row, values) in values.chunks_exact(n_values).enumerate() {
                        layout.pack(values, &mut out[at(row, column)..][..layout.bytes]);
                    }
                }
            }
            if !any {
                break;
            }
        }
        run(kind, Errors { differences: integers, factors, errors });
    }

    /// Divides the float scales of each row by its gain.
    fn undo_gains<T: Columns>(&self, layout: &Layout, x: &Integers, errors: &[Lane], out: &mut [u8]) {
        let (k, factors) = (self.n_per_row, self.factors);
        let mut gains = vec![([0.0; LANES], [0.0; LANES]); errors.len() / k];
        run(self.kind, Gains { x, errors, factors, out: &mut gains });
        let places = T::FORM.places(layout);
        let header = T::TYPE.info().row_header_bytes;
        let row_size = header + k / layout.block_size * layout.bytes;
        let mut values = vec![0; layout.n_values()];
        for (row, out) in out.chunks_exact_mut(row_size).enumerate() {
            let (xy, xx) = &gains[row / LANES];
            let factor = factor(xy[row % LANES], xx[row % LANES]);
            if factor == 1.0 {
                continue;
            }
            let (head, blocks) = out.split_at_mut(header);
            scale_row(head, factor);
            if header == 0 {
                for block in blocks.chunks_exact_mut(layout.bytes) {
                    layout.unpack(block, &mut values);
                    T::FORM.scale_by(&mut values, places, factor);
                    layout.pack(&values, block);
                }
            }
        }
    }
}

/// The factor on a row's scales that undoes a gain of `xy / xx`; 1 where the gain is below a half or above 2, because the
/// codes are then no approximation of the row.
fn factor(xy: f32, xx: f32) -> f32 {
    let factor = xx / xy;
    if xx.is_finite() && (0.5..=2.0).contains(&factor) { factor } else { 1.0 }
}

/// The float scale in the header of a row, an f16 or an f32; 0 for a row without header.
pub(crate) fn of_row(header: &[u8]) -> f32 {
    match *header {
        [a, b] => float(u32::from(u16::from_le_bytes([a, b]))),
        [a, b, c, d] => f32::from_le_bytes([a, b, c, d]),
        _ => 0.0,
    }
}

fn scale_row(header: &mut [u8], factor: f32) {
    let scaled = of_row(header) * factor;
    match header.len() {
        2 => header.copy_from_slice(&(crate::form::half(scaled) as u16).to_le_bytes()),
        4 if scaled.is_finite() => header.copy_from_slice(&scaled.to_le_bytes()),
        _ => {}
    }
}
