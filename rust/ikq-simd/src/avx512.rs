//! [`Isa`] in AVX-512 (F, BW, VL, DQ, VNNI, VBMI), where 64 bytes are one register.

use core::arch::x86_64::*;

use crate::arrays::{array, map};
use crate::isa::{Isa, IsaOp};

/// A token that proves AVX-512 F, BW, VL, DQ, VNNI and VBMI (and all that [`crate::Avx2`] proves); only detection
/// makes one.
#[derive(Clone, Copy, Debug)]
pub struct Avx512 {
    _private: (),
}

impl Avx512 {
    /// The token, if the machine has the instructions.
    pub fn detect() -> Option<Avx512> {
        let has = crate::Avx2::detect().is_some()
            && is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vnni")
            && is_x86_feature_detected!("avx512vbmi");
        has.then_some(Avx512 { _private: () })
    }
}

/// Runs AVX-512 intrinsics; `self` proves that they exist.
macro_rules! avx512 {
    ($($body:tt)*) => {
        // SAFETY: a token of type `Avx512` exists only on machines with the instructions used, and
        // every memory operand is a reference to an array of the width that is read or written.
        unsafe { $($body)* }
    };
}

#[inline(always)]
fn load128(p: &[u8; 16]) -> __m128i {
    // SAFETY: `p` is 16 readable bytes; SSE2 is part of every x86-64.
    unsafe { _mm_loadu_si128(p.as_ptr().cast()) }
}

/// Sixteen `i8` of quarter `K` as floats.
#[inline(always)]
fn floats<const K: i32>(v: __m512i) -> __m512 {
    // SAFETY: called from methods of `Avx512` only, whose token proves AVX-512.
    unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm512_extracti32x4_epi32::<K>(v))) }
}

/// Sixteen values of the KT generator from 16 products.
#[inline(always)]
fn trellis_quarter(product: __m512i) -> __m128i {
    // SAFETY: called from methods of `Avx512` only, whose token proves AVX-512 with VNNI.
    unsafe {
        let s = _mm512_and_si512(product, _mm512_set1_epi32(0x3f3f_3f3f));
        let sum = _mm512_dpbusd_epi32(_mm512_set1_epi32(-126), s, _mm512_set1_epi8(1));
        _mm512_cvtepi32_epi8(sum)
    }
}

impl Isa for Avx512 {
    const NAME: &'static str = "avx512";

    #[inline(always)]
    fn apart<O: IsaOp>(self, op: O) -> O::Output {
        // SAFETY: the token proves the features of the wrapper.
        unsafe { crate::select::with_avx512(self, op) }
    }

