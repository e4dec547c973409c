//! Super-blocks whose sub-blocks have a scale and a minimum, both integers times a float of the
//! super-block: `y = d * sc * q - dmin * m`, q in `0..=levels`, sc and m in `0..=steps`.
//!
//! Three stages, sixteen sub-blocks side by side ([`Tile`]):
//!
//! 1. Each sub-block is fitted alone: starting from each step size of a ladder, codes and the weighted
//!    least-squares pair (scale, minimum) are found in turn; the pair with the least error is kept. The minimum is
//!    never positive (the stored one is subtracted).
//! 2. The super-block's d and dmin are chosen: scales and minima become integers, and each sub-block tries the
//!    neighbours of its own, with codes recomputed for each.
//! 3. d and dmin are refitted to those integers and codes and rounded to half precision, and stage 2 is
//!    repeated; the pair with the least error of the super-block is kept.

use ikq_simd::Isa;

use super::block_scales::{Grid, coarse_halves, super_scale};
use super::gain::Scales;
use super::scale::inverse;
use super::tile::{Codes, LANES, Tile, Weighing, Weighted};

/// The shape of an affine format.
#[derive(Clone, Copy)]
pub struct Affine {
    /// Largest code.
    pub levels: f32,
    /// Largest integer scale and minimum.
    pub steps: f32,
    /// Sub-blocks per super-block.
    pub per_super: usize,
    /// The step sizes that stage 1 starts from.
    pub ladder: &'static [Rung],
}

/// A step size to start from: the range of a sub-block becomes `levels` plus the first number steps long (more than
/// `levels` clips), and its lower end lies as many steps below code 0 as the second number says.
pub type Rung = (f32, f32);

/// How often the best fit is improved by least squares after the ladder.
pub const ROUNDS: usize = 3;
/// How often d and dmin are refitted.
const REFITS: usize = 3;

/// Steps from a sub-block's integers (scale, minimum) to the neighbours that stage 2 tries.
const NEIGHBOURS: &[(f32, f32)] = &[
    (0.0, 0.0),
    (1.0, 0.0),
    (-1.0, 0.0),
    (0.0, 1.0),
    (0.0, -1.0),
    (1.0, 1.0),
    (-1.0, -1.0),
    (1.0, -1.0),
    (-1.0, 1.0),
];

/// The scales and integers that were found for a tile; floats are normalised like the tile.
pub struct Encoded {
    /// d and dmin of the super-block, in each of its lanes.
    pub d: [f32; LANES],
    pub dmin: [f32; LANES],
    /// Integer scale and minimum of each sub-block.
    pub sc: [f32; LANES],
    pub m: [f32; LANES],
}

/// Sums over a sub-block that depend on its codes.
#[derive(Clone, Copy)]
pub(super) struct Sums<F> {
    /// `sum w q`, `sum w q^2`, `sum w x q`.
    pub q: F,
    pub qq: F,
    pub xq: F,
}

impl<F: Copy> Sums<F> {
    /// `self`, but `other` in lanes where its error `found` is below `least`.
    #[inline(always)]
    fn or<I: Isa<F = F>>(self, isa: I, (least, found): (F, F), other: Self) -> Self {
        Sums {
            q: isa.if_gt(least, found, other.q, self.q),
            qq: isa.if_gt(least, found, other.qq, self.qq),
            xq: isa.if_gt(least, found, other.xq, self.xq),
        }
    }
}

/// Sums that do not depend on codes: `sum w`, `sum w x`, `sum w x^2`.
#[derive(Clone, Copy)]
pub(super) struct Moments<F> {
    pub one: F,
    pub x: F,
    pub xx: F,
}

/// The moments of each sub-block.
#[inline(always)]
pub(super) fn moments<I: Isa, W: Weighing, const N: usize>(
    isa: I,
    tile: &Tile<N>,
    weighing: W,
) -> Moments<I::F> {
    let zero = isa.splat_f(0.0);
    let mut t = Moments { one: zero, x: zero, xx: zero };
    for i in 0..N {
        let wx = weighing.wx(isa, tile, i);
        t.one = isa.add_f(t.one, weighing.times(isa, tile, i, isa.splat_f(1.0)));
        t.x = isa.add_f(t.x, wx);
        t.xx = isa.mul_add_f(wx, isa.load_f(&tile.x[i]), t.xx);
    }
    t
}

