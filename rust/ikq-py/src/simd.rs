//! The choice of the instruction set for the CPU kernels.

use ikq_simd::IsaKind;
use pyo3::prelude::*;

use crate::errors::UnsupportedError;

/// The instruction set of that name; for `None` the one that `IKQ_ISA` names, or else the best one of this machine.
pub fn isa(name: Option<&str>) -> PyResult<IsaKind> {
    match name {
        None => ikq_simd::selected().map_err(UnsupportedError::new_err),
        Some(name) => IsaKind::parse(name).filter(|k| k.is_available()).ok_or_else(|| {
            let have = available_isas().join(", ");
            UnsupportedError::new_err(format!("no instruction set `{name}` here; this machine has {have}"))
        }),
    }
}

#[pyfunction]
pub fn selected_isa() -> PyResult<&'static str> {
    isa(None).map(IsaKind::name)
}

#[pyfunction]
pub fn available_isas() -> Vec<&'static str> {
    ikq_simd::available().into_iter().map(IsaKind::name).collect()
}
