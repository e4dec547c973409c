//! [`Event`]: a point in a device's work that the host, or other work, can wait for; and [`Stream`], work beside that
//! of [`Gpu`]'s own stream.

use std::sync::Arc;

use cudarc::driver::{result, sys};

use crate::counts::{Call, count};
use crate::error::Error;
use crate::gpu::{Context, Gpu};
use crate::memory::{Address, Pinned};

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
        mark(self.context(), self.stream(), event)
    }

    /// Lets everything that is launched from now on wait for the point that an event marked last.
    ///
    /// # Errors
    /// Errors of the driver.
    pub fn wait_for(&self, event: &Event) -> Result<(), Error> {
        wait_for(self.context(), self.stream(), event)
    }
}

fn mark(context: &Context, stream: sys::CUstream, event: &Event) -> Result<(), Error> {
    context.bind()?;
    // SAFETY: event and stream are the device's own
    unsafe { result::event::record(event.handle, stream) }.map_err(|e| context.failed("marking an event", e))
}

fn wait_for(context: &Context, stream: sys::CUstream, event: &Event) -> Result<(), Error> {
    context.bind()?;
    // SAFETY: as above
    unsafe {
        result::stream::wait_event(stream, event.handle, sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT)
    }
    .map_err(|e| context.failed("waiting for an event", e))
}

/// Copies that run beside the work of the device's own stream. What shall come before or behind that is said by events.
#[derive(Debug)]
pub struct Stream {
    context: Arc<Context>,
    handle: sys::CUstream,
}

// SAFETY: as for events
unsafe impl Send for Stream {}

impl Stream {
    /// # Errors
    /// Errors of the driver.
    pub fn new(context: &Arc<Context>) -> Result<Stream, Error> {
        context.bind()?;
        let handle = result::stream::create(result::stream::StreamKind::NonBlocking);
        let handle = handle.map_err(|e| context.failed("making a stream", e))?;
        Ok(Stream { context: context.clone(), handle })
    }

    /// [`Gpu::mark`] in this stream.
    ///
    /// # Errors
    /// Errors of the driver.
    pub fn mark(&self, event: &Event) -> Result<(), Error> {
        mark(&self.context, self.handle, event)
    }

    /// [`Gpu::wait_for`] in this stream.
    ///
    /// # Errors
    /// Errors of the driver.
    pub fn wait_for(&self, event: &Event) -> Result<(), Error> {
        wait_for(&self.context, self.handle, event)
    }

    /// Copies the first `n` bytes of pinned memory to the device, after everything else of this stream.
    ///
    /// # Errors
    /// Errors of the driver.
    ///
    /// # Safety
    /// There must be room for the bytes at `to`. The memory must stay, and not be written, until the copy was waited for.
    pub unsafe fn copy_in(&self, to: Address, from: &Pinned, n: usize) -> Result<(), Error> {
        self.context.bind()?;
        let Some(bytes) = from.bytes().get(..n).filter(|_| n > 0) else { return Ok(()) };
        count(Call::Copy);
        // SAFETY: the caller promises the room, and leaves the source as it is
        unsafe { result::memcpy_htod_async(to.0, bytes, self.handle) }
            .map_err(|e| self.context.failed("copying to the device", e))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.context.bind().is_ok() {
            // SAFETY: made in `new`; its work is waited for before it is destroyed
            unsafe {
                let _ = result::stream::synchronize(self.handle);
                let _ = result::stream::destroy(self.handle);
            }
        }
    }
}
