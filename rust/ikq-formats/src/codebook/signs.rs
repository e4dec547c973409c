//! Seven bits for eight signs: the eighth makes the number of minus signs even.

/// Sign code -> eight sign bits; bit j set: element j is negative. Used by IQ2_XXS, IQ2_XS, IQ3_XXS.
pub const KSIGNS: [u8; 128] = {
    let mut out = [0; 128];
    let mut code = 0;
    while code < 128 {
        out[code] = code as u8 | ((code.count_ones() & 1) as u8) << 7;
        code += 1;
    }
    out
};

/// Sign code -> the code `c` with `(c ^ c << 1) & 255 == KSIGNS[code]`, which the `_R4` forms store
/// (a vector unit gets eight sign bits from it without a table).
pub const SIGN_SCRAMBLE: [u8; 128] = {
    let mut out = [0; 128];
    let mut code = 0;
    while code < 128 {
        // bit n of c is the parity of sign bits 0..=n: a running exclusive or
        let mut c = KSIGNS[code];
        c ^= c << 1;
        c ^= c << 2;
        c ^= c << 4;
        out[code] = c;
        code += 1;
    }
    out
};

/// The inverse of [`SIGN_SCRAMBLE`].
pub const SIGN_UNSCRAMBLE: [u8; 128] = {
    let mut out = [0; 128];
    let mut code = 0;
    while code < 128 {
        out[SIGN_SCRAMBLE[code] as usize] = code as u8;
        code += 1;
    }
    out
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scrambled_codes_give_the_signs_by_one_shift() {
        for code in 0..128 {
            let c = SIGN_SCRAMBLE[code];
            assert_eq!(c ^ c << 1, KSIGNS[code]);
            assert_eq!(SIGN_UNSCRAMBLE[c as usize] as usize, code);
        }
    }
}
