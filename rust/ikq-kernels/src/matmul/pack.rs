//! Rows as they stand in files to bands of sixteen rows side by side, and back.

use std::ops::Range;

use ikq_formats::{
    Error, LaneForm, LanePiece, QuantType, deinterleave_group, interleave_group, lane_form, row_bytes,
};
use ikq_simd::{Isa, IsaKind, IsaOp, prefetch, run};

use super::bands::BAND;

/// The device form of a type. Types without one (F64, integers) have that of F32, which products convert them to.
pub(super) fn form(ty: QuantType) -> LaneForm {
    lane_form(ty).or_else(|| lane_form(QuantType::F32)).expect("F32 has a device form")
}

/// Bytes of a matrix in the device form.
///
/// # Errors
/// As [`row_bytes`]; [`Error::TooLarge`].
pub fn lane_bytes(ty: QuantType, n_rows: usize, k: usize) -> Result<usize, Error> {
    row_bytes(ty, k)?;
    let too_large = Error::TooLarge { ty, n_rows, n_per_row: k };
    // a row of F32 is the largest form, and a cache line less than a float for each lane more
    k.checked_mul(4 * BAND + 1).and_then(|n| n.checked_mul(n_rows.div_ceil(BAND))).ok_or(too_large)?;
    Ok(form(ty).matrix_bytes(n_rows, k))
}

/// Packs rows of `k` elements, as they stand in a file (interleaved types: whole groups; I2_S: codes only), into
/// bands. Every byte of `out` is written; rows that the last band lacks are zeros.
///
/// # Panics
/// When `rows` are not whole rows (or groups) of `k` elements, or `out` has not [`lane_bytes`].
pub fn pack(kind: IsaKind, ty: QuantType, k: usize, rows: &[u8], out: &mut [u8]) {
    let form = form(ty);
    let file_row = row_bytes(ty, k).expect("a row length that fits the type");
    assert!(file_row > 0 && rows.len().is_multiple_of(file_row * ty.info().rows), "whole rows are packed");
    assert_eq!(out.len(), form.matrix_bytes(rows.len() / file_row, k), "room for the bands");
    let mut memory = Vec::new();
    let mut rest = rows;
    for band in out.chunks_exact_mut(form.band_bytes(k)) {
        let (rows, behind) = rest.split_at(rest.len().min(BAND * file_row));
        rest = behind;
        // sixteen rows are sixteen places at once, too many for what reads ahead in hardware; they stand one after another
        prefetch(&rest[..rest.len().min(BAND * file_row)]);
        let n = rows.len() / file_row;
        let rows = match (ty.is_interleaved(), lane_form(ty)) {
            (false, Some(_)) => rows,
            (true, _) => {
                memory.resize(rows.len(), 0);
                let group = file_row * ty.info().rows;
                for (group, rows) in rows.chunks_exact(group).zip(memory.chunks_exact_mut(group)) {
                    deinterleave_group(ty, group, k, rows).expect("whole groups");
                }
                &memory[..]
            }
            (false, None) => {
                let mut floats = vec![0.0; n * k];
                ikq_decode::dequantize(kind, ty, rows, n, k, &mut floats).expect("whole rows");
                memory = floats.iter().flat_map(|x| x.to_le_bytes()).collect();
                &memory[..]
            }
        };
        run(kind, PackBand { form, k, rows, band });
    }
}

/// The inverse of [`pack`] for types that have a device form of their own: as many rows as `out` has.
///
/// # Panics
/// As [`pack`], and for F64 and integers, which become F32 when they are packed.
pub fn unpack(ty: QuantType, k: usize, bands: &[u8], out: &mut [u8]) {
    let form = lane_form(ty).expect("a type that keeps its bits when packed");
    if !ty.is_interleaved() {
        return form.unpack(bands, k, out);
    }
    let mut rows = vec![0; out.len()];
    form.unpack(bands, k, &mut rows);
    let group = form.row_bytes(k) * ty.info().rows;
    for (rows, out) in rows.chunks_exact(group).zip(out.chunks_exact_mut(group)) {
        interleave_group(ty, rows, k, out).expect("whole groups");
    }
}

