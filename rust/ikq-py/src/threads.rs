//! The thread pools that calls from Python run on.

use std::sync::{Arc, Mutex, PoisonError};

use ikq_pool::Pool;
use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;

/// The pool with one thread per CPU that most calls share, and the id of the process that made it. A forked
/// child process inherits this memory but not the threads, and must make a pool of its own.
static SHARED: Mutex<Option<(u32, Arc<Pool>)>> = Mutex::new(None);

/// A pool of `n_threads` threads; for `None` the shared one, which is made on first use.
///
/// # Errors
/// Returns a `ValueError` for 0 threads, and an `OSError` when threads cannot be started.
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
                    // dropping a pool waits for its threads, which do not exist in a forked child
                    std::mem::forget(other);
                    let pool = start(0)?;
                    *shared = Some((process, Arc::clone(&pool)));
                    Ok(pool)
                }
            }
        }
    }
}
