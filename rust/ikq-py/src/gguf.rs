//! Reads GGUF files as memory-mapped models, and writes them.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use ikq_formats::QuantType;
use ikq_gguf::{
    Bytes, Half, Layout, Made, MakeError, Maker, Options, SplitBy, TensorSpec, TensorType, Writer,
};
use ikq_pool::Stop;
use numpy::ndarray::ArrayView1;
use numpy::{PyArray1, PyArrayMethods, PyReadonlyArray1};
use pyo3::prelude::*;

use crate::enter::enter;
use crate::errors::{Raise, ShapeError};
use crate::metadata::Metadata;

/// The number of bytes that are written between two checks for signals such as Ctrl-C.
const WRITE_UNIT: usize = 16 << 20;

/// The owner of the bytes that a numpy array views: the array holds it, so that the memory stays mapped.
#[pyclass(frozen, module = "ikq._ikq")]
struct Mapped(Bytes);

/// A GGUF file, or all shards of a split model, mapped into memory and checked.
#[pyclass(frozen, module = "ikq._ikq")]
pub struct Model {
    pub(crate) inner: ikq_gguf::Model,
}

/// A tensor: its name, its shape as numpy has it, its type id, and the number of its shard.
type TensorInfo = (String, Vec<u64>, u32, u32);
/// A file of a model: its path, format version, alignment, number of tensors, and size in bytes.
type ShardInfo = (PathBuf, u32, u64, usize, usize);

/// Ranges of bytes of files (number of the file, offset, length), the type id of what they hold, and the order in which
/// their rows are taken, if it is another.
type Ranges<'py> = (Vec<(usize, usize, usize)>, u32, Option<PyReadonlyArray1<'py, u32>>);
/// A tensor of a made model: its name, its shape as numpy has it, its type id, and the ranges of bytes it consists
/// of, or `None` if it is computed.
type MadeTensor<'py> = (String, Vec<u64>, u32, Option<Ranges<'py>>);

/// A Python function that computes the bytes of tensors.
struct PyMaker(Py<PyAny>);

impl Maker for PyMaker {
    fn make(&self, tensor: usize, range: Range<usize>) -> Result<Bytes, MakeError> {
        Python::attach(|py| -> PyResult<Bytes> {
            let made = self.0.bind(py).call1((tensor, range.start, range.end))?;
            let array: PyReadonlyArray1<'_, u8> = made.extract()?;
            Ok(Bytes::from(array.as_slice()?.to_vec()))
        })
        .map_err(|e| Box::new(e) as MakeError)
    }
}

/// Views of ranges of bytes in mapped files.
fn views(
    mapped: &[Bytes],
    files: &[PathBuf],
    pieces: &[(usize, usize, usize)],
) -> Result<Vec<Bytes>, ikq_gguf::Error> {
    let view = |(file, offset, len): &(usize, usize, usize)| {
        let end = offset.checked_add(*len);
        let view = mapped.get(*file).zip(end).and_then(|(bytes, end)| bytes.slice(*offset..end));
        view.ok_or_else(|| {
            let path = files.get(*file).cloned().unwrap_or_default();
            let why = std::io::Error::new(std::io::ErrorKind::UnexpectedEof, "the file became shorter");
            ikq_gguf::Error::io(&path, "read", 0, why)
        })
    };
    pieces.iter().map(view).collect()
}

/// The type of 16-bit floats of data of type `stored` that a tensor of type `id` has as F32.
fn half(stored: u32, id: u32) -> Option<Half> {
    let known = |id| TensorType::from_id(id).known();
    match (known(stored)?, known(id)?) {
        (QuantType::F16, QuantType::F32) => Some(Half::F16),
        (QuantType::BF16, QuantType::F32) => Some(Half::BF16),
        _ => None,
    }
}

/// Data of type `stored` as those of a tensor of type `id`.
fn widened(made: Made, stored: u32, id: u32) -> Made {
    match half(stored, id) {
        Some(half) => Made::Widened { of: Arc::new(made), half },
        None => made,
    }
}

/// Orders of rows. Layers have the same few, each of which is held once.
#[derive(Default)]
struct Orders(Vec<Arc<[u32]>>);

impl Orders {
    /// This order, the one that is there if there is such a one.
    fn shared(&mut self, order: &[u32]) -> Arc<[u32]> {
        if let Some(found) = self.0.iter().find(|known| known[..] == *order) {
            return found.clone();
        }
        self.0.push(order.into());
        self.0[self.0.len() - 1].clone()
    }
}

#[pymethods]
impl Model {
    /// Opens a file, or all shards of the split model that the file belongs to.
    #[staticmethod]
    fn open(py: Python<'_>, path: PathBuf) -> PyResult<Model> {
        let opened = enter(py, usize::MAX, |_| ikq_gguf::Model::open(&path).map_err(Stop::Failed));
        opened.map(|inner| Model { inner })
    }

