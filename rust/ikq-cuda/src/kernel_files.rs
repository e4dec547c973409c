//! Which files of a folder are kernels and their headers. The build asks this, too.

use std::path::{Path, PathBuf};

/// Folders beside the kernels that have what only tests need.
const NOT_KERNELS: [&str; 2] = ["emu", "standin"];

/// Kernel files below a folder: names as they are included by (`types/k.cuh`) and paths, sorted by name.
///
/// # Errors
/// Of reading the folder.
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
