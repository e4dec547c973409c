//! [`Tensor`]: a tensor that was read; [`TensorSpec`]: one to be written; [`TensorType`]: the type of either.

use std::fmt;
use std::ops::Range;

use ikq_formats::QuantType;

use crate::bytes::Bytes;
use crate::error::Error;
use crate::made::Made;

/// The type of a tensor: one that ikq knows, or the id of one that it does not. Tensors of unknown types can be
/// listed and copied, but not decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TensorType {
    Known(QuantType),
    Unknown(u32),
}

impl TensorType {
    /// The type with this id.
    pub const fn from_id(id: u32) -> TensorType {
        match QuantType::from_id(id) {
            Some(ty) => TensorType::Known(ty),
            None => TensorType::Unknown(id),
        }
    }

    /// Id in the file.
    pub const fn id(self) -> u32 {
        match self {
            TensorType::Known(ty) => ty.id(),
            TensorType::Unknown(id) => id,
        }
    }

    /// The type, if ikq knows it.
    pub const fn known(self) -> Option<QuantType> {
        match self {
            TensorType::Known(ty) => Some(ty),
            TensorType::Unknown(_) => None,
        }
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TensorType::Known(ty) => ty.fmt(f),
            TensorType::Unknown(id) => write!(f, "unknown type {id}"),
        }
    }
}

/// A tensor of a file that was read. `ne` is in ggml's order: `ne[0]` is the row length, `ne[1]`
/// the rows, `ne[2]` the matrices (experts); dimensions that the file does not list are 1.
#[derive(Clone, Debug)]
pub struct Tensor {
    pub name: String,
    pub ne: [u64; 4],
    /// Dimensions that the file lists, 0 to 4.
    pub n_dims: u32,
    pub ty: TensorType,
    /// Index of the shard that holds it (0 for a single file).
    pub shard: u32,
    /// Offset of the data from the start of that file.
    pub file_offset: u64,
    /// The bytes of the data. For unknown types these are all bytes up to the next tensor or the end of the file,
    /// including padding. Empty if the data are [`Tensor::made`].
    pub data: Bytes,
    /// Where the data come from if they are not a run of bytes of a GGUF file. [`Tensor::read`] works in both
    /// cases.
    pub made: Option<Made>,
}

impl Tensor {
    /// The dimensions that the file lists.
    pub fn dims(&self) -> &[u64] {
        &self.ne[..self.n_dims as usize]
    }

    /// Number of elements (the reader has checked that it fits).
    pub fn n_elements(&self) -> u64 {
        self.ne.iter().product()
    }

    /// Elements of a row.
    pub fn n_per_row(&self) -> u64 {
        self.ne[0]
    }

    /// Rows of all matrices.
    pub fn n_rows(&self) -> u64 {
        self.ne[1..].iter().product()
    }

    /// Bytes of the data.
    pub fn n_bytes(&self) -> usize {
        self.made.as_ref().map_or(self.data.len(), Made::len)
    }

    /// The bytes `range` of the data, of a file or made.
    ///
    /// # Errors
    /// [`Error::Make`] when they cannot be made.
    ///
    /// # Panics
    /// When the range does not lie within [`Tensor::n_bytes`].
    pub fn read(&self, range: Range<usize>) -> Result<Bytes, Error> {
        assert!(range.start <= range.end && range.end <= self.n_bytes(), "{range:?} of `{}`", self.name);
        match &self.made {
            None => Ok(self.data.slice(range).expect("just checked")),
            Some(made) => {
                made.read(range).map_err(|source| Error::Make { tensor: self.name.clone(), source })
            }
        }
    }

    /// Asks the system to read these bytes ahead, where they lie in files.
    pub fn will_need(&self, range: Range<usize>) {
        match &self.made {
            None => {
                if let Some(bytes) = self.data.slice(range) {
                    bytes.will_need();
                }
            }
            Some(made) => made.will_need(range),
        }
    }

    /// Tells the system that these bytes are not needed soon, where [`Tensor::read`] gave views of a GGUF file.
    pub fn release(&self, range: Range<usize>) {
        if let Some(bytes) = self.data.slice(range) {
            bytes.release();
        }
    }

