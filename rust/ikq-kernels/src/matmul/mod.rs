//! Products of a block of a matrix's rows with columns of activations, for any type.
//!
//! Kernels read bands of sixteen rows side by side, the device form (`ikq_formats::lanes`), which [`pack`] makes of
//! rows as they stand in files. A matrix in file form is packed into scratch, some bands at a time, whenever it is
//! used.
//!
//! | columns | path |
//! |---|---|
//! | few, block type | [`direct`]: codes through registers into the dot instruction |
//! | more, block type | [`panel`]: a band decoded once, then [`tile`] over all columns |
//! | any, float type or [`Compute::F32`] | [`float`]: rows as floats |
//!
//! All of them give the same bits for a row and a column whatever other rows and columns they are computed with. No
//! body names a type; [`kernels`] makes them for all.

use std::ops::Range;

use ikq_decode::{DecodeFacts, Decoding, LaneCodes};
use ikq_formats::row::I2_S_TRAILER_BYTES;
use ikq_formats::{Error, QuantType, check_matrix, matrix_bytes};
use ikq_simd::IsaKind;

use crate::act::Activations;
use crate::aligned::Aligned;

mod bands;
pub mod check;
mod direct;
mod float;
mod integer_tile;
mod integers;
mod kernels;
mod pack;
mod panel;
pub mod speed;
mod tile;

use bands::{BAND, Bands, Product};
pub use check::{kernel_name, self_test};
use float::Lines;
use kernels::Bodies;
pub use pack::{lane_bytes, pack, unpack};
use panel::Panel;
use tile::Tile;

/// How products are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compute {
    /// The fastest that keeps the type's accuracy: 8-bit activations for block types, floats for float types.
    Auto,
    /// Float32 products of the decoded weights.
    F32,
}

/// The form of activations that a product reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    Floats,
    Q8,
}

/// How the weights of a matrix stand in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// Rows (or interleaved groups) as in a file.
    File,
    /// Bands of sixteen rows.
    Lanes,
}

/// A matrix of weights.
#[derive(Clone, Copy)]
pub struct Matrix<'a> {
    ty: QuantType,
    n_rows: usize,
    k: usize,
    data: &'a [u8],
    /// The scale of the whole tensor (I2_S), else 1.
    scale: f32,
    form: Form,
}

impl<'a> Matrix<'a> {
    /// A matrix of `n_rows` rows of `k` elements as it stands in a file; interleaved types: whole groups.
    ///
    /// # Errors
    /// As [`check_matrix`].
    pub fn new(ty: QuantType, n_rows: usize, k: usize, data: &'a [u8]) -> Result<Matrix<'a>, Error> {
        check_matrix(ty, n_rows, k, data.len())?;
        let (data, scale) = match ty {
            QuantType::I2_S => {
                let (codes, trailer) = data.split_at(data.len() - I2_S_TRAILER_BYTES);
                let bits = trailer.first_chunk().map_or(0, |b| u32::from_le_bytes(*b));
                (codes, f32::from_bits(bits))
            }
            _ => (data, 1.0),
        };
        Ok(Matrix { ty, n_rows, k, data, scale, form: Form::File })
    }

    /// A matrix in file form whose shape was checked before: `data` without a trailer, `scale` the tensor's (I2_S;
    /// else 1).
    pub fn of_rows(ty: QuantType, n_rows: usize, k: usize, data: &'a [u8], scale: f32) -> Matrix<'a> {
        Matrix { ty, n_rows, k, data, scale, form: Form::File }
    }

    /// A matrix in the device form that [`pack`] made; `scale` is the tensor's (I2_S; else 1). Products are fastest
    /// where `data` starts a cache line.
    ///
    /// # Errors
    /// As [`lane_bytes`]; [`Error::ByteCount`].
    pub fn lanes(
        ty: QuantType,
        n_rows: usize,
        k: usize,
        data: &'a [u8],
        scale: f32,
    ) -> Result<Matrix<'a>, Error> {
        let expected = lane_bytes(ty, n_rows, k)?;
        match data.len() == expected {
            true => Ok(Matrix { ty, n_rows, k, data, scale, form: Form::Lanes }),
            false => Err(Error::ByteCount { ty, n_rows, n_per_row: k, expected, found: data.len() }),
        }
    }

    /// The scale of the whole tensor (I2_S), else 1.
    pub fn scale(&self) -> f32 {
        self.scale
    }

    pub fn ty(&self) -> QuantType {
        self.ty
    }

    pub fn n_rows(&self) -> usize {
        self.n_rows
    }

    pub fn k(&self) -> usize {
        self.k
    }

    /// Rows that can only be read together: those of a band in the device form, those of a group in a file.
    pub fn row_step(&self) -> usize {
        match self.form {
            Form::File => self.ty.info().rows,
            Form::Lanes => BAND,
        }
    }

    /// The bytes, without a trailer.
    pub fn data(&self) -> &'a [u8] {
        self.data
    }

