//! Blocks with one f16 scale and nothing else: Q4_0, Q5_0, Q6_0, Q2_0, IQ4_NL.
//!
//! Objective: `sum w (x - d v)^2` with w of the column. Searched: per block, scales that put the
//! largest element on or beyond the last level, on both sides of the (asymmetric) level set, then
//! codes and scale in turn; see [`crate::search::scale`]. Rows without importance of Q4_0 and Q5_0 try few
//! scales, and leave weights out of their sums.

use ikq_formats::codebook::IQ4NL_VALUES;
use ikq_formats::{QuantType, layout};
use ikq_simd::Isa;

use super::Encode;
use super::pack::{half_numbers, pack_lanes};
use super::weights::are_ones;
use crate::search::gain::Scales;
use crate::search::levels::{Integers, Levels, Offset, Table4, Unweighted};
use crate::search::scale::{self, Fit, Ladder};
use crate::search::tile::{LANES, Tile};

/// Working memory of a row.
#[derive(Default)]
pub struct Scratch<const N: usize> {
    tile: Box<Tile<N>>,
}

/// The properties by which the types of this file differ.
struct Search<L> {
    levels: L,
    ladder: Ladder,
    /// A shorter ladder for rows without importance, which the reference only rounds; `None` where there is no such
    /// shorter one.
    plain: Option<Ladder>,
    /// Levels that a constant block may use: with one of them, d is likely to be rounded by little.
    exact: &'static [f32],
}

/// Encodes one row of blocks of `N` elements.
#[inline(always)]
fn encode_row<I: Isa, L: Levels<I>, const N: usize>(
    isa: I,
    ty: QuantType,
    Search { levels, ladder, plain, exact }: Search<L>,
    (x, w): (&[f32], &[f32]),
    scales: Scales,
    tile: &mut Tile<N>,
    out: &mut [u8],
) {
    let layout = layout(ty).expect("types of this file have layouts");
    let plain = plain.filter(|_| are_ones(w));
    // d, q
    let mut numbers = [[0.0; LANES]; 1 + 64];
    let numbers = &mut numbers[..1 + N];
    let tiles = x.chunks(LANES * N).zip(w.chunks(LANES * N));
    for ((x, w), out) in tiles.zip(out.chunks_mut(LANES * layout.bytes)) {
        let (d, factor) = match plain {
            Some(ladder) => {
                tile.load_plain(isa, x, 1);
                best_half(isa, tile, Unweighted(levels), (ladder, exact), scales)
            }
            None => {
                tile.load(isa, x, w, 1);
                best_half(isa, tile, levels, (ladder, exact), scales)
            }
        };
        let stored = isa.mul_f(isa.mul_f(d, factor), isa.load_f(&tile.up));
        numbers[0] = half_numbers(isa.f16_bits(stored));
        if let Some(codes) = numbers[1..].first_chunk_mut::<N>() {
            scale::codes(isa, tile, levels, d, codes);
        }
        pack_lanes(isa, layout, numbers, out);
    }
}

/// The best scale of each block that an f16 can hold, and the factor by which the stored one is larger.
#[inline(always)]
fn best_half<I: Isa, L: Levels<I>, const N: usize>(
    isa: I,
    tile: &Tile<N>,
    levels: L,
    (ladder, exact): (Ladder, &[f32]),
    scales: Scales,
) -> (I::F, I::F) {
    let peak = tile.peak(isa);
    let fit = scale::best_scale(isa, tile, levels, peak, (ladder, scales), Fit::nothing(isa));
    let energy = tile.energy(isa);
    // the fit's sums serve, because codes at the rounded scale differ from the fit's in few elements
    let factor = scales.factors(isa, fit.gain, energy);
    (scale::half_scale(isa, tile, levels, (peak, energy), fit, exact), factor)
}

