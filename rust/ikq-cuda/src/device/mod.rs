//! [`Cuda`]: a GPU as a device that runs parts of models: attention over pages (with grouped heads, and latent),
//! recurrent layers, dense FFNs, mixtures of experts, and the output. Loading refuses parts that it does not compute.
//!
//! | module | what |
//! |---|---|
//! | [`parts`], [`load`] | the weights of stages, and loading them |
//! | [`scratch`], [`columns`] | memory of a step, and data about its batch |
//! | [`cache`], [`states`], [`room`] | pages of the KV cache, and states of recurrent layers; how many there may be |
//! | `attention`, `delta_net`, `ffn`, `head` | the stages |
//! | [`borrowed`], [`slabs`] | experts that the CPU has, in steps of many tokens |
//! | [`queue`], [`graphs`] | launching several at once, and again |
//! | [`host`] | copies to and from the host |
//! | [`observed`] | what weights are multiplied with, for statistics |
//! | [`predict`] | the memory that all this takes |
//!
//! An error of the driver in the middle of a step is kept, and reported when the step is over
//! ([`Device::failure`]).

mod attention;
mod borrowed;
mod cache;
mod columns;
mod delta_net;
mod ffn;
mod graphs;
mod head;
mod host;
mod load;
mod observed;
mod parts;
mod predict;
mod queue;
mod room;
mod scratch;
mod slabs;
mod states;

use std::cell::RefCell;
use std::sync::Arc;

use ikq_formats::QuantType;
use ikq_model::batch::Batch;
use ikq_model::device::{
    CacheRoom, Choices, Device, Lent, Loading, Memory, Move, RouterFailed, Stage, Step, Value,
};
use ikq_model::error::Error as ModelError;
use ikq_model::network::{self, Attention, Network, RopeId, RopeTable};
use ikq_model::results::{Best, Results};
use ikq_pool::Stop;

pub use borrowed::told;
pub use cache::CacheForm;
pub use predict::{Extent, Needed, predict};

use crate::environment;
use crate::error::Error;
use crate::floats::{as_bytes, as_bytes_mut};
use crate::gpu::Gpu;
use crate::loader::Runtime;
use crate::memory::{Address, Arena, arena_bytes};
use crate::plan::{CHUNK, Call};
use crate::products::{self, Columns, launch};
use attention::turn;
use cache::{Back, LayerCache};
use columns::ColumnData;
use graphs::{Graphs, Shape};
use host::Host;
use load::Loader;
use observed::Watch;
use parts::Parts;
use predict::counted;
use queue::Queue;
use scratch::{Scratch, Wide};
use slabs::Slabs;
use states::States;

/// Options of a GPU.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    pub cache: CacheForm,
    /// Experts after the first `.0` of a token are dropped unless their weight exceeds `.1` times the largest.
    pub expert_reduction: Option<(usize, f32)>,
}

impl Default for Options {
    /// A KV cache of f16, and all experts that routers choose.
    fn default() -> Options {
        let (keys, values) = (QuantType::F16, QuantType::F16);
        let cache = CacheForm { keys, values, turns_keys: false, turns_values: false };
        Options { cache, expert_reduction: None }
    }
}

/// A GPU that runs parts of models.
pub struct Cuda {
    name: String,
    gpu: Gpu,
    options: Options,
    network: Option<Arc<Network>>,
    parts: Parts,
    ropes: Vec<RopeTable>,
    caches: Vec<Option<LayerCache>>,
    room: Option<CacheRoom>,
    scratch: Option<Scratch>,
    slabs: Option<Slabs>,
    columns: ColumnData,
    host: Host,
    queue: Queue,
    graphs: Graphs,
    batch: Batch,
    /// Experts per column in the present choices.
    n_used: usize,
    /// Whether a router of this device has run in this step.
    has_routed: bool,
    /// For each column the layer whose router gave no numbers, or -1, where it came with the results.
    not_finite: Option<Vec<i32>>,
    /// Values that [`Device::get`] copied to the host.
    values: Vec<f32>,
    choices: Choices,
    /// What a collector is told of after the present stage.
    watch: RefCell<Watch>,
    failure: RefCell<Option<Error>>,
}

