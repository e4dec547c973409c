//! A model as all devices load it: a spec's names made into checked matrices and vectors.
//!
//! | file | what |
//! |---|---|
//! | [`weights`] | matrices by role, views of the file |
//! | [`attention`], [`ffn`] | the parts of a layer, and the plan of an FFN |
//! | [`low_rank`] | what adapters add to products |
//! | [`per_layer`] | embeddings that layers have of their own |
//! | [`ropes`] | the distinct rotary embeddings |
//! | [`angles`] | the angles that they turn by |
//!
//! Layers with the same sliding window share a page table: they are a *group*.

mod angles;
mod attention;
mod ffn;
mod low_rank;
mod per_layer;
mod ropes;
mod weights;

pub use angles::RopeTable;
pub use attention::{Attention, DeltaNet, Gqa, Mla};
pub use ffn::{Dense, Experts, Ffn, Moe, Norms, Plan, PlanKind, PlanOptions, Routing};
pub use low_rank::{Factor, LowRank};
pub use per_layer::{LayerEmbedding, PerLayer};
pub use ropes::{Rope, RopeId};
pub use weights::{Weight, Weights};

use xxhash_rust::xxh3::Xxh3;

use crate::adapter::Adapter;
use crate::device::Stage;
use crate::error::Error;
use crate::network::low_rank::Adapters;
use crate::spec::{self, ModelSpec};

/// One block.
#[derive(Debug)]
pub struct Layer {
    pub attention_norm: Vec<f32>,
    pub attention: Attention,
    pub post_attention_norm: Option<Vec<f32>>,
    pub ffn_norm: Vec<f32>,
    pub ffn: Ffn,
    pub post_ffn_norm: Option<Vec<f32>>,
    /// Factors of what the branches add.
    pub attention_factor: f32,
    pub ffn_factor: f32,
    /// The FFN reads what attention reads.
    pub parallel: bool,
    /// An embedding of the layer's own, and how it is added.
    pub embedding: Option<LayerEmbedding>,
    /// The factor of what the layer gives.
    pub scale: Option<f32>,
    /// The layer's group; `None` for recurrent layers. One that shares another's keys is not among the group's layers.
    pub group: Option<usize>,
}

/// What a multi-token prediction head makes its first hidden state from.
#[derive(Debug)]
pub struct Nextn {
    /// Norm of the embedding.
    pub enorm: Vec<f32>,
    /// Norm of the hidden state that is given.
    pub hnorm: Vec<f32>,
    /// The matrix that maps both, the embedding first, to one hidden state.
    pub eh_proj: Weight,
}

/// Layers that see the same positions.
#[derive(Clone, Debug)]
pub struct Group {
    pub window: Option<usize>,
    pub layers: Vec<usize>,
}

/// The whole model.
#[derive(Debug)]
pub struct Network {
    pub spec: ModelSpec,
    /// `None`: a part of a model, which is given hidden states.
    pub token_embd: Option<Weight>,
    /// What adapters add to the embeddings: A has a row for every token.
    pub token_embd_low_rank: Vec<LowRank>,
    /// What a multi-token prediction head has in front of its layer; `None` for other models.
    pub nextn: Option<Nextn>,
    pub per_layer: Option<PerLayer>,
    pub layers: Vec<Layer>,
    /// `None`: a part of a model, whose hidden states are given back as they are.
    pub output_norm: Option<Vec<f32>>,
    pub output: Option<Weight>,
    pub ropes: Vec<Rope>,
    pub groups: Vec<Group>,
    /// Hash of names, types, shapes and samples of the bytes of all tensors: saved sequences belong to it.
    pub hash: u64,
}

impl Network {
    /// Checks a file's tensors against a spec.
    ///
    /// # Errors
    /// What is missing or does not fit: see [`Error`].
    pub fn new(model: &ikq_gguf::Model, spec: ModelSpec, plans: PlanOptions) -> Result<Network, Error> {
        Network::with_adapters(model, spec, plans, &[])
    }

