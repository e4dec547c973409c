//! [`Unavailable`]: the reasons why there is no usable GPU. [`Error`]: errors of one that there is.

use std::path::PathBuf;

use cudarc::driver::DriverError;

/// The oldest driver that is accepted, by its CUDA version (12.0), and by its own version.
pub const OLDEST_CUDA: i32 = 12000;
const OLDEST_DRIVER: &str = "525";

/// Why no GPU is usable. The messages say how to make one usable.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unavailable {
    #[error("GPUs are switched off by IKQ_CUDA=0; unset it to use one")]
    Disabled,

    #[error("{0}")]
    Variable(String),

    #[error(
        "no NVIDIA driver was found (there is no libcuda.so.1); with an NVIDIA GPU, install its driver, \
         {OLDEST_DRIVER} or newer, then `pip install ikq[cuda]`"
    )]
    NoDriver,

    #[error(
        "libcuda was found, but it is no driver: {why}; install the GPU's driver, {OLDEST_DRIVER} or newer"
    )]
    NotADriver { why: String },

    #[error(
        "libcuda was found, but it is the stub that CUDA toolkits bring for linking; take its folder out of \
         LD_LIBRARY_PATH, and install the GPU's driver, {OLDEST_DRIVER} or newer, where there is none"
    )]
    Stub,

    #[error(
        "the NVIDIA driver is too old: it has CUDA {}, but 12.0 is needed; update it to {OLDEST_DRIVER} or newer",
        version(*cuda)
    )]
    OldDriver { cuda: i32 },

    #[error("the NVIDIA driver does not start: {why}")]
    Init { why: String },

    #[error("the NVIDIA driver is there, but no GPU is (is one hidden by CUDA_VISIBLE_DEVICES?)")]
    NoDevice,

    #[error("no GPU is new enough: {names}; compute capability 7.5 (Turing) or newer is needed")]
    OldDevices { names: String },

    #[error(
        "the GPU ({device}) and its driver are there, but not NVRTC of CUDA {major} or older, which compiles for \
         it: `pip install ikq[{}]`, or say where it is by IKQ_NVRTC{}", extra(*major), looked(tried)
    )]
    NoNvrtc { device: String, major: i32, tried: Vec<String> },

    #[error(
        "this process is the fork of one that used a GPU, which CUDA does not allow; start it anew (`spawn`)"
    )]
    Forked,
}

impl Unavailable {
    /// The reason as one word, for programs.
    pub fn word(&self) -> &'static str {
        match self {
            Unavailable::Disabled => "disabled",
            Unavailable::Variable(_) => "variable",
            Unavailable::NoDriver => "no-driver",
            Unavailable::NotADriver { .. } => "not-a-driver",
            Unavailable::Stub => "stub",
            Unavailable::OldDriver { .. } => "old-driver",
            Unavailable::Init { .. } => "init",
            Unavailable::NoDevice => "no-device",
            Unavailable::OldDevices { .. } => "old-devices",
            Unavailable::NoNvrtc { .. } => "no-nvrtc",
            Unavailable::Forked => "forked",
        }
    }
}

/// A CUDA version as text: `12.8` for the driver's number 12080.
pub fn version(cuda: i32) -> String {
    format!("{}.{}", cuda / 1000, cuda % 1000 / 10)
}

/// The extra of the Python package whose NVRTC fits a driver of this CUDA version.
fn extra(major: i32) -> &'static str {
    if major >= 13 { "cuda" } else { "cuda12" }
}

fn looked(tried: &[String]) -> String {
    match tried.is_empty() {
        true => String::new(),
        false => format!(" (found, but not usable: {})", tried.join("; ")),
    }
}

/// Errors of a device.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Unavailable(#[from] Unavailable),

    #[error("{device}: {what}: {}", code(source))]
    Driver { device: String, what: String, source: DriverError },

    #[error("there is no device CUDA{index}; there are CPU, {}", names(*n_devices))]
    NoSuchDevice { index: usize, n_devices: usize },

    #[error("{device}: {needed} bytes of GPU memory are needed for {what}, and {free} are free")]
    Memory { device: String, what: String, needed: usize, free: usize },

    #[error("kernel source {name} cannot be read: {why}")]
    Source { name: String, why: String },

    #[error("NVRTC does not compile {name} for {arch}: {log}")]
    Compile { name: String, arch: String, log: String },

    #[error("there is no NVRTC of CUDA {major} or older: `pip install ikq[{}]`{}", extra(*major), looked(tried))]
    NoCompiler { major: i32, tried: Vec<String> },

    #[error("NVRTC at {path}: {why}")]
    Nvrtc { path: PathBuf, why: String },

    #[error(
        "there is no cuBLAS of CUDA {major} or older: `pip install ikq[{}]`, or say where it is by IKQ_CUBLAS{}",
        if *major >= 13 { "cublas" } else { "cublas12" }, looked(tried)
    )]
    NoCublas { major: i32, tried: Vec<String> },

    #[error("cuBLAS at {path}: {why}")]
    Cublas { path: PathBuf, why: String },

    #[error("{name}={value}: expected {expected}")]
    Variable { name: &'static str, value: String, expected: String },

    #[error("there is no architecture `{text}` that kernels are compiled for; there are {}", known.join(", "))]
    Architecture { text: String, known: Vec<String> },

    #[error("IKQ_CUDA_BLAS={path}: {why}; `ikq bench cuda -o {path}` measures a new table")]
    Table { path: PathBuf, why: String },

    #[error("{name}: {why}")]
    Plan { name: String, why: String },
}

impl From<Error> for ikq_model::Error {
    fn from(e: Error) -> ikq_model::Error {
        match e {
            Error::Memory { device, what, needed, free } => {
                ikq_model::Error::DeviceMemory { device, what, needed, free }
            }
            Error::Variable { name, value, expected } => {
                ikq_model::Error::Option { option: name, value, why: format!("expected {expected}") }
            }
            e => ikq_model::Error::Device(e.to_string()),
        }
    }
}

/// Names of so many GPUs.
fn names(n_devices: usize) -> String {
    (0..n_devices).map(|i| format!("CUDA{i}")).collect::<Vec<_>>().join(", ")
}

/// The driver's name for an error, such as `CUDA_ERROR_ILLEGAL_ADDRESS`.
pub fn code(error: &DriverError) -> String {
    format!("{:?}", error.0)
}