/// Packs at most sixteen rows.
struct PackBand<'a> {
    form: LaneForm,
    k: usize,
    rows: &'a [u8],
    band: &'a mut [u8],
}

impl IsaOp for PackBand<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let PackBand { form, k, rows, band } = self;
        let row_bytes = form.row_bytes(k);
        let mut padded;
        let rows = match rows.len() == BAND * row_bytes {
            true => rows,
            false => {
                padded = vec![0; BAND * row_bytes];
                padded[..rows.len()].copy_from_slice(rows);
                &padded
            }
        };
        let mut starts = [rows; BAND];
        for (start, row) in starts.iter_mut().zip(rows.chunks_exact(row_bytes)) {
            *start = row;
        }
        let (pieces, headers) = band.split_at_mut(form.headers_at(k));
        let n_words = form.n_words();
        for run in form.runs(k) {
            let n_blocks = run.blocks.len();
            let at = form.header_bytes + form.block_bytes * run.blocks.start;
            let run_bytes = BAND * form.block_bytes * n_blocks;
            let both = &mut pieces[run.words.min(run.smalls)..][..run_bytes];
            let (words, smalls) = match run.smalls < run.words {
                true => {
                    let (smalls, words) = both.split_at_mut(run.words - run.smalls);
                    (words, smalls)
                }
                false => both.split_at_mut(run.smalls - run.words),
            };
            let words = words.as_chunks_mut::<64>().0;
            if form.small_bytes() == 0 {
                // a row is a run of words
                let blocks = &mut Blocks { rows: &starts, at, step: 0 };
                pack_words(isa, blocks, n_blocks * n_words, words);
            } else if n_words > 8 {
                for (block, words) in words.chunks_exact_mut(n_words).enumerate() {
                    let at = at + block * form.block_bytes + form.front_bytes;
                    pack_words(isa, &mut Blocks { rows: &starts, at, step: 0 }, n_words, words);
                }
            } else if n_words > 0 {
                let blocks = &Blocks { rows: &starts, at: at + form.front_bytes, step: form.block_bytes };
                pack_short(isa, blocks, n_words, words);
            }
            match form.n_words() == 0 && form.block_bytes == 2 {
                true => pack_halves(isa, &form, &starts, run.blocks, smalls),
                false => pack_smalls(&form, &starts, run.blocks, smalls),
            }
        }
        pack_headers(&starts, form.header_bytes, headers);
    }
}

/// Where the words of sixteen rows are: from byte `at` on, and from block to block `step` bytes on.
struct Blocks<'a> {
    rows: &'a [&'a [u8]; BAND],
    at: usize,
    step: usize,
}

/// Packs `n` words that stand one after another.
#[inline(always)]
fn pack_words<I: Isa>(isa: I, blocks: &mut Blocks<'_>, n: usize, lines: &mut [[u8; 64]]) {
    let (whole, rest) = lines[..n].as_chunks_mut::<16>();
    for (i, lines) in whole.iter_mut().enumerate() {
        let at = blocks.at + 64 * i;
        let mut rows = [&[0; 64]; BAND];
        for (r, row) in rows.iter_mut().enumerate() {
            *row = blocks.rows[r][at..].first_chunk().expect("sixteen words");
        }
        let turned = isa.transpose_fours(rows);
        for (line, v) in lines.iter_mut().zip(turned) {
            isa.store(v, line);
        }
    }
    if !rest.is_empty() {
        let (at, n) = (blocks.at + 64 * whole.len(), 4 * rest.len());
        let mut staged = [[0; 64]; BAND];
        for (r, staged) in staged.iter_mut().enumerate() {
            let row = &blocks.rows[r][at..];
            match row.first_chunk() {
                Some(row) => *staged = *row,
                None => staged[..n].copy_from_slice(&row[..n]),
            }
        }
        let turned = isa.transpose_fours(staged.each_ref());
        for (line, v) in rest.iter_mut().zip(turned) {
            isa.store(v, line);
        }
    }
}