    /// The type, if ikq knows it, so that the tensor can be decoded.
    ///
    /// # Errors
    /// [`Error::UnknownType`].
    pub fn quant_type(&self) -> Result<QuantType, Error> {
        match self.ty {
            TensorType::Known(ty) => Ok(ty),
            TensorType::Unknown(id) => Err(Error::UnknownType { tensor: self.name.clone(), id }),
        }
    }

    /// The description with which a writer writes the tensor unchanged.
    pub fn spec(&self) -> TensorSpec {
        TensorSpec {
            name: self.name.clone(),
            dims: self.dims().to_vec(),
            ty: self.ty,
            size: self.n_bytes() as u64,
        }
    }
}

/// A tensor to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    pub name: String,
    /// 0 to 4 dimensions, row length first; none means a single element.
    pub dims: Vec<u64>,
    pub ty: TensorType,
    /// Bytes of data.
    pub size: u64,
}

impl TensorSpec {
    /// A tensor of a known type; its size follows from shape and type.
    ///
    /// # Errors
    /// [`Error::PlanDims`], [`Error::PlanShape`] when the type does not fit the shape.
    pub fn new(name: impl Into<String>, dims: &[u64], ty: QuantType) -> Result<TensorSpec, Error> {
        let name = name.into();
        let Some(ne) = extents(dims) else {
            return Err(Error::PlanDims { tensor: name, dims: dims.to_vec() });
        };
        match tensor_bytes(ty, ne) {
            Ok(size) => Ok(TensorSpec { name, dims: dims.to_vec(), ty: TensorType::Known(ty), size }),
            Err(source) => Err(Error::PlanShape { tensor: name, source }),
        }
    }
}

/// The four extents `ne` of the listed dimensions; `None` when there are too many or their product does not fit
/// `i64` (ggml's element count).
pub(crate) fn extents(dims: &[u64]) -> Option<[u64; 4]> {
    let mut ne = [1; 4];
    ne.get_mut(..dims.len())?.copy_from_slice(dims);
    // zeros must not hide an overflow, because later products over part of `ne` must fit as well
    let product = ne.iter().try_fold(1u64, |p, n| p.checked_mul((*n).max(1)))?;
    i64::try_from(product).ok().map(|_| ne)
}

/// Bytes of a tensor of a known type.
pub(crate) fn tensor_bytes(ty: QuantType, ne: [u64; 4]) -> Result<u64, ikq_formats::Error> {
    // `extents` has checked the products
    let [n_per_row, matrix_rows, ..] = ne.map(|n| n as usize);
    let n_rows = matrix_rows * ne[2] as usize * ne[3] as usize;
    if ty.is_interleaved() {
        // groups of rows never span experts
        ikq_formats::matrix_bytes(ty, matrix_rows, n_per_row)?;
    }
    ikq_formats::matrix_bytes(ty, n_rows, n_per_row).map(|n| n as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_follow_shape_and_type() {
        let size = |dims: &[u64], ty| TensorSpec::new("t", dims, ty).map(|s| s.size);
        assert_eq!(size(&[256, 4, 3], QuantType::IQ4_KS).ok(), Some(12 * 140));
        assert_eq!(size(&[128, 2], QuantType::I2_S).ok(), Some(64 + 32));
        assert_eq!(size(&[7], QuantType::F32).ok(), Some(28));
    }

    #[test]
    fn shapes_that_do_not_fit_are_refused() {
        let err = |dims: &[u64], ty| TensorSpec::new("t", dims, ty).expect_err("refused");
        assert!(matches!(err(&[100], QuantType::Q4_K), Error::PlanShape { .. }));
        // two experts of six rows are twelve rows, but a group of four would span both
        assert!(matches!(err(&[256, 6, 2], QuantType::IQ4_KS_R4), Error::PlanShape { .. }));
        assert!(matches!(err(&[1; 5], QuantType::F32), Error::PlanDims { .. }));
        assert!(matches!(err(&[1 << 40, 1 << 40], QuantType::F32), Error::PlanDims { .. }));
        assert!(matches!(err(&[0, 1 << 40, 1 << 40], QuantType::F32), Error::PlanDims { .. }));
        assert!(matches!(err(&[1 << 62], QuantType::F32), Error::PlanShape { .. }));
    }

    #[test]
    fn unknown_ids_have_a_name() {
        assert_eq!(TensorType::from_id(999).to_string(), "unknown type 999");
        assert_eq!(TensorType::from_id(144), TensorType::Known(QuantType::IQ4_KS));
    }
}
