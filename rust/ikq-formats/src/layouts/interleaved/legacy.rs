//! Groups of the 32-element types and of BF16. Offset codes of the `Q4_0_4_*` types are stored in
//! two's complement (`0x8` inverted).

use super::{a_place, f16_at, group, pattern_a};
use crate::layout::{Builder, Layout, Part, bit, bits, byte, le, nib};
use crate::layouts::layout;
use crate::types::QuantType::{self, *};

pub fn build(ty: QuantType) -> Option<Layout> {
    let d = |k, _| f16_at(0, k);
    Some(match ty {
        Q4_0_R8 => group(ty)?.place("d", d).place("q", |k, e| [nibbles_r8(16, k, e)]).build(),
        MXFP4_R8 => group(ty)?.place("e", |k, _| [byte(k)]).place("q", |k, e| [nibbles_r8(8, k, e)]).build(),
        Q8_0_R8 => {
            group(ty)?.place("d", d).place("q", |k, e| [byte(16 + 32 * (e / 4) + 4 * k + e % 4)]).build()
        }
        IQ4_NL_R4 => group(ty)?.place("d", d).place("q", |k, e| [pattern_a(8, k, e)]).build(),
        Q5_0_R4 => group(ty)?
            .place("d", d)
            .place("q", |k, e| {
                let (l, n) = a_place(e);
                [pattern_a(24, k, e), bit(8 + 4 * k + e % 4, l + 4 * n).at(4)]
            })
            .build(),
        Q6_0_R4 => group(ty)?
            .place("d", d)
            .place("q", |k, e| {
                let (l, n) = a_place(e);
                let high = bits(8 + 16 * (l % 2) + 4 * k + e % 4, 2 * (l / 2) + 4 * n, 2);
                [pattern_a(40, k, e), high.at(4)]
            })
            .build(),
        Q4_0_4_4 => chunked(ty, 4)?,
        Q4_0_4_8 => chunked(ty, 8)?,
        Q4_0_8_8 => chunked(ty, 8)?,
        BF16_R16 => Builder::group_of_elements(layout(BF16).ok()?, 16, 2)
            .place("x", |k, i| le(4 * k + 2 * i, 2))
            .build(),
        _ => return None,
    })
}

fn nibbles_r8(at: usize, k: usize, e: usize) -> Part {
    nib(at + 32 * (e % 16 / 4) + 4 * k + e % 4, e / 16)
}

/// The code bytes of Q4_0 blocks, dealt out in chunks of `c` bytes.
fn chunked(ty: QuantType, c: usize) -> Option<Layout> {
    let rows = ty.info().rows;
    let q = |k: usize, i: usize| {
        let j = i % 16;
        [nib(2 * rows + j / c * c * rows + c * k + j % c, i / 16).flipped(8)]
    };
    Some(group(ty)?.place("d", |k, _| f16_at(0, k)).place("q", q).build())
}
