//! The functions that work on whole matrices in memory: dequantize, quantize and repack. Arrays are flat and
//! contiguous here; `python/ikq` gives them their shapes.

use ikq_encode::{EncodeOptions, can_encode, encode_rows};
use ikq_formats::{Family, QuantType, check_matrix, matrix_bytes};
use ikq_pool::Stop;
use ikq_quantize::range::{Outside, out_of_range, range};
use numpy::{PyArray1, PyReadonlyArray1};
use pyo3::prelude::*;

use crate::enter::enter;
use crate::errors::{FormatError, Raise, RefusedError, ShapeError};
use crate::simd::isa;
use crate::threads::pool;
use crate::types::quant_type;

/// The number of elements that a thread decodes or repacks at a time. This is large enough that handing out the
/// work costs little, and small enough that the elements fit into a cache.
const FAST_UNIT: usize = 1 << 16;
/// The number of elements that a thread encodes at a time. It is smaller because encoding one element takes tens to
/// thousands of nanoseconds.
const SLOW_UNIT: usize = 1 << 13;
/// A multiple of the rows per group of every interleaved type.
const MAX_GROUP: usize = 16;

/// The number of rows, in whole groups, that have about `n_elements` elements together.
fn unit_rows(n_elements: usize, n_per_row: usize) -> usize {
    (n_elements / n_per_row.max(1)).next_multiple_of(MAX_GROUP).max(MAX_GROUP)
}

#[pyfunction]
#[pyo3(signature = (data, ty, n_rows, n_per_row, n_threads, isa_name))]
pub fn dequantize<'py>(
    py: Python<'py>,
    data: PyReadonlyArray1<'py, u8>,
    ty: u32,
    n_rows: usize,
    n_per_row: usize,
    n_threads: Option<usize>,
    isa_name: Option<&str>,
) -> PyResult<Bound<'py, PyArray1<f32>>> {
    let (ty, kind, data) = (quant_type(ty)?, isa(isa_name)?, data.as_slice()?);
    check_matrix(ty, n_rows, n_per_row, data.len()).map_err(|e| e.raise(py))?;
    let n = n_elements(n_rows, n_per_row)?;
    let pool = pool(n_threads)?;
    let out = enter(py, n, |cancel| -> Result<_, Stop<ikq_formats::Error>> {
        let mut out = vec![0.0f32; n];
        if n == 0 {
            return Ok(out);
        }
        let info = ty.info();
        // where a matrix is nothing but blocks one after another, it is treated as a single row, and several
        // threads can share a long row
        let is_one_row = info.row_header_bytes == 0 && info.rows == 1 && info.family != Family::Activation;
        let (rows, n_per_row, row_bytes) = match ty {
            // the only scale stands behind all rows, so the matrix cannot be divided
            QuantType::I2_S => (n_rows, n_per_row, data.len() / n_rows + 1),
            _ if is_one_row => {
                let n_blocks = FAST_UNIT / info.block_size;
                (1, n_blocks * info.block_size, n_blocks * info.block_bytes)
            }
            _ => (unit_rows(FAST_UNIT, n_per_row), n_per_row, data.len() / n_rows),
        };
        let units = data.chunks(rows * row_bytes).zip(out.chunks_mut(rows * n_per_row));
        pool.for_each(units, cancel, |(data, out)| {
            let n_per_row = n_per_row.min(out.len());
            ikq_decode::dequantize(kind, ty, data, out.len() / n_per_row, n_per_row, out)
        })?;
        Ok(out)
    })?;
    Ok(PyArray1::from_vec(py, out))
}

fn n_elements(n_rows: usize, n_per_row: usize) -> PyResult<usize> {
    n_rows
        .checked_mul(n_per_row)
        .filter(|n| *n <= isize::MAX as usize / 4)
        .ok_or_else(|| ShapeError::new_err("more elements than memory can address"))
}

/// An error of the encoder, with the expert and the first row of the part of the matrix that it occurred in.
struct EncodeError {
    expert: Option<usize>,
    first_row: usize,
    /// The error is boxed because the variants about files make the type large.
    error: Box<ikq_encode::Error>,
}

impl Raise for EncodeError {
    fn raise(self, py: Python<'_>) -> PyErr {
        use ikq_encode::Error::*;
        let expert = self.expert.map_or(String::new(), |e| format!("expert {e}, "));
        match *self.error {
            OutOfRange { ty, row, column, value, end } => {
                let row = row + self.first_row;
                RefusedError::new_err(format!("{expert}{}", OutOfRange { ty, row, column, value, end }))
            }
            NotFinite { row, column, value } => {
                let row = row + self.first_row;
                FormatError::new_err(format!("{expert}{}", NotFinite { row, column, value }))
            }
            e @ Importance { .. } => FormatError::new_err(format!("{expert}{e}")),
            e => e.raise(py),
        }
    }
}

