//! Placements that several types share. `at` is the byte where the field begins, `i` the element.

use crate::layout::{Part, bit, bits, nib};

/// Nibbles, 16 bytes for 32 elements: first half in the low nibbles, second half in the high ones.
pub fn nibbles_16(at: usize, i: usize) -> Part {
    nib(at + 16 * (i / 32) + i % 16, i / 16 % 2)
}

/// Nibbles, 32 bytes for 64 elements: first half in the low nibbles, second half in the high ones.
pub fn nibbles_32(at: usize, i: usize) -> Part {
    nib(at + 32 * (i / 64) + i % 32, i / 32 % 2)
}

/// Neighbours in one byte: number i in nibble i%2 of byte i/2.
pub fn nibble_pairs(at: usize, i: usize) -> Part {
    nib(at + i / 2, i % 2)
}

/// Two-bit codes, 32 bytes for 128 elements: each quarter of 32 in its own bits.
pub fn crumbs_32(at: usize, i: usize) -> Part {
    bits(at + 32 * (i / 128) + i % 32, 2 * (i / 32 % 4), 2)
}

/// One bit per element, 32 bytes for 256: each eighth of 32 elements in its own bit.
pub fn bits_32(at: usize, i: usize) -> Part {
    bit(at + i % 32, i / 32)
}

/// One bit per number, eight neighbours in a byte.
pub fn bit_octets(at: usize, i: usize) -> Part {
    bit(at + i / 8, i % 8)
}
