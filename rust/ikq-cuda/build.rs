//! Includes the kernel files of `cuda/` in the crate as text. They are not compiled here, but on the machine whose
//! GPU runs them.

use std::fmt::Write;
use std::path::Path;

#[path = "src/kernel_files.rs"]
mod kernel_files;

fn main() -> std::io::Result<()> {
    let folder = Path::new(&std::env::var("CARGO_MANIFEST_DIR").expect("set by cargo")).join("../../cuda");
    println!("cargo::rerun-if-changed={}", folder.display());
    let mut text = String::from("/// Names and texts of the kernel files, sorted by name.\n");
    text.push_str("pub const FILES: &[(&str, &str)] = &[\n");
    for (name, path) in kernel_files::kernel_files(&folder)? {
        println!("cargo::rerun-if-changed={}", path.display());
        writeln!(text, "    ({name:?}, include_str!({:?})),", path.canonicalize()?)
            .expect("written to memory");
    }
    text.push_str("];\n");
    let out = std::env::var("OUT_DIR").expect("set by cargo");
    std::fs::write(Path::new(&out).join("sources.rs"), text)
}
