//! Running models: the engine of `ikq.Model`, and what the kernels of this machine are.

use std::sync::{Mutex, MutexGuard, PoisonError};

use ikq_kernels::act::Activations;
use ikq_kernels::attention::CacheType;
use ikq_kernels::matmul::{Compute, Matrix, Scratch, check, multiply};
use ikq_model::engine::{Options, Want};
use ikq_model::ffn::PlanOptions;
use ikq_model::load::Mmap;
use ikq_model::spec::ModelSpec;
use ikq_pool::Stop;
use numpy::{PyArray1, PyArray2, PyArrayMethods, PyReadonlyArray1, PyReadonlyArray2};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::collect::StatisticsCollector;
use crate::enter::enter;
use crate::errors::{Raise, UnsupportedError};
use crate::gguf::Model;
use crate::simd::isa;
use crate::types::quant_type;

/// A loaded model with its cache. One call at a time: others wait.
#[pyclass(frozen, module = "ikq._ikq")]
pub struct Engine {
    /// `None` after `close`.
    inner: Mutex<Option<ikq_model::Engine>>,
}

/// Layer, role, plan, why, types of gate, up and down.
type FfnPlan = (usize, &'static str, &'static str, String, [&'static str; 3]);

impl Engine {
    fn lock(&self) -> MutexGuard<'_, Option<ikq_model::Engine>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `f` on the engine with the interpreter released while waiting for it.
    fn with<R: Send>(
        &self,
        py: Python<'_>,
        f: impl FnOnce(&mut ikq_model::Engine) -> Result<R, ikq_model::Error> + Send,
    ) -> PyResult<R> {
        let done = py.detach(|| self.lock().as_mut().map(f));
        done.ok_or_else(closed)?.map_err(|e| e.raise(py))
    }
}

fn closed() -> PyErr {
    PyValueError::new_err("the model is closed")
}

#[pymethods]
impl Engine {
    /// Loads the weights that `spec` (JSON) names.
    #[staticmethod]
    #[pyo3(signature = (model, spec, *, n_ctx, n_threads, n_ubatch, cache_type_k, cache_type_v, compute,
                        fused_up_gate, fused_moe, merge_up_gate_experts, expert_reduction, mmap, repack, isa_name))]
    #[expect(clippy::too_many_arguments, reason = "the options of loading, named in Python")]
    fn load(
        py: Python<'_>,
        model: &Model,
        spec: &str,
        n_ctx: Option<usize>,
        n_threads: Option<usize>,
        n_ubatch: usize,
        cache_type_k: &str,
        cache_type_v: &str,
        compute: &str,
        fused_up_gate: bool,
        fused_moe: bool,
        merge_up_gate_experts: bool,
        expert_reduction: Option<(usize, f32)>,
        mmap: &str,
        repack: bool,
        isa_name: Option<&str>,
    ) -> PyResult<Engine> {
        if n_threads == Some(0) {
            return Err(PyValueError::new_err("n_threads must be at least 1"));
        }
        let cache = |name: &str| {
            CacheType::parse(name).ok_or_else(|| {
                let known = CacheType::ALL.map(CacheType::name).join(", ");
                UnsupportedError::new_err(format!("no cache of type `{name}`; there are {known}"))
            })
        };
        let options = Options {
            n_ctx,
            n_threads: n_threads.unwrap_or(0),
            n_ubatch,
            cache_type_k: cache(cache_type_k)?,
            cache_type_v: cache(cache_type_v)?,
            compute: parse_compute(compute)?,
            plans: PlanOptions { fused_up_gate, fused_moe, merge_up_gate: merge_up_gate_experts },
            expert_reduction,
            mmap: match mmap {
                "auto" => Mmap::Auto,
                "on" => Mmap::On,
                "off" => Mmap::Off,
                other => return Err(one_of("mmap", other, "auto, on, off")),
            },
            repack,
        };
        let spec = ModelSpec::from_json(spec).map_err(|e| e.raise(py))?;
        let kind = isa(isa_name)?;
        let inner = enter(py, usize::MAX, |cancel| {
            ikq_model::Engine::load(&model.inner, spec, kind, options, cancel)
        })?;
        Ok(Engine { inner: Mutex::new(Some(inner)) })
    }

    /// Runs tokens after what the cache holds; logits `(n, n_vocab)` of the positions wanted.
    #[pyo3(signature = (tokens, want))]
    fn eval<'py>(
        &self,
        py: Python<'py>,
        tokens: Vec<i64>,
        want: &str,
    ) -> PyResult<Bound<'py, PyArray2<f32>>> {
        let want = match want {
            "all" => Want::All,
            "last" => Want::Last,
            "none" => Want::Nothing,
            other => return Err(one_of("want", other, "all, last, none")),
        };
        let (logits, n_vocab) = enter(py, usize::MAX, |cancel| {
            let mut engine = self.lock();
            let Some(engine) = engine.as_mut() else {
                return Ok((None, 0));
            };
            let logits = engine.eval(&tokens, want, cancel)?;
            Ok::<_, Stop<ikq_model::Error>>((Some(logits), engine.spec().n_vocab))
        })?;
        let logits = logits.ok_or_else(closed)?;
        let rows = logits.len() / n_vocab;
        PyArray1::from_vec(py, logits).reshape([rows, n_vocab])
    }

    fn truncate(&self, py: Python<'_>, n: usize) -> PyResult<()> {
        self.with(py, |e| e.truncate(n))
    }

    fn shift(&self, py: Python<'_>, n_keep: usize, n_discard: usize) -> PyResult<()> {
        self.with(py, |e| e.shift(n_keep, n_discard))
    }

    #[getter]
    fn n_past(&self, py: Python<'_>) -> PyResult<usize> {
        self.with(py, |e| Ok(e.n_past()))
    }

    #[getter]
    fn n_ctx(&self, py: Python<'_>) -> PyResult<usize> {
        self.with(py, |e| Ok(e.n_ctx()))
    }

    #[getter]
    fn n_threads(&self, py: Python<'_>) -> PyResult<usize> {
        self.with(py, |e| Ok(e.n_threads()))
    }

    /// Bytes of weights read from the mapped files, of weights copied, of the cache.
    #[getter]
    fn memory(&self, py: Python<'_>) -> PyResult<(usize, usize, usize)> {
        self.with(py, |e| Ok((e.mapped_bytes, e.copied_bytes, e.cache_bytes())))
    }

    /// Why weights were copied or not.
    #[getter]
    fn why_memory(&self, py: Python<'_>) -> PyResult<String> {
        self.with(py, |e| Ok(e.why_memory.clone()))
    }

    /// Lets a collector (or none) see what the weights are multiplied with.
    fn set_collector(&self, py: Python<'_>, collector: Option<&StatisticsCollector>) -> PyResult<()> {
        let collector = collector.map(|c| c.inner.clone());
        self.with(py, |e| {
            e.set_collector(collector);
            Ok(())
        })
    }

    /// How each FFN is computed.
    fn plans(&self, py: Python<'_>) -> PyResult<Vec<FfnPlan>> {
        self.with(py, |e| {
            let rows = e.plans().into_iter();
            Ok(rows
                .map(|(layer, role, x)| {
                    let types = [&x.gate, &x.up, &x.down].map(|w| w.ty.name());
                    (layer, role, x.plan.kind.name(), x.plan.why.clone(), types)
                })
                .collect())
        })
    }

    /// Frees weights and cache; the engine cannot be used any more.
    fn close(&self, py: Python<'_>) {
        py.detach(|| drop(self.lock().take()));
    }
}

