//! The row body: one row times one column, codes decoded into registers.
//!
//! Sums of products of 16 elements each, sixteen of them per unit, come together in one value; one
//! multiplication by the weights' scales and the activations' then does the unit.

use std::marker::PhantomData;

use ikq_decode::{BlockType, Decode};
use ikq_simd::{Isa, IsaKind, IsaOp, run};

use super::stored::{MAX_UNIT_BYTES, Rows, prefetch};
use crate::act::ActUnit;

/// `out[r] = row r . column`.
pub(super) fn rows<T: BlockType>(kind: IsaKind, rows: &Rows<'_>, column: &[ActUnit], out: &mut [f32]) {
    run(kind, RowsOp::<T> { rows, column, out, ty: PhantomData });
}

struct RowsOp<'a, T> {
    rows: &'a Rows<'a>,
    column: &'a [ActUnit],
    out: &'a mut [f32],
    ty: PhantomData<T>,
}

impl<T: BlockType> IsaOp for RowsOp<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        for (row, out) in self.rows.data.chunks_exact(self.rows.stride).zip(self.out) {
            *out = row_product::<I, T::Decoder<I>>(isa, self.rows, row, self.column);
        }
    }
}

#[inline(always)]
fn row_product<I: Isa, D: Decode<I>>(isa: I, rows: &Rows<'_>, row: &[u8], column: &[ActUnit]) -> f32 {
    let (head, blocks) = row.split_at(D::HEADER_BYTES);
    let header = rows.header.unwrap_or_else(|| D::header(head));
    let mut acc = isa.splat_f(0.0);
    let units = blocks.chunks_exact(D::UNIT_BYTES);
    let tail = units.remainder();
    for (unit, x) in units.zip(column) {
        for line in 0..unit.len().div_ceil(64) {
            prefetch(unit.as_ptr().wrapping_add(PREFETCH_BYTES + 64 * line));
        }
        acc = unit_product::<I, D>(isa, header, unit, x, acc);
    }
    if let (false, Some(x)) = (tail.is_empty(), column.last()) {
        let mut unit = [0; MAX_UNIT_BYTES];
        unit[..tail.len()].copy_from_slice(tail);
        acc = unit_product::<I, D>(isa, header, &unit[..D::UNIT_BYTES], x, acc);
    }
    isa.sum(acc) * D::PRODUCT_FACTOR
}

/// Rows follow one another: what lies this far ahead is needed soon.
const PREFETCH_BYTES: usize = 2048;

#[inline(always)]
fn unit_product<I: Isa, D: Decode<I>>(isa: I, header: f32, unit: &[u8], x: &ActUnit, acc: I::F) -> I::F {
    let quarters = [
        quarter::<I, D>(isa, unit, 0, x),
        quarter::<I, D>(isa, unit, 1, x),
        quarter::<I, D>(isa, unit, 2, x),
        quarter::<I, D>(isa, unit, 3, x),
    ];
    let mut sums = isa.sums_of_4(quarters);
    if I::CODE_BIAS != 0 && !D::UNSIGNED {
        sums = isa.add_i(sums, isa.load_i(&x.debts));
    }
    let (scale, min) = D::factors(isa, header, unit);
    let acc = isa.fused_add(isa.float_i(sums), isa.mul_f(scale, isa.load_f(&x.d)), acc);
    match D::HAS_MIN {
        true => isa.fused_sub(min, isa.load_f(&x.sums), acc),
        false => acc,
    }
}

#[inline(always)]
fn quarter<I: Isa, D: Decode<I>>(isa: I, unit: &[u8], j: usize, x: &ActUnit) -> I::I {
    let codes = D::codes(isa, unit, j);
    let x = isa.load_codes(&x.codes.as_chunks().0[j]);
    let zero = isa.splat_i(0);
    match D::UNSIGNED {
        true => isa.dot4_unsigned(zero, codes, x),
        false => isa.dot4(zero, isa.biased(codes), x),
    }
}
