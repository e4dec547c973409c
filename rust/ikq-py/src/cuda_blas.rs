//! Products by cuBLAS for Python: how long they take beside tiles, and single ones for tests.

use std::path::PathBuf;
use std::time::Instant;

use ikq_cuda::blas::{self, Blas, Room, RoomBytes};
use ikq_cuda::gpu::Gpu;
use ikq_cuda::loader::{self, Search};
use ikq_cuda::memory::{Address, Arena, arena_bytes};
use ikq_cuda::products::{self, Columns, Target};
use ikq_cuda::weights::{self, Matrix};
use ikq_cuda::{Error, blas_table, plan};
use ikq_formats::QuantType;
use numpy::{PyArray1, PyArray2, PyArrayMethods, PyReadonlyArray1, PyReadonlyArray2};
use pyo3::prelude::*;

use crate::errors::Raise;
use crate::types::quant_type;

/// A matrix and columns on a device, with room for the result and for cuBLAS.
struct Operands {
    /// The first to be dropped: it uses the stream of the next one.
    blas: Blas,
    gpu: Gpu,
    arena: Arena,
    matrix: Matrix,
    columns: Columns,
    y: Address,
}

impl Operands {
    fn new(
        search: &Search,
        device: usize,
        (ty, data, n_rows): (QuantType, &[u8], usize),
        (x, n, n_columns): (&[f32], usize, usize),
        more: usize,
    ) -> Result<Operands, Error> {
        let gpu = Gpu::open(loader::runtime(search)?, device)?;
        let piece = blas::most_bytes()?;
        let blas = Blas::new(&gpu, &search.cublas, None)?;
        let room = RoomBytes::one(ty, [n_rows, n], n_columns, piece);
        let matrix_bytes = weights::matrix_bytes(ty, n_rows, n)?;
        let [code_bytes, scale_bytes] = products::code_bytes(n, n_columns);
        let y_bytes = 4 * n_rows * n_columns;
        let pieces = [matrix_bytes, y_bytes, room.workspace, room.weights, room.columns, more];
        let size = products::columns_bytes(n, n_columns) + arena_bytes(pieces);
        let mut arena = Arena::new(gpu.context(), "a product", size)?;
        let (at, floats) = (arena.take(matrix_bytes)?, arena.take(4 * x.len())?);
        let codes = (arena.take(code_bytes)?, arena.take(scale_bytes)?);
        let y = arena.take(y_bytes)?;
        let room = Room {
            bytes: room,
            workspace: arena.take(room.workspace)?,
            weights: arena.take(room.weights)?,
            columns: arena.take(room.columns)?,
        };
        // SAFETY: all pieces have the sizes that are needed, and live as long as this
        let (matrix, columns) = unsafe {
            let matrix = weights::upload(&gpu, &mut weights::Staging::default(), data, ty, n_rows, n, at)?;
            let codes = plan::reads_codes(matrix.ty).then_some(codes);
            let columns = Columns { n, n_columns, floats, codes };
            gpu.copy_in(floats, &bytes_of(x))?;
            products::quantize(&gpu, &columns)?;
            blas.set_room(Some(room))?;
            (matrix, columns)
        };
        gpu.wait()?;
        Ok(Operands { blas, gpu, arena, matrix, columns, y })
    }

    /// Seconds of each of `repeats` products of the first `n_columns` columns, one behind another.
    fn seconds(&self, n_columns: usize, by_blas: bool, repeats: usize) -> Result<f64, Error> {
        let columns = self.columns.part(0, n_columns);
        let to = Target { y: self.y, bias: None, residual: None };
        let start = Instant::now();
        for _ in 0..repeats {
            // SAFETY: matrix, columns, and the room for the result are there
            unsafe {
                match by_blas {
                    true => self.blas.multiply(&self.gpu, &self.matrix, &columns, &to)?,
                    false => products::multiply(&self.gpu, &self.matrix, &columns, &to)?,
                }
            }
        }
        self.gpu.wait()?;
        Ok(start.elapsed().as_secs_f64() / repeats as f64)
    }
}

