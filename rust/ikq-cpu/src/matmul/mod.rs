//! Products of a block of a matrix's rows with columns of activations, for any type.

use std::ops::Range;

use ikq_formats::row::I2_S_TRAILER_BYTES;
use ikq_formats::{Error, QuantType, check_matrix, matrix_bytes};
use ikq_simd::IsaKind;

use crate::act::Activations;

/// How products are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compute {
    /// The fastest that keeps the type's accuracy: 8-bit activations for block types, floats for float types.
    Auto,
    /// Float32 products of the decoded weights.
    F32,
}

/// The form of activations that a product reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    Floats,
    Q8,
}

/// A matrix of weights as it is stored.
#[derive(Clone, Copy)]
pub struct Matrix<'a> {
    ty: QuantType,
    n_rows: usize,
    k: usize,
    data: &'a [u8],
    /// The scale of the whole tensor (I2_S), else 1.
    scale: f32,
}

impl<'a> Matrix<'a> {
    /// A matrix of `n_rows` rows of `k` elements; interleaved types: whole groups.
    ///
    /// # Errors
    /// As [`check_matrix`].
    pub fn new(ty: QuantType, n_rows: usize, k: usize, data: &'a [u8]) -> Result<Matrix<'a>, Error> {
        check_matrix(ty, n_rows, k, data.len())?;
        let (data, scale) = match ty {
            QuantType::I2_S => {
                let (codes, trailer) = data.split_at(data.len() - I2_S_TRAILER_BYTES);
                let bits = trailer.first_chunk().map_or(0, |b| u32::from_le_bytes(*b));
                (codes, f32::from_bits(bits))
            }
            _ => (data, 1.0),
        };
        Ok(Matrix { ty, n_rows, k, data, scale })
    }

    /// A matrix whose shape was checked before: `data` without a trailer, `scale` the tensor's (I2_S; else 1).
    pub fn of_rows(ty: QuantType, n_rows: usize, k: usize, data: &'a [u8], scale: f32) -> Matrix<'a> {
        Matrix { ty, n_rows, k, data, scale }
    }

    /// The scale of the whole tensor (I2_S), else 1.
    pub fn scale(&self) -> f32 {
        self.scale
    }

    pub fn ty(&self) -> QuantType {
        self.ty
    }

    pub fn n_rows(&self) -> usize {
        self.n_rows
    }

    pub fn k(&self) -> usize {
        self.k
    }

    /// Rows that can only be read together (1 but for interleaved types).
    pub fn row_step(&self) -> usize {
        self.ty.info().rows
    }

    /// The bytes, without a trailer.
    pub fn data(&self) -> &'a [u8] {
        self.data
    }

    /// Rows `rows` (a multiple of [`Matrix::row_step`] each) as a matrix of their own.
    pub fn rows(&self, rows: Range<usize>) -> Matrix<'a> {
        let per_step = self.data.len() / (self.n_rows / self.row_step()).max(1);
        let step = |row: usize| row / self.row_step() * per_step;
        Matrix { n_rows: rows.len(), data: &self.data[step(rows.start)..step(rows.end)], ..*self }
    }

    /// What [`multiply`] reads.
    pub fn input(&self, compute: Compute) -> Input {
        input(self.ty, compute)
    }
}

/// What products with a type read.
pub fn input(ty: QuantType, compute: Compute) -> Input {
    match compute {
        Compute::Auto if ikq_decode::facts(ty).is_some() => Input::Q8,
        _ => Input::Floats,
    }
}

/// Memory that a thread's products reuse.
#[derive(Default)]
pub struct Scratch {
    floats: Vec<f32>,
}

/// `out[c * rows.len() + r] = row(rows.start + r) . column(columns[c])`.
///
/// `rows` starts and ends at a multiple of [`Matrix::row_step`]; `columns` are any columns of `acts`, in any
/// order; `acts` must hold the form that [`Matrix::input`] names.
///
/// # Panics
/// When shapes do not fit together.
#[expect(clippy::too_many_arguments, reason = "the operands of a product")]
pub fn multiply(
    kind: IsaKind,
    compute: Compute,
    matrix: &Matrix<'_>,
    rows: Range<usize>,
    acts: &Activations,
    columns: &[u32],
    scratch: &mut Scratch,
    out: &mut [f32],
) {
    let part = matrix.rows(rows);
    assert_eq!(part.k, acts.k(), "row length and column length differ");
    assert_eq!(out.len(), part.n_rows * columns.len(), "wrong length of the output");
    let _ = compute;
    scratch.floats.resize(part.n_rows * part.k, 0.0);
    let decoded = if part.ty == QuantType::I2_S {
        ikq_decode::dequantize_i2_s(kind, part.data, part.scale, &mut scratch.floats);
        Ok(())
    } else {
        ikq_decode::dequantize(kind, part.ty, part.data, part.n_rows, part.k, &mut scratch.floats)
    };
    decoded.expect("the shape was checked");
    for (out, column) in out.chunks_exact_mut(part.n_rows).zip(columns) {
        let x = acts.floats(*column as usize);
        for (out, row) in out.iter_mut().zip(scratch.floats.chunks_exact(part.k)) {
            let mut lanes = [0.0f32; 16];
            for (w, x) in row.chunks(16).zip(x.chunks(16)) {
                for (lane, (w, x)) in lanes.iter_mut().zip(w.iter().zip(x)) {
                    *lane += w * x;
                }
            }
            *out = lanes.iter().sum();
        }
    }
}

/// Bytes of a matrix, for who cuts experts out of a stack.
///
/// # Errors
/// As [`matrix_bytes`].
pub fn bytes_of(ty: QuantType, n_rows: usize, k: usize) -> Result<usize, Error> {
    matrix_bytes(ty, n_rows, k)
}
