//! Finds the least among candidates that were compared lane by lane.

use ikq_simd::Isa;

/// The numbers 0 to 15, the candidates' numbers of a first vector.
pub const LANE_NUMBERS: [f32; 16] =
    [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0];

/// The smallest of `least`, with the smallest number in `at` among the lanes that have it.
#[inline(always)]
pub fn first_least<I: Isa>(isa: I, least: I::F, at: I::F) -> (usize, f32) {
    let smallest = isa.least(least);
    let others = isa.splat_f(f32::MAX);
    let at = isa.least(isa.if_gt(least, isa.splat_f(smallest), others, at));
    (at as usize, smallest)
}
