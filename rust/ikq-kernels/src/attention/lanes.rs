//! Rows of sixty-four positions side by side.
//!
//! A group in lanes holds the numbers of its rows in the rows' order, each as a run of [`LANES`] numbers, one per
//! position: floats and halves are runs of their kind; a block of 32 codes is a run of half-precision numbers for each
//! that the block begins with, then a run of bytes for each of its bytes. A score is then a chain of products in a lane
//! of its own, without sums over lanes, and blocks are decoded without turning rows into columns.

use std::marker::PhantomData;
use std::ops::Range;

use ikq_formats::codebook::IQ4NL_VALUES;
use ikq_simd::{Isa, IsaKind, IsaOp, array, run};

use super::types::CacheType;

/// Positions that stand side by side.
pub(super) const LANES: usize = 64;
/// Numbers of a vector, which kernels work on at once.
pub(super) const VECTOR: usize = 16;

/// Writes the bytes of an encoded row to its lane of a group.
pub(super) fn put(ty: CacheType, row: &[u8], lane: usize, group: &mut [u8]) {
    each_run(ty, row.len(), |at, n| {
        let to = &mut group[LANES * at + lane * n..][..n];
        to.copy_from_slice(&row[at..at + n]);
    });
}

/// Reads the bytes of an encoded row from its lane of a group.
pub(super) fn take(ty: CacheType, group: &[u8], lane: usize, row: &mut [u8]) {
    each_run(ty, row.len(), |at, n| row[at..at + n].copy_from_slice(&group[LANES * at + lane * n..][..n]));
}

/// Where the numbers of a row stand that are kept in one piece, and of how many bytes they are.
#[inline(always)]
fn each_run(ty: CacheType, row_bytes: usize, mut go: impl FnMut(usize, usize)) {
    match ty.element_bytes() {
        Some(4) => (0..row_bytes).step_by(4).for_each(|at| go(at, 4)),
        Some(_) => (0..row_bytes).step_by(2).for_each(|at| go(at, 2)),
        None => {
            let (n_halves, block) = (n_halves(ty), ty.row_bytes(BLOCK).unwrap_or(row_bytes));
            for block in (0..row_bytes).step_by(block).map(|b| b..b + block) {
                let codes = block.start + 2 * n_halves;
                (block.start..codes).step_by(2).for_each(|at| go(at, 2));
                (codes..block.end).for_each(|at| go(at, 1));
            }
        }
    }
}

/// Elements that share a scale.
const BLOCK: usize = 32;

/// Half-precision numbers that a block begins with.
fn n_halves(ty: CacheType) -> usize {
    if ty == CacheType::Q4_1 { Q4_1::N_HALVES } else { 1 }
}

/// Floats of groups of codes: element l of key j at `out[l * n + j]`, `n` being the number of keys.
///
/// # Panics
/// When `lanes` do not begin and end at multiples of sixteen, or `ty` is no type of blocks.
pub(super) fn widen(kind: IsaKind, ty: CacheType, group: &[u8], lanes: Range<usize>, out: &mut [f32]) {
    assert!(lanes.start.is_multiple_of(16) && lanes.end.is_multiple_of(16), "{lanes:?}");
    match ty {
        CacheType::Q8_0 => run(kind, Widen::<Q8_0> { group, lanes, out, ty: PhantomData }),
        CacheType::Q6_0 => run(kind, Widen::<Q6_0> { group, lanes, out, ty: PhantomData }),
        CacheType::Q4_0 => run(kind, Widen::<Q4_0> { group, lanes, out, ty: PhantomData }),
        CacheType::Q4_1 => run(kind, Widen::<Q4_1> { group, lanes, out, ty: PhantomData }),
        CacheType::IQ4_NL => run(kind, Widen::<IQ4_NL> { group, lanes, out, ty: PhantomData }),
        CacheType::F32 | CacheType::F16 | CacheType::BF16 => unreachable!("floats are read where they stand"),
    }
}

struct Widen<'a, T> {
    group: &'a [u8],
    lanes: Range<usize>,
    out: &'a mut [f32],
    ty: PhantomData<T>,
}

impl<T: Coded> IsaOp for Widen<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Widen { group, lanes, out, .. } = self;
        let n = lanes.len();
        let blocks = group.chunks_exact((2 * T::N_HALVES + T::N_BYTES) * LANES);
        for (block, out) in blocks.zip(out.chunks_exact_mut(BLOCK * n)) {
            let (halves, bytes) = block.split_at(2 * T::N_HALVES * LANES);
            for first in lanes.clone().step_by(16) {
                let half = |i: usize| {
                    let at = 2 * (i.min(T::N_HALVES - 1) * LANES + first);
                    isa.load_f16(halves[at..at + 32].as_array().expect("sixteen numbers"))
                };
                let halves = [half(0), half(1)];
                let codes = |i: usize| {
                    let bytes: &[u8; 16] =
                        bytes[i * LANES + first..][..16].as_array().expect("sixteen bytes");
                    isa.load_i8(&array(|lane| bytes[lane] as i8))
                };
                for i in 0..BLOCK / 2 {
                    let pair = T::pair(isa, codes, i);
                    for (x, l) in pair.into_iter().zip([i, i + BLOCK / 2]) {
                        let out = &mut out[l * n + first - lanes.start..][..16];
                        isa.store_f(T::value(isa, x, halves), out.as_mut_array().expect("sixteen keys"));
                    }
                }
            }
        }
    }
}

