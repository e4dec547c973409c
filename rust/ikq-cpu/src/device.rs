//! [`Cpu`]: the CPU as a device.

use std::sync::{Arc, Mutex};

use ikq_kernels::act::Activations;
use ikq_kernels::attention::CacheType;
use ikq_kernels::matmul::Compute;
use ikq_kernels::ops;
use ikq_model::batch::Batch;
use ikq_model::device::{Choices, Device, Loading, Memory, Move, RouterFailed, Stage, Step, Value};
use ikq_model::error::Error;
use ikq_model::network::{self, Ffn, Layer, Network, RopeTable};
use ikq_model::placement::Placement;
use ikq_pool::{Stop, available_memory};
use ikq_simd::IsaKind;

use crate::attention::{Attention, AttentionBuffers, Cuts, parted};
use crate::cache::{CacheForm, LayerCache};
use crate::exec::{Exec, Forms, Product, ThreadScratch, room};
use crate::ffn::{Experts, FfnBuffers};
use crate::load::{self, Copies, Loaded, Mmap};
use crate::rope::{self, Angles};
use crate::router::Router;
use crate::stages::{self, Dense};
use crate::weight::Weight;

/// How the CPU computes.
#[derive(Clone, Debug)]
pub struct Options {
    pub kind: IsaKind,
    pub compute: Compute,
    pub cache: CacheForm,
    pub mmap: Mmap,
    /// Experts after the first `.0` are dropped where their weight is below `.1` times the largest.
    pub expert_reduction: Option<(usize, f32)>,
    /// Fill values that another device has the new ones of with NaN, so that a stage that reads a stale value
    /// is found.
    pub poison: bool,
}

/// The CPU.
pub struct Cpu {
    name: String,
    options: Options,
    network: Option<Arc<Network>>,
    parts: Parts,
    /// Copies of matrices that a later load can take over.
    copies: Copies,
    /// The embeddings where they are not read from the file's mapping.
    embeddings: Option<network::Weight>,
    ropes: Vec<RopeTable>,
    caches: Vec<Option<LayerCache>>,
    threads: Vec<Mutex<ThreadScratch>>,
    given: Given,
    step: StepState,
}

/// The weights of this device's stages, by layer.
#[derive(Default)]
struct Parts {
    attention: Vec<Option<Attention>>,
    dense: Vec<Option<Dense>>,
    router: Vec<Option<Router>>,
    experts: Vec<Option<Experts>>,
    shared: Vec<Option<Dense>>,
    eh_proj: Option<Weight>,
    head: Option<Weight>,
}

/// The inputs of a step: its batch, its angles, and how its attention is cut.
#[derive(Default)]
struct Given {
    batch: Batch,
    cuts: Cuts,
    angles: Vec<Angles>,
    all_columns: Vec<u32>,
}

/// Results and intermediate values of a step.
#[derive(Default)]
struct StepState {
    hidden: Vec<f32>,
    /// The result of a branch before it is added.
    branch: Vec<f32>,
    sum: Vec<f32>,
    shared: Vec<f32>,
    /// The normed input of attention and dense networks, and that of mixtures of experts.
    acts: Activations,
    input: Activations,
    choices: Choices,
    scores: Vec<f32>,
    /// Queries, keys and values on their way to another device.
    projected: Vec<f32>,
    attention: AttentionBuffers,
    ffn: FfnBuffers,
}

impl Cpu {
    /// A device of that name. More than one share the processor and nothing else.
    pub fn new(name: impl Into<String>, options: Options) -> Cpu {
        Cpu {
            name: name.into(),
            options,
            network: None,
            parts: Parts::default(),
            copies: Copies::default(),
            embeddings: None,
            ropes: Vec::new(),
            caches: Vec::new(),
            threads: Vec::new(),
            given: Given::default(),
            step: StepState::default(),
        }
    }

    fn network(&self) -> &Network {
        self.network.as_ref().expect("`load` comes first")
    }

    fn n_embd(&self) -> usize {
        self.network().spec.n_embd
    }

    /// The caches of a group's layers.
    fn group(&self, group: usize) -> impl Iterator<Item = &LayerCache> {
        self.network().groups[group].layers.iter().filter_map(|l| self.caches[*l].as_ref())
    }

