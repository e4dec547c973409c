//! [`Event`]: a point in a device's work that the host can wait for.

use std::sync::Arc;

use cudarc::driver::{result, sys};

use crate::counts::{Call, count};
use crate::error::Error;
use crate::gpu::{Context, Gpu};

/// A point in a device's work. Before it was marked, waiting for it does not wait.
#[derive(Debug)]
pub struct Event {
    context: Arc<Context>,
    handle: sys::CUevent,
}

// SAFETY: handles of the driver may be used from any thread that has the context bound
unsafe impl Send for Event {}

impl Event {
    /// # Errors
    /// Errors of the driver.
    pub fn new(context: &Arc<Context>) -> Result<Event, Error> {
        context.bind()?;
        let handle = result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING);
        let handle = handle.map_err(|e| context.failed("making an event", e))?;
        Ok(Event { context: context.clone(), handle })
    }

    /// Waits for the point that was marked last.
    ///
    /// # Errors
    /// Errors of what was launched before that.
    pub fn wait(&self) -> Result<(), Error> {
        self.context.bind()?;
        count(Call::Wait);
        // SAFETY: the event was made in `new`
        unsafe { result::event::synchronize(self.handle) }.map_err(|e| self.context.failed("computing", e))
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if self.context.bind().is_ok() {
            // SAFETY: made in `new`, and destroyed once
            let _ = unsafe { result::event::destroy(self.handle) };
        }
    }
}

impl Gpu {
    /// Lets an event be the point behind everything that was launched so far.
    ///
    /// # Errors
    /// Errors of the driver.
    pub fn mark(&self, event: &Event) -> Result<(), Error> {
        self.context().bind()?;
        // SAFETY: event and stream are this device's own
        unsafe { result::event::record(event.handle, self.stream()) }
            .map_err(|e| self.context().failed("marking an event", e))
    }
}
