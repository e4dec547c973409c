//! The micro-kernel: a panel times columns. It knows no type: codes, scales, mins.
//!
//! Per 32 (or 16) elements the sums of products are made in integers, lanes being rows, and then scaled by
//! the weights' scales (lanes) and the column's.

use std::ops::Range;

use ikq_simd::{Isa, IsaKind, IsaOp, run};

use super::panel::{BAND, Codes, Panel};
use crate::act::{ActUnit, Activations};

/// What a tile is made of.
pub(super) struct Tile<'a> {
    pub panel: &'a Panel,
    pub n_bands: usize,
    pub per_16: bool,
    pub has_min: bool,
    pub acts: &'a Activations,
    pub columns: &'a [u32],
    /// Units of the columns that the panel has.
    pub units: Range<usize>,
    /// Row `r` of the panel's and column `c` is `out[c * stride + r]`.
    pub out: &'a mut [f32],
    pub stride: usize,
    /// Add to what `out` holds.
    pub add: bool,
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
    match (tile.per_16, tile.has_min) {
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
        let mut first = 0;
        while first < tile.columns.len() {
            let left = tile.columns.len() - first;
            first += match (I::REGISTERS >= 32, tile.n_bands) {
                (true, 2) if !PER_16 && left >= 8 => block::<I, 2, 8, PER_16, MIN>(isa, &mut tile, first),
                (true, 2) if left >= 4 => block::<I, 2, 4, PER_16, MIN>(isa, &mut tile, first),
                (true, 2) if left >= 2 => block::<I, 2, 2, PER_16, MIN>(isa, &mut tile, first),
                (true, 2) => block::<I, 2, 1, PER_16, MIN>(isa, &mut tile, first),
                (true, _) if left >= 8 => block::<I, 1, 8, PER_16, MIN>(isa, &mut tile, first),
                (_, _) if left >= 4 => block::<I, 1, 4, PER_16, MIN>(isa, &mut tile, first),
                (_, _) if left >= 2 => block::<I, 1, 2, PER_16, MIN>(isa, &mut tile, first),
                _ => block::<I, 1, 1, PER_16, MIN>(isa, &mut tile, first),
            };
        }
    }
}

/// `R` bands times `C` columns from `first` on; returns `C`.
#[inline(always)]
fn block<I: Isa, const R: usize, const C: usize, const PER_16: bool, const MIN: bool>(
    isa: I,
    tile: &mut Tile<'_>,
    first: usize,
) -> usize {
    let n = tile.units.len();
    let mut columns: [&[ActUnit]; C] = [&[]; C];
    for (x, column) in columns.iter_mut().zip(&tile.columns[first..]) {
        *x = &tile.acts.units(*column as usize)[tile.units.clone()];
    }
    let mut acc = [[isa.splat_f(0.0); R]; C];
    if tile.add {
        for (c, acc) in acc.iter_mut().enumerate() {
            for (r, acc) in acc.iter_mut().enumerate() {
                let at = (first + c) * tile.stride + BAND * r;
                *acc = isa.load_f(tile.out[at..].first_chunk().expect("a band of the tile"));
            }
        }
    }
    let n_scales = if PER_16 { 16 } else { 8 };
    let codes = &tile.panel.codes[..64 * R * n];
    let scales = &tile.panel.scales[..n_scales * R * n];
    let mins = if MIN { &tile.panel.mins[..n_scales * R * n] } else { &[] };
    for u in 0..n {
        let mut x = [&columns[0][u]; C];
        for (x, column) in x.iter_mut().zip(&columns) {
            *x = &column[u];
        }
        for b in 0..8 {
            let at = (8 * u + b) * R;
            // the two halves of per-16 sums side by side: more sums that do not wait for one another
            if PER_16 {
                let [first, second] = sums::<I, R, C, 2, 4>(isa, &codes[8 * at..], &x, b);
                for r in 0..R {
                    let scale = [isa.load_f(&scales[2 * at + r].0), isa.load_f(&scales[2 * at + R + r].0)];
                    for c in 0..C {
                        let product = isa.mul_f(isa.float_i(first[c][r]), scale[0]);
                        let product = isa.fused_add(isa.float_i(second[c][r]), scale[1], product);
                        acc[c][r] = isa.fused_add(product, isa.splat_f(x[c].d[2 * b]), acc[c][r]);
                    }
                    if MIN {
                        let min = [isa.load_f(&mins[2 * at + r].0), isa.load_f(&mins[2 * at + R + r].0)];
                        for c in 0..C {
                            acc[c][r] = isa.fused_sub(min[0], isa.splat_f(x[c].sums[2 * b]), acc[c][r]);
                            acc[c][r] = isa.fused_sub(min[1], isa.splat_f(x[c].sums[2 * b + 1]), acc[c][r]);
                        }
                    }
                }
            } else {
                let [sums] = sums::<I, R, C, 1, 8>(isa, &codes[8 * at..], &x, b);
                for r in 0..R {
                    let scale = isa.load_f(&scales[at + r].0);
                    for c in 0..C {
                        let product = isa.mul_f(isa.float_i(sums[c][r]), scale);
                        acc[c][r] = isa.fused_add(product, isa.splat_f(x[c].d[2 * b]), acc[c][r]);
                    }
                    if MIN {
                        let min = isa.load_f(&mins[at + r].0);
                        for c in 0..C {
                            acc[c][r] = isa.fused_sub(min, isa.splat_f(x[c].sums_32[b]), acc[c][r]);
                        }
                    }
                }
            }
        }
    }
    for (c, acc) in acc.iter().enumerate() {
        for (r, acc) in acc.iter().enumerate() {
            let at = (first + c) * tile.stride + BAND * r;
            isa.store_f(*acc, tile.out[at..].first_chunk_mut().expect("a band of the tile"));
        }
    }
    C
}

/// Sums of products of the `H` parts, `4 N` elements each, of 32 elements `b`.
#[inline(always)]
fn sums<I: Isa, const R: usize, const C: usize, const H: usize, const N: usize>(
    isa: I,
    codes: &[Codes],
    x: &[&ActUnit; C],
    b: usize,
) -> [[[I::I; R]; C]; H] {
    let mut sums = [[[isa.splat_i(0); R]; C]; H];
    if I::CODE_BIAS != 0 {
        for c in 0..C {
            for (h, sums) in sums.iter_mut().enumerate() {
                let debt = if H == 2 { x[c].debts[2 * b + h] } else { x[c].debts_32[b] };
                sums[c] = [isa.splat_i(debt); R];
            }
        }
    }
    let codes = &codes[..H * N * R];
    for i in 0..N {
        for h in 0..H {
            let mut w = [isa.splat(0); R];
            for r in 0..R {
                w[r] = isa.load(&codes[(h * N + i) * R + r].0);
            }
            for c in 0..C {
                let four = isa.splat_4_codes(&x[c].codes.as_chunks::<4>().0[8 * b + h * N + i]);
                for r in 0..R {
                    sums[h][c][r] = isa.dot4(sums[h][c][r], w[r], four);
                }
            }
        }
    }
    sums
}