impl Cuda {
    /// Opens the device `CUDA{index}`.
    ///
    /// # Errors
    /// If there is no such device, or an environment variable cannot be read, and errors of the driver.
    pub fn new(runtime: &'static Runtime, index: usize, options: Options) -> Result<Cuda, Error> {
        environment::check()?;
        let mut gpu = Gpu::open(runtime, index)?;
        gpu.use_blas_of_environment()?;
        let graphs = Graphs::new(&gpu)?;
        Ok(Cuda {
            name: format!("CUDA{index}"),
            gpu,
            options,
            network: None,
            parts: Parts::default(),
            ropes: Vec::new(),
            caches: Vec::new(),
            room: None,
            scratch: None,
            slabs: None,
            columns: ColumnData::default(),
            host: Host::default(),
            queue: Queue::default(),
            graphs,
            batch: Batch::default(),
            n_used: 1,
            has_routed: false,
            not_finite: None,
            values: Vec::new(),
            choices: Choices::new(),
            watch: RefCell::default(),
            failure: RefCell::default(),
        })
    }

    /// Runs a part of a step, unless an earlier one has failed, and keeps its error.
    fn attempt(&mut self, work: impl FnOnce(&mut Cuda) -> Result<(), Error>) {
        if self.failure.get_mut().is_none() {
            let done = work(self);
            *self.failure.get_mut() = done.err();
        }
    }

    /// [`Cuda::attempt`] for work that only changes memory of the device.
    fn attempt_shared(&self, work: impl FnOnce(&Cuda) -> Result<(), Error>) {
        if self.failure.borrow().is_none() {
            let done = work(self);
            *self.failure.borrow_mut() = done.err();
        }
    }

    fn network(&self) -> &Network {
        self.network.as_ref().expect("`load` comes first")
    }

    /// Makes sure that there is scratch memory for so many columns.
    fn make_room(&mut self, n_columns: usize) -> Result<(), Error> {
        if self.slabs.is_none() && self.parts.layouts(n_columns).next().is_some() {
            // all that there may be in later steps
            self.slabs = Some(Slabs::new(&self.gpu, self.parts.layouts(usize::MAX))?);
        }
        if self.scratch.as_ref().is_some_and(|s| s.n_columns >= n_columns) {
            return Ok(());
        }
        self.drop_scratch()?; // before another is allocated
        let scratch = Scratch::new(&self.gpu, self.network(), &self.parts, n_columns)?;
        if let Some(blas) = self.gpu.blas() {
            // SAFETY: the memory is there until `drop_scratch`
            unsafe { blas.set_room(Some(scratch.blas)) }?;
        }
        self.scratch = Some(scratch);
        Ok(())
    }

    /// Frees the memory of steps.
    fn drop_scratch(&mut self) -> Result<(), Error> {
        self.scratch = None;
        match self.gpu.blas() {
            // SAFETY: there is none
            Some(blas) => unsafe { blas.set_room(None) },
            None => Ok(()),
        }
    }

    fn scratch(&self) -> &Scratch {
        self.scratch.as_ref().expect("`begin` comes first")
    }

    /// Computes the RMS norm, and its codes, of `n_columns` columns of the residual stream's width at the first
    /// address of `x`; columns at the second are added first.
    fn norm(
        &self,
        x: (Address, Option<Address>),
        weight: Address,
        to: Wide,
        n_columns: usize,
    ) -> Result<Columns, Error> {
        self.norm_of(x, weight, to, (self.network().spec.n_embd, n_columns))
    }

    /// [`Cuda::norm`] for columns of `n` elements.
    fn norm_of(
        &self,
        (x, add): (Address, Option<Address>),
        weight: Address,
        to: Wide,
        (n, n_columns): (usize, usize),
    ) -> Result<Columns, Error> {
        let eps = self.network().spec.norm_eps;
        let columns = to.columns(n, n_columns);
        let codes = columns.codes;
        let plan = Call::Norm { n, n_columns, eps, add: add.is_some(), codes: codes.is_some() }.plan()?;
        let mut buffers = vec![("x", x), ("weight", weight), ("y", columns.floats)];
        buffers.extend(add.map(|a| ("add", a)));
        buffers.extend(codes.into_iter().flat_map(|(q, ds)| [("q", q), ("ds", ds)]));
        // SAFETY: scratch memory has room for the batch's columns, and the weight has as many floats
        unsafe { launch(&self.gpu, &plan, &buffers) }?;
        Ok(columns)
    }

