//! Importance matrices: the mean squared input of every column of every matrix, per expert.
//!
//! Two file forms are read (recognised by their first bytes) and written, both through [`Sums`]: `.dat` (`dat.rs`)
//! and GGUF (`gguf.rs`). [`Imatrix`] has the means, which is what encoders take.
//!
//! An entry belongs to the *input* of a matrix, so matrices that read the same input share it:
//! [`Imatrix::find`] answers for a tensor whose own entry is missing from one that sees the same
//! activations (fused up+gate collectors store only one of the two).

mod dat;
mod gguf;
mod sums;

use std::path::{Path, PathBuf};

pub use dat::UNSEEN;
pub use sums::{Form, SumEntry, Sums};

/// Activation statistics of one matrix (of all its experts).
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Mean squared input, expert after expert.
    pub values: Vec<f32>,
    /// Tokens (`.dat`: calls) seen, one number for all experts or one per expert.
    pub counts: Vec<f32>,
}

impl Entry {
    /// Experts of `n_experts` that no token reached: of a count of 0, of zeros, or of what `.dat` files have for them
    /// ([`UNSEEN`] in every column; a file that has that for all experts says so of all).
    pub fn unseen_experts(&self, n_experts: usize) -> Vec<usize> {
        let columns = (self.values.len() / n_experts.max(1)).max(1);
        let constant = |values: &[f32]| values.windows(2).all(|w| w[0] == w[1]);
        let experts = self.values.chunks_exact(columns);
        let stands_out = n_experts > 1 && experts.clone().any(|values| !constant(values));
        let counted = self.counts.len() == n_experts && n_experts > 1;
        let unseen = |(expert, values): &(usize, &[f32])| {
            let first = values.first().copied().unwrap_or(0.0);
            let dummy = first == 0.0 || first == UNSEEN && stands_out;
            counted && self.counts[*expert] == 0.0 || dummy && constant(values)
        };
        experts.enumerate().filter(unseen).map(|(expert, _)| expert).collect()
    }
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

    #[error("{n} {what}: more than this form of file can hold; write the other one")]
    TooLarge { what: &'static str, n: u64 },
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
    /// Every token counted for every expert.
    pub all_experts: bool,
    /// Counts of entries are calls (chunks of text), not tokens: `.dat` files have no others.
    pub counts_are_calls: bool,
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
        Imatrix::from_sums(Sums::open(path)?)
    }

    /// Parses the `.dat` form; `path` is for messages.
    ///
    /// # Errors
    /// As [`Imatrix::open`].
    pub fn from_dat(path: &Path, bytes: &[u8]) -> Result<Imatrix, ImatrixError> {
        Imatrix::from_sums(dat::read(path, bytes)?)
    }

    /// Means from sums.
    ///
    /// # Errors
    /// Values that are negative or not finite.
    pub fn from_sums(sums: Sums) -> Result<Imatrix, ImatrixError> {
        let mut read = Imatrix {
            path: sums.path,
            datasets: sums.datasets,
            n_chunks: sums.n_chunks,
            all_experts: sums.all_experts,
            counts_are_calls: sums.counts_are_calls,
            entries: Vec::with_capacity(sums.entries.len()),
        };
        for SumEntry { name, sums: mut values, counts } in sums.entries {
            let columns = (values.len() / counts.len().max(1)).max(1);
            for (values, count) in values.chunks_exact_mut(columns).zip(&counts) {
                if sums.counts_are_calls {
                    values.iter_mut().for_each(|v| *v /= count.max(1.0));
                    continue;
                }
                let scale = if *count > 0.0 { 1.0 / f64::from(*count) } else { 0.0 };
                values.iter_mut().for_each(|v| *v = (f64::from(*v) * scale) as f32);
            }
            read.push(name, Entry { values, counts })?;
        }
        Ok(read)
    }

    /// An imatrix with only those entries whose names `keep` accepts.
    #[must_use]
    pub fn filtered(&self, keep: impl Fn(&str) -> bool) -> Imatrix {
        let mut out = self.clone();
        out.entries.retain(|(name, _)| keep(name));
        out
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
        same_inputs(name).find_map(|name| self.get(&name).map(|e| (e, Some(name))))
    }
}

/// Names of tensors that read the same input as tensor `name`, those to ask first in front.
pub(crate) fn same_inputs(name: &str) -> impl Iterator<Item = String> {
    let found = SAME_INPUT.iter().find(|(part, _)| is_part(name, part));
    found
        .into_iter()
        .flat_map(move |(part, others)| others.iter().map(move |other| name.replace(part, other)))
}

/// Whether `part` stands in `name` between dots (so that `ffn_up` is not found in `ffn_up_exps`).
fn is_part(name: &str, part: &str) -> bool {
    name.split('.').any(|p| p == part)
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
    fn both_forms_keep_what_they_hold() {
        let entry = |name: &str, sums: &[f32], counts: &[f32]| SumEntry {
            name: name.to_string(),
            sums: sums.to_vec(),
            counts: counts.to_vec(),
        };
        let written = Sums {
            entries: vec![
                entry("a.weight", &[3.0, 6.0], &[12.0]),
                entry("b.weight", &[1.0, 2.0, 0.0, 0.0, 5.0, 6.0], &[4.0, 0.0, 2.0]),
            ],
            datasets: vec!["text".to_string()],
            n_chunks: Some(3),
            chunk_size: Some(4),
            all_experts: true,
            ..Sums::default()
        };
        let folder = std::env::temp_dir().join(format!("ikq-imatrix-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder for the test");
        let [dat, gguf] = ["m.dat", "m.gguf"].map(|name| folder.join(name));
        written.write(&dat, Form::Dat).expect("written");
        written.write(&gguf, Form::Gguf).expect("written");
        let read = Sums::open(&gguf).expect("readable");
        assert_eq!(read.entries, written.entries);
        assert_eq!((read.n_chunks, read.chunk_size, read.all_experts), (Some(3), Some(4), true));
        assert_eq!(read.datasets, ["text"]);
        let read = Sums::open(&dat).expect("readable");
        // means times chunks; an expert without data has a mean of 1
        let expected = [
            entry("a.weight", &[0.75, 1.5], &[3.0]),
            entry("b.weight", &[0.75, 1.5, 3.0, 3.0, 7.5, 9.0], &[3.0]),
        ];
        assert_eq!(read.entries, expected);
        assert_eq!(
            (read.n_chunks, read.all_experts, read.datasets),
            (Some(3), true, vec!["text".to_string()])
        );
        for path in [&dat, &gguf] {
            let read = Imatrix::open(path).expect("readable");
            let unseen = |name, n| read.get(name).map(|e| e.unseen_experts(n));
            assert_eq!(unseen("b.weight", 3), Some(vec![1]));
            assert_eq!(unseen("a.weight", 1), Some(vec![]));
        }
        let files = std::fs::read_dir(&folder).expect("the folder").count();
        assert_eq!(files, 2, "nothing else is left");
        std::fs::remove_dir_all(&folder).expect("removed");
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
