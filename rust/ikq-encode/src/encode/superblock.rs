//! Super-blocks of 256 with one f16 scale and an integer scale per sub-block, some with a choice
//! between two rows of a value table: Q3_K, Q6_K, IQ4_XS, IQ2_K, IQ3_K, IQ4_K, IQ5_K, IQ6_K.
//!
//! Objective: `sum w (x - d k v)^2` with w of the column. Searched: a scale for every sub-block with
//! either table row ([`crate::search::scale`]); then d, the integers k, the table rows and the codes
//! together ([`crate::search::block_scales`]), in turn as often as the type needs.

use ikq_formats::codebook::{
    IQ2NL_VALUES, IQ3NL_VALUES, IQ4K_VALUES, IQ4NL_VALUES, IQ5NL_VALUES, IQ6NL_VALUES,
};
use ikq_formats::{QuantType, layout};
use ikq_simd::Isa;

use super::Encode;
use crate::search::block_scales::{
    COARSE_HALF, Grid, Reach, Settled, coarse_halves, nearly_exact, refit, settle, settled_error,
    super_scale, totals,
};
use crate::search::gain::Scales;
use crate::search::levels::{Four, Integers, Levels, Shifted, Table, Table4, Wide};
use crate::search::scale::{self, Coder, Fit, Ladder, inverse, two_sided};
use crate::search::tile::{Codes, LANES, Tile, lane_codes};

/// Elements per super-block.
const SUPER: usize = 256;

/// The properties by which the types of this file differ.
struct Search<L, const ROWS: usize> {
    /// The level sets that a sub-block chooses from: one, or two table rows.
    rows: [L; ROWS],
    /// How far the second table row is above the first.
    shift: f32,
    ladder: Ladder,
    grid: Grid,
    reach: Reach,
    /// How often integers are chosen and d is refitted to them.
    rounds: usize,
    /// The form in which an integer scale is stored.
    stored: fn(i32) -> u32,
}

/// Working memory of a row.
pub struct Scratch<const N: usize> {
    tile: Box<Tile<N>>,
    codes: Box<Codes<N>>,
}

impl<const N: usize> Default for Scratch<N> {
    fn default() -> Self {
        Scratch { tile: Box::default(), codes: Box::new([[0.0; LANES]; N]) }
    }
}

/// Encodes one row whose sub-blocks have `N` elements.
#[inline(always)]
fn encode_row<I: Isa, L: Levels<I>, const ROWS: usize, const N: usize>(
    isa: I,
    ty: QuantType,
    search: Search<L, ROWS>,
    (x, w): (&[f32], &[f32]),
    stored_as: Scales,
    Scratch { tile, codes }: &mut Scratch<N>,
    out: &mut [u8],
) {
    let Search { rows, shift, ladder, grid, reach, rounds, stored } = search;
    let layout = layout(ty).expect("types of this file have layouts");
    let per_super = SUPER / N;
    // d, shift (where there is a choice), scales, q
    let shifts = if ROWS > 1 { per_super } else { 0 };
    let mut values = [0u32; 1 + 2 * 16 + SUPER];
    let values = &mut values[..1 + shifts + per_super + SUPER];
    let tiles = x.chunks(LANES * N).zip(w.chunks(LANES * N));
    for ((x, w), out) in tiles.zip(out.chunks_mut(LANES / per_super * layout.bytes)) {
        tile.load(isa, x, w, per_super);
        let (up, down) = (isa.load_f(&tile.up), isa.load_f(&tile.down));
        let half = |d: I::F| isa.mul_f(isa.f16_round(isa.mul_f(d, up)), down);
        let peak = tile.peak(isa);
        let mut fit = Fit::nothing(isa);
        for levels in rows {
            fit = scale::best_scale(isa, tile, levels, peak, (ladder, stored_as), fit);
        }
        let (scales, curvatures) = (isa.array(fit.scale), isa.array(fit.curvature));
        let mut d = [0.0; LANES];
        for (k, d) in d.chunks_mut(per_super).enumerate() {
            let lanes = k * per_super..(k + 1) * per_super;
            let (up, down) = (isa.splat_f(tile.up[lanes.start]), isa.splat_f(tile.down[lanes.start]));
            let half = |d: I::F| isa.mul_f(isa.f16_round(isa.mul_f(d, up)), down);
            d.fill(super_scale(isa, &scales[lanes.clone()], &curvatures[lanes], grid, half));
        }
        let mut d = isa.load_f(&d);
        let mut settled = settle(isa, tile, &rows, fit.scale, d, (grid, reach));
        d = half(refit(isa, settled, per_super));
        for _ in 1..rounds {
            settled = settle(isa, tile, &rows, fit.scale, d, (grid, reach));
            d = half(refit(isa, settled, per_super));
        }
        (d, settled) = lucky(isa, tile, &search, fit, (d, settled));
        let by = isa.mul_f(settled.row, isa.splat_f(shift));
        let (levels, dk) = (Shifted { levels: rows[0], by }, isa.mul_f(d, settled.k));
        if stored_as != Scales::Only {
            scale::codes(isa, tile, levels, dk, codes);
        }
        if stored_as == Scales::Unbiased {
            let xv = levels.sums(isa, tile, inverse(isa, dk)).xv;
            let xy = totals(isa, isa.mul_f(dk, xv), per_super);
            let xx = totals(isa, tile.energy(isa), per_super);
            let factors = stored_as.factors(isa, xy, xx);
            // among the smallest f16 numbers, a step is more than the gain
            let size = isa.abs_f(isa.mul_f(d, up));
            d = isa.if_gt(isa.splat_f(COARSE_HALF), size, d, isa.mul_f(d, factors));
        }
        let d = isa.f16_bits(isa.mul_f(d, up));
        let (k, row) = (isa.array(settled.k), isa.array(settled.row));
        for (block, out) in out.chunks_exact_mut(layout.bytes).enumerate() {
            let first = block * per_super;
            values[0] = u32::from(d[first]);
            for j in 0..per_super {
                if ROWS > 1 {
                    values[1 + j] = row[first + j] as u32;
                }
                values[1 + shifts + j] = stored(k[first + j] as i32);
                lane_codes(codes, first + j, &mut values[1 + shifts + per_super + j * N..][..N]);
            }
            layout.pack(values, out);
        }
    }
}

