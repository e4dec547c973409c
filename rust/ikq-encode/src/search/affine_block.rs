//! Blocks with a scale and a minimum of their own, both stored as halves: `y = d q + m`, q in `0..=levels`, m of
//! either sign.
//!
//! 1. A half near its smallest element is subtracted from each block, so that a large common offset does not cost
//!    the sums their precision.
//! 2. Scale and minimum are found as for sub-blocks (the first stage of [`super::affine`]), with a minimum of
//!    either sign.
//! 3. The minimum is rounded to a half (also to the halves next to it, where their distance matters), d is fitted
//!    to it and rounded, and codes are recomputed for both. Rows without importance fit d to the codes of stage 2,
//!    unless a block of the tile needs more care.
//! 4. Where scales are to undo the gain, the scale is stored so much larger that decoded values spread about their
//!    mean as the elements do, with a minimum that keeps the mean.

use ikq_simd::Isa;

use super::affine::{Alone, Minimum, Moments, Rung, Sums, code, fit, half, moments, range, residual, sums};
use super::block_scales::coarse_halves;
use super::gain::Scales;
use super::scale::inverse;
use super::tile::{Codes, LANES, Tile, Weighing};

/// The parameters of a search.
#[derive(Clone, Copy)]
pub struct Search {
    /// Largest code.
    pub levels: f32,
    pub ladder: &'static [Rung],
    /// How often the best fit is improved by least squares after the ladder.
    pub rounds: usize,
    pub scales: Scales,
}

/// The floats that the blocks of a tile are stored with.
pub struct Encoded {
    /// The bits of scale and minimum as halves.
    pub d: [u16; LANES],
    pub m: [u16; LANES],
}

/// The rounded minimum and the halves next to it, in steps from it.
const NEIGHBOURS: [f32; 3] = [0.0, 1.0, -1.0];
/// The step from a half to the next one, as a share of it (a bit more, to be sure), and the smallest step.
const STEP: f32 = 1.2 / 2048.0;
const SMALLEST_STEP: f32 = 1.0 / 16_777_216.0;
/// Steps of the minimum below this share of the scale do not matter.
const FINE: f32 = 0.02;

/// Relative squared error below which the rounding of the scale decides. Such blocks have only two values, for
/// which many pairs of codes would do ...
const NEARLY_EXACT: f32 = 1e-5;
/// ... so scales are tried with which the larger value has one of these codes.
const LUCKY: &[f32] = &[15.0, 14.0, 13.0, 11.0, 9.0, 7.0, 5.0, 3.0];

#[inline(always)]
fn any<I: Isa>(isa: I, flags: I::F) -> bool {
    isa.array(flags).contains(&1.0)
}

/// The scale (at least 0) that fits the codes best at this minimum.
#[inline(always)]
fn fitted<I: Isa>(isa: I, s: Sums<I::F>, min: I::F) -> I::F {
    let scale = isa.mul_f(isa.sub_f(s.xq, isa.mul_f(min, s.q)), inverse(isa, s.qq));
    isa.max_f(scale, isa.splat_f(0.0))
}

/// Scales among the smallest halves, which may round to much less or to 0, become the first half that is not below
/// them; where a scale is not so small, this is `otherwise`.
#[inline(always)]
fn enlarged<I: Isa, const N: usize>(isa: I, tile: &Tile<N>, scale: I::F, otherwise: I::F) -> I::F {
    let (scale, mut out) = (isa.array(scale), isa.array(otherwise));
    for (lane, out) in out.iter_mut().enumerate() {
        if let Some(half) = coarse_halves(scale[lane] * tile.up[lane]).next() {
            *out = half * tile.down[lane];
        }
    }
    isa.load_f(&out)
}

/// Keeps a pair of scale and minimum where it is better; `min` is the minimum less the floor that was subtracted.
#[inline(always)]
fn keep_better<I: Isa, const N: usize>(
    isa: I,
    tile: &Tile<N>,
    (scale, minimum, min): (I::F, I::F, I::F),
    levels: I::F,
    (d, m, least): (&mut I::F, &mut I::F, &mut I::F),
) {
    let error = residual(isa, tile, scale, min, levels);
    *d = isa.if_gt(*least, error, scale, *d);
    *m = isa.if_gt(*least, error, minimum, *m);
    *least = isa.min_f(error, *least);
}

/// Subtracts a number of each block from its elements.
#[inline(always)]
fn subtract<I: Isa, W: Weighing, const N: usize>(isa: I, tile: &mut Tile<N>, floor: I::F) {
    for i in 0..N {
        let x = isa.sub_f(isa.load_f(&tile.x[i]), floor);
        isa.store_f(x, &mut tile.x[i]);
        if W::WEIGHTED {
            isa.store_f(isa.mul_f(isa.load_f(&tile.w[i]), x), &mut tile.wx[i]);
        }
    }
}

