//! Interleaving: R rows of blocks <-> one group of an `_Rn` type, bits moved as they are.
//!
//! ```text
//! rows    row 0: [header][block][block]...   row 1: [header][block]...   ...   row R-1
//! group   [header 0]...[header R-1]  [column 0 of all rows][column 1 of all rows]...
//! ```
//! From the two layouts (of a row's block and of a group) a table of moves is made once per type: a
//! move takes some bits of a byte, or the same bits of four neighbouring bytes at once, to their
//! place on the other side; read backwards it undoes itself. Nearly all formats keep four
//! neighbouring elements together, so that most moves carry four codes; bits of a byte that scatter over a
//! word are looked up together on their way into the group. Fields that a group stores in another code go
//! number by number.

use std::sync::{Arc, OnceLock};

use crate::error::Error;
use crate::layout::{Layout, Part, Recode, mask};
use crate::layouts::interleaved::row_layout;
use crate::layouts::layout;
use crate::row::row_bytes;
use crate::types::QuantType;

/// What one row is when taken out of its group. In bytes it is as large as its share of the group.
#[derive(Clone, Copy)]
pub enum RowForm {
    /// A row of the plain type.
    Plain(QuantType),
    /// A form that no file holds: a header, then blocks of this layout (`layouts/interleaved/rowless.rs`
    /// says what they mean).
    Own { header_bytes: usize, layout: &'static Layout },
}

impl RowForm {
    /// Bytes in front of the row's blocks.
    pub fn header_bytes(&self) -> usize {
        match self {
            RowForm::Plain(ty) => ty.info().row_header_bytes,
            RowForm::Own { header_bytes, .. } => *header_bytes,
        }
    }

    /// The layout of the row's blocks.
    pub fn layout(&self) -> &'static Layout {
        match self {
            RowForm::Plain(ty) => layout(*ty).expect("types with an interleaved form have blocks"),
            RowForm::Own { layout, .. } => layout,
        }
    }
}

/// The form of the rows of an interleaved type; `None` for types that keep their rows apart.
pub fn row_form(ty: QuantType) -> Option<RowForm> {
    if !ty.is_interleaved() {
        return None;
    }
    match (ty.info().base, row_layout(ty)) {
        (Some(base), _) => Some(RowForm::Plain(base)),
        (None, Some(layout)) => Some(RowForm::Own { header_bytes: ty.info().row_header_bytes, layout }),
        (None, None) => None,
    }
}

/// Stores the `ty.info().rows` rows of `n_per_row` elements, one after another in their row form with
/// headers, as one group. Every byte of `group` is written.
///
/// # Errors
/// [`Error::Repack`] when `ty` is not interleaved; [`Error::RowLength`] when blocks do not tile the
/// row (BF16_R16: when it is odd); [`Error::ByteCount`] when a slice has another size than `rows`
/// times `row_bytes(ty, n_per_row)`.
pub fn interleave_group(ty: QuantType, rows: &[u8], n_per_row: usize, group: &mut [u8]) -> Result<(), Error> {
    let shape = Shape::new(ty, n_per_row)?;
    shape.check(rows.len())?;
    shape.check(group.len())?;
    let Table { block_bytes, group_bytes, rows: moves, .. } = shape.table;
    let (heads, columns) = group.split_at_mut(shape.n_rows * shape.header_bytes);
    let row_at = |k: usize| rows[k * shape.row_bytes..][..shape.row_bytes].split_at(shape.header_bytes);
    for (k, head) in heads.chunks_exact_mut(shape.header_bytes.max(1)).enumerate() {
        head.copy_from_slice(row_at(k).0);
    }
    // as many columns at a time as stay in the nearest cache while the rows are put in
    let strip = (STRIP_BYTES / group_bytes).max(1);
    for (i, columns) in columns.chunks_mut(strip * group_bytes).enumerate() {
        columns.fill(0);
        for (k, moves) in moves.iter().enumerate() {
            let blocks = &row_at(k).1[i * strip * block_bytes..][..columns.len() / group_bytes * block_bytes];
            if let Some((at, step, flip)) = moves.endless_run(*block_bytes, *group_bytes) {
                for (four, place) in blocks.as_chunks().0.iter().zip(columns.chunks_exact_mut(step)) {
                    let word = u32::from_le_bytes(*four) ^ flip;
                    place[at..][..4].copy_from_slice(&word.to_le_bytes());
                }
                continue;
            }
            for (block, column) in
                blocks.chunks_exact(*block_bytes).zip(columns.chunks_exact_mut(*group_bytes))
            {
                moves.interleave(block, column);
            }
        }
    }
    Ok(())
}

/// Bytes of the columns that [`interleave_group`] fills at a time.
const STRIP_BYTES: usize = 16 << 10;

