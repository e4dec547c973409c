//! Integer scales that share one float: `y = d * k * v`, where d belongs to a super-block or row, k is an integer
//! of the sub-block, and v a level. After every sub-block has found its own best scale s ([`super::scale`]):
//!
//! 1. [`super_scale`] chooses d so that `sum c (s - d k)^2` is least, where c is the curvature of each
//!    sub-block's error and k the nearest integer. It computes sixteen candidates of d at a time.
//! 2. [`settle`] tries the integers next to s / d (or all of them), and every row of the value table,
//!    with codes recomputed at d * k.
//! 3. d is refitted to those codes: it is [`Settled::xk`] / [`Settled::kk`], both added up over its sub-blocks.

use ikq_simd::Isa;

use super::levels::{Levels, Shifted};
use super::scale::{Coder, INDIFFERENT, NEARLY_EXACT, inverse, residual};
use super::tile::{LANES, Tile};

/// The integers a sub-block's scale may be.
#[derive(Clone, Copy, Debug)]
pub struct Grid {
    pub lo: f32,
    pub hi: f32,
    /// Whether only odd integers are allowed; `lo` and `hi` are odd then.
    pub odd: bool,
}

impl<F: Copy> Settled<F> {
    /// `self`, but `other` in lanes where its error `found` is below `least`.
    #[inline(always)]
    pub fn or<I: Isa<F = F>>(self, isa: I, (least, found): (F, F), other: Self) -> Self {
        Settled {
            k: isa.if_gt(least, found, other.k, self.k),
            row: isa.if_gt(least, found, other.row, self.row),
            xk: isa.if_gt(least, found, other.xk, self.xk),
            kk: isa.if_gt(least, found, other.kk, self.kk),
        }
    }
}

impl Grid {
    #[inline(always)]
    fn nearest<I: Isa>(self, isa: I, t: I::F) -> I::F {
        let t = isa.max_f(isa.min_f(t, isa.splat_f(self.hi)), isa.splat_f(self.lo));
        if !self.odd {
            return isa.round(t);
        }
        // 2 round((t - 1) / 2) + 1, which the clamp keeps between lo and hi
        let half = isa.splat_f(0.5);
        let half_steps = isa.round(isa.mul_f(isa.sub_f(t, isa.splat_f(1.0)), half));
        isa.add_f(isa.add_f(half_steps, half_steps), isa.splat_f(1.0))
    }

    /// The integer of the largest magnitude.
    pub fn longer_end(self) -> f32 {
        if self.lo.abs() > self.hi.abs() { self.lo } else { self.hi }
    }

    /// How many integers there are.
    fn len(self) -> usize {
        ((self.hi - self.lo) / self.step()) as usize + 1
    }

    fn step(self) -> f32 {
        if self.odd { 2.0 } else { 1.0 }
    }

    /// The integers farthest from 0, the farthest first, with the sign of the longer end. Where [`nearly_exact`] is
    /// true, the largest scale is put on each of them.
    pub fn ends(self) -> impl Iterator<Item = f32> {
        let end = self.longer_end();
        let step = self.step().copysign(end);
        (0..N_ENDS.min(self.len() / 2)).map(move |n| end - step * n as f32)
    }

    /// The integer next to t on the other side of it than `k`, which is the nearest one; `k` itself at the ends.
    #[inline(always)]
    fn second<I: Isa>(self, isa: I, t: I::F, k: I::F) -> I::F {
        let step = self.step();
        let other = isa.if_gt(t, k, isa.add_f(k, isa.splat_f(step)), isa.sub_f(k, isa.splat_f(step)));
        isa.max_f(isa.min_f(other, isa.splat_f(self.hi)), isa.splat_f(self.lo))
    }
}

/// Candidates of d put the largest scale on the end of the grid times one of these factors: first from 1 down to
/// about 0.5, then up to 2.4, where the sub-block with that scale is encoded worse so that others are encoded
/// better.
fn candidates() -> [[f32; LANES]; 3] {
    let at = |first: f32, step: f32| std::array::from_fn(|i| first + step * i as f32);
    [at(1.0, -1.0 / 64.0), at(0.74, -1.0 / 64.0), at(1.01, 0.09)]
}