/// `sum w (scale q + min - x)^2` from the sums.
#[inline(always)]
pub(super) fn error<I: Isa>(isa: I, t: Moments<I::F>, s: Sums<I::F>, scale: I::F, min: I::F) -> I::F {
    // scale (scale qq + 2 (min q - xq)) + min (min one - 2 x) + xx
    let cross = isa.sub_f(isa.mul_f(min, s.q), s.xq);
    let by_scale = isa.add_f(isa.mul_f(scale, s.qq), isa.add_f(cross, cross));
    let by_min = isa.sub_f(isa.mul_f(min, t.one), isa.add_f(t.x, t.x));
    isa.add_f(isa.add_f(isa.mul_f(scale, by_scale), isa.mul_f(min, by_min)), t.xx)
}

/// The codes `round((x - min) / scale)` of element `i`.
#[inline(always)]
pub(super) fn code<I: Isa, const N: usize>(
    isa: I,
    tile: &Tile<N>,
    i: usize,
    per_scale: I::F,
    offset: I::F,
    levels: I::F,
) -> I::F {
    // clamped first, because rounding only works for small numbers
    let t = isa.mul_add_f(isa.load_f(&tile.x[i]), per_scale, offset);
    isa.round(isa.max_f(isa.min_f(t, levels), isa.splat_f(0.0)))
}

/// Sums for the codes at this scale and minimum.
#[inline(always)]
pub(super) fn sums<I: Isa, W: Weighing, const N: usize>(
    isa: I,
    tile: &Tile<N>,
    weighing: W,
    per_scale: I::F,
    min: I::F,
    levels: I::F,
) -> Sums<I::F> {
    let zero = isa.splat_f(0.0);
    let offset = isa.mul_f(isa.sub_f(zero, min), per_scale);
    let mut s = Sums { q: zero, qq: zero, xq: zero };
    for i in 0..N {
        let q = code(isa, tile, i, per_scale, offset, levels);
        let wq = weighing.times(isa, tile, i, q);
        s.q = isa.add_f(s.q, wq);
        s.qq = isa.mul_add_f(wq, q, s.qq);
        s.xq = isa.mul_add_f(weighing.wx(isa, tile, i), q, s.xq);
    }
    s
}

/// [`error`] at this scale and minimum, added up element by element: for fits so good that the rounding of the sums
/// would hide what is left.
#[inline(always)]
pub(super) fn residual<I: Isa, const N: usize>(
    isa: I,
    tile: &Tile<N>,
    scale: I::F,
    min: I::F,
    levels: I::F,
) -> I::F {
    let zero = isa.splat_f(0.0);
    let per_scale = inverse(isa, scale);
    let offset = isa.mul_f(isa.sub_f(zero, min), per_scale);
    let mut sum = zero;
    for i in 0..N {
        let y = isa.mul_add_f(code(isa, tile, i, per_scale, offset, levels), scale, min);
        let r = isa.sub_f(isa.load_f(&tile.x[i]), y);
        sum = isa.mul_add_f(isa.mul_f(isa.load_f(&tile.w[i]), r), r, sum);
    }
    sum
}

/// Which signs a sub-block's minimum may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Minimum {
    /// It is stored as a magnitude that is subtracted.
    AtMostZero,
    /// It is stored with its sign.
    Free,
}

