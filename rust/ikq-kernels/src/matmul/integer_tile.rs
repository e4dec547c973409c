//! The part of the micro-kernel ([`super::tile`]) that scales sums while they are integers ([`super::integers`]): the operations of
//! [`super::direct`], from a panel.

#![allow(
    clippy::needless_range_loop,
    reason = "with other loops than counted ones sums do not stay in registers"
)]

use ikq_simd::Isa;

use super::integers::{UnitSums, times_sums};
use super::panel::{Line, Panel, Shape};
use super::tile::{Columns, Here, WIDE, four, opaque, pairs_of_lines, sums};

/// Adds the products of unit `u` of the panel. `offset` is what codes have added, as a power of two.
#[inline(always)]
pub(super) fn unit<
    I: Isa,
    const R: usize,
    const C: usize,
    const PER_16: bool,
    const MIN: bool,
    const SMALL: usize,
>(
    isa: I,
    panel: &Panel,
    u: usize,
    columns: &Columns<'_, C>,
    (has_header, offset): (bool, Option<u32>),
    acc: &mut [[I::F; R]; C],
) {
    let shape = const { Shape::new(SMALL == WIDE, PER_16, MIN, true) };
    let n_lines = shape.n_lines() * R;
    let mut units = [UnitSums::begin(isa, false, &[isa.splat_f(0.0); C]); R];
    for (r, unit) in units.iter_mut().enumerate() {
        *unit = UnitSums::begin(isa, has_header, &rows_of(isa, acc, r));
    }
    let lines = &panel.lines[8 * u * n_lines..8 * (u + 1) * n_lines];
    for (b, lines) in lines.chunks_exact(n_lines).enumerate() {
        let here = Here::at::<SMALL>(columns.blocks, columns.wide, 8 * u + b);
        let (codes, factors) = lines.split_at(shape.n_codes * R);
        let (scales, mins) = factors.split_at(shape.n_scales * R);
        let found = match SMALL {
            // their codes are scaled in the panel
            WIDE => sums::<I, R, C, 1, 8, SMALL>(isa, codes, &here, &[[0]; C])[0],
            _ if PER_16 => scaled_sums::<I, R, C, 2, 4, SMALL>(isa, codes, scales, &here, offset),
            _ => scaled_sums::<I, R, C, 1, 8, SMALL>(isa, codes, scales, &here, offset),
        };
        for (r, unit) in units.iter_mut().enumerate() {
            let min = MIN.then(|| isa.ints(isa.load(&mins[r].0)));
            for c in 0..C {
                unit.add(isa, c, found[c][r], min, PER_16, here.blocks[c]);
            }
        }
    }
    for (r, unit) in units.iter().enumerate() {
        let mut rows = rows_of(isa, acc, r);
        let [d, dmin] = panel.factors[u * R + r].each_ref().map(|f| isa.load_f(&f.0));
        unit.end(isa, has_header, MIN, d, dmin, &mut rows);
        for c in 0..C {
            acc[c][r] = rows[c];
        }
    }
}

/// The sums of band `r`.
#[inline(always)]
fn rows_of<I: Isa, const R: usize, const C: usize>(isa: I, acc: &[[I::F; R]; C], r: usize) -> [I::F; C] {
    let mut rows = [isa.splat_f(0.0); C];
    for c in 0..C {
        rows[c] = acc[c][r];
    }
    rows
}

/// The 16-bit numbers of a line.
#[inline(always)]
fn numbers<I: Isa>(isa: I, line: &Line) -> I::I {
    isa.ints(isa.load(&line.0))
}

/// Scaled sums of products of 32 elements: `H` parts of `4 N` elements have a scale each.
#[inline(always)]
fn scaled_sums<I: Isa, const R: usize, const C: usize, const H: usize, const N: usize, const SMALL: usize>(
    isa: I,
    codes: &[Line],
    scales: &[Line],
    x: &Here<'_, C>,
    offset: Option<u32>,
) -> [[I::I; R]; C] {
    let mut sums = [[isa.splat_i(0); R]; C];
    if let Some(n) = offset {
        for r in 0..R {
            let both = match H {
                2 => isa.join_16(numbers(isa, &scales[r]), numbers(isa, &scales[R + r])),
                _ => numbers(isa, &scales[r]),
            };
            let both = isa.shl_16(both, n);
            for c in 0..C {
                sums[c][r] = times_sums(isa, both, x.blocks[c]);
            }
        }
    }
    if SMALL == 1 {
        for (h, codes) in codes.chunks_exact(N * R).enumerate() {
            for (i, codes) in codes[..R * opaque(N)].chunks_exact(R).enumerate() {
                for r in 0..R {
                    let (w, scale) = (isa.load(&codes[r].0), numbers(isa, &scales[h * R + r]));
                    for (sums, x) in sums.iter_mut().zip(&x.blocks) {
                        let pairs = isa.pair_products(w, four(isa, x, (h * N + i) % 8));
                        sums[r] = isa.scaled_pairs(sums[r], pairs, scale);
                    }
                }
            }
        }
        return sums;
    }
    let step = if SMALL < N { SMALL } else { N };
    for g in 0..8 / step {
        let first = g * step;
        let pairs = pairs_of_lines::<I, R, C>(isa, codes, x, first, step);
        for r in 0..R {
            let scale = numbers(isa, &scales[first / N * R + r]);
            for (sums, pairs) in sums.iter_mut().zip(&pairs) {
                sums[r] = isa.scaled_pairs(sums[r], pairs[r], scale);
            }
        }
    }
    sums
}
