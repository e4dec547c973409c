//! [`Writer`]: fills a planned output from any number of threads, then puts it in place.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::Error;
use crate::plan::Layout;
use crate::ranges::Ranges;
use crate::split::{parse_shard_name, shard_file_name};

/// Above this many shards files are opened for each write: no output needs many descriptors.
const MAX_OPEN_FILES: usize = 64;
/// Longest part of the target's name that a temporary's name repeats (names end at 255 bytes).
const MAX_NAME_PART: usize = 180;

/// Writes the files of a [`Layout`] under temporary names beside their targets. Dropped before
/// [`Writer::finish`], it removes them; files under the final names are untouched until then.
///
/// A file size limit (`ulimit -f`) is reported as [`Error::FileTooLarge`] if the process ignores
/// `SIGXFSZ`, as Python does; else that signal ends it.
#[derive(Debug)]
pub struct Writer {
    layout: Layout,
    files: Vec<OutFile>,
    written: Vec<Mutex<Ranges>>,
}

#[derive(Debug)]
struct OutFile {
    target: PathBuf,
    temporary: PathBuf,
    /// `None`: opened for each write.
    open: Option<File>,
    in_place: bool,
}

impl Writer {
    /// Creates the temporary files of `layout` at their full size, headers written, data zero.
    ///
    /// `target` is the file to write; for a split layout the shards are named after it:
    /// `OUT.gguf` (or `OUT-00001-of-00003.gguf`, or `OUT`) gives `OUT-0000i-of-0000n.gguf`.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::NoSpace`], [`Error::FileTooLarge`]; [`Error::IsDirectory`],
    /// [`Error::NotRegularFile`], [`Error::TargetName`] for targets that cannot be replaced.
    pub fn create(target: impl AsRef<Path>, layout: Layout) -> Result<Writer, Error> {
        let targets = target_paths(target.as_ref(), &layout)?;
        for target in &targets {
            check_target(target)?;
        }
        let needed = layout.total_size();
        let n_shards = targets.len();
        let written = layout.tensors().iter().map(|_| Mutex::default()).collect();
        // made before any file, so that dropping it cleans up
        let mut writer = Writer { layout, files: Vec::with_capacity(n_shards), written };
        for (target, shard) in targets.into_iter().zip(writer.layout.shards()) {
            let os = |e| Error::io(&target, "write", needed, e);
            let (temporary, file) = create_temporary(&target).map_err(os)?;
            writer.files.push(OutFile { target: target.clone(), temporary, open: None, in_place: false });
            file.set_len(shard.size).map_err(os)?;
            file.write_all_at(&shard.header, 0).map_err(os)?;
            if n_shards <= MAX_OPEN_FILES
                && let Some(out) = writer.files.last_mut()
            {
                out.open = Some(file);
            }
        }
        Ok(writer)
    }

