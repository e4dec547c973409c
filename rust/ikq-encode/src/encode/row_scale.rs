//! One float scale per row, sub-blocks of 32 with an integer scale and (but for IQ2_KL) a choice
//! between two rows of a value table: IQ2_KS, IQ3_KS, IQ4_KS, IQ4_KSS, IQ5_KS, IQ2_KL.
//!
//! Objective: `sum w (x - d k v)^2` with w of the column. Searched: a scale for every sub-block with
//! either table row ([`crate::search::scale`]); then d of the whole row, the integers k, the table
//! rows and the codes together ([`crate::search::block_scales`]), the table row being chosen again
//! at the final scales.

use ikq_formats::codebook::{IQ2NL_VALUES, IQ3NL_VALUES, IQ4K_VALUES, IQ5NL_VALUES};
use ikq_formats::{QuantType, layout};
use ikq_simd::Isa;

use super::Encode;
use super::weights::normalizer;
use crate::search::block_scales::{
    COARSE_HALF, Grid, Reach, coarse_halves, nearly_exact, settle, super_scale,
};
use crate::search::gain::Scales;
use crate::search::levels::{Four, Table, Wide};
use crate::search::pairs::Pairs;
use crate::search::parity::EvenGroups;
use crate::search::scale::{self, Coder, Fit, Ladder, two_sided};
use crate::search::tile::{Codes, LANES, Tile, lane_codes};

/// Elements per sub-block and sub-blocks per block.
const N: usize = 32;
const PER_BLOCK: usize = 8;
/// The largest d that is stored as an f32: with it, no code of any sub-block decodes to infinity. It is a little
/// less than the largest float over the largest integer and value, because three results are rounded.
/// A d that is stored as an f16 is never too large.
const LARGEST: f32 = f32::MAX / (127.0 * 127.001);

/// How the row's scale is stored.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Header {
    F16,
    F32,
}

/// Where the table row of a sub-block is stored.
#[derive(Clone, Copy, PartialEq, Eq)]
enum RowBit {
    /// In a field of its own, before the scales.
    Field,
    /// In the lowest bit of the scale's byte, which is 0 otherwise: scales are odd and an odd offset is added.
    Scale,
    /// There is only one table row.
    None,
}

/// The properties by which the types of this file differ.
#[derive(Clone, Copy)]
struct Search<C, const ROWS: usize> {
    rows: [C; ROWS],
    /// Elements per code.
    per_code: usize,
    ladder: Ladder,
    grid: Grid,
    reach: Reach,
    /// How often integers are chosen and d is refitted to them.
    rounds: usize,
    header: Header,
    row_bit: RowBit,
    /// Added to the integer scale where it is stored.
    offset: f32,
}

/// Working memory of a row: its sub-blocks in tiles, and what was found for each.
#[derive(Default)]
pub struct Scratch {
    tiles: Vec<Tile<N>>,
    scales: Vec<[f32; LANES]>,
    curvatures: Vec<[f32; LANES]>,
    /// Integer scale and table row of each sub-block.
    k: Vec<[f32; LANES]>,
    table_row: Vec<[f32; LANES]>,
}

impl Scratch {
    fn resize(&mut self, n_tiles: usize) {
        self.tiles.resize_with(n_tiles, Tile::default);
        for v in [&mut self.scales, &mut self.curvatures, &mut self.k, &mut self.table_row] {
            v.resize(n_tiles, [0.0; LANES]);
        }
    }
}

/// Where a row is fitted so well that the rounding of d decides, d is also tried times these ratios of levels.
/// IQ2_KS has few integers, and more luck with levels 26, 22, 17 and 8 besides 31 than with 31 alone.
const LUCKY: [f32; 5] = [1.0, 26.0 / 31.0, 22.0 / 31.0, 17.0 / 31.0, 8.0 / 31.0];

/// `sum w x^2` of a row, and what the fits of its sub-blocks leave of it.
#[derive(Clone, Copy)]
struct Energies {
    all: f32,
    left: f32,
}

