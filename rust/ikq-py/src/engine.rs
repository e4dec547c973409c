//! Running models: the engine behind `ikq.Model`, its sequences, and functions that name, test and time the CPU
//! kernels.

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use ikq_cpu::{CacheForm, Cpu, Mmap, speed};
use ikq_cuda::device::Extent;
use ikq_kernels::act::Activations;
use ikq_kernels::attention::CacheType;
use ikq_kernels::matmul::{Compute, Matrix, Scratch, check, multiply};
use ikq_model::context::sequence_bytes;
use ikq_model::device::{Device, Stage};
use ikq_model::device_name::{DeviceName, Devices};
use ikq_model::model::Sizes;
use ikq_model::network::{Network, PlanOptions};
use ikq_model::placement::{self, Placement, Rules};
use ikq_model::spec::ModelSpec;
use ikq_model::{Adapter, Entry, MOST_BEST, Options, Output, Want};
use numpy::{PyArray1, PyArray2, PyArrayMethods, PyReadonlyArray1, PyReadonlyArray2};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::collect::StatisticsCollector;
use crate::enter::enter;
use crate::errors::{Raise, UnsupportedError};
use crate::gguf::Model;
use crate::results::{BestRows, best_rows};
use crate::simd::isa;
use crate::threads::pool;
use crate::types::quant_type;

/// A loaded model. It computes one step at a time; calls from other threads wait for their turn.
#[pyclass(frozen, module = "ikq._ikq")]
pub struct Engine {
    pub(crate) inner: ikq_model::Model,
}

/// A sequence of tokens that a model has processed, with its KV cache. Calls from other threads wait for their
/// turn.
#[pyclass(frozen, module = "ikq._ikq")]
pub struct Sequence {
    /// `None` after `close`.
    inner: Mutex<Option<ikq_model::Sequence>>,
}

