//! The vocabulary of rows in lanes: sixteen rows side by side, four bytes of each in a value of 64 bytes.
//!
//! Such a value is read as bytes (`B64`: codes of four neighbouring elements per row) or as sixteen integers
//! (`I`: a word of scales or indices per row); both are the same bits.

use core::arch::x86_64::*;

use crate::{Avx2, Avx512, Products, Scalar, array};

/// Operations on words of sixteen rows.
pub trait RowLanes: Products {
    /// The four bytes of each lane as a little-endian integer.
    fn ints(self, v: Self::B64) -> Self::I;
    /// The inverse of [`RowLanes::ints`].
    fn of_ints(self, v: Self::I) -> Self::B64;
    /// Sixteen bytes, zeros above.
    fn load_u8(self, x: &[u8; 16]) -> Self::I;
    /// Sixteen little-endian u16, zeros above.
    fn load_u16(self, x: &[u8; 32]) -> Self::I;
    /// `(byte >> n) & mask` of each byte; n is below 8 and `mask` must not reach above the bits that are left
    /// (`mask <= 0xff >> n`).
    fn bits(self, v: Self::B64, n: u32, mask: u8) -> Self::B64;
    /// Every lane shifted right, copies of the sign coming in; `by` is below 32.
    fn sra_i(self, v: Self::I, by: u32) -> Self::I;
    /// `value` in lanes whose bit `bit` is set, else 0.
    fn where_bit(self, v: Self::I, bit: u32, value: i32) -> Self::I;
    /// The half-precision numbers in the low 16 bits of the lanes, exactly; the upper bits are ignored.
    fn float_of_f16(self, v: Self::I) -> Self::F;
}

