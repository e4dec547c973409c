//! Eight bits: Q8_0, Q8_K_R8, Q8_K_R16 (blocks with one f16 scale), Q8_KV, Q8_KV_R8 (one f32 scale per row).
//!
//! Objective: `sum (x - y)^2`; column weights are not used. There is no search: d puts the largest
//! magnitude on 127 and is rounded to its precision before the codes are chosen. Codes are whole bytes and written
//! directly, because the general packing would cost more than the rest.

use ikq_formats::QuantType;
use ikq_simd::Isa;

use super::Encode;
use super::weights::normalizer;
use crate::search::block_scales::coarse_halves;
use crate::search::gain::Scales;

/// The largest d of a row: 127 times it, rounded, is not infinite.
const LARGEST: f32 = f32::MAX / 127.001;

/// Encodes blocks of `N` elements, each as an f16 d and then `N` codes of a byte.
#[inline(always)]
fn encode_blocks<I: Isa, const N: usize>(isa: I, x: &[f32], out: &mut [u8]) {
    // sixteen blocks at a time, so that their scales fill one vector
    for (x, out) in x.chunks(16 * N).zip(out.chunks_mut(16 * (2 + N))) {
        let (mut peaks, mut downs, mut ups) = ([0.0; 16], [1.0; 16], [1.0; 16]);
        for (k, x) in x.as_chunks::<N>().0.iter().enumerate() {
            // magnitudes compare like their bits, and the compiler vectorizes a loop over integers
            let amax = f32::from_bits(x.iter().fold(0, |m, v| (v.to_bits() & 0x7fff_ffff).max(m)));
            let (down, up) = normalizer(&[amax]);
            (peaks[k], downs[k], ups[k]) = (amax * down, down, up);
        }
        // d is rounded to f16 at the block's true size, where it may be subnormal
        let (down, up) = (isa.load_f(&downs), isa.load_f(&ups));
        let exact = isa.mul_f(isa.mul_f(isa.load_f(&peaks), isa.splat_f(1.0 / 127.0)), up);
        // where d is among the smallest f16 numbers, rounding it down would clip much of the block, or all
        let exact = isa.array(exact).map(|d| coarse_halves(d).next().unwrap_or(d));
        let exact = isa.load_f(&exact);
        let bits = isa.f16_bits(exact);
        let d = isa.array(isa.mul_f(isa.f16_round(exact), down));
        for (k, (x, out)) in x.as_chunks::<N>().0.iter().zip(out.chunks_exact_mut(2 + N)).enumerate() {
            let (d_out, codes) = out.split_at_mut(2);
            d_out.copy_from_slice(&bits[k].to_le_bytes());
            let inverse = if d[k] > 0.0 { 1.0 / d[k] } else { 0.0 };
            encode_codes(isa, x, downs[k], inverse, codes);
        }
    }
}

/// Writes the codes of a block's or row's elements at the normalised scale `1 / inverse`. Returns their sum.
#[inline(always)]
fn encode_codes<I: Isa>(isa: I, x: &[f32], down: f32, inverse: f32, out: &mut [u8]) -> i32 {
    let (down, inverse) = (isa.splat_f(down), isa.splat_f(inverse));
    // a lane's sum is exact up to 2^17 codes
    let mut sum = isa.splat_f(0.0);
    for (x, codes) in x.as_chunks::<16>().0.iter().zip(out.as_chunks_mut::<16>().0) {
        let t = isa.mul_f(isa.mul_f(isa.load_f(x), down), inverse);
        // clamped first, because rounding only works for small numbers
        let t = isa.max_f(isa.min_f(t, isa.splat_f(127.0)), isa.splat_f(-127.0));
        let slots = isa.slot(t);
        sum = isa.add_f(sum, isa.slot_number(slots));
        *codes = isa.slot_bytes(slots);
    }
    let mut total = 0;
    for sum in isa.array(sum) {
        total += sum as i32;
    }
    total
}

/// Encodes a row as i8 codes with one f32 d. Returns the sum of the codes.
#[inline(always)]
fn encode_row<I: Isa>(isa: I, x: &[f32], d_out: &mut [u8], codes: &mut [u8]) -> i32 {
    let amax = f32::from_bits(x.iter().fold(0, |m, v| (v.to_bits() & 0x7fff_ffff).max(m)));
    let (down, up) = normalizer(&[amax]);
    let stored = (amax * down / 127.0 * up).min(LARGEST);
    d_out.copy_from_slice(&stored.to_le_bytes());
    // the normalised d, because the stored one is subnormal in rows of subnormal floats
    let d = stored * down;
    encode_codes(isa, x, down, if d > 0.0 { 1.0 / d } else { 0.0 }, codes)
}

macro_rules! f16_blocks {
    ($($(#[$doc:meta])* $ty:ident: $n:literal;)*) => { $(
        $(#[$doc])*
        #[allow(non_camel_case_types)]
        pub struct $ty;

        impl Encode for $ty {
            const TYPE: QuantType = QuantType::$ty;
            type Scratch = ();

            #[inline(always)]
            fn encode_row<I: Isa>(isa: I, x: &[f32], _: &[f32], _: Scales, _: &mut (), out: &mut [u8]) {
                encode_blocks::<I, $n>(isa, x, out);
            }
        }
    )* };
}

f16_blocks! {
    /// Blocks of 32, with codes in -127..=127.
    Q8_0: 32;
    /// Blocks of 256, for rows that are interleaved in groups of eight.
    Q8_K_R8: 256;
    /// Blocks of 256, for rows that are interleaved in groups of sixteen.
    Q8_K_R16: 256;
}

/// One scale per row; the header also has the sum of the codes.
#[allow(non_camel_case_types)]
pub struct Q8_KV;

impl Encode for Q8_KV {
    const TYPE: QuantType = QuantType::Q8_KV;
    type Scratch = ();

    #[inline(always)]
    fn encode_row<I: Isa>(isa: I, x: &[f32], _: &[f32], _: Scales, _: &mut (), out: &mut [u8]) {
        let (header, codes) = out.split_at_mut(8);
        let (d, sum) = header.split_at_mut(4);
        sum.copy_from_slice(&encode_row(isa, x, d, codes).to_le_bytes());
    }
}

/// One scale per row, for rows that are interleaved in groups of eight.
#[allow(non_camel_case_types)]
pub struct Q8_KV_R8;

impl Encode for Q8_KV_R8 {
    const TYPE: QuantType = QuantType::Q8_KV_R8;
    type Scratch = ();

    #[inline(always)]
    fn encode_row<I: Isa>(isa: I, x: &[f32], _: &[f32], _: Scales, _: &mut (), out: &mut [u8]) {
        let (d, codes) = out.split_at_mut(4);
        encode_row(isa, x, d, codes);
    }
}
