//! Errors in the content of a GGUF file ([`Fault`]), and all errors of reading or writing one ([`Error`]).

use std::io;
use std::path::{Path, PathBuf};

/// A fault in the bytes of one file. Offsets count from the start of the file.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    #[error("not a GGUF file: it begins with {found:02x?} instead of \"GGUF\"")]
    Magic { found: [u8; 4] },

    #[error(
        "the file is big endian (version {version} with swapped bytes); ikq reads little-endian files only, \
         convert it with gguf_convert_endian.py of the gguf package"
    )]
    BigEndian { version: u32 },

    #[error("GGUF version {version} is not supported, only 2 and 3; convert the model again")]
    Version { version: u32 },

    #[error(
        "the file ends at byte {file_len}, but {what}{} at byte {offset} needs {needed} bytes; \
         the download or copy may be incomplete", of_name(.of)
    )]
    Truncated { offset: u64, what: &'static str, of: Option<String>, needed: u64, file_len: u64 },

    #[error("{count} {what} (counted at byte {offset}){} cannot be in this file: at most {max}", of_name(.of))]
    Count { offset: u64, what: &'static str, of: Option<String>, count: u64, max: u64 },

    #[error("{what} at byte {offset} has {len} bytes, more than {max}")]
    NameLength { offset: u64, what: &'static str, len: u64, max: u64 },

    #[error("{what} at byte {offset} is not UTF-8 (it reads `{lossy}`)")]
    NameUtf8 { offset: u64, what: &'static str, lossy: String },

    #[error("key `{key}`: unknown value type {id} at byte {offset}")]
    ValueType { offset: u64, key: String, id: u32 },

    #[error("key `{key}`: arrays nested deeper than {max} levels at byte {offset}")]
    ArrayDepth { offset: u64, key: String, max: u32 },

    #[error("key `{key}` appears twice, again at byte {offset}")]
    DuplicateKey { offset: u64, key: String },

    #[error("tensor `{tensor}` appears twice, again at byte {offset}")]
    DuplicateTensor { offset: u64, tensor: String },

    #[error("`general.alignment` (byte {offset}) is {found}; it must be a power of two of at least 8")]
    Alignment { offset: u64, found: String },

    #[error("tensor `{tensor}` has {n_dims} dimensions (byte {offset}), more than {max}")]
    DimCount { offset: u64, tensor: String, n_dims: u32, max: u32 },

    #[error("tensor `{tensor}` (byte {offset}): {dims:?} elements are more than 64 bits can count")]
    ElementCount { offset: u64, tensor: String, dims: Vec<u64> },

    #[error("tensor `{tensor}` (byte {offset}): {source}")]
    TensorShape { offset: u64, tensor: String, source: ikq_formats::Error },

    #[error(
        "tensor `{tensor}`: its data offset {data_offset} is not a multiple of the alignment {alignment}"
    )]
    TensorMisaligned { tensor: String, data_offset: u64, alignment: u64 },

    #[error(
        "tensor `{tensor}`: its {size} bytes from byte {begin} do not fit a file of {file_len} bytes; \
         the download or copy may be incomplete"
    )]
    TensorOutOfFile { tensor: String, begin: u64, size: u64, file_len: u64 },

    #[error("tensors `{tensor}` and `{other}` overlap at byte {offset}")]
    TensorOverlap { offset: u64, tensor: String, other: String },
}

impl Fault {
    /// Names the key or tensor that was being read when bytes ran out.
    pub(crate) fn within(mut self, name: &str) -> Fault {
        if let Fault::Truncated { of, .. } | Fault::Count { of, .. } = &mut self {
            of.get_or_insert_with(|| name.to_string());
        }
        self
    }
}

fn of_name(of: &Option<String>) -> String {
    of.as_ref().map_or(String::new(), |name| format!(" of `{name}`"))
}

