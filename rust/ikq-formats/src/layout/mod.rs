//! What the bits of a block are: a [`Layout`] maps the integer fields of a block (scales, codes,
//! signs, ...) to bit positions, so that packing, unpacking and interleaving are one piece of code
//! for all types.
//!
//! ```text
//! block bytes  --unpack-->  values: [u32]   (all fields, concatenated in the layout's order)
//! values       --pack---->  block bytes     (every bit of the block is written)
//! ```
//! A field is `count` numbers of `bits` bits; each number is made of [`Part`]s, runs of bits inside
//! one byte. Family files write a layout in the notation of the format's description: "element i is
//! the nibble i/16 of byte 2 + i%16". Where a format's codes are not a plain rearrangement of bits
//! (packed trits, parity codes, scrambled signs), the field has a [`Recode`] or the layout a codec.
//!
//! A layout of an interleaved type describes a whole group: `rows` blocks side by side, its fields
//! repeated per row (row 0's fields first).

use crate::error::Error;
use crate::types::QuantType;

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
    /// values -> block; the block arrives zeroed.
    pub pack: fn(&[u32], &mut [u8]),
    /// block -> values.
    pub unpack: fn(&[u8], &mut [u32]),
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
    codec: Option<Codec>,
}

impl Layout {
    /// Begins the layout of a block of `bytes` bytes (of one row) for `block_size` elements.
    pub fn block(block_size: usize, bytes: usize) -> Builder {
        Builder::group(block_size, 1, bytes)
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
    pub fn parts(&self, row: usize, i: usize) -> &[Part] {
        let n = row * self.n_values() + i;
        &self.parts[self.starts[n] as usize..self.starts[n + 1] as usize]
    }

    /// Checks that every number is legal, naming the first that is not.
    ///
    /// # Errors
    /// [`Error::FieldValue`].
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
        }
        Ok(())
    }

    /// Writes one block (a group: the values of its rows one after another). Every byte is written;
    /// numbers must be legal (bits above a number's width are dropped).
    pub fn pack(&self, values: &[u32], block: &mut [u8]) {
        debug_assert_eq!(values.len(), self.rows * self.n_values());
        debug_assert_eq!(block.len(), self.bytes);
        block.fill(0);
        if let Some(codec) = self.codec {
            return (codec.pack)(values, block);
        }
        let mut i = 0;
        for _ in 0..self.rows {
            for f in &self.fields {
                for _ in 0..f.count {
                    let v = f.recode.map_or(values[i], |r| (r.to_stored)(values[i]));
                    for p in &self.parts[self.starts[i] as usize..self.starts[i + 1] as usize] {
                        let run = ((v >> p.lo) as u8 ^ p.flip) & mask(p.width);
                        block[p.byte as usize] |= run << p.shift;
                    }
                    i += 1;
                }
            }
        }
    }

    /// Reads one block (or group); the inverse of [`Layout::pack`].
    pub fn unpack(&self, block: &[u8], values: &mut [u32]) {
        debug_assert_eq!(values.len(), self.rows * self.n_values());
        debug_assert_eq!(block.len(), self.bytes);
        if let Some(codec) = self.codec {
            return (codec.unpack)(block, values);
        }
        let mut i = 0;
        for _ in 0..self.rows {
            for f in &self.fields {
                for _ in 0..f.count {
                    let mut v = 0;
                    for p in &self.parts[self.starts[i] as usize..self.starts[i + 1] as usize] {
                        let run = (block[p.byte as usize] >> p.shift ^ p.flip) & mask(p.width);
                        v |= u32::from(run) << p.lo;
                    }
                    values[i] = f.recode.map_or(v, |r| (r.from_stored)(v));
                    i += 1;
                }
            }
        }
    }
}

const fn mask(width: u8) -> u8 {
    (0xff_u16 >> (8 - width)) as u8
}

/// Builds a [`Layout`] field by field; [`Builder::build`] proves that the parts tile the block.
pub struct Builder {
    block_size: usize,
    rows: usize,
    bytes: usize,
    fields: Vec<Field>,
    /// Parts by field, row, index.
    parts: Vec<Vec<Vec<Part>>>,
    codec: Option<Codec>,
    unused_bits: usize,
}

