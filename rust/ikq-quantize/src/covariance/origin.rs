//! Which model covariances are of.

use ikq_formats::QuantType;
use ikq_gguf::Model;

use crate::hash::Hasher;

/// What all files of one model have in common, whatever types their matrices have: a hash of the weights of the layers' norms,
/// which every one of them holds as they are. `None` where a model has none as 32-bit floats.
pub fn origin(model: &Model) -> Option<String> {
    let is_norm = |name: &str| {
        let rest = name.strip_prefix("blk.").and_then(|rest| rest.strip_suffix("_norm.weight"));
        rest.is_some()
    };
    let mut norms: Vec<_> = model
        .tensors()
        .iter()
        .filter(|t| t.ty.known() == Some(QuantType::F32) && t.n_dims <= 1 && is_norm(&t.name))
        .collect();
    norms.sort_by(|a, b| a.name.cmp(&b.name));
    let mut hasher = Hasher::new("norms");
    for norm in &norms {
        hasher.bytes(norm.name.as_bytes());
        hasher.bytes(&norm.read(0..norm.n_bytes()).ok()?);
    }
    (!norms.is_empty()).then(|| format!("{:016x}", hasher.end()))
}
