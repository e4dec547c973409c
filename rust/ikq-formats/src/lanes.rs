//! The device form of weights: sixteen rows side by side, one per lane of a vector.
//!
//! A block of a row is cut into *pieces*: words of four bytes, which start where the type's codes start so that
//! a word of codes is a piece, and what is left in front of the words and behind them as halves (two bytes) and
//! single bytes. A *band* is sixteen rows; a piece of all of them is a *line*, row r's piece being lane r:
//!
//! ```text
//! band    [words of block 0, 1, ...]  [smaller pieces of block 0, 1, ...]  ...  [row headers]  [zeros to 64 bytes]
//! matrix  band after band; rows that the last band lacks are zeros
//! ```
//! So a load of 64 bytes gives the same four bytes of sixteen rows, and a load of 32 or 16 bytes their scales.
//! Blocks stand one after another: 256 elements (a *unit*) are words and smaller pieces, and a row that ends inside a
//! unit has the beginning of both. Where the smaller pieces of a unit fill whole cache lines (types of small blocks) they
//! stand in front of the words of their unit, because products read them first: so a band is read from its first line to
//! its last. Else all of them stand behind all words. A band takes the bytes of sixteen rows, rounded up to whole cache
//! lines.
//!
//! Interleaved types have the device form of their rows ([`crate::row_form`]). The functions here go byte by
//! byte and say what the form is; `ikq-kernels` has fast ones.

use std::ops::Range;

use crate::interleave::row_form;
use crate::layout::Layout;
use crate::layouts::layout;
use crate::types::{Family, QuantType};

/// Rows of a band.
pub const LANES: usize = 16;

/// Bytes that a band is a multiple of: a cache line.
const BAND_STEP: usize = 64;

/// Elements of a unit.
const UNIT: usize = 256;

/// Blocks of a row whose words stand together in a band, and so do their smaller pieces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaneRun {
    /// Which blocks of the row they are.
    pub blocks: Range<usize>,
    /// The byte of the band where their words begin.
    pub words: usize,
    /// The byte where their smaller pieces begin.
    pub smalls: usize,
}

/// Where the bytes of a row stand in a band.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaneForm {
    /// Elements of a block.
    pub block_size: usize,
    /// Bytes of a block.
    pub block_bytes: usize,
    /// Bytes of the row header.
    pub header_bytes: usize,
    /// Bytes of a block in front of its first word, below 4.
    pub front_bytes: usize,
}

/// A run of bytes of a block that stays together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LanePiece {
    /// Offset of its first byte in the block.
    pub at: usize,
    /// Length in bytes: 4, 2 or 1.
    pub bytes: usize,
}

/// The device form of a type's rows: block types and floats of four and two bytes. `None` for all others.
pub fn lane_form(ty: QuantType) -> Option<LaneForm> {
    let (layout, header_bytes) = match (row_form(ty), ty.info().family) {
        (Some(form), _) => (form.layout(), form.header_bytes()),
        (None, Family::Integer | Family::Activation) => return None,
        (None, _) => (layout(ty).ok()?, ty.info().row_header_bytes),
    };
    Some(LaneForm {
        block_size: layout.block_size,
        block_bytes: layout.bytes,
        header_bytes,
        front_bytes: codes_at(layout) % 4,
    })
}

/// The byte of a block that holds the lowest bits of the first code.
fn codes_at(layout: &Layout) -> usize {
    let codes = ["q", "grid"].into_iter().find_map(|name| layout.field(name));
    codes.and_then(|(first, _)| layout.parts(0, first).first()).map_or(0, |part| part.byte as usize)
}

impl LaneForm {
    /// Words of a block.
    pub const fn n_words(&self) -> usize {
        (self.block_bytes - self.front_bytes) / 4
    }

    /// Bytes of a block outside its words.
    pub const fn small_bytes(&self) -> usize {
        self.block_bytes - 4 * self.n_words()
    }

    /// The pieces of a block in the order of a band: words, then halves, then single bytes.
    pub fn pieces(&self) -> impl Iterator<Item = LanePiece> {
        let (front, n_words) = (self.front_bytes, self.n_words());
        let words = (0..n_words).map(move |w| LanePiece { at: front + 4 * w, bytes: 4 });
        let back = front + 4 * n_words;
        let ends = [(0, front), (back, self.block_bytes - back)];
        let halves = ends.into_iter().filter(|(_, n)| *n >= 2).map(|(at, _)| LanePiece { at, bytes: 2 });
        let odd = ends.into_iter().filter(|(_, n)| n % 2 == 1);
        let bytes = odd.map(|(at, n)| LanePiece { at: at + n - 1, bytes: 1 });
        words.chain(halves).chain(bytes)
    }

