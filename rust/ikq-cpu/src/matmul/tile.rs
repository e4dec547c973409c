//! The micro-kernel: a panel times columns. It knows no type: codes, scales, mins.
//!
//! Per 32 (or 16) elements the sums of products are made in integers, lanes being rows, and then scaled by
//! the weights' scales (lanes) and the column's.

use std::ops::Range;

use ikq_simd::{Isa, IsaKind, IsaOp, run};

use super::panel::{BAND, Panel};
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
                (true, 2) if !PER_16 && left >= 6 => block::<I, 2, 6, PER_16, MIN>(isa, &mut tile, first),
                (true, 2) if left >= 4 => block::<I, 2, 4, PER_16, MIN>(isa, &mut tile, first),
                (true, 2) if left >= 2 => block::<I, 2, 2, PER_16, MIN>(isa, &mut tile, first),
                (true, 2) => block::<I, 2, 1, PER_16, MIN>(isa, &mut tile, first),
                (true, _) if left >= 8 => block::<I, 1, 8, PER_16, MIN>(isa, &mut tile, first),
                (true, _) if left >= 4 => block::<I, 1, 4, PER_16, MIN>(isa, &mut tile, first),
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
            if PER_16 {
                let mut both = [[isa.splat_f(0.0); R]; C];
                for h in 0..2 {
                    let sums = sums::<I, R, C, 4>(isa, &codes[8 * at + 4 * h * R..], &x, 2 * b + h, true);
                    for r in 0..R {
                        let scale = isa.load_f(&scales[2 * at + h * R + r].0);
                        for c in 0..C {
                            let sum = isa.float_i(sums[c][r]);
                            both[c][r] = match h {
                                0 => isa.mul_f(sum, scale),
                                _ => isa.fused_add(sum, scale, both[c][r]),
                            };
                        }
                        if MIN {
                            let min = isa.load_f(&mins[2 * at + h * R + r].0);
                            for c in 0..C {
                                acc[c][r] = isa.fused_sub(min, isa.splat_f(x[c].sums[2 * b + h]), acc[c][r]);
                            }
                        }
                    }
                }
                for c in 0..C {
                    for r in 0..R {
                        acc[c][r] = isa.fused_add(both[c][r], isa.splat_f(x[c].d[2 * b]), acc[c][r]);
                    }
                }
            } else {
                let sums = sums::<I, R, C, 8>(isa, &codes[8 * at..], &x, b, false);
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

/// Sums of products of sub-block `g` of `4 N` elements.
#[inline(always)]
fn sums<I: Isa, const R: usize, const C: usize, const N: usize>(
    isa: I,
    codes: &[super::panel::Codes],
    x: &[&ActUnit; C],
    g: usize,
    per_16: bool,
) -> [[I::I; R]; C] {
    let mut sums = [[isa.splat_i(0); R]; C];
    if I::CODE_BIAS != 0 {
        for c in 0..C {
            let debt = if per_16 { x[c].debts[g] } else { x[c].debts_32[g] };
            sums[c] = [isa.splat_i(debt); R];
        }
    }
    let codes = &codes[..N * R];
    for i in 0..N {
        let mut w = [isa.splat(0); R];
        for r in 0..R {
            w[r] = isa.load(&codes[i * R + r].0);
        }
        for c in 0..C {
            let four = isa.splat_4_codes(&x[c].codes.as_chunks::<4>().0[N * g + i]);
            for r in 0..R {
                sums[c][r] = isa.dot4(sums[c][r], w[r], four);
            }
        }
    }
    sums
}
