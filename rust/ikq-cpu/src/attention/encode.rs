//! Floats to the cache's types, rounded to the nearest.
//!
//! A cache is written while a model runs: no search, each block's scale follows from its extremes. Blocks that
//! hold NaN or infinity get the scale NaN, so that what went wrong shows in the result.

use ikq_formats::codebook::IQ4NL_VALUES;
use ikq_simd::{Isa, IsaKind, IsaOp, run};

use super::cache::CacheType;

/// A half-precision NaN.
const F16_NAN: u16 = 0x7e00;

/// Writes the row `x` as type `ty`.
///
/// # Panics
/// When `out` is not as long as [`CacheType::row_bytes`] says.
pub(super) fn encode(kind: IsaKind, ty: CacheType, x: &[f32], out: &mut [u8]) {
    assert_eq!(Some(out.len()), ty.row_bytes(x.len()), "a row of {}", ty.name());
    run(kind, Encode { ty, x, out });
}

struct Encode<'a> {
    ty: CacheType,
    x: &'a [f32],
    out: &'a mut [u8],
}

impl IsaOp for Encode<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Encode { ty, x, out } = self;
        let blocks = x.as_chunks::<32>().0;
        match ty {
            CacheType::F32 => {
                for (out, x) in out.as_chunks_mut::<4>().0.iter_mut().zip(x) {
                    *out = x.to_le_bytes();
                }
            }
            CacheType::F16 => f16_row(isa, x, out),
            CacheType::BF16 => {
                for (out, x) in out.as_chunks_mut::<2>().0.iter_mut().zip(x) {
                    *out = bf16(*x).to_le_bytes();
                }
            }
            CacheType::Q8_0 => {
                for (out, x) in out.as_chunks_mut::<34>().0.iter_mut().zip(blocks) {
                    q8_0(isa, x, out);
                }
            }
            CacheType::Q6_0 => {
                for (out, x) in out.as_chunks_mut::<26>().0.iter_mut().zip(blocks) {
                    q6_0(isa, x, out);
                }
            }
            CacheType::Q4_0 => {
                for (out, x) in out.as_chunks_mut::<18>().0.iter_mut().zip(blocks) {
                    q4_0(isa, x, out);
                }
            }
            CacheType::Q4_1 => {
                for (out, x) in out.as_chunks_mut::<20>().0.iter_mut().zip(blocks) {
                    q4_1(isa, x, out);
                }
            }
            CacheType::IQ4_NL => {
                for (out, x) in out.as_chunks_mut::<18>().0.iter_mut().zip(blocks) {
                    iq4_nl(isa, x, out);
                }
            }
        }
    }
}

#[inline(always)]
fn f16_row<I: Isa>(isa: I, x: &[f32], out: &mut [u8]) {
    for (out, x) in out.chunks_mut(32).zip(x.chunks(16)) {
        let bits = isa.f16_bits(crate::ops::load_tail(isa, x));
        for ((out, bits), x) in out.as_chunks_mut::<2>().0.iter_mut().zip(bits).zip(x) {
            *out = if x.is_nan() { F16_NAN } else { bits }.to_le_bytes();
        }
    }
}

/// Nearest even; NaN stays NaN.
#[inline(always)]
fn bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = (bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16;
    if x.is_nan() { (bits >> 16) as u16 | 64 } else { rounded }
}

/// The scale as it will be read, its bits, and its inverse (0 for 0).
#[inline(always)]
fn scale<I: Isa>(isa: I, d: f32) -> (u16, f32) {
    if !d.is_finite() {
        return (F16_NAN, 0.0);
    }
    let bits = isa.f16_bits(isa.splat_f(d))[0];
    let stored = isa.f16(bits);
    (bits, if stored == 0.0 { 0.0 } else { 1.0 / stored })
}

/// The largest magnitude; infinite where a number is not finite.
#[inline(always)]
fn largest(x: &[f32; 32]) -> f32 {
    let mut most = [0.0f32; 16];
    let mut fine = true;
    for x in x.as_chunks::<16>().0 {
        for (most, x) in most.iter_mut().zip(x) {
            *most = if x.abs() > *most { x.abs() } else { *most };
            fine &= x.abs() < f32::INFINITY;
        }
    }
    let most = most.iter().fold(0.0f32, |a, b| if *b > a { *b } else { a });
    if fine { most } else { f32::INFINITY }
}

