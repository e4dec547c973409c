//! Ternary, one-bit and two-bit types.
//!
//! | type | elements | fields (count x bits) | value |
//! |---|---|---|---|
//! | IQ1_BN | 64 | q 64x2, 3 levels; header f16 d | `(q - 1) * d` |
//! | IQ2_BN | 64 | q 64x2; header f32 d | `(q - 1) * d` |
//! | I2_S | 128 | q 128x2; f32 d behind the tensor's codes | `(q - 1) * d` |
//! | TQ1_0 | 256 | d 1x16, q 256x2, 3 levels | `(q - 1) * d` |
//! | TQ2_0 | 256 | d 1x16, q 256x2 | `(q - 1) * d` |
//! | Q1_0_G128 | 128 | d 1x16, q 128x1 | `q ? d : -d` |
//! | Q2_0 | 64 | d 1x16, q 64x2 | `(q - 1) * d` |
//!
//! Two-bit codes may be 3 (the value 2 d); encoders of ternary types do not make it. IQ1_BN and TQ1_0
//! pack five trits into a byte (`codebook/trits.rs`); 13 bytes never occur and read as some trits.

use super::places::{bit_octets, crumbs_32};
use crate::codebook::{IQ1BN_TRITS, pack_trits};
use crate::layout::{Codec, Layout, bits, le};
use crate::types::QuantType::{self, *};

pub fn build(ty: QuantType) -> Option<Layout> {
    Some(match ty {
        IQ1_BN => Layout::block(64, 13)
            .field("q", 64, 2, |_| [])
            .levels(3)
            .codec(Codec { pack: iq1_bn_pack, unpack: iq1_bn_unpack, clash: |_| None })
            .build(),
        IQ2_BN => Layout::block(64, 16).field("q", 64, 2, |i| [bits(i % 16, 2 * (i / 16), 2)]).build(),
        I2_S => Layout::block(128, 32).field("q", 128, 2, |i| [bits(i % 32, 6 - 2 * (i / 32), 2)]).build(),
        TQ1_0 => Layout::block(256, 54)
            .field("d", 1, 16, |_| [])
            .field("q", 256, 2, |_| [])
            .levels(3)
            .codec(Codec { pack: tq1_0_pack, unpack: tq1_0_unpack, clash: |_| None })
            .build(),
        TQ2_0 => Layout::block(256, 66)
            .field("d", 1, 16, |_| le(64, 2))
            .field("q", 256, 2, |i| [crumbs_32(0, i)])
            .build(),
        Q1_0_G128 => Layout::block(128, 18)
            .field("d", 1, 16, |_| le(0, 2))
            .field("q", 128, 1, |i| [bit_octets(2, i)])
            .build(),
        Q2_0 => Layout::block(64, 18)
            .field("d", 1, 16, |_| le(0, 2))
            .field("q", 64, 2, |i| [bits(2 + i / 4, 2 * (i % 4), 2)])
            .build(),
        _ => return None,
    })
}

/// Sixteen elements have three bytes and one trit of the last byte.
fn iq1_bn_pack(values: &[u32], block: &mut [u8]) {
    let mut extra = [0; 5];
    for (g, codes) in values.chunks_exact(16).enumerate() {
        for (byte, five) in block[3 * g..3 * g + 3].iter_mut().zip(codes.chunks_exact(5)) {
            *byte = pack_trits(std::array::from_fn(|k| five[k] as u8));
        }
        extra[g] = codes[15] as u8;
    }
    block[12] = pack_trits(extra);
}

fn iq1_bn_unpack(block: &[u8], values: &mut [u32]) {
    for (g, codes) in values.chunks_exact_mut(16).enumerate() {
        for (byte, five) in block[3 * g..3 * g + 3].iter().zip(codes.chunks_exact_mut(5)) {
            five.copy_from_slice(&IQ1BN_TRITS[usize::from(*byte)].map(u32::from));
        }
        codes[15] = u32::from(IQ1BN_TRITS[usize::from(block[12])][g]);
    }
}

/// The three runs of TQ1_0: first element, first byte, bytes, trits per byte. The trits of a byte
/// are that many elements apart as the run has bytes; the first has the highest weight.
const TQ1_0_RUNS: [(usize, usize, usize, usize); 3] = [(0, 0, 32, 5), (160, 32, 16, 5), (240, 48, 4, 4)];

fn tq1_0_pack(values: &[u32], block: &mut [u8]) {
    let (d, q) = (values[0], &values[1..]);
    for (element, byte, n, n_trits) in TQ1_0_RUNS {
        for j in 0..n {
            let mut trits = [0; 5];
            for k in 0..n_trits {
                trits[4 - k] = q[element + n * k + j] as u8;
            }
            block[byte + j] = pack_trits(trits);
        }
    }
    block[52..].copy_from_slice(&(d as u16).to_le_bytes());
}

fn tq1_0_unpack(block: &[u8], values: &mut [u32]) {
    let (d, q) = values.split_at_mut(1);
    for (element, byte, n, n_trits) in TQ1_0_RUNS {
        for j in 0..n {
            let trits = IQ1BN_TRITS[usize::from(block[byte + j])];
            for k in 0..n_trits {
                q[element + n * k + j] = u32::from(trits[4 - k]);
            }
        }
    }
    d[0] = u32::from(u16::from_le_bytes([block[52], block[53]]));
}
