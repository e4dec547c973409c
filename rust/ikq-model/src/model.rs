//! [`Model`]: a network on its devices, shared by its sequences.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ikq_pool::{Cancel, Pool, Stop};

use crate::adapter::Adapter;
use crate::cache::Pools;
use crate::context::{context, sequence_bytes};
use crate::device::{CacheRoom, Device, Loading, Memory, Stage};
use crate::error::Error;
use crate::network::{Experts, Group, Network, PlanOptions};
use crate::placement::{Placement, Rules};
use crate::sequence::Sequence;
use crate::spec::ModelSpec;
use crate::statistics::Collector;

/// How a model is loaded and run, whatever its devices.
#[derive(Clone, Debug)]
pub struct Options {
    /// Most positions of a sequence; `None`: the trained context, or what the memory allows in which caches are.
    pub n_ctx: Option<usize>,
    /// Threads; 0 is one per CPU.
    pub n_threads: usize,
    /// Most tokens that are computed at once.
    pub n_ubatch: usize,
    pub plans: PlanOptions,
    pub rules: Rules,
    /// Keep keys and values behind sliding windows, so that sequences can go back to any position.
    pub swa_full: bool,
    /// Adapters beside the matrices.
    pub adapters: Vec<Adapter>,
}

/// What all sequences of a model share: its description, options and pools.
pub struct Shared {
    pub(crate) groups: Vec<Group>,
    pub(crate) is_recurrent: bool,
    pub(crate) can_shift: bool,
    /// Layers that have a state.
    pub(crate) recurrent: Vec<usize>,
    pub(crate) swa_full: bool,
    pub(crate) sizes: Sizes,
    pub(crate) hash: u64,
    /// Hashes of the adapters, and the scales that new sequences have.
    adapters: Vec<u64>,
    scales: Mutex<Arc<[f32]>>,
    pub(crate) n_ctx: usize,
    pub(crate) n_vocab: usize,
    /// Device of each layer's cache.
    pub(crate) attention: Vec<usize>,
    chunk: usize,
    pub(crate) pools: Mutex<Pools>,
    runner: Mutex<Option<Runner>>,
}

/// Bytes of a page of each group, and of a recurrent state.
#[derive(Clone, Debug, Default)]
pub struct Sizes {
    pub pages: Vec<usize>,
    pub state: usize,
}

impl Sizes {
    /// Adds those of another device of the same model.
    pub fn add(&mut self, other: &Sizes) {
        self.pages.iter_mut().zip(&other.pages).for_each(|(sum, n)| *sum += n);
        self.state += other.state;
    }
}

/// The threads and devices, which compute one step at a time.
pub(crate) struct Runner {
    pub devices: Vec<Box<dyn Device>>,
    pub pool: Pool,
    pub collector: Option<Arc<Collector>>,
}

/// A model that runs.
pub struct Model {
    pub(crate) network: Arc<Network>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) n_ubatch: usize,
    pub(crate) kind: ikq_simd::IsaKind,
    placement: Placement,
    memory: Vec<Memory>,
    n_threads: usize,
    options: Options,
}

impl Model {
    /// Loads the tensors that `spec` names from `file` to `devices`, the CPU first.
    ///
    /// # Errors
    /// What loading and checking find: see [`Error`]; [`Stop::Cancelled`].
    pub fn load(
        file: &ikq_gguf::Model,
        spec: ModelSpec,
        devices: Vec<Box<dyn Device>>,
        options: &Options,
        cancel: &Cancel,
    ) -> Result<Model, Stop<Error>> {
        if options.n_ubatch == 0 || options.n_ctx == Some(0) {
            let option = if options.n_ubatch == 0 { "n_ubatch" } else { "n_ctx" };
            let why = "at least 1 is needed".into();
            return Err(Error::Option { option, value: "0".into(), why }.into());
        }
        let pool = Pool::new(options.n_threads).map_err(|e| Error::Threads(e.to_string()))?;
        let network = Network::with_adapters(file, spec, options.plans, &options.adapters)?;
        Model::start(network, devices, pool, options, cancel)
    }

    /// The model of another file of the same metadata on this one's devices, with the same options. Matrices whose bytes
    /// are the same memory (views of one mapping, see [`ikq_gguf::Model::with_tensors_of`]) keep their form there; the
    /// others are loaded. This model is closed, whatever comes of it.
    ///
    /// # Errors
    /// As [`Model::load`]; [`Error::Closed`].
    pub fn exchange(&self, file: &ikq_gguf::Model, cancel: &Cancel) -> Result<Model, Stop<Error>> {
        let Options { plans, adapters, .. } = &self.options;
        let network = Network::with_adapters(file, self.network.spec.clone(), *plans, adapters)?;
        let runner = self.shared.runner.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Runner { devices, pool, .. } = runner.ok_or(Error::Closed)?;
        Model::start(network, devices, pool, &self.options, cancel)
    }

