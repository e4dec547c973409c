//! The micro-kernel: a panel times columns. It knows no type: codes, scales, mins.
//!
//! Per 32 (or twice 16) elements the sums of products are made in integers, lanes being rows, and then scaled by
//! the weights' scales (lanes) and the column's: the operations of [`super::direct`] in the same order.

use std::ops::Range;

use ikq_decode::{DecodeFacts, LaneCodes};
use ikq_simd::{Isa, IsaKind, IsaOp, run};

use super::bands::BAND;
use super::direct::{SumDebt, SumScale, add_16, add_32, reads_floats, small_dots, starts_of_unit};
use super::panel::{Codes, Floats, Panel};
use crate::act::{ActUnit, Activations};

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
        if I::CODE_BIAS != 0 || tile.facts.lane_codes == LaneCodes::Biased {
            all::<I, PER_16, MIN, 0>(isa, &mut tile);
        } else {
            match tile.facts.small {
                8 => all::<I, PER_16, MIN, 8>(isa, &mut tile),
                4 => all::<I, PER_16, MIN, 4>(isa, &mut tile),
                _ => all::<I, PER_16, MIN, 1>(isa, &mut tile),
            }
        }
    }
}

/// All columns, as many at a time as registers hold. `SMALL`: 0 if codes are biased; else they are 0..=127, and as many
/// values may be multiplied together (`DecodeFacts::small`).
#[inline(always)]
fn all<I: Isa, const PER_16: bool, const MIN: bool, const SMALL: usize>(isa: I, tile: &mut Tile<'_>) {
    let mut first = 0;
    while first < tile.columns.len() {
        let left = tile.columns.len() - first;
        first += if I::REGISTERS >= 32 && tile.n_bands == 2 {
            if left >= 2 {
                block::<I, 2, 4, PER_16, MIN, SMALL>(isa, tile, first)
            } else {
                block::<I, 2, 1, PER_16, MIN, SMALL>(isa, tile, first)
            }
        } else if I::REGISTERS >= 32 && left >= 8 {
            block::<I, 1, 8, PER_16, MIN, SMALL>(isa, tile, first)
        } else if I::REGISTERS >= 8 && left >= 3 {
            block::<I, 1, 4, PER_16, MIN, SMALL>(isa, tile, first)
        } else {
            block::<I, 1, 1, PER_16, MIN, SMALL>(isa, tile, first)
        };
    }
}

