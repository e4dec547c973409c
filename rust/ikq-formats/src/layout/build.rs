//! [`Builder`]: a layout is written field by field and proved to tile its block.

use super::runs::{self, Run};
use super::{Codec, Field, Layout, Part, Recode, mask};

/// Builds a [`Layout`] field by field; [`Builder::build`] proves that the parts tile the block.
pub struct Builder {
    block_size: usize,
    rows: usize,
    bytes: usize,
    fields: Vec<Field>,
    /// Parts by field, then by row and index.
    parts: Vec<Vec<Vec<Part>>>,
    codec: Option<Codec>,
}

impl Builder {
    pub(super) fn new(block_size: usize, rows: usize, bytes: usize) -> Builder {
        Builder { block_size, rows, bytes, fields: Vec::new(), parts: Vec::new(), codec: None }
    }

    /// Begins the layout of a group of `rows` blocks laid out as `base`: the same fields, placed
    /// anew with [`Builder::place`].
    pub fn group(base: &Layout, rows: usize) -> Builder {
        let mut group = Builder::new(base.block_size, rows, rows * base.bytes);
        group.parts = vec![Vec::new(); base.fields.len()];
        group.fields = base.fields.clone();
        group
    }

    /// Begins the layout of a group of `rows` pieces of `block_size` elements of a type whose block
    /// is one element; its single field then counts `block_size` numbers.
    pub fn group_of_elements(element: &Layout, rows: usize, block_size: usize) -> Builder {
        assert!(element.block_size == 1 && element.fields.len() == 1, "the type has blocks");
        let mut group = Builder::group(element, rows);
        group.block_size = block_size;
        group.bytes *= block_size;
        group.fields[0].count = block_size;
        group
    }

    /// A field of `count` numbers of `bits` bits; `place(i)` gives the parts of number `i`.
    pub fn field<P: IntoIterator<Item = Part>>(
        mut self,
        name: &'static str,
        count: usize,
        bits: u32,
        place: impl Fn(usize) -> P,
    ) -> Builder {
        self.fields.push(Field { name, count, bits, levels: 1 << bits, signed: false, recode: None });
        self.parts.push(Vec::new());
        self.place(name, |_, i| place(i))
    }

    /// Where the numbers of a group's field stand: `place(row, i)` gives the parts of number `i` of
    /// `row`.
    pub fn place<P: IntoIterator<Item = Part>>(
        mut self,
        name: &str,
        place: impl Fn(usize, usize) -> P,
    ) -> Builder {
        let i = self.index(name);
        let count = self.fields[i].count;
        self.parts[i] = (0..self.rows)
            .flat_map(|row| (0..count).map(move |i| (row, i)))
            .map(|(row, i)| place(row, i).into_iter().collect())
            .collect();
        self
    }

    fn index(&self, name: &str) -> usize {
        self.fields.iter().position(|f| f.name == name).expect("the layout has a field of this name")
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

    /// The field is stored under a bijection of its numbers.
    pub fn recode(mut self, name: &str, recode: Recode) -> Builder {
        let i = self.index(name);
        self.fields[i].recode = Some(recode);
        self
    }

    /// The block is packed by a codec; its fields have no parts.
    pub fn codec(mut self, codec: Codec) -> Builder {
        self.codec = Some(codec);
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
        let mut layout = Layout {
            block_size: self.block_size,
            rows: self.rows,
            bytes: self.bytes,
            fields: self.fields,
            parts: Vec::new(),
            starts: vec![0],
            runs: Vec::new(),
            recoded: Vec::new(),
            codec: self.codec,
            words: None,
        };
        for row in 0..self.rows {
            for (f, numbers) in layout.fields.iter().zip(&self.parts) {
                let first = layout.starts.len() - 1;
                let numbers = &numbers[row * f.count..(row + 1) * f.count];
                for parts in numbers {
                    layout.parts.extend_from_slice(parts);
                    layout.starts.push(layout.parts.len() as u32);
                }
                match f.recode {
                    Some(recode) => {
                        layout.recoded.extend((0..f.count).map(|i| ((first + i) as u32, recode)));
                    }
                    None => layout.runs.extend(runs::join(first, numbers)),
                }
            }
        }
        layout.runs.sort_by_key(Run::first_byte);
        if layout.rows == 1 && layout.codec.is_none() && layout.recoded.is_empty() {
            let numbers = self.parts.iter().flatten().map(Vec::as_slice);
            layout.words = Some(super::words::words(layout.bytes, numbers));
        }
        layout
    }

    fn prove_tiling(&self) {
        let mut used = vec![0u8; self.bytes];
        for (f, numbers) in self.fields.iter().zip(&self.parts) {
            assert_eq!(numbers.len(), self.rows * f.count, "{}: has no place", f.name);
            for runs in numbers {
                let mut number = 0u64;
                for p in runs {
                    let run = mask(p.width);
                    assert!(p.shift + p.width <= 8, "{}: a run crosses its byte", f.name);
                    assert_eq!(p.flip & !run, 0, "{}: a flip is wider than its run", f.name);
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
        assert!(used.iter().all(|b| *b == 0xff), "bits of the block belong to no field");
    }
}