/// Encodes one row.
#[inline(always)]
fn encode_row<I: Isa, C: Coder<I>, const ROWS: usize>(
    isa: I,
    ty: QuantType,
    search: Search<C, ROWS>,
    (x, w): (&[f32], &[f32]),
    stored_as: Scales,
    s: &mut Scratch,
    out: &mut [u8],
) {
    let header = search.header;
    let (down, up) = normalizer(x);
    let energies = fit_row(isa, s, &search, (x, w), (down, up), stored_as);
    let limit = isa.splat_f(LARGEST * down);
    // the nearest d that can be stored, normalised as the tiles are
    let storable = |d: I::F| match header {
        Header::F16 => isa.mul_f(isa.f16_round(isa.mul_f(d, isa.splat_f(up))), isa.splat_f(down)),
        Header::F32 => isa.max_f(isa.min_f(d, limit), isa.sub_f(isa.splat_f(0.0), limit)),
    };
    let d = row_scale(isa, s, &search, (x.len() / N, energies), (down, up), storable);
    let (head, blocks) = out.split_at_mut(if header == Header::F16 { 2 } else { 4 });
    let xy = write_blocks(isa, ty, s, &search, (d, stored_as), blocks);
    // among the smallest f16 numbers, a step is more than the gain
    let is_coarse = header == Header::F16 && (d * up).abs() < COARSE_HALF;
    // normalised; the decoder multiplies d by k, rounds, and then multiplies by the value
    let d = if is_coarse { d } else { d * stored_as.factor(xy, energies.all) };
    match header {
        Header::F16 => head.copy_from_slice(&isa.f16_bits(isa.splat_f(d * up))[0].to_le_bytes()),
        Header::F32 => head.copy_from_slice(&(isa.array(storable(isa.splat_f(d)))[0] * up).to_le_bytes()),
    }
}

/// Loads a row, and finds the best scale of each sub-block on its own.
#[inline(always)]
fn fit_row<I: Isa, C: Coder<I>, const ROWS: usize>(
    isa: I,
    s: &mut Scratch,
    search: &Search<C, ROWS>,
    (x, w): (&[f32], &[f32]),
    factors: (f32, f32),
    stored_as: Scales,
) -> Energies {
    s.resize(x.len().div_ceil(LANES * N));
    let mut energies = Energies { all: 0.0, left: 0.0 };
    let elements = x.chunks(LANES * N).zip(w.chunks(LANES * N));
    for (i, (x, w)) in elements.enumerate() {
        let tile = &mut s.tiles[i];
        tile.load_row(isa, x, w, factors);
        let peak = tile.peak(isa);
        let mut fit = Fit::nothing(isa);
        for coder in search.rows {
            fit = scale::best_scale(isa, tile, coder, peak, (search.ladder, stored_as), fit);
        }
        let tile_energy = tile.energy(isa);
        energies.all += isa.sum(tile_energy);
        energies.left += isa.sum(isa.sub_f(tile_energy, fit.gain));
        isa.store_f(fit.scale, &mut s.scales[i]);
        isa.store_f(fit.curvature, &mut s.curvatures[i]);
    }
    energies
}

