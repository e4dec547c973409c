//! Products of matrices and columns: the columns' codes, and launches of at most eight columns.

use crate::error::Error;
use crate::gpu::Gpu;
use crate::memory::{Address, arena_bytes};
use crate::plan::{Call, MOST_COLUMNS, Products, reads_codes};
use crate::weights::Matrix;

/// Columns as products read them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Columns {
    /// Elements of a column, and how many there are.
    pub n: usize,
    pub n_columns: usize,
    /// Floats, `n` per column.
    pub floats: Address,
    /// Codes and, per block of 32, scale and scaled sum; made by [`quantize`].
    pub codes: Option<(Address, Address)>,
}

/// Bytes of codes, and of scales, of these columns.
pub fn code_bytes(n: usize, n_columns: usize) -> [usize; 2] {
    [n * n_columns, n / 32 * n_columns * 8]
}

/// Bytes of an arena for columns and their codes.
pub fn columns_bytes(n: usize, n_columns: usize) -> usize {
    let [codes, scales] = code_bytes(n, n_columns);
    arena_bytes([n * n_columns * 4, codes, scales])
}

/// Makes the codes of columns, behind what was launched before.
///
/// # Errors
/// What planner, compiler and driver say.
///
/// # Safety
/// Floats are (or will be, by earlier launches) at `columns.floats`, and there is room for codes and scales.
pub unsafe fn quantize(gpu: &Gpu, columns: &Columns) -> Result<(), Error> {
    let Some((codes, scales)) = columns.codes else { return Ok(()) };
    let plan = Call::Quantize { n: columns.n * columns.n_columns }.plan()?;
    let kernel = gpu.function(&plan.of, &plan.kernel)?;
    let bound = plan.bind(&[("x", columns.floats), ("q", codes), ("ds", scales)])?;
    // SAFETY: the planner's arguments; the caller's word for the buffers
    unsafe { gpu.launch(&kernel, plan.geometry, &bound) }
}

/// `y[c][r] = sum of matrix[r] * columns[c]`, `n_rows` floats per column, behind what was launched before.
///
/// # Errors
/// [`Error::Plan`] when lengths differ, or codes are missing that the type reads; what compiler and driver say.
///
/// # Safety
/// Matrix and columns are (or will be) where they say, and there is room for the result.
pub unsafe fn multiply(gpu: &Gpu, matrix: &Matrix, columns: &Columns, y: Address) -> Result<(), Error> {
    let wrong = |why: String| Error::Plan { name: "product".into(), why };
    if matrix.n != columns.n {
        return Err(wrong(format!("rows of {} elements and columns of {}", matrix.n, columns.n)));
    }
    if matrix.n_rows == 0 {
        return Ok(());
    }
    for first in (0..columns.n_columns).step_by(MOST_COLUMNS) {
        let n_columns = MOST_COLUMNS.min(columns.n_columns - first);
        let plan = Call::Products(Products {
            ty: matrix.ty,
            n_rows: matrix.n_rows,
            n: matrix.n,
            n_columns,
            stride: matrix.n_rows,
            bias: false,
            residual: false,
        })
        .plan()?;
        let y = ("y", y.offset(first * matrix.n_rows * 4));
        let bound = match reads_codes(matrix.ty) {
            true => {
                let (codes, scales) =
                    columns.codes.ok_or_else(|| wrong("the columns have no codes".into()))?;
                let x = codes.offset(first * columns.n);
                let ds = scales.offset(first * columns.n / 32 * 8);
                plan.bind(&[("w", matrix.at), ("x", x), ("ds", ds), y])?
            }
            false => {
                plan.bind(&[("w", matrix.at), ("x", columns.floats.offset(first * columns.n * 4)), y])?
            }
        };
        let kernel = gpu.function(&plan.of, &plan.kernel)?;
        // SAFETY: the planner's arguments; the caller's word for the buffers
        unsafe { gpu.launch(&kernel, plan.geometry, &bound) }?;
    }
    Ok(())
}
