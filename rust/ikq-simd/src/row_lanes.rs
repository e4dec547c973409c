//! The vocabulary of rows in lanes: sixteen rows side by side, four bytes of each in a value of 64 bytes.
//!
//! Such a value is read as bytes (`B64`: codes of four neighbouring elements per row) or as sixteen integers
//! (`I`: a word of scales or indices per row); both are the same bits.

use core::arch::x86_64::*;

use crate::lane_bits::count;
use crate::{Avx2, Avx512, LaneBits, Products, Scalar, array};

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
    /// `((byte >> from) & mask) << to` of each byte; nothing may be pushed out of it.
    fn bit_field(self, v: Self::B64, from: u32, to: u32, mask: u8) -> Self::B64;
    /// Two fields of each byte, one of two values each: the `bits[0]` bits of `low` from bit `from[0]`, and above them the
    /// `bits[1]` bits of `high` from bit `from[1]`.
    #[inline(always)]
    fn two_fields(self, low: Self::B64, high: Self::B64, from: [u32; 2], bits: [u32; 2]) -> Self::B64 {
        let low = self.bits(low, from[0], (1 << bits[0]) - 1);
        let high = self.bit_field(high, from[1], bits[0], (1 << bits[1]) - 1);
        self.of_ints(self.or_i(self.ints(low), self.ints(high)))
    }
    /// Byte e of a lane has bit `4 i + e` of the lane as its bit `to`, and no other.
    fn spread_bits(self, v: Self::I, i: usize, to: u32) -> Self::B64;
    /// Byte e of a lane is the two bits from bit `8 i + 2 e` of the lane.
    fn spread_crumbs(self, v: Self::I, i: usize) -> Self::B64;
    /// Byte e of a lane is byte `from[e]` of the lane.
    fn pick(self, v: Self::B64, from: [u8; 4]) -> Self::B64;
    /// Byte `k` of each lane, zeros above.
    fn byte(self, v: Self::I, k: usize) -> Self::I;
    /// `-v` in bytes whose bit `bit` is set in `bits`.
    fn negate_where_bit(self, v: Self::B64, bits: Self::B64, bit: u32) -> Self::B64;
    /// The low seven bits of each byte, and above them the bit that makes their number even.
    fn with_parity(self, v: Self::I) -> Self::I;
    /// A trit of each byte, as ternary formats pack five of them: `((byte * power mod 256) * 3) >> 8`; byte e of a
    /// lane is taken with `powers[e]`.
    fn trits(self, v: Self::B64, powers: [u8; 4]) -> Self::B64;
    /// Values of the KT generator as weights of [`Products::dot4`]: byte e is that of the lane's seed with
    /// `multipliers[e]`.
    fn trellis(self, seeds: Self::I, multipliers: &[u32; 4]) -> Self::B64;

    /// `MUL x + ADD` of the `BITS` bits x from bit `from` of each lane, exactly. `BITS` is at most 4.
    #[inline(always)]
    fn linear<const BITS: u32, const MUL: i32, const ADD: i32>(self, v: Self::I, from: u32) -> Self::F {
        let x = self.and_i(self.shr_i(v, from), self.splat_i((1 << BITS) - 1));
        self.fused_add(self.float_i(x), self.splat_f(MUL as f32), self.splat_f(ADD as f32))
    }

    /// Values of entries of eight elements: value i has elements `4 i..4 i + 4`, of entry i / 2, whose index has its low
    /// eight bits in byte i / 2 of `low` and the others in that byte of `high`. The sign of element j is bit j of
    /// `signs`. Indices must be below `N`.
    #[inline(always)]
    fn codebook_8<const N: usize>(
        self,
        book: &Codebook8<N>,
        low: Self::I,
        high: Self::I,
        signs: Self::I,
    ) -> [Self::B64; 8]
    where
        Self: crate::Isa,
    {
        let (mut lows, mut highs) = ([0; 16], [0; 16]);
        self.store_i(low, &mut lows);
        self.store_i(high, &mut highs);
        let mut rows = [[0; 64]; 16];
        for (r, row) in rows.iter_mut().enumerate() {
            let (low, high) = (lows[r].to_le_bytes(), highs[r].to_le_bytes());
            for (l, entry) in row.as_chunks_mut::<8>().0.iter_mut().take(4).enumerate() {
                let index = usize::from(low[l]) | usize::from(high[l]) << 8;
                *entry = book.bytes[index & (N - 1)].to_le_bytes();
            }
        }
        let turned = self.transpose_fours(rows.each_ref());
        let mut out = [self.splat(0); 8];
        for (i, out) in out.iter_mut().enumerate() {
            let levels = self.or(turned[i], self.spread_bits(signs, i, 2));
            *out = self.lut16(book.values.first_chunk().expect("64 values"), levels);
        }
        out
    }

    /// The same of entries of four elements: value i is of entry `index[i]`.
    #[inline(always)]
    fn codebook_4<const N: usize>(
        self,
        book: &Codebook4<N>,
        index: [Self::I; 8],
        signs: Self::I,
    ) -> [Self::B64; 8]
    where
        Self: crate::Isa,
    {
        let mut out = [self.splat(0); 8];
        for (i, (out, index)) in out.iter_mut().zip(index).enumerate() {
            let mut at = [0; 16];
            self.store_i(index, &mut at);
            let levels = self.gather_u32(&book.bytes, array(|r| at[r] as u32));
            let levels = self.or(levels, self.spread_bits(signs, i, 3));
            *out = self.lut16(book.values.first_chunk().expect("64 values"), levels);
        }
        out
    }
}