/// Finds the scale of a row of `n_sub` sub-blocks, and leaves integers and table rows for it in `s`.
#[inline(always)]
fn row_scale<I: Isa, C: Coder<I>, const ROWS: usize>(
    isa: I,
    s: &mut Scratch,
    search: &Search<C, ROWS>,
    (n_sub, energies): (usize, Energies),
    (down, up): (f32, f32),
    storable: impl Fn(I::F) -> I::F,
) -> f32 {
    let grid = search.grid;
    let (scales, curvatures) = (s.scales.as_flattened(), s.curvatures.as_flattened());
    let mut d = super_scale(isa, &scales[..n_sub], &curvatures[..n_sub], grid, &storable);
    for _ in 0..search.rounds {
        let (xk, kk) = settle_row(isa, s, search, d, n_sub);
        d = if kk > 0.0 { isa.array(storable(isa.splat_f(xk / kk)))[0] } else { 0.0 };
    }
    if search.header == Header::F32 {
        return d;
    }
    let peak = s.scales.as_flattened().iter().fold(0.0f32, |p, s| if s.abs() > p.abs() { *s } else { p });
    // where the fit is so good that the rounding of d decides
    let is_exact = nearly_exact(energies.all, energies.left);
    let exact = is_exact.then(|| grid.ends().flat_map(|end| LUCKY.map(|l| end * l)));
    let exact = exact.into_iter().flatten().map(|end| isa.array(storable(isa.splat_f(peak / end)))[0]);
    let coarse = coarse_halves(peak * up / grid.longer_end()).map(|half| half * down);
    let every = Search { reach: Reach::All, ..*search };
    let mut best = None;
    for other in exact.chain(coarse) {
        let (least, _) = *best.get_or_insert_with(|| (row_error(isa, s, search, d), d));
        settle_row(isa, s, &every, other, n_sub);
        let error = row_error(isa, s, search, other);
        best = if error < least { Some((error, other)) } else { best };
    }
    if let Some((_, found)) = best {
        d = found;
        settle_row(isa, s, &every, d, n_sub);
    }
    d
}

/// Writes the blocks of a row whose integers and table rows are in `s`; returns `sum w x y`, or 0 where scales are stored as
/// fitted.
#[inline(always)]
fn write_blocks<I: Isa, C: Coder<I>, const ROWS: usize>(
    isa: I,
    ty: QuantType,
    s: &Scratch,
    search: &Search<C, ROWS>,
    (d, stored_as): (f32, Scales),
    blocks: &mut [u8],
) -> f32 {
    let Search { rows, per_code, row_bit, offset, .. } = *search;
    let layout = layout(ty).expect("types of this file have layouts");
    // the codes with each table row
    let mut codes: [Codes<N>; ROWS] = [[[0.0; LANES]; N]; ROWS];
    // shift (where it is a field), scales, q
    let mut values = [0u32; 2 * PER_BLOCK + PER_BLOCK * N];
    let scales_at = if row_bit == RowBit::Field { PER_BLOCK } else { 0 };
    let n_codes = N / per_code;
    let fields = &mut values[..scales_at + PER_BLOCK * (1 + n_codes)];
    // sum w x y
    let mut xy = 0.0;
    for (i, out) in blocks.chunks_mut(LANES / PER_BLOCK * layout.bytes).enumerate() {
        let dk = isa.mul_f(isa.splat_f(d), isa.load_f(&s.k[i]));
        for (coder, codes) in rows.into_iter().zip(&mut codes) {
            if stored_as != Scales::Only {
                scale::codes(isa, &s.tiles[i], coder, dk, codes);
            }
        }
        if stored_as == Scales::Unbiased {
            let (inverse, row) = (scale::inverse(isa, dk), isa.load_f(&s.table_row[i]));
            let mut xv = isa.splat_f(0.0);
            for (r, coder) in rows.into_iter().enumerate() {
                let of_row = coder.sums(isa, &s.tiles[i], inverse).xv;
                xv = isa.if_gt(row, isa.splat_f(r as f32 - 0.5), of_row, xv);
            }
            xy += isa.sum(isa.mul_f(dk, xv));
        }
        for (block, out) in out.chunks_exact_mut(layout.bytes).enumerate() {
            for j in 0..PER_BLOCK {
                let lane = block * PER_BLOCK + j;
                let (scale, row) = ((s.k[i][lane] + offset) as u32, s.table_row[i][lane] as u32);
                match row_bit {
                    RowBit::Field => (fields[j], fields[scales_at + j]) = (row, scale),
                    RowBit::Scale => fields[j] = scale | row,
                    RowBit::None => fields[j] = scale,
                }
                let q = &mut fields[scales_at + PER_BLOCK + j * n_codes..][..n_codes];
                lane_codes(&codes[row as usize], lane, q);
            }
            layout.pack(fields, out);
        }
    }
    xy
}