/// The best scale (at least 0) and minimum for given codes. Where the codes do not determine both (because all are
/// equal, or the pair is out of bounds), it is the better of the two alone.
#[inline(always)]
fn solve<I: Isa>(isa: I, t: Moments<I::F>, s: Sums<I::F>, minimum: Minimum) -> (I::F, I::F) {
    let zero = isa.splat_f(0.0);
    if minimum == Minimum::Free {
        let det = isa.sub_f(isa.mul_f(s.qq, t.one), isa.mul_f(s.q, s.q));
        let singular = isa.mul_f(isa.mul_f(s.qq, t.one), isa.splat_f(SINGULAR));
        let numerator = isa.sub_f(isa.mul_f(s.xq, t.one), isa.mul_f(t.x, s.q));
        let scale = isa.max_f(isa.mul_f(numerator, inverse(isa, det)), zero);
        let scale = isa.if_gt(det, singular, scale, zero);
        let min = isa.mul_f(isa.sub_f(t.x, isa.mul_f(scale, s.q)), inverse(isa, t.one));
        return (scale, min);
    }
    // in the terms of `pair`: scale * q - drop * 1
    let (scale, drop) = pair(isa, Normal { aa: s.qq, ab: s.q, bb: t.one, xa: s.xq, xb: t.x });
    (scale, isa.sub_f(zero, drop))
}

/// The normal equations of minimising `sum w (x - a A + b B)^2` over a and b.
#[derive(Clone, Copy)]
struct Normal<F> {
    /// `sum w A^2`, `sum w A B`, `sum w B^2`, `sum w x A`, `sum w x B`.
    aa: F,
    ab: F,
    bb: F,
    xa: F,
    xb: F,
}

/// A determinant below this share of its terms is only rounding.
const SINGULAR: f32 = 1e-6;

/// Solves the normal equations, with a and b at least 0.
#[inline(always)]
fn pair<I: Isa>(isa: I, n: Normal<I::F>) -> (I::F, I::F) {
    let zero = isa.splat_f(0.0);
    let det = isa.sub_f(isa.mul_f(n.aa, n.bb), isa.mul_f(n.ab, n.ab));
    // A and B are parallel, as far as sums in f32 can tell
    let singular = isa.mul_f(isa.mul_f(n.aa, n.bb), isa.splat_f(SINGULAR));
    let per_det = inverse(isa, det);
    let a = isa.mul_f(isa.sub_f(isa.mul_f(n.xa, n.bb), isa.mul_f(n.xb, n.ab)), per_det);
    let b = isa.mul_f(isa.sub_f(isa.mul_f(n.xa, n.ab), isa.mul_f(n.xb, n.aa)), per_det);
    let a_alone = isa.max_f(isa.mul_f(n.xa, inverse(isa, n.aa)), zero);
    let b_alone = isa.max_f(isa.mul_f(isa.sub_f(zero, n.xb), inverse(isa, n.bb)), zero);
    let (a_gain, b_gain) = (isa.mul_f(a_alone, n.xa), isa.mul_f(isa.sub_f(zero, b_alone), n.xb));
    let (a_alone, b_alone) =
        (isa.if_gt(b_gain, a_gain, zero, a_alone), isa.if_gt(b_gain, a_gain, b_alone, zero));
    let good = isa.if_gt(det, singular, isa.min_f(a, b), zero);
    (isa.if_gt(good, zero, a, a_alone), isa.if_gt(good, zero, b, b_alone))
}

/// A fit must lower the error by more than this share of the energy to replace one before it; less is rounding.
/// Sub-blocks of few values fit equally well at many scales, and should all take the same.
const INDIFFERENT: f32 = 3e-6;

/// The best fit of a sub-block so far.
#[derive(Clone, Copy)]
pub(super) struct Fit<F> {
    pub scale: F,
    pub min: F,
    pub error: F,
    /// The sums for the codes of this fit.
    pub sums: Sums<F>,
}

