//! Importance matrices: the mean squared input of every column of every matrix, per expert.
//!
//! Two file forms are read, recognised by their first bytes:
//!
//! | form | layout |
//! |---|---|
//! | `.dat` (ik_llama.cpp, older llama.cpp) | i32 n; n x {i32 length, name, i32 calls, i32 count, f32[count]}; then optionally i32 chunks, i32 length, data set name. A value divided by `calls` is the mean square |
//! | GGUF (llama.cpp) | tensors `NAME.in_sum2` [columns, experts] and `NAME.counts` [1, experts]; sum / count is the mean square |
//!
//! An entry belongs to the *input* of a matrix, so matrices that read the same input share it:
//! [`Imatrix::find`] answers for a tensor whose own entry is missing from one that sees the same
//! activations (fused up+gate collectors store only one of the two).

use std::path::{Path, PathBuf};

use ikq_gguf::{Model, Value};

/// Activation statistics of one matrix (of all its experts).
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Mean squared input, expert after expert.
    pub values: Vec<f32>,
    /// Tokens (`.dat`: calls) seen, one number for all experts or one per expert.
    pub counts: Vec<f32>,
}

/// Errors of reading; offsets are bytes from the start of the file.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum ImatrixError {
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: std::io::Error },

    #[error(transparent)]
    Gguf(#[from] ikq_gguf::Error),

    #[error("{path} is not an importance matrix: {what} at byte {offset}")]
    Malformed { path: PathBuf, offset: usize, what: String },

    #[error(
        "{path}: {what} of entry `{entry}` is {value}: it must be finite and not negative; compute the imatrix anew"
    )]
    Value { path: PathBuf, entry: String, what: &'static str, value: f32 },
}

/// An importance matrix as read.
#[derive(Clone, Debug, Default)]
pub struct Imatrix {
    /// The file it came from.
    pub path: PathBuf,
    /// Entries in file order.
    entries: Vec<(String, Entry)>,
    /// Data sets it was computed on, as the file names them.
    pub datasets: Vec<String>,
    /// Chunks of text it was computed on, if the file says so.
    pub n_chunks: Option<u32>,
}

/// Names of tensors that read the same input, as (part of a name, parts to look under instead).
const SAME_INPUT: &[(&str, &[&str])] = &[
    ("ffn_up_exps", &["ffn_gate_up_exps", "ffn_gate_exps"]),
    ("ffn_gate_exps", &["ffn_gate_up_exps", "ffn_up_exps"]),
    ("ffn_gate_up_exps", &["ffn_up_exps", "ffn_gate_exps"]),
    ("ffn_up_shexp", &["ffn_gate_shexp"]),
    ("ffn_gate_shexp", &["ffn_up_shexp"]),
    ("ffn_gate", &["ffn_up"]),
    ("ffn_up", &["ffn_gate"]),
    ("attn_v_b", &["attn_kv_b"]),
    ("attn_kv_b", &["attn_v_b"]),
];

impl Imatrix {
    /// Reads either form.
    ///
    /// # Errors
    /// IO errors, files of neither form, and values that are negative or not finite.
    pub fn open(path: impl AsRef<Path>) -> Result<Imatrix, ImatrixError> {
        let path = path.as_ref();
        let bytes =
            std::fs::read(path).map_err(|source| ImatrixError::Io { path: path.to_path_buf(), source })?;
        match bytes.starts_with(b"GGUF") {
            true => Imatrix::from_gguf(path, &Model::open(path)?),
            false => Imatrix::from_dat(path, &bytes),
        }
    }

    /// The same with only those entries whose names `keep` accepts.
    #[must_use]
    pub fn filtered(&self, keep: impl Fn(&str) -> bool) -> Imatrix {
        let mut out = self.clone();
        out.entries.retain(|(name, _)| keep(name));
        out
    }

