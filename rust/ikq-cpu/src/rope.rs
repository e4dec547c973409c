//! Tables of a model's rotary embeddings, and the angles of a step's positions.

use ikq_kernels::ops::{Pairing, RopeTable, Yarn};
use ikq_model::network::{Rope, RopeId};
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

/// The table of angles for a rotary embedding of the model.
pub fn table(rope: &Rope) -> RopeTable {
    let r = &rope.spec;
    let yarn = r.yarn.map(|y| Yarn {
        factor: y.factor,
        n_ctx_orig: y.n_ctx_orig as f64,
        beta_fast: y.beta_fast,
        beta_slow: y.beta_slow,
        magnitude: y.magnitude,
        truncate: y.truncate,
    });
    RopeTable::new(r.n_rot, r.base, r.linear, rope.factors.as_deref(), yarn)
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