impl Builder {
    /// Begins the layout of a group of `rows` blocks of `bytes` bytes each.
    pub fn group(block_size: usize, rows: usize, bytes: usize) -> Builder {
        Builder {
            block_size,
            rows,
            bytes: rows * bytes,
            fields: Vec::new(),
            parts: Vec::new(),
            codec: None,
            unused_bits: 0,
        }
    }

    /// A field of `count` numbers of `bits` bits; `place(i)` gives the parts of number `i`.
    pub fn field<P: IntoIterator<Item = Part>>(
        self,
        name: &'static str,
        count: usize,
        bits: u32,
        place: impl Fn(usize) -> P,
    ) -> Builder {
        self.row_field(name, count, bits, |_, i| place(i))
    }

    /// A field of an interleaved group; `place(row, i)` gives the parts of number `i` of `row`.
    pub fn row_field<P: IntoIterator<Item = Part>>(
        mut self,
        name: &'static str,
        count: usize,
        bits: u32,
        place: impl Fn(usize, usize) -> P,
    ) -> Builder {
        self.parts.push(
            (0..self.rows)
                .flat_map(|row| (0..count).map(move |i| (row, i)))
                .map(|(row, i)| place(row, i).into_iter().collect())
                .collect(),
        );
        self.fields.push(Field { name, count, bits, levels: 1 << bits, signed: false, recode: None });
        self
    }

    fn last(&mut self) -> &mut Field {
        self.fields.last_mut().expect("a field was added before it is described")
    }

    /// The last field's numbers are two's complement.
    pub fn signed(mut self) -> Builder {
        self.last().signed = true;
        self
    }

    /// The last field's numbers are below `levels`.
    pub fn levels(mut self, levels: u64) -> Builder {
        self.last().levels = levels;
        self
    }

    /// The last field is stored under a bijection of its numbers.
    pub fn recode(mut self, recode: Recode) -> Builder {
        self.last().recode = Some(recode);
        self
    }

    /// The block is packed by a codec; the fields' parts are then not looked at.
    pub fn codec(mut self, codec: Codec) -> Builder {
        self.codec = Some(codec);
        self
    }

    /// That many bits of the block belong to no field.
    pub fn unused_bits(mut self, n: usize) -> Builder {
        self.unused_bits = n;
        self
    }

    /// The finished layout.
    ///
    /// # Panics
    /// When parts overlap, leave a gap, or do not add up to a field's bits: a mistake in the format's
    /// description, which every test run meets.
    pub fn build(self) -> Layout {
        if self.codec.is_none() {
            self.prove_tiling();
        }
        let n_rows = self.rows;
        let mut parts = Vec::new();
        let mut starts = vec![0];
        for row in 0..n_rows {
            for (f, numbers) in self.fields.iter().zip(&self.parts) {
                for runs in &numbers[row * f.count..(row + 1) * f.count] {
                    parts.extend_from_slice(runs);
                    starts.push(parts.len() as u32);
                }
            }
        }
        Layout {
            block_size: self.block_size,
            rows: self.rows,
            bytes: self.bytes,
            fields: self.fields,
            parts,
            starts,
            codec: self.codec,
        }
    }

    fn prove_tiling(&self) {
        let mut used = vec![0u8; self.bytes];
        for (f, numbers) in self.fields.iter().zip(&self.parts) {
            for runs in numbers {
                let mut number = 0u64;
                for p in runs {
                    let run = mask(p.width);
                    assert!(p.shift + p.width <= 8, "{}: a run crosses its byte", f.name);
                    let byte = &mut used[p.byte as usize];
                    assert_eq!(*byte & (run << p.shift), 0, "{}: byte {} used twice", f.name, p.byte);
                    *byte |= run << p.shift;
                    let part = u64::from(run) << p.lo;
                    assert_eq!(number & part, 0, "{}: a bit of a number is stored twice", f.name);
                    number |= part;
                }
                assert_eq!(number, (1 << f.bits) - 1, "{}: bits of a number are missing", f.name);
            }
        }
        let free: u32 = used.iter().map(|b| b.count_zeros()).sum();
        assert_eq!(free as usize, self.unused_bits, "bits of the block belong to no field");
    }
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