/// `R` bands times `C` columns from `first` on, a column more than once where there are fewer; returns `C`.
#[inline(always)]
fn block<I: Isa, const R: usize, const C: usize, const PER_16: bool, const MIN: bool, const SMALL: usize>(
    isa: I,
    tile: &mut Tile<'_>,
    first: usize,
) -> usize {
    let n = tile.units.len();
    let numbers = &tile.columns[first..];
    let numbers = &numbers[..C.min(numbers.len())];
    let mut columns: [&[ActUnit]; C] = [&[]; C];
    for (c, x) in columns.iter_mut().enumerate() {
        *x = &tile.acts.units(numbers[c.min(numbers.len() - 1)] as usize)[tile.units.clone()];
    }
    let mut acc = [[isa.splat_f(0.0); R]; C];
    if tile.add {
        for (c, acc) in acc.iter_mut().enumerate().take(numbers.len()) {
            for (r, acc) in acc.iter_mut().enumerate() {
                let at = (first + c) * tile.stride + BAND * r;
                *acc = isa.load_f(tile.out[at..].first_chunk().expect("a band of the tile"));
            }
        }
    }
    let debt = match tile.facts.lane_codes {
        LaneCodes::Offset(n) if SMALL > 0 => SumDebt::Offset(n),
        _ if SMALL == 0 && I::CODE_BIAS != 0 => SumDebt::Bias,
        _ => SumDebt::None,
    };
    let n_scales = if PER_16 { 16 } else { 8 };
    let codes = &tile.panel.codes[..64 * R * n];
    let scales = &tile.panel.scales[..n_scales * R * n];
    let mins = if MIN { &tile.panel.mins[..n_scales * R * n] } else { &[] };
    for u in 0..n {
        let mut x = [&columns[0][u]; C];
        for (x, column) in x.iter_mut().zip(&columns) {
            *x = &column[u];
        }
        let mut starts = [[0; 16]; C];
        for (starts, x) in starts.iter_mut().zip(&x) {
            starts_of_unit(isa, x, PER_16, debt, reads_floats(C), starts);
        }
        for b in 0..8 {
            let at = (8 * u + b) * R;
            // the two halves of per-16 sums side by side: more sums that do not wait for one another
            if PER_16 {
                let [first, second] = sums::<I, R, C, 2, 4, SMALL>(isa, &codes[8 * at..], &x, b, &starts);
                for r in 0..R {
                    let load = |lines: &[Floats]| {
                        [isa.load_f(&lines[2 * at + r].0), isa.load_f(&lines[2 * at + R + r].0)]
                    };
                    let scale = load(scales);
                    let min = if MIN { load(mins) } else { scale };
                    let scale =
                        [SumScale::new(isa, scale[0], reads_floats(C)), SumScale::new(isa, scale[1], false)];
                    for c in 0..C {
                        let product = scale[0].product(isa, first[c][r]);
                        let product = scale[1].add_product(isa, second[c][r], product);
                        acc[c][r] = add_16(isa, product, &min, MIN, x[c], b, acc[c][r]);
                    }
                }
            } else {
                let [sums] = sums::<I, R, C, 1, 8, SMALL>(isa, &codes[8 * at..], &x, b, &starts);
                for r in 0..R {
                    let scale = isa.load_f(&scales[at + r].0);
                    let min = if MIN { isa.load_f(&mins[at + r].0) } else { scale };
                    let scale = SumScale::new(isa, scale, reads_floats(C));
                    for c in 0..C {
                        let product = scale.product(isa, sums[c][r]);
                        acc[c][r] = add_32(isa, product, min, MIN, x[c], b, acc[c][r]);
                    }
                }
            }
        }
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

/// Sums of products of the `H` parts, `4 N` elements each, of 32 elements `b`.
#[inline(always)]
fn sums<I: Isa, const R: usize, const C: usize, const H: usize, const N: usize, const SMALL: usize>(
    isa: I,
    codes: &[Codes],
    x: &[&ActUnit; C],
    b: usize,
    starts: &[[i32; 16]; C],
) -> [[[I::I; R]; C]; H] {
    let mut sums = [[[isa.splat_i(0); R]; C]; H];
    for c in 0..C {
        for (h, sums) in sums.iter_mut().enumerate() {
            sums[c] = [isa.splat_i(starts[c][H * b + h]); R];
        }
    }
    let codes = &codes[..H * N * R];
    if SMALL > 1 {
        for h in 0..H {
            let mut w = [[isa.splat(0); N]; R];
            for i in 0..N {
                for r in 0..R {
                    w[r][i] = isa.load(&codes[(h * N + i) * R + r].0);
                }
            }
            for c in 0..C {
                let x = x[c].codes.as_chunks::<4>().0[8 * b + h * N..]
                    .first_chunk()
                    .expect("the codes of a group");
                for r in 0..R {
                    sums[h][c][r] = match SMALL {
                        8 => isa.dots_of_small::<N>(sums[h][c][r], &w[r], x),
                        _ => small_dots::<I, N, 4>(isa, sums[h][c][r], &w[r], x),
                    };
                }
            }
        }
        return sums;
    }
    for i in 0..N {
        for h in 0..H {
            let mut w = [isa.splat(0); R];
            for r in 0..R {
                w[r] = isa.load(&codes[(h * N + i) * R + r].0);
            }
            for c in 0..C {
                let four = isa.splat_4_codes(&x[c].codes.as_chunks::<4>().0[8 * b + h * N + i]);
                for r in 0..R {
                    sums[h][c][r] = match SMALL {
                        0 => isa.dot4(sums[h][c][r], w[r], four),
                        _ => isa.dot4_unsigned(sums[h][c][r], w[r], four),
                    };
                }
            }
        }
    }
    sums
}
