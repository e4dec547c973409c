//! A device in use: its context, one stream, compiled modules, copies, launches and recorded graphs.
//!
//! Everything that is asked of a device goes through one stream, in order. Launches take raw addresses: what may be
//! where at which time is known to the planner, not to this module.

use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::{CudaContext, DriverError, result, sys};

use crate::cubins::{self, Cubins};
use crate::error::Error;
use crate::loader::{Facts, Runtime};
use crate::memory::Address;
use crate::nvrtc::Nvrtc;
use crate::sources::Specialisation;

/// A context that is bound to whatever thread calls.
#[derive(Debug)]
pub struct Context {
    inner: Arc<CudaContext>,
    /// `CUDA0`.
    name: String,
}

impl Context {
    /// Makes it the calling thread's.
    ///
    /// # Errors
    /// What the driver says.
    pub fn bind(&self) -> Result<(), Error> {
        self.inner.bind_to_thread().map_err(|e| self.failed("binding the context", e))
    }

    /// Free bytes and all bytes of the device's memory.
    ///
    /// # Errors
    /// What the driver says.
    pub fn memory(&self) -> Result<(usize, usize), Error> {
        self.bind()?;
        result::mem_get_info().map_err(|e| self.failed("asking for free memory", e))
    }

    /// The device's name in rules and reports.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn failed(&self, what: &str, source: DriverError) -> Error {
        Error::Driver { device: self.name.clone(), what: what.into(), source }
    }
}

/// A value that a kernel is given.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Argument {
    Address(Address),
    I32(i32),
    I64(i64),
    F32(f32),
}

impl Argument {
    /// The value as the driver copies it: as many of the first bytes as the kernel's parameter has.
    fn bits(self) -> u64 {
        match self {
            Argument::Address(a) => a.0,
            Argument::I32(v) => u64::from(v.cast_unsigned()),
            Argument::I64(v) => v.cast_unsigned(),
            Argument::F32(v) => u64::from(v.to_bits()),
        }
    }
}

/// How a kernel is cut into blocks and threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    pub grid: [u32; 3],
    pub block: [u32; 3],
    /// Dynamic shared memory of a block.
    pub shared_bytes: u32,
}

/// A kernel of a loaded module.
#[derive(Clone, Debug)]
pub struct Function {
    handle: sys::CUfunction,
    name: String,
    /// Keeps the code where it is.
    _module: Arc<Module>,
}

#[derive(Debug)]
struct Module {
    context: Arc<Context>,
    handle: sys::CUmodule,
}

// SAFETY: handles of the driver may be used from any thread that has the context bound
unsafe impl Send for Module {}
// SAFETY: as above
unsafe impl Sync for Module {}
// SAFETY: as above
unsafe impl Send for Function {}
// SAFETY: as above
unsafe impl Sync for Function {}

impl Drop for Module {
    fn drop(&mut self) {
        if self.context.bind().is_ok() {
            // SAFETY: loaded once; no function of it is left
            let _ = unsafe { result::module::unload(self.handle) };
        }
    }
}

impl Function {
    /// Registers of a thread, and bytes of local memory, which are spills.
    ///
    /// # Errors
    /// What the driver says.
    pub fn cost(&self) -> Result<(usize, usize), Error> {
        let context = &self._module.context;
        context.bind()?;
        let ask = |what| {
            // SAFETY: the module is loaded
            let value = unsafe { result::function::get_function_attribute(self.handle, what) };
            let value = value.map_err(|e| context.failed(&format!("asking about {}", self.name), e))?;
            Ok::<_, Error>(usize::try_from(value).unwrap_or(0))
        };
        use sys::CUfunction_attribute_enum::{
            CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES, CU_FUNC_ATTRIBUTE_NUM_REGS,
        };
        Ok((ask(CU_FUNC_ATTRIBUTE_NUM_REGS)?, ask(CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES)?))
    }
}

