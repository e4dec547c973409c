//! [`Graph`]: launches and copies that were recorded, to be run again together.

use std::sync::Arc;

use cudarc::driver::{result, sys};

use crate::counts::{Call, count, count_more};
use crate::error::Error;
use crate::gpu::{Context, Gpu};

/// Launches and copies that were recorded, to be run again together.
#[derive(Debug)]
pub struct Graph {
    context: Arc<Context>,
    graph: sys::CUgraph,
    executable: sys::CUgraphExec,
    /// Bytes that its copies bring to the host.
    bytes_out: u64,
}

// SAFETY: used by one thread at a time, as `Gpu::replay` takes the device's own borrow
unsafe impl Send for Graph {}

impl Drop for Graph {
    fn drop(&mut self) {
        if self.context.bind().is_ok() {
            // SAFETY: both were made by `Gpu::record`, and are destroyed once
            unsafe {
                let _ = result::graph::exec_destroy(self.executable);
                let _ = result::graph::destroy(self.graph);
            }
        }
    }
}

impl Gpu {
    /// Records what `calls` launches and copies, instead of running it. `calls` must not wait for anything.
    ///
    /// # Errors
    /// Errors of the driver and of `calls`.
    pub fn record(&self, calls: impl FnOnce(&Gpu) -> Result<(), Error>) -> Result<Graph, Error> {
        self.context().bind()?;
        let failed = |e| self.context().failed("recording a graph", e);
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is this device's own
        unsafe { result::stream::begin_capture(self.stream(), mode) }.map_err(failed)?;
        self.set_recording(true);
        let done = calls(self);
        let bytes_out = self.set_recording(false);
        // SAFETY: recording has begun, and is ended in any case
        let graph = unsafe { result::stream::end_capture(self.stream()) };
        let destroy = |graph| {
            // SAFETY: the graph was just made, and nothing else has it
            unsafe { result::graph::destroy(graph) }
        };
        let graph = match (done, graph) {
            (Ok(()), graph) => graph.map_err(failed)?,
            (Err(e), graph) => {
                let _ = graph.map(destroy);
                return Err(e);
            }
        };
        // SAFETY: the graph was recorded completely
        match unsafe { result::graph::instantiate(graph, sys::CUgraphInstantiate_flags_enum(0)) } {
            Ok(executable) => Ok(Graph { context: self.context().clone(), graph, executable, bytes_out }),
            Err(e) => {
                let _ = destroy(graph);
                Err(failed(e))
            }
        }
    }

    /// Runs a recorded graph, after everything that was launched before.
    ///
    /// # Errors
    /// Errors of the driver.
    ///
    /// # Safety
    /// The memory that the recorded calls use must still be allocated.
    pub unsafe fn replay(&self, graph: &Graph) -> Result<(), Error> {
        self.context().bind()?;
        count(Call::Replay);
        count_more(Call::BytesOut, graph.bytes_out);
        // SAFETY: the caller promises that the addresses are valid
        unsafe { result::graph::launch(graph.executable, self.stream()) }
            .map_err(|e| self.context().failed("running a graph", e))
    }
}
