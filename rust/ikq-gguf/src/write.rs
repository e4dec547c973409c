//! [`Writer`]: writes a planned output from any number of threads, then gives the files their final names.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::disk;
use crate::error::Error;
use crate::plan::{Layout, Place, ShardLayout};
use crate::ranges::Ranges;
use crate::split::{parse_shard_name, shard_file_name};
use crate::write_out;

/// With more shards than this, files are opened for each write, so that no output needs many file descriptors.
const MAX_OPEN_FILES: usize = 64;
/// Longest part of the target's name that the name of a temporary file repeats, in bytes.
const MAX_NAME_PART: usize = 180;
/// Longest name of a file, in bytes.
const MAX_NAME: usize = 255;

/// Writes the files of a [`Layout`] under temporary names beside their targets; files under the final names are not
/// touched until [`Writer::finish`]. If a writer is dropped before that, one of [`Writer::create`] removes its
/// files, and one of [`Writer::resume`] leaves them, to be continued.
///
/// A file size limit (`ulimit -f`) is reported as [`Error::FileTooLarge`] if the process ignores
/// `SIGXFSZ`, as Python does; otherwise that signal ends the process.
#[derive(Debug)]
pub struct Writer {
    layout: Layout,
    files: Vec<OutFile>,
    written: Vec<Mutex<Ranges>>,
    /// Whether partial files stay when this is dropped.
    stays: bool,
}

#[derive(Debug)]
struct OutFile {
    target: PathBuf,
    temporary: PathBuf,
    /// The open file; `None` if it is opened for each write.
    open: Option<File>,
    in_place: bool,
}

impl Writer {
    /// Creates the temporary files of `layout` at their full size, with headers written and data zero.
    ///
    /// `target` is the file to write; for a split layout the shards are named after it:
    /// `OUT.gguf` (or `OUT-00001-of-00003.gguf`, or `OUT`) gives `OUT-0000i-of-0000n.gguf`.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::NoSpace`], [`Error::FileTooLarge`]; [`Error::IsDirectory`],
    /// [`Error::NotRegularFile`], [`Error::TargetName`] for targets that cannot be replaced.
    pub fn create(target: impl AsRef<Path>, layout: Layout) -> Result<Writer, Error> {
        let targets = target_paths(target.as_ref(), &layout)?;
        Writer::open(targets, layout, false, &[], create_temporary)
    }

    /// Like [`Writer::create`], but with partial files that are named after their targets ([`partial_path`]) and
    /// stay when the writer is dropped. Existing ones of the right size are continued with their content; others
    /// begin anew. The caller checks which bytes are valid, and reports them with [`Writer::mark`].
    ///
    /// `in_place[shard]` says that the file under the final name is complete already, and stays.
    ///
    /// # Errors
    /// As [`Writer::create`].
    pub fn resume(target: impl AsRef<Path>, layout: Layout, in_place: &[bool]) -> Result<Writer, Error> {
        let targets = target_paths(target.as_ref(), &layout)?;
        Writer::open(targets, layout, true, in_place, |target| {
            let path = partial_path(target);
            let mut options = OpenOptions::new();
            let file = options.read(true).write(true).create(true).truncate(false).open(&path)?;
            Ok((path, file))
        })
    }

    fn open(
        targets: Vec<PathBuf>,
        layout: Layout,
        stays: bool,
        in_place: &[bool],
        open: impl Fn(&Path) -> io::Result<(PathBuf, File)>,
    ) -> Result<Writer, Error> {
        for target in &targets {
            check_target(target)?;
        }
        let needed = layout.total_size();
        let n_shards = targets.len();
        let written = layout.tensors().iter().map(|_| Mutex::default()).collect();
        // made before any file, so that dropping it removes the files
        let mut writer = Writer { layout, files: Vec::with_capacity(n_shards), written, stays };
        let mut sizes = Vec::new();
        for (index, target) in targets.into_iter().enumerate() {
            if in_place.get(index) == Some(&true) {
                let temporary = partial_path(&target);
                writer.files.push(OutFile { target, temporary, open: None, in_place: true });
                for tensor in writer.layout.shards()[index].tensors.clone() {
                    writer.ranges(tensor).insert(0, writer.layout.tensors()[tensor].size);
                }
                continue;
            }
            let size = writer.layout.shards()[index].size;
            let os = |e| Error::io(&target, "write", needed, e);
            let (temporary, file) = open(&target).map_err(os)?;
            let out = OutFile { target: target.clone(), temporary, open: None, in_place: false };
            writer.files.push(out);
            let found = file.metadata().map_err(os)?;
            if !found.is_file() {
                return Err(Error::NotRegularFile { path: partial_path(&target) });
            }
            if found.len() != size {
                // it belongs to another plan or is truncated, so nothing in it can be trusted
                file.set_len(0).map_err(os)?;
            }
            sizes.push((size, disk::taken_bytes(&file)));
            let out = &mut writer.files[index];
            if n_shards <= MAX_OPEN_FILES {
                out.open = Some(file);
            }
        }
        if let Some(first) = writer.files.first() {
            check_room(&first.target, sizes)?;
        }
        for (out, shard) in writer.files.iter().zip(writer.layout.shards()).filter(|(out, _)| !out.in_place) {
            out.with_file(|file| {
                disk::reserve(file, shard.size)?;
                file.write_all_at(&shard.header, 0)?;
                // a file that was there may have any bytes between its tensors
                let gaps = writer.gaps(shard);
                gaps.into_iter().try_for_each(|(at, len)| file.write_all_at(&vec![0; len], at))
            })
            .map_err(|e| Error::io(&out.target, "write", needed, e))?;
        }
        Ok(writer)
    }

