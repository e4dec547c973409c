//! IQK quants: blocks of 256 elements whose codes go through a value table with a normal and a
//! shifted row; `shift` picks the row per sub-block (16 elements, or 32 where there are 8).
//!
//! | type | fields (count x bits) | scale of a sub-block |
//! |---|---|---|
//! | IQ2_K | d 1x16, shift 16x1, scales 16x4, q 256x2 | `scales - 8` |
//! | IQ3_K | d 1x16, shift 16x1, scales 16x5, q 256x3 | `2 * (scales & 15) + 1`, negative if bit 4 is set |
//! | IQ4_K | d 1x16, shift 16x1, scales 16x6, q 256x4 | `scales - 32` |
//! | IQ5_K | d 1x16, shift 16x1, scales 16x6, q 256x5 | `scales - 32` |
//! | IQ6_K | d 1x16, shift 16x1, scales 16x8 signed, q 256x6 | `scales` |
//! | IQ4_KS | scales 8x8, q 256x4; header f32 d | `(scales & 254) - 127`, shift = bit 0 of `scales` |
//! | IQ5_KS | scales 8x8, q 256x5; header f32 d | the same |
//! | IQ4_KSS | scales 8x8, q 256x4 (parity, below); header f32 d | the same |
//! | IQ2_KS | shift 8x1, scales 8x5, q 256x2; header f16 d | `scales - 16` |
//! | IQ3_KS | shift 8x1, scales 8x5, q 256x3; header f16 d | `scales - 16` |
//! | IQ2_KL | scales 8x6, q 128x5 (one code per pair); header f16 d | `scales - 32` |
//!
//! # IQ4_KSS
//! Four bits per element and nothing left for the scales: sixteen bits that hold four codes are
//! allowed only with an even number of ones, which frees one bit. The four codes are those of
//! elements `2t, 2t + 1, 16 + 2t, 17 + 2t` of a sub-block of 32, t = 0..8. Packing four codes with an
//! odd number of ones gives back the last one with its top bit wrong and harms nothing else.

use super::places::{bit_octets, bits_32, crumbs_32, nibble_pairs, nibbles_16, nibbles_32};
use crate::layout::{Builder, Codec, Layout, bit, bits, byte, le, nib};
use crate::types::QuantType::{self, *};

pub fn build(ty: QuantType) -> Option<Layout> {
    Some(match ty {
        IQ2_K => k_head(Layout::block(256, 76))
            .field("scales", 16, 4, |k| [nibble_pairs(4, k)])
            .field("q", 256, 2, |i| [crumbs_32(12, i)])
            .build(),
        IQ3_K => k_head(Layout::block(256, 110))
            .field("scales", 16, 5, |k| [nibble_pairs(6, k), bit_octets(4, k).at(4)])
            .field("q", 256, 3, |i| [crumbs_32(14, i), bits_32(78, i).at(2)])
            .build(),
        IQ4_K => k_head(Layout::block(256, 144))
            .field("scales", 16, 6, |k| [nibble_pairs(8, k), bits(4 + k / 4, 2 * (k % 4), 2).at(4)])
            .field("q", 256, 4, |i| [nibbles_16(16, i)])
            .build(),
        IQ5_K => k_head(Layout::block(256, 176))
            .field("scales", 16, 6, |k| [nibble_pairs(8, k), bits(4 + k / 4, 2 * (k % 4), 2).at(4)])
            .field("q", 256, 5, |i| [nibbles_32(16, i), bits_32(144, i).at(4)])
            .build(),
        IQ6_K => k_head(Layout::block(256, 212))
            .field("scales", 16, 8, |k| [byte(4 + k)])
            .signed()
            .field("q", 256, 6, |i| [nibbles_32(20, i), crumbs_32(148, i).at(4)])
            .build(),
        IQ4_KS => Layout::block(256, 136)
            .field("scales", 8, 8, |b| [byte(b)])
            .field("q", 256, 4, |i| [nibbles_16(8, i)])
            .build(),
        IQ5_KS => Layout::block(256, 168)
            .field("scales", 8, 8, |b| [byte(b)])
            .field("q", 256, 5, |i| [nibbles_32(8, i), bits_32(136, i).at(4)])
            .build(),
        IQ4_KSS => Layout::block(256, 128)
            .field("scales", 8, 8, |_| [])
            .field("q", 256, 4, |_| [])
            .codec(Codec { pack: kss_pack, unpack: kss_unpack, clash: kss_clash })
            .build(),
        IQ2_KS => Layout::block(256, 70)
            .field("shift", 8, 1, |b| [bit(0, b)])
            .field("scales", 8, 5, |b| [nibble_pairs(2, b), bit(1, b).at(4)])
            .field("q", 256, 2, |i| [crumbs_32(6, i)])
            .build(),
        // shift bits and high scale bits the other way round, other order of the scale nibbles
        IQ3_KS => Layout::block(256, 102)
            .field("shift", 8, 1, |b| [bit(1, b)])
            .field("scales", 8, 5, |b| [nib(2 + b % 4, b / 4), bit(0, b).at(4)])
            .field("q", 256, 3, |i| [crumbs_32(6, i), bits_32(70, i).at(2)])
            .build(),
        IQ2_KL => Layout::block(256, 86)
            .field("scales", 8, 6, |b| [nib(2 + b % 4, b / 4), bits(b / 4, 2 * (b % 4), 2).at(4)])
            .field("q", 128, 5, |pair| {
                let (b, p) = (pair / 16, pair % 16);
                [nib(6 + 16 * (b / 2) + p, b % 2), bit(70 + p, b).at(4)]
            })
            .build(),
        _ => return None,
    })
}

