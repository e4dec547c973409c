//! Repacking a matrix: a plain type <-> its interleaved twin.

use half::f16;

use crate::error::Error;
use crate::interleave::{RowForm, deinterleave_group, interleave_group, row_form};
use crate::row::{check_matrix, matrix_bytes, row_bytes};
use crate::types::QuantType::{self, *};

/// The bytes of `n_rows` rows of `n_per_row` elements of type `from`, in type `to`.
///
/// | from | to | |
/// |---|---|---|
/// | a type | the same type | a copy |
/// | a plain type | its interleaved forms | bits moved; the reverse undoes it |
/// | an interleaved form | another one of the same plain type | as by the plain type |
/// | Q8_KV | Q8_KV_R8 | drops the sums of codes |
/// | Q8_K | Q8_K_R8, Q8_K_R16 | rounds scales to f16, drops the sums |
///
/// # Errors
/// [`Error::Repack`] for every other pair and for a scale of Q8_K that f16 cannot hold; as
/// [`check_matrix`] for either type. BF16_R16 wants an even row length ([`Error::RowLength`]).
pub fn repack(
    data: &[u8],
    from: QuantType,
    to: QuantType,
    n_rows: usize,
    n_per_row: usize,
) -> Result<Vec<u8>, Error> {
    check_matrix(from, n_rows, n_per_row, data.len())?;
    let refuse = |why| Err(Error::Repack { from, to, why });
    if from == to {
        return Ok(data.to_vec());
    }
    match (row_form(from), row_form(to)) {
        (None, Some(RowForm::Plain(base))) if base == from => interleave(data, to, n_rows, n_per_row),
        (Some(RowForm::Plain(base)), None) if base == to => deinterleave(data, from, n_rows, n_per_row),
        (Some(RowForm::Plain(a)), Some(RowForm::Plain(b))) if a == b => {
            interleave(&deinterleave(data, from, n_rows, n_per_row)?, to, n_rows, n_per_row)
        }
        (None, Some(RowForm::Own { .. })) => match (from, to) {
            (Q8_KV, Q8_KV_R8) => {
                let rows = plain_q8_kv(data, row_bytes(from, n_per_row)?);
                interleave(&rows, to, n_rows, n_per_row)
            }
            (Q8_K, Q8_K_R8 | Q8_K_R16) => match plain_q8_k(data) {
                Some(rows) => interleave(&rows, to, n_rows, n_per_row),
                None => refuse("a scale is too large for f16"),
            },
            _ => refuse(match to {
                IQ1_S_R4 | IQ1_M_R4 => "it has no plain twin; quantize to it directly",
                Q8_KV_R8 => "it is made from Q8_KV",
                _ => "it is made from Q8_K",
            }),
        },
        (Some(RowForm::Own { .. }), _) => refuse(match from {
            IQ1_S_R4 | IQ1_M_R4 => "it has no plain twin; dequantize and quantize instead",
            _ => {
                "it has lost the sums of codes (Q8_K forms also digits of their scales); dequantize and quantize instead"
            }
        }),
        _ => refuse("their codes differ; dequantize and quantize instead"),
    }
}

fn interleave(rows: &[u8], to: QuantType, n_rows: usize, n_per_row: usize) -> Result<Vec<u8>, Error> {
    let mut out = vec![0; matrix_bytes(to, n_rows, n_per_row)?];
    let group_bytes = group_bytes(to, n_per_row)?;
    for (group, rows) in out.chunks_exact_mut(group_bytes).zip(rows.chunks_exact(group_bytes)) {
        interleave_group(to, rows, n_per_row, group)?;
    }
    Ok(out)
}

fn deinterleave(data: &[u8], from: QuantType, n_rows: usize, n_per_row: usize) -> Result<Vec<u8>, Error> {
    let mut out = vec![0; matrix_bytes(from, n_rows, n_per_row)?];
    let group_bytes = group_bytes(from, n_per_row)?;
    for (rows, group) in out.chunks_exact_mut(group_bytes).zip(data.chunks_exact(group_bytes)) {
        deinterleave_group(from, group, n_per_row, rows)?;
    }
    Ok(out)
}

