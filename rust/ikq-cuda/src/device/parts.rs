//! [`Parts`]: the weights of a device's stages. Their addresses are in its arena, which lives as long.

use ikq_formats::QuantType;
use ikq_model::network;

use super::borrowed::Borrowed;
use super::slabs::Layout;
use crate::blas::is_taken;
use crate::blas_table::Table;
use crate::memory::{Address, Arena};
use crate::plan::{DeltaSizes, Glu, reads_codes};
use crate::weights::Matrix;

/// A matrix, or one per expert, with the bias of its products.
#[derive(Clone, Copy, Debug)]
pub struct Linear {
    /// The matrix of the first expert; those of the others follow in memory.
    pub matrix: Matrix,
    pub bias: Option<Address>,
}

impl Linear {
    pub fn ty(&self) -> QuantType {
        self.matrix.ty
    }

    pub fn n_rows(&self) -> usize {
        self.matrix.n_rows
    }

    /// Rows, and elements of a row.
    pub fn sizes(&self) -> [usize; 2] {
        [self.matrix.n_rows, self.matrix.n]
    }
}

/// Gate, up and down of one or many experts.
#[derive(Clone, Copy, Debug)]
pub struct Ffn {
    pub gate: Linear,
    pub up: Linear,
    pub down: Linear,
    pub n_experts: usize,
    pub glu: Glu,
    /// Whether gate and up are computed as two products and an activation, instead of in one launch.
    pub apart: bool,
    /// A matrix of one row; the result is multiplied with the sigmoid of its product with the input.
    pub input_gate: Option<Linear>,
}

impl Ffn {
    /// Whether up, gate and activation are computed apart in steps of many columns: floats have no tiles for both at once.
    pub fn is_apart_in_tiles(&self) -> bool {
        self.apart || !reads_codes(self.up.ty())
    }

    /// Whether they are because both are products by cuBLAS, with so many columns. This is not for experts.
    pub fn is_apart_for(&self, blas: &Table, n_columns: usize) -> bool {
        [&self.up, &self.gate].into_iter().all(|w| is_taken(blas, w.ty(), w.sizes(), n_columns))
    }

    /// The matrices that all columns are multiplied with.
    fn matrices(&self) -> impl Iterator<Item = &Linear> {
        [&self.gate, &self.up, &self.down].into_iter().chain(&self.input_gate)
    }
}

/// A dense layer's FFN.
#[derive(Clone, Copy, Debug)]
pub struct Dense {
    pub norm: Address,
    pub ffn: Ffn,
    pub post_norm: Option<Address>,
}

/// The router of a mixture of experts, and what is needed to join their results.
#[derive(Clone, Debug)]
pub struct Router {
    pub norm: Address,
    pub weight: Linear,
    pub bias: Option<Address>,
    pub rule: network::Routing,
    pub has_shared: bool,
    pub post_norm: Option<Address>,
    /// Whether another device has the experts, so that the choices must be copied to the host.
    pub is_read: bool,
}

/// A layer's attention.
#[derive(Clone, Copy, Debug)]
pub struct Attention {
    pub norm: Address,
    pub post_norm: Option<Address>,
    pub kind: Kind,
    /// Whether this device has the cache, too; otherwise it computes the products only.
    pub is_cached: bool,
}

/// The kind of a layer's attention.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    Gqa(Gqa),
    Mla(Mla),
    DeltaNet(DeltaNet),
}

/// The weights of attention with grouped heads; its sizes are those of `network::Gqa`.
#[derive(Clone, Copy, Debug)]
pub struct Gqa {
    pub q: Linear,
    pub k: Linear,
    pub v: Linear,
    pub output: Linear,
    pub q_norm: Option<Address>,
    pub k_norm: Option<Address>,
    pub sinks: Option<Address>,
}

/// The weights of latent attention, absorbed; its sizes are those of `network::Mla`.
#[derive(Clone, Copy, Debug)]
pub struct Mla {
    pub q: Linear,
    pub q_a: Option<(Linear, Address)>,
    pub kv_a: Linear,
    pub kv_a_norm: Address,
    pub k_b: Linear,
    pub v_b: Linear,
    pub output: Linear,
}

/// Elements of the row that latent attention caches for each token.
pub fn latent_row(a: &network::Mla) -> usize {
    a.kv_rank + a.rope.n_rot
}

