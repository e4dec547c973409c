//! Encoding floats to blocks. [`encode_rows`] is the entry point; [`Encode`] is the trait that types implement.
//!
//! # The objective, the same for every type
//!
//! An encoder minimises `sum_j w_j (y_j - x_j)^2` over a row, where `y` is what the type decodes to and
//! `w` the weight of the column:
//!
//! - with an imatrix, its value (the mean squared activation of the column), plus a floor of
//!   [`weights::FLOOR`] times the mean, so that a column, a block or an expert that the calibration
//!   text never activated is still encoded sensibly; in IQ2_XS and IQ2_S times
//!   `sqrt(1 + x_j^2 / mean x^2)` of the row ([`weights::by_size`]);
//! - without an imatrix, 1. Q4_0, Q4_1, Q5_0 and Q5_1, which the reference only rounds then, have a shorter search
//!   for this case: it has more than half of the full search's gain in a fifth of its time.
//!
//! With the value alone as weight, the sum is the expected squared error of the matrix product if the activations
//! of different columns are uncorrelated.
//!
//! # Rules every encoder keeps
//!
//! - **Finite in, finite out.** Input is finite ([`encode_rows`] checks it); scales saturate at the largest
//!   f16, never at infinity; a block of zeros decodes to zeros.
//! - **The same bytes everywhere**: sums are added in a fixed order, without fused multiply-add, and do not depend
//!   on rows coded before. Searches use the operations of [`ikq_simd::Lanes`] or plain Rust.
//! - **Independent of scale**: rows are normalised by a power of two, so that encoding `2^k x` gives `2^k y`
//!   wherever the stored scale's range allows, and sums neither overflow nor vanish.
//! - **Levels to bits through [`ikq_formats::Layout`]**: an encoder never shifts bits itself.

mod affine;
mod affine_block;
mod floats;
mod fp4;
mod igrid;
mod pack;
mod q8;
mod row_scale;
mod single;
mod superblock;
mod table;
mod ternary;
mod trellis;
pub mod weights;

pub use igrid::grid_search;
pub use table::{can_encode, encodable, undoes_bias};
pub use ternary::is_ternary;
pub use trellis::{magnitudes_of_16_bits, points_of_13_bits, points_of_16_bits, two_sets_of_points};

use ikq_formats::{QuantType, check_matrix, interleave_group, matrix_bytes};
use ikq_simd::{Isa, IsaKind, IsaOp};

use crate::error::Error;
use crate::search::gain::Scales;

/// What a user may choose about encoding.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EncodeOptions {
    /// Do not use level -8 of Q4_0 (in all its forms).
    pub symmetric_q40: bool,
    /// Store scales as fitted, which gives the least squared error but makes results of products too small on
    /// average. By default scales undo that ([`crate::search::gain`]).
    pub biased: bool,
    /// Only scales are wanted, as fitted, and the caller tries others next to them: types with ladders of scales try
    /// fewer, and leave some codes at anything.
    pub scales_only: bool,
}

/// The encoder of one type. Interleaved types need none where a plain type has the same codes; one without such a
/// plain type (`RowForm::Own`) has an encoder for single rows, which are then interleaved.
pub trait Encode: 'static {
    const TYPE: QuantType;
    /// Whether large elements weigh more where columns have an importance and scales undo the gain
    /// ([`weights::by_size`]).
    const BY_SIZE: bool = false;
    /// Working memory, made once for many rows of a call of [`encode_rows`] and reused for each.
    type Scratch: Default;

    /// Encodes one row: `x` and `w` (positive weights, mean about 1) have the row's length, `out` has the
    /// row's bytes (header included) with arbitrary content. `scales` only concerns types for which
    /// [`undoes_bias`] is true. Implementations must be `#[inline(always)]`.
    fn encode_row<I: Isa>(
        isa: I,
        x: &[f32],
        w: &[f32],
        scales: Scales,
        scratch: &mut Self::Scratch,
        out: &mut [u8],
    );
}

