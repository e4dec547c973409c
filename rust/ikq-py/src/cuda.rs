//! The GPU functions for Python: which GPUs were found or why none can be used, compiling kernels ahead of use, and
//! single operations for tests.

use std::path::PathBuf;

use ikq_cuda::architecture::parse_arch;
use ikq_cuda::counts;
use ikq_cuda::cubins::Cubins;
use ikq_cuda::gpu::{self, Argument, Gpu};
use ikq_cuda::loader::{self, Facts, Search};
use ikq_cuda::memory::{Arena, arena_bytes};
use ikq_cuda::plan::{
    self, Call, FloatType, Glu, Grouped, Mmq, MmqUpGate, Plan, Products, SumSlots, Tile, TiledColumns, UpGate,
};
use ikq_cuda::products::{self, Columns, Target};
use ikq_cuda::sources::{self, Specialisation};
use ikq_cuda::{Error, weights};
use ikq_formats::QuantType;
use numpy::{PyArray1, PyArray2, PyArrayMethods, PyReadonlyArray1, PyReadonlyArray2};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::errors::{DeviceError, DeviceMemoryError, FormatError, IkqError, Raise, UsageError};
use crate::types::quant_type;

impl Raise for Error {
    fn raise(self, _: Python<'_>) -> PyErr {
        let message = self.to_string();
        match self {
            Error::Plan { .. } => IkqError::new_err(message),
            Error::Source { .. } => FormatError::new_err(message),
            Error::Memory { .. } => DeviceMemoryError::new_err(message),
            Error::Variable { .. } | Error::Architecture { .. } => UsageError::new_err(message),
            _ => DeviceError::new_err(message),
        }
    }
}

/// Reports the driver, the GPUs and the compiler that were found. `nvrtc` lists files and folders in which to look
/// for the compiler library NVRTC, `cublas` those in which models look for cuBLAS if they use it. Only the first call in a
/// process searches; later calls return what it found. With `memory`, the driver is asked for the free memory of every usable
/// GPU, and makes a context there for the answer.
#[pyfunction]
pub fn cuda_status(
    py: Python<'_>,
    nvrtc: Vec<PathBuf>,
    cublas: Vec<PathBuf>,
    memory: bool,
) -> PyResult<Bound<'_, PyDict>> {
    let (found, runtime) = py.detach(|| loader::look(&Search { nvrtc, cublas }));
    let free_bytes = |device: &Facts| {
        let runtime = runtime.as_ref().ok().filter(|_| memory)?;
        let index = runtime.devices.iter().position(|d| d.ordinal == device.ordinal)?;
        py.detach(|| gpu::memory(runtime, index)).ok().map(|(free, _)| free)
    };
    let status = PyDict::new(py);
    status.set_item("usable", runtime.is_ok())?;
    status.set_item("reason", runtime.as_ref().err().map(ToString::to_string))?;
    status.set_item("reason_code", runtime.as_ref().err().map(|e| e.word()))?;
    status.set_item("driver", found.cuda.and_then(|_| loader::driver_version()))?;
    status.set_item("cuda_version", found.cuda.map(loader::version))?;
    let devices = found.devices.iter().map(|d| facts(py, d, free_bytes(d))).collect::<PyResult<Vec<_>>>()?;
    status.set_item("devices", devices)?;
    status.set_item("emulated", found.devices.iter().any(Facts::is_emulated))?;
    let nvrtc = runtime.as_ref().ok().map(|r| &r.nvrtc);
    status.set_item("nvrtc", nvrtc.map(|n| n.path.clone()))?;
    status.set_item("nvrtc_version", nvrtc.map(|n| format!("{}.{}", n.version.0, n.version.1)))?;
    status.set_item("cache", Cubins::of_environment().folder())?;
    Ok(status)
}

