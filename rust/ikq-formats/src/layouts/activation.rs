//! 8-bit activation types: the other operand of a product.
//!
//! | type | elements | fields (count x bits) |
//! |---|---|---|
//! | Q8_1 | 32 | d 1x16, s 1x16 (f16: d times the sum of codes), q 32x8 signed |
//! | Q8_0_X4 | 128 | d 4x16, q 128x8 signed |
//! | Q8_1_X4 | 128 | d 4x16, s 4x16 (f16), q 128x8 signed |
//! | Q8_2_X4 | 128 | d 4x16 (bf16), s 4x16 signed (sum of codes), q 128x8 signed |
//! | Q8_K, Q8_KR8 | 256 | d 1x32, sum 1x32 (f32: d times the total), bsums 16x16 signed, q 256x8 signed |
//! | Q8_K32 | 256 | d 1x32, sum 1x32, sums 8x32 (f32: d times the sum of 32 codes), q 256x8 signed |
//! | Q8_K128 | 128 | d 1x32, s 4x16 signed (sums of 32 codes), q 128x8 signed |
//!
//! Q8_K16 and Q8_K64 have one unit per row and no layout. Q8_K is the form of ik_llama.cpp, 296 bytes;
//! llama.cpp's has no `sum`.

use crate::layout::{Layout, byte, le};
use crate::types::QuantType::{self, *};

pub fn build(ty: QuantType) -> Option<Layout> {
    Some(match ty {
        Q8_1 => Layout::block(32, 36)
            .field("d", 1, 16, |_| le(0, 2))
            .field("s", 1, 16, |_| le(2, 2))
            .field("q", 32, 8, |i| [byte(4 + i)])
            .signed()
            .build(),
        Q8_0_X4 => Layout::block(128, 136)
            .field("d", 4, 16, |b| le(2 * b, 2))
            .field("q", 128, 8, |i| [byte(8 + i)])
            .signed()
            .build(),
        Q8_1_X4 => Layout::block(128, 144)
            .field("d", 4, 16, |b| le(2 * b, 2))
            .field("s", 4, 16, |b| le(8 + 2 * b, 2))
            .field("q", 128, 8, |i| [byte(16 + i)])
            .signed()
            .build(),
        Q8_2_X4 => Layout::block(128, 144)
            .field("d", 4, 16, |b| le(2 * b, 2))
            .field("s", 4, 16, |b| le(8 + 2 * b, 2))
            .signed()
            .field("q", 128, 8, |i| [byte(16 + i)])
            .signed()
            .build(),
        Q8_K | Q8_KR8 => Layout::block(256, 296)
            .field("d", 1, 32, |_| le(0, 4))
            .field("sum", 1, 32, |_| le(4, 4))
            .field("bsums", 16, 16, |k| le(264 + 2 * k, 2))
            .signed()
            .field("q", 256, 8, |i| [byte(8 + i)])
            .signed()
            .build(),
        Q8_K32 => Layout::block(256, 296)
            .field("d", 1, 32, |_| le(0, 4))
            .field("sum", 1, 32, |_| le(4, 4))
            .field("sums", 8, 32, |b| le(264 + 4 * b, 4))
            .field("q", 256, 8, |i| [byte(8 + i)])
            .signed()
            .build(),
        Q8_K128 => Layout::block(128, 140)
            .field("d", 1, 32, |_| le(0, 4))
            .field("s", 4, 16, |b| le(4 + 2 * b, 2))
            .signed()
            .field("q", 128, 8, |i| [byte(12 + i)])
            .signed()
            .build(),
        _ => return None,
    })
}
