//! Finds scales and codes of a row of sub-blocks of 32: `y = d * value[s] * t`, where d is a float per row, s the
//! sub-block's scale number, and t a point of a trellis (or of one of two).
//!
//! 1. Every sub-block is matched quickly at a few sizes, in each of its *ways*: a set of points and a
//!    sign of the scale. A match gives the sums `A = sum w x t` and `B = sum w t^2`, and so a parabola
//!    `s^2 B - 2 s A` of the error over the scale s.
//! 2. The d is chosen with which the scales next to the minima of the parabolas have the least error together.
//! 3. Sub-blocks are matched carefully at the most promising scales of every way, and d is refitted.

use ikq_simd::Isa;

use super::gain::Scales;
use super::levels::Levels;
use super::trellis::Trellis;
use super::trellis_match::{Elements, Match, MatchAt, Prepared, SUB_BLOCK};

/// The properties by which trellis types differ.
pub struct RowSearch<'a, L, const PAIRS: usize> {
    /// The sets of points that a sub-block chooses from, at most [`MOST_SETS`].
    pub sets: &'a [Trellis<PAIRS>],
    /// The values that a code yields in a set: `point(set, code)`.
    pub point: fn(usize, u32) -> [i32; 8],
    /// The values that the scale numbers stand for, ascending ...
    pub values: &'a [f32],
    /// ... and the same as a set of levels.
    pub levels: L,
    /// Where scales are [`Scales::LeastSquares`], the stored d is the fitted one times this.
    pub scale_bias: f32,
    pub effort: Effort,
}

/// How many candidates a search tries.
#[derive(Clone, Copy)]
pub struct Effort {
    /// Quick matches are made at these multiples of the scale that makes the target as large as the
    /// average point, by every way; the last at least so that the largest element is at [`PEAK`].
    pub sizes: &'static [f32],
    /// Scale numbers tried besides the best one of a way, as distances from it.
    pub beside: &'static [i32],
    /// Number of careful matches: the best scale of every way, then others.
    pub n_careful: usize,
    /// Sub-blocks with more than [`MUCH`] times the average error are matched at these multiples too, of the larger
    /// of the two scales above.
    pub wide: &'static [f32],
    /// Patience of quick and of careful matches ([`Trellis::nearest`]).
    pub quick: f32,
    pub careful: f32,
}

/// Times the average error: sub-blocks with more than that try more scales ([`Effort::wide`]). A row's error may
/// lie in few sub-blocks, whose best scales are far from where the average point is as large as the elements.
const MUCH: f32 = 2.0;

/// About the largest magnitude that a point can have.
const PEAK: f32 = 120.0;

/// Most sets of points, and most ways: sets with either sign.
const MOST_SETS: usize = 2;
const MOST_WAYS: usize = 2 * MOST_SETS;
/// Most scale numbers of a way that are considered.
const MOST_NUMBERS: usize = 16;

/// Row scales tried: the one that puts the largest sub-block scale on the largest of the values, times
/// `D_FIRST * D_RATIO^k`.
const N_D: usize = 64;
const D_FIRST: f32 = 1.3;
const D_RATIO: f32 = 0.97;

/// A sub-block whose root mean square is below this (the row's largest element is about 1) counts as zeros, so that
/// its inverse scale stays finite.
const NOTHING: f32 = 1e-30;

/// `2 A` and `B` of a quick match, sixteen sub-blocks side by side.
type Parabola = [[f32; 16]; 2];

/// The fit of a row, and working memory.
#[derive(Default)]
pub struct RowFit {
    pub d: f32,
    /// The scale number and the set of each sub-block.
    pub scales: Vec<u8>,
    pub sets: Vec<u8>,
    pub codes: Vec<u16>,
    /// The least error of each sub-block's quick matches.
    errors: Vec<f32>,
    /// The quick matches, by sixteen sub-blocks, then way, then size.
    parabolas: Vec<Parabola>,
}

/// A careful match that could be made.
#[derive(Clone, Copy)]
struct Candidate {
    number: usize,
    set: usize,
    /// The error that the parabolas predict, by which candidates are ordered; the best of each way come before all
    /// others.
    estimate: f32,
    first: bool,
}

