//! Blocks of 32 elements with one scale.
//!
//! | type | fields (count x bits) | value |
//! |---|---|---|
//! | Q4_0 | d 1x16, q 32x4 | `(q - 8) * d` |
//! | Q4_1 | d 1x16, m 1x16, q 32x4 | `q * d + m` |
//! | Q5_0 | d 1x16, q 32x5 | `(q - 16) * d` |
//! | Q5_1 | d 1x16, m 1x16, q 32x5 | `q * d + m` |
//! | Q6_0 | d 1x16, q 32x6 | `(q - 32) * d` |
//! | Q8_0 | d 1x16, q 32x8 signed | `q * d` |
//! | Q8_KV | q 32x8 signed; header f32 d, i32 sum of the row's codes | `q * d` |

use super::places::{bit_octets, nibbles_16};
use crate::layout::{Layout, bits, byte, le};
use crate::types::QuantType::{self, *};

pub fn build(ty: QuantType) -> Option<Layout> {
    Some(match ty {
        Q4_0 => Layout::block(32, 18)
            .field("d", 1, 16, |_| le(0, 2))
            .field("q", 32, 4, |i| [nibbles_16(2, i)])
            .build(),
        Q4_1 => Layout::block(32, 20)
            .field("d", 1, 16, |_| le(0, 2))
            .field("m", 1, 16, |_| le(2, 2))
            .field("q", 32, 4, |i| [nibbles_16(4, i)])
            .build(),
        Q5_0 => Layout::block(32, 22)
            .field("d", 1, 16, |_| le(0, 2))
            .field("q", 32, 5, |i| [nibbles_16(6, i), bit_octets(2, i).at(4)])
            .build(),
        Q5_1 => Layout::block(32, 24)
            .field("d", 1, 16, |_| le(0, 2))
            .field("m", 1, 16, |_| le(2, 2))
            .field("q", 32, 5, |i| [nibbles_16(8, i), bit_octets(4, i).at(4)])
            .build(),
        Q6_0 => Layout::block(32, 26)
            .field("d", 1, 16, |_| le(0, 2))
            .field("q", 32, 6, |i| {
                let (j, h) = (i % 16, i / 16);
                [nibbles_16(10, i), bits(2 + j % 8, 4 * (j / 8) + 2 * h, 2).at(4)]
            })
            .build(),
        Q8_0 => Layout::block(32, 34)
            .field("d", 1, 16, |_| le(0, 2))
            .field("q", 32, 8, |i| [byte(2 + i)])
            .signed()
            .build(),
        Q8_KV => Layout::block(32, 32).field("q", 32, 8, |i| [byte(i)]).signed().build(),
        _ => return None,
    })
}
