//! Matrices by role: what a spec names, checked against the file. Bytes stay in the file's mapping; devices make
//! their own form of them.

use std::ops::Range;

use ikq_formats::row::I2_S_TRAILER_BYTES;
use ikq_formats::{Family, QuantType, check_matrix, matrix_bytes};
use ikq_gguf::{Bytes, Model};
use ikq_simd::IsaKind;

use crate::error::Error;
use crate::network::low_rank::{Adapters, LowRank, Rows};
use crate::spec::{Linear, Names};
use crate::statistics::Owner;

/// A matrix, or one per expert, with what follows the product.
#[derive(Debug)]
pub struct Weight {
    pub name: String,
    pub ty: QuantType,
    /// The whole matrices that rows are taken from, one per expert, in file form.
    matrices: Vec<Bytes>,
    /// How many rows each of them has.
    n_stored: usize,
    pub first_row: usize,
    pub n_rows: usize,
    pub k: usize,
    /// Scale of the tensor (I2_S), else 1.
    pub scale: f32,
    /// Bias that is added to the product: `n_rows` numbers per expert, those of this matrix's rows.
    pub bias: Option<Vec<f32>>,
    /// A factor per expert that the product is multiplied with.
    pub factors: Option<Vec<f32>>,
    /// What adapters add to the product, bias and factor being applied.
    pub low_rank: Vec<LowRank>,
    /// Names of the experts' tensors, where each is one of its own.
    each: Vec<String>,
    /// The matrices of all heads are rows of one tensor of two axes.
    pooled: bool,
}

impl Weight {
    /// The rows of an expert (0 where there are none) in file form: whole groups of interleaved types, no trailer.
    pub fn rows(&self, expert: usize) -> Bytes {
        let step = self.row_step();
        let data = &self.matrices[expert];
        let per_step = data.len() / (self.n_stored / step).max(1);
        let range = self.first_row / step * per_step..(self.first_row + self.n_rows) / step * per_step;
        data.slice(range).expect("rows were checked when the weight was made")
    }

    /// The same weight (of one matrix) with its rows in memory of its own.
    pub fn copied(&self) -> Weight {
        Weight {
            name: self.name.clone(),
            matrices: vec![Bytes::from(self.rows(0).to_vec())],
            n_stored: self.n_rows,
            first_row: 0,
            bias: self.bias.clone(),
            factors: self.factors.clone(),
            low_rank: self.low_rank.clone(),
            each: self.each.clone(),
            ..*self
        }
    }

    pub fn n_experts(&self) -> usize {
        self.matrices.len()
    }

    /// The name under which statistics of its input are collected.
    pub fn owner(&self) -> Owner {
        let names = if self.each.is_empty() { vec![self.name.clone()] } else { self.each.clone() };
        Owner { names, pooled: self.pooled }
    }

    /// Rows that file form stores together (1 but for interleaved types).
    pub fn row_step(&self) -> usize {
        self.ty.info().rows
    }

    /// Bytes of all experts' rows.
    pub fn n_bytes(&self) -> usize {
        let step = self.row_step();
        let per_step = |data: &Bytes| data.len() / (self.n_stored / step).max(1);
        self.matrices.iter().map(|data| self.n_rows / step * per_step(data)).sum()
    }

    /// Row `row` of the first matrix as floats, `k` of them.
    pub fn decode_row(&self, kind: IsaKind, row: usize, out: &mut [f32]) {
        let step = self.row_step();
        let rows = self.rows(0);
        let per_step = rows.len() / (self.n_rows / step).max(1);
        let part = &rows[row / step * per_step..][..per_step];
        if step == 1 {
            return self.decode(kind, part, out);
        }
        // rows that are stored interleaved can only be decoded together
        let mut group = vec![0.0; step * self.k];
        self.decode(kind, part, &mut group);
        out.copy_from_slice(&group[row % step * self.k..][..self.k]);
    }

    /// The first weight that is not finite.
    pub fn not_finite(&self, kind: IsaKind) -> Option<Error> {
        let step = self.row_step();
        let mut floats = vec![0.0; step * self.k];
        for expert in 0..self.n_experts() {
            let rows = self.rows(expert);
            let per_step = rows.len() / (self.n_rows / step).max(1);
            for (i, part) in rows.chunks_exact(per_step.max(1)).enumerate() {
                self.decode(kind, part, &mut floats);
                if let Some(at) = floats.iter().position(|v| !v.is_finite()) {
                    let row = expert * self.n_stored + self.first_row + i * step;
                    let (tensor, index) = (self.name.clone(), row * self.k + at);
                    return Some(Error::NotFinite { tensor, value: floats[at], index });
                }
            }
        }
        None
    }

    /// Decodes rows whose shape was checked when the weight was made.
    fn decode(&self, kind: IsaKind, rows: &[u8], out: &mut [f32]) {
        if self.ty == QuantType::I2_S {
            return ikq_decode::dequantize_i2_s(kind, rows, self.scale, out);
        }
        let n_rows = out.len() / self.k;
        ikq_decode::dequantize(kind, self.ty, rows, n_rows, self.k, out).expect("the shape was checked");
    }

    /// Whether two weights are rows of the same tensor, `self`'s before `other`'s without a gap.
    pub fn is_followed_by(&self, other: &Weight) -> bool {
        self.name == other.name && self.first_row + self.n_rows == other.first_row
    }
}

