//! Quantizing parts of a plan, which are called units, in other processes.

use std::path::PathBuf;

use ikq_gguf::{partial_path, target_paths};
use ikq_quantize::remote::{Outside, OutsideError, Parcel, Worker};
use pyo3::exceptions::PyIndexError;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::PyBytes;

use crate::enter::enter;
use crate::errors::{Raise, ShapeError};
use crate::pipeline::{QuantizePlan, stop};
use crate::simd::isa;

/// A Python object with methods `begin(numbers)` and `next()`, which hands units to other processes and returns
/// their results.
pub struct PyOutside(pub Py<PyAny>);

/// A finished unit: its number, its journal record, and its bytes, or `None` if they are already in the file.
type Sent = (usize, PyBackedBytes, Option<PyBackedBytes>);

impl Outside for PyOutside {
    fn begin(&self, wanted: &[usize]) -> Result<(), OutsideError> {
        let begun = Python::attach(|py| self.0.bind(py).call_method1("begin", (wanted.to_vec(),)).map(drop));
        begun.map_err(|e| Box::new(e) as OutsideError)
    }

    fn next(&self) -> Result<Vec<Parcel>, OutsideError> {
        let next = Python::attach(|py| -> PyResult<Vec<Parcel>> {
            let sent: Vec<Sent> = self.0.bind(py).call_method0("next")?.extract()?;
            let parcel = |(number, record, bytes): Sent| {
                let record = record.as_ref().try_into();
                let record = record.map_err(|_| ShapeError::new_err("a record of another length"))?;
                Ok(Parcel { number, record, bytes: bytes.map(|b| b.to_vec()) })
            };
            sent.into_iter().map(parcel).collect()
        });
        next.map_err(|e| Box::new(e) as OutsideError)
    }
}

/// Computes single units of a plan for a run in another process.
#[pyclass(frozen, module = "ikq._ikq")]
pub struct PlanWorker {
    inner: Worker,
}

impl PlanWorker {
    fn known(&self, number: usize) -> PyResult<usize> {
        match number < self.inner.n_units() {
            true => Ok(number),
            false => Err(PyIndexError::new_err(format!("there is no unit {number}"))),
        }
    }
}

#[pymethods]
impl PlanWorker {
    #[new]
    #[pyo3(signature = (plan, *, isa_name, measure_errors, clamp))]
    fn new(
        py: Python<'_>,
        plan: &QuantizePlan,
        isa_name: Option<&str>,
        measure_errors: bool,
        clamp: bool,
    ) -> PyResult<PlanWorker> {
        let kind = isa(isa_name)?;
        let (plan, model) = (plan.plan.clone(), plan.model.clone());
        let made =
            enter(py, usize::MAX, |_| Worker::new(plan, model, kind, measure_errors, clamp).map_err(stop));
        made.map(|inner| PlanWorker { inner })
    }

    /// A hash of everything that the bytes of the units depend on.
    #[getter]
    fn identity(&self) -> u64 {
        self.inner.identity()
    }

    #[getter]
    fn n_units(&self) -> usize {
        self.inner.n_units()
    }

    /// The number of the output file that a unit's bytes belong to, and their offset in it.
    fn spot(&self, number: usize) -> PyResult<(usize, u64)> {
        Ok(self.inner.spot(self.known(number)?))
    }

    /// Computes a unit, and returns its journal record and its bytes.
    fn unit<'py>(
        &self,
        py: Python<'py>,
        number: usize,
    ) -> PyResult<(Bound<'py, PyBytes>, Bound<'py, PyBytes>)> {
        let number = self.known(number)?;
        let Parcel { record, bytes, .. } = py.detach(|| self.inner.unit(number)).map_err(|e| e.raise(py))?;
        Ok((PyBytes::new(py, &record), PyBytes::new(py, &bytes.unwrap_or_default())))
    }
}

/// The paths of the partial files that a run of a plan writes before it renames them to the output files.
#[pyfunction]
pub fn partial_files(py: Python<'_>, plan: &QuantizePlan, target: PathBuf) -> PyResult<Vec<PathBuf>> {
    let targets = target_paths(&target, &plan.plan.layout).map_err(|e| e.raise(py))?;
    Ok(targets.iter().map(|target| partial_path(target)).collect())
}