    /// Adds a branch (or the sum of two) to the residual stream, after a norm where the model has one.
    fn add_branch(
        &self,
        (branch, second): (Address, Option<Address>),
        norm: Option<Address>,
    ) -> Result<(), Error> {
        let scratch = self.scratch();
        match norm {
            None => self.add((scratch.hidden, branch), second),
            Some(norm) => {
                let normed = self.norm((branch, second), norm, scratch.normed, self.batch.n())?;
                self.add((scratch.hidden, normed.floats), None)
            }
        }
    }

    /// Adds columns `a` (and `b`) of the residual stream's width to columns `x`.
    fn add(&self, (x, a): (Address, Address), b: Option<Address>) -> Result<(), Error> {
        let n = self.batch.n() * self.network().spec.n_embd;
        let plan = Call::Add { n, second: b.is_some() }.plan()?;
        let mut buffers = vec![("x", x), ("a", a)];
        buffers.extend(b.map(|b| ("b", b)));
        // SAFETY: scratch memory has room for the batch's columns
        unsafe { launch(&self.gpu, &plan, &buffers) }
    }

    fn place(&self, value: Value) -> Address {
        let scratch = self.scratch();
        match value {
            Value::Hidden => scratch.hidden,
            Value::Input => scratch.input.floats(),
            Value::Sum => scratch.sum,
            Value::Shared => scratch.shared,
            Value::Projected(_) => scratch.q,
            Value::Attended(_) => scratch.outer.floats(),
        }
    }

    /// The caches of those layers of a group that this device has.
    fn group(&self, group: usize) -> impl Iterator<Item = &LayerCache> {
        self.network().groups[group].layers.iter().filter_map(|l| self.caches[*l].as_ref())
    }

    /// Moves rows in the caches of a group's layers.
    fn move_rows_of(&self, group: usize, moves: &[Move]) -> Result<(), Error> {
        let layers = self.network().groups[group].layers.iter();
        let mine: Vec<(&LayerCache, Option<(RopeId, usize)>)> = layers
            .filter_map(|l| Some((self.caches[*l].as_ref()?, turned(&self.network().layers[*l].attention))))
            .collect();
        // the work of a device is done in order, so all moves can use the same memory
        let sizes = moves.iter().flat_map(|m| {
            let angles = |rope: Option<(RopeId, usize)>| rope.map_or(0, |(rope, _)| 4 * m.n * rope.n_rot);
            mine.iter().map(move |(cache, rope)| (angles(*rope), cache.move_bytes(m.n)))
        });
        let (most_angles, most) = sizes.fold((0, 0), |(a, b), (c, d)| (a.max(c), b.max(d)));
        let mut arena = Arena::new(self.gpu.context(), "moving rows", arena_bytes([most_angles, most]))?;
        let (cos_sin, scratch) = (arena.take(most_angles)?, arena.take(most)?);
        for m in moves {
            let mut there = None;
            for (cache, rope) in &mine {
                let rope = rope.filter(|_| m.turn_back > 0);
                if let Some((rope, _)) = rope.filter(|(rope, _)| there != Some(rope.index)) {
                    let mut angles = vec![0.0; rope.n_rot];
                    self.ropes[rope.index].cos_sin_back(m.turn_back as u32, &mut angles);
                    // SAFETY: the piece has room for the angles of all rows
                    unsafe { self.gpu.copy_in_floats(cos_sin, &angles.repeat(m.n)) }?;
                    there = Some(rope.index);
                }
                let back = rope.map(|(rope, at)| Back { turn: turn(rope, at), cos_sin });
                cache.move_rows(&self.gpu, (m.from, m.to, m.n), back, scratch)?;
            }
        }
        self.gpu.wait() // the arena goes
    }

    /// The error for a position where a router's scores were not finite, if there is one.
    fn failed_router(&mut self) -> Result<Option<ModelError>, Error> {
        let layers = match self.not_finite.take() {
            Some(layers) => layers,
            None => {
                let mut layers = vec![-1i32; self.batch.n()];
                // SAFETY: there is a number per column
                unsafe { self.host.fetch(&self.gpu, as_bytes_mut(&mut layers), self.columns.not_finite()) }?;
                layers
            }
        };
        let failed = layers.iter().zip(&self.batch.positions).find(|(layer, _)| **layer >= 0);
        Ok(failed.map(|(layer, position)| ModelError::Overflow {
            position: *position as usize,
            what: format!("the router of layer {layer} gave no numbers"),
        }))
    }
}

