//! The GGUF container: a reader that does not trust files, which presents a split set as one model, and a streaming
//! writer.
//!
//! ```text
//! magic "GGUF" | version u32 | n_tensors u64 | n_kv u64
//! n_kv      x  key string | value type u32 | value
//! n_tensors x  name string | n_dims u32 | dims u64... | type id u32 | offset u64 (from data start)
//! padding to general.alignment (32 unless the key says otherwise)
//! data start: tensors, each padded to the alignment
//! ```
//! Everything is little endian; a string is a `u64` length and that many bytes; an array is an
//! element type `u32`, a count `u64` and the elements. Versions 2 and 3 have the same bytes.
//!
//! # Reading
//! [`Model::open`] maps a file, or all files of a split set whichever of them is named, and
//! checks everything before it returns: after that no access can fail or panic. [`Metadata`] holds
//! the key-value pairs in file order with their raw bytes; each [`Tensor`] has a view of its
//! data. The view is a [`Bytes`], which is cheap to clone and keeps the mapping alive (the file descriptor is
//! closed already, so any number of shards can be open).
//!
//! # Writing
//! [`Layout::new`] computes every offset and size before a byte is written (a dry run stops there);
//! [`Writer::create`] preallocates temporary files beside the target, [`Writer::write_at`] fills them
//! from any number of threads, [`Writer::finish`] checks that nothing is missing and renames.
//! [`Writer::resume`] does the same with partial files that outlive the process.
//!
//! ```
//! use ikq_formats::QuantType;
//! use ikq_gguf::{Kv, Layout, Metadata, Model, Options, TensorSpec, Value, Writer};
//! # fn main() -> Result<(), ikq_gguf::Error> {
//! # let dir = std::env::temp_dir().join(format!("ikq-gguf-doc-{}", std::process::id()));
//! # std::fs::create_dir_all(&dir).expect("a temporary directory");
//! # let path = dir.join("m.gguf");
//! let mut metadata = Metadata::new();
//! metadata.set("general.architecture", Value::from("llama"));
//! let tensors = vec![TensorSpec::new("output.weight", &[32, 2], QuantType::F32)?];
//! let layout = Layout::new(&metadata, tensors, &Options::default())?;
//! println!("{} bytes", layout.total_size());
//! let writer = Writer::create(&path, layout)?;
//! writer.write_at(0, 0, &[0; 256])?;
//! writer.finish()?;
//!
//! let model = Model::open(&path)?;
//! assert_eq!(model.metadata().get("general.architecture").and_then(Value::as_str), Some("llama"));
//! assert_eq!(model.require("output.weight")?.data.len(), 256);
//! # std::fs::remove_dir_all(&dir).expect("removable");
//! # Ok(())
//! # }
//! ```
#![deny(unsafe_code)]

mod array;
mod bytes;
mod cursor;
mod disk;
pub mod error;
mod header;
mod made;
// with `write_out`, the only modules of this crate with `unsafe` code
#[allow(unsafe_code)]
mod mapping;
mod metadata;
mod model;
mod pages;
mod plan;
mod ranges;
mod split;
mod tensor;
#[cfg(test)]
mod testing;
mod value;
mod write;
#[allow(unsafe_code)]
mod write_out;

pub use array::Array;
pub use bytes::Bytes;
pub use disk::{free_bytes, reserve, write_rate};
pub use error::{Error, Fault};
pub use made::{Half, Made, MakeError, Maker};
pub use metadata::{Kv, Metadata, encode_kv};
pub use model::{Model, Shard};
pub use pages::PageBuffer;
pub use plan::{Layout, Options, PerTensor, Place, ShardLayout, SplitBy};
pub use split::{is_split_key, shard_file_name};
pub use tensor::{Tensor, TensorSpec, TensorType};
pub use value::{Value, ValueType};
pub use write::{Writer, beside, partial_path, target_paths};

/// The alignment of tensor data when `general.alignment` is absent.
pub const DEFAULT_ALIGNMENT: u64 = 32;
/// The version that the writer writes.
pub const WRITTEN_VERSION: u32 = 3;
/// Longest key or tensor name accepted, in bytes (the specification's limit for keys).
pub const MAX_NAME_BYTES: u64 = 65_535;
/// Most key-value pairs or tensors accepted in one file.
pub const MAX_ENTRIES: u64 = 1 << 20;
/// Most dimensions of a tensor (ggml's limit).
pub const MAX_DIMS: u32 = 4;
/// Deepest nesting of arrays accepted.
pub const MAX_ARRAY_DEPTH: u32 = 8;
