//! Hashes (XXH3, 64 bits) by which a run knows again what an earlier one has done.
//!
//! | of | tells |
//! |---|---|
//! | a unit's source, a unit's result | whether bytes are still what they were |
//! | a tensor's recipe | whether the same result is wanted of it: types, shape, importance, [`ENCODERS`] |
//! | a plan | whether a partial output is of the same command |
//!
//! They are against damage and mistakes, not against malice.

use xxhash_rust::xxh3::{Xxh3, xxh3_64};

/// Number of what the encoders write: it changes with every change of any encoder's bytes, so that nothing made by
/// older ones is mixed in. A test knows the bytes.
pub const ENCODERS: u64 = 3;

/// Hash of bytes.
pub(crate) fn of(bytes: &[u8]) -> u64 {
    xxh3_64(bytes)
}

/// Hash of bytes that come in parts: that of all of them joined.
pub(crate) struct OfParts(Xxh3);

impl OfParts {
    pub fn new() -> OfParts {
        OfParts(Xxh3::new())
    }

    pub fn part(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub fn end(&self) -> u64 {
        self.0.digest()
    }
}

/// Hash of several things, each told from the next.
pub(crate) struct Hasher(Xxh3);

impl Hasher {
    pub fn new(purpose: &str) -> Hasher {
        let mut hasher = Hasher(Xxh3::new());
        hasher.bytes(purpose.as_bytes());
        hasher
    }

    pub fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.0.update(bytes);
    }

    pub fn number(&mut self, n: u64) {
        self.0.update(&n.to_le_bytes());
    }

    pub fn floats(&mut self, x: &[f32]) {
        self.number(x.len() as u64);
        x.iter().for_each(|v| self.0.update(&v.to_bits().to_le_bytes()));
    }

    pub fn end(&self) -> u64 {
        self.0.digest()
    }
}

/// Hash of a tensor from the hashes of its units, in order.
pub(crate) fn joined(parts: impl IntoIterator<Item = u64>) -> u64 {
    let mut hasher = Hasher::new("units");
    parts.into_iter().for_each(|h| hasher.number(h));
    hasher.end()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_one_run_of_bytes() {
        let bytes: Vec<u8> = (0..3000u32).map(|i| (i * i % 253) as u8).collect();
        for n in [0, 1, 240, 241, 1000, 3000] {
            for step in [1, 7, 512, 4000] {
                let mut hash = OfParts::new();
                bytes[..n].chunks(step).for_each(|part| hash.part(part));
                assert_eq!(hash.end(), of(&bytes[..n]), "{n} bytes, {step} at a time");
            }
        }
    }

    #[test]
    fn what_is_told_apart() {
        assert_eq!(of(b""), 0x2d06_8005_38d3_94c2, "XXH3 of nothing, from its specification");
        let two = |a: &[u8], b: &[u8]| {
            let mut h = Hasher::new("t");
            h.bytes(a);
            h.bytes(b);
            h.end()
        };
        assert_ne!(two(b"ab", b"c"), two(b"a", b"bc"));
        assert_ne!(joined([1, 2]), joined([2, 1]));
        assert_eq!(joined([1, 2]), joined([1, 2]));
    }
}