impl<F: Copy> Fit<F> {
    /// Takes the least-squares pair for the codes at scale `1 / per_scale` and minimum `min` where it is better.
    #[inline(always)]
    fn improve<I: Isa<F = F>, W: Weighing, const N: usize>(
        &mut self,
        isa: I,
        (tile, weighing): (&Tile<N>, W),
        t: Moments<F>,
        (per_scale, min): (F, F),
        (levels, minimum): (F, Minimum),
    ) {
        let s = sums(isa, tile, weighing, per_scale, min, levels);
        let (scale, min) = solve(isa, t, s, minimum);
        let found = error(isa, t, s, scale, min);
        let enough = isa.mul_add_f(t.xx, isa.splat_f(-INDIFFERENT), self.error);
        self.scale = isa.if_gt(enough, found, scale, self.scale);
        self.min = isa.if_gt(enough, found, min, self.min);
        self.sums = self.sums.or(isa, (enough, found), s);
        self.error = isa.if_gt(enough, found, found, self.error);
    }
}

impl Affine {
    fn alone(self) -> Alone {
        Alone { levels: self.levels, ladder: self.ladder, rounds: ROUNDS, minimum: Minimum::AtMostZero }
    }
}

/// The parameters of stage 1.
#[derive(Clone, Copy)]
pub(super) struct Alone {
    /// Largest code.
    pub levels: f32,
    pub ladder: &'static [Rung],
    /// How often the best fit is improved by least squares after the ladder.
    pub rounds: usize,
    pub minimum: Minimum,
}

/// The smallest and the largest element of each sub-block.
#[inline(always)]
pub(super) fn range<I: Isa, const N: usize>(isa: I, tile: &Tile<N>) -> (I::F, I::F) {
    let first = isa.load_f(&tile.x[0]);
    let (mut lo, mut hi) = (first, first);
    for x in &tile.x {
        let x = isa.load_f(x);
        (lo, hi) = (isa.min_f(x, lo), isa.max_f(x, hi));
    }
    (lo, hi)
}

/// Stage 1: finds scale and minimum of each sub-block on its own; its elements lie between `lo` and `hi`.
#[inline(always)]
pub(super) fn fit<I: Isa, W: Weighing, const N: usize>(
    isa: I,
    (tile, weighing): (&Tile<N>, W),
    t: Moments<I::F>,
    (lo, hi): (I::F, I::F),
    Alone { levels, ladder, rounds, minimum }: Alone,
) -> Fit<I::F> {
    let zero = isa.splat_f(0.0);
    let shape = (isa.splat_f(levels), minimum);
    // where the minimum is at most 0, the range begins at 0 or below; it need not reach up to 0
    let lo = if minimum == Minimum::Free { lo } else { isa.min_f(lo, zero) };
    let per_range = inverse(isa, isa.sub_f(hi, lo));
    // without codes the error is the energy
    let nothing = Sums { q: zero, qq: zero, xq: zero };
    let mut fit = Fit { scale: zero, min: zero, error: t.xx, sums: nothing };
    for (rung, below) in ladder {
        let per_scale = isa.mul_f(per_range, isa.splat_f(levels + rung));
        let min = isa.mul_add_f(inverse(isa, per_scale), isa.splat_f(*below), lo);
        fit.improve(isa, (tile, weighing), t, (per_scale, min), shape);
    }
    for _ in 0..rounds {
        fit.improve(isa, (tile, weighing), t, (inverse(isa, fit.scale), fit.min), shape);
    }
    fit
}

/// Stages 2 and 3 for a pair (d, dmin): integers and the error of each sub-block with them.
struct Trial<F> {
    sc: F,
    m: F,
    error: F,
    sums: Sums<F>,
}

