//! Quantizing whole models: reading an imatrix, planning, and running the plan.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::channel;

use ikq_encode::EncodeOptions;
use ikq_formats::QuantType;
use ikq_gguf::{Options, SplitBy};
use ikq_pool::Stop;
use ikq_quantize::covariance::{Covariances, Feedback};
use ikq_quantize::custom::CustomRule;
use ikq_quantize::ftype::Ftype;
use ikq_quantize::measure::Errors as ErrorSums;
use ikq_quantize::overrides::Override;
use ikq_quantize::plan::{Plan, PlanOptions, Statistics};
use ikq_quantize::predict;
use ikq_quantize::recipe::Recipe;
use ikq_quantize::remote::Outside;
use ikq_quantize::repack::{Direction, Repack};
use ikq_quantize::roles::Role;
use ikq_quantize::run::{Done, Event, Means, Origin, RunOptions, run};
use numpy::{PyArray1, PyArray2, PyArrayMethods};
use pyo3::prelude::*;

use crate::enter::{enter, enter_with_events};
use crate::errors::{Raise, ShapeError};
use crate::gguf::Model;
use crate::remote::PyOutside;
use crate::simd::isa;
use crate::threads::pool;
use crate::types::quant_type;

/// An importance matrix file.
#[pyclass(frozen, module = "ikq._ikq")]
pub struct Imatrix {
    inner: ikq_quantize::imatrix::Imatrix,
}

/// An entry of an imatrix: its values `[experts, columns]` and its counts.
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

    #[getter]
    fn all_experts(&self) -> bool {
        self.inner.all_experts
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

    /// The name of the entry that is used for this tensor: its own, or that of a tensor with the same input.
    fn entry_for(&self, name: &str) -> Option<String> {
        self.inner.find(name).map(|(_, borrowed)| borrowed.unwrap_or_else(|| name.to_string()))
    }
}

/// Every file type that `ikq quantize` accepts as TYPE: its name, its `general.file_type` number, the id of its
/// base type, and whether it is a mix of types.
#[pyfunction]
pub fn ftypes() -> Vec<(&'static str, Option<u32>, Option<u32>, bool)> {
    Ftype::all().map(|f| (f.name, f.id, f.base.map(QuantType::id), f.is_mix())).collect()
}

/// One tensor of a plan.
#[pyclass(frozen, get_all, module = "ikq._ikq")]
pub struct TensorPlan {
    name: String,
    /// The shape with the length of a row first, as `ikq quantize` prints it.
    dims: Vec<u64>,
    from_type: u32,
    to_type: u32,
    copied: bool,
    repacked: bool,
    unbiased: bool,
    /// "used", "missing" or "not used".
    feedback: &'static str,
    /// Matrices that are encoded without feedback, as too few tokens reached them.
    without_feedback: Vec<usize>,
    reason: String,
    fallback_from: Option<u32>,
    bytes_in: u64,
    bytes_out: u64,
    /// "not used", "missing", "own", or the name of the imatrix entry that is used instead of its own.
    statistics: String,
    unseen_experts: Vec<usize>,
    thin_experts: Vec<usize>,
}

/// Which tensors of a plan an imatrix has data for.
#[pyclass(frozen, get_all, module = "ikq._ikq")]
pub struct Coverage {
    n_tensors: usize,
    n_covered: usize,
    n_experts: usize,
    n_experts_seen: usize,
    missing: Vec<String>,
    /// Pairs of a tensor's name and the name of the entry that is used for it instead of its own.
    borrowed: Vec<(String, String)>,
    /// For each tensor with unseen experts its name, how many of its experts were seen, and how many it has.
    partial: Vec<(String, usize, usize)>,
    left_out: Vec<String>,
    is_complete: bool,
}

/// A plan: what `quantize` will do to every tensor of a model.
#[pyclass(frozen, module = "ikq._ikq")]
pub struct QuantizePlan {
    pub(crate) plan: Arc<Plan>,
    pub(crate) model: ikq_gguf::Model,
}

