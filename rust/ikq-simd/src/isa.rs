//! [`Isa`]: the operations of an instruction set on 64 bytes at a time, as decoders use them.
//!
//! Sixty-four one-byte codes are handled at a time, because the formats share bytes among up to 128 elements
//! and 64 bytes fill one AVX-512 register or two AVX2 ones. Quarters (16 bytes) can be addressed separately,
//! because 16 elements are the smallest sub-block of any format.

use crate::row_lanes::RowLanes;

/// An algorithm that can be compiled for any instruction set; see [`crate::run`].
pub trait IsaOp {
    type Output;
    /// Runs the algorithm. This function, and what it calls, must be `#[inline(always)]`: a function that is not
    /// inlined into the wrapper of an instruction set is compiled without its instructions.
    fn run<I: Isa>(self, isa: I) -> Self::Output;
}

/// An instruction set. Methods take the token by value, which costs nothing and proves that the machine has the
/// instructions.
///
/// A `B64` holds 64 bytes, read as `u8` or `i8` by each operation; byte 0 belongs to element 0.
pub trait Isa: RowLanes {
    /// The name that `IKQ_ISA` has for it.
    const NAME: &'static str;

    /// Runs `op` as a separate function, so that code that is used in many places is compiled
    /// once for the instruction set, not once per place.
    fn apart<O: IsaOp>(self, op: O) -> O::Output;

    // ---- making values

    fn load(self, bytes: &[u8; 64]) -> Self::B64;
    /// Loads the two halves from two places, which may be the same.
    fn load_2x32(self, lo: &[u8; 32], hi: &[u8; 32]) -> Self::B64;
    /// Loads the four quarters from four places.
    fn load_4x16(self, quarters: [&[u8; 16]; 4]) -> Self::B64;
    fn splat(self, byte: u8) -> Self::B64;
    /// Quarter `k` filled with `bytes[k]`.
    fn splat_4x16(self, bytes: [u8; 4]) -> Self::B64;
    /// Eight groups of 8 bytes, such as codebook entries; little endian.
    fn of_u64(self, groups: [u64; 8]) -> Self::B64;
    /// Sixteen groups of 4 bytes; little endian.
    fn of_u32(self, groups: [u32; 16]) -> Self::B64;

    // ---- bits

    fn and(self, a: Self::B64, b: Self::B64) -> Self::B64;
    fn or(self, a: Self::B64, b: Self::B64) -> Self::B64;
    fn xor(self, a: Self::B64, b: Self::B64) -> Self::B64;
    /// `(byte >> shift[k]) & mask` of each byte of quarter `k`.
    /// `mask` must not have bits above those that are left (`mask <= 0xff >> shift`).
    fn bits_4x16(self, v: Self::B64, shift: [u32; 4], mask: u8) -> Self::B64;
    /// Each byte shifted left by `n` bits; the bits that leave the byte must be 0.
    fn shl(self, v: Self::B64, n: u32) -> Self::B64;

    // ---- small integers

    /// Wrapping byte addition.
    fn add(self, a: Self::B64, b: Self::B64) -> Self::B64;
    /// Wrapping byte subtraction.
    fn sub(self, a: Self::B64, b: Self::B64) -> Self::B64;
    /// Absolute value of `i8` (-128 stays).
    fn abs(self, v: Self::B64) -> Self::B64;
    /// `table[index]`; indices must be below 16.
    fn lut16(self, table: &[i8; 16], index: Self::B64) -> Self::B64;
    /// `table[index]`; indices must be below 32.
    fn lut32(self, table: &[i8; 32], index: Self::B64) -> Self::B64;
    /// `table[index]`; indices must be below 64.
    fn lut64(self, table: &[i8; 64], index: Self::B64) -> Self::B64;
    /// `byte` where the bit of `mask` is set, 0 elsewhere.
    fn mask_bytes(self, mask: u64, byte: u8) -> Self::B64;
    /// `-v` where the bit of `mask` is set, else `v`.
    fn negate_where(self, v: Self::B64, mask: u64) -> Self::B64;

    // ---- the KT generator of the trellis formats

    /// For each of 8 seeds x, the 8 values `bytesum((x * multipliers[k]) & 0x3f3f3f3f) - 126`.
    fn trellis_8x8(self, seeds: [u32; 8], multipliers: &[u32; 8]) -> Self::B64;
    /// For each of 16 seeds, the 4 such values with `multipliers[..4]`.
    fn trellis_16x4(self, seeds: [u32; 16], multipliers: &[u32; 8]) -> Self::B64;

    // ---- floats

    /// Converts the bits of eight f16 numbers to f32, exactly.
    fn f16_8(self, bits: [u16; 8]) -> [f32; 8];
    /// Converts the bits of one f16 number to f32, exactly.
    #[inline(always)]
    fn f16(self, bits: u16) -> f32 {
        self.f16_8([bits; 8])[0]
    }

    /// `out[i] = scale[i / 16] * v[i]` with `v` as `i8`, each rounded once.
    fn store_scaled(self, v: Self::B64, scale: [f32; 4], out: &mut [f32; 64]);
    /// `out[i] = scale[i / 16] * v[i] - min[i / 16]`; the product is rounded, then the difference.
    fn store_affine(self, v: Self::B64, scale: [f32; 4], min: [f32; 4], out: &mut [f32; 64]);

    /// Writes the bytes.
    fn store(self, v: Self::B64, out: &mut [u8; 64]);
}