/// Quantizes `n_experts` matrices that follow one another in `x`. `importance` has one weight per column, either
/// for all experts together or for each expert.
#[pyfunction]
#[pyo3(signature = (x, ty, n_experts, n_rows, n_per_row, importance, biased, clamp, n_threads, isa_name))]
#[expect(clippy::too_many_arguments, reason = "a flat view of an array: three extents, and what to do")]
pub fn quantize<'py>(
    py: Python<'py>,
    x: PyReadonlyArray1<'py, f32>,
    ty: u32,
    n_experts: Option<usize>,
    n_rows: usize,
    n_per_row: usize,
    importance: Option<PyReadonlyArray1<'py, f32>>,
    biased: bool,
    clamp: bool,
    n_threads: Option<usize>,
    isa_name: Option<&str>,
) -> PyResult<Bound<'py, PyArray1<u8>>> {
    let (ty, kind, x) = (quant_type(ty)?, isa(isa_name)?, x.as_slice()?);
    if !can_encode(ty) {
        return Err(ikq_encode::Error::NoEncoder { ty }.raise(py));
    }
    let importance = importance.as_ref().map(|v| v.as_slice()).transpose()?;
    let of_expert = |e: usize| match importance {
        Some(v) if v.len() > n_per_row => v.get(e * n_per_row..(e + 1) * n_per_row),
        other => other,
    };
    let count = n_experts.unwrap_or(1);
    if n_elements(n_rows, n_per_row)?.checked_mul(count) != Some(x.len()) {
        return Err(ShapeError::new_err("the data has another number of elements than its shape"));
    }
    let matrix_bytes = matrix_bytes(ty, n_rows, n_per_row).map_err(|e| e.raise(py))?;
    let pool = pool(n_threads)?;
    let out = enter(py, 8 * x.len(), |cancel| -> Result<_, Stop<EncodeError>> {
        let mut out = vec![0u8; matrix_bytes * count];
        if x.is_empty() {
            return Ok(out);
        }
        // an I2_S matrix has one scale behind all its rows and cannot be divided
        let is_one_unit = ty == QuantType::I2_S;
        let rows = if is_one_unit { n_rows } else { unit_rows(SLOW_UNIT, n_per_row) };
        let unit_bytes = if is_one_unit { matrix_bytes } else { rows * (matrix_bytes / n_rows) };
        let matrices = x.chunks(n_rows * n_per_row).zip(out.chunks_mut(matrix_bytes)).enumerate();
        let options = EncodeOptions { biased, ..EncodeOptions::default() };
        let units = matrices.flat_map(|(e, (x, out))| {
            let units = x.chunks(rows * n_per_row).zip(out.chunks_mut(unit_bytes)).enumerate();
            units.map(move |(i, (x, out))| (e, i * rows, x, out))
        });
        pool.for_each(units, cancel, |(e, first_row, x, out)| {
            let failed =
                |error| EncodeError { expert: n_experts.map(|_| e), first_row, error: Box::new(error) };
            if let (false, Some(Outside { at, value, end })) = (clamp, out_of_range(ty, x)) {
                let (row, column) = (at / n_per_row, at % n_per_row);
                return Err(failed(ikq_encode::Error::OutOfRange { ty, row, column, value, end }));
            }
            encode_rows(kind, ty, x, n_per_row, of_expert(e), options, out).map_err(failed)
        })?;
        Ok(out)
    })?;
    Ok(PyArray1::from_vec(py, out))
}

/// The smallest and the largest number that a type can represent (infinite where it can represent every f32), and
/// the magnitude below which a whole block becomes zeros.
#[pyfunction]
pub fn type_range(ty: u32) -> PyResult<(f32, f32, f32)> {
    let found = range(quant_type(ty)?);
    Ok((found.least, found.most, found.floor))
}

#[pyfunction]
pub fn repack<'py>(
    py: Python<'py>,
    data: PyReadonlyArray1<'py, u8>,
    from_type: u32,
    to_type: u32,
    n_rows: usize,
    n_per_row: usize,
) -> PyResult<Bound<'py, PyArray1<u8>>> {
    let (from, to, data) = (quant_type(from_type)?, quant_type(to_type)?, data.as_slice()?);
    check_matrix(from, n_rows, n_per_row, data.len()).map_err(|e| e.raise(py))?;
    let size = matrix_bytes(to, n_rows, n_per_row).map_err(|e| e.raise(py))?;
    let pool = pool(None)?;
    let out = enter(py, data.len(), |cancel| -> Result<_, Stop<ikq_formats::Error>> {
        if data.is_empty() || size == 0 || from == to {
            return Ok(ikq_formats::repack(data, from, to, n_rows, n_per_row)?);
        }
        let rows = unit_rows(FAST_UNIT, n_per_row);
        let mut out = vec![0u8; size];
        let units = data.chunks(rows * (data.len() / n_rows)).zip(out.chunks_mut(rows * (size / n_rows)));
        pool.for_each(units.enumerate(), cancel, |(i, (data, out))| {
            let rows = rows.min(n_rows - i * rows);
            out.copy_from_slice(&ikq_formats::repack(data, from, to, rows, n_per_row)?);
            Ok(())
        })?;
        Ok(out)
    })?;
    Ok(PyArray1::from_vec(py, out))
}
