//! Finds the codes of a sub-block of 32 elements in a set of trellis points at one scale.

use ikq_simd::{Isa, IsaOp};

use super::trellis::{Trellis, Weights};

/// Elements of a sub-block.
pub const SUB_BLOCK: usize = 32;

/// The elements of a sub-block and their weights.
pub type Elements<'a> = (&'a [f32; SUB_BLOCK], &'a [f32; SUB_BLOCK]);

/// A sub-block prepared for any number of matches.
pub struct Prepared<'a, const PAIRS: usize> {
    elements: Elements<'a>,
    weights: [Weights<PAIRS>; 8],
    /// The groups, those with the most energy first, so that a match that is worse than another is given up early.
    order: [u8; 8],
}

/// A sub-block matched at one scale.
pub struct Match {
    pub codes: [u16; 16],
    pub error: f32,
    /// `sum w x t` and `sum w t^2`, where t are the points' values.
    pub wxt: f32,
    pub wtt: f32,
}

impl<'a, const PAIRS: usize> Prepared<'a, PAIRS> {
    const DIMS: usize = 2 * PAIRS;
    const GROUPS: usize = SUB_BLOCK / Self::DIMS;

    #[inline(always)]
    pub fn new<I: Isa>(isa: I, elements: Elements<'a>) -> Self {
        let (x, w) = elements;
        let mut weights = [Weights::EMPTY; 8];
        let mut energy = [0.0f32; 8];
        for g in 0..Self::GROUPS {
            let (x, w) = (&x[g * Self::DIMS..][..Self::DIMS], &w[g * Self::DIMS..][..Self::DIMS]);
            weights[g] = Weights::new(isa, w);
            for (x, w) in x.iter().zip(w) {
                energy[g] += w * x * x;
            }
        }
        let mut order = [0, 1, 2, 3, 4, 5, 6, 7];
        order[..Self::GROUPS].sort_by(|a, b| energy[usize::from(*b)].total_cmp(&energy[usize::from(*a)]));
        Prepared { elements, weights, order }
    }
}

/// Matches a sub-block at a scale, as an operation for an instruction set that all types with as many dimensions
/// share.
pub struct MatchAt<'a, const PAIRS: usize> {
    pub block: &'a Prepared<'a, PAIRS>,
    pub points: &'a Trellis<PAIRS>,
    pub scale: f32,
    /// Patience of [`Trellis::nearest`].
    pub patience: f32,
    /// Gives up as soon as the error reaches this.
    pub limit: f32,
}

impl<const PAIRS: usize> IsaOp for MatchAt<'_, PAIRS> {
    type Output = Match;

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> Match {
        let MatchAt { block, points, scale, patience, limit } = self;
        let dims = Prepared::<PAIRS>::DIMS;
        let (x, w) = block.elements;
        let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
        let mut out = Match { codes: [0; 16], error: 0.0, wxt: 0.0, wtt: 0.0 };
        for g in &block.order[..Prepared::<PAIRS>::GROUPS] {
            let g = usize::from(*g) & 7;
            let (x, w) = (&x[g * dims..][..dims], &w[g * dims..][..dims]);
            let mut target = [0.0; 8];
            for (target, x) in target.iter_mut().zip(x) {
                *target = x * inverse;
            }
            let found = points.nearest(isa, &target, &block.weights[g], patience);
            out.codes[g] = found.code;
            for ((x, w), t) in x.iter().zip(w).zip(found.values) {
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
}