    /// The network with adapters beside its matrices.
    ///
    /// # Errors
    /// As [`Network::new`]; [`Error::AdapterShape`], and [`Error::Adapter`] for a pair without a product.
    pub fn with_adapters(
        model: &ikq_gguf::Model,
        spec: ModelSpec,
        plans: PlanOptions,
        adapters: &[Adapter],
    ) -> Result<Network, Error> {
        let embedding = spec.token_embd.clone();
        let weights = Weights { model, adapters: Adapters::new(adapters, &embedding) };
        let n_embd = spec.n_embd;
        let is_whole = !spec.is_part;
        let output_norm = is_whole.then(|| weights.floats(&spec.output_norm, n_embd)).transpose()?;
        let output = spec.output.as_ref().filter(|_| is_whole);
        let output = output.map(|o| weights.linear(o, n_embd, Some(spec.n_vocab), 1)).transpose()?;
        let nextn = match &spec.nextn {
            Some(nextn) => Some(Nextn {
                enorm: weights.floats(&nextn.enorm, n_embd)?,
                hnorm: weights.floats(&nextn.hnorm, n_embd)?,
                eh_proj: weights.linear(&nextn.eh_proj, 2 * n_embd, Some(n_embd), 1)?,
            }),
            None => None,
        };
        let token_embd =
            is_whole.then(|| weights.matrix(&spec.token_embd, n_embd, spec.n_vocab)).transpose()?;
        let mut ropes = Vec::new();
        let mut groups: Vec<Group> = Vec::new();
        let mut layers: Vec<Layer> = Vec::new();
        for (i, layer) in spec.layers.iter().enumerate() {
            let mut layer = Layer::new(&weights, layer, &spec, &mut ropes, plans)?;
            if !layer.attention.is_recurrent() {
                let window = layer.attention.window();
                let known = groups.iter().position(|g| g.window == window);
                let group = known.unwrap_or_else(|| {
                    groups.push(Group { window, layers: Vec::new() });
                    groups.len() - 1
                });
                match layer.attention.shares() {
                    None => groups[group].layers.push(i),
                    Some(other) => check_shared(&layers, &layer, other)?,
                }
                layer.group = Some(group);
            }
            layers.push(layer);
        }
        let token_embd_low_rank = match &token_embd {
            Some(_) => weights.adapters.of_embedding(spec.n_vocab, n_embd)?,
            None => Vec::new(),
        };
        weights.adapters.check_used(model)?;
        let per_layer = PerLayer::new(&weights, &spec)?;
        let hash = hash(model);
        Ok(Network {
            spec,
            token_embd,
            token_embd_low_rank,
            nextn,
            per_layer,
            layers,
            output_norm,
            output,
            ropes,
            groups,
            hash,
        })
    }

    /// Whether every token of a step comes with a hidden state.
    pub fn is_given_hidden(&self) -> bool {
        self.spec.is_part || self.nextn.is_some()
    }

    pub fn has_recurrent_layers(&self) -> bool {
        self.layers.iter().any(|l| l.group.is_none())
    }

    /// The matrices of a stage. Embeddings stay in the file.
    ///
    /// # Panics
    /// For a stage that the model has not.
    pub fn weights_of(&self, stage: Stage) -> Vec<&Weight> {
        let ffn = |l: usize| &self.layers[l].ffn;
        match stage {
            Stage::Embed => {
                let nextn = self.nextn.iter().map(|n| &n.eh_proj);
                nextn.chain(self.per_layer.iter().map(|p| &p.proj)).collect()
            }
            Stage::End(l) => self.layers[l].embedding.iter().flat_map(LayerEmbedding::weights).collect(),
            Stage::Join(_) | Stage::Project(_) | Stage::Attend(_) | Stage::Output(_) => Vec::new(),
            Stage::Attention(l) => self.layers[l].attention.weights(),
            Stage::Head => self.output.iter().collect(),
            Stage::Dense(l) => match ffn(l) {
                Ffn::Dense(dense) => dense.weights(),
                Ffn::Moe(_) => unreachable!("the placement knows which layers have experts"),
            },
            Stage::Route(l) | Stage::Experts(l) | Stage::Shared(l) => match (stage, ffn(l)) {
                (Stage::Route(_), Ffn::Moe(moe)) => vec![&moe.router],
                (Stage::Experts(_), Ffn::Moe(moe)) => moe.experts.weights().to_vec(),
                (_, Ffn::Moe(moe)) => moe.shared.iter().flat_map(Dense::weights).collect(),
                (_, Ffn::Dense(_)) => unreachable!("the placement knows which layers have experts"),
            },
        }
    }

    /// Whether positions of a sequence can be moved.
    pub fn can_shift(&self) -> bool {
        self.layers.iter().all(|l| l.attention.can_turn())
    }

    /// All matrices.
    pub fn weights(&self) -> Vec<&Weight> {
        let mut all: Vec<&Weight> = self.token_embd.iter().collect();
        all.extend(self.output.iter().chain(self.nextn.iter().map(|n| &n.eh_proj)));
        all.extend(self.per_layer.iter().flat_map(|p| [&p.embd, &p.proj]));
        self.layers.iter().for_each(|layer| all.extend(layer.weights()));
        all
    }
}

