//! [`Engine`]: a loaded model with its cache, and the step.

use std::sync::{Arc, Mutex};

use ikq_kernels::act::Activations;
use ikq_kernels::attention::CacheType;
use ikq_kernels::matmul::Compute;
use ikq_kernels::ops;
use ikq_pool::{Cancel, Pool, Stop};
use ikq_simd::IsaKind;

use crate::attention::{AttentionBuffers, LayerState};
use crate::error::Error;
use crate::exec::{Exec, Forms, Product, ThreadScratch, room};
use crate::ffn::{self, Experts, FfnBuffers, PlanOptions};
use crate::layers::{Dense, Ffn, Layer, Moe, tensor_names};
use crate::load::{Mmap, Tensors};
use crate::repack::Repack;
use crate::rope::{Angles, Ropes};
use crate::spec::ModelSpec;
use crate::statistics::Collector;
use crate::weights::{Weight, Weights};

/// How a model is loaded and run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Positions of the cache; `None`: the trained context, or what memory allows.
    pub n_ctx: Option<usize>,
    /// 0: one per CPU.
    pub n_threads: usize,
    /// Most tokens of a step.
    pub n_ubatch: usize,
    pub cache_type_k: CacheType,
    pub cache_type_v: CacheType,
    pub compute: Compute,
    pub plans: PlanOptions,
    /// Experts after the first `.0` are dropped where their weight is below `.1` times the largest.
    pub expert_reduction: Option<(usize, f32)>,
    pub mmap: Mmap,
    /// Join plain rows to groups of their interleaved twins while loading, for comparison; copies.
    pub repack: bool,
}

/// Which logits a call gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    All,
    Last,
    Nothing,
}

/// A model that runs.
pub struct Engine {
    spec: ModelSpec,
    kind: IsaKind,
    options: Options,
    pool: Pool,
    threads: Vec<Mutex<ThreadScratch>>,
    token_embd: Weight,
    layers: Vec<Layer>,
    output_norm: Vec<f32>,
    output: Weight,
    ropes: Ropes,
    states: Vec<LayerState>,
    n_ctx: usize,
    /// Positions that the cache holds.
    n_past: usize,
    buffers: Buffers,
    collector: Option<Arc<Collector>>,
    /// Bytes of weights read from mapped files, and copied.
    pub mapped_bytes: usize,
    pub copied_bytes: usize,
    /// Why they were copied or not.
    pub why_memory: String,
}

/// What the phases of a step write.
#[derive(Default)]
struct Buffers {
    /// Residual stream, a column per token.
    x: Vec<f32>,
    /// A branch's output where it is normed before it is added.
    branch: Vec<f32>,
    /// The residual stream before a layer and after its attention, where layers are compared.
    before: Vec<f32>,
    between: Vec<f32>,
    /// The normed input of a branch.
    acts: Activations,
    attention: AttentionBuffers,
    ffn: FfnBuffers,
    router: Vec<f32>,
    choices: Vec<Vec<(u32, f32)>>,
    all_columns: Vec<u32>,
    angles: Vec<Angles>,
}

