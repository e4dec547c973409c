//! [`PageBuffer`]: memory for weights in huge pages.

use memmap2::{Advice, MmapMut, MmapOptions};

use crate::bytes::Bytes;
use crate::mapping::Backing;

/// Zeroed memory of whole pages, which are huge pages where the system grants them. Weights of which scattered
/// pieces (experts) are read are read faster from it than from a mapped file, which has pages of 4 KiB.
#[derive(Debug)]
pub struct PageBuffer(MmapMut);

impl PageBuffer {
    /// Allocates `len` bytes (at least one page).
    ///
    /// # Errors
    /// That of the system when there is not as much address space or memory.
    pub fn new(len: usize) -> std::io::Result<PageBuffer> {
        let map = MmapOptions::new().len(len.max(1)).map_anon()?;
        #[cfg(target_os = "linux")]
        {
            // only advice: where it is refused the memory has small pages
            let _ = map.advise(Advice::HugePage);
        }
        Ok(PageBuffer(map))
    }

    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.0
    }

    /// Makes the memory read-only, to be shared.
    ///
    /// # Errors
    /// That of the system when it refuses to make the pages read-only.
    pub fn freeze(self) -> std::io::Result<Bytes> {
        Ok(Bytes::whole(Backing::Pages(self.0.make_read_only()?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_can_be_read_when_frozen() {
        let mut buffer = PageBuffer::new(5000).expect("two pages");
        assert!(buffer.as_mut_slice().iter().all(|b| *b == 0));
        buffer.as_mut_slice()[4999] = 7;
        let bytes = buffer.freeze().expect("frozen");
        assert_eq!((bytes.len(), bytes[4999], bytes.is_mapped()), (5000, 7, false));
        bytes.release();
        assert_eq!(bytes[4999], 7, "released memory has no file to come back from");
    }
}
