//! Groups of IQK types and of IQ2_BN, four rows each.

use super::{a_place, f16_at, group, pattern_a, pattern_b, pattern_s};
use crate::layout::{Builder, Layout, Part, bit, bits, byte, nib};
use crate::types::QuantType::{self, *};

pub fn build(ty: QuantType) -> Option<Layout> {
    Some(match ty {
        IQ2_K_R4 => k_head(ty)?
            .place("scales", |k, s| {
                let z = 4 * s + k;
                [nib(16 + z % 32, z / 32)]
            })
            .place("q", |k, i| [pattern_b(48 + 32 * (i / 32), k, i % 32)])
            .build(),
        IQ3_K_R4 => k_head(ty)?
            .place("scales", |k, s| {
                let z = 4 * s + k;
                [nib(24 + z % 32, z / 32), bit(16 + z % 8, z / 8).at(4)]
            })
            .place("q", |k, i| {
                let (b, e) = (i / 32, i % 32);
                [pattern_b(56 + 32 * b, k, e), bit(312 + 16 * b + 4 * k + e % 4, e / 4).at(2)]
            })
            .build(),
        IQ4_K_R4 => k_head(ty)?
            .place("scales", |k, s| pattern_s(32, 16, 4 * s + k))
            .place("q", |k, i| [pattern_a(64 + 64 * (i / 32), k, i % 32)])
            .build(),
        IQ5_K_R4 => k_head(ty)?
            .place("scales", |k, s| pattern_s(32, 16, 4 * s + k))
            .place("q", |k, i| five_bits(64, 576, k, i))
            .build(),
        IQ4_KS_R4 => group(ty)?
            .place("scales", |k, b| [byte(4 * b + k)])
            .place("q", |k, i| [pattern_a(32 + 64 * (i / 32), k, i % 32)])
            .build(),
        IQ5_KS_R4 => group(ty)?
            .place("scales", |k, b| [byte(4 * b + k)])
            .place("q", |k, i| five_bits(32, 544, k, i))
            .build(),
        IQ2_BN_R4 => {
            group(ty)?.place("q", |k, i| [bits(16 * (i / 16) + 4 * k + i % 4, 2 * (i % 16 / 4), 2)]).build()
        }
        _ => return None,
    })
}

/// d and shift bits: bit b of byte k + 4h is that of row k, sub-block 2b + h.
fn k_head(ty: QuantType) -> Option<Builder> {
    let shift = |k: usize, s: usize| [bit(8 + k + 4 * (s % 2), s / 2)];
    Some(group(ty)?.place("d", |k, _| f16_at(0, k)).place("shift", shift))
}

/// Five-bit codes: pattern A at `low` and one bit per element at `high`.
fn five_bits(low: usize, high: usize, k: usize, i: usize) -> [Part; 2] {
    let (b, e) = (i / 32, i % 32);
    let (l, n) = a_place(e);
    [pattern_a(low + 64 * b, k, e), bit(high + 16 * b + 4 * k + e % 4, 2 * l + n).at(4)]
}