/// A codebook of entries of eight elements, each one of four levels. `N` is a power of two, at least 128.
pub struct Codebook8<const N: usize> {
    /// The entries in halves: element `4 h + j` is the level in bits `2 j` and `2 j + 1` of half h.
    pub levels: [[u8; N]; 2],
    /// The same, element j being byte j.
    pub bytes: [u64; N],
    /// The value of level l, with sign bit s at `l + 4 s`; repeated.
    pub values: [i8; 64],
}

/// A codebook of entries of four elements, each one of eight levels. `N` is a power of two, at least 64.
pub struct Codebook4<const N: usize> {
    /// The entries: element j is the level in the three bits from bit `3 j`.
    pub levels: [u16; N],
    /// The same, element j being byte j.
    pub bytes: [u32; N],
    /// The value of level l, with sign bit s at `l + 8 s`; repeated.
    pub values: [i8; 64],
}

impl<const N: usize> Codebook8<N> {
    /// The codebook of entries whose byte j is the level of element j.
    pub const fn new(bytes: [u64; N], values: [i8; 8]) -> Codebook8<N> {
        assert!(N.is_power_of_two() && N >= 128);
        let mut book = Codebook8 { levels: [[0; N]; 2], bytes, values: [0; 64] };
        let mut i = 0;
        while i < N {
            let mut j = 0;
            while j < 8 {
                let level = bytes[i] >> (8 * j) & 0xff;
                assert!(level < 4);
                book.levels[j / 4][i] |= (level as u8) << (2 * (j % 4));
                j += 1;
            }
            i += 1;
        }
        let mut i = 0;
        while i < 64 {
            book.values[i] = values[i % 8];
            i += 1;
        }
        book
    }
}

