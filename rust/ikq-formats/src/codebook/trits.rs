//! Five trits (0, 1, 2) in a byte. The five are the digits of a number v in 0..243, and the byte is
//! `ceil(256 * v / 243)`, so that products with powers of three push the digits out at the top:
//! the digit of weight 3^k is `((byte * 3^(4 - k)) & 255) * 3 >> 8`.
//!
//! IQ1_BN puts its first trit at the lowest weight, TQ1_0 at the highest.

/// Multipliers that read the trits of an IQ1_BN byte in element order (TQ1_0: the reverse).
pub const IQ1BN_POWERS: [u8; 5] = [81, 27, 9, 3, 1];

/// The trit of `byte` that the multiplier `power` (1, 3, 9, 27, 81) brings to the top.
#[inline]
pub const fn trit(byte: u8, power: u8) -> u8 {
    ((byte.wrapping_mul(power) as u32 * 3) >> 8) as u8
}

/// The byte of five trits, the one of weight 1 first.
///
/// Trits above 2 give some other byte.
#[inline]
pub const fn pack_trits(trits: [u8; 5]) -> u8 {
    let [a, b, c, d, e] = trits;
    let v = a as u32 + 3 * b as u32 + 9 * c as u32 + 27 * d as u32 + 81 * e as u32;
    ((256 * v).div_ceil(243)) as u8
}

/// Byte -> its five trits, the one of weight 1 first (the element order of IQ1_BN).
pub static IQ1BN_TRITS: [[u8; 5]; 256] = {
    let mut out = [[0; 5]; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut j = 0;
        while j < 5 {
            out[byte][j] = trit(byte as u8, IQ1BN_POWERS[j]);
            j += 1;
        }
        byte += 1;
    }
    out
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unpacking_inverts_packing() {
        let mut seen = [false; 256];
        for v in 0..243u8 {
            let trits = [v % 3, v / 3 % 3, v / 9 % 3, v / 27 % 3, v / 81];
            let byte = pack_trits(trits);
            assert_eq!(IQ1BN_TRITS[byte as usize], trits);
            seen[byte as usize] = true;
        }
        let never: Vec<_> = (0..256).filter(|b| !seen[*b]).collect();
        assert_eq!(never, [1, 20, 40, 60, 79, 99, 119, 138, 158, 178, 197, 217, 237]);
    }
}