    /// Parses the `.dat` form; `path` is for messages.
    ///
    /// # Errors
    /// As [`Imatrix::open`].
    pub fn from_dat(path: &Path, bytes: &[u8]) -> Result<Imatrix, ImatrixError> {
        let mut cursor = Cursor { path, bytes, at: 0 };
        let n_entries = cursor.length("the number of entries", 13)?;
        let mut read = Imatrix { path: path.to_path_buf(), ..Imatrix::default() };
        for _ in 0..n_entries {
            let name_length = cursor.length("a name's length", 1)?;
            let name = cursor.text(name_length, "a name")?;
            let calls = cursor.i32("the number of calls")?;
            let n_values = cursor.length("the number of values", 4)?;
            let at = cursor.at;
            let raw = cursor.take(4 * n_values, "values")?;
            let divisor = if calls > 0 { calls as f32 } else { 1.0 };
            let values: Vec<f32> =
                raw.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b) / divisor).collect();
            if read.entries.iter().any(|(n, _)| *n == name) {
                return Err(cursor.malformed(at, format!("entry `{name}` for the second time")));
            }
            read.push(name, Entry { values, counts: vec![calls.max(0) as f32] })?;
        }
        // what follows is optional and was added later: chunk count, then the data set
        if cursor.at < bytes.len() {
            read.n_chunks = u32::try_from(cursor.i32("the chunk count")?).ok();
        }
        if cursor.at < bytes.len() {
            let n = cursor.length("the length of the data set's name", 1)?;
            read.datasets.push(cursor.text(n, "the data set's name")?);
        }
        Ok(read)
    }

    /// Takes the GGUF form from an opened file.
    ///
    /// # Errors
    /// As [`Imatrix::open`].
    pub fn from_gguf(path: &Path, model: &Model) -> Result<Imatrix, ImatrixError> {
        let wrong = |what: String| ImatrixError::Malformed { path: path.to_path_buf(), offset: 0, what };
        let general = model.metadata().get("general.type").and_then(Value::as_str);
        if general != Some("imatrix") {
            return Err(wrong(format!("a GGUF file with general.type = {}", general.unwrap_or("nothing"))));
        }
        let mut read = Imatrix { path: path.to_path_buf(), ..Imatrix::default() };
        let datasets = model.metadata().get("imatrix.datasets").and_then(Value::as_array);
        read.datasets = datasets
            .map(|a| a.strings().map(|s| String::from_utf8_lossy(s).into_owned()).collect())
            .unwrap_or_default();
        read.n_chunks = model
            .metadata()
            .get("imatrix.chunk_count")
            .and_then(Value::as_u64)
            .and_then(|n| u32::try_from(n).ok());
        let floats = |name: &str| -> Result<Vec<f32>, ImatrixError> {
            let t = model.require(name)?;
            match t.ty.known() {
                Some(ikq_formats::QuantType::F32) => {
                    Ok(t.data.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
                }
                _ => Err(wrong(format!("tensor `{name}` of type {} instead of f32", t.ty))),
            }
        };
        for t in model.tensors() {
            let Some(name) = t.name.strip_suffix(".in_sum2") else { continue };
            let (mut values, counts) = (floats(&t.name)?, floats(&format!("{name}.counts"))?);
            if counts.is_empty() || !values.len().is_multiple_of(counts.len()) {
                return Err(wrong(format!("{} sums for {} counts of `{name}`", values.len(), counts.len())));
            }
            let n_per_expert = (values.len() / counts.len()).max(1);
            for (sums, count) in values.chunks_exact_mut(n_per_expert).zip(&counts) {
                let scale = if *count > 0.0 { 1.0 / f64::from(*count) } else { 0.0 };
                sums.iter_mut().for_each(|s| *s = (f64::from(*s) * scale) as f32);
            }
            read.push(name.to_string(), Entry { values, counts })?;
        }
        Ok(read)
    }

    fn push(&mut self, name: String, entry: Entry) -> Result<(), ImatrixError> {
        let bad = |values: &[f32]| values.iter().copied().find(|v| !(v.is_finite() && *v >= 0.0));
        let what = bad(&entry.values).map(|v| ("a value", v)).or(bad(&entry.counts).map(|v| ("a count", v)));
        if let Some((what, value)) = what {
            return Err(ImatrixError::Value { path: self.path.clone(), entry: name, what, value });
        }
        self.entries.push((name, entry));
        Ok(())
    }

    /// Entries in file order.
    pub fn entries(&self) -> &[(String, Entry)] {
        &self.entries
    }

    /// The entry named exactly so.
    pub fn get(&self, name: &str) -> Option<&Entry> {
        self.entries.iter().find(|(n, _)| n == name).map(|(_, e)| e)
    }

    /// Statistics of the input of tensor `name`: its own entry, or that of a tensor which reads the
    /// same input (its name is then given).
    pub fn find(&self, name: &str) -> Option<(&Entry, Option<String>)> {
        if let Some(e) = self.get(name) {
            return Some((e, None));
        }
        let (part, others) = SAME_INPUT.iter().find(|(part, _)| is_part(name, part))?;
        others.iter().find_map(|other| {
            let name = name.replace(part, other);
            self.get(&name).map(|e| (e, Some(name)))
        })
    }
}

/// Whether `part` stands in `name` between dots (so that `ffn_up` is not found in `ffn_up_exps`).
fn is_part(name: &str, part: &str) -> bool {
    name.split('.').any(|p| p == part)
}