/// Launches and copies that were recorded, to be run again as one.
#[derive(Debug)]
pub struct Graph {
    context: Arc<Context>,
    graph: sys::CUgraph,
    executable: sys::CUgraphExec,
}

// SAFETY: used by one thread at a time, as `Gpu::replay` takes the device's own borrow
unsafe impl Send for Graph {}

impl Drop for Graph {
    fn drop(&mut self) {
        if self.context.bind().is_ok() {
            // SAFETY: made by `Gpu::record`, destroyed once
            unsafe {
                let _ = result::graph::exec_destroy(self.executable);
                let _ = result::graph::destroy(self.graph);
            }
        }
    }
}

/// Shared memory that a block can have without asking for more.
const USUAL_SHARED_BYTES: u32 = 48 << 10;

/// A device in use.
#[derive(Debug)]
pub struct Gpu {
    runtime: &'static Runtime,
    facts: Facts,
    context: Arc<Context>,
    stream: sys::CUstream,
    cubins: Cubins,
    modules: Mutex<HashMap<Specialisation, Arc<Module>>>,
    /// Every launch is waited for, so that an error is that of its kernel (`IKQ_CUDA_SYNC=1`).
    waits: bool,
}

// SAFETY: a stream may be used from any thread that has the context bound
unsafe impl Send for Gpu {}

impl Drop for Gpu {
    fn drop(&mut self) {
        if self.context.bind().is_ok() {
            // SAFETY: made in `open`; what was recorded or launched is over
            unsafe {
                let _ = result::stream::synchronize(self.stream);
                let _ = result::stream::destroy(self.stream);
            }
        }
    }
}

impl Gpu {
    /// Opens `CUDA{index}`.
    ///
    /// # Errors
    /// [`Error::NoSuchDevice`], or what the driver says.
    pub fn open(runtime: &'static Runtime, index: usize) -> Result<Gpu, Error> {
        let n_devices = runtime.devices.len();
        let facts = runtime.devices.get(index).ok_or(Error::NoSuchDevice { index, n_devices })?.clone();
        let name = format!("CUDA{index}");
        let failed = |what: &str| {
            let (device, what) = (name.clone(), what.to_string());
            move |source| Error::Driver { device, what, source }
        };
        let inner = CudaContext::new(facts.ordinal).map_err(failed("making a context"))?;
        let stream = result::stream::create(result::stream::StreamKind::NonBlocking);
        let stream = stream.map_err(failed("making a stream"))?;
        Ok(Gpu {
            runtime,
            facts,
            context: Arc::new(Context { inner, name }),
            stream,
            cubins: Cubins::of_environment(),
            modules: Mutex::default(),
            waits: std::env::var("IKQ_CUDA_SYNC").is_ok_and(|v| v == "1"),
        })
    }

    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    pub fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// The kernel `name` of a specialisation, which is compiled and loaded when it is asked for first.
    ///
    /// # Errors
    /// What compiler and driver say.
    pub fn function(&self, of: &Specialisation, name: &str) -> Result<Function, Error> {
        self.context.bind()?;
        let mut modules = self.modules.lock().unwrap_or_else(PoisonError::into_inner);
        let module = match modules.get(of) {
            Some(module) => module.clone(),
            None => {
                let module = Arc::new(self.load(of)?);
                modules.insert(of.clone(), module.clone());
                module
            }
        };
        let c_name = CString::new(name).unwrap_or_default();
        // SAFETY: the module is loaded, and the function keeps it so
        let handle = unsafe { result::module::get_function(module.handle, c_name) }
            .map_err(|e| self.context.failed(&format!("looking for {name} in {of}"), e))?;
        Ok(Function { handle, name: name.into(), _module: module })
    }

