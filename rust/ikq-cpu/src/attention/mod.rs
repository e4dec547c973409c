//! Attention layers: grouped heads, latent (MLA), recurrent (gated delta-net).
//!
//! Every kind reads the normed input, writes its result to `out`, and keeps what it must remember in the layer's
//! cache.

mod delta_net;
mod gqa;
mod mla;
mod paged;
pub mod parted;

use ikq_kernels::act::Activations;
use ikq_kernels::attention::Partial;
use ikq_kernels::matmul::Compute;
use ikq_model::network;

use crate::cache::LayerCache;
use crate::exec::{Exec, Forms};
use crate::load::Loaded;

pub use paged::Cuts;
use paged::LayerPages;

/// The weights of a layer's attention.
pub enum Attention {
    Gqa(gqa::Weights),
    Mla(mla::Weights),
    DeltaNet(delta_net::Weights),
}

/// Buffers between the phases of attention.
#[derive(Default)]
pub struct AttentionBuffers {
    pub q: Vec<f32>,
    pub k: Vec<f32>,
    pub v: Vec<f32>,
    pub z: Vec<f32>,
    /// A second input of products: compressed queries, values of all heads.
    pub inner: Activations,
    pub outer: Activations,
    pub partial: Vec<Partial>,
}

impl Attention {
    /// The weights of `attention`, taken from those loaded.
    pub fn new(attention: &network::Attention, loaded: &mut Loaded) -> Attention {
        match attention {
            network::Attention::Gqa(a) => Attention::Gqa(gqa::Weights::new(a, loaded)),
            network::Attention::Mla(a) => Attention::Mla(mla::Weights::new(a, loaded)),
            network::Attention::DeltaNet(a) => Attention::DeltaNet(delta_net::Weights::new(a, loaded)),
        }
    }

    /// The forms of the normed input that its products read.
    pub fn input_forms(&self, compute: Compute) -> Forms {
        Forms::of(
            compute,
            match self {
                Attention::Gqa(w) => w.inputs(),
                Attention::Mla(w) => w.inputs(),
                Attention::DeltaNet(w) => w.inputs(),
            },
        )
    }

    /// Runs the layer for the batch's tokens, whose normed input is in `acts`.
    pub fn run(
        &self,
        exec: &Exec<'_>,
        layer: &network::Layer,
        acts: &Activations,
        cache: &mut LayerCache,
        buffers: &mut AttentionBuffers,
        out: &mut [f32],
    ) {
        let group = || layer.group.expect("layers with keys belong to a group");
        match (self, &layer.attention, cache) {
            (Attention::Gqa(w), network::Attention::Gqa(a), LayerCache::KeysValues(keys, values)) => {
                let pages = LayerPages { group: group(), keys, values: Some(values) };
                gqa::project(exec, a, w, acts, buffers);
                gqa::attend(exec, a, pages, buffers, acts.n_columns());
                gqa::output(exec, w, buffers, out);
            }
            (Attention::Mla(w), network::Attention::Mla(a), LayerCache::Latent(keys)) => {
                let pages = LayerPages { group: group(), keys, values: None };
                mla::run(exec, a, w, acts, pages, buffers, out);
            }
            (Attention::DeltaNet(w), network::Attention::DeltaNet(a), LayerCache::Recurrent(_, states)) => {
                delta_net::run(exec, a, w, acts, states, buffers, out);
            }
            _ => unreachable!("`LayerCache::new` made the cache of this kind"),
        }
    }
}
