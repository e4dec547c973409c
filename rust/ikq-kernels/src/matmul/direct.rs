//! Products with few columns: codes go from the band's bytes through registers into the dot instruction.
//!
//! Per 32 (or twice 16) elements the products of codes are summed in integers, lanes being rows; then
//! [`add_32`] or [`add_16`] adds them to the sums in floats. [`super::tile`] does the same operations in the same order from a
//! decoded panel, so that a column's result does not depend on the columns beside it.

use std::marker::PhantomData;
use std::ops::Range;

use ikq_decode::lanes::lane_header;
use ikq_decode::{BlockType, Decode, Decoding, LaneCodes, LaneScales, LaneUnit};
use ikq_simd::{Isa, IsaKind, IsaOp, array, run};

use super::bands::{AHEAD, BAND, Bands, Tail, n_units};
use crate::act::{ActUnit, Activations};

/// `out[c * stride + r] = row r . column columns[c]`, all in their 8-bit form.
pub(super) struct Direct<'a> {
    pub bands: &'a Bands<'a>,
    pub acts: &'a Activations,
    pub columns: &'a [u32],
    pub out: &'a mut [f32],
    pub stride: usize,
}

/// Computes the products.
pub(super) fn multiply<T: BlockType>(kind: IsaKind, op: Direct<'_>) {
    run(kind, OfType::<T>(op, PhantomData));
}

struct OfType<'a, T>(Direct<'a>, PhantomData<T>);

impl<T: BlockType> IsaOp for OfType<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let mut op = self.0;
        let mut tail = Tail::new();
        let n_bands = op.bands.n();
        // bands that are read again for further columns stay in a near cache meanwhile
        let step = if is_one_pass::<I>(op.columns.len()) { n_bands } else { BANDS_AT_ONCE };
        for bands in (0..n_bands).step_by(step.max(1)) {
            let bands = bands..n_bands.min(bands + step);
            let mut first = 0;
            while first < op.columns.len() {
                let left = op.columns.len() - first;
                // A count that has no kernel of its own takes a larger one, with a column more than once; but five and
                // six columns are faster as four and the others.
                let n = if I::REGISTERS >= 32 && left > 6 {
                    columns::<I, T::Decoder<I>, MOST_COLUMNS>(isa, &mut op, first, bands.clone(), &mut tail)
                } else if I::REGISTERS >= 8 && left > 2 {
                    columns::<I, T::Decoder<I>, 4>(isa, &mut op, first, bands.clone(), &mut tail)
                } else if I::REGISTERS >= 8 && left > 1 {
                    columns::<I, T::Decoder<I>, 2>(isa, &mut op, first, bands.clone(), &mut tail)
                } else {
                    columns::<I, T::Decoder<I>, 1>(isa, &mut op, first, bands.clone(), &mut tail)
                };
                first += n;
            }
        }
    }
}

/// Columns that one pass over the bands takes at most.
const MOST_COLUMNS: usize = 8;

/// Whether so many columns are done when the bands were read once; see the choice of kernels in [`OfType::run`].
fn is_one_pass<I: Isa>(columns: usize) -> bool {
    match columns {
        0..=1 => true,
        2..=4 => I::REGISTERS >= 8,
        7..=MOST_COLUMNS => I::REGISTERS >= 32,
        _ => false,
    }
}

/// Columns from which on every type asks for lines ahead: between two lines there is so much to do that the machine does
/// not look far enough by itself.
const COLUMNS_THAT_ASK: usize = 4;

/// Bands that several passes go over before the next ones are read.
const BANDS_AT_ONCE: usize = 4;

