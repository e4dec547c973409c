//! Checks that a file still is what ikq wrote, by comparing its tensors with the hashes in its header.

use std::sync::{Mutex, PoisonError};

use ikq_gguf::Model;
use ikq_pool::{Cancel, Pool};

use crate::error::Error;
use crate::found::stopped;
use crate::hash;
use crate::recipe_hash;
use crate::units::Units;

/// The result of a check.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// How many tensors the file has a hash of.
    pub n_noted: usize,
    /// Names of the tensors whose bytes have another hash than the file says.
    pub changed: Vec<String>,
}

/// Compares the bytes of every tensor with the hash that the file's header has for it.
///
/// # Errors
/// [`Error::Cancelled`].
pub fn verify(model: &Model, pool: &Pool, cancel: &Cancel) -> Result<Verified, Error> {
    let mut noted = Vec::new();
    for shard in 0..model.shards().len() {
        noted.extend(recipe_hash::read(model, shard));
    }
    noted.sort_unstable_by_key(|(name, _)| *name);
    let units = Units::of_file(model.tensors())?;
    let mut wanted = Vec::new();
    for (index, t) in model.tensors().iter().enumerate() {
        let name = recipe_hash::of_name(&t.name);
        if let Ok(at) = noted.binary_search_by_key(&name, |(name, _)| *name) {
            wanted.push((index, noted[at].1.content));
        }
    }
    let hashes = Mutex::new(vec![0; units.len()]);
    let numbers = wanted.iter().flat_map(|(index, _)| units.of_tensor(*index));
    let done = pool.for_each(numbers, cancel, |number| {
        let unit = units.get(number);
        let t = &model.tensors()[unit.tensor];
        let bytes = t.read(unit.source)?;
        let hash = hash::of(&bytes);
        bytes.release();
        hashes.lock().unwrap_or_else(PoisonError::into_inner)[number] = hash;
        Ok::<(), Error>(())
    });
    stopped(done)?;
    let hashes = hashes.into_inner().unwrap_or_else(PoisonError::into_inner);
    let differs = |(index, content): &&(usize, u64)| {
        hash::joined(hashes[units.of_tensor(*index)].iter().copied()) != *content
    };
    let changed = wanted.iter().filter(differs).map(|(index, _)| model.tensors()[*index].name.clone());
    Ok(Verified { n_noted: wanted.len(), changed: changed.collect() })
}
