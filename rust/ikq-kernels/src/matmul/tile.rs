//! The micro-kernel: a panel times columns. It knows no type: codes, scales, mins.
//!
//! Per 32 (or twice 16) elements the sums of products are made in integers, lanes being rows, and then scaled by
//! the weights' scales (lanes) and the column's: the operations of [`super::direct`] in the same order.

use std::ops::Range;

use ikq_decode::{DecodeFacts, LaneCodes};
use ikq_simd::{Isa, IsaKind, IsaOp, run};

use super::bands::BAND;
use super::direct::{SumScale, add_16, add_32, float_start, fours, reads_floats, starts_of_unit};
use super::integer_tile;
use super::integers::is_integer;
use super::panel::{Line, Panel, Shape, is_wide};
use crate::act::{ActBlock, Activations, Debts, WideBlock};

/// Operands of a product of a panel with some columns.
pub(super) struct Tile<'a> {
    pub panel: &'a Panel,
    pub n_bands: usize,
    /// Facts of the weights' type.
    pub facts: &'a DecodeFacts,
    pub acts: &'a Activations,
    pub columns: &'a [u32],
    /// Which units of the columns the panel covers.
    pub units: Range<usize>,
    /// Row `r` of the panel's and column `c` is `out[c * stride + r]`.
    pub out: &'a mut [f32],
    pub stride: usize,
    /// Add to what `out` holds: the units are not the rows' first.
    pub add: bool,
    /// The units are the rows' last, so that the sums can be multiplied by the scales of whole rows.
    pub is_end: bool,
}

/// Bands that the micro-kernel of an instruction set takes at a time.
pub(super) fn max_bands(kind: IsaKind) -> usize {
    match kind {
        IsaKind::Avx512 => 2,
        _ => 1,
    }
}

/// Whether the micro-kernel of an instruction set reads 16-bit numbers for a type.
pub(super) fn reads_wide(kind: IsaKind, facts: &DecodeFacts) -> bool {
    struct Wide(LaneCodes);
    impl IsaOp for Wide {
        type Output = bool;
        #[inline(always)]
        fn run<I: Isa>(self, _: I) -> bool {
            is_wide::<I>(self.0)
        }
    }
    run(kind, Wide(facts.lane_codes))
}

/// Computes the tile.
pub(super) fn multiply(kind: IsaKind, tile: Tile<'_>) {
    match (tile.facts.per_16, tile.facts.has_min) {
        (false, false) => run(kind, Kernel::<false, false>(tile)),
        (false, true) => run(kind, Kernel::<false, true>(tile)),
        (true, false) => run(kind, Kernel::<true, false>(tile)),
        (true, true) => run(kind, Kernel::<true, true>(tile)),
    }
}

struct Kernel<'a, const PER_16: bool, const MIN: bool>(Tile<'a>);

impl<const PER_16: bool, const MIN: bool> IsaOp for Kernel<'_, PER_16, MIN> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let mut tile = self.0;
        if is_wide::<I>(tile.facts.lane_codes) {
            all::<I, PER_16, MIN, WIDE, false>(isa, &mut tile);
        } else if I::CODE_BIAS != 0 || tile.facts.lane_codes == LaneCodes::Biased {
            all::<I, PER_16, MIN, 0, false>(isa, &mut tile);
        } else {
            match (tile.facts.small, tile.facts.lane_codes) {
                (8, LaneCodes::Plain) => all::<I, PER_16, MIN, 8, false>(isa, &mut tile),
                (8, _) => all::<I, PER_16, MIN, 8, true>(isa, &mut tile),
                (4, LaneCodes::Plain) => all::<I, PER_16, MIN, 4, false>(isa, &mut tile),
                (4, _) => all::<I, PER_16, MIN, 4, true>(isa, &mut tile),
                (2, LaneCodes::Plain) => all::<I, PER_16, MIN, 2, false>(isa, &mut tile),
                (2, _) => all::<I, PER_16, MIN, 2, true>(isa, &mut tile),
                _ => all::<I, PER_16, MIN, 1, true>(isa, &mut tile),
            }
        }
    }
}

