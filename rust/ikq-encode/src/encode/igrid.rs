//! i-quants that store codebook entries: IQ1_S, IQ1_M, IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS, IQ3_S and the
//! interleaved IQ1_S_R4, IQ1_M_R4.
//!
//! Objective: `sum w (x - y)^2` with w of the column. Searched: d of the super-block (of the row in the
//! `_R4` types), the integer scales, entries, signs and shifts together; see
//! [`crate::search::grid_block`]. What is stored is the fitted d divided by the gain of the block (of the row); the
//! reference has a factor for each type instead (0.9875 to 1.125).

use std::sync::OnceLock;

use ikq_formats::codebook::*;
use ikq_formats::{QuantType, layout, row_form};
use ikq_simd::Isa;

use super::Encode;
use super::weights::normalizer;
use crate::search::gain::Scales;
use crate::search::grid::Grid;
use crate::search::grid_block::{
    CHUNK, Codes, FindParabolas, GridSearch, Joint, Numbers, Settle, Shifts, Signs, Sums,
};
use crate::search::grid_candidates::{Ladder, Parabolas};

/// Bytes of the row header, an f16.
const HEADER: usize = 2;

/// Elements of a block of the types with one scale per row.
const ROW_BLOCK: usize = 32;

/// The largest number of values in a block: d, scales, entries or shifts, signs.
const MOST_VALUES: usize = 1 + 16 + 64 + 32;

impl Codes {
    /// Writes scales, shifts, entries and signs of `n` elements from `start` on to `out`, in the order of the
    /// layouts. Returns how many values that are.
    #[inline(always)]
    fn values(&self, search: &GridSearch, start: usize, n: usize, out: &mut [u32]) -> usize {
        let mut at = 0;
        let mut push = |v: u32| {
            out[at] = v;
            at += 1;
        };
        for scale in &self.scales[start / search.sub_block..][..n / search.sub_block] {
            push(u32::from(*scale));
        }
        let eights = start / 8..(start + n) / 8;
        match search.shifts {
            Shifts::None => {}
            Shifts::SubBlock(_) => {
                let per_scale = search.sub_block / 8;
                self.shifts[eights.clone()].iter().step_by(per_scale).for_each(|v| push(u32::from(*v)));
            }
            Shifts::Group(_) => self.shifts[eights.clone()].iter().for_each(|v| push(u32::from(*v))),
        }
        let dims = search.grid.dims();
        for entry in &self.entries[start / dims..][..n / dims] {
            push(u32::from(*entry));
        }
        for signs in &self.signs[eights] {
            match search.signs {
                Signs::InLevels => {}
                Signs::Free => push(u32::from(*signs)),
                // the eighth sign follows from the others
                Signs::Even => push(u32::from(*signs & 0x7f)),
            }
        }
        at
    }
}

/// The elements of a chunk times `down`, and their weights. Behind a row's end both are 0.
#[inline(always)]
fn chunk(x: &[f32], w: &[f32], down: f32) -> ([f32; CHUNK], [f32; CHUNK]) {
    let mut out = ([0.0; CHUNK], [0.0; CHUNK]);
    for (out, x) in out.0.iter_mut().zip(x) {
        *out = x * down;
    }
    out.1[..w.len()].copy_from_slice(w);
    out
}

/// Encodes one row of super-blocks.
#[inline(always)]
fn encode_blocks<I: Isa>(
    isa: I,
    ty: QuantType,
    search: &GridSearch,
    (x, w): (&[f32], &[f32]),
    scales: Scales,
    (): &mut (),
    out: &mut [u8],
) {
    let layout = layout(ty).expect("codebook types have layouts");
    let (down, up) = normalizer(x);
    let blocks = x.chunks_exact(CHUNK).zip(w.chunks_exact(CHUNK));
    for ((x, w), out) in blocks.zip(out.chunks_exact_mut(layout.bytes)) {
        let (x, w) = chunk(x, w, down);
        let mut values = [0; MOST_VALUES];
        let parabolas = isa.apart(FindParabolas(search, &x, &w));
        let d = isa.apart(Joint(search, std::slice::from_ref(&parabolas), up));
        let codes = isa.apart(Settle { search, x: &x, w: &w, n: CHUNK, parabolas: &parabolas, d });
        let d = search.refit(scales, &codes.sums, up);
        values[0] = u32::from(isa.f16_bits(isa.splat_f(d * up))[0]);
        let n = 1 + codes.values(search, 0, CHUNK, &mut values[1..]);
        layout.pack(&values[..n], out);
    }
}