/// The options of `ikq quantize`. The Python side holds the defaults and always passes every option.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
pub struct Wishes {
    pure: bool,
    /// Pairs of the role of a tensor, such as `attn_v`, and a type id.
    roles: Vec<(String, u32)>,
    /// Rules of the form `regex=type`. Each item is the form of the text (`list` for several rules, `rule` for a
    /// single one, `file` for a path) and the text.
    custom: Vec<(String, String)>,
    token_embedding_type: Option<u32>,
    per_layer_token_embedding_type: Option<u32>,
    output_tensor_type: Option<u32>,
    ffn_gate_inp_type: Option<u32>,
    leave_output_tensor: bool,
    extra_output_tensor: Option<u32>,
    symmetric_q40: bool,
    biased: bool,
    allow_requantize: bool,
    ignore_imatrix_rules: bool,
    include_weights: Vec<String>,
    exclude_weights: Vec<String>,
    hide_imatrix: bool,
    override_kv: Vec<String>,
    max_bytes: Option<u64>,
    max_tensors: Option<usize>,
    keep_split: bool,
    no_tensor_first_split: bool,
    allow_missing: bool,
    repack: bool,
    unrepack: bool,
    repack_pattern: Vec<String>,
    error_feedback: Option<PathBuf>,
    in_rounds: bool,
    only_layer: Option<u32>,
}

impl Wishes {
    fn recipe(&self, py: Python<'_>, ftype: &str) -> PyResult<Recipe> {
        let mut recipe = Recipe::new(Ftype::parse(ftype).map_err(|e| e.raise(py))?);
        recipe.pure = self.pure;
        for (name, ty) in &self.roles {
            let role =
                Role::parse(name).ok_or_else(|| ShapeError::new_err(format!("`{name}` is no role")))?;
            recipe.roles.set(role, quant_type(*ty)?);
        }
        for (form, text) in &self.custom {
            let rules = match form.as_str() {
                "file" => read_recipe(text.as_ref()),
                "rule" => CustomRule::parse(text).map(|rule| vec![rule]),
                _ => CustomRule::parse_list(text),
            };
            recipe.custom.extend(rules.map_err(|e| e.raise(py))?);
        }
        recipe.token_embedding_type = known(self.token_embedding_type)?;
        recipe.per_layer_token_embedding_type = known(self.per_layer_token_embedding_type)?;
        recipe.output_tensor_type = known(self.output_tensor_type)?;
        recipe.ffn_gate_inp_type = known(self.ffn_gate_inp_type)?;
        recipe.leave_output_tensor = self.leave_output_tensor;
        Ok(recipe)
    }

    fn covariances(&self, py: Python<'_>) -> PyResult<Option<Arc<Covariances>>> {
        let Some(path) = &self.error_feedback else { return Ok(None) };
        py.detach(|| Covariances::open(path)).map(|c| Some(Arc::new(c))).map_err(|e| e.raise(py))
    }

    fn repacking(&self) -> Option<Result<Repack, ikq_quantize::Error>> {
        let direction = match (self.repack, self.unrepack) {
            (false, false) => return None,
            (true, _) => Direction::Together,
            (false, true) => Direction::Apart,
        };
        Some(Repack::new(direction, &self.repack_pattern))
    }