/// Chooses integers and table rows of all sub-blocks at d. Returns `sum w x k v` and `sum w (k v)^2`.
#[inline(always)]
fn settle_row<I: Isa, C: Coder<I>, const ROWS: usize>(
    isa: I,
    s: &mut Scratch,
    search: &Search<C, ROWS>,
    d: f32,
    n_sub: usize,
) -> (f32, f32) {
    let (mut xk, mut kk) = (0.0, 0.0);
    for (i, tile) in s.tiles.iter().enumerate() {
        let scale = isa.load_f(&s.scales[i]);
        let found = settle(isa, tile, &search.rows, scale, isa.splat_f(d), (search.grid, search.reach));
        isa.store_f(found.k, &mut s.k[i]);
        isa.store_f(found.row, &mut s.table_row[i]);
        // lanes behind the row's end hold zeros: they add nothing to xk, and are left out of kk
        let live = n_sub - (i * LANES).min(n_sub);
        xk += isa.sum(found.xk);
        kk += isa.array(found.kk).iter().take(live).sum::<f32>();
    }
    (xk, kk)
}

/// The row's error with the integers and table rows in `s`, added up element by element.
#[inline(always)]
fn row_error<I: Isa, C: Coder<I>, const ROWS: usize>(
    isa: I,
    s: &Scratch,
    search: &Search<C, ROWS>,
    d: f32,
) -> f32 {
    let mut sum = 0.0;
    for (i, tile) in s.tiles.iter().enumerate() {
        let (row, dk) = (isa.load_f(&s.table_row[i]), isa.mul_f(isa.splat_f(d), isa.load_f(&s.k[i])));
        let mut error = isa.splat_f(0.0);
        for (r, coder) in search.rows.into_iter().enumerate() {
            let from_here = isa.splat_f(r as f32 - 0.5);
            error = isa.if_gt(row, from_here, scale::residual(isa, tile, coder, dk), error);
        }
        sum += isa.sum(error);
    }
    sum
}