/// How an FFN is computed: layer, role, plan, the reason for it, and the types of gate, up and down.
type FfnPlan = (usize, &'static str, &'static str, String, [&'static str; 3]);

/// Where a stage (a part of the model, such as the attention of a layer) is computed: its name, the device, the
/// bytes of its weights in the file, and the reason.
type Placed = (String, String, usize, String);

/// What a model takes on a device: the device, and the bytes of its weights, of the KV cache of a sequence, and of the
/// buffers of a step (0 for CPUs, whose buffers are not predicted).
type Taken = (String, usize, usize, usize);

/// The placement of a model: its stages, and what it takes on each device.
type Predicted = (Vec<Placed>, Vec<Taken>);

/// A LoRA adapter of a model: its file, what it is called, and its scale.
type LoraAdapter = (Py<Model>, String, f32);

/// One entry of a step: the sequence, its new tokens, which results are wanted, and the hidden states that a
/// multi-token prediction head or a part of a model takes as input (`None` for all others).
type StepEntry<'py> = (Py<Sequence>, Vec<i64>, GivenWant, Option<PyReadonlyArray2<'py, f32>>);

/// What is wanted of an entry.
#[derive(FromPyObject)]
enum GivenWant {
    Name(String),
    /// So many of the largest logits, after the last token or after every token.
    Best(usize, bool),
}

/// Logits or hidden states of the positions wanted, or ids and values of their largest logits.
#[derive(IntoPyObject)]
enum Found<'py> {
    Floats(Bound<'py, PyArray2<f32>>),
    Best(BestRows<'py>),
}

#[pymethods]
impl Engine {
    /// Loads a model; `spec` is a JSON text that describes its architecture and names its weights.
    #[staticmethod]
    #[pyo3(signature = (model, spec, *, n_ctx, n_threads, n_ubatch, cache_type_k, cache_type_v, cache_rotation, swa_full,
                        compute, fused_up_gate, fused_moe, merge_up_gate_experts, expert_reduction, mmap, devices,
                        n_gpu_layers, tensor_split, override_tensor, cpu_moe, n_cpu_moe, kv_offload, isa_name, adapters=Vec::new()))]
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
        cache_rotation: bool,
        swa_full: bool,
        compute: &str,
        fused_up_gate: bool,
        fused_moe: bool,
        merge_up_gate_experts: bool,
        expert_reduction: Option<(usize, f32)>,
        mmap: &str,
        devices: Vec<String>,
        n_gpu_layers: usize,
        tensor_split: Vec<f64>,
        override_tensor: Vec<String>,
        cpu_moe: bool,
        n_cpu_moe: usize,
        kv_offload: bool,
        isa_name: Option<&str>,
        adapters: Vec<LoraAdapter>,
    ) -> PyResult<Engine> {
        if n_threads == Some(0) {
            return Err(PyValueError::new_err("n_threads must be at least 1"));
        }
        let cpu = ikq_cpu::Options {
            kind: isa(isa_name)?,
            compute: parse_compute(compute)?,
            cache: CacheForm {
                keys: parse_cache("cache_type_k", cache_type_k)?,
                values: parse_cache("cache_type_v", cache_type_v)?,
                rotate: cache_rotation,
            },
            mmap: match mmap {
                "auto" => Mmap::Auto,
                "on" => Mmap::On,
                "off" => Mmap::Off,
                other => return Err(one_of("mmap", other, "auto, on, off")),
            },
            expert_reduction,
            poison: false,
        };
        let rules = rules_of(n_gpu_layers, tensor_split, (cpu_moe, n_cpu_moe), kv_offload);
        let (names, rules) = with_overrides(py, &devices, &override_tensor, rules)?;
        let devices = make_devices(py, &names, &ikq_cpu::Options { poison: names.len() > 1, ..cpu })?;
        refuse_made(model)?;
        let spec = ModelSpec::from_json(spec).map_err(|e| e.raise(py))?;
        let adapters = py.detach(|| {
            let read = |(file, path, scale): &LoraAdapter| {
                Adapter::new(&file.get().inner, path, &spec.architecture, *scale)
            };
            adapters.iter().map(read).collect::<Result<Vec<_>, _>>()
        });
        let options = Options {
            n_ctx,
            n_threads: n_threads.unwrap_or(0),
            n_ubatch,
            plans: PlanOptions { fused_up_gate, fused_moe, merge_up_gate: merge_up_gate_experts },
            rules,
            swa_full,
            adapters: adapters.map_err(|e| e.raise(py))?,
        };
        let inner = enter(py, usize::MAX, |cancel| {
            ikq_model::Model::load(&model.inner, spec, devices, &options, cancel)
        })?;
        Ok(Engine { inner })
    }

    /// Predicts without loading anything where every stage would be computed, and how many bytes the weights, the KV
    /// cache of a sequence of `n_ctx` positions, and the buffers of steps of `n_ubatch` tokens would take on each
    /// device.
    #[staticmethod]
    #[pyo3(signature = (model, spec, *, n_ctx, n_ubatch, cache_type_k, cache_type_v, cache_rotation, swa_full,
                        fused_up_gate, fused_moe, merge_up_gate_experts, devices, n_gpu_layers, tensor_split, override_tensor, cpu_moe, n_cpu_moe,
                        kv_offload))]
    #[expect(clippy::too_many_arguments, reason = "the options of loading, named in Python")]
    fn plan(
        py: Python<'_>,
        model: &Model,
        spec: &str,
        n_ctx: usize,
        n_ubatch: usize,
        cache_type_k: &str,
        cache_type_v: &str,
        cache_rotation: bool,
        swa_full: bool,
        fused_up_gate: bool,
        fused_moe: bool,
        merge_up_gate_experts: bool,
        devices: Vec<String>,
        n_gpu_layers: usize,
        tensor_split: Vec<f64>,
        override_tensor: Vec<String>,
        cpu_moe: bool,
        n_cpu_moe: usize,
        kv_offload: bool,
    ) -> PyResult<Predicted> {
        let form = CacheForm {
            keys: parse_cache("cache_type_k", cache_type_k)?,
            values: parse_cache("cache_type_v", cache_type_v)?,
            rotate: cache_rotation,
        };
        let rules = rules_of(n_gpu_layers, tensor_split, (cpu_moe, n_cpu_moe), kv_offload);
        let (names, rules) = with_overrides(py, &devices, &override_tensor, rules)?;
        let spec = ModelSpec::from_json(spec).map_err(|e| e.raise(py))?;
        refuse_made(model)?;
        if n_ubatch == 0 {
            return Err(PyValueError::new_err("n_ubatch must be at least 1"));
        }
        let plans = PlanOptions { fused_up_gate, fused_moe, merge_up_gate: merge_up_gate_experts };
        let predicted = py.detach(|| {
            let network = Network::new(&model.inner, spec, plans)?;
            let texts = names.iter().map(DeviceName::to_string).collect();
            let placement = Placement::new(&network, texts, &rules)?;
            let extent = Extent { n_ubatch, n_ctx };
            let taken = names.iter().enumerate().map(|(i, name)| {
                let (weights, sizes, step) = match name.gpu() {
                    Some(_) => {
                        let form = gpu_cache(form);
                        let gpu = ikq_cuda::device::predict(&network, &placement, i, form, extent)?;
                        (gpu.weights, Sizes { pages: gpu.pages, state: gpu.state }, gpu.step)
                    }
                    None => {
                        let (weights, pages, state) = ikq_cpu::predict(&network, &placement, i, form)?;
                        (weights, Sizes { pages, state }, 0)
                    }
                };
                let cache = sequence_bytes(&network, &sizes, n_ctx, swa_full).unwrap_or(usize::MAX);
                Ok((name.to_string(), weights, cache, step))
            });
            let taken = taken.collect::<Result<Vec<_>, ikq_model::Error>>()?;
            Ok::<_, ikq_model::Error>((placed(&network, &placement)?, taken))
        });
        predicted.map_err(|e| e.raise(py))
    }

    /// Replaces the weights by those of another file with the same metadata, and keeps the options. Weights that
    /// are the same memory in both files are not loaded again. Returns a new engine; this one is closed.
    fn exchange(&self, py: Python<'_>, model: &Model) -> PyResult<Engine> {
        refuse_made(model)?;
        let inner = enter(py, usize::MAX, |cancel| self.inner.exchange(&model.inner, cancel))?;
        Ok(Engine { inner })
    }

    /// A new, empty sequence. `scales` are those of the adapters for it; `None`: the model's.
    #[pyo3(signature = (scales=None))]
    fn new_sequence(&self, py: Python<'_>, scales: Option<Vec<f32>>) -> PyResult<Sequence> {
        let sequence = match scales {
            Some(scales) => self.inner.new_sequence_with(&scales).map_err(|e| e.raise(py))?,
            None => self.inner.new_sequence(),
        };
        Ok(Sequence { inner: Mutex::new(Some(sequence)) })
    }

    /// The LoRA adapters, and the scales that new sequences have.
    #[getter]
    fn adapters(&self) -> Vec<(String, f32)> {
        let scales = self.inner.scales();
        self.inner.adapters().zip(scales.iter()).map(|(path, scale)| (path.to_string(), *scale)).collect()
    }

    /// Sets the scales of the adapters for new sequences; those that there are keep theirs.
    fn set_scales(&self, py: Python<'_>, scales: Vec<f32>) -> PyResult<()> {
        self.inner.set_scales(&scales).map_err(|e| e.raise(py))
    }

    /// Runs the new tokens of all entries, each after the tokens that its sequence holds. Returns for each entry
    /// the logits `(n, n_vocab)`, the ids and the values of the largest ones, the hidden states `(n, n_embd)`, or
    /// `None`, depending on what it wants.
    fn step<'py>(&self, py: Python<'py>, entries: Vec<StepEntry<'py>>) -> PyResult<Vec<Option<Found<'py>>>> {
        let wants = entries.iter().map(|e| parse_want(&e.2)).collect::<PyResult<Vec<_>>>()?;
        let hidden = entries.iter().map(|e| e.3.as_ref().map_or(Ok(Vec::new()), |h| h.to_vec()));
        let hidden: Vec<Vec<f32>> = hidden.collect::<Result<_, _>>()?;
        let handles: Vec<&Sequence> = entries.iter().map(|e| e.0.get()).collect();
        let tokens: Vec<&[i64]> = entries.iter().map(|e| e.1.as_slice()).collect();
        // every thread locks in the same order, so that no two threads wait for each other
        let mut order: Vec<usize> = (0..handles.len()).collect();
        order.sort_by_key(|i| std::ptr::from_ref(handles[*i]) as usize);
        if order.windows(2).any(|w| std::ptr::eq(handles[w[0]], handles[w[1]])) {
            return Err(ikq_model::Error::SameSequence.raise(py));
        }
        let n_tokens = tokens.iter().map(|t| t.len()).sum();
        let out = enter(py, self.watched_elements(n_tokens), |cancel| {
            let mut guards: Vec<Option<MutexGuard<'_, _>>> = handles.iter().map(|_| None).collect();
            for i in order {
                guards[i] = Some(handles[i].lock());
            }
            let mut steps = Vec::with_capacity(tokens.len());
            for (i, guard) in guards.iter_mut().enumerate() {
                match guard.as_mut().and_then(|g| g.as_mut()) {
                    Some(sequence) => {
                        let (tokens, want, hidden) = (tokens[i], wants[i], hidden[i].as_slice());
                        steps.push(Entry { sequence, tokens, want, hidden });
                    }
                    None => return Ok(None),
                }
            }
            self.inner.step(&mut steps, cancel).map(Some)
        })?;
        let out = out.ok_or_else(closed_sequence)?;
        out.into_iter().zip(&wants).map(|(output, want)| self.found(py, output, *want)).collect()
    }

    /// Computes the logits `(n, n_vocab)` from the hidden states `(n, n_embd)` that a step returned. `scales` are those
    /// of the adapters; `None`: the model's.
    #[pyo3(signature = (hidden, scales=None))]
    fn head<'py>(
        &self,
        py: Python<'py>,
        hidden: PyReadonlyArray2<'py, f32>,
        scales: Option<Vec<f32>>,
    ) -> PyResult<Bound<'py, PyArray2<f32>>> {
        let hidden = hidden.to_vec()?;
        let logits = py.detach(|| self.inner.head(&hidden, scales.as_deref())).map_err(|e| e.raise(py))?;
        let n_vocab = self.inner.network().spec.n_vocab;
        let n = logits.len() / n_vocab;
        PyArray1::from_vec(py, logits).reshape([n, n_vocab])
    }

    /// The same, but only the `n` largest ones of each, the largest first: their ids and values `(n_states, n)`.
    #[pyo3(signature = (hidden, n, scales=None))]
    fn head_best<'py>(
        &self,
        py: Python<'py>,
        hidden: PyReadonlyArray2<'py, f32>,
        n: usize,
        scales: Option<Vec<f32>>,
    ) -> PyResult<BestRows<'py>> {
        let hidden = hidden.to_vec()?;
        let best = py.detach(|| self.inner.head_best(&hidden, n, scales.as_deref()));
        best_rows(py, &best.map_err(|e| e.raise(py))?, n.min(self.inner.network().spec.n_vocab))
    }

    /// Loads a sequence that `Sequence.save` wrote.
    fn load_sequence(&self, py: Python<'_>, path: PathBuf) -> PyResult<Sequence> {
        let sequence = py.detach(|| self.inner.load_sequence(&path)).map_err(|e| e.raise(py))?;
        Ok(Sequence { inner: Mutex::new(Some(sequence)) })
    }

    #[getter]
    fn n_ctx(&self) -> usize {
        self.inner.n_ctx()
    }

    #[getter]
    fn n_threads(&self) -> usize {
        self.inner.n_threads()
    }

    /// The bytes of weights that are read from mapped files, of weights that were copied, and of the KV caches and
    /// recurrent states of all sequences.
    #[getter]
    fn memory(&self) -> (usize, usize, usize) {
        let memory = self.inner.memory();
        let mapped = memory.iter().map(|m| m.mapped_bytes).sum();
        (mapped, memory.iter().map(|m| m.copied_bytes).sum(), self.inner.cache_bytes())
    }

    /// The bytes of the KV cache of a sequence of `n` positions.
    fn sequence_bytes(&self, n: usize) -> usize {
        self.inner.sequence_bytes(n)
    }

    /// For each group of layers with the same attention window the size of that window (`None` if there is no
    /// window), and the number of KV-cache pages that are in use.
    fn pages_held(&self) -> Vec<(Option<usize>, usize)> {
        self.inner.pages_held()
    }

    /// A text that says why the weights were copied or not.
    #[getter]
    fn why_memory(&self) -> String {
        self.inner.memory().first().map(|m| m.why.clone()).unwrap_or_default()
    }

    /// Attaches a collector, which sees the inputs of the weights in every later step; `None` detaches it.
    fn set_collector(&self, py: Python<'_>, collector: Option<&StatisticsCollector>) -> PyResult<()> {
        let collector = collector.map(|c| c.inner.clone());
        py.detach(|| self.inner.set_collector(collector)).map_err(|e| e.raise(py))
    }

    /// For each FFN the plan by which it is computed, and the reason.
    fn plans(&self) -> Vec<FfnPlan> {
        let rows = self.inner.plans().into_iter();
        rows.map(|(layer, role, x)| {
            let types = x.weights().map(|w| w.ty.name());
            (layer, role, x.plan.kind.name(), x.plan.why.clone(), types)
        })
        .collect()
    }

    /// For each stage the device that computes it, and the reason.
    fn placement(&self, py: Python<'_>) -> PyResult<Vec<Placed>> {
        placed(self.inner.network(), self.inner.placement()).map_err(|e| e.raise(py))
    }

    /// Frees the weights and the KV caches; neither the engine nor its sequences can be used any more.
    fn close(&self, py: Python<'_>) {
        py.detach(|| self.inner.close());
    }
}

