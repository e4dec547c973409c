//! [`RowLanes`] in AVX-512, with one register of sixteen lanes.

use core::arch::x86_64::*;

use super::entries::eight_rows;
use super::{Codebook4, Codebook8, LaneIndices, RowLanes, TakeLanes, two_bytes_from};
use crate::lane_bits::count;
use crate::{Avx512, LaneBits, array};

/// The table of [`RowLanes::linear`] for each value of four bits, of which the low `BITS` count.
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
    const LOOKED_UP: usize = 1024;

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
            // a look-up uses the low four bits of a lane, whatever is above them
            let table = _mm512_loadu_ps(const { &lines::<BITS, MUL, ADD>() }.as_ptr());
            _mm512_permutexvar_ps(self.shr_i(v, from), table)
        }
    }
    #[inline(always)]
    fn bits(self, v: __m512i, n: u32, mask: u8) -> __m512i {
        isa! {
            // the mask clears bits that come from the neighbouring byte
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
            // four bits choose one of sixteen patterns of four bytes; bits above them are ignored
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
            // negative indices give zeros
            let from = _mm_add_epi8(
                _mm_setr_epi8(0, -1, -1, -1, 4, -1, -1, -1, 8, -1, -1, -1, 12, -1, -1, -1),
                _mm_and_si128(_mm_set1_epi32(0xff), _mm_set1_epi8(k as i8)),
            );
            _mm512_shuffle_epi8(v, _mm512_broadcast_i32x4(from))
        }
    }
    #[inline(always)]
    fn two_bytes<const SIGNED: bool>(self, v: __m512i, k: [usize; 2]) -> __m512i {
        isa! {
            let two = _mm512_shuffle_epi8(v, _mm512_broadcast_i32x4(two_bytes_from::<SIGNED>(k)));
            if SIGNED { _mm512_srai_epi16::<8>(two) } else { two }
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
            // the low bytes of 16-bit products are the products of the lower bytes, and of the upper ones after a
            // shift
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
            // sums start at -126 plus the bias of weights, 128
            let mut sums = [_mm512_set1_epi32(2); 4];
            for (sum, m) in sums.iter_mut().zip(multipliers) {
                let x = _mm512_mullo_epi32(seeds, _mm512_set1_epi32(*m as i32));
                let x = _mm512_and_si512(x, _mm512_set1_epi32(0x3f3f_3f3f));
                *sum = _mm512_dpbusd_epi32(*sum, x, _mm512_set1_epi8(1));
            }
            // sums are below 256; quarters hold those of four seeds, one multiplier after another, and are
            // transposed
            let lo = _mm512_packs_epi32(sums[0], sums[1]);
            let hi = _mm512_packs_epi32(sums[2], sums[3]);
            let bytes = _mm512_packus_epi16(lo, hi);
            let turn = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
            _mm512_shuffle_epi8(bytes, _mm512_broadcast_i32x4(turn))
        }
    }
    #[inline(always)]
    fn indices_8(self, low: &[u8; 64], high: __m512i, out: &mut LaneIndices) {
        isa! {
            let halves = |v| [_mm512_castsi512_si256(v), _mm512_extracti64x4_epi64::<1>(v)];
            out.join(0, halves(crate::Isa::load(self, low)), halves(high));
        }
    }
    #[inline(always)]
    fn codebook_8<const N: usize>(
        self,
        book: &Codebook8<N>,
        low: &[u8; 64],
        high: __m512i,
        indices: &LaneIndices,
        signs: __m512i,
        take: &mut impl TakeLanes<Self>,
    ) {
        if N > Self::LOOKED_UP {
            return read_8(self, book, indices, signs, take);
        }
        let low = crate::Isa::load(self, low);
        isa! {
            // the levels of elements 0..4 and of elements 4..8 of the four entries of a row, two bits each
            let levels = [lut_u8(&book.levels[0], low, high), lut_u8(&book.levels[1], low, high)];
            let values = _mm512_loadu_si512(book.values.as_ptr().cast());
            for i in 0..8 {
                let level = spread(levels[i % 2], 8 * (i / 2), 2, 0);
                // bits above the sign do not matter, because the values repeat
                let at = either(_mm512_set1_epi8(3), level, self.spread_bits(signs, i, 2));
                take.take(self, i, _mm512_permutexvar_epi8(at, values));
            }
        }
    }
    #[inline(always)]
    fn codebook_4<const N: usize>(
        self,
        book: &Codebook4<N>,
        low: &[[u8; 64]; 2],
        high: __m512i,
        _: &LaneIndices,
        signs: __m512i,
        take: &mut impl TakeLanes<Self>,
    ) {
        isa! {
            let values = _mm512_loadu_si512(book.values.as_ptr().cast());
            for (line, low) in low.iter().enumerate() {
                let low = crate::Isa::load(self, low);
                let high = if N > 256 { self.spread_bits(high, line, 0) } else { high };
                // the levels of elements 0 and 1 and of elements 2 and 3 of the four entries of a row, three bits each
                let halves = [lut_u8(&book.levels[0], low, high), lut_u8(&book.levels[1], low, high)];
                for l in 0..4 {
                    // both bytes of an entry, each twice: one for each element
                    let from = |e: usize| (l + 64 * (e / 2)) as i32 * (1 << (8 * e));
                    let each = _mm512_set1_epi32(from(0) + from(1) + from(2) + from(3));
                    let rows = _mm512_loadu_si512(const { &ROW_BYTES }.as_ptr().cast());
                    let levels = _mm512_permutex2var_epi8(halves[0], _mm512_add_epi8(rows, each), halves[1]);
                    let shifts = |k: usize| ((8 * (k % 8) + 3 * (k % 2)) as i64) << (8 * k);
                    let shifts: i64 = (0..8).map(shifts).sum();
                    let level = _mm512_multishift_epi64_epi8(_mm512_set1_epi64(shifts), levels);
                    let at = either(_mm512_set1_epi8(7), level, self.spread_bits(signs, 4 * line + l, 3));
                    take.take(self, 4 * line + l, _mm512_permutexvar_epi8(at, values));
                }
            }
        }
    }
}