    fn load(&self, of: &Specialisation) -> Result<Module, Error> {
        let (cubin, _) = cubin(&self.runtime.nvrtc, &self.cubins, of, &arch(self.facts.sm))?;
        // SAFETY: the image is a whole cubin; the driver copies it
        let handle = unsafe { result::module::load_data(cubin.as_ptr().cast()) }
            .map_err(|e| self.context.failed(&format!("loading {of}"), e))?;
        Ok(Module { context: self.context.clone(), handle })
    }

    /// Launches a kernel behind what was launched before.
    ///
    /// # Errors
    /// What the driver says; what the kernel does wrong shows at a later call, unless `IKQ_CUDA_SYNC=1`.
    ///
    /// # Safety
    /// The arguments are those of the kernel's parameters, in number, order and type, and the kernel stays within the
    /// memory that they point to.
    pub unsafe fn launch(
        &self,
        function: &Function,
        geometry: Geometry,
        arguments: &[Argument],
    ) -> Result<(), Error> {
        self.context.bind()?;
        let failed = |e| self.context.failed(&format!("launching {}", function.name), e);
        if geometry.shared_bytes > USUAL_SHARED_BYTES {
            use sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES as MOST;
            let bytes = i32::try_from(geometry.shared_bytes).unwrap_or(i32::MAX);
            // SAFETY: the module is loaded
            unsafe { result::function::set_function_attribute(function.handle, MOST, bytes) }
                .map_err(failed)?;
        }
        let mut bits: Vec<u64> = arguments.iter().map(|a| a.bits()).collect();
        let mut pointers: Vec<*mut c_void> = bits.iter_mut().map(|b| std::ptr::from_mut(b).cast()).collect();
        let triple = |[x, y, z]: [u32; 3]| (x, y, z);
        // SAFETY: the caller's word; the driver copies the arguments before it returns
        unsafe {
            result::launch_kernel(
                function.handle,
                triple(geometry.grid),
                triple(geometry.block),
                geometry.shared_bytes,
                self.stream,
                &mut pointers,
            )
        }
        .map_err(failed)?;
        if self.waits && !self.is_recording()? {
            // SAFETY: the stream is this device's own
            unsafe { result::stream::synchronize(self.stream) }
                .map_err(|e| self.context.failed(&format!("running {}", function.name), e))?;
        }
        Ok(())
    }

    fn is_recording(&self) -> Result<bool, Error> {
        // SAFETY: the stream is this device's own
        let status = unsafe { result::stream::is_capturing(self.stream) };
        let status = status.map_err(|e| self.context.failed("asking whether calls are recorded", e))?;
        Ok(status != sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE)
    }

    /// Copies to the device; the source can be used again when this returns.
    ///
    /// # Errors
    /// What the driver says.
    ///
    /// # Safety
    /// There is room for as many bytes at `to`.
    pub unsafe fn copy_in(&self, to: Address, bytes: &[u8]) -> Result<(), Error> {
        self.context.bind()?;
        if bytes.is_empty() {
            return Ok(());
        }
        // SAFETY: the caller's word; the source lives until the stream has done it
        unsafe { result::memcpy_htod_async(to.0, bytes, self.stream) }
            .map_err(|e| self.context.failed("copying to the device", e))?;
        self.wait()
    }

    /// Copies from the device, after all that was launched before.
    ///
    /// # Errors
    /// What the driver says, also about earlier launches.
    ///
    /// # Safety
    /// There are as many bytes at `from`.
    pub unsafe fn copy_out(&self, bytes: &mut [u8], from: Address) -> Result<(), Error> {
        self.context.bind()?;
        if bytes.is_empty() {
            return Ok(());
        }
        // SAFETY: the caller's word; the target lives until the stream has done it
        unsafe { result::memcpy_dtoh_async(bytes, from.0, self.stream) }
            .map_err(|e| self.context.failed("copying from the device", e))?;
        self.wait()
    }

