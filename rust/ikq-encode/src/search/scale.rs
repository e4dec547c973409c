//! Finds the scale of a sub-block: for a set of levels, the factor d (and with it the codes) for which
//! `sum w (x - d v)^2` is least, where v is the level nearest to x / d. Sixteen sub-blocks are searched at a time.
//!
//! For given codes the best d is `xv / vv` with `xv = sum w x v`, `vv = sum w v^2`; it lowers the error
//! from `sum w x^2` by the *gain* `xv^2 / vv`. [`best_scale`] tries a list of scales that put the
//! largest element on a given number (an *anchor*, beyond the last level where that element is better
//! clipped), keeps the one with the largest gain, and improves it by rounding again at the d found.

use ikq_simd::Isa;

use super::gain::Scales;
use super::levels::Levels;
use super::tile::{Codes, LANES, Tile, Weighing};

/// How a sub-block is rounded at a scale: [`Levels`] round each element to its nearest level; formats
/// whose codes depend on several elements have coders of their own.
pub trait Coder<I: Isa>: Copy {
    /// The sums for codes at `1 / d = inverse`.
    fn sums<const N: usize>(self, isa: I, tile: &Tile<N>, inverse: I::F) -> Sums<I::F>;

    /// The values of the codes at `1 / d = inverse`, in units of d.
    fn values<const N: usize>(self, isa: I, tile: &Tile<N>, inverse: I::F, out: &mut Codes<N>);

    /// The codes at `1 / d = inverse`, as slots for [`super::tile::lane_codes`]; fewer than `N` where elements
    /// share codes.
    fn codes<const N: usize>(self, isa: I, tile: &Tile<N>, inverse: I::F, out: &mut Codes<N>);
}

/// Implements [`Coder`] for a level set, as in `round_each_element!([const N: usize] Table<I, N>)`; the brackets
/// have what the set is generic over besides `I: Isa`. (An implementation for all `Levels` would exclude other
/// coders.)
macro_rules! round_each_element {
    ([$($parameter:tt)*] $levels:ty) => {
        impl<I: ikq_simd::Isa, $($parameter)*> $crate::search::scale::Coder<I> for $levels {
            #[inline(always)]
            fn sums<const LEN: usize>(
                self,
                isa: I,
                tile: &$crate::search::tile::Tile<LEN>,
                inverse: I::F,
            ) -> $crate::search::scale::Sums<I::F> {
                $crate::search::scale::sums(isa, tile, self, $crate::search::tile::Weighted, inverse)
            }

            #[inline(always)]
            fn values<const LEN: usize>(
                self,
                isa: I,
                tile: &$crate::search::tile::Tile<LEN>,
                inverse: I::F,
                out: &mut $crate::search::tile::Codes<LEN>,
            ) {
                for (x, out) in tile.x.iter().zip(out) {
                    isa.store_f($crate::search::levels::Levels::nearest(self, isa, isa.mul_f(isa.load_f(x), inverse)), out);
                }
            }

            #[inline(always)]
            fn codes<const LEN: usize>(
                self,
                isa: I,
                tile: &$crate::search::tile::Tile<LEN>,
                inverse: I::F,
                out: &mut $crate::search::tile::Codes<LEN>,
            ) {
                for (x, out) in tile.x.iter().zip(out) {
                    isa.store_f($crate::search::levels::Levels::code(self, isa, isa.mul_f(isa.load_f(x), inverse)), out);
                }
            }
        }
    };
}

pub(super) use round_each_element;

/// `sum w x v` and `sum w v^2`.
#[derive(Clone, Copy)]
pub struct Sums<F> {
    pub xv: F,
    pub vv: F,
}

impl<F: Copy> Sums<F> {
    /// Error of scale d with these codes, where `energy` is `sum w x^2`. Exact to about 1e-7 of the
    /// energy.
    #[inline(always)]
    pub fn error<I: Isa<F = F>>(self, isa: I, d: F, energy: F) -> F {
        // energy - d (2 xv - d vv)
        let inner = isa.sub_f(isa.add_f(self.xv, self.xv), isa.mul_f(d, self.vv));
        isa.sub_f(energy, isa.mul_f(d, inner))
    }
}