impl Engine {
    /// What an entry of a step gets.
    fn found<'py>(&self, py: Python<'py>, output: Output, want: Want) -> PyResult<Option<Found<'py>>> {
        let spec = &self.inner.network().spec;
        let width = match want {
            Want::Nothing => return Ok(None),
            Want::Hidden => spec.n_embd,
            Want::Last | Want::All => spec.n_vocab,
            Want::Best(n) | Want::BestOfAll(n) => n.min(spec.n_vocab),
        };
        if let Want::Best(_) | Want::BestOfAll(_) = want {
            return Ok(Some(Found::Best(best_rows(py, &output.best, width)?)));
        }
        let n = output.floats.len() / width;
        Ok(Some(Found::Floats(PyArray1::from_vec(py, output.floats).reshape([n, width])?)))
    }

    /// The size that makes [`enter`] watch a step for Ctrl-C or not. The engine checks for cancellation only
    /// between ubatches, so a step of a single ubatch would gain nothing, and every generated token would pay for a
    /// helper thread.
    fn watched_elements(&self, n_tokens: usize) -> usize {
        match n_tokens <= self.inner.n_ubatch() {
            true => 0,
            false => usize::MAX,
        }
    }
}

fn placed(network: &Network, placement: &Placement) -> Result<Vec<Placed>, ikq_model::Error> {
    let device = |i: usize| placement.devices[i].clone();
    let why = |p: &placement::Placed| {
        let elsewhere = match p.stage {
            Stage::Experts(layer) => ikq_cuda::device::told(network, placement, layer)?,
            _ => None,
        };
        let why = elsewhere.map_or_else(|| p.why.clone(), |told| format!("{}; {told}", p.why));
        Ok::<_, ikq_model::Error>(why)
    };
    let rows = placement.stages.iter();
    rows.map(|p| Ok((p.stage.to_string(), device(p.device), p.n_bytes, why(p)?))).collect()
}

