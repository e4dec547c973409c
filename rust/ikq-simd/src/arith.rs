//! [`Arith`]: sixteen floats at a time, for arithmetic whose last bit may depend on the instruction set.
//!
//! Encoders and decoders must give the same bits everywhere, so they only use [`crate::Lanes`]. Sums of products in
//! a running model need fused operations to be fast, so they only agree up to rounding.

use core::arch::x86_64::*;

use crate::{Avx2, Avx512, LaneBits, Scalar, array};

/// Fused products, sums in any order, and loads of floats of four and two bytes.
pub trait Arith: LaneBits {
    /// How many values of sixteen lanes the registers hold; it decides the size of tiles of accumulators.
    const N_REGISTERS: usize;

    /// `a * b + c`, rounded once where the instruction set can do so, otherwise twice.
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// The floats that have these bits.
    fn of_bits(self, bits: Self::I) -> Self::F;
    /// Sixteen little-endian floats.
    fn load_f32(self, bytes: &[u8; 64]) -> Self::F;
    /// Sixteen little-endian f16 numbers, converted exactly.
    fn load_f16(self, bytes: &[u8; 32]) -> Self::F;
    /// Sixteen little-endian bf16 numbers, converted exactly.
    fn load_bf16(self, bytes: &[u8; 32]) -> Self::F;
    /// The sum of the lanes, added in any order.
    #[inline(always)]
    fn total(self, v: Self::F) -> f32 {
        self.sum(v)
    }
    /// [`Arith::total`] of each value.
    #[inline(always)]
    fn totals(self, v: &[Self::F; 16]) -> [f32; 16] {
        let mut out = [0.0; 16];
        for (out, v) in out.iter_mut().zip(v) {
            *out = self.total(*v);
        }
        out
    }
}

/// Prefetches the cache lines of `bytes`, without waiting for them.
#[inline(always)]
pub fn prefetch(bytes: &[u8]) {
    for line in bytes.chunks(64) {
        // SAFETY: a prefetch reads nothing and cannot fault; SSE is part of x86-64.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()) }
    }
}

impl Arith for Scalar {
    const N_REGISTERS: usize = 4;

    #[inline(always)]
    fn fma(self, a: [f32; 16], b: [f32; 16], c: [f32; 16]) -> [f32; 16] {
        array(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    fn of_bits(self, bits: [i32; 16]) -> [f32; 16] {
        array(|i| f32::from_bits(bits[i] as u32))
    }
    #[inline(always)]
    fn load_f32(self, bytes: &[u8; 64]) -> [f32; 16] {
        let quads = bytes.as_chunks::<4>().0;
        array(|i| f32::from_le_bytes(quads[i]))
    }
    #[inline(always)]
    fn load_f16(self, bytes: &[u8; 32]) -> [f32; 16] {
        array(|i| crate::scalar::f16_to_f32(u16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]])))
    }
    #[inline(always)]
    fn load_bf16(self, bytes: &[u8; 32]) -> [f32; 16] {
        array(|i| f32::from_bits(u32::from_le_bytes([0, 0, bytes[2 * i], bytes[2 * i + 1]])))
    }
}

impl Arith for Avx2 {
    const N_REGISTERS: usize = 8;

    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        // SAFETY: the token proves FMA.
        unsafe { [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])] }
    }
    #[inline(always)]
    fn of_bits(self, bits: Self::I) -> Self::F {
        // SAFETY: the token proves AVX.
        unsafe { [_mm256_castsi256_ps(bits[0]), _mm256_castsi256_ps(bits[1])] }
    }
    #[inline(always)]
    fn load_f32(self, bytes: &[u8; 64]) -> Self::F {
        // SAFETY: the token proves AVX; both halves are 32 readable bytes.
        unsafe { [_mm256_loadu_ps(bytes.as_ptr().cast()), _mm256_loadu_ps(bytes[32..].as_ptr().cast())] }
    }
    #[inline(always)]
    fn load_f16(self, bytes: &[u8; 32]) -> Self::F {
        // SAFETY: the token proves F16C; both halves are 16 readable bytes.
        unsafe {
            [
                _mm256_cvtph_ps(_mm_loadu_si128(bytes.as_ptr().cast())),
                _mm256_cvtph_ps(_mm_loadu_si128(bytes[16..].as_ptr().cast())),
            ]
        }
    }
    #[inline(always)]
    fn load_bf16(self, bytes: &[u8; 32]) -> Self::F {
        // SAFETY: the token proves AVX2; both halves are 16 readable bytes.
        unsafe {
            let lo = _mm256_cvtepu16_epi32(_mm_loadu_si128(bytes.as_ptr().cast()));
            let hi = _mm256_cvtepu16_epi32(_mm_loadu_si128(bytes[16..].as_ptr().cast()));
            [
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(lo)),
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(hi)),
            ]
        }
    }
    #[inline(always)]
    fn total(self, v: Self::F) -> f32 {
        // SAFETY: the token proves AVX.
        unsafe {
            let eight = _mm256_add_ps(v[0], v[1]);
            let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
    }
}