/// The inverse of [`interleave_group`]. Every byte of `rows` is written.
///
/// # Errors
/// As [`interleave_group`].
pub fn deinterleave_group(
    ty: QuantType,
    group: &[u8],
    n_per_row: usize,
    rows: &mut [u8],
) -> Result<(), Error> {
    let shape = Shape::new(ty, n_per_row)?;
    shape.check(rows.len())?;
    shape.check(group.len())?;
    let (heads, columns) = group.split_at(shape.n_rows * shape.header_bytes);
    rows.fill(0);
    for (k, (row, moves)) in rows.chunks_exact_mut(shape.row_bytes).zip(&shape.table.rows).enumerate() {
        let (head, blocks) = row.split_at_mut(shape.header_bytes);
        head.copy_from_slice(&heads[k * shape.header_bytes..][..shape.header_bytes]);
        let columns = columns.chunks_exact(shape.table.group_bytes);
        for (block, column) in blocks.chunks_exact_mut(shape.table.block_bytes).zip(columns) {
            moves.deinterleave(column, block);
        }
    }
    Ok(())
}

/// Sizes of a group of rows of one length.
struct Shape {
    ty: QuantType,
    n_per_row: usize,
    n_rows: usize,
    header_bytes: usize,
    row_bytes: usize,
    table: &'static Table,
}

impl Shape {
    fn new(ty: QuantType, n_per_row: usize) -> Result<Shape, Error> {
        let why = "the type does not store rows together";
        let table = table(ty).ok_or(Error::Repack { from: ty, to: ty, why })?;
        if !n_per_row.is_multiple_of(table.unit) {
            return Err(Error::RowLength { ty, n_per_row, block_size: table.unit });
        }
        Ok(Shape {
            ty,
            n_per_row,
            n_rows: ty.info().rows,
            header_bytes: ty.info().row_header_bytes,
            row_bytes: row_bytes(ty, n_per_row)?,
            table,
        })
    }

    fn check(&self, found: usize) -> Result<(), Error> {
        let too_large = Error::TooLarge { ty: self.ty, n_rows: self.n_rows, n_per_row: self.n_per_row };
        let expected = self.n_rows.checked_mul(self.row_bytes).ok_or(too_large)?;
        match found == expected {
            true => Ok(()),
            false => Err(Error::ByteCount {
                ty: self.ty,
                n_rows: self.n_rows,
                n_per_row: self.n_per_row,
                expected,
                found,
            }),
        }
    }
}

/// How a group's bits come from its rows.
struct Table {
    /// Elements of a row in one column of the group.
    unit: usize,
    /// Bytes of a row in one column.
    block_bytes: usize,
    /// Bytes of one column of the group.
    group_bytes: usize,
    rows: Vec<RowMoves>,
}

/// The moves of one row of a group.
struct RowMoves {
    /// Moves of whole words.
    runs: Vec<Run>,
    /// Moves that take the same bits of four neighbouring bytes.
    words: Vec<Move>,
    bytes: Vec<Move>,
    /// Moves that scatter one byte over a word: joined into tables here for the way into the group.
    spreads: Vec<Spread>,
    singles: Vec<Move>,
    recoded: Vec<RecodedMove>,
}

/// Several moves from one byte of the row to one word of the group, done by one table look-up.
struct Spread {
    row: usize,
    group: u16,
    /// The bits of the word for each value of the byte.
    bits: Arc<[u32; 256]>,
}

/// `mask` bits from bit `row_shift` of the row's byte to bit `group_shift` of the group's byte.
/// Masks and flips are repeated in the four bytes of a word.
#[derive(Clone, Copy)]
struct Move {
    row: u16,
    group: u16,
    row_shift: u8,
    group_shift: u8,
    mask: u32,
    flip: u32,
}

impl Move {
    /// The bits of a byte of the row in their place in the group's byte.
    #[inline]
    fn of_byte(&self, byte: u8) -> u32 {
        ((u32::from(byte) >> self.row_shift ^ self.flip) & self.mask) << self.group_shift
    }
}

/// `n` words next to each other in the row, `step` bytes apart in the group, stored with some bits inverted.
struct Run {
    row: usize,
    group: usize,
    step: usize,
    n: usize,
    flip: u32,
}

impl Run {
    fn interleave(&self, block: &[u8], group: &mut [u8]) {
        let (words, _) = block[self.row..][..4 * self.n].as_chunks();
        for (k, four) in words.iter().enumerate() {
            let word = u32::from_le_bytes(*four) ^ self.flip;
            group[self.group + k * self.step..][..4].copy_from_slice(&word.to_le_bytes());
        }
    }

    fn deinterleave(&self, group: &[u8], block: &mut [u8]) {
        let (words, _) = block[self.row..][..4 * self.n].as_chunks_mut();
        for (k, four) in words.iter_mut().enumerate() {
            *four = (word(group, self.group + k * self.step) ^ self.flip).to_le_bytes();
        }
    }
}

