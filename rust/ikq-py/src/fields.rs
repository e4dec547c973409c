//! Takes quantized blocks apart into the integers of their fields (codes, scales, ...), and puts them together
//! again. The result is ordered by rows even when the type interleaves rows: the fields of block `b` of row `r` are
//! at `[r, b, ..]`.

use ikq_formats::{Layout, QuantType, check_matrix, layout, matrix_bytes};
use numpy::{PyArray1, PyReadonlyArray1};
use pyo3::prelude::*;

use crate::enter::enter;
use crate::errors::{Raise, UnsupportedError};
use crate::types::quant_type;
use ikq_pool::Stop;

/// How the bytes of a matrix divide into groups of rows, their headers, blocks and a trailer.
struct Frame {
    ty: QuantType,
    layout: &'static Layout,
    /// The number of row groups; a group is a single row unless the type interleaves rows.
    n_groups: usize,
    /// The number of blocks in a row.
    n_blocks: usize,
    header_bytes: usize,
    /// The bytes of a group, including its headers.
    group_bytes: usize,
    /// The number of bytes behind all groups.
    trailer_bytes: usize,
}

impl Frame {
    fn new(ty: QuantType, n_rows: usize, n_per_row: usize) -> Result<Frame, PyErr> {
        let to_py = |e: ikq_formats::Error| Python::attach(|py| e.raise(py));
        let layout = layout(ty).map_err(to_py)?;
        let size = matrix_bytes(ty, n_rows, n_per_row).map_err(to_py)?;
        // an I2_S tensor is one row of all its elements
        let (n_rows, n_per_row, trailer_bytes) = match ty {
            QuantType::I2_S => (1, n_rows * n_per_row, ikq_formats::row::I2_S_TRAILER_BYTES),
            _ => (n_rows, n_per_row, 0),
        };
        if !n_per_row.is_multiple_of(layout.block_size) {
            return Err(UnsupportedError::new_err(format!(
                "{ty:?} rows can be taken apart when their length is a multiple of {}, not at {n_per_row}",
                layout.block_size
            )));
        }
        let n_groups = n_rows / layout.rows;
        Ok(Frame {
            ty,
            layout,
            n_groups,
            n_blocks: n_per_row / layout.block_size,
            header_bytes: ty.info().row_header_bytes,
            group_bytes: (size - trailer_bytes).checked_div(n_groups).unwrap_or(0),
            trailer_bytes,
        })
    }

    /// The number of integers in one row.
    fn row_values(&self) -> usize {
        self.n_blocks * self.layout.n_values()
    }

    fn n_values(&self) -> usize {
        self.n_groups * self.layout.rows * self.row_values()
    }

    fn headers_bytes(&self) -> usize {
        self.layout.rows * self.header_bytes
    }

    /// For every integer of block number `block` of a group: its index among the values of that block (the rows of
    /// the group one after another), and its index among the integers of the whole group, which are ordered by
    /// rows.
    fn places(&self, block: usize) -> impl Iterator<Item = (usize, usize)> + '_ {
        let n = self.layout.n_values();
        (0..self.layout.rows)
            .flat_map(move |row| (0..n).map(move |i| (row * n + i, row * self.row_values() + block * n + i)))
    }
}

/// A field: its name, how many integers it has per block, their bits, how many values they can take, and whether
/// they are signed.
type FieldInfo = (&'static str, usize, u32, u64, bool);

/// The number of elements of a block, and the fields of a block in the order in which `unpack` returns them.
#[pyfunction]
pub fn layout_fields(py: Python<'_>, ty: u32) -> PyResult<(usize, Vec<FieldInfo>)> {
    let layout = layout(quant_type(ty)?).map_err(|e| e.raise(py))?;
    let fields = layout.fields.iter().map(|f| (f.name, f.count, f.bits, f.levels, f.signed)).collect();
    Ok((layout.block_size, fields))
}

type Unpacked<'py> = (Bound<'py, PyArray1<u8>>, Bound<'py, PyArray1<u32>>, Bound<'py, PyArray1<u8>>);