impl Arith for Avx512 {
    const N_REGISTERS: usize = 32;

    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: the token proves AVX-512F.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn of_bits(self, bits: __m512i) -> __m512 {
        // SAFETY: the token proves AVX-512F.
        unsafe { _mm512_castsi512_ps(bits) }
    }
    #[inline(always)]
    fn load_f32(self, bytes: &[u8; 64]) -> __m512 {
        // SAFETY: the token proves AVX-512F; `bytes` is 64 readable bytes.
        unsafe { _mm512_loadu_ps(bytes.as_ptr().cast()) }
    }
    #[inline(always)]
    fn load_f16(self, bytes: &[u8; 32]) -> __m512 {
        // SAFETY: the token proves AVX-512F; `bytes` is 32 readable bytes.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(bytes.as_ptr().cast())) }
    }
    #[inline(always)]
    fn load_bf16(self, bytes: &[u8; 32]) -> __m512 {
        // SAFETY: the token proves AVX-512F; `bytes` is 32 readable bytes.
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(bytes.as_ptr().cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
    }
    #[inline(always)]
    fn total(self, v: __m512) -> f32 {
        // SAFETY: the token proves AVX-512F.
        unsafe { _mm512_reduce_add_ps(v) }
    }
    #[inline(always)]
    fn totals(self, v: &[__m512; 16]) -> [f32; 16] {
        let mut out = [0.0; 16];
        // SAFETY: the token proves AVX-512F; `out` is 16 writable floats.
        unsafe {
            // each step halves the parts of each sum and doubles the number of sums in a register. First within
            // quarters: u[i] has, in each quarter, partial sums of v[i], v[i + 8], v[i + 4], v[i + 12]
            let mut t = [_mm512_setzero_ps(); 8];
            for (i, t) in t.iter_mut().enumerate() {
                let (a, b) = (v[i], v[i + 8]);
                *t = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
            }
            let mut u = [_mm512_setzero_ps(); 4];
            for (i, u) in u.iter_mut().enumerate() {
                let (a, b) = (_mm512_castps_pd(t[i]), _mm512_castps_pd(t[i + 4]));
                let (lo, hi) = (_mm512_unpacklo_pd(a, b), _mm512_unpackhi_pd(a, b));
                *u = _mm512_add_ps(_mm512_castpd_ps(lo), _mm512_castpd_ps(hi));
            }
            // then across quarters: the even ones are added to the odd ones
            let mut w = [_mm512_setzero_ps(); 2];
            for (i, w) in w.iter_mut().enumerate() {
                let (a, b) = (u[2 * i], u[2 * i + 1]);
                *w = _mm512_add_ps(_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0xdd>(a, b));
            }
            let x = _mm512_add_ps(
                _mm512_shuffle_f32x4::<0x88>(w[0], w[1]),
                _mm512_shuffle_f32x4::<0xdd>(w[0], w[1]),
            );
            let order = _mm512_setr_epi32(0, 4, 8, 12, 2, 6, 10, 14, 1, 5, 9, 13, 3, 7, 11, 15);
            _mm512_storeu_ps(out.as_mut_ptr(), _mm512_permutexvar_ps(order, x));
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Isa, IsaOp, available, run};

    struct Loads<'a>(&'a [u8; 32]);

    impl IsaOp for Loads<'_> {
        type Output = ([f32; 16], [f32; 16], [f32; 16], [f32; 16], f32);

        #[inline(always)]
        fn run<I: Isa>(self, isa: I) -> Self::Output {
            let (a, b) = (isa.load_f16(self.0), isa.load_bf16(self.0));
            let same = isa.of_bits(isa.bits_i(a));
            // small integers, which are exact in any order and with any rounding
            let x = isa.load_f(&array(|i| i as f32 - 3.0));
            let y = isa.fma(x, x, isa.splat_f(0.5));
            let mut bytes = [0; 64];
            for (to, from) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(isa.array(b)) {
                *to = from.to_le_bytes();
            }
            let c = isa.load_f32(&bytes);
            (isa.array(same), isa.array(b), isa.array(c), isa.array(y), isa.total(y))
        }
    }

    struct Totals;

    impl IsaOp for Totals {
        type Output = [f32; 16];

        #[inline(always)]
        fn run<I: Isa>(self, isa: I) -> [f32; 16] {
            let mut v = [isa.splat_f(0.0); 16];
            for (k, v) in v.iter_mut().enumerate() {
                *v = isa.load_f(&array(|i| (k * k + 31 * i * (i + k)) as f32));
            }
            isa.totals(&v)
        }
    }

    #[test]
    fn totals_stand_in_order() {
        let expected: [f32; 16] =
            std::array::from_fn(|k| (0..16).map(|i| (k * k + 31 * i * (i + k)) as f32).sum());
        for kind in available() {
            assert_eq!(run(kind, Totals), expected, "{}", kind.name());
        }
    }

    #[test]
    fn loads_and_products_are_what_they_stand_for() {
        let f16 = |x: u16| crate::scalar::f16_to_f32(x);
        for first in (0..0x7c00u16).step_by(16) {
            let codes: [u16; 16] = std::array::from_fn(|i| (first + i as u16) | (i as u16 & 1) << 15);
            let mut bytes = [0; 32];
            for (b, c) in bytes.as_chunks_mut::<2>().0.iter_mut().zip(codes) {
                *b = c.to_le_bytes();
            }
            for kind in available() {
                let (half, brain, again, squares, total) = run(kind, Loads(&bytes));
                assert_eq!(half, codes.map(f16), "{}", kind.name());
                assert_eq!(brain, codes.map(|c| f32::from_bits(u32::from(c) << 16)), "{}", kind.name());
                assert_eq!(again, brain, "{}", kind.name());
                let expected: [f32; 16] = std::array::from_fn(|i| (i as f32 - 3.0).powi(2) + 0.5);
                assert_eq!((squares, total), (expected, expected.iter().sum()), "{}", kind.name());
            }
        }
    }
}
