//! What can go wrong between a file and its logits.

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

    #[error("a cache of {name}: {why}")]
    Cache { name: String, why: String },

    #[error(
        "the cache cannot go back to position {to}: the recurrent layers' state is at {at}; start again from 0"
    )]
    Rewind { to: usize, at: usize },

    #[error("{needed} bytes of weights do not fit into memory: {reason}; load with mmap=\"on\"")]
    Memory { needed: usize, reason: String },

    #[error("{option}={value}: {why}")]
    Option { option: &'static str, value: String, why: String },

    #[error("{0}")]
    Threads(String),
}