impl<const N: usize> Codebook4<N> {
    /// The codebook of entries whose byte j is the level of element j.
    pub const fn new(bytes: [u32; N], values: [i8; 16]) -> Codebook4<N> {
        assert!(N.is_power_of_two() && N >= 64);
        let mut book = Codebook4 { levels: [0; N], bytes, values: [0; 64] };
        let mut i = 0;
        while i < N {
            let mut j = 0;
            while j < 4 {
                let level = bytes[i] >> (8 * j) & 0xff;
                assert!(level < 8);
                book.levels[i] |= (level as u16) << (3 * j);
                j += 1;
            }
            i += 1;
        }
        let mut i = 0;
        while i < 64 {
            book.values[i] = values[i % 16];
            i += 1;
        }
        book
    }
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
    #[inline(always)]
    fn bit_field(self, v: [u8; 64], from: u32, to: u32, mask: u8) -> [u8; 64] {
        array(|i| (v[i] >> from & mask) << to)
    }
    #[inline(always)]
    fn spread_bits(self, v: [i32; 16], i: usize, to: u32) -> [u8; 64] {
        array(|j| ((v[j / 4] >> (4 * i + j % 4) & 1) << to) as u8)
    }
    #[inline(always)]
    fn spread_crumbs(self, v: [i32; 16], i: usize) -> [u8; 64] {
        array(|j| (v[j / 4] >> (8 * i + 2 * (j % 4)) & 3) as u8)
    }
    #[inline(always)]
    fn pick(self, v: [u8; 64], from: [u8; 4]) -> [u8; 64] {
        array(|j| v[j / 4 * 4 + usize::from(from[j % 4])])
    }
    #[inline(always)]
    fn byte(self, v: [i32; 16], k: usize) -> [i32; 16] {
        array(|i| v[i] >> (8 * k) & 0xff)
    }
    #[inline(always)]
    fn negate_where_bit(self, v: [u8; 64], bits: [u8; 64], bit: u32) -> [u8; 64] {
        array(|i| if bits[i] >> bit & 1 == 1 { v[i].wrapping_neg() } else { v[i] })
    }
    #[inline(always)]
    fn with_parity(self, v: [i32; 16]) -> [i32; 16] {
        array(|i| {
            let bytes = v[i].to_le_bytes();
            let even = |b: u8| b & 0x7f | ((b & 0x7f).count_ones() as u8 & 1) << 7;
            i32::from_le_bytes(array(|e| even(bytes[e])))
        })
    }
    #[inline(always)]
    fn trits(self, v: [u8; 64], powers: [u8; 4]) -> [u8; 64] {
        array(|j| ((u16::from(v[j].wrapping_mul(powers[j % 4])) * 3) >> 8) as u8)
    }
    #[inline(always)]
    fn trellis(self, seeds: [i32; 16], multipliers: &[u32; 4]) -> [u8; 64] {
        array(|j| crate::scalar::trellis_value((seeds[j / 4] as u32).wrapping_mul(multipliers[j % 4])))
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
            // bits of the neighbouring byte that come in are masked away
            let (n, mask) = (count(n), _mm256_set1_epi8(mask as i8));
            [
                _mm256_and_si256(_mm256_srl_epi32(v[0], n), mask),
                _mm256_and_si256(_mm256_srl_epi32(v[1], n), mask),
            ]
        }
    }
    #[inline(always)]
    fn sra_i(self, v: Pair, by: u32) -> Pair {
        isa! {
            let by = count(by);
            [_mm256_sra_epi32(v[0], by), _mm256_sra_epi32(v[1], by)]
        }
    }
    #[inline(always)]
    fn where_bit(self, v: Pair, bit: u32, value: i32) -> Pair {
        isa! {
            // the bit moved to the sign, and the sign over the lane
            let (up, value) = (count(31 - bit), _mm256_set1_epi32(value));
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
    #[inline(always)]
    fn bit_field(self, v: Pair, from: u32, to: u32, mask: u8) -> Pair {
        isa! {
            // bits of the neighbouring byte that come in are masked away
            let (from, to) = (count(from), count(to));
            let mask = _mm256_set1_epi8(mask as i8);
            let low = [
                _mm256_and_si256(_mm256_srl_epi32(v[0], from), mask),
                _mm256_and_si256(_mm256_srl_epi32(v[1], from), mask),
            ];
            [_mm256_sll_epi32(low[0], to), _mm256_sll_epi32(low[1], to)]
        }
    }
    #[inline(always)]
    fn spread_bits(self, v: Pair, i: usize, to: u32) -> Pair {
        isa! {
            let byte = _mm256_add_epi8(
                _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12)),
                _mm256_set1_epi8(i as i8 / 2),
            );
            let bit = _mm256_set1_epi32(if i.is_multiple_of(2) { 0x0804_0201 } else { 0x8040_2010_u32 as i32 });
            let value = _mm256_set1_epi8((1u8 << to) as i8);
            let mut out = v;
            for half in &mut out {
                let v = *half;
                let set = _mm256_cmpeq_epi8(_mm256_and_si256(_mm256_shuffle_epi8(v, byte), bit), bit);
                *half = _mm256_and_si256(set, value);
            }
            out
        }
    }
    #[inline(always)]
    fn spread_crumbs(self, v: Pair, i: usize) -> Pair {
        isa! {
            let down = count(8 * i as u32);
            let mut out = v;
            for half in &mut out {
                let v = *half;
                let q = _mm256_and_si256(_mm256_srl_epi32(v, down), _mm256_set1_epi32(0xff));
                let two = _mm256_or_si256(q, _mm256_slli_epi32::<6>(q));
                *half = _mm256_and_si256(_mm256_or_si256(two, _mm256_slli_epi32::<12>(two)), _mm256_set1_epi8(3));
            }
            out
        }
    }
    #[inline(always)]
    fn pick(self, v: Pair, from: [u8; 4]) -> Pair {
        isa! {
            let starts = _mm_setr_epi32(0, 0x0404_0404, 0x0808_0808, 0x0c0c_0c0c);
            let from = _mm_add_epi8(starts, _mm_set1_epi32(i32::from_le_bytes(from)));
            let from = _mm256_broadcastsi128_si256(from);
            [_mm256_shuffle_epi8(v[0], from), _mm256_shuffle_epi8(v[1], from)]
        }
    }
    #[inline(always)]
    fn byte(self, v: Pair, k: usize) -> Pair {
        isa! {
            // zeros where the index is negative
            let from = _mm_add_epi8(
                _mm_setr_epi8(0, -1, -1, -1, 4, -1, -1, -1, 8, -1, -1, -1, 12, -1, -1, -1),
                _mm_and_si128(_mm_set1_epi32(0xff), _mm_set1_epi8(k as i8)),
            );
            let from = _mm256_broadcastsi128_si256(from);
            [_mm256_shuffle_epi8(v[0], from), _mm256_shuffle_epi8(v[1], from)]
        }
    }
    #[inline(always)]
    fn negate_where_bit(self, v: Pair, bits: Pair, bit: u32) -> Pair {
        isa! {
            // the bit moved to the byte's sign
            let up = count(7 - bit);
            let mut out = v;
            for (half, bits) in out.iter_mut().zip(bits) {
                let v = *half;
                let all = _mm256_cmpgt_epi8(_mm256_setzero_si256(), _mm256_sll_epi32(bits, up));
                *half = _mm256_sub_epi8(_mm256_xor_si256(v, all), all);
            }
            out
        }
    }
    #[inline(always)]
    fn with_parity(self, v: Pair) -> Pair {
        isa! {
            // bit 7 of the entry: whether the nibble's number of ones is odd
            let odd = _mm_setr_epi8(0, -128, -128, 0, -128, 0, 0, -128, -128, 0, 0, -128, 0, -128, -128, 0);
            let (odd, low) = (_mm256_broadcastsi128_si256(odd), _mm256_set1_epi8(15));
            let mut out = v;
            for half in &mut out {
                let v = *half;
                let v = _mm256_and_si256(v, _mm256_set1_epi8(0x7f));
                let high = _mm256_and_si256(_mm256_srli_epi16::<4>(v), low);
                let (a, b) = (_mm256_shuffle_epi8(odd, _mm256_and_si256(v, low)), _mm256_shuffle_epi8(odd, high));
                *half = _mm256_xor_si256(v, _mm256_xor_si256(a, b));
            }
            out
        }
    }
    #[inline(always)]
    fn trits(self, v: Pair, p: [u8; 4]) -> Pair {
        isa! {
            // products of 16 bits have those of the lower bytes below, and of the upper ones if these come down
            let even = _mm256_set1_epi32(i32::from(p[0]) | i32::from(p[2]) << 16);
            let odd = _mm256_set1_epi32(i32::from(p[1]) | i32::from(p[3]) << 16);
            let mut out = v;
            for half in &mut out {
                let v = *half;
                let low = _mm256_and_si256(_mm256_mullo_epi16(v, even), _mm256_set1_epi16(0xff));
                let high = _mm256_slli_epi16::<8>(_mm256_mullo_epi16(_mm256_srli_epi16::<8>(v), odd));
                let x = _mm256_or_si256(low, high);
                let one = _mm256_cmpeq_epi8(_mm256_max_epu8(x, _mm256_set1_epi8(86)), x);
                let two = _mm256_cmpeq_epi8(_mm256_max_epu8(x, _mm256_set1_epi8(171_u8 as i8)), x);
                *half = _mm256_sub_epi8(_mm256_setzero_si256(), _mm256_add_epi8(one, two));
            }
            out
        }
    }
    #[inline(always)]
    fn trellis(self, seeds: Pair, multipliers: &[u32; 4]) -> Pair {
        isa! {
            let mut out = seeds;
            for half in &mut out {
                let seeds = *half;
                let mut sums = [_mm256_setzero_si256(); 4];
                for (sum, m) in sums.iter_mut().zip(multipliers) {
                    let x = _mm256_mullo_epi32(seeds, _mm256_set1_epi32(*m as i32));
                    let x = _mm256_and_si256(x, _mm256_set1_epi32(0x3f3f_3f3f));
                    let pairs = _mm256_maddubs_epi16(x, _mm256_set1_epi8(1));
                    *sum = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
                }
                // quarters hold the sums of four seeds with one multiplier each: turned round
                let lo = _mm256_packs_epi32(sums[0], sums[1]);
                let hi = _mm256_packs_epi32(sums[2], sums[3]);
                let bytes = _mm256_packus_epi16(lo, hi);
                let turn = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
                let bytes = _mm256_shuffle_epi8(bytes, _mm256_broadcastsi128_si256(turn));
                *half = _mm256_sub_epi8(bytes, _mm256_set1_epi8(126));
            }
            out
        }
    }
    #[inline(always)]
    fn codebook_8<const N: usize>(
        self,
        book: &Codebook8<N>,
        low: Pair,
        high: Pair,
        signs: Pair,
    ) -> [Pair; 8] {
        let (mut lows, mut highs) = ([0; 64], [0; 64]);
        crate::Isa::store(self, low, &mut lows);
        crate::Isa::store(self, high, &mut highs);
        let mut out = [low; 8];
        for (l, [first, last]) in out.as_chunks_mut::<2>().0.iter_mut().enumerate() {
            for (half, (first, last)) in first.iter_mut().zip(last).enumerate() {
                // entries of eight rows go from memory into registers two by two; a row of them in memory would have to
                // be written first, and what is written in parts is slow to read as a whole
                let mut at = [&book.bytes[0]; 8];
                for (r, at) in at.iter_mut().enumerate() {
                    let i = 4 * (8 * half + r) + l;
                    *at = &book.bytes[(usize::from(lows[i]) | usize::from(highs[i]) << 8) & (N - 1)];
                }
                isa! {
                    let (a, b) = (two_entries(at[0], at[1]), two_entries(at[2], at[3]));
                    let (c, d) = (two_entries(at[4], at[5]), two_entries(at[6], at[7]));
                    *first = _mm256_castps_si256(_mm256_set_m128(
                        _mm_shuffle_ps::<0x88>(c, d),
                        _mm_shuffle_ps::<0x88>(a, b),
                    ));
                    *last = _mm256_castps_si256(_mm256_set_m128(
                        _mm_shuffle_ps::<0xdd>(c, d),
                        _mm_shuffle_ps::<0xdd>(a, b),
                    ));
                }
            }
        }
        for (i, out) in out.iter_mut().enumerate() {
            let levels = crate::Isa::or(self, *out, self.spread_bits(signs, i, 2));
            *out = crate::Isa::lut16(self, book.values.first_chunk().expect("64 values"), levels);
        }
        out
    }
}

