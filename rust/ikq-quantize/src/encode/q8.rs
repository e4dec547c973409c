//! Q8_0: blocks of 32 bytes with one f16 scale.
//!
//! Objective: `sum (x - y)^2`; the column weights are not looked at. No search: d puts the largest
//! magnitude on 127 and is rounded to half precision before the codes are chosen.

use ikq_formats::QuantType;
use ikq_simd::Isa;

use super::Encode;
use super::weights::normalizer;

/// Elements per block.
const N: usize = 32;
/// f16 d, then the codes: whole bytes, for which the general packing would cost more than the rest.
const BYTES: usize = 2 + N;

/// 256 levels, -127..=127 used.
pub struct Q8_0;

impl Encode for Q8_0 {
    const TYPE: QuantType = QuantType::Q8_0;
    type Scratch = ();

    #[inline(always)]
    fn encode_row<I: Isa>(isa: I, x: &[f32], _: &[f32], _: &mut (), out: &mut [u8]) {
        // sixteen blocks at a time, so that their scales are one vector
        for (x, out) in x.chunks(16 * N).zip(out.chunks_mut(16 * BYTES)) {
            let (mut peaks, mut downs, mut ups) = ([0.0; 16], [1.0; 16], [1.0; 16]);
            for (k, x) in x.chunks_exact(N).enumerate() {
                // magnitudes compare like their bits, and integers make a vector loop
                let amax = f32::from_bits(x.iter().fold(0, |m, v| (v.to_bits() & 0x7fff_ffff).max(m)));
                let (down, up) = normalizer(&[amax]);
                (peaks[k], downs[k], ups[k]) = (amax * down, down, up);
            }
            // the half is rounded at the block's true size, where halves may be subnormal
            let (down, up) = (isa.load_f(&downs), isa.load_f(&ups));
            let exact = isa.mul_f(isa.mul_f(isa.load_f(&peaks), isa.splat_f(1.0 / 127.0)), up);
            let bits = isa.f16_bits(exact);
            let d = isa.array(isa.mul_f(isa.f16_round(exact), down));
            for (k, (x, out)) in x.chunks_exact(N).zip(out.chunks_exact_mut(BYTES)).enumerate() {
                let inverse = if d[k] > 0.0 { 1.0 / d[k] } else { 0.0 };
                encode_block(isa, x, downs[k], inverse, bits[k], out);
            }
        }
    }
}

/// One block at the normalised scale `1 / inverse`.
#[inline(always)]
fn encode_block<I: Isa>(isa: I, x: &[f32], down: f32, inverse: f32, d: u16, out: &mut [u8]) {
    let (d_out, codes) = out.split_at_mut(2);
    d_out.copy_from_slice(&d.to_le_bytes());
    let (down, inverse) = (isa.splat_f(down), isa.splat_f(inverse));
    for (x, codes) in x.as_chunks::<16>().0.iter().zip(codes.as_chunks_mut::<16>().0) {
        let t = isa.mul_f(isa.mul_f(isa.load_f(x), down), inverse);
        // clamped first: rounding wants small numbers
        let t = isa.max_f(isa.min_f(t, isa.splat_f(127.0)), isa.splat_f(-127.0));
        let slots = isa.array(isa.slot(t));
        for (code, slot) in codes.iter_mut().zip(&slots) {
            *code = slot.to_bits() as u8;
        }
    }
}
