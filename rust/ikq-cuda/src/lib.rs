//! NVIDIA GPUs, which are found and used at run time: building needs nothing of CUDA, and without a driver
//! [`runtime`] gives the reason why there is no GPU.
//!
//! | module | what |
//! |---|---|
//! | [`loader`] | [`runtime`]: driver, devices and NVRTC of this machine, or why there are none |
//! | [`environment`] | numbers and switches in environment variables |
//! | [`architecture`] | names of architectures |
//! | [`libraries`], [`nvrtc`] | finding NVIDIA's libraries; opening and calling the compiler |
//! | [`cublas`], [`blas`], [`blas_table`] | cuBLAS; products with it where a user's table says so |
//! | [`sources`], [`kernel_files`] | the text of the kernels, and which files have it |
//! | [`cubins`] | compiled kernels, kept on disk |
//! | [`gpu`] | a device in use: context, stream, modules, launches |
//! | [`graph`], [`event`], [`counts`] | launches that are replayed together, points in the stream, counts of calls |
//! | [`memory`] | arenas of device memory, pinned memory |
//! | [`plan`] | how every kernel is launched |
//! | [`device`] | [`Cuda`]: running stages of models |
//! | [`weights`], [`staging`], [`products`] | matrices in the device's form, and products with them |

pub mod architecture;
pub mod blas;
pub mod blas_table;
pub mod counts;
pub mod cubins;
pub mod cublas;
pub mod device;
pub mod environment;
pub mod error;
pub mod event;
mod floats;
pub mod gpu;
pub mod graph;
pub mod kernel_files;
pub mod libraries;
pub mod loader;
pub mod memory;
pub mod nvrtc;
pub mod plan;
pub mod products;
pub mod sources;
pub mod staging;
pub mod weights;

pub use device::{CacheForm, Cuda, Options};
pub use error::{Error, Unavailable};
pub use loader::{Runtime, Search, runtime};
