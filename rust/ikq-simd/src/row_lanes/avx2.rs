//! [`RowLanes`] in AVX2, with two registers of eight lanes.

use core::arch::x86_64::*;

use super::entries::eight_rows;
use super::{Codebook4, Codebook8, LaneIndices, RowLanes, TakeLanes, two_bytes_from};
use crate::Avx2;
use crate::lane_bits::count;

/// The two registers of sixteen lanes.
type Pair = [__m256i; 2];

impl RowLanes for Avx2 {
    const LOOKED_UP: usize = 0;

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
            // the mask clears bits that come from the neighbouring byte
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
            // the bit is moved to the sign, and the sign copied over the lane
            let (up, value) = (count(31 - bit), _mm256_set1_epi32(value));
            let all = [_mm256_srai_epi32::<31>(_mm256_sll_epi32(v[0], up)), _mm256_srai_epi32::<31>(_mm256_sll_epi32(v[1], up))];
            [_mm256_and_si256(all[0], value), _mm256_and_si256(all[1], value)]
        }
    }
    #[inline(always)]
    fn float_of_f16(self, v: Pair) -> Self::F {
        isa! {
            let low = _mm256_set1_epi32(0xffff);
            // packing works within 128-bit halves; the permutation puts the groups of four back in order
            let packed = _mm256_packus_epi32(_mm256_and_si256(v[0], low), _mm256_and_si256(v[1], low));
            let halves = _mm256_permute4x64_epi64::<0b11_01_10_00>(packed);
            [_mm256_cvtph_ps(_mm256_castsi256_si128(halves)), _mm256_cvtph_ps(_mm256_extracti128_si256::<1>(halves))]
        }
    }
    #[inline(always)]
    fn bit_field(self, v: Pair, from: u32, to: u32, mask: u8) -> Pair {
        isa! {
            // the mask clears bits that come from the neighbouring byte
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
            let is_even = i.is_multiple_of(2);
            let value = _mm256_set1_epi8((1u8 << to) as i8);
            let mut out = v;
            for half in &mut out {
                *half = if to <= 4 {
                    // even nibbles are moved up, so that every bit is at least `value`, which is then the least of both
                    let bit = _mm256_set1_epi32(0x0804_0201 << if is_even { to } else { 4 });
                    let v = _mm256_sll_epi32(*half, count(if is_even { to } else { 0 }));
                    _mm256_min_epu8(_mm256_and_si256(_mm256_shuffle_epi8(v, byte), bit), value)
                } else {
                    let bit = _mm256_set1_epi32(if is_even { 0x0804_0201 } else { 0x8040_2010_u32 as i32 });
                    let set = _mm256_cmpeq_epi8(_mm256_and_si256(_mm256_shuffle_epi8(*half, byte), bit), bit);
                    _mm256_and_si256(set, value)
                };
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
            // negative indices give zeros
            let from = _mm_add_epi8(
                _mm_setr_epi8(0, -1, -1, -1, 4, -1, -1, -1, 8, -1, -1, -1, 12, -1, -1, -1),
                _mm_and_si128(_mm_set1_epi32(0xff), _mm_set1_epi8(k as i8)),
            );
            let from = _mm256_broadcastsi128_si256(from);
            [_mm256_shuffle_epi8(v[0], from), _mm256_shuffle_epi8(v[1], from)]
        }
    }
    #[inline(always)]
    fn two_bytes<const SIGNED: bool>(self, v: Pair, k: [usize; 2]) -> Pair {
        isa! {
            let from = _mm256_broadcastsi128_si256(two_bytes_from::<SIGNED>(k));
            let two = [_mm256_shuffle_epi8(v[0], from), _mm256_shuffle_epi8(v[1], from)];
            match SIGNED {
                true => [_mm256_srai_epi16::<8>(two[0]), _mm256_srai_epi16::<8>(two[1])],
                false => two,
            }
        }
    }
    #[inline(always)]
    fn negate_where_bit(self, v: Pair, bits: Pair, bit: u32) -> Pair {
        isa! {
            // the bit is moved to the sign of the byte
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
            // bit 7 of an entry tells whether the nibble has an odd number of one bits
            let odd = _mm_setr_epi8(0, -128, -128, 0, -128, 0, 0, -128, -128, 0, 0, -128, 0, -128, -128, 0);
            let (odd, low) = (_mm256_broadcastsi128_si256(odd), _mm256_set1_epi8(15));
            let mut out = v;
            for half in &mut out {
                let v = _mm256_and_si256(*half, _mm256_set1_epi8(0x7f));
                // both nibbles have as many ones, but for pairs of them, as the bits in which they differ
                let differ = _mm256_and_si256(_mm256_xor_si256(v, _mm256_srli_epi16::<4>(v)), low);
                *half = _mm256_xor_si256(v, _mm256_shuffle_epi8(odd, differ));
            }
            out
        }
    }
    #[inline(always)]
    fn trits(self, v: Pair, p: [u8; 4]) -> Pair {
        isa! {
            // the low bytes of 16-bit products are the products of the lower bytes, and of the upper ones after a
            // shift
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
                // sums of two bytes each
                let mut pairs = [_mm256_setzero_si256(); 4];
                for (pairs, m) in pairs.iter_mut().zip(multipliers) {
                    let x = _mm256_mullo_epi32(seeds, _mm256_set1_epi32(*m as i32));
                    let x = _mm256_and_si256(x, _mm256_set1_epi32(0x3f3f_3f3f));
                    *pairs = _mm256_maddubs_epi16(x, _mm256_set1_epi8(1));
                }
                // they fit a byte: two multipliers at a time are summed up once more
                let ones = _mm256_set1_epi8(1);
                let lo = _mm256_maddubs_epi16(_mm256_packus_epi16(pairs[0], pairs[1]), ones);
                let hi = _mm256_maddubs_epi16(_mm256_packus_epi16(pairs[2], pairs[3]), ones);
                // quarters hold the sums of four seeds, one multiplier after another; they are transposed
                let bytes = _mm256_packus_epi16(lo, hi);
                let turn = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
                let bytes = _mm256_shuffle_epi8(bytes, _mm256_broadcastsi128_si256(turn));
                *half = _mm256_sub_epi8(bytes, _mm256_set1_epi8(126));
            }
            out
        }
    }
    #[inline(always)]
    fn indices_8(self, low: &[u8; 64], high: Pair, out: &mut LaneIndices) {
        out.join(0, crate::Isa::load(self, low), high);
    }
    #[inline(always)]
    fn indices_4(self, low: &[[u8; 64]; 2], high: Pair, out: &mut LaneIndices) {
        for (line, low) in low.iter().enumerate() {
            out.join(4 * line, crate::Isa::load(self, low), self.spread_bits(high, line, 0));
        }
    }
    #[inline(always)]
    fn codebook_8<const N: usize>(
        self,
        book: &Codebook8<N>,
        low: &[u8; 64],
        _: Pair,
        indices: &LaneIndices,
        signs: Pair,
        take: &mut impl TakeLanes<Self>,
    ) {
        let values = book.values.first_chunk().expect("64 values");
        // written out, so that vectors are taken as they come
        macro_rules! entries {
            ($l:expr) => {
                let index = |r: usize| match N {
                    ..=256 => usize::from(low[4 * r + $l]),
                    _ => indices.at(r, $l),
                };
                let (a, b) =
                    (eight_rows(&book.bytes, |r| index(r)), eight_rows(&book.bytes, |r| index(8 + r)));
                let out = [[a[0], b[0]], [a[1], b[1]]];
                for (i, levels) in out.into_iter().enumerate() {
                    let i = 2 * $l + i;
                    let levels = crate::Isa::or(self, levels, self.spread_bits(signs, i, 2));
                    take.take(self, i, crate::Isa::lut16(self, values, levels));
                }
            };
        }
        entries!(0);
        entries!(1);
        entries!(2);
        entries!(3);
    }
    #[inline(always)]
    fn codebook_4<const N: usize>(
        self,
        book: &Codebook4<N>,
        low: &[[u8; 64]; 2],
        _: Pair,
        indices: &LaneIndices,
        signs: Pair,
        take: &mut impl TakeLanes<Self>,
    ) {
        let values = book.values.first_chunk().expect("64 values");
        // written out, so that vectors are taken as they come
        macro_rules! entries {
            ($i:expr) => {
                let mut levels = signs;
                for (half, levels) in levels.iter_mut().enumerate() {
                    let entry = |r: usize| {
                        let i = match N {
                            ..=256 => usize::from(low[$i / 4][4 * (8 * half + r) + $i % 4]),
                            _ => indices.at(8 * half + r, $i),
                        };
                        book.bytes[i & (N - 1)] as i32
                    };
                    isa! {
                        // single loads are faster than gathering
                        *levels = _mm256_setr_epi32(
                            entry(0), entry(1), entry(2), entry(3), entry(4), entry(5), entry(6), entry(7),
                        );
                    }
                }
                let levels = crate::Isa::or(self, levels, self.spread_bits(signs, $i, 3));
                take.take(self, $i, crate::Isa::lut16(self, values, levels));
            };
        }
        entries!(0);
        entries!(1);
        entries!(2);
        entries!(3);
        entries!(4);
        entries!(5);
        entries!(6);
        entries!(7);
    }
}