/// Checked reading of the `.dat` form.
struct Cursor<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn malformed(&self, offset: usize, what: String) -> ImatrixError {
        ImatrixError::Malformed { path: self.path.to_path_buf(), offset, what }
    }

    fn take(&mut self, n: usize, what: &str) -> Result<&'a [u8], ImatrixError> {
        match self.at.checked_add(n).and_then(|end| self.bytes.get(self.at..end)) {
            Some(slice) => {
                self.at += n;
                Ok(slice)
            }
            None => Err(self.malformed(self.at, format!("the file ends inside {what}"))),
        }
    }

    fn i32(&mut self, what: &str) -> Result<i32, ImatrixError> {
        let b = self.take(4, what)?;
        Ok(i32::from_le_bytes([b[0], b[1], b[2], b[3]]))
    }

    /// A count of things of at least `unit` bytes each: more than the file can hold is refused.
    fn length(&mut self, what: &str, unit: usize) -> Result<usize, ImatrixError> {
        let at = self.at;
        let n = self.i32(what)?;
        let room = self.bytes.len() - self.at;
        match usize::try_from(n) {
            Ok(n) if n.checked_mul(unit).is_some_and(|b| b <= room) => Ok(n),
            _ => Err(self.malformed(at, format!("{what} is {n} where {room} bytes are left"))),
        }
    }

    fn text(&mut self, n: usize, what: &str) -> Result<String, ImatrixError> {
        let at = self.at;
        let raw = self.take(n, what)?;
        match std::str::from_utf8(raw) {
            Ok(s) => Ok(s.trim_end_matches('\0').to_string()),
            Err(_) => Err(self.malformed(at, format!("{what} is not text"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dat(entries: &[(&str, i32, &[f32])]) -> Vec<u8> {
        let mut out = (entries.len() as i32).to_le_bytes().to_vec();
        for (name, calls, values) in entries {
            out.extend((name.len() as i32).to_le_bytes());
            out.extend(name.as_bytes());
            out.extend(calls.to_le_bytes());
            out.extend((values.len() as i32).to_le_bytes());
            values.iter().for_each(|v| out.extend(v.to_le_bytes()));
        }
        out
    }

    fn read(bytes: &[u8]) -> Result<Imatrix, ImatrixError> {
        Imatrix::from_dat(Path::new("m.dat"), bytes)
    }

    #[test]
    fn values_are_divided_by_calls_and_the_tail_is_optional() {
        let mut bytes = dat(&[("blk.0.ffn_up.weight", 4, &[8.0, 2.0])]);
        let m = read(&bytes).expect("valid");
        assert_eq!(m.get("blk.0.ffn_up.weight").map(|e| e.values.clone()), Some(vec![2.0, 0.5]));
        assert_eq!(m.n_chunks, None);
        bytes.extend(20i32.to_le_bytes());
        bytes.extend(3i32.to_le_bytes());
        bytes.extend(b"abc");
        let m = read(&bytes).expect("valid");
        assert_eq!((m.n_chunks, m.datasets), (Some(20), vec!["abc".to_string()]));
    }

    #[test]
    fn a_missing_entry_is_borrowed_from_the_same_input_only() {
        let m = read(&dat(&[("blk.0.ffn_up_exps.weight", 1, &[1.0]), ("blk.1.ffn_up.weight", 1, &[3.0])]))
            .expect("valid");
        let found = m.find("blk.0.ffn_gate_exps.weight").and_then(|(_, from)| from);
        assert_eq!(found.as_deref(), Some("blk.0.ffn_up_exps.weight"));
        assert_eq!(m.find("blk.1.ffn_gate.weight").map(|(e, _)| e.values[0]), Some(3.0));
        assert!(m.find("blk.0.ffn_gate.weight").is_none());
        assert!(m.find("blk.0.ffn_down_exps.weight").is_none());
    }

    #[test]
    fn hostile_files_are_refused_with_a_place() {
        let good = dat(&[("a", 1, &[1.0, 2.0])]);
        for cut in 1..good.len() {
            assert!(read(&good[..cut]).is_err(), "cut at {cut}");
        }
        let mut huge = good.clone();
        huge[..4].copy_from_slice(&i32::MAX.to_le_bytes());
        assert!(matches!(read(&huge), Err(ImatrixError::Malformed { offset: 0, .. })));
        let nan = dat(&[("a", 1, &[f32::NAN])]);
        assert!(matches!(read(&nan), Err(ImatrixError::Value { .. })));
        let twice = dat(&[("a", 1, &[1.0]), ("a", 1, &[1.0])]);
        assert!(read(&twice).is_err_and(|e| e.to_string().contains("second time")));
    }
}
