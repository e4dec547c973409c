//! Products of a block of a matrix's rows with columns of activations, for any type.
//!
//! | columns | path |
//! |---|---|
//! | 1, block type | [`row`]: codes decoded into registers, products of integers |
//! | more, block type | [`panel`]: sixteen rows decoded once, then [`tile`] over all columns |
//! | any, float type or [`Compute::F32`] | [`float`]: rows as floats |
//!
//! Interleaved types are taken apart into rows first. No body names a type; [`kernels`] makes them for all.

use std::ops::Range;

use ikq_formats::row::I2_S_TRAILER_BYTES;
use ikq_formats::{Error, QuantType, check_matrix, deinterleave_group, matrix_bytes};
use ikq_simd::IsaKind;

use crate::act::Activations;
use crate::aligned::Aligned;

pub mod check;
mod float;
mod kernels;
mod panel;
mod row;
mod stored;
mod tile;

pub use check::{kernel_name, self_test};
use kernels::Bodies;
use panel::{BAND, Panel};
use stored::Rows;
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

/// A matrix of weights as it is stored.
#[derive(Clone, Copy)]
pub struct Matrix<'a> {
    ty: QuantType,
    n_rows: usize,
    k: usize,
    data: &'a [u8],
    /// The scale of the whole tensor (I2_S), else 1.
    scale: f32,
}

impl<'a> Matrix<'a> {
    /// A matrix of `n_rows` rows of `k` elements; interleaved types: whole groups.
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
        Ok(Matrix { ty, n_rows, k, data, scale })
    }

    /// A matrix whose shape was checked before: `data` without a trailer, `scale` the tensor's (I2_S; else 1).
    pub fn of_rows(ty: QuantType, n_rows: usize, k: usize, data: &'a [u8], scale: f32) -> Matrix<'a> {
        Matrix { ty, n_rows, k, data, scale }
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

    /// Rows that can only be read together (1 but for interleaved types).
    pub fn row_step(&self) -> usize {
        self.ty.info().rows
    }

    /// The bytes, without a trailer.
    pub fn data(&self) -> &'a [u8] {
        self.data
    }

    /// Rows `rows` (a multiple of [`Matrix::row_step`] each) as a matrix of their own.
    pub fn rows(&self, rows: Range<usize>) -> Matrix<'a> {
        let per_step = self.data.len() / (self.n_rows / self.row_step()).max(1);
        let step = |row: usize| row / self.row_step() * per_step;
        Matrix { n_rows: rows.len(), data: &self.data[step(rows.start)..step(rows.end)], ..*self }
    }

    /// What [`multiply`] reads.
    pub fn input(&self, compute: Compute) -> Input {
        input(self.ty, compute)
    }
}

/// What products with a type read.
pub fn input(ty: QuantType, compute: Compute) -> Input {
    match compute {
        Compute::Auto if ikq_decode::facts(ty).is_some() => Input::Q8,
        _ => Input::Floats,
    }
}

/// Memory that a thread's products reuse.
#[derive(Default)]
pub struct Scratch {
    /// Decoded rows.
    floats: Aligned,
    /// Rows of interleaved groups.
    rows: Vec<u8>,
    panel: Panel,
    /// Products of a band that the output has no room for.
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
    let Scratch { floats, rows, panel, spill } = scratch;
    let bodies = match input(part.ty, compute) {
        Input::Q8 => kernels::bodies(part.ty),
        Input::Floats => None,
    };
    let Some(bodies) = bodies else {
        return float_products(kind, &part, acts, columns, floats, rows, out);
    };
    let rows = rows_of(&part, rows);
    match columns {
        [column] => (bodies.rows)(kind, &rows, acts.units(*column as usize), out),
        _ => panel_products(kind, &bodies, &rows, acts, columns, panel, spill, out),
    }
}

/// Units of a row that a panel holds: with two bands 32 KiB of codes. Shorter panels would stay in the nearest
/// cache, but columns are read faster in long runs; longer ones push the columns out of the next cache.
const PANEL_UNITS: usize = 4;