fn parse_compute(name: &str) -> PyResult<Compute> {
    match name {
        "auto" => Ok(Compute::Auto),
        "f32" => Ok(Compute::F32),
        other => Err(one_of("compute", other, "auto, f32")),
    }
}

fn one_of(option: &str, found: &str, allowed: &str) -> PyErr {
    PyValueError::new_err(format!("{option}={found:?}: one of {allowed} is needed"))
}

/// How products with this type are computed.
#[pyfunction]
#[pyo3(signature = (type_id, isa_name))]
pub fn kernel_name(type_id: u32, isa_name: Option<&str>) -> PyResult<String> {
    Ok(check::kernel_name(isa(isa_name)?, quant_type(type_id)?, Compute::Auto))
}

/// Multiplies with random weights of this type; the largest error as a share of what rounding explains.
#[pyfunction]
#[pyo3(signature = (type_id, isa_name))]
pub fn kernel_self_test(py: Python<'_>, type_id: u32, isa_name: Option<&str>) -> PyResult<f64> {
    let (kind, ty) = (isa(isa_name)?, quant_type(type_id)?);
    py.detach(|| check::self_test(kind, ty)).map_err(|e| e.raise(py))
}

/// `x (n, k)` times the transpose of a matrix of `n_rows` rows: `(n, n_rows)`.
#[pyfunction]
#[pyo3(signature = (type_id, data, n_rows, x, compute, isa_name))]
pub fn product<'py>(
    py: Python<'py>,
    type_id: u32,
    data: PyReadonlyArray1<'py, u8>,
    n_rows: usize,
    x: PyReadonlyArray2<'py, f32>,
    compute: &str,
    isa_name: Option<&str>,
) -> PyResult<Bound<'py, PyArray2<f32>>> {
    let (kind, ty, compute) = (isa(isa_name)?, quant_type(type_id)?, parse_compute(compute)?);
    let (data, x) = (data.as_slice()?, x.as_array());
    let (n, k) = x.dim();
    let matrix = Matrix::new(ty, n_rows, k, data).map_err(|e| e.raise(py))?;
    let mut acts = Activations::default();
    acts.resize(k, n);
    for (mut column, x) in acts.columns_mut().into_iter().zip(x.rows()) {
        column.floats.iter_mut().zip(x).for_each(|(to, from)| *to = *from);
        column.quantize(kind);
    }
    let columns: Vec<u32> = (0..n as u32).collect();
    let mut out = vec![0.0; n * n_rows];
    multiply(kind, compute, &matrix, 0..n_rows, &acts, &columns, &mut Scratch::default(), &mut out);
    PyArray1::from_vec(py, out).reshape([n, n_rows])
}