/// Takes a matrix apart into the row headers, the integers `[row, block, value]`, and the trailer.
#[pyfunction]
pub fn unpack<'py>(
    py: Python<'py>,
    data: PyReadonlyArray1<'py, u8>,
    ty: u32,
    n_rows: usize,
    n_per_row: usize,
) -> PyResult<Unpacked<'py>> {
    let (ty, data) = (quant_type(ty)?, data.as_slice()?);
    check_matrix(ty, n_rows, n_per_row, data.len()).map_err(|e| e.raise(py))?;
    let frame = Frame::new(ty, n_rows, n_per_row)?;
    let (headers, values, trailer) =
        enter(py, data.len(), |cancel| -> Result<_, Stop<ikq_formats::Error>> {
            let (groups, trailer) = data.split_at(data.len() - frame.trailer_bytes);
            let mut headers = Vec::with_capacity(frame.n_groups * frame.headers_bytes());
            let mut values = vec![0u32; frame.n_values()];
            let mut block_values = vec![0u32; frame.layout.rows * frame.layout.n_values()];
            let group_values = (frame.layout.rows * frame.row_values()).max(1);
            let groups = groups.chunks_exact(frame.group_bytes.max(1));
            for (group, out) in groups.zip(values.chunks_exact_mut(group_values)) {
                if cancel.is_cancelled() {
                    return Err(Stop::Cancelled);
                }
                let (header, blocks) = group.split_at(frame.headers_bytes());
                headers.extend_from_slice(header);
                for (b, block) in blocks.chunks_exact(frame.layout.bytes).enumerate() {
                    frame.layout.unpack(block, &mut block_values);
                    frame.places(b).for_each(|(from, to)| out[to] = block_values[from]);
                }
            }
            Ok((headers, values, trailer.to_vec()))
        })?;
    Ok((PyArray1::from_vec(py, headers), PyArray1::from_vec(py, values), PyArray1::from_vec(py, trailer)))
}

/// Puts a matrix together again, as the inverse of [`unpack`]. Every integer is checked for its range.
#[pyfunction]
pub fn pack<'py>(
    py: Python<'py>,
    headers: PyReadonlyArray1<'py, u8>,
    values: PyReadonlyArray1<'py, u32>,
    trailer: PyReadonlyArray1<'py, u8>,
    ty: u32,
    n_rows: usize,
    n_per_row: usize,
) -> PyResult<Bound<'py, PyArray1<u8>>> {
    let frame = Frame::new(quant_type(ty)?, n_rows, n_per_row)?;
    let (headers, values, trailer) = (headers.as_slice()?, values.as_slice()?, trailer.as_slice()?);
    let expected = (frame.n_groups * frame.headers_bytes(), frame.n_values(), frame.trailer_bytes);
    if (headers.len(), values.len(), trailer.len()) != expected {
        return Err(crate::errors::ShapeError::new_err("fields do not have the shape of the matrix"));
    }
    let out = enter(py, values.len(), |cancel| -> Result<_, Stop<ikq_formats::Error>> {
        frame.layout.check(frame.ty, values)?;
        let mut out = vec![0u8; frame.n_groups * frame.group_bytes + frame.trailer_bytes];
        let (groups, tail) = out.split_at_mut(frame.n_groups * frame.group_bytes);
        tail.copy_from_slice(trailer);
        let mut block_values = vec![0u32; frame.layout.rows * frame.layout.n_values()];
        for (g, group) in groups.chunks_exact_mut(frame.group_bytes.max(1)).enumerate() {
            if cancel.is_cancelled() {
                return Err(Stop::Cancelled);
            }
            let (header, blocks) = group.split_at_mut(frame.headers_bytes());
            header.copy_from_slice(&headers[g * frame.headers_bytes()..(g + 1) * frame.headers_bytes()]);
            let n = frame.layout.rows * frame.row_values();
            let values = &values[g * n..(g + 1) * n];
            for (b, block) in blocks.chunks_exact_mut(frame.layout.bytes).enumerate() {
                frame.places(b).for_each(|(to, from)| block_values[to] = values[from]);
                frame.layout.pack(&block_values, block);
            }
        }
        Ok(out)
    })?;
    Ok(PyArray1::from_vec(py, out))
}