    /// Bytes of one row of `k` elements, in any form.
    pub const fn row_bytes(&self, k: usize) -> usize {
        self.header_bytes + k / self.block_size * self.block_bytes
    }

    /// Bytes of a band of rows of `k` elements.
    pub const fn band_bytes(&self, k: usize) -> usize {
        (LANES * self.row_bytes(k)).next_multiple_of(BAND_STEP)
    }

    /// Bytes of a matrix of `n_rows` rows of `k` elements.
    pub const fn matrix_bytes(&self, n_rows: usize, k: usize) -> usize {
        n_rows.div_ceil(LANES) * self.band_bytes(k)
    }

    /// Whether the smaller pieces of a unit stand in front of its words.
    pub const fn by_unit(&self) -> bool {
        let bytes = LANES * self.small_bytes() * (UNIT / self.block_size);
        bytes > 0 && bytes.is_multiple_of(BAND_STEP) && self.n_words() > 0 && self.block_size < UNIT
    }

    /// The runs of blocks in a band of rows of `k` elements: one, or one per unit ([`LaneForm::by_unit`]).
    pub fn runs(&self, k: usize) -> impl Iterator<Item = LaneRun> {
        let (form, n_blocks) = (*self, k / self.block_size);
        let step = if form.by_unit() { UNIT / form.block_size } else { n_blocks.max(1) };
        (0..n_blocks).step_by(step).map(move |first| {
            let blocks = first..n_blocks.min(first + step);
            let at = LANES * form.block_bytes * first;
            match form.by_unit() {
                true => LaneRun { words: at + LANES * form.small_bytes() * blocks.len(), smalls: at, blocks },
                false => {
                    LaneRun { words: at, smalls: at + LANES * 4 * form.n_words() * blocks.len(), blocks }
                }
            }
        })
    }

    /// Where the row headers of a band begin.
    pub const fn headers_at(&self, k: usize) -> usize {
        LANES * (k / self.block_size) * self.block_bytes
    }

    /// Calls `pair` with the places of each byte of a row in the row and in its band: `(row, band)`.
    fn each_byte(&self, k: usize, lane: usize, mut pair: impl FnMut(usize, usize)) {
        let mut head = self.headers_at(k);
        for run in self.runs(k) {
            let (mut word, mut small) = (run.words, run.smalls);
            for block in run.blocks {
                for piece in self.pieces() {
                    let line = if piece.bytes == 4 { &mut word } else { &mut small };
                    for i in 0..piece.bytes {
                        let row = self.header_bytes + block * self.block_bytes + piece.at + i;
                        pair(row, *line + lane * piece.bytes + i);
                    }
                    *line += LANES * piece.bytes;
                }
            }
        }
        let mut at = 0;
        while at < self.header_bytes {
            let bytes = 4.min(self.header_bytes - at);
            for i in 0..bytes {
                pair(at + i, head + lane * bytes + i);
            }
            head += LANES * bytes;
            at += bytes;
        }
    }

    /// Packs whole rows of `k` elements, one after another, into bands; every byte of `out` is written.
    ///
    /// # Panics
    /// When `rows` are not whole rows, or `out` has not [`LaneForm::matrix_bytes`].
    pub fn pack(&self, rows: &[u8], k: usize, out: &mut [u8]) {
        let row_bytes = self.row_bytes(k);
        assert!(row_bytes > 0 && rows.len().is_multiple_of(row_bytes), "whole rows are packed");
        assert_eq!(out.len(), self.matrix_bytes(rows.len() / row_bytes, k), "room for the bands");
        out.fill(0);
        let bands = out.chunks_exact_mut(self.band_bytes(k));
        for (rows, band) in rows.chunks(LANES * row_bytes).zip(bands) {
            for (lane, row) in rows.chunks_exact(row_bytes).enumerate() {
                self.each_byte(k, lane, |from, to| band[to] = row[from]);
            }
        }
    }

