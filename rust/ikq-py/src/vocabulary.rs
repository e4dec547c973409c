//! A check of vocabularies: whether texts, given as their hashes, are all different and hold others.

use numpy::PyReadonlyArray1;
use pyo3::prelude::*;

/// Whether numbers are all different and every number of `parts` is one of them.
#[pyfunction]
pub fn distinct_and_hold(
    py: Python<'_>,
    numbers: PyReadonlyArray1<'_, i64>,
    parts: Vec<PyReadonlyArray1<'_, i64>>,
) -> PyResult<bool> {
    let numbers = numbers.as_slice()?;
    let parts = parts.iter().map(|part| Ok(part.as_slice()?)).collect::<PyResult<Vec<_>>>()?;
    Ok(py.detach(|| {
        let mut sorted = numbers.to_vec();
        sorted.sort_unstable();
        let all_differ = sorted.windows(2).all(|pair| pair[0] != pair[1]);
        all_differ && parts.iter().all(|part| part.iter().all(|n| sorted.binary_search(n).is_ok()))
    }))
}
