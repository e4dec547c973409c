//! [`Cublas`]: NVIDIA's library of matrix products, found among files and called through nine functions; [`Handle`]: its
//! use by one device. Nothing looks for it unless a user's table wants products by it ([`crate::blas_table`]), or a
//! measurement does.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use libloading::Library;

use crate::error::Error;
use crate::gpu::Gpu;
use crate::libraries::{self, Wanted, function, numbers, open_beside};
use crate::memory::Address;

/// An opened cuBLAS.
pub struct Cublas {
    pub path: PathBuf,
    /// Major and minor version, and patch.
    pub version: [c_int; 3],
    functions: Functions,
    /// The second has the kernels of the first, and is only kept open.
    _libraries: (Library, Option<Library>),
}

impl std::fmt::Debug for Cublas {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cublas")
            .field("path", &self.path)
            .field("version", &self.version)
            .finish_non_exhaustive()
    }
}

type Raw = *mut c_void;

/// All but `sentence`, which describes an error, return 0 or the number of an error.
struct Functions {
    property: unsafe extern "C" fn(c_int, *mut c_int) -> c_int,
    sentence: unsafe extern "C" fn(c_int) -> *const c_char,
    create: unsafe extern "C" fn(*mut Raw) -> c_int,
    destroy: unsafe extern "C" fn(Raw) -> c_int,
    set_stream: unsafe extern "C" fn(Raw, Raw) -> c_int,
    set_workspace: unsafe extern "C" fn(Raw, Raw, usize) -> c_int,
    set_math_mode: unsafe extern "C" fn(Raw, c_int) -> c_int,
    set_atomics_mode: unsafe extern "C" fn(Raw, c_int) -> c_int,
    gemm: Gemm,
}

type Gemm = unsafe extern "C" fn(
    Raw,
    c_int, // whether a is transposed, whether b is
    c_int,
    c_int, // m, n, k
    c_int,
    c_int,
    *const c_void, // alpha
    *const c_void, // a, its type, elements from column to column; the same of b
    c_int,
    c_int,
    *const c_void,
    c_int,
    c_int,
    *const c_void, // beta
    *mut c_void,   // c, its type, elements from column to column
    c_int,
    c_int,
    c_int, // the type of sums
    c_int, // the algorithm
) -> c_int;

// numbers of cublas_api.h and library_types.h, the same in all versions of 12 and 13
const TRANSPOSED: c_int = 1;
const AS_IT_STANDS: c_int = 0;
const BF16: c_int = 14;
const F32: c_int = 0;
const SUMS_OF_F32: c_int = 68;
const USUAL_ALGORITHM: c_int = -1;
/// Operands as they are given (no tf32 in place of floats), and sums of parts in the type of sums.
const MATH: c_int = 16;
const NO_ATOMICS: c_int = 0;

impl Functions {
    fn of(library: &Library) -> Result<Functions, libloading::Error> {
        // SAFETY: the types are those of cublas_api.h, the same in all versions of 12 and 13
        Ok(unsafe {
            Functions {
                property: function(library, "cublasGetProperty")?,
                sentence: function(library, "cublasGetStatusString")?,
                create: function(library, "cublasCreate_v2")?,
                destroy: function(library, "cublasDestroy_v2")?,
                set_stream: function(library, "cublasSetStream_v2")?,
                set_workspace: function(library, "cublasSetWorkspace_v2")?,
                set_math_mode: function(library, "cublasSetMathMode")?,
                set_atomics_mode: function(library, "cublasSetAtomicsMode")?,
                gemm: function(library, "cublasGemmEx")?,
            }
        })
    }
}

/// The newest cuBLAS among files and folders whose major version is at most `major`; see [`libraries::find`].
///
/// # Errors
/// [`Error::NoCublas`] with the files that were found but cannot be used, and why.
pub fn find(places: &[PathBuf], major: i32) -> Result<Cublas, Error> {
    let wanted = Wanted { file: "libcublas.so", variable: "IKQ_CUBLAS" };
    libraries::find(wanted, places, major, Cublas::open, |cublas| cublas.version[0])
        .map_err(|tried| Error::NoCublas { major, tried })
}

impl Cublas {
    /// Opens the library at `path`, and before it the one beside it that has its kernels.
    ///
    /// # Errors
    /// The reason why it cannot be used.
    pub fn open(path: &Path) -> Result<Cublas, String> {
        let reason = |e: libloading::Error| e.to_string();
        let kernels = open_beside(path, "libcublasLt.so", numbers(path));
        // SAFETY: the initializers are those of NVIDIA's libraries, or of files that the user put there
        let library = unsafe { Library::new(path) }.map_err(reason)?;
        let functions = Functions::of(&library).map_err(reason)?;
        let mut version = [0; 3];
        for (which, number) in (0..).zip(&mut version) {
            // SAFETY: it writes an integer
            match unsafe { (functions.property)(which, number) } {
                0 => {}
                error => return Err(format!("cublasGetProperty gives error {error}")),
            }
        }
        Ok(Cublas { path: path.into(), version, functions, _libraries: (library, kernels) })
    }

