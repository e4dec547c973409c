//! 4-bit float types; codes are E2M1.
//!
//! | type | elements | fields (count x bits) | value |
//! |---|---|---|---|
//! | MXFP4 | 32 | e 1x8, q 32x4 | `2^(e - 128) * FP4_E2M1_X2[q]` |
//! | NVFP4 | 64 | d 4x8 (UE4M3, one per 16 elements), q 64x4 | `ue4m3_half(d) * FP4_E2M1_X2[q]` |

use super::places::nibbles_16;
use crate::layout::{Layout, byte, nib};
use crate::types::QuantType::{self, *};

pub fn build(ty: QuantType) -> Option<Layout> {
    Some(match ty {
        MXFP4 => Layout::block(32, 17)
            .field("e", 1, 8, |_| [byte(0)])
            .field("q", 32, 4, |i| [nibbles_16(1, i)])
            .build(),
        NVFP4 => Layout::block(64, 36)
            .field("d", 4, 8, |b| [byte(b)])
            .field("q", 64, 4, |i| [nib(4 + 8 * (i / 16) + i % 8, i / 8 % 2)])
            .build(),
        _ => return None,
    })
}