impl Engine {
    /// Loads the tensors that `spec` names from `model`.
    ///
    /// # Errors
    /// What loading and checking find: see [`Error`]; [`Stop::Cancelled`].
    pub fn load(
        model: &ikq_gguf::Model,
        spec: ModelSpec,
        kind: IsaKind,
        options: Options,
        cancel: &Cancel,
    ) -> Result<Engine, Stop<Error>> {
        let pool = Pool::new(options.n_threads).map_err(|e| Error::Threads(e.to_string()))?;
        if options.n_ubatch == 0 || options.n_ctx == Some(0) {
            let option = if options.n_ubatch == 0 { "n_ubatch" } else { "n_ctx" };
            return Err(
                Error::Option { option, value: "0".into(), why: "at least 1 is needed".into() }.into()
            );
        }
        let repack = options.repack.then(|| Repack::new(&spec));
        let names = tensor_names(&spec);
        let tensors = Tensors::load(model, &names, options.mmap, repack.as_ref(), &pool, cancel)?;
        let weights = Weights { tensors: &tensors };
        let n_embd = spec.n_embd;
        let output_norm = weights.floats(&spec.output_norm, n_embd)?;
        let output = weights.linear(&spec.output, n_embd, Some(spec.n_vocab), 1)?;
        let token_embd = weights.matrix(&spec.token_embd, n_embd, spec.n_vocab)?;
        let mut ropes = Ropes::default();
        let layers = spec
            .layers
            .iter()
            .map(|layer| Layer::new(&weights, layer, &spec, &mut ropes, options.plans))
            .collect::<Result<Vec<_>, Error>>()?;
        let n_ctx = context(&spec, &layers, &options)?;
        let states = layers
            .iter()
            .map(|l| l.attention.state(n_ctx, options.cache_type_k, options.cache_type_v))
            .collect::<Result<Vec<_>, Error>>()?;
        let threads = (0..pool.n_threads()).map(|_| Mutex::default()).collect();
        let (mapped_bytes, copied_bytes) = (tensors.mapped_bytes, tensors.copied_bytes);
        Ok(Engine {
            spec,
            kind,
            options,
            pool,
            threads,
            token_embd,
            layers,
            output_norm,
            output,
            ropes,
            states,
            n_ctx,
            n_past: 0,
            buffers: Buffers::default(),
            collector: None,
            mapped_bytes,
            copied_bytes,
            why_memory: tensors.why,
        })
    }

    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    pub fn layers(&self) -> &[Layer] {
        &self.layers
    }

    pub fn n_ctx(&self) -> usize {
        self.n_ctx
    }

    pub fn n_threads(&self) -> usize {
        self.pool.n_threads()
    }

    /// Lets a collector see what weights are multiplied with, from the next call of [`Engine::eval`] on.
    pub fn set_collector(&mut self, collector: Option<Arc<Collector>>) {
        self.collector = collector;
    }

    /// Every feed-forward network: layer, role, weights and plan.
    pub fn plans(&self) -> Vec<(usize, &'static str, &Experts)> {
        let layers = self.layers.iter().enumerate();
        layers.flat_map(|(i, l)| l.ffns().into_iter().map(move |(role, x)| (i, role, x))).collect()
    }

    /// Positions that the cache holds.
    pub fn n_past(&self) -> usize {
        self.n_past
    }

    /// Bytes of the cache.
    pub fn cache_bytes(&self) -> usize {
        self.states.iter().map(LayerState::bytes).sum()
    }

    /// Forgets positions from `n` on.
    ///
    /// # Errors
    /// [`Error::Rewind`] when a recurrent state stands in the way (0 always works).
    pub fn truncate(&mut self, n: usize) -> Result<(), Error> {
        if n >= self.n_past {
            return Ok(());
        }
        if n > 0 && self.states.iter().any(LayerState::is_recurrent) {
            return Err(Error::Rewind { to: n, at: self.n_past });
        }
        self.states.iter_mut().for_each(|s| s.truncate(n));
        self.n_past = n;
        Ok(())
    }

    /// Context shift: forgets `n_discard` positions after the first `n_keep`; later ones move down, their keys
    /// rotated to where they come to stand.
    ///
    /// # Errors
    /// [`Error::Rewind`] when a layer is recurrent, [`Error::Context`] when there are not as many positions.
    pub fn shift(&mut self, n_keep: usize, n_discard: usize) -> Result<(), Error> {
        if self.states.iter().any(LayerState::is_recurrent) {
            return Err(Error::Rewind { to: n_keep, at: self.n_past });
        }
        if n_keep + n_discard > self.n_past {
            return Err(Error::Context { needed: n_keep + n_discard, n_ctx: self.n_past });
        }
        for (layer, state) in self.layers.iter().zip(&mut self.states) {
            layer.attention.shift(state, self.kind, &self.ropes, n_keep..n_keep + n_discard, self.n_past);
        }
        self.n_past -= n_discard;
        Ok(())
    }

