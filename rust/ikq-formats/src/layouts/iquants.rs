//! i-quants: codebook indices with signs, and the non-linear 4-bit types.
//!
//! | type | fields (count x bits) | value of an element |
//! |---|---|---|
//! | IQ2_XXS | d 1x16, scales 8x4, grid 32x8, signs 32x7 | `d * (0.5 + scales) * 0.25 * IQ2XXS_GRID * sign` |
//! | IQ2_XS | d 1x16, scales 16x4, grid 32x9, signs 32x7 | the same with `IQ2XS_GRID` |
//! | IQ2_S | d 1x16, scales 16x4, grid 32x10, signs 32x8 | the same with `IQ2S_GRID` |
//! | IQ3_XXS | d 1x16, scales 8x4, grid 64x8, signs 32x7 | `d * (0.5 + scales) * 0.5 * IQ3XXS_GRID * sign` |
//! | IQ3_S | d 1x16, scales 8x4, grid 64x9, signs 32x8 | `d * (1 + 2 * scales) * IQ3S_GRID * sign` |
//! | IQ1_S | d 1x16, scales 8x3, shift 8x1, grid 32x11 | `d * (2 * scales + 1) * (IQ1S_GRID + delta)` |
//! | IQ1_M | d 1x16, scales 16x3, shift 32x1, grid 32x11 | the same |
//! | IQ4_NL (32 elements) | d 1x16, q 32x4 | `d * IQ4NL_VALUES[q]` |
//! | IQ4_XS | d 1x16, scales 8x6, q 256x4 | `d * (scales - 32) * IQ4NL_VALUES[q]` |
//!
//! `signs` of 7 bits are codes into `KSIGNS`, those of 8 bits are the sign bits; both serve 8
//! elements. A set `shift` makes delta negative.

use super::places::{nibble_pairs, nibbles_16};
use crate::layout::{Layout, bit, bits, byte, le, nib, word_bits};
use crate::types::QuantType::{self, *};

pub fn build(ty: QuantType) -> Option<Layout> {
    Some(match ty {
        IQ2_XXS => Layout::block(256, 66)
            .field("d", 1, 16, |_| le(0, 2))
            .field("scales", 8, 4, |b| [nib(2 + 8 * b + 7, 1)])
            .field("grid", 32, 8, |g| [byte(2 + 8 * (g / 4) + g % 4)])
            .field("signs", 32, 7, |g| word_bits(2 + 8 * (g / 4) + 4, 7 * (g % 4), 7))
            .build(),
        IQ2_XS => Layout::block(256, 74)
            .field("d", 1, 16, |_| le(0, 2))
            .field("scales", 16, 4, |k| [nibble_pairs(66, k)])
            .field("grid", 32, 9, |g| word_bits(2 + 2 * g, 0, 9))
            .field("signs", 32, 7, |g| word_bits(2 + 2 * g, 9, 7))
            .build(),
        IQ2_S => Layout::block(256, 82)
            .field("d", 1, 16, |_| le(0, 2))
            .field("scales", 16, 4, |k| [nibble_pairs(74, k)])
            .field("grid", 32, 10, |g| [byte(2 + g), bits(66 + g / 4, 2 * (g % 4), 2).at(8)])
            .field("signs", 32, 8, |g| [byte(34 + g)])
            .build(),
        IQ3_XXS => Layout::block(256, 98)
            .field("d", 1, 16, |_| le(0, 2))
            .field("scales", 8, 4, |b| [nib(66 + 4 * b + 3, 1)])
            .field("grid", 64, 8, |g| [byte(2 + g)])
            .field("signs", 32, 7, |g| word_bits(66 + 4 * (g / 4), 7 * (g % 4), 7))
            .build(),
        IQ3_S => Layout::block(256, 110)
            .field("d", 1, 16, |_| le(0, 2))
            .field("scales", 8, 4, |b| [nibble_pairs(106, b)])
            .field("grid", 64, 9, |g| [byte(2 + g), bit(66 + g / 8, g % 8).at(8)])
            .field("signs", 32, 8, |g| [byte(74 + g)])
            .build(),
        IQ1_S => Layout::block(256, 50)
            .field("d", 1, 16, |_| le(0, 2))
            .field("scales", 8, 3, |b| word_bits(34 + 2 * b, 12, 3))
            .field("shift", 8, 1, |b| word_bits(34 + 2 * b, 15, 1))
            .field("grid", 32, 11, |g| {
                let high = word_bits(34 + 2 * (g / 4), 3 * (g % 4), 3);
                std::iter::once(byte(2 + g)).chain(high.into_iter().map(|p| p.at(8 + p.lo as usize)))
            })
            .build(),
        // no d field: the f16's nibbles are on top of the four words that hold the scales
        IQ1_M => Layout::block(256, 56)
            .field("d", 1, 16, |_| (0..4).map(|n| nib(48 + 2 * n + 1, 1).at(4 * n)))
            .field("scales", 16, 3, |k| word_bits(48 + 2 * (k / 4), 3 * (k % 4), 3))
            .field("shift", 32, 1, |g| [bit(32 + g / 2, 4 * (g % 2) + 3)])
            .field("grid", 32, 11, |g| [byte(g), bits(32 + g / 2, 4 * (g % 2), 3).at(8)])
            .build(),
        IQ4_NL => Layout::block(32, 18)
            .field("d", 1, 16, |_| le(0, 2))
            .field("q", 32, 4, |i| [nibbles_16(2, i)])
            .build(),
        IQ4_XS => Layout::block(256, 136)
            .field("d", 1, 16, |_| le(0, 2))
            .field("scales", 8, 6, |b| [nibble_pairs(4, b), bits(2 + b / 4, 2 * (b % 4), 2).at(4)])
            .field("q", 256, 4, |i| [nibbles_16(8, i)])
            .build(),
        _ => return None,
    })
}