/// The largest magnitude with its sign: that end of the range gets the code that the other end lacks.
#[inline(always)]
fn largest_signed(x: &[f32; 32]) -> f32 {
    let size = largest(x);
    // where both signs reach it, the negative one
    let negative = x.iter().fold(false, |found, x| found | (*x == -size));
    if negative { -size } else { size }
}

/// round(x / d) + offset, at least 0 and at most `top`.
#[inline(always)]
fn codes(x: &[f32; 32], inverse: f32, offset: f32, top: f32) -> [u8; 32] {
    let mut out = [0; 32];
    for (out, x) in out.iter_mut().zip(x) {
        // half up by truncation, which is vectorized
        *out = (x * inverse + offset + 0.5).clamp(0.0, top) as i32 as u8;
    }
    out
}

/// Low nibbles: the first sixteen codes; high nibbles: the others.
#[inline(always)]
fn nibbles(q: &[u8; 32], out: &mut [u8]) {
    for (i, out) in out.iter_mut().enumerate() {
        *out = q[i] & 15 | q[i + 16] << 4;
    }
}

#[inline(always)]
fn q8_0<I: Isa>(isa: I, x: &[f32; 32], out: &mut [u8; 34]) {
    let (bits, inverse) = scale(isa, largest(x) / 127.0);
    out[..2].copy_from_slice(&bits.to_le_bytes());
    for (out, q) in out[2..].iter_mut().zip(codes(x, inverse, 127.0, 254.0)) {
        *out = q.wrapping_sub(127);
    }
}

#[inline(always)]
fn q6_0<I: Isa>(isa: I, x: &[f32; 32], out: &mut [u8; 26]) {
    let (bits, inverse) = scale(isa, largest_signed(x) / -32.0);
    out[..2].copy_from_slice(&bits.to_le_bytes());
    let q = codes(x, inverse, 32.0, 63.0);
    for t in 0..8 {
        out[2 + t] = q[t] >> 4 | (q[t + 16] >> 4) << 2 | (q[t + 8] >> 4) << 4 | (q[t + 24] >> 4) << 6;
    }
    nibbles(&q, &mut out[10..]);
}

#[inline(always)]
fn q4_0<I: Isa>(isa: I, x: &[f32; 32], out: &mut [u8; 18]) {
    let (bits, inverse) = scale(isa, largest_signed(x) / -8.0);
    out[..2].copy_from_slice(&bits.to_le_bytes());
    nibbles(&codes(x, inverse, 8.0, 15.0), &mut out[2..]);
}

#[inline(always)]
fn q4_1<I: Isa>(isa: I, x: &[f32; 32], out: &mut [u8; 20]) {
    let finite = largest(x).is_finite();
    let (mut least, mut most) = (x[0], x[0]);
    for x in x {
        least = if *x < least { *x } else { least };
        most = if *x > most { *x } else { most };
    }
    let (low_bits, _) = scale(isa, least);
    let low = isa.f16(low_bits);
    let (bits, inverse) = scale(isa, if finite { (most - low) / 15.0 } else { f32::NAN });
    out[..2].copy_from_slice(&bits.to_le_bytes());
    out[2..4].copy_from_slice(&low_bits.to_le_bytes());
    let mut above = *x;
    above.iter_mut().for_each(|x| *x -= low);
    nibbles(&codes(&above, inverse, 0.0, 15.0), &mut out[4..]);
}

#[inline(always)]
fn iq4_nl<I: Isa>(isa: I, x: &[f32; 32], out: &mut [u8; 18]) {
    // the outermost value is -127
    let (bits, inverse) = scale(isa, largest_signed(x) / -127.0);
    out[..2].copy_from_slice(&bits.to_le_bytes());
    let mut q = [0u8; 32];
    for pair in IQ4NL_VALUES.windows(2) {
        let middle = (f32::from(pair[0]) + f32::from(pair[1])) / 2.0;
        for (q, x) in q.iter_mut().zip(x) {
            *q += u8::from(x * inverse > middle);
        }
    }
    nibbles(&q, &mut out[2..]);
}

