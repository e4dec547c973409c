//! Memory maps.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use memmap2::{Advice, Mmap, UncheckedAdvice};

use crate::bytes::Bytes;
use crate::error::Error;

/// Bytes that one page table maps. When a page is accessed, Linux also maps cached pages around it, at most this many
/// bytes.
const FAULT_AROUND: usize = 2 << 20;

/// The memory that [`Bytes`] are views of.
pub(crate) enum Backing {
    /// A file, whose descriptor is kept where parts of it are to be read without mapping them.
    Mapped(Mmap, Option<File>),
    /// Anonymous memory of whole pages.
    Pages(Mmap),
    Owned(Vec<u8>),
}

impl Backing {
    pub(crate) fn as_slice(&self) -> &[u8] {
        match self {
            Backing::Mapped(map, _) | Backing::Pages(map) => map,
            Backing::Owned(bytes) => bytes,
        }
    }

    pub(crate) fn will_need(&self, start: usize, len: usize) {
        if let Backing::Mapped(map, _) = self
            && len > 0
        {
            // only advice: where the kernel refuses it, reading is slower but still correct
            let _ = map.advise_range(Advice::WillNeed, start, len);
        }
    }

    /// Copies bytes from `start` on, from the file if its descriptor was kept.
    pub(crate) fn read_into(&self, start: usize, out: &mut [u8]) -> io::Result<()> {
        match self {
            Backing::Mapped(_, Some(file)) => file.read_exact_at(out, start as u64),
            _ => {
                out.copy_from_slice(&self.as_slice()[start..start + out.len()]);
                Ok(())
            }
        }
    }

    pub(crate) fn release(&self, start: usize, len: usize) {
        if let Backing::Mapped(map, _) = self
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
    let (map, _) = mapped(path)?;
    Ok(Bytes::whole(Backing::Mapped(map, None)))
}

/// Maps a regular file as a whole and keeps its descriptor, so that [`Bytes::read_into`] reads the file: a page that
/// is touched in a mapping brings up to 2 MiB around it into the process.
///
/// # Errors
/// As [`map_file`].
pub(crate) fn map_open_file(path: &Path) -> Result<Bytes, Error> {
    let (map, file) = mapped(path)?;
    Ok(Bytes::whole(Backing::Mapped(map, Some(file))))
}

fn mapped(path: &Path) -> Result<(Mmap, File), Error> {
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
    Ok((map, file))
}