impl Layer {
    fn new(
        weights: &Weights<'_>,
        layer: &spec::Layer,
        model: &ModelSpec,
        ropes: &mut Vec<Rope>,
        plans: PlanOptions,
    ) -> Result<Layer, Error> {
        let n_embd = model.n_embd;
        let norm = |name: &Option<String>| name.as_deref().map(|n| weights.floats(n, n_embd)).transpose();
        Ok(Layer {
            attention_norm: weights.floats(&layer.attention_norm, n_embd)?,
            attention: Attention::new(weights, &layer.attention, model, ropes)?,
            post_attention_norm: norm(&layer.post_attention_norm)?,
            ffn_norm: weights.floats(&layer.ffn_norm, n_embd)?,
            ffn: Ffn::new(weights, &layer.ffn, n_embd, plans)?,
            post_ffn_norm: norm(&layer.post_ffn_norm)?,
            attention_factor: layer.attention_factor,
            ffn_factor: layer.ffn_factor,
            parallel: layer.parallel,
            embedding: LayerEmbedding::new(weights, layer, model)?,
            scale: match &layer.scale {
                Some(name) => Some(weights.floats(name, 1)?[0]),
                None => None,
            },
            group: None,
        })
    }

    /// What attention has in some models only, and not every device computes, in words.
    pub fn rare_attention(&self) -> Option<&'static str> {
        let parallel = self.parallel.then_some("attention beside its FFN");
        let factor = (self.attention_factor != 1.0).then_some("a factor of what attention adds");
        parallel.or(factor).or(self.attention.rare_part())
    }

    /// What the FFN has in some models only, and not every device computes, in words.
    pub fn rare_ffn(&self) -> Option<&'static str> {
        let factor = (self.ffn_factor != 1.0).then_some("a factor of what the FFN adds");
        let parallel = self.parallel.then_some("an FFN beside attention");
        let roles = self.ffn.roles();
        let limited = roles.iter().any(|(_, experts)| experts.limit.is_some());
        let weighs = roles.iter().any(|(_, experts)| experts.weighs_input);
        let experts = weighs.then_some("experts whose input is weighed");
        parallel.or(factor).or(limited.then_some("an FFN with limits")).or(experts)
    }

    /// Whether something is done with x after the FFN was added.
    pub fn has_end(&self) -> bool {
        self.embedding.is_some() || self.scale.is_some()
    }

    /// The layer's matrices.
    pub fn weights(&self) -> Vec<&Weight> {
        let mut all = self.attention.weights();
        all.extend(self.embedding.iter().flat_map(LayerEmbedding::weights));
        match &self.ffn {
            Ffn::Dense(dense) => all.extend(dense.weights()),
            Ffn::Moe(moe) => {
                all.push(&moe.router);
                all.extend(moe.experts.weights());
                all.extend(moe.shared.iter().flat_map(Dense::weights));
            }
        }
        all
    }
}

/// Looks whether a layer can read the keys and values of layer `other`.
///
/// # Errors
/// [`Error::Spec`].
fn check_shared(before: &[Layer], layer: &Layer, other: usize) -> Result<(), Error> {
    let shape = |a: &Attention| match a {
        Attention::Gqa(a) => Some((a.n_head_kv, a.head_dim, a.head_dim_v, a.window)),
        _ => None,
    };
    let found = before.get(other).filter(|l| l.attention.shares().is_none());
    match found.is_some_and(|l| shape(&l.attention) == shape(&layer.attention)) {
        true => Ok(()),
        false => {
            let why = format!("layer {} cannot read the keys and values of layer {other}", before.len());
            Err(Error::Spec { why })
        }
    }
}

/// Bytes of a tensor's beginning and end that its model's hash reads: enough to tell models apart without reading
/// them whole.
const SAMPLE: usize = 4096;

fn hash(model: &ikq_gguf::Model) -> u64 {
    let mut hash = Xxh3::new();
    for tensor in model.tensors() {
        hash.update(tensor.name.as_bytes());
        hash.update(&[0]);
        hash.update(format!("{:?}", tensor.ty).as_bytes());
        tensor.ne.iter().for_each(|n| hash.update(&n.to_le_bytes()));
        let n = tensor.data.len().min(SAMPLE);
        hash.update(&tensor.data[..n]);
        hash.update(&tensor.data[tensor.data.len() - n..]);
    }
    hash.digest()
}