    fn group_mut(&mut self, group: usize) -> impl Iterator<Item = (&Layer, &mut LayerCache)> {
        let network = self.network.as_ref().expect("`load` comes first");
        let caches = self.caches.iter_mut().zip(&network.layers);
        caches.filter(move |(_, l)| l.group == Some(group)).filter_map(|(c, l)| Some((l, c.as_mut()?)))
    }

    /// # Errors
    /// [`Error::CacheMemory`] when so many more bytes are not free.
    fn check_free(&self, needed: usize) -> Result<(), Error> {
        let free = available_memory().map_or(usize::MAX, |b| b as usize);
        if needed > free { Err(Error::CacheMemory { needed, free }) } else { Ok(()) }
    }

    /// Rounds a number of pages or states up, so that memory is asked for seldom.
    fn lump(n: usize) -> usize {
        n + n / 4
    }
}

/// The [`Exec`] of a stage, made of a device's fields. This is a macro because it borrows only some of the fields.
macro_rules! exec {
    ($self:ident, $step:expr) => {
        Exec {
            team: $step.team,
            kind: $self.options.kind,
            compute: $self.options.compute,
            norm_eps: $self.network.as_ref().expect("`load` comes first").spec.norm_eps,
            batch: &$self.given.batch,
            cuts: &$self.given.cuts,
            threads: &$self.threads,
            all_columns: &$self.given.all_columns,
            angles: &$self.given.angles,
            collector: $step.collector,
        }
    };
}

impl Device for Cpu {
    fn name(&self) -> &str {
        &self.name
    }

    fn load(&mut self, loading: &Loading<'_>) -> Result<Memory, Stop<Error>> {
        let network = Arc::clone(&loading.network);
        let n = network.layers.len();
        let mine: Vec<Stage> = loading.placement.of(loading.index).collect();
        let weights: Vec<&network::Weight> = mine.iter().flat_map(|s| weights_of(&network, *s)).collect();
        let Options { mmap, kind, cache, .. } = self.options;
        // what is not loaded again is let go of first
        self.parts = Parts::default();
        let copies = &mut self.copies;
        let mut loaded = load::load(&weights, copies, mmap, kind, loading.pool, loading.cancel)?;
        let mut memory = loaded.memory.clone();
        if mine.contains(&Stage::Embed) {
            match (&network.token_embd, mmap) {
                (Some(token_embd), Mmap::Off) => {
                    self.embeddings = Some(token_embd.copied());
                    memory.copied_bytes += token_embd.n_bytes();
                }
                (Some(token_embd), _) => memory.mapped_bytes += token_embd.n_bytes(),
                (None, _) => {}
            }
        }
        self.parts = Parts::new(&network, &mine, &mut loaded);
        self.ropes = network.ropes.iter().map(RopeTable::new).collect();
        self.caches = (0..n).map(|_| None).collect();
        for l in cached(&network, loading.placement, loading.index) {
            self.caches[l] = Some(LayerCache::new(&network.layers[l], cache)?);
        }
        self.threads = (0..loading.pool.n_threads()).map(|_| Mutex::default()).collect();
        self.network = Some(network);
        Ok(memory)
    }

    fn page_bytes(&self, group: usize) -> usize {
        self.group(group).map(LayerCache::page_bytes).sum()
    }

    fn reserve(&mut self, group: usize, n: usize) -> Result<(), Error> {
        let has = self.group(group).next().and_then(|c| c.pages().first().map(|p| p.n_pages()));
        if has.is_none_or(|has| has >= n) {
            return Ok(());
        }
        let more = n - has.unwrap_or(0);
        self.check_free(more * self.page_bytes(group))?;
        let n = Cpu::lump(n);
        self.group_mut(group).try_for_each(|(_, cache)| cache.reserve(n))
    }

    fn copy_page(&mut self, group: usize, from: u32, to: u32) {
        self.group_mut(group).for_each(|(_, cache)| cache.copy_page(from, to));
    }

    fn move_rows(&mut self, group: usize, moves: &[Move]) {
        let (kind, ropes) = (self.options.kind, std::mem::take(&mut self.ropes));
        self.group_mut(group).for_each(|(l, cache)| cache.move_rows(kind, &l.attention, &ropes, moves));
        self.ropes = ropes;
    }

    fn cache_form(&self) -> String {
        let CacheForm { keys, values, .. } = self.options.cache;
        let name = |ty: CacheType| match self.options.cache.rotates(ty) {
            true => format!("{} (rotated)", ty.name()),
            false => ty.name().to_string(),
        };
        format!("{}, {}", name(keys), name(values))
    }