fn parse_cache(option: &str, name: &str) -> PyResult<CacheType> {
    CacheType::parse(name).ok_or_else(|| {
        let known = CacheType::ALL.map(CacheType::name).join(", ");
        UnsupportedError::new_err(format!(
            "{option}={name}: there is no cache of this type; there are {known}"
        ))
    })
}

/// Refuses a model with tensors that no GGUF file stores, because devices read the weights directly from the mapped
/// file.
fn refuse_made(model: &Model) -> PyResult<()> {
    match model.inner.tensors().iter().any(|t| t.made.is_some()) {
        true => Err(UnsupportedError::new_err("a checkpoint cannot be run: convert it first (ikq convert)")),
        false => Ok(()),
    }
}

/// What the options of loading say of where layers go, but for `override_tensor`.
fn rules_of(
    n_gpu_layers: usize,
    tensor_split: Vec<f64>,
    (cpu_moe, n_cpu_moe): (bool, usize),
    kv_offload: bool,
) -> Rules {
    let no_kv_offload = !kv_offload;
    Rules { n_gpu_layers, tensor_split, cpu_moe, n_cpu_moe, no_kv_offload, ..Rules::default() }
}

/// The devices that options name, and the rules with those of `override_tensor`.
fn with_overrides(
    py: Python<'_>,
    devices: &[String],
    override_tensor: &[String],
    mut rules: Rules,
) -> PyResult<(Vec<DeviceName>, Rules)> {
    let found = override_tensor.iter().try_for_each(|text| rules.add_overrides(text));
    let found = found.and_then(|()| Devices::new(devices, &rules.overrides)).map_err(|e| e.raise(py))?;
    rules.n_of_rules = found.n_of_rules;
    Ok((found.names, rules))
}