    /// The offsets and lengths of the padding in a file.
    fn gaps(&self, shard: &ShardLayout) -> Vec<(u64, usize)> {
        if !self.stays {
            return Vec::new(); // new files are zeros
        }
        let mut end = shard.header.len() as u64;
        let mut gaps = Vec::new();
        for place in &self.layout.places()[shard.tensors.clone()] {
            gaps.push((end, (place.offset - end) as usize));
            end = place.offset + place.size;
        }
        gaps.push((end, (shard.size - end) as usize));
        gaps
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
        let (out, at) = self.place(index, offset, bytes.len() as u64)?;
        out.with_file(|file| file.write_all_at(bytes, at))
            .map_err(|e| Error::io(&out.target, "write", self.layout.total_size(), e))?;
        self.ranges(index).insert(offset, offset + bytes.len() as u64);
        Ok(())
    }

    /// Counts `len` bytes at `offset` of tensor `index` as written, because they were found in the file.
    ///
    /// # Errors
    /// [`Error::WriteIndex`], [`Error::WriteRange`].
    pub fn mark(&self, index: usize, offset: u64, len: u64) -> Result<(), Error> {
        self.place(index, offset, len)?;
        self.ranges(index).insert(offset, offset + len);
        Ok(())
    }

    /// Writes the numbers of tensor `index` into the room that [`crate::Options::per_tensor`] made.
    ///
    /// # Errors
    /// [`Error::WriteIndex`], [`Error::WriteRange`] for more numbers than there is room for; [`Error::Io`].
    pub fn set_per_tensor(&self, index: usize, numbers: &[u64]) -> Result<(), Error> {
        let place = *self.place_of(index)?;
        let shard = &self.layout.shards()[place.shard];
        let n_numbers = self.layout.n_numbers();
        let Some(start) = shard.per_tensor.filter(|_| numbers.len() == n_numbers) else {
            let tensor = self.layout.tensors()[index].name.clone();
            let (len, size) = (8 * numbers.len() as u64, 8 * n_numbers as u64);
            return Err(Error::WriteRange { tensor, offset: 0, len, size });
        };
        let at = start + 8 * n_numbers * (index - shard.tensors.start);
        let bytes: Vec<u8> = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
        let out = &self.files[place.shard];
        out.with_file(|file| file.write_all_at(&bytes, at as u64))
            .map_err(|e| Error::io(&out.target, "write", self.layout.total_size(), e))
    }

    /// Whether the file of shard `index` has its final name already.
    pub fn is_in_place(&self, index: usize) -> bool {
        self.files.get(index).is_some_and(|f| f.in_place)
    }

    /// Waits until everything that was written so far is on the disk.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::NoSpace`].
    pub fn sync(&self) -> Result<(), Error> {
        for out in self.files.iter().filter(|f| !f.in_place) {
            out.with_file(File::sync_data)
                .map_err(|e| Error::io(&out.target, "write", self.layout.total_size(), e))?;
        }
        Ok(())
    }

    /// Has the system begin to write what was written so far to the disk, without waiting: the disk works while
    /// other bytes are made, and whoever waits for it in the end waits for the rest only.
    ///
    /// # Errors
    /// [`Error::Io`] for a file that can no longer be opened.
    pub fn begin_sync(&self) -> Result<(), Error> {
        for out in self.files.iter().filter(|f| !f.in_place) {
            out.with_file(|file| {
                write_out::begin(file);
                Ok(())
            })
            .map_err(|e| Error::io(&out.target, "write", self.layout.total_size(), e))?;
        }
        Ok(())
    }

    /// Removes the partial files.
    pub fn discard(mut self) {
        self.stays = false;
    }

    fn place_of(&self, index: usize) -> Result<&Place, Error> {
        let n_tensors = self.written.len();
        self.layout.places().get(index).ok_or(Error::WriteIndex { index, n_tensors })
    }

    /// The file, and the offset in it, of `len` bytes at `offset` of tensor `index`.
    fn place(&self, index: usize, offset: u64, len: u64) -> Result<(&OutFile, u64), Error> {
        let place = self.place_of(index)?;
        if offset.checked_add(len).is_none_or(|end| end > place.size) {
            let tensor = self.layout.tensors()[index].name.clone();
            return Err(Error::WriteRange { tensor, offset, len, size: place.size });
        }
        Ok((&self.files[place.shard], place.offset + offset))
    }

