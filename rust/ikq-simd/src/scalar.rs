//! [`Isa`] in plain Rust: the definition of every operation, and the fallback on every machine.

use crate::isa::{Isa, IsaOp};

/// The token for plain Rust, which needs no instructions beyond the compiler's baseline and is always available.
#[derive(Clone, Copy, Debug)]
pub struct Scalar;

#[inline(always)]
fn map(a: [u8; 64], f: impl Fn(usize, u8) -> u8) -> [u8; 64] {
    std::array::from_fn(|i| f(i, a[i]))
}

#[inline(always)]
pub(crate) fn trellis_value(x: u32) -> u8 {
    let s = x & 0x3f3f_3f3f;
    let sum = (s & 0xff) + (s >> 8 & 0xff) + (s >> 16 & 0xff) + (s >> 24);
    sum.wrapping_sub(126) as u8
}

/// Converts the bits of an f16 number to f32: the exponent is re-biased, and a float subtraction normalises
/// subnormals.
#[inline(always)]
pub(crate) fn f16_to_f32(bits: u16) -> f32 {
    let sign = u32::from(bits & 0x8000) << 16;
    let magnitude = u32::from(bits & 0x7fff) << 13;
    let value = match bits >> 10 & 31 {
        // 2^-14 + the fraction as a normal number, less 2^-14
        0 => f32::from_bits((113 << 23) + magnitude) - f32::from_bits(113 << 23),
        31 if bits & 0x3ff != 0 => f32::from_bits(magnitude | 0x7fc0_0000),
        31 => f32::INFINITY,
        _ => f32::from_bits(magnitude + (112 << 23)),
    };
    f32::from_bits(value.to_bits() | sign)
}

impl Isa for Scalar {
    const NAME: &'static str = "scalar";

    #[inline(never)]
    fn apart<O: IsaOp>(self, op: O) -> O::Output {
        op.run(self)
    }

    #[inline(always)]
    fn load(self, bytes: &[u8; 64]) -> [u8; 64] {
        *bytes
    }
    #[inline(always)]
    fn load_2x32(self, lo: &[u8; 32], hi: &[u8; 32]) -> [u8; 64] {
        std::array::from_fn(|i| if i < 32 { lo[i] } else { hi[i - 32] })
    }
    #[inline(always)]
    fn load_4x16(self, quarters: [&[u8; 16]; 4]) -> [u8; 64] {
        std::array::from_fn(|i| quarters[i / 16][i % 16])
    }
    #[inline(always)]
    fn splat(self, byte: u8) -> [u8; 64] {
        [byte; 64]
    }
    #[inline(always)]
    fn splat_4x16(self, bytes: [u8; 4]) -> [u8; 64] {
        std::array::from_fn(|i| bytes[i / 16])
    }
    #[inline(always)]
    fn of_u64(self, groups: [u64; 8]) -> [u8; 64] {
        std::array::from_fn(|i| (groups[i / 8] >> (8 * (i % 8))) as u8)
    }
    #[inline(always)]
    fn of_u32(self, groups: [u32; 16]) -> [u8; 64] {
        std::array::from_fn(|i| (groups[i / 4] >> (8 * (i % 4))) as u8)
    }
    #[inline(always)]
    fn and(self, a: [u8; 64], b: [u8; 64]) -> [u8; 64] {
        map(a, |i, a| a & b[i])
    }
    #[inline(always)]
    fn or(self, a: [u8; 64], b: [u8; 64]) -> [u8; 64] {
        map(a, |i, a| a | b[i])
    }
    #[inline(always)]
    fn xor(self, a: [u8; 64], b: [u8; 64]) -> [u8; 64] {
        map(a, |i, a| a ^ b[i])
    }
    #[inline(always)]
    fn bits_4x16(self, v: [u8; 64], shift: [u32; 4], mask: u8) -> [u8; 64] {
        map(v, |i, a| a >> shift[i / 16] & mask)
    }
    #[inline(always)]
    fn shl(self, v: [u8; 64], n: u32) -> [u8; 64] {
        map(v, |_, a| a << n)
    }
    #[inline(always)]
    fn add(self, a: [u8; 64], b: [u8; 64]) -> [u8; 64] {
        map(a, |i, a| a.wrapping_add(b[i]))
    }
    #[inline(always)]
    fn sub(self, a: [u8; 64], b: [u8; 64]) -> [u8; 64] {
        map(a, |i, a| a.wrapping_sub(b[i]))
    }
    #[inline(always)]
    fn abs(self, v: [u8; 64]) -> [u8; 64] {
        map(v, |_, a| (a as i8).wrapping_abs() as u8)
    }
    #[inline(always)]
    fn lut16(self, table: &[i8; 16], index: [u8; 64]) -> [u8; 64] {
        map(index, |_, i| table[usize::from(i & 15)] as u8)
    }
    #[inline(always)]
    fn lut32(self, table: &[i8; 32], index: [u8; 64]) -> [u8; 64] {
        map(index, |_, i| table[usize::from(i & 31)] as u8)
    }
    #[inline(always)]
    fn lut64(self, table: &[i8; 64], index: [u8; 64]) -> [u8; 64] {
        map(index, |_, i| table[usize::from(i & 63)] as u8)
    }
    #[inline(always)]
    fn mask_bytes(self, mask: u64, byte: u8) -> [u8; 64] {
        std::array::from_fn(|i| if mask >> i & 1 == 1 { byte } else { 0 })
    }
    #[inline(always)]
    fn negate_where(self, v: [u8; 64], mask: u64) -> [u8; 64] {
        map(v, |i, a| if mask >> i & 1 == 1 { a.wrapping_neg() } else { a })
    }
    #[inline(always)]
    fn trellis_8x8(self, seeds: [u32; 8], multipliers: &[u32; 8]) -> [u8; 64] {
        std::array::from_fn(|i| trellis_value(seeds[i / 8].wrapping_mul(multipliers[i % 8])))
    }
    #[inline(always)]
    fn trellis_16x4(self, seeds: [u32; 16], multipliers: &[u32; 8]) -> [u8; 64] {
        std::array::from_fn(|i| trellis_value(seeds[i / 4].wrapping_mul(multipliers[i % 4])))
    }
    #[inline(always)]
    fn f16_8(self, bits: [u16; 8]) -> [f32; 8] {
        bits.map(f16_to_f32)
    }
    #[inline(always)]
    fn f16(self, bits: u16) -> f32 {
        f16_to_f32(bits)
    }
    #[inline(always)]
    fn store_scaled(self, v: [u8; 64], scale: [f32; 4], out: &mut [f32; 64]) {
        for (i, y) in out.iter_mut().enumerate() {
            *y = scale[i / 16] * f32::from(v[i] as i8);
        }
    }
    #[inline(always)]
    fn store_affine(self, v: [u8; 64], scale: [f32; 4], min: [f32; 4], out: &mut [f32; 64]) {
        for (i, y) in out.iter_mut().enumerate() {
            *y = scale[i / 16] * f32::from(v[i] as i8) - min[i / 16];
        }
    }
    #[inline(always)]
    fn store(self, v: [u8; 64], out: &mut [u8; 64]) {
        *out = v;
    }
}
