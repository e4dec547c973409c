//! Sixteen floats at a time: the vocabulary of the encoders' searches.
//!
//! Encoders put sixteen sub-blocks (or sixteen candidates) side by side, one per lane. Every
//! operation is one IEEE operation per lane (two for [`Lanes::round`]), so a search gives the same
//! codes on every instruction set; sums over lanes go through [`Lanes::sum`], whose tree is fixed.

use core::arch::x86_64::*;

use crate::{Avx2, Avx512, Scalar};

/// Adding and subtracting this rounds to the nearest integer, ties to even, for |x| < 2^22.
const ROUND: f32 = 12_582_912.0;

/// Sixteen f32 lanes.
pub trait Lanes: Copy + Send + Sync + 'static {
    type F: Copy;

    fn load_f(self, x: &[f32; 16]) -> Self::F;
    fn splat_f(self, x: f32) -> Self::F;
    fn store_f(self, v: Self::F, out: &mut [f32; 16]);
    fn add_f(self, a: Self::F, b: Self::F) -> Self::F;
    fn sub_f(self, a: Self::F, b: Self::F) -> Self::F;
    fn mul_f(self, a: Self::F, b: Self::F) -> Self::F;
    /// Division; x / 0 follows IEEE (callers select afterwards).
    fn div_f(self, a: Self::F, b: Self::F) -> Self::F;
    fn sqrt_f(self, v: Self::F) -> Self::F;
    /// `a < b ? a : b` per lane (b where either is NaN).
    fn min_f(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a > b ? a : b` per lane (b where either is NaN).
    fn max_f(self, a: Self::F, b: Self::F) -> Self::F;
    fn abs_f(self, v: Self::F) -> Self::F;
    /// `a > b ? x : y` per lane (y where either is NaN).
    fn if_gt(self, a: Self::F, b: Self::F, x: Self::F, y: Self::F) -> Self::F;

    /// `a * b + c` with both roundings: two operations on every instruction set, never fused.
    #[inline(always)]
    fn mul_add_f(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        self.add_f(self.mul_f(a, b), c)
    }

    /// Nearest integer, ties to even; |x| must be below 2^22.
    #[inline(always)]
    fn round(self, v: Self::F) -> Self::F {
        let big = self.splat_f(ROUND);
        self.sub_f(self.add_f(v, big), big)
    }

    /// The lanes as an array.
    #[inline(always)]
    fn array(self, v: Self::F) -> [f32; 16] {
        let mut out = [0.0; 16];
        self.store_f(v, &mut out);
        out
    }

    /// Sum of the lanes by halving: 16 -> 8 -> 4 -> 2 -> 1.
    #[inline(always)]
    fn sum(self, v: Self::F) -> f32 {
        let a = self.array(v);
        let b: [f32; 8] = std::array::from_fn(|i| a[i] + a[i + 8]);
        let c: [f32; 4] = std::array::from_fn(|i| b[i] + b[i + 4]);
        (c[0] + c[2]) + (c[1] + c[3])
    }
}

#[inline(always)]
fn zip(a: [f32; 16], b: [f32; 16], f: impl Fn(f32, f32) -> f32) -> [f32; 16] {
    std::array::from_fn(|i| f(a[i], b[i]))
}

impl Lanes for Scalar {
    type F = [f32; 16];

    #[inline(always)]
    fn load_f(self, x: &[f32; 16]) -> [f32; 16] {
        *x
    }
    #[inline(always)]
    fn splat_f(self, x: f32) -> [f32; 16] {
        [x; 16]
    }
    #[inline(always)]
    fn store_f(self, v: [f32; 16], out: &mut [f32; 16]) {
        *out = v;
    }
    #[inline(always)]
    fn add_f(self, a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        zip(a, b, |a, b| a + b)
    }
    #[inline(always)]
    fn sub_f(self, a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        zip(a, b, |a, b| a - b)
    }
    #[inline(always)]
    fn mul_f(self, a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        zip(a, b, |a, b| a * b)
    }
    #[inline(always)]
    fn div_f(self, a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        zip(a, b, |a, b| a / b)
    }
    #[inline(always)]
    fn sqrt_f(self, v: [f32; 16]) -> [f32; 16] {
        v.map(f32::sqrt)
    }
    #[inline(always)]
    fn min_f(self, a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        zip(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    fn max_f(self, a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        zip(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn abs_f(self, v: [f32; 16]) -> [f32; 16] {
        v.map(f32::abs)
    }
    #[inline(always)]
    fn if_gt(self, a: [f32; 16], b: [f32; 16], x: [f32; 16], y: [f32; 16]) -> [f32; 16] {
        std::array::from_fn(|i| if a[i] > b[i] { x[i] } else { y[i] })
    }
}

/// The two registers of sixteen lanes.
type Pair = [__m256; 2];

/// One AVX instruction on both halves.
macro_rules! both {
    ($a:expr, $b:expr, $op:ident) => {{
        let (a, b) = ($a, $b);
        // SAFETY: in methods of `Avx2`, whose token proves the instructions.
        unsafe { [$op(a[0], b[0]), $op(a[1], b[1])] }
    }};
}

impl Lanes for Avx2 {
    type F = Pair;

    #[inline(always)]
    fn load_f(self, x: &[f32; 16]) -> Pair {
        // SAFETY: the token proves AVX; `x` is 16 readable floats.
        unsafe { [_mm256_loadu_ps(x.as_ptr()), _mm256_loadu_ps(x[8..].as_ptr())] }
    }
    #[inline(always)]
    fn splat_f(self, x: f32) -> Pair {
        // SAFETY: the token proves AVX.
        unsafe { [_mm256_set1_ps(x); 2] }
    }
    #[inline(always)]
    fn store_f(self, v: Pair, out: &mut [f32; 16]) {
        // SAFETY: the token proves AVX; `out` is 16 writable floats.
        unsafe {
            _mm256_storeu_ps(out.as_mut_ptr(), v[0]);
            _mm256_storeu_ps(out[8..].as_mut_ptr(), v[1]);
        }
    }
    #[inline(always)]
    fn add_f(self, a: Pair, b: Pair) -> Pair {
        both!(a, b, _mm256_add_ps)
    }
    #[inline(always)]
    fn sub_f(self, a: Pair, b: Pair) -> Pair {
        both!(a, b, _mm256_sub_ps)
    }
    #[inline(always)]
    fn mul_f(self, a: Pair, b: Pair) -> Pair {
        both!(a, b, _mm256_mul_ps)
    }
    #[inline(always)]
    fn div_f(self, a: Pair, b: Pair) -> Pair {
        both!(a, b, _mm256_div_ps)
    }
    #[inline(always)]
    fn sqrt_f(self, v: Pair) -> Pair {
        // SAFETY: the token proves AVX.
        unsafe { [_mm256_sqrt_ps(v[0]), _mm256_sqrt_ps(v[1])] }
    }
    #[inline(always)]
    fn min_f(self, a: Pair, b: Pair) -> Pair {
        both!(a, b, _mm256_min_ps)
    }
    #[inline(always)]
    fn max_f(self, a: Pair, b: Pair) -> Pair {
        both!(a, b, _mm256_max_ps)
    }
    #[inline(always)]
    fn abs_f(self, v: Pair) -> Pair {
        both!(self.splat_f(-0.0), v, _mm256_andnot_ps)
    }
    #[inline(always)]
    fn if_gt(self, a: Pair, b: Pair, x: Pair, y: Pair) -> Pair {
        // SAFETY: the token proves AVX.
        unsafe {
            let m = [_mm256_cmp_ps::<_CMP_GT_OQ>(a[0], b[0]), _mm256_cmp_ps::<_CMP_GT_OQ>(a[1], b[1])];
            [_mm256_blendv_ps(y[0], x[0], m[0]), _mm256_blendv_ps(y[1], x[1], m[1])]
        }
    }
}

/// Runs AVX-512 intrinsics in methods of `Avx512`.
macro_rules! avx512 {
    ($($body:tt)*) => {
        // SAFETY: in methods of `Avx512`, whose token proves the instructions; memory operands are
        // references to arrays of 16 floats.
        unsafe { $($body)* }
    };
}

impl Lanes for Avx512 {
    type F = __m512;

    #[inline(always)]
    fn load_f(self, x: &[f32; 16]) -> __m512 {
        avx512! { _mm512_loadu_ps(x.as_ptr()) }
    }
    #[inline(always)]
    fn splat_f(self, x: f32) -> __m512 {
        avx512! { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    fn store_f(self, v: __m512, out: &mut [f32; 16]) {
        avx512! { _mm512_storeu_ps(out.as_mut_ptr(), v) }
    }
    #[inline(always)]
    fn add_f(self, a: __m512, b: __m512) -> __m512 {
        avx512! { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    fn sub_f(self, a: __m512, b: __m512) -> __m512 {
        avx512! { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    fn mul_f(self, a: __m512, b: __m512) -> __m512 {
        avx512! { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    fn div_f(self, a: __m512, b: __m512) -> __m512 {
        avx512! { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    fn sqrt_f(self, v: __m512) -> __m512 {
        avx512! { _mm512_sqrt_ps(v) }
    }
    #[inline(always)]
    fn min_f(self, a: __m512, b: __m512) -> __m512 {
        avx512! { _mm512_min_ps(a, b) }
    }
    #[inline(always)]
    fn max_f(self, a: __m512, b: __m512) -> __m512 {
        avx512! { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    fn abs_f(self, v: __m512) -> __m512 {
        avx512! { _mm512_abs_ps(v) }
    }
    #[inline(always)]
    fn if_gt(self, a: __m512, b: __m512, x: __m512, y: __m512) -> __m512 {
        avx512! { _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_GT_OQ>(a, b), y, x) }
    }
}