/// What `SMALL` is where the panel has 16-bit numbers.
pub(super) const WIDE: usize = 16;

/// All columns, as many at a time as registers hold. `SMALL`: 0 if codes are biased, [`WIDE`] if they have 16 bits; else they
/// are 0..=127, and as many products may be added in 16 bits (`DecodeFacts::small`). `DEBT`: codes may have an
/// offset, whose products sums start without.
#[inline(always)]
fn all<I: Isa, const PER_16: bool, const MIN: bool, const SMALL: usize, const DEBT: bool>(
    isa: I,
    tile: &mut Tile<'_>,
) {
    let mut first = 0;
    while first < tile.columns.len() {
        let left = tile.columns.len() - first;
        first += if I::REGISTERS >= 32 && tile.n_bands == 2 {
            if left >= 2 {
                block::<I, 2, 4, PER_16, MIN, SMALL, DEBT>(isa, tile, first)
            } else {
                block::<I, 2, 1, PER_16, MIN, SMALL, DEBT>(isa, tile, first)
            }
        } else if I::REGISTERS >= 32 && left >= 8 {
            block::<I, 1, 8, PER_16, MIN, SMALL, DEBT>(isa, tile, first)
        } else if I::REGISTERS >= 8 && left >= 3 {
            block::<I, 1, 4, PER_16, MIN, SMALL, DEBT>(isa, tile, first)
        } else {
            block::<I, 1, 1, PER_16, MIN, SMALL, DEBT>(isa, tile, first)
        };
    }
}

/// Whether sums are read as floats: as [`reads_floats`] says, and where codes are biased, as columns have the starts of such
/// sums.
const fn floats<I: Isa, const C: usize, const SMALL: usize>() -> bool {
    SMALL == 0 && I::CODE_BIAS != 0 || reads_floats::<I>(C)
}

/// `R` bands times `C` columns from `first` on, a column more than once where there are fewer; returns `C`.
#[inline(always)]
fn block<
    I: Isa,
    const R: usize,
    const C: usize,
    const PER_16: bool,
    const MIN: bool,
    const SMALL: usize,
    const DEBT: bool,
>(
    isa: I,
    tile: &mut Tile<'_>,
    first: usize,
) -> usize {
    let numbers = &tile.columns[first..];
    let numbers = &numbers[..C.min(numbers.len())];
    let number = |c: usize| numbers[c.min(numbers.len() - 1)] as usize;
    let mut acc = [[isa.splat_f(0.0); R]; C];
    if tile.add {
        for (c, acc) in acc.iter_mut().enumerate().take(numbers.len()) {
            for (r, acc) in acc.iter_mut().enumerate() {
                let at = (first + c) * tile.stride + BAND * r;
                *acc = isa.load_f(tile.out[at..].first_chunk().expect("a band of the tile"));
            }
        }
    }
    let mut x: [&[ActBlock]; C] = [&[]; C];
    let mut wide: [&[WideBlock]; C] = [&[]; C];
    for c in 0..C {
        x[c] = tile.acts.units(number(c))[tile.units.clone()].as_flattened();
        if SMALL == WIDE {
            wide[c] = &tile.acts.wide(number(c))[8 * tile.units.start..8 * tile.units.end];
        }
    }
    let offset = match tile.facts.lane_codes {
        LaneCodes::Offset(n) if DEBT => Some(n),
        _ => None,
    };
    let n = 8 * tile.units.len();
    // what is said of the set keeps kernels out of the code that it never takes
    if I::SCALES_PAIRS && is_integer::<I>(tile.facts.has_integers) {
        let columns = Columns { blocks: &x, wide: &wide, starts: None };
        let facts = (tile.facts.has_header, offset);
        for u in 0..tile.units.len() {
            integer_tile::unit::<I, R, C, PER_16, MIN, SMALL>(isa, tile.panel, u, &columns, facts, &mut acc);
        }
    } else if let Some(offset) = offset {
        // the starts of a unit are made at once
        let mut debts: [&[Debts]; C] = [&[]; C];
        for (c, debts) in debts.iter_mut().enumerate() {
            *debts = &tile.acts.debts(number(c))[tile.units.clone()];
        }
        for u in 0..tile.units.len() {
            let mut starts = [[0; 16]; C];
            for (starts, debts) in starts.iter_mut().zip(&debts) {
                starts_of_unit(isa, &debts[u], PER_16, offset, floats::<I, C, SMALL>(), starts);
            }
            let columns = Columns { blocks: &x, wide: &wide, starts: Some(&starts) };
            blocks::<I, R, C, PER_16, MIN, SMALL>(isa, tile.panel, 8 * u..8 * u + 8, &columns, &mut acc);
        }
    } else {
        let columns = Columns { blocks: &x, wide: &wide, starts: None };
        blocks::<I, R, C, PER_16, MIN, SMALL>(isa, tile.panel, 0..n, &columns, &mut acc);
    }
    for (c, acc) in acc.iter().enumerate().take(numbers.len()) {
        for (r, acc) in acc.iter().enumerate() {
            let at = (first + c) * tile.stride + BAND * r;
            let acc = match tile.is_end {
                true => isa.mul_f(*acc, isa.load_f(&tile.panel.row_scales[r].0)),
                false => *acc,
            };
            isa.store_f(acc, tile.out[at..].first_chunk_mut().expect("a band of the tile"));
        }
    }
    C
}

