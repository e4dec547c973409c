//! GPUs as Python sees them: what there is, or why there is nothing to use, and kernels compiled ahead of use.

use std::path::PathBuf;

use ikq_cuda::Error;
use ikq_cuda::cubins::Cubins;
use ikq_cuda::loader::{self, Facts, Search};
use ikq_cuda::sources::{self, Specialisation};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::errors::{FormatError, IkqError, Raise};

pyo3::import_exception!(ikq.errors, DeviceError);

impl Raise for Error {
    fn raise(self, _: Python<'_>) -> PyErr {
        let message = self.to_string();
        match self {
            Error::Plan { .. } => IkqError::new_err(message),
            Error::Source { .. } => FormatError::new_err(message),
            _ => DeviceError::new_err(message),
        }
    }
}

/// What was found; `nvrtc` are files and folders that may hold the compiler. Only the first call of a process looks.
#[pyfunction]
pub fn cuda_status(py: Python<'_>, nvrtc: Vec<PathBuf>) -> PyResult<Bound<'_, PyDict>> {
    let (found, runtime) = py.detach(|| loader::look(&Search { nvrtc }));
    let status = PyDict::new(py);
    status.set_item("usable", runtime.is_ok())?;
    status.set_item("reason", runtime.as_ref().err().map(ToString::to_string))?;
    status.set_item("reason_code", runtime.as_ref().err().map(|e| e.word()))?;
    status.set_item("driver", found.cuda.and_then(|_| loader::driver_version()))?;
    status.set_item("cuda_version", found.cuda.map(loader::version))?;
    let devices = found.devices.iter().map(|d| facts(py, d)).collect::<PyResult<Vec<_>>>()?;
    status.set_item("devices", devices)?;
    status.set_item("emulated", found.devices.iter().any(Facts::is_emulated))?;
    let nvrtc = runtime.as_ref().ok().map(|r| &r.nvrtc);
    status.set_item("nvrtc", nvrtc.map(|n| n.path.clone()))?;
    status.set_item("nvrtc_version", nvrtc.map(|n| format!("{}.{}", n.version.0, n.version.1)))?;
    status.set_item("cache", Cubins::of_environment().folder())?;
    Ok(status)
}

fn facts<'py>(py: Python<'py>, device: &Facts) -> PyResult<Bound<'py, PyDict>> {
    let row = PyDict::new(py);
    row.set_item("name", &device.name)?;
    row.set_item("compute_capability", format!("{}.{}", device.sm / 10, device.sm % 10))?;
    row.set_item("memory_bytes", device.memory_bytes)?;
    row.set_item("n_multiprocessors", device.n_multiprocessors)?;
    row.set_item("usable", device.sm >= loader::OLDEST_SM)?;
    Ok(row)
}

/// Names of the kernel files.
#[pyfunction]
pub fn cuda_files(py: Python<'_>) -> PyResult<Vec<String>> {
    let files = sources::files().map_err(|e| e.raise(py))?;
    Ok(files.into_iter().map(|(name, _)| name).collect())
}

/// Compiles one file with these defines for an architecture (`sm_90`) by the NVRTC that is found in `nvrtc` (files and
/// folders), whose CUDA is at most `major`: the cubin and the compiler's log. Needs no GPU.
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
