//! Groups of k-quants, four rows each.

use super::{f16_at, group, pattern_a, pattern_b, pattern_s};
use crate::layout::{Builder, Layout, Part, bit, bits, byte, nib};
use crate::types::QuantType::{self, *};

pub fn build(ty: QuantType) -> Option<Layout> {
    let d = |k, _| f16_at(0, k);
    let dmin = |k, _| f16_at(8, k);
    Some(match ty {
        Q2_K_R4 => group(ty)?
            .place("d", d)
            .place("dmin", dmin)
            .place("sc", |k, s| [nib(16 + 4 * s + k, 0)])
            .place("m", |k, s| [nib(16 + 4 * s + k, 1)])
            .place("q", |k, i| [pattern_b(80 + 32 * (i / 32), k, i % 32)])
            .build(),
        Q3_K_R4 => group(ty)?
            .place("d", d)
            .place("scales", |k, s| pattern_s(24, 8, 4 * s + k))
            .place("q", |k, i| {
                let (b, e) = (i / 32, i % 32);
                [pattern_b(184 + 32 * b, k, e), bit(56 + 16 * b + 4 * k + e % 4, e / 4).at(2)]
            })
            .build(),
        Q4_K_R4 => affine(group(ty)?.place("d", d).place("dmin", dmin))
            .place("q", |k, i| [pattern_a(64 + 64 * (i / 32), k, i % 32)])
            .build(),
        Q5_K_R4 => affine(group(ty)?.place("d", d).place("dmin", dmin))
            .place("q", |k, i| {
                let (b, e, t) = (i / 32, i % 32, i % 32 / 4);
                let high = bit(64 + 16 * b + 4 * k + e % 4, 4 * (t / 4) + 2 * (t % 2) + t / 2 % 2);
                [pattern_a(192 + 64 * b, k, e), high.at(4)]
            })
            .build(),
        Q6_K_R4 => group(ty)?
            .place("d", d)
            .place("scales", |k, s| [byte(8 + 4 * s + k)])
            .place("q", |k, i| {
                let (b, e, u) = (i / 32, i % 32, i % 16 / 4);
                let high = bits(72 + 32 * b + 16 * (e / 16) + 4 * k + e % 4, 4 * (u % 2) + 2 * (u / 2), 2);
                [pattern_a(328 + 64 * b, k, e), high.at(4)]
            })
            .build(),
        _ => return None,
    })
}

/// The six-bit scales and minima of Q4_K_R4 and Q5_K_R4: low nibbles of both in a byte, the two high
/// bits of both in a nibble.
fn affine(group: Builder) -> Builder {
    let place = |which: usize| {
        move |k: usize, b: usize| -> [Part; 2] {
            let z = 4 * b + k;
            [nib(32 + z, which), bits(16 + z % 16, 4 * (z / 16) + 2 * which, 2).at(4)]
        }
    };
    group.place("sc", place(0)).place("m", place(1))
}