/// One number whose code differs in the group.
struct RecodedMove {
    row: Vec<Part>,
    group: Vec<Part>,
    recode: Recode,
}

impl RowMoves {
    /// Where a row that is nothing but words at equal steps, through all its blocks, has its first word in the
    /// group, the step, and which bits are inverted.
    fn endless_run(&self, block_bytes: usize, group_bytes: usize) -> Option<(usize, usize, u32)> {
        match self.runs[..] {
            [Run { row: 0, group, n: 1, flip, .. }] if block_bytes == 4 => Some((group, group_bytes, flip)),
            [Run { row: 0, group, step, n, flip }] if (4 * n, n * step) == (block_bytes, group_bytes) => {
                Some((group, step, flip))
            }
            _ => None,
        }
    }

    /// Adds the row's bits to a group in which they are zero.
    #[inline]
    fn interleave(&self, block: &[u8], group: &mut [u8]) {
        for run in &self.runs {
            run.interleave(block, group);
        }
        for m in &self.words {
            let bits = word(block, usize::from(m.row)) >> m.row_shift ^ m.flip;
            put_word(group, m.group, (bits & m.mask) << m.group_shift);
        }
        for m in &self.singles {
            group[usize::from(m.group)] |= m.of_byte(block[usize::from(m.row)]) as u8;
        }
        for s in &self.spreads {
            put_word(group, s.group, s.bits[usize::from(block[s.row])]);
        }
        for m in &self.recoded {
            put_parts(group, &m.group, (m.recode.to_stored)(get_parts(block, &m.row)));
        }
    }

    /// Adds a group's bits to a row in which they are zero.
    #[inline]
    fn deinterleave(&self, group: &[u8], block: &mut [u8]) {
        for run in &self.runs {
            run.deinterleave(group, block);
        }
        for m in &self.words {
            let bits = word(group, usize::from(m.group)) >> m.group_shift ^ m.flip;
            put_word(block, m.row, (bits & m.mask) << m.row_shift);
        }
        for m in &self.bytes {
            let bits = u32::from(group[usize::from(m.group)]) >> m.group_shift ^ m.flip;
            block[usize::from(m.row)] |= ((bits & m.mask) << m.row_shift) as u8;
        }
        for m in &self.recoded {
            put_parts(block, &m.row, (m.recode.from_stored)(get_parts(group, &m.group)));
        }
    }
}

#[inline]
fn word(bytes: &[u8], at: usize) -> u32 {
    let four = bytes[at..].first_chunk().expect("a word move lies inside its block");
    u32::from_le_bytes(*four)
}

#[inline]
fn put_word(bytes: &mut [u8], at: u16, bits: u32) {
    let four = bytes[usize::from(at)..].first_chunk_mut().expect("a word move lies inside its block");
    *four = (u32::from_le_bytes(*four) | bits).to_le_bytes();
}

fn get_parts(bytes: &[u8], parts: &[Part]) -> u32 {
    parts
        .iter()
        .fold(0, |v, p| v | u32::from((bytes[p.byte as usize] >> p.shift ^ p.flip) & mask(p.width)) << p.lo)
}

fn put_parts(bytes: &mut [u8], parts: &[Part], v: u32) {
    for p in parts {
        bytes[p.byte as usize] |= (((v >> p.lo) as u8 ^ p.flip) & mask(p.width)) << p.shift;
    }
}

static TABLES: [OnceLock<Option<Table>>; QuantType::ALL.len()] =
    [const { OnceLock::new() }; QuantType::ALL.len()];

fn table(ty: QuantType) -> Option<&'static Table> {
    let i = QuantType::ALL.binary_search(&ty).ok()?;
    TABLES[i].get_or_init(|| Some(make_table(layout(ty).ok()?, row_form(ty)?.layout()))).as_ref()
}

/// Pairs the numbers of a group with those of its rows.
fn make_table(group: &Layout, row: &Layout) -> Table {
    // several of the row's blocks in one column of the group: plain arrays only
    let n_blocks = group.block_size / row.block_size;
    let mut tables = Vec::new();
    let rows = (0..group.rows)
        .map(|k| {
            let mut moves = Vec::new();
            let mut recoded = Vec::new();
            let recodes = group.fields.iter().flat_map(|f| std::iter::repeat_n(f.recode, f.count));
            for (i, recode) in recodes.enumerate() {
                let (block, number) = (i / row.n_values(), i % row.n_values());
                let shifted = |p: &Part| Part { byte: p.byte + (block * row.bytes) as u32, ..*p };
                let in_row: Vec<Part> = row.parts(0, number).iter().map(shifted).collect();
                let in_group = group.parts(k, i);
                match recode {
                    Some(recode) => {
                        recoded.push(RecodedMove { row: in_row, group: in_group.to_vec(), recode });
                    }
                    None => moves.extend(refine(&in_row, in_group)),
                }
            }
            let (words, bytes) = join_words(moves);
            let (runs, words) = join_runs(words);
            let (spreads, singles) = join_spreads(&bytes, group.bytes, &mut tables);
            RowMoves { runs, words, bytes, spreads, singles, recoded }
        })
        .collect();
    Table { unit: group.block_size, block_bytes: n_blocks * row.bytes, group_bytes: group.bytes, rows }
}