fn facts<'py>(py: Python<'py>, device: &Facts, free: Option<usize>) -> PyResult<Bound<'py, PyDict>> {
    let row = PyDict::new(py);
    row.set_item("name", &device.name)?;
    row.set_item("compute_capability", format!("{}.{}", device.sm / 10, device.sm % 10))?;
    row.set_item("memory_bytes", device.memory_bytes)?;
    row.set_item("free_bytes", free)?;
    row.set_item("n_multiprocessors", device.n_multiprocessors)?;
    row.set_item("usable", device.sm >= loader::OLDEST_SM)?;
    Ok(row)
}

/// How often this process has asked drivers of GPUs for what: `launches` of kernels and of copies within a device, those
/// that were `recorded` for graphs, `replays` of graphs, `copies` to and from devices, and `waits` of the host.
#[pyfunction]
pub fn cuda_counts(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    let found = PyDict::new(py);
    counts::counts().into_iter().try_for_each(|(name, n)| found.set_item(name, n))?;
    Ok(found)
}

/// The names of the CUDA source files.
#[pyfunction]
pub fn cuda_files(py: Python<'_>) -> PyResult<Vec<String>> {
    let files = sources::files().map_err(|e| e.raise(py))?;
    Ok(files.into_iter().map(|(name, _)| name).collect())
}

/// Compiles one source file with these defines for an architecture such as `sm_90`, and returns the cubin and the
/// compiler's log. It uses an NVRTC from the files and folders `nvrtc` whose CUDA version is at most `major`. No
/// GPU is needed.
#[pyfunction]
pub fn cuda_compile(
    py: Python<'_>,
    nvrtc: Vec<PathBuf>,
    major: i32,
    file: String,
    defines: Vec<(String, String)>,
    arch: &str,
    options: Vec<String>,
) -> PyResult<(Vec<u8>, String)> {
    let compiled = py.detach(|| {
        let of = Specialisation { file, defines };
        let compiler = loader::compiler(&nvrtc, major)?;
        compiler.compile(&of.source()?, arch, &[of.options(), options].concat())
    });
    compiled.map(|c| (c.cubin, c.log)).map_err(|e| e.raise(py))
}

/// The compiler's name of an architecture that users write as `sm_90`, `90` or `9.0`. It is one that kernels are written for,
/// and that an NVRTC from the files and folders `nvrtc`, whose CUDA version is at most `major`, knows.
#[pyfunction]
pub fn cuda_architecture(py: Python<'_>, nvrtc: Vec<PathBuf>, major: i32, text: &str) -> PyResult<String> {
    let found = py.detach(|| parse_arch(&loader::compiler(&nvrtc, major)?, text));
    found.map_err(|e| e.raise(py))
}

/// Compiles the kernels that models with weights of these types use, for an architecture such as `sm_90`, and
/// stores them in the kernel cache. Returns for each its name and whether it was in the cache before.
#[pyfunction]
pub fn cuda_warm(
    py: Python<'_>,
    nvrtc: Vec<PathBuf>,
    major: i32,
    type_ids: Vec<u32>,
    arch: &str,
) -> PyResult<Vec<(String, bool)>> {
    let types = type_ids.into_iter().map(quant_type).collect::<PyResult<Vec<_>>>()?;
    let done: Result<Vec<_>, Error> = py.detach(|| {
        let compiler = loader::compiler(&nvrtc, major)?;
        let cubins = Cubins::of_environment();
        let all = plan::specialisations(&types)?.into_iter();
        all.map(|of| Ok((of.to_string(), gpu::cubin(&compiler, &cubins, &of, arch)?.1))).collect()
    });
    done.map_err(|e| e.raise(py))
}

