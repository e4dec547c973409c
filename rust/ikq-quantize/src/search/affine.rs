//! Super-blocks whose sub-blocks have a scale and a minimum, both integers times a float of the
//! super-block: `y = d * sc * q - dmin * m`, q in `0..=levels`, sc and m in `0..=steps`.
//!
//! Three stages, sixteen sub-blocks side by side ([`Tile`]):
//!
//! 1. Each sub-block alone: from a ladder of step sizes, codes and the weighted least-squares pair
//!    (scale, minimum) in turn; the pair with the least error is kept. The minimum is never positive
//!    (the stored one is subtracted).
//! 2. The super-block's d and dmin: scales and minima become integers, and each sub-block tries the
//!    neighbours of its own, codes recomputed for each.
//! 3. d and dmin are refitted to those integers and codes, rounded to half precision, and stage 2
//!    repeats; the pair with the least error of the super-block wins.

use ikq_simd::Isa;

use super::scale::inverse;
use super::tile::{LANES, Tile};

/// The shape of an affine format.
#[derive(Clone, Copy)]
pub struct Affine {
    /// Largest code.
    pub levels: f32,
    /// Largest integer scale and minimum.
    pub steps: f32,
    /// Sub-blocks per super-block.
    pub per_super: usize,
}

/// Stage 1 puts the range of a sub-block on this many steps beside `levels`; less than 0 clips both
/// ends.
const LADDER: &[f32] = &[-3.4, -2.0, -1.2, -0.7, -0.4, -0.2, 0.0, 0.2, 0.4, 0.7, 1.0, 1.5, 2.2, 3.2];
/// Least-squares rounds from the best rung.
const ROUNDS: usize = 3;
/// Refits of d and dmin.
const REFITS: usize = 4;

/// What stage 2 adds to the integers of a sub-block.
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

/// What a tile is encoded as; floats are normalised like the tile and rounded as halves will be.
pub struct Encoded {
    /// Per lane: the super-block's d and dmin.
    pub d: [f32; LANES],
    pub dmin: [f32; LANES],
    /// Integer scale and minimum of the sub-block.
    pub sc: [f32; LANES],
    pub m: [f32; LANES],
}

/// Sums over a sub-block for given codes.
#[derive(Clone, Copy)]
struct Sums<F> {
    /// `sum w q`, `sum w q^2`, `sum w x q`.
    q: F,
    qq: F,
    xq: F,
}

/// `sum w`, `sum w x`, `sum w x^2`: the same for all codes.
#[derive(Clone, Copy)]
struct Moments<F> {
    one: F,
    x: F,
    xx: F,
}

/// `sum w (scale q + min - x)^2` from the sums.
#[inline(always)]
fn error<I: Isa>(isa: I, t: Moments<I::F>, s: Sums<I::F>, scale: I::F, min: I::F) -> I::F {
    // scale (scale qq + 2 (min q - xq)) + min (min one - 2 x) + xx
    let cross = isa.sub_f(isa.mul_f(min, s.q), s.xq);
    let by_scale = isa.add_f(isa.mul_f(scale, s.qq), isa.add_f(cross, cross));
    let by_min = isa.sub_f(isa.mul_f(min, t.one), isa.add_f(t.x, t.x));
    isa.add_f(isa.add_f(isa.mul_f(scale, by_scale), isa.mul_f(min, by_min)), t.xx)
}

/// The codes `round((x - min) / scale)` of element `i`.
#[inline(always)]
fn code<I: Isa, const N: usize>(
    isa: I,
    tile: &Tile<N>,
    i: usize,
    per_scale: I::F,
    offset: I::F,
    levels: I::F,
) -> I::F {
    // clamped first: rounding wants small numbers
    let t = isa.mul_add_f(isa.load_f(&tile.x[i]), per_scale, offset);
    isa.round(isa.max_f(isa.min_f(t, levels), isa.splat_f(0.0)))
}

