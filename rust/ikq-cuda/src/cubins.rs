//! [`Cubins`]: compiled kernels on disk, with a file for each combination of source, options, compiler and
//! architecture.
//!
//! The folder is `$IKQ_CACHE_DIR/cubin`, else `$XDG_CACHE_HOME/ikq/cubin`, else `~/.cache/ikq/cubin`. A file that
//! cannot be read or written is not an error: the kernel is then compiled again. A file begins with the hash of the
//! cubin that follows, so that one that a crash has truncated is not loaded.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use xxhash_rust::xxh3::{Xxh3, xxh3_128};

use crate::nvrtc::Source;

/// Version of keys and files; to be changed when their meaning changes.
const FORMAT: u32 = 1;
const HASH_BYTES: usize = 16;

/// The folder of compiled kernels.
#[derive(Clone, Debug)]
pub struct Cubins {
    folder: Option<PathBuf>,
}

impl Cubins {
    /// The folder that the environment variables name.
    pub fn of_environment() -> Cubins {
        let named = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let folder = named("IKQ_CACHE_DIR")
            .or_else(|| named("XDG_CACHE_HOME").map(|p| p.join("ikq")))
            .or_else(|| named("HOME").map(|p| p.join(".cache/ikq")));
        Cubins { folder: folder.map(|p| p.join("cubin")) }
    }

    /// A folder that the caller chooses.
    pub fn at(folder: PathBuf) -> Cubins {
        Cubins { folder: Some(folder) }
    }

    /// The folder where files are kept; `None` when the environment names none.
    pub fn folder(&self) -> Option<&PathBuf> {
        self.folder.as_ref()
    }

    /// The cubin that was kept under a key; `None` when there is none or it is damaged.
    pub fn read(&self, key: u128) -> Option<Vec<u8>> {
        let bytes = std::fs::read(self.path(key)?).ok()?;
        let (hash, cubin) = bytes.split_at_checked(HASH_BYTES)?;
        (hash == xxh3_128(cubin).to_le_bytes() && !cubin.is_empty()).then(|| cubin.to_vec())
    }

    /// Keeps a cubin. Other processes see the complete file or none.
    pub fn write(&self, key: u128, cubin: &[u8]) {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        let Some(path) = self.path(key) else { return };
        let n = COUNTER.fetch_add(1, Ordering::Relaxed);
        let temporary = path.with_extension(format!("{}-{n}.tmp", std::process::id()));
        let bytes = [&xxh3_128(cubin).to_le_bytes()[..], cubin].concat();
        let kept = path.parent().is_some_and(|folder| std::fs::create_dir_all(folder).is_ok())
            && std::fs::write(&temporary, bytes).is_ok()
            && std::fs::rename(&temporary, &path).is_ok();
        if !kept {
            // a full disk leaves an incomplete file
            let _ = std::fs::remove_file(&temporary);
        }
    }

    fn path(&self, key: u128) -> Option<PathBuf> {
        Some(self.folder.as_ref()?.join(format!("{key:032x}.cubin")))
    }
}

/// The key of everything that decides a cubin's bytes.
pub fn key(source: &Source, arch: &str, options: &[String], version: (i32, i32)) -> u128 {
    let mut hash = Xxh3::new();
    // lengths come first, so that two different lists of texts never give the same bytes
    let mut add = |text: &str| {
        hash.update(&(text.len() as u64).to_le_bytes());
        hash.update(text.as_bytes());
    };
    add(&format!("{FORMAT} {}.{} {arch} {}", version.0, version.1, options.len()));
    options.iter().for_each(|o| add(o));
    add(&source.name);
    add(&source.text);
    for (name, text) in &source.headers {
        add(name);
        add(text);
    }
    hash.digest128()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("ikq-cubins-{name}-{}", std::process::id()))
    }

    #[test]
    fn what_was_kept_is_there_and_what_is_damaged_is_not() {
        let folder = folder("kept");
        let cubins = Cubins::at(folder.clone());
        assert_eq!(cubins.read(1), None);
        cubins.write(1, b"a cubin");
        cubins.write(2, b"another");
        assert_eq!(cubins.read(1).as_deref(), Some(&b"a cubin"[..]));
        assert_eq!(cubins.read(3), None);
        let file = folder.join(format!("{:032x}.cubin", 2));
        let bytes = std::fs::read(&file).expect("written");
        for damaged in [&bytes[..bytes.len() - 1], &bytes[..5], &[]] {
            std::fs::write(&file, damaged).expect("written");
            assert_eq!(cubins.read(2), None);
        }
        // no temporary files stay
        assert_eq!(std::fs::read_dir(&folder).expect("a folder").count(), 2);
        std::fs::remove_dir_all(&folder).expect("removed");
    }

    #[test]
    fn a_folder_that_cannot_be_is_no_error() {
        let file = folder("file");
        std::fs::write(&file, "").expect("written");
        let cubins = Cubins::at(file.join("below"));
        cubins.write(1, b"a cubin");
        assert_eq!(cubins.read(1), None);
        std::fs::remove_file(&file).expect("removed");
    }

    #[test]
    fn keys_differ_by_all_that_matters() {
        let source = |text: &str, header: &str| Source {
            name: "a.cu".into(),
            text: text.into(),
            headers: vec![("h".into(), header.into())],
        };
        let o = |text: &str| vec![text.to_string()];
        let keys = [
            key(&source("x", "y"), "sm_90", &o("-DA=1"), (13, 0)),
            key(&source("x2", "y"), "sm_90", &o("-DA=1"), (13, 0)),
            key(&source("x", "y2"), "sm_90", &o("-DA=1"), (13, 0)),
            key(&source("x", "y"), "sm_80", &o("-DA=1"), (13, 0)),
            key(&source("x", "y"), "sm_90", &o("-DA=2"), (13, 0)),
            key(&source("x", "y"), "sm_90", &o("-DA=1"), (12, 8)),
            key(&source("x", "y"), "sm_90", &[], (13, 0)),
        ];
        let distinct: std::collections::HashSet<u128> = keys.into_iter().collect();
        assert_eq!(distinct.len(), keys.len());
    }
}