    /// Rows `rows` as a matrix of their own. Both ends are multiples of [`Matrix::row_step`], or the last row.
    ///
    /// # Panics
    /// When the range lies outside the matrix.
    pub fn rows(&self, rows: Range<usize>) -> Matrix<'a> {
        let step = self.row_step();
        assert!(rows.start.is_multiple_of(step), "rows {rows:?} start inside a step of {step}");
        assert!(rows.end.is_multiple_of(step) || rows.end == self.n_rows, "rows {rows:?} end inside");
        let per_step = self.data.len() / self.n_rows.div_ceil(step).max(1);
        let data = &self.data[rows.start / step * per_step..rows.end.div_ceil(step) * per_step];
        Matrix { n_rows: rows.len(), data, ..*self }
    }

    /// The form of activations that products with this matrix read.
    pub fn input(&self, compute: Compute) -> Input {
        input(self.ty, compute)
    }
}

/// The form of activations that products with this type read.
pub fn input(ty: QuantType, compute: Compute) -> Input {
    match compute {
        Compute::Auto if ikq_decode::facts(ty).is_some() => Input::Q8,
        _ => Input::Floats,
    }
}

/// Memory that a thread's products reuse.
#[derive(Default)]
pub struct Scratch {
    /// Bands that were packed from a matrix in file form.
    bands: Aligned<u8>,
    /// A band decoded to floats.
    floats: Aligned<u8>,
    panels: Vec<Panel>,
    /// Products with the rows that fill up the last band, for which the output has no place.
    spill: Vec<f32>,
}

/// `out[c * rows.len() + r] = row(rows.start + r) . column(columns[c])`.
///
/// `rows` starts and ends at a multiple of [`Matrix::row_step`]; `columns` are any columns of `acts`, in any
/// order; `acts` must hold the form that [`Matrix::input`] names.
///
/// # Panics
/// When shapes do not fit together.
#[expect(clippy::too_many_arguments, reason = "the operands of a product")]
pub fn multiply(
    kind: IsaKind,
    compute: Compute,
    matrix: &Matrix<'_>,
    rows: Range<usize>,
    acts: &Activations,
    columns: &[u32],
    scratch: &mut Scratch,
    out: &mut [f32],
) {
    let part = matrix.rows(rows);
    assert_eq!(part.k, acts.k(), "row length and column length differ");
    assert_eq!(out.len(), part.n_rows * columns.len(), "wrong length of the output");
    if out.is_empty() || part.k == 0 {
        return out.fill(0.0);
    }
    let form = pack::form(part.ty);
    let header = (part.ty == QuantType::I2_S).then_some(part.scale);
    if part.form == Form::Lanes {
        let ask_ahead = matrix.data.len() > NEAR_BYTES;
        let bands = Bands { data: part.data, n_rows: part.n_rows, k: part.k, form, header, ask_ahead };
        let product = Product { bands: &bands, acts, columns, out, stride: part.n_rows };
        return products(kind, compute, part.ty, product, scratch);
    }
    let n_rows = part.n_rows;
    for first in (0..n_rows).step_by(FILE_ROWS) {
        let part = part.rows(first..n_rows.min(first + FILE_ROWS));
        let mut memory = std::mem::take(&mut scratch.bands);
        let n_bytes = form.matrix_bytes(part.n_rows, part.k);
        memory.reserve(n_bytes);
        pack(kind, part.ty, part.k, part.data, &mut memory.get_mut()[..n_bytes]);
        let data = &memory.get()[..n_bytes];
        // it was just written
        let bands = Bands { data, n_rows: part.n_rows, k: part.k, form, header, ask_ahead: false };
        let product = Product { bands: &bands, acts, columns, out: &mut out[first..], stride: n_rows };
        products(kind, compute, part.ty, product, scratch);
        scratch.bands = memory;
    }
}

/// Matrices that are no larger stay in a near cache from one use to the next, as those of very small models do:
/// asking for their lines would only take time. (An expert of a large model is larger, with one bit per weight, too.)
const NEAR_BYTES: usize = 192 << 10;

/// Rows of a matrix in file form that are packed at a time: whole bands and whole groups.
const FILE_ROWS: usize = 64;

/// Columns that are multiplied without a panel: decoding again for each eight of them (four with sixteen registers)
/// beats reading a panel. Measured for each type on Zen 4 (docs/kernels.md).
fn direct_columns(kind: IsaKind, facts: &DecodeFacts) -> usize {
    match (kind, facts.decoding) {
        (IsaKind::Scalar, _) => usize::MAX,
        (IsaKind::Avx512, Decoding::Light) => 64,
        (IsaKind::Avx512, Decoding::Moderate) => 16,
        (IsaKind::Avx512, Decoding::Heavy) => 8,
        (IsaKind::Avx2, Decoding::Heavy) => 4,
        (IsaKind::Avx2, _) if facts.lane_codes == LaneCodes::Biased => 8,
        (IsaKind::Avx2, _) => 7,
    }
}

