//! [`RowLanes`]: operations on sixteen rows side by side, where a value of 64 bytes has four bytes of each row.
//!
//! Such a value is read as bytes (`B64`: the codes of four neighbouring elements of each row) or as sixteen
//! integers (`I`: a word of scales or indices of each row). Both have the same bits.

#[macro_use]
mod intrinsics;
mod avx2;
mod avx512;
mod codebook;
mod entries;
mod scalar;
#[cfg(test)]
mod tests;

use core::arch::x86_64::*;

use crate::{Products, array};

pub use codebook::{Codebook4, Codebook8};
pub use entries::LaneIndices;

/// Takes vectors of codes one after another. What is taken at once need not be kept, which matters to sets of few registers.
pub trait TakeLanes<I: Products> {
    /// Takes vector `i`. Vectors come in order.
    fn take(&mut self, isa: I, i: usize, codes: I::B64);
}

/// Keeps them.
impl<I: Products<B64 = B>, B: Copy> TakeLanes<I> for [B; 8] {
    #[inline(always)]
    fn take(&mut self, _: I, i: usize, codes: B) {
        self[i] = codes;
    }
}

/// The bytes that [`RowLanes::two_bytes`] takes in 128 bits, those that become zeros negative. Signed numbers are shifted down from
/// the upper byte.
#[inline(always)]
fn two_bytes_from<const SIGNED: bool>(k: [usize; 2]) -> __m128i {
    let [a, b] = [k[0] as u8, k[1] as u8];
    let from = if SIGNED { [0x80, a, 0x80, b] } else { [a, 0x80, b, 0x80] };
    // SAFETY: these instructions are part of every x86-64.
    unsafe {
        let starts = _mm_setr_epi32(0, 0x0404_0404, 0x0808_0808, 0x0c0c_0c0c);
        _mm_add_epi8(starts, _mm_set1_epi32(i32::from_le_bytes(from)))
    }
}

/// Operations on words of sixteen rows.
pub trait RowLanes: Products {
    /// Codebooks of more entries are read from memory, entry by entry; others are looked up in registers.
    const LOOKED_UP: usize;

    /// The four bytes of each lane as a little-endian integer.
    fn ints(self, v: Self::B64) -> Self::I;
    /// The inverse of [`RowLanes::ints`].
    fn of_ints(self, v: Self::I) -> Self::B64;
    /// Sixteen bytes as integers.
    fn load_u8(self, x: &[u8; 16]) -> Self::I;
    /// Sixteen little-endian u16 as integers.
    fn load_u16(self, x: &[u8; 32]) -> Self::I;
    /// `(byte >> n) & mask` of each byte; n is below 8 and `mask` must not have bits above those that are left
    /// (`mask <= 0xff >> n`).
    fn bits(self, v: Self::B64, n: u32, mask: u8) -> Self::B64;
    /// Every lane shifted right, filled up with copies of the sign; `by` is below 32.
    fn sra_i(self, v: Self::I, by: u32) -> Self::I;
    /// `value` in lanes whose bit `bit` is set, else 0.
    fn where_bit(self, v: Self::I, bit: u32, value: i32) -> Self::I;
    /// The f16 numbers in the low 16 bits of the lanes as floats, exactly; the upper bits are ignored.
    fn float_of_f16(self, v: Self::I) -> Self::F;
    /// `((byte >> from) & mask) << to` of each byte; the result must fit the byte.
    fn bit_field(self, v: Self::B64, from: u32, to: u32, mask: u8) -> Self::B64;
    /// Joins two fields of each byte: the `bits[0]` bits of `low` from bit `from[0]` on, and above them the
    /// `bits[1]` bits of `high` from bit `from[1]` on.
    #[inline(always)]
    fn two_fields(self, low: Self::B64, high: Self::B64, from: [u32; 2], bits: [u32; 2]) -> Self::B64 {
        let low = self.bits(low, from[0], (1 << bits[0]) - 1);
        let high = self.bit_field(high, from[1], bits[0], (1 << bits[1]) - 1);
        self.of_ints(self.or_i(self.ints(low), self.ints(high)))
    }
    /// Byte e of a lane has bit `4 i + e` of the lane as its bit `to`; its other bits are 0.
    fn spread_bits(self, v: Self::I, i: usize, to: u32) -> Self::B64;
    /// Byte e of a lane is the two bits from bit `8 i + 2 e` of the lane.
    fn spread_crumbs(self, v: Self::I, i: usize) -> Self::B64;
    /// Byte e of a lane is byte `from[e]` of the lane.
    fn pick(self, v: Self::B64, from: [u8; 4]) -> Self::B64;
    /// Byte `k` of each lane as an integer.
    fn byte(self, v: Self::I, k: usize) -> Self::I;
    /// Bytes `k[0]` and `k[1]` of each lane as its lower and its upper 16-bit number.
    fn two_bytes<const SIGNED: bool>(self, v: Self::I, k: [usize; 2]) -> Self::I;
    /// `-v` in bytes for which bit `bit` of the byte of `bits` is set, else `v`.
    fn negate_where_bit(self, v: Self::B64, bits: Self::B64, bit: u32) -> Self::B64;
    /// The low seven bits of each byte, and above them the bit that makes the number of one bits even.
    fn with_parity(self, v: Self::I) -> Self::I;
    /// One trit of each byte, of the five that ternary formats pack into it: `((byte * power mod 256) * 3) >> 8`,
    /// where the power for byte e of a lane is `powers[e]`.
    fn trits(self, v: Self::B64, powers: [u8; 4]) -> Self::B64;
    /// Values of the KT generator, biased as weights of [`Products::dot4`]: byte e of a lane is the value of the
    /// lane's seed with `multipliers[e]`.
    fn trellis(self, seeds: Self::I, multipliers: &[u32; 4]) -> Self::B64;