/// Sums for the codes at this scale and minimum.
#[inline(always)]
fn sums<I: Isa, const N: usize>(
    isa: I,
    tile: &Tile<N>,
    per_scale: I::F,
    min: I::F,
    levels: I::F,
) -> Sums<I::F> {
    let zero = isa.splat_f(0.0);
    let offset = isa.mul_f(isa.sub_f(zero, min), per_scale);
    let mut s = Sums { q: zero, qq: zero, xq: zero };
    for i in 0..N {
        let q = code(isa, tile, i, per_scale, offset, levels);
        let wq = isa.mul_f(isa.load_f(&tile.w[i]), q);
        s.q = isa.add_f(s.q, wq);
        s.qq = isa.mul_add_f(wq, q, s.qq);
        s.xq = isa.mul_add_f(isa.load_f(&tile.wx[i]), q, s.xq);
    }
    s
}

/// The best scale and minimum for given codes, the minimum at most 0 and the scale at least 0. Where
/// the codes do not determine both (all equal, or the pair leaves its bounds), the better of the two
/// alone.
#[inline(always)]
fn solve<I: Isa>(isa: I, t: Moments<I::F>, s: Sums<I::F>) -> (I::F, I::F) {
    let zero = isa.splat_f(0.0);
    // in the terms of `pair`: scale * q - drop * 1
    let (scale, drop) = pair(isa, Normal { aa: s.qq, ab: s.q, bb: t.one, xa: s.xq, xb: t.x });
    (scale, isa.sub_f(zero, drop))
}

/// Normal equations of `min sum w (x - a A + b B)^2` over a and b.
#[derive(Clone, Copy)]
struct Normal<F> {
    /// `sum w A^2`, `sum w A B`, `sum w B^2`, `sum w x A`, `sum w x B`.
    aa: F,
    ab: F,
    bb: F,
    xa: F,
    xb: F,
}