/// [`Coder::sums`] for levels.
#[inline(always)]
pub(super) fn sums<I: Isa, L: Levels<I>, W: Weighing, const N: usize>(
    isa: I,
    tile: &Tile<N>,
    levels: L,
    weighing: W,
    inverse: I::F,
) -> Sums<I::F> {
    let (mut xv, mut vv) = (isa.splat_f(0.0), isa.splat_f(0.0));
    for i in 0..N {
        let v = levels.nearest(isa, isa.mul_f(isa.load_f(&tile.x[i]), inverse));
        xv = isa.mul_add_f(weighing.wx(isa, tile, i), v, xv);
        vv = isa.mul_add_f(weighing.times(isa, tile, i, v), v, vv);
    }
    Sums { xv, vv }
}

/// Gains that differ by less than this share count as equal, and the first one is kept: sub-blocks of one
/// repeated value fit many levels up to rounding, and should all take the same.
pub(super) const INDIFFERENT: f32 = 1e-6;

/// A scale, the gain it gives with codes rounded at it, and the curvature of the error around it.
#[derive(Clone, Copy)]
pub struct Fit<F> {
    pub scale: F,
    pub gain: F,
    pub curvature: F,
}

impl<F: Copy> Fit<F> {
    /// The fit with scale 0 and no gain, from which every search begins.
    #[inline(always)]
    pub fn nothing<I: Isa<F = F>>(isa: I) -> Self {
        let zero = isa.splat_f(0.0);
        Fit { scale: zero, gain: zero, curvature: zero }
    }

    /// Takes the best scale for these sums where it is better.
    #[inline(always)]
    fn improve<I: Isa<F = F>>(&mut self, isa: I, sums: Sums<F>) {
        // where all levels are 0 the scale is 0
        let vv = isa.max_f(sums.vv, isa.splat_f(f32::MIN_POSITIVE));
        let scale = isa.div_f(sums.xv, vv);
        let gain = isa.mul_f(scale, sums.xv);
        let enough = isa.mul_f(self.gain, isa.splat_f(1.0 + INDIFFERENT));
        let keep = |new, old| isa.if_gt(gain, enough, new, old);
        *self = Fit {
            scale: keep(scale, self.scale),
            gain: keep(gain, self.gain),
            curvature: keep(sums.vv, self.curvature),
        };
    }
}

/// `1 / x`, 0 where x is 0 (or so small that the quotient is not finite).
#[inline(always)]
pub fn inverse<I: Isa>(isa: I, x: I::F) -> I::F {
    let one = isa.splat_f(1.0);
    let zero = isa.splat_f(0.0);
    isa.if_gt(isa.abs_f(x), isa.splat_f(1e-37), isa.div_f(one, x), zero)
}

/// The candidates that [`best_scale`] tries.
#[derive(Clone, Copy)]
pub struct Ladder {
    /// The numbers on which the peak of a sub-block is put.
    pub anchors: &'static [f32],
    /// Then the best inverse scale of the anchors times each of these factors.
    pub stretches: &'static [f32],
    /// Then so many rounds of finding codes for the scale and a scale for the codes.
    pub rounds: usize,
}

impl Ladder {
    /// Of how many anchors one is tried where only scales are wanted.
    const COARSE: usize = 2;

    /// How many anchors lead from one that is tried to the next, the stretches and the rounds.
    #[inline(always)]
    fn trials(self, scales: Scales) -> (usize, &'static [f32], usize) {
        match scales {
            Scales::Only => (Ladder::COARSE, &[], 1),
            _ => (1, self.stretches, self.rounds),
        }
    }
}

/// Anchors around the last levels of both sides (`lo` below 0, `hi` above) and beyond: the first half is
/// `lo`, `lo * ratio`, `lo * ratio^2`, ..., the second half is the same from `hi` on.
pub const fn two_sided<const N: usize>(lo: f32, hi: f32, ratio: f32) -> [f32; N] {
    let mut anchors = [lo; N];
    anchors[N / 2] = hi;
    let mut i = 1;
    while i < N {
        if i != N / 2 {
            anchors[i] = anchors[i - 1] * ratio;
        }
        i += 1;
    }
    anchors
}

