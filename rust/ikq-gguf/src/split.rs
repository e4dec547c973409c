//! Split sets: the names and keys of their shards.
//!
//! Shard `i` of `n` is `PREFIX-0000i-of-0000n.gguf` (counted from 1) and has the keys `split.no`
//! (from 0), `split.count` and `split.tensors.count` (tensors of all shards).

use std::path::{Path, PathBuf};

use crate::error::Error;
use crate::header::Header;
use crate::metadata::Metadata;
use crate::value::Value;

/// Number of the shard, from 0.
pub(crate) const NO: &str = "split.no";
/// Number of shards.
pub(crate) const COUNT: &str = "split.count";
/// Tensors in all shards together.
pub(crate) const TENSORS: &str = "split.tensors.count";

/// Whether `key` describes a split set. Such keys are written anew, never copied.
pub fn is_split_key(key: &str) -> bool {
    matches!(key, NO | COUNT | TENSORS)
}

/// Name of shard `index` (from 0) of `count`.
pub fn shard_file_name(prefix: &str, index: usize, count: usize) -> String {
    format!("{prefix}-{:05}-of-{count:05}.gguf", index + 1)
}

/// Prefix, index (from 0) and count of a shard's file name; `None` for other names.
pub(crate) fn parse_shard_name(name: &str) -> Option<(&str, u64, u64)> {
    let stem = name.strip_suffix(".gguf")?;
    let (stem, count) = stem.rsplit_once("-of-")?;
    let (prefix, number) = stem.rsplit_once('-')?;
    let digits = |s: &str| match s.len() == 5 && s.bytes().all(|b| b.is_ascii_digit()) {
        true => s.parse::<u64>().ok(),
        false => None,
    };
    let (number, count) = (digits(number)?, digits(count)?);
    (1..=count).contains(&number).then(|| (prefix, number - 1, count))
}

/// Number of shards of the set that a file belongs to: 1 for a single file. (A merged file may say 0.)
///
/// # Errors
/// [`Error::SplitKey`] when `split.count` is not an integer that fits 16 bits.
pub(crate) fn shard_count(path: &Path, metadata: &Metadata) -> Result<u64, Error> {
    match metadata.get(COUNT) {
        None => Ok(1),
        Some(value) => match value.as_u64() {
            Some(count) if count <= u64::from(u16::MAX) => Ok(count.max(1)),
            _ => Err(mismatch(path, COUNT, Some(value), "a number up to 65535".to_string())),
        },
    }
}

/// Paths of all shards of the set to which the shard `path` belongs, in order.
///
/// # Errors
/// [`Error::ShardName`] when the file name is not that of a shard, or has another count.
pub(crate) fn shard_paths(path: &Path, count: u64) -> Result<Vec<PathBuf>, Error> {
    let wrong = || Error::ShardName { path: path.to_path_buf(), count };
    let name = path.file_name().and_then(|n| n.to_str()).ok_or_else(wrong)?;
    let (prefix, _, named_count) = parse_shard_name(name).ok_or_else(wrong)?;
    if named_count != count {
        return Err(wrong());
    }
    Ok((0..count as usize).map(|i| path.with_file_name(shard_file_name(prefix, i, count as usize))).collect())
}

/// Checks the split keys of shard `index`. Returns the number of tensors of all shards if the shard has it (the
/// first one must).
///
/// # Errors
/// [`Error::SplitKey`].
pub(crate) fn check_shard(
    path: &Path,
    header: &Header,
    index: u64,
    count: u64,
) -> Result<Option<u64>, Error> {
    for (key, expected) in [(NO, index), (COUNT, count)] {
        let value = header.metadata.get(key);
        if value.and_then(Value::as_u64) != Some(expected) {
            return Err(mismatch(path, key, value, expected.to_string()));
        }
    }
    let value = header.metadata.get(TENSORS);
    match value.map(Value::as_u64) {
        Some(Some(n)) => Ok(Some(n)),
        None if index > 0 => Ok(None),
        _ => Err(mismatch(path, TENSORS, value, "the number of tensors in all shards".to_string())),
    }
}

fn mismatch(path: &Path, key: &'static str, found: Option<&Value>, expected: String) -> Error {
    let found = found.map_or("missing".to_string(), |v| format!("{v:?}").chars().take(80).collect());
    Error::SplitKey { path: path.to_path_buf(), key, found, expected }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shard_names_are_read_as_they_are_written() {
        let name = shard_file_name("a-b", 1, 3);
        assert_eq!(name, "a-b-00002-of-00003.gguf");
        assert_eq!(parse_shard_name(&name), Some(("a-b", 1, 3)));
        for other in ["a.gguf", "a-00000-of-00003.gguf", "a-00004-of-00003.gguf", "a-1-of-3.gguf"] {
            assert_eq!(parse_shard_name(other), None, "{other}");
        }
        assert_eq!(parse_shard_name("a-00001-of-00003.bin"), None);
    }

    #[test]
    fn a_name_that_does_not_fit_the_count_is_refused() {
        let of = |name| shard_paths(Path::new(name), 3);
        assert!(matches!(of("x/model.gguf"), Err(Error::ShardName { count: 3, .. })));
        assert!(matches!(of("x/m-00001-of-00004.gguf"), Err(Error::ShardName { .. })));
        let paths = of("x/m-00002-of-00003.gguf").expect("a shard's name");
        assert_eq!(paths[2], Path::new("x/m-00003-of-00003.gguf"));
    }
}