/// `C` columns, from the panel's first elements on.
pub(super) struct Columns<'a, const C: usize> {
    pub blocks: &'a [&'a [ActBlock]; C],
    /// The same as 16-bit numbers, if the panel has those.
    pub wide: &'a [&'a [WideBlock]; C],
    /// What sums of a unit start from, where codes have an offset.
    starts: Option<&'a [[i32; 16]; C]>,
}

/// Adds the products of some of the panel's blocks of 32 elements; a unit's where sums have [`Columns::starts`].
#[inline(always)]
fn blocks<I: Isa, const R: usize, const C: usize, const PER_16: bool, const MIN: bool, const SMALL: usize>(
    isa: I,
    panel: &Panel,
    range: Range<usize>,
    columns: &Columns<'_, C>,
    acc: &mut [[I::F; R]; C],
) {
    let shape = const { Shape::new(SMALL == WIDE, PER_16, MIN, false) };
    let n_lines = shape.n_lines() * R;
    let lines = &panel.lines[range.start * n_lines..range.end * n_lines];
    let mut x = *columns.blocks;
    let mut wide = *columns.wide;
    for c in 0..C {
        x[c] = &x[c][range.clone()];
        if SMALL == WIDE {
            wide[c] = &wide[c][range.clone()];
        }
    }
    for (b, lines) in lines.chunks_exact(n_lines).enumerate() {
        let here = Here::at::<SMALL>(&x, &wide, b);
        let (codes, factors) = lines.split_at(shape.n_codes * R);
        let (scales, mins) = factors.split_at(shape.n_scales * R);
        // the two halves of per-16 sums side by side: more sums that do not wait for one another
        if PER_16 {
            let starts = here.starts::<I, 2, SMALL>(columns.starts, b);
            let [first, second] = sums::<I, R, C, 2, 4, SMALL>(isa, codes, &here, &starts);
            for r in 0..R {
                let load = |lines: &[Line]| [isa.load_f32(&lines[r].0), isa.load_f32(&lines[R + r].0)];
                let scale = load(scales);
                let min = if MIN { load(mins) } else { scale };
                let scale = [
                    SumScale::new(isa, scale[0], floats::<I, C, SMALL>()),
                    SumScale::new(isa, scale[1], false),
                ];
                for c in 0..C {
                    let product = scale[0].product(isa, first[c][r]);
                    let product = scale[1].add_product(isa, second[c][r], product);
                    acc[c][r] = add_16(isa, product, &min, MIN, here.blocks[c], acc[c][r]);
                }
            }
        } else {
            let starts = here.starts::<I, 1, SMALL>(columns.starts, b);
            let [sums] = sums::<I, R, C, 1, 8, SMALL>(isa, codes, &here, &starts);
            for r in 0..R {
                let scale = isa.load_f32(&scales[r].0);
                let min = if MIN { isa.load_f32(&mins[r].0) } else { scale };
                let scale = SumScale::new(isa, scale, floats::<I, C, SMALL>());
                for c in 0..C {
                    let product = scale.product(isa, sums[c][r]);
                    acc[c][r] = add_32(isa, product, min, MIN, here.blocks[c], acc[c][r]);
                }
            }
        }
    }
}