    fn layer_page_bytes(&self, layer: usize) -> usize {
        self.caches[layer].as_ref().map_or(0, LayerCache::page_bytes)
    }

    fn export_page(&self, layer: usize, page: u32, out: &mut Vec<u8>) {
        if let Some(cache) = &self.caches[layer] {
            cache.export_page(page, out);
        }
    }

    fn import_page(&mut self, layer: usize, page: u32, bytes: &[u8]) {
        if let Some(cache) = &mut self.caches[layer] {
            cache.import_page(page, bytes);
        }
    }

    fn state_bytes(&self) -> usize {
        self.caches.iter().flatten().map(LayerCache::state_bytes).sum()
    }

    fn reserve_states(&mut self, n: usize) -> Result<(), Error> {
        let has = self.caches.iter().flatten().map(|c| c.states().len()).max().unwrap_or(0);
        if has < n {
            self.check_free((n - has) * self.state_bytes())?;
            self.caches.iter_mut().flatten().for_each(|c| c.reserve_states(n));
        }
        Ok(())
    }

    fn clear_state(&mut self, state: u32) {
        for cache in self.caches.iter_mut().flatten() {
            cache.states_mut().iter_mut().skip(state as usize).take(1).for_each(|s| s.clear());
        }
    }

    fn copy_state(&mut self, from: u32, to: u32) {
        for cache in self.caches.iter_mut().flatten() {
            let states = cache.states_mut();
            if let Ok([from, to]) = states.get_disjoint_mut([from as usize, to as usize]) {
                to.copy_from(from);
            }
        }
    }

    fn state_chunk(&self) -> usize {
        ikq_kernels::delta::CHUNK
    }

    fn truncate_state(&mut self, state: u32, n: usize) {
        for cache in self.caches.iter_mut().flatten() {
            let states = cache.states_mut().iter_mut().skip(state as usize).take(1);
            states.for_each(|s| s.truncate(n % ikq_kernels::delta::CHUNK));
        }
    }

    fn export_state(&self, layer: usize, state: u32, out: &mut Vec<u8>) {
        if let Some(cache) = &self.caches[layer] {
            cache.states()[state as usize].write_to(out);
        }
    }

    fn import_state(&mut self, layer: usize, state: u32, n_past: usize, bytes: &[u8]) -> Result<(), String> {
        let Some(cache) = &mut self.caches[layer] else {
            return Err(format!("layer {layer} is on another device"));
        };
        let state = &mut cache.states_mut()[state as usize];
        state.read_from(bytes).map_err(|e| e.to_string())?;
        match state.n_past() == n_past {
            true => Ok(()),
            false => Err(format!("a state at {} instead of {n_past}", state.n_past())),
        }
    }

    fn begin(&mut self, batch: &Batch) {
        let n = batch.n();
        let n_embd = self.n_embd();
        let network = self.network.as_ref().expect("`load` comes first");
        let given = &mut self.given;
        given.batch.clone_from(batch);
        given.cuts = Cuts::new(batch, network, self.threads.len());
        rope::angles(&self.ropes, &batch.positions, &mut given.angles);
        given.all_columns.extend(given.all_columns.len() as u32..n as u32);
        let step = &mut self.step;
        for values in [&mut step.hidden, &mut step.branch, &mut step.sum, &mut step.shared] {
            let values = room(values, n * n_embd);
            if self.options.poison {
                values.fill(f32::NAN);
            }
        }
        step.choices.clear();
    }

    fn put(&mut self, value: Value, columns: &[f32]) {
        let n_embd = self.n_embd();
        let step = &mut self.step;
        match value {
            Value::Hidden => step.hidden[..columns.len()].copy_from_slice(columns),
            Value::Sum => step.sum[..columns.len()].copy_from_slice(columns),
            Value::Shared => step.shared[..columns.len()].copy_from_slice(columns),
            Value::Input => {
                // whatever stage reads it
                step.input.resize(n_embd, columns.len() / n_embd);
                step.input.floats_mut().copy_from_slice(columns);
                step.input.columns_mut().iter_mut().for_each(|c| c.quantize(self.options.kind));
            }
            Value::Projected(l) => {
                let network = self.network.as_ref().expect("`load` comes first");
                step.attention.put_projected(&network.layers[l], self.given.batch.n(), columns);
            }
            Value::Attended(_) => step.attention.put_attended(self.given.batch.n(), columns),
        }
    }

