//! The pools that calls from Python run on.

use std::sync::{Arc, Mutex, PoisonError};

use ikq_pool::Pool;
use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;

/// The pool with one thread per CPU that most calls share, with the process it was made in: a forked
/// child inherits the memory but not the threads.
static SHARED: Mutex<Option<(u32, Arc<Pool>)>> = Mutex::new(None);

/// A pool of `n_threads`; `None` is the shared one, which is made on first use.
///
/// # Errors
/// `ValueError` for 0 threads; `OSError` when threads cannot be started.
pub fn pool(n_threads: Option<usize>) -> PyResult<Arc<Pool>> {
    let start = |n| Pool::new(n).map(Arc::new).map_err(|e| PyOSError::new_err(e.to_string()));
    match n_threads {
        Some(0) => Err(PyValueError::new_err("n_threads must be at least 1")),
        Some(n) => start(n),
        None => {
            let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
            let process = std::process::id();
            match shared.take() {
                Some((owner, pool)) if owner == process => {
                    *shared = Some((process, Arc::clone(&pool)));
                    Ok(pool)
                }
                other => {
                    // ending a pool waits for its threads, which a forked child does not have
                    std::mem::forget(other);
                    let pool = start(0)?;
                    *shared = Some((process, Arc::clone(&pool)));
                    Ok(pool)
                }
            }
        }
    }
}