/// Two entries of eight bytes.
#[inline(always)]
fn two_entries(a: &u64, b: &u64) -> __m128 {
    // SAFETY: SSE2 is part of x86-64; eight bytes are read from each.
    unsafe {
        let low = _mm_castsi128_ps(_mm_loadl_epi64(std::ptr::from_ref(a).cast()));
        _mm_castpd_ps(_mm_loadh_pd(_mm_castps_pd(low), std::ptr::from_ref(b).cast()))
    }
}

/// [`RowLanes::linear`] of the low four bits of a number.
const fn lines<const BITS: u32, const MUL: i32, const ADD: i32>() -> [f32; 16] {
    assert!(BITS <= 4);
    let mut out = [0.0; 16];
    let mut i = 0;
    while i < 16 {
        out[i] = (MUL * (i as i32 & ((1 << BITS) - 1)) + ADD) as f32;
        i += 1;
    }
    out
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
    fn linear<const BITS: u32, const MUL: i32, const ADD: i32>(self, v: __m512i, from: u32) -> Self::F {
        isa! {
            // a look-up takes the low four bits of a lane, whatever is above them
            let table = _mm512_loadu_ps(const { &lines::<BITS, MUL, ADD>() }.as_ptr());
            _mm512_permutexvar_ps(self.shr_i(v, from), table)
        }
    }
    #[inline(always)]
    fn bits(self, v: __m512i, n: u32, mask: u8) -> __m512i {
        isa! {
            // bits of the neighbouring byte that come in are masked away
            let v = _mm512_srl_epi32(v, count(n));
            _mm512_and_si512(v, _mm512_set1_epi8(mask as i8))
        }
    }
    #[inline(always)]
    fn sra_i(self, v: __m512i, by: u32) -> __m512i {
        isa! { _mm512_sra_epi32(v, count(by)) }
    }
    #[inline(always)]
    fn where_bit(self, v: __m512i, bit: u32, value: i32) -> __m512i {
        isa! {
            let up = _mm512_sll_epi32(v, count(31 - bit));
            _mm512_and_si512(_mm512_srai_epi32::<31>(up), _mm512_set1_epi32(value))
        }
    }
    #[inline(always)]
    fn float_of_f16(self, v: __m512i) -> Self::F {
        isa! { _mm512_cvtph_ps(_mm512_cvtepi32_epi16(v)) }
    }
    #[inline(always)]
    fn bit_field(self, v: __m512i, from: u32, to: u32, mask: u8) -> __m512i {
        isa! {
            _mm512_and_si512(moved(v, from, to), _mm512_set1_epi8((mask << to) as i8))
        }
    }
    #[inline(always)]
    fn two_fields(self, low: __m512i, high: __m512i, from: [u32; 2], bits: [u32; 2]) -> __m512i {
        isa! {
            let mask = _mm512_set1_epi8((1 << bits[0]) - 1);
            let both = either(mask, moved(low, from[0], 0), moved(high, from[1], bits[0]));
            _mm512_and_si512(both, _mm512_set1_epi8(((1u32 << (bits[0] + bits[1])) - 1) as i8))
        }
    }
    #[inline(always)]
    fn spread_bits(self, v: __m512i, i: usize, to: u32) -> __m512i {
        isa! {
            // four bits choose one of sixteen patterns of four bytes; what is above them is not looked at
            let patterns = _mm512_loadu_si512(const { &PATTERNS }[to as usize & 7].as_ptr().cast());
            _mm512_permutexvar_epi32(self.shr_i(v, 4 * i as u32), patterns)
        }
    }
    #[inline(always)]
    fn spread_crumbs(self, v: __m512i, i: usize) -> __m512i {
        isa! { _mm512_and_si512(spread(v, 8 * i, 2, 0), _mm512_set1_epi8(3)) }
    }
    #[inline(always)]
    fn pick(self, v: __m512i, from: [u8; 4]) -> __m512i {
        isa! {
            let starts = _mm_setr_epi32(0, 0x0404_0404, 0x0808_0808, 0x0c0c_0c0c);
            let from = _mm_add_epi8(starts, _mm_set1_epi32(i32::from_le_bytes(from)));
            _mm512_shuffle_epi8(v, _mm512_broadcast_i32x4(from))
        }
    }
    #[inline(always)]
    fn byte(self, v: __m512i, k: usize) -> __m512i {
        isa! {
            // zeros where the index is negative
            let from = _mm_add_epi8(
                _mm_setr_epi8(0, -1, -1, -1, 4, -1, -1, -1, 8, -1, -1, -1, 12, -1, -1, -1),
                _mm_and_si128(_mm_set1_epi32(0xff), _mm_set1_epi8(k as i8)),
            );
            _mm512_shuffle_epi8(v, _mm512_broadcast_i32x4(from))
        }
    }
    #[inline(always)]
    fn negate_where_bit(self, v: __m512i, bits: __m512i, bit: u32) -> __m512i {
        isa! {
            let set = _mm512_test_epi8_mask(bits, _mm512_set1_epi8((1u8 << bit) as i8));
            _mm512_mask_sub_epi8(v, set, _mm512_setzero_si512(), v)
        }
    }
    #[inline(always)]
    fn with_parity(self, v: __m512i) -> __m512i {
        isa! {
            let (lo, hi) = (_mm512_loadu_si512(EVEN.as_ptr().cast()), _mm512_loadu_si512(EVEN[64..].as_ptr().cast()));
            _mm512_permutex2var_epi8(lo, v, hi)
        }
    }
    #[inline(always)]
    fn trits(self, v: __m512i, p: [u8; 4]) -> __m512i {
        isa! {
            // products of 16 bits have those of the lower bytes below, and of the upper ones if these come down
            let even = _mm512_set1_epi32(i32::from(p[0]) | i32::from(p[2]) << 16);
            let odd = _mm512_set1_epi32(i32::from(p[1]) | i32::from(p[3]) << 16);
            let low = _mm512_and_si512(_mm512_mullo_epi16(v, even), _mm512_set1_epi16(0xff));
            let high = _mm512_slli_epi16::<8>(_mm512_mullo_epi16(_mm512_srli_epi16::<8>(v), odd));
            let x = _mm512_or_si512(low, high);
            let one = _mm512_maskz_set1_epi8(_mm512_cmpge_epu8_mask(x, _mm512_set1_epi8(86)), 1);
            let two = _mm512_cmpge_epu8_mask(x, _mm512_set1_epi8(171_u8 as i8));
            _mm512_mask_add_epi8(one, two, one, _mm512_set1_epi8(1))
        }
    }
    #[inline(always)]
    fn trellis(self, seeds: __m512i, multipliers: &[u32; 4]) -> __m512i {
        isa! {
            // the sum less 126, with the bias of weights
            let mut sums = [_mm512_set1_epi32(2); 4];
            for (sum, m) in sums.iter_mut().zip(multipliers) {
                let x = _mm512_mullo_epi32(seeds, _mm512_set1_epi32(*m as i32));
                let x = _mm512_and_si512(x, _mm512_set1_epi32(0x3f3f_3f3f));
                *sum = _mm512_dpbusd_epi32(*sum, x, _mm512_set1_epi8(1));
            }
            // sums are below 256: quarters hold those of four seeds with one multiplier each, to be turned round
            let lo = _mm512_packs_epi32(sums[0], sums[1]);
            let hi = _mm512_packs_epi32(sums[2], sums[3]);
            let bytes = _mm512_packus_epi16(lo, hi);
            let turn = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
            _mm512_shuffle_epi8(bytes, _mm512_broadcast_i32x4(turn))
        }
    }
    #[inline(always)]
    fn codebook_8<const N: usize>(
        self,
        book: &Codebook8<N>,
        low: __m512i,
        high: __m512i,
        signs: __m512i,
    ) -> [__m512i; 8] {
        isa! {
            // elements 0..4 of the four entries of a row, and elements 4..8: two bits each
            let levels = [lut_u8(&book.levels[0], low, high), lut_u8(&book.levels[1], low, high)];
            let values = _mm512_loadu_si512(book.values.as_ptr().cast());
            let mut out = [values; 8];
            for (i, out) in out.iter_mut().enumerate() {
                let level = spread(levels[i % 2], 8 * (i / 2), 2, 0);
                // bits above the sign are not looked at: values repeat
                let at = either(_mm512_set1_epi8(3), level, self.spread_bits(signs, i, 2));
                *out = _mm512_permutexvar_epi8(at, values);
            }
            out
        }
    }
    #[inline(always)]
    fn codebook_4<const N: usize>(
        self,
        book: &Codebook4<N>,
        index: [__m512i; 8],
        signs: __m512i,
    ) -> [__m512i; 8] {
        isa! {
            let values = _mm512_loadu_si512(book.values.as_ptr().cast());
            let mut out = [values; 8];
            for i in 0..4 {
                let pair = _mm512_or_si512(index[i], _mm512_slli_epi32::<16>(index[i + 4]));
                let levels = lut_u16(&book.levels, pair);
                for h in 0..2 {
                    let level = spread(levels, 16 * h, 3, 0);
                    let at = either(_mm512_set1_epi8(7), level, self.spread_bits(signs, i + 4 * h, 3));
                    out[i + 4 * h] = _mm512_permutexvar_epi8(at, values);
                }
            }
            out
        }
    }
}