/// Some bands times `C` columns from `first` on; returns `C`.
#[inline(always)]
fn columns<I: Isa, D: Decode<I>, const C: usize>(
    isa: I,
    op: &mut Direct<'_>,
    first: usize,
    bands: Range<usize>,
    tail: &mut Tail,
) -> usize {
    let n_units = n_units(op.bands.k);
    let band_bytes = op.bands.form.band_bytes(op.bands.k);
    let columns = &op.columns[first..];
    let columns = &columns[..C.min(columns.len())];
    let mut x: [&[ActUnit]; C] = [&[]; C];
    for (c, x) in x.iter_mut().enumerate() {
        *x = &op.acts.units(columns[c.min(columns.len() - 1)] as usize)[..n_units];
    }
    let mut scales = LaneScales::new(isa);
    for b in bands {
        let band = op.bands.band(b);
        tail.fill::<I, D>(&band);
        let header = match op.bands.header {
            Some(header) => isa.splat_f(header),
            None => lane_header::<I, D>(isa, band.headers),
        };
        let mut acc = [isa.splat_f(0.0); C];
        for u in 0..n_units {
            let unit = band.unit::<I, D>(u, tail);
            if op.bands.ask_ahead {
                band.ask_smalls::<I, D>(u, band_bytes);
            }
            D::lane_scales(isa, header, &unit, &mut scales);
            product_scales::<I, D>(isa, &mut scales);
            let mut units = [&x[0][u]; C];
            for (unit, x) in units.iter_mut().zip(&x) {
                *unit = &x[u];
            }
            let mut starts = [[0; 16]; C];
            for (starts, x) in starts.iter_mut().zip(&units) {
                sum_starts::<I, D>(isa, x, starts);
            }
            let pair = Units::<I, C> { unit: &unit, scales: &scales, columns: &units, starts: &starts };
            // without a loop around them the parts share what they read, and their shifts are constants
            let together =
                if I::REGISTERS >= 32 && (C <= 4 || D::DECODING != Decoding::Heavy || D::TOGETHER == 8) {
                    D::TOGETHER
                } else {
                    1
                };
            let ask = op.bands.ask_ahead && (D::ASKS_AHEAD || C >= COLUMNS_THAT_ASK);
            // a macro, because what a closure does is not certain to be inlined
            macro_rules! part {
                ($b:expr) => {
                    if ask {
                        band.ask_words::<I, D>(u, $b, AHEAD);
                    }
                    pair.add::<D>(isa, $b, &mut acc);
                };
            }
            for b in (0..8).step_by(together) {
                part!(b);
                if together >= 2 {
                    part!(b + 1);
                }
                if together >= 4 {
                    part!(b + 2);
                    part!(b + 3);
                }
                if together >= 8 {
                    part!(b + 4);
                    part!(b + 5);
                    part!(b + 6);
                    part!(b + 7);
                }
            }
        }
        for (c, acc) in acc.into_iter().enumerate().take(columns.len()) {
            let out = &mut op.out[(first + c) * op.stride + BAND * b..];
            let n = BAND.min(op.bands.n_rows - BAND * b);
            match out.first_chunk_mut() {
                Some(out) if n == BAND => isa.store_f(acc, out),
                _ => out[..n].copy_from_slice(&isa.array(acc)[..n]),
            }
        }
    }
    C
}

/// A unit of a band, and of columns.
struct Units<'a, I: Isa, const C: usize> {
    unit: &'a LaneUnit<'a>,
    scales: &'a LaneScales<I::F>,
    columns: &'a [&'a ActUnit; C],
    starts: &'a [[i32; 16]; C],
}

impl<I: Isa, const C: usize> Units<'_, I, C> {
    /// Adds the products of the 32 elements `b`.
    #[inline(always)]
    fn add<D: Decode<I>>(&self, isa: I, b: usize, acc: &mut [I::F; C]) {
        let Units { unit, scales, columns, starts } = self;
        let codes = D::lanes(isa, unit, b);
        if D::PER_16 {
            let sums = [
                dots::<I, D, C, 4>(isa, codes.first_chunk().expect("eight"), columns, starts, 2 * b),
                dots::<I, D, C, 4>(isa, codes.last_chunk().expect("eight"), columns, starts, 2 * b + 1),
            ];
            for c in 0..C {
                let (scale, min) = (&scales.scale[2 * b..2 * b + 2], &scales.min[2 * b..2 * b + 2]);
                let sums = [sums[0][c], sums[1][c]];
                acc[c] = add_16::<I>(isa, sums, scale, min, D::HAS_MIN, columns[c], b, acc[c]);
            }
        } else {
            let sums = dots::<I, D, C, 8>(isa, &codes, columns, starts, b);
            for c in 0..C {
                let (scale, min) = (scales.scale[b], scales.min[b]);
                acc[c] = add_32::<I>(isa, sums[c], scale, min, D::HAS_MIN, columns[c], b, acc[c]);
            }
        }
    }
}

/// Puts the type's factor of products into its scales.
#[inline(always)]
pub(super) fn product_scales<I: Isa, D: Decode<I>>(isa: I, scales: &mut LaneScales<I::F>) {
    if D::PRODUCT_FACTOR != 1.0 {
        for scale in scales.scale.iter_mut().take(if D::PER_16 { 16 } else { 8 }) {
            *scale = isa.mul_f(*scale, isa.splat_f(D::PRODUCT_FACTOR));
        }
    }
}