    fn get(&mut self, value: Value) -> &[f32] {
        let n = self.given.batch.n() * self.n_embd();
        let step = &mut self.step;
        match value {
            Value::Hidden => {
                if self.options.poison {
                    // the copy that is given away is the only good one
                    room(&mut step.branch, n).copy_from_slice(&step.hidden[..n]);
                    step.hidden[..n].fill(f32::NAN);
                    return &step.branch[..n];
                }
                &step.hidden[..n]
            }
            Value::Sum => &step.sum[..n],
            Value::Shared => &step.shared[..n],
            Value::Input => &step.input.floats_mut()[..n],
            Value::Projected(l) => {
                let network = self.network.as_ref().expect("`load` comes first");
                step.projected = step.attention.projected(&network.layers[l], self.given.batch.n());
                &step.projected
            }
            Value::Attended(_) => step.attention.outer.floats_mut(),
        }
    }

    fn put_choices(&mut self, choices: &Choices) {
        self.step.choices.clone_from(choices);
    }

    fn choices(&mut self) -> &Choices {
        &self.step.choices
    }

    fn run(&mut self, stage: Stage, step: Step<'_>) -> Result<(), RouterFailed> {
        match stage {
            Stage::Embed => self.embed(step),
            Stage::Attention(l) => self.attention(l, step),
            Stage::Project(l) => self.project_heads(l, step),
            Stage::Attend(l) => self.attend(l, step),
            Stage::Output(l) => self.attention_output(l, step),
            Stage::Dense(l) => self.dense(l, step),
            Stage::Route(l) => return self.route(l, step),
            Stage::Experts(l) => self.experts(l, step),
            Stage::Shared(l) => self.shared(l, step),
            Stage::Join(l) => self.join(l, step),
            Stage::Head => unreachable!("`head` runs it"),
        }
        Ok(())
    }

    fn head(&mut self, step: Step<'_>, logits: &mut [f32], hidden: &mut [f32]) {
        let exec = exec!(self, step);
        let network = self.network.as_ref().expect("`load` comes first");
        let weight = self.parts.head.as_ref();
        let batch = exec.batch;
        let StepState { hidden: x, branch, acts, .. } = &mut self.step;
        let n_embd = network.spec.n_embd;
        let n = batch.n() * n_embd;
        let Some(norm) = &network.output_norm else {
            // of a part of a model there is nothing but its hidden states
            let columns = hidden.chunks_exact_mut(n_embd).zip(&batch.hidden);
            columns.for_each(|(out, c)| out.copy_from_slice(&x[*c as usize * n_embd..][..n_embd]));
            return;
        };
        if let (Some(weight), true) = (weight, exec.collector.is_some_and(|c| c.options().output)) {
            // of all positions, whichever logits are wanted
            exec.norm(&x[..n], norm, exec.norm_eps, acts, Forms::default());
            exec.observe(&[weight], acts);
        }
        let chosen = |columns: &[u32], chosen: &mut Vec<f32>| {
            chosen.clear();
            columns.iter().for_each(|c| chosen.extend_from_slice(&x[*c as usize * n_embd..][..n_embd]));
        };
        if !batch.hidden.is_empty() {
            chosen(&batch.hidden, branch);
            exec.norm(branch, norm, exec.norm_eps, acts, Forms::default());
            hidden.copy_from_slice(acts.floats_mut());
        }
        if let (Some(weight), false) = (weight, batch.logits.is_empty()) {
            chosen(&batch.logits, branch);
            exec.norm(branch, norm, exec.norm_eps, acts, Forms::of(exec.compute, [weight]));
            output(&exec, weight, acts, network.spec.final_softcap, logits);
        }
    }

    fn project(&mut self, step: Step<'_>, hidden: &[f32], logits: &mut [f32]) {
        let exec = exec!(self, step);
        let network = self.network.as_ref().expect("`load` comes first");
        let weight = self.parts.head.as_ref().expect("the output is on this device");
        // a batch may never have begun, and columns are those of this call
        let n_embd = network.spec.n_embd;
        let n = hidden.len() / n_embd;
        let all_columns: Vec<u32> = (0..n as u32).collect();
        let exec = Exec { all_columns: &all_columns, ..exec };
        let acts = &mut self.step.acts;
        acts.resize(n_embd, n);
        acts.floats_mut().copy_from_slice(hidden);
        exec.quantize(acts, Forms::of(exec.compute, [weight]));
        output(&exec, weight, acts, network.spec.final_softcap, logits);
    }
}