/// Byte -> its low seven bits, and above them the bit that makes their number even.
static EVEN: [u8; 128] = {
    let mut out = [0; 128];
    let mut b = 0;
    while b < 128 {
        out[b] = b as u8 | ((b as u8).count_ones() as u8 & 1) << 7;
        b += 1;
    }
    out
};

/// Byte e of a lane has the lane's bits from `first + step * e` on, the first of them as its bit `to`; what is below
/// and above is unspecified.
#[inline(always)]
fn spread(v: __m512i, first: usize, step: usize, to: u32) -> __m512i {
    let from = |lane: usize, e: usize| ((32 * lane + first + step * e + 64 - to as usize) % 64) as u8;
    let from = i64::from_le_bytes(array(|j| from(j / 4, j % 4)));
    // SAFETY: called from methods of `Avx512` only, whose token proves AVX-512 with VBMI.
    unsafe { _mm512_multishift_epi64_epi8(_mm512_set1_epi64(from), v) }
}

/// Bits of `a` where `mask` has ones, else those of `b`.
#[inline(always)]
fn either(mask: __m512i, a: __m512i, b: __m512i) -> __m512i {
    // SAFETY: called from methods of `Avx512` only, whose token proves AVX-512.
    unsafe { _mm512_ternarylogic_epi32::<0xca>(mask, a, b) }
}