/// Its solution with a and b at least 0.
#[inline(always)]
fn pair<I: Isa>(isa: I, n: Normal<I::F>) -> (I::F, I::F) {
    let zero = isa.splat_f(0.0);
    let det = isa.sub_f(isa.mul_f(n.aa, n.bb), isa.mul_f(n.ab, n.ab));
    // A and B parallel, as far as sums in f32 can tell
    let singular = isa.mul_f(isa.mul_f(n.aa, n.bb), isa.splat_f(1e-6));
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

/// The best fit of a sub-block so far.
#[derive(Clone, Copy)]
struct Fit<F> {
    scale: F,
    min: F,
    error: F,
}

impl<F: Copy> Fit<F> {
    /// Takes the least-squares pair for the codes at `(1 / per_scale, min)` where it is better.
    #[inline(always)]
    fn improve<I: Isa<F = F>, const N: usize>(
        &mut self,
        isa: I,
        tile: &Tile<N>,
        t: Moments<F>,
        (per_scale, min): (F, F),
        levels: F,
    ) {
        let s = sums(isa, tile, per_scale, min, levels);
        let (scale, min) = solve(isa, t, s);
        let found = error(isa, t, s, scale, min);
        self.scale = isa.if_gt(self.error, found, scale, self.scale);
        self.min = isa.if_gt(self.error, found, min, self.min);
        self.error = isa.min_f(found, self.error);
    }
}

/// Stage 1: scale and minimum (at most 0) of each sub-block by itself.
#[inline(always)]
fn fit<I: Isa, const N: usize>(isa: I, tile: &Tile<N>, t: Moments<I::F>, affine: Affine) -> Fit<I::F> {
    let zero = isa.splat_f(0.0);
    let levels = isa.splat_f(affine.levels);
    // codes begin at 0 or below; they need not reach up to 0
    let (mut lo, mut hi) = (zero, isa.load_f(&tile.x[0]));
    for x in &tile.x {
        let x = isa.load_f(x);
        (lo, hi) = (isa.min_f(x, lo), isa.max_f(x, hi));
    }
    let per_range = inverse(isa, isa.sub_f(hi, lo));
    // without codes the error is the energy
    let mut fit = Fit { scale: zero, min: zero, error: t.xx };
    for rung in LADDER {
        let per_scale = isa.mul_f(per_range, isa.splat_f(affine.levels + rung));
        fit.improve(isa, tile, t, (per_scale, lo), levels);
    }
    for _ in 0..ROUNDS {
        fit.improve(isa, tile, t, (inverse(isa, fit.scale), fit.min), levels);
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

/// Integer scale and minimum nearest to the wanted ones, or a neighbour that serves better.
#[inline(always)]
fn integers<I: Isa, const N: usize>(
    isa: I,
    tile: &Tile<N>,
    t: Moments<I::F>,
    affine: Affine,
    (d, dmin): (I::F, I::F),
    (sc, m): (I::F, I::F),
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
        let s = sums(isa, tile, inverse(isa, scale), min, levels);
        let found = error(isa, t, s, scale, min);
        let least = best.error;
        best = Trial {
            sc: isa.if_gt(least, found, sc, best.sc),
            m: isa.if_gt(least, found, m, best.m),
            sums: Sums {
                q: isa.if_gt(least, found, s.q, best.sums.q),
                qq: isa.if_gt(least, found, s.qq, best.sums.qq),
                xq: isa.if_gt(least, found, s.xq, best.sums.xq),
            },
            error: isa.min_f(found, least),
        };
    }
    best
}

/// The sums of each super-block's lanes, in all of them.
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

/// The largest of each super-block's lanes (at least 0), in all of them.
#[inline(always)]
fn largest<I: Isa>(isa: I, v: I::F, affine: Affine) -> I::F {
    let mut lanes = isa.array(v);
    for group in lanes.chunks_mut(affine.per_super) {
        let mut top = 0.0f32;
        for lane in &*group {
            top = top.max(*lane);
        }
        group.fill(top);
    }
    isa.load_f(&lanes)
}

/// A scale as it is read back from its half, on the scale of the tile.
#[inline(always)]
fn half<I: Isa, const N: usize>(isa: I, tile: &Tile<N>, d: I::F) -> I::F {
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

/// Encodes a tile; `codes[i][lane]` are integers.
#[inline(always)]
pub fn encode<I: Isa, const N: usize>(
    isa: I,
    tile: &Tile<N>,
    affine: Affine,
    codes: &mut [[f32; LANES]; N],
) -> Encoded {
    let zero = isa.splat_f(0.0);
    let mut t = Moments { one: zero, x: zero, xx: tile.energy(isa) };
    for i in 0..N {
        t.one = isa.add_f(t.one, isa.load_f(&tile.w[i]));
        t.x = isa.add_f(t.x, isa.load_f(&tile.wx[i]));
    }
    let Fit { scale, min, .. } = fit(isa, tile, t, affine);

    let per_step = isa.splat_f(1.0 / affine.steps);
    let too_many = isa.splat_f(2.0 * affine.steps);
    let drop = isa.sub_f(zero, min);
    let mut d = half(isa, tile, isa.mul_f(largest(isa, scale, affine), per_step));
    let mut dmin = half(isa, tile, isa.mul_f(largest(isa, drop, affine), per_step));
    let mut sc = isa.round(isa.min_f(isa.mul_f(scale, inverse(isa, d)), too_many));
    let mut m = isa.round(isa.min_f(isa.mul_f(drop, inverse(isa, dmin)), too_many));

    let mut least = isa.splat_f(f32::INFINITY);
    let (mut best_d, mut best_dmin, mut best_sc, mut best_m) = (zero, zero, zero, zero);
    for _ in 0..=REFITS {
        let trial = integers(isa, tile, t, affine, (d, dmin), (sc, m));
        let found = total(isa, trial.error, affine);
        best_d = isa.if_gt(least, found, d, best_d);
        best_dmin = isa.if_gt(least, found, dmin, best_dmin);
        best_sc = isa.if_gt(least, found, trial.sc, best_sc);
        best_m = isa.if_gt(least, found, trial.m, best_m);
        least = isa.min_f(found, least);
        let (new_d, new_dmin) = refit(isa, t, &trial, affine);
        (d, dmin, sc, m) = (half(isa, tile, new_d), half(isa, tile, new_dmin), trial.sc, trial.m);
    }

    let scale = isa.mul_f(best_d, best_sc);
    let per_scale = inverse(isa, scale);
    let offset = isa.mul_f(isa.mul_f(best_dmin, best_m), per_scale);
    for (i, codes) in codes.iter_mut().enumerate() {
        isa.store_f(code(isa, tile, i, per_scale, offset, isa.splat_f(affine.levels)), codes);
    }
    Encoded { d: isa.array(best_d), dmin: isa.array(best_dmin), sc: isa.array(best_sc), m: isa.array(best_m) }
}