/// Integer scale and minimum nearest to the wanted ones, or a neighbouring pair with a smaller error.
#[inline(always)]
fn integers<I: Isa, const N: usize>(
    isa: I,
    tile: &Tile<N>,
    t: Moments<I::F>,
    affine: Affine,
    (d, dmin): (I::F, I::F),
    (sc, m): (I::F, I::F),
    nearly_exact: bool,
) -> Trial<I::F> {
    let zero = isa.splat_f(0.0);
    let (levels, steps) = (isa.splat_f(affine.levels), isa.splat_f(affine.steps));
    let mut best = Trial {
        sc: zero,
        m: zero,
        error: isa.splat_f(f32::INFINITY),
        sums: Sums { q: zero, qq: zero, xq: zero },
    };
    for (by_sc, by_m) in NEIGHBOURS {
        let sc = isa.max_f(isa.min_f(isa.add_f(sc, isa.splat_f(*by_sc)), steps), zero);
        let m = isa.max_f(isa.min_f(isa.add_f(m, isa.splat_f(*by_m)), steps), zero);
        let (scale, min) = (isa.mul_f(d, sc), isa.sub_f(zero, isa.mul_f(dmin, m)));
        let s = sums(isa, tile, Weighted, inverse(isa, scale), min, levels);
        let found = match nearly_exact {
            true => residual(isa, tile, scale, min, levels),
            false => error(isa, t, s, scale, min),
        };
        let least = best.error;
        best = Trial {
            sc: isa.if_gt(least, found, sc, best.sc),
            m: isa.if_gt(least, found, m, best.m),
            sums: best.sums.or(isa, (least, found), s),
            error: isa.min_f(found, least),
        };
    }
    best
}

/// The sum over each super-block's lanes, in all of these lanes.
#[inline(always)]
fn total<I: Isa>(isa: I, v: I::F, affine: Affine) -> I::F {
    let mut lanes = isa.array(v);
    for group in lanes.chunks_mut(affine.per_super) {
        let mut sum = 0.0;
        for lane in &*group {
            sum += lane;
        }
        group.fill(sum);
    }
    isa.load_f(&lanes)
}

/// The maximum of each super-block's lanes, in all of these lanes.
#[inline(always)]
fn largest<I: Isa>(isa: I, v: I::F, affine: Affine) -> I::F {
    let mut lanes = isa.array(v);
    for group in lanes.chunks_mut(affine.per_super) {
        let mut top = group[0];
        for lane in &*group {
            top = top.max(*lane);
        }
        group.fill(top);
    }
    isa.load_f(&lanes)
}

/// The half that gives the integers of each super-block the best scale, in all of its lanes.
#[inline(always)]
fn halves<I: Isa, const N: usize>(
    isa: I,
    tile: &Tile<N>,
    targets: I::F,
    weights: I::F,
    affine: Affine,
) -> I::F {
    let grid = Grid { lo: 0.0, hi: affine.steps, odd: false };
    let (targets, weights) = (isa.array(targets), isa.array(weights));
    let mut d = [0.0; LANES];
    for (k, d) in d.chunks_mut(affine.per_super).enumerate() {
        let lanes = k * affine.per_super..(k + 1) * affine.per_super;
        let (up, down) = (isa.splat_f(tile.up[lanes.start]), isa.splat_f(tile.down[lanes.start]));
        let half = |d: I::F| isa.mul_f(isa.f16_round(isa.mul_f(d, up)), down);
        d.fill(super_scale(isa, &targets[lanes.clone()], &weights[lanes], grid, half));
    }
    isa.load_f(&d)
}

/// A scale rounded to the half that is stored for it, normalised like the tile.
#[inline(always)]
pub(super) fn half<I: Isa, const N: usize>(isa: I, tile: &Tile<N>, d: I::F) -> I::F {
    isa.mul_f(isa.f16_round(isa.mul_f(d, isa.load_f(&tile.up))), isa.load_f(&tile.down))
}

/// The best d and dmin for given integers and codes.
#[inline(always)]
fn refit<I: Isa>(isa: I, t: Moments<I::F>, trial: &Trial<I::F>, affine: Affine) -> (I::F, I::F) {
    let (sc, m, s) = (trial.sc, trial.m, trial.sums);
    let aa = total(isa, isa.mul_f(isa.mul_f(sc, sc), s.qq), affine);
    let ab = total(isa, isa.mul_f(isa.mul_f(sc, m), s.q), affine);
    let bb = total(isa, isa.mul_f(isa.mul_f(m, m), t.one), affine);
    let xa = total(isa, isa.mul_f(sc, s.xq), affine);
    let xb = total(isa, isa.mul_f(m, t.x), affine);
    pair(isa, Normal { aa, ab, bb, xa, xb })
}