/// Looks for a better d where a super-block is encoded so well that the rounding of d decides, or where d is among
/// the smallest f16 numbers.
#[inline(always)]
fn lucky<I: Isa, L: Levels<I>, const ROWS: usize, const N: usize>(
    isa: I,
    tile: &Tile<N>,
    search: &Search<L, ROWS>,
    fit: Fit<I::F>,
    found: (I::F, Settled<I::F>),
) -> (I::F, Settled<I::F>) {
    let per_super = SUPER / N;
    let (energy, gain, scales) = (isa.array(tile.energy(isa)), isa.array(fit.gain), isa.array(fit.scale));
    // the scales to try; super-blocks without any have 0 in their lanes
    let mut tried: Vec<[f32; LANES]> = Vec::new();
    for first in (0..LANES).step_by(per_super) {
        let (mut all, mut left, mut peak) = (0.0, 0.0, 0.0f32);
        let lanes = first..first + per_super;
        for lane in lanes.clone() {
            all += energy[lane];
            left += energy[lane] - gain[lane];
            peak = if scales[lane].abs() > peak.abs() { scales[lane] } else { peak };
        }
        let peak = peak * tile.up[first];
        let ends = nearly_exact(all, left).then(|| search.grid.ends().map(|end| peak / end));
        let halves = coarse_halves(peak / search.grid.longer_end());
        for (n, d) in ends.into_iter().flatten().chain(halves).enumerate() {
            if n == tried.len() {
                tried.push([0.0; LANES]);
            }
            tried[n][lanes.clone()].fill(d);
        }
    }
    let down = isa.load_f(&tile.down);
    let levels = (search.rows[0], search.shift);
    let (mut d, mut settled) = found;
    if tried.is_empty() {
        return found;
    }
    let mut least = totals(isa, settled_error(isa, tile, levels, settled, d), per_super);
    for other_d in &tried {
        let other_d = isa.mul_f(isa.f16_round(isa.load_f(other_d)), down);
        let other = settle(isa, tile, &search.rows, fit.scale, other_d, (search.grid, search.reach));
        let error = totals(isa, settled_error(isa, tile, levels, other, other_d), per_super);
        settled = settled.or(isa, (least, error), other);
        d = isa.if_gt(least, error, other_d, d);
        least = isa.min_f(error, least);
    }
    (d, settled)
}