    fn start(
        network: Network,
        mut devices: Vec<Box<dyn Device>>,
        pool: Pool,
        options: &Options,
        cancel: &Cancel,
    ) -> Result<Model, Stop<Error>> {
        let n_threads = pool.n_threads();
        let network = Arc::new(network);
        let names = devices.iter().map(|d| d.name().to_string()).collect();
        let placement = Placement::new(&network, names, &options.rules)?;
        check_adapters(&network, &placement, &devices, &options.adapters)?;
        let mut memory = Vec::new();
        for (index, device) in devices.iter_mut().enumerate() {
            let network = Arc::clone(&network);
            let loading = Loading { network, placement: &placement, index, pool: &pool, cancel };
            memory.push(device.load(&loading)?);
        }
        let sum = |f: &dyn Fn(&dyn Device) -> usize| devices.iter().map(|d| f(d.as_ref())).sum::<usize>();
        let pages = (0..network.groups.len()).map(|g| sum(&|d| d.page_bytes(g))).collect();
        let sizes = Sizes { pages, state: sum(&|d| d.state_bytes()) };
        let n_ctx = context(&network, &devices, options)?;
        let mut pools = Pools::default();
        pools.groups.resize_with(network.groups.len(), Default::default);
        let shared = Shared {
            groups: network.groups.clone(),
            is_recurrent: network.has_recurrent_layers(),
            can_shift: network.can_shift(),
            recurrent: (0..network.layers.len()).filter(|l| network.layers[*l].group.is_none()).collect(),
            swa_full: options.swa_full,
            sizes,
            hash: network.hash,
            adapters: options.adapters.iter().map(|a| a.hash).collect(),
            scales: Mutex::new(options.adapters.iter().map(|a| a.scale).collect()),
            n_ctx,
            n_vocab: network.spec.n_vocab,
            attention: (0..network.layers.len()).map(|l| placement.device(Stage::Attend(l))).collect(),
            chunk: devices.iter().map(|d| d.state_chunk()).max().unwrap_or(1),
            pools: Mutex::new(pools),
            runner: Mutex::new(Some(Runner { devices, pool, collector: None })),
        };
        Ok(Model {
            network,
            shared: Arc::new(shared),
            n_ubatch: options.n_ubatch,
            kind: ikq_simd::best(),
            placement,
            memory,
            n_threads,
            options: options.clone(),
        })
    }

    /// A new sequence, without tokens.
    pub fn new_sequence(&self) -> Sequence {
        Sequence::new(Arc::clone(&self.shared))
    }

    /// A new sequence with scales of its own for the model's adapters.
    ///
    /// # Errors
    /// [`Error::Option`] where they are not one finite number for each adapter.
    pub fn new_sequence_with(&self, scales: &[f32]) -> Result<Sequence, Error> {
        let scales = self.checked_scales(scales)?;
        let mut sequence = self.new_sequence();
        sequence.scales = scales;
        Ok(sequence)
    }

    /// Files of the adapters.
    pub fn adapters(&self) -> impl Iterator<Item = &str> {
        self.options.adapters.iter().map(|a| a.path.as_str())
    }

    /// The adapters' scales that new sequences have.
    pub fn scales(&self) -> Arc<[f32]> {
        self.shared.scales()
    }

    /// Says which scales sequences have that are made from now on; the others keep theirs.
    ///
    /// # Errors
    /// As [`Model::new_sequence_with`].
    pub fn set_scales(&self, scales: &[f32]) -> Result<(), Error> {
        let scales = self.checked_scales(scales)?;
        *self.shared.scales.lock().unwrap_or_else(PoisonError::into_inner) = scales;
        Ok(())
    }

    pub(crate) fn checked_scales(&self, scales: &[f32]) -> Result<Arc<[f32]>, Error> {
        let n = self.options.adapters.len();
        match scales.len() == n && scales.iter().all(|s| s.is_finite()) {
            true => Ok(scales.into()),
            false => Err(Error::Option {
                option: "lora",
                value: format!("{scales:?}"),
                why: format!("a finite scale for each of the model's {n} adapters is needed"),
            }),
        }
    }

    pub fn network(&self) -> &Network {
        &self.network
    }

    pub fn placement(&self) -> &Placement {
        &self.placement
    }

    /// Where the weights of each device are.
    pub fn memory(&self) -> &[Memory] {
        &self.memory
    }

    /// Most positions of a sequence.
    pub fn n_ctx(&self) -> usize {
        self.shared.n_ctx
    }

    pub fn n_threads(&self) -> usize {
        self.n_threads
    }

    /// Most tokens that are computed at once.
    pub fn n_ubatch(&self) -> usize {
        self.n_ubatch
    }

    /// Bytes of the cache that a sequence of so many positions takes at most.
    pub fn sequence_bytes(&self, n: usize) -> usize {
        sequence_bytes(&self.network, &self.shared.sizes, n, self.shared.swa_full).unwrap_or(usize::MAX)
    }

    /// Bytes of the pages and states that some sequence holds; shared ones count once.
    pub fn cache_bytes(&self) -> usize {
        let pools = self.shared.pools();
        let pages: usize =
            pools.groups.iter().zip(&self.shared.sizes.pages).map(|(p, size)| p.n_held() * size).sum();
        pages + pools.states.n_held() * self.shared.sizes.state
    }