/// A tensor of the file that may hold weights.
#[derive(Clone, Debug)]
struct Loaded {
    ty: QuantType,
    ne: [u64; 4],
    data: Bytes,
}

/// Makes weights from a file's tensors.
pub struct Weights<'a> {
    pub model: &'a Model,
    pub adapters: Adapters<'a>,
}

impl Weights<'_> {
    fn tensor(&self, name: &str) -> Result<Loaded, Error> {
        let tensor = self.model.require(name)?;
        let ty = tensor.quant_type()?;
        if matches!(ty.info().family, Family::Activation | Family::Integer) {
            return Err(Error::NotWeights { tensor: name.to_string(), ty });
        }
        Ok(Loaded { ty, ne: tensor.ne, data: tensor.data.clone() })
    }

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
        let first = self.tensor(&name)?;
        let (ty, n_stored) = (first.ty, first.ne[1] as usize);
        let mut matrices = Vec::new();
        let mut scale = 1.0;
        match &linear.weight {
            Names::One(name) => {
                let found = first.ne[2] as usize;
                if found != n_experts || first.ne[3] != 1 {
                    return Err(Error::Experts { tensor: name.clone(), found, expected: n_experts });
                }
                self.check_matrix(name, &first, k)?;
                scale = self.split(name, &first, n_experts, &mut matrices)?;
            }
            Names::Each(names) => {
                if names.len() != n_experts {
                    let (tensor, found) = (name.clone(), names.len());
                    return Err(Error::Experts { tensor, found, expected: n_experts });
                }
                for name in names {
                    let tensor = self.tensor(name)?;
                    self.check_matrix(name, &tensor, k)?;
                    if tensor.ne[1..] != first.ne[1..] || tensor.ty != ty || ty == QuantType::I2_S {
                        return Err(Error::Shape {
                            tensor: name.clone(),
                            found: tensor.ne.to_vec(),
                            expected: format!("the shape and type of `{}`, {:?} {ty:?}", names[0], first.ne),
                        });
                    }
                    self.split(name, &tensor, 1, &mut matrices)?;
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
        let taken = linear.first_row..last;
        let rows = Rows { k, n_stored, taken, n_experts, is_pooled: false };
        let low_rank = self.adapters.of(&linear.weight, &rows)?;
        Ok(Weight {
            ty,
            matrices,
            n_stored,
            low_rank,
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
        let tensor = self.tensor(name)?;
        let (ty, step) = (tensor.ty, tensor.ty.info().rows);
        self.check_matrix(name, &tensor, k)?;
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
        let pooled = n_heads > 1 && tensor.ne[2] == 1;
        let low_rank = self.of_heads(name, (k, n_stored), rows.clone(), n_heads, pooled)?;
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
            low_rank,
            each: Vec::new(),
            pooled,
        })
    }

    /// What adapters add to the products of heads, whose matrices are rows of one tensor.
    fn of_heads(
        &self,
        name: &str,
        (k, n_stored): (usize, usize),
        taken: Range<usize>,
        n_heads: usize,
        is_pooled: bool,
    ) -> Result<Vec<LowRank>, Error> {
        let rows = Rows { k, n_stored, taken, n_experts: n_heads, is_pooled };
        self.adapters.of(&Names::One(name.to_string()), &rows)
    }

    /// Adds to `k_b` and `v_b` what adapters have for the tensor of older files with the rows of both, which stands
    /// beside them in the file.
    ///
    /// # Errors
    /// [`Error::AdapterShape`].
    pub fn add_twin(&self, name: &str, k_b: &mut Weight, v_b: &mut Weight) -> Result<(), Error> {
        let (sizes, n_heads) = ((v_b.k, k_b.k + v_b.n_rows), k_b.n_experts());
        let keys = self.of_heads(name, sizes, 0..k_b.k, n_heads, true)?;
        k_b.low_rank.extend(keys.iter().map(LowRank::transposed));
        v_b.low_rank.extend(self.of_heads(name, sizes, k_b.k..sizes.1, n_heads, true)?);
        Ok(())
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
            keys.decode(kind, &keys.rows(head), &mut rows);
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
            low_rank: keys.low_rank.iter().map(LowRank::transposed).collect(),
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
        check_matrix(tensor.ty, n_rows * n_experts, k, tensor.data.len()).map_err(format)?;
        let mut bytes = matrix_bytes(tensor.ty, n_rows, k).map_err(format)?;
        let mut scale = 1.0;
        if tensor.ty == QuantType::I2_S {
            bytes -= I2_S_TRAILER_BYTES;
            let trailer = tensor.data.len() - I2_S_TRAILER_BYTES;
            scale = tensor.data[trailer..].first_chunk().map_or(1.0, |b| f32::from_le_bytes(*b));
        }
        matrices.extend((0..n_experts).filter_map(|e| tensor.data.slice(e * bytes..(e + 1) * bytes)));
        Ok(scale)
    }

    /// A tensor as `len` floats.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::Format`], [`Error::NotFinite`].
    pub fn floats(&self, name: &str, len: usize) -> Result<Vec<f32>, Error> {
        let tensor = self.tensor(name)?;
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
