//! Codes for pairs of neighbouring elements. Each code stands for two values; the 32 codes are a subset of the 8 x
//! 8 pairs of eight values.
//!
//! Rounding is exact: for each of the eight first values, the nearest second value is taken that the codebook has
//! with it (weights do not change which one that is); then the pair with the least weighted error is kept.

use ikq_formats::codebook::IQ2KL_VALUES;
use ikq_simd::Isa;

use super::scale::{Coder, Sums};
use super::tile::{Codes, Tile};

/// The pairs with one first value.
#[derive(Clone, Copy)]
struct Group {
    first: f32,
    /// The `len` second values, ascending.
    seconds: [f32; MOST],
    /// The middles between each second value and the next.
    middles: [f32; MOST],
    len: usize,
    /// The code of the pair with the lowest second value.
    code: f32,
}

/// The most pairs with one first value.
const MOST: usize = 5;

/// The codebook, which is in ascending order of first and second values.
const GROUPS: [Group; 8] = {
    let empty = Group { first: 0.0, seconds: [0.0; MOST], middles: [0.0; MOST], len: 0, code: 0.0 };
    let mut groups = [empty; 8];
    let (mut g, mut code) = (0, 0);
    while code < IQ2KL_VALUES.len() {
        let [first, second] = IQ2KL_VALUES[code];
        if code > 0 && first != IQ2KL_VALUES[code - 1][0] {
            g += 1;
        }
        let group = &mut groups[g];
        if group.len == 0 {
            group.first = first as f32;
            group.code = code as f32;
        } else {
            assert!(second > IQ2KL_VALUES[code - 1][1]);
            group.middles[group.len - 1] = 0.5 * (second as f32 + group.seconds[group.len - 1]);
        }
        group.seconds[group.len] = second as f32;
        group.len += 1;
        code += 1;
    }
    assert!(g == 7);
    groups
};

/// The pairs of IQ2_KL.
#[derive(Clone, Copy)]
pub struct Pairs;

impl<I: Isa> Coder<I> for Pairs {
    #[inline(always)]
    fn sums<const N: usize>(self, isa: I, tile: &Tile<N>, inverse: I::F) -> Sums<I::F> {
        let (mut xv, mut vv) = (isa.splat_f(0.0), isa.splat_f(0.0));
        for i in (0..N).step_by(2) {
            let w = [isa.load_f(&tile.w[i]), isa.load_f(&tile.w[i + 1])];
            let v = nearest(isa, targets(isa, tile, i, inverse), w);
            for (j, v) in v.into_iter().enumerate() {
                xv = isa.mul_add_f(isa.load_f(&tile.wx[i + j]), v, xv);
                vv = isa.mul_add_f(isa.mul_f(w[j], v), v, vv);
            }
        }
        Sums { xv, vv }
    }

    #[inline(always)]
    fn values<const N: usize>(self, isa: I, tile: &Tile<N>, inverse: I::F, out: &mut Codes<N>) {
        for i in (0..N).step_by(2) {
            let w = [isa.load_f(&tile.w[i]), isa.load_f(&tile.w[i + 1])];
            let [first, second] = nearest(isa, targets(isa, tile, i, inverse), w);
            isa.store_f(first, &mut out[i]);
            isa.store_f(second, &mut out[i + 1]);
        }
    }

    /// One code per pair, in the first half of `out`.
    #[inline(always)]
    fn codes<const N: usize>(self, isa: I, tile: &Tile<N>, inverse: I::F, out: &mut Codes<N>) {
        for i in (0..N).step_by(2) {
            let w = [isa.load_f(&tile.w[i]), isa.load_f(&tile.w[i + 1])];
            isa.store_f(isa.slot(code(isa, targets(isa, tile, i, inverse), w)), &mut out[i / 2]);
        }
    }
}

/// Elements `i` and `i + 1` in units of the scale.
#[inline(always)]
fn targets<I: Isa, const N: usize>(isa: I, tile: &Tile<N>, i: usize, inverse: I::F) -> [I::F; 2] {
    [isa.mul_f(isa.load_f(&tile.x[i]), inverse), isa.mul_f(isa.load_f(&tile.x[i + 1]), inverse)]
}

/// `w (t - v)^2`.
#[inline(always)]
fn error<I: Isa>(isa: I, t: I::F, v: I::F, w: I::F) -> I::F {
    let r = isa.sub_f(t, v);
    isa.mul_f(isa.mul_f(w, r), r)
}

/// The values of the nearest pair.
#[inline(always)]
fn nearest<I: Isa>(isa: I, t: [I::F; 2], w: [I::F; 2]) -> [I::F; 2] {
    let mut best = [isa.splat_f(0.0); 2];
    let mut least = isa.splat_f(f32::INFINITY);
    for group in &GROUPS {
        let first = isa.splat_f(group.first);
        let mut second = isa.splat_f(group.seconds[0]);
        for j in 1..group.len {
            second =
                isa.if_gt(t[1], isa.splat_f(group.middles[j - 1]), isa.splat_f(group.seconds[j]), second);
        }
        let found = isa.add_f(error(isa, t[0], first, w[0]), error(isa, t[1], second, w[1]));
        best = [isa.if_gt(least, found, first, best[0]), isa.if_gt(least, found, second, best[1])];
        least = isa.min_f(found, least);
    }
    best
}

/// The code of the nearest pair.
#[inline(always)]
fn code<I: Isa>(isa: I, t: [I::F; 2], w: [I::F; 2]) -> I::F {
    let mut best = isa.splat_f(0.0);
    let mut least = isa.splat_f(f32::INFINITY);
    for (code, [first, second]) in IQ2KL_VALUES.iter().enumerate() {
        let first = error(isa, t[0], isa.splat_f(f32::from(*first)), w[0]);
        let found = isa.add_f(first, error(isa, t[1], isa.splat_f(f32::from(*second)), w[1]));
        best = isa.if_gt(least, found, isa.splat_f(code as f32), best);
        least = isa.min_f(found, least);
    }
    best
}

#[cfg(test)]
mod tests {
    use ikq_simd::Scalar;

    use super::*;

    #[test]
    fn values_are_those_of_the_code_and_the_nearest() {
        for x in (-40..40).map(|x| x as f32 * 2.3) {
            for y in (-40..40).map(|y| y as f32 * 2.3) {
                for w in [[1.0, 1.0], [1.0, 0.01], [0.2, 3.0]] {
                    let lanes = |a: [f32; 2]| a.map(|a| [a; 16]);
                    let of = |v: [f32; 2]| w[0] * (v[0] - x).powi(2) + w[1] * (v[1] - y).powi(2);
                    let code = code(Scalar, lanes([x, y]), lanes(w))[0];
                    let values = nearest(Scalar, lanes([x, y]), lanes(w)).map(|v| v[0]);
                    let least =
                        IQ2KL_VALUES.iter().map(|v| of(v.map(f32::from))).fold(f32::INFINITY, f32::min);
                    let coded = of(IQ2KL_VALUES[code as usize].map(f32::from));
                    assert!(IQ2KL_VALUES.iter().any(|v| v.map(f32::from) == values));
                    assert!(of(values) <= 1.0001 * least && coded <= 1.0001 * least);
                }
            }
        }
    }
}