/// f16 d and a u16 whose bit k is the shift bit of sub-block k.
fn k_head(block: Builder) -> Builder {
    block.field("d", 1, 16, |_| le(0, 2)).field("shift", 16, 1, |k| [bit_octets(2, k)])
}

/// The elements of a sub-block whose codes share word t, lowest bits first.
const fn kss_elements(t: usize) -> [usize; 4] {
    [2 * t, 16 + 2 * t, 2 * t + 1, 17 + 2 * t]
}

/// A word is one bit of the scale byte below 15 bits `u` with `u ^ u << 1` the four codes: bit n of
/// `u` is the parity of bits 0..=n of the codes, and bit 15 would always be 0.
fn kss_pack(values: &[u32], block: &mut [u8]) {
    let (scales, q) = values.split_at(8);
    for (b, (codes, words)) in q.chunks_exact(32).zip(block.chunks_exact_mut(16)).enumerate() {
        for (t, word) in words.chunks_exact_mut(2).enumerate() {
            let mut u = 0;
            for (n, e) in kss_elements(t).into_iter().enumerate() {
                u |= (codes[e] as u16 & 15) << (4 * n);
            }
            for distance in [1, 2, 4, 8] {
                u ^= u << distance;
            }
            word.copy_from_slice(&(u << 1 | (scales[b] >> t) as u16 & 1).to_le_bytes());
        }
    }
}

fn kss_unpack(block: &[u8], values: &mut [u32]) {
    let (scales, q) = values.split_at_mut(8);
    for (b, (codes, words)) in q.chunks_exact_mut(32).zip(block.chunks_exact(16)).enumerate() {
        scales[b] = 0;
        for (t, word) in words.chunks_exact(2).enumerate() {
            let word = u16::from_le_bytes([word[0], word[1]]);
            scales[b] |= u32::from(word & 1) << t;
            let v = word & 0xfffe;
            let v = v ^ v >> 1;
            for (n, e) in kss_elements(t).into_iter().enumerate() {
                codes[e] = u32::from(v >> (4 * n)) & 15;
            }
        }
    }
}

fn kss_clash(values: &[u32]) -> Option<usize> {
    let odd =
        |codes: &[u32], t: usize| kss_elements(t).into_iter().fold(0, |x, e| x ^ codes[e]).count_ones() % 2;
    let mut sub_blocks = values[8..].chunks_exact(32).enumerate();
    sub_blocks.find_map(|(b, codes)| (0..8).find(|t| odd(codes, *t) == 1).map(|t| 32 * b + 2 * t))
}
