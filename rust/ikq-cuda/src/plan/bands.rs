//! Launches that make rows of the bands of a CPU (`bands.cu`).

use ikq_formats::lanes::LANES;
use ikq_formats::{LaneForm, QuantType, lane_form};

use super::{Kernel, Plan, check_row, geometry, i32_of};
use crate::error::Error;

fn wrong(ty: QuantType, why: &str) -> Error {
    Error::Plan { name: format!("rows of bands of {}", ty.name()), why: why.into() }
}

/// The form of a type's bands.
fn form(ty: QuantType) -> Result<LaneForm, Error> {
    lane_form(ty).ok_or_else(|| wrong(ty, "it has no bands"))
}

/// Bytes of a matrix in bands.
///
/// # Errors
/// [`Error::Plan`] for types that have no bands.
pub fn band_bytes(ty: QuantType, n_rows: usize, n: usize) -> Result<usize, Error> {
    Ok(form(ty)?.matrix_bytes(n_rows, n))
}

/// The plan of [`Call::RowsOfBands`](super::Call::RowsOfBands).
pub(super) fn plan(ty: QuantType, n_matrices: usize, n_rows: usize, n: usize) -> Result<Plan, Error> {
    check_row(ty, n)?;
    let form = form(ty)?;
    if ty.is_interleaved() {
        return Err(wrong(ty, "files have its rows interleaved"));
    }
    let n_bands = n_rows.div_ceil(LANES);
    // of types whose smaller pieces come unit by unit, the blocks of a unit
    let run = if form.by_unit() { form.runs(n).next().map_or(0, |run| run.blocks.len()) } else { 0 };
    Ok(Plan {
        kernel: Kernel::whole("bands.cu", "rows_of_bands"),
        geometry: geometry([n_bands * n_matrices, 1, 1], 256)?,
        arguments: vec![
            ("bands", None),
            ("rows", None),
            ("n_rows", Some(i32_of(n_rows)?)),
            ("n_bands", Some(i32_of(n_bands)?)),
            ("band_bytes", Some(i32_of(form.band_bytes(n))?)),
            ("n_blocks", Some(i32_of(n / form.block_size)?)),
            ("block_bytes", Some(i32_of(form.block_bytes)?)),
            ("header_bytes", Some(i32_of(form.header_bytes)?)),
            ("front_bytes", Some(i32_of(form.front_bytes)?)),
            ("run", Some(i32_of(run)?)),
        ],
    })
}
