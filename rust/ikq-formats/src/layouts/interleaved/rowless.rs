//! Interleaved types whose rows are no plain type. What one row is when taken out of its group is
//! ikq's own choice: the same fields in a block as small, written below in the way of the plain types.
//!
//! | type | elements | row header | fields (count x bits) | bytes of the row's block | value |
//! |---|---|---|---|---|---|
//! | IQ1_S_R4 | 32 | f16 d | scales 1x3, shift 1x1, grid 4x11 | 6: low index bytes [4], u16 as in IQ1_S | `d * (2 * scales + 1) * (grid + delta)` |
//! | IQ1_M_R4 | 32 | f16 d | scales 2x4, shift 4x1, grid 4x11 | 7: low index bytes [4], nibbles [2] as in IQ1_M, scale nibbles | `d * scales * (grid + delta)` |
//! | Q8_K_R8, Q8_K_R16 | 256 | none | d 1x16, q 256x8 signed | 258: f16 d, i8 [256] | `d * q` |
//! | Q8_KV_R8 | 32 | f32 d | q 32x8 signed | 32: i8 [32] | `d * q` |
//!
//! Q8_K_R16 stores `q + 128`.

use std::sync::LazyLock;

use super::f16_at;
use crate::layout::{Builder, Layout, Part, bit, bits, byte, le, nib, word_bits};
use crate::types::QuantType::{self, *};

static IQ1_S_ROW: LazyLock<Layout> = LazyLock::new(|| {
    Layout::block(32, 6)
        .field("scales", 1, 3, |_| word_bits(4, 12, 3))
        .field("shift", 1, 1, |_| word_bits(4, 15, 1))
        .field("grid", 4, 11, |g| index_11(g, word_bits(4, 3 * g, 3)))
        .build()
});

static IQ1_M_ROW: LazyLock<Layout> = LazyLock::new(|| {
    Layout::block(32, 7)
        .field("scales", 2, 4, |h| [nib(6, h)])
        .field("shift", 4, 1, |g| [bit(4 + g / 2, 4 * (g % 2) + 3)])
        .field("grid", 4, 11, |g| [byte(g), bits(4 + g / 2, 4 * (g % 2), 3).at(8)])
        .build()
});

static Q8_K_ROW: LazyLock<Layout> = LazyLock::new(|| {
    Layout::block(256, 258)
        .field("d", 1, 16, |_| le(0, 2))
        .field("q", 256, 8, |i| [byte(2 + i)])
        .signed()
        .build()
});

static Q8_KV_ROW: LazyLock<Layout> =
    LazyLock::new(|| Layout::block(32, 32).field("q", 32, 8, |i| [byte(i)]).signed().build());

/// Layout of a row's block outside its group, for the types of this file.
pub(crate) fn row_layout(ty: QuantType) -> Option<&'static Layout> {
    match ty {
        IQ1_S_R4 => Some(&IQ1_S_ROW),
        IQ1_M_R4 => Some(&IQ1_M_ROW),
        Q8_K_R8 | Q8_K_R16 => Some(&Q8_K_ROW),
        Q8_KV_R8 => Some(&Q8_KV_ROW),
        _ => None,
    }
}

pub fn build(ty: QuantType) -> Option<Layout> {
    let group = Builder::group(row_layout(ty)?, ty.info().rows);
    Some(match ty {
        IQ1_S_R4 => group
            .place("scales", |k, _| word_bits(16 + 2 * k, 12, 3))
            .place("shift", |k, _| word_bits(16 + 2 * k, 15, 1))
            .place("grid", |k, g| index_11(4 * g + k, word_bits(16 + 2 * k, 3 * g, 3)))
            .build(),
        IQ1_M_R4 => {
            let high = |k: usize, g: usize| 16 + 4 * (g / 2) + k;
            group
                .place("scales", |k, h| [nib(24 + k, h)])
                .place("shift", |k, g| [bit(high(k, g), 4 * (g % 2) + 3)])
                .place("grid", |k, g| [byte(4 * g + k), bits(high(k, g), 4 * (g % 2), 3).at(8)])
                .build()
        }
        Q8_K_R8 => group
            .place("d", |k, _| f16_at(0, k))
            .place("q", |k, i| [byte(16 + 32 * (i / 4) + 4 * k + i % 4)])
            .build(),
        Q8_K_R16 => group
            .place("d", |k, _| f16_at(0, k))
            .place("q", |k, i| [byte(32 + 64 * (i / 4) + 4 * k + i % 4).flipped(0x80)])
            .build(),
        Q8_KV_R8 => group.place("q", |k, i| [byte(32 * (i / 4) + 4 * k + i % 4)]).build(),
        _ => return None,
    })
}

/// An 11-bit index: its low byte at `low`, three more bits where `high` says.
fn index_11(low: usize, high: Vec<Part>) -> Vec<Part> {
    let high = high.into_iter().map(|p| p.at(8 + p.lo as usize));
    std::iter::once(byte(low)).chain(high).collect()
}