macro_rules! row_scales {
    ($($(#[$doc:meta])* $ty:ident: $search:expr;)*) => { $(
        $(#[$doc])*
        #[allow(non_camel_case_types)]
        pub struct $ty;

        impl Encode for $ty {
            const TYPE: QuantType = QuantType::$ty;
            type Scratch = Scratch;

            #[inline(always)]
            fn encode_row<I: Isa>(
                isa: I,
                x: &[f32],
                w: &[f32],
                scales: Scales,
                scratch: &mut Scratch,
                out: &mut [u8],
            ) {
                encode_row(isa, Self::TYPE, $search(isa), (x, w), scales, scratch, out);
            }
        }
    )* };
}

row_scales! {
    /// Four levels, two table rows.
    IQ2_KS: |isa| Search {
        rows: [Four::new(isa, &IQ2NL_VALUES[0]), Four::new(isa, &IQ2NL_VALUES[1])],
        per_code: 1,
        ladder: IQ2_LADDER,
        grid: FIVE_BITS,
        reach: Reach::Neighbours,
        rounds: 2,
        header: Header::F16,
        row_bit: RowBit::Field,
        offset: 16.0,
    };
    /// Eight levels, two table rows.
    IQ3_KS: |isa| Search {
        rows: [Table::new(isa, &IQ3NL_VALUES[0]), Table::new(isa, &IQ3NL_VALUES[1])],
        per_code: 1,
        ladder: IQ3_LADDER,
        grid: FIVE_BITS,
        reach: Reach::Neighbours,
        rounds: 2,
        header: Header::F16,
        row_bit: RowBit::Field,
        offset: 16.0,
    };
    /// Sixteen levels, two table rows.
    IQ4_KS: |isa| Search {
        rows: [Table::new(isa, &IQ4K_VALUES[0]), Table::new(isa, &IQ4K_VALUES[1])],
        per_code: 1,
        ladder: IQ4_LADDER,
        grid: ODD_BYTES,
        reach: Reach::Neighbours,
        rounds: 1,
        header: Header::F32,
        row_bit: RowBit::Scale,
        offset: 127.0,
    };
    /// Sixteen levels, two table rows, four codes in 15 bits.
    IQ4_KSS: |isa| Search {
        rows: [EvenGroups::new(isa, &IQ4K_VALUES[0]), EvenGroups::new(isa, &IQ4K_VALUES[1])],
        per_code: 1,
        ladder: IQ4_LADDER,
        grid: ODD_BYTES,
        reach: Reach::Neighbours,
        rounds: 1,
        header: Header::F32,
        row_bit: RowBit::Scale,
        offset: 127.0,
    };
    /// 32 levels, two table rows.
    IQ5_KS: |isa| Search {
        rows: [Wide::new(isa, &IQ5NL_VALUES[0]), Wide::new(isa, &IQ5NL_VALUES[1])],
        per_code: 1,
        ladder: IQ5_LADDER,
        grid: ODD_BYTES,
        reach: Reach::Neighbours,
        rounds: 1,
        header: Header::F32,
        row_bit: RowBit::Scale,
        offset: 127.0,
    };
    /// 32 pairs of values.
    IQ2_KL: |_| Search {
        rows: [Pairs],
        per_code: 2,
        ladder: PAIR_LADDER,
        grid: Grid { lo: -32.0, hi: 31.0, odd: false },
        reach: Reach::Neighbours,
        rounds: 1,
        header: Header::F16,
        row_bit: RowBit::None,
        offset: 32.0,
    };
}

const FIVE_BITS: Grid = Grid { lo: -16.0, hi: 15.0, odd: false };
const ODD_BYTES: Grid = Grid { lo: -127.0, hi: 127.0, odd: true };

/// Levels on which the largest element is put: around the last level of both sides and beyond. The second table row
/// is four above the first.
#[rustfmt::skip]
const IQ4_ANCHORS: &[f32] = &[
    -127.0, -117.0, -122.0, -132.0, -138.0, -146.0, -155.0, -166.0, -180.0, -200.0, -225.0,
    104.0, 109.0, 114.0, 119.0, 125.0, 132.0, 141.0, 152.0, 166.0, 185.0, 205.0,
];
pub(super) const IQ4_LADDER: Ladder =
    Ladder { anchors: IQ4_ANCHORS, stretches: &[0.975, 0.988, 1.012, 1.025], rounds: 2 };
/// The ladders of the other tables; coarser ones clip more.
pub(super) const IQ5_LADDER: Ladder = Ladder {
    anchors: &two_sided::<20>(-122.0, 115.0, 1.05),
    stretches: &[0.98, 0.99, 1.01, 1.02],
    rounds: 2,
};
pub(super) const IQ3_LADDER: Ladder =
    Ladder { anchors: &two_sided::<22>(-58.0, 44.0, 1.075), stretches: &[0.965, 1.035], rounds: 3 };
pub(super) const IQ2_LADDER: Ladder =
    Ladder { anchors: &two_sided::<28>(-26.0, 15.0, 1.09), stretches: &[0.96, 1.04], rounds: 3 };
/// Levels on which the largest element is put where codes stand for pairs.
#[rustfmt::skip]
const PAIR_ANCHORS: &[f32] = &[
    -63.0, -53.0, -58.0, -69.0, -76.0, -83.0, -92.0, -101.0,
    47.0, 40.0, 43.5, 51.0, 56.0, 61.0, 68.0, 75.0, 83.0,
];
const PAIR_LADDER: Ladder = Ladder { anchors: PAIR_ANCHORS, stretches: &[0.96, 0.98, 1.02, 1.04], rounds: 2 };
