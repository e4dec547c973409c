//! The softmax of a block of scores, relative to the largest score so far.

use ikq_simd::{Isa, IsaOp};

use crate::ops::math;

/// Turns one row's scores of a block into exponentials, and updates the row's maximum, sum and values.
pub(super) struct Exponentials<'a> {
    /// The scores; their number is a multiple of 16, and masked ones are -inf.
    pub scores: &'a mut [f32],
    pub softcap: Option<f32>,
    pub max: &'a mut f32,
    pub sum: &'a mut f32,
    /// The weighted sum of values so far.
    pub values: &'a mut [f32],
}

impl IsaOp for Exponentials<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let scores = self.scores.as_chunks_mut::<16>().0;
        if let Some(cap) = self.softcap {
            let (inverse, cap) = (isa.splat_f(1.0 / cap), isa.splat_f(cap));
            let masked = isa.splat_f(f32::MIN);
            for s in scores.iter_mut() {
                let x = isa.load_f(s);
                let y = isa.mul_f(cap, math::tanh(isa, isa.mul_f(x, inverse)));
                // what is masked stays so
                isa.store_f(isa.if_gt(masked, x, x, y), s);
            }
        }
        let mut most = isa.splat_f(*self.max);
        for s in scores.iter() {
            // keeps the other operand where a score is NaN: its exponential will tell
            most = isa.max_f(isa.load_f(s), most);
        }
        let negated = isa.sub_f(isa.splat_f(0.0), most);
        let max = -isa.least(negated);
        if max > *self.max {
            if *self.max > f32::NEG_INFINITY {
                let factor = (*self.max - max).exp();
                *self.sum *= factor;
                let (factor, zero) = (isa.splat_f(factor), isa.splat_f(0.0));
                for v in self.values.as_chunks_mut::<16>().0 {
                    // plus zero: what vanishes is never -0, to which adding a masked key's zero would make a difference
                    isa.store_f(isa.mul_add_f(isa.load_f(v), factor, zero), v);
                }
            }
            *self.max = max;
        }
        // nothing seen yet: any finite number makes exponentials of -inf zeros
        let max = isa.splat_f(if max == f32::NEG_INFINITY { 0.0 } else { max });
        let mut sum = isa.splat_f(0.0);
        for s in scores {
            let p = math::exp(isa, isa.sub_f(isa.load_f(s), max));
            sum = isa.add_f(sum, p);
            isa.store_f(p, s);
        }
        *self.sum += isa.total(sum);
    }
}

/// Softmax of a block for several rows: see [`Exponentials`].
pub(super) struct SoftmaxRows<'a> {
    pub scores: &'a mut [f32],
    pub stride: usize,
    /// Columns, a multiple of 16.
    pub n: usize,
    pub softcap: Option<f32>,
    pub max: &'a mut [f32],
    pub sum: &'a mut [f32],
    pub values: &'a mut [f32],
    pub value_stride: usize,
}

impl IsaOp for SoftmaxRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let rows = self.scores.chunks_mut(self.stride).zip(self.values.chunks_exact_mut(self.value_stride));
        for ((scores, values), (max, sum)) in rows.zip(self.max.iter_mut().zip(self.sum)) {
            let scores = &mut scores[..self.n];
            isa.apart(Exponentials { scores, softcap: self.softcap, max, sum, values });
        }
    }
}