#[expect(clippy::too_many_arguments, reason = "the operands of a product and its memory")]
fn panel_products(
    kind: IsaKind,
    bodies: &Bodies,
    rows: &Rows<'_>,
    acts: &Activations,
    columns: &[u32],
    panel: &mut Panel,
    spill: &mut Vec<f32>,
    out: &mut [f32],
) {
    let n_rows = rows.n();
    let n_units = panel::n_units(acts.k());
    let max_bands = tile::max_bands(kind);
    panel.reserve(PANEL_UNITS, max_bands);
    // rows of a band that is not full have no place in the output
    let n_whole = n_rows / BAND * BAND;
    if n_whole < n_rows {
        spill.resize(spill.len().max(BAND * columns.len()), 0.0);
    }
    // part after part of the columns, so that a part stays in a near cache for all rows
    for first_unit in (0..n_units).step_by(PANEL_UNITS) {
        let units = first_unit..n_units.min(first_unit + PANEL_UNITS);
        let mut first = 0;
        while first < n_rows {
            let n_bands = ((n_rows - first) / BAND).clamp(1, max_bands);
            for band in 0..n_bands {
                let start = first + band * BAND;
                let part = rows.part(start..n_rows.min(start + BAND));
                (bodies.fill)(kind, &part, units.clone(), panel, (band, n_bands));
            }
            let (out, stride) = match first < n_whole {
                true => (&mut out[first..], n_rows),
                false => (&mut spill[..], BAND),
            };
            let tile = Tile {
                panel,
                n_bands,
                per_16: panel::per_16(bodies.facts.sub_block, bodies.facts.n_float_scales),
                has_min: bodies.facts.has_min,
                acts,
                columns,
                units: units.clone(),
                out,
                stride,
                add: first_unit > 0,
            };
            tile::multiply(kind, tile);
            first += n_bands * BAND;
        }
    }
    if n_whole < n_rows {
        for (spill, out) in spill.chunks_exact(BAND).zip(out.chunks_exact_mut(n_rows)) {
            out[n_whole..].copy_from_slice(&spill[..n_rows - n_whole]);
        }
    }
}

/// The rows of a matrix of a block type; those of groups are taken apart in `memory`.
fn rows_of<'a>(part: &Matrix<'a>, memory: &'a mut Vec<u8>) -> Rows<'a> {
    let data = if part.row_step() > 1 { take_apart(part, memory) } else { part.data };
    let header = (part.ty == QuantType::I2_S).then_some(part.scale);
    Rows { data, stride: data.len() / part.n_rows, header }
}

/// The rows of an interleaved matrix, one after another.
fn take_apart<'a>(part: &Matrix<'_>, rows: &'a mut Vec<u8>) -> &'a [u8] {
    rows.resize(rows.len().max(part.data.len()), 0);
    let rows = &mut rows[..part.data.len()];
    let group = part.data.len() / (part.n_rows / part.row_step());
    for (data, rows) in part.data.chunks_exact(group).zip(rows.chunks_exact_mut(group)) {
        deinterleave_group(part.ty, data, part.k, rows).expect("the shape was checked");
    }
    rows
}

/// Products in floats.
fn float_products(
    kind: IsaKind,
    part: &Matrix<'_>,
    acts: &Activations,
    columns: &[u32],
    floats: &mut Aligned,
    rows: &mut Vec<u8>,
    out: &mut [f32],
) {
    // decoding takes groups apart by itself; only rows that are read as they are need it here
    let (ty, data) = match part.ty.info().base {
        Some(QuantType::BF16) => (QuantType::BF16, take_apart(part, rows)),
        _ => (part.ty, part.data),
    };
    if let [column] = columns
        && float::rows(kind, ty, data, acts.floats(*column as usize), out)
    {
        return;
    }
    let (k, n_rows) = (part.k, part.n_rows);
    // whole groups of interleaved types
    let block = float::BLOCK_ROWS.next_multiple_of(ty.info().rows);
    floats.reserve(block * k);
    let floats = floats.get_mut();
    let per_row = data.len() / n_rows;
    for first in (0..n_rows).step_by(block) {
        let n = block.min(n_rows - first);
        let (data, floats) = (&data[first * per_row..(first + n) * per_row], &mut floats[..n * k]);
        if ty == QuantType::I2_S {
            ikq_decode::dequantize_i2_s(kind, data, part.scale, floats);
        } else {
            ikq_decode::dequantize(kind, ty, data, n, k, floats).expect("the shape was checked");
        }
        float::multiply(kind, floats, acts, columns, &mut out[first..], n_rows);
    }
}

/// Bytes of a matrix, for who cuts experts out of a stack.
///
/// # Errors
/// As [`matrix_bytes`].
pub fn bytes_of(ty: QuantType, n_rows: usize, k: usize) -> Result<usize, Error> {
    matrix_bytes(ty, n_rows, k)
}
