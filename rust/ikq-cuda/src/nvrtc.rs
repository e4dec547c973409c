//! [`Nvrtc`]: the library that compiles kernels. It is found among files and called through a few functions.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};

use libloading::Library;

use crate::error::Error;
use crate::libraries::{self, Wanted, function, open_beside};

/// An opened NVRTC.
pub struct Nvrtc {
    pub path: PathBuf,
    /// Major and minor version.
    pub version: (i32, i32),
    functions: Functions,
    /// The first has the functions; the second has built-in declarations for the compiler, and is only kept open.
    _libraries: (Library, Option<Library>),
}

impl std::fmt::Debug for Nvrtc {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Nvrtc")
            .field("path", &self.path)
            .field("version", &self.version)
            .finish_non_exhaustive()
    }
}

type Program = *mut c_void;

/// The functions. All but `error`, which describes an error, return 0 or the number of an error.
struct Functions {
    version: unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int,
    error: unsafe extern "C" fn(c_int) -> *const c_char,
    create: unsafe extern "C" fn(
        *mut Program,
        *const c_char,
        *const c_char,
        c_int,
        *const *const c_char,
        *const *const c_char,
    ) -> c_int,
    destroy: unsafe extern "C" fn(*mut Program) -> c_int,
    compile: unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int,
    cubin_size: unsafe extern "C" fn(Program, *mut usize) -> c_int,
    cubin: unsafe extern "C" fn(Program, *mut c_char) -> c_int,
    log_size: unsafe extern "C" fn(Program, *mut usize) -> c_int,
    log: unsafe extern "C" fn(Program, *mut c_char) -> c_int,
    /// How many architectures it knows, and which.
    known: Option<(unsafe extern "C" fn(*mut c_int) -> c_int, unsafe extern "C" fn(*mut c_int) -> c_int)>,
}

impl Functions {
    fn of(library: &Library) -> Result<Functions, libloading::Error> {
        // SAFETY: the types are those of nvrtc.h, the same in all versions of 12 and 13
        Ok(unsafe {
            Functions {
                version: function(library, "nvrtcVersion")?,
                error: function(library, "nvrtcGetErrorString")?,
                create: function(library, "nvrtcCreateProgram")?,
                destroy: function(library, "nvrtcDestroyProgram")?,
                compile: function(library, "nvrtcCompileProgram")?,
                cubin_size: function(library, "nvrtcGetCUBINSize")?,
                cubin: function(library, "nvrtcGetCUBIN")?,
                log_size: function(library, "nvrtcGetProgramLogSize")?,
                log: function(library, "nvrtcGetProgramLog")?,
                known: match function(library, "nvrtcGetNumSupportedArchs") {
                    Ok(count) => function(library, "nvrtcGetSupportedArchs").ok().map(|list| (count, list)),
                    Err(_) => None,
                },
            }
        })
    }
}

/// A text to compile.
#[derive(Clone, Debug)]
pub struct Source {
    /// Its name in messages.
    pub name: String,
    pub text: String,
    /// Headers: their names as `#include` has them, and their texts.
    pub headers: Vec<(String, String)>,
}

/// The result of compiling.
#[derive(Clone, Debug)]
pub struct Compiled {
    pub cubin: Vec<u8>,
    /// The messages of the compiler; with `--ptxas-options=-v` they include registers and spills.
    pub log: String,
}

impl Nvrtc {
    /// Opens the library at `path`, and the one beside it from which it reads built-in declarations.
    ///
    /// # Errors
    /// The reason why it cannot be used.
    pub fn open(path: &Path) -> Result<Nvrtc, String> {
        let reason = |e: libloading::Error| e.to_string();
        // SAFETY: the initializers are those of NVIDIA's libraries, or of files that the user put there
        let library = unsafe { Library::new(path) }.map_err(reason)?;
        let functions = Functions::of(&library).map_err(reason)?;
        let (mut major, mut minor) = (0, 0);
        // SAFETY: it writes two integers
        match unsafe { (functions.version)(&mut major, &mut minor) } {
            0 => {}
            error => return Err(format!("nvrtcVersion gives error {error}")),
        }
        let builtins = open_beside(path, "libnvrtc-builtins.so", Some((major, minor)));
        Ok(Nvrtc { path: path.into(), version: (major, minor), functions, _libraries: (library, builtins) })
    }

