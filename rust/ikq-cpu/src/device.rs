//! [`Cpu`]: the CPU as a device.

use std::sync::{Arc, Mutex};

use ikq_kernels::act::Activations;
use ikq_kernels::attention::CacheType;
use ikq_kernels::matmul::Compute;
use ikq_model::batch::Batch;
use ikq_model::device::{
    Choices, Device, Lent, Loading, Matrix, Memory, Move, RouterFailed, Stage, Step, Value,
};
use ikq_model::error::Error;
use ikq_model::network::{self, Layer, Network, RopeTable};
use ikq_model::placement::Placement;
use ikq_model::results::{self, Best, Results};
use ikq_pool::{Stop, available_memory};
use ikq_simd::IsaKind;

use crate::attention::{AttentionBuffers, Cuts};
use crate::cache::{CacheForm, LayerCache};
use crate::exec::{Exec, Forms, ThreadScratch, room};
use crate::ffn::FfnBuffers;
use crate::load::{self, Copies, Mmap};
use crate::low_rank::{self, Scales};
use crate::rope::{self, Angles};
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
    /// The same of the embeddings of layers.
    layer_embeddings: Option<network::Weight>,
    ropes: Vec<RopeTable>,
    caches: Vec<Option<LayerCache>>,
    threads: Vec<Mutex<ThreadScratch>>,
    given: Given,
    step: StepState,
}

/// The inputs of a step: its batch, its angles, and how its attention is cut.
#[derive(Default)]
struct Given {
    batch: Batch,
    cuts: Cuts,
    angles: Vec<Angles>,
    all_columns: Vec<u32>,
    /// Scales of adapters: adapter after adapter, one for each column.
    scales: Vec<f32>,
}

/// Results and intermediate values of a step.
#[derive(Default)]
struct StepState {
    hidden: Vec<f32>,
    /// What attention has read, where the layer's FFN reads it too.
    before: Vec<f32>,
    /// The result of a branch before it is added.
    branch: Vec<f32>,
    sum: Vec<f32>,
    shared: Vec<f32>,
    /// The embeddings of all layers, side by side for each token.
    per_layer: Vec<f32>,
    /// The normed input of attention and dense networks, and that of mixtures of experts.
    acts: Activations,
    input: Activations,
    /// That of the shared expert, where it is normed in a way of its own.
    shared_input: Activations,
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
            layer_embeddings: None,
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
            tokens: &$self.given.all_columns,
            scales: Scales { values: &$self.given.scales, n: $self.given.batch.n() },
            angles: &$self.given.angles,
            collector: $step.collector,
        }
    };
}

mod parts;
mod run;

use parts::Parts;
use run::output;

impl Device for Cpu {
    fn name(&self) -> &str {
        &self.name
    }