/// Bytes of one group, at least 1 so that they can divide a matrix of empty rows.
fn group_bytes(ty: QuantType, n_per_row: usize) -> Result<usize, Error> {
    Ok(matrix_bytes(ty, ty.info().rows, n_per_row)?.max(1))
}

/// Rows of f32 d, i32 sum, i8[n] -> rows of f32 d, i8[n].
fn plain_q8_kv(data: &[u8], row_bytes: usize) -> Vec<u8> {
    data.chunks_exact(row_bytes).flat_map(|row| [&row[..4], &row[8..]]).flatten().copied().collect()
}

/// Blocks of f32 d, f32 sum, i8[256], i16[16] -> blocks of f16 d, i8[256].
fn plain_q8_k(data: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(data.len() / 296 * 258);
    for block in data.chunks_exact(296) {
        let d = f16::from_f32(f32::from_le_bytes([block[0], block[1], block[2], block[3]]));
        if !d.is_finite() {
            return None;
        }
        out.extend_from_slice(&d.to_le_bytes());
        out.extend_from_slice(&block[8..264]);
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_twin_comes_back() {
        for to in QuantType::ALL.iter().copied().filter(|t| t.is_interleaved()) {
            let Some(from) = to.info().base else { continue };
            let (n_rows, n_per_row) = (2 * to.info().rows, 512);
            let size = matrix_bytes(from, n_rows, n_per_row).unwrap();
            let data: Vec<u8> = (0..size).map(|j| (j * 37 + j / 7) as u8).collect();
            let there = repack(&data, from, to, n_rows, n_per_row).unwrap();
            assert_ne!(there, data, "{to:?}");
            assert_eq!(repack(&there, to, from, n_rows, n_per_row).unwrap(), data, "{to:?}");
        }
    }

    #[test]
    fn forms_of_one_plain_type_turn_into_each_other() {
        let data: Vec<u8> = (0..8 * 18).map(|j| (j * 37) as u8).collect();
        let r8 = repack(&data, Q4_0, Q4_0_R8, 8, 32).unwrap();
        let c44 = repack(&data, Q4_0, Q4_0_4_4, 8, 32).unwrap();
        assert_eq!(repack(&r8, Q4_0_R8, Q4_0_4_4, 8, 32), Ok(c44));
    }

    #[test]
    fn q8_kv_keeps_its_scales_and_loses_its_sums() {
        let mut data = Vec::new();
        for k in 0..8u8 {
            data.extend_from_slice(&f32::from(k).to_le_bytes());
            data.extend_from_slice(&[0xee; 4]);
            data.extend_from_slice(&[k; 32]);
        }
        let out = repack(&data, Q8_KV, Q8_KV_R8, 8, 32).unwrap();
        assert_eq!(out.len(), 8 * 36);
        assert_eq!(out[4..8], 1f32.to_le_bytes());
        assert_eq!(out[32..40], [0, 0, 0, 0, 1, 1, 1, 1]);
        assert!(matches!(repack(&out, Q8_KV_R8, Q8_KV, 8, 32), Err(Error::Repack { .. })));
    }

    #[test]
    fn a_scale_beyond_f16_is_refused() {
        let mut data = vec![0; 8 * 296];
        data[..4].copy_from_slice(&1e6f32.to_le_bytes());
        assert!(matches!(repack(&data, Q8_K, Q8_K_R8, 8, 256), Err(Error::Repack { .. })));
    }

    #[test]
    fn what_has_no_twin_is_refused() {
        let refused = |from, to| {
            let (n_rows, n_per_row) = (16, 256);
            let data = vec![0; matrix_bytes(from, n_rows, n_per_row).unwrap()];
            matches!(repack(&data, from, to, n_rows, n_per_row), Err(Error::Repack { .. }))
        };
        assert!(refused(IQ1_S, IQ1_S_R4));
        assert!(refused(IQ1_M_R4, IQ1_M));
        assert!(refused(Q8_K_R8, Q8_K));
        assert!(refused(Q8_K_R16, Q8_0));
        assert!(refused(Q4_0, Q4_1));
        assert!(refused(Q4_0, Q8_0_R8));
        assert!(refused(Q4_0_R8, Q8_0));
        let five_rows = repack(&[0; 5 * 18], Q4_0, Q4_0_R8, 5, 32);
        assert!(matches!(five_rows, Err(Error::RowCount { .. })));
    }
}