    /// Bytes of tensor `index` that have been written; 0 for an index that is not in the plan.
    pub fn written(&self, index: usize) -> u64 {
        if index < self.written.len() { self.ranges(index).covered() } else { 0 }
    }

    /// Checks that every tensor is complete, waits until everything is on the disk, and gives all files their final
    /// names, which it returns. The first shard is renamed last, so that a set whose first shard exists is
    /// complete.
    ///
    /// # Errors
    /// [`Error::Incomplete`], [`Error::Io`], [`Error::NoSpace`]. Files that were not renamed yet are treated as
    /// when the writer is dropped.
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
        for out in self.files.iter().filter(|f| !f.in_place) {
            out.with_file(File::sync_all).map_err(|e| Error::io(&out.target, "write", needed, e))?;
        }
        // an earlier run may have begun a partial file beside one that stays
        for out in self.files.iter().filter(|f| f.in_place) {
            let _ = fs::remove_file(&out.temporary);
        }
        for out in self.files.iter_mut().rev().filter(|f| !f.in_place) {
            fs::rename(&out.temporary, &out.target)
                .map_err(|e| Error::io(&out.target, "rename the finished file to", needed, e))?;
            out.in_place = true;
        }
        if let Some(directory) = self.files.first().map(|f| directory_of(&f.target)) {
            // makes the new names durable; where a file system cannot do that, the files are renamed all the same
            let _ = File::open(directory).and_then(|d| d.sync_all());
        }
        Ok(self.files.iter().map(|f| f.target.clone()).collect())
    }

    fn ranges(&self, index: usize) -> std::sync::MutexGuard<'_, Ranges> {
        // a poisoned lock is harmless, because a panic leaves the set as it was before or after an insertion
        self.written[index].lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        for out in self.files.iter().filter(|f| !f.in_place && !self.stays) {
            // nothing better can be done about a temporary that cannot be removed
            let _ = fs::remove_file(&out.temporary);
        }
    }
}

impl OutFile {
    fn with_file<T>(&self, work: impl FnOnce(&File) -> io::Result<T>) -> io::Result<T> {
        match &self.open {
            Some(file) => work(file),
            None => work(&OpenOptions::new().read(true).write(true).open(&self.temporary)?),
        }
    }
}

/// Names of the files of a layout that is written to `target`.
///
/// # Errors
/// [`Error::TargetName`].
pub fn target_paths(target: &Path, layout: &Layout) -> Result<Vec<PathBuf>, Error> {
    let unnamed = || Error::TargetName { path: target.to_path_buf() };
    let name = target.file_name().ok_or_else(unnamed)?;
    if !layout.is_split() {
        // of a symbolic link, the file that it leads to is replaced, not the link
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

/// Where [`Writer::resume`] keeps the file of `target` until it is complete: `NAME.part` beside it.
pub fn partial_path(target: &Path) -> PathBuf {
    beside(target, ".part")
}

/// The path beside `target` whose name is `NAME` with `ending`. Where that would be too long, it has the beginning
/// of `NAME` and a hash of all of it instead.
pub fn beside(target: &Path, ending: &str) -> PathBuf {
    let name = target.file_name().unwrap_or_default();
    if name.len() + ending.len() <= MAX_NAME {
        let mut name = name.to_os_string();
        name.push(ending);
        return target.with_file_name(name);
    }
    // FNV-1a, because another version of the program must find the same name again
    let hash = name
        .as_encoded_bytes()
        .iter()
        .fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0000_0100_0000_01b3));
    target.with_file_name(format!("{}~{hash:016x}{ending}", begin_of(&name.to_string_lossy())))
}

/// The part of a name that the name of a temporary file repeats.
fn begin_of(name: &str) -> String {
    name.char_indices().take_while(|(at, c)| at + c.len_utf8() <= MAX_NAME_PART).map(|(_, c)| c).collect()
}

/// Fails if the disk cannot hold the output. `sizes` has for each file the bytes that it needs and those that it
/// occupies already.
fn check_room(target: &Path, sizes: Vec<(u64, u64)>) -> Result<(), Error> {
    let needed_bytes: u64 = sizes.iter().map(|(size, has)| size.saturating_sub(*has)).sum();
    match disk::free_bytes(directory_of(target)) {
        Some(free) if free < needed_bytes => Err(Error::NoSpace {
            path: target.to_path_buf(),
            needed_bytes,
            free_bytes: Some(free),
            source: io::Error::from(rustix::io::Errno::NOSPC),
        }),
        _ => Ok(()),
    }
}

/// Refuses targets that renaming would destroy or cannot replace.
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

/// Creates a hidden file with a name of its own beside `target`.
fn create_temporary(target: &Path) -> io::Result<(PathBuf, File)> {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    let part = begin_of(&name);
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
