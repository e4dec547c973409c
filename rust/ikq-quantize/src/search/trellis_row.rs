//! Scales and codes of a row whose sub-blocks of 32 have scales from a table: `y = d * value[s] * t`, d a
//! float per row, t the points of a trellis.
//!
//! 1. Every sub-block is matched quickly at two sizes and both signs. A match leaves the sums
//!    `A = sum w x t`, `B = sum w t^2`, a parabola `s^2 B - 2 s A` of the error over the scale.
//! 2. The d for which the best table values of all sub-blocks, by their parabolas, do best together.
//! 3. Careful matches at the most promising table values of either sign; d refitted.

use ikq_simd::Isa;

use super::trellis::{Trellis, Weights};

/// Elements of a sub-block.
pub const SUB_BLOCK: usize = 32;

/// What distinguishes the types.
pub struct TableScales<'a, const PAIRS: usize> {
    pub trellis: &'a Trellis<PAIRS>,
    /// Values of a code.
    pub point: fn(u32) -> [i32; 8],
    /// What the sixteen scale numbers stand for.
    pub values: &'a [f32; 16],
    /// The stored d is the fitted one times this.
    pub scale_bias: f32,
}

/// Quick matches are made at these multiples of the scale that makes the target as large as the
/// average point (both signs each) ...
const SIZES: [f32; 2] = [0.7, 1.05];
/// ... the second at least so that the largest element is at this value, about the largest there is.
const PEAK: f32 = 120.0;
const N_QUICK: usize = 2 * SIZES.len();

/// Patience of the searches. Exact careful ones would gain less than 1 % of the error for twice the time.
const QUICK: f32 = 0.0;
const CAREFUL: f32 = 0.2;

/// Table values tried, by whether they are negative: the best of either sign, the best of the others.
const OPTIONS: [Option<bool>; 3] = [Some(false), Some(true), None];

/// Row scales tried: those that put the largest sub-block scale at the largest table value, times
/// `D_FIRST * D_RATIO^k`.
const N_D: usize = 32;
const D_FIRST: f32 = 1.3;
const D_RATIO: f32 = 0.97;

/// Below this root mean square (the row's largest element is about 1) a sub-block counts as zero: its
/// inverse scale must stay finite.
const NOTHING: f32 = 1e-30;

/// `2 A` and `B` of each quick match (positive scales first), sixteen sub-blocks side by side.
type Parabolas = [[[f32; 16]; 2]; N_QUICK];

/// A row's fit and the memory for it.
#[derive(Default)]
pub struct RowFit {
    pub d: f32,
    pub scales: Vec<u8>,
    pub codes: Vec<u16>,
    parabolas: Vec<Parabolas>,
}

/// A sub-block matched at one scale.
struct Match {
    codes: [u16; 16],
    error: f32,
    /// `sum w x t`, `sum w t^2`.
    wxt: f32,
    wtt: f32,
}

