//! [`Products`]: operations of matrix products, such as sums of products of codes, fused products of floats, and
//! transposing.
//!
//! Products of codes have weights on one side and activations on the other. AVX-512 multiplies unsigned by
//! signed bytes, so weights have [`Products::CODE_BIAS`] added there. Sums must then start at minus
//! the bias times the sum of the activations' codes; so the result is exact on every set.

use core::arch::x86_64::*;

use crate::{Arith, Avx2, Avx512, Scalar, array};

/// Products of 8-bit codes and of floats, sixteen lanes at a time.
pub trait Products: Arith {
    /// 64 bytes, read as `u8` or `i8` by each operation; byte 0 belongs to element 0.
    type B64: Copy;
    /// Sums of products of two neighbouring bytes, 16 bits each; sets whose dot instruction adds up four have those.
    type Pairs: Copy;

    /// What [`Products::biased`] adds to every code.
    const CODE_BIAS: i32;
    /// How many values of sixteen lanes the registers hold.
    const REGISTERS: usize;
    /// Whether products of signed codes with many columns are faster from 16-bit numbers ([`Products::dot2`]).
    const IS_FAST_WIDE: bool = false;
    /// Whether integer scales come for free where pairs of products are added up ([`Products::scaled_pairs`]).
    const SCALES_PAIRS: bool = false;

    /// Makes codes the weights of [`Products::dot4`].
    fn biased(self, codes: Self::B64) -> Self::B64;
    fn load_codes(self, codes: &[i8; 64]) -> Self::B64;
    /// Four codes, repeated sixteen times.
    fn splat_4_codes(self, codes: &[i8; 4]) -> Self::B64;
    /// Lane i is `acc + sum of weights[4 i + k] * x[4 i + k]` over k in 0..4, exactly. Weights are
    /// [`Products::biased`] codes, `x` has codes in -127..=127.
    fn dot4(self, acc: Self::I, weights: Self::B64, x: Self::B64) -> Self::I;
    /// [`Products::dot4`] with weights in 0..=127 that are not biased.
    fn dot4_unsigned(self, acc: Self::I, weights: Self::B64, x: Self::B64) -> Self::I;
    /// Products of bytes, two neighbouring ones added up, with weights in 0..=127 that are not biased. `N` such values
    /// may be added by [`Products::add_pairs`] if no weight is above `2^14 / (127 N)`, so that sets that add products in
    /// 16 bits can do so; [`Products::sum_pairs`] then makes sums of four of them.
    fn pair_products(self, weights: Self::B64, x: Self::B64) -> Self::Pairs;
    fn add_pairs(self, a: Self::Pairs, b: Self::Pairs) -> Self::Pairs;
    /// `acc` and the two pairs of each lane.
    fn sum_pairs(self, acc: Self::I, pairs: Self::Pairs) -> Self::I;
    /// [`Products::pair_products`] of weights that are [`Products::biased`] codes.
    fn biased_pair_products(self, weights: Self::B64, x: Self::B64) -> Self::Pairs;
    /// `acc` and the two pairs of each lane, multiplied by the lane's scale, which both 16-bit halves of `scale` hold.
    fn scaled_pairs(self, acc: Self::I, pairs: Self::Pairs, scale: Self::I) -> Self::I;
    /// Products of the 16-bit numbers, as 16-bit numbers; they must fit.
    fn mul_16(self, a: Self::B64, b: Self::B64) -> Self::B64;
    /// The 16-bit numbers shifted left.
    fn shl_16(self, v: Self::I, by: u32) -> Self::I;
    /// The lower 16 bits of each lane of `low`, and the upper 16 of `high`.
    fn join_16(self, low: Self::I, high: Self::I) -> Self::I;
    /// Signed bytes as 16-bit numbers: those of bytes 0 and 2 of each lane, and those of bytes 1 and 3.
    fn widened(self, codes: Self::B64) -> [Self::B64; 2];
    /// `acc` and the products of the two 16-bit numbers of each lane, exactly.
    fn dot2(self, acc: Self::I, weights: Self::B64, x: Self::B64) -> Self::I;
    /// Lane i is the sum of lanes `4 (i % 4)..4 (i % 4) + 4` of `v[i / 4]`.
    fn sums_of_4(self, v: [Self::I; 4]) -> Self::I;
    fn add_i(self, a: Self::I, b: Self::I) -> Self::I;
    /// Transposes groups of four bytes: group r of vector i is group i of row r.
    fn transpose_fours(self, rows: [&[u8; 64]; 16]) -> [Self::B64; 16];

