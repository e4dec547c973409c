//! [`Isa`] in AVX2, where 64 bytes are two registers.

use core::arch::x86_64::*;

use crate::arrays::{array, map};
use crate::isa::{Isa, IsaOp};

/// A token that proves AVX2, FMA, F16C and the bit-manipulation sets; only detection makes one.
#[derive(Clone, Copy, Debug)]
pub struct Avx2 {
    _private: (),
}

impl Avx2 {
    /// The token, if the machine has the instructions.
    pub fn detect() -> Option<Avx2> {
        let has = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c")
            && is_x86_feature_detected!("bmi1")
            && is_x86_feature_detected!("bmi2")
            && is_x86_feature_detected!("lzcnt")
            && is_x86_feature_detected!("popcnt");
        has.then_some(Avx2 { _private: () })
    }
}

type Pair = [__m256i; 2];

/// Sixteen bytes as a register.
#[inline(always)]
fn load16(p: &[u8; 16]) -> __m128i {
    // SAFETY: `p` is 16 readable bytes; SSE2 is part of every x86-64.
    unsafe { _mm_loadu_si128(p.as_ptr().cast()) }
}

/// Runs AVX2 intrinsics; `self` proves that they exist.
macro_rules! avx2 {
    ($($body:tt)*) => {
        // SAFETY: a token of type `Avx2` exists only on machines with the instructions used, and
        // every memory operand is a reference to an array of the width that is read or written.
        unsafe { $($body)* }
    };
}

/// Bytes that are all ones where the bit of `mask` is set, else 0.
#[inline(always)]
fn expand(mask: u32) -> __m256i {
    // SAFETY: called from methods of `Avx2` only, whose token proves AVX2.
    unsafe {
        let v = _mm256_set1_epi32(mask as i32);
        // byte j of the result depends on byte j / 8 of the mask, bit j % 8
        let spread =
            _mm256_setr_epi64x(0, 0x0101_0101_0101_0101, 0x0202_0202_0202_0202, 0x0303_0303_0303_0303);
        let bit = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64 as i64);
        let v = _mm256_and_si256(_mm256_shuffle_epi8(v, spread), bit);
        _mm256_cmpeq_epi8(v, bit)
    }
}

/// Thirty-two values of the KT generator from 32 products, in the same order.
#[inline(always)]
fn trellis_bytes(products: [__m256i; 4]) -> __m256i {
    // SAFETY: called from methods of `Avx2` only, whose token proves AVX2.
    unsafe {
        let mut sums = products;
        for p in &mut sums {
            let s = _mm256_and_si256(*p, _mm256_set1_epi32(0x3f3f_3f3f));
            let pairs = _mm256_maddubs_epi16(s, _mm256_set1_epi8(1));
            *p = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
        }
        // packing works within 128-bit halves; the permutation puts the groups of four back in order
        let lo = _mm256_packs_epi32(sums[0], sums[1]);
        let hi = _mm256_packs_epi32(sums[2], sums[3]);
        let bytes = _mm256_packus_epi16(lo, hi);
        let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
        _mm256_sub_epi8(_mm256_permutevar8x32_epi32(bytes, order), _mm256_set1_epi8(126))
    }
}

/// The low eight `i8` as floats.
#[inline(always)]
fn floats(v: __m128i) -> __m256 {
    // SAFETY: called from methods of `Avx2` only, whose token proves AVX2.
    unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(v)) }
}

/// Passes the eight groups of eight `i8` of a pair to `put`, as floats, each with its index.
#[inline(always)]
fn each_eight(v: Pair, mut put: impl FnMut(usize, __m256)) {
    for (half, v) in v.into_iter().enumerate() {
        // SAFETY: called from methods of `Avx2` only, whose token proves AVX2.
        let quarters = unsafe { [_mm256_castsi256_si128(v), _mm256_extracti128_si256::<1>(v)] };
        for (k, q) in quarters.into_iter().enumerate() {
            put(half * 4 + k * 2, floats(q));
            // SAFETY: SSE2 is part of every x86-64.
            put(half * 4 + k * 2 + 1, floats(unsafe { _mm_srli_si128::<8>(q) }));
        }
    }
}

impl Isa for Avx2 {
    const NAME: &'static str = "avx2";

    #[inline(always)]
    fn apart<O: IsaOp>(self, op: O) -> O::Output {
        // SAFETY: the token proves the features of the wrapper.
        unsafe { crate::select::with_avx2(self, op) }
    }