/// Computes the product by the path for its type and number of columns.
fn products(kind: IsaKind, compute: Compute, ty: QuantType, product: Product<'_>, scratch: &mut Scratch) {
    let bodies = kernels::bodies(ty);
    match (input(ty, compute), bodies) {
        (Input::Q8, Some(bodies)) if product.columns.len() <= direct_columns(kind, &bodies.facts) => {
            (bodies.direct)(kind, product);
        }
        (Input::Q8, Some(bodies)) => panel_products(kind, &bodies, product, scratch),
        (_, bodies) => float_products(kind, ty, bodies, product, scratch),
    }
}

/// Units of a row that a panel holds: with two bands 32 KiB of codes. Shorter panels would stay in the nearest
/// cache, but columns are read faster in long runs; longer ones push the columns out of the next cache.
const PANEL_UNITS: usize = 4;

/// The same where codes have 16 bits.
const WIDE_UNITS: usize = 2;

/// Bands of which panels are held at a time, so that a part of the columns is multiplied with all of them while it is near.
const PANEL_BANDS: usize = 4;

/// Columns of such a part: of each, up to 2 KiB.
const PANEL_COLUMNS: usize = 128;

/// Computes the product by panels: some units of some bands are decoded once, then multiplied with all columns.
fn panel_products(kind: IsaKind, bodies: &Bodies, product: Product<'_>, scratch: &mut Scratch) {
    let Product { bands, acts, columns, out, stride } = product;
    let Scratch { panels, spill, .. } = scratch;
    let n_units = bands::n_units(bands.k);
    let max_bands = tile::max_bands(kind);
    let panel_units = if tile::reads_wide(kind, &bodies.facts) { WIDE_UNITS } else { PANEL_UNITS };
    // rows of a band that is not full have no place in the output
    let n_whole = bands.n_rows / BAND;
    if n_whole < bands.n() {
        spill.resize(spill.len().max(BAND * columns.len()), 0.0);
    }
    // the bands of each panel
    let mut groups = Vec::new();
    while let first = groups.last().map_or(0, |g: &Range<usize>| g.end)
        && first < bands.n()
    {
        groups.push(first..first + n_whole.saturating_sub(first).clamp(1, max_bands));
    }
    for groups in groups.chunks(PANEL_BANDS / max_bands) {
        panels.resize_with(panels.len().max(groups.len()), Panel::default);
        panels.iter_mut().for_each(|panel| panel.reserve(PANEL_UNITS, max_bands));
        // part after part of the rows' elements, so that a part of the columns stays in a near cache for all rows
        for first_unit in (0..n_units).step_by(panel_units) {
            let units = first_unit..n_units.min(first_unit + panel_units);
            for (panel, group) in panels.iter_mut().zip(groups) {
                for (i, band) in group.clone().enumerate() {
                    (bodies.fill)(kind, bands, band, units.clone(), panel, (i, group.len()));
                }
            }
            for first in (0..columns.len()).step_by(PANEL_COLUMNS) {
                let columns = &columns[first..columns.len().min(first + PANEL_COLUMNS)];
                for (panel, group) in panels.iter().zip(groups) {
                    let (out, stride) = match group.start < n_whole {
                        true => (&mut out[stride * first + BAND * group.start..], stride),
                        false => (&mut spill[BAND * first..], BAND),
                    };
                    let tile = Tile {
                        panel,
                        n_bands: group.len(),
                        facts: &bodies.facts,
                        acts,
                        columns,
                        units: units.clone(),
                        out,
                        stride,
                        add: first_unit > 0,
                        is_end: units.end == n_units,
                    };
                    tile::multiply(kind, tile);
                }
            }
        }
    }
    if n_whole < bands.n() {
        let n = bands.n_rows - n_whole * BAND;
        for (c, spill) in spill.chunks_exact(BAND).take(columns.len()).enumerate() {
            out[c * stride + n_whole * BAND..][..n].copy_from_slice(&spill[..n]);
        }
    }
}

/// Computes the product in floats.
fn float_products(
    kind: IsaKind,
    ty: QuantType,
    bodies: Option<Bodies>,
    product: Product<'_>,
    scratch: &mut Scratch,
) {
    let Product { bands, acts, columns, out, stride } = product;
    let lines = match ty {
        QuantType::F16 => Lines::F16,
        QuantType::BF16 | QuantType::BF16_R16 => Lines::BF16,
        _ => Lines::F32,
    };
    for b in 0..bands.n() {
        let band = bands.band(b);
        let data = match &bodies {
            Some(bodies) => {
                scratch.floats.reserve(64 * bands::n_units(bands.k) * ikq_decode::UNIT);
                (bodies.floats)(kind, bands, b, scratch.floats.get_mut());
                scratch.floats.get()
            }
            None => band.floats(),
        };
        let product = float::Product {
            lines: data,
            n_rows: BAND.min(bands.n_rows - BAND * b),
            acts,
            columns,
            out: &mut out[BAND * b..],
            stride,
        };
        float::multiply(kind, lines, product);
    }
}

/// Bytes of a matrix, for who cuts experts out of a stack.
///
/// # Errors
/// As [`matrix_bytes`].
pub fn bytes_of(ty: QuantType, n_rows: usize, k: usize) -> Result<usize, Error> {
    matrix_bytes(ty, n_rows, k)
}