/// The floats of each super-block (in all of its lanes) and the integers of each sub-block.
#[derive(Clone, Copy)]
struct Choice<F> {
    d: F,
    dmin: F,
    sc: F,
    m: F,
}

impl<F: Copy> Choice<F> {
    /// `self`, but `other` in lanes where its error `found` is below `least`.
    #[inline(always)]
    fn or<I: Isa<F = F>>(self, isa: I, (least, found): (F, F), other: Self) -> Self {
        Choice {
            d: isa.if_gt(least, found, other.d, self.d),
            dmin: isa.if_gt(least, found, other.dmin, self.dmin),
            sc: isa.if_gt(least, found, other.sc, self.sc),
            m: isa.if_gt(least, found, other.m, self.m),
        }
    }
}

/// Squared errors below this share of the energy are hidden by the rounding of sums.
const NEARLY_EXACT: f32 = 1e-4;

/// Where the error is that small, the rounding of dmin decides. Besides the one found (0 here), those are tried
/// that put the largest minimum on one of these integers; a factor of two would change nothing.
const LUCKY: &[f32] = &[0.0, 1.0, 3.0, 5.0, 7.0, 9.0, 11.0, 13.0];

/// Stages 2 and 3: chooses integers near those of `start` and refits d and dmin, several times. Returns the best
/// choice and its error.
#[inline(always)]
fn refine<I: Isa, const N: usize>(
    isa: I,
    tile: &Tile<N>,
    t: Moments<I::F>,
    affine: Affine,
    start: Choice<I::F>,
    nearly_exact: bool,
) -> (Choice<I::F>, I::F) {
    let (mut now, mut best, mut least) = (start, start, isa.splat_f(f32::INFINITY));
    for _ in 0..=REFITS {
        let trial = integers(isa, tile, t, affine, (now.d, now.dmin), (now.sc, now.m), nearly_exact);
        (now.sc, now.m) = (trial.sc, trial.m);
        let found = total(isa, trial.error, affine);
        best = best.or(isa, (least, found), now);
        least = isa.min_f(found, least);
        let (d, dmin) = refit(isa, t, &trial, affine);
        (now.d, now.dmin) = (half(isa, tile, d), half(isa, tile, dmin));
    }
    (best, least)
}

/// Another start for super-blocks whose ideal d or dmin is among the smallest halves, or vanishes: the first half
/// that is not below it, with smaller integers. The second result is 1 in the lanes of such super-blocks. `None` if
/// the tile has none.
#[inline(always)]
fn coarse_start<I: Isa, const N: usize>(
    isa: I,
    tile: &Tile<N>,
    affine: Affine,
    start: Choice<I::F>,
    (scale, drop): (I::F, I::F),
) -> Option<(Choice<I::F>, I::F)> {
    let steps = isa.splat_f(affine.steps);
    let mut is_coarse = [0.0; LANES];
    let mut enlarged = |wanted: I::F, float: I::F, integer: I::F| {
        let ideal = isa.array(isa.div_f(largest(isa, wanted, affine), steps));
        let mut floats = isa.array(float);
        for (lane, float) in floats.iter_mut().enumerate() {
            if let Some(half) = coarse_halves(ideal[lane] * tile.up[lane]).next() {
                (*float, is_coarse[lane]) = (half * tile.down[lane], 1.0);
            }
        }
        let floats = isa.load_f(&floats);
        let fitting = isa.round(isa.min_f(isa.mul_f(wanted, inverse(isa, floats)), steps));
        (floats, isa.if_gt(isa.abs_f(isa.sub_f(floats, float)), isa.splat_f(0.0), fitting, integer))
    };
    let (d, sc) = enlarged(scale, start.d, start.sc);
    let (dmin, m) = enlarged(drop, start.dmin, start.m);
    let any = is_coarse.contains(&1.0);
    any.then(|| (Choice { d, dmin, sc, m }, isa.load_f(&is_coarse)))
}