    /// Copies within the device, behind what was launched before.
    ///
    /// # Errors
    /// What the driver says.
    ///
    /// # Safety
    /// There are as many bytes at both addresses, and they are apart.
    pub unsafe fn copy(&self, to: Address, from: Address, bytes: usize) -> Result<(), Error> {
        self.context.bind()?;
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: the caller's word
        unsafe { result::memcpy_dtod_async(to.0, from.0, bytes, self.stream) }
            .map_err(|e| self.context.failed("copying on the device", e))
    }

    /// Sets all of `bytes` bytes to a value, behind what was launched before.
    ///
    /// # Errors
    /// What the driver says.
    ///
    /// # Safety
    /// There are as many bytes at `to`.
    pub unsafe fn fill(&self, to: Address, value: u8, bytes: usize) -> Result<(), Error> {
        self.context.bind()?;
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: the caller's word
        unsafe { result::memset_d8_async(to.0, value, bytes, self.stream) }
            .map_err(|e| self.context.failed("filling memory", e))
    }

    /// Waits for all that was launched.
    ///
    /// # Errors
    /// What went wrong in it.
    pub fn wait(&self) -> Result<(), Error> {
        self.context.bind()?;
        // SAFETY: the stream is this device's own
        unsafe { result::stream::synchronize(self.stream) }.map_err(|e| self.context.failed("computing", e))
    }

    /// Records what `calls` launches and copies, instead of doing it. Nothing may be waited for meanwhile.
    ///
    /// # Errors
    /// What the driver and `calls` say.
    pub fn record(&self, calls: impl FnOnce(&Gpu) -> Result<(), Error>) -> Result<Graph, Error> {
        self.context.bind()?;
        let failed = |e| self.context.failed("recording a graph", e);
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is this device's own
        unsafe { result::stream::begin_capture(self.stream, mode) }.map_err(failed)?;
        let done = calls(self);
        // SAFETY: recording has begun, and ends in any case
        let graph = unsafe { result::stream::end_capture(self.stream) };
        let destroy = |graph| {
            // SAFETY: made a moment ago, known to nobody
            unsafe { result::graph::destroy(graph) }
        };
        let graph = match (done, graph) {
            (Ok(()), graph) => graph.map_err(failed)?,
            (Err(e), graph) => {
                let _ = graph.map(destroy);
                return Err(e);
            }
        };
        // SAFETY: the graph is whole
        match unsafe { result::graph::instantiate(graph, sys::CUgraphInstantiate_flags_enum(0)) } {
            Ok(executable) => Ok(Graph { context: self.context.clone(), graph, executable }),
            Err(e) => {
                let _ = destroy(graph);
                Err(failed(e))
            }
        }
    }

    /// Runs a recorded graph behind what was launched before.
    ///
    /// # Errors
    /// What the driver says.
    ///
    /// # Safety
    /// The memory that was there when it was recorded still is.
    pub unsafe fn replay(&self, graph: &Graph) -> Result<(), Error> {
        self.context.bind()?;
        // SAFETY: the caller's word
        unsafe { result::graph::launch(graph.executable, self.stream) }
            .map_err(|e| self.context.failed("running a graph", e))
    }
}

/// The compiler's name for a compute capability.
pub fn arch(sm: u32) -> String {
    format!("sm_{sm}")
}

/// The cubin of a specialisation for an architecture, and whether it was kept on disk; else it is compiled, and kept.
///
/// # Errors
/// What the compiler says.
pub fn cubin(
    nvrtc: &Nvrtc,
    cubins: &Cubins,
    of: &Specialisation,
    arch: &str,
) -> Result<(Vec<u8>, bool), Error> {
    let (source, options) = (of.source()?, of.options());
    let key = cubins::key(&source, arch, &options, nvrtc.version);
    if let Some(kept) = cubins.read(key) {
        return Ok((kept, true));
    }
    let compiled = nvrtc.compile(&source, arch, &options)?;
    cubins.write(key, &compiled.cubin);
    Ok((compiled.cubin, false))
}
