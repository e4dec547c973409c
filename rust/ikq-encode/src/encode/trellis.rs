//! Trellis types: IQ1_KT, IQ2_KT, IQ3_KT, IQ4_KT.
//!
//! A code seeds a generator that yields the values t of 8 (IQ4_KT: 4) elements. Objective: `sum w (x - d k t)^2`
//! with w of the column. Searched: codes and scale k of every sub-block and d together
//! ([`crate::search::trellis_row`]); IQ3_KT, whose signs are stored separately, searches among magnitudes.
//!
//! How much each type tries is set by [`Effort`]. Exact searches (patience 1) would lower the error by less than 1
//! % for twice the time. Trying more scales gains more: at another scale other points are nearest, and the best of
//! many is kept. It gains most with IQ4_KT, whose points are the densest, so that even scales a few numbers apart
//! lead to other points. Sub-blocks with much of a row's error, because of outliers or weights, try more scales
//! (`wide`), the more the finer the type.

use std::sync::OnceLock;

use ikq_formats::codebook::{IQ4K_VALUES, KT_OFFSET, KT_OFFSET_IQ4_ALT, kt_values};
use ikq_formats::{QuantType, layout};
use ikq_simd::Isa;

use super::Encode;
use super::weights::normalizer;
use crate::search::gain::Scales;
use crate::search::levels::{Integers, Levels, Table4};
use crate::search::trellis::Trellis;
use crate::search::trellis_row::{Effort, RowFit, RowSearch};

/// Elements and sub-blocks of a block.
const BLOCK: usize = 256;
const PER_BLOCK: usize = 8;

/// Less than 1 by more than the roundings of two products.
const ALMOST_ONE: f32 = 1.0 - 1e-6;

#[derive(Default)]
pub struct Scratch {
    x: Vec<f32>,
    fit: RowFit,
}

/// Encodes a row. The fields of a block are the sets of points (where there are two), scales, signs (where `SIGNS`
/// says that they are stored separately), and codes.
#[inline(always)]
fn encode_row<I: Isa, L: Levels<I>, const PAIRS: usize, const SIGNS: bool>(
    isa: I,
    ty: QuantType,
    search: &RowSearch<L, PAIRS>,
    (x, w): (&[f32], &[f32]),
    scales: Scales,
    Scratch { x: normal, fit }: &mut Scratch,
    out: &mut [u8],
) {
    let (down, up) = normalizer(x);
    normal.clear();
    for x in x {
        let x = x * down;
        normal.push(if SIGNS { x.abs() } else { x });
    }
    search.fit(isa, (normal, w), scales, fit);
    let layout = layout(ty).expect("trellis types have layouts");
    let (header, blocks) = out.split_at_mut(4);
    // limits d, because rows near the largest float must not decode to infinity
    let largest = search.largest(fit);
    let d = if fit.d * largest < f32::MAX / up { fit.d } else { f32::MAX / up / largest * ALMOST_ONE };
    header.copy_from_slice(&(d * up).to_le_bytes());
    let n_codes = BLOCK / (2 * PAIRS);
    let mut values = Vec::with_capacity(layout.n_values());
    for (k, block) in blocks.chunks_exact_mut(layout.bytes).enumerate() {
        values.clear();
        if search.sets.len() > 1 {
            values.extend(fit.sets[PER_BLOCK * k..][..PER_BLOCK].iter().map(|v| u32::from(*v)));
        }
        values.extend(fit.scales[PER_BLOCK * k..][..PER_BLOCK].iter().map(|v| u32::from(*v)));
        if SIGNS {
            values.extend(x[BLOCK * k..][..BLOCK].iter().map(|x| u32::from(*x < 0.0)));
        }
        values.extend(fit.codes[n_codes * k..][..n_codes].iter().map(|v| u32::from(*v)));
        layout.pack(&values, block);
    }
}

fn point(_set: usize, code: u32) -> [i32; 8] {
    kt_values(code, KT_OFFSET)
}

fn magnitudes(_set: usize, code: u32) -> [i32; 8] {
    kt_values(code, KT_OFFSET).map(i32::abs)
}

fn point_of_two(set: usize, code: u32) -> [i32; 8] {
    kt_values(code, [KT_OFFSET, KT_OFFSET_IQ4_ALT][set])
}

/// The points of IQ1_KT: the values of eight elements for each code.
pub fn points_of_13_bits() -> &'static [Trellis<4>; 1] {
    static SETS: OnceLock<[Trellis<4>; 1]> = OnceLock::new();
    SETS.get_or_init(|| [Trellis::new(1 << 13, |code| point(0, code))])
}

/// The points of IQ2_KT.
pub fn points_of_16_bits() -> &'static [Trellis<4>; 1] {
    static SETS: OnceLock<[Trellis<4>; 1]> = OnceLock::new();
    SETS.get_or_init(|| [Trellis::new(1 << 16, |code| point(0, code))])
}

/// The points of IQ3_KT, without signs.
pub fn magnitudes_of_16_bits() -> &'static [Trellis<4>; 1] {
    static SETS: OnceLock<[Trellis<4>; 1]> = OnceLock::new();
    SETS.get_or_init(|| [Trellis::new(1 << 16, |code| magnitudes(0, code))])
}

/// Both sets of points of IQ4_KT.
pub fn two_sets_of_points() -> &'static [Trellis<2>; 2] {
    static SETS: OnceLock<[Trellis<2>; 2]> = OnceLock::new();
    let set = |set: usize| Trellis::new(1 << 15, |code| point_of_two(set, code));
    SETS.get_or_init(|| [set(0), set(1)])
}

fn table_values() -> [f32; 16] {
    IQ4K_VALUES[0].map(f32::from)
}

