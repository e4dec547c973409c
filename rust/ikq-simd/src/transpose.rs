//! [`crate::Lanes::transpose`] with shuffles: sixteen rows of sixteen floats become sixteen columns.
//!
//! Rows are interleaved in pairs, then in fours, within quarters of a register. Quarters are put in their places
//! when they are loaded (AVX-512), or moved there at the end (AVX2).

use core::arch::x86_64::*;

/// Pointers to the rows, for [`avx512`] and [`avx2`].
#[inline(always)]
pub(crate) fn starts<T>(rows: [&T; 16]) -> [*const f32; 16] {
    const { assert!(size_of::<T>() == 64) };
    let mut out = [std::ptr::null(); 16];
    for (out, row) in out.iter_mut().zip(rows) {
        *out = std::ptr::from_ref(row).cast();
    }
    out
}

/// # Safety
/// AVX-512F must be there; each row is 64 readable bytes.
#[inline(always)]
pub(crate) unsafe fn avx512(rows: [*const f32; 16]) -> [__m512; 16] {
    // SAFETY: as promised; sixteen bytes are read from a quarter of a row.
    unsafe {
        let mut out = [_mm512_setzero_ps(); 16];
        for c in 0..4 {
            // columns 4 c.. of the four rows g, g + 4, ...: loads put them into different quarters, which saves
            // half of the shuffles
            let mut four = [_mm512_setzero_ps(); 4];
            for (g, four) in four.iter_mut().enumerate() {
                let quarter = |r: usize| _mm_loadu_ps(rows[r].add(4 * c));
                let v = _mm512_castps128_ps512(quarter(g));
                let v = _mm512_mask_broadcast_f32x4(v, 0x00f0, quarter(g + 4));
                let v = _mm512_mask_broadcast_f32x4(v, 0x0f00, quarter(g + 8));
                *four = _mm512_mask_broadcast_f32x4(v, 0xf000, quarter(g + 12));
            }
            // quarter q of four[g] is of row 4 q + g, which becomes lane 4 q + g of each column
            let [a, b, c_, d] = four;
            let pairs = [
                (_mm512_unpacklo_ps(a, b), _mm512_unpacklo_ps(c_, d)),
                (_mm512_unpackhi_ps(a, b), _mm512_unpackhi_ps(c_, d)),
            ];
            for (k, (ab, cd)) in pairs.into_iter().enumerate() {
                let (ab, cd) = (_mm512_castps_pd(ab), _mm512_castps_pd(cd));
                out[4 * c + 2 * k] = _mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd));
                out[4 * c + 2 * k + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd));
            }
        }
        out
    }
}

/// # Safety
/// AVX must be there; each row is 64 readable bytes.
#[inline(always)]
pub(crate) unsafe fn avx2(rows: [*const f32; 16]) -> [[__m256; 2]; 16] {
    // SAFETY: as promised; eight floats are read from the beginning or the middle of rows of 16.
    unsafe {
        let mut out = [[_mm256_setzero_ps(); 2]; 16];
        // eight rows and eight columns at a time
        for (first_row, first_column) in [(0, 0), (0, 8), (8, 0), (8, 8)] {
            // half l of fours[4 g + c] has column 4 l + c of rows 4 g..4 g + 4
            let mut fours = [_mm256_setzero_ps(); 8];
            for g in 0..2 {
                let mut r = [_mm256_setzero_ps(); 4];
                for k in 0..4 {
                    r[k] = _mm256_loadu_ps(rows[first_row + 4 * g + k].add(first_column));
                }
                let pairs = [
                    (_mm256_unpacklo_ps(r[0], r[1]), _mm256_unpacklo_ps(r[2], r[3])),
                    (_mm256_unpackhi_ps(r[0], r[1]), _mm256_unpackhi_ps(r[2], r[3])),
                ];
                for (k, (ab, cd)) in pairs.into_iter().enumerate() {
                    let (ab, cd) = (_mm256_castps_pd(ab), _mm256_castps_pd(cd));
                    fours[4 * g + 2 * k] = _mm256_castpd_ps(_mm256_unpacklo_pd(ab, cd));
                    fours[4 * g + 2 * k + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(ab, cd));
                }
            }
            for c in 0..4 {
                let (lo, hi) = (fours[c], fours[4 + c]);
                out[first_column + c][first_row / 8] = _mm256_permute2f128_ps::<0x20>(lo, hi);
                out[first_column + 4 + c][first_row / 8] = _mm256_permute2f128_ps::<0x31>(lo, hi);
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use crate::{Isa, IsaOp, array, available, run};

    /// Transposes a matrix whose element (row, column) is 16 row + column.
    struct Columns;

    impl IsaOp for Columns {
        type Output = [[f32; 16]; 16];

        #[inline(always)]
        fn run<I: Isa>(self, isa: I) -> [[f32; 16]; 16] {
            let rows: [[f32; 16]; 16] = array(|r| array(|c| (16 * r + c) as f32));
            let columns = isa.transpose(std::array::from_fn(|r| &rows[r]));
            array(|c| isa.array(columns[c]))
        }
    }

    #[test]
    fn rows_become_columns() {
        for kind in available() {
            let columns = run(kind, Columns);
            for (c, column) in columns.iter().enumerate() {
                for (r, v) in column.iter().enumerate() {
                    assert_eq!(*v, (16 * r + c) as f32, "{}", kind.name());
                }
            }
        }
    }
}