    /// Runs `tokens` after what the cache holds and gives logits, `n_vocab` per position wanted. On an error
    /// the cache holds what it held.
    ///
    /// # Errors
    /// [`Error::Token`], [`Error::NoTokens`], [`Error::Context`], [`Error::NotFinite`], [`Error::Overflow`];
    /// [`Stop::Cancelled`].
    pub fn eval(&mut self, tokens: &[i64], want: Want, cancel: &Cancel) -> Result<Vec<f32>, Stop<Error>> {
        let n_vocab = self.spec.n_vocab;
        if tokens.is_empty() {
            return Err(Error::NoTokens.into());
        }
        let mut ids = Vec::with_capacity(tokens.len());
        for (index, &token) in tokens.iter().enumerate() {
            match usize::try_from(token) {
                Ok(id) if id < n_vocab => ids.push(id),
                _ => return Err(Error::Token { index, token, n_vocab }.into()),
            }
        }
        let needed = self.n_past + ids.len();
        if needed > self.n_ctx {
            return Err(Error::Context { needed, n_ctx: self.n_ctx }.into());
        }
        let start = self.n_past;
        let mut logits = Vec::new();
        let n_batches = ids.len().div_ceil(self.options.n_ubatch);
        for (i, batch) in ids.chunks(self.options.n_ubatch).enumerate() {
            let want = match want {
                Want::Last if i + 1 < n_batches => Want::Nothing,
                want => want,
            };
            let done = match cancel.is_cancelled() {
                true => Err(Stop::Cancelled),
                false => self.step(batch, want, &mut logits).map_err(Stop::Failed),
            };
            if let Err(stop) = done {
                self.go_back(start);
                return Err(stop);
            }
        }
        Ok(logits)
    }

    /// Back to an earlier position after a failed step; recurrent states, which cannot go back, start anew.
    fn go_back(&mut self, to: usize) {
        if self.truncate(to).is_err() {
            self.states.iter_mut().for_each(|s| s.truncate(0));
            self.n_past = 0;
        }
    }