fn model_error(e: Error) -> ModelError {
    e.into()
}

/// The rotary embedding of the rows that a layer caches as keys, and the first element that it rotates.
fn turned(attention: &Attention) -> Option<(RopeId, usize)> {
    match attention {
        Attention::Gqa(a) => a.rope.map(|rope| (rope, 0)),
        Attention::Mla(a) => Some((a.rope, a.kv_rank)),
        Attention::DeltaNet(_) => None,
    }
}

/// The states of all recurrent layers that a device has.
fn states_of(caches: &mut [Option<LayerCache>]) -> impl Iterator<Item = &mut States> {
    caches.iter_mut().flatten().filter_map(|c| c.states.as_mut())
}

/// Empty caches of all layers of this device.
fn make_caches(
    network: &Network,
    parts: &Parts,
    form: CacheForm,
) -> Result<Vec<Option<LayerCache>>, ModelError> {
    let layers = parts.attention.iter().zip(&network.layers);
    let cache = |(part, layer): (&Option<parts::Attention>, &network::Layer)| {
        let part = part.as_ref().filter(|part| part.is_cached);
        part.map(|part| LayerCache::new(&layer.attention, &part.kind, form)).transpose()
    };
    let caches: Result<Vec<_>, Error> = layers.map(cache).collect();
    let name = format!("{}, {}", form.keys.name(), form.values.name()).to_lowercase();
    caches.map_err(|e| ModelError::Cache { name, why: e.to_string() })
}

impl Device for Cuda {
    fn name(&self) -> &str {
        &self.name
    }

    fn load(&mut self, loading: &Loading<'_>) -> Result<Memory, Stop<ModelError>> {
        let network = &loading.network;
        // frees an earlier model
        self.parts = Parts::default();
        self.caches.clear();
        self.slabs = None;
        self.drop_scratch().map_err(model_error)?;
        self.graphs.clear();
        *self.failure.get_mut() = None;
        let (size, parts) = counted(network, loading.placement, loading.index)?;
        // a cache that is not offered is refused before anything is copied
        let caches = make_caches(network, &parts, self.options.cache)?;
        let arena = Arena::new(self.gpu.context(), "weights", size).map_err(model_error)?;
        let mut loader = Loader::copying(&self.gpu, arena);
        let mut parts = Parts::none(network.layers.len());
        for stage in loading.placement.of(loading.index) {
            if loading.cancel.is_cancelled() {
                return Err(Stop::Cancelled);
            }
            loader.stage(network, loading.placement, loading.index, stage, &mut parts)?;
        }
        parts._arena = loader.into_arena().map_err(model_error)?;
        let gpu = &self.gpu;
        parts.borrowed.iter_mut().for_each(|b| *b = b.take().filter(|b| b.has_tiles(gpu)));
        self.caches = caches;
        self.parts = parts;
        self.ropes = network.ropes.iter().map(RopeTable::new).collect();
        self.network = Some(network.clone());
        let why = format!("copied to {} ({})", self.name, self.gpu.facts().name);
        Ok(Memory { mapped_bytes: 0, copied_bytes: size, why })
    }

    fn free_memory(&self) -> Result<Option<usize>, ModelError> {
        self.gpu.context().memory().map(|(free, _)| Some(free)).map_err(model_error)
    }

    fn page_bytes(&self, group: usize) -> usize {
        self.group(group).map(LayerCache::page_bytes).sum()
    }

    fn reserve(&mut self, group: usize, n: usize) -> Result<(), ModelError> {
        self.reserve_pages(group, n)
    }

    fn limit_cache(&mut self, room: CacheRoom) {
        self.room = Some(room);
    }

    fn copy_page(&mut self, group: usize, from: u32, to: u32) {
        self.attempt_shared(|it| it.group(group).try_for_each(|cache| cache.copy_page(&it.gpu, from, to)));
    }

    fn move_rows(&mut self, group: usize, moves: &[Move]) {
        self.attempt_shared(|it| it.move_rows_of(group, moves));
    }

