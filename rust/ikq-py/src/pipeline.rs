//! Quantizing whole models: importance matrices, plans, runs.

use std::path::PathBuf;
use std::sync::mpsc::channel;

use ikq_formats::QuantType;
use ikq_gguf::{Options, SplitBy};
use ikq_pool::Stop;
use ikq_quantize::ftype::Ftype;
use ikq_quantize::plan::{Plan, PlanOptions, Statistics};
use ikq_quantize::recipe::{CustomRule, Recipe};
use ikq_quantize::run::{Event, run};
use numpy::{PyArray1, PyArray2, PyArrayMethods};
use pyo3::prelude::*;

use crate::enter::{enter, enter_with_events};
use crate::errors::{Raise, ShapeError};
use crate::gguf::Model;
use crate::simd::isa;
use crate::threads::pool;
use crate::types::quant_type;

/// An importance matrix file.
#[pyclass(frozen, module = "ikq._ikq")]
pub struct Imatrix {
    inner: ikq_quantize::imatrix::Imatrix,
}

/// Values [experts, columns] and counts of an entry.
type EntryArrays<'py> = (Bound<'py, PyArray2<f32>>, Bound<'py, PyArray1<f32>>);

#[pymethods]
impl Imatrix {
    /// Reads a `.dat` or GGUF imatrix.
    #[staticmethod]
    fn open(py: Python<'_>, path: PathBuf) -> PyResult<Imatrix> {
        let opened = enter(py, usize::MAX, |_| {
            let read = ikq_quantize::imatrix::Imatrix::open(&path);
            read.map_err(|e| Stop::Failed(ikq_quantize::Error::from(e)))
        });
        opened.map(|inner| Imatrix { inner })
    }

    #[getter]
    fn path(&self) -> PathBuf {
        self.inner.path.clone()
    }

    #[getter]
    fn datasets(&self) -> Vec<String> {
        self.inner.datasets.clone()
    }

    #[getter]
    fn n_chunks(&self) -> Option<u32> {
        self.inner.n_chunks
    }

    fn names(&self) -> Vec<&str> {
        self.inner.entries().iter().map(|(name, _)| name.as_str()).collect()
    }

    /// The entry of that name; `None` if there is none.
    fn get<'py>(&self, py: Python<'py>, name: &str) -> PyResult<Option<EntryArrays<'py>>> {
        let Some(entry) = self.inner.get(name) else { return Ok(None) };
        let experts = entry.counts.len().max(1);
        let values =
            PyArray1::from_slice(py, &entry.values).reshape([experts, entry.values.len() / experts])?;
        Ok(Some((values, PyArray1::from_slice(py, &entry.counts))))
    }

    /// The name of the entry that serves this tensor: its own or one with the same input.
    fn entry_for(&self, name: &str) -> Option<String> {
        self.inner.find(name).map(|(_, borrowed)| borrowed.unwrap_or_else(|| name.to_string()))
    }
}

/// Name, number and base type id of everything that TYPE can be.
#[pyfunction]
pub fn ftypes() -> Vec<(&'static str, u32, u32, bool)> {
    Ftype::all().map(|f| (f.name, f.id, f.base.id(), f.is_mix())).collect()
}

/// One tensor of a plan.
#[pyclass(frozen, get_all, module = "ikq._ikq")]
pub struct TensorPlan {
    name: String,
    /// Row length first, as the command prints it.
    dims: Vec<u64>,
    from_type: u32,
    to_type: u32,
    copied: bool,
    reason: String,
    fallback_from: Option<u32>,
    bytes_in: u64,
    bytes_out: u64,
    /// "not used", "missing", "own" or the name of the entry it is borrowed from.
    statistics: String,
    unseen_experts: Vec<usize>,
}

/// What `quantize` will do to a model.
#[pyclass(frozen, module = "ikq._ikq")]
pub struct QuantizePlan {
    plan: Plan,
    model: ikq_gguf::Model,
}

/// Plans; every argument is explicit, defaults live in Python.
#[pyfunction]
#[pyo3(signature = (model, ftype, *, pure, custom, token_embedding_type, output_tensor_type,
    ffn_gate_inp_type, imatrix, allow_requantize, ignore_imatrix_rules, max_bytes, max_tensors))]
