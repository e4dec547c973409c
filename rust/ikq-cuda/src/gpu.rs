//! [`Gpu`]: a device in use, with its context, one stream, compiled modules, copies, launches and recorded graphs.
//!
//! All work of a device goes through one stream, in order. Launches take raw addresses; the callers know
//! which memory is in use at which time, not this module.

use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::{CudaContext, DriverError, result, sys};

use crate::cubins::{self, Cubins};
use crate::error::Error;
use crate::loader::{Facts, Runtime};
use crate::memory::Address;
use crate::nvrtc::Nvrtc;
use crate::plan::Kernel;
use crate::sources::Specialisation;

/// A context of the driver, which is bound to each thread that makes a call.
#[derive(Debug)]
pub struct Context {
    inner: Arc<CudaContext>,
    /// The device's name, such as `CUDA0`.
    name: String,
}

impl Context {
    /// The context of the device `CUDA{index}`.
    fn open(runtime: &Runtime, index: usize) -> Result<Context, Error> {
        let n_devices = runtime.devices.len();
        let facts = runtime.devices.get(index).ok_or(Error::NoSuchDevice { index, n_devices })?;
        let name = format!("CUDA{index}");
        match CudaContext::new(facts.ordinal) {
            Ok(inner) => Ok(Context { inner, name }),
            Err(source) => Err(Error::Driver { device: name, what: "making a context".into(), source }),
        }
    }

    /// Binds the context to the calling thread.
    ///
    /// # Errors
    /// Errors of the driver.
    pub fn bind(&self) -> Result<(), Error> {
        self.inner.bind_to_thread().map_err(|e| self.failed("binding the context", e))
    }

    /// The free bytes and the total bytes of the device's memory.
    ///
    /// # Errors
    /// Errors of the driver.
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

/// An argument of a kernel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Argument {
    Address(Address),
    I32(i32),
    I64(i64),
    F32(f32),
}

impl Argument {
    /// The bits of the value. The driver copies as many of the first bytes as the kernel's parameter has.
    fn bits(self) -> u64 {
        match self {
            Argument::Address(a) => a.0,
            Argument::I32(v) => u64::from(v.cast_unsigned()),
            Argument::I64(v) => v.cast_unsigned(),
            Argument::F32(v) => u64::from(v.to_bits()),
        }
    }
}

/// How a launch is divided into blocks and threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    pub grid: [u32; 3],
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory of a block.
    pub shared_bytes: u32,
}

/// A kernel of a loaded module.
#[derive(Clone, Debug)]
pub struct Function {
    handle: sys::CUfunction,
    kernel: Kernel,
    /// Keeps the module loaded.
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
            // SAFETY: the module was loaded once, and none of its functions is left
            let _ = unsafe { result::module::unload(self.handle) };
        }
    }
}

impl Function {
    /// Registers of a thread, and bytes of its local memory, which are spilled registers.
    ///
    /// # Errors
    /// Errors of the driver.
    pub fn cost(&self) -> Result<(usize, usize), Error> {
        let context = &self._module.context;
        context.bind()?;
        let ask = |what| {
            // SAFETY: the module is loaded
            let value = unsafe { result::function::get_function_attribute(self.handle, what) };
            let value =
                value.map_err(|e| context.failed(&format!("asking about {}", self.kernel.name()), e))?;
            Ok::<_, Error>(usize::try_from(value).unwrap_or(0))
        };
        use sys::CUfunction_attribute_enum::{
            CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES, CU_FUNC_ATTRIBUTE_NUM_REGS,
        };
        Ok((ask(CU_FUNC_ATTRIBUTE_NUM_REGS)?, ask(CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES)?))
    }
}

/// Launches and copies that were recorded, to be run again together.
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
            // SAFETY: both were made by `Gpu::record`, and are destroyed once
            unsafe {
                let _ = result::graph::exec_destroy(self.executable);
                let _ = result::graph::destroy(self.graph);
            }
        }
    }
}

/// Bytes of shared memory that a block can have without a kernel attribute that allows more.
const USUAL_SHARED_BYTES: u32 = 48 << 10;

/// What was compiled and loaded so far. Launches find their kernel by a key that is only compared.
#[derive(Debug, Default)]
struct Loaded {
    modules: HashMap<Specialisation, Arc<Module>>,
    functions: HashMap<Kernel, Function>,
}