/// Encodes `n_rows` rows of `n_per_row` floats each.
///
/// `importance` has one value per column (all rows share it). `out` must have exactly the bytes of
/// the matrix. Interleaved types take whole groups of rows; I2_S takes the whole matrix, whose one scale
/// stands behind its codes.
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
    options: EncodeOptions,
    out: &mut [u8],
) -> Result<(), Error> {
    let Some(row_type) = table::row_encoder(ty) else { return Err(Error::NoEncoder { ty }) };
    let n_rows = x.len().checked_div(n_per_row).unwrap_or(0);
    if n_rows * n_per_row != x.len() {
        return Err(Error::PartRow { n_elements: x.len(), n_per_row });
    }
    check_matrix(ty, n_rows, n_per_row, out.len())?;
    if let Some(v) = importance {
        if v.len() != n_per_row {
            return Err(Error::ImportanceLength { expected: n_per_row, found: v.len() });
        }
        // bits of infinities, NaN and negative numbers are the largest
        if v.iter().fold(0, |m, v| v.to_bits().max(m)) >= f32::INFINITY.to_bits()
            && let Some(column) = v.iter().position(|v| !(v.is_finite() && *v >= 0.0))
        {
            return Err(Error::Importance { column, value: v[column] });
        }
    }
    if x.is_empty() {
        return Ok(());
    }
    let mut w = vec![0.0; n_per_row];
    weights::column_weights(importance, &mut w);
    match encode_groups(kind, (ty, row_type), options, x, &w, out)? {
        true => Ok(()),
        false => {
            let at = x.iter().position(|v| !v.is_finite()).unwrap_or(0);
            Err(Error::NotFinite { row: at / n_per_row, column: at % n_per_row, value: x[at] })
        }
    }
}

/// Encodes rows, or groups of them, by the encoder of `row_type`; false where a float is not finite.
fn encode_groups(
    kind: IsaKind,
    (ty, row_type): (QuantType, QuantType),
    options: EncodeOptions,
    x: &[f32],
    w: &[f32],
    out: &mut [u8],
) -> Result<bool, Error> {
    let (group, n_per_row) = (ty.info().rows, w.len());
    if group == 1 {
        return Ok(table::encode(kind, ty, options, x, w, out));
    }
    // a group at a time, so that its rows are still in the cache when they are interleaved
    let mut rows = vec![0; matrix_bytes(ty, group, n_per_row)?];
    for (x, out) in x.chunks_exact(group * n_per_row).zip(out.chunks_exact_mut(rows.len())) {
        if !table::encode(kind, row_type, options, x, w, &mut rows) {
            return Ok(false);
        }
        interleave_group(ty, &rows, n_per_row, out)?;
    }
    Ok(true)
}

/// Whether there is neither NaN nor infinity.
#[inline(always)]
fn all_finite(x: &[f32]) -> bool {
    // compares bits of magnitudes without ending early, so that the compiler can vectorize the loop
    x.iter().fold(0, |m, v| (v.to_bits() & 0x7fff_ffff).max(m)) < f32::INFINITY.to_bits()
}

/// Encodes rows of one type: the operation that [`encode_rows`] runs on an instruction set. It stops and gives
/// false at a row with a float that is not finite.
pub(crate) struct EncodeRows<'a, E> {
    pub x: &'a [f32],
    pub w: &'a [f32],
    pub out: &'a mut [u8],
    pub scales: Scales,
    pub encoder: std::marker::PhantomData<E>,
}

impl<E: Encode> IsaOp for EncodeRows<'_, E> {
    type Output = bool;

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> bool {
        let n_per_row = self.w.len();
        let row_bytes = self.out.len() / (self.x.len() / n_per_row);
        let mut scratch = E::Scratch::default();
        let by_size = E::BY_SIZE && self.scales == Scales::Unbiased && !weights::are_ones(self.w);
        let mut row_weights = Vec::new();
        for (x, out) in self.x.chunks_exact(n_per_row).zip(self.out.chunks_exact_mut(row_bytes)) {
            // checked row by row, so that the encoder finds the row in the cache
            if !all_finite(x) {
                return false;
            }
            let w = match by_size {
                true => weights::by_size(isa, x, self.w, &mut row_weights),
                false => self.w,
            };
            E::encode_row(isa, x, w, self.scales, &mut scratch, out);
        }
        true
    }
}
