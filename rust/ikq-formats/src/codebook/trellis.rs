//! The value generator of the trellis (KT) types. A code seeds a multiplicative generator; the bytes
//! of each state, six bits kept of each, are summed to a roughly normal integer:
//!
//! ```text
//! x = code + offset;  for k in 0..:  x *= KT_MULTIPLIER;  value k = sum of bytes of (x & mask) - 126
//! ```

/// Factor of the generator (wrapping 32-bit product).
pub const KT_MULTIPLIER: u32 = 0xcbac_1fed;
/// Added to a code before the first product.
pub const KT_OFFSET: u32 = 4096;
/// The other offset of IQ4_KT, chosen by bit 0 of a sub-block's word.
pub const KT_OFFSET_IQ4_ALT: u32 = KT_OFFSET + 32768;
/// Six bits of every byte count.
pub const KT_BYTE_MASK: u32 = 0x3f3f_3f3f;
/// Subtracted from the sum of the four bytes; about its mean.
pub const KT_CENTER: i32 = 126;

/// `KT_MULTIPLIER` to the powers 1..=8: value k of a code comes from `(code + offset) * KT_POWERS[k]`.
pub const KT_POWERS: [u32; 8] = {
    let mut out = [KT_MULTIPLIER; 8];
    let mut k = 1;
    while k < 8 {
        out[k] = out[k - 1].wrapping_mul(KT_MULTIPLIER);
        k += 1;
    }
    out
};

/// The value of generator state `x` (after the product): an integer in -126..=126.
#[inline]
pub const fn kt_value(x: u32) -> i32 {
    let s = x & KT_BYTE_MASK;
    // bytes are at most 63, so the four of them add up in the top byte without a carry
    (s.wrapping_mul(0x0101_0101) >> 24) as i32 - KT_CENTER
}

/// The `N` values (8, for IQ4_KT 4) of `code`.
#[inline]
pub fn kt_values<const N: usize>(code: u32, offset: u32) -> [i32; N] {
    std::array::from_fn(|k| kt_value(code.wrapping_add(offset).wrapping_mul(KT_POWERS[k])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_those_of_the_format_description() {
        assert_eq!(kt_values(0, KT_OFFSET), [-47, -36, -39, -86, -38, -38, -47, -35]);
        assert_eq!(kt_values(1, KT_OFFSET), [21, 1, 59, -23, 33, 8, 13, 43]);
        assert_eq!(kt_values(65535, KT_OFFSET), [26, -32, -16, -9, -25, -62, 17, 10]);
        assert_eq!(kt_values(0, KT_OFFSET_IQ4_ALT), [-40, -79, -43, -79]);
    }
}