    fn options(&self, py: Python<'_>) -> PyResult<PlanOptions> {
        let split = match (self.max_bytes, self.max_tensors) {
            (None, None) => None,
            (Some(n), None) => Some(SplitBy::MaxBytes(n)),
            (None, Some(n)) => Some(SplitBy::MaxTensors(n)),
            _ => return Err(ShapeError::new_err("split by size or by number of tensors, not by both")),
        };
        let overrides = self.override_kv.iter().map(|text| Override::parse(text)).collect::<Result<_, _>>();
        Ok(PlanOptions {
            allow_requantize: self.allow_requantize,
            ignore_imatrix_rules: self.ignore_imatrix_rules,
            include_weights: self.include_weights.clone(),
            exclude_weights: self.exclude_weights.clone(),
            hide_imatrix: self.hide_imatrix,
            extra_output_tensor: known(self.extra_output_tensor)?,
            overrides: overrides.map_err(|e| e.raise(py))?,
            encode: EncodeOptions {
                symmetric_q40: self.symmetric_q40,
                biased: self.biased,
                ..EncodeOptions::default()
            },
            output: Options {
                split,
                no_tensor_first_split: self.no_tensor_first_split,
                ..Options::default()
            },
            keep_split: self.keep_split,
            allow_missing: self.allow_missing,
            repack: self.repacking().transpose().map_err(|e| e.raise(py))?,
            covariances: self.covariances(py)?,
            in_rounds: self.in_rounds,
            only_layer: self.only_layer,
        })
    }
}

fn read_recipe(path: &Path) -> Result<Vec<CustomRule>, ikq_quantize::Error> {
    let bytes = std::fs::read(path)
        .map_err(|source| ikq_quantize::Error::Recipe { path: path.to_path_buf(), source })?;
    CustomRule::parse_file(path, &bytes)
}

fn known(id: Option<u32>) -> PyResult<Option<QuantType>> {
    id.map(quant_type).transpose()
}

/// Plans the quantization of a model; `wishes` is a mapping with the fields of [`Wishes`].
#[pyfunction]
pub fn plan_quantize(
    py: Python<'_>,
    model: &Model,
    ftype: &str,
    imatrix: Option<&Imatrix>,
    wishes: Wishes,
) -> PyResult<QuantizePlan> {
    let (recipe, options) = (wishes.recipe(py, ftype)?, wishes.options(py)?);
    let (model, imatrix) = (model.inner.clone(), imatrix.map(|m| &m.inner));
    let plan = py.detach(|| Plan::new(&model, &recipe, imatrix, &options));
    // what is written of a vocabulary is in the plan
    let is_made = model.tensors().iter().any(|t| t.made.is_some());
    let model = if is_made { model.without_metadata() } else { model };
    plan.map(|plan| QuantizePlan { plan: Arc::new(plan), model }).map_err(|e| e.raise(py))
}

/// The names of the tensor roles for which there is a type option.
#[pyfunction]
pub fn roles() -> Vec<&'static str> {
    Role::names().collect()
}

/// The file type TYPE that corresponds to this tensor type, if there is one: the one of the same name, or else the
/// first with this base type.
#[pyfunction]
pub fn ftype_of_type(ty: u32) -> PyResult<Option<&'static str>> {
    Ok(Ftype::of_type(quant_type(ty)?).map(|f| f.name))
}

#[pymethods]
impl QuantizePlan {
    fn tensors(&self) -> Vec<TensorPlan> {
        let covariances = self.plan.covariances.as_deref();
        self.plan.tensors.iter().map(|t| describe(t, covariances)).collect()
    }

    /// Which tensors the imatrix has data for; `None` without an imatrix.
    fn coverage(&self) -> Option<Coverage> {
        let c = self.plan.coverage.as_ref()?;
        Some(Coverage {
            n_tensors: c.n_tensors,
            n_covered: c.n_covered,
            n_experts: c.n_experts,
            n_experts_seen: c.n_experts_seen,
            missing: c.missing.clone(),
            borrowed: c.borrowed.clone(),
            partial: c.partial.iter().map(|p| (p.tensor.clone(), p.n_seen, p.n_experts)).collect(),
            left_out: c.left_out.clone(),
            is_complete: c.is_complete(),
        })
    }

    /// The number of tensors in each output file.
    #[getter]
    fn shards(&self) -> Vec<usize> {
        self.plan.layout.shards().iter().map(|s| s.tensors.len()).collect()
    }

    /// The exact size in bytes of all output files together.
    #[getter]
    fn total_bytes(&self) -> u64 {
        self.plan.layout.total_size()
    }