    /// `a * b + c`, rounded once where the set has fused operations, otherwise twice. This and
    /// [`Products::fused_sub`] are the only operations of this trait whose bits depend on the set.
    fn fused_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// `c - a * b`, rounded as by [`Products::fused_add`].
    fn fused_sub(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// Sixteen signed bytes as integers.
    fn load_i8(self, x: &[i8; 16]) -> Self::I;
    /// Lane i is the signed byte i / 2 as an integer.
    fn twice_i8(self, x: [i8; 8]) -> Self::I;

    /// Sixteen entries of a table whose length is a power of two; indices wrap.
    fn gather_u32<const N: usize>(self, table: &[u32; N], index: [u32; 16]) -> Self::B64;
    /// Eight entries of a table whose length is a power of two; indices wrap.
    fn gather_u64<const N: usize>(self, table: &[u64; N], index: [u32; 8]) -> Self::B64;
}

/// The largest index of a table, which is a power of two less one and fits i32.
const fn last<const N: usize>() -> i32 {
    assert!(N.is_power_of_two() && N <= 1 << 30);
    (N - 1) as i32
}

impl Products for Scalar {
    type B64 = [u8; 64];
    type Pairs = [i32; 16];
    const CODE_BIAS: i32 = 0;
    const REGISTERS: usize = 4;

