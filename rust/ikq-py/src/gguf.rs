//! GGUF files: a mapped model, and writing.

use std::path::PathBuf;

use ikq_gguf::{Bytes, Layout, Options, SplitBy, TensorSpec, TensorType, Writer};
use ikq_pool::Stop;
use numpy::ndarray::ArrayView1;
use numpy::{PyArray1, PyArrayMethods, PyReadonlyArray1};
use pyo3::prelude::*;

use crate::enter::enter;
use crate::errors::{Raise, ShapeError};
use crate::metadata::Metadata;

/// Bytes written between two looks at signals.
const WRITE_UNIT: usize = 16 << 20;

/// What a numpy view of mapped memory keeps alive.
#[pyclass(frozen, module = "ikq._ikq")]
struct Mapped(Bytes);

/// A GGUF file, or all files of a split set, mapped and checked.
#[pyclass(frozen, module = "ikq._ikq")]
pub struct Model {
    pub(crate) inner: ikq_gguf::Model,
}

/// Name, shape as numpy has it, type id, shard.
type TensorInfo = (String, Vec<u64>, u32, u32);
/// Path, version, alignment, tensors, bytes.
type ShardInfo = (PathBuf, u32, u64, usize, usize);

#[pymethods]
impl Model {
    /// Opens a file, or the whole split set that the file belongs to.
    #[staticmethod]
    fn open(py: Python<'_>, path: PathBuf) -> PyResult<Model> {
        let opened = enter(py, usize::MAX, |_| ikq_gguf::Model::open(&path).map_err(Stop::Failed));
        opened.map(|inner| Model { inner })
    }

    fn metadata(&self) -> Metadata {
        Metadata { inner: self.inner.metadata().clone() }
    }

    fn tensors(&self) -> Vec<TensorInfo> {
        let shape = |t: &ikq_gguf::Tensor| t.dims().iter().rev().copied().collect();
        self.inner.tensors().iter().map(|t| (t.name.clone(), shape(t), t.ty.id(), t.shard)).collect()
    }

    fn shards(&self) -> Vec<ShardInfo> {
        let info = |s: &ikq_gguf::Shard| (s.path.clone(), s.version, s.alignment, s.n_tensors, s.file.len());
        self.inner.shards().iter().map(info).collect()
    }

    /// This model with some tensors of another.
    fn with_tensors_of(&self, py: Python<'_>, other: &Model, names: Vec<String>) -> PyResult<Model> {
        let names = names.iter().map(String::as_str);
        let inner = self.inner.with_tensors_of(&other.inner, names).map_err(|e| e.raise(py))?;
        Ok(Model { inner })
    }

    /// A read-only view of a tensor's bytes in the file.
    fn data<'py>(&self, py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyArray1<u8>>> {
        let bytes = self.inner.require(name).map_err(|e| e.raise(py))?.data.clone();
        let owner = Bound::new(py, Mapped(bytes))?;
        let view = ArrayView1::from(&owner.get().0[..]);
        // SAFETY: the array's base object is `owner`, which holds the bytes as long as the array
        // lives and never changes them (it is frozen); the array is made read-only before any
        // Python code sees it.
        let array = unsafe { PyArray1::borrow_from_array(&view, owner.clone().into_any()) };
        Ok(array.readwrite().make_nonwriteable().as_any().cast::<PyArray1<u8>>()?.clone())
    }
}

/// Writes a GGUF file (or split set) from tensors in memory; returns the paths written. Nothing is
/// left behind when it fails.
#[pyfunction]
#[pyo3(signature = (path, metadata, tensors, alignment, max_bytes, max_tensors, no_tensor_first_split))]
#[expect(clippy::too_many_arguments, reason = "the options of the writer, named in Python")]
pub fn write_gguf(
    py: Python<'_>,
    path: PathBuf,
    metadata: &Metadata,
    tensors: Vec<(String, Vec<u64>, u32, PyReadonlyArray1<'_, u8>)>,
    alignment: Option<u64>,
    max_bytes: Option<u64>,
    max_tensors: Option<usize>,
    no_tensor_first_split: bool,
) -> PyResult<Vec<PathBuf>> {
    let mut specs = Vec::with_capacity(tensors.len());
    let mut data = Vec::with_capacity(tensors.len());
    for (name, shape, id, bytes) in &tensors {
        let (bytes, dims) = (bytes.as_slice()?, shape.iter().rev().copied().collect());
        let (name, size) = (name.clone(), bytes.len() as u64);
        specs.push(TensorSpec { name, dims, ty: TensorType::from_id(*id), size });
        data.push(bytes);
    }
    let split = match (max_bytes, max_tensors) {
        (None, None) => None,
        (Some(n), None) => Some(SplitBy::MaxBytes(n)),
        (None, Some(n)) => Some(SplitBy::MaxTensors(n)),
        _ => return Err(ShapeError::new_err("split by size or by number of tensors, not by both")),
    };
    let options = Options { alignment, split, no_tensor_first_split, per_tensor: None };
    let metadata = metadata.inner.clone();
    let n_bytes = data.iter().map(|d| d.len()).sum::<usize>();
    enter(py, n_bytes.max(1 << 20), |cancel| {
        let layout = Layout::new(&metadata, specs, &options)?;
        let writer = Writer::create(&path, layout)?;
        for (index, bytes) in data.iter().enumerate() {
            for (i, part) in bytes.chunks(WRITE_UNIT).enumerate() {
                if cancel.is_cancelled() {
                    return Err(Stop::Cancelled);
                }
                writer.write_at(index, (i * WRITE_UNIT) as u64, part)?;
            }
        }
        Ok(writer.finish()?)
    })
}
