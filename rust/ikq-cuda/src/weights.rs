//! Uploading weights: the bytes of the file are copied to the device, where a kernel brings them into the device's
//! form.

use ikq_formats::QuantType;
use ikq_formats::types::Family;

use crate::error::Error;
use crate::gpu::Gpu;
use crate::memory::Address;
use crate::plan::{self, Call};
use crate::products::launch;
pub use crate::staging::Staging;

/// About how many bytes in the file's form are on the device at a time.
const PIECE: usize = 64 << 20;

/// A matrix in device form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Matrix {
    pub at: Address,
    /// The type that kernels read, which is never an interleaved one.
    pub ty: QuantType,
    pub n_rows: usize,
    /// Elements of a row.
    pub n: usize,
}

/// Bytes of a matrix of `n_rows` rows of `n` elements in device form.
///
/// # Errors
/// [`Error::Plan`] for types and row lengths that kernels do not take.
pub fn matrix_bytes(ty: QuantType, n_rows: usize, n: usize) -> Result<usize, Error> {
    let row = plan::device_row_bytes(ty, n)?;
    row.checked_mul(n_rows).ok_or_else(|| Error::Plan { name: ty.name().into(), why: "too large".into() })
}

/// Copies a matrix from the file's form (`file` has whole rows of type `ty`) to `at`, in device form.
///
/// # Errors
/// Errors of the planner, the compiler and the driver; [`Error::Plan`] when `file` is not as long as the rows.
///
/// # Safety
/// There must be room for [`matrix_bytes`] bytes at `at`. `staging` must live until the device was waited for.
pub unsafe fn upload(
    gpu: &Gpu,
    staging: &mut Staging,
    file: &[u8],
    ty: QuantType,
    n_rows: usize,
    n: usize,
    at: Address,
) -> Result<Matrix, Error> {
    let wrong = |e: ikq_formats::Error| Error::Plan { name: ty.name().into(), why: e.to_string() };
    ikq_formats::row::check_matrix(ty, n_rows, n, file.len()).map_err(wrong)?;
    let plain = plan::device_type(ty)?;
    let taken_apart = match plain == ty {
        true => None,
        false => Some(ikq_formats::repack::repack(file, ty, plain, n_rows, n).map_err(wrong)?),
    };
    let file = taken_apart.as_deref().unwrap_or(file);
    let matrix = Matrix { at, ty: plain, n_rows, n };
    if n_rows == 0 || n == 0 {
        return Ok(matrix);
    }
    let to_bytes = plan::device_row_bytes(plain, n)?;
    let from_bytes = file.len() / n_rows;
    // the scale of I2_S follows all rows, so they stay together
    let at_once = match plain {
        QuantType::I2_S => n_rows,
        _ => (PIECE / from_bytes).clamp(1, n_rows),
    };
    if plain.info().family == Family::Float {
        // rows of floats only need padding, because rows begin at aligned places
        // SAFETY: the caller promises the room
        unsafe { staging.send_rows(gpu, at, file, (from_bytes, to_bytes)) }?;
        return Ok(matrix);
    }
    let piece = staging.room(gpu, file.len().min(at_once * from_bytes + 256))?;
    for first in (0..n_rows).step_by(at_once) {
        let rows = at_once.min(n_rows - first);
        let bytes = match plain {
            QuantType::I2_S => file,
            _ => &file[first * from_bytes..(first + rows) * from_bytes],
        };
        let plan = Call::Repack { ty: plain, n_rows: rows, n }.plan()?;
        let buffers = [("file", piece), ("out", at.offset(first * to_bytes))];
        // SAFETY: the piece holds the rows, and the caller says that there is room for them
        unsafe {
            staging.send(gpu, piece, bytes)?;
            launch(gpu, &plan, &buffers)?;
        }
    }
    Ok(matrix)
}
