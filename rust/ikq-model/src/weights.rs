//! Weights by role: what a spec names, checked against the shapes it implies.

use std::collections::BTreeSet;
use std::ops::Range;

use ikq_formats::row::I2_S_TRAILER_BYTES;
use ikq_formats::{QuantType, matrix_bytes};
use ikq_gguf::Bytes;
use ikq_kernels::matmul::{self, Compute, Input, Matrix};
use ikq_simd::IsaKind;

use crate::error::Error;
use crate::load::{Loaded, Tensors};
use crate::spec::{Linear, Names};
use crate::statistics::Owner;

/// A matrix, or one per expert, with what follows the product.
#[derive(Debug)]
pub struct Weight {
    pub name: String,
    pub ty: QuantType,
    /// The whole matrices that rows are taken from, one per expert.
    matrices: Vec<Bytes>,
    /// Rows of each of them.
    n_stored: usize,
    pub first_row: usize,
    pub n_rows: usize,
    pub k: usize,
    /// Scale of the tensor (I2_S), else 1.
    scale: f32,
    /// Added after the product: `n_rows` per expert (of the tensor, the rows of this matrix).
    bias: Option<Vec<f32>>,
    /// Multiplied with the product: one per expert.
    factors: Option<Vec<f32>>,
    /// Names of the experts' tensors, where each is one of its own.
    each: Vec<String>,
    /// The matrices of all heads are rows of one tensor of two axes.
    pooled: bool,
}

impl Weight {
    /// The matrix of an expert (0 where there are none).
    pub fn matrix(&self, expert: usize) -> Matrix<'_> {
        let data = &self.matrices[expert];
        Matrix::of_rows(self.ty, self.n_stored, self.k, data, self.scale)
            .rows(self.first_row..self.first_row + self.n_rows)
    }

    pub fn n_experts(&self) -> usize {
        self.matrices.len()
    }

    /// The entries that statistics of its input make.
    pub fn owner(&self) -> Owner {
        let names = if self.each.is_empty() { vec![self.name.clone()] } else { self.each.clone() };
        Owner { names, pooled: self.pooled }
    }

    /// What products read.
    pub fn input(&self, compute: Compute) -> Input {
        matmul::input(self.ty, compute)
    }

    /// Rows that units of work must not part.
    pub fn row_step(&self) -> usize {
        self.ty.info().rows
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

    /// Bytes of one expert's rows.
    pub fn bytes_per_expert(&self) -> usize {
        self.matrix(0).data().len()
    }

    /// Row `row` of the first matrix as floats, `k` of them.
    pub fn decode_row(&self, kind: IsaKind, row: usize, out: &mut [f32]) {
        let step = self.row_step();
        if step == 1 {
            return decode(kind, &self.matrix(0).rows(row..row + 1), out);
        }
        // rows that are stored interleaved can only be decoded together
        let first = row / step * step;
        let mut group = vec![0.0; step * self.k];
        decode(kind, &self.matrix(0).rows(first..first + step), &mut group);
        out.copy_from_slice(&group[(row - first) * self.k..][..self.k]);
    }

    /// The first weight that is not finite.
    pub fn not_finite(&self, kind: IsaKind) -> Option<Error> {
        let step = self.row_step();
        let mut rows = vec![0.0; step * self.k];
        for expert in 0..self.n_experts() {
            let matrix = self.matrix(expert);
            for first in (0..self.n_rows).step_by(step) {
                decode(kind, &matrix.rows(first..first + step), &mut rows);
                if let Some(i) = rows.iter().position(|v| !v.is_finite()) {
                    let row = expert * self.n_stored + self.first_row + first;
                    let (tensor, index) = (self.name.clone(), row * self.k + i);
                    return Some(Error::NotFinite { tensor, value: rows[i], index });
                }
            }
        }
        None
    }

    /// Whether two weights are rows of the same tensor, `self`'s before `other`'s without a gap.
    pub fn is_followed_by(&self, other: &Weight) -> bool {
        self.name == other.name && self.first_row + self.n_rows == other.first_row
    }
}

/// Decodes a matrix whose shape was checked when it was loaded.
fn decode(kind: IsaKind, matrix: &Matrix<'_>, out: &mut [f32]) {
    let (ty, data) = (matrix.ty(), matrix.data());
    if ty == QuantType::I2_S {
        return ikq_decode::dequantize_i2_s(kind, data, matrix.scale(), out);
    }
    ikq_decode::dequantize(kind, ty, data, matrix.n_rows(), matrix.k(), out).expect("the shape was checked");
}

/// Makes weights from loaded tensors.
pub struct Weights<'a> {
    pub tensors: &'a Tensors,
}

