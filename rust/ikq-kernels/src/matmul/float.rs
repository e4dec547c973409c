//! Products in float32: rows of floats in lanes times columns of floats.
//!
//! Four sums per row and column, elements 4 i + e going to sum e, and their sum at last: enough that do not wait
//! for one another when there is one column, and the same for any number.

use std::marker::PhantomData;

use ikq_decode::lanes::{lane_header, lane_values};
use ikq_decode::{BlockType, Decode, LaneScales};
use ikq_simd::{Isa, IsaKind, IsaOp, run};

use super::bands::{BAND, Bands, Tail, n_units};
use crate::act::Activations;

/// A line of sixteen floats, one per row.
trait Element: 'static {
    const LINE_BYTES: usize;
    fn load<I: Isa>(isa: I, line: &[u8]) -> I::F;
}

struct Single;
struct Half;
struct BFloat;

impl Element for Single {
    const LINE_BYTES: usize = 64;
    #[inline(always)]
    fn load<I: Isa>(isa: I, line: &[u8]) -> I::F {
        isa.load_f32(line.first_chunk().expect("sixteen floats"))
    }
}

impl Element for Half {
    const LINE_BYTES: usize = 32;
    #[inline(always)]
    fn load<I: Isa>(isa: I, line: &[u8]) -> I::F {
        isa.load_f16(line.first_chunk().expect("sixteen halves"))
    }
}

impl Element for BFloat {
    const LINE_BYTES: usize = 32;
    #[inline(always)]
    fn load<I: Isa>(isa: I, line: &[u8]) -> I::F {
        isa.load_bf16(line.first_chunk().expect("sixteen bfloats"))
    }
}

/// What the lines of a band hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lines {
    F32,
    F16,
    BF16,
}

/// `out[c * stride + r] = row r of the band . column columns[c]` for the first `n_rows` rows of a band; `lines`
/// are its elements, one line of sixteen after another.
pub(super) struct Product<'a> {
    pub lines: &'a [u8],
    pub n_rows: usize,
    pub acts: &'a Activations,
    pub columns: &'a [u32],
    pub out: &'a mut [f32],
    pub stride: usize,
}

/// Computes the products.
pub(super) fn multiply(kind: IsaKind, lines: Lines, product: Product<'_>) {
    match lines {
        Lines::F32 => run(kind, OfElement::<Single>(product, PhantomData)),
        Lines::F16 => run(kind, OfElement::<Half>(product, PhantomData)),
        Lines::BF16 => run(kind, OfElement::<BFloat>(product, PhantomData)),
    }
}

struct OfElement<'a, E>(Product<'a>, PhantomData<E>);

impl<E: Element> IsaOp for OfElement<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let mut op = self.0;
        let mut first = 0;
        while first < op.columns.len() {
            let left = op.columns.len() - first;
            first += if I::REGISTERS >= 32 && left > 2 {
                columns::<I, E, 4>(isa, &mut op, first)
            } else if I::REGISTERS == 8 && left > 4 {
                sums_in_turn::<I, E, 6>(isa, &mut op, first)
            } else if I::REGISTERS == 8 && left > 2 {
                sums_in_turn::<I, E, 4>(isa, &mut op, first)
            } else if I::REGISTERS >= 8 && left > 1 {
                columns::<I, E, 2>(isa, &mut op, first)
            } else {
                columns::<I, E, 1>(isa, &mut op, first)
            };
        }
    }
}

