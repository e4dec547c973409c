//! Trellis (KT) quants: blocks of 256 elements, sub-blocks of 32, row header f32 d. `q` are the codes
//! of groups of 8 elements (IQ4_KT: 4) that seed the generator of `codebook`.
//!
//! | type | fields (count x bits) | scale of a sub-block |
//! |---|---|---|
//! | IQ1_KT | scales 8x4, q 32x13 | `IQ4NL_VALUES[scales]` |
//! | IQ2_KT | scales 8x4, q 32x16 | `IQ4NL_VALUES[scales]` |
//! | IQ3_KT | scales 8x4, signs 256x1, q 32x16 | `scales`; values are absolute, negated where `signs` is set |
//! | IQ4_KT | shift 8x1, scales 8x7, q 64x15 | `scales - 64`; a set `shift` takes `KT_OFFSET_IQ4_ALT` |

use super::places::bits_32;
use crate::layout::{Layout, bit, byte, le, nib, word_bits};
use crate::types::QuantType::{self, *};

pub fn build(ty: QuantType) -> Option<Layout> {
    Some(match ty {
        IQ1_KT => Layout::block(256, 56)
            .field("scales", 8, 4, |b| [nib(b, 0)])
            .field("q", 32, 13, |g| {
                [byte(8 + g), nib(40 + g % 16, g / 16).at(8), bit(g / 4, 4 + g % 4).at(12)]
            })
            .build(),
        IQ2_KT => Layout::block(256, 68)
            .field("scales", 8, 4, |b| [nib(b % 4, b / 4)])
            .field("q", 32, 16, |g| le(4 + 2 * g, 2))
            .build(),
        IQ3_KT => Layout::block(256, 100)
            .field("scales", 8, 4, |b| [nib(b % 4, b / 4)])
            .field("signs", 256, 1, |i| [bits_32(68, i)])
            .field("q", 32, 16, |g| le(4 + 2 * g, 2))
            .build(),
        IQ4_KT => Layout::block(256, 128)
            .field("shift", 8, 1, |b| [bit(4 * b, 0)])
            .field("scales", 8, 7, |b| word_bits(4 * b, 1, 7))
            .field("q", 64, 15, |g| {
                let top = word_bits(4 * (g / 8), 8 + 3 * (g % 8), 3);
                [byte(32 + g), nib(96 + g % 32, g / 32).at(8)]
                    .into_iter()
                    .chain(top.into_iter().map(|p| p.at(12 + p.lo as usize)))
            })
            .build(),
        _ => return None,
    })
}
