//! Finds the files of a folder that are kernels and their headers. The build script uses this, too.

use std::path::{Path, PathBuf};

/// Folders beside the kernels whose files only tests need.
const NOT_KERNELS: [&str; 2] = ["emu", "standin"];

/// The kernel files below a folder: their names as `#include` has them (`types/kquants.cuh`) and their paths,
/// sorted by name.
///
/// # Errors
/// Errors of reading the folder.
pub fn kernel_files(folder: &Path) -> std::io::Result<Vec<(String, PathBuf)>> {
    let mut files = Vec::new();
    collect(folder, "", &mut files)?;
    files.sort();
    Ok(files)
}

fn collect(folder: &Path, prefix: &str, files: &mut Vec<(String, PathBuf)>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let Some(name) = path.file_name().and_then(|n| n.to_str()) else { continue };
        if path.is_dir() && !(prefix.is_empty() && NOT_KERNELS.contains(&name)) {
            collect(&path, &format!("{prefix}{name}/"), files)?;
        } else if path.is_file() && path.extension().is_some_and(|e| e == "cu" || e == "cuh") {
            files.push((format!("{prefix}{name}"), path));
        }
    }
    Ok(())
}