/// The runs of bits of one number that are runs on both sides.
fn refine(in_row: &[Part], in_group: &[Part]) -> Vec<Move> {
    let mut moves = Vec::new();
    for r in in_row {
        for g in in_group {
            let lo = r.lo.max(g.lo);
            let end = (r.lo + r.width).min(g.lo + g.width);
            if lo < end {
                let bits = u32::from(mask(end - lo));
                let flip = u32::from(r.flip >> (lo - r.lo) ^ g.flip >> (lo - g.lo)) & bits;
                moves.push(Move {
                    row: r.byte as u16,
                    group: g.byte as u16,
                    row_shift: r.shift + lo - r.lo,
                    group_shift: g.shift + lo - g.lo,
                    mask: bits,
                    flip,
                });
            }
        }
    }
    moves
}

/// Joins like moves of four bytes that are neighbours on both sides.
fn join_words(mut moves: Vec<Move>) -> (Vec<Move>, Vec<Move>) {
    let kind = |m: &Move| (m.row_shift, m.group_shift, m.mask, m.flip);
    moves.sort_by_key(|m| (kind(m), m.row, m.group));
    let (mut words, mut bytes) = (Vec::new(), Vec::new());
    let mut rest = moves.as_slice();
    while let [first, ..] = rest {
        let four = rest.first_chunk::<4>().filter(|four| {
            (0..)
                .zip(four.iter())
                .all(|(n, m)| kind(m) == kind(first) && (m.row, m.group) == (first.row + n, first.group + n))
        });
        if four.is_some() {
            const EACH: u32 = 0x0101_0101;
            words.push(Move { mask: first.mask * EACH, flip: first.flip * EACH, ..*first });
            rest = &rest[4..];
        } else {
            bytes.push(*first);
            rest = &rest[1..];
        }
    }
    // in the order of the row's bytes: the group's cache lines are few, the row may be streamed
    words.sort_by_key(|m| (m.row, m.group));
    bytes.sort_by_key(|m| (m.row, m.group));
    (words, bytes)
}

/// From this many moves on, one table look-up is faster than single moves.
const SPREAD: usize = 3;

/// Joins moves out of one byte into one word of the group; the rows of a group share their `tables`.
fn join_spreads(
    bytes: &[Move],
    group_bytes: usize,
    tables: &mut Vec<Arc<[u32; 256]>>,
) -> (Vec<Spread>, Vec<Move>) {
    let (mut spreads, mut singles) = (Vec::new(), Vec::new());
    // moves are in the order of both sides' bytes
    for moves in bytes.chunk_by(|a, b| (a.row, a.group / 4) == (b.row, b.group / 4)) {
        let word = moves[0].group / 4 * 4;
        if moves.len() < SPREAD || usize::from(word) + 4 > group_bytes {
            singles.extend_from_slice(moves);
            continue;
        }
        let at = |m: &Move, byte| m.of_byte(byte) << (8 * (m.group - word));
        let table: [u32; 256] =
            std::array::from_fn(|byte| moves.iter().fold(0, |bits, m| bits | at(m, byte as u8)));
        let bits = match tables.iter().find(|known| ***known == table) {
            Some(known) => known.clone(),
            None => {
                tables.push(Arc::new(table));
                tables[tables.len() - 1].clone()
            }
        };
        spreads.push(Spread { row: usize::from(moves[0].row), group: word, bits });
    }
    (spreads, singles)
}

/// Separates moves of whole words, joined to runs where their steps are equal, from the rest.
fn join_runs(words: Vec<Move>) -> (Vec<Run>, Vec<Move>) {
    let (whole, words): (Vec<Move>, Vec<Move>) = words.into_iter().partition(|m| m.mask == u32::MAX);
    let mut runs: Vec<Run> = Vec::new();
    for m in whole {
        let (row, group) = (usize::from(m.row), usize::from(m.group));
        if let Some(run) = runs.last_mut()
            && (row, m.flip) == (run.row + 4 * run.n, run.flip)
            && group > run.group
            && (run.n == 1 || group == run.group + run.step * run.n)
        {
            run.step = (group - run.group) / run.n;
            run.n += 1;
        } else {
            runs.push(Run { row, group, step: 0, n: 1, flip: m.flip });
        }
    }
    (runs, words)
}

#[cfg(test)]
mod tests;
