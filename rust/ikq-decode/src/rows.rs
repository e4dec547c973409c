//! Dequantizing: rows of floats from any type that implements [`Decode`].

use std::marker::PhantomData;

use ikq_simd::{Isa, IsaKind, IsaOp, array, run};

use crate::decode::{Decode, UNIT};

/// A type whose decoder exists on every instruction set.
pub trait BlockType: 'static {
    type Decoder<I: Isa>: Decode<I>;
}

/// Dequantizes whole rows of one block type; see [`dequantize_rows`].
struct DequantizeRows<'a, T> {
    rows: &'a [u8],
    n_per_row: usize,
    out: &'a mut [f32],
    ty: PhantomData<T>,
}

impl<T: BlockType> IsaOp for DequantizeRows<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let row_bytes = self.rows.len() / (self.out.len() / self.n_per_row);
        for (row, out) in self.rows.chunks_exact(row_bytes).zip(self.out.chunks_exact_mut(self.n_per_row)) {
            dequantize_row::<I, T::Decoder<I>>(isa, row, out);
        }
    }
}

/// Decodes `rows` (whole rows with their headers, `n_per_row` elements each) to floats.
///
/// Shapes must have been checked: `out.len()` is a multiple of `n_per_row` and `rows` has exactly the
/// bytes of that many rows.
pub fn dequantize_rows<T: BlockType>(kind: IsaKind, rows: &[u8], n_per_row: usize, out: &mut [f32]) {
    if !out.is_empty() {
        run(kind, DequantizeRows::<T> { rows, n_per_row, out, ty: PhantomData });
    }
}

/// Decodes blocks whose header stands elsewhere: `header` is the float scale it holds.
pub fn dequantize_blocks<T: BlockType>(kind: IsaKind, header: f32, blocks: &[u8], out: &mut [f32]) {
    run(kind, DequantizeBlocks::<T> { header, blocks, out, ty: PhantomData });
}

struct DequantizeBlocks<'a, T> {
    header: f32,
    blocks: &'a [u8],
    out: &'a mut [f32],
    ty: PhantomData<T>,
}

impl<T: BlockType> IsaOp for DequantizeBlocks<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        blocks::<I, T::Decoder<I>>(isa, self.header, self.blocks, self.out);
    }
}

#[inline(always)]
fn dequantize_row<I: Isa, D: Decode<I>>(isa: I, row: &[u8], out: &mut [f32]) {
    let (header, row) = row.split_at(D::HEADER_BYTES);
    blocks::<I, D>(isa, D::header(header), row, out);
}

#[inline(always)]
fn blocks<I: Isa, D: Decode<I>>(isa: I, header: f32, blocks: &[u8], out: &mut [f32]) {
    let n_units = out.len() / UNIT;
    let (whole, tail) = blocks.split_at(n_units * D::UNIT_BYTES);
    let (out, out_tail) = out.split_at_mut(n_units * UNIT);
    for (unit, out) in whole.chunks_exact(D::UNIT_BYTES).zip(out.chunks_exact_mut(UNIT)) {
        dequantize_unit::<I, D>(isa, header, unit, out);
    }
    if !out_tail.is_empty() {
        const { assert!(D::UNIT_BYTES <= MAX_UNIT_BYTES) };
        // the last blocks of a row that ends inside a unit: zeros stand for the missing ones
        let mut unit = [0; MAX_UNIT_BYTES];
        unit[..tail.len()].copy_from_slice(tail);
        let mut values = [0.0; UNIT];
        dequantize_unit::<I, D>(isa, header, &unit[..D::UNIT_BYTES], &mut values);
        out_tail.copy_from_slice(&values[..out_tail.len()]);
    }
}

/// Largest unit of all types (Q8_0: 8 blocks of 34 bytes).
const MAX_UNIT_BYTES: usize = 272;

#[inline(always)]
fn dequantize_unit<I: Isa, D: Decode<I>>(isa: I, header: f32, unit: &[u8], out: &mut [f32]) {
    let scales = D::scales(isa, header, unit);
    let scale = scales.scale();
    let min = scales.min();
    // written out, so that `j` is a constant in each inlined copy of the decoder
    quarter::<I, D>(isa, unit, 0, &scale, &min, out);
    quarter::<I, D>(isa, unit, 1, &scale, &min, out);
    quarter::<I, D>(isa, unit, 2, &scale, &min, out);
    quarter::<I, D>(isa, unit, 3, &scale, &min, out);
}

#[inline(always)]
fn quarter<I: Isa, D: Decode<I>>(
    isa: I,
    unit: &[u8],
    j: usize,
    scale: &[f32; 16],
    min: &[f32; 16],
    out: &mut [f32],
) {
    let codes = D::codes(isa, unit, j);
    let scale: [f32; 4] = array(|k| scale[4 * j + k]);
    let out: &mut [f32; 64] =
        (&mut out[64 * j..64 * j + 64]).try_into().expect("a quarter of a unit is 64 elements");
    match D::HAS_MIN {
        true => isa.store_affine(codes, scale, array(|k| min[4 * j + k]), out),
        false => isa.store_scaled(codes, scale, out),
    }
}