/// The devices that a list of devices and rules of `override_tensor` name, the CPU first, as reports write them.
#[pyfunction]
pub fn named_devices(
    py: Python<'_>,
    devices: Vec<String>,
    override_tensor: Vec<String>,
) -> PyResult<Vec<String>> {
    let (names, _) = with_overrides(py, &devices, &override_tensor, Rules::default())?;
    Ok(names.iter().map(DeviceName::to_string).collect())
}

/// The same KV-cache options in the form that the GPU crate takes.
fn gpu_cache(form: CacheForm) -> ikq_cuda::CacheForm {
    ikq_cuda::CacheForm {
        keys: form.keys.quant_type(),
        values: form.values.quant_type(),
        turns_keys: form.rotates(form.keys),
        turns_values: form.rotates(form.values),
    }
}

fn make_devices(
    py: Python<'_>,
    names: &[DeviceName],
    cpu: &ikq_cpu::Options,
) -> PyResult<Vec<Box<dyn Device>>> {
    let make = |name: &DeviceName| -> PyResult<Box<dyn Device>> {
        let Some(index) = name.gpu() else {
            return Ok(Box::new(Cpu::new(name.to_string(), cpu.clone())));
        };
        // `ikq.cuda` has called `cuda_status` with the places of NVRTC before, and only the first search counts
        let opened = py.detach(|| {
            let runtime = ikq_cuda::runtime(&ikq_cuda::Search::default())?;
            let options =
                ikq_cuda::Options { cache: gpu_cache(cpu.cache), expert_reduction: cpu.expert_reduction };
            ikq_cuda::Cuda::new(runtime, index, options)
        });
        Ok(Box::new(opened.map_err(|e| e.raise(py))?))
    };
    names.iter().map(make).collect()
}