    #[inline(always)]
    fn load(self, p: &[u8; 64]) -> __m512i {
        avx512! { _mm512_loadu_si512(p.as_ptr().cast()) }
    }
    #[inline(always)]
    fn load_2x32(self, lo: &[u8; 32], hi: &[u8; 32]) -> __m512i {
        avx512! {
            let lo = _mm256_loadu_si256(lo.as_ptr().cast());
            let hi = _mm256_loadu_si256(hi.as_ptr().cast());
            _mm512_inserti64x4::<1>(_mm512_castsi256_si512(lo), hi)
        }
    }
    #[inline(always)]
    fn load_4x16(self, q: [&[u8; 16]; 4]) -> __m512i {
        avx512! {
            let lo = _mm256_set_m128i(load128(q[1]), load128(q[0]));
            let hi = _mm256_set_m128i(load128(q[3]), load128(q[2]));
            _mm512_inserti64x4::<1>(_mm512_castsi256_si512(lo), hi)
        }
    }
    #[inline(always)]
    fn splat(self, byte: u8) -> __m512i {
        avx512! { _mm512_set1_epi8(byte as i8) }
    }
    #[inline(always)]
    fn splat_4x16(self, b: [u8; 4]) -> __m512i {
        avx512! {
            // one 32-bit word everywhere; a byte shuffle fills each quarter with one of its bytes
            let v = _mm512_set1_epi32(i32::from_le_bytes(b));
            let quarter = _mm512_set_epi64(
                0x0303_0303_0303_0303, 0x0303_0303_0303_0303,
                0x0202_0202_0202_0202, 0x0202_0202_0202_0202,
                0x0101_0101_0101_0101, 0x0101_0101_0101_0101,
                0, 0,
            );
            _mm512_shuffle_epi8(v, quarter)
        }
    }
    #[inline(always)]
    fn of_u64(self, g: [u64; 8]) -> __m512i {
        let g = map(g, |x| x as i64);
        avx512! { _mm512_setr_epi64(g[0], g[1], g[2], g[3], g[4], g[5], g[6], g[7]) }
    }
    #[inline(always)]
    fn of_u32(self, g: [u32; 16]) -> __m512i {
        self.of_u64(array(|i| u64::from(g[2 * i]) | u64::from(g[2 * i + 1]) << 32))
    }
    #[inline(always)]
    fn and(self, a: __m512i, b: __m512i) -> __m512i {
        avx512! { _mm512_and_si512(a, b) }
    }
    #[inline(always)]
    fn or(self, a: __m512i, b: __m512i) -> __m512i {
        avx512! { _mm512_or_si512(a, b) }
    }
    #[inline(always)]
    fn xor(self, a: __m512i, b: __m512i) -> __m512i {
        avx512! { _mm512_xor_si512(a, b) }
    }
    #[inline(always)]
    fn bits_4x16(self, v: __m512i, s: [u32; 4], mask: u8) -> __m512i {
        // a 16-bit shift moves bits of the upper byte into the lower one, which the mask clears
        let count = map(s, |s| i64::from(s) * 0x0001_0001_0001_0001);
        avx512! {
            let count = _mm512_setr_epi64(
                count[0], count[0], count[1], count[1], count[2], count[2], count[3], count[3],
            );
            _mm512_and_si512(_mm512_srlv_epi16(v, count), _mm512_set1_epi8(mask as i8))
        }
    }
    #[inline(always)]
    fn shl(self, v: __m512i, n: u32) -> __m512i {
        avx512! { _mm512_sll_epi16(v, _mm_cvtsi32_si128(n as i32)) }
    }
    #[inline(always)]
    fn add(self, a: __m512i, b: __m512i) -> __m512i {
        avx512! { _mm512_add_epi8(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: __m512i, b: __m512i) -> __m512i {
        avx512! { _mm512_sub_epi8(a, b) }
    }
    #[inline(always)]
    fn abs(self, v: __m512i) -> __m512i {
        avx512! { _mm512_abs_epi8(v) }
    }
    #[inline(always)]
    fn lut16(self, table: &[i8; 16], index: __m512i) -> __m512i {
        avx512! {
            let t = _mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr().cast()));
            _mm512_shuffle_epi8(t, index)
        }
    }
    #[inline(always)]
    fn lut32(self, table: &[i8; 32], index: __m512i) -> __m512i {
        avx512! {
            let table = _mm256_loadu_si256(table.as_ptr().cast());
            _mm512_permutexvar_epi8(index, _mm512_broadcast_i64x4(table))
        }
    }
    #[inline(always)]
    fn lut64(self, table: &[i8; 64], index: __m512i) -> __m512i {
        avx512! { _mm512_permutexvar_epi8(index, _mm512_loadu_si512(table.as_ptr().cast())) }
    }
    #[inline(always)]
    fn mask_bytes(self, mask: u64, byte: u8) -> __m512i {
        avx512! { _mm512_maskz_mov_epi8(mask, _mm512_set1_epi8(byte as i8)) }
    }
    #[inline(always)]
    fn negate_where(self, v: __m512i, mask: u64) -> __m512i {
        avx512! { _mm512_mask_sub_epi8(v, mask, _mm512_setzero_si512(), v) }
    }
    #[inline(always)]
    fn trellis_8x8(self, seeds: [u32; 8], multipliers: &[u32; 8]) -> __m512i {
        avx512! {
            let m = _mm512_broadcast_i32x8(_mm256_loadu_si256(multipliers.as_ptr().cast()));
            let mut q = [_mm_setzero_si128(); 4];
            for (q, x) in q.iter_mut().zip(seeds.as_chunks::<2>().0) {
                let a = _mm256_set1_epi32(x[0] as i32);
                let b = _mm256_set1_epi32(x[1] as i32);
                let x = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(a), b);
                *q = trellis_quarter(_mm512_mullo_epi32(x, m));
            }
            join(q)
        }
    }
    #[inline(always)]
    fn trellis_16x4(self, seeds: [u32; 16], multipliers: &[u32; 8]) -> __m512i {
        avx512! {
            let m = _mm512_broadcast_i32x4(_mm_loadu_si128(multipliers.as_ptr().cast()));
            let all = _mm512_loadu_si512(seeds.as_ptr().cast());
            let mut q = [_mm_setzero_si128(); 4];
            for (k, q) in (0..16).step_by(4).zip(&mut q) {
                let pick = _mm512_setr_epi32(
                    k, k, k, k, k + 1, k + 1, k + 1, k + 1, k + 2, k + 2, k + 2, k + 2, k + 3, k + 3, k + 3, k + 3,
                );
                *q = trellis_quarter(_mm512_mullo_epi32(_mm512_permutexvar_epi32(pick, all), m));
            }
            join(q)
        }
    }
    #[inline(always)]
    fn f16_8(self, bits: [u16; 8]) -> [f32; 8] {
        let mut out = [0.0; 8];
        avx512! {
            let v = _mm256_cvtph_ps(_mm_loadu_si128(bits.as_ptr().cast()));
            _mm256_storeu_ps(out.as_mut_ptr(), v);
        }
        out
    }
    #[inline(always)]
    fn store_scaled(self, v: __m512i, scale: [f32; 4], out: &mut [f32; 64]) {
        let q = [floats::<0>(v), floats::<1>(v), floats::<2>(v), floats::<3>(v)];
        for (k, q) in q.into_iter().enumerate() {
            avx512! {
                let y = _mm512_mul_ps(_mm512_set1_ps(scale[k]), q);
                _mm512_storeu_ps(out[16 * k..16 * k + 16].as_mut_ptr(), y)
            }
        }
    }
    #[inline(always)]
    fn store_affine(self, v: __m512i, scale: [f32; 4], min: [f32; 4], out: &mut [f32; 64]) {
        let q = [floats::<0>(v), floats::<1>(v), floats::<2>(v), floats::<3>(v)];
        for (k, q) in q.into_iter().enumerate() {
            avx512! {
                let y = _mm512_mul_ps(_mm512_set1_ps(scale[k]), q);
                let y = _mm512_sub_ps(y, _mm512_set1_ps(min[k]));
                _mm512_storeu_ps(out[16 * k..16 * k + 16].as_mut_ptr(), y)
            }
        }
    }
    #[inline(always)]
    fn store(self, v: __m512i, out: &mut [u8; 64]) {
        avx512! { _mm512_storeu_si512(out.as_mut_ptr().cast(), v) }
    }
}

/// Joins four quarters to one register.
#[inline(always)]
fn join(q: [__m128i; 4]) -> __m512i {
    // SAFETY: called from methods of `Avx512` only, whose token proves AVX-512.
    unsafe {
        let lo = _mm256_set_m128i(q[1], q[0]);
        let hi = _mm256_set_m128i(q[3], q[2]);
        _mm512_inserti64x4::<1>(_mm512_castsi256_si512(lo), hi)
    }
}