/// Encodes a tile, whose elements are changed.
#[inline(always)]
pub fn encode<I: Isa, W: Weighing, const N: usize>(
    isa: I,
    tile: &mut Tile<N>,
    weighing: W,
    Search { levels, ladder, rounds, scales }: Search,
    codes: &mut Codes<N>,
) -> Encoded {
    let zero = isa.splat_f(0.0);
    let (down, up) = (isa.load_f(&tile.down), isa.load_f(&tile.up));
    let (lo, hi) = range(isa, tile);
    let floor = half(isa, tile, lo);
    subtract::<_, W, N>(isa, tile, floor);

    let t = moments(isa, tile, weighing);
    let ends = (isa.sub_f(lo, floor), isa.sub_f(hi, floor));
    let found = fit(isa, (tile, weighing), t, ends, Alone { levels, ladder, rounds, minimum: Minimum::Free });
    let levels = isa.splat_f(levels);
    let nearest = half(isa, tile, isa.add_f(floor, found.min));
    let step = isa
        .max_f(isa.mul_f(isa.abs_f(nearest), isa.splat_f(STEP)), isa.mul_f(isa.splat_f(SMALLEST_STEP), down));
    let coarse = isa.sub_f(step, isa.mul_f(found.scale, isa.splat_f(FINE)));
    // for blocks of zeros there is nothing to choose
    let flag = match W::WEIGHTED {
        true => isa.splat_f(1.0),
        false => isa.if_gt(isa.max_f(hi, isa.sub_f(zero, lo)), zero, isa.splat_f(1.0), zero),
    };
    let matters = any(isa, isa.if_gt(coarse, zero, flag, zero));
    let little = isa.mul_f(t.xx, isa.splat_f(NEARLY_EXACT));
    let lucky: &[f32] = match any(isa, isa.if_gt(little, found.error, isa.splat_f(1.0), zero)) {
        true => LUCKY,
        false => &[],
    };

    let ordinary = !matters && lucky.is_empty();
    // the fit's sums serve: codes at the rounded pair differ from its codes in few elements, which hardly change d
    let settled = ordinary && !W::WEIGHTED;
    let (mut d, mut m, mut least) = (zero, zero, isa.splat_f(f32::INFINITY));
    for by in NEIGHBOURS {
        let minimum = half(isa, tile, isa.mul_add_f(step, isa.splat_f(by), nearest));
        // both are halves, so their difference is (nearly) exact
        let min = isa.sub_f(minimum, floor);
        if settled {
            (d, m) = (half(isa, tile, fitted(isa, found.sums, min)), minimum);
            break;
        }
        // a constant block has code 1 above a minimum that is too low
        let above = isa.max_f(isa.sub_f(hi, minimum), zero);
        let guess = isa.if_gt(found.scale, zero, found.scale, above);
        let s = sums(isa, tile, weighing, inverse(isa, guess), min, levels);
        let scale = half(isa, tile, fitted(isa, s, min));
        if ordinary {
            (d, m) = (scale, minimum);
            break;
        }
        for scale in [scale, half(isa, tile, guess), enlarged(isa, tile, guess, scale)] {
            keep_better(isa, tile, (scale, minimum, min), levels, (&mut d, &mut m, &mut least));
        }
        for code in lucky {
            let scale = half(isa, tile, isa.div_f(above, isa.splat_f(*code)));
            keep_better(isa, tile, (scale, minimum, min), levels, (&mut d, &mut m, &mut least));
        }
    }

    let per_scale = inverse(isa, d);
    let offset = isa.mul_f(isa.sub_f(floor, m), per_scale);
    for (i, codes) in codes.iter_mut().enumerate() {
        isa.store_f(isa.slot(code(isa, tile, i, per_scale, offset, levels)), codes);
    }
    if scales == Scales::Unbiased && !matters {
        let s = if settled {
            found.sums
        } else {
            sums(isa, tile, weighing, per_scale, isa.sub_f(m, floor), levels)
        };
        (d, m) = widened(isa, tile, (t, s), (d, m, floor), scales);
    }
    Encoded { d: isa.f16_bits(isa.mul_f(d, up)), m: isa.f16_bits(isa.mul_f(m, up)) }
}

/// Scale and minimum with which decoded values spread about their mean as the elements do, and have their mean.
#[inline(always)]
fn widened<I: Isa, const N: usize>(
    isa: I,
    tile: &Tile<N>,
    (t, s): (Moments<I::F>, Sums<I::F>),
    (d, m, floor): (I::F, I::F, I::F),
    scales: Scales,
) -> (I::F, I::F) {
    let per_one = inverse(isa, t.one);
    let mean = isa.mul_f(t.x, per_one);
    let left = isa.mul_f(d, isa.sub_f(s.xq, isa.mul_f(mean, s.q)));
    let factor = scales.factors(isa, left, isa.sub_f(t.xx, isa.mul_f(mean, t.x)));
    let scale = half(isa, tile, isa.mul_f(d, factor));
    let minimum = isa.add_f(isa.sub_f(mean, isa.mul_f(isa.mul_f(scale, s.q), per_one)), floor);
    let one = isa.splat_f(1.0);
    (isa.if_gt(factor, one, scale, d), isa.if_gt(factor, one, half(isa, tile, minimum), m))
}
