//! Hashes of everything that decides the bytes of a tensor, and of a whole output.

use ikq_formats::QuantType;
use ikq_gguf::{Model, PerTensor, TensorType};

use crate::covariance::{FEEDBACK, Feedback, ROUNDS};
use crate::hash::{self, ENCODERS, Hasher};
use crate::journal::RunId;
use crate::plan::{Plan, Statistics, TensorPlan};
use crate::units::Units;

/// Key of the numbers that every output says about its tensors: for each, hashes of its name, its recipe, its
/// source's bytes and its own bytes.
pub const TENSOR_HASHES: &str = "ikq.tensor_hashes";

/// Room for them in the header.
pub(crate) fn room() -> PerTensor {
    PerTensor { key: TENSOR_HASHES.to_string(), n_numbers: 4 }
}

/// The hashes that a file has of one of its tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TensorHashes {
    pub recipe: u64,
    pub source: u64,
    pub content: u64,
}

/// Hash of a tensor's name.
pub(crate) fn of_name(name: &str) -> u64 {
    hash::of(name.as_bytes())
}

/// Hash of everything but the source's bytes that decides a tensor's bytes.
pub(crate) fn of_tensor(planned: &TensorPlan, plan: &Plan) -> u64 {
    let mut hasher = Hasher::new("recipe");
    hasher.number(planned.from.id().into());
    hasher.number(planned.to.id().into());
    planned.dims.iter().for_each(|d| hasher.number(*d));
    if planned.repack {
        hasher.bytes(b"repacked");
    } else if let Some(to) = planned.encode {
        hasher.number(ENCODERS);
        let is_q4_0 = to.info().base.unwrap_or(to) == QuantType::Q4_0;
        hasher.number(u64::from(is_q4_0 && plan.encode.symmetric_q40));
        if let Statistics::Found { values, .. } = &planned.statistics {
            hasher.floats(values);
        }
        hasher.number(u64::from(planned.unbiased));
        // nothing more without, so that outputs of earlier versions are known again
        if let (Feedback::Site { index, group }, Some(covariances)) = (planned.feedback, &plan.covariances) {
            hasher.bytes(b"feedback");
            hasher.number(FEEDBACK);
            hasher.number(covariances.sites[index].hash);
            hasher.number(group.map_or(u64::MAX, |group| group as u64));
            if plan.in_rounds {
                hasher.bytes(b"rounds");
                hasher.number(ROUNDS);
            }
        }
    }
    hasher.end()
}

/// The numbers by which a journal recognises a run of this plan.
pub(crate) fn of_run(plan: &Plan, model: &Model, units: &Units, recipes: &[u64]) -> RunId {
    let mut hasher = Hasher::new("plan");
    hasher.bytes(env!("CARGO_PKG_VERSION").as_bytes());
    plan.layout.shards().iter().for_each(|shard| hasher.bytes(&shard.header));
    recipes.iter().for_each(|recipe| hasher.number(*recipe));
    for t in model.tensors() {
        hasher.bytes(t.name.as_bytes());
        hasher.number(t.shard.into());
        hasher.number(t.file_offset);
    }
    let mut stamp = Hasher::new("stamp");
    for shard in model.shards() {
        hasher.number(shard.file.len() as u64);
        let changed = std::fs::metadata(&shard.path).and_then(|m| m.modified()).ok();
        let since = changed.and_then(|t| t.duration_since(std::time::UNIX_EPOCH).ok());
        stamp.number(shard.file.len() as u64);
        stamp.number(since.map_or(0, |d| d.as_nanos() as u64));
    }
    RunId { plan: hasher.end(), stamp: stamp.end(), n_units: units.len() }
}

/// Reads the hashes that a file has of its tensors; the keys are hashes of the tensors' names.
pub(crate) fn read(model: &Model, shard: usize) -> Vec<(u64, TensorHashes)> {
    let pair = model.shards().get(shard).and_then(|s| s.metadata.get(TENSOR_HASHES));
    let numbers = pair.and_then(|v| v.as_array()).and_then(|a| a.to_u64s()).unwrap_or_default();
    let (entries, _) = numbers.as_chunks();
    entries
        .iter()
        .map(|[name, recipe, source, content]| {
            (*name, TensorHashes { recipe: *recipe, source: *source, content: *content })
        })
        .collect()
}

/// Whether a tensor of another file can be this one's: same shape and type.
pub(crate) fn same_form(planned: &TensorPlan, dims: &[u64], ty: TensorType, n_bytes: usize) -> bool {
    planned.dims == dims && planned.to == ty && planned.bytes_out == n_bytes as u64
}