/// Working memory of a row with one scale.
#[derive(Default)]
pub struct Scratch {
    parabolas: Vec<Parabolas>,
    codes: Vec<Codes>,
}

/// Encodes one row with one float scale, in the row form of an interleaved type.
#[inline(always)]
fn encode_one_scale<I: Isa>(
    isa: I,
    ty: QuantType,
    search: &GridSearch,
    (x, w): (&[f32], &[f32]),
    scales: Scales,
    scratch: &mut Scratch,
    out: &mut [u8],
) {
    let layout = row_form(ty).expect("rows of the type are interleaved").layout();
    let (down, up) = normalizer(x);
    let chunks = || x.chunks(CHUNK).zip(w.chunks(CHUNK));
    scratch.parabolas.clear();
    for (x, w) in chunks() {
        let (x, w) = chunk(x, w, down);
        scratch.parabolas.push(isa.apart(FindParabolas(search, &x, &w)));
    }
    let d = isa.apart(Joint(search, &scratch.parabolas, up));
    scratch.codes.clear();
    let mut sums = Sums::default();
    for ((x, w), parabolas) in chunks().zip(&scratch.parabolas) {
        let n = x.len();
        let (x, w) = chunk(x, w, down);
        let codes = isa.apart(Settle { search, x: &x, w: &w, n, parabolas, d });
        sums.add(&codes.sums);
        scratch.codes.push(codes);
    }
    let d = search.refit(scales, &sums, up);
    let (header, blocks) = out.split_at_mut(HEADER);
    header.copy_from_slice(&isa.f16_bits(isa.splat_f(d * up))[0].to_le_bytes());
    for (i, out) in blocks.chunks_exact_mut(layout.bytes).enumerate() {
        let mut values = [0; MOST_VALUES];
        let start = i * ROW_BLOCK;
        let n = scratch.codes[start / CHUNK].values(search, start % CHUNK, ROW_BLOCK, &mut values);
        layout.pack(&values[..n], out);
    }
}

/// Defines a function that gives a grid, which is made on first use.
macro_rules! grid {
    ($name:ident, $dims:literal, $levels:expr, $entries:expr) => {
        fn $name() -> &'static Grid {
            static GRID: OnceLock<Grid> = OnceLock::new();
            GRID.get_or_init(|| {
                Grid::new($dims, &$levels.map(|l| l as i8), $entries.iter().map(|e| *e as u64))
            })
        }
    };
}

grid!(iq1s, 8, IQ1S_LEVELS, IQ1S_GRID);
grid!(iq2xxs, 8, IQ2XXS_LEVELS, IQ2XXS_GRID);
grid!(iq2xs, 8, IQ2XS_LEVELS, IQ2XS_GRID);
grid!(iq2s, 8, IQ2S_LEVELS, IQ2S_GRID);
grid!(iq3xxs, 4, IQ3XXS_LEVELS, IQ3XXS_GRID);
grid!(iq3s, 4, IQ3S_LEVELS, IQ3S_GRID);

/// Integer scales that stand for `unit * (2 s + 1)`, s in `0..n`.
const fn odd(n: usize, unit: f32) -> Numbers {
    Numbers { n, first: 1.0, step: 2.0, unit }
}

/// Scales tried for entries of four: those that put the largest element on 5/6 of the highest level, up to 2.5
/// times it, because weights may make it better to clip that element. Estimates are poor where all elements are of
/// one size, so all that are in question are tried exactly.
const FOUR: Ladder = Ladder { first: 1.2, ratio: 0.93, close: f32::INFINITY };
/// Scales tried for entries of eight.
const EIGHT: Ladder = Ladder { first: 1.2, ratio: 0.93, close: 0.1 };
/// Scales tried for ternary entries, which fit bell-shaped data best where the largest element is far outside.
const TERNARY: Ladder = Ladder { first: 1.1, ratio: 0.9, close: 0.1 };

