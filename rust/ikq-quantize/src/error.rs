//! What can go wrong between a model and its quantized file.

use std::path::PathBuf;

use ikq_encode::writable;
use ikq_formats::QuantType;

use crate::covariance::Foreign;
use crate::coverage::Coverage;
use crate::imatrix::ImatrixError;

/// Errors of encoding, planning and running. [`Error::is_refusal`] tells those that the user can
/// lift with an option from those that are faults.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Format(#[from] ikq_formats::Error),

    #[error(transparent)]
    Gguf(#[from] ikq_gguf::Error),

    #[error(transparent)]
    Imatrix(#[from] ImatrixError),

    #[error(transparent)]
    Encode(#[from] ikq_encode::Error),

    #[error(
        "`{tensor}` holds {value} (expert {expert}, row {row}, column {column}): only finite numbers can be quantized; the source file is damaged"
    )]
    TensorNotFinite { tensor: String, expert: usize, row: usize, column: usize, value: f32 },

    #[error(
        "`{tensor}` holds {value} (expert {expert}, row {row}, column {column}), and {ty:?} ends at {end}: give the \
         tensor another type (BF16 keeps every size), or cut such numbers off with --clamp"
    )]
    OutOfRange {
        tensor: String,
        ty: QuantType,
        expert: usize,
        row: usize,
        column: usize,
        value: f32,
        end: f32,
    },

    #[error("`{tensor}` would become {ty:?}, which cannot be written; types that can: {}", writable())]
    CannotWrite { tensor: String, ty: QuantType },

    #[error("unknown TYPE `{name}`{}", did_you_mean(.suggestions))]
    UnknownFtype { name: String, suggestions: Vec<&'static str> },

    #[error("custom rule `{rule}`: {why}; write pattern=type, separated by commas")]
    CustomRule { rule: String, why: String },

    #[error("--override-kv {text}: {why}; write KEY=TYPE:VALUE")]
    Override { text: String, why: String },

    #[error("{option} {name}: no entry of {path} has that in its name")]
    NoSuchEntry { option: &'static str, name: String, path: PathBuf },

    #[error("--include-weights and --exclude-weights cannot be given together")]
    IncludeAndExclude,

    #[error("{path}: {source}")]
    Recipe { path: PathBuf, source: std::io::Error },

    #[error("{path}, line {line}: {error}")]
    RuleLine { path: PathBuf, line: usize, error: Box<Error> },

    #[error(
        "custom rule `{rule}` matches no tensor that can be quantized; `--dry-run` without it lists their names"
    )]
    UnmatchedRule { rule: String },

    #[error("--repack-pattern `{pattern}`: {why}")]
    RepackPattern { pattern: String, why: String },

    #[error("there is nothing for {option} to do: the model has no tensor {what}")]
    NothingToRepack { option: &'static str, what: &'static str },

    #[error(
        "`{tensor}` is {from:?} already; turning it into {to:?} loses twice: start from the float model, or pass --allow-requantize"
    )]
    Requantize { tensor: String, from: QuantType, to: QuantType },

    #[error(
        "{ty:?} needs an imatrix, and {} for `{tensor}`{}; pass --imatrix FILE with data for it, another type, or --ignore-imatrix-rules",
        none_found(.file), and_more(*.n_tensors)
    )]
    MissingImatrix { tensor: String, ty: QuantType, n_tensors: usize, file: Option<PathBuf> },

    #[error("{coverage}")]
    IncompleteImatrix { coverage: Box<Coverage> },

    #[error(
        "imatrix entry `{entry}` has {found} values, `{tensor}` needs {n_per_row} (one per column) or {n_per_row} x {n_matrices}; the imatrix is of another model"
    )]
    ImatrixShape { tensor: String, entry: String, found: usize, n_per_row: usize, n_matrices: usize },

    #[error("the output {path} is the file that is read; choose another name")]
    OverInput { path: PathBuf },

    #[error("{path} is being written by another process; wait for it, or choose another name")]
    Busy { path: PathBuf },

    #[error(
        "{path}.part holds {minutes:.0} minutes of work of another command (other types, imatrix, source or options) or \
         version of ikq: run that one again to finish it, choose another name, or pass --restart to throw it away"
    )]
    OtherWork { path: PathBuf, minutes: f64 },

    #[error(
        "{path} does not say what its tensors were made from, so none can be reused: it was not written by ikq, or \
         by a program that drops `ikq.tensor_hashes`"
    )]
    NoHashes { path: PathBuf },

    #[error(
        "there is no tensor of layer {layer}: --only-layer takes the number N of `blk.N.` in tensors' names"
    )]
    NoSuchLayer { layer: u32 },

    #[error(
        "`{tensor}` needs {needed} bytes of memory as {ty:?}, whose scale belongs to the whole tensor, and --max-ram is \
         {max}; give it another type or more memory"
    )]
    Memory { tensor: String, ty: QuantType, needed: u64, max: u64 },

    #[error(
        "{path} has no covariances that can be used: {what}; compute them with `ikq imatrix --covariance`"
    )]
    NoCovariances { path: PathBuf, what: String },

    #[error(
        "{path} has the covariance of {found} columns ({n_groups} of them) for `{tensor}`, which has {n_per_row} columns and \
         {n_matrices} matrices: it is of another model"
    )]
    CovarianceShape {
        tensor: String,
        path: PathBuf,
        found: usize,
        n_groups: usize,
        n_per_row: usize,
        n_matrices: usize,
    },

    #[error("{0}")]
    ForeignCovariance(Box<Foreign>),

    #[error(
        "the covariances of {path} are of another model: the norms of its layers differ from this one's; compute them with \
         `ikq imatrix --covariance` from a file of this model, of any type"
    )]
    OtherOrigin { path: PathBuf },

    #[error("{path} has no covariance for any tensor that would use one: it is of another model")]
    UnusedCovariances { path: PathBuf },

    #[error(
        "the covariance of the input of `{tensor}` (expert {expert}) is none, whatever is added to its diagonal: {path} is damaged"
    )]
    NotACovariance { tensor: String, expert: usize, path: PathBuf },

    #[error("`{tensor}`: what a worker has sent is not what was asked for: {why}")]
    Parcel { tensor: String, why: &'static str },

    #[error("{0}")]
    Outside(crate::remote::OutsideError),

    #[error("interrupted; what is done is kept, the same command goes on with it")]
    Cancelled,
}