/// Logits of normed hidden states.
fn output(exec: &Exec<'_>, weight: &Weight, acts: &Activations, softcap: Option<f32>, logits: &mut [f32]) {
    exec.multiply(acts, vec![Product::new(weight, logits)]);
    if let Some(cap) = softcap {
        let mut rows: Vec<_> = logits.chunks_mut(weight.n_rows).collect();
        exec.team.for_each(&mut rows, |row, _| ops::softcap(exec.kind, row, cap));
    }
}

impl Cpu {
    fn embed(&mut self, step: Step<'_>) {
        let exec = exec!(self, step);
        let network = self.network.as_ref().expect("`load` comes first");
        let batch = exec.batch;
        let StepState { hidden, acts, .. } = &mut self.step;
        let (n_embd, scale, kind) = (network.spec.n_embd, network.spec.embd_scale, self.options.kind);
        let Some(embeddings) = self.embeddings.as_ref().or(network.token_embd.as_ref()) else {
            hidden[..batch.given.len()].copy_from_slice(&batch.given);
            return;
        };
        let columns = hidden.chunks_exact_mut(n_embd).zip(&batch.tokens);
        let mut columns: Vec<_> = columns.collect();
        step.team.for_each(&mut columns, |(x, token), _| {
            embeddings.decode_row(kind, **token as usize, x);
            if scale != 1.0 {
                x.iter_mut().for_each(|v| *v *= scale);
            }
        });
        let (Some(nextn), Some(eh_proj)) = (&network.nextn, &self.parts.eh_proj) else { return };
        // a head's block reads both, normed, side by side
        let n = batch.n();
        acts.resize(2 * n_embd, n);
        let both = acts.floats_mut().chunks_exact_mut(2 * n_embd);
        let inputs = hidden.chunks_exact(n_embd).zip(batch.given.chunks_exact(n_embd));
        let mut columns: Vec<_> = both.zip(inputs).collect();
        step.team.for_each(&mut columns, |(both, (embedding, given)), _| {
            let (e, h) = both.split_at_mut(n_embd);
            ops::rms_norm(kind, embedding, &nextn.enorm, exec.norm_eps, e);
            ops::rms_norm(kind, given, &nextn.hnorm, exec.norm_eps, h);
        });
        exec.quantize(acts, Forms::of(exec.compute, [eh_proj]));
        exec.project(acts, vec![Product::new(eh_proj, &mut hidden[..n * n_embd])]);
    }

    fn attention(&mut self, l: usize, step: Step<'_>) {
        let exec = exec!(self, step);
        let network = self.network.as_ref().expect("`load` comes first");
        let layer = &network.layers[l];
        let batch = exec.batch;
        let StepState { hidden, branch, acts, attention: buffers, .. } = &mut self.step;
        let (n_embd, n) = (network.spec.n_embd, batch.n() * network.spec.n_embd);
        let attention = self.parts.attention[l].as_ref().expect("a stage of this device");
        let cache = self.caches[l].as_mut().expect("a stage of this device");
        let (x, branch) = (&mut hidden[..n], room(branch, n));
        exec.norm(x, &layer.attention_norm, exec.norm_eps, acts, attention.input_forms(exec.compute));
        attention.run(&exec, layer, acts, cache, buffers, branch);
        stages::add_branch(&exec, x, branch, layer.post_attention_norm.as_deref(), n_embd);
    }

    fn project_heads(&mut self, l: usize, step: Step<'_>) {
        let exec = exec!(self, step);
        let network = self.network.as_ref().expect("`load` comes first");
        let layer = &network.layers[l];
        let StepState { hidden, acts, attention: buffers, .. } = &mut self.step;
        let attention = self.parts.attention[l].as_ref().expect("a stage of this device");
        let x = &hidden[..exec.batch.n() * network.spec.n_embd];
        exec.norm(x, &layer.attention_norm, exec.norm_eps, acts, attention.input_forms(exec.compute));
        attention.project(&exec, layer, acts, buffers);
    }