    fn load(&mut self, loading: &Loading<'_>) -> Result<Memory, Stop<Error>> {
        let network = Arc::clone(&loading.network);
        let n = network.layers.len();
        let mine: Vec<Stage> = loading.placement.of(loading.index).collect();
        for stage in &mine {
            let own = stage.layer().map(|l| (l, &network.layers[l]));
            let Some((l, _)) = own.filter(|(_, layer)| layer.parallel) else { continue };
            let reads = matches!(stage, Stage::Dense(_) | Stage::Route(_));
            if reads && !mine.contains(&Stage::Attention(l)) {
                let why = format!("layer {l}: an FFN beside attention is computed where attention is");
                return Err(Stop::Failed(Error::Spec { why }));
            }
        }
        let weights: Vec<&network::Weight> = mine.iter().flat_map(|s| network.weights_of(*s)).collect();
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
            if let Some(per_layer) = &network.per_layer {
                let copied = mmap == Mmap::Off;
                self.layer_embeddings = copied.then(|| per_layer.embd.copied());
                let bytes = if copied { &mut memory.copied_bytes } else { &mut memory.mapped_bytes };
                *bytes += per_layer.embd.n_bytes();
            }
        }
        self.parts = Parts::new(&network, &mine, &mut loaded);
        if mine.contains(&Stage::Embed) {
            let (embedded, bytes) = low_rank::load_embedded(kind, &network.token_embd_low_rank)?;
            self.parts.embedded = embedded;
            memory.copied_bytes += bytes;
        }
        self.ropes = network.ropes.iter().map(RopeTable::new).collect();
        self.caches = (0..n).map(|_| None).collect();
        for l in cached(&network, loading.placement, loading.index) {
            self.caches[l] = Some(LayerCache::new(&network.layers[l], cache)?);
        }
        self.threads = (0..loading.pool.n_threads()).map(|_| Mutex::default()).collect();
        self.network = Some(network);
        Ok(memory)
    }

    fn takes_adapters(&self) -> bool {
        true
    }

    fn page_bytes(&self, group: usize) -> usize {
        self.group(group).map(LayerCache::page_bytes).sum()
    }

    fn reserve(&mut self, group: usize, n: usize) -> Result<(), Error> {
        // a reservation that failed may have reached some of them
        let has = self.group(group).flat_map(|c| c.pages()).map(|p| p.n_pages()).min();
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
        given.scales.clear();
        for adapter in 0..batch.scales.first().map_or(0, |s| s.len()) {
            let runs = batch.runs.iter().zip(&batch.scales);
            let of_columns = runs.flat_map(|(run, s)| std::iter::repeat_n(s[adapter], run.columns.len()));
            given.scales.extend(of_columns);
        }
        let step = &mut self.step;
        for values in [&mut step.hidden, &mut step.branch, &mut step.sum, &mut step.shared] {
            let values = room(values, n * n_embd);
            if self.options.poison {
                values.fill(f32::NAN);
            }
        }
        step.choices.clear();
    }

    fn narrows(&self) -> bool {
        true
    }

    fn narrow(&mut self, batch: &Batch, columns: &[u32]) {
        let n = self.given.batch.n();
        let kept = |values: &mut Vec<f32>, width: usize| {
            if values.len() < n * width {
                return; // this model, or this device, has none
            }
            for (to, from) in columns.iter().enumerate() {
                let from = *from as usize * width;
                values.copy_within(from..from + width, to * width);
            }
        };
        let network = self.network.as_ref().expect("`load` comes first");
        kept(&mut self.step.hidden, network.spec.n_embd);
        kept(&mut self.step.before, network.spec.n_embd);
        if let Some(per_layer) = &network.per_layer {
            kept(&mut self.step.per_layer, per_layer.n_all());
        }
        let scales = self.given.scales.chunks_exact(n);
        let scales = scales.flat_map(|of_all| columns.iter().map(|c| of_all[*c as usize]));
        self.given.scales = scales.collect();
        self.given.batch.clone_from(batch);
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
            Stage::End(l) => self.end(l, step),
            Stage::Head => unreachable!("`head` runs it"),
        }
        Ok(())
    }

    fn lends(&self, layer: usize) -> Option<Lent<'_>> {
        let experts = self.parts.experts[layer].as_ref()?;
        let in_bands = [&experts.gate, &experts.up, &experts.down].map(Weight::in_lanes);
        let read = move |matrix, expert, rows, out: &mut [u8]| {
            let weight = match matrix {
                Matrix::Gate => &experts.gate,
                Matrix::Up => &experts.up,
                Matrix::Down => &experts.down,
            };
            out.copy_from_slice(weight.stored(expert, rows));
        };
        Some(Lent { in_bands, read: Box::new(read) })
    }

    fn head(&mut self, step: Step<'_>, results: Results<'_>) {
        let exec = exec!(self, step);
        let network = self.network.as_ref().expect("`load` comes first");
        let weight = self.parts.head.as_ref();
        let batch = exec.batch;
        let StepState { hidden: x, branch, acts, .. } = &mut self.step;
        let (n_embd, kind) = (network.spec.n_embd, network.spec.norm_kind);
        let n = batch.n() * n_embd;
        let Some(norm) = &network.output_norm else {
            // of a part of a model there is nothing but its hidden states
            let columns = results.hidden.chunks_exact_mut(n_embd).zip(&batch.hidden);
            columns.for_each(|(out, c)| out.copy_from_slice(&x[*c as usize * n_embd..][..n_embd]));
            return;
        };
        if let (Some(weight), true) = (weight, exec.collector.is_some_and(|c| c.options().output)) {
            // of all positions, whichever logits are wanted
            exec.norm_of(kind, &x[..n], norm, acts, Forms::default());
            exec.observe(&[weight], acts);
        }
        let chosen = |columns: &[u32], chosen: &mut Vec<f32>| {
            chosen.clear();
            columns.iter().for_each(|c| chosen.extend_from_slice(&x[*c as usize * n_embd..][..n_embd]));
        };
        if !batch.hidden.is_empty() {
            chosen(&batch.hidden, branch);
            exec.norm_of(kind, branch, norm, acts, Forms::default());
            results.hidden.copy_from_slice(acts.floats_mut());
        }
        let columns: Vec<u32> = batch.logits.iter().chain(&batch.best).copied().collect();
        let (Some(weight), false) = (weight, columns.is_empty()) else { return };
        chosen(&columns, branch);
        exec.norm_of(kind, branch, norm, acts, Forms::of(exec.compute, [weight]));
        let exec = Exec { tokens: &columns, ..exec };
        if batch.best.is_empty() {
            output(&exec, weight, acts, &network.spec, results.logits);
            return;
        }
        let mut logits = vec![0.0; columns.len() * weight.n_rows];
        output(&exec, weight, acts, &network.spec, &mut logits);
        let (whole, others) = logits.split_at(results.logits.len());
        results.logits.copy_from_slice(whole);
        find_best(&exec, others, weight.n_rows, results.best, batch.n_best);
    }

    fn project(&mut self, step: Step<'_>, hidden: &[f32], logits: &mut [f32], best: &mut [Best]) {
        let exec = exec!(self, step);
        let network = self.network.as_ref().expect("`load` comes first");
        let weight = self.parts.head.as_ref().expect("the output is on this device");
        // a batch may never have begun, and columns are those of this call
        let n_embd = network.spec.n_embd;
        let n = hidden.len() / n_embd;
        let all_columns: Vec<u32> = (0..n as u32).collect();
        let scales = Scales { values: step.scales, n: 0 };
        let exec = Exec { all_columns: &all_columns, tokens: &all_columns, scales, ..exec };
        let acts = &mut self.step.acts;
        acts.resize(n_embd, n);
        acts.floats_mut().copy_from_slice(hidden);
        exec.quantize(acts, Forms::of(exec.compute, [weight]));
        if best.is_empty() {
            output(&exec, weight, acts, &network.spec, logits);
            return;
        }
        let mut logits = vec![0.0; n * weight.n_rows];
        output(&exec, weight, acts, &network.spec, &mut logits);
        find_best(&exec, &logits, weight.n_rows, best, best.len() / n);
    }
}

/// Finds the `each` largest of every `n_vocab` logits.
fn find_best(exec: &Exec<'_>, logits: &[f32], n_vocab: usize, best: &mut [Best], each: usize) {
    let columns = logits.chunks_exact(n_vocab);
    let mut units: Vec<_> = columns.zip(best.chunks_exact_mut(each)).collect();
    exec.team.for_each(&mut units, |(logits, best), _| results::best(logits, best));
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
        for weight in network.weights_of(stage) {
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
    (0..network.layers.len()).filter(move |l| {
        placement.device(Stage::Attend(*l)) == index && network.layers[*l].attention.shares().is_none()
    })
}
