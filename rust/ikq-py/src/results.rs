//! Results of steps as arrays.

use ikq_model::Best;
use numpy::{PyArray1, PyArray2, PyArrayMethods};
use pyo3::prelude::*;

/// Ids and values of the largest logits, a row for each position.
pub type BestRows<'py> = (Bound<'py, PyArray2<i64>>, Bound<'py, PyArray2<f32>>);

/// The largest logits of positions, `width` of each.
pub fn best_rows<'py>(py: Python<'py>, best: &[Best], width: usize) -> PyResult<BestRows<'py>> {
    let n = best.len() / width;
    let ids = PyArray1::from_iter(py, best.iter().map(|b| i64::from(b.id)));
    let values = PyArray1::from_iter(py, best.iter().map(|b| b.logit));
    Ok((ids.reshape([n, width])?, values.reshape([n, width])?))
}