macro_rules! single_scale {
    ($($(#[$doc:meta])* $encoder:ident = $ty:ident[$n:literal]: $levels:expr, $ladder:expr, $plain:expr, $exact:expr;)*) => { $(
        $(#[$doc])*
        #[allow(non_camel_case_types)]
        pub struct $encoder;

        impl Encode for $encoder {
            const TYPE: QuantType = QuantType::$ty;
            type Scratch = Scratch<$n>;

            #[inline(always)]
            fn encode_row<I: Isa>(
                isa: I,
                x: &[f32],
                w: &[f32],
                scales: Scales,
                scratch: &mut Scratch<$n>,
                out: &mut [u8],
            ) {
                let search = Search { levels: $levels(isa), ladder: $ladder, plain: $plain, exact: $exact };
                encode_row(isa, Self::TYPE, search, (x, w), scales, &mut scratch.tile, out);
            }
        }
    )* };
}

single_scale! {
    /// Four levels -1..=2.
    Q2_0 = Q2_0[64]: |_| Integers { lo: -1.0, hi: 2.0 }, Q2_LADDER, None, &[-1.0, 1.0, 2.0];
    /// Sixteen levels -8..=7.
    Q4_0 = Q4_0[32]: |_| Integers { lo: -8.0, hi: 7.0 }, Q4_LADDER, Some(Q4_PLAIN), EXACT_16;
    /// Fifteen levels -7..=7 of the same type.
    SymmetricQ4_0 = Q4_0[32]: |_| Offset { levels: Integers { lo: -7.0, hi: 7.0 }, by: 1.0 }, SYMMETRIC_Q4_LADDER, None, EXACT_15;
    /// Thirty-two levels -16..=15.
    Q5_0 = Q5_0[32]: |_| Integers { lo: -16.0, hi: 15.0 }, Q5_LADDER, Some(Q5_PLAIN), EXACT_16;
    /// 64 levels -32..=31.
    Q6_0 = Q6_0[32]: |_| Integers { lo: -32.0, hi: 31.0 }, Q6_LADDER, None, EXACT_16;
    /// Sixteen levels of a table.
    IQ4_NL = IQ4_NL[32]: |isa| Table4::new(isa, &IQ4NL_VALUES), NL_LADDER, None, EXACT_NL;
}

/// Levels on which the largest element is put: the first one, then 0.92 to 2 times the last level of either side in
/// steps of 5%, because with weights the largest element is often better clipped.
#[rustfmt::skip]
const Q4_ANCHORS: &[f32] = &[
    -8.0, -7.36, -7.75, -8.16, -8.6, -9.05, -9.53, -10.04, -10.57, -11.14, -11.73, -12.35, -13.01, -13.7, -14.43, -15.19, -16.0,
    6.44, 6.78, 7.14, 7.52, 7.92, 8.34, 8.79, 9.25, 9.74, 10.26, 10.81, 11.38, 11.99, 12.62, 13.29, 14.0,
];
/// Levels on which the largest element is put, of 32 levels.
#[rustfmt::skip]
const Q5_ANCHORS: &[f32] = &[
    -16.0, -14.72, -15.5, -16.33, -17.19, -18.11, -19.07, -20.08, -21.15, -22.27, -23.46, -24.7, -26.01, -27.4, -28.85, -30.39, -32.0,
    13.8, 14.53, 15.31, 16.12, 16.98, 17.88, 18.83, 19.83, 20.88, 21.99, 23.16, 24.39, 25.68, 27.05, 28.49, 30.0,
];
/// Levels on which the largest element is put, of IQ4_NL's table.
#[rustfmt::skip]
const NL_ANCHORS: &[f32] = &[
    -127.0, -116.8, -123.0, -129.6, -136.5, -143.7, -151.4, -159.4, -167.9, -176.8, -186.2, -196.1, -206.5, -217.5, -229.0, -241.2, -254.0,
    104.0, 109.5, 115.3, 121.4, 127.9, 134.7, 141.8, 149.4, 157.3, 165.7, 174.5, 183.7, 193.5, 203.8, 214.6, 226.0,
];

/// The largest element is put on the last level and beyond; both sides are alike.
const SYMMETRIC_Q4_ANCHORS: &[f32] = &[
    7.0, 6.44, 6.78, 7.26, 7.52, 7.92, 8.34, 8.79, 9.25, 9.74, 10.26, 10.81, 11.38, 11.99, 12.62, 13.29, 14.0,
];
/// Levels on which the largest element is put, of 64 levels; the finer the levels, the less is gained by clipping.
const Q6_ANCHORS: &[f32] = &[
    -32.0, -31.2, -31.6, -32.45, -32.9, -33.5, -34.5, -36.0, -38.5, -42.0, -47.0, -54.0, 30.2, 30.6, 31.0,
    31.45, 31.9, 32.5, 33.5, 35.0, 37.5, 41.0, 46.0, 53.0,
];
/// Levels on which the largest element is put, of four: most of a block lies between 0 and the next level.
const Q2_ANCHORS: &[f32] = &[
    -1.0, -1.17, -1.36, -1.6, -1.85, -2.15, -2.5, -2.9, -3.4, -4.0, -5.0, 1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.2,
    2.45, 2.75, 3.1, 3.5, 4.0, 4.7, 5.6,
];

/// Factors that lead from one anchor to between it and the next.
const STRETCHES: &[f32] = &[0.976, 0.988, 1.012, 1.024];
const Q4_LADDER: Ladder = Ladder { anchors: Q4_ANCHORS, stretches: STRETCHES, rounds: 2 };
const SYMMETRIC_Q4_LADDER: Ladder = Ladder { anchors: SYMMETRIC_Q4_ANCHORS, stretches: STRETCHES, rounds: 2 };
const Q2_LADDER: Ladder = Ladder { anchors: Q2_ANCHORS, stretches: &[0.93, 1.07], rounds: 3 };
const Q6_LADDER: Ladder =
    Ladder { anchors: Q6_ANCHORS, stretches: &[0.993, 0.9965, 1.0035, 1.007], rounds: 2 };
const Q5_LADDER: Ladder = Ladder { anchors: Q5_ANCHORS, stretches: STRETCHES, rounds: 2 };
pub(super) const NL_LADDER: Ladder = Ladder { anchors: NL_ANCHORS, stretches: STRETCHES, rounds: 2 };

/// Ladders of rows without importance: on and a bit beyond the last levels of both sides, where most of the gain
/// is.
const Q4_PLAIN: Ladder = Ladder { anchors: &[-8.0, -8.7, 7.4, 8.0], stretches: &[], rounds: 1 };
const Q5_PLAIN: Ladder =
    Ladder { anchors: &[-16.0, -16.6, -17.5, 15.4, 15.9, 16.8], stretches: &[], rounds: 1 };

const EXACT_16: &[f32] = &[-8.0, -7.0, -6.0, -5.0, -4.0, -3.0, -2.0, -1.0, 1.0, 3.0, 5.0, 6.0, 7.0];
const EXACT_15: &[f32] = &[-7.0, -6.0, -5.0, -4.0, -3.0, -2.0, -1.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0];
const EXACT_NL: &[f32] = &[
    -127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0, 69.0, 89.0, 113.0,
];
