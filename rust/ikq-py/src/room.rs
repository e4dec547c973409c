//! How much memory caches may take of GPUs whose memory was divided beforehand.

use ikq_model::device::CacheRoom;
use pyo3::prelude::*;

use crate::engine::Engine;
use crate::errors::Raise;

/// Says how large the caches of an engine may become on GPUs: for each device the bytes that were counted for them, and the
/// bytes of free memory that must be left when they become larger than that.
#[pyfunction]
pub fn limit_caches(py: Python<'_>, engine: &Engine, rooms: Vec<(String, usize, usize)>) -> PyResult<()> {
    for (device, counted, left) in rooms {
        let room = CacheRoom { counted, left };
        py.detach(|| engine.inner.limit_cache(&device, room)).map_err(|e| e.raise(py))?;
    }
    Ok(())
}
