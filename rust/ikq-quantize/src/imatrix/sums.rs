//! [`Sums`]: what both file forms hold, sums of squares and numbers of tokens.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use ikq_gguf::Model;

use super::{ImatrixError, dat, gguf};

/// Statistics as a file holds them; what is written may have sums in double precision.
#[derive(Clone, Debug, Default)]
pub struct Sums<T = f32> {
    /// The file they came from.
    pub path: PathBuf,
    /// The entries, in the order of the file.
    pub entries: Vec<SumEntry<T>>,
    /// Data sets they were computed on.
    pub datasets: Vec<String>,
    /// Chunks of text, if the file says so.
    pub n_chunks: Option<u32>,
    /// Tokens of a chunk, if the file says so.
    pub chunk_size: Option<u32>,
    /// Every token counted for every expert.
    pub all_experts: bool,
    /// Counts are chunks, one for all experts (`.dat`), not tokens.
    pub counts_are_calls: bool,
}

/// Sums of a matrix (of all its experts).
#[derive(Clone, Debug, PartialEq)]
pub struct SumEntry<T = f32> {
    pub name: String,
    /// Sums of squares, expert after expert.
    pub sums: Vec<T>,
    /// Tokens of each expert, or one number for all.
    pub counts: Vec<f32>,
}

/// The two forms of imatrix files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Dat,
    Gguf,
}

impl<T> SumEntry<T> {
    /// Sums and count of each expert.
    pub fn groups(&self) -> impl Iterator<Item = (&[T], &f32)> {
        let columns = (self.sums.len() / self.counts.len().max(1)).max(1);
        self.sums.chunks_exact(columns).zip(&self.counts)
    }
}

impl Sums {
    /// Reads either form.
    ///
    /// # Errors
    /// IO errors and files of neither form.
    pub fn open(path: impl AsRef<Path>) -> Result<Sums, ImatrixError> {
        let path = path.as_ref();
        let io = |source| ImatrixError::Io { path: path.to_path_buf(), source };
        let mut file = std::fs::File::open(path).map_err(io)?;
        let mut bytes = Vec::new();
        (&file).take(4).read_to_end(&mut bytes).map_err(io)?;
        if bytes.starts_with(b"GGUF") {
            return gguf::read(path, &Model::open(path)?);
        }
        file.read_to_end(&mut bytes).map_err(io)?;
        dat::read(path, &bytes)
    }
}

impl<T: Copy + Into<f64>> Sums<T> {
    /// Writes a file: beside its name first, then in its place, so that what was there stays until it is whole.
    ///
    /// # Errors
    /// IO errors, numbers that the form cannot hold.
    pub fn write(&self, path: impl AsRef<Path>, form: Form) -> Result<(), ImatrixError> {
        let path = path.as_ref();
        match form {
            Form::Gguf => gguf::write(self, path),
            Form::Dat => {
                let bytes = dat::bytes(self)?;
                replace(path, &bytes).map_err(|source| ImatrixError::Io { path: path.to_path_buf(), source })
            }
        }
    }
}

/// Writes a temporary file beside `path` and renames it.
fn replace(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".{}.tmp", std::process::id()));
    let temporary = path.with_file_name(name);
    let done = std::fs::File::create(&temporary).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)
    });
    if done.is_err() {
        // the first error is the one to tell
        let _ = std::fs::remove_file(&temporary);
    }
    done
}
