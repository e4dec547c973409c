//! Sixteen rows of sixteen floats to sixteen columns: [`crate::Lanes::transpose`] with shuffles.
//!
//! Rows are woven in pairs, then in fours within quarters of a register, then the quarters change places.

use core::arch::x86_64::*;

/// # Safety
/// AVX-512F must be there.
#[inline(always)]
pub(crate) unsafe fn avx512(rows: [&[f32; 16]; 16]) -> [__m512; 16] {
    // SAFETY: as promised; each row is 16 readable floats.
    unsafe {
        let mut out = [_mm512_setzero_ps(); 16];
        // fours[4 g + c]: quarter l has column 4 l + c of rows 4 g..4 g + 4
        let mut fours = out;
        for g in 0..4 {
            let (a, b) = (_mm512_loadu_ps(rows[4 * g].as_ptr()), _mm512_loadu_ps(rows[4 * g + 1].as_ptr()));
            let (c, d) =
                (_mm512_loadu_ps(rows[4 * g + 2].as_ptr()), _mm512_loadu_ps(rows[4 * g + 3].as_ptr()));
            let pairs = [
                (_mm512_unpacklo_ps(a, b), _mm512_unpacklo_ps(c, d)),
                (_mm512_unpackhi_ps(a, b), _mm512_unpackhi_ps(c, d)),
            ];
            for (k, (ab, cd)) in pairs.into_iter().enumerate() {
                let (ab, cd) = (_mm512_castps_pd(ab), _mm512_castps_pd(cd));
                fours[4 * g + 2 * k] = _mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd));
                fours[4 * g + 2 * k + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd));
            }
        }
        for c in 0..4 {
            // quarters 0 and 1, then 2 and 3, of all four
            let lo = (
                _mm512_shuffle_f32x4::<0x44>(fours[c], fours[4 + c]),
                _mm512_shuffle_f32x4::<0x44>(fours[8 + c], fours[12 + c]),
            );
            let hi = (
                _mm512_shuffle_f32x4::<0xee>(fours[c], fours[4 + c]),
                _mm512_shuffle_f32x4::<0xee>(fours[8 + c], fours[12 + c]),
            );
            out[c] = _mm512_shuffle_f32x4::<0x88>(lo.0, lo.1);
            out[4 + c] = _mm512_shuffle_f32x4::<0xdd>(lo.0, lo.1);
            out[8 + c] = _mm512_shuffle_f32x4::<0x88>(hi.0, hi.1);
            out[12 + c] = _mm512_shuffle_f32x4::<0xdd>(hi.0, hi.1);
        }
        out
    }
}

/// # Safety
/// AVX must be there.
#[inline(always)]
pub(crate) unsafe fn avx2(rows: [&[f32; 16]; 16]) -> [[__m256; 2]; 16] {
    // SAFETY: as promised; eight floats are read from the beginning or the middle of rows of 16.
    unsafe {
        let mut out = [[_mm256_setzero_ps(); 2]; 16];
        // eight rows and eight columns at a time
        for (first_row, first_column) in [(0, 0), (0, 8), (8, 0), (8, 8)] {
            // fours[4 g + c]: half l has column 4 l + c of rows 4 g..4 g + 4
            let mut fours = [_mm256_setzero_ps(); 8];
            for g in 0..2 {
                let mut r = [_mm256_setzero_ps(); 4];
                for k in 0..4 {
                    r[k] = _mm256_loadu_ps(rows[first_row + 4 * g + k][first_column..].as_ptr());
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

    /// Column i of a matrix whose element (row, column) is 16 row + column.
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
