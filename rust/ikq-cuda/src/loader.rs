//! Finds what this machine has: the driver, its devices, and the compiler that fits them.
//!
//! Nothing here panics, whatever libraries there are: the driver's library is looked for before it is called, and
//! checked for every function that this crate calls. No context is made, so looking takes no memory of a GPU.

use std::path::PathBuf;
use std::sync::OnceLock;

use cudarc::driver::{DriverError, result, sys};

use crate::environment;
use crate::error::{self, Error, OLDEST_CUDA, Unavailable, code};
use crate::nvrtc::{self, Nvrtc};

/// Where to look for libraries.
#[derive(Clone, Debug, Default)]
pub struct Search {
    /// Files that may be NVRTC and folders that may have it, the preferred ones first.
    pub nvrtc: Vec<PathBuf>,
    /// The same of cuBLAS, which is looked for when products by it are wanted.
    pub cublas: Vec<PathBuf>,
}

/// A GPU, as its driver describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The number that the driver has for it.
    pub ordinal: usize,
    pub name: String,
    /// Compute capability, such as 90 for 9.0.
    pub sm: u32,
    pub memory_bytes: usize,
    pub n_multiprocessors: usize,
    /// Most bytes of dynamic shared memory that a block can have.
    pub shared_bytes: usize,
}

impl Facts {
    /// Whether this is not a GPU but the stand-in driver of the tests, which computes on the CPU.
    pub fn is_emulated(&self) -> bool {
        self.name.starts_with(EMULATED)
    }
}

/// The beginning of the names that the stand-in driver of the tests gives its devices.
const EMULATED: &str = "ikq emulator";
/// The oldest compute capability that kernels are written for.
pub const OLDEST_SM: u32 = 75;

/// The driver, devices and compiler of a machine with a usable GPU.
#[derive(Debug)]
pub struct Runtime {
    /// CUDA version of the driver, such as 13000 for 13.0.
    pub cuda: i32,
    /// The usable devices; `CUDA0` is the first of them.
    pub devices: Vec<Facts>,
    pub nvrtc: Nvrtc,
    /// Where to look for cuBLAS.
    pub cublas: Vec<PathBuf>,
    /// Id of the process that looked for them.
    process: u32,
}

/// The driver and devices that were found, even if they cannot be used.
#[derive(Clone, Debug, Default)]
pub struct Found {
    pub cuda: Option<i32>,
    pub devices: Vec<Facts>,
}

static RUNTIME: OnceLock<(Found, Result<Runtime, Unavailable>)> = OnceLock::new();

/// The runtime of this process. The first call looks for it, with its `search`; later calls give the same answer.
///
/// # Errors
/// The reason why no GPU is usable.
pub fn runtime(search: &Search) -> Result<&'static Runtime, Unavailable> {
    look(search).1
}

/// [`runtime`], together with what was found.
pub fn look(search: &Search) -> (&'static Found, Result<&'static Runtime, Unavailable>) {
    let (found, runtime) = RUNTIME.get_or_init(|| {
        let mut found = Found::default();
        let runtime = probe(search, &mut found);
        (found, runtime)
    });
    let runtime = match runtime {
        Ok(runtime) if runtime.process != std::process::id() => Err(Unavailable::Forked),
        Ok(runtime) => Ok(runtime),
        Err(reason) => Err(reason.clone()),
    };
    (found, runtime)
}

fn probe(search: &Search, found: &mut Found) -> Result<Runtime, Unavailable> {
    match environment::switch(environment::CUDA) {
        Ok(Some(false)) => return Err(Unavailable::Disabled),
        Ok(_) => {}
        Err(e) => return Err(Unavailable::Variable(e.to_string())),
    }
    // SAFETY: this opens libraries by the names of the driver's, whose initializers have to be trusted
    if !unsafe { sys::is_culib_present() } {
        return Err(Unavailable::NoDriver);
    }
    if let Some(missing) = SYMBOLS.iter().find(|name| !has(name)) {
        return Err(Unavailable::NotADriver { why: format!("it has no {missing}") });
    }
    let failed = |e: DriverError| match e.0 {
        sys::CUresult::CUDA_ERROR_STUB_LIBRARY => Unavailable::Stub,
        sys::CUresult::CUDA_ERROR_NO_DEVICE => Unavailable::NoDevice,
        _ => Unavailable::Init { why: code(&e) },
    };
    // the version can be asked before the driver is initialized, where an old driver may fail
    let mut cuda = 0;
    // SAFETY: the function exists, and writes one integer
    unsafe { sys::cuDriverGetVersion(&mut cuda) }.result().map_err(failed)?;
    found.cuda = Some(cuda).filter(|v| *v > 0);
    if cuda > 0 && cuda < OLDEST_CUDA {
        return Err(Unavailable::OldDriver { cuda });
    }
    result::init().map_err(failed)?;
    found.devices = devices().map_err(failed)?;
    if found.devices.is_empty() {
        return Err(Unavailable::NoDevice);
    }
    let devices: Vec<Facts> = found.devices.iter().filter(|d| d.sm >= OLDEST_SM).cloned().collect();
    let Some(first) = devices.first() else {
        let names: Vec<String> = found.devices.iter().map(|d| format!("{} ({})", d.name, d.sm)).collect();
        return Err(Unavailable::OldDevices { names: names.join(", ") });
    };
    let major = cuda / 1000;
    let nvrtc = nvrtc::find(&search.nvrtc, major).map_err(|tried| Unavailable::NoNvrtc {
        device: first.name.clone(),
        major,
        tried,
    })?;
    let cublas = search.cublas.clone();
    Ok(Runtime { cuda, devices, nvrtc, cublas, process: std::process::id() })
}

