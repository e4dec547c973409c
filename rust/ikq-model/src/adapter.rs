//! LoRA adapters: files of pairs of low matrices, which are added to products with a base model's matrices.
//!
//! For a matrix W of the base an adapter has A (rank rows) and B (rank columns): `y = W x + scale * B (A x)`. W itself
//! stays as it is, whatever its type. The scale is the user's times alpha by the rank, or the user's alone where alpha
//! is 0. Which products a pair belongs to is found when the network is made (`network::low_rank`).

use std::collections::BTreeMap;

use ikq_formats::{Family, QuantType};
use ikq_gguf::{Bytes, Model, Tensor, Value};
use xxhash_rust::xxh3::Xxh3;

use crate::error::Error;

/// A LoRA adapter as a file has it: checked by itself, but not against a base.
#[derive(Clone, Debug)]
pub struct Adapter {
    /// The file, for errors and reports.
    pub path: String,
    /// Hash of names, shapes, types, bytes and alpha: what sequences have seen is told apart by it.
    pub hash: u64,
    /// The user's scale that sequences have unless another one is said.
    pub scale: f32,
    alpha: f32,
    pairs: BTreeMap<String, Pair>,
}

/// The two matrices for a tensor of the base.
#[derive(Clone, Debug)]
pub(crate) struct Pair {
    pub a: Stored,
    pub b: Stored,
}

/// A tensor of floats.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    /// F32, F16 or BF16.
    pub ty: QuantType,
    pub ne: [u64; 4],
    pub data: Bytes,
}

impl Adapter {
    /// Reads an adapter for a base of this architecture.
    ///
    /// # Errors
    /// [`Error::Adapter`] where the file is no LoRA adapter, is for another architecture, or has matrices without
    /// their other half; [`Error::AdapterKind`] for adapters that are more than sums of products;
    /// [`Error::NotFinite`], [`Error::NotWeights`], [`Error::Format`] by tensor.
    pub fn new(file: &Model, path: &str, architecture: &str, scale: f32) -> Result<Adapter, Error> {
        let wrong = |why: String| Error::Adapter { path: path.to_string(), why };
        if !scale.is_finite() {
            let why = "a scale is a finite number".to_string();
            return Err(Error::Option { option: "lora", value: format!("{path}:{scale}"), why });
        }
        for (key, expected) in
            [("general.type", "adapter"), ("adapter.type", "lora"), ("general.architecture", architecture)]
        {
            let found = file.metadata().get(key).and_then(Value::as_str);
            if found != Some(expected) {
                let found = found.map_or("missing".to_string(), |f| format!("`{f}`"));
                return Err(wrong(format!("{key} is {found}, but `{expected}` is needed")));
            }
        }
        if file.metadata().get("adapter.alora.invocation_tokens").is_some() {
            let why = "it works from certain tokens on (activated LoRA), which is not supported".to_string();
            return Err(Error::AdapterKind { path: path.to_string(), why });
        }
        let alpha = file.metadata().get("adapter.lora.alpha");
        let alpha = match alpha.map_or(Some(0.0), Value::as_f64).map(|alpha| alpha as f32) {
            Some(alpha) if alpha.is_finite() => alpha,
            found => {
                let found = found.map_or("no number".to_string(), |f| f.to_string());
                return Err(wrong(format!("adapter.lora.alpha is {found}")));
            }
        };
        let mut halves: BTreeMap<String, [Option<Stored>; 2]> = BTreeMap::new();
        let mut hash = Xxh3::new();
        hash.update(&alpha.to_le_bytes());
        for tensor in file.tensors() {
            let found = ["a", "b"].iter().position(|p| tensor.name.ends_with(&format!(".lora_{p}")));
            let Some(part) = found else {
                let why = format!("`{}` is neither a .lora_a nor a .lora_b", tensor.name);
                return Err(Error::AdapterKind { path: path.to_string(), why });
            };
            hash.update(tensor.name.as_bytes());
            hash.update(format!("\0{:?}{:?}", tensor.ty, tensor.ne).as_bytes());
            hash.update(&tensor.data);
            let base = tensor.name[..tensor.name.len() - ".lora_a".len()].to_string();
            halves.entry(base).or_default()[part] = Some(Stored::new(tensor)?);
        }
        let mut pairs = BTreeMap::new();
        for (name, pair) in halves {
            let [Some(a), Some(b)] = pair else {
                let missing = if pair[0].is_none() { "lora_a" } else { "lora_b" };
                return Err(wrong(format!("`{name}.{missing}` is missing")));
            };
            pairs.insert(name, Pair { a, b });
        }
        if pairs.is_empty() {
            return Err(wrong("it has no matrices".into()));
        }
        Ok(Adapter { path: path.to_string(), hash: hash.digest(), scale, alpha, pairs })
    }

    /// The pair for a tensor of the base.
    pub(crate) fn pair(&self, name: &str) -> Option<&Pair> {
        self.pairs.get(name)
    }

    /// Tensors of the base that there are pairs for.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.pairs.keys().map(String::as_str)
    }

    /// What a product of this rank is multiplied with besides the user's scale.
    pub(crate) fn factor(&self, rank: usize) -> f32 {
        if self.alpha == 0.0 { 1.0 } else { self.alpha / rank as f32 }
    }
}

impl Stored {
    fn new(tensor: &Tensor) -> Result<Stored, Error> {
        let name = || tensor.name.clone();
        let ty = tensor.quant_type()?;
        if matches!(ty.info().family, Family::Activation | Family::Integer) || tensor.made.is_some() {
            return Err(Error::NotWeights { tensor: name(), ty });
        }
        let stored = Stored { ty, ne: tensor.ne, data: tensor.data.clone() };
        let floats = stored.floats().map_err(|source| Error::Format { tensor: name(), source })?;
        if let Some(index) = floats.iter().position(|v| !v.is_finite()) {
            return Err(Error::NotFinite { tensor: name(), value: floats[index], index });
        }
        match ty {
            QuantType::F32 | QuantType::F16 | QuantType::BF16 => Ok(stored),
            _ => Ok(Stored::of_floats(tensor.ne, &floats)),
        }
    }

    /// A tensor of float32.
    pub fn of_floats(ne: [u64; 4], floats: &[f32]) -> Stored {
        let bytes: Vec<u8> = floats.iter().flat_map(|f| f.to_le_bytes()).collect();
        Stored { ty: QuantType::F32, ne, data: Bytes::from(bytes) }
    }

    /// All elements.
    pub fn floats(&self) -> Result<Vec<f32>, ikq_formats::Error> {
        let (k, n_rows) = (self.ne[0] as usize, self.ne[1..].iter().product::<u64>() as usize);
        let mut out = vec![0.0; k * n_rows];
        ikq_decode::dequantize(ikq_simd::best(), self.ty, &self.data, n_rows, k, &mut out)?;
        Ok(out)
    }

    /// Rows of a tensor of F32, F16 or BF16, counted over all its matrices.
    ///
    /// # Panics
    /// When there are not so many.
    pub fn rows(&self, rows: std::ops::Range<usize>) -> Bytes {
        let per_row = self.ne[0] as usize * if self.ty == QuantType::F32 { 4 } else { 2 };
        self.data.slice(rows.start * per_row..rows.end * per_row).expect("shapes were compared")
    }
}