/// How a kernel is launched, as `{file, defines, kernel, grid, block, shared_bytes, arguments}`. The arguments are
/// pairs of name and value; the value of a buffer is `None`, or 0 if this launch does not use the buffer. `shape`
/// has these items:
///
/// | kernel | sizes |
/// |---|---|
/// | `repack` | `type`, `n_rows`, `n` |
/// | `dequantize` | `type`, `to` (f32, f16, bf16), `n_rows`, `n`, `chosen` |
/// | `quantize` | `n` |
/// | `to_bf16` | `n`, `codes` |
/// | `begin_sums` | `n_rows`, `n_columns`, `residual` |
/// | `products` | `type`, `n_rows`, `n`, `n_columns`, `stride`, `bias`, `residual` |
/// | `norm` | `n`, `n_columns`, `eps`, `codes` |
/// | `upgate` | `up`, `gate` (types), `n_rows`, `n`, `n_columns`, `act`, `bias_up`, `bias_gate`, `codes` |
/// | `mmq` | those of `products`, `tile` (32, 64 or 128), and for experts `n_pairs`, `k`, `n_experts` |
/// | `mmq_upgate` | those of `upgate`, `tile`, and for experts `n_pairs`, `k`, `n_experts` |
/// | `sort` | `n_pairs`, `n_experts` |
/// | `sum_slots` | `n_rows`, `n_tokens`, `k`, `residual` |
#[pyfunction]
pub fn cuda_plan<'py>(
    py: Python<'py>,
    kernel: &str,
    shape: &Bound<'py, PyDict>,
) -> PyResult<Bound<'py, PyDict>> {
    let item = |name: &str| {
        let value = shape.get_item(name)?;
        value.ok_or_else(|| PyValueError::new_err(format!("{kernel}: its shape has no {name}")))
    };
    let size = |name: &str| item(name)?.extract::<usize>();
    let flag = |name: &str| item(name)?.extract::<bool>();
    let ty = |name: &str| quant_type(item(name)?.extract()?);
    let glu = || match item("act")?.extract::<String>()?.as_str() {
        "silu" => Ok(Glu::Silu),
        "gelu_tanh" => Ok(Glu::GeluTanh),
        "swiglu_oai" => Ok(Glu::SwigluOai),
        other => {
            let expected = "silu, gelu_tanh or swiglu_oai";
            Err(PyValueError::new_err(format!("act={other:?}: expected {expected}")))
        }
    };
    let tile = || match size("tile")? {
        32 => Ok(Tile::Narrow),
        64 => Ok(Tile::Wide),
        128 => Ok(Tile::Widest),
        other => Err(PyValueError::new_err(format!("tile={other}: expected 32, 64 or 128"))),
    };
    let columns = || match shape.contains("n_experts")? {
        false => Ok(TiledColumns::Plain(size("n_columns")?)),
        true => {
            let (n_pairs, k, n_experts) = (size("n_pairs")?, size("k")?, size("n_experts")?);
            Ok::<_, PyErr>(TiledColumns::Grouped(Grouped { n_pairs, k, n_experts }))
        }
    };
    let call = match kernel {
        "repack" => Call::Repack { ty: ty("type")?, n_rows: size("n_rows")?, n: size("n")? },
        "dequantize" => {
            let to = float_type(&item("to")?.extract::<String>()?)?;
            let (n_rows, n) = (size("n_rows")?, size("n")?);
            Call::Dequantize { ty: ty("type")?, to, n_rows, n, chosen: flag("chosen")? }
        }
        "quantize" => Call::Quantize { n: size("n")? },
        "to_bf16" => Call::ToBf16 { n: size("n")?, codes: flag("codes")? },
        "begin_sums" => {
            let (n_rows, n_columns) = (size("n_rows")?, size("n_columns")?);
            Call::BeginSums { n_rows, n_columns, residual: flag("residual")? }
        }
        "products" => Call::Products(Products {
            ty: ty("type")?,
            n_rows: size("n_rows")?,
            n: size("n")?,
            n_columns: size("n_columns")?,
            stride: size("stride")?,
            pairs: None,
            bias: flag("bias")?,
            residual: flag("residual")?,
        }),
        "norm" => {
            let (n, n_columns) = (size("n")?, size("n_columns")?);
            Call::Norm { n, n_columns, eps: item("eps")?.extract()?, add: false, codes: flag("codes")? }
        }
        "upgate" => Call::UpGate(UpGate {
            up: ty("up")?,
            gate: ty("gate")?,
            n_rows: size("n_rows")?,
            n: size("n")?,
            n_columns: size("n_columns")?,
            pairs: None,
            glu: glu()?,
            bias_up: flag("bias_up")?,
            bias_gate: flag("bias_gate")?,
            codes: flag("codes")?,
        }),
        "mmq" => Call::Mmq(Mmq {
            ty: ty("type")?,
            n_rows: size("n_rows")?,
            n: size("n")?,
            columns: columns()?,
            tile: tile()?,
            stride: size("stride")?,
            bias: flag("bias")?,
            residual: flag("residual")?,
        }),
        "mmq_upgate" => Call::MmqUpGate(MmqUpGate {
            up: ty("up")?,
            gate: ty("gate")?,
            n_rows: size("n_rows")?,
            n: size("n")?,
            columns: columns()?,
            tile: tile()?,
            glu: glu()?,
            bias_up: flag("bias_up")?,
            bias_gate: flag("bias_gate")?,
            codes: flag("codes")?,
        }),
        "sort" => Call::Sort { n_pairs: size("n_pairs")?, n_experts: size("n_experts")? },
        "sum_slots" => Call::SumSlots(SumSlots {
            n_rows: size("n_rows")?,
            n_tokens: size("n_tokens")?,
            k: size("k")?,
            residual: flag("residual")?,
        }),
        other => {
            let known = "repack, dequantize, quantize, to_bf16, begin_sums, products, norm, upgate, mmq, \
                         mmq_upgate, sort, sum_slots";
            return Err(PyValueError::new_err(format!("no kernel {other:?}; there are {known}")));
        }
    };
    let plan = call.plan().map_err(|e| e.raise(py))?;
    let out = PyDict::new(py);
    let Plan { kernel, geometry, arguments } = plan;
    let of = kernel.of();
    out.set_item("file", of.file)?;
    out.set_item("defines", of.defines)?;
    out.set_item("kernel", kernel.name())?;
    out.set_item("grid", geometry.grid.to_vec())?;
    out.set_item("block", geometry.block.to_vec())?;
    out.set_item("shared_bytes", geometry.shared_bytes)?;
    let rows = arguments.into_iter().map(|(name, value)| {
        let value = match value {
            None => py.None(),
            Some(Argument::Address(a)) => a.0.into_pyobject(py)?.into_any().unbind(),
            Some(Argument::I32(v)) => v.into_pyobject(py)?.into_any().unbind(),
            Some(Argument::I64(v)) => v.into_pyobject(py)?.into_any().unbind(),
            Some(Argument::F32(v)) => v.into_pyobject(py)?.into_any().unbind(),
        };
        Ok((name, value))
    });
    out.set_item("arguments", rows.collect::<PyResult<Vec<_>>>()?)?;
    Ok(out)
}