    /// Makes a model that is not stored in a GGUF file, such as a checkpoint, whose tensors come from `files` or
    /// are computed by `maker`.
    ///
    /// A tensor is given by its name, its shape as numpy has it, its type id, and the ranges of bytes that it
    /// consists of (number of a file, offset, length) with the type id of what they hold, which is the tensor's or one
    /// of 16-bit floats if the tensor is F32, and the order in which their rows are taken (`None` is theirs). For a
    /// tensor that is computed, `None` stands in place of the ranges, and `maker(number, start, end)`
    /// returns its bytes from `start` to `end`.
    #[staticmethod]
    fn made(
        py: Python<'_>,
        files: Vec<PathBuf>,
        metadata: &Metadata,
        tensors: Vec<MadeTensor<'_>>,
        maker: Py<PyAny>,
    ) -> PyResult<Model> {
        let maker: Arc<dyn Maker> = Arc::new(PyMaker(maker));
        let metadata = metadata.inner.clone();
        let mut orders = Orders::default();
        let mut sources = Vec::with_capacity(tensors.len());
        for (name, shape, id, ranges) in tensors {
            let ranges = match ranges {
                None => None,
                Some((pieces, stored, None)) => Some((pieces, stored, None)),
                Some((pieces, stored, Some(order))) => {
                    Some((pieces, stored, Some(orders.shared(order.as_slice()?))))
                }
            };
            sources.push((name, shape, id, ranges));
        }
        let made = py.detach(|| {
            ikq_gguf::Model::of_made(&files, metadata, |mapped| {
                let made = sources.into_iter().enumerate().map(|(number, (name, shape, id, ranges))| {
                    let dims: Vec<u64> = shape.iter().rev().copied().collect();
                    let Some(ty) = TensorType::from_id(id).known() else {
                        return Err(ikq_gguf::Error::UnknownType { tensor: name, id });
                    };
                    let spec = TensorSpec::new(name, &dims, ty)?;
                    let len = spec.size as usize;
                    let row = len.checked_div(dims.iter().skip(1).product::<u64>() as usize).unwrap_or(0);
                    let made = match ranges {
                        Some((pieces, stored, None)) => {
                            widened(Made::of_pieces(views(mapped, &files, &pieces)?), stored, id)
                        }
                        Some((pieces, stored, Some(order))) => {
                            let views = views(mapped, &files, &pieces)?;
                            let found = views.iter().map(|view| view.len() as u64).sum();
                            let (tensor, expected) = (spec.name.clone(), spec.size);
                            let missing = ikq_gguf::Error::MadeSize { tensor, found, expected };
                            // a vector's numbers are rows of one each
                            let row = len.checked_div(order.len()).unwrap_or(0);
                            let row = if half(stored, id).is_some() { row / 2 } else { row };
                            widened(Made::of_ordered(views, order, row).ok_or(missing)?, stored, id)
                        }
                        None => Made::Computed { maker: maker.clone(), tensor: number, len, row },
                    };
                    Ok((spec, made))
                });
                made.collect()
            })
        });
        made.map(|inner| Model { inner }).map_err(|e| e.raise(py))
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

    /// Makes a model like this one in which the named tensors are those of `other`.
    fn with_tensors_of(&self, py: Python<'_>, other: &Model, names: Vec<String>) -> PyResult<Model> {
        let names = names.iter().map(String::as_str);
        let inner = self.inner.with_tensors_of(&other.inner, names).map_err(|e| e.raise(py))?;
        Ok(Model { inner })
    }

    /// A read-only view of a tensor's bytes in the file.
    fn data<'py>(&self, py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyArray1<u8>>> {
        let tensor = self.inner.require(name).map_err(|e| e.raise(py))?;
        // a Python maker of tensors acquires the interpreter by itself
        let bytes = py.detach(|| tensor.read(0..tensor.n_bytes())).map_err(|e| e.raise(py))?;
        let owner = Bound::new(py, Mapped(bytes))?;
        let view = ArrayView1::from(&owner.get().0[..]);
        // SAFETY: the array's base object is `owner`, which holds the bytes as long as the array
        // lives and never changes them (it is frozen); the array is made read-only before any
        // Python code sees it.
        let array = unsafe { PyArray1::borrow_from_array(&view, owner.clone().into_any()) };
        Ok(array.readwrite().make_nonwriteable().as_any().cast::<PyArray1<u8>>()?.clone())
    }
}

/// Writes a GGUF file, or several shards, from tensors in memory, and returns the paths written. No file is
/// left behind when writing fails.
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