    #[inline(always)]
    fn biased(self, codes: [u8; 64]) -> [u8; 64] {
        codes
    }
    #[inline(always)]
    fn load_codes(self, codes: &[i8; 64]) -> [u8; 64] {
        array(|i| codes[i] as u8)
    }
    #[inline(always)]
    fn splat_4_codes(self, codes: &[i8; 4]) -> [u8; 64] {
        array(|i| codes[i % 4] as u8)
    }
    #[inline(always)]
    fn dot4(self, acc: [i32; 16], weights: [u8; 64], x: [u8; 64]) -> [i32; 16] {
        let product = |i: usize| i32::from(i16::from(weights[i] as i8) * i16::from(x[i] as i8));
        array(|i| acc[i] + product(4 * i) + product(4 * i + 1) + product(4 * i + 2) + product(4 * i + 3))
    }
    #[inline(always)]
    fn dot4_unsigned(self, acc: [i32; 16], weights: [u8; 64], x: [u8; 64]) -> [i32; 16] {
        self.dot4(acc, weights, x)
    }
    #[inline(always)]
    fn pair_products(self, weights: [u8; 64], x: [u8; 64]) -> [i32; 16] {
        self.dot4([0; 16], weights, x)
    }
    #[inline(always)]
    fn add_pairs(self, a: [i32; 16], b: [i32; 16]) -> [i32; 16] {
        self.add_i(a, b)
    }
    #[inline(always)]
    fn sum_pairs(self, acc: [i32; 16], pairs: [i32; 16]) -> [i32; 16] {
        self.add_i(acc, pairs)
    }
    #[inline(always)]
    fn biased_pair_products(self, weights: [u8; 64], x: [u8; 64]) -> [i32; 16] {
        self.dot4([0; 16], weights, x)
    }
    #[inline(always)]
    fn scaled_pairs(self, acc: [i32; 16], pairs: [i32; 16], scale: [i32; 16]) -> [i32; 16] {
        array(|i| acc[i] + pairs[i] * i32::from(scale[i] as i16))
    }
    #[inline(always)]
    fn mul_16(self, a: [u8; 64], b: [u8; 64]) -> [u8; 64] {
        let number = |v: &[u8; 64], i: usize| i16::from_le_bytes([v[2 * i], v[2 * i + 1]]);
        array(|i| number(&a, i / 2).wrapping_mul(number(&b, i / 2)).to_le_bytes()[i % 2])
    }
    #[inline(always)]
    fn shl_16(self, v: [i32; 16], by: u32) -> [i32; 16] {
        array(|i| (v[i] & 0xffff) << by & 0xffff | (v[i] >> 16) << (16 + by))
    }
    #[inline(always)]
    fn join_16(self, low: [i32; 16], high: [i32; 16]) -> [i32; 16] {
        array(|i| low[i] & 0xffff | high[i] & !0xffff)
    }
    #[inline(always)]
    fn widened(self, codes: [u8; 64]) -> [[u8; 64]; 2] {
        let half = |h: usize| {
            let code = |i: usize| i16::from(codes[4 * (i / 4) + 2 * (i % 4 / 2) + h] as i8);
            array(|i| code(i).to_le_bytes()[i % 2])
        };
        [half(0), half(1)]
    }
    #[inline(always)]
    fn dot2(self, acc: [i32; 16], weights: [u8; 64], x: [u8; 64]) -> [i32; 16] {
        let number = |v: &[u8; 64], i: usize| i32::from(i16::from_le_bytes([v[2 * i], v[2 * i + 1]]));
        let product = |i: usize| number(&weights, i) * number(&x, i);
        array(|i| acc[i] + product(2 * i) + product(2 * i + 1))
    }
    #[inline(always)]
    fn sums_of_4(self, v: [[i32; 16]; 4]) -> [i32; 16] {
        array(|i| v[i / 4][4 * (i % 4)..][..4].iter().sum())
    }
    #[inline(always)]
    fn add_i(self, a: [i32; 16], b: [i32; 16]) -> [i32; 16] {
        array(|i| a[i] + b[i])
    }
    #[inline(always)]
    fn transpose_fours(self, rows: [&[u8; 64]; 16]) -> [[u8; 64]; 16] {
        let mut out = [[0; 64]; 16];
        for (i, out) in out.iter_mut().enumerate() {
            *out = array(|b| rows[b / 4][4 * i + b % 4]);
        }
        out
    }
    #[inline(always)]
    fn fused_add(self, a: [f32; 16], b: [f32; 16], c: [f32; 16]) -> [f32; 16] {
        array(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    fn fused_sub(self, a: [f32; 16], b: [f32; 16], c: [f32; 16]) -> [f32; 16] {
        array(|i| c[i] - a[i] * b[i])
    }
    #[inline(always)]
    fn load_i8(self, x: &[i8; 16]) -> [i32; 16] {
        array(|i| i32::from(x[i]))
    }
    #[inline(always)]
    fn twice_i8(self, x: [i8; 8]) -> [i32; 16] {
        array(|i| i32::from(x[i / 2]))
    }
    #[inline(always)]
    fn gather_u32<const N: usize>(self, table: &[u32; N], index: [u32; 16]) -> [u8; 64] {
        let entry = |i: usize| table[index[i] as usize & const { last::<N>() as usize }];
        array(|i| entry(i / 4).to_le_bytes()[i % 4])
    }
    #[inline(always)]
    fn gather_u64<const N: usize>(self, table: &[u64; N], index: [u32; 8]) -> [u8; 64] {
        let entry = |i: usize| table[index[i] as usize & const { last::<N>() as usize }];
        array(|i| entry(i / 8).to_le_bytes()[i % 8])
    }
}

/// Runs intrinsics in methods of a token.
macro_rules! isa {
    ($($body:tt)*) => {
        // SAFETY: in methods of a token, which proves the instructions; memory operands are references to
        // arrays of the width that is read.
        unsafe { $($body)* }
    };
}

/// Adds sums of products of four neighbouring bytes; the sum of two products must fit 16 bits.
#[inline(always)]
fn dot_32(acc: __m256i, unsigned: __m256i, signed: __m256i) -> __m256i {
    // SAFETY: called from methods of `Avx2` only, whose token proves AVX2.
    unsafe {
        let pairs = _mm256_maddubs_epi16(unsigned, signed);
        _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
    }
}

/// The two registers of 64 bytes.
type Pair = [__m256i; 2];

impl Products for Avx2 {
    type B64 = Pair;
    type Pairs = Pair;
    const CODE_BIAS: i32 = 0;
    const REGISTERS: usize = 8;
    const IS_FAST_WIDE: bool = true;
    const SCALES_PAIRS: bool = true;

    #[inline(always)]
    fn biased(self, codes: Pair) -> Pair {
        codes
    }
    #[inline(always)]
    fn load_codes(self, codes: &[i8; 64]) -> Pair {
        isa! { [_mm256_loadu_si256(codes.as_ptr().cast()), _mm256_loadu_si256(codes[32..].as_ptr().cast())] }
    }
    #[inline(always)]
    fn splat_4_codes(self, codes: &[i8; 4]) -> Pair {
        let four = i32::from_le_bytes([codes[0] as u8, codes[1] as u8, codes[2] as u8, codes[3] as u8]);
        isa! { [_mm256_set1_epi32(four); 2] }
    }
    #[inline(always)]
    fn dot4(self, acc: Pair, w: Pair, x: Pair) -> Pair {
        // signs of weights are moved to x; with |w| <= 128 and |x| <= 127 the sum of two products fits i16
        isa! {
            [
                dot_32(acc[0], _mm256_abs_epi8(w[0]), _mm256_sign_epi8(x[0], w[0])),
                dot_32(acc[1], _mm256_abs_epi8(w[1]), _mm256_sign_epi8(x[1], w[1])),
            ]
        }
    }
    #[inline(always)]
    fn dot4_unsigned(self, acc: Pair, w: Pair, x: Pair) -> Pair {
        [dot_32(acc[0], w[0], x[0]), dot_32(acc[1], w[1], x[1])]
    }
    #[inline(always)]
    fn pair_products(self, w: Pair, x: Pair) -> Pair {
        isa! { [_mm256_maddubs_epi16(w[0], x[0]), _mm256_maddubs_epi16(w[1], x[1])] }
    }
    #[inline(always)]
    fn add_pairs(self, a: Pair, b: Pair) -> Pair {
        isa! { [_mm256_add_epi16(a[0], b[0]), _mm256_add_epi16(a[1], b[1])] }
    }
    #[inline(always)]
    fn sum_pairs(self, acc: Pair, pairs: Pair) -> Pair {
        isa! {
            let ones = _mm256_set1_epi16(1);
            [
                _mm256_add_epi32(acc[0], _mm256_madd_epi16(pairs[0], ones)),
                _mm256_add_epi32(acc[1], _mm256_madd_epi16(pairs[1], ones)),
            ]
        }
    }
    #[inline(always)]
    fn biased_pair_products(self, w: Pair, x: Pair) -> Pair {
        // as in dot4
        isa! {
            [
                _mm256_maddubs_epi16(_mm256_abs_epi8(w[0]), _mm256_sign_epi8(x[0], w[0])),
                _mm256_maddubs_epi16(_mm256_abs_epi8(w[1]), _mm256_sign_epi8(x[1], w[1])),
            ]
        }
    }
    #[inline(always)]
    fn scaled_pairs(self, acc: Pair, pairs: Pair, scale: Pair) -> Pair {
        self.dot2(acc, pairs, scale)
    }
    #[inline(always)]
    fn mul_16(self, a: Pair, b: Pair) -> Pair {
        isa! { [_mm256_mullo_epi16(a[0], b[0]), _mm256_mullo_epi16(a[1], b[1])] }
    }
    #[inline(always)]
    fn shl_16(self, v: Pair, by: u32) -> Pair {
        isa! {
            let by = crate::lane_bits::count(by);
            [_mm256_sll_epi16(v[0], by), _mm256_sll_epi16(v[1], by)]
        }
    }
    #[inline(always)]
    fn join_16(self, low: Pair, high: Pair) -> Pair {
        isa! { [_mm256_blend_epi16::<0xaa>(low[0], high[0]), _mm256_blend_epi16::<0xaa>(low[1], high[1])] }
    }
    #[inline(always)]
    fn widened(self, codes: Pair) -> [Pair; 2] {
        isa! {
            let odd = [_mm256_srai_epi16::<8>(codes[0]), _mm256_srai_epi16::<8>(codes[1])];
            let up = [_mm256_slli_epi16::<8>(codes[0]), _mm256_slli_epi16::<8>(codes[1])];
            [[_mm256_srai_epi16::<8>(up[0]), _mm256_srai_epi16::<8>(up[1])], odd]
        }
    }
    #[inline(always)]
    fn dot2(self, acc: Pair, w: Pair, x: Pair) -> Pair {
        isa! {
            [
                _mm256_add_epi32(acc[0], _mm256_madd_epi16(w[0], x[0])),
                _mm256_add_epi32(acc[1], _mm256_madd_epi16(w[1], x[1])),
            ]
        }
    }
    #[inline(always)]
    fn sums_of_4(self, v: [Pair; 4]) -> Pair {
        isa! {
            // lane k of each 128-bit half has a sum of value k: those of quarters 0 and 1 in lo, of quarters 2 and
            // 3 in hi
            let lo = _mm256_hadd_epi32(_mm256_hadd_epi32(v[0][0], v[1][0]), _mm256_hadd_epi32(v[2][0], v[3][0]));
            let hi = _mm256_hadd_epi32(_mm256_hadd_epi32(v[0][1], v[1][1]), _mm256_hadd_epi32(v[2][1], v[3][1]));
            // gathers the same halves of both, to transpose the 4 by 4 sums
            let a = _mm256_permute2x128_si256::<0x20>(lo, hi);
            let b = _mm256_permute2x128_si256::<0x31>(lo, hi);
            // a has quarters 0 and 2, b has quarters 1 and 3
            let (low, high) = (_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
            // low has v0 q0 q1, v1 q0 q1 in half 0, and v0 q2 q3, v1 q2 q3 in half 1
            [_mm256_permute4x64_epi64::<0b11_01_10_00>(low), _mm256_permute4x64_epi64::<0b11_01_10_00>(high)]
        }
    }
    #[inline(always)]
    fn add_i(self, a: Pair, b: Pair) -> Pair {
        isa! { [_mm256_add_epi32(a[0], b[0]), _mm256_add_epi32(a[1], b[1])] }
    }
    #[inline(always)]
    fn transpose_fours(self, rows: [&[u8; 64]; 16]) -> [Pair; 16] {
        isa! {
            let mut out = [[_mm256_setzero_si256(); 2]; 16];
            let turned = crate::transpose::avx2(crate::transpose::starts(rows));
            for (out, t) in out.iter_mut().zip(turned) {
                *out = [_mm256_castps_si256(t[0]), _mm256_castps_si256(t[1])];
            }
            out
        }
    }
    #[inline(always)]
    fn fused_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        isa! { [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])] }
    }
    #[inline(always)]
    fn fused_sub(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        isa! { [_mm256_fnmadd_ps(a[0], b[0], c[0]), _mm256_fnmadd_ps(a[1], b[1], c[1])] }
    }
    #[inline(always)]
    fn load_i8(self, x: &[i8; 16]) -> Pair {
        isa! {
            let x = _mm_loadu_si128(x.as_ptr().cast());
            [_mm256_cvtepi8_epi32(x), _mm256_cvtepi8_epi32(_mm_srli_si128::<8>(x))]
        }
    }
    #[inline(always)]
    fn twice_i8(self, x: [i8; 8]) -> Pair {
        isa! {
            let x = _mm_loadl_epi64(x.as_ptr().cast());
            let x = _mm_unpacklo_epi8(x, x);
            [_mm256_cvtepi8_epi32(x), _mm256_cvtepi8_epi32(_mm_srli_si128::<8>(x))]
        }
    }
    #[inline(always)]
    fn gather_u32<const N: usize>(self, table: &[u32; N], index: [u32; 16]) -> Pair {
        // SAFETY: the token proves AVX2; the mask keeps indices inside the table.
        unsafe {
            let at = |i: usize| {
                let index = _mm256_loadu_si256(index[i..].as_ptr().cast());
                _mm256_and_si256(index, _mm256_set1_epi32(const { last::<N>() }))
            };
            let table = table.as_ptr().cast();
            [_mm256_i32gather_epi32::<4>(table, at(0)), _mm256_i32gather_epi32::<4>(table, at(8))]
        }
    }
    #[inline(always)]
    fn gather_u64<const N: usize>(self, table: &[u64; N], index: [u32; 8]) -> Pair {
        // SAFETY: the token proves AVX2; the mask keeps indices inside the table.
        unsafe {
            let at = |i: usize| {
                let index = _mm_loadu_si128(index[i..].as_ptr().cast());
                _mm_and_si128(index, _mm_set1_epi32(const { last::<N>() }))
            };
            let table = table.as_ptr().cast();
            [_mm256_i32gather_epi64::<8>(table, at(0)), _mm256_i32gather_epi64::<8>(table, at(4))]
        }
    }
}

impl Products for Avx512 {
    type B64 = __m512i;
    type Pairs = __m512i;
    const CODE_BIAS: i32 = 128;
    const REGISTERS: usize = 32;

