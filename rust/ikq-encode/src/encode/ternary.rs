//! Ternary types: IQ1_BN, IQ2_BN (a scale per row), TQ1_0, TQ2_0 (per 256 elements), I2_S (per matrix), and
//! Q1_0 (a sign and a scale per 128).
//!
//! Objective: `sum w (x - d t)^2` with w of the column and t of -1, 0, 1. Searched: d, see
//! [`crate::search::ternary`]. Data that is ternary already comes back exactly where its magnitude can be stored as
//! scale. Q1_0 needs no search: its best d is the mean magnitude.

use ikq_formats::row::I2_S_TRAILER_BYTES;
use ikq_formats::{QuantType, layout};
use ikq_simd::{Isa, IsaOp};

use super::weights::normalizer;
use super::{Encode, all_finite};
use crate::search::gain::Scales;
use crate::search::ternary::{codes, mean, scale};

/// Whether all values are 0 or one magnitude with either sign, to a hundredth of it. This is the data that ternary
/// types are meant for.
pub fn is_ternary(x: &[f32]) -> bool {
    let amax = x.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    let (small, large) = (0.01 * amax, 0.99 * amax);
    x.iter().all(|v| v.abs() <= small || v.abs() >= large)
}

/// A normalised scale rounded to f16: its bits, and the normalised number that they stand for.
#[inline(always)]
fn half<I: Isa>(isa: I, d: f32, (down, up): (f32, f32)) -> (u16, f32) {
    let d = isa.splat_f(d * up);
    (isa.f16_bits(d)[0], isa.array(isa.f16_round(d))[0] * down)
}

/// Encodes blocks of 256 that have a scale each.
#[inline(always)]
fn encode_blocks<I: Isa>(isa: I, ty: QuantType, x: &[f32], w: &[f32], out: &mut [u8]) {
    let layout = layout(ty).expect("types of this file have layouts");
    let mut values = [0u32; 1 + 256];
    let blocks = x.as_chunks::<256>().0.iter().zip(w.as_chunks::<256>().0);
    for ((x, w), out) in blocks.zip(out.chunks_exact_mut(layout.bytes)) {
        let (d, down, up) = scale(isa, x, w);
        let (bits, d) = half(isa, d, (down, up));
        values[0] = u32::from(bits);
        codes(isa, x, (d, down), &mut values[1..]);
        layout.pack(&values, out);
    }
}

/// Encodes elements as blocks of `N` codes without scales.
#[inline(always)]
fn encode_codes<I: Isa, const N: usize>(isa: I, ty: QuantType, x: &[f32], scale: (f32, f32), out: &mut [u8]) {
    let layout = layout(ty).expect("types of this file have layouts");
    let mut values = [0u32; N];
    for (x, out) in x.as_chunks::<N>().0.iter().zip(out.chunks_exact_mut(layout.bytes)) {
        codes(isa, x, scale, &mut values);
        layout.pack(&values, out);
    }
}

macro_rules! ternary_blocks {
    ($($(#[$doc:meta])* $ty:ident;)*) => { $(
        $(#[$doc])*
        #[allow(non_camel_case_types)]
        pub struct $ty;

        impl Encode for $ty {
            const TYPE: QuantType = QuantType::$ty;
            type Scratch = ();

            #[inline(always)]
            fn encode_row<I: Isa>(isa: I, x: &[f32], w: &[f32], _: Scales, _: &mut (), out: &mut [u8]) {
                encode_blocks(isa, Self::TYPE, x, w, out);
            }
        }
    )* };
}

ternary_blocks! {
    /// Five trits to a byte.
    TQ1_0;
    /// Two bits per element.
    TQ2_0;
}

/// Five trits to a byte, an f16 scale per row.
#[allow(non_camel_case_types)]
pub struct IQ1_BN;

impl Encode for IQ1_BN {
    const TYPE: QuantType = QuantType::IQ1_BN;
    type Scratch = ();

    #[inline(always)]
    fn encode_row<I: Isa>(isa: I, x: &[f32], w: &[f32], _: Scales, _: &mut (), out: &mut [u8]) {
        let (d, down, up) = scale(isa, x, w);
        let (bits, d) = half(isa, d, (down, up));
        let (header, blocks) = out.split_at_mut(2);
        header.copy_from_slice(&bits.to_le_bytes());
        encode_codes::<I, 64>(isa, Self::TYPE, x, (d, down), blocks);
    }
}

/// Two bits per element, an f32 scale per row.
#[allow(non_camel_case_types)]
pub struct IQ2_BN;

impl Encode for IQ2_BN {
    const TYPE: QuantType = QuantType::IQ2_BN;
    type Scratch = ();

    #[inline(always)]
    fn encode_row<I: Isa>(isa: I, x: &[f32], w: &[f32], _: Scales, _: &mut (), out: &mut [u8]) {
        let (d, down, up) = scale(isa, x, w);
        let (header, blocks) = out.split_at_mut(4);
        header.copy_from_slice(&(d * up).to_le_bytes());
        encode_codes::<I, 64>(isa, Self::TYPE, x, (d, down), blocks);
    }
}

/// I2_S: two bits per element, and one f32 scale behind the codes of all rows. `w` has the weights of the columns.
pub struct EncodeMatrix<'a> {
    pub x: &'a [f32],
    pub w: &'a [f32],
    pub out: &'a mut [u8],
}

impl IsaOp for EncodeMatrix<'_> {
    type Output = bool;

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> bool {
        if !all_finite(self.x) {
            return false;
        }
        let (d, down, up) = scale(isa, self.x, self.w);
        let (blocks, trailer) = self.out.split_at_mut(self.out.len() - I2_S_TRAILER_BYTES);
        encode_codes::<I, 128>(isa, QuantType::I2_S, self.x, (d, down), blocks);
        trailer.fill(0);
        trailer[..4].copy_from_slice(&(d * up).to_le_bytes());
        true
    }
}

/// A sign per element, an f16 scale per block.
#[allow(non_camel_case_types)]
pub struct Q1_0;

impl Encode for Q1_0 {
    const TYPE: QuantType = QuantType::Q1_0_G128;
    type Scratch = ();

    #[inline(always)]
    fn encode_row<I: Isa>(isa: I, x: &[f32], w: &[f32], _: Scales, _: &mut (), out: &mut [u8]) {
        let layout = layout(Self::TYPE).expect("the type has a layout");
        // d, q
        let mut values = [0u32; 1 + 128];
        let blocks = x.as_chunks::<128>().0.iter().zip(w.as_chunks::<128>().0);
        for ((x, w), out) in blocks.zip(out.chunks_exact_mut(layout.bytes)) {
            let factors = normalizer(x);
            let (bits, _) = half(isa, mean(isa, x, w, factors.0), factors);
            values[0] = u32::from(bits);
            for (q, x) in values[1..].iter_mut().zip(x) {
                *q = u32::from(*x >= 0.0);
            }
            layout.pack(&values, out);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ternary_data_is_known() {
        assert!(is_ternary(&[0.0, 1.0, -1.0, 0.995]));
        assert!(is_ternary(&[3e-3, -0.5, 0.0]));
        assert!(is_ternary(&[0.0; 4]) && is_ternary(&[-7.0]) && is_ternary(&[]));
        assert!(!is_ternary(&[0.0, 1.0, 0.98]));
        assert!(!is_ternary(&[0.0, 1.0, -0.02]));
    }
}