/// [`RowLanes::codebook_8`] from memory.
#[inline(always)]
fn read_8<const N: usize>(
    isa: Avx512,
    book: &Codebook8<N>,
    indices: &LaneIndices,
    signs: __m512i,
    take: &mut impl TakeLanes<Avx512>,
) {
    // written out, so that vectors are taken as they come
    macro_rules! entries {
        ($($l:literal)*) => {$(
            let a = eight_rows(&book.bytes, |r| indices.read(r, $l));
            let b = eight_rows(&book.bytes, |r| indices.read(8 + r, $l));
            for i in 0..2 {
                isa! {
                    let levels = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(a[i]), b[i]);
                    let at = _mm512_or_si512(levels, isa.spread_bits(signs, 2 * $l + i, 2));
                    let values = _mm512_loadu_si512(book.values.as_ptr().cast());
                    take.take(isa, 2 * $l + i, _mm512_permutexvar_epi8(at, values));
                }
            }
        )*};
    }
    entries!(0 1 2 3);
}

/// The byte of each lane's first byte, four times.
const ROW_BYTES: [u8; 64] = {
    let mut out = [0; 64];
    let mut i = 0;
    while i < 64 {
        out[i] = (i / 4 * 4) as u8;
        i += 1;
    }
    out
};

/// For each seven bits: these, and above them the bit that makes the number of one bits even.
static EVEN: [u8; 128] = {
    let mut out = [0; 128];
    let mut b = 0;
    while b < 128 {
        out[b] = b as u8 | ((b as u8).count_ones() as u8 & 1) << 7;
        b += 1;
    }
    out
};

/// Byte e of a lane has the `step` bits of the lane from bit `first + step * e` on, as its bits from `to` on; its
/// other bits are unspecified.
#[inline(always)]
fn spread(v: __m512i, first: usize, step: usize, to: u32) -> __m512i {
    let from = |lane: usize, e: usize| ((32 * lane + first + step * e + 64 - to as usize) % 64) as u8;
    let from = i64::from_le_bytes(array(|j| from(j / 4, j % 4)));
    // SAFETY: called from methods of `Avx512` only, whose token proves AVX-512 with VBMI.
    unsafe { _mm512_multishift_epi64_epi8(_mm512_set1_epi64(from), v) }
}

/// The bits of `a` where `mask` has ones, else those of `b`.
#[inline(always)]
fn either(mask: __m512i, a: __m512i, b: __m512i) -> __m512i {
    // SAFETY: called from methods of `Avx512` only, whose token proves AVX-512.
    unsafe { _mm512_ternarylogic_epi32::<0xca>(mask, a, b) }
}

/// Shifts words so that bit `from` of each byte becomes bit `to`; bits of neighbouring bytes come in and must be
/// masked.
#[inline(always)]
fn moved(v: __m512i, from: u32, to: u32) -> __m512i {
    isa! {
        let v = _mm512_srl_epi32(v, count(from.saturating_sub(to)));
        _mm512_sll_epi32(v, count(to.saturating_sub(from)))
    }
}

/// Pattern p for bit b: byte e has bit b set, and no other, where bit e of p is set.
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

/// Looks up sixty-four entries of a table. The indices have their low eight bits in `low` and the others in `high`.
#[inline(always)]
fn lut_u8<const N: usize>(table: &[u8; N], low: __m512i, high: __m512i) -> __m512i {
    // SAFETY: called from methods of `Avx512` only, whose token proves AVX-512 with VBMI; a load is of 64 entries of
    // the table.
    unsafe {
        const { assert!(N.is_multiple_of(128) && N <= 2048) };
        // chooses by the low seven bits of the index in each 128 entries, then among these by one bit after another
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
