//! Helpers of the integration tests.
#![allow(dead_code)] // each test file uses some
#![allow(clippy::print_stdout)] // a skipped test says so

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use ikq_formats::QuantType;
use ikq_gguf::{Error, Layout, Metadata, Options, TensorSpec, Writer};

/// A directory that is removed when dropped.
pub struct TempDir(pub PathBuf);

impl TempDir {
    pub fn new() -> TempDir {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        let serial = COUNTER.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("ikq-gguf-test-{}-{serial}", std::process::id()));
        fs::create_dir_all(&dir).expect("a temporary directory");
        TempDir(dir)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Names of all files, sorted.
    pub fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.0).expect("readable");
        let mut names: Vec<String> =
            entries.map(|e| e.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// `shared/models` beside the repository; `None`, with a printed message, when it is not there.
pub fn shared_models() -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/models");
    if !path.is_dir() {
        println!("skipped: {} is not there", path.display());
        return None;
    }
    Some(path)
}

/// `n` F32 tensors `t0`, `t1`, ... of 3 rows of 5.
pub fn specs(n: usize) -> Vec<TensorSpec> {
    (0..n).map(|i| TensorSpec::new(format!("t{i}"), &[5, 3], QuantType::F32).expect("fits")).collect()
}

/// The data of tensor `i` of `specs`.
pub fn data(i: usize) -> Vec<u8> {
    (0..60).map(|b| (b * 7 + i * 13) as u8).collect()
}

/// Writes `n` tensors; returns the files.
pub fn write(target: &Path, metadata: &Metadata, n: usize, options: &Options) -> Result<Vec<PathBuf>, Error> {
    let writer = Writer::create(target, Layout::new(metadata, specs(n), options)?)?;
    for i in 0..n {
        writer.write_at(i, 0, &data(i))?;
    }
    writer.finish()
}