/// A type of blocks whose keys stand in lanes.
trait Coded {
    /// Half-precision numbers that a block begins with.
    const N_HALVES: usize = 1;
    /// Bytes of a block's codes.
    const N_BYTES: usize;
    /// What the codes of elements `i` and `i + 16` stand for, without scale. `bytes` gives byte number k of the
    /// codes, as `i8`.
    fn pair<I: Isa>(isa: I, bytes: impl Fn(usize) -> I::I, i: usize) -> [I::F; 2];
    /// Applies the block's scale and minimum to a code, with the same rounding as where rows are decoded.
    #[inline(always)]
    fn value<I: Isa>(isa: I, code: I::F, [scale, _]: [I::F; 2]) -> I::F {
        isa.mul_f(scale, code)
    }
}

/// The low and the high four bits of bytes.
#[inline(always)]
fn nibbles<I: Isa>(isa: I, bytes: I::I) -> [I::I; 2] {
    let low = isa.splat_i(15);
    [isa.and_i(bytes, low), isa.and_i(isa.shr_i(bytes, 4), low)]
}

struct Q8_0;

impl Coded for Q8_0 {
    const N_BYTES: usize = 32;
    #[inline(always)]
    fn pair<I: Isa>(isa: I, bytes: impl Fn(usize) -> I::I, i: usize) -> [I::F; 2] {
        [isa.float_i(bytes(i)), isa.float_i(bytes(i + 16))]
    }
}

struct Q6_0;

impl Coded for Q6_0 {
    const N_BYTES: usize = 24;
    /// Two high bits of four elements in each of eight bytes: of t, t + 16, t + 8, t + 24 from the lowest on.
    #[inline(always)]
    fn pair<I: Isa>(isa: I, bytes: impl Fn(usize) -> I::I, i: usize) -> [I::F; 2] {
        let high = isa.shr_i(bytes(i % 8), 4 * (i as u32 / 8));
        let [a, b] = nibbles(isa, bytes(8 + i));
        let two = isa.splat_i(0x30);
        let a = isa.or_i(a, isa.and_i(isa.shl_i(high, 4), two));
        let b = isa.or_i(b, isa.and_i(isa.shl_i(high, 2), two));
        let middle = isa.splat_f(32.0);
        [isa.sub_f(isa.float_i(a), middle), isa.sub_f(isa.float_i(b), middle)]
    }
}

struct Q4_0;

impl Coded for Q4_0 {
    const N_BYTES: usize = 16;
    #[inline(always)]
    fn pair<I: Isa>(isa: I, bytes: impl Fn(usize) -> I::I, i: usize) -> [I::F; 2] {
        let [a, b] = nibbles(isa, bytes(i));
        let middle = isa.splat_f(8.0);
        [isa.sub_f(isa.float_i(a), middle), isa.sub_f(isa.float_i(b), middle)]
    }
}

struct Q4_1;

impl Coded for Q4_1 {
    const N_HALVES: usize = 2;
    const N_BYTES: usize = 16;
    #[inline(always)]
    fn pair<I: Isa>(isa: I, bytes: impl Fn(usize) -> I::I, i: usize) -> [I::F; 2] {
        let [a, b] = nibbles(isa, bytes(i));
        [isa.float_i(a), isa.float_i(b)]
    }
    #[inline(always)]
    fn value<I: Isa>(isa: I, code: I::F, [scale, least]: [I::F; 2]) -> I::F {
        isa.mul_add_f(scale, code, least)
    }
}

#[allow(non_camel_case_types)]
struct IQ4_NL;

impl Coded for IQ4_NL {
    const N_BYTES: usize = 16;
    #[inline(always)]
    fn pair<I: Isa>(isa: I, bytes: impl Fn(usize) -> I::I, i: usize) -> [I::F; 2] {
        let [a, b] = nibbles(isa, bytes(i));
        let table = isa.load_f(&array(|k| f32::from(IQ4NL_VALUES[k])));
        [isa.lut16_f(table, a), isa.lut16_f(table, b)]
    }
}

#[cfg(test)]
mod tests {
    use super::super::encode::{decode, encode};
    use super::super::scale::Fit;
    use super::*;
    use ikq_simd::available;

    #[test]
    fn lanes_hold_rows_and_decode_to_the_same_bits() {
        let d = 96;
        for kind in available() {
            for ty in CacheType::ALL {
                let row_bytes = ty.row_bytes(d).expect("whole blocks");
                let mut group = vec![0xaa; LANES * row_bytes];
                let mut rows = Vec::new();
                for lane in 0..LANES {
                    let x: Vec<f32> =
                        (0..d).map(|i| ((i * i + 7 * lane) as f32 * 0.37).sin() * 3.0).collect();
                    let mut row = vec![0; row_bytes];
                    encode(kind, ty, Fit::Nearest, &x, &mut row);
                    put(ty, &row, lane, &mut group);
                    rows.push(row);
                }
                for (lane, row) in rows.iter().enumerate() {
                    let mut again = vec![0; row_bytes];
                    take(ty, &group, lane, &mut again);
                    assert_eq!(&again, row, "{} {lane}", ty.name());
                }
                if ty.element_bytes().is_some() {
                    continue;
                }
                for lanes in [0..64, 16..48, 48..64] {
                    let n = lanes.len();
                    let mut out = vec![f32::NAN; d * n];
                    widen(kind, ty, &group, lanes.clone(), &mut out);
                    for (j, row) in rows[lanes].iter().enumerate() {
                        let mut floats = vec![0.0; d];
                        decode(kind, ty, row, &mut floats);
                        let found = out.chunks_exact(n).map(|of_element| of_element[j]);
                        assert!(found.eq(floats), "{} {} {j}", kind.name(), ty.name());
                    }
                }
            }
        }
    }
}
