//! Converts plain arrays (F32, F16, BF16, F64 and the integers) to f32.
//!
//! F16 and BF16 convert exactly; F64 and wide integers round to nearest even.

use ikq_formats::QuantType;
use ikq_simd::{Isa, IsaKind, IsaOp, array, run};

/// Converts little-endian numbers of type `ty` to floats; `false` when `ty` is no plain array.
///
/// `data` must hold exactly `out.len()` numbers.
pub fn dequantize_floats(kind: IsaKind, ty: QuantType, data: &[u8], out: &mut [f32]) -> bool {
    match ty {
        QuantType::F32 => each(data, out, f32::from_le_bytes),
        QuantType::F16 => run(kind, HalfRow { data, out }),
        QuantType::BF16 => each(data, out, |b| f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16)),
        QuantType::F64 => each(data, out, |b| f64::from_le_bytes(b) as f32),
        QuantType::I8 => each(data, out, |b| f32::from(i8::from_le_bytes(b))),
        QuantType::I16 => each(data, out, |b| f32::from(i16::from_le_bytes(b))),
        QuantType::I32 => each(data, out, |b| i32::from_le_bytes(b) as f32),
        QuantType::I64 => each(data, out, |b| i64::from_le_bytes(b) as f32),
        _ => return false,
    }
    true
}

fn each<const N: usize>(data: &[u8], out: &mut [f32], convert: impl Fn([u8; N]) -> f32) {
    for (y, b) in out.iter_mut().zip(data.as_chunks::<N>().0) {
        *y = convert(*b);
    }
}

/// Converts F16 numbers, eight at a time.
struct HalfRow<'a> {
    data: &'a [u8],
    out: &'a mut [f32],
}

impl IsaOp for HalfRow<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let (whole, tail) = self.data.as_chunks::<16>();
        let (out, out_tail) = self.out.as_chunks_mut::<8>();
        for (b, y) in whole.iter().zip(out) {
            *y = isa.f16_8(array(|i| u16::from_le_bytes([b[2 * i], b[2 * i + 1]])));
        }
        for (b, y) in tail.as_chunks::<2>().0.iter().zip(out_tail) {
            *y = isa.f16(u16::from_le_bytes(*b));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ikq_simd::available;

    #[test]
    fn every_half_is_what_the_half_crate_says() {
        let data: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        for kind in available() {
            // an odd count, so that the tail is used too
            let mut out = vec![0.0; 65535];
            assert!(dequantize_floats(kind, QuantType::F16, &data[2..], &mut out));
            for (i, y) in out.iter().enumerate() {
                let want = half::f16::from_bits(i as u16 + 1).to_f32();
                assert!(
                    y.to_bits() == want.to_bits() || y.is_nan() && want.is_nan(),
                    "{i:#x} {}",
                    kind.name()
                );
            }
        }
    }

    #[test]
    fn plain_arrays_convert_by_value() {
        let check = |ty, data: &[u8], want: &[f32]| {
            let mut out = vec![0.0; want.len()];
            assert!(dequantize_floats(IsaKind::Scalar, ty, data, &mut out));
            assert_eq!(out, want, "{ty}");
        };
        check(QuantType::F32, &(-1.5_f32).to_le_bytes(), &[-1.5]);
        check(QuantType::BF16, &[0x80, 0x3f, 0x01, 0x00], &[1.0, f32::from_bits(1 << 16)]);
        check(QuantType::F64, &1e-50_f64.to_le_bytes(), &[0.0]);
        check(QuantType::F64, &0.1_f64.to_le_bytes(), &[0.1]);
        check(QuantType::I8, &[0x80, 0x7f], &[-128.0, 127.0]);
        check(QuantType::I16, &(-300_i16).to_le_bytes(), &[-300.0]);
        check(QuantType::I32, &i32::MAX.to_le_bytes(), &[2_147_483_648.0]);
        check(QuantType::I64, &(-5_i64).to_le_bytes(), &[-5.0]);
        assert!(!dequantize_floats(IsaKind::Scalar, QuantType::Q4_0, &[], &mut []));
    }
}
