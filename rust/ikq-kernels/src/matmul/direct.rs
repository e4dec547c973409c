//! Products with few columns: codes go from the band's bytes through registers into the dot instruction.
//!
//! Per 32 (or twice 16) elements the products of codes are summed in integers, lanes being rows; [`scaled`] multiplies
//! them with the weights' scale, and [`add_32`] or [`add_16`] adds that to the sums in floats. At the end of the rows the
//! sums are multiplied by [`Bands::row_scales`]. [`super::tile`] does the same operations in the same order from a decoded panel, so that a column's result does not depend on the columns beside it.

use std::marker::PhantomData;
use std::ops::Range;

use ikq_decode::{BlockType, Decode, Decoding, LaneCodes, LaneScales, LaneUnit};
use ikq_simd::{Isa, IsaKind, IsaOp, LaneIndices, TakeLanes, array, run};

use super::bands::{AHEAD, BAND, Eighth, Product, Tail, n_units};
use super::integers::{self, Factors, UnitSums, scales_integers};
use crate::act::{ActBlock, ActUnit, Debts, FLOAT_START};

/// Computes the product from the 8-bit form of the columns.
pub(super) fn multiply<T: BlockType>(kind: IsaKind, op: Product<'_>) {
    run(kind, OfType::<T>(op, PhantomData));
}

struct OfType<'a, T>(Product<'a>, PhantomData<T>);

