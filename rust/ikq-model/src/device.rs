//! [`Device`]: what computes stages. It owns its weights in a form of its own, its caches and its scratch.
//!
//! Calls come in this order: [`Device::load`]; then per step [`Device::reserve`] and the copies of pages that the
//! step needs, [`Device::begin`], and stages with the values that they read moved in where another device made
//! them. Positions, page tables and references are kept by the caller; devices only see page numbers.

use std::ops::Range;
use std::sync::Arc;

use ikq_pool::{Cancel, Pool, Stop, Team};

use crate::batch::Batch;
use crate::error::Error;
use crate::network::Network;
use crate::placement::Placement;
use crate::results::{Best, Results};
use crate::statistics::Collector;

/// A part of a step; see section 3 of docs/design.md. The number is the layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    Embed,
    /// The whole of it, where the cache is on the device that has the weights; else these are three stages.
    Attention(usize),
    Project(usize),
    Attend(usize),
    Output(usize),
    Dense(usize),
    Route(usize),
    Experts(usize),
    Shared(usize),
    Join(usize),
    /// What a layer does after its FFN: an embedding of its own, a factor.
    End(usize),
    Head,
}

impl Stage {
    /// The layer it belongs to.
    pub fn layer(self) -> Option<usize> {
        match self {
            Stage::Embed | Stage::Head => None,
            Stage::Attention(l)
            | Stage::Project(l)
            | Stage::Attend(l)
            | Stage::Output(l)
            | Stage::Dense(l)
            | Stage::Route(l)
            | Stage::Experts(l)
            | Stage::Shared(l)
            | Stage::Join(l)
            | Stage::End(l) => Some(l),
        }
    }
}

impl std::fmt::Display for Stage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Stage::Embed => write!(f, "embedding"),
            Stage::Attention(l) => write!(f, "layer {l}, attention"),
            Stage::Project(l) => write!(f, "layer {l}, projections"),
            Stage::Attend(l) => write!(f, "layer {l}, cache"),
            Stage::Output(l) => write!(f, "layer {l}, output of attention"),
            Stage::Dense(l) => write!(f, "layer {l}, FFN"),
            Stage::Route(l) => write!(f, "layer {l}, router"),
            Stage::Experts(l) => write!(f, "layer {l}, experts"),
            Stage::Shared(l) => write!(f, "layer {l}, shared expert"),
            Stage::Join(l) => write!(f, "layer {l}, sum of experts"),
            Stage::End(l) => write!(f, "layer {l}, its own embedding and factor"),
            Stage::Head => write!(f, "output"),
        }
    }
}

/// A value between stages: `n_embd` floats per column of the batch, but for those of attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value {
    /// The residual stream.
    Hidden,
    /// The normed input of a mixture of experts.
    Input,
    /// The weighted sum of the chosen experts.
    Sum,
    /// What the shared expert gives.
    Shared,
    /// What the products of a layer's attention give: queries (with their gates) of all columns, then keys, then values.
    Projected(usize),
    /// The results of all heads.
    Attended(usize),
}

/// Experts and weights of every column, as the router chose them.
pub type Choices = Vec<Vec<(u32, f32)>>;

/// Why a stage gave nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouterFailed {
    /// The column whose router gave no numbers.
    pub column: usize,
}

/// What a stage is given besides what its device holds.
#[derive(Clone, Copy)]
pub struct Step<'a> {
    /// The model's threads.
    pub team: &'a Team<'a>,
    /// Collects statistics of what weights are multiplied with, if there is one.
    pub collector: Option<&'a Collector>,
    /// Scales of the adapters for what belongs to no sequence.
    pub scales: &'a [f32],
}

/// A matrix of a mixture of experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Matrix {
    Gate,
    Up,
    Down,
}

/// The weights of a mixture of experts that a device lends.
pub struct Lent<'a> {
    /// Whether gate, up and down are in bands of [`LANES`](ikq_formats::lanes::LANES) rows (see
    /// [`lane_form`](ikq_formats::lane_form)), instead of rows as files have them.
    pub in_bands: [bool; 3],
    /// Reads rows of an expert's matrix, which begin with a band and end with one or with the matrix, into memory for as
    /// many bytes. Threads may call it at the same time.
    pub read: Box<ReadRows<'a>>,
}

/// Reads rows of an expert's matrix.
pub type ReadRows<'a> = dyn Fn(Matrix, usize, Range<usize>, &mut [u8]) + Sync + 'a;

/// What a device has to know to load its weights.
pub struct Loading<'a> {
    pub network: Arc<Network>,
    pub placement: &'a Placement,
    /// The device's index in the placement.
    pub index: usize,
    pub pool: &'a Pool,
    pub cancel: &'a Cancel,
}

/// Where a device's weights are.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    /// Bytes read from mapped files, and bytes copied.
    pub mapped_bytes: usize,
    pub copied_bytes: usize,
    /// Why it is so, in words.
    pub why: String,
}

/// Rows of one page that are copied to another when positions move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    pub from: (u32, usize),
    pub to: (u32, usize),
    pub n: usize,
    /// By how many positions the rotary embedding of keys is turned back.
    pub turn_back: usize,
}

/// How large the caches of a device may become, where its memory was divided among several beforehand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheRoom {
    /// Bytes that were counted for them.
    pub counted: usize,
    /// Bytes of free memory that must be left when they become larger than that: for others, and for larger steps.
    pub left: usize,
}

/// A place where stages are computed.
pub trait Device: Send {
    /// Name in rules and reports: `CPU`, `CUDA0`.
    fn name(&self) -> &str;

