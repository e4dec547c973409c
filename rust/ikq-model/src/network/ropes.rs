//! The distinct rotary embeddings of a model. Devices make a [`RopeTable`](super::RopeTable) from each.

use crate::error::Error;
use crate::network::Weights;
use crate::spec;

/// A rope with the numbers that its tensor of factors holds.
#[derive(Clone, Debug)]
pub struct Rope {
    pub spec: spec::Rope,
    /// `n_rot / 2` numbers that angles are divided by.
    pub factors: Option<Vec<f32>>,
}

/// Which rope a layer uses.
#[derive(Clone, Copy, Debug)]
pub struct RopeId {
    pub index: usize,
    pub pairing: spec::Pairing,
    pub n_rot: usize,
}

/// The id of a rope, which is added to `all` where no other layer has the same.
///
/// # Errors
/// [`Error::Spec`] for numbers that make no rotation; those of the tensor of factors.
pub(super) fn add(all: &mut Vec<Rope>, weights: &Weights<'_>, rope: &spec::Rope) -> Result<RopeId, Error> {
    let id = |index| RopeId { index, pairing: rope.pairing, n_rot: rope.n_rot };
    if let Some(index) = all.iter().position(|known| known.spec == *rope) {
        return Ok(id(index));
    }
    let sound = rope.n_rot.is_multiple_of(2) && rope.base > 0.0 && rope.linear > 0.0;
    if !sound || !rope.base.is_finite() || !rope.linear.is_finite() {
        return Err(Error::Spec { why: format!("{rope:?} is no rotation") });
    }
    let factors = match &rope.factors {
        Some(name) => {
            let n_pairs = rope.n_rot / 2;
            let mut factors = weights.floats(name, rope.n_factors.unwrap_or(n_pairs))?;
            if factors.len() < n_pairs {
                return Err(Error::Spec { why: format!("{} factors for {n_pairs} pairs", factors.len()) });
            }
            factors.truncate(n_pairs);
            Some(factors)
        }
        None => None,
    };
    all.push(Rope { spec: rope.clone(), factors });
    Ok(id(all.len() - 1))
}
