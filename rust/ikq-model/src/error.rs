//! What can go wrong between a file and its logits.

/// How there is more room on a GPU.
const MORE_ROOM: &str = "leave more to the CPU (fewer layers: n_gpu_layers, -ngl; or experts: n_cpu_moe, --n-cpu-moe, \
     -ot exps=CPU), choose a smaller context (n_ctx, -c) or smaller steps (n_ubatch, -ub), or let fit (--fit) choose what \
     goes there; other programs and open sequences take memory, too";

/// Errors of loading and running.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Gguf(#[from] ikq_gguf::Error),

    #[error("`{tensor}`: {source}")]
    Format { tensor: String, source: ikq_formats::Error },

    #[error("`{tensor}` has the type {ty}, which is for activations or integers, not for weights")]
    NotWeights { tensor: String, ty: ikq_formats::QuantType },

    #[error("the model's description cannot be read: {why}")]
    Spec { why: String },

    #[error("`{tensor}` has the shape {found:?}, but the model needs {expected}")]
    Shape { tensor: String, found: Vec<u64>, expected: String },

    #[error("`{tensor}` has {found} experts, but the model says {expected}")]
    Experts { tensor: String, found: usize, expected: usize },

    #[error(
        "`{tensor}`: rows {first}..{last} are wanted, but it has {n_rows} (and rows come in groups of {step})"
    )]
    Rows { tensor: String, first: usize, last: usize, n_rows: usize, step: usize },

    #[error("`{tensor}` holds {value} at element {index}: the file is damaged; get it anew")]
    NotFinite { tensor: String, value: f32, index: usize },

    #[error(
        "the logits of position {position} are not finite though all weights are: {what}; try compute=\"f32\" and a cache of f32"
    )]
    Overflow { position: usize, what: String },

    #[error("token {index} is {token}, but the model's vocabulary ends at {n_vocab}")]
    Token { index: usize, token: i64, n_vocab: usize },

    #[error("no tokens")]
    NoTokens,

    #[error(
        "{needed} positions are needed, but the context holds {n_ctx}; load the model with a larger n_ctx"
    )]
    Context { needed: usize, n_ctx: usize },

    #[error(
        "{n_discard} positions after the first {n_keep} cannot be forgotten: the sequence holds {n_past} in all"
    )]
    Discard { n_keep: usize, n_discard: usize, n_past: usize },

    #[error("a cache of {name}: {why}")]
    Cache { name: String, why: String },

    #[error(
        "the sequence cannot go back to position {to} (it is at {at}): {why}; it can go back to {nearest}"
    )]
    Rewind { to: usize, at: usize, nearest: usize, why: &'static str },

    #[error("positions cannot be removed: the state of recurrent layers cannot forget what lies in between")]
    Shift,

    #[error(
        "positions cannot be removed: keys of this architecture are normed after they are turned, and cannot be turned again"
    )]
    Turn,

    #[error(
        "{needed} bytes of cache are needed, but {free} are free in RAM; close sequences, or choose a smaller context (-c) or cache_type_k and cache_type_v (-ctk, -ctv) of fewer bits"
    )]
    CacheMemory { needed: usize, free: usize },

    /// A device other than the CPU has too little memory of its own.
    #[error(
        "{device}: {needed} bytes of GPU memory are needed for {what}, and {free} are free; {}",
        MORE_ROOM
    )]
    DeviceMemory { device: String, what: String, needed: usize, free: usize },

    #[error("a sequence stands twice in the batch; join its tokens to one entry")]
    SameSequence,

    #[error("the sequence belongs to another model")]
    OtherModel,

    #[error("{found} numbers of hidden states are given for {n} tokens, but {expected} are needed")]
    Hidden { found: usize, n: usize, expected: usize },

    #[error(
        "this head has no output of its own: ask for hidden states and let its model make logits of them"
    )]
    NoOutput,

    #[error("the model is closed")]
    Closed,

    #[error("`{path}` holds no sequence that can be loaded: {why}")]
    Saved { path: String, why: String },

    #[error("`{path}`: {source}")]
    Io { path: String, source: std::io::Error },

    #[error("{needed} bytes of weights do not fit into memory: {reason}; load with mmap=\"on\"")]
    Memory { needed: usize, reason: String },

    #[error("{option}={value}: {why}")]
    Option { option: &'static str, value: String, why: String },

    #[error("{0}")]
    Threads(String),

    #[error("LoRA adapter {path}: {why}")]
    Adapter { path: String, why: String },

    #[error("LoRA adapter {path}: {why}")]
    AdapterKind { path: String, why: String },

    #[error(
        "LoRA adapter {path}: `{tensor}` has the shape {found:?}, but the model's tensor needs {expected:?}"
    )]
    AdapterShape { path: String, tensor: String, found: Vec<u64>, expected: Vec<u64> },

    /// An error of a device that is not the CPU.
    #[error("{0}")]
    Device(String),
}