/// A device in use.
#[derive(Debug)]
pub struct Gpu {
    runtime: &'static Runtime,
    facts: Facts,
    context: Arc<Context>,
    stream: sys::CUstream,
    cubins: Cubins,
    loaded: Mutex<Loaded>,
    /// Whether every launch is waited for, so that errors are reported for the right kernel (`IKQ_CUDA_SYNC=1`).
    waits: bool,
}

// SAFETY: a stream may be used from any thread that has the context bound
unsafe impl Send for Gpu {}

impl Drop for Gpu {
    fn drop(&mut self) {
        if self.context.bind().is_ok() {
            // SAFETY: the stream was made in `open`; all work is waited for before it is destroyed
            unsafe {
                let _ = result::stream::synchronize(self.stream);
                let _ = result::stream::destroy(self.stream);
            }
        }
    }
}

impl Gpu {
    /// Opens the device `CUDA{index}`.
    ///
    /// # Errors
    /// [`Error::NoSuchDevice`], and errors of the driver.
    pub fn open(runtime: &'static Runtime, index: usize) -> Result<Gpu, Error> {
        let context = Context::open(runtime, index)?;
        let stream = result::stream::create(result::stream::StreamKind::NonBlocking);
        let stream = stream.map_err(|e| context.failed("making a stream", e))?;
        Ok(Gpu {
            runtime,
            facts: runtime.devices[index].clone(),
            context: Arc::new(context),
            stream,
            cubins: Cubins::of_environment(),
            loaded: Mutex::default(),
            waits: std::env::var("IKQ_CUDA_SYNC").is_ok_and(|v| v == "1"),
        })
    }

    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    pub fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// A kernel, which is compiled and loaded at its first use.
    ///
    /// # Errors
    /// Errors of the compiler and the driver.
    pub fn function(&self, kernel: Kernel) -> Result<Function, Error> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(function) = loaded.functions.get(&kernel) {
            return Ok(function.clone());
        }
        self.context.bind()?;
        let of = kernel.of();
        let module = match loaded.modules.get(&of) {
            Some(module) => module.clone(),
            None => {
                let module = Arc::new(self.load(&of)?);
                loaded.modules.insert(of.clone(), module.clone());
                module
            }
        };
        let name = kernel.name();
        let c_name = CString::new(&*name).unwrap_or_default();
        // SAFETY: the module is loaded, and the function keeps it loaded
        let handle = unsafe { result::module::get_function(module.handle, c_name) }
            .map_err(|e| self.context.failed(&format!("looking for {name} in {of}"), e))?;
        let function = Function { handle, kernel, _module: module };
        loaded.functions.insert(kernel, function.clone());
        Ok(function)
    }

    fn load(&self, of: &Specialisation) -> Result<Module, Error> {
        let (cubin, _) = cubin(&self.runtime.nvrtc, &self.cubins, of, &arch(self.facts.sm))?;
        // SAFETY: the image is a complete cubin, which the driver copies
        let handle = unsafe { result::module::load_data(cubin.as_ptr().cast()) }
            .map_err(|e| self.context.failed(&format!("loading {of}"), e))?;
        Ok(Module { context: self.context.clone(), handle })
    }

    /// Launches a kernel, to run after everything that was launched before.
    ///
    /// # Errors
    /// Errors of the driver. Errors of the running kernel are reported by a later call, unless `IKQ_CUDA_SYNC=1`.
    ///
    /// # Safety
    /// The arguments must fit the kernel's parameters in number, order and type, and the kernel must stay within
    /// the memory that they point to.
    pub unsafe fn launch(
        &self,
        function: &Function,
        geometry: Geometry,
        arguments: &[Argument],
    ) -> Result<(), Error> {
        self.context.bind()?;
        let failed = |e| self.context.failed(&format!("launching {}", function.kernel.name()), e);
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
        // SAFETY: the caller promises that arguments fit; the driver copies them before it returns
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
                .map_err(|e| self.context.failed(&format!("running {}", function.kernel.name()), e))?;
        }
        Ok(())
    }

    fn is_recording(&self) -> Result<bool, Error> {
        // SAFETY: the stream is this device's own
        let status = unsafe { result::stream::is_capturing(self.stream) };
        let status = status.map_err(|e| self.context.failed("asking whether calls are recorded", e))?;
        Ok(status != sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE)
    }

    /// Copies to the device. The source can be used again when this returns.
    ///
    /// # Errors
    /// Errors of the driver.
    ///
    /// # Safety
    /// There must be room for the bytes at `to`.
    pub unsafe fn copy_in(&self, to: Address, bytes: &[u8]) -> Result<(), Error> {
        self.context.bind()?;
        if bytes.is_empty() {
            return Ok(());
        }
        // SAFETY: the caller promises the room; the source lives until the stream has finished the copy
        unsafe { result::memcpy_htod_async(to.0, bytes, self.stream) }
            .map_err(|e| self.context.failed("copying to the device", e))?;
        self.wait()
    }

    /// Copies from the device, after everything that was launched before.
    ///
    /// # Errors
    /// Errors of the driver, including those of earlier launches.
    ///
    /// # Safety
    /// There must be as many bytes at `from`.
    pub unsafe fn copy_out(&self, bytes: &mut [u8], from: Address) -> Result<(), Error> {
        self.context.bind()?;
        if bytes.is_empty() {
            return Ok(());
        }
        // SAFETY: the caller promises the bytes; the target lives until the stream has finished the copy
        unsafe { result::memcpy_dtoh_async(bytes, from.0, self.stream) }
            .map_err(|e| self.context.failed("copying from the device", e))?;
        self.wait()
    }

    /// Copies within the device, after everything that was launched before.
    ///
    /// # Errors
    /// Errors of the driver.
    ///
    /// # Safety
    /// There must be as many bytes at both addresses, and they must not overlap.
    pub unsafe fn copy(&self, to: Address, from: Address, bytes: usize) -> Result<(), Error> {
        self.context.bind()?;
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: the caller promises that the addresses are valid
        unsafe { result::memcpy_dtod_async(to.0, from.0, bytes, self.stream) }
            .map_err(|e| self.context.failed("copying on the device", e))
    }

    /// Sets `bytes` bytes to a value, after everything that was launched before.
    ///
    /// # Errors
    /// Errors of the driver.
    ///
    /// # Safety
    /// There must be as many bytes at `to`.
    pub unsafe fn fill(&self, to: Address, value: u8, bytes: usize) -> Result<(), Error> {
        self.context.bind()?;
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: the caller promises that the addresses are valid
        unsafe { result::memset_d8_async(to.0, value, bytes, self.stream) }
            .map_err(|e| self.context.failed("filling memory", e))
    }

    /// Waits for everything that was launched.
    ///
    /// # Errors
    /// Errors of what was launched.
    pub fn wait(&self) -> Result<(), Error> {
        self.context.bind()?;
        // SAFETY: the stream is this device's own
        unsafe { result::stream::synchronize(self.stream) }.map_err(|e| self.context.failed("computing", e))
    }

    /// Records what `calls` launches and copies, instead of running it. `calls` must not wait for anything.
    ///
    /// # Errors
    /// Errors of the driver and of `calls`.
    pub fn record(&self, calls: impl FnOnce(&Gpu) -> Result<(), Error>) -> Result<Graph, Error> {
        self.context.bind()?;
        let failed = |e| self.context.failed("recording a graph", e);
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is this device's own
        unsafe { result::stream::begin_capture(self.stream, mode) }.map_err(failed)?;
        let done = calls(self);
        // SAFETY: recording has begun, and is ended in any case
        let graph = unsafe { result::stream::end_capture(self.stream) };
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
            Ok(executable) => Ok(Graph { context: self.context.clone(), graph, executable }),
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
        self.context.bind()?;
        // SAFETY: the caller promises that the addresses are valid
        unsafe { result::graph::launch(graph.executable, self.stream) }
            .map_err(|e| self.context.failed("running a graph", e))
    }
}

/// The free bytes and the total bytes of the memory of the device `CUDA{index}`. The driver makes a context for this
/// answer, which takes memory itself, and which is gone afterwards unless this process uses the device.
///
/// # Errors
/// [`Error::NoSuchDevice`], and errors of the driver.
pub fn memory(runtime: &'static Runtime, index: usize) -> Result<(usize, usize), Error> {
    let memory = Context::open(runtime, index)?.memory();
    // SAFETY: the calling thread has no context then; those of devices in use are bound before each call
    unsafe { result::ctx::set_current(std::ptr::null_mut()) }.map_err(|source| Error::Driver {
        device: format!("CUDA{index}"),
        what: "leaving the context".into(),
        source,
    })?;
    memory
}

/// The compiler's name for a compute capability.
pub fn arch(sm: u32) -> String {
    format!("sm_{sm}")
}

/// The cubin of a specialisation for an architecture, and whether it was found on disk. Otherwise it is compiled,
/// and kept on disk.
///
/// # Errors
/// Errors of the compiler.
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
