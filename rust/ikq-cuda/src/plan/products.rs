//! Launches of matrix-vector products.

use ikq_formats::QuantType;

use super::{Kernel, Plan, check_row, compiled_columns, device_row_bytes, geometry, i32_of, i64_of};
use super::{NULL, optional, reads_codes, rows_of_block};
use crate::error::Error;
use crate::gpu::Argument;

/// Pairs of a token and one of its experts; each token has `k` of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pairs {
    pub n_pairs: usize,
    pub k: usize,
}

/// Sizes and options of [`Call::Products`](super::Call::Products).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Products {
    pub ty: QuantType,
    /// Rows of the matrix, or of each expert's matrix.
    pub n_rows: usize,
    pub n: usize,
    /// 1 to [`MOST_COLUMNS`](super::MOST_COLUMNS); 1 with `pairs`.
    pub n_columns: usize,
    /// Floats from the results of one column to those of the next.
    pub stride: usize,
    /// The pairs of tokens and experts, if experts are chosen by a list of ids.
    pub pairs: Option<Pairs>,
    /// Whether a bias is added, and whether a residual is.
    pub bias: bool,
    pub residual: bool,
}

impl Products {
    pub(super) fn plan(&self) -> Result<Plan, Error> {
        let compiled = compiled_columns("mmv", self.n_columns)?;
        check_row(self.ty, self.n)?;
        if reads_codes(self.ty) && !self.n.is_multiple_of(32) {
            let why = format!("rows of {} elements are no whole blocks of 32", self.n);
            return Err(Error::Plan { name: "mmv".into(), why });
        }
        let by_expert = Experts::new("mmv", self.pairs, self.n_columns)?;
        let n_blocks = self.n_rows.div_ceil(rows_of_block(self.ty, self.n_columns));
        Ok(Plan {
            kernel: Kernel::of_type("mmv.cu", "mmv", self.ty)?.ending(compiled),
            geometry: geometry([n_blocks, by_expert.grid_y, 1], 128)?,
            arguments: vec![
                ("w", None),
                ("expert_bytes", Some(by_expert.bytes(self.ty, self.n_rows, self.n)?)),
                ("ids", by_expert.ids),
                ("k", Some(by_expert.k)),
                ("x", None),
                ("ds", optional(reads_codes(self.ty))),
                ("bias", optional(self.bias)),
                ("residual", optional(self.residual)),
                ("y", None),
                ("n_rows", Some(i32_of(self.n_rows)?)),
                ("n", Some(i32_of(self.n)?)),
                ("n_columns", Some(i32_of(self.n_columns)?)),
                ("y_stride", Some(i64_of(self.stride)?)),
            ],
        })
    }
}

/// The arguments about experts of kernels that may have a list of them.
pub(super) struct Experts {
    pub grid_y: usize,
    pub ids: Option<Argument>,
    pub k: Argument,
}

impl Experts {
    /// # Errors
    /// [`Error::Plan`] for pairs of more than one column.
    pub fn new(kernel: &str, pairs: Option<Pairs>, n_columns: usize) -> Result<Experts, Error> {
        match pairs {
            None => Ok(Experts { grid_y: 1, ids: NULL, k: Argument::I32(1) }),
            Some(Pairs { n_pairs, k }) if n_columns == 1 && k > 0 && n_pairs.is_multiple_of(k) => {
                Ok(Experts { grid_y: n_pairs, ids: None, k: i32_of(k)? })
            }
            Some(Pairs { n_pairs, k }) => Err(Error::Plan {
                name: kernel.into(),
                why: format!("{n_pairs} pairs of {k} experts each, {n_columns} columns at a time"),
            }),
        }
    }

    /// Bytes from one expert to the next.
    ///
    /// # Errors
    /// [`Error::Plan`] for rows that the type does not have.
    pub fn bytes(&self, ty: QuantType, n_rows: usize, n: usize) -> Result<Argument, Error> {
        match self.ids {
            None => expert_bytes(ty, n_rows, n),
            Some(_) => Ok(Argument::I64(0)),
        }
    }
}

/// Bytes of an expert's rows in device form.
pub(super) fn expert_bytes(ty: QuantType, n_rows: usize, n: usize) -> Result<Argument, Error> {
    i64_of(device_row_bytes(ty, n)? * n_rows)
}