#[cfg(test)]
mod tests {
    use super::super::cache::decode;
    use super::*;
    use ikq_simd::available;

    fn round_trip(kind: IsaKind, ty: CacheType, x: &[f32]) -> Vec<f32> {
        let mut bytes = vec![0; ty.row_bytes(x.len()).expect("whole blocks")];
        encode(kind, ty, x, &mut bytes);
        let mut out = vec![0.0; x.len()];
        decode(kind, ty, &bytes, &mut out);
        out
    }

    /// Largest error of an element of `block`: half a step; a whole one at the end of the range that has no
    /// code. Scales and offsets are halves: 2^-11 of the largest number besides.
    fn bound(ty: CacheType, block: &[f32], x: f32) -> f32 {
        let size = block.iter().fold(0.0f32, |m, x| m.max(x.abs()));
        let least = block.iter().copied().fold(f32::INFINITY, f32::min);
        let most = block.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let rounding = size / 2048.0;
        match ty {
            CacheType::F32 => 0.0,
            CacheType::F16 => (x.abs() / 2048.0).max(f32::powi(2.0, -25)),
            CacheType::BF16 => x.abs() / 256.0,
            CacheType::Q8_0 => size / 254.0 + rounding,
            CacheType::Q6_0 => size / 32.0 + rounding,
            CacheType::Q4_0 => size / 8.0 + rounding,
            CacheType::Q4_1 => (most - least) / 30.0 + rounding,
            // the widest gap of the table is 24 of 127, and one end stops at 113
            CacheType::IQ4_NL => size * 14.0 / 127.0 + rounding,
        }
    }

    #[test]
    fn errors_are_half_a_step() {
        for kind in available() {
            for ty in CacheType::ALL {
                for size in [1e-2f32, 1.0, 300.0] {
                    let x: Vec<f32> = (0..640).map(|i| ((i * i) as f32 * 0.37).sin() * size).collect();
                    let y = round_trip(kind, ty, &x);
                    let mut square = 0.0;
                    for (b, (x, y)) in x.chunks(32).zip(y.chunks(32)).enumerate() {
                        for (found, wanted) in y.iter().zip(x) {
                            let error = (found - wanted).abs();
                            let bound = bound(ty, x, *wanted);
                            square += (error / bound.max(1e-30)).powi(2);
                            assert!(error <= bound, "{} {b}: {found} {wanted}", ty.name());
                        }
                    }
                    // not one-sided either: errors within half a step have a third of its square on average
                    assert!(square / 640.0 < 0.5, "{} {}", ty.name(), square / 640.0);
                }
            }
        }
    }

    #[test]
    fn zeros_and_extremes_come_back() {
        for kind in available() {
            for ty in CacheType::ALL {
                assert_eq!(round_trip(kind, ty, &[0.0; 64]), vec![0.0; 64], "{}", ty.name());
                let mut x = [0.25f32; 32];
                (x[3], x[20]) = (-2.0, 1.0);
                let y = round_trip(kind, ty, &x);
                assert!((y[3] + 2.0).abs() < 2e-3, "{} {}", ty.name(), y[3]);
                for bad in [f32::NAN, f32::INFINITY] {
                    x[7] = bad;
                    let y = round_trip(kind, ty, &x);
                    let shown =
                        y[7].is_nan() || y[7].is_infinite() || ty == CacheType::F16 && y[7] == 65504.0;
                    assert!(shown, "{} {}", ty.name(), y[7]);
                }
                // too small for the scale: zeros or nearly, never wild
                let y = round_trip(kind, ty, &[1e-9; 32]);
                assert!(y.iter().all(|y| y.abs() <= 2e-8), "{} {y:?}", ty.name());
            }
        }
    }

    #[test]
    fn instruction_sets_agree() {
        let x: Vec<f32> = (0..320).map(|i| ((i * 37) as f32 * 0.11).cos() * 5.0).collect();
        for ty in CacheType::ALL {
            let first = round_trip(IsaKind::Scalar, ty, &x);
            assert!(available().into_iter().all(|kind| round_trip(kind, ty, &x) == first), "{}", ty.name());
        }
    }
}