    /// Pages of each group that some sequence holds, with the group's window.
    pub fn pages_held(&self) -> Vec<(Option<usize>, usize)> {
        let pools = self.shared.pools();
        self.shared.groups.iter().zip(&pools.groups).map(|(g, p)| (g.window, p.n_held())).collect()
    }

    /// Lets a collector see what weights are multiplied with, from the next step on.
    ///
    /// # Errors
    /// [`Error::Closed`].
    pub fn set_collector(&self, collector: Option<Arc<Collector>>) -> Result<(), Error> {
        self.shared.runner()?.collector = collector;
        Ok(())
    }

    /// Says how large the caches of a device may become.
    ///
    /// # Errors
    /// [`Error::Closed`].
    pub fn limit_cache(&self, device: &str, room: CacheRoom) -> Result<(), Error> {
        let mut runner = self.shared.runner()?;
        runner.devices.iter_mut().filter(|d| d.name() == device).for_each(|d| d.limit_cache(room));
        Ok(())
    }

    /// Every feed-forward network: layer, role, weights and plan.
    pub fn plans(&self) -> Vec<(usize, &'static str, &Experts)> {
        let layers = self.network.layers.iter().enumerate();
        layers.flat_map(|(i, l)| l.ffn.roles().into_iter().map(move |(role, x)| (i, role, x))).collect()
    }

    /// Frees weights and caches; sequences cannot be used any more.
    pub fn close(&self) {
        *self.shared.runner.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// The runner, locked.
pub(crate) struct RunnerGuard<'a>(MutexGuard<'a, Option<Runner>>);

impl std::ops::Deref for RunnerGuard<'_> {
    type Target = Runner;

    fn deref(&self) -> &Runner {
        self.0.as_ref().expect("`Shared::runner` looked")
    }
}

impl std::ops::DerefMut for RunnerGuard<'_> {
    fn deref_mut(&mut self) -> &mut Runner {
        self.0.as_mut().expect("`Shared::runner` looked")
    }
}

impl Shared {
    pub(crate) fn pools(&self) -> MutexGuard<'_, Pools> {
        self.pools.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Locks the threads and devices. They are locked before the pools, never the other way round.
    pub(crate) fn runner(&self) -> Result<RunnerGuard<'_>, Error> {
        let guard = self.runner.lock().unwrap_or_else(PoisonError::into_inner);
        match guard.is_some() {
            true => Ok(RunnerGuard(guard)),
            false => Err(Error::Closed),
        }
    }

    /// The adapters' scales that new sequences have.
    pub(crate) fn scales(&self) -> Arc<[f32]> {
        Arc::clone(&self.scales.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// What tells apart what was computed with these scales: the adapters that had any part in it.
    pub(crate) fn applied(&self, scales: &[f32]) -> String {
        let applied = self.adapters.iter().zip(scales).filter(|(_, scale)| **scale != 0.0);
        let texts = applied.map(|(hash, scale)| format!("{hash:016x}*{scale}"));
        texts.collect::<Vec<_>>().join(" + ")
    }

    /// The earliest position that a recurrent state at `n_past` can go back to by itself.
    pub(crate) fn state_floor(&self, n_past: usize) -> usize {
        n_past / self.chunk * self.chunk
    }
}

impl Runner {
    /// A free page, with memory behind it.
    pub fn take_page(&mut self, shared: &Shared, group: usize) -> Result<u32, Error> {
        let (page, n) = {
            let pages = &mut shared.pools().groups[group];
            (pages.take(), pages.len())
        };
        for device in &mut self.devices {
            if let Err(e) = device.reserve(group, n) {
                shared.pools().groups[group].withdraw(page);
                return Err(e);
            }
        }
        Ok(page)
    }

    /// A free state, with memory behind it; what it holds is unspecified.
    pub fn take_state(&mut self, shared: &Shared) -> Result<u32, Error> {
        let (state, n) = {
            let states = &mut shared.pools().states;
            (states.take(), states.len())
        };
        for device in &mut self.devices {
            if let Err(e) = device.reserve_states(n) {
                shared.pools().states.withdraw(state);
                return Err(e);
            }
        }
        Ok(state)
    }
}

/// Refuses adapters of matrices on devices that do not compute them.
fn check_adapters(
    network: &Network,
    placement: &Placement,
    devices: &[Box<dyn Device>],
    adapters: &[Adapter],
) -> Result<(), Error> {
    for placed in &placement.stages {
        let device = &devices[placed.device];
        let weights = if device.takes_adapters() { Vec::new() } else { network.weights_of(placed.stage) };
        for weight in weights {
            if let Some(part) = weight.low_rank.first() {
                return Err(Error::Option {
                    option: "lora",
                    value: adapters[part.adapter].path.clone(),
                    why: format!(
                        "`{}` is on {}, but adapters are computed on the CPU only: leave what they change there (n_gpu_layers, override_tensor)",
                        weight.name,
                        device.name()
                    ),
                });
            }
        }
    }
    Ok(())
}
