//! [`Gpu`]: a device in use, with its context, one stream, compiled modules, copies and launches.
//!
//! All work of a device goes through one stream, in order. Launches take raw addresses; the callers know
//! which memory is in use at which time, not this module.

use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::{CudaContext, DriverError, result, sys};

use crate::architecture::arch;
use crate::blas::Blas;
use crate::blas_table::Table;
use crate::counts::{Call, count, count_more};
use crate::cubins::{self, Cubins};
use crate::environment;
use crate::error::Error;
use crate::loader::{Facts, Runtime};
use crate::memory::{Address, Pinned};
use crate::nvrtc::Nvrtc;
use crate::plan::{Kernel, MOST_COLUMNS};
use crate::sources::Specialisation;

/// A context of the driver, which is bound to each thread that makes a call.
#[derive(Debug)]
pub struct Context {
    inner: Arc<CudaContext>,
    /// The device's name, such as `CUDA0`.
    name: String,
    allocations: AtomicU64,
}

impl Context {
    /// The context of the device `CUDA{index}`.
    fn open(runtime: &Runtime, index: usize) -> Result<Context, Error> {
        let n_devices = runtime.devices.len();
        let facts = runtime.devices.get(index).ok_or(Error::NoSuchDevice { index, n_devices })?;
        let name = format!("CUDA{index}");
        match CudaContext::new(facts.ordinal) {
            Ok(inner) => Ok(Context { inner, name, allocations: AtomicU64::new(0) }),
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

    /// How often memory was allocated. While this number stays, nothing has moved, and addresses stay what they are.
    pub fn allocations(&self) -> u64 {
        self.allocations.load(Relaxed)
    }

    pub(crate) fn count_allocation(&self) {
        self.allocations.fetch_add(1, Relaxed);
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

impl Geometry {
    /// The same with so many bytes of dynamic shared memory.
    pub fn with_shared(self, shared_bytes: u32) -> Geometry {
        Geometry { shared_bytes, ..self }
    }
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

/// A matrix-vector kernel takes at most [`MOST_COLUMNS`] columns at a time, and reads and decodes the weights again for
/// the next ones. With one column more, a tile decodes them once where two launches would decode them twice.
const MANY_COLUMNS: usize = MOST_COLUMNS + 1;

/// What `IKQ_CUDA_MMQ_FROM` says; see [`Gpu::tiles_from`].
///
/// # Errors
/// [`Error::Variable`].
pub(crate) fn tiles_from() -> Result<usize, Error> {
    Ok(environment::whole_number(environment::MMQ_FROM, 0)?.unwrap_or(MANY_COLUMNS))
}

/// Bytes of dynamic shared memory that any kernel's blocks can have without an attribute that allows more: a block has 48 KiB
/// without, of which kernels' own arrays take some.
const USUAL_SHARED_BYTES: u32 = 16 << 10;

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
    /// From how many columns on products are computed in tiles; see [`Gpu::tiles_from`].
    tiles_from: usize,
    /// cuBLAS, where the user wants some products to be its.
    blas: Option<Blas>,
    /// Whether launches are being recorded, and the bytes that recorded copies bring to the host.
    recording: AtomicBool,
    recorded_out: AtomicU64,
}

// SAFETY: a stream may be used from any thread that has the context bound
unsafe impl Send for Gpu {}

impl Drop for Gpu {
    fn drop(&mut self) {
        if self.context.bind().is_ok() {
            self.blas = None; // it uses the stream
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
    /// [`Error::NoSuchDevice`], [`Error::Variable`], and errors of the driver.
    pub fn open(runtime: &'static Runtime, index: usize) -> Result<Gpu, Error> {
        let waits = environment::switch(environment::SYNC)?.unwrap_or(false);
        let tiles_from = tiles_from()?;
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
            waits,
            tiles_from,
            blas: None,
            recording: AtomicBool::new(false),
            recorded_out: AtomicU64::new(0),
        })
    }

    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    pub fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// The major version of CUDA that the driver has.
    pub(crate) fn major(&self) -> i32 {
        self.runtime.cuda / 1000
    }

    /// Takes cuBLAS for the products that the table of `IKQ_CUDA_BLAS` names, if there is one.
    ///
    /// # Errors
    /// As [`Table::of_environment`] and [`Blas::new`].
    pub fn use_blas_of_environment(&mut self) -> Result<(), Error> {
        if let Some(table) = Table::of_environment()? {
            self.blas = Some(Blas::new(self, &self.runtime.cublas, Some(table))?);
        }
        Ok(())
    }

    /// cuBLAS, where it was taken.
    pub fn blas(&self) -> Option<&Blas> {
        self.blas.as_ref()
    }

    pub(crate) fn stream(&self) -> sys::CUstream {
        self.stream
    }

    /// Whether every launch is waited for (`IKQ_CUDA_SYNC=1`).
    pub fn waits(&self) -> bool {
        self.waits
    }

    /// From how many columns on products are computed in tiles, on tensor cores:
    /// [`MANY_COLUMNS`], or what `IKQ_CUDA_MMQ_FROM` says. With 1 all of them are, so that no bit depends on how many
    /// columns a step has.
    pub fn tiles_from(&self) -> usize {
        self.tiles_from
    }

    /// Says whether launches are recorded from now on, or done. Gives the bytes that copies which were recorded bring to
    /// the host.
    pub(crate) fn set_recording(&self, on: bool) -> u64 {
        self.recording.store(on, Relaxed);
        self.recorded_out.swap(0, Relaxed)
    }

    fn count_out(&self, n: usize) {
        count(Call::Copy);
        match self.recording.load(Relaxed) {
            true => drop(self.recorded_out.fetch_add(n as u64, Relaxed)),
            false => count_more(Call::BytesOut, n as u64),
        }
    }

    pub(crate) fn count_product_by_blas(&self) {
        count(Call::Blas);
    }

    fn count_launch(&self) {
        count(if self.recording.load(Relaxed) { Call::Recorded } else { Call::Launch });
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
        self.count_launch();
        if self.waits && !self.recording.load(Relaxed) {
            // SAFETY: the stream is this device's own
            unsafe { result::stream::synchronize(self.stream) }
                .map_err(|e| self.context.failed(&format!("running {}", function.kernel.name()), e))?;
        }
        Ok(())
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
        count(Call::Copy);
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
        self.count_out(bytes.len());
        // SAFETY: the caller promises the bytes; the target lives until the stream has finished the copy
        unsafe { result::memcpy_dtoh_async(bytes, from.0, self.stream) }
            .map_err(|e| self.context.failed("copying from the device", e))?;
        self.wait()
    }

    /// Copies `n` bytes of pinned memory from `at` on to the device, after everything that was launched before.
    ///
    /// # Errors
    /// Errors of the driver.
    ///
    /// # Safety
    /// There must be room for the bytes at `to`. The memory must stay, and not be written, until the device was waited
    /// for.
    pub unsafe fn copy_in_later(&self, to: Address, from: &Pinned, at: usize, n: usize) -> Result<(), Error> {
        self.context.bind()?;
        let Some(bytes) = from.bytes().get(at..at + n).filter(|_| n > 0) else { return Ok(()) };
        count(Call::Copy);
        // SAFETY: the caller promises the room, and leaves the source as it is
        unsafe { result::memcpy_htod_async(to.0, bytes, self.stream) }
            .map_err(|e| self.context.failed("copying to the device", e))
    }

    /// Copies `n` bytes from the device to pinned memory, from `at` on, after everything that was launched before.
    ///
    /// # Errors
    /// Errors of the driver.
    ///
    /// # Safety
    /// There must be as many bytes at `from`. The memory must stay, and not be read or written, until the device was
    /// waited for.
    pub unsafe fn copy_out_later(
        &self,
        to: &Pinned,
        at: usize,
        from: Address,
        n: usize,
    ) -> Result<(), Error> {
        self.context.bind()?;
        if n == 0 {
            return Ok(());
        }
        let Some(target) = to.part(at, n) else {
            let why = format!("{n} bytes at {at} do not fit pinned memory of {}", to.size());
            return Err(Error::Plan { name: "copy".into(), why });
        };
        self.count_out(n);
        // SAFETY: the part lies in the memory, which the caller leaves alone until then
        unsafe {
            let target = std::slice::from_raw_parts_mut(target, n);
            result::memcpy_dtoh_async(target, from.0, self.stream)
        }
        .map_err(|e| self.context.failed("copying from the device", e))
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
        self.count_launch();
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
        count(Call::Wait);
        // SAFETY: the stream is this device's own
        unsafe { result::stream::synchronize(self.stream) }.map_err(|e| self.context.failed("computing", e))
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
