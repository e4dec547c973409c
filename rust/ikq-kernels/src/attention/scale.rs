//! [`best_scale`]: the scale of a block that loses least, of eight that are tried side by side.
//!
//! The scale that takes a block's largest number to the outermost level is rarely the best one: rows that were turned
//! are nearly gaussian, and most of a block's numbers lie far inside of its range. For each candidate `s`, with
//! `y = x / s` and `q` the level nearest to `y`, the same levels fit best with the scale `s (1 + t)`:
//!
//! ```text
//! sum (y - (1 + t) q)^2 = sum r^2 - 2 t sum r q + t^2 sum q^2     r = y - q;  least at t = sum r q / sum q^2
//! ```
//! The winner is the least of these sums, with `t` as the stored half-precision scale has it, in units of the numbers.
//!
//! That fit is shorter than the numbers: what is lost stands at right angles to it. Scores of such keys are all nearer to
//! zero than they should be, by about a hundredth with four bits, which changes what a softmax makes of them more than
//! the errors' noise does. [`Fit::SameScores`] takes the scale with which the levels' product with the numbers is the
//! numbers' own square, `t = (sum r^2 + sum r q) / (sum r q + sum q^2)`, for next to no more error.
//! Sums of residues, not of the numbers, since the error of six bits is a two thousandth of their squares.
//!
//! Lanes 0..8 are the candidates with the first half of the block, lanes 8..16 the same ones with the other half.

use ikq_simd::{Isa, array};

/// By which rule the scale of a block is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fit {
    /// The least sum of squared errors. Used for values.
    Nearest,
    /// Products with other vectors stay as large as they were, on average. Used for keys.
    SameScores,
}

/// What the codes of a block stand for, before the scale.
pub(super) trait Levels {
    /// The level of largest magnitude.
    const OUTERMOST: f32;
    /// Scales to try, as parts of the one that takes a block's largest number to [`Levels::OUTERMOST`]. Negative ones
    /// give that number the other end of the range. The first is 1: the result is never worse than without a search.
    const FACTORS: [f32; 8];

    /// Slots (see [`ikq_simd::Lanes::slot`]) of the codes whose levels are nearest.
    fn slots<I: Isa>(isa: I, x: I::F) -> I::F;

    /// The levels that slots stand for.
    fn levels<I: Isa>(isa: I, slots: I::F) -> I::F;
}

/// Scales whose halves are too coarse or too large for a search are not searched.
const SEARCHED: std::ops::Range<f32> = 1.0 / 16_777_216.0..32768.0;

/// A scale for the finite numbers `x`, of which `largest` has the largest magnitude: a half-precision number, but for
/// blocks that are too small or too large for a search.
#[inline(always)]
pub(super) fn best_scale<I: Isa, L: Levels>(isa: I, fit: Fit, x: &[f32; 32], largest: f32) -> f32 {
    let plain = largest / L::OUTERMOST;
    if !SEARCHED.contains(&plain.abs()) {
        return plain;
    }
    let (zero, one) = (isa.splat_f(0.0), isa.splat_f(1.0));
    let scales =
        isa.f16_round(isa.mul_f(isa.splat_f(plain), isa.load_f(&array(|lane| L::FACTORS[lane % 8]))));
    let inverse = isa.div_f(one, scales);
    // sums of r^2, r q and q^2
    let [mut rr, mut rq, mut qq] = [zero; 3];
    for i in 0..16 {
        let y = isa.mul_f(isa.load_f(&array(|lane| x[i + lane / 8 * 16])), inverse);
        let q = L::levels(isa, L::slots(isa, y));
        let r = isa.sub_f(y, q);
        rr = isa.mul_add_f(r, r, rr);
        rq = isa.mul_add_f(r, q, rq);
        qq = isa.mul_add_f(q, q, qq);
    }
    let other = isa.load_i(&array(|lane| (lane as i32 + 8) % 16));
    for sum in [&mut rr, &mut rq, &mut qq] {
        *sum = isa.add_f(*sum, isa.lut16_f(*sum, other));
    }
    let t = match fit {
        Fit::Nearest => isa.div_f(rq, qq),
        Fit::SameScores => isa.div_f(isa.add_f(rr, rq), isa.add_f(rq, qq)),
    };
    let stored = isa.f16_round(isa.mul_add_f(scales, t, scales));
    let t = isa.sub_f(isa.mul_f(stored, inverse), one);
    // sum r^2 + t (t sum q^2 - 2 sum r q)
    let inner = isa.sub_f(isa.mul_f(t, qq), isa.add_f(rq, rq));
    let size = isa.mul_f(scales, isa.splat_f(1.0 / plain));
    let loss = isa.mul_f(isa.mul_add_f(t, inner, rr), isa.mul_f(size, size));
    let winner = isa.bits_gt(loss, isa.splat_f(isa.least(loss))).trailing_ones();
    isa.array(stored)[winner as usize % 8]
}