/// The float d, of those that `round` gives (the numbers that can be stored), whose multiples on the grid are
/// nearest to `targets`, weighed by `weights` (curvatures). 0 if all targets are 0.
#[inline(always)]
pub fn super_scale<I: Isa>(
    isa: I,
    targets: &[f32],
    weights: &[f32],
    grid: Grid,
    round: impl Fn(I::F) -> I::F,
) -> f32 {
    let peak = targets.iter().fold(0.0f32, |p, s| if s.abs() > p.abs() { *s } else { p });
    if peak == 0.0 {
        return 0.0;
    }
    let end = grid.longer_end();
    let mut best = (0.0, 0.0);
    for anchors in candidates() {
        let anchors = isa.mul_f(isa.load_f(&anchors), isa.splat_f(end));
        let per_d = inverse(isa, round(isa.div_f(isa.splat_f(peak), anchors)));
        let (mut sk, mut kk) = (isa.splat_f(0.0), isa.splat_f(f32::MIN_POSITIVE));
        for (s, c) in targets.iter().zip(weights) {
            let (s, c) = (isa.splat_f(*s), isa.splat_f(*c));
            let k = grid.nearest(isa, isa.mul_f(s, per_d));
            let ck = isa.mul_f(c, k);
            sk = isa.mul_add_f(ck, s, sk);
            kk = isa.mul_add_f(ck, k, kk);
        }
        // by how much d lowers the sum: d (2 sk - d kk)
        let d = round(isa.div_f(sk, kk));
        let gain = isa.mul_f(d, isa.sub_f(isa.add_f(sk, sk), isa.mul_f(d, kk)));
        for (gain, d) in isa.array(gain).into_iter().zip(isa.array(d)) {
            if gain > best.0 * (1.0 + INDIFFERENT) {
                best = (gain, d);
            }
        }
    }
    best.1
}

/// The step of the smallest halves, 2^-24.
pub const HALF_STEP: f32 = 1.0 / 16_777_216.0;
/// Below this (2^-21) halves have three significant bits or less. Where the ideal super-scale is that small, or
/// rounds to 0, smaller integers with a larger super-scale are better: see [`coarse_halves`].
pub const COARSE_HALF: f32 = 8.0 * HALF_STEP;
/// How many halves [`coarse_halves`] gives.
const N_COARSE: usize = 4;

/// Super-scales to try where `ideal`, the one that puts the largest scale on the end of the grid, is below
/// [`COARSE_HALF`]: the first halves that are not below it, with its sign. The first leaves the most integers to
/// choose from. There are none if `ideal` is not so small, or 0.
pub fn coarse_halves(ideal: f32) -> impl Iterator<Item = f32> {
    let is_coarse = ideal != 0.0 && ideal.abs() < COARSE_HALF;
    let steps = (ideal.abs() / HALF_STEP).ceil().max(1.0);
    let first = (steps * HALF_STEP).copysign(ideal);
    (0..if is_coarse { N_COARSE } else { 0 }).map(move |n| first + (n as f32 * HALF_STEP).copysign(ideal))
}

/// How many [`Grid::ends`] there are: enough for one of the quotients to be hardly changed by rounding.
const N_ENDS: usize = 24;

/// Whether an error (the energy less the gain of the fit) is so small that the rounding of d decides, as for rows
/// of one value, or with one element that is not 0. Then each d is tried that puts the largest scale on one of
/// [`Grid::ends`].
pub fn nearly_exact(energy: f32, error: f32) -> bool {
    error < NEARLY_EXACT * energy
}

/// Which integers [`settle`] tries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// The integers below and above the wanted scale.
    Neighbours,
    /// All integers of the grid.
    All,
}

/// The choice that [`settle`] made for each sub-block.
#[derive(Clone, Copy)]
pub struct Settled<F> {
    /// The integer scale.
    pub k: F,
    /// The number of the level set (0, 1, ...).
    pub row: F,
    /// `sum w x k v` and `sum w (k v)^2` with the codes found.
    pub xk: F,
    pub kk: F,
}