/// 13-bit codes for groups of 8, scales from a table.
#[allow(non_camel_case_types)]
pub struct IQ1_KT;

/// Factor on the row scale where it is stored as fitted; 1 gives the least squared error.
const IQ1_KT_SCALE_BIAS: f32 = 1.0;

impl Encode for IQ1_KT {
    const TYPE: QuantType = QuantType::IQ1_KT;
    type Scratch = Scratch;

    #[inline(always)]
    fn encode_row<I: Isa>(
        isa: I,
        x: &[f32],
        w: &[f32],
        scales: Scales,
        scratch: &mut Scratch,
        out: &mut [u8],
    ) {
        let search = RowSearch {
            sets: points_of_13_bits(),
            point,
            values: &table_values(),
            levels: Table4::new(isa, &IQ4K_VALUES[0]),
            scale_bias: IQ1_KT_SCALE_BIAS,
            effort: Effort {
                sizes: &[0.5, 0.7, 0.9, 1.2],
                beside: &[-1, 1],
                n_careful: 4,
                wide: &[],
                quick: 0.0,
                careful: 0.2,
            },
        };
        encode_row::<I, _, 4, false>(isa, Self::TYPE, &search, (x, w), scales, scratch, out);
    }
}

/// 16-bit codes for groups of 8, scales from a table.
#[allow(non_camel_case_types)]
pub struct IQ2_KT;

/// Factor on the row scale where it is stored as fitted. Matrix products multiply this type by 1.05
/// (`PRODUCT_FACTOR` of its decoder), which the squared error does not take into account.
const IQ2_KT_SCALE_BIAS: f32 = 1.0;

impl Encode for IQ2_KT {
    const TYPE: QuantType = QuantType::IQ2_KT;
    type Scratch = Scratch;

    #[inline(always)]
    fn encode_row<I: Isa>(
        isa: I,
        x: &[f32],
        w: &[f32],
        scales: Scales,
        scratch: &mut Scratch,
        out: &mut [u8],
    ) {
        let search = RowSearch {
            sets: points_of_16_bits(),
            point,
            values: &table_values(),
            levels: Table4::new(isa, &IQ4K_VALUES[0]),
            scale_bias: IQ2_KT_SCALE_BIAS,
            effort: Effort {
                sizes: &[0.7, 1.05],
                beside: &[-1, 1],
                n_careful: 3,
                wide: &[],
                quick: 0.0,
                careful: 0.2,
            },
        };
        encode_row::<I, _, 4, false>(isa, Self::TYPE, &search, (x, w), scales, scratch, out);
    }
}

/// 16-bit codes for the magnitudes of groups of 8, scales 0..=15.
#[allow(non_camel_case_types)]
pub struct IQ3_KT;

/// Factor on the row scale where it is stored as fitted. Matrix products multiply this type by 1.01, which the
/// squared error does not take into account.
const IQ3_KT_SCALE_BIAS: f32 = 1.0;

impl Encode for IQ3_KT {
    const TYPE: QuantType = QuantType::IQ3_KT;
    type Scratch = Scratch;

    #[inline(always)]
    fn encode_row<I: Isa>(
        isa: I,
        x: &[f32],
        w: &[f32],
        scales: Scales,
        scratch: &mut Scratch,
        out: &mut [u8],
    ) {
        let values: [f32; 16] = std::array::from_fn(|s| s as f32);
        let search = RowSearch {
            sets: magnitudes_of_16_bits(),
            point: magnitudes,
            values: &values,
            levels: Integers { lo: 0.0, hi: 15.0 },
            scale_bias: IQ3_KT_SCALE_BIAS,
            effort: Effort {
                sizes: &[0.85, 1.1],
                beside: &[-3, -2, -1, 1, 2, 3],
                n_careful: 6,
                wide: &[0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.4],
                quick: 0.0,
                careful: 0.2,
            },
        };
        encode_row::<I, _, 4, true>(isa, Self::TYPE, &search, (x, w), scales, scratch, out);
    }
}

/// 15-bit codes for groups of 4 from one of two sets, scales -64..=63.
#[allow(non_camel_case_types)]
pub struct IQ4_KT;

/// Multiples of the scale that sub-blocks with much of the error try ([`Effort::wide`]).
const IQ4_KT_WIDE: [f32; 22] = [
    0.6, 0.63, 0.66, 0.7, 0.73, 0.77, 0.81, 0.85, 0.89, 0.94, 0.98, 1.03, 1.08, 1.14, 1.2, 1.26, 1.32, 1.39,
    1.46, 1.53, 1.6, 1.68,
];

/// Factor on the row scale where it is stored as fitted; 1 gives the least squared error.
const IQ4_KT_SCALE_BIAS: f32 = 1.0;

impl Encode for IQ4_KT {
    const TYPE: QuantType = QuantType::IQ4_KT;
    type Scratch = Scratch;

    #[inline(always)]
    fn encode_row<I: Isa>(
        isa: I,
        x: &[f32],
        w: &[f32],
        scales: Scales,
        scratch: &mut Scratch,
        out: &mut [u8],
    ) {
        let values: [f32; 128] = std::array::from_fn(|s| s as f32 - 64.0);
        let search = RowSearch {
            sets: two_sets_of_points(),
            point: point_of_two,
            values: &values,
            levels: Integers { lo: -64.0, hi: 63.0 },
            scale_bias: IQ4_KT_SCALE_BIAS,
            effort: Effort {
                sizes: &[0.9, 1.1, 1.4],
                beside: &[-9, -6, -3, 3, 6, 9],
                n_careful: 28,
                wide: &IQ4_KT_WIDE,
                quick: 0.0,
                careful: 0.3,
            },
        };
        encode_row::<I, _, 2, false>(isa, Self::TYPE, &search, (x, w), scales, scratch, out);
    }
}