    fn attend(&mut self, l: usize, step: Step<'_>) {
        let exec = exec!(self, step);
        let network = self.network.as_ref().expect("`load` comes first");
        let cache = self.caches[l].as_mut().expect("a stage of this device");
        parted::attend(&exec, &network.layers[l], cache, &mut self.step.attention, exec.batch.n());
    }

    fn attention_output(&mut self, l: usize, step: Step<'_>) {
        let exec = exec!(self, step);
        let network = self.network.as_ref().expect("`load` comes first");
        let StepState { hidden, branch, attention: buffers, .. } = &mut self.step;
        let (n_embd, n) = (network.spec.n_embd, exec.batch.n() * network.spec.n_embd);
        let attention = self.parts.attention[l].as_ref().expect("a stage of this device");
        let (x, branch) = (&mut hidden[..n], room(branch, n));
        attention.output(&exec, buffers, branch);
        stages::add_branch(&exec, x, branch, network.layers[l].post_attention_norm.as_deref(), n_embd);
    }

    fn dense(&mut self, l: usize, step: Step<'_>) {
        let exec = exec!(self, step);
        let network = self.network.as_ref().expect("`load` comes first");
        let layer = &network.layers[l];
        let batch = exec.batch;
        let StepState { hidden, branch, acts, ffn, scores, .. } = &mut self.step;
        let (n_embd, n) = (network.spec.n_embd, batch.n() * network.spec.n_embd);
        let dense = self.parts.dense[l].as_ref().expect("a stage of this device");
        let (x, branch) = (&mut hidden[..n], room(branch, n));
        exec.norm(x, &layer.ffn_norm, exec.norm_eps, acts, dense.input_forms(exec.compute));
        dense.run(&exec, acts, ffn, scores, branch);
        stages::add_branch(&exec, x, branch, layer.post_ffn_norm.as_deref(), n_embd);
    }

    fn route(&mut self, l: usize, step: Step<'_>) -> Result<(), RouterFailed> {
        let exec = exec!(self, step);
        let network = self.network.as_ref().expect("`load` comes first");
        let layer = &network.layers[l];
        let batch = exec.batch;
        let StepState { hidden, input, choices, scores, .. } = &mut self.step;
        let n = batch.n() * network.spec.n_embd;
        let router = self.parts.router[l].as_ref().expect("a stage of this device");
        // in all forms that this device's other stages of the layer read
        let compute = exec.compute;
        let mut q8 = Forms::of(compute, [&router.weight]).q8;
        q8 |= self.parts.experts[l].as_ref().is_some_and(|e| e.input_forms(compute).q8);
        q8 |= self.parts.shared[l].as_ref().is_some_and(|s| s.input_forms(compute).q8);
        exec.norm(&hidden[..n], &layer.ffn_norm, exec.norm_eps, input, Forms { q8 });
        router.run(&exec, input, self.options.expert_reduction, scores, choices)
    }

    fn experts(&mut self, l: usize, step: Step<'_>) {
        let exec = exec!(self, step);
        let n = exec.batch.n() * self.network.as_ref().expect("`load` comes first").spec.n_embd;
        let StepState { input, choices, ffn, sum, .. } = &mut self.step;
        let experts = self.parts.experts[l].as_ref().expect("a stage of this device");
        stages::experts(&exec, experts, input, choices, ffn, &mut sum[..n]);
    }

    fn shared(&mut self, l: usize, step: Step<'_>) {
        let exec = exec!(self, step);
        let n = exec.batch.n() * self.network.as_ref().expect("`load` comes first").spec.n_embd;
        let StepState { input, ffn, scores, shared, .. } = &mut self.step;
        let dense = self.parts.shared[l].as_ref().expect("a stage of this device");
        dense.run(&exec, input, ffn, scores, &mut shared[..n]);
    }

    fn join(&mut self, l: usize, step: Step<'_>) {
        let exec = exec!(self, step);
        let network = self.network.as_ref().expect("`load` comes first");
        let layer = &network.layers[l];
        let batch = exec.batch;
        let StepState { hidden, sum, shared, .. } = &mut self.step;
        let (n_embd, n) = (network.spec.n_embd, batch.n() * network.spec.n_embd);
        let sum = &mut sum[..n];
        if matches!(&layer.ffn, Ffn::Moe(moe) if moe.shared.is_some()) {
            sum.iter_mut().zip(&shared[..n]).for_each(|(sum, shared)| *sum += shared);
        }
        stages::add_branch(&exec, &mut hidden[..n], sum, layer.post_ffn_norm.as_deref(), n_embd);
    }
}

