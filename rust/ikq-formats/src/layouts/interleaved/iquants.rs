//! Groups of i-quants. IQ2_XXS_R4, IQ2_XS_R4 and IQ3_XXS_R4 store `SIGN_SCRAMBLE` of the sign codes;
//! IQ3_S_R4 transposes the sign bits.

use super::{f16_at, group, pattern_s};
use crate::codebook::{SIGN_SCRAMBLE, SIGN_UNSCRAMBLE};
use crate::layout::{Builder, Layout, Recode, bit, bits, byte, nib, word_bits};
use crate::types::QuantType::{self, *};

const SCRAMBLED: Recode = Recode {
    to_stored: |code| u32::from(SIGN_SCRAMBLE[code as usize & 127]),
    from_stored: |code| u32::from(SIGN_UNSCRAMBLE[code as usize & 127]),
};

pub fn build(ty: QuantType) -> Option<Layout> {
    let d = |k, _| f16_at(0, k);
    Some(match ty {
        IQ4_XS_R8 => group(ty)?
            .place("d", d)
            .place("scales", |k, b| pattern_s(32, 16, 8 * b + k))
            .place("q", |k, i| {
                let (b, e) = (i / 32, i % 32);
                [nib(64 + 128 * b + 32 * (e / 8) + 4 * k + e % 4, e / 4 % 2)]
            })
            .build(),
        IQ2_XXS_R4 => signs_and_scales(group(ty)?.place("d", d))
            .place("grid", |k, g| [byte(136 + 16 * (g / 4) + 4 * k + g % 4)])
            .build(),
        IQ3_XXS_R4 => signs_and_scales(group(ty)?.place("d", d))
            .place("grid", |k, g| [byte(136 + 32 * (g / 8) + 8 * k + g % 8)])
            .build(),
        IQ2_XS_R4 => {
            let v = |k: usize, g: usize| 8 + 2 * (16 * (g / 4) + 4 * k + g % 4);
            group(ty)?
                .place("d", d)
                .place("scales", |k, s| [nib(264 + 4 * (s / 2) + k, s % 2)])
                .place("grid", |k, g| word_bits(v(k, g), 0, 9))
                .place("signs", |k, g| word_bits(v(k, g), 9, 7))
                .recode("signs", SCRAMBLED)
                .build()
        }
        IQ2_S_R4 => group(ty)?
            .place("d", d)
            .place("scales", |k, s| [nib(296 + 4 * (s / 2) + k, s % 2)])
            .place("grid", |k, g| {
                let (b, l) = (g / 4, g % 4);
                [byte(8 + 16 * b + 4 * k + l), bits(136 + 4 * b + k, 2 * l, 2).at(8)]
            })
            .place("signs", |k, g| [byte(168 + 16 * (g / 4) + 4 * k + g % 4)])
            .build(),
        IQ3_S_R4 => group(ty)?
            .place("d", d)
            .place("scales", |k, b| {
                let z = 4 * b + k;
                [nib(424 + z % 16, z / 16)]
            })
            .place("grid", |k, number| {
                let (b, g) = (number / 8, number % 8);
                [byte(8 + 32 * b + 8 * (g % 4) + 4 * (g / 4) + k), bit(264 + 4 * b + k, g).at(8)]
            })
            .place("signs", |k, number| {
                let (b, l) = (number / 4, number % 4);
                (0..8).map(move |j| bit(296 + 16 * b + 4 * k + j % 4, 2 * l + j / 4).at(j))
            })
            .build(),
        _ => return None,
    })
}

/// A byte per 8 elements: sign code in the upper seven bits, and in bit 0 of the four bytes of a
/// sub-block the bits of its scale.
fn signs_and_scales(group: Builder) -> Builder {
    let byte = |k: usize, b: usize, l: usize| 8 + 16 * b + 4 * k + l;
    group
        .place("scales", |k, b| (0..4).map(move |l| bit(byte(k, b, l), 0).at(l)))
        .place("signs", |k, g| [bits(byte(k, g / 4, g % 4), 1, 7)])
        .recode("signs", SCRAMBLED)
}