impl Sequence {
    fn lock(&self) -> MutexGuard<'_, Option<ikq_model::Sequence>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `f` on the sequence. The interpreter is released meanwhile.
    fn with<R: Send>(
        &self,
        py: Python<'_>,
        f: impl FnOnce(&mut ikq_model::Sequence) -> Result<R, ikq_model::Error> + Send,
    ) -> PyResult<R> {
        let done = py.detach(|| self.lock().as_mut().map(f));
        done.ok_or_else(closed_sequence)?.map_err(|e| e.raise(py))
    }
}

#[pymethods]
impl Sequence {
    #[getter]
    fn n_past(&self, py: Python<'_>) -> PyResult<usize> {
        self.with(py, |s| Ok(s.n_past()))
    }

    /// The tokens of the sequence so far.
    #[getter]
    fn tokens(&self, py: Python<'_>) -> PyResult<Vec<u32>> {
        self.with(py, |s| Ok(s.tokens().to_vec()))
    }

    /// The scales of the model's adapters that it is computed with.
    #[getter]
    fn scales(&self, py: Python<'_>) -> PyResult<Vec<f32>> {
        self.with(py, |s| Ok(s.scales().to_vec()))
    }

    /// The bytes of its KV-cache pages and recurrent states, including those that it shares with other sequences.
    #[getter]
    fn n_bytes(&self, py: Python<'_>) -> PyResult<usize> {
        self.with(py, |s| Ok(s.bytes()))
    }