/// What a CPU device would hold, without loading it: bytes of its weights in the device's form, of a page of every
/// group, and of a recurrent state.
///
/// # Errors
/// [`Error::Format`], [`Error::Cache`] for what the device cannot hold.
pub fn predict(
    network: &Network,
    placement: &Placement,
    index: usize,
    form: CacheForm,
) -> Result<(usize, Vec<usize>, usize), Error> {
    let (mut weights, mut pages, mut state) = (0, vec![0; network.groups.len()], 0);
    for stage in placement.of(index) {
        for weight in weights_of(network, stage) {
            weights += weight.n_experts() * load::matrix_bytes(weight)?;
        }
    }
    for l in cached(network, placement, index) {
        let layer = &network.layers[l];
        let cache = LayerCache::new(layer, form)?;
        state += cache.state_bytes();
        if let Some(group) = layer.group {
            pages[group] += cache.page_bytes();
        }
    }
    Ok((weights, pages, state))
}

/// The layers whose cache a device has.
fn cached(network: &Network, placement: &Placement, index: usize) -> impl Iterator<Item = usize> {
    (0..network.layers.len()).filter(move |l| placement.device(Stage::Attend(*l)) == index)
}

/// The matrices of a stage. Embeddings stay in the file.
fn weights_of(network: &Network, stage: Stage) -> Vec<&network::Weight> {
    let moe = |l: usize| match &network.layers[l].ffn {
        Ffn::Moe(moe) => moe,
        Ffn::Dense(_) => unreachable!("the placement knows which layers have experts"),
    };
    match stage {
        Stage::Embed => network.nextn.iter().map(|n| &n.eh_proj).collect(),
        Stage::Join(_) | Stage::Project(_) | Stage::Attend(_) | Stage::Output(_) => Vec::new(),
        Stage::Attention(l) => network.layers[l].attention.weights(),
        Stage::Dense(l) => match &network.layers[l].ffn {
            Ffn::Dense(dense) => dense.weights(),
            Ffn::Moe(_) => unreachable!("the placement knows which layers have experts"),
        },
        Stage::Route(l) => vec![&moe(l).router],
        Stage::Experts(l) => moe(l).experts.weights().to_vec(),
        Stage::Shared(l) => moe(l).shared.iter().flat_map(|s| s.weights()).collect(),
        Stage::Head => network.output.iter().collect(),
    }
}

impl Parts {
    fn new(network: &Network, stages: &[Stage], loaded: &mut Loaded) -> Parts {
        let n = network.layers.len();
        let mut parts = Parts::default();
        parts.attention.resize_with(n, || None);
        parts.dense.resize_with(n, || None);
        parts.router.resize_with(n, || None);
        parts.experts.resize_with(n, || None);
        parts.shared.resize_with(n, || None);
        for stage in stages {
            match (*stage, stage.layer().map(|l| &network.layers[l])) {
                (Stage::Attention(l), Some(layer)) => {
                    parts.attention[l] = Some(Attention::new(&layer.attention, loaded));
                }
                (Stage::Dense(l), Some(Layer { ffn: Ffn::Dense(dense), .. })) => {
                    parts.dense[l] = Some(Dense::new(dense, loaded));
                }
                (Stage::Route(l), Some(Layer { ffn: Ffn::Moe(moe), .. })) => {
                    parts.router[l] = Some(Router::new(moe, loaded));
                }
                (Stage::Experts(l), Some(Layer { ffn: Ffn::Moe(moe), .. })) => {
                    parts.experts[l] = Some(Experts::new(&moe.experts, loaded));
                }
                (Stage::Shared(l), Some(Layer { ffn: Ffn::Moe(moe), .. })) => {
                    parts.shared[l] = moe.shared.as_ref().map(|s| Dense::new(s, loaded));
                }
                (Stage::Head, _) => parts.head = network.output.as_ref().map(|w| loaded.take(w)),
                (Stage::Embed, _) => parts.eh_proj = network.nextn.as_ref().map(|n| loaded.take(&n.eh_proj)),
                _ => {}
            }
        }
        parts
    }
}
