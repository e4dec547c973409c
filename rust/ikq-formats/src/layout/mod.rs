//! What the bits of a block are: a [`Layout`] maps the integer fields of a block (scales, codes,
//! signs, ...) to bit positions, so that packing, unpacking and interleaving are one piece of code
//! for all types.
//!
//! ```text
//! block bytes  --unpack-->  values: [u32]   (all fields, concatenated in the layout's order)
//! values       --pack---->  block bytes     (every bit of the block is written)
//! ```
//! A field is `count` numbers of `bits` bits; each number is made of [`Part`]s, runs of bits inside
//! one byte. Signed numbers stand in the value array as two's complement in their `bits` bits.
//! Family files write a layout in the notation of the format's description: "element i is the
//! nibble i/16 of byte 2 + i%16". Where a format's codes are not a plain rearrangement of bits
//! (packed trits, parity codes, scrambled signs), the field has a [`Recode`] or the layout a
//! [`Codec`].
//!
//! A layout of an interleaved type describes a whole group: `rows` blocks side by side, its fields
//! repeated per row (row 0's fields first).
//!
//! `mod.rs`: the types, pack and unpack; `build.rs`: the builder and its proof that parts tile the
//! block; `runs.rs`: parts joined to regular runs, which is what makes packing fast; `words.rs`: the
//! block as words, for packing many blocks side by side.

mod build;
mod runs;
mod words;

pub use build::Builder;
pub use words::{Piece, Word};

use crate::error::Error;
use crate::types::QuantType;
use runs::Run;

/// A run of bits of one number inside one byte of the block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Byte of the block (or group).
    pub byte: u32,
    /// Lowest bit of the run in that byte.
    pub shift: u8,
    /// Bits in the run (1..=8).
    pub width: u8,
    /// Lowest bit of the run in the number.
    pub lo: u8,
    /// Exclusive-or applied to the run as stored (offset-binary against two's complement).
    pub flip: u8,
}

/// `width` bits from bit `shift` of byte `byte`, the lowest bits of the number.
pub const fn bits(byte: usize, shift: usize, width: usize) -> Part {
    Part { byte: byte as u32, shift: shift as u8, width: width as u8, lo: 0, flip: 0 }
}

/// Bit `n` of byte `byte`.
pub const fn bit(byte: usize, n: usize) -> Part {
    bits(byte, n, 1)
}

/// Nibble `n` (0 low, 1 high) of byte `byte`.
pub const fn nib(byte: usize, n: usize) -> Part {
    bits(byte, 4 * n, 4)
}

/// All of byte `byte`.
pub const fn byte(byte: usize) -> Part {
    bits(byte, 0, 8)
}

impl Part {
    /// The same run holding the number's bits from `lo` up.
    pub const fn at(self, lo: usize) -> Part {
        Part { lo: lo as u8, ..self }
    }

    /// The same run stored with these bits inverted.
    pub const fn flipped(self, flip: u8) -> Part {
        Part { flip, ..self }
    }
}

/// The parts of a little-endian number of `n` bytes at `at`.
pub fn le(at: usize, n: usize) -> Vec<Part> {
    (0..n).map(|k| byte(at + k).at(8 * k)).collect()
}

/// The parts of the `width` bits from bit `from` of a little-endian word that begins at byte `at`.
pub fn word_bits(at: usize, from: usize, width: usize) -> Vec<Part> {
    let mut parts = Vec::new();
    let mut lo = 0;
    while lo < width {
        let (byte, shift) = (at + (from + lo) / 8, (from + lo) % 8);
        let run = (8 - shift).min(width - lo);
        parts.push(bits(byte, shift, run).at(lo));
        lo += run;
    }
    parts
}

/// A bijection between a field's numbers as users of the layout see them and as stored.
#[derive(Clone, Copy)]
pub struct Recode {
    pub to_stored: fn(u32) -> u32,
    pub from_stored: fn(u32) -> u32,
}

/// `count` numbers of `bits` bits each.
#[derive(Clone)]
pub struct Field {
    pub name: &'static str,
    pub count: usize,
    pub bits: u32,
    /// Legal values are `0..levels` (2^bits unless the format allows fewer).
    pub levels: u64,
    /// The number is two's complement in `bits` bits.
    pub signed: bool,
    pub recode: Option<Recode>,
}

/// Packs and unpacks a block whose codes are not a rearrangement of bits.
#[derive(Clone, Copy)]
pub struct Codec {
    /// Packs values into a block, which holds zeros before.
    pub pack: fn(&[u32], &mut [u8]),
    /// Unpacks a block into values.
    pub unpack: fn(&[u8], &mut [u32]),
    /// Index of the first element whose value, legal by itself, cannot be stored together with the others.
    pub clash: fn(&[u32]) -> Option<usize>,
}

/// The bit layout of one block (of one group of blocks for interleaved types).
#[derive(Clone)]
pub struct Layout {
    /// Elements of one row covered by the block.
    pub block_size: usize,
    /// Rows stored together (1 unless interleaved).
    pub rows: usize,
    /// Bytes of the block, for a group of all its rows.
    pub bytes: usize,
    /// Fields of one row's block.
    pub fields: Vec<Field>,
    /// Parts of every number: row, field, index, run. `parts[starts[i]..starts[i + 1]]` is number i.
    parts: Vec<Part>,
    starts: Vec<u32>,
    /// The parts of the fields without a recode, joined to runs.
    runs: Vec<Run>,
    /// The numbers of fields with a recode, over all rows.
    recoded: Vec<(u32, Recode)>,
    codec: Option<Codec>,
    /// The whole block, where it is a plain rearrangement of one row's bits.
    words: Option<Vec<Word>>,
}