/// Packs blocks of at most eight words, as many at a time as make sixteen words.
#[inline(always)]
fn pack_short<I: Isa>(isa: I, blocks: &Blocks<'_>, n_words: usize, lines: &mut [[u8; 64]]) {
    let n_blocks = 16 / n_words;
    let mut staged = [[0; 96]; BAND];
    for (i, lines) in lines.chunks_mut(n_blocks * n_words).enumerate() {
        for (r, staged) in staged.iter_mut().enumerate() {
            for block in 0..lines.len() / n_words {
                let row = &blocks.rows[r][blocks.at + (i * n_blocks + block) * blocks.step..];
                let staged = &mut staged[4 * block * n_words..];
                // eight words whatever their number: the next block overwrites what is too much
                match (row.first_chunk::<32>(), staged.first_chunk_mut::<32>()) {
                    (Some(row), Some(staged)) => *staged = *row,
                    _ => staged[..4 * n_words].copy_from_slice(&row[..4 * n_words]),
                }
            }
        }
        let mut rows = [&[0; 64]; BAND];
        for (row, staged) in rows.iter_mut().zip(&staged) {
            *row = staged.first_chunk().expect("96 bytes");
        }
        for (line, v) in lines.iter_mut().zip(isa.transpose_fours(rows)) {
            isa.store(v, line);
        }
    }
}

/// Packs the halves and bytes of some blocks.
#[inline(always)]
fn pack_smalls(form: &LaneForm, rows: &[&[u8]; BAND], blocks: Range<usize>, mut smalls: &mut [u8]) {
    if form.small_bytes() == 0 {
        return;
    }
    // less than a word in front of the words and behind them: at most a half and a byte each, listed once
    let mut pieces = [LanePiece { at: 0, bytes: 0 }; 4];
    let mut n_pieces = 0;
    for piece in form.pieces().skip(form.n_words()) {
        pieces[n_pieces] = piece;
        n_pieces += 1;
    }
    for block in blocks {
        let at = form.header_bytes + block * form.block_bytes;
        for piece in &pieces[..n_pieces] {
            let (line, rest) = smalls.split_at_mut(BAND * piece.bytes);
            smalls = rest;
            let at = at + piece.at;
            if piece.bytes == 2 {
                for (line, row) in line.as_chunks_mut::<2>().0.iter_mut().zip(rows) {
                    *line = [row[at], row[at + 1]];
                }
            } else {
                for (line, row) in line.iter_mut().zip(rows) {
                    *line = row[at];
                }
            }
        }
    }
}

/// Packs rows that are halves and nothing else: as words of two, which then are parted.
#[inline(always)]
fn pack_halves<I: Isa>(
    isa: I,
    form: &LaneForm,
    rows: &[&[u8]; BAND],
    blocks: Range<usize>,
    smalls: &mut [u8],
) {
    let (lines, rest) = smalls.as_chunks_mut::<{ 64 * BAND }>();
    let done = blocks.start + 32 * lines.len();
    for (i, lines) in lines.iter_mut().enumerate() {
        let at = form.header_bytes + 2 * (blocks.start + 32 * i);
        let mut words = [&[0; 64]; BAND];
        for (r, row) in words.iter_mut().enumerate() {
            *row = rows[r][at..].first_chunk().expect("32 halves");
        }
        for (pair, v) in lines.as_chunks_mut::<64>().0.iter_mut().zip(isa.transpose_fours(words)) {
            let mut both = [0; 64];
            isa.store(v, &mut both);
            for (lane, both) in both.as_chunks::<4>().0.iter().enumerate() {
                pair[2 * lane..][..2].copy_from_slice(&both[..2]);
                pair[32 + 2 * lane..][..2].copy_from_slice(&both[2..]);
            }
        }
    }
    pack_smalls(form, rows, done..blocks.end, rest);
}

/// Packs the row headers, words first.
#[inline(always)]
fn pack_headers(rows: &[&[u8]; BAND], header_bytes: usize, headers: &mut [u8]) {
    headers.fill(0);
    let mut at = 0;
    while at < header_bytes {
        let n = 4.min(header_bytes - at);
        for (line, row) in headers[BAND * at..].chunks_exact_mut(n).zip(rows) {
            line.copy_from_slice(&row[at..at + n]);
        }
        at += n;
    }
}