impl<const PAIRS: usize> TableScales<'_, PAIRS> {
    const DIMS: usize = 2 * PAIRS;
    const GROUPS: usize = SUB_BLOCK / Self::DIMS;

    /// Fits a row of whole sub-blocks, normalised to a largest element of about 1.
    #[inline(always)]
    pub fn fit<I: Isa>(&self, isa: I, x: &[f32], w: &[f32], fit: &mut RowFit) {
        let n_sub = x.len() / SUB_BLOCK;
        fit.d = 0.0;
        fit.scales.clear();
        fit.scales.resize(n_sub, 0);
        fit.codes.clear();
        fit.codes.resize(x.len() / Self::DIMS, 0);
        fit.parabolas.clear();
        fit.parabolas.resize(n_sub.div_ceil(16), [[[0.0; 16]; 2]; N_QUICK]);
        let blocks = x.as_chunks::<SUB_BLOCK>().0.iter().zip(w.as_chunks::<SUB_BLOCK>().0);
        let mut top = 0.0f32;
        for (sub, (x, w)) in blocks.clone().enumerate() {
            top = top.max(self.quick(isa, x, w, &mut fit.parabolas[sub / 16], sub % 16));
        }
        if top <= 0.0 {
            return;
        }
        let d = self.joint(isa, top, &fit.parabolas);
        let (mut numerator, mut denominator) = (0.0, 0.0);
        for (sub, (x, w)) in blocks.enumerate() {
            let errors = self.errors(isa, d, &fit.parabolas[sub / 16], sub % 16);
            let (number, found) = self.careful(isa, x, w, d, errors);
            fit.scales[sub] = number as u8;
            fit.codes[sub * Self::GROUPS..][..Self::GROUPS].copy_from_slice(&found.codes[..Self::GROUPS]);
            let value = self.values[number];
            numerator += value * found.wxt;
            denominator += value * value * found.wtt;
        }
        if denominator > 0.0 {
            fit.d = self.scale_bias * numerator / denominator;
        }
    }

    /// The largest magnitude of a fit, for d = 1.
    pub fn largest(&self, fit: &RowFit) -> f32 {
        let mut largest = 0.0f32;
        for (number, codes) in fit.scales.iter().zip(fit.codes.chunks_exact(Self::GROUPS)) {
            for code in codes {
                for t in &(self.point)(u32::from(*code))[..Self::DIMS] {
                    largest = largest.max((self.values[usize::from(*number)] * *t as f32).abs());
                }
            }
        }
        largest
    }

    /// Quick matches of a sub-block; returns the largest of their best scales.
    #[inline(always)]
    fn quick<I: Isa>(
        &self,
        isa: I,
        x: &[f32; SUB_BLOCK],
        w: &[f32; SUB_BLOCK],
        parabolas: &mut Parabolas,
        lane: usize,
    ) -> f32 {
        let (mut wxx, mut w_sum, mut peak) = (0.0, 0.0, 0.0f32);
        for (x, w) in x.iter().zip(w) {
            wxx += w * x * x;
            w_sum += w;
            peak = peak.max(x.abs());
        }
        let rms = (wxx / w_sum).sqrt();
        if rms < NOTHING {
            // no scale is too small
            for [_, b] in parabolas {
                b[lane] = w_sum;
            }
            return 0.0;
        }
        let size = rms / self.trellis.rms();
        let weights = self.weigh(isa, w);
        let mut top = 0.0f32;
        for (c, [two_a, b]) in parabolas.iter_mut().enumerate() {
            let scale = match c % 2 {
                0 => size * SIZES[0],
                _ => (size * SIZES[1]).max(peak / PEAK),
            };
            let signed = if c < N_QUICK / 2 { scale } else { -scale };
            let found = self.matched(isa, (x, w), &weights, signed, QUICK, f32::INFINITY);
            two_a[lane] = found.wxt + found.wxt;
            b[lane] = found.wtt;
            if found.wtt > 0.0 {
                top = top.max((found.wxt / found.wtt).abs());
            }
        }
        top
    }

    /// The best of careful matches at the table values of least estimated error.
    #[inline(always)]
    fn careful<I: Isa>(
        &self,
        isa: I,
        x: &[f32; SUB_BLOCK],
        w: &[f32; SUB_BLOCK],
        d: f32,
        mut errors: [f32; 16],
    ) -> (usize, Match) {
        let weights = self.weigh(isa, w);
        let mut best = (0, Match { codes: [0; 16], error: f32::INFINITY, wxt: 0.0, wtt: 0.0 });
        for option in OPTIONS {
            let mut number = None;
            for (n, error) in errors.iter().enumerate() {
                let allowed = option.is_none_or(|negative| (self.values[n] < 0.0) == negative);
                if allowed && *error < number.map_or(f32::INFINITY, |n: usize| errors[n]) {
                    number = Some(n);
                }
            }
            let Some(number) = number else { continue };
            errors[number] = f32::INFINITY;
            let scale = d * self.values[number];
            let found = self.matched(isa, (x, w), &weights, scale, CAREFUL, best.1.error);
            if found.error < best.1.error {
                best = (number, found);
            }
        }
        best
    }

    #[inline(always)]
    fn weigh<I: Isa>(&self, isa: I, w: &[f32; SUB_BLOCK]) -> [Weights<I, PAIRS>; 8] {
        let mut weights = [self.trellis.weigh(isa, w); 8];
        for (g, weights) in weights.iter_mut().enumerate().take(Self::GROUPS) {
            *weights = self.trellis.weigh(isa, &w[g * Self::DIMS..]);
        }
        weights
    }

    /// Codes of a sub-block at a scale (not zero). Gives up as soon as the error reaches `limit`.
    #[inline(always)]
    fn matched<I: Isa>(
        &self,
        isa: I,
        (x, w): (&[f32; SUB_BLOCK], &[f32; SUB_BLOCK]),
        weights: &[Weights<I, PAIRS>; 8],
        scale: f32,
        patience: f32,
        limit: f32,
    ) -> Match {
        let inverse = 1.0 / scale;
        let mut out = Match { codes: [0; 16], error: 0.0, wxt: 0.0, wtt: 0.0 };
        for g in 0..Self::GROUPS {
            let (x, w) = (&x[g * Self::DIMS..][..Self::DIMS], &w[g * Self::DIMS..][..Self::DIMS]);
            let mut target = [0.0; 8];
            for (target, x) in target.iter_mut().zip(x) {
                *target = x * inverse;
            }
            let code = self.trellis.nearest(isa, &target, &weights[g], patience);
            out.codes[g] = code;
            for ((x, w), t) in x.iter().zip(w).zip((self.point)(u32::from(code))) {
                let t = t as f32;
                let miss = x - scale * t;
                out.error += w * miss * miss;
                out.wxt += w * x * t;
                out.wtt += w * t * t;
            }
            if out.error >= limit {
                break;
            }
        }
        out
    }

    /// The error of a sub-block at every table value, by its parabolas.
    #[inline(always)]
    fn errors<I: Isa>(&self, isa: I, d: f32, parabolas: &Parabolas, lane: usize) -> [f32; 16] {
        let s = isa.mul_f(isa.load_f(self.values), isa.splat_f(d));
        let mut least = isa.splat_f(f32::INFINITY);
        for [two_a, b] in parabolas {
            let error = parabola(isa, isa.splat_f(two_a[lane]), isa.splat_f(b[lane]), s);
            least = isa.min_f(error, least);
        }
        isa.array(least)
    }

    /// The row scale; `top` is the largest sub-block scale.
    #[inline(always)]
    fn joint<I: Isa>(&self, isa: I, top: f32, parabolas: &[Parabolas]) -> f32 {
        let mut largest = 0.0f32;
        for v in self.values {
            largest = largest.max(v.abs());
        }
        let mut d = D_FIRST * top / largest;
        let mut found = (f32::INFINITY, d);
        for _ in 0..N_D {
            let mut total = isa.splat_f(0.0);
            for sixteen in parabolas {
                let mut least = isa.splat_f(f32::INFINITY);
                for v in self.values {
                    // the other sign's matches lie on the wrong side
                    let own = if *v < 0.0 { N_QUICK / 2..N_QUICK } else { 0..N_QUICK / 2 };
                    let s = isa.splat_f(v * d);
                    for [two_a, b] in &sixteen[own] {
                        least = isa.min_f(parabola(isa, isa.load_f(two_a), isa.load_f(b), s), least);
                    }
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

/// `s^2 b - s two_a`.
#[inline(always)]
fn parabola<I: Isa>(isa: I, two_a: I::F, b: I::F, s: I::F) -> I::F {
    isa.mul_f(s, isa.sub_f(isa.mul_f(s, b), two_a))
}
