//! The rotary embeddings of a model: most layers share one, and its angles are computed once per step.

use ikq_kernels::ops::{Pairing, RopeTable, Yarn};

use crate::error::Error;
use crate::spec;
use crate::weights::Weights;

/// All distinct ropes of a model.
#[derive(Default)]
pub struct Ropes {
    tables: Vec<(spec::Rope, RopeTable)>,
}

/// Cosines and sines of a step's positions: `n_rot` numbers per position.
#[derive(Default)]
pub struct Angles {
    n_rot: usize,
    values: Vec<f32>,
}

impl Angles {
    /// Of the step's token `token`.
    pub fn of(&self, token: usize) -> &[f32] {
        &self.values[token * self.n_rot..(token + 1) * self.n_rot]
    }
}

/// Which rope a layer uses.
#[derive(Clone, Copy, Debug)]
pub struct RopeId {
    pub index: usize,
    pub pairing: Pairing,
    pub n_rot: usize,
}

impl Ropes {
    /// The rope, made where no other layer has the same.
    ///
    /// # Errors
    /// [`Error::Spec`] for numbers that make no rotation; those of the tensor of factors.
    pub fn add(&mut self, weights: &Weights<'_>, rope: &spec::Rope) -> Result<RopeId, Error> {
        let pairing = match rope.pairing {
            spec::Pairing::Norm => Pairing::Norm,
            spec::Pairing::Neox => Pairing::Neox,
        };
        let id = |index| RopeId { index, pairing, n_rot: rope.n_rot };
        if let Some(index) = self.tables.iter().position(|(known, _)| known == rope) {
            return Ok(id(index));
        }
        let sound = rope.n_rot.is_multiple_of(2) && rope.base > 0.0 && rope.linear > 0.0;
        if !sound || !rope.base.is_finite() || !rope.linear.is_finite() {
            return Err(Error::Spec { why: format!("{rope:?} is no rotation") });
        }
        let factors = match &rope.factors {
            Some(name) => Some(weights.floats(name, rope.n_rot / 2)?),
            None => None,
        };
        let yarn = rope.yarn.map(|y| Yarn {
            factor: y.factor,
            n_ctx_orig: y.n_ctx_orig as f64,
            beta_fast: y.beta_fast,
            beta_slow: y.beta_slow,
            magnitude: y.magnitude,
            truncate: y.truncate,
        });
        let table = RopeTable::new(rope.n_rot, rope.base, rope.linear, factors.as_deref(), yarn);
        self.tables.push((rope.clone(), table));
        Ok(id(self.tables.len() - 1))
    }

    /// Angles of the positions from `first` on, for every rope.
    pub fn angles(&self, first: usize, n: usize, angles: &mut Vec<Angles>) {
        angles.resize_with(self.tables.len(), Angles::default);
        for ((rope, table), angles) in self.tables.iter().zip(angles) {
            angles.n_rot = rope.n_rot;
            angles.values.resize(n * rope.n_rot, 0.0);
            for (i, out) in angles.values.chunks_exact_mut(rope.n_rot.max(1)).enumerate() {
                table.cos_sin((first + i) as u32, out);
            }
        }
    }

    pub fn table(&self, id: RopeId) -> &RopeTable {
        &self.tables[id.index].1
    }
}
