//! Every long call from Python goes through this module. It releases the interpreter, runs the job, checks for
//! Ctrl-C, and turns errors into exceptions.

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use ikq_pool::{Cancel, Stop};
use pyo3::exceptions::{PyKeyboardInterrupt, PyOSError};
use pyo3::prelude::*;

use crate::errors::Raise;

/// The time between two checks for signals such as Ctrl-C.
const SIGNAL_INTERVAL: Duration = Duration::from_millis(50);

/// Work of fewer elements than this runs on the calling thread without a check for signals. It
/// takes a few milliseconds at most, and starting a helper thread could take longer than the work.
const SHORT: usize = 1 << 14;

/// Runs `job` with the interpreter released. `n_elements` is the rough size of the work.
///
/// The job must check the flag from time to time and return [`Stop::Cancelled`] when it is set. A job that is not
/// short runs on a thread of its own, because only Python's main thread sees Ctrl-C and must be free to check for
/// it.
///
/// # Errors
/// Returns the job's error as a Python exception, or the exception of a signal handler (`KeyboardInterrupt`).
pub fn enter<R, E>(
    py: Python<'_>,
    n_elements: usize,
    job: impl FnOnce(&Cancel) -> Result<R, Stop<E>> + Send,
) -> PyResult<R>
where
    R: Send,
    E: Raise + Send,
{
    let cancel = Cancel::new();
    let (result, signal) = if n_elements < SHORT {
        (py.detach(|| job(&cancel)), Ok(()))
    } else {
        py.detach(|| watched(&cancel, job, |_| Ok(())))?
    };
    signal?;
    finish(py, result)
}

/// Does the same as [`enter`] for long jobs that report progress: `tick` runs on the calling thread, with the
/// interpreter held, every [`SIGNAL_INTERVAL`], and once more after a job that succeeded. An exception from it
/// stops the job.
///
/// # Errors
/// Returns the errors of [`enter`], and what `tick` raised.
pub fn enter_with_events<R, E>(
    py: Python<'_>,
    job: impl FnOnce(&Cancel) -> Result<R, Stop<E>> + Send,
    mut tick: impl FnMut(Python<'_>) -> PyResult<()> + Send,
) -> PyResult<R>
where
    R: Send,
    E: Raise + Send,
{
    let cancel = Cancel::new();
    let (result, signal) = py.detach(|| watched(&cancel, job, &mut tick))?;
    signal?;
    let result = finish(py, result)?;
    tick(py)?;
    Ok(result)
}

fn finish<R, E: Raise>(py: Python<'_>, result: Result<R, Stop<E>>) -> PyResult<R> {
    result.map_err(|stop| match stop {
        Stop::Failed(e) => e.raise(py),
        Stop::Cancelled => PyKeyboardInterrupt::new_err("interrupted"),
    })
}

/// The job's result, and the exception that a signal handler or `tick` raised meanwhile, if any.
type Watched<R, E> = (Result<R, Stop<E>>, PyResult<()>);

fn watched<R: Send, E: Send>(
    cancel: &Cancel,
    job: impl FnOnce(&Cancel) -> Result<R, Stop<E>> + Send,
    mut tick: impl FnMut(Python<'_>) -> PyResult<()>,
) -> PyResult<Watched<R, E>> {
    std::thread::scope(|scope| {
        let (running, done) = channel::<()>();
        let worker = std::thread::Builder::new()
            .name("ikq-job".to_string())
            .spawn_scoped(scope, move || {
                let _running = running; // dropped at the end, also by a panic
                job(cancel)
            })
            .map_err(|e| PyOSError::new_err(format!("cannot start a thread: {e}")))?;
        let mut signal = Ok(());
        while let Err(RecvTimeoutError::Timeout) = done.recv_timeout(SIGNAL_INTERVAL) {
            if signal.is_ok() {
                signal = Python::attach(|py| py.check_signals().and_then(|()| tick(py)));
                if signal.is_err() {
                    cancel.cancel();
                }
            }
        }
        match worker.join() {
            Ok(result) => Ok((result, signal)),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}
