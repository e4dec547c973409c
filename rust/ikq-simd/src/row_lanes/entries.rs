//! Reading a codebook from memory, entry by entry.

use core::arch::x86_64::*;

/// Indices of more than eight bits of the entries that 32 elements of sixteen rows have: words that were put together before they are
/// used. Sets that look entries up in registers have no use for them.
#[derive(Clone, Copy, Default)]
#[repr(align(64))]
pub struct LaneIndices([[u16; 16]; 8]);

impl LaneIndices {
    /// Joins the low bytes of entries `first..first + 4` of each row with their upper bits; registers have eight rows each.
    #[inline(always)]
    pub(super) fn join(&mut self, first: usize, low: [__m256i; 2], high: [__m256i; 2]) {
        for ((low, high), out) in
            low.into_iter().zip(high).zip(self.0[first..first + 4].as_chunks_mut::<2>().0)
        {
            isa! {
                // within 128 bits: two rows, then two more
                _mm256_storeu_si256(out[0].as_mut_ptr().cast(), _mm256_unpacklo_epi8(low, high));
                _mm256_storeu_si256(out[1].as_mut_ptr().cast(), _mm256_unpackhi_epi8(low, high));
            }
        }
    }

    /// The index of entry `i` of row `r`, as [`LaneIndices::join`] leaves it.
    #[inline(always)]
    pub(super) fn at(&self, r: usize, i: usize) -> usize {
        usize::from(*self.word(r, i))
    }

    /// The same, read by itself: with AVX-512 the compiler would read many words at once and take them out of the register, which
    /// takes twice as long; with AVX2 it does not, and what it makes of this is slower.
    #[inline(always)]
    pub(super) fn read(&self, r: usize, i: usize) -> usize {
        // SAFETY: it is a reference.
        usize::from(unsafe { std::ptr::read_volatile(self.word(r, i)) })
    }

    #[inline(always)]
    fn word(&self, r: usize, i: usize) -> &u16 {
        &self.0[4 * (i / 4) + 2 * (r / 8) + r % 4 / 2][8 * (r % 8 / 4) + 4 * (r % 2) + i % 4]
    }
}

/// The entries of eight rows, whose indices `index` gives: their first four elements, then the others, a row in each lane.
///
/// Entries are loaded from the table two by two; gathering them in memory first would be slower, because memory that was
/// just written in parts is slow to read as a whole.
#[inline(always)]
pub(super) fn eight_rows<const N: usize>(table: &[u64; N], index: impl Fn(usize) -> usize) -> [__m256i; 2] {
    let two = |r: usize| two_entries(&table[index(r) & (N - 1)], &table[index(r + 1) & (N - 1)]);
    isa! {
        // rows 0, 1, 4, 5 and 2, 3, 6, 7
        let a = _mm256_set_m128(two(4), two(0));
        let b = _mm256_set_m128(two(6), two(2));
        [
            _mm256_castps_si256(_mm256_shuffle_ps::<0x88>(a, b)),
            _mm256_castps_si256(_mm256_shuffle_ps::<0xdd>(a, b)),
        ]
    }
}

/// Loads two entries of eight bytes.
#[inline(always)]
fn two_entries(a: &u64, b: &u64) -> __m128 {
    // SAFETY: SSE2 is part of x86-64; eight bytes are read from each.
    unsafe {
        let low = _mm_castsi128_ps(_mm_loadl_epi64(std::ptr::from_ref(a).cast()));
        _mm_castpd_ps(_mm_loadh_pd(_mm_castps_pd(low), std::ptr::from_ref(b).cast()))
    }
}