/// Words shifted so that bit `from` of each byte comes to bit `to`; bits of neighbouring bytes come in.
#[inline(always)]
fn moved(v: __m512i, from: u32, to: u32) -> __m512i {
    isa! {
        let v = _mm512_srl_epi32(v, count(from.saturating_sub(to)));
        _mm512_sll_epi32(v, count(to.saturating_sub(from)))
    }
}

/// Pattern p of bit b: byte e is that bit where bit e of p is set.
const PATTERNS: [[u32; 16]; 8] = {
    let mut out = [[0; 16]; 8];
    let mut i = 0;
    while i < 8 * 16 * 4 {
        let (b, p, e) = (i / 64, i / 4 % 16, i % 4);
        out[b][p] |= (p as u32 >> e & 1) << (8 * e + b);
        i += 1;
    }
    out
};

/// Sixty-four entries of a table whose indices have low bits in `low` and others in `high`.
#[inline(always)]
fn lut_u8<const N: usize>(table: &[u8; N], low: __m512i, high: __m512i) -> __m512i {
    // SAFETY: called from methods of `Avx512` only, whose token proves AVX-512 with VBMI; a load is of 64 entries of
    // the table.
    unsafe {
        const { assert!(N.is_multiple_of(128) && N <= 2048) };
        // by the low seven bits of the index from each 128 entries, then by one bit after another
        let mut parts = [low; 16];
        for (part, table) in parts.iter_mut().zip(table.as_chunks::<128>().0) {
            let first = _mm512_loadu_si512(table.as_ptr().cast());
            let last = _mm512_loadu_si512(table[64..].as_ptr().cast());
            *part = _mm512_permutex2var_epi8(first, low, last);
        }
        let mut n = N / 128;
        let mut bit = 7;
        while n > 1 {
            n /= 2;
            let set = match bit {
                7 => _mm512_movepi8_mask(low),
                _ => _mm512_test_epi8_mask(high, _mm512_set1_epi8(1 << (bit - 8))),
            };
            for p in 0..n {
                parts[p] = _mm512_mask_blend_epi8(set, parts[2 * p], parts[2 * p + 1]);
            }
            bit += 1;
        }
        parts[0]
    }
}