    /// Compiles to a cubin for `arch`, such as `sm_90`.
    ///
    /// # Errors
    /// [`Error::Compile`] with the compiler's messages; [`Error::Nvrtc`] when NVRTC itself fails.
    pub fn compile(&self, source: &Source, arch: &str, options: &[String]) -> Result<Compiled, Error> {
        let wrong = |why: &str| Error::Nvrtc { path: self.path.clone(), why: why.to_string() };
        let c_string = |text: &str| CString::new(text).map_err(|_| wrong("a text holds a zero byte"));
        let c_strings = |texts: Vec<&str>| texts.into_iter().map(c_string).collect::<Result<Vec<_>, _>>();
        let name = c_string(&source.name)?;
        let text = c_string(&source.text)?;
        let names = c_strings(source.headers.iter().map(|h| h.0.as_str()).collect())?;
        let texts = c_strings(source.headers.iter().map(|h| h.1.as_str()).collect())?;
        let arch_option = format!("-arch={arch}");
        let options = c_strings(
            std::iter::once(arch_option.as_str()).chain(options.iter().map(String::as_str)).collect(),
        )?;
        let pointers = |strings: &[CString]| strings.iter().map(|s| s.as_ptr()).collect::<Vec<_>>();
        let (names, texts, option_pointers) = (pointers(&names), pointers(&texts), pointers(&options));
        let check = |status: c_int| if status == 0 { Ok(()) } else { Err(wrong(&self.sentence(status))) };
        let f = &self.functions;
        let mut program = Owned { handle: std::ptr::null_mut(), destroy: f.destroy };
        let n_headers = c_int::try_from(names.len()).map_err(|_| wrong("too many headers"))?;
        let n_options = c_int::try_from(option_pointers.len()).map_err(|_| wrong("too many options"))?;
        // SAFETY: all strings outlive the call, which copies them
        check(unsafe {
            (f.create)(
                &mut program.handle,
                text.as_ptr(),
                name.as_ptr(),
                n_headers,
                texts.as_ptr(),
                names.as_ptr(),
            )
        })?;
        // SAFETY: the program was made above, the options outlive the call
        let status = unsafe { (f.compile)(program.handle, n_options, option_pointers.as_ptr()) };
        let log = {
            // SAFETY: `bytes` has as many as the first function said
            let bytes =
                unsafe { take(program.handle, f.log_size, f.log) }.map_err(|s| wrong(&self.sentence(s)))?;
            String::from_utf8_lossy(&bytes).trim_end_matches(['\0', '\n']).to_string()
        };
        if status != 0 {
            let log = if log.is_empty() { self.sentence(status) } else { log };
            return Err(Error::Compile { name: source.name.clone(), arch: arch.into(), log });
        }
        // SAFETY: as for the log
        let cubin =
            unsafe { take(program.handle, f.cubin_size, f.cubin) }.map_err(|s| wrong(&self.sentence(s)))?;
        match cubin.is_empty() {
            true => Err(wrong("it gives no cubin")),
            false => Ok(Compiled { cubin, log }),
        }
    }

    /// The architectures that it compiles for, such as 90; none where it does not tell.
    pub fn architectures(&self) -> Vec<u32> {
        let Some((count, list)) = self.functions.known else { return Vec::new() };
        let mut n = 0;
        // SAFETY: it writes an integer
        let status = unsafe { count(&mut n) };
        let mut found = vec![0; usize::try_from(n).unwrap_or(0)];
        // SAFETY: it writes as many integers as it said
        if status != 0 || found.is_empty() || unsafe { list(found.as_mut_ptr()) } != 0 {
            return Vec::new();
        }
        found.into_iter().filter_map(|sm| u32::try_from(sm).ok()).collect()
    }

    fn sentence(&self, status: c_int) -> String {
        // SAFETY: it returns a static string for any number
        let text = unsafe { (self.functions.error)(status) };
        match text.is_null() {
            true => format!("error {status}"),
            // SAFETY: not null, and ends with a zero
            false => unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned(),
        }
    }
}

/// A program of NVRTC, which is destroyed when this is dropped.
struct Owned {
    handle: Program,
    destroy: unsafe extern "C" fn(*mut Program) -> c_int,
}

impl Drop for Owned {
    fn drop(&mut self) {
        if !self.handle.is_null() {
            // SAFETY: made by the same library, freed once
            unsafe { (self.destroy)(&mut self.handle) };
        }
    }
}

/// The bytes that `get` writes, as many as `size` says.
///
/// # Safety
/// The functions must be a pair of NVRTC's, and the program one of its programs.
unsafe fn take(
    program: Program,
    size: unsafe extern "C" fn(Program, *mut usize) -> c_int,
    get: unsafe extern "C" fn(Program, *mut c_char) -> c_int,
) -> Result<Vec<u8>, c_int> {
    let mut n = 0;
    let check = |status| if status == 0 { Ok(()) } else { Err(status) };
    // SAFETY: the caller promises function and program
    check(unsafe { size(program, &mut n) })?;
    let mut bytes = vec![0u8; n];
    if n > 0 {
        // SAFETY: there is room for what the first function said
        check(unsafe { get(program, bytes.as_mut_ptr().cast()) })?;
    }
    Ok(bytes)
}

/// The newest NVRTC among files and folders whose major version is at most `major`; see [`libraries::find`].
///
/// # Errors
/// The files that were found but cannot be used, and why.
pub fn find(places: &[PathBuf], major: i32) -> Result<Nvrtc, Vec<String>> {
    let wanted = Wanted { file: "libnvrtc.so", variable: "IKQ_NVRTC" };
    libraries::find(wanted, places, major, Nvrtc::open, |nvrtc| nvrtc.version.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::libraries::files;

    #[test]
    fn what_is_too_new_or_no_library_is_told() {
        let folder = std::env::temp_dir().join(format!("ikq-nvrtc-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        for name in ["libnvrtc.so.99", "libnvrtc.so.12", "libnvrtc.alt.so.12", "libnvrtc-builtins.so.12.0"] {
            std::fs::write(folder.join(name), "no library").expect("a file");
        }
        assert_eq!(files(&folder, "libnvrtc.so").len(), 2);
        assert_eq!(files(&folder, "libnvrtc-builtins.so").len(), 1);
        // with 11 the system's library search looks for nothing
        let tried = find(std::slice::from_ref(&folder), 11).expect_err("none is usable");
        assert!(tried.len() == 2 && tried[0].contains("so.12 needs a driver of CUDA 12"), "{tried:?}");
        let file = folder.join("libnvrtc.so.12");
        assert!(Nvrtc::open(&file).is_err());
        std::fs::remove_dir_all(&folder).expect("removed");
    }
}