/// A gated delta-net layer; the fields are those of `network::DeltaNet`.
#[derive(Clone, Copy, Debug)]
pub struct DeltaNet {
    pub sizes: DeltaSizes,
    pub tiled: bool,
    /// Queries, keys and values; where `z` is `None`, the gates of the output, too, mixed by key head.
    pub qkv: Linear,
    pub z: Option<Linear>,
    /// `alpha` is `None` where `beta` has the rows of both, grouped by key head.
    pub beta: Linear,
    pub alpha: Option<Linear>,
    pub conv: Address,
    pub dt: Address,
    pub slope: Address,
    pub norm: Address,
    pub output: Linear,
}

impl Kind {
    /// The matrices that all columns are multiplied with.
    fn matrices(&self) -> Vec<&Linear> {
        match self {
            Kind::Gqa(a) => vec![&a.q, &a.k, &a.v, &a.output],
            Kind::Mla(a) => {
                let compressed = a.q_a.as_ref().map(|(q_a, _)| q_a);
                [&a.q, &a.kv_a, &a.output].into_iter().chain(compressed).collect()
            }
            Kind::DeltaNet(a) => {
                [&a.qkv, &a.beta, &a.output].into_iter().chain(&a.z).chain(&a.alpha).collect()
            }
        }
    }
}

/// The output norm and matrix. Parts of models, and heads for further tokens, may have no matrix of their own, or neither:
/// then there are only hidden states.
#[derive(Clone, Copy, Debug)]
pub struct Head {
    pub norm: Option<Address>,
    pub output: Option<Linear>,
}

/// The weights of stages; those of layers are indexed by layer, and `None` where another device has the stage.
#[derive(Default)]
pub struct Parts {
    pub _arena: Option<Arena>,
    pub attention: Vec<Option<Attention>>,
    pub dense: Vec<Option<Dense>>,
    pub router: Vec<Option<Router>>,
    pub experts: Vec<Option<Ffn>>,
    /// Experts that the CPU has, and that are computed here in large steps.
    pub borrowed: Vec<Option<Borrowed>>,
    pub shared: Vec<Option<Ffn>>,
    pub head: Option<Head>,
    /// The most experts that a token takes in any layer.
    pub most_used: usize,
}

impl Parts {
    /// No stages of any of `n_layers` layers.
    pub fn none(n_layers: usize) -> Parts {
        Parts {
            attention: vec![None; n_layers],
            dense: vec![None; n_layers],
            router: vec![None; n_layers],
            experts: vec![None; n_layers],
            borrowed: vec![None; n_layers],
            shared: vec![None; n_layers],
            ..Parts::default()
        }
    }

    /// Type and sizes of the matrices that all columns of a step are multiplied with: not those of experts, nor the output,
    /// which is multiplied with a few at a time.
    pub fn multiplied(&self) -> impl Iterator<Item = (QuantType, [usize; 2])> {
        let attention = self.attention.iter().flatten().flat_map(|a| a.kind.matrices());
        let dense = self.dense.iter().flatten().flat_map(|dense| dense.ffn.matrices());
        let routers = self.router.iter().flatten().map(|router| &router.weight);
        let shared = self.shared.iter().flatten().flat_map(Ffn::matrices);
        attention.chain(dense).chain(routers).chain(shared).map(|w| (w.ty(), w.sizes()))
    }

    /// The experts that are computed here though the CPU has them, in a step of so many columns.
    pub fn borrowed_of(&self, n_columns: usize) -> impl Iterator<Item = &Borrowed> + Clone {
        self.borrowed.iter().flatten().filter(move |b| n_columns >= b.from)
    }

    /// How the parts of those lie in memory.
    pub fn layouts(&self, n_columns: usize) -> impl Iterator<Item = &Layout> + Clone {
        self.borrowed_of(n_columns).map(|b| &b.layout)
    }

    /// Whether there is no stage at all.
    pub fn is_empty(&self) -> bool {
        let Parts { attention, dense, router, experts, shared, head, .. } = self; // those borrowed come with a router
        head.is_none()
            && attention.iter().all(Option::is_none)
            && dense.iter().all(Option::is_none)
            && router.iter().all(Option::is_none)
            && experts.iter().chain(shared).all(Option::is_none)
    }
}