impl Weights<'_> {
    /// A matrix of rows of `k` elements; `n_rows` and `n_experts` are checked where they are known.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::Rows`], [`Error::Experts`], [`Error::Format`], [`Error::NotFinite`] for bias
    /// and scale.
    pub fn linear(
        &self,
        linear: &Linear,
        k: usize,
        n_rows: Option<usize>,
        n_experts: usize,
    ) -> Result<Weight, Error> {
        let name = linear.weight.first().to_string();
        let first = self.tensors.get(&name)?;
        let (ty, n_stored) = (first.ty, first.ne[1] as usize);
        let mut matrices = Vec::new();
        let mut scale = 1.0;
        match &linear.weight {
            Names::One(name) => {
                let found = first.ne[2] as usize;
                if found != n_experts || first.ne[3] != 1 {
                    return Err(Error::Experts { tensor: name.clone(), found, expected: n_experts });
                }
                self.check_matrix(name, first, k)?;
                scale = self.split(name, first, n_experts, &mut matrices)?;
            }
            Names::Each(names) => {
                if names.len() != n_experts {
                    let (tensor, found) = (name.clone(), names.len());
                    return Err(Error::Experts { tensor, found, expected: n_experts });
                }
                for name in names {
                    let tensor = self.tensors.get(name)?;
                    self.check_matrix(name, tensor, k)?;
                    if tensor.ne[1..] != first.ne[1..] || tensor.ty != ty || ty == QuantType::I2_S {
                        return Err(Error::Shape {
                            tensor: name.clone(),
                            found: tensor.ne.to_vec(),
                            expected: format!("the shape and type of `{}`, {:?} {ty:?}", names[0], first.ne),
                        });
                    }
                    self.split(name, tensor, 1, &mut matrices)?;
                }
            }
        }
        let wanted = linear.n_rows.unwrap_or(n_stored.saturating_sub(linear.first_row));
        let step = ty.info().rows;
        let last = linear.first_row + wanted;
        if last > n_stored || !linear.first_row.is_multiple_of(step) || !last.is_multiple_of(step) {
            let (first, tensor) = (linear.first_row, name);
            return Err(Error::Rows { tensor, first, last, n_rows: n_stored, step });
        }
        if n_rows.is_some_and(|n| n != wanted) {
            let expected = format!("{} rows of {k} elements", n_rows.unwrap_or(0));
            return Err(Error::Shape { tensor: name, found: first.ne.to_vec(), expected });
        }
        Ok(Weight {
            ty,
            matrices,
            n_stored,
            first_row: linear.first_row,
            n_rows: wanted,
            k,
            scale,
            bias: match &linear.bias {
                Some(bias) => {
                    let all = self.floats(bias, n_stored * n_experts)?;
                    let of_rows = |e: &[f32]| e[linear.first_row..last].to_vec();
                    Some(all.chunks_exact(n_stored.max(1)).flat_map(of_rows).collect())
                }
                None => None,
            },
            factors: linear.scale.as_deref().map(|s| self.floats(s, n_experts)).transpose()?,
            name,
            each: match &linear.weight {
                Names::One(_) => Vec::new(),
                Names::Each(names) => names.clone(),
            },
            pooled: false,
        })
    }

    /// A matrix of its own.
    ///
    /// # Errors
    /// As [`Weights::linear`].
    pub fn matrix(&self, name: &str, k: usize, n_rows: usize) -> Result<Weight, Error> {
        let weight = Names::One(name.to_string());
        let linear = Linear { weight, bias: None, scale: None, first_row: 0, n_rows: None };
        self.linear(&linear, k, Some(n_rows), 1)
    }

    /// A matrix of one row.
    ///
    /// # Errors
    /// As [`Weights::linear`].
    pub fn row(&self, name: &str, k: usize) -> Result<Weight, Error> {
        self.matrix(name, k, 1)
    }

    /// One matrix per head, head after head: a tensor of three dimensions, or of two (older files).
    ///
    /// # Errors
    /// As [`Weights::linear`].
    pub fn heads(&self, name: &str, k: usize, n_rows: usize, n_heads: usize) -> Result<Weight, Error> {
        self.rows_of_heads(name, k, n_rows, 0..n_rows, n_heads)
    }

    /// Rows `rows` of the `n_stored` rows that every head has.
    fn rows_of_heads(
        &self,
        name: &str,
        k: usize,
        n_stored: usize,
        rows: Range<usize>,
        n_heads: usize,
    ) -> Result<Weight, Error> {
        let tensor = self.tensors.get(name)?;
        let (ty, step) = (tensor.ty, tensor.ty.info().rows);
        self.check_matrix(name, tensor, k)?;
        let in_all: u64 = tensor.ne[1..].iter().product();
        if in_all != (n_stored * n_heads) as u64 {
            let expected = format!("{n_stored} rows of {k} elements for each of {n_heads} heads");
            return Err(Error::Shape { tensor: name.to_string(), found: tensor.ne.to_vec(), expected });
        }
        if ![rows.start, rows.end, n_stored].iter().all(|r| r.is_multiple_of(step)) {
            let (first, last, tensor) = (rows.start, rows.end, name.to_string());
            return Err(Error::Rows { tensor, first, last, n_rows: n_stored, step });
        }
        let mut matrices = Vec::new();
        let by_head = Loaded { ne: [k as u64, n_stored as u64, n_heads as u64, 1], ..tensor.clone() };
        let scale = self.split(name, &by_head, n_heads, &mut matrices)?;
        Ok(Weight {
            name: name.to_string(),
            ty,
            matrices,
            n_stored,
            first_row: rows.start,
            n_rows: rows.len(),
            k,
            scale,
            bias: None,
            factors: None,
            each: Vec::new(),
            pooled: n_heads > 1 && tensor.ne[2] == 1,
        })
    }

    /// `k_b` (per head `kv_rank` rows of `n_nope`) and `v_b` from the tensor of older files that holds, per head,
    /// `n_nope` key rows and `head_dim_v` value rows of `kv_rank`. Keys are stored the other way round there, so
    /// they are decoded and transposed; values are a view.
    ///
    /// # Errors
    /// As [`Weights::linear`].
    pub fn split_kv_b(
        &self,
        name: &str,
        kv_rank: usize,
        n_nope: usize,
        head_dim_v: usize,
        n_heads: usize,
    ) -> Result<(Weight, Weight), Error> {
        let (stored, kind) = (n_nope + head_dim_v, ikq_simd::best());
        let keys = self.rows_of_heads(name, kv_rank, stored, 0..n_nope, n_heads)?;
        let values = self.rows_of_heads(name, kv_rank, stored, n_nope..stored, n_heads)?;
        let mut rows = vec![0.0; n_nope * kv_rank];
        let mut transposed = Vec::with_capacity(n_heads);
        for head in 0..n_heads {
            decode(kind, &keys.matrix(head), &mut rows);
            let mut bytes = Vec::with_capacity(4 * rows.len());
            for m in 0..kv_rank {
                rows.chunks_exact(kv_rank).for_each(|row| bytes.extend(row[m].to_le_bytes()));
            }
            transposed.push(Bytes::from(bytes));
        }
        let keys = Weight {
            ty: QuantType::F32,
            matrices: transposed,
            n_stored: kv_rank,
            first_row: 0,
            n_rows: kv_rank,
            k: n_nope,
            scale: 1.0,
            ..keys
        };
        Ok((keys, values))
    }

    fn check_matrix(&self, name: &str, tensor: &Loaded, k: usize) -> Result<(), Error> {
        match tensor.ne[0] == k as u64 {
            true => Ok(()),
            false => Err(Error::Shape {
                tensor: name.to_string(),
                found: tensor.ne.to_vec(),
                expected: format!("rows of {k} elements"),
            }),
        }
    }

    /// Cuts a tensor into its experts' matrices; returns the tensor's scale.
    fn split(
        &self,
        name: &str,
        tensor: &Loaded,
        n_experts: usize,
        matrices: &mut Vec<Bytes>,
    ) -> Result<f32, Error> {
        let format = |source| Error::Format { tensor: name.to_string(), source };
        let (n_rows, k) = (tensor.ne[1] as usize, tensor.ne[0] as usize);
        // checks the types that matrices cannot have as well
        Matrix::new(tensor.ty, n_rows * n_experts, k, &tensor.data).map_err(format)?;
        let mut bytes = matrix_bytes(tensor.ty, n_rows, k).map_err(format)?;
        let mut scale = 1.0;
        if tensor.ty == QuantType::I2_S {
            bytes -= I2_S_TRAILER_BYTES;
            scale = Matrix::new(tensor.ty, n_rows * n_experts, k, &tensor.data).map_err(format)?.scale();
        }
        matrices.extend((0..n_experts).filter_map(|e| tensor.data.slice(e * bytes..(e + 1) * bytes)));
        Ok(scale)
    }

    /// A tensor as `len` floats.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::Format`], [`Error::NotFinite`].
    pub fn floats(&self, name: &str, len: usize) -> Result<Vec<f32>, Error> {
        let tensor = self.tensors.get(name)?;
        if tensor.ne.iter().product::<u64>() != len as u64 {
            let (tensor, found) = (name.to_string(), tensor.ne.to_vec());
            return Err(Error::Shape { tensor, found, expected: format!("{len} elements in all") });
        }
        let mut out = vec![0.0; len];
        let (k, n_rows) = (tensor.ne[0] as usize, tensor.ne[1..].iter().product::<u64>() as usize);
        ikq_decode::dequantize(ikq_simd::best(), tensor.ty, &tensor.data, n_rows, k, &mut out)
            .map_err(|source| Error::Format { tensor: name.to_string(), source })?;
        match out.iter().position(|v| !v.is_finite()) {
            Some(index) => Err(Error::NotFinite { tensor: name.to_string(), value: out[index], index }),
            None => Ok(out),
        }
    }
}

/// Adds the tensors that a product names.
pub fn names_of(linear: &Linear, all: &mut BTreeSet<String>) {
    match &linear.weight {
        Names::One(name) => all.extend([name.clone()]),
        Names::Each(names) => all.extend(names.iter().cloned()),
    }
    all.extend(linear.bias.iter().chain(&linear.scale).cloned());
}
