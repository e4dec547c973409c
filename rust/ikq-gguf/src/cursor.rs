//! [`Cursor`]: a reading position in untrusted bytes, which checks every step.

use std::ops::Range;

use crate::error::Fault;

/// Reads little-endian values from `bytes`; `base` is the file offset of the first byte.
pub(crate) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
    base: u64,
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Cursor<'a> {
        Cursor { bytes, at: 0, base: 0 }
    }

    /// File offset of the next byte.
    pub(crate) fn offset(&self) -> u64 {
        self.base + self.at as u64
    }

    /// Index of the next byte.
    pub(crate) fn at(&self) -> usize {
        self.at
    }

    pub(crate) fn remaining(&self) -> u64 {
        (self.bytes.len() - self.at) as u64
    }

    /// The index range of the next `len` bytes, which are skipped.
    ///
    /// # Errors
    /// [`Fault::Truncated`] naming `what`.
    pub(crate) fn skip(&mut self, len: u64, what: &'static str) -> Result<Range<usize>, Fault> {
        if len > self.remaining() {
            return Err(Fault::Truncated {
                offset: self.offset(),
                what,
                of: None,
                needed: len,
                file_len: self.base + self.bytes.len() as u64,
            });
        }
        let start = self.at;
        self.at += len as usize; // fits: not more than what remains of a slice
        Ok(start..self.at)
    }

    pub(crate) fn take(&mut self, len: u64, what: &'static str) -> Result<&'a [u8], Fault> {
        let range = self.skip(len, what)?;
        Ok(&self.bytes[range])
    }

    pub(crate) fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], Fault> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N as u64, what)?);
        Ok(out)
    }

    pub(crate) fn u32(&mut self, what: &'static str) -> Result<u32, Fault> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self, what: &'static str) -> Result<u64, Fault> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// Reads a count of things that take at least `min_bytes` each. It is refused when the remaining bytes
    /// cannot hold that many, or when it is above `cap`.
    ///
    /// # Errors
    /// [`Fault::Truncated`], [`Fault::Count`].
    pub(crate) fn count(&mut self, what: &'static str, min_bytes: u64, cap: u64) -> Result<u64, Fault> {
        let offset = self.offset();
        let count = self.u64(what)?;
        self.check_count(offset, count, what, min_bytes, cap)
    }

    pub(crate) fn check_count(
        &self,
        offset: u64,
        count: u64,
        what: &'static str,
        min_bytes: u64,
        cap: u64,
    ) -> Result<u64, Fault> {
        let max = cap.min(self.remaining() / min_bytes);
        match count <= max {
            true => Ok(count),
            false => Err(Fault::Count { offset, what, of: None, count, max }),
        }
    }

    /// Reads a key or tensor name.
    ///
    /// # Errors
    /// [`Fault::Truncated`], [`Fault::NameLength`], [`Fault::NameUtf8`].
    pub(crate) fn name(&mut self, what: &'static str) -> Result<&'a str, Fault> {
        let offset = self.offset();
        let len = self.u64(what)?;
        if len > crate::MAX_NAME_BYTES {
            return Err(Fault::NameLength { offset, what, len, max: crate::MAX_NAME_BYTES });
        }
        let bytes = self.take(len, what)?;
        std::str::from_utf8(bytes).map_err(|_| {
            let lossy = String::from_utf8_lossy(&bytes[..bytes.len().min(64)]).into_owned();
            Fault::NameUtf8 { offset, what, lossy }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn running_out_names_place_and_need() {
        let mut c = Cursor::new(&[1, 0, 0, 0, 9]);
        assert_eq!(c.u32("a number"), Ok(1));
        let short = Fault::Truncated { offset: 4, what: "a count", of: None, needed: 8, file_len: 5 };
        assert_eq!(c.u64("a count"), Err(short));
        assert_eq!(c.at(), 4);
        assert!(matches!(c.skip(u64::MAX, "x"), Err(Fault::Truncated { needed: u64::MAX, .. })));
    }

    #[test]
    fn names_have_a_limit_and_are_text() {
        let mut long = 70_000u64.to_le_bytes().to_vec();
        long.resize(80_000, b'x');
        assert!(matches!(Cursor::new(&long).name("key"), Err(Fault::NameLength { len: 70_000, .. })));
        let mut bad = 2u64.to_le_bytes().to_vec();
        bad.extend([0xff, b'a']);
        assert!(matches!(Cursor::new(&bad).name("key"), Err(Fault::NameUtf8 { offset: 0, .. })));
    }
}