    #[inline(always)]
    fn biased(self, codes: __m512i) -> __m512i {
        isa! { _mm512_xor_si512(codes, _mm512_set1_epi8(-128)) }
    }
    #[inline(always)]
    fn load_codes(self, codes: &[i8; 64]) -> __m512i {
        isa! { _mm512_loadu_si512(codes.as_ptr().cast()) }
    }
    #[inline(always)]
    fn splat_4_codes(self, codes: &[i8; 4]) -> __m512i {
        let four = i32::from_le_bytes([codes[0] as u8, codes[1] as u8, codes[2] as u8, codes[3] as u8]);
        isa! { _mm512_set1_epi32(four) }
    }
    #[inline(always)]
    fn dot4(self, acc: __m512i, w: __m512i, x: __m512i) -> __m512i {
        isa! { _mm512_dpbusd_epi32(acc, w, x) }
    }
    #[inline(always)]
    fn dot4_unsigned(self, acc: __m512i, w: __m512i, x: __m512i) -> __m512i {
        isa! { _mm512_dpbusd_epi32(acc, w, x) }
    }
    #[inline(always)]
    fn pair_products(self, w: __m512i, x: __m512i) -> __m512i {
        isa! { _mm512_dpbusd_epi32(_mm512_setzero_si512(), w, x) }
    }
    #[inline(always)]
    fn add_pairs(self, a: __m512i, b: __m512i) -> __m512i {
        self.add_i(a, b)
    }
    #[inline(always)]
    fn sum_pairs(self, acc: __m512i, pairs: __m512i) -> __m512i {
        self.add_i(acc, pairs)
    }
    #[inline(always)]
    fn biased_pair_products(self, w: __m512i, x: __m512i) -> __m512i {
        self.pair_products(w, x)
    }
    #[inline(always)]
    fn scaled_pairs(self, acc: __m512i, pairs: __m512i, scale: __m512i) -> __m512i {
        isa! { _mm512_add_epi32(acc, _mm512_mullo_epi32(pairs, _mm512_srai_epi32::<16>(scale))) }
    }
    #[inline(always)]
    fn mul_16(self, a: __m512i, b: __m512i) -> __m512i {
        isa! { _mm512_mullo_epi16(a, b) }
    }
    #[inline(always)]
    fn shl_16(self, v: __m512i, by: u32) -> __m512i {
        isa! { _mm512_sll_epi16(v, crate::lane_bits::count(by)) }
    }
    #[inline(always)]
    fn join_16(self, low: __m512i, high: __m512i) -> __m512i {
        isa! { _mm512_mask_blend_epi16(0xaaaa_aaaa, low, high) }
    }
    #[inline(always)]
    fn widened(self, codes: __m512i) -> [__m512i; 2] {
        isa! {
            let even = _mm512_srai_epi16::<8>(_mm512_slli_epi16::<8>(codes));
            [even, _mm512_srai_epi16::<8>(codes)]
        }
    }
    #[inline(always)]
    fn dot2(self, acc: __m512i, w: __m512i, x: __m512i) -> __m512i {
        isa! { _mm512_add_epi32(acc, _mm512_madd_epi16(w, x)) }
    }
    #[inline(always)]
    fn sums_of_4(self, v: [__m512i; 4]) -> __m512i {
        isa! {
            let pair = |a, b| _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
            let (ab, cd) = (pair(v[0], v[1]), pair(v[2], v[3]));
            // lane 4 q + k has the sum of quarter q of value k
            let sums = _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
            let turn = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
            _mm512_permutexvar_epi32(turn, sums)
        }
    }
    #[inline(always)]
    fn add_i(self, a: __m512i, b: __m512i) -> __m512i {
        isa! { _mm512_add_epi32(a, b) }
    }
    #[inline(always)]
    fn transpose_fours(self, rows: [&[u8; 64]; 16]) -> [__m512i; 16] {
        isa! {
            let mut out = [_mm512_setzero_si512(); 16];
            for (out, t) in out.iter_mut().zip(crate::transpose::avx512(crate::transpose::starts(rows))) {
                *out = _mm512_castps_si512(t);
            }
            out
        }
    }
    #[inline(always)]
    fn fused_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        isa! { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn fused_sub(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        isa! { _mm512_fnmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn load_i8(self, x: &[i8; 16]) -> __m512i {
        isa! { _mm512_cvtepi8_epi32(_mm_loadu_si128(x.as_ptr().cast())) }
    }
    #[inline(always)]
    fn twice_i8(self, x: [i8; 8]) -> __m512i {
        isa! {
            let x = _mm_loadl_epi64(x.as_ptr().cast());
            _mm512_cvtepi8_epi32(_mm_unpacklo_epi8(x, x))
        }
    }
    #[inline(always)]
    fn gather_u32<const N: usize>(self, table: &[u32; N], index: [u32; 16]) -> __m512i {
        // SAFETY: the token proves AVX-512F; the mask keeps indices inside the table.
        unsafe {
            let index = _mm512_loadu_si512(index.as_ptr().cast());
            let index = _mm512_and_si512(index, _mm512_set1_epi32(const { last::<N>() }));
            _mm512_i32gather_epi32::<4>(index, table.as_ptr().cast())
        }
    }
    #[inline(always)]
    fn gather_u64<const N: usize>(self, table: &[u64; N], index: [u32; 8]) -> __m512i {
        // SAFETY: the token proves AVX-512F; the mask keeps indices inside the table.
        unsafe {
            let index = _mm256_loadu_si256(index.as_ptr().cast());
            let index = _mm256_and_si256(index, _mm256_set1_epi32(const { last::<N>() }));
            _mm512_i32gather_epi64::<8>(index, table.as_ptr().cast())
        }
    }
}
