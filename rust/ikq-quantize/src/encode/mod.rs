//! Floats to blocks. [`encode_rows`] is the door; [`Encode`] is what a type implements.
//!
//! # The objective, the same for every type
//!
//! An encoder minimises `sum_j w_j (y_j - x_j)^2` over a row, `y` being what the type decodes to and
//! `w` the column's weight:
//!
//! - with an imatrix, its value (the mean squared activation of the column), plus a floor of
//!   [`weights::FLOOR`] times the mean, so that a column, a block or an expert that the calibration
//!   text never lit up is still encoded sensibly;
//! - without, 1.
//!
//! The figure is the error of the matrix product for activations of those magnitudes. (The
//! reference weighs by `imatrix * sqrt(mean x^2 + x^2)` or by `x^2`, see each encoder's docs where
//! that was found to matter.)
//!
//! # Rules every encoder keeps
//!
//! - **Finite in, finite out.** Input is finite (checked at the door); scales saturate at the largest
//!   f16, never at infinity; a block of zeros decodes to zeros.
//! - **The same bytes everywhere**: sums in fixed order, no fused multiply-add, no dependence on
//!   rows coded before. Searches use the [`ikq_simd::Lanes`] vocabulary or plain Rust.
//! - **Scale-free**: rows are normalised by a power of two, so that encoding `2^k x` gives `2^k y`
//!   wherever the stored scale's range allows, and sums neither overflow nor vanish.
//! - **Levels to bits through [`ikq_formats::Layout`]**: an encoder never shifts bits itself.

mod affine;
mod floats;
mod igrid;
mod q8;
mod row_scale;
mod single;
mod superblock;
mod table;
mod trellis;
pub mod weights;

pub use table::{can_encode, encodable};

use ikq_formats::{QuantType, check_matrix};
use ikq_simd::{Isa, IsaKind, IsaOp};

use crate::error::Error;

/// One type's encoder.
pub trait Encode: 'static {
    const TYPE: QuantType;
    /// Working memory, made once per call of [`encode_rows`] and reused for every row.
    type Scratch: Default;

    /// Encodes one row: `x` and `w` (positive weights, mean about 1) have the row's length, `out` the
    /// row's bytes (header included) and arrives with arbitrary content. `#[inline(always)]`.
    fn encode_row<I: Isa>(isa: I, x: &[f32], w: &[f32], scratch: &mut Self::Scratch, out: &mut [u8]);
}

/// Encodes `n_rows` rows of `n_per_row` floats each.
///
/// `importance` has one value per column (all rows share it). `out` must have exactly the bytes of
/// the matrix. Interleaved types take whole groups of rows.
///
/// # Errors
/// A shape that does not fit the type, a non-finite float (with its row and column), importance that
/// is negative, not finite or of another length, or a type without encoder. `out` is then unspecified.
pub fn encode_rows(
    kind: IsaKind,
    ty: QuantType,
    x: &[f32],
    n_per_row: usize,
    importance: Option<&[f32]>,
    out: &mut [u8],
) -> Result<(), Error> {
    let n_rows = x.len().checked_div(n_per_row).unwrap_or(0);
    if n_rows * n_per_row != x.len() {
        return Err(Error::PartRow { n_elements: x.len(), n_per_row });
    }
    check_matrix(ty, n_rows, n_per_row, out.len())?;
    // the largest bits of a magnitude first: a loop that ends early is no vector loop
    let largest = x.iter().fold(0, |m, v| (v.to_bits() & 0x7fff_ffff).max(m));
    if largest >= f32::INFINITY.to_bits()
        && let Some(at) = x.iter().position(|v| !v.is_finite())
    {
        return Err(Error::NotFinite { row: at / n_per_row, column: at % n_per_row, value: x[at] });
    }
    if let Some(v) = importance {
        if v.len() != n_per_row {
            return Err(Error::ImportanceLength { expected: n_per_row, found: v.len() });
        }
        if let Some(column) = v.iter().position(|v| !(v.is_finite() && *v >= 0.0)) {
            return Err(Error::Importance { column, value: v[column] });
        }
    }
    if x.is_empty() {
        return Ok(());
    }
    let mut w = vec![0.0; n_per_row];
    weights::column_weights(importance, &mut w);
    table::encode(kind, ty, x, &w, out)
}

/// Encodes rows of one type; what [`encode_rows`] runs per instruction set.
pub(crate) struct EncodeRows<'a, E> {
    pub x: &'a [f32],
    pub w: &'a [f32],
    pub out: &'a mut [u8],
    pub encoder: std::marker::PhantomData<E>,
}

impl<E: Encode> IsaOp for EncodeRows<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let n_per_row = self.w.len();
        let row_bytes = self.out.len() / (self.x.len() / n_per_row);
        let mut scratch = E::Scratch::default();
        for (x, out) in self.x.chunks_exact(n_per_row).zip(self.out.chunks_exact_mut(row_bytes)) {
            E::encode_row(isa, x, self.w, &mut scratch, out);
        }
    }
}
