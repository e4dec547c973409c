//! The table of quantization types, and the sizes of rows and tensors.

use ikq_encode::can_encode;
use ikq_formats::QuantType;
use ikq_gguf::TensorSpec;
use pyo3::prelude::*;

use crate::errors::{FormatError, Raise};

/// The type with this id.
pub fn quant_type(id: u32) -> PyResult<QuantType> {
    QuantType::from_id(id)
        .ok_or_else(|| FormatError::new_err(format!("unknown type id {id}; `ikq types` lists all")))
}

/// The properties of one quantization type.
#[pyclass(frozen, get_all, module = "ikq._ikq")]
pub struct TypeFacts {
    id: u32,
    name: &'static str,
    block_size: usize,
    block_bytes: usize,
    row_header_bytes: usize,
    bpw: f64,
    family: &'static str,
    known_to: &'static str,
    imatrix: &'static str,
    fallback: Option<u32>,
    activation: Option<u32>,
    rows: usize,
    base: Option<u32>,
    is_storable: bool,
    can_encode: bool,
}

/// The properties of every type, ordered by id.
#[pyfunction]
pub fn type_facts() -> Vec<TypeFacts> {
    QuantType::ALL
        .iter()
        .map(|ty| {
            let t = ty.info();
            TypeFacts {
                id: ty.id(),
                name: t.name,
                block_size: t.block_size,
                block_bytes: t.block_bytes,
                row_header_bytes: t.row_header_bytes,
                bpw: ty.bpw(),
                family: t.family.name(),
                known_to: t.known_to.name(),
                imatrix: t.imatrix.name(),
                fallback: t.fallback.map(QuantType::id),
                activation: t.activation.map(QuantType::id),
                rows: t.rows,
                base: t.base.map(QuantType::id),
                is_storable: ty.is_storable(),
                can_encode: can_encode(*ty),
            }
        })
        .collect()
}

/// The id of the type with this name.
#[pyfunction]
pub fn parse_type(py: Python<'_>, name: &str) -> PyResult<u32> {
    QuantType::parse(name).map(QuantType::id).map_err(|e| e.raise(py))
}

#[pyfunction]
pub fn row_bytes(py: Python<'_>, ty: u32, n_per_row: usize) -> PyResult<usize> {
    ikq_formats::row_bytes(quant_type(ty)?, n_per_row).map_err(|e| e.raise(py))
}

/// The bytes of a tensor; `shape` is in numpy's order, with the length of a row last.
#[pyfunction]
pub fn tensor_bytes(py: Python<'_>, ty: u32, shape: Vec<u64>) -> PyResult<u64> {
    let dims: Vec<u64> = shape.into_iter().rev().collect();
    match TensorSpec::new("tensor", &dims, quant_type(ty)?) {
        Ok(spec) => Ok(spec.size),
        Err(ikq_gguf::Error::PlanShape { source, .. }) => Err(source.raise(py)),
        Err(e) => Err(e.raise(py)),
    }
}