fn float_type(name: &str) -> PyResult<FloatType> {
    match name {
        "f32" => Ok(FloatType::F32),
        "f16" => Ok(FloatType::F16),
        "bf16" => Ok(FloatType::BF16),
        other => Err(PyValueError::new_err(format!("to={other:?}: expected f32, f16 or bf16"))),
    }
}

/// Computes on GPU `device` what `product` computes on the CPU: `x` of shape `(n, k)` times the transpose of a
/// quantized matrix of `n_rows` rows, which gives shape `(n, n_rows)`. With `replays` above 0, the launches are
/// recorded as a CUDA graph, and the graph runs that many times.
#[pyfunction]
#[pyo3(signature = (nvrtc, device, type_id, data, n_rows, x, replays))]
#[expect(clippy::too_many_arguments, reason = "a product and where it is computed")]
pub fn cuda_product<'py>(
    py: Python<'py>,
    nvrtc: Vec<PathBuf>,
    device: usize,
    type_id: u32,
    data: PyReadonlyArray1<'py, u8>,
    n_rows: usize,
    x: PyReadonlyArray2<'py, f32>,
    replays: usize,
) -> PyResult<Bound<'py, PyArray2<f32>>> {
    let ty = quant_type(type_id)?;
    let (data, [n_columns, n]) = (data.as_slice()?, [x.as_array().nrows(), x.as_array().ncols()]);
    let x = x.as_slice()?;
    let y = py.detach(|| {
        let runtime = loader::runtime(&Search { nvrtc, ..Search::default() })?;
        product(&Gpu::open(runtime, device)?, ty, data, n_rows, (x, n, n_columns), replays)
    });
    PyArray1::from_vec(py, y.map_err(|e| e.raise(py))?).reshape([n_columns, n_rows])
}

