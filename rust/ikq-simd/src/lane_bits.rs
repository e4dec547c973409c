//! [`LaneBits`]: bit operations on sixteen integers at a time, as packing and unpacking codes needs them.

use core::arch::x86_64::*;

use crate::{Avx2, Avx512, Lanes, Scalar, array, map};

/// Bit operations on the integers of [`Lanes`].
pub trait LaneBits: Lanes {
    fn store_i(self, v: Self::I, out: &mut [i32; 16]);
    fn and_i(self, a: Self::I, b: Self::I) -> Self::I;
    fn or_i(self, a: Self::I, b: Self::I) -> Self::I;
    fn xor_i(self, a: Self::I, b: Self::I) -> Self::I;
    /// Every lane shifted left; `by` is below 32.
    fn shl_i(self, v: Self::I, by: u32) -> Self::I;
    /// Every lane shifted right, filled up with zeros; `by` is below 32.
    fn shr_i(self, v: Self::I, by: u32) -> Self::I;
}

impl LaneBits for Scalar {
    #[inline(always)]
    fn store_i(self, v: [i32; 16], out: &mut [i32; 16]) {
        *out = v;
    }
    #[inline(always)]
    fn and_i(self, a: [i32; 16], b: [i32; 16]) -> [i32; 16] {
        array(|i| a[i] & b[i])
    }
    #[inline(always)]
    fn or_i(self, a: [i32; 16], b: [i32; 16]) -> [i32; 16] {
        array(|i| a[i] | b[i])
    }
    #[inline(always)]
    fn xor_i(self, a: [i32; 16], b: [i32; 16]) -> [i32; 16] {
        array(|i| a[i] ^ b[i])
    }
    #[inline(always)]
    fn shl_i(self, v: [i32; 16], by: u32) -> [i32; 16] {
        map(v, |x| x << by)
    }
    #[inline(always)]
    fn shr_i(self, v: [i32; 16], by: u32) -> [i32; 16] {
        map(v, |x| (x as u32 >> by) as i32)
    }
}

/// Sixteen bytes that are aligned, so that one instruction loads them.
#[repr(align(16))]
struct Count([u64; 2]);

/// The numbers below 32. A shift count that is only known at run time is loaded from here, which is faster than
/// moving it from a general register. (This is a constant, not a static, so that counts that are known at compile
/// time stay constants in other crates.)
const COUNTS: [Count; 32] = {
    let mut out = [const { Count([0; 2]) }; 32];
    let mut i = 0;
    while i < 32 {
        out[i].0[0] = i as u64;
        i += 1;
    }
    out
};

/// The count of a shift as shift instructions take it; it must be below 32.
#[inline(always)]
pub(crate) fn count(by: u32) -> __m128i {
    let count: &'static Count = &const { &COUNTS }[by as usize & 31];
    // SAFETY: SSE2 is part of x86-64; sixteen bytes are read, which start at a multiple of sixteen.
    unsafe { _mm_load_si128(count.0.as_ptr().cast()) }
}

/// The two registers of sixteen lanes.
type Pair = [__m256i; 2];

impl LaneBits for Avx2 {
    #[inline(always)]
    fn store_i(self, v: Pair, out: &mut [i32; 16]) {
        // SAFETY: the token proves AVX; `out` is 16 writable integers.
        unsafe {
            _mm256_storeu_si256(out.as_mut_ptr().cast(), v[0]);
            _mm256_storeu_si256(out[8..].as_mut_ptr().cast(), v[1]);
        }
    }
    #[inline(always)]
    fn and_i(self, a: Pair, b: Pair) -> Pair {
        // SAFETY: the token proves AVX2.
        unsafe { [_mm256_and_si256(a[0], b[0]), _mm256_and_si256(a[1], b[1])] }
    }
    #[inline(always)]
    fn or_i(self, a: Pair, b: Pair) -> Pair {
        // SAFETY: the token proves AVX2.
        unsafe { [_mm256_or_si256(a[0], b[0]), _mm256_or_si256(a[1], b[1])] }
    }
    #[inline(always)]
    fn xor_i(self, a: Pair, b: Pair) -> Pair {
        // SAFETY: the token proves AVX2.
        unsafe { [_mm256_xor_si256(a[0], b[0]), _mm256_xor_si256(a[1], b[1])] }
    }
    #[inline(always)]
    fn shl_i(self, v: Pair, by: u32) -> Pair {
        // SAFETY: the token proves AVX2.
        unsafe { [_mm256_sll_epi32(v[0], count(by)), _mm256_sll_epi32(v[1], count(by))] }
    }
    #[inline(always)]
    fn shr_i(self, v: Pair, by: u32) -> Pair {
        // SAFETY: the token proves AVX2.
        unsafe { [_mm256_srl_epi32(v[0], count(by)), _mm256_srl_epi32(v[1], count(by))] }
    }
}

impl LaneBits for Avx512 {
    #[inline(always)]
    fn store_i(self, v: __m512i, out: &mut [i32; 16]) {
        // SAFETY: the token proves AVX-512F; `out` is 64 writable bytes.
        unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), v) }
    }
    #[inline(always)]
    fn and_i(self, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: the token proves AVX-512F.
        unsafe { _mm512_and_si512(a, b) }
    }
    #[inline(always)]
    fn or_i(self, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: the token proves AVX-512F.
        unsafe { _mm512_or_si512(a, b) }
    }
    #[inline(always)]
    fn xor_i(self, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: the token proves AVX-512F.
        unsafe { _mm512_xor_si512(a, b) }
    }
    #[inline(always)]
    fn shl_i(self, v: __m512i, by: u32) -> __m512i {
        // SAFETY: the token proves AVX-512F.
        unsafe { _mm512_sll_epi32(v, count(by)) }
    }
    #[inline(always)]
    fn shr_i(self, v: __m512i, by: u32) -> __m512i {
        // SAFETY: the token proves AVX-512F.
        unsafe { _mm512_srl_epi32(v, count(by)) }
    }
}

#[cfg(test)]
mod tests {
    use crate::{Isa, IsaOp, available, run};

    struct Moves;

    const X: [i32; 16] = [-1, 0, 1, i32::MIN, i32::MAX, 5, -6, 7, 1 << 30, 9, -10, 11, 12, 13, 14, 15];

    impl IsaOp for Moves {
        type Output = [[i32; 16]; 5];

        #[inline(always)]
        fn run<I: Isa>(self, isa: I) -> [[i32; 16]; 5] {
            let (x, y) = (isa.load_i(&X), isa.splat_i(0x0ff0));
            let mut out = [[0; 16]; 5];
            isa.store_i(isa.and_i(x, y), &mut out[0]);
            isa.store_i(isa.or_i(x, y), &mut out[1]);
            isa.store_i(isa.xor_i(x, y), &mut out[2]);
            isa.store_i(isa.shl_i(x, 3), &mut out[3]);
            isa.store_i(isa.shr_i(x, 31), &mut out[4]);
            out
        }
    }

    #[test]
    fn bits_are_those_of_the_language() {
        for kind in available() {
            let found = run(kind, Moves);
            for (lane, x) in X.into_iter().enumerate() {
                let expected = [x & 0x0ff0, x | 0x0ff0, x ^ 0x0ff0, x << 3, i32::from(x < 0)];
                assert_eq!(found.map(|v| v[lane]), expected, "{}", kind.name());
            }
        }
    }
}