impl Layout {
    /// Begins the layout of a block of `bytes` bytes (of one row) for `block_size` elements.
    pub fn block(block_size: usize, bytes: usize) -> Builder {
        Builder::new(block_size, 1, bytes)
    }

    /// How many numbers one row's block has: the length of the value array.
    pub fn n_values(&self) -> usize {
        self.fields.iter().map(|f| f.count).sum()
    }

    /// Where a field's numbers begin in the value array, with its description.
    pub fn field(&self, name: &str) -> Option<(usize, &Field)> {
        let mut start = 0;
        for f in &self.fields {
            if f.name == name {
                return Some((start, f));
            }
            start += f.count;
        }
        None
    }

    /// Stored bits of number `i` of row `row` (as the layout's parts say; recodes are not applied).
    /// Empty for blocks with a codec.
    pub fn parts(&self, row: usize, i: usize) -> &[Part] {
        self.parts_of(row * self.n_values() + i)
    }

    /// The block as words of shifted numbers; `None` for groups, and where a recode or codec has a part in
    /// it. A block of which these are made up has the bytes that [`Layout::pack`] writes.
    pub fn words(&self) -> Option<&[Word]> {
        self.words.as_deref()
    }

    fn parts_of(&self, n: usize) -> &[Part] {
        &self.parts[self.starts[n] as usize..self.starts[n + 1] as usize]
    }

    /// Checks that every number is legal, naming the first that is not. `values` are those of one
    /// or more blocks.
    ///
    /// # Errors
    /// [`Error::FieldValue`]; [`Error::CodesClash`] where legal numbers cannot stand together.
    pub fn check(&self, ty: QuantType, values: &[u32]) -> Result<(), Error> {
        for block in values.chunks_exact(self.n_values()) {
            let mut rest = block;
            for f in &self.fields {
                let (mine, tail) = rest.split_at(f.count);
                rest = tail;
                if let Some(index) = mine.iter().position(|v| u64::from(*v) >= f.levels) {
                    return Err(Error::FieldValue {
                        ty,
                        field: f.name,
                        index,
                        value: mine[index],
                        levels: f.levels,
                    });
                }
            }
            if let Some(index) = self.codec.and_then(|codec| (codec.clash)(block)) {
                return Err(Error::CodesClash { ty, index });
            }
        }
        Ok(())
    }

    /// Writes one block (a group: the values of its rows one after another). Every byte is written;
    /// numbers must be legal (bits above a number's width are dropped).
    pub fn pack(&self, values: &[u32], block: &mut [u8]) {
        assert_eq!(values.len(), self.rows * self.n_values());
        assert_eq!(block.len(), self.bytes);
        block.fill(0);
        if let Some(codec) = self.codec {
            return (codec.pack)(values, block);
        }
        for run in &self.runs {
            run.pack(values, block);
        }
        for (n, recode) in &self.recoded {
            let v = (recode.to_stored)(values[*n as usize]);
            for p in self.parts_of(*n as usize) {
                let run = ((v >> p.lo) as u8 ^ p.flip) & mask(p.width);
                block[p.byte as usize] |= run << p.shift;
            }
        }
    }

    /// Reads one block (or group); the inverse of [`Layout::pack`].
    pub fn unpack(&self, block: &[u8], values: &mut [u32]) {
        assert_eq!(values.len(), self.rows * self.n_values());
        assert_eq!(block.len(), self.bytes);
        if let Some(codec) = self.codec {
            return (codec.unpack)(block, values);
        }
        values.fill(0);
        for run in &self.runs {
            run.unpack(block, values);
        }
        for (n, recode) in &self.recoded {
            let mut v = 0;
            for p in self.parts_of(*n as usize) {
                let run = ((block[p.byte as usize] >> p.shift) ^ p.flip) & mask(p.width);
                v |= u32::from(run) << p.lo;
            }
            values[*n as usize] = (recode.from_stored)(v);
        }
    }
}

pub(crate) const fn mask(width: u8) -> u8 {
    (0xff_u16 >> (8 - width)) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    fn toy() -> Layout {
        Layout::block(4, 4)
            .field("d", 1, 16, |_| le(0, 2))
            .field("q", 4, 4, |i| [nib(2 + i % 2, i / 2)])
            .build()
    }

    #[test]
    fn a_block_packs_to_the_bytes_the_description_says() {
        let mut block = [0xff; 4];
        toy().pack(&[0x3c01, 1, 2, 3, 4], &mut block);
        assert_eq!(block, [0x01, 0x3c, 0x31, 0x42]);
        let mut values = [0; 5];
        toy().unpack(&block, &mut values);
        assert_eq!(values, [0x3c01, 1, 2, 3, 4]);
    }

    #[test]
    fn bits_of_a_word_may_cross_bytes() {
        assert_eq!(word_bits(6, 6, 11), [bits(6, 6, 2), byte(7).at(2), bit(8, 0).at(10)]);
    }

    #[test]
    fn an_illegal_number_is_named() {
        let error = toy().check(QuantType::Q4_0, &[0, 0, 0, 16, 0]);
        let expected = Error::FieldValue { ty: QuantType::Q4_0, field: "q", index: 2, value: 16, levels: 16 };
        assert_eq!(error, Err(expected));
    }

    #[test]
    #[should_panic(expected = "used twice")]
    fn overlapping_fields_are_found() {
        Layout::block(1, 1).field("a", 1, 8, |_| [byte(0)]).field("b", 1, 4, |_| [nib(0, 1)]).build();
    }

    #[test]
    #[should_panic(expected = "belong to no field")]
    fn a_gap_is_found() {
        Layout::block(1, 1).field("a", 1, 4, |_| [nib(0, 0)]).build();
    }
}