    fn step(&mut self, tokens: &[usize], want: Want, logits: &mut Vec<f32>) -> Result<(), Error> {
        let Engine { spec, kind, options, pool, threads, layers, states, buffers, .. } = self;
        let n = tokens.len();
        let (n_embd, n_past) = (spec.n_embd, self.n_past);
        let columns = &mut buffers.all_columns;
        columns.extend(columns.len() as u32..n as u32);
        room(&mut buffers.x, n * n_embd);
        let (token_embd, output, output_norm) = (&self.token_embd, &self.output, &self.output_norm);
        self.ropes.angles(n_past, n, &mut buffers.angles);
        let collector = self.collector.as_deref();
        let first = logits.len();
        let result = pool.step(|team| {
            let Buffers {
                x,
                branch,
                before,
                between,
                acts,
                attention,
                ffn,
                router,
                choices,
                all_columns,
                angles,
            } = buffers;
            let x = &mut x[..n * n_embd];
            let compute = options.compute;
            let exec = Exec { team, kind: *kind, compute, threads, all_columns, angles, collector };
            let compared = collector.filter(|c| c.options().similarity);
            for (x, token) in x.chunks_exact_mut(n_embd).zip(tokens) {
                token_embd.decode_row(*kind, *token, x);
                if spec.embd_scale != 1.0 {
                    x.iter_mut().for_each(|v| *v *= spec.embd_scale);
                }
            }
            for (i, (layer, state)) in layers.iter().zip(states.iter_mut()).enumerate() {
                if compared.is_some() {
                    before.clear();
                    before.extend_from_slice(x);
                }
                let forms = layer.attention.input_forms(options.compute);
                exec.norm(x, &layer.attention_norm, spec.norm_eps, acts, forms);
                add_branch(&exec, x, branch, &layer.post_attention_norm, spec.norm_eps, |out| {
                    layer.attention.run(&exec, acts, state, n_past, attention, out);
                    Ok(())
                })?;
                if let Some(c) = compared {
                    c.compare(team, i, 1, before, x, n_embd);
                    between.clear();
                    between.extend_from_slice(x);
                }
                let forms = ffn_forms(&layer.ffn, &exec);
                exec.norm(x, &layer.ffn_norm, spec.norm_eps, acts, forms);
                add_branch(&exec, x, branch, &layer.post_ffn_norm, spec.norm_eps, |out| match &layer.ffn {
                    Ffn::Dense(dense) => {
                        run_dense(&exec, dense, acts, ffn, router, out);
                        Ok(())
                    }
                    Ffn::Moe(moe) => {
                        let ser = options.expert_reduction;
                        run_moe(&exec, moe, acts, ffn, router, choices, ser, out).map_err(|token| (i, token))
                    }
                })?;
                if let Some(c) = compared {
                    c.compare(team, i, 2, between, x, n_embd);
                    c.compare(team, i, 0, before, x, n_embd);
                }
            }
            if collector.is_some_and(|c| c.options().output) {
                // of all positions, whichever logits are wanted
                exec.norm(x, output_norm, spec.norm_eps, acts, Forms::default());
                exec.observe(&[output], acts);
            }
            let from = match want {
                Want::All => 0,
                Want::Last => n - 1,
                Want::Nothing => return Ok(()),
            };
            let forms = Forms::of(options.compute, [output]);
            exec.norm(&x[from * n_embd..], output_norm, spec.norm_eps, acts, forms);
            logits.resize(first + (n - from) * spec.n_vocab, 0.0);
            let out = &mut logits[first..];
            exec.multiply(acts, vec![Product::new(output, out)]);
            if let Some(cap) = spec.final_softcap {
                let mut rows: Vec<_> = out.chunks_mut(spec.n_vocab).collect();
                exec.team.for_each(&mut rows, |row, _| ops::softcap(*kind, row, cap));
            }
            Ok(())
        });
        // a sum is finite where all its terms are
        let bad = match result {
            Err((layer, token)) => {
                Some((n_past + token, format!("the router of layer {layer} gave no numbers")))
            }
            Ok(()) => logits[first..].chunks_exact(spec.n_vocab).enumerate().find_map(|(row, values)| {
                let from = if want == Want::Last { n - 1 } else { 0 };
                let index = values.iter().position(|v| !v.is_finite())?;
                Some((n_past + from + row, format!("token {index} has {}", values[index])))
            }),
        };
        if let Some((position, what)) = bad {
            return Err(self.find_not_finite().unwrap_or(Error::Overflow { position, what }));
        }
        self.n_past += n;
        Ok(())
    }

    /// The first weight that is not finite, which explains logits that are not.
    fn find_not_finite(&self) -> Option<Error> {
        let mut all = vec![&self.token_embd, &self.output];
        self.layers.iter().for_each(|layer| layer.weights(&mut all));
        all.into_iter().find_map(|w| w.not_finite(self.kind))
    }
}

/// Runs a branch that adds to its output: the residual stream, or a buffer that is normed first.
fn add_branch(
    exec: &Exec<'_>,
    x: &mut [f32],
    buffer: &mut Vec<f32>,
    norm: &Option<Vec<f32>>,
    eps: f32,
    run: impl FnOnce(&mut [f32]) -> Result<(), (usize, usize)>,
) -> Result<(), (usize, usize)> {
    let Some(norm) = norm else {
        return run(x);
    };
    let out = room(buffer, x.len());
    out.fill(0.0);
    run(out)?;
    let mut columns: Vec<_> = x.chunks_exact_mut(norm.len()).zip(out.chunks_exact_mut(norm.len())).collect();
    exec.team.for_each(&mut columns, |(x, branch), _| {
        ops::rms_norm_in_place(exec.kind, branch, norm, eps);
        x.iter_mut().zip(branch.iter()).for_each(|(x, b)| *x += b);
    });
    Ok(())
}

fn ffn_forms(ffn: &Ffn, exec: &Exec<'_>) -> Forms {
    match ffn {
        Ffn::Dense(dense) => dense.experts.input_forms(exec),
        Ffn::Moe(moe) => {
            let experts = moe.experts.input_forms(exec);
            let shared = moe.shared.as_ref().is_some_and(|s| s.experts.input_forms(exec).q8);
            Forms { q8: experts.q8 || shared || Forms::of(exec.compute, [&moe.router]).q8 }
        }
    }
}