fn bytes_of(x: &[f32]) -> Vec<u8> {
    x.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// The cuBLAS that products on a GPU would use: its file and its version. `nvrtc` and `cublas` list files and folders in
/// which to look for the libraries.
#[pyfunction]
pub fn cuda_blas_version(
    py: Python<'_>,
    nvrtc: Vec<PathBuf>,
    cublas: Vec<PathBuf>,
    device: usize,
) -> PyResult<(PathBuf, String)> {
    let found = py.detach(|| {
        let search = Search { nvrtc, cublas };
        let gpu = Gpu::open(loader::runtime(&search)?, device)?;
        let blas = Blas::new(&gpu, &search.cublas, None)?;
        Ok::<_, Error>((blas.library().path.clone(), blas.library().version))
    });
    let (path, [major, minor, patch]) = found.map_err(|e: Error| e.raise(py))?;
    Ok((path, format!("{major}.{minor}.{patch}")))
}

/// Whether products with weights of a type can be cuBLAS's.
#[pyfunction]
pub fn cuda_blas_offers(type_id: u32) -> PyResult<bool> {
    Ok(blas_table::is_offered(quant_type(type_id)?))
}

/// Seconds of a product of a quantized matrix of `n_rows` rows with the first of the columns `x` (of shape `(n, k)`), for
/// each of the numbers `counts`: those in tiles, and those by cuBLAS (the weights decoded for each). Each is measured `turns`
/// times, by turns with the other, as `repeats` products one behind another.
#[pyfunction]
#[pyo3(signature = (nvrtc, cublas, device, type_id, data, n_rows, x, counts, turns, repeats))]
#[expect(clippy::too_many_arguments, reason = "a product, where it is computed and how it is measured")]
pub fn cuda_blas_seconds(
    py: Python<'_>,
    nvrtc: Vec<PathBuf>,
    cublas: Vec<PathBuf>,
    device: usize,
    type_id: u32,
    data: PyReadonlyArray1<'_, u8>,
    n_rows: usize,
    x: PyReadonlyArray2<'_, f32>,
    counts: Vec<usize>,
    turns: usize,
    repeats: usize,
) -> PyResult<Vec<(Vec<f64>, Vec<f64>)>> {
    let ty = quant_type(type_id)?;
    let (data, [n_columns, n]) = (data.as_slice()?, [x.as_array().nrows(), x.as_array().ncols()]);
    let x = x.as_slice()?;
    let measured = py.detach(|| {
        let search = Search { nvrtc, cublas };
        let operands = Operands::new(&search, device, (ty, data, n_rows), (x, n, n_columns), 0)?;
        let counts = counts.into_iter().filter(|count| *count <= n_columns);
        let measure = |count: usize| {
            let (mut tiles, mut by_blas) = (Vec::new(), Vec::new());
            for turn in 0..=turns {
                let pair =
                    (operands.seconds(count, false, repeats)?, operands.seconds(count, true, repeats)?);
                // kernels are compiled and loaded in the first one
                if turn > 0 {
                    tiles.push(pair.0);
                    by_blas.push(pair.1);
                }
            }
            Ok((tiles, by_blas))
        };
        counts.map(measure).collect::<Result<Vec<_>, Error>>()
    });
    measured.map_err(|e| e.raise(py))
}

/// Computes by cuBLAS what `cuda_product` computes in tiles, plus a bias of `n_rows` numbers and plus a residual of the
/// result's shape, where there are any. With `in_place`, the residual is where the result is written.
#[pyfunction]
#[pyo3(signature = (nvrtc, cublas, device, type_id, data, n_rows, x, bias=None, residual=None, in_place=false))]
#[expect(clippy::too_many_arguments, reason = "a product and where it is computed")]
pub fn cuda_blas_product<'py>(
    py: Python<'py>,
    nvrtc: Vec<PathBuf>,
    cublas: Vec<PathBuf>,
    device: usize,
    type_id: u32,
    data: PyReadonlyArray1<'py, u8>,
    n_rows: usize,
    x: PyReadonlyArray2<'py, f32>,
    bias: Option<PyReadonlyArray1<'py, f32>>,
    residual: Option<PyReadonlyArray2<'py, f32>>,
    in_place: bool,
) -> PyResult<Bound<'py, PyArray2<f32>>> {
    let ty = quant_type(type_id)?;
    let (data, [n_columns, n]) = (data.as_slice()?, [x.as_array().nrows(), x.as_array().ncols()]);
    let x = x.as_slice()?;
    let bias = bias.as_ref().map(|b| b.as_slice()).transpose()?.map(bytes_of);
    let residual = residual.as_ref().map(|r| r.as_slice()).transpose()?.map(bytes_of);
    let y = py.detach(|| {
        let search = Search { nvrtc, cublas };
        let (bias_bytes, y_bytes) = (4 * n_rows, 4 * n_rows * n_columns);
        let fits = |given: &Option<Vec<u8>>, bytes| given.as_ref().is_none_or(|g| g.len() == bytes);
        if !fits(&bias, bias_bytes) || !fits(&residual, y_bytes) {
            let why = "bias or residual has another length".into();
            return Err(Error::Plan { name: "product by cuBLAS".into(), why });
        }
        let more = arena_bytes([bias_bytes, y_bytes]);
        let mut it = Operands::new(&search, device, (ty, data, n_rows), (x, n, n_columns), more)?;
        let (bias_at, residual_at) = (it.arena.take(bias_bytes)?, it.arena.take(y_bytes)?);
        let residual_at = if in_place { it.y } else { residual_at };
        let mut out = vec![0; y_bytes];
        // SAFETY: all buffers have these sizes, and live until the last copy is done
        unsafe {
            if let Some(bias) = &bias {
                it.gpu.copy_in(bias_at, bias)?;
            }
            if let Some(residual) = &residual {
                it.gpu.copy_in(residual_at, residual)?;
            }
            let (bias, residual) = (bias.map(|_| bias_at), residual.map(|_| residual_at));
            it.blas.multiply(&it.gpu, &it.matrix, &it.columns, &Target { y: it.y, bias, residual })?;
            it.gpu.copy_out(&mut out, it.y)?;
        }
        Ok(out.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect::<Vec<f32>>())
    });
    PyArray1::from_vec(py, y.map_err(|e: Error| e.raise(py))?).reshape([n_columns, n_rows])
}
