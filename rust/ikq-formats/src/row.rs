//! Sizes: bytes of a row, a matrix, a tensor. All arithmetic is checked.

use crate::error::Error;
use crate::types::QuantType;

/// Bytes after the codes of an I2_S tensor; the first four are its scale.
pub const I2_S_TRAILER_BYTES: usize = 32;

/// What a row's length must be a multiple of: the block, except where codes are stored wider than
/// the table's one-element block says.
pub const fn row_multiple(ty: QuantType) -> usize {
    match ty {
        QuantType::I2_S => 128,
        // pairs of neighbouring columns stand together
        QuantType::BF16_R16 => 2,
        _ => ty.info().block_size,
    }
}

/// Bytes of one row of `n_per_row` elements, row header included. In an interleaved type rows
/// have no bytes of their own; this is then the share of one row in its group.
///
/// # Errors
/// [`Error::RowLength`] when blocks do not tile the row; [`Error::I2sLength`] for I2_S rows (whose
/// scale belongs to the whole tensor) that are not a multiple of 128; [`Error::TooLarge`].
pub fn row_bytes(ty: QuantType, n_per_row: usize) -> Result<usize, Error> {
    let t = ty.info();
    if ty == QuantType::I2_S {
        return match n_per_row.is_multiple_of(128) {
            true => Ok(n_per_row / 4),
            false => Err(Error::I2sLength { n_elements: n_per_row }),
        };
    }
    let multiple = row_multiple(ty);
    if !n_per_row.is_multiple_of(multiple) {
        return Err(Error::RowLength { ty, n_per_row, block_size: multiple });
    }
    (n_per_row / t.block_size)
        .checked_mul(t.block_bytes)
        .and_then(|b| b.checked_add(t.row_header_bytes))
        .ok_or(Error::TooLarge { ty, n_rows: 1, n_per_row })
}

/// Bytes of `n_rows` rows of `n_per_row` elements. For I2_S: of the whole tensor.
///
/// # Errors
/// As [`row_bytes`], and [`Error::RowCount`] when an interleaved type's groups do not tile the rows.
pub fn matrix_bytes(ty: QuantType, n_rows: usize, n_per_row: usize) -> Result<usize, Error> {
    let too_large = Error::TooLarge { ty, n_rows, n_per_row };
    if ty == QuantType::I2_S {
        let n_elements = n_rows.checked_mul(n_per_row).ok_or(too_large)?;
        return match n_elements.is_multiple_of(128) {
            true => Ok(n_elements / 4 + I2_S_TRAILER_BYTES),
            false => Err(Error::I2sLength { n_elements }),
        };
    }
    let rows = ty.info().rows;
    if !n_rows.is_multiple_of(rows) {
        return Err(Error::RowCount { ty, n_rows, rows });
    }
    row_bytes(ty, n_per_row)?.checked_mul(n_rows).ok_or(too_large)
}

/// Checks that `found` bytes are a matrix of this shape.
///
/// # Errors
/// As [`matrix_bytes`], and [`Error::ByteCount`].
pub fn check_matrix(ty: QuantType, n_rows: usize, n_per_row: usize, found: usize) -> Result<(), Error> {
    let expected = matrix_bytes(ty, n_rows, n_per_row)?;
    match expected == found {
        true => Ok(()),
        false => Err(Error::ByteCount { ty, n_rows, n_per_row, expected, found }),
    }
}

/// The fallback chain's answer for a row that `ty` does not fit: the first type of the chain whose
/// block tiles the row, F16 at its end; `None` when `ty` itself fits.
pub fn fallback_for_row(ty: QuantType, n_per_row: usize) -> Option<QuantType> {
    let fits = |t: QuantType| n_per_row.is_multiple_of(row_multiple(t));
    if fits(ty) {
        return None;
    }
    let mut next = ty.info().fallback;
    while let Some(t) = next {
        if fits(t) {
            return Some(t);
        }
        next = t.info().fallback;
    }
    Some(QuantType::F16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use QuantType::*;

    #[test]
    fn headers_count_once_per_row() {
        assert_eq!(row_bytes(IQ4_KS, 1024), Ok(4 + 4 * 136));
        assert_eq!(row_bytes(Q8_KV, 96), Ok(8 + 96));
        assert_eq!(matrix_bytes(IQ4_KS_R4, 8, 256), Ok(8 * 140));
        assert_eq!(matrix_bytes(I2_S, 2, 128), Ok(64 + 32));
    }

    #[test]
    fn what_does_not_tile_is_refused() {
        assert!(matches!(row_bytes(Q4_K, 1408 + 32), Err(Error::RowLength { .. })));
        assert!(matches!(matrix_bytes(IQ4_KS_R4, 6, 256), Err(Error::RowCount { .. })));
        assert!(matches!(matrix_bytes(F32, usize::MAX, 2), Err(Error::TooLarge { .. })));
    }

    #[test]
    fn the_fallback_chain_ends_in_f16() {
        assert_eq!(fallback_for_row(Q4_K, 512), None);
        assert_eq!(fallback_for_row(Q4_K, 96), Some(Q5_0));
        assert_eq!(fallback_for_row(Q4_K, 100), Some(F16));
        assert_eq!(fallback_for_row(IQ2_BN, 96), Some(IQ4_NL));
        assert_eq!(fallback_for_row(BF16_R16, 33), Some(F16));
    }
}
