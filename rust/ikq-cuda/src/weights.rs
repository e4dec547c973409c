//! Uploading weights: the bytes of the file are copied to the device, where a kernel brings them into the device's
//! form.

use ikq_formats::QuantType;
use ikq_formats::types::Family;

use crate::error::Error;
use crate::gpu::Gpu;
use crate::memory::{Address, Arena};
use crate::plan::{self, Call};
use crate::products::launch;

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

/// Device memory for pieces in the file's form, before they are brought into the device's form.
#[derive(Debug, Default)]
pub struct Staging {
    arena: Option<(Arena, Address)>,
}

impl Staging {
    /// Makes room for `bytes`. Before memory is replaced, all work of the device is waited for.
    fn room(&mut self, gpu: &Gpu, bytes: usize) -> Result<Address, Error> {
        match &self.arena {
            Some((arena, at)) if arena.size() >= bytes => Ok(*at),
            _ => {
                gpu.wait()?;
                self.arena = None; // frees the old one before another is allocated
                let mut arena = Arena::new(gpu.context(), "weights on the way", bytes)?;
                let at = arena.take(bytes)?;
                self.arena = Some((arena, at));
                Ok(at)
            }
        }
    }
}

/// Copies a matrix from the file's form (`file` has whole rows of type `ty`) to `at`, in device form.
///
/// # Errors
/// Errors of the planner, the compiler and the driver; [`Error::Plan`] when `file` is not as long as the rows.
///
/// # Safety
/// There must be room for [`matrix_bytes`] bytes at `at`.
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
        // SAFETY: the caller promises the room
        unsafe { upload_floats(gpu, file, from_bytes, to_bytes, at_once, at) }?;
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
            gpu.copy_in(piece, bytes)?;
            launch(gpu, &plan, &buffers)?;
        }
    }
    Ok(matrix)
}

/// Copies rows of floats, which only need padding, because rows begin at aligned places.
///
/// # Safety
/// There must be room at `at` for all rows of `to_bytes`.
unsafe fn upload_floats(
    gpu: &Gpu,
    file: &[u8],
    from_bytes: usize,
    to_bytes: usize,
    at_once: usize,
    at: Address,
) -> Result<(), Error> {
    if from_bytes == to_bytes {
        // SAFETY: the caller promises the room
        return unsafe { gpu.copy_in(at, file) };
    }
    for (i, rows) in file.chunks(at_once * from_bytes).enumerate() {
        let mut padded = vec![0; rows.len() / from_bytes * to_bytes];
        for (to, from) in padded.chunks_exact_mut(to_bytes).zip(rows.chunks_exact(from_bytes)) {
            to[..from_bytes].copy_from_slice(from);
        }
        // SAFETY: the caller promises the room
        unsafe { gpu.copy_in(at.offset(i * at_once * to_bytes), &padded) }?;
    }
    Ok(())
}