/// Errors of this crate. Messages start in lower case and say what to do.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot {action} {}: {}", .path.display(), reason(.source))]
    Io { path: PathBuf, action: &'static str, source: io::Error },

    #[error("{} is a directory, not a GGUF file", .path.display())]
    IsDirectory { path: PathBuf },

    #[error("{} is not a regular file", .path.display())]
    NotRegularFile { path: PathBuf },

    #[error("{} is empty", .path.display())]
    Empty { path: PathBuf },

    #[error("{}: {fault}", .path.display())]
    Malformed { path: PathBuf, fault: Fault },

    #[error("no tensor `{name}`{}", suggest(.suggestions))]
    NoTensor { name: String, suggestions: Vec<String> },

    #[error(
        "tensor `{tensor}` has type {id}, which ikq does not know; it can be listed and copied, not decoded"
    )]
    UnknownType { tensor: String, id: u32 },

    // split sets
    #[error(
        "{} is one of {count} shards, so its name must end in -00001-of-{count:05}.gguf or the like; \
         rename the files", .path.display()
    )]
    ShardName { path: PathBuf, count: u64 },

    #[error("shard {number} of {count} is missing: {} (wanted by {})", .path.display(), .opened.display())]
    ShardMissing { path: PathBuf, opened: PathBuf, number: u64, count: u64 },

    #[error("{}: key `{key}` is {found}, expected {expected}", .path.display())]
    SplitKey { path: PathBuf, key: &'static str, found: String, expected: String },

    #[error("tensor `{tensor}` is in two shards, {} and {}", .first.display(), .second.display())]
    ShardDuplicate { tensor: String, first: PathBuf, second: PathBuf },

    #[error("the shards of {} hold {found} tensors, but split.tensors.count says {expected}", .path.display())]
    ShardTensors { path: PathBuf, expected: u64, found: u64 },

    #[error("tensor `{tensor}`: {source}")]
    Make { tensor: String, source: crate::made::MakeError },

    #[error("tensor `{tensor}` has {found} bytes, {expected} by its shape and type")]
    MadeSize { tensor: String, found: u64, expected: u64 },

    // planning and writing
    #[error("tensor `{tensor}`: {source}")]
    PlanShape { tensor: String, source: ikq_formats::Error },

    #[error("tensor `{tensor}`: shape {dims:?} must have at most 4 dimensions and a product within 64 bits")]
    PlanDims { tensor: String, dims: Vec<u64> },

    #[error("tensor `{tensor}` is to be written twice")]
    PlanDuplicateTensor { tensor: String },

    #[error("key `{key}` is to be written twice")]
    PlanDuplicateKey { key: String },

    #[error("name or key `{name:.80}` has {} bytes, more than {max}", .name.len())]
    PlanName { name: String, max: u64 },

    #[error("tensor `{tensor}` has {expected} bytes by its shape and type, the plan says {size}")]
    PlanSize { tensor: String, expected: u64, size: u64 },

    #[error("{count} {what} are more than the {max} that a file or split set may have")]
    PlanCount { what: &'static str, count: u64, max: u64 },

    #[error("alignment {alignment} must be a power of two of at least 8")]
    PlanAlignment { alignment: String },

    #[error("cannot split: {why}")]
    PlanSplit { why: &'static str },

    #[error("the output would be larger than 64 bits can count")]
    PlanTooLarge,

    #[error("array elements must all be {expected}, element {index} is {found}")]
    MixedArray { index: usize, expected: &'static str, found: &'static str },

    #[error("cannot write {}: it names no file", .path.display())]
    TargetName { path: PathBuf },

    #[error(
        "no space left for {}: {needed_bytes} bytes are needed in its directory{}; free some space or write elsewhere",
        .path.display(), reason_tail(.source, .free_bytes)
    )]
    NoSpace { path: PathBuf, needed_bytes: u64, free_bytes: Option<u64>, source: io::Error },

    #[error(
        "{} needs {needed_bytes} bytes, more than the file size limit (ulimit -f) or the file system allows; \
         raise the limit or split the output", .path.display()
    )]
    FileTooLarge { path: PathBuf, needed_bytes: u64, source: io::Error },

    #[error("no tensor with index {index}; the plan has {n_tensors}")]
    WriteIndex { index: usize, n_tensors: usize },

    #[error("tensor `{tensor}`: {len} bytes at {offset} do not fit its {size} bytes")]
    WriteRange { tensor: String, offset: u64, len: u64, size: u64 },

    #[error(
        "tensor `{tensor}` is not complete: {written} of {size} bytes written, the first gap at byte {first_gap}"
    )]
    Incomplete { tensor: String, written: u64, size: u64, first_gap: u64 },
}

impl Error {
    /// Wraps an operating-system error; a full disk and a file that is too large have variants of their own.
    /// `needed_bytes` is the size of the whole output (0 when reading).
    pub fn io(path: &Path, action: &'static str, needed_bytes: u64, source: io::Error) -> Error {
        let path = path.to_path_buf();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Error::NoSpace { path, needed_bytes, free_bytes: None, source }
            }
            io::ErrorKind::FileTooLarge => Error::FileTooLarge { path, needed_bytes, source },
            _ => Error::Io { path, action, source },
        }
    }

    /// The operating system's error behind this one, if any: its kind and number decide which
    /// exception or exit code a caller uses.
    pub fn os_error(&self) -> Option<&io::Error> {
        match self {
            Error::Io { source, .. } | Error::NoSpace { source, .. } | Error::FileTooLarge { source, .. } => {
                Some(source)
            }
            _ => None,
        }
    }

    /// The file that the error is about, if it is about one.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Error::Io { path, .. }
            | Error::IsDirectory { path }
            | Error::NotRegularFile { path }
            | Error::Empty { path }
            | Error::Malformed { path, .. }
            | Error::ShardName { path, .. }
            | Error::ShardMissing { path, .. }
            | Error::SplitKey { path, .. }
            | Error::ShardTensors { path, .. }
            | Error::TargetName { path }
            | Error::NoSpace { path, .. }
            | Error::FileTooLarge { path, .. } => Some(path),
            _ => None,
        }
    }
}

/// The system's message without Rust's "(os error N)".
fn reason(source: &io::Error) -> String {
    let text = source.to_string();
    match text.find(" (os error") {
        Some(at) => text[..at].to_lowercase(),
        None => text,
    }
}

fn reason_tail(source: &io::Error, free_bytes: &Option<u64>) -> String {
    match (source.kind(), free_bytes) {
        (io::ErrorKind::QuotaExceeded, _) => " (the quota is used up)".to_string(),
        (_, Some(free)) => format!(", {free} are free"),
        _ => String::new(),
    }
}

fn suggest(names: &[String]) -> String {
    match names {
        [] => String::new(),
        _ => format!("; did you mean {}?", names.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_and_a_size_limit_say_how_much_was_needed() {
        // Linux numbers: ENOSPC 28, EDQUOT 122, EFBIG 27, EACCES 13
        let of = |number| Error::io(Path::new("o.gguf"), "write", 4096, io::Error::from_raw_os_error(number));
        assert!(matches!(of(28), Error::NoSpace { needed_bytes: 4096, .. }));
        assert!(matches!(of(122), Error::NoSpace { .. }));
        assert!(of(28).to_string().contains("o.gguf: 4096 bytes"), "{}", of(28));
        assert!(matches!(of(27), Error::FileTooLarge { needed_bytes: 4096, .. }));
        assert_eq!(of(13).to_string(), "cannot write o.gguf: permission denied");
        assert_eq!(of(13).os_error().map(io::Error::kind), Some(io::ErrorKind::PermissionDenied));
    }
}