/// The floats of `C` columns from `first` on, of a column more than once where there are fewer, and how many there are.
#[inline(always)]
fn floats<'a, const C: usize>(op: &Product<'a>, first: usize) -> ([&'a [f32]; C], usize) {
    let columns = &op.columns[first..];
    let columns = &columns[..C.min(columns.len())];
    let mut x: [&[f32]; C] = [&[]; C];
    for (c, x) in x.iter_mut().enumerate() {
        *x = op.acts.floats(columns[c.min(columns.len() - 1)] as usize);
    }
    (x, columns.len())
}

/// Elements for which [`sums_in_turn`] goes on with one of the four sums before it takes the next.
const TURN: usize = 128;

/// [`columns`] for sets whose registers hold one sum of each of many columns, but not all four.
#[inline(always)]
fn sums_in_turn<I: Isa, E: Element, const C: usize>(isa: I, op: &mut Product<'_>, first: usize) -> usize {
    let (x, n_columns) = floats::<C>(op, first);
    let k = op.acts.k();
    let mut acc = [[isa.splat_f(0.0); C]; 4];
    let mut turns: [&[[f32; TURN]]; C] = [&[]; C];
    for c in 0..C {
        turns[c] = x[c].as_chunks().0;
    }
    for (t, lines) in op.lines[..k * E::LINE_BYTES].chunks_exact(TURN * E::LINE_BYTES).enumerate() {
        let mut x = [&[0.0; TURN]; C];
        for c in 0..C {
            x[c] = &turns[c][t];
        }
        for (e, sums) in acc.iter_mut().enumerate() {
            let mut here = *sums;
            for i in (e..TURN).step_by(4) {
                let w = E::load(isa, &lines[i * E::LINE_BYTES..]);
                for c in 0..C {
                    here[c] = isa.fused_add(w, isa.splat_f(x[c][i]), here[c]);
                }
            }
            *sums = here;
        }
    }
    for i in k / TURN * TURN..k {
        let w = E::load(isa, &op.lines[i * E::LINE_BYTES..]);
        for c in 0..C {
            acc[i % 4][c] = isa.fused_add(w, isa.splat_f(x[c][i]), acc[i % 4][c]);
        }
    }
    let [a, b, third, fourth] = acc;
    for (c, (((a, b), third), fourth)) in
        a.into_iter().zip(b).zip(third).zip(fourth).enumerate().take(n_columns)
    {
        store(isa, op, first + c, [a, b, third, fourth]);
    }
    C
}

/// Writes the four sums of a column.
#[inline(always)]
fn store<I: Isa>(isa: I, op: &mut Product<'_>, column: usize, acc: [I::F; 4]) {
    let sum = isa.add_f(isa.add_f(acc[0], acc[1]), isa.add_f(acc[2], acc[3]));
    let out = &mut op.out[column * op.stride..];
    match out.first_chunk_mut() {
        Some(out) if op.n_rows == BAND => isa.store_f(sum, out),
        _ => out[..op.n_rows].copy_from_slice(&isa.array(sum)[..op.n_rows]),
    }
}

/// `C` columns from `first` on, a column more than once where there are fewer; returns `C`.
#[inline(always)]
fn columns<I: Isa, E: Element, const C: usize>(isa: I, op: &mut Product<'_>, first: usize) -> usize {
    let (x, n_columns) = floats::<C>(op, first);
    let mut acc = [[isa.splat_f(0.0); 4]; C];
    let k = op.acts.k();
    let lines = &op.lines[..k * E::LINE_BYTES];
    for (i, four) in lines.chunks_exact(4 * E::LINE_BYTES).enumerate() {
        for e in 0..4 {
            let w = E::load(isa, &four[e * E::LINE_BYTES..]);
            for c in 0..C {
                acc[c][e] = isa.fused_add(w, isa.splat_f(x[c][4 * i + e]), acc[c][e]);
            }
        }
    }
    for (e, line) in lines[k / 4 * 4 * E::LINE_BYTES..].chunks_exact(E::LINE_BYTES).enumerate() {
        let w = E::load(isa, line);
        for c in 0..C {
            acc[c][e] = isa.fused_add(w, isa.splat_f(x[c][k / 4 * 4 + e]), acc[c][e]);
        }
    }
    for (c, acc) in acc.into_iter().enumerate().take(n_columns) {
        store(isa, op, first + c, acc);
    }
    C
}

/// The weights of band `band` as lines of floats, as dequantizing rounds them; `out` has room for whole units.
pub(super) fn decode<T: BlockType>(kind: IsaKind, bands: &Bands<'_>, band: usize, out: &mut [u8]) {
    run(kind, DecodeBand::<T> { bands, band, out, ty: PhantomData });
}

struct DecodeBand<'a, T> {
    bands: &'a Bands<'a>,
    band: usize,
    out: &'a mut [u8],
    ty: PhantomData<T>,
}

impl<T: BlockType> IsaOp for DecodeBand<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        decode_band::<I, T::Decoder<I>>(isa, self.bands, self.band, self.out);
    }
}

#[inline(always)]
fn decode_band<I: Isa, D: Decode<I>>(isa: I, bands: &Bands<'_>, band: usize, out: &mut [u8]) {
    let band = bands.band(band);
    let mut tail = Tail::new();
    tail.fill::<I, D>(&band);
    let header = match bands.header {
        Some(header) => isa.splat_f(header),
        None => lane_header::<I, D>(isa, band.headers),
    };
    let mut scales = LaneScales::new(isa);
    let out = out.as_chunks_mut::<64>().0;
    for u in 0..n_units(bands.k) {
        let unit = band.unit::<I, D>(u, &tail);
        D::lane_scales(isa, header, &unit, &mut scales);
        for (b, out) in out[256 * u..256 * (u + 1)].chunks_exact_mut(32).enumerate() {
            lane_values::<I, D>(isa, &unit, &scales, b, |i, value| {
                isa.store(isa.of_ints(isa.bits_i(value)), &mut out[i]);
            });
        }
    }
}
