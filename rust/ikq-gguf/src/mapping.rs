//! Memory maps.

use std::fs::{self, File};
use std::path::Path;

use memmap2::{Advice, Mmap, UncheckedAdvice};

use crate::bytes::Bytes;
use crate::error::Error;

/// Bytes that one page table maps. When a page is accessed, Linux also maps cached pages around it, at most this many
/// bytes.
const FAULT_AROUND: usize = 2 << 20;

/// The memory that [`Bytes`] are views of.
pub(crate) enum Backing {
    Mapped(Mmap),
    /// Anonymous memory of whole pages.
    Pages(Mmap),
    Owned(Vec<u8>),
}

impl Backing {
    pub(crate) fn as_slice(&self) -> &[u8] {
        match self {
            Backing::Mapped(map) | Backing::Pages(map) => map,
            Backing::Owned(bytes) => bytes,
        }
    }

    pub(crate) fn will_need(&self, start: usize, len: usize) {
        if let Backing::Mapped(map) = self
            && len > 0
        {
            // only advice: where the kernel refuses it, reading is slower but still correct
            let _ = map.advise_range(Advice::WillNeed, start, len);
        }
    }

    pub(crate) fn release(&self, start: usize, len: usize) {
        if let Backing::Mapped(map) = self
            && len > 0
        {
            // whole page tables, because accessing a page has mapped neighbours too, even some that were released
            // before
            let address = map.as_ptr() as usize;
            let first = ((address + start) / FAULT_AROUND * FAULT_AROUND).max(address) - address;
            let end = (address + start + len).next_multiple_of(FAULT_AROUND) - address;
            let (start, len) = (first, end.min(map.len()) - first);
            // SAFETY: dropping pages is dangerous for memory whose content lives nowhere else. This is
            // a read-only mapping of a file: a dropped page is read from the file again when touched.
            let _ = unsafe { map.unchecked_advise_range(UncheckedAdvice::DontNeed, start, len) };
        }
    }
}

/// Maps a regular file as a whole and closes its descriptor.
///
/// # Errors
/// [`Error::Io`], [`Error::IsDirectory`], [`Error::NotRegularFile`], [`Error::Empty`].
pub(crate) fn map_file(path: &Path) -> Result<Bytes, Error> {
    let io = |action| move |e| Error::io(path, action, 0, e);
    // checked before opening, because opening a pipe would wait for its other end
    let found = fs::metadata(path).map_err(io("open"))?;
    if found.is_dir() {
        return Err(Error::IsDirectory { path: path.to_path_buf() });
    }
    if !found.is_file() {
        return Err(Error::NotRegularFile { path: path.to_path_buf() });
    }
    let file = File::open(path).map_err(io("open"))?;
    if file.metadata().map_err(io("open"))?.len() == 0 {
        return Err(Error::Empty { path: path.to_path_buf() });
    }
    // SAFETY: the mapping is read-only and private to this value. That nobody truncates or rewrites
    // the file meanwhile cannot be enforced on Linux; `Bytes` documents it. All parsing is checked
    // anew against the bytes as they are, and nothing caches a claim about them (such as "is UTF-8").
    let map = unsafe { Mmap::map(&file) }.map_err(io("map"))?;
    Ok(Bytes::whole(Backing::Mapped(map)))
}