#[expect(clippy::too_many_arguments, reason = "the options of the command, named in Python")]
pub fn plan_quantize(
    py: Python<'_>,
    model: &Model,
    ftype: &str,
    pure: bool,
    custom: Vec<String>,
    token_embedding_type: Option<u32>,
    output_tensor_type: Option<u32>,
    ffn_gate_inp_type: Option<u32>,
    imatrix: Option<&Imatrix>,
    allow_requantize: bool,
    ignore_imatrix_rules: bool,
    max_bytes: Option<u64>,
    max_tensors: Option<usize>,
) -> PyResult<QuantizePlan> {
    let split = match (max_bytes, max_tensors) {
        (None, None) => None,
        (Some(n), None) => Some(SplitBy::MaxBytes(n)),
        (None, Some(n)) => Some(SplitBy::MaxTensors(n)),
        _ => return Err(ShapeError::new_err("split by size or by number of tensors, not by both")),
    };
    let ty = |id: Option<u32>| -> PyResult<Option<QuantType>> { id.map(quant_type).transpose() };
    let mut rules = Vec::new();
    for list in &custom {
        rules.extend(CustomRule::parse_list(list).map_err(|e| e.raise(py))?);
    }
    let recipe = Recipe {
        ftype: Ftype::parse(ftype).map_err(|e| e.raise(py))?,
        pure,
        custom: rules,
        token_embedding_type: ty(token_embedding_type)?,
        output_tensor_type: ty(output_tensor_type)?,
        ffn_gate_inp_type: ty(ffn_gate_inp_type)?,
    };
    let options = PlanOptions {
        allow_requantize,
        ignore_imatrix_rules,
        output: Options { split, ..Options::default() },
    };
    let (model, imatrix) = (model.inner.clone(), imatrix.map(|m| &m.inner));
    let plan = py.detach(|| Plan::new(&model, &recipe, imatrix, &options));
    plan.map(|plan| QuantizePlan { plan, model }).map_err(|e| e.raise(py))
}

#[pymethods]
impl QuantizePlan {
    fn tensors(&self) -> Vec<TensorPlan> {
        self.plan.tensors.iter().map(describe).collect()
    }

    /// Bytes of all output files, to the byte.
    #[getter]
    fn total_bytes(&self) -> u64 {
        self.plan.layout.total_size()
    }

    /// Writes the model to `target`; `progress(index, seconds)` is called in order of tensors,
    /// `on_bytes(n)` a few times a second with the bytes of the source done since. Returns the names of
    /// the files.
    #[pyo3(signature = (target, *, n_threads, isa_name, progress, on_bytes))]
    fn run(
        &self,
        py: Python<'_>,
        target: PathBuf,
        n_threads: Option<usize>,
        isa_name: Option<&str>,
        progress: Option<Py<PyAny>>,
        on_bytes: Option<Py<PyAny>>,
    ) -> PyResult<Vec<PathBuf>> {
        let (kind, threads) = (isa(isa_name)?, pool(n_threads)?);
        let (events, inbox) = channel();
        let job = |cancel: &ikq_pool::Cancel| {
            let report = move |event| {
                // nobody listens any more only when the call is being abandoned
                let _ = events.send(event);
            };
            let done = run(&self.plan, &self.model, &target, &threads, kind, cancel, report);
            done.map_err(|e| match e {
                ikq_quantize::Error::Cancelled => Stop::Cancelled,
                other => Stop::Failed(other),
            })
        };
        enter_with_events(py, job, move |py| {
            let mut n_bytes = 0;
            for event in inbox.try_iter() {
                match (event, &progress) {
                    (Event::Bytes(n), _) => n_bytes += n,
                    (Event::Tensor { index, seconds }, Some(progress)) => {
                        progress.call1(py, (index, seconds))?;
                    }
                    (Event::Tensor { .. }, None) => {}
                }
            }
            match &on_bytes {
                Some(on_bytes) if n_bytes > 0 => on_bytes.call1(py, (n_bytes,)).map(drop),
                _ => Ok(()),
            }
        })
    }
}

fn describe(t: &ikq_quantize::plan::TensorPlan) -> TensorPlan {
    let (statistics, unseen_experts) = match &t.statistics {
        Statistics::NotUsed => ("not used".to_string(), Vec::new()),
        Statistics::Missing => ("missing".to_string(), Vec::new()),
        Statistics::Found { borrowed_from, unseen_experts, .. } => {
            (borrowed_from.clone().unwrap_or_else(|| "own".to_string()), unseen_experts.clone())
        }
    };
    TensorPlan {
        name: t.name.clone(),
        dims: t.dims.clone(),
        from_type: t.from.id(),
        to_type: t.to.id(),
        copied: t.encode.is_none(),
        reason: t.reason.clone(),
        fallback_from: t.fallback_from.map(QuantType::id),
        bytes_in: t.bytes_in,
        bytes_out: t.bytes_out,
        statistics,
        unseen_experts,
    }
}
