//! k-quants: blocks of 256 elements, f16 scales.
//!
//! | type | fields (count x bits) | value |
//! |---|---|---|
//! | Q2_K | d 1x16, dmin 1x16, sc 16x4, m 16x4, q 256x2 | `d * sc * q - dmin * m` |
//! | Q3_K | d 1x16, scales 16x6, q 256x3 | `d * (scales - 32) * (q - 4)` |
//! | Q4_K | d 1x16, dmin 1x16, sc 8x6, m 8x6, q 256x4 | `d * sc * q - dmin * m` |
//! | Q5_K | d 1x16, dmin 1x16, sc 8x6, m 8x6, q 256x5 | the same |
//! | Q6_K | d 1x16, scales 16x8 signed, q 256x6 | `d * scales * (q - 32)` |

use super::places::{bits_32, crumbs_32, nibbles_32};
use crate::layout::{Builder, Layout, Part, bits, byte, le, nib};
use crate::types::QuantType::{self, *};

pub fn build(ty: QuantType) -> Option<Layout> {
    Some(match ty {
        Q2_K => Layout::block(256, 84)
            .field("d", 1, 16, |_| le(80, 2))
            .field("dmin", 1, 16, |_| le(82, 2))
            .field("sc", 16, 4, |k| [nib(k, 0)])
            .field("m", 16, 4, |k| [nib(k, 1)])
            .field("q", 256, 2, |i| [crumbs_32(16, i)])
            .build(),
        Q3_K => Layout::block(256, 110)
            .field("d", 1, 16, |_| le(108, 2))
            .field("scales", 16, 6, |k| [nib(96 + k % 8, k / 8), bits(104 + k % 4, 2 * (k / 4), 2).at(4)])
            .field("q", 256, 3, |i| [crumbs_32(32, i), bits_32(0, i).at(2)])
            .build(),
        Q4_K => affine_head(Layout::block(256, 144)).field("q", 256, 4, |i| [nibbles_32(16, i)]).build(),
        Q5_K => affine_head(Layout::block(256, 176))
            .field("q", 256, 5, |i| [nibbles_32(48, i), bits_32(16, i).at(4)])
            .build(),
        Q6_K => Layout::block(256, 210)
            .field("d", 1, 16, |_| le(208, 2))
            .field("scales", 16, 8, |k| [byte(192 + k)])
            .signed()
            .field("q", 256, 6, |i| {
                let (n, l, j) = (i / 128, i % 32, i / 32 % 4);
                [nib(64 * n + l + 32 * (j % 2), j / 2), bits(128 + 32 * n + l, 2 * j, 2).at(4)]
            })
            .build(),
        _ => return None,
    })
}

/// d, dmin and the twelve bytes that hold eight 6-bit scales and minima of Q4_K and Q5_K. The first
/// four sub-blocks have theirs in the low six bits of bytes 0..4 and 4..8; the others have the low
/// nibbles in bytes 8..12 and the high bits on top of the first eight bytes.
fn affine_head(block: Builder) -> Builder {
    const S: usize = 4;
    let six_bits = |j: usize, which: usize| -> Vec<Part> {
        match j {
            0..4 => vec![bits(S + 4 * which + j, 0, 6)],
            _ => vec![nib(S + 4 + j, which), bits(S + 4 * which + j - 4, 6, 2).at(4)],
        }
    };
    block
        .field("d", 1, 16, |_| le(0, 2))
        .field("dmin", 1, 16, |_| le(2, 2))
        .field("sc", 8, 6, |j| six_bits(j, 0))
        .field("m", 8, 6, |j| six_bits(j, 1))
}
