//! The GGUF form, of llama.cpp: tensors `NAME.in_sum2` [columns, experts] and `NAME.counts` [1, experts].
//!
//! Experts that no token reached have zeros in both. `imatrix.all_experts` is ikq's own key.

use std::path::Path;

use ikq_formats::QuantType;
use ikq_gguf::{Array, Layout, Metadata, Model, Options, TensorSpec, TensorType, Value, Writer};

use super::{ImatrixError, SumEntry, Sums};

const TYPE: &str = "general.type";
const DATASETS: &str = "imatrix.datasets";
const CHUNK_COUNT: &str = "imatrix.chunk_count";
const CHUNK_SIZE: &str = "imatrix.chunk_size";
const ALL_EXPERTS: &str = "imatrix.all_experts";
const SUMS: &str = ".in_sum2";
const COUNTS: &str = ".counts";

/// Takes the statistics from an opened file.
///
/// # Errors
/// [`ImatrixError::Malformed`], missing tensors.
pub fn read(path: &Path, model: &Model) -> Result<Sums, ImatrixError> {
    let wrong = |what: String| ImatrixError::Malformed { path: path.to_path_buf(), offset: 0, what };
    let metadata = model.metadata();
    let general = metadata.get(TYPE).and_then(Value::as_str);
    if general != Some("imatrix") {
        return Err(wrong(format!("a GGUF file with general.type = {}", general.unwrap_or("nothing"))));
    }
    let number = |key| metadata.get(key).and_then(Value::as_u64).and_then(|n| u32::try_from(n).ok());
    let datasets = metadata.get(DATASETS).and_then(Value::as_array);
    let mut read = Sums {
        path: path.to_path_buf(),
        datasets: datasets
            .map(|a| a.strings().map(|s| String::from_utf8_lossy(s).into_owned()).collect())
            .unwrap_or_default(),
        n_chunks: number(CHUNK_COUNT),
        chunk_size: number(CHUNK_SIZE),
        all_experts: metadata.get(ALL_EXPERTS).and_then(Value::as_bool) == Some(true),
        ..Sums::default()
    };
    let floats = |name: &str| -> Result<Vec<f32>, ImatrixError> {
        let t = model.require(name)?;
        match t.ty.known() {
            Some(QuantType::F32) => Ok(t.data.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()),
            _ => Err(wrong(format!("tensor `{name}` of type {} instead of f32", t.ty))),
        }
    };
    for t in model.tensors() {
        let Some(name) = t.name.strip_suffix(SUMS) else { continue };
        let (sums, counts) = (floats(&t.name)?, floats(&format!("{name}{COUNTS}"))?);
        if counts.is_empty() || !sums.len().is_multiple_of(counts.len()) {
            return Err(wrong(format!("{} sums for {} counts of `{name}`", sums.len(), counts.len())));
        }
        read.entries.push(SumEntry { name: name.to_string(), sums, counts });
    }
    Ok(read)
}

/// Writes a file; see [`Sums::write`].
///
/// # Errors
/// What the writer finds.
pub fn write<T: Copy + Into<f64>>(sums: &Sums<T>, path: &Path) -> Result<(), ImatrixError> {
    let mut metadata = Metadata::new();
    metadata.set(TYPE, "imatrix");
    metadata.set(DATASETS, Array::of_strings(&sums.datasets));
    metadata.set(CHUNK_COUNT, sums.n_chunks.unwrap_or(0));
    metadata.set(CHUNK_SIZE, sums.chunk_size.unwrap_or(0));
    if sums.all_experts {
        metadata.set(ALL_EXPERTS, true);
    }
    let mut specs = Vec::new();
    let mut data = Vec::new();
    for entry in &sums.entries {
        let n_experts = entry.counts.len().max(1);
        let columns = entry.sums.len() / n_experts;
        let sums: Vec<u8> = entry.sums.iter().flat_map(|s| ((*s).into() as f32).to_le_bytes()).collect();
        let counts = entry.counts.iter().flat_map(|c| c.to_le_bytes()).collect();
        for (suffix, columns, values) in [(SUMS, columns, sums), (COUNTS, 1, counts)] {
            specs.push(TensorSpec {
                name: format!("{}{suffix}", entry.name),
                dims: vec![columns as u64, n_experts as u64],
                ty: TensorType::from_id(QuantType::F32.id()),
                size: values.len() as u64,
            });
            data.push(values);
        }
    }
    let writer = Writer::create(path, Layout::new(&metadata, specs, &Options::default())?)?;
    for (index, values) in data.into_iter().enumerate() {
        writer.write_at(index, 0, &values)?;
    }
    writer.finish()?;
    Ok(())
}
