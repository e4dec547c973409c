//! The text of the kernels: the files of the folder `cuda/`, which the build includes, or those of the folder that
//! `IKQ_CUDA_SRC` names, so that kernels can be tried without building.

use std::path::PathBuf;

use crate::error::Error;
use crate::kernel_files::kernel_files;
use crate::nvrtc::Source;

include!(concat!(env!("OUT_DIR"), "/sources.rs"));

/// Compiler options of all kernels, besides the architecture.
const OPTIONS: &[&str] = &["-std=c++17", "-lineinfo"];

/// A kernel file with the definitions that it is compiled with.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Specialisation {
    /// A file of `cuda/`, such as `mmv.cu`.
    pub file: String,
    /// Names and values of macros, for the compiler's option `-D`.
    pub defines: Vec<(String, String)>,
}

impl std::fmt::Display for Specialisation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let defines: Vec<String> =
            self.defines.iter().map(|(name, value)| format!("{name}={value}")).collect();
        write!(f, "{} [{}]", self.file, defines.join(" "))
    }
}

impl Specialisation {
    /// The compiler options, besides the architecture.
    pub fn options(&self) -> Vec<String> {
        let defines = self.defines.iter().map(|(name, value)| format!("-D{name}={value}"));
        OPTIONS.iter().map(ToString::to_string).chain(defines).collect()
    }

    /// The text of the file, and all headers that it may include.
    ///
    /// # Errors
    /// [`Error::Source`] when there is no such file.
    pub fn source(&self) -> Result<Source, Error> {
        let files = files()?;
        let text = files.iter().find(|(name, _)| *name == self.file).map(|(_, text)| text.clone());
        let text = text
            .ok_or_else(|| Error::Source { name: self.file.clone(), why: "there is no such file".into() })?;
        let headers = files.into_iter().filter(|(name, _)| name.ends_with(".cuh")).collect();
        Ok(Source { name: self.file.clone(), text, headers })
    }
}

/// Names and texts of all files, sorted by name.
///
/// # Errors
/// [`Error::Source`] when the folder of `IKQ_CUDA_SRC` cannot be read.
pub fn files() -> Result<Vec<(String, String)>, Error> {
    let Some(folder) = std::env::var_os("IKQ_CUDA_SRC").filter(|v| !v.is_empty()).map(PathBuf::from) else {
        return Ok(FILES.iter().map(|(name, text)| (name.to_string(), text.to_string())).collect());
    };
    let failed = |e: std::io::Error| Error::Source { name: folder.display().to_string(), why: e.to_string() };
    let files = kernel_files(&folder).map_err(failed)?;
    files.into_iter().map(|(name, path)| Ok((name, std::fs::read_to_string(path).map_err(failed)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_kernel_files_of_the_folder_are_in_here() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../cuda");
        let files = kernel_files(folder.as_ref()).expect("the folder of kernels");
        let names: Vec<String> = files.into_iter().map(|(name, _)| name).collect();
        assert_eq!(FILES.iter().map(|(name, _)| name.to_string()).collect::<Vec<_>>(), names);
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let wrong = Specialisation { file: "nothing.cu".into(), defines: vec![] };
        assert!(wrong.source().expect_err("no file").to_string().contains("nothing.cu"));
    }
}