    fn cache_form(&self) -> String {
        if self.caches.iter().all(Option::is_none) {
            return String::new();
        }
        let CacheForm { keys, values, turns_keys, turns_values } = self.options.cache;
        let name = |ty: QuantType, turns| format!("{}{}", ty.name(), if turns { " (rotated)" } else { "" });
        format!("{}, {} (of a GPU)", name(keys, turns_keys), name(values, turns_values)).to_lowercase()
    }

    fn layer_page_bytes(&self, layer: usize) -> usize {
        self.caches[layer].as_ref().map_or(0, LayerCache::page_bytes)
    }

    fn export_page(&self, layer: usize, page: u32, out: &mut Vec<u8>) {
        if let Some(cache) = &self.caches[layer] {
            self.attempt_shared(|it| cache.export_page(&it.gpu, page, out));
        }
    }

    fn import_page(&mut self, layer: usize, page: u32, bytes: &[u8]) {
        if let Some(cache) = &self.caches[layer] {
            self.attempt_shared(|it| cache.import_page(&it.gpu, page, bytes));
        }
    }

    // ---- states of recurrent layers

    fn state_bytes(&self) -> usize {
        self.caches.iter().flatten().filter_map(|c| c.states.as_ref()).map(States::bytes).sum()
    }

    fn reserve_states(&mut self, n: usize) -> Result<(), ModelError> {
        self.reserve_all_states(n)
    }

    fn clear_state(&mut self, state: u32) {
        states_of(&mut self.caches).for_each(|s| s.set_n_past(state, 0));
    }

    fn copy_state(&mut self, from: u32, to: u32) {
        self.attempt(|it| {
            let gpu = &it.gpu;
            states_of(&mut it.caches).try_for_each(|s| s.copy(gpu, from, to))
        });
    }

    fn state_chunk(&self) -> usize {
        CHUNK
    }

    fn truncate_state(&mut self, state: u32, n: usize) {
        states_of(&mut self.caches).for_each(|s| s.set_n_past(state, n));
    }

    fn export_state(&self, layer: usize, state: u32, out: &mut Vec<u8>) {
        if let Some(states) = self.caches[layer].as_ref().and_then(|c| c.states.as_ref()) {
            self.attempt_shared(|it| states.export(&it.gpu, state, out));
        }
    }

    fn import_state(&mut self, layer: usize, state: u32, n_past: usize, bytes: &[u8]) -> Result<(), String> {
        match self.caches[layer].as_mut().and_then(|c| c.states.as_mut()) {
            Some(states) => states.import(&self.gpu, state, n_past, bytes),
            None => Err(format!("layer {layer} is on another device")),
        }
    }

    // ---- a step

    fn begin(&mut self, batch: &Batch) {
        self.batch.clone_from(batch);
        (self.has_routed, self.not_finite) = (false, None);
        self.queue = Queue::default();
        for run in &batch.runs {
            let Some(state) = run.state else { continue };
            states_of(&mut self.caches).for_each(|s| s.set_n_past(state, run.first + run.columns.len()));
        }
        if self.parts.is_empty() {
            return;
        }
        self.attempt(|it| {
            it.make_room(it.batch.n())?;
            let network = it.network.as_ref().expect("`load` comes first");
            it.columns.send(&it.gpu, &mut it.host, (network, &it.parts, &it.ropes), &it.batch)?;
            if it.parts.router.iter().flatten().any(|router| router.is_read) {
                it.host.make_room_for_choices(&it.gpu, 8 * it.batch.n() * it.parts.most_used)?;
            }
            let batch = &it.batch;
            let (logits, hidden, best) = (batch.logits.clone(), batch.hidden.clone(), batch.best.clone());
            let (n_columns, n_runs, n_best) = (batch.n(), batch.runs.len(), batch.n_best);
            let groups = it.columns.shapes();
            it.graphs.begin(Shape { n_columns, n_runs, groups, logits, hidden, best, n_best });
            Ok(())
        });
    }

    fn put(&mut self, value: Value, columns: &[f32]) {
        self.attempt(|it| {
            it.start_queue()?;
            let to = it.place(value);
            // SAFETY: there is room for the batch's columns
            unsafe { it.host.send(&it.gpu, to, as_bytes(columns)) }?;
            match value {
                Value::Input => {
                    let input = it.scratch().input.columns(it.network().spec.n_embd, it.batch.n());
                    // SAFETY: the floats were copied a moment ago
                    unsafe { products::quantize(&it.gpu, &input) }
                }
                _ => Ok(()),
            }
        });
    }

