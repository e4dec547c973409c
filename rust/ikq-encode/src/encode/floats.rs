//! F32, F16, BF16: numbers are rounded to the nearest, ties to even. Those too large for a type become its largest
//! finite number instead of infinity.

use ikq_formats::QuantType;
use ikq_simd::Isa;

use super::Encode;
use crate::search::gain::Scales;

/// Little-endian copies.
pub struct F32;

impl Encode for F32 {
    const TYPE: QuantType = QuantType::F32;
    type Scratch = ();

    #[inline(always)]
    fn encode_row<I: Isa>(_: I, x: &[f32], _: &[f32], _: Scales, _: &mut (), out: &mut [u8]) {
        for (x, out) in x.iter().zip(out.as_chunks_mut().0) {
            *out = x.to_le_bytes();
        }
    }
}

/// IEEE binary16.
pub struct F16;

impl Encode for F16 {
    const TYPE: QuantType = QuantType::F16;
    type Scratch = ();

    #[inline(always)]
    fn encode_row<I: Isa>(isa: I, x: &[f32], _: &[f32], _: Scales, _: &mut (), out: &mut [u8]) {
        for (x, out) in x.chunks(16).zip(out.chunks_mut(32)) {
            let mut sixteen = [0.0; 16];
            sixteen[..x.len()].copy_from_slice(x);
            let bits = isa.f16_bits(isa.load_f(&sixteen));
            for (bits, out) in bits.iter().zip(out.as_chunks_mut().0) {
                *out = bits.to_le_bytes();
            }
        }
    }
}

/// The top half of an f32.
pub struct BF16;

impl Encode for BF16 {
    const TYPE: QuantType = QuantType::BF16;
    type Scratch = ();

    #[inline(always)]
    fn encode_row<I: Isa>(_: I, x: &[f32], _: &[f32], _: Scales, _: &mut (), out: &mut [u8]) {
        for (x, out) in x.iter().zip(out.as_chunks_mut().0) {
            // rounds to nearest, ties to even; the largest f32 would round to infinity and saturates instead
            let bits = x.to_bits();
            let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
            let finite = if rounded & 0x7f80 == 0x7f80 { rounded - 1 } else { rounded };
            *out = (finite as u16).to_le_bytes();
        }
    }
}