    #[inline(always)]
    fn load(self, p: &[u8; 64]) -> Pair {
        avx2! { [_mm256_loadu_si256(p.as_ptr().cast()), _mm256_loadu_si256(p[32..].as_ptr().cast())] }
    }
    #[inline(always)]
    fn load_2x32(self, lo: &[u8; 32], hi: &[u8; 32]) -> Pair {
        avx2! { [_mm256_loadu_si256(lo.as_ptr().cast()), _mm256_loadu_si256(hi.as_ptr().cast())] }
    }
    #[inline(always)]
    fn load_4x16(self, q: [&[u8; 16]; 4]) -> Pair {
        avx2! { [_mm256_set_m128i(load16(q[1]), load16(q[0])), _mm256_set_m128i(load16(q[3]), load16(q[2]))] }
    }
    #[inline(always)]
    fn splat(self, byte: u8) -> Pair {
        avx2! { [_mm256_set1_epi8(byte as i8); 2] }
    }
    #[inline(always)]
    fn splat_4x16(self, b: [u8; 4]) -> Pair {
        avx2! {
            // one 32-bit word, spread by byte shuffles
            let v = _mm256_set1_epi32(i32::from_le_bytes(b));
            let first = _mm256_setr_epi64x(0, 0, 0x0101_0101_0101_0101, 0x0101_0101_0101_0101);
            let last = _mm256_add_epi8(first, _mm256_set1_epi8(2));
            [_mm256_shuffle_epi8(v, first), _mm256_shuffle_epi8(v, last)]
        }
    }
    #[inline(always)]
    fn of_u64(self, g: [u64; 8]) -> Pair {
        let g = map(g, |x| x as i64);
        avx2! { [_mm256_setr_epi64x(g[0], g[1], g[2], g[3]), _mm256_setr_epi64x(g[4], g[5], g[6], g[7])] }
    }
    #[inline(always)]
    fn of_u32(self, g: [u32; 16]) -> Pair {
        self.of_u64(array(|i| u64::from(g[2 * i]) | u64::from(g[2 * i + 1]) << 32))
    }
    #[inline(always)]
    fn and(self, a: Pair, b: Pair) -> Pair {
        avx2! { [_mm256_and_si256(a[0], b[0]), _mm256_and_si256(a[1], b[1])] }
    }
    #[inline(always)]
    fn or(self, a: Pair, b: Pair) -> Pair {
        avx2! { [_mm256_or_si256(a[0], b[0]), _mm256_or_si256(a[1], b[1])] }
    }
    #[inline(always)]
    fn xor(self, a: Pair, b: Pair) -> Pair {
        avx2! { [_mm256_xor_si256(a[0], b[0]), _mm256_xor_si256(a[1], b[1])] }
    }
    #[inline(always)]
    fn bits_4x16(self, v: Pair, s: [u32; 4], mask: u8) -> Pair {
        avx2! {
            // a 16-bit shift moves bits of the upper byte into the lower one, which the mask clears
            let half = |v: __m256i, a: u32, b: u32| match a == b {
                true => _mm256_srl_epi16(v, _mm_cvtsi32_si128(a as i32)),
                false => {
                    let (a, b) = (_mm_cvtsi32_si128(a as i32), _mm_cvtsi32_si128(b as i32));
                    let (lo, hi) = (_mm256_castsi256_si128(v), _mm256_extracti128_si256::<1>(v));
                    _mm256_set_m128i(_mm_srl_epi16(hi, b), _mm_srl_epi16(lo, a))
                }
            };
            self.and([half(v[0], s[0], s[1]), half(v[1], s[2], s[3])], self.splat(mask))
        }
    }
    #[inline(always)]
    fn shl(self, v: Pair, n: u32) -> Pair {
        avx2! {
            let n = _mm_cvtsi32_si128(n as i32);
            [_mm256_sll_epi16(v[0], n), _mm256_sll_epi16(v[1], n)]
        }
    }
    #[inline(always)]
    fn add(self, a: Pair, b: Pair) -> Pair {
        avx2! { [_mm256_add_epi8(a[0], b[0]), _mm256_add_epi8(a[1], b[1])] }
    }
    #[inline(always)]
    fn sub(self, a: Pair, b: Pair) -> Pair {
        avx2! { [_mm256_sub_epi8(a[0], b[0]), _mm256_sub_epi8(a[1], b[1])] }
    }
    #[inline(always)]
    fn abs(self, v: Pair) -> Pair {
        avx2! { [_mm256_abs_epi8(v[0]), _mm256_abs_epi8(v[1])] }
    }
    #[inline(always)]
    fn lut16(self, table: &[i8; 16], index: Pair) -> Pair {
        avx2! {
            let t = _mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast()));
            [_mm256_shuffle_epi8(t, index[0]), _mm256_shuffle_epi8(t, index[1])]
        }
    }
    #[inline(always)]
    fn lut32(self, table: &[i8; 32], index: Pair) -> Pair {
        let (lo, hi) = halves(table);
        avx2! {
            let low = self.and(index, self.splat(15));
            let (a, b) = (self.lut16(lo, low), self.lut16(hi, low));
            // bit 4 of the index is moved to the sign bit, by which the blend chooses
            let pick = self.shl(index, 3);
            [_mm256_blendv_epi8(a[0], b[0], pick[0]), _mm256_blendv_epi8(a[1], b[1], pick[1])]
        }
    }
    #[inline(always)]
    fn lut64(self, table: &[i8; 64], index: Pair) -> Pair {
        let (lo, hi) = halves(table);
        avx2! {
            let low = self.and(index, self.splat(31));
            let (a, b) = (self.lut32(lo, low), self.lut32(hi, low));
            let pick = self.shl(index, 2);
            [_mm256_blendv_epi8(a[0], b[0], pick[0]), _mm256_blendv_epi8(a[1], b[1], pick[1])]
        }
    }
    #[inline(always)]
    fn mask_bytes(self, mask: u64, byte: u8) -> Pair {
        self.and([expand(mask as u32), expand((mask >> 32) as u32)], self.splat(byte))
    }
    #[inline(always)]
    fn negate_where(self, v: Pair, mask: u64) -> Pair {
        let ones = [expand(mask as u32), expand((mask >> 32) as u32)];
        self.sub(self.xor(v, ones), ones)
    }
    #[inline(always)]
    fn trellis_8x8(self, seeds: [u32; 8], multipliers: &[u32; 8]) -> Pair {
        avx2! {
            let m = _mm256_loadu_si256(multipliers.as_ptr().cast());
            let mut p = [m; 8];
            for (p, x) in p.iter_mut().zip(seeds) {
                *p = _mm256_mullo_epi32(_mm256_set1_epi32(x as i32), m);
            }
            [trellis_bytes([p[0], p[1], p[2], p[3]]), trellis_bytes([p[4], p[5], p[6], p[7]])]
        }
    }
    #[inline(always)]
    fn trellis_16x4(self, seeds: [u32; 16], multipliers: &[u32; 8]) -> Pair {
        avx2! {
            let m = _mm256_broadcastsi128_si256(_mm_loadu_si128(multipliers.as_ptr().cast()));
            let mut p = [m; 8];
            for (p, x) in p.iter_mut().zip(seeds.as_chunks::<2>().0) {
                let (a, b) = (x[0] as i32, x[1] as i32);
                *p = _mm256_mullo_epi32(_mm256_setr_epi32(a, a, a, a, b, b, b, b), m);
            }
            [trellis_bytes([p[0], p[1], p[2], p[3]]), trellis_bytes([p[4], p[5], p[6], p[7]])]
        }
    }
    #[inline(always)]
    fn f16_8(self, bits: [u16; 8]) -> [f32; 8] {
        let mut out = [0.0; 8];
        avx2! {
            let v = _mm256_cvtph_ps(_mm_loadu_si128(bits.as_ptr().cast()));
            _mm256_storeu_ps(out.as_mut_ptr(), v);
        }
        out
    }
    #[inline(always)]
    fn store_scaled(self, v: Pair, scale: [f32; 4], out: &mut [f32; 64]) {
        each_eight(v, |k, q| {
            avx2! {
                let y = _mm256_mul_ps(_mm256_set1_ps(scale[k / 2]), q);
                _mm256_storeu_ps(out[8 * k..8 * k + 8].as_mut_ptr(), y)
            }
        });
    }
    #[inline(always)]
    fn store_affine(self, v: Pair, scale: [f32; 4], min: [f32; 4], out: &mut [f32; 64]) {
        each_eight(v, |k, q| {
            avx2! {
                let y = _mm256_mul_ps(_mm256_set1_ps(scale[k / 2]), q);
                let y = _mm256_sub_ps(y, _mm256_set1_ps(min[k / 2]));
                _mm256_storeu_ps(out[8 * k..8 * k + 8].as_mut_ptr(), y)
            }
        });
    }
    #[inline(always)]
    fn store(self, v: Pair, out: &mut [u8; 64]) {
        avx2! {
            _mm256_storeu_si256(out.as_mut_ptr().cast(), v[0]);
            _mm256_storeu_si256(out[32..].as_mut_ptr().cast(), v[1]);
        }
    }
}

/// The two halves of a table.
#[inline(always)]
fn halves<const N: usize, const M: usize>(table: &[i8; N]) -> (&[i8; M], &[i8; M]) {
    const { assert!(N == 2 * M) };
    let (lo, hi) = table.split_at(M);
    let half = |s: &'_ [i8]| -> *const [i8; M] { s.as_ptr().cast() };
    // SAFETY: each half has M elements, as asserted above.
    unsafe { (&*half(lo), &*half(hi)) }
}