    /// `MUL x + ADD`, exactly, where x are the `BITS` bits from bit `from` of each lane on. `BITS` is at most 4.
    #[inline(always)]
    fn linear<const BITS: u32, const MUL: i32, const ADD: i32>(self, v: Self::I, from: u32) -> Self::F {
        let x = self.and_i(self.shr_i(v, from), self.splat_i((1 << BITS) - 1));
        self.fused_add(self.float_i(x), self.splat_f(MUL as f32), self.splat_f(ADD as f32))
    }

    /// Puts the indices that [`RowLanes::codebook_8`] takes as `low` and `high` together, on sets which read them from memory. Memory
    /// that was just written is slow to read, so it pays to do so some time before they are looked up.
    #[inline(always)]
    fn indices_8(self, _low: &[u8; 64], _high: Self::I, _out: &mut LaneIndices) {}

    /// The same for [`RowLanes::codebook_4`].
    #[inline(always)]
    fn indices_4(self, _low: &[[u8; 64]; 2], _high: Self::I, _out: &mut LaneIndices) {}

    /// Looks up four entries of eight elements for each row. Vector i that `take` gets has the values of elements `4
    /// i..4 i + 4`, which belong to entry i / 2; its index has its low eight bits in byte i / 2 of the row's four of
    /// `low`, which are best where they stand in memory, and the others in that byte of `high`. The sign of element j
    /// is bit j of `signs`. Indices must be below `N`; if that is above 256, `indices` has them, too.
    #[inline(always)]
    fn codebook_8<const N: usize>(
        self,
        book: &Codebook8<N>,
        low: &[u8; 64],
        high: Self::I,
        _indices: &LaneIndices,
        signs: Self::I,
        take: &mut impl TakeLanes<Self>,
    ) where
        Self: crate::Isa,
    {
        let mut highs = [0; 16];
        self.store_i(high, &mut highs);
        let mut rows = [[0; 64]; 16];
        for (r, row) in rows.iter_mut().enumerate() {
            let (low, high) = (&low[4 * r..], highs[r].to_le_bytes());
            for (l, entry) in row.as_chunks_mut::<8>().0.iter_mut().take(4).enumerate() {
                let index = usize::from(low[l]) | usize::from(high[l]) << 8;
                *entry = book.bytes[index & (N - 1)].to_le_bytes();
            }
        }
        let turned = self.transpose_fours(rows.each_ref());
        for (i, levels) in turned.into_iter().take(8).enumerate() {
            let levels = self.or(levels, self.spread_bits(signs, i, 2));
            take.take(self, i, self.lut16(book.values.first_chunk().expect("64 values"), levels));
        }
    }

    /// Looks up eight entries of four elements for each row, with signs as for [`RowLanes::codebook_8`]: vector i
    /// has the values of entry i, whose index has its low eight bits in byte `i % 4` of the row's four of `low[i / 4]`,
    /// and a ninth, if `N` is above 256, in bit i of the row's `high`.
    #[inline(always)]
    fn codebook_4<const N: usize>(
        self,
        book: &Codebook4<N>,
        low: &[[u8; 64]; 2],
        high: Self::I,
        _indices: &LaneIndices,
        signs: Self::I,
        take: &mut impl TakeLanes<Self>,
    ) where
        Self: crate::Isa,
    {
        for i in 0..8 {
            let mut index = self.byte(self.ints(self.load(&low[i / 4])), i % 4);
            if N > 256 {
                let ninth = self.and_i(self.shr_i(high, i as u32), self.splat_i(1));
                index = self.or_i(index, self.shl_i(ninth, 8));
            }
            let mut at = [0; 16];
            self.store_i(index, &mut at);
            let levels = self.gather_u32(&book.bytes, array(|r| at[r] as u32));
            let levels = self.or(levels, self.spread_bits(signs, i, 3));
            take.take(self, i, self.lut16(book.values.first_chunk().expect("64 values"), levels));
        }
    }
}
