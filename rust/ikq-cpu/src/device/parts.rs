//! [`Parts`]: the weights of a device's stages.

use ikq_model::device::Stage;
use ikq_model::network::{Ffn, Layer, Network};

use crate::attention::Attention;
use crate::ffn::Experts;
use crate::load::Loaded;
use crate::low_rank::Embedded;
use crate::router::Router;
use crate::stages::{Dense, End};
use crate::weight::Weight;

/// The weights of this device's stages, by layer.
#[derive(Default)]
pub(super) struct Parts {
    pub attention: Vec<Option<Attention>>,
    pub dense: Vec<Option<Dense>>,
    pub router: Vec<Option<Router>>,
    pub experts: Vec<Option<Experts>>,
    pub shared: Vec<Option<Dense>>,
    pub eh_proj: Option<Weight>,
    /// What adapters add to embeddings.
    pub embedded: Vec<Embedded>,
    /// What the embeddings of layers are projected with, and what each layer does with its own.
    pub per_layer: Option<Weight>,
    pub ends: Vec<Option<End>>,
    pub head: Option<Weight>,
}

impl Parts {
    pub fn new(network: &Network, stages: &[Stage], loaded: &mut Loaded) -> Parts {
        let n = network.layers.len();
        let mut parts = Parts::default();
        parts.attention.resize_with(n, || None);
        parts.dense.resize_with(n, || None);
        parts.router.resize_with(n, || None);
        parts.experts.resize_with(n, || None);
        parts.shared.resize_with(n, || None);
        parts.ends.resize_with(n, || None);
        for stage in stages {
            match (*stage, stage.layer().map(|l| &network.layers[l])) {
                (Stage::Attention(l), Some(layer)) => {
                    parts.attention[l] = Some(Attention::new(&layer.attention, loaded));
                }
                (Stage::Dense(l), Some(Layer { ffn: Ffn::Dense(dense), .. })) => {
                    parts.dense[l] = Some(Dense::new(dense, loaded));
                }
                (Stage::Route(l), Some(Layer { ffn: Ffn::Moe(moe), .. })) => {
                    parts.router[l] = Some(Router::new(moe, loaded));
                }
                (Stage::Experts(l), Some(Layer { ffn: Ffn::Moe(moe), .. })) => {
                    parts.experts[l] = Some(Experts::new(&moe.experts, loaded));
                }
                (Stage::Shared(l), Some(Layer { ffn: Ffn::Moe(moe), .. })) => {
                    parts.shared[l] = moe.shared.as_ref().map(|s| Dense::new(s, loaded));
                }
                (Stage::Head, _) => parts.head = network.output.as_ref().map(|w| loaded.take(w)),
                (Stage::End(l), Some(layer)) => {
                    parts.ends[l] = layer.embedding.as_ref().map(|e| End::new(e, loaded));
                }
                (Stage::Embed, _) => {
                    parts.eh_proj = network.nextn.as_ref().map(|n| loaded.take(&n.eh_proj));
                    parts.per_layer = network.per_layer.as_ref().map(|p| loaded.take(&p.proj));
                }
                _ => {}
            }
        }
        parts
    }
}