    /// The plan being written.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The final names of the files.
    pub fn targets(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|f| f.target.as_path())
    }

    /// Writes `bytes` at `offset` of tensor `index` (of [`Layout::tensors`]). May be called from
    /// several threads at once; writing a range again replaces it.
    ///
    /// # Errors
    /// [`Error::WriteIndex`], [`Error::WriteRange`]; [`Error::Io`], [`Error::NoSpace`],
    /// [`Error::FileTooLarge`].
    pub fn write_at(&self, index: usize, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        let n_tensors = self.written.len();
        let place = *self.layout.places().get(index).ok_or(Error::WriteIndex { index, n_tensors })?;
        let len = bytes.len() as u64;
        let end =
            offset.checked_add(len).filter(|end| *end <= place.size).ok_or_else(|| Error::WriteRange {
                tensor: self.layout.tensors()[index].name.clone(),
                offset,
                len,
                size: place.size,
            })?;
        let out = &self.files[place.shard];
        out.with_file(|file| file.write_all_at(bytes, place.offset + offset))
            .map_err(|e| Error::io(&out.target, "write", self.layout.total_size(), e))?;
        self.ranges(index).insert(offset, end);
        Ok(())
    }

    /// Bytes of tensor `index` that have been written; 0 for an index that is not in the plan.
    pub fn written(&self, index: usize) -> u64 {
        if index < self.written.len() { self.ranges(index).covered() } else { 0 }
    }

    /// Checks that every tensor is complete, waits until the disk has everything, and renames all
    /// files into place; returns their names. The first shard comes last, so that a set that can be
    /// opened by its first name is whole.
    ///
    /// # Errors
    /// [`Error::Incomplete`], [`Error::Io`], [`Error::NoSpace`]. Files not yet renamed are removed.
    pub fn finish(mut self) -> Result<Vec<PathBuf>, Error> {
        for (index, t) in self.layout.tensors().iter().enumerate() {
            let (written, first_gap) = {
                let ranges = self.ranges(index);
                (ranges.covered(), ranges.first_gap())
            };
            if written != t.size {
                return Err(Error::Incomplete { tensor: t.name.clone(), written, size: t.size, first_gap });
            }
        }
        let needed = self.layout.total_size();
        for out in &self.files {
            out.with_file(File::sync_all).map_err(|e| Error::io(&out.target, "write", needed, e))?;
        }
        for out in self.files.iter_mut().rev() {
            fs::rename(&out.temporary, &out.target)
                .map_err(|e| Error::io(&out.target, "rename the finished file to", needed, e))?;
            out.in_place = true;
        }
        if let Some(directory) = self.files.first().map(|f| directory_of(&f.target)) {
            // makes the new names durable; a file system that cannot do it has still renamed
            let _ = File::open(directory).and_then(|d| d.sync_all());
        }
        Ok(self.files.iter().map(|f| f.target.clone()).collect())
    }

    fn ranges(&self, index: usize) -> std::sync::MutexGuard<'_, Ranges> {
        // a panic elsewhere leaves the set as it was before or after an insertion
        self.written[index].lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        for out in self.files.iter().filter(|f| !f.in_place) {
            // nothing better can be done about a temporary that cannot be removed
            let _ = fs::remove_file(&out.temporary);
        }
    }
}

impl OutFile {
    fn with_file<T>(&self, work: impl FnOnce(&File) -> io::Result<T>) -> io::Result<T> {
        match &self.open {
            Some(file) => work(file),
            None => work(&OpenOptions::new().write(true).open(&self.temporary)?),
        }
    }
}

/// Final names of the files of a layout.
fn target_paths(target: &Path, layout: &Layout) -> Result<Vec<PathBuf>, Error> {
    let unnamed = || Error::TargetName { path: target.to_path_buf() };
    let name = target.file_name().ok_or_else(unnamed)?;
    if !layout.is_split() {
        // through a link: the file it leads to is replaced, not the link
        let linked = fs::symlink_metadata(target).is_ok_and(|m| m.is_symlink());
        let real = if linked { fs::canonicalize(target).ok() } else { None };
        return Ok(vec![real.unwrap_or_else(|| target.to_path_buf())]);
    }
    let name = name.to_str().ok_or_else(unnamed)?;
    let prefix = match parse_shard_name(name) {
        Some((prefix, _, _)) => prefix,
        None => name.strip_suffix(".gguf").unwrap_or(name),
    };
    let count = layout.shards().len();
    Ok((0..count).map(|i| target.with_file_name(shard_file_name(prefix, i, count))).collect())
}

/// Refuses what renaming would destroy or cannot replace.
fn check_target(target: &Path) -> Result<(), Error> {
    match fs::metadata(target) {
        Ok(m) if m.is_dir() => Err(Error::IsDirectory { path: target.to_path_buf() }),
        Ok(m) if !m.is_file() => Err(Error::NotRegularFile { path: target.to_path_buf() }),
        _ => Ok(()),
    }
}

fn directory_of(target: &Path) -> &Path {
    match target.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Creates a hidden file beside `target` that nobody else has.
fn create_temporary(target: &Path) -> io::Result<(PathBuf, File)> {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    let part: String = name
        .char_indices()
        .take_while(|(at, c)| at + c.len_utf8() <= MAX_NAME_PART)
        .map(|(_, c)| c)
        .collect();
    loop {
        let serial = COUNTER.fetch_add(1, Ordering::Relaxed);
        let temporary =
            target.with_file_name(OsString::from(format!(".{part}.{}-{serial}.tmp", std::process::id())));
        match OpenOptions::new().write(true).create_new(true).open(&temporary) {
            Ok(file) => return Ok((temporary, file)),
            // left by an earlier process with the same number
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(e),
        }
    }
}