/// Every function of the driver that this crate calls. cudarc panics where one is missing, so all are checked
/// first.
const SYMBOLS: &[&str] = &[
    "cuCtxGetCurrent",
    "cuCtxSetCurrent",
    "cuCtxSynchronize",
    "cuDeviceGet",
    "cuDeviceGetAttribute",
    "cuDeviceGetCount",
    "cuDeviceGetName",
    "cuDevicePrimaryCtxRelease_v2",
    "cuDevicePrimaryCtxRetain",
    "cuDeviceTotalMem_v2",
    "cuDriverGetVersion",
    "cuEventCreate",
    "cuEventDestroy_v2",
    "cuEventElapsedTime",
    "cuEventRecord",
    "cuEventSynchronize",
    "cuFuncGetAttribute",
    "cuFuncSetAttribute",
    "cuGetErrorString",
    "cuGraphDestroy",
    "cuGraphExecDestroy",
    "cuGraphInstantiateWithFlags",
    "cuGraphLaunch",
    "cuGraphUpload",
    "cuInit",
    "cuLaunchKernel",
    "cuMemAlloc_v2",
    "cuMemFreeHost",
    "cuMemFree_v2",
    "cuMemGetInfo_v2",
    "cuMemHostAlloc",
    "cuMemcpyDtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyHtoDAsync_v2",
    "cuMemsetD8Async",
    "cuModuleGetFunction",
    "cuModuleLoadData",
    "cuModuleUnload",
    "cuStreamBeginCapture_v2",
    "cuStreamCreate",
    "cuStreamDestroy_v2",
    "cuStreamEndCapture",
    "cuStreamIsCapturing",
    "cuStreamSynchronize",
    "cuStreamWaitEvent",
];

fn has(symbol: &str) -> bool {
    // SAFETY: the library was found a moment ago; the symbol's address is not used
    unsafe { sys::culib().get::<*const ()>(symbol.as_bytes()).is_ok() }
}

fn devices() -> Result<Vec<Facts>, DriverError> {
    use sys::CUdevice_attribute_enum::{
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
        CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT,
    };
    let mut all = Vec::new();
    for ordinal in 0..result::device::get_count()? {
        let device = result::device::get(ordinal)?;
        // SAFETY: the device comes from the driver, which was started
        let attribute = |what| unsafe { result::device::get_attribute(device, what) };
        let major = attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        let minor = attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        let size = |n: i32| usize::try_from(n).unwrap_or(0);
        all.push(Facts {
            ordinal: size(ordinal),
            name: result::device::get_name(device)?,
            sm: u32::try_from(10 * major + minor).unwrap_or(0),
            // SAFETY: as above
            memory_bytes: unsafe { result::device::total_mem(device) }?,
            n_multiprocessors: size(attribute(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?),
            shared_bytes: size(attribute(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?),
        });
    }
    Ok(all)
}

/// Only the compiler, which also works on machines without a GPU: the newest NVRTC whose CUDA version is at most
/// `major`.
///
/// # Errors
/// [`Error::NoCompiler`] when there is none.
pub fn compiler(places: &[PathBuf], major: i32) -> Result<Nvrtc, Error> {
    nvrtc::find(places, major).map_err(|tried| Error::NoCompiler { major, tried })
}

/// The version of the driver itself, such as `580.65.06`, where the system tells it.
pub fn driver_version() -> Option<String> {
    let text = std::fs::read_to_string("/proc/driver/nvidia/version").ok()?;
    let first = text.lines().next()?;
    let is_version = |word: &&str| word.contains('.') && word.chars().all(|c| c.is_ascii_digit() || c == '.');
    first.split_whitespace().find(is_version).map(str::to_string)
}

pub use error::version;