    fn check(&self, status: c_int) -> Result<(), Error> {
        if status == 0 {
            return Ok(());
        }
        // SAFETY: it returns a static string for any number
        let text = unsafe { (self.functions.sentence)(status) };
        let why = match text.is_null() {
            true => format!("error {status}"),
            // SAFETY: not null, and ends with a zero
            false => unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned(),
        };
        Err(Error::Cublas { path: self.path.clone(), why })
    }
}

/// cuBLAS for the work of one device, which must outlive it. Its products run in the order of the device's own stream.
#[derive(Debug)]
pub struct Handle {
    pub library: Arc<Cublas>,
    raw: Raw,
}

// SAFETY: a handle may be used from any thread that has the context bound, one at a time, as `Gpu` is
unsafe impl Send for Handle {}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: made in `new`, and destroyed once
        let _ = unsafe { (self.library.functions.destroy)(self.raw) };
    }
}

/// A product `y[c][r] = alpha * sum of w[r] * x[c] + beta * y[c][r]`, of bf16 with sums of floats.
#[derive(Clone, Copy, Debug)]
pub struct Product {
    /// Rows of `n` numbers, of which one begins every `pitch`.
    pub w: Address,
    pub pitch: usize,
    pub n_rows: usize,
    pub n: usize,
    /// Columns of `n` numbers.
    pub x: Address,
    pub n_columns: usize,
    /// Floats; a column begins every `stride`.
    pub y: Address,
    pub stride: usize,
    pub alpha: f32,
    pub beta: f32,
}

impl Handle {
    /// A handle for a device.
    ///
    /// # Errors
    /// Errors of the library and of the driver.
    pub fn new(library: Arc<Cublas>, gpu: &Gpu) -> Result<Handle, Error> {
        gpu.context().bind()?;
        let mut raw = std::ptr::null_mut();
        // SAFETY: a context is bound; the handle is destroyed once, in `drop`
        library.check(unsafe { (library.functions.create)(&mut raw) })?;
        let handle = Handle { library, raw };
        let (f, check) = (&handle.library.functions, |status| handle.library.check(status));
        // SAFETY: the handle was made above, and the stream is the device's own
        unsafe {
            check((f.set_stream)(raw, gpu.stream().cast()))?;
            check((f.set_math_mode)(raw, MATH))?;
            check((f.set_atomics_mode)(raw, NO_ATOMICS))?;
        }
        Ok(handle)
    }

    /// Says which memory products may use beside their operands. Without, the library allocates some, and what it does
    /// would depend on how much it got.
    ///
    /// # Errors
    /// Errors of the library.
    ///
    /// # Safety
    /// There must be so many bytes at `at` while products run.
    pub unsafe fn set_workspace(&self, at: Address, bytes: usize) -> Result<(), Error> {
        // SAFETY: the caller promises the memory
        self.library.check(unsafe { (self.library.functions.set_workspace)(self.raw, at.0 as Raw, bytes) })
    }

    /// Starts a product, to run after everything that was launched before.
    ///
    /// # Errors
    /// Errors of the library; [`Error::Plan`] for sizes that it does not take.
    ///
    /// # Safety
    /// All operands must be there (earlier launches may write them), with room for the result; beside `alpha` and `beta`
    /// nothing is read of `y` if `beta` is 0.
    pub unsafe fn multiply(&self, gpu: &Gpu, of: &Product) -> Result<(), Error> {
        gpu.context().bind()?;
        let size = |n: usize| {
            let too_large = |_| Error::Plan { name: "cuBLAS".into(), why: format!("{n} is too large") };
            c_int::try_from(n).map_err(too_large)
        };
        let (m, n, k) = (size(of.n_rows)?, size(of.n_columns)?, size(of.n)?);
        let (pitch, stride) = (size(of.pitch)?, size(of.stride)?);
        // matrices are stored by columns there, so rows of weights are columns of a matrix that is transposed
        // SAFETY: the caller promises the operands; factors are read before the call returns
        self.library.check(unsafe {
            (self.library.functions.gemm)(
                self.raw,
                TRANSPOSED,
                AS_IT_STANDS,
                m,
                n,
                k,
                (&raw const of.alpha).cast(),
                of.w.0 as *const c_void,
                BF16,
                pitch,
                of.x.0 as *const c_void,
                BF16,
                k,
                (&raw const of.beta).cast(),
                of.y.0 as *mut c_void,
                F32,
                stride,
                SUMS_OF_F32,
                USUAL_ALGORITHM,
            )
        })
    }
}