impl<T: BlockType> IsaOp for OfType<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let mut op = self.0;
        let mut tail = Tail::new();
        let n_bands = op.bands.n();
        // bands that are read again for further columns stay in a near cache meanwhile
        let is_one_pass = kernel_columns::<I, T::Decoder<I>>(op.columns.len()) >= op.columns.len();
        let step = if is_one_pass { n_bands } else { BANDS_AT_ONCE };
        for bands in (0..n_bands).step_by(step.max(1)) {
            let bands = bands..n_bands.min(bands + step);
            let mut first = 0;
            while first < op.columns.len() {
                let c = kernel_columns::<I, T::Decoder<I>>(op.columns.len() - first);
                // what is said of registers keeps kernels out of the code that an instruction set never takes
                let n = if I::REGISTERS >= 32 && c == MOST_COLUMNS {
                    columns::<I, T::Decoder<I>, MOST_COLUMNS>(isa, &mut op, first, bands.clone(), &mut tail)
                } else if I::REGISTERS >= 8 && c == 4 {
                    columns::<I, T::Decoder<I>, 4>(isa, &mut op, first, bands.clone(), &mut tail)
                } else if I::REGISTERS >= 8 && c == 2 {
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

/// Columns of the kernel that is taken next when `left` columns are left. A count that has no kernel of its own takes a
/// larger one, with a column more than once; but five are faster as four and one where decoding is not heavy.
#[inline(always)]
fn kernel_columns<I: Isa, D: Decode<I>>(left: usize) -> usize {
    match left {
        6.. if I::REGISTERS >= 32 => MOST_COLUMNS,
        5 if I::REGISTERS >= 32 && D::DECODING == Decoding::Heavy => MOST_COLUMNS,
        3.. if I::REGISTERS >= 8 => 4,
        2.. if I::REGISTERS >= 8 => 2,
        _ => 1,
    }
}

/// Parts of a unit that are written out, one after another. What they take of the machine's cache of decoded instructions must
/// leave room: with AVX2 two columns of eight parts are slower than one column was.
#[inline(always)]
const fn together<I: Isa, D: Decode<I>>(columns: usize) -> usize {
    if I::REGISTERS < 32 && columns == 2 && D::TOGETHER > 2 { 2 } else { D::TOGETHER }
}

/// Columns from which on every type asks for lines ahead: between two lines there is so much to do that the machine does
/// not look far enough by itself. With AVX2, which takes twice as many instructions, that is so with one column, too.
const COLUMNS_THAT_ASK: usize = 4;

/// Bands that several passes go over before the next ones are read.
const BANDS_AT_ONCE: usize = 4;

/// Some bands times `C` columns from `first` on; returns `C`.
#[inline(always)]
fn columns<I: Isa, D: Decode<I>, const C: usize>(
    isa: I,
    op: &mut Product<'_>,
    first: usize,
    bands: Range<usize>,
    tail: &mut Tail,
) -> usize {
    let n_units = n_units(op.bands.k);
    let band_bytes = op.bands.form.band_bytes(op.bands.k);
    let columns = &op.columns[first..];
    let columns = &columns[..C.min(columns.len())];
    let mut x: [&[ActUnit]; C] = [&[]; C];
    let mut debts: [&[Debts]; C] = [&[]; C];
    for (c, (x, debts)) in x.iter_mut().zip(&mut debts).enumerate() {
        let column = columns[c.min(columns.len() - 1)] as usize;
        *x = &op.acts.units(column)[..n_units];
        *debts = &op.acts.debts(column)[..n_units];
    }
    let mut scales = LaneScales::new(isa);
    let mut factors = Factors::new(isa);
    let mut indices = [LaneIndices::default(); 8];
    for b in bands {
        let band = op.bands.band(b);
        tail.fill::<I, D>(&band);
        let mut acc = [isa.splat_f(0.0); C];
        for u in 0..n_units {
            let unit = band.unit::<I, D>(u, tail);
            if op.bands.ask_ahead {
                band.ask_smalls::<I, D>(u, band_bytes);
            }
            if scales_integers::<I, D>() {
                factors.set::<D>(isa, &unit);
            } else {
                D::lane_scales(isa, isa.splat_f(1.0), &unit, &mut scales);
            }
            let mut units = [&x[0][u]; C];
            for (unit, x) in units.iter_mut().zip(&x) {
                *unit = &x[u];
            }
            let mut starts = [[0; 16]; C];
            if !scales_integers::<I, D>() {
                for (starts, debts) in starts.iter_mut().zip(&debts) {
                    sum_starts::<I, D>(isa, &debts[u], reads_floats::<I>(C), starts);
                }
            }
            if is_in_turn::<I, D>() {
                for (b, indices) in indices.iter_mut().enumerate() {
                    D::lane_indices(isa, &unit, b, indices);
                }
                // taken out of the registers that were stored they would take twice as long
                std::hint::black_box(&indices);
            }
            let pair = Units::<I, C> {
                unit: &unit,
                scales: &scales,
                factors: &factors,
                columns: &units,
                starts: &starts,
                indices: &indices,
            };
            // without a loop around them the parts share what they read, and their shifts are constants
            let is_apart = match I::REGISTERS {
                32.. => C <= 4 || D::DECODING != Decoding::Heavy || D::TOGETHER == 8,
                _ => C <= 2 && I::REGISTERS >= 8,
            };
            let together = if is_apart { together::<I, D>(C) } else { 1 };
            let mut sums = Sums { rows: acc, unit: UnitSums::begin(isa, D::HEADER_BYTES > 0, &acc) };
            let asks = D::ASKS_AHEAD || C >= COLUMNS_THAT_ASK || I::REGISTERS < 32;
            let ask = op.bands.ask_ahead && asks;
            // a macro, because what a closure does is not certain to be inlined
            macro_rules! part {
                ($b:expr) => {
                    if ask {
                        let eighth = Eighth { index: $b, is_constant: together == 8 };
                        band.ask_words::<I, D>(u, eighth, AHEAD);
                        if C < COLUMNS_THAT_ASK {
                            band.take_words::<I, D>(u, eighth);
                        }
                    }
                    pair.add::<D>(isa, $b, &mut sums);
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
            acc = sums.rows;
            if scales_integers::<I, D>() {
                sums.unit.end(isa, D::HEADER_BYTES > 0, D::HAS_MIN, factors.d, factors.dmin, &mut acc);
            }
        }
        let row_scales = op.bands.row_scales::<I, D>(isa, &band);
        for acc in &mut acc {
            *acc = isa.mul_f(*acc, row_scales);
        }
        store(isa, op, b, first..first + columns.len(), acc);
    }
    C
}

/// Writes the sums of band `b` to these columns of the output. `acc` may have more, for columns that were taken twice.
#[inline(always)]
fn store<I: Isa, const C: usize>(
    isa: I,
    op: &mut Product<'_>,
    b: usize,
    columns: Range<usize>,
    acc: [I::F; C],
) {
    let n = BAND.min(op.bands.n_rows - BAND * b);
    for (c, acc) in columns.zip(acc) {
        let out = &mut op.out[c * op.stride + BAND * b..];
        match out.first_chunk_mut() {
            Some(out) if n == BAND => isa.store_f(acc, out),
            _ => out[..n].copy_from_slice(&isa.array(acc)[..n]),
        }
    }
}

/// Whether each vector of codes is multiplied before the next is made: entries of the codebook are read one by one.
const fn is_in_turn<I: Isa, D: Decode<I>>() -> bool {
    D::CODEBOOK > I::LOOKED_UP
}

/// A unit of a band, and the same unit of `C` columns.
struct Units<'a, I: Isa, const C: usize> {
    unit: &'a LaneUnit<'a>,
    /// The unit's factors as floats, or, if the set [`scales_integers`], as integers.
    scales: &'a LaneScales<I::F>,
    factors: &'a Factors<I>,
    columns: &'a [&'a ActUnit; C],
    starts: &'a [[i32; 16]; C],
    indices: &'a [LaneIndices; 8],
}

/// Sums of `C` columns: the rows', and those of the unit if the set [`scales_integers`].
struct Sums<I: Isa, const C: usize> {
    rows: [I::F; C],
    unit: UnitSums<I, C>,
}

impl<I: Isa, const C: usize> Units<'_, I, C> {
    /// Adds the products of the 32 elements `b`.
    #[inline(always)]
    fn add<D: Decode<I>>(&self, isa: I, b: usize, sums: &mut Sums<I, C>) {
        let Units { unit, scales, factors, columns, starts, indices } = self;
        let acc = &mut sums.rows;
        if scales_integers::<I, D>() {
            let found = if is_in_turn::<I, D>() {
                let mut found = InTurn::<I, D, C>::new(isa, columns, starts, b);
                found.sums[0] = integers::starts::<I, D, C>(isa, columns, factors, b);
                found.scales = match D::PER_16 {
                    true => [factors.scale[2 * b], factors.scale[2 * b + 1]],
                    false => [factors.scale[b]; 2],
                };
                D::lanes_in_turn(isa, unit, b, &indices[b], &mut found);
                let mut both = found.sums[0];
                if D::PER_16 || C == 1 {
                    for (both, other) in both.iter_mut().zip(&found.sums[1]) {
                        *both = isa.add_i(*both, *other);
                    }
                }
                both
            } else {
                integers::sums::<I, D, C>(isa, &D::lanes_by_first(isa, unit, b), columns, factors, b)
            };
            for c in 0..C {
                let min = D::HAS_MIN.then_some(factors.min[b]);
                sums.unit.add(isa, c, found[c], min, D::PER_16, &columns[c][b]);
            }
            return;
        }
        if is_in_turn::<I, D>() {
            let mut sums = InTurn::<I, D, C>::new(isa, columns, starts, b);
            D::lanes_in_turn(isa, unit, b, &indices[b], &mut sums);
            let scale = &scales.scale[if D::PER_16 { 2 * b } else { b }..];
            let first = SumScale::new(isa, scale[0], reads_floats::<I>(C));
            let second = SumScale::new(isa, scale[1], false);
            for c in 0..C {
                let [sum, other] = [sums.sums[0][c], sums.sums[1][c]];
                let product = match D::PER_16 {
                    true => second.add_product(isa, other, first.product(isa, sum)),
                    false if C == 1 => first.product(isa, isa.add_i(sum, other)),
                    false => first.product(isa, sum),
                };
                acc[c] = isa.fused_add(product, isa.splat_f(columns[c][b].d), acc[c]);
            }
            return;
        }
        let codes = D::lanes(isa, unit, b);
        if D::PER_16 {
            let (scale, min) = (&scales.scale[2 * b..2 * b + 2], &scales.min[2 * b..2 * b + 2]);
            let scale =
                [SumScale::new(isa, scale[0], reads_floats::<I>(C)), SumScale::new(isa, scale[1], false)];
            let sums = [
                dots::<I, D, C, 4>(isa, codes.first_chunk().expect("eight"), columns, starts, 2 * b),
                dots::<I, D, C, 4>(isa, codes.last_chunk().expect("eight"), columns, starts, 2 * b + 1),
            ];
            for c in 0..C {
                let product = scale[1].add_product(isa, sums[1][c], scale[0].product(isa, sums[0][c]));
                acc[c] = add_16::<I>(isa, product, min, D::HAS_MIN, &columns[c][b], acc[c]);
            }
        } else {
            let scale = SumScale::new(isa, scales.scale[b], reads_floats::<I>(C));
            let sums = dots::<I, D, C, 8>(isa, &codes, columns, starts, b);
            for c in 0..C {
                let product = scale.product(isa, sums[c]);
                acc[c] = add_32::<I>(isa, product, scales.min[b], D::HAS_MIN, &columns[c][b], acc[c]);
            }
        }
    }
}

/// Sums of products of 32 elements, for types whose vectors of codes come one after another ([`Decode::lanes_in_turn`]): what
/// [`dots`] computes, in two sums, which are those of 16 elements each where scales are per 16. Codes have an offset, and there are no
/// mins, in all types with codebooks.
struct InTurn<'a, I: Isa, D, const C: usize> {
    sums: [[I::I; C]; 2],
    /// What is added in 16 bits meanwhile ([`ikq_simd::Products::pair_products`]).
    pairs: Option<[I::Pairs; C]>,
    /// The integer scales of both halves, if the set [`scales_integers`].
    scales: [I::I; 2],
    x: [&'a [[i8; 4]; 8]; C],
    types: PhantomData<D>,
}

impl<'a, I: Isa, D: Decode<I>, const C: usize> InTurn<'a, I, D, C> {
    #[inline(always)]
    fn new(isa: I, columns: &[&'a ActUnit; C], starts: &[[i32; 16]; C], b: usize) -> Self {
        const { assert!(D::CODEBOOK == 0 || matches!(D::LANE_CODES, LaneCodes::Offset(_)) && !D::HAS_MIN) };
        let mut sums = [[isa.splat_i(0); C]; 2];
        let mut x = [fours(&columns[0][b]); C];
        let at = if D::PER_16 { 2 * b } else { b };
        for c in 0..C {
            x[c] = fours(&columns[c][b]);
            sums[0][c] = isa.splat_i(starts[c][at]);
            if D::PER_16 {
                sums[1][c] = isa.splat_i(starts[c][at + 1]);
            }
        }
        InTurn { sums, pairs: None, scales: [isa.splat_i(0); 2], x, types: PhantomData }
    }
}

impl<I: Isa, D: Decode<I>, const C: usize> TakeLanes<I> for InTurn<'_, I, D, C> {
    #[inline(always)]
    fn take(&mut self, isa: I, i: usize, codes: I::B64) {
        let together = match D::SMALL {
            _ if I::CODE_BIAS != 0 => 1,
            5.. if D::PER_16 => 4,
            n => n,
        };
        let is_last = i % together == together - 1;
        // a second sum where there is one column, so that not every product waits for the one before
        let half = match D::PER_16 {
            true => i / 4,
            false if C == 1 => i / together % 2,
            false => 0,
        };
        for c in 0..C {
            let four = isa.splat_4_codes(&self.x[c][i]);
            let sum = &mut self.sums[half][c];
            if together == 1 {
                *sum = match scales_integers::<I, D>() {
                    true => isa.scaled_pairs(*sum, isa.pair_products(codes, four), self.scales[half]),
                    false => isa.dot4_unsigned(*sum, codes, four),
                };
                continue;
            }
            let mut product = isa.pair_products(codes, four);
            match &mut self.pairs {
                Some(pairs) if i.is_multiple_of(together) => pairs[c] = product,
                Some(pairs) => {
                    product = isa.add_pairs(pairs[c], product);
                    pairs[c] = product;
                }
                None => self.pairs = Some([product; C]),
            }
            if is_last {
                *sum = match scales_integers::<I, D>() {
                    true => isa.scaled_pairs(*sum, product, self.scales[half]),
                    false => isa.sum_pairs(*sum, product),
                };
            }
        }
    }
}

/// Whether a kernel of so many columns has sums that start from [`FLOAT_START`]: one more operation for the scale must be
/// less than one for each column. Where pairs are added in 16 bits ([`ikq_simd::Products::pair_products`]) the start is one
/// more operation for each column, and converting is faster. Results are the same.
pub(super) const fn reads_floats<I: Isa>(columns: usize) -> bool {
    I::REGISTERS >= 32 && columns >= 4
}

/// [`FLOAT_START`] as the integer that sums start from, or 0.
pub(super) const fn float_start(reads_floats: bool) -> i32 {
    if reads_floats { FLOAT_START.to_bits() as i32 } else { 0 }
}

/// A scale that sums of products are multiplied with.
#[derive(Clone, Copy)]
pub(super) struct SumScale<F> {
    scale: F,
    /// What takes [`FLOAT_START`] away, for sums that start from it.
    less: Option<F>,
}

impl<F: Copy> SumScale<F> {
    #[inline(always)]
    pub fn new<I: Isa<F = F>>(isa: I, scale: F, reads_floats: bool) -> SumScale<F> {
        let less = reads_floats.then(|| isa.mul_f(scale, isa.splat_f(-FLOAT_START)));
        SumScale { scale, less }
    }

    /// The scale times a sum of products.
    #[inline(always)]
    pub fn product<I: Isa<F = F>>(&self, isa: I, sum: I::I) -> F {
        match self.less {
            Some(less) => isa.fused_add(isa.of_bits(sum), self.scale, less),
            None => isa.mul_f(isa.float_i(sum), self.scale),
        }
    }

    /// The same added to a product; the sum starts from 0.
    #[inline(always)]
    pub fn add_product<I: Isa<F = F>>(&self, isa: I, sum: I::I, product: F) -> F {
        isa.fused_add(isa.float_i(sum), self.scale, product)
    }
}

/// What sums of products start from where codes have 2^`n` added: minus as many times the sum of the activations' codes, and
/// [`FLOAT_START`]; of each two sums that are joined, only the first has that. It is made for a whole unit, as one vector.
#[inline(always)]
pub(super) fn starts_of_unit<I: Isa>(
    isa: I,
    debts: &Debts,
    per_16: bool,
    n: u32,
    reads_floats: bool,
    out: &mut [i32; 16],
) {
    let base = float_start(reads_floats);
    let (base, debts) = match per_16 {
        true => (isa.load_i(&array(|g| if g % 2 == 0 { base } else { 0 })), isa.load_i(&debts.per_16)),
        false => (isa.splat_i(base), isa.load_i(&array(|b| debts.per_32[b % 8]))),
    };
    isa.store_i(isa.add_i(isa.sra_i(debts, 7 - n), base), out);
}

/// The starts that [`dots`] takes from a unit's vector, if the codes have an offset.
#[inline(always)]
fn sum_starts<I: Isa, D: Decode<I>>(isa: I, debts: &Debts, reads_floats: bool, out: &mut [i32; 16]) {
    match D::LANE_CODES {
        LaneCodes::Offset(n) => starts_of_unit(isa, debts, D::PER_16, n, reads_floats, out),
        LaneCodes::Biased if I::CODE_BIAS != 0 && !reads_floats => match D::PER_16 {
            true => *out = debts.per_16,
            false => *out = array(|b| debts.per_32[b % 8]),
        },
        _ => {}
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
    // where codes have nothing to be taken away, all columns start alike
    let start = float_start(reads_floats::<I>(C) && (N == 8 || g.is_multiple_of(2)));
    let mut sums = [isa.splat_i(start); C];
    for c in 0..C {
        match D::LANE_CODES {
            LaneCodes::Biased if I::CODE_BIAS != 0 && reads_floats::<I>(C) => {
                sums[c] = isa.splat_i(if N == 4 { x[c][g / 2].starts[g % 2] } else { x[c][g].start });
            }
            LaneCodes::Offset(_) => sums[c] = isa.splat_i(starts[c][g]),
            LaneCodes::Biased if I::CODE_BIAS != 0 => sums[c] = isa.splat_i(starts[c][g]),
            _ => {}
        }
    }
    if I::CODE_BIAS == 0 && D::SMALL > 1 {
        for (sum, x) in sums.iter_mut().zip(x) {
            let x = fours(&x[N * g / 8])[N * g % 8..].first_chunk().expect("the codes of a group");
            *sum = match D::SMALL {
                8 => small_dots::<I, N, N>(isa, *sum, codes, x),
                4 => small_dots::<I, N, 4>(isa, *sum, codes, x),
                _ => small_dots::<I, N, 2>(isa, *sum, codes, x),
            };
        }
        return sums;
    }
    // a second sum where there is one column, so that not every product waits for the one before
    let mut others = [isa.splat_i(0); C];
    for (i, codes) in codes.iter().enumerate() {
        for c in 0..C {
            let four = isa.splat_4_codes(&fours(&x[c][N * g / 8])[N * g % 8 + i]);
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

/// Adds the products of `N` values of codes with four codes each; so many as `G` are added in 16 bits
/// ([`ikq_simd::Products::pair_products`]).
#[inline(always)]
fn small_dots<I: Isa, const N: usize, const G: usize>(
    isa: I,
    sum: I::I,
    codes: &[I::B64; N],
    x: &[[i8; 4]; N],
) -> I::I {
    let mut sum = sum;
    for (codes, x) in codes.as_chunks::<G>().0.iter().zip(x.as_chunks::<G>().0) {
        let mut pairs = isa.pair_products(codes[0], isa.splat_4_codes(&x[0]));
        for i in 1..G {
            pairs = isa.add_pairs(pairs, isa.pair_products(codes[i], isa.splat_4_codes(&x[i])));
        }
        sum = isa.sum_pairs(sum, pairs);
    }
    sum
}

/// The codes of 32 elements of a column, by four.
#[inline(always)]
pub(super) fn fours(x: &ActBlock) -> &[[i8; 4]; 8] {
    x.codes.as_chunks().0.as_array().expect("eight times four codes")
}

/// Adds the products of 32 elements with one scale.
#[inline(always)]
pub(super) fn add_32<I: Isa>(
    isa: I,
    product: I::F,
    min: I::F,
    has_min: bool,
    x: &ActBlock,
    acc: I::F,
) -> I::F {
    let acc = isa.fused_add(product, isa.splat_f(x.d), acc);
    match has_min {
        true => isa.fused_sub(min, isa.splat_f(x.sum), acc),
        false => acc,
    }
}

/// Adds the products of 32 elements with a scale for each half.
#[inline(always)]
pub(super) fn add_16<I: Isa>(
    isa: I,
    product: I::F,
    min: &[I::F],
    has_min: bool,
    x: &ActBlock,
    acc: I::F,
) -> I::F {
    let acc = isa.fused_add(product, isa.splat_f(x.d), acc);
    match has_min {
        true => {
            let acc = isa.fused_sub(min[0], isa.splat_f(x.sums[0]), acc);
            isa.fused_sub(min[1], isa.splat_f(x.sums[1]), acc)
        }
        false => acc,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ikq_simd::available;

    struct Products<'a> {
        sums: &'a [i32; 16],
        scale: f32,
    }

    impl IsaOp for Products<'_> {
        /// With conversion, and read as floats.
        type Output = [[f32; 16]; 2];

        #[inline(always)]
        fn run<I: Isa>(self, isa: I) -> [[f32; 16]; 2] {
            let sums = isa.load_i(self.sums);
            [false, true].map(|reads_floats| {
                let sums = isa.add_i(sums, isa.splat_i(float_start(reads_floats)));
                isa.array(SumScale::new(isa, isa.splat_f(self.scale), reads_floats).product(isa, sums))
            })
        }
    }

    #[test]
    fn sums_that_start_from_a_float_need_no_conversion() {
        // the largest sum of 32 products of codes in -128..=127 and -127..=127
        let most = 32 * 128 * 127;
        let sums: [i32; 16] = [
            0,
            1,
            -1,
            2,
            77,
            -1023,
            40_961,
            -40_961,
            123_457,
            -123_457,
            399_999,
            -1 << 19,
            most,
            -most,
            most - 1,
            1 - most,
        ];
        // halves times integers, and numbers of 22 bits of any size that scales have
        let halves = [2f32.powi(-24), 1.0, -0.333_251_95, 65504.0]
            .into_iter()
            .flat_map(|d| [1.0, 31.0, 127.0].map(|n| d * n));
        let longest =
            (1..2000u32).map(|i| f32::from_bits((0x3000_0000 + i.wrapping_mul(0x9e37) % 0x1800_0000) & !3));
        // without fused operations no kernel reads sums as floats
        for kind in available().into_iter().filter(|k| *k != IsaKind::Scalar) {
            for scale in halves.clone().chain(longest.clone()) {
                let [converted, read] = run(kind, Products { sums: &sums, scale });
                assert_eq!(converted, read, "{} {scale}", kind.name());
            }
        }
    }
}