    /// The number of threads that can work at the same time within `max_ram` bytes of memory, and the bytes that
    /// they use then.
    #[pyo3(signature = (n_threads, *, max_ram, measure_errors))]
    fn memory(
        &self,
        py: Python<'_>,
        n_threads: Option<usize>,
        max_ram: Option<u64>,
        measure_errors: bool,
    ) -> PyResult<(usize, u64)> {
        let n_threads = pool(n_threads)?.n_threads();
        let needed = predict::memory(&self.plan, &self.model, n_threads, max_ram, measure_errors);
        needed.map(|m| (m.n_workers, m.bytes)).map_err(|e| e.raise(py))
    }

    /// Predicts how many seconds a run will take. It measures this on a few parts of every kind of tensor, and on
    /// the disk of `folder`.
    #[pyo3(signature = (folder, n_threads, *, isa_name, measure_errors))]
    fn seconds(
        &self,
        py: Python<'_>,
        folder: PathBuf,
        n_threads: Option<usize>,
        isa_name: Option<&str>,
        measure_errors: bool,
    ) -> PyResult<f64> {
        let (kind, threads) = (isa(isa_name)?, pool(n_threads)?);
        enter(py, usize::MAX, |cancel| {
            let tried =
                predict::seconds(&self.plan, &self.model, &folder, &threads, kind, cancel, measure_errors);
            tried.map_err(stop)
        })
    }

    /// Runs the plan and writes the model to `target`.
    ///
    /// `progress(index, seconds, not_ternary, vanished)` is called for every finished tensor in order:
    /// `not_ternary` says that its type is ternary but its weights are not, and `vanished` is the fraction of its
    /// non-zero weights that became zero. `on_bytes(n)` is called several times a second with the bytes of the
    /// source that were processed since the last call, and `on_note(text)` with messages for the user. If `outside`
    /// is given, other processes compute through it all parts that are not merely copied.
    #[pyo3(signature = (
        target, *, n_threads, isa_name, restart, reuse, keep_finished, measure_errors, clamp, progress, on_bytes,
        on_note, outside=None
    ))]
    #[expect(clippy::too_many_arguments, reason = "the options of a run, named in Python")]
    fn run(
        &self,
        py: Python<'_>,
        target: PathBuf,
        n_threads: Option<usize>,
        isa_name: Option<&str>,
        restart: bool,
        reuse: Vec<PathBuf>,
        keep_finished: bool,
        measure_errors: bool,
        clamp: bool,
        progress: Option<Py<PyAny>>,
        on_bytes: Option<Py<PyAny>>,
        on_note: Option<Py<PyAny>>,
        outside: Option<Py<PyAny>>,
    ) -> PyResult<QuantizeRun> {
        let (kind, threads) = (isa(isa_name)?, pool(n_threads)?);
        let options = RunOptions { restart, reuse, keep_finished, measure_errors, clamp };
        let outside = outside.map(PyOutside);
        let (events, inbox) = channel();
        let job = |cancel: &ikq_pool::Cancel| {
            let report = move |event| {
                // sending fails only when the call is being abandoned
                let _ = events.send(event);
            };
            let outside = outside.as_ref().map(|o| o as &dyn Outside);
            let means = Means { pool: &threads, isa: kind, cancel, outside };
            run(&self.plan, &self.model, &target, means, &options, report).map_err(stop)
        };
        let done = enter_with_events(py, job, move |py| {
            let mut n_bytes = 0;
            for event in inbox.try_iter() {
                match (event, &progress, &on_note) {
                    (Event::Bytes(n), _, _) => n_bytes += n,
                    (Event::Tensor { index, seconds, not_ternary, vanished }, Some(progress), _) => {
                        progress.call1(py, (index, seconds, not_ternary, vanished.share()))?;
                    }
                    (Event::Note(text), _, Some(on_note)) => {
                        on_note.call1(py, (text,))?;
                    }
                    (Event::Tensor { .. } | Event::Note(_), _, _) => {}
                }
            }
            match &on_bytes {
                Some(on_bytes) if n_bytes > 0 => on_bytes.call1(py, (n_bytes,)).map(drop),
                _ => Ok(()),
            }
        });
        done.map(QuantizeRun::from)
    }
}

