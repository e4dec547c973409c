//! [`Bytes`]: a view of mapped or owned memory that keeps the memory alive.

use std::fmt;
use std::io;
use std::ops::{Deref, Range};
use std::sync::Arc;

use crate::mapping::Backing;

/// A read-only run of bytes of a mapped file (or of owned memory). Cloning and slicing copy no
/// data; the memory stays as long as any view of it.
///
/// A mapped view reads the file itself: if a program truncates the file meanwhile, the next
/// access is fatal (`SIGBUS`), as with any memory map. Replacing the file by renaming is harmless.
#[derive(Clone)]
pub struct Bytes {
    backing: Arc<Backing>,
    start: usize,
    len: usize,
}

impl Bytes {
    pub(crate) fn whole(backing: Backing) -> Bytes {
        let len = backing.as_slice().len();
        Bytes { backing: Arc::new(backing), start: 0, len }
    }

    /// The bytes `range` of this view; `None` when it does not lie within.
    pub fn slice(&self, range: Range<usize>) -> Option<Bytes> {
        if range.start > range.end || range.end > self.len {
            return None;
        }
        let start = self.start + range.start;
        Some(Bytes { backing: Arc::clone(&self.backing), start, len: range.end - range.start })
    }

    /// Asks the system to read these bytes ahead (`madvise` `WILLNEED`). Returns at once. If the system refuses,
    /// the bytes are read when they are accessed.
    pub fn will_need(&self) {
        self.backing.will_need(self.start, self.len);
    }

    /// Tells the system that these bytes are not needed soon, so that they do not count as memory
    /// of this process. Views stay valid: accessing them reads the file again.
    pub fn release(&self) {
        self.backing.release(self.start, self.len);
    }

    /// Copies bytes from `start` on, which must lie within. They are read from the file, not by way of the mapping, if
    /// its descriptor was kept.
    pub(crate) fn read_into(&self, start: usize, out: &mut [u8]) -> io::Result<()> {
        assert!(start + out.len() <= self.len, "{} bytes from {start} of {}", out.len(), self.len);
        self.backing.read_into(self.start + start, out)
    }

    /// Whether the bytes are a mapped file (not owned memory).
    pub fn is_mapped(&self) -> bool {
        matches!(*self.backing, Backing::Mapped(..))
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // in range by construction: `whole` and `slice` are the only ways to make one
        &self.backing.as_slice()[self.start..self.start + self.len]
    }
}

impl AsRef<[u8]> for Bytes {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Bytes {
        Bytes::whole(Backing::Owned(bytes))
    }
}

impl PartialEq for Bytes {
    fn eq(&self, other: &Bytes) -> bool {
        **self == **other
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bytes({} at {})", self.len, self.start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_stay_within_their_parent() {
        let all = Bytes::from((0..10u8).collect::<Vec<_>>());
        let part = all.slice(2..6).expect("in range");
        assert_eq!(*part, [2, 3, 4, 5]);
        assert_eq!(*part.slice(1..2).expect("in range"), [3]);
        assert!(part.slice(0..5).is_none());
        #[allow(clippy::reversed_empty_ranges)]
        let reversed = part.slice(3..2);
        assert!(reversed.is_none());
        part.will_need();
        part.release();
        drop(all);
        assert_eq!(part.len(), 4);
    }
}