/// Chooses the integer scale of each sub-block, near `scale / d` or anywhere on the grid, and its level set, so
/// that the error is least.
#[inline(always)]
pub fn settle<I: Isa, C: Coder<I>, const N: usize>(
    isa: I,
    tile: &Tile<N>,
    rows: &[C],
    scale: I::F,
    d: I::F,
    (grid, reach): (Grid, Reach),
) -> Settled<I::F> {
    let zero = isa.splat_f(0.0);
    let t = isa.mul_f(scale, inverse(isa, d));
    let nearest = grid.nearest(isa, t);
    let second = grid.second(isa, t, nearest);
    let mut best = Settled { k: nearest, row: zero, xk: zero, kk: zero };
    let mut least = isa.splat_f(f32::MAX);
    let n_tried = match reach {
        Reach::Neighbours => 2,
        Reach::All => grid.len(),
    };
    for (i, coder) in rows.iter().enumerate() {
        for n in 0..n_tried {
            let k = match (reach, n) {
                (Reach::All, _) => isa.splat_f(grid.lo + grid.step() * n as f32),
                (_, 0) => nearest,
                _ => second,
            };
            let dk = isa.mul_f(d, k);
            let found = coder.sums(isa, tile, inverse(isa, dk));
            // the energy is left out, because it is the same for all
            let error = found.error(isa, dk, zero);
            let trial = Settled {
                k,
                row: isa.splat_f(i as f32),
                xk: isa.mul_f(found.xv, k),
                kk: isa.mul_f(isa.mul_f(found.vv, k), k),
            };
            best = best.or(isa, (least, error), trial);
            least = isa.min_f(error, least);
        }
    }
    best
}

/// The error of each sub-block with the choice of [`settle`], added up element by element. The second level set is
/// `shift` above the first.
#[inline(always)]
pub fn settled_error<I: Isa, L: Levels<I>, const N: usize>(
    isa: I,
    tile: &Tile<N>,
    (levels, shift): (L, f32),
    settled: Settled<I::F>,
    d: I::F,
) -> I::F {
    let by = isa.mul_f(settled.row, isa.splat_f(shift));
    residual(isa, tile, Shifted { levels, by }, isa.mul_f(d, settled.k))
}

/// The sum of each `group` of neighbouring lanes, in all of its lanes.
#[inline(always)]
pub fn totals<I: Isa>(isa: I, v: I::F, group: usize) -> I::F {
    let mut lanes = isa.array(v);
    for group in lanes.chunks_mut(group) {
        let sum = group.iter().sum::<f32>();
        group.fill(sum);
    }
    isa.load_f(&lanes)
}

/// The d refitted to the choices of each `group` of neighbouring lanes, in all of its lanes; 0 where all values are
/// 0.
#[inline(always)]
pub fn refit<I: Isa>(isa: I, settled: Settled<I::F>, group: usize) -> I::F {
    let (xk, kk) = (totals(isa, settled.xk, group), totals(isa, settled.kk, group));
    isa.div_f(xk, isa.max_f(kk, isa.splat_f(f32::MIN_POSITIVE)))
}

#[cfg(test)]
mod tests {
    use ikq_simd::Scalar;

    use super::*;

    #[test]
    fn odd_integers_are_the_nearest_odd_ones() {
        let grid = Grid { lo: -127.0, hi: 127.0, odd: true };
        let of = |t: f32| {
            let k = grid.nearest(Scalar, [t; LANES]);
            (k[0], grid.second(Scalar, [t; LANES], k)[0])
        };
        assert_eq!([of(0.3), of(-0.3), of(4.1)], [(1.0, -1.0), (-1.0, 1.0), (5.0, 3.0)]);
        assert_eq!([of(500.0), of(-500.0)], [(127.0, 127.0), (-127.0, -127.0)]);
    }

    #[test]
    fn scales_that_are_multiples_of_one_float_are_found() {
        let grid = Grid { lo: -32.0, hi: 31.0, odd: false };
        let targets = [-0.9375, 0.65625, 0.46875, 0.0, -0.03125];
        let d = super_scale(Scalar, &targets, &[1.0, 2.0, 3.0, 4.0, 5.0], grid, |d| d);
        for s in targets {
            let k = s / d;
            assert!((k - k.round()).abs() < 1e-3 && k.abs() <= 32.0, "{s} is {k} times {d}");
        }
        assert_eq!(super_scale(Scalar, &[0.0; 4], &[0.0; 4], grid, |d| d), 0.0);
    }
}