/// 32 elements of each of `C` columns.
pub(super) struct Here<'a, const C: usize> {
    pub blocks: [&'a ActBlock; C],
    wide: [&'a WideBlock; C],
}

/// What [`Here::wide`] holds where the panel has no 16-bit numbers.
static NO_WIDE: WideBlock = WideBlock([0; 16]);

impl<'a, const C: usize> Here<'a, C> {
    /// The 32 elements `b` of the columns; `wide` is read where the panel has 16-bit numbers.
    #[inline(always)]
    pub fn at<const SMALL: usize>(
        blocks: &[&'a [ActBlock]; C],
        wide: &[&'a [WideBlock]; C],
        b: usize,
    ) -> Here<'a, C> {
        let mut here = Here { blocks: [&blocks[0][b]; C], wide: [&NO_WIDE; C] };
        for c in 0..C {
            here.blocks[c] = &blocks[c][b];
            if SMALL == WIDE {
                here.wide[c] = &wide[c][b];
            }
        }
        here
    }

    /// What the sums of each of `H` parts start from.
    #[inline(always)]
    fn starts<I: Isa, const H: usize, const SMALL: usize>(
        &self,
        offset: Option<&[[i32; 16]; C]>,
        b: usize,
    ) -> [[i32; H]; C] {
        let mut starts = [[0; H]; C];
        for c in 0..C {
            for h in 0..H {
                starts[c][h] = match offset {
                    Some(starts) => starts[c][(H * b + h) % 16],
                    None if SMALL == 0 && I::CODE_BIAS != 0 && H == 2 => self.blocks[c].starts[h],
                    None if SMALL == 0 && I::CODE_BIAS != 0 => self.blocks[c].start,
                    None if h == 0 => float_start(floats::<I, C, SMALL>()),
                    None => 0,
                };
            }
        }
        starts
    }
}

/// Sums of products of the `H` parts, `4 N` elements each, of 32 elements.
#[inline(always)]
pub(super) fn sums<
    I: Isa,
    const R: usize,
    const C: usize,
    const H: usize,
    const N: usize,
    const SMALL: usize,
>(
    isa: I,
    codes: &[Line],
    x: &Here<'_, C>,
    starts: &[[i32; H]; C],
) -> [[[I::I; R]; C]; H] {
    let mut sums = [[[isa.splat_i(0); R]; C]; H];
    for c in 0..C {
        for (h, sums) in sums.iter_mut().enumerate() {
            sums[c] = [isa.splat_i(starts[c][h]); R];
        }
    }
    if I::REGISTERS >= 32 {
        for i in 0..N {
            for (h, sums) in sums.iter_mut().enumerate() {
                let codes = &codes[(h * N + i) * R..][..R];
                products::<I, R, C, SMALL>(isa, codes, x, h * N + i, sums);
            }
        }
        return sums;
    }
    for (h, sums) in sums.iter_mut().enumerate() {
        let first = h * N;
        if SMALL == WIDE {
            let codes = &codes[2 * h * N * R..2 * (h + 1) * N * R];
            for (i, codes) in codes[..2 * R * opaque(N)].chunks_exact(2 * R).enumerate() {
                let four = (first + i) % 8;
                for odd in 0..2 {
                    for r in 0..R {
                        let w = isa.load(&codes[odd * R + r].0);
                        for (sums, x) in sums.iter_mut().zip(&x.wide) {
                            let two = isa.of_ints(isa.splat_i(x.0[2 * four + odd]));
                            sums[r] = isa.dot2(sums[r], w, two);
                        }
                    }
                }
            }
        } else if SMALL > 1 {
            let step = SMALL.min(N);
            for g in 0..N / step {
                let pairs = pairs_of_lines::<I, R, C>(isa, codes, x, first + g * step, step);
                for (sums, pairs) in sums.iter_mut().zip(&pairs) {
                    for r in 0..R {
                        sums[r] = isa.sum_pairs(sums[r], pairs[r]);
                    }
                }
            }
        } else {
            let codes = &codes[h * N * R..(h + 1) * N * R];
            for (i, codes) in codes[..R * opaque(N)].chunks_exact(R).enumerate() {
                products::<I, R, C, SMALL>(isa, codes, x, (first + i) % 8, sums);
            }
        }
    }
    sums
}

/// Pairs of products of `n` lines of codes of each band from line `first` on, added up in 16 bits.
#[inline(always)]
pub(super) fn pairs_of_lines<I: Isa, const R: usize, const C: usize>(
    isa: I,
    codes: &[Line],
    x: &Here<'_, C>,
    first: usize,
    n: usize,
) -> [[I::Pairs; R]; C] {
    let codes = &codes[first * R..(first + n) * R];
    let mut pairs = [[isa.pair_products(isa.splat(0), isa.splat(0)); R]; C];
    for r in 0..R {
        let w = isa.load(&codes[r].0);
        for (pairs, x) in pairs.iter_mut().zip(&x.blocks) {
            pairs[r] = isa.pair_products(w, four(isa, x, first));
        }
    }
    for (i, codes) in codes[R..R * opaque(n)].chunks_exact(R).enumerate() {
        for r in 0..R {
            let w = isa.load(&codes[r].0);
            for (pairs, x) in pairs.iter_mut().zip(&x.blocks) {
                let two = isa.pair_products(w, four(isa, x, (first + 1 + i) % 8));
                pairs[r] = isa.add_pairs(pairs[r], two);
            }
        }
    }
    pairs
}

/// Adds the products of a line of codes of each band with the columns' codes `i`, four of them.
#[inline(always)]
fn products<I: Isa, const R: usize, const C: usize, const SMALL: usize>(
    isa: I,
    codes: &[Line],
    x: &Here<'_, C>,
    i: usize,
    sums: &mut [[I::I; R]; C],
) {
    let mut w = [isa.splat(0); R];
    for r in 0..R {
        w[r] = isa.load(&codes[r].0);
    }
    for (sums, x) in sums.iter_mut().zip(&x.blocks) {
        let four = four(isa, x, i);
        for r in 0..R {
            sums[r] = match SMALL {
                0 => isa.dot4(sums[r], w[r], four),
                _ => isa.dot4_unsigned(sums[r], w[r], four),
            };
        }
    }
}

/// Four codes of a column, for all rows.
#[inline(always)]
pub(super) fn four<I: Isa>(isa: I, x: &ActBlock, i: usize) -> I::B64 {
    isa.splat_4_codes(&fours(x)[i])
}

/// `n`, which the compiler takes for unknown, so that a loop stays one. Written out, it would be put in another order: all
/// products first, then their sums, which sixteen registers do not hold.
#[inline(always)]
pub(super) fn opaque(n: usize) -> usize {
    let mut n = n;
    // SAFETY: no instruction at all.
    unsafe { std::arch::asm!("/* {0} */", inout(reg) n, options(pure, nomem, nostack, preserves_flags)) };
    n
}