fn run_dense(
    exec: &Exec<'_>,
    dense: &Dense,
    acts: &Activations,
    buffers: &mut FfnBuffers,
    gates: &mut Vec<f32>,
    out: &mut [f32],
) {
    let n = acts.n_columns();
    match &dense.input_gate {
        None => buffers.groups.all_to_one(std::iter::repeat_n(1.0, n)),
        Some(gate) => {
            let gates = room(gates, n);
            exec.project(acts, vec![Product::new(gate, gates)]);
            buffers.groups.all_to_one(gates.iter().map(|g| ops::sigmoid(*g)));
        }
    }
    ffn::run(exec, &dense.experts, acts, buffers, out);
}

/// # Errors
/// The index of a token whose router gave no numbers.
#[expect(clippy::too_many_arguments, reason = "the buffers of a phase")]
fn run_moe(
    exec: &Exec<'_>,
    moe: &Moe,
    acts: &Activations,
    buffers: &mut FfnBuffers,
    logits: &mut Vec<f32>,
    choices: &mut Vec<Vec<(u32, f32)>>,
    expert_reduction: Option<(usize, f32)>,
    out: &mut [f32],
) -> Result<(), usize> {
    let (n, n_expert) = (acts.n_columns(), moe.routing.n_expert);
    let scores = room(logits, n * n_expert);
    exec.project(acts, vec![Product::new(&moe.router, scores)]);
    choices.resize_with(n.max(choices.len()), Vec::new);
    let choices = &mut choices[..n];
    let mut tokens: Vec<_> =
        scores.chunks_exact(n_expert).zip(choices.iter_mut()).map(|u| (u, true)).collect();
    let step = exec.runs(n).next().map_or(1, |r| r.len());
    let mut units: Vec<_> = tokens.chunks_mut(step).collect();
    exec.team.for_each(&mut units, |tokens, _| {
        for ((scores, chosen), fine) in tokens.iter_mut() {
            *fine =
                moe.routing.choose(scores, moe.selection_bias.as_deref(), expert_reduction, chosen).is_ok();
        }
    });
    if let Some(token) = tokens.iter().position(|(_, fine)| !fine) {
        return Err(token);
    }
    if let Some(collector) = exec.collector.filter(|c| c.options().choices) {
        collector.choose(&moe.router.name, choices);
    }
    let all = exec.collector.filter(|c| c.options().all_experts);
    if all.is_some() {
        ffn::collect_all(exec, &moe.experts, acts, buffers);
    }
    buffers.groups.assign(choices, n_expert);
    let unseen = Exec { collector: None, ..*exec };
    ffn::run(if all.is_some() { &unseen } else { exec }, &moe.experts, acts, buffers, out);
    if let Some(shared) = &moe.shared {
        run_dense(exec, shared, acts, buffers, logits, out);
    }
    Ok(())
}

/// The context that is asked for, or the trained one as far as the cache takes a quarter of the memory.
fn context(spec: &ModelSpec, layers: &[Layer], options: &Options) -> Result<usize, Error> {
    let bytes = |n_ctx: usize| -> Option<usize> {
        let types = (options.cache_type_k, options.cache_type_v);
        layers.iter().try_fold(0usize, |sum, l| sum.checked_add(l.attention.state_bytes(n_ctx, types)?))
    };
    let free = ikq_pool::available_memory().map_or(usize::MAX, |b| b as usize);
    if let Some(n_ctx) = options.n_ctx {
        return match bytes(n_ctx) {
            Some(needed) if needed <= free => Ok(n_ctx),
            needed => Err(Error::Option {
                option: "n_ctx",
                value: n_ctx.to_string(),
                why: format!(
                    "the cache would take {} bytes of the {free} that are free; choose a smaller context or cache_type_k and cache_type_v of fewer bits",
                    needed.map_or("too many".to_string(), |n| n.to_string())
                ),
            }),
        };
    }
    let mut n_ctx = spec.n_ctx_train.max(1);
    while n_ctx > 512 && bytes(n_ctx).is_none_or(|needed| needed > free / 4) {
        n_ctx /= 2;
    }
    Ok(n_ctx)
}