/// Compares the tensors of a file with the hashes that its metadata has of them. Returns the number of tensors with
/// a hash, and the names of those whose bytes do not match.
#[pyfunction]
#[pyo3(signature = (model, *, n_threads))]
pub fn changed_tensors(
    py: Python<'_>,
    model: &Model,
    n_threads: Option<usize>,
) -> PyResult<(usize, Vec<String>)> {
    let threads = pool(n_threads)?;
    let model = model.inner.clone();
    let found =
        enter(py, usize::MAX, |cancel| ikq_quantize::verify::verify(&model, &threads, cancel).map_err(stop));
    found.map(|v| (v.n_noted, v.changed))
}

pub(crate) fn stop(e: ikq_quantize::Error) -> Stop<ikq_quantize::Error> {
    match e {
        ikq_quantize::Error::Cancelled => Stop::Cancelled,
        other => Stop::Failed(other),
    }
}

/// The result of a finished run.
#[pyclass(frozen, get_all, module = "ikq._ikq")]
pub struct QuantizeRun {
    files: Vec<PathBuf>,
    /// The number of work items of the whole plan, of those taken over from an interrupted run (`n_resumed`), and
    /// of those that it had recorded as finished but whose bytes are not in its files (`n_damaged`).
    n_items: usize,
    n_resumed: usize,
    n_damaged: usize,
    /// For each tensor of the plan: "encoded", "repacked", "copied" or "reused"; the seconds it took; whether its
    /// type is ternary but its weights are not; the fraction of its non-zero weights that became zero because the
    /// type's scales cannot be that small; and, if errors were measured, the relative errors (plain, weighted with
    /// the imatrix, and weighted without the gain), the weighted gain, and the weighted error of each expert.
    tensors: Vec<TensorRow>,
}

type TensorRow = (&'static str, f64, bool, f64, Option<(f64, f64, f64, f64, Vec<f64>)>);

impl From<Done> for QuantizeRun {
    fn from(done: Done) -> QuantizeRun {
        let row = |t: &ikq_quantize::run::TensorDone| {
            let origin = match t.origin {
                Origin::Encoded => "encoded",
                Origin::Repacked => "repacked",
                Origin::Copied => "copied",
                Origin::Reused => "reused",
            };
            let errors = t.errors.as_ref().map(|experts| {
                let mut all = ErrorSums::default();
                experts.iter().for_each(|e| all.add(e));
                let of_each = experts.iter().map(|e| e.weighted.relative()).collect();
                let ErrorSums { plain, weighted } = all;
                (plain.relative(), weighted.relative(), weighted.without_gain(), weighted.gain(), of_each)
            });
            (origin, t.seconds, t.not_ternary, t.vanished.share(), errors)
        };
        let tensors = done.tensors.iter().map(row).collect();
        let Done { files, n_units: n_items, n_resumed, n_damaged, .. } = done;
        QuantizeRun { files, n_items, n_resumed, n_damaged, tensors }
    }
}

fn describe(t: &ikq_quantize::plan::TensorPlan, covariances: Option<&Covariances>) -> TensorPlan {
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
        repacked: t.repack,
        unbiased: t.unbiased,
        feedback: match t.feedback {
            Feedback::Site { .. } => "used",
            Feedback::Missing => "missing",
            Feedback::NotUsed => "not used",
        },
        without_feedback: covariances
            .map(|c| c.too_few(t.feedback, (t.dims.iter().skip(2).product::<u64>()) as usize))
            .unwrap_or_default(),
        reason: t.reason.clone(),
        fallback_from: t.fallback_from.map(QuantType::id),
        bytes_in: t.bytes_in,
        bytes_out: t.bytes_out,
        statistics,
        unseen_experts,
        thin_experts: match &t.statistics {
            Statistics::Found { thin_experts, .. } => thin_experts.clone(),
            _ => Vec::new(),
        },
    }
}