const NOTHING_YET: Candidate = Candidate { number: 0, set: 0, estimate: f32::INFINITY, first: false };

/// The size of a sub-block's elements.
struct Size {
    /// `sum w x^2`, `sum w`, and the root of their ratio.
    energy: f32,
    w: f32,
    rms: f32,
    peak: f32,
}

impl Size {
    #[inline(always)]
    fn of((x, w): Elements) -> Size {
        let (mut energy, mut w_sum, mut peak) = (0.0, 0.0, 0.0f32);
        for (x, w) in x.iter().zip(w) {
            energy += w * x * x;
            w_sum += w;
            peak = peak.max(x.abs());
        }
        Size { energy, w: w_sum, rms: (energy / w_sum).sqrt(), peak }
    }
}

impl<L, const PAIRS: usize> RowSearch<'_, L, PAIRS> {
    const DIMS: usize = 2 * PAIRS;
    const GROUPS: usize = SUB_BLOCK / Self::DIMS;

    /// Signs that a scale may have: 1 where none is negative.
    fn n_signs(&self) -> usize {
        if self.values[0] < 0.0 { 2 } else { 1 }
    }

    fn n_ways(&self) -> usize {
        self.n_signs() * self.sets.len()
    }

    /// Fits a row of whole sub-blocks, which must be normalised to a largest element of about 1.
    #[inline(always)]
    pub fn fit<I: Isa>(&self, isa: I, (x, w): (&[f32], &[f32]), scales: Scales, fit: &mut RowFit)
    where
        L: Levels<I>,
    {
        let n_sub = x.len() / SUB_BLOCK;
        let n_quick = self.n_ways() * self.effort.sizes.len();
        fit.d = 0.0;
        fit.scales.clear();
        fit.scales.resize(n_sub, 0);
        fit.sets.clear();
        fit.sets.resize(n_sub, 0);
        fit.codes.clear();
        fit.codes.resize(x.len() / Self::DIMS, 0);
        fit.parabolas.clear();
        fit.parabolas.resize(n_sub.div_ceil(16) * n_quick, [[0.0; 16]; 2]);
        let blocks = x.as_chunks::<SUB_BLOCK>().0.iter().zip(w.as_chunks::<SUB_BLOCK>().0);
        let mut top = 0.0f32;
        let (mut sum, mut energy) = (0.0, 0.0);
        fit.errors.clear();
        for (sub, block) in blocks.clone().enumerate() {
            let parabolas = &mut fit.parabolas[sub / 16 * n_quick..][..n_quick];
            let (scale, error, xx) = self.quick(isa, block, parabolas, sub % 16);
            top = top.max(scale);
            sum += error;
            energy += xx;
            fit.errors.push(error);
        }
        for (sub, block) in blocks.clone().enumerate() {
            if !self.effort.wide.is_empty() && fit.errors[sub] * n_sub as f32 > MUCH * sum {
                let parabolas = &mut fit.parabolas[sub / 16 * n_quick..][..n_quick];
                top = top.max(self.wide(isa, block, parabolas, sub % 16));
            }
        }
        if top <= 0.0 {
            return;
        }
        let d = self.joint(isa, top, &fit.parabolas);
        let mut candidates = [NOTHING_YET; MOST_WAYS * MOST_NUMBERS];
        let (mut numerator, mut denominator) = (0.0, 0.0);
        for (sub, block) in blocks.enumerate() {
            let parabolas = &fit.parabolas[sub / 16 * n_quick..][..n_quick];
            let n = self.candidates(d, parabolas, sub % 16, &mut candidates);
            let (chosen, found) = self.careful(isa, block, d, &mut candidates[..n]);
            fit.scales[sub] = chosen.number as u8;
            fit.sets[sub] = chosen.set as u8;
            fit.codes[sub * Self::GROUPS..][..Self::GROUPS].copy_from_slice(&found.codes[..Self::GROUPS]);
            let value = self.values[chosen.number];
            numerator += value * found.wxt;
            denominator += value * value * found.wtt;
        }
        if denominator > 0.0 {
            fit.d = match scales {
                Scales::LeastSquares | Scales::Only => self.scale_bias * numerator / denominator,
                Scales::Unbiased => {
                    let fitted = numerator / denominator;
                    fitted * scales.factor(fitted * numerator, energy)
                }
            };
        }
    }

    /// The largest magnitude that a fit decodes to with d = 1.
    pub fn largest(&self, fit: &RowFit) -> f32 {
        let mut largest = 0.0f32;
        let blocks = fit.scales.iter().zip(&fit.sets).zip(fit.codes.chunks_exact(Self::GROUPS));
        for ((number, set), codes) in blocks {
            for code in codes {
                for t in &(self.point)(usize::from(*set), u32::from(*code))[..Self::DIMS] {
                    largest = largest.max((self.values[usize::from(*number)] * *t as f32).abs());
                }
            }
        }
        largest
    }

    /// Matches a sub-block quickly. Returns the largest of the best scales, the least of the errors, and
    /// `sum w x^2`.
    #[inline(always)]
    fn quick<I: Isa>(
        &self,
        isa: I,
        block: Elements,
        parabolas: &mut [Parabola],
        lane: usize,
    ) -> (f32, f32, f32) {
        let size = Size::of(block);
        if size.rms < NOTHING {
            // zeros match at any scale
            for [_, b] in parabolas {
                b[lane] = size.w;
            }
            return (0.0, 0.0, size.energy);
        }
        let sizes = self.effort.sizes;
        let block = Prepared::new(isa, block);
        let (mut top, mut gain) = (0.0f32, 0.0f32);
        for (way, parabolas) in parabolas.chunks_exact_mut(sizes.len()).enumerate() {
            let set = way / self.n_signs();
            for (k, [two_a, b]) in parabolas.iter_mut().enumerate() {
                let mut scale = size.rms / self.sets[set].rms() * sizes[k];
                if k + 1 == sizes.len() {
                    scale = scale.max(size.peak / PEAK);
                }
                let signed = if way % self.n_signs() == 0 { scale } else { -scale };
                let found = self.matched(isa, &block, (set, signed), self.effort.quick, f32::INFINITY);
                two_a[lane] = found.wxt + found.wxt;
                b[lane] = found.wtt;
                if found.wtt > 0.0 {
                    top = top.max((found.wxt / found.wtt).abs());
                    gain = gain.max(found.wxt * found.wxt / found.wtt);
                }
            }
        }
        (top, (size.energy - gain).max(0.0), size.energy)
    }

    /// Matches a sub-block carefully at many sizes; the best matches of each way replace worse quick ones. Returns
    /// the largest of the best scales.
    #[inline(always)]
    fn wide<I: Isa>(&self, isa: I, block: Elements, parabolas: &mut [Parabola], lane: usize) -> f32 {
        let size = Size::of(block);
        let block = Prepared::new(isa, block);
        let mut top = 0.0f32;
        for (way, parabolas) in parabolas.chunks_exact_mut(self.effort.sizes.len()).enumerate() {
            let set = way / self.n_signs();
            let scale = (size.rms / self.sets[set].rms()).max(size.peak / PEAK);
            let signed = if way % self.n_signs() == 0 { scale } else { -scale };
            for multiple in self.effort.wide {
                let (mut worst, mut least) = (0, f32::INFINITY);
                for (k, [two_a, b]) in parabolas.iter().enumerate() {
                    let gain = 0.25 * two_a[lane] * two_a[lane] / b[lane].max(f32::MIN_POSITIVE);
                    if gain < least {
                        (worst, least) = (k, gain);
                    }
                }
                let limit = size.energy - least;
                let found = self.matched(isa, &block, (set, signed * multiple), self.effort.careful, limit);
                if found.error < limit && found.wtt > 0.0 {
                    parabolas[worst][0][lane] = found.wxt + found.wxt;
                    parabolas[worst][1][lane] = found.wtt;
                    top = top.max((found.wxt / found.wtt).abs());
                }
            }
        }
        top
    }

    /// Matches a sub-block carefully at the scales with the least predicted errors, and keeps the best.
    #[inline(always)]
    fn careful<I: Isa>(
        &self,
        isa: I,
        block: Elements,
        d: f32,
        candidates: &mut [Candidate],
    ) -> (Candidate, Match) {
        let block = Prepared::new(isa, block);
        let mut best = (NOTHING_YET, Match { codes: [0; 16], error: f32::INFINITY, wxt: 0.0, wtt: 0.0 });
        for _ in 0..self.effort.n_careful {
            let mut next = NOTHING_YET;
            let mut at = 0;
            for (i, candidate) in candidates.iter().enumerate() {
                let sooner = candidate.first && !next.first;
                let later = next.first && !candidate.first;
                if candidate.estimate < f32::INFINITY
                    && (sooner || !later && candidate.estimate < next.estimate)
                {
                    (next, at) = (*candidate, i);
                }
            }
            if next.estimate == f32::INFINITY {
                break;
            }
            candidates[at].estimate = f32::INFINITY;
            let scale = d * self.values[next.number];
            let found = self.matched(isa, &block, (next.set, scale), self.effort.careful, best.1.error);
            if found.error < best.1.error {
                best = (next, found);
            }
        }
        best
    }

    /// Writes the scale numbers that are worth a careful match to `out`. Returns how many.
    fn candidates(&self, d: f32, parabolas: &[Parabola], lane: usize, out: &mut [Candidate]) -> usize {
        let n_sizes = self.effort.sizes.len();
        let mut n = 0;
        for (way, parabolas) in parabolas.chunks_exact(n_sizes).enumerate() {
            let error = |number: usize| {
                let s = d * self.values[number];
                let errors = parabolas.iter().map(|[two_a, b]| s * (s * b[lane] - two_a[lane]));
                errors.fold(f32::INFINITY, f32::min)
            };
            let (mut number, mut least) = (0, f32::INFINITY);
            for [two_a, b] in parabolas {
                // the number whose value is nearest to the parabola's minimum
                let wanted = 0.5 * two_a[lane] / (d * b[lane]).max(f32::MIN_POSITIVE);
                let above = self.values.partition_point(|v| *v < wanted).min(self.values.len() - 1);
                for near in [above.max(1) - 1, above] {
                    let error = error(near);
                    if error < least {
                        (number, least) = (near, error);
                    }
                }
            }
            let set = way / self.n_signs();
            out[n] = Candidate { number, set, estimate: least, first: true };
            n += 1;
            for step in self.effort.beside {
                let beside = number as i32 + step;
                if (0..self.values.len() as i32).contains(&beside) {
                    let number = beside as usize;
                    out[n] = Candidate { number, set, estimate: error(number), first: false };
                    n += 1;
                }
            }
        }
        n
    }

    /// Matches a sub-block with a set at a scale.
    #[inline(always)]
    fn matched<I: Isa>(
        &self,
        isa: I,
        block: &Prepared<PAIRS>,
        (set, scale): (usize, f32),
        patience: f32,
        limit: f32,
    ) -> Match {
        isa.apart(MatchAt { block, points: &self.sets[set], scale, patience, limit })
    }

    /// Chooses the row scale; `top` is the largest sub-block scale.
    #[inline(always)]
    fn joint<I: Isa>(&self, isa: I, top: f32, parabolas: &[Parabola]) -> f32
    where
        L: Levels<I>,
    {
        let n_quick = self.n_ways() * self.effort.sizes.len();
        let mut largest = 0.0f32;
        for v in self.values {
            largest = largest.max(v.abs());
        }
        let mut d = D_FIRST * top / largest;
        let mut found = (f32::INFINITY, d);
        for _ in 0..N_D {
            let (step, per_step) = (isa.splat_f(d), isa.splat_f(0.5 / d));
            let mut total = isa.splat_f(0.0);
            for sixteen in parabolas.chunks_exact(n_quick) {
                let mut least = isa.splat_f(f32::INFINITY);
                for [two_a, b] in sixteen {
                    let (two_a, b) = (isa.load_f(two_a), isa.load_f(b));
                    // sub-blocks without data have B = 0
                    let minimum = isa.div_f(two_a, isa.max_f(b, isa.splat_f(f32::MIN_POSITIVE)));
                    let s = isa.mul_f(self.levels.nearest(isa, isa.mul_f(minimum, per_step)), step);
                    least = isa.min_f(isa.mul_f(s, isa.sub_f(isa.mul_f(s, b), two_a)), least);
                }
                total = isa.add_f(total, least);
            }
            let error = isa.sum(total);
            if error < found.0 {
                found = (error, d);
            }
            d *= D_RATIO;
        }
        found.1
    }
}
