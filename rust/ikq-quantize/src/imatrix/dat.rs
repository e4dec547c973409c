//! The `.dat` form: of ik_llama.cpp, and of llama.cpp before it used GGUF.
//!
//! i32 n; n x {i32 length, name, i32 calls, i32 count, f32[count]}; then optionally i32 chunks, i32 length, data set
//! name. A value divided by `calls` is the mean square.
//!
//! There are no counts per expert. Experts that no token reached get a mean of exactly 1 in every column, as both
//! reference programs do (zeros would mislead their encoders); see [`UNSEEN`].

use std::path::Path;

use super::{ImatrixError, SumEntry, Sums};

/// The mean of an expert without data, in every column.
pub const UNSEEN: f32 = 1.0;
/// What stands behind the data set's name when every token counts for every expert.
pub const ALL_EXPERTS: &str = " [all experts]";

/// Parses a file; `path` is for messages.
///
/// # Errors
/// [`ImatrixError::Malformed`].
pub fn read(path: &Path, bytes: &[u8]) -> Result<Sums, ImatrixError> {
    let mut cursor = Cursor { path, bytes, at: 0 };
    let n_entries = cursor.length("the number of entries", 13)?;
    let mut read = Sums { path: path.to_path_buf(), counts_are_calls: true, ..Sums::default() };
    let mut names = std::collections::HashSet::new();
    for _ in 0..n_entries {
        let name_length = cursor.length("a name's length", 1)?;
        let name = cursor.text(name_length, "a name")?;
        let calls = cursor.i32("the number of calls")?;
        let n_values = cursor.length("the number of values", 4)?;
        let at = cursor.at;
        let raw = cursor.take(4 * n_values, "values")?;
        let sums: Vec<f32> = raw.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        if !names.insert(name.clone()) {
            return Err(cursor.malformed(at, format!("entry `{name}` for the second time")));
        }
        read.entries.push(SumEntry { name, sums, counts: vec![calls.max(0) as f32] });
    }
    // what follows is optional and was added later: chunk count, then the data set
    if cursor.at < bytes.len() {
        read.n_chunks = u32::try_from(cursor.i32("the chunk count")?).ok();
    }
    if cursor.at < bytes.len() {
        let n = cursor.length("the length of the data set's name", 1)?;
        let name = cursor.text(n, "the data set's name")?;
        read.all_experts = name.ends_with(ALL_EXPERTS);
        read.datasets.push(name.trim_end_matches(ALL_EXPERTS).to_string());
    }
    Ok(read)
}

/// The bytes of a file.
///
/// # Errors
/// [`ImatrixError::TooLarge`] for numbers that the form cannot hold.
pub fn bytes<T: Copy + Into<f64>>(sums: &Sums<T>) -> Result<Vec<u8>, ImatrixError> {
    let length = |what: &'static str, n: usize| {
        i32::try_from(n).map_err(|_| ImatrixError::TooLarge { what, n: n as u64 }).map(i32::to_le_bytes)
    };
    let calls = sums.n_chunks.unwrap_or(1).max(1);
    let mut out = length("entries", sums.entries.len())?.to_vec();
    for entry in &sums.entries {
        out.extend(length("bytes of a name", entry.name.len())?);
        out.extend(entry.name.as_bytes());
        out.extend(length("chunks", calls as usize)?);
        out.extend(length("values of an entry", entry.sums.len())?);
        for (sums, count) in entry.groups() {
            let factor = if *count > 0.0 { f64::from(calls) / f64::from(*count) } else { 0.0 };
            let unseen = UNSEEN * calls as f32;
            let value = |sum: T| if *count > 0.0 { (sum.into() * factor) as f32 } else { unseen };
            out.extend(sums.iter().flat_map(|s| value(*s).to_le_bytes()));
        }
    }
    out.extend(length("chunks", calls as usize)?);
    let name = sums.datasets.join(", ") + if sums.all_experts { ALL_EXPERTS } else { "" };
    out.extend(length("bytes of a name", name.len())?);
    out.extend(name.as_bytes());
    Ok(out)
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