/// Encodes a tile. `codes` receives slots, which [`super::tile::lane_codes`] reads.
#[inline(always)]
pub fn encode<I: Isa, const N: usize>(
    isa: I,
    tile: &Tile<N>,
    affine: Affine,
    scales: Scales,
    codes: &mut Codes<N>,
) -> Encoded {
    let zero = isa.splat_f(0.0);
    let t = moments(isa, tile, Weighted);
    let Fit { scale, min, sums: s, .. } = fit(isa, (tile, Weighted), t, range(isa, tile), affine.alone());

    // d is chosen first, as if minima could still follow exactly; then the minima that suit the rounded scales
    let per_one = inverse(isa, t.one);
    let following = isa.max_f(isa.sub_f(s.qq, isa.mul_f(isa.mul_f(s.q, s.q), per_one)), zero);
    let curvature = isa.if_gt(zero, min, following, s.qq);
    let d = halves(isa, tile, scale, curvature, affine);
    let sc = isa.round(isa.min_f(isa.mul_f(scale, inverse(isa, d)), isa.splat_f(affine.steps)));
    let level = isa.mul_f(isa.mul_f(d, sc), s.q);
    let drop = isa.max_f(isa.mul_f(isa.sub_f(level, t.x), per_one), zero);
    let dmin = halves(isa, tile, drop, t.one, affine);
    let m = isa.round(isa.min_f(isa.mul_f(drop, inverse(isa, dmin)), isa.splat_f(affine.steps)));

    let start = Choice { d, dmin, sc, m };
    let (mut best, error) = refine(isa, tile, t, affine, start, false);
    let little = isa.mul_f(total(isa, t.xx, affine), isa.splat_f(NEARLY_EXACT));
    let near = isa.array(isa.if_gt(little, error, isa.splat_f(1.0), zero));
    if near.contains(&1.0) {
        let top = largest(isa, drop, affine);
        let mut least = isa.splat_f(f32::INFINITY);
        for lucky in LUCKY {
            let mut trial = start;
            if *lucky > 0.0 {
                trial.dmin = half(isa, tile, isa.mul_f(top, isa.splat_f(1.0 / lucky)));
                let m = isa.mul_f(drop, inverse(isa, trial.dmin));
                trial.m = isa.round(isa.min_f(m, isa.splat_f(affine.steps)));
            }
            let (found, error) = refine(isa, tile, t, affine, trial, true);
            best = best.or(isa, (least, error), found);
            least = isa.min_f(error, least);
        }
    }

    if let Some((start, is_coarse)) = coarse_start(isa, tile, affine, start, (scale, drop)) {
        // both errors are added up element by element; other super-blocks of the tile stay as they are
        let (found, with_larger) = refine(isa, tile, t, affine, start, true);
        let as_found = integers(isa, tile, t, affine, (best.d, best.dmin), (best.sc, best.m), true);
        let with_larger = isa.if_gt(is_coarse, zero, with_larger, isa.splat_f(f32::INFINITY));
        best = best.or(isa, (total(isa, as_found.error, affine), with_larger), found);
    }

    let per_scale = inverse(isa, isa.mul_f(best.d, best.sc));
    let offset = isa.mul_f(isa.mul_f(best.dmin, best.m), per_scale);
    let mut xq = zero;
    for (i, codes) in codes.iter_mut().enumerate() {
        let code = code(isa, tile, i, per_scale, offset, isa.splat_f(affine.levels));
        xq = isa.mul_add_f(isa.load_f(&tile.wx[i]), code, xq);
        isa.store_f(isa.slot(code), codes);
    }
    // sum w x y = d sc sum w x q - dmin m sum w x
    let dropped = isa.mul_f(isa.mul_f(best.dmin, best.m), t.x);
    let xy = isa.sub_f(isa.mul_f(isa.mul_f(best.d, best.sc), xq), dropped);
    let factor = scales.factors(isa, total(isa, xy, affine), total(isa, t.xx, affine));
    (best.d, best.dmin) = (isa.mul_f(best.d, factor), isa.mul_f(best.dmin, factor));
    Encoded { d: isa.array(best.d), dmin: isa.array(best.dmin), sc: isa.array(best.sc), m: isa.array(best.m) }
}