    fn fork(&self, py: Python<'_>) -> PyResult<Sequence> {
        let fork = self.with(py, |s| s.fork())?;
        Ok(Sequence { inner: Mutex::new(Some(fork)) })
    }

    fn truncate(&self, py: Python<'_>, n: usize) -> PyResult<()> {
        self.with(py, |s| s.truncate(n))
    }

    /// The largest length, at most `n`, to which `truncate` can shorten the sequence.
    fn rewindable(&self, py: Python<'_>, n: usize) -> PyResult<usize> {
        self.with(py, |s| Ok(s.rewindable(n)))
    }

    fn shift(&self, py: Python<'_>, n_keep: usize, n_discard: usize) -> PyResult<()> {
        self.with(py, |s| s.shift(n_keep, n_discard))
    }

    fn save(&self, py: Python<'_>, path: PathBuf) -> PyResult<()> {
        self.with(py, |s| s.save(&path))
    }

    /// Frees the KV cache of the sequence, which cannot be used any more.
    fn close(&self, py: Python<'_>) {
        py.detach(|| drop(self.lock().take()));
    }
}

fn closed_sequence() -> PyErr {
    PyValueError::new_err("the sequence is closed")
}

fn parse_want(given: &GivenWant) -> PyResult<Want> {
    let name = match given {
        GivenWant::Name(name) => name.as_str(),
        GivenWant::Best(n, each) if (1..=MOST_BEST).contains(n) => {
            return Ok(if *each { Want::BestOfAll(*n) } else { Want::Best(*n) });
        }
        GivenWant::Best(n, _) => {
            let what = format!("the {n} largest logits are wanted: expected 1 to {MOST_BEST}");
            return Err(PyValueError::new_err(what));
        }
    };
    match name {
        "all" => Ok(Want::All),
        "last" => Ok(Want::Last),
        "none" => Ok(Want::Nothing),
        "hidden" => Ok(Want::Hidden),
        other => Err(one_of("want", other, "all, last, none, hidden")),
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

/// The number of weights and of bytes of the measured matrix; the seconds that a thread takes to multiply it with
/// each number of columns while all `n_threads` threads work; the bytes per second that all threads can read
/// together; and the multiply-adds per second that they can compute together, `None` where there is no dot-product
/// instruction.
type ProductSpeeds = (usize, usize, Vec<f64>, f64, Option<f64>);

/// Measures how long products with weights of this type take, for each number of columns in `counts`.
#[pyfunction]
#[pyo3(signature = (type_id, counts, n_threads, isa_name))]
pub fn product_speeds(
    py: Python<'_>,
    type_id: u32,
    counts: Vec<usize>,
    n_threads: Option<usize>,
    isa_name: Option<&str>,
) -> PyResult<ProductSpeeds> {
    if counts.contains(&0) {
        return Err(PyValueError::new_err("a product has at least 1 column"));
    }
    let (kind, ty, pool) = (isa(isa_name)?, quant_type(type_id)?, pool(n_threads)?);
    let found = enter(py, usize::MAX, |cancel| speed::measure(kind, ty, &counts, &pool, cancel))?;
    let (n_rows, k) = speed::SHAPE;
    Ok((n_rows * k, found.bytes, found.seconds, found.read, found.peak))
}

/// The name of the kernel that computes products with weights of this type.
#[pyfunction]
#[pyo3(signature = (type_id, isa_name))]
pub fn kernel_name(type_id: u32, isa_name: Option<&str>) -> PyResult<String> {
    Ok(check::kernel_name(isa(isa_name)?, quant_type(type_id)?, Compute::Auto))
}

/// Multiplies with random weights of this type, and returns the largest error as a fraction of the error that
/// rounding explains.
#[pyfunction]
#[pyo3(signature = (type_id, isa_name))]
pub fn kernel_self_test(py: Python<'_>, type_id: u32, isa_name: Option<&str>) -> PyResult<f64> {
    let (kind, ty) = (isa(isa_name)?, quant_type(type_id)?);
    py.detach(|| check::self_test(kind, ty)).map_err(|e| e.raise(py))
}

/// Multiplies `x` of shape `(n, k)` with the transpose of a quantized matrix of `n_rows` rows, which gives shape
/// `(n, n_rows)`.
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
