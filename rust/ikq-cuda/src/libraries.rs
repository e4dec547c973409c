//! Finding NVIDIA's libraries among files: those of packages, toolkits and the system's library search.

use std::path::{Path, PathBuf};

use libloading::Library;

/// A library that is looked for.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// Its file's name without a version, such as `libnvrtc.so`.
    pub file: &'static str,
    /// The variable of the environment that names the file or its folder; then nothing else is looked at.
    pub variable: &'static str,
}

/// Opens the newest of a library's files among files and folders whose major version is at most `major`; of several with
/// the same version, the first. The system's library search comes last, and is not used if the variable names the library.
///
/// # Errors
/// The files that were found but cannot be used, and why.
pub fn find<T>(
    wanted: Wanted,
    places: &[PathBuf],
    major: i32,
    open: impl Fn(&Path) -> Result<T, String>,
    major_of: impl Fn(&T) -> i32,
) -> Result<T, Vec<String>> {
    let mut candidates: Vec<PathBuf> = Vec::new();
    for place in places {
        match place.is_dir() {
            true => candidates.extend(files(place, wanted.file)),
            false => candidates.extend(place.is_file().then(|| place.clone())),
        }
    }
    if std::env::var_os(wanted.variable).is_none() {
        // names for the system's library search, newest first
        candidates.extend((12..=major).rev().map(|n| PathBuf::from(format!("{}.{n}", wanted.file))));
    }
    let mut tried = Vec::new();
    // opening maps 100 MB and more, so files are first sorted out by the version in their names
    let named = |path: &Path| numbers(path).unwrap_or((major, 0));
    let needs = |path: &Path, found: i32| format!("{} needs a driver of CUDA {found}", path.display());
    candidates.retain(|path| {
        let (found, _) = named(path);
        if found > major {
            tried.push(needs(path, found));
        }
        found <= major
    });
    candidates.sort_by_key(|path| std::cmp::Reverse(named(path)));
    for path in candidates {
        match open(&path) {
            Ok(library) if major_of(&library) <= major => return Ok(library),
            Ok(library) => tried.push(needs(&path, major_of(&library))),
            // a name that the system's search does not find is not reported
            Err(_) if path.parent().is_some_and(|p| p.as_os_str().is_empty()) => {}
            Err(why) => tried.push(format!("{}: {why}", path.display())),
        }
    }
    Err(tried)
}

/// A function of a library.
///
/// # Errors
/// There is none of this name.
///
/// # Safety
/// `F` must be the type of the function with that name.
pub unsafe fn function<F: Copy>(library: &Library, name: &str) -> Result<F, libloading::Error> {
    // SAFETY: the caller promises the type
    unsafe { library.get::<F>(name.as_bytes()) }.map(|f| *f)
}

/// Opens the library of another name in the same folder, if there is one, which the loader does not find by itself in some
/// packages. A folder may have the files of several toolkits, so one of this version comes first.
pub fn open_beside(path: &Path, name: &str, version: Option<(i32, i32)>) -> Option<Library> {
    let mut found = path.parent().map_or_else(Vec::new, |folder| files(folder, name));
    found.sort_by_key(|file| numbers(file) != version);
    // SAFETY: the initializers are those of NVIDIA's libraries, or of files that the user put there
    found.first().and_then(|file| unsafe { Library::new(file) }.ok())
}

/// Files of a folder that are a shared library with this name, with or without a version; sorted.
pub fn files(folder: &Path, name: &str) -> Vec<PathBuf> {
    let is_it = |path: &PathBuf| {
        let file = path.file_name().and_then(|f| f.to_str()).unwrap_or_default();
        let rest = file.strip_prefix(name).map(|r| r.strip_prefix('.').unwrap_or(r));
        rest.is_some_and(|r| r.chars().all(|c| c.is_ascii_digit() || c == '.'))
    };
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut found: Vec<PathBuf> = entries.filter(is_it).collect();
    found.sort();
    found
}

/// Major and minor version in a file's name, or in the name of the file that a link leads to.
pub fn numbers(path: &Path) -> Option<(i32, i32)> {
    let resolved = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    let of = |path: &Path| {
        let file = path.file_name()?.to_str()?;
        let mut parts = file.split_once(".so.")?.1.split('.').map(|n| n.parse::<i32>().ok());
        Some((parts.next()??, parts.next().flatten().unwrap_or(0)))
    };
    of(&resolved).or_else(|| of(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_versions() {
        for (name, version) in [
            ("libnvrtc.so.13", Some((13, 0))),
            ("libnvrtc.so.12.8.93", Some((12, 8))),
            ("libnvrtc.so", None),
            ("libnvrtc.so.x", None),
        ] {
            assert_eq!(numbers(Path::new(name)), version, "{name}");
        }
    }

    #[test]
    fn the_newest_that_fits_is_opened() {
        let folder = std::env::temp_dir().join(format!("ikq-libraries-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        let names = ["libx.so.11", "libx.so.13", "libx.so.14", "libx.so", "libxLt.so.13", "libx.alt.so.13"];
        for name in names {
            std::fs::write(folder.join(name), name).expect("a file");
        }
        let wanted = Wanted { file: "libx.so", variable: "IKQ_NO_SUCH_VARIABLE" };
        let text = |path: &Path| std::fs::read_to_string(path).map_err(|e| e.to_string());
        let found = |major, of: fn(&String) -> i32| {
            find(wanted, std::slice::from_ref(&folder), major, text, of).map_err(|tried| tried.join("; "))
        };
        assert_eq!(found(13, |_| 13).as_deref(), Ok("libx.so"), "a name without a version may be any");
        assert_eq!(found(13, |text| if text == "libx.so" { 99 } else { 13 }).as_deref(), Ok("libx.so.13"));
        let tried = found(12, |_| 99).expect_err("none fits");
        assert!(tried.contains("libx.so.14 needs a driver of CUDA 14"), "{tried}");
        assert!(tried.contains("libx.so.11 needs a driver of CUDA 99"), "{tried}");
        assert!(!tried.contains("Lt") && !tried.contains("alt"), "{tried}");
        std::fs::remove_dir_all(&folder).expect("removed");
    }
}