/// Thirty-two entries of a table; indices are below `N`.
#[inline(always)]
fn lut_u16<const N: usize>(table: &[u16; N], index: __m512i) -> __m512i {
    // SAFETY: called from methods of `Avx512` only, whose token proves AVX-512; a load is of 32 entries of the table.
    unsafe {
        const { assert!(N.is_multiple_of(64) && N <= 2048) };
        // by the low six bits of the index from each 64 entries, then by one bit after another
        let mut parts = [index; 32];
        let mut n = N / 64;
        for (part, table) in parts.iter_mut().zip(table.as_chunks::<64>().0) {
            let lo = _mm512_loadu_si512(table.as_ptr().cast());
            let hi = _mm512_loadu_si512(table[32..].as_ptr().cast());
            *part = _mm512_permutex2var_epi16(lo, index, hi);
        }
        let mut bit = 64;
        while n > 1 {
            n /= 2;
            let set = _mm512_test_epi16_mask(index, _mm512_set1_epi16(bit));
            for p in 0..n {
                parts[p] = _mm512_mask_blend_epi16(set, parts[2 * p], parts[2 * p + 1]);
            }
            bit <<= 1;
        }
        parts[0]
    }
}

#[cfg(test)]
mod tests {
    use super::{Codebook4, Codebook8};
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