impl Error {
    /// A refusal that an option can lift (exit code 2), not a fault (exit code 1).
    pub fn is_refusal(&self) -> bool {
        matches!(
            self,
            Error::Requantize { .. }
                | Error::OutOfRange { .. }
                | Error::MissingImatrix { .. }
                | Error::IncompleteImatrix { .. }
                | Error::UnmatchedRule { .. }
                | Error::CustomRule { .. }
                | Error::RepackPattern { .. }
                | Error::NothingToRepack { .. }
                | Error::UnknownFtype { .. }
                | Error::RuleLine { .. }
                | Error::Override { .. }
                | Error::NoSuchEntry { .. }
                | Error::IncludeAndExclude
                | Error::CannotWrite { .. }
                | Error::OverInput { .. }
                | Error::Busy { .. }
                | Error::OtherWork { .. }
                | Error::NoHashes { .. }
                | Error::NoSuchLayer { .. }
                | Error::Memory { .. }
                | Error::CovarianceShape { .. }
                | Error::ForeignCovariance(_)
                | Error::OtherOrigin { .. }
                | Error::UnusedCovariances { .. }
                | Error::Format(ikq_formats::Error::UnknownType { .. })
        )
    }
}

fn did_you_mean(names: &[&'static str]) -> String {
    match names {
        [] => "; `ikq quantize --help` lists all".to_string(),
        _ => format!("; did you mean {}?", names.join(", ")),
    }
}

fn none_found(file: &Option<PathBuf>) -> String {
    match file {
        Some(path) => format!("{} has nothing", path.display()),
        None => "none was given".to_string(),
    }
}

fn and_more(n_tensors: usize) -> String {
    match n_tensors {
        0 | 1 => String::new(),
        n => format!(" and {} more", n - 1),
    }
}
