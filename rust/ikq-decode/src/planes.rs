//! Arrangements of bits that several families share. Each helper gives the codes of a quarter unit, 64 elements.
//!
//! | helper | elements |
//! |---|---|
//! | [`nibbles_16`] | two runs of 16 bytes; low nibbles of a run first, then its high ones |
//! | [`nibbles_32`] | one run of 32 bytes; low nibbles first, then the high ones |
//! | [`crumbs`] | two-bit codes: 32 bytes hold four layers of 32 elements |
//! | [`plane`] | one bit per element: bit b of byte e belongs to element 32 b + e |

use ikq_simd::{Isa, array};

use crate::decode::bytes;

/// Nibbles of two runs of 16 bytes, 32 elements each: the low nibbles of a run, then its high ones.
#[inline(always)]
pub(crate) fn nibbles_16<I: Isa>(isa: I, a: &[u8; 16], b: &[u8; 16]) -> I::B64 {
    isa.bits_4x16(isa.load_4x16([a, a, b, b]), [0, 4, 0, 4], 15)
}

/// Nibbles of a run of 32 bytes: the low ones, then the high ones.
#[inline(always)]
pub(crate) fn nibbles_32<I: Isa>(isa: I, run: &[u8; 32]) -> I::B64 {
    isa.bits_4x16(isa.load_2x32(run, run), [0, 0, 4, 4], 15)
}

/// Two-bit codes of elements `64 j..` where byte `32 h + e` holds those of elements
/// `128 h + e`, `+ 32`, `+ 64`, `+ 96`.
#[inline(always)]
pub(crate) fn crumbs<I: Isa>(isa: I, qs: &[u8; 64], j: usize) -> I::B64 {
    let run = bytes::<32>(qs, 32 * (j / 2));
    let low = 4 * (j as u32 % 2);
    isa.bits_4x16(isa.load_2x32(run, run), [low, low, low + 2, low + 2], 3)
}

/// The bit of each of the elements from `64 j` on, as 0 or 1.
#[inline(always)]
pub(crate) fn plane<I: Isa>(isa: I, qh: &[u8; 32], j: usize) -> I::B64 {
    let b = 2 * j as u32;
    isa.bits_4x16(isa.load_2x32(qh, qh), [b, b, b + 1, b + 1], 1)
}

/// `codes` with the bits of [`plane`] added as bit `at`.
#[inline(always)]
pub(crate) fn with_plane<I: Isa>(isa: I, codes: I::B64, qh: &[u8; 32], j: usize, at: u32) -> I::B64 {
    isa.or(codes, isa.shl(plane(isa, qh, j), at))
}

/// Nibbles of eight bytes: low, high, low, high ...
#[inline(always)]
pub(crate) fn nibbles_in_turn(b: &[u8; 8]) -> [u8; 16] {
    array(|k| b[k / 2] >> (4 * (k % 2)) & 15)
}

/// The nibbles of four bytes: all low ones, then all high ones.
#[inline(always)]
pub(crate) fn nibbles_low_high(b: &[u8; 4]) -> [u8; 8] {
    array(|k| b[k % 4] >> (4 * (k / 4)) & 15)
}