    /// The inverse of [`LaneForm::pack`]: as many rows as `out` has.
    ///
    /// # Panics
    /// As [`LaneForm::pack`].
    pub fn unpack(&self, bands: &[u8], k: usize, out: &mut [u8]) {
        let row_bytes = self.row_bytes(k);
        assert!(row_bytes > 0 && out.len().is_multiple_of(row_bytes), "whole rows are unpacked");
        assert_eq!(bands.len(), self.matrix_bytes(out.len() / row_bytes, k), "the bands of the rows");
        let bands = bands.chunks_exact(self.band_bytes(k));
        for (rows, band) in out.chunks_mut(LANES * row_bytes).zip(bands) {
            for (lane, row) in rows.chunks_exact_mut(row_bytes).enumerate() {
                self.each_byte(k, lane, |to, from| row[to] = band[from]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use QuantType::*;

    fn form(ty: QuantType) -> LaneForm {
        lane_form(ty).expect("a type with a device form")
    }

    #[test]
    fn words_start_where_codes_do() {
        // type, bytes in front of the words, words, bytes left over
        let expected = [
            (Q8_0, 2, 8, 2),
            (Q6_K, 0, 52, 2),
            (IQ2_XXS, 2, 16, 2),
            (Q4_1, 0, 5, 0),
            (IQ3_K, 2, 27, 2),
            (MXFP4, 1, 4, 1),
            (IQ1_BN, 0, 3, 1),
            (IQ1_M_R4, 0, 1, 3),
            (IQ4_KS_R4, 0, 34, 0),
            (Q8_K_R8, 2, 64, 2),
            (I2_S, 0, 8, 0),
            (F32, 0, 1, 0),
            (BF16_R16, 0, 0, 2),
        ];
        for (ty, front, words, small) in expected {
            let form = form(ty);
            assert_eq!((form.front_bytes, form.n_words(), form.small_bytes()), (front, words, small), "{ty}");
        }
        assert_eq!((lane_form(I8), lane_form(Q8_K), lane_form(F64)), (None, None, None));
    }

    #[test]
    fn pieces_tile_the_block() {
        for ty in QuantType::ALL.iter().copied() {
            let Some(form) = lane_form(ty) else { continue };
            let mut used = vec![0; form.block_bytes];
            let mut last = 4;
            for piece in form.pieces() {
                assert!(piece.bytes <= last, "{ty}: a larger piece behind a smaller one");
                last = piece.bytes;
                used[piece.at..piece.at + piece.bytes].iter_mut().for_each(|n| *n += 1);
            }
            assert!(used.iter().all(|n| *n == 1), "{ty}");
        }
    }

    #[test]
    fn lanes_are_rows() {
        // two blocks of Q8_0, each byte with its row's number in the upper half
        let form = form(Q8_0);
        let rows: Vec<u8> =
            (0..LANES).flat_map(|r| (0..68).map(move |i| ((r << 4) | (i % 16)) as u8)).collect();
        let mut band = vec![0xee; form.band_bytes(64)];
        form.pack(&rows, 64, &mut band);
        let runs: Vec<_> = form.runs(64).collect();
        assert_eq!(runs, [LaneRun { blocks: 0..2, words: 64, smalls: 0 }]);
        assert_eq!((form.headers_at(64), band.len()), (64 * 17, 64 * 17));
        for lane in 0..LANES {
            let row = &rows[68 * lane..68 * (lane + 1)];
            // word 1 of block 1 is at byte 34 + 2 + 4 of the row; the scale of block 1 is its half
            assert_eq!(band[64 * 10 + 4 * lane..][..4], row[40..44]);
            assert_eq!(band[32 + 2 * lane..][..2], row[34..36]);
        }
    }

    #[test]
    fn units_of_small_blocks_are_in_order() {
        // 256 elements of Q8_0 are four lines of scales and 64 of codes; then come the scales of the next ones
        let runs: Vec<_> = form(Q8_0).runs(320).collect();
        let second = LaneRun { blocks: 8..10, words: 64 * (68 + 1), smalls: 64 * 68 };
        assert_eq!(runs, [LaneRun { blocks: 0..8, words: 64 * 4, smalls: 0 }, second]);
        assert_eq!(form(Q8_0).headers_at(320), 64 * (68 + 17));
        let by_unit = |ty| form(ty).by_unit();
        assert_eq!([Q4_0, IQ4_NL, MXFP4, IQ1_BN].map(by_unit), [true; 4]);
        // no smaller pieces; half a line of them; nothing else
        assert_eq!([Q4_1, IQ3_K, F16].map(by_unit), [false; 3]);
        assert_eq!(form(IQ3_K).runs(512).count(), 1);
    }

    #[test]
    fn unpacking_undoes_packing() {
        for ty in QuantType::ALL.iter().copied() {
            let Some(form) = lane_form(ty) else { continue };
            for (n_rows, n_blocks) in [(1, 1), (16, 3), (19, 256 / form.block_size + 1)] {
                let k = n_blocks * form.block_size;
                let n_bytes = n_rows * form.row_bytes(k);
                let rows: Vec<u8> = (0..n_bytes).map(|i| (i * 31 + i / 251 + 1) as u8).collect();
                let mut bands = vec![0xee; form.matrix_bytes(n_rows, k)];
                form.pack(&rows, k, &mut bands);
                let mut again = vec![0; n_bytes];
                form.unpack(&bands, k, &mut again);
                assert!(rows == again, "{ty}, {n_rows} rows of {k}");
                // no byte stands twice: all others are zero
                let sum = |bytes: &[u8]| bytes.iter().map(|b| usize::from(*b)).sum::<usize>();
                assert_eq!(sum(&rows), sum(&bands), "{ty}");
            }
        }
    }
}