    fn get(&mut self, value: Value) -> &[f32] {
        let n = self.batch.n();
        let widths = match value {
            Value::Projected(l) => self.projected(l),
            Value::Attended(_) => unreachable!("the CPU computes attention over caches in RAM"),
            _ => vec![self.network().spec.n_embd],
        };
        let mut values = std::mem::take(&mut self.values);
        values.clear();
        values.resize(n * widths.iter().sum::<usize>(), 0.0);
        self.attempt(|it| {
            it.start_queue()?;
            let from = match value {
                Value::Projected(_) => vec![it.scratch().q, it.scratch().k, it.scratch().v],
                _ => vec![it.place(value)],
            };
            let parts: Vec<_> = from.into_iter().zip(widths.iter().map(|width| 4 * n * width)).collect();
            // SAFETY: there are the batch's columns
            unsafe { it.host.fetch_all(&it.gpu, as_bytes_mut(&mut values), &parts) }
        });
        self.values = values;
        &self.values
    }

    fn put_choices(&mut self, choices: &Choices) {
        self.attempt(|it| {
            it.start_queue()?;
            // -1 fills up the lists of tokens with fewer experts
            let k = choices.iter().map(Vec::len).max().unwrap_or(0).max(1);
            let n_pairs = k * choices.len();
            // bits of ids, then of weights
            let mut both = vec![(-1i32).cast_unsigned(); 2 * n_pairs];
            both[n_pairs..].fill(0);
            for (i, chosen) in choices.iter().enumerate() {
                for (slot, (id, weight)) in chosen.iter().enumerate() {
                    (both[i * k + slot], both[n_pairs + i * k + slot]) = (*id, weight.to_bits());
                }
            }
            it.n_used = k;
            let (to, _) = it.scratch().choices(n_pairs);
            // SAFETY: there is room for as many experts as a router chooses
            unsafe { it.host.send(&it.gpu, to, as_bytes(&both)) }
        });
    }

    fn choices(&mut self) -> &Choices {
        self.attempt(Cuda::read_choices);
        if self.failure.get_mut().is_some() {
            self.choices = vec![Vec::new(); self.batch.n()];
        }
        &self.choices
    }

    fn run(&mut self, stage: Stage, step: Step<'_>) -> Result<(), RouterFailed> {
        self.attempt(|it| {
            it.queue(stage);
            match step.collector {
                None => Ok(()),
                Some(_) => it.observed(step, Cuda::start_queue),
            }
        });
        Ok(())
    }

    fn borrows(&self, layer: usize) -> bool {
        self.failure.borrow().is_none() && self.is_borrowed(layer)
    }

    fn run_borrowed(&mut self, layer: usize, lent: &Lent<'_>, step: Step<'_>) {
        self.attempt(|it| it.observed(step, |it| it.borrowed_experts(layer, lent, step.team)));
    }

    fn head(&mut self, step: Step<'_>, results: Results<'_>) {
        self.attempt(|it| {
            it.observed(step, Cuda::observe_head)?;
            it.results(results)
        });
    }

    fn start(&mut self) {
        self.attempt(Cuda::start_queue);
    }

    fn project(&mut self, _: Step<'_>, hidden: &[f32], logits: &mut [f32], best: &mut [Best]) {
        self.attempt(|it| {
            let n = hidden.len() / it.network().spec.n_embd;
            it.make_room(n)?;
            let columns = it.scratch().normed.columns(it.network().spec.n_embd, n);
            // SAFETY: there is room for as many columns
            unsafe {
                it.host.send(&it.gpu, columns.floats, as_bytes(hidden))?;
                products::quantize(&it.gpu, &columns)?;
            }
            match best.is_empty() {
                true => it.output(&columns, logits),
                false => it.best_of(&columns, best),
            }
        });
    }

    fn failure(&mut self) -> Option<ModelError> {
        self.attempt(Cuda::start_queue);
        if let Some(failure) = self.failure.get_mut().take() {
            return Some(model_error(failure));
        }
        // also called after steps without a router, where there is nothing to read back
        match std::mem::take(&mut self.has_routed) {
            true => self.failed_router().unwrap_or_else(|e| Some(model_error(e))),
            false => None,
        }
    }
}