macro_rules! codebook_types {
    ($($(#[$doc:meta])* $ty:ident: $encode:ident($scratch:ty), $grid:ident, $sub:literal, $numbers:expr,
        $signs:expr, $shifts:expr, $ladder:expr, $bias:literal, $by_size:literal;)*) => { $(
        $(#[$doc])*
        #[allow(non_camel_case_types)]
        pub struct $ty;

        impl Encode for $ty {
            const TYPE: QuantType = QuantType::$ty;
            const BY_SIZE: bool = $by_size;
            type Scratch = $scratch;

            #[inline(always)]
            fn encode_row<I: Isa>(
                isa: I,
                x: &[f32],
                w: &[f32],
                scales: Scales,
                scratch: &mut $scratch,
                out: &mut [u8],
            ) {
                $encode(isa, Self::TYPE, &Self::search(), (x, w), scales, scratch, out);
            }
        }

        impl $ty {
            fn search() -> GridSearch<'static> {
                GridSearch {
                    grid: $grid(),
                    sub_block: $sub,
                    numbers: $numbers,
                    signs: $signs,
                    shifts: $shifts,
                    ladder: $ladder,
                    scale_bias: $bias,
                }
            }
        }
    )*
        /// The parameters of a codebook type's search; `None` for other types.
        pub fn grid_search(ty: QuantType) -> Option<GridSearch<'static>> {
            match ty {
                $(QuantType::$ty => Some($ty::search()),)*
                _ => None,
            }
        }
    };
}

// The last number is a factor on scales that are stored without undoing the gain. 1 gives the least squared error,
// which makes decoded values too small, the more the fewer bits there are; these factors give the least perplexity
// of a small trained model. The flag says whether large elements weigh more.
codebook_types! {
    /// Four magnitudes per entry, signs free.
    IQ3_S: encode_blocks(()), iq3s, 32, odd(16, 1.0), Signs::Free, Shifts::None, FOUR, 1.0, false;
    /// Four magnitudes per entry, seven bits for eight signs.
    IQ3_XXS: encode_blocks(()), iq3xxs, 32, odd(16, 0.25), Signs::Even, Shifts::None, FOUR, 1.0, false;
    /// Eight magnitudes per entry, seven bits for eight signs.
    IQ2_XXS: encode_blocks(()), iq2xxs, 32, odd(16, 0.125), Signs::Even, Shifts::None, EIGHT, 1.04, false;
    /// Eight magnitudes per entry, seven bits for eight signs, a scale for sixteen elements.
    IQ2_XS: encode_blocks(()), iq2xs, 16, odd(16, 0.125), Signs::Even, Shifts::None, EIGHT, 1.03, true;
    /// Eight magnitudes per entry, signs free, a scale for sixteen elements.
    IQ2_S: encode_blocks(()), iq2s, 16, odd(16, 0.125), Signs::Free, Shifts::None, EIGHT, 1.03, true;
    /// Eight ternary levels per entry, shifted together with the other entries of a scale.
    IQ1_S: encode_blocks(()), iq1s, 32, odd(8, 1.0), Signs::InLevels, Shifts::SubBlock(IQ1_DELTA), TERNARY,
        1.06, false;
    /// Eight ternary levels per entry, a shift for each, a scale for sixteen elements.
    IQ1_M: encode_blocks(()), iq1s, 16, odd(8, 1.0), Signs::InLevels, Shifts::Group(IQ1_DELTA), TERNARY, 1.08,
        false;
    /// IQ1_S with one d for a row.
    IQ1_S_R4: encode_one_scale(Scratch), iq1s, 32, odd(8, 1.0), Signs::InLevels, Shifts::SubBlock(IQ1_DELTA),
        TERNARY, 1.06, false;
    /// IQ1_M with one d for a row and scales from 0 to 15.
    IQ1_M_R4: encode_one_scale(Scratch), iq1s, 16, Numbers { n: 16, first: 0.0, step: 1.0, unit: 1.0 },
        Signs::InLevels, Shifts::Group(IQ1_DELTA), TERNARY, 1.06, false;
}