    /// Makes the device's form of the weights of its stages. When it was loaded before, caches and states are gone, and
    /// matrices that are the same memory as before may keep their form.
    ///
    /// # Errors
    /// What memory, types and sizes stand against.
    fn load(&mut self, loading: &Loading<'_>) -> Result<Memory, Stop<Error>>;

    /// Bytes that are free of a memory that the device has for itself; `None`: it has its weights and caches in RAM.
    ///
    /// # Errors
    /// [`Error::Device`] where its driver does not tell.
    fn free_memory(&self) -> Result<Option<usize>, Error> {
        Ok(None)
    }

    /// Whether it computes what adapters add ([`crate::network::LowRank`]).
    fn takes_adapters(&self) -> bool {
        false
    }

    // ---- caches: pages of a group's layers that this device has

    /// Bytes of a page of a group, over the layers that this device has.
    fn page_bytes(&self, group: usize) -> usize;
    /// Makes room for pages `0..n` of a group.
    ///
    /// # Errors
    /// [`Error::CacheMemory`], [`Error::DeviceMemory`].
    fn reserve(&mut self, group: usize, n: usize) -> Result<(), Error>;
    /// Says how large caches may become; without, as large as memory allows.
    fn limit_cache(&mut self, _: CacheRoom) {}
    fn copy_page(&mut self, group: usize, from: u32, to: u32);
    /// Moves rows between pages; see [`Move`].
    fn move_rows(&mut self, group: usize, moves: &[Move]);
    /// How rows are stored: sequences can be moved between caches of one form. Empty for devices that hold none.
    fn cache_form(&self) -> String;
    /// Bytes of a page of one layer of this device.
    fn layer_page_bytes(&self, layer: usize) -> usize;
    /// Appends the bytes of a layer's page.
    fn export_page(&self, layer: usize, page: u32, out: &mut Vec<u8>);
    /// Fills a layer's page with the bytes that [`Device::export_page`] gave, [`Device::layer_page_bytes`] of them.
    fn import_page(&mut self, layer: usize, page: u32, bytes: &[u8]);

    // ---- states of the recurrent layers that this device has

    /// Bytes of a state.
    fn state_bytes(&self) -> usize;
    /// Makes room for states `0..n`; new ones have seen no token.
    ///
    /// # Errors
    /// [`Error::CacheMemory`], [`Error::DeviceMemory`].
    fn reserve_states(&mut self, n: usize) -> Result<(), Error>;
    fn clear_state(&mut self, state: u32);
    fn copy_state(&mut self, from: u32, to: u32);
    /// Tokens of a chunk: a state can be taken back to the last multiple of it.
    fn state_chunk(&self) -> usize;
    /// Takes a state back to position `n`, which lies in its unfinished chunk.
    fn truncate_state(&mut self, state: u32, n: usize);
    /// Appends the bytes of a recurrent layer's state.
    fn export_state(&self, layer: usize, state: u32, out: &mut Vec<u8>);
    /// Takes what [`Device::export_state`] gave.
    ///
    /// # Errors
    /// Why the bytes are no state of this layer at `n_past`.
    fn import_state(&mut self, layer: usize, state: u32, n_past: usize, bytes: &[u8]) -> Result<(), String>;

    // ---- a step

    /// Begins a step with the batch of the stages to come. Values of the step before are lost.
    fn begin(&mut self, batch: &Batch);
    /// Gives the device a value that another one made.
    fn put(&mut self, value: Value, columns: &[f32]);
    /// A value that this device made.
    fn get(&mut self, value: Value) -> &[f32];
    /// Gives the device the choices of a router that another one made.
    fn put_choices(&mut self, choices: &Choices);
    fn choices(&mut self) -> &Choices;
    /// Runs a stage of this device.
    ///
    /// # Errors
    /// [`RouterFailed`] of [`Stage::Route`].
    fn run(&mut self, stage: Stage, step: Step<'_>) -> Result<(), RouterFailed>;
    /// Lends the weights of [`Stage::Experts`] of a layer to another device, if this one has them.
    fn lends(&self, _layer: usize) -> Option<Lent<'_>> {
        None
    }
    /// Whether this device computes the experts of a layer in the present step, although another one has them: that
    /// pays where so many tokens take them that copying weights is quicker than computing where they are.
    fn borrows(&self, _layer: usize) -> bool {
        false
    }
    /// Runs [`Stage::Experts`] of a layer, whose router it ran, with weights that another device lends.
    fn run_borrowed(&mut self, _layer: usize, _lent: &Lent<'_>, _step: Step<'_>) {}
    /// Starts what stages have left to do: another device computes next. Only devices that work by themselves put stages
    /// off, so that they can do several at once.
    fn start(&mut self) {}
    /// Whether [`Device::narrow`] does something.
    fn narrows(&self) -> bool {
        false
    }
    /// Behind the attention of the last layer: the step goes on with these of its columns, of which `batch` tells. What the
    /// device has for each column, the residual stream and what else later stages read, it keeps for these alone.
    fn narrow(&mut self, _batch: &Batch, _columns: &[u32]) {}
    /// Runs [`Stage::Head`]: logits, the largest logits or normed hidden states of the batch's columns that want them.
    fn head(&mut self, step: Step<'_>, results: Results<'_>);
    /// What went wrong on the device since it was asked last, for those that work by themselves: all values since then
    /// are void.
    fn failure(&mut self) -> Option<Error> {
        None
    }
    /// The product of [`Stage::Head`] alone, for normed hidden states: logits; or, where `best` has room for some of each,
    /// the largest ones, in the order of [`best`](crate::results::best).
    fn project(&mut self, step: Step<'_>, hidden: &[f32], logits: &mut [f32], best: &mut [Best]);
}