macro_rules! super_blocks {
    ($($(#[$doc:meta])* $ty:ident, $n:literal: $search:expr;)*) => { $(
        $(#[$doc])*
        #[allow(non_camel_case_types)]
        pub struct $ty;

        impl Encode for $ty {
            const TYPE: QuantType = QuantType::$ty;
            type Scratch = Scratch<$n>;

            #[inline(always)]
            fn encode_row<I: Isa>(
                isa: I,
                x: &[f32],
                w: &[f32],
                scales: Scales,
                scratch: &mut Scratch<$n>,
                out: &mut [u8],
            ) {
                encode_row(isa, Self::TYPE, $search(isa), (x, w), scales, scratch, out);
            }
        }
    )* };
}

super_blocks! {
    /// Eight levels -4..=3, sixteen sub-blocks with 6-bit scales.
    Q3_K, 16: |_| Search {
        rows: [Integers { lo: -4.0, hi: 3.0 }],
        shift: 0.0,
        ladder: Ladder { anchors: Q3_ANCHORS, stretches: &[0.95, 1.05], rounds: 2 },
        grid: SIX_BITS,
        reach: Reach::Neighbours,
        rounds: 1,
        stored: |k| (k + 32) as u32,
    };
    /// 64 levels -32..=31, sixteen sub-blocks with 8-bit scales.
    Q6_K, 16: |_| Search {
        rows: [Integers { lo: -32.0, hi: 31.0 }],
        shift: 0.0,
        ladder: Ladder { anchors: Q6_ANCHORS, stretches: Q6_STRETCHES, rounds: 2 },
        grid: EIGHT_BITS,
        reach: Reach::Neighbours,
        rounds: 1,
        stored: eight_bits,
    };
    /// Sixteen levels of a table, eight sub-blocks with 6-bit scales.
    IQ4_XS, 32: |isa| Search {
        rows: [Table4::new(isa, &IQ4NL_VALUES)],
        shift: 0.0,
        ladder: super::single::NL_LADDER,
        grid: SIX_BITS,
        reach: Reach::Neighbours,
        rounds: 1,
        stored: |k| (k + 32) as u32,
    };
    /// Four levels of two table rows, sixteen sub-blocks with 4-bit scales.
    IQ2_K, 16: |isa| Search {
        rows: [Four::new(isa, &IQ2NL_VALUES[0]), Four::new(isa, &IQ2NL_VALUES[1])],
        shift: 5.0,
        ladder: super::row_scale::IQ2_LADDER,
        grid: Grid { lo: -8.0, hi: 7.0, odd: false },
        reach: Reach::All,
        rounds: 2,
        stored: |k| (k + 8) as u32,
    };
    /// Eight levels of two table rows, sixteen sub-blocks with a sign and a 4-bit odd magnitude.
    IQ3_K, 16: |isa| Search {
        rows: [Table::new(isa, &IQ3NL_VALUES[0]), Table::new(isa, &IQ3NL_VALUES[1])],
        shift: 4.0,
        ladder: super::row_scale::IQ3_LADDER,
        grid: Grid { lo: -31.0, hi: 31.0, odd: true },
        reach: Reach::Neighbours,
        rounds: 2,
        stored: |k| ((k.unsigned_abs() - 1) / 2) | if k < 0 { 16 } else { 0 },
    };
    /// Sixteen levels of two table rows, sixteen sub-blocks with 6-bit scales.
    IQ4_K, 16: |isa| Search {
        rows: [Table::new(isa, &IQ4K_VALUES[0]), Table::new(isa, &IQ4K_VALUES[1])],
        shift: 4.0,
        ladder: super::row_scale::IQ4_LADDER,
        grid: SIX_BITS,
        reach: Reach::Neighbours,
        rounds: 1,
        stored: |k| (k + 32) as u32,
    };
    /// 32 levels of two table rows, sixteen sub-blocks with 6-bit scales.
    IQ5_K, 16: |isa| Search {
        rows: [Wide::new(isa, &IQ5NL_VALUES[0]), Wide::new(isa, &IQ5NL_VALUES[1])],
        shift: 2.0,
        ladder: super::row_scale::IQ5_LADDER,
        grid: SIX_BITS,
        reach: Reach::Neighbours,
        rounds: 1,
        stored: |k| (k + 32) as u32,
    };
    /// 64 levels of two table rows, sixteen sub-blocks with 8-bit scales. The reference's decoder of
    /// rows uses a cubic instead of the table; its matrix products, and everything here, the table.
    IQ6_K, 16: |isa| Search {
        rows: [Wide::new(isa, &IQ6NL_VALUES[0]), Wide::new(isa, &IQ6NL_VALUES[1])],
        shift: 1.0,
        ladder: IQ6_LADDER,
        grid: EIGHT_BITS,
        reach: Reach::Neighbours,
        rounds: 1,
        stored: eight_bits,
    };
}

const SIX_BITS: Grid = Grid { lo: -32.0, hi: 31.0, odd: false };
const EIGHT_BITS: Grid = Grid { lo: -128.0, hi: 127.0, odd: false };

/// An integer scale in two's complement.
fn eight_bits(k: i32) -> u32 {
    k as u32 & 0xff
}

/// Levels on which the largest element is put: the first one, and around the last one of both sides.
const Q6_ANCHORS: &[f32] = &[
    -32.0, -31.0, -31.5, -32.4, -33.0, -33.8, -35.0, -37.0, -40.0, -45.0, -52.0, 31.0, 30.2, 30.6, 31.5,
    32.0, 32.7, 33.5, 35.0, 37.0, 41.0, 47.0,
];
/// Factors that lead from one anchor to between it and the next.
const Q6_STRETCHES: &[f32] = &[0.984, 0.992, 0.996, 1.004, 1.008, 1.016];
/// Levels on which the largest element is put: from inside the last levels to where it is clipped.
const Q3_ANCHORS: &[f32] = &two_sided::<16>(-4.0, 2.9, 1.11);
const IQ6_LADDER: Ladder = Ladder {
    anchors: &two_sided::<40>(-123.0, 118.0, 1.018),
    stretches: &[0.991, 0.994, 0.997, 1.003, 1.006, 1.009],
    rounds: 2,
};
