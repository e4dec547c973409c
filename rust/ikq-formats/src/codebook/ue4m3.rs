//! UE4M3, the scale bytes of NVFP4: four exponent bits (bias 7) and three mantissa bits; bit 7 is
//! ignored. Scales are used halved because `FP4_E2M1_X2` holds doubled values.

/// Half the value of a scale byte, exact. Bytes 0x00 and 0x7f give 0 (0xff, which differs from 0x7f
/// only in the ignored bit, gives 240: so the formats' reference decodes it).
pub const fn ue4m3_half(byte: u8) -> f32 {
    let exponent = (byte >> 3 & 15) as u32;
    let mantissa = (byte & 7) as u32;
    match (byte, exponent) {
        (0x7f, _) => 0.0,
        (_, 0) => mantissa as f32 / 1024.0,
        // (1 + mantissa / 8) * 2^(exponent - 8), bit by bit
        _ => f32::from_bits((exponent + 127 - 8) << 23 | mantissa << 20),
    }
}

/// The scale byte for `x` (not halved): nearest, halves upwards; 0 for what is not positive (NaN
/// too), 0x7e (448) for what is too large.
pub fn ue4m3_from_f32(x: f32) -> u8 {
    if x.is_nan() || x <= 0.0 {
        return 0;
    }
    let bits = x.min(448.0).to_bits();
    let exponent = (bits >> 23) as i32 - 127 + 7;
    if exponent <= 0 {
        // below 2^-6 steps are 2^-9; the rule keeps 7 where rounding would reach the first normal
        return (x * 512.0 + 0.5).min(7.0) as u8;
    }
    let mantissa = bits & 0x007f_ffff;
    let rounded = (exponent as u32) << 3 | mantissa >> 20;
    (rounded + (mantissa >> 19 & 1)).min(0x7e) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_encodes_back_to_itself() {
        for byte in 0..0x7f {
            assert_eq!(ue4m3_from_f32(2.0 * ue4m3_half(byte)), byte);
        }
    }

    #[test]
    fn ends_of_the_range() {
        assert_eq!(ue4m3_half(0x7f), 0.0);
        assert_eq!(ue4m3_half(0xff), 240.0);
        assert_eq!(ue4m3_half(0x7e), 224.0);
        assert_eq!(ue4m3_half(1), 1.0 / 1024.0);
        for (x, byte) in
            [(f32::NAN, 0), (-1.0, 0), (0.0, 0), (1e-30, 0), (449.0, 0x7e), (f32::INFINITY, 0x7e)]
        {
            assert_eq!(ue4m3_from_f32(x), byte, "{x}");
        }
        // halves go up, and the last subnormal step is not rounded to the first normal one
        assert_eq!(ue4m3_from_f32(1.0625), 0x39);
        assert_eq!(ue4m3_from_f32(1.9375), 0x40);
        assert_eq!(ue4m3_from_f32(7.9 / 512.0), 7);
    }
}