/// The best scale on the ladder, where `peak` is [`Tile::peak`]. Never worse than `start`.
#[inline(always)]
pub fn best_scale<I: Isa, C: Coder<I>, const N: usize>(
    isa: I,
    tile: &Tile<N>,
    coder: C,
    peak: I::F,
    (ladder, scales): (Ladder, Scales),
    start: Fit<I::F>,
) -> Fit<I::F> {
    let (every, stretches, rounds) = ladder.trials(scales);
    let mut best = start;
    let per_peak = inverse(isa, peak);
    let mut rung = inverse(isa, start.scale);
    for anchor in ladder.anchors.iter().step_by(every) {
        let inverse = isa.mul_f(per_peak, isa.splat_f(*anchor));
        let before = best.gain;
        best.improve(isa, coder.sums(isa, tile, inverse));
        rung = isa.if_gt(best.gain, before, inverse, rung);
    }
    for stretch in stretches {
        best.improve(isa, coder.sums(isa, tile, isa.mul_f(rung, isa.splat_f(*stretch))));
    }
    for _ in 0..rounds {
        best.improve(isa, coder.sums(isa, tile, inverse(isa, best.scale)));
    }
    best
}

/// `sum w (x - d v)^2` added up element by element, for comparing nearly exact fits.
#[inline(always)]
pub fn residual<I: Isa, C: Coder<I>, const N: usize>(isa: I, tile: &Tile<N>, coder: C, d: I::F) -> I::F {
    let mut values = [[0.0; LANES]; N];
    coder.values(isa, tile, inverse(isa, d), &mut values);
    let mut sum = isa.splat_f(0.0);
    for (i, v) in values.iter().enumerate() {
        let r = isa.sub_f(isa.load_f(&tile.x[i]), isa.mul_f(d, isa.load_f(v)));
        sum = isa.mul_add_f(isa.mul_f(isa.load_f(&tile.w[i]), r), r, sum);
    }
    sum
}

/// Relative squared error below which the rounding of d decides.
pub(super) const NEARLY_EXACT: f32 = 1e-5;

/// The half-precision scale of each sub-block (normalised like the tile), starting from a fit; `peak` and `energy` are
/// [`Tile::peak`] and [`Tile::energy`].
///
/// Ordinary sub-blocks take the fit's scale rounded. Where the fit is so good that the rounding of d
/// decides (constant or one-hot sub-blocks), or where d is among the subnormal halves, the halves
/// around `peak / exact` for every one of `exact` are tried as well.
#[inline(always)]
pub fn half_scale<I: Isa, L: Levels<I>, const N: usize>(
    isa: I,
    tile: &Tile<N>,
    levels: L,
    (peak, energy): (I::F, I::F),
    fit: Fit<I::F>,
    exact: &[f32],
) -> I::F {
    let (down, up) = (isa.load_f(&tile.down), isa.load_f(&tile.up));
    let half = |d: I::F| isa.mul_f(isa.f16_round(isa.mul_f(d, up)), down);
    let d = half(fit.scale);
    let rest = isa.sub_f(energy, fit.gain);
    let special = isa.if_gt(
        isa.mul_f(energy, isa.splat_f(NEARLY_EXACT)),
        rest,
        isa.splat_f(1.0),
        isa.if_gt(isa.splat_f(SMALL_HALF), isa.abs_f(isa.mul_f(fit.scale, up)), energy, isa.splat_f(0.0)),
    );
    if isa.array(special).iter().all(|s| *s == 0.0) {
        return d;
    }
    let mut best = d;
    let mut least = residual(isa, tile, levels, d);
    let mut try_half = |d: I::F| {
        let error = residual(isa, tile, levels, d);
        best = isa.if_gt(least, error, d, best);
        least = isa.min_f(error, least);
    };
    for anchor in exact {
        let d = half(isa.div_f(peak, isa.splat_f(*anchor)));
        // a bit more than half the distance of neighbouring halves of this size
        let step = isa.max_f(
            isa.mul_f(isa.abs_f(d), isa.splat_f(1.2 / 2048.0)),
            isa.mul_f(isa.splat_f(0.75 / 16_777_216.0), down),
        );
        try_half(d);
        try_half(half(isa.add_f(d, step)));
        try_half(half(isa.sub_f(d, step)));
    }
    best
}

/// Below this (2^-18) halves have 6 significant bits or less.
const SMALL_HALF: f32 = 1.0 / 262_144.0;

/// Codes at scale d, for [`super::tile::lane_codes`].
#[inline(always)]
pub fn codes<I: Isa, C: Coder<I>, const N: usize>(
    isa: I,
    tile: &Tile<N>,
    coder: C,
    d: I::F,
    out: &mut Codes<N>,
) {
    coder.codes(isa, tile, inverse(isa, d), out);
}
