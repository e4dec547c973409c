//! The angles of a step's positions, for a model's rotary embeddings.

use ikq_kernels::ops::Pairing;
use ikq_model::network::{RopeId, RopeTable};
use ikq_model::spec;

/// Cosines and sines of a step's positions: `n_rot` numbers per column.
#[derive(Default)]
pub struct Angles {
    n_rot: usize,
    values: Vec<f32>,
}

impl Angles {
    /// The cosines and sines of the step's column `column`.
    pub fn of(&self, column: usize) -> &[f32] {
        &self.values[column * self.n_rot..(column + 1) * self.n_rot]
    }
}

/// Which elements a rotary embedding turns together.
pub fn pairing(id: RopeId) -> Pairing {
    match id.pairing {
        spec::Pairing::Norm => Pairing::Norm,
        spec::Pairing::Neox => Pairing::Neox,
    }
}

/// Computes cosines and sines of these positions for every rotary embedding of the model.
pub fn angles(tables: &[RopeTable], positions: &[u32], angles: &mut Vec<Angles>) {
    angles.resize_with(tables.len(), Angles::default);
    for (table, angles) in tables.iter().zip(angles) {
        angles.n_rot = table.n_rot();
        angles.values.resize(positions.len() * table.n_rot(), 0.0);
        for (position, out) in positions.iter().zip(angles.values.chunks_exact_mut(table.n_rot().max(1))) {
            table.cos_sin(*position, out);
        }
    }
}
