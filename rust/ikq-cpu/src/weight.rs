//! [`Weight`]: the matrices of a weight in memory, where products read them.

use std::ops::Range;

use ikq_formats::QuantType;
use ikq_formats::lanes::LANES;
use ikq_gguf::Bytes;
use ikq_kernels::matmul::{self, Compute, Input, Matrix};
use ikq_model::network;
use ikq_model::statistics::Owner;

use crate::low_rank::LowRank;

/// A matrix, or one per expert, in the device's form or (mapped) in that of the file, with what follows the product.
#[derive(Debug)]
pub struct Weight {
    pub name: String,
    pub ty: QuantType,
    pub n_rows: usize,
    pub k: usize,
    /// The bytes of each expert's matrix; one for a plain matrix.
    matrices: Vec<Bytes>,
    /// Whether the matrices are in the device's form, sixteen rows side by side.
    in_lanes: bool,
    scale: f32,
    bias: Option<Vec<f32>>,
    factors: Option<Vec<f32>>,
    /// What adapters add to the product.
    pub low_rank: Vec<LowRank>,
    owner: Owner,
}

impl Weight {
    /// `matrices` hold the rows of `weight`, expert after expert.
    pub fn new(
        weight: &network::Weight,
        matrices: Vec<Bytes>,
        in_lanes: bool,
        low_rank: Vec<LowRank>,
    ) -> Weight {
        Weight {
            name: weight.name.clone(),
            ty: weight.ty,
            n_rows: weight.n_rows,
            k: weight.k,
            matrices,
            in_lanes,
            scale: weight.scale,
            bias: weight.bias.clone(),
            factors: weight.factors.clone(),
            low_rank,
            owner: weight.owner(),
        }
    }

    /// The matrix of an expert (0 where there are none).
    pub fn matrix(&self, expert: usize) -> Matrix<'_> {
        let data = &self.matrices[expert];
        match self.in_lanes {
            true => Matrix::lanes(self.ty, self.n_rows, self.k, data, self.scale)
                .expect("made when it was loaded"),
            false => Matrix::of_rows(self.ty, self.n_rows, self.k, data, self.scale),
        }
    }

    /// Whether matrices are in the device's form.
    pub fn in_lanes(&self) -> bool {
        self.in_lanes
    }

    /// The bytes of rows of an expert's matrix, whole bands where they are in the device's form.
    pub fn stored(&self, expert: usize, rows: Range<usize>) -> &[u8] {
        let data = &self.matrices[expert];
        match self.in_lanes {
            true => {
                let band = data.len() / self.n_rows.div_ceil(LANES);
                &data[rows.start / LANES * band..rows.end.div_ceil(LANES) * band]
            }
            false => {
                let row = data.len() / self.n_rows;
                &data[rows.start * row..rows.end * row]
            }
        }
    }

    pub fn n_experts(&self) -> usize {
        self.matrices.len()
    }

    /// The name under which statistics of its input are collected.
    pub fn owner(&self) -> &Owner {
        &self.owner
    }

    /// The form of activations that products with it read.
    pub fn input(&self, compute: Compute) -> Input {
        matmul::input(self.ty, compute)
    }

    /// Units of work begin at multiples of this many rows: rows that are stored together are computed together.
    pub fn row_step(&self) -> usize {
        self.matrix(0).row_step()
    }

    /// Applies scale and bias to rows `first..` of a product's column.
    pub fn finish(&self, expert: usize, first: usize, column: &mut [f32]) {
        if let Some(factors) = &self.factors {
            column.iter_mut().for_each(|y| *y *= factors[expert]);
        }
        if let Some(bias) = &self.bias {
            let bias = &bias[expert * self.n_rows + first..];
            column.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
        }
    }

    /// Whether [`Weight::finish`] does anything.
    pub fn is_plain(&self) -> bool {
        self.bias.is_none() && self.factors.is_none()
    }
}