impl RowLanes for Scalar {
    #[inline(always)]
    fn ints(self, v: [u8; 64]) -> [i32; 16] {
        let words = v.as_chunks::<4>().0;
        array(|i| i32::from_le_bytes(words[i]))
    }
    #[inline(always)]
    fn of_ints(self, v: [i32; 16]) -> [u8; 64] {
        let mut out = [0; 64];
        for (out, v) in out.as_chunks_mut::<4>().0.iter_mut().zip(v) {
            *out = v.to_le_bytes();
        }
        out
    }
    #[inline(always)]
    fn load_u8(self, x: &[u8; 16]) -> [i32; 16] {
        array(|i| i32::from(x[i]))
    }
    #[inline(always)]
    fn load_u16(self, x: &[u8; 32]) -> [i32; 16] {
        array(|i| i32::from(u16::from_le_bytes([x[2 * i], x[2 * i + 1]])))
    }
    #[inline(always)]
    fn bits(self, v: [u8; 64], n: u32, mask: u8) -> [u8; 64] {
        array(|i| v[i] >> n & mask)
    }
    #[inline(always)]
    fn sra_i(self, v: [i32; 16], by: u32) -> [i32; 16] {
        array(|i| v[i] >> by)
    }
    #[inline(always)]
    fn where_bit(self, v: [i32; 16], bit: u32, value: i32) -> [i32; 16] {
        array(|i| if v[i] >> bit & 1 == 1 { value } else { 0 })
    }
    #[inline(always)]
    fn float_of_f16(self, v: [i32; 16]) -> [f32; 16] {
        array(|i| crate::scalar::f16_to_f32(v[i] as u16))
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

/// The two registers of sixteen lanes.
type Pair = [__m256i; 2];

impl RowLanes for Avx2 {
    #[inline(always)]
    fn ints(self, v: Pair) -> Pair {
        v
    }
    #[inline(always)]
    fn of_ints(self, v: Pair) -> Pair {
        v
    }
    #[inline(always)]
    fn load_u8(self, x: &[u8; 16]) -> Pair {
        isa! {
            let x = _mm_loadu_si128(x.as_ptr().cast());
            [_mm256_cvtepu8_epi32(x), _mm256_cvtepu8_epi32(_mm_srli_si128::<8>(x))]
        }
    }
    #[inline(always)]
    fn load_u16(self, x: &[u8; 32]) -> Pair {
        isa! {
            let (lo, hi) = (_mm_loadu_si128(x.as_ptr().cast()), _mm_loadu_si128(x[16..].as_ptr().cast()));
            [_mm256_cvtepu16_epi32(lo), _mm256_cvtepu16_epi32(hi)]
        }
    }
    #[inline(always)]
    fn bits(self, v: Pair, n: u32, mask: u8) -> Pair {
        isa! {
            // a 16-bit shift lets bits of the upper byte into the lower one: the mask clears them
            let (n, mask) = (_mm_cvtsi32_si128(n as i32), _mm256_set1_epi8(mask as i8));
            [
                _mm256_and_si256(_mm256_srl_epi16(v[0], n), mask),
                _mm256_and_si256(_mm256_srl_epi16(v[1], n), mask),
            ]
        }
    }
    #[inline(always)]
    fn sra_i(self, v: Pair, by: u32) -> Pair {
        isa! {
            let by = _mm_cvtsi32_si128(by as i32);
            [_mm256_sra_epi32(v[0], by), _mm256_sra_epi32(v[1], by)]
        }
    }
    #[inline(always)]
    fn where_bit(self, v: Pair, bit: u32, value: i32) -> Pair {
        isa! {
            // the bit moved to the sign, and the sign over the lane
            let (up, value) = (_mm_cvtsi32_si128(31 - bit as i32), _mm256_set1_epi32(value));
            let all = [_mm256_srai_epi32::<31>(_mm256_sll_epi32(v[0], up)), _mm256_srai_epi32::<31>(_mm256_sll_epi32(v[1], up))];
            [_mm256_and_si256(all[0], value), _mm256_and_si256(all[1], value)]
        }
    }
    #[inline(always)]
    fn float_of_f16(self, v: Pair) -> Self::F {
        isa! {
            let low = _mm256_set1_epi32(0xffff);
            // packs work within 128-bit halves: the permutation puts the groups of four back in order
            let packed = _mm256_packus_epi32(_mm256_and_si256(v[0], low), _mm256_and_si256(v[1], low));
            let halves = _mm256_permute4x64_epi64::<0b11_01_10_00>(packed);
            [_mm256_cvtph_ps(_mm256_castsi256_si128(halves)), _mm256_cvtph_ps(_mm256_extracti128_si256::<1>(halves))]
        }
    }
}

impl RowLanes for Avx512 {
    #[inline(always)]
    fn ints(self, v: __m512i) -> __m512i {
        v
    }
    #[inline(always)]
    fn of_ints(self, v: __m512i) -> __m512i {
        v
    }
    #[inline(always)]
    fn load_u8(self, x: &[u8; 16]) -> __m512i {
        isa! { _mm512_cvtepu8_epi32(_mm_loadu_si128(x.as_ptr().cast())) }
    }
    #[inline(always)]
    fn load_u16(self, x: &[u8; 32]) -> __m512i {
        isa! { _mm512_cvtepu16_epi32(_mm256_loadu_si256(x.as_ptr().cast())) }
    }
    #[inline(always)]
    fn bits(self, v: __m512i, n: u32, mask: u8) -> __m512i {
        isa! {
            let v = _mm512_srl_epi16(v, _mm_cvtsi32_si128(n as i32));
            _mm512_and_si512(v, _mm512_set1_epi8(mask as i8))
        }
    }
    #[inline(always)]
    fn sra_i(self, v: __m512i, by: u32) -> __m512i {
        isa! { _mm512_sra_epi32(v, _mm_cvtsi32_si128(by as i32)) }
    }
    #[inline(always)]
    fn where_bit(self, v: __m512i, bit: u32, value: i32) -> __m512i {
        isa! {
            let set = _mm512_test_epi32_mask(v, _mm512_set1_epi32(1 << bit));
            _mm512_maskz_set1_epi32(set, value)
        }
    }
    #[inline(always)]
    fn float_of_f16(self, v: __m512i) -> Self::F {
        isa! { _mm512_cvtph_ps(_mm512_cvtepi32_epi16(v)) }
    }
}

#[cfg(test)]
mod tests {
    use crate::{Isa, IsaOp, available, run};

    /// Sixty-four bytes without order.
    fn bytes(seed: u8) -> [u8; 64] {
        std::array::from_fn(|i| (i as u8).wrapping_mul(73).wrapping_add(seed) ^ (i as u8) << 3)
    }

    struct Moves;

    impl IsaOp for Moves {
        type Output = [[i32; 16]; 9];

        #[inline(always)]
        fn run<I: Isa>(self, isa: I) -> [[i32; 16]; 9] {
            let (x, y) = (bytes(1), bytes(200));
            let v = isa.load(&x);
            let small: &[u8; 32] = y.first_chunk().expect("64 bytes");
            let tiny: &[u8; 16] = y.first_chunk().expect("64 bytes");
            let mut out = [[0; 16]; 9];
            let mut put = |k: usize, v| isa.store_i(v, &mut out[k]);
            put(0, isa.ints(v));
            put(1, isa.ints(isa.of_ints(isa.ints(v))));
            put(2, isa.load_u8(tiny));
            put(3, isa.load_u16(small));
            put(4, isa.ints(isa.bits(v, 3, 0x1f)));
            put(5, isa.sra_i(isa.ints(v), 5));
            put(6, isa.where_bit(isa.ints(v), 9, 0x0404_0404));
            put(7, isa.bits_i(isa.float_of_f16(isa.and_i(isa.ints(v), isa.splat_i(-0x7c01)))));
            put(8, isa.where_bit(isa.ints(v), 31, -1));
            out
        }
    }

    #[test]
    fn words_are_read_as_the_language_reads_them() {
        let (x, y) = (bytes(1), bytes(200));
        let word = |i: usize| i32::from_le_bytes(*x[4 * i..].first_chunk().expect("a word"));
        for kind in available() {
            let found = run(kind, Moves);
            for i in 0..16 {
                let halves = word(i) & -0x7c01;
                let expected = [
                    word(i),
                    word(i),
                    i32::from(y[i]),
                    i32::from(u16::from_le_bytes([y[2 * i], y[2 * i + 1]])),
                    (word(i) as u32 >> 3) as i32 & 0x1f1f_1f1f,
                    word(i) >> 5,
                    if word(i) >> 9 & 1 == 1 { 0x0404_0404 } else { 0 },
                    crate::scalar::f16_to_f32(halves as u16).to_bits() as i32,
                    if word(i) < 0 { -1 } else { 0 },
                ];
                assert_eq!(found.map(|v| v[i]), expected, "lane {i} on {}", kind.name());
            }
        }
    }
}