/// What sums of products of codes with an offset start from, per 16 elements or 32: what the offset takes away. It is
/// made for a whole unit, as one vector.
#[inline(always)]
fn sum_starts<I: Isa, D: Decode<I>>(isa: I, x: &ActUnit, out: &mut [i32; 16]) {
    if let LaneCodes::Offset(n) = D::LANE_CODES {
        let debts = if D::PER_16 { x.debts } else { array(|b| x.debts_32[b % 8]) };
        isa.store_i(isa.sra_i(isa.load_i(&debts), 7 - n), out);
    }
}

/// Sums of products of `N` values of codes: those of the `4 N` elements `g`.
#[inline(always)]
fn dots<I: Isa, D: Decode<I>, const C: usize, const N: usize>(
    isa: I,
    codes: &[I::B64; N],
    x: &[&ActUnit; C],
    starts: &[[i32; 16]; C],
    g: usize,
) -> [I::I; C] {
    let mut sums = [isa.splat_i(0); C];
    for c in 0..C {
        match D::LANE_CODES {
            LaneCodes::Offset(_) => sums[c] = isa.splat_i(starts[c][g]),
            LaneCodes::Biased if I::CODE_BIAS != 0 => {
                sums[c] = isa.splat_i(if N == 4 { x[c].debts[g] } else { x[c].debts_32[g] });
            }
            _ => {}
        }
    }
    if I::CODE_BIAS == 0 && D::SMALL > 1 {
        for c in 0..C {
            let x = x[c].codes.as_chunks::<4>().0[N * g..].first_chunk().expect("the codes of a group");
            sums[c] = match D::SMALL {
                8 => isa.dots_of_small::<N>(sums[c], codes, x),
                4 => small_dots::<I, N, 4>(isa, sums[c], codes, x),
                _ => small_dots::<I, N, 2>(isa, sums[c], codes, x),
            };
        }
        return sums;
    }
    // a second sum where there is one column, so that not every product waits for the one before
    let mut others = [isa.splat_i(0); C];
    for (i, codes) in codes.iter().enumerate() {
        for c in 0..C {
            let four = isa.splat_4_codes(&x[c].codes.as_chunks::<4>().0[N * g + i]);
            let sum = if C == 1 && i % 2 == 1 { &mut others[c] } else { &mut sums[c] };
            *sum = match D::LANE_CODES {
                LaneCodes::Biased => isa.dot4(*sum, *codes, four),
                _ => isa.dot4_unsigned(*sum, *codes, four),
            };
        }
    }
    if C == 1 {
        sums[0] = isa.add_i(sums[0], others[0]);
    }
    sums
}

/// [`ikq_simd::Products::dots_of_small`] of `G` values at a time.
#[inline(always)]
pub(super) fn small_dots<I: Isa, const N: usize, const G: usize>(
    isa: I,
    sum: I::I,
    codes: &[I::B64; N],
    x: &[[i8; 4]; N],
) -> I::I {
    let mut sum = sum;
    for (codes, x) in codes.as_chunks::<G>().0.iter().zip(x.as_chunks::<G>().0) {
        sum = isa.dots_of_small::<G>(sum, codes, x);
    }
    sum
}

/// Adds the products of 32 elements with one scale.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "the operands of a step")]
pub(super) fn add_32<I: Isa>(
    isa: I,
    sums: I::I,
    scale: I::F,
    min: I::F,
    has_min: bool,
    x: &ActUnit,
    b: usize,
    acc: I::F,
) -> I::F {
    let product = isa.mul_f(isa.float_i(sums), scale);
    let acc = isa.fused_add(product, isa.splat_f(x.d[2 * b]), acc);
    match has_min {
        true => isa.fused_sub(min, isa.splat_f(x.sums_32[b]), acc),
        false => acc,
    }
}

/// Adds the products of 32 elements with a scale for each half.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "the operands of a step")]
pub(super) fn add_16<I: Isa>(
    isa: I,
    sums: [I::I; 2],
    scale: &[I::F],
    min: &[I::F],
    has_min: bool,
    x: &ActUnit,
    b: usize,
    acc: I::F,
) -> I::F {
    let product = isa.mul_f(isa.float_i(sums[0]), scale[0]);
    let product = isa.fused_add(isa.float_i(sums[1]), scale[1], product);
    let acc = isa.fused_add(product, isa.splat_f(x.d[2 * b]), acc);
    match has_min {
        true => {
            let acc = isa.fused_sub(min[0], isa.splat_f(x.sums[2 * b]), acc);
            isa.fused_sub(min[1], isa.splat_f(x.sums[2 * b + 1]), acc)
        }
        false => acc,
    }
}