    /// What each operation gives on a set: operations whose result is defined by the scalar one.
    struct Same;

    /// Entries whose levels differ in every element.
    const BOOK_8: Codebook8<512> = {
        let mut bytes = [0; 512];
        let mut i = 0;
        while i < 256 {
            bytes[i] =
                ((i as u64).wrapping_mul(0x0123_4567_89ab_cdef) ^ (i as u64) << 21) & 0x0303_0303_0303_0303;
            i += 1;
        }
        Codebook8::new(bytes, [1, 2, 4, 8, -16, -32, -64, -128])
    };
    const BOOK_4: Codebook4<512> = {
        let mut bytes = [0; 512];
        let mut i = 0;
        while i < 512 {
            bytes[i] = (i as u32).wrapping_mul(0x9e37_79b9) >> 2 & 0x0707_0707;
            i += 1;
        }
        Codebook4::new(bytes, [0, 1, 2, 3, 4, 5, 6, 7, 100, 101, 102, 103, 104, 105, 106, 127])
    };

    impl IsaOp for Same {
        type Output = Vec<[u8; 64]>;

        #[inline(always)]
        fn run<I: Isa>(self, isa: I) -> Vec<[u8; 64]> {
            let mut out = Vec::new();
            let mut put = |v: I::B64| {
                let mut bytes = [0; 64];
                isa.store(v, &mut bytes);
                out.push(bytes);
            };
            let (v, w) = (isa.load(&bytes(7)), isa.load(&bytes(90)));
            let int = isa.ints(v);
            for (from, to, mask) in [(0, 4, 1), (7, 2, 1), (4, 0, 15), (2, 4, 3), (6, 4, 3), (3, 3, 1)] {
                put(isa.bit_field(v, from, to, mask));
            }
            for i in 0..8 {
                put(isa.spread_bits(int, i, i as u32));
                put(isa.spread_crumbs(int, i / 2));
                put(isa.negate_where_bit(w, v, i as u32));
            }
            put(isa.pick(v, [3, 0, 0, 2]));
            for k in 0..4 {
                put(isa.of_ints(isa.byte(int, k)));
            }
            put(isa.of_ints(isa.with_parity(int)));
            put(isa.trits(v, [81, 27, 9, 3]));
            put(isa.trits(w, [1, 81, 1, 27]));
            let mut index = [int; 8];
            for (i, index) in index.iter_mut().enumerate() {
                *index = isa.and_i(isa.shr_i(isa.ints(w), 3 * i as u32), isa.splat_i(511));
            }
            for v in isa.codebook_4(&BOOK_4, index, int) {
                put(v);
            }
            // upper index bits of 0 and 1
            let high = isa.and_i(isa.shr_i(isa.ints(w), 1), isa.splat_i(0x0101_0101));
            for v in isa.codebook_8(&BOOK_8, isa.ints(w), high, int) {
                put(v);
            }
            // the generator's values without the bias of weights
            let values = isa.trellis(isa.and_i(int, isa.splat_i(0xffff)), &[3, 0x1234_5671, 77, 0x8000_0001]);
            put(if I::CODE_BIAS == 0 { values } else { isa.xor(values, isa.splat(0x80)) });
            out
        }
    }

    #[test]
    fn every_set_gives_the_bits_of_the_scalar_one() {
        let expected = run(crate::IsaKind::Scalar, Same);
        for kind in available() {
            for (i, (found, expected)) in run(kind, Same).iter().zip(&expected).enumerate() {
                assert_eq!(found, expected, "result {i} on {}", kind.name());
            }
        }
        // a few by hand: element 5 of an entry of eight is of level 3, negative
        let x = bytes(7);
        assert_eq!(expected[2][9], x[9] >> 4);
        assert_eq!(expected[6][3], x[0] >> 3 & 1);
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