fn product(
    gpu: &Gpu,
    ty: QuantType,
    data: &[u8],
    n_rows: usize,
    (x, n, n_columns): (&[f32], usize, usize),
    replays: usize,
) -> Result<Vec<f32>, Error> {
    let matrix_bytes = weights::matrix_bytes(ty, n_rows, n)?;
    let [code_bytes, scale_bytes] = products::code_bytes(n, n_columns);
    let y_bytes = 4 * n_rows * n_columns;
    let size = products::columns_bytes(n, n_columns) + arena_bytes([matrix_bytes, y_bytes]);
    let mut arena = Arena::new(gpu.context(), "a product", size)?;
    let at = arena.take(matrix_bytes)?;
    let floats = arena.take(4 * x.len())?;
    let codes = (arena.take(code_bytes)?, arena.take(scale_bytes)?);
    let y = arena.take(y_bytes)?;
    let mut out = vec![0; y_bytes];
    // SAFETY: all buffers have the sizes that the kernels need, and live until the last copy is done
    unsafe {
        let matrix = weights::upload(gpu, &mut weights::Staging::default(), data, ty, n_rows, n, at)?;
        let codes = plan::reads_codes(matrix.ty).then_some(codes);
        let columns = Columns { n, n_columns, floats, codes };
        gpu.copy_in(floats, &x.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>())?;
        let to = Target { y, bias: None, residual: None };
        let launch = |gpu: &Gpu| {
            products::quantize(gpu, &columns)?;
            products::multiply(gpu, &matrix, &columns, &to)
        };
        match replays {
            0 => launch(gpu)?,
            _ => {
                // the first launch compiles and loads the kernels, which cannot be recorded
                launch(gpu)?;
                let graph = gpu.record(launch)?;
                for _ in 0..replays {
                    gpu.fill(y, 0xFF, y_bytes)?;
                    gpu.replay(&graph)?;
                }
                gpu.wait()?;
            }
        }
        gpu.copy_out(&mut out, y)?;
    }
    Ok(out.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
}

/// Uploads a matrix to the GPU, which stores it in its own layout, decodes it there, and returns the result of
/// shape `(n_rows, n)`.
#[pyfunction]
pub fn cuda_dequantize<'py>(
    py: Python<'py>,
    nvrtc: Vec<PathBuf>,
    device: usize,
    type_id: u32,
    data: PyReadonlyArray1<'py, u8>,
    n_rows: usize,
    n: usize,
) -> PyResult<Bound<'py, PyArray2<f32>>> {
    let (ty, data) = (quant_type(type_id)?, data.as_slice()?);
    let rows = py.detach(|| {
        let gpu = Gpu::open(loader::runtime(&Search { nvrtc, ..Search::default() })?, device)?;
        let (matrix_bytes, out_bytes) = (weights::matrix_bytes(ty, n_rows, n)?, 4 * n_rows * n);
        let mut arena = Arena::new(gpu.context(), "rows", arena_bytes([matrix_bytes, out_bytes]))?;
        let (at, to) = (arena.take(matrix_bytes)?, arena.take(out_bytes)?);
        let mut out = vec![0; out_bytes];
        // SAFETY: both buffers have the sizes that the kernel needs, and live until the copy is done
        unsafe {
            let ty = weights::upload(&gpu, &mut weights::Staging::default(), data, ty, n_rows, n, at)?.ty;
            let plan = Call::Dequantize { ty, to: FloatType::F32, n_rows, n, chosen: false }.plan()?;
            products::launch(&gpu, &plan, &[("w", at), ("out", to)])?;
            gpu.copy_out(&mut out, to)?;
        }
        Ok(out.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect::<Vec<f32>>())
    });
    PyArray1::from_vec(py, rows.map_err(|e: Error| e.raise(py))?).reshape([n_rows, n])
}
