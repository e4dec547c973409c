//! A model's layers as the engine holds them: weights by role, checked.

use std::collections::BTreeSet;

use ikq_kernels::ops::{Activation, Routing, RoutingFunc};

use crate::attention::{self, Attention};
use crate::error::Error;
use crate::ffn::{Experts, PlanOptions};
use crate::rope::Ropes;
use crate::spec::{self, Func, ModelSpec};
use crate::weights::{Weight, Weights, names_of};

/// One block.
pub struct Layer {
    pub attention_norm: Vec<f32>,
    pub attention: Attention,
    pub post_attention_norm: Option<Vec<f32>>,
    pub ffn_norm: Vec<f32>,
    pub ffn: Ffn,
    pub post_ffn_norm: Option<Vec<f32>>,
}

/// A feed-forward network.
pub enum Ffn {
    Dense(Box<Dense>),
    Moe(Box<Moe>),
}

/// One expert that every token takes.
pub struct Dense {
    pub experts: Experts,
    /// The result is multiplied with the sigmoid of this row's product.
    pub input_gate: Option<Weight>,
}

/// A mixture of experts.
pub struct Moe {
    pub router: Weight,
    pub routing: Routing,
    pub selection_bias: Option<Vec<f32>>,
    pub experts: Experts,
    pub shared: Option<Dense>,
}

impl Layer {
    pub fn new(
        weights: &Weights<'_>,
        layer: &spec::Layer,
        model: &ModelSpec,
        ropes: &mut Ropes,
        plans: PlanOptions,
    ) -> Result<Layer, Error> {
        let n_embd = model.n_embd;
        let norm = |name: &Option<String>| name.as_deref().map(|n| weights.floats(n, n_embd)).transpose();
        Ok(Layer {
            attention_norm: weights.floats(&layer.attention_norm, n_embd)?,
            attention: Attention::new(weights, &layer.attention, model, ropes)?,
            post_attention_norm: norm(&layer.post_attention_norm)?,
            ffn_norm: weights.floats(&layer.ffn_norm, n_embd)?,
            ffn: match &layer.ffn {
                spec::Ffn::Dense(ffn) => Ffn::Dense(Box::new(Dense::new(weights, ffn, n_embd, plans)?)),
                spec::Ffn::Moe(moe) => Ffn::Moe(Box::new(Moe::new(weights, moe, n_embd, plans)?)),
            },
            post_ffn_norm: norm(&layer.post_ffn_norm)?,
        })
    }

    /// Adds the layer's matrices to `all`.
    pub fn weights<'a>(&'a self, all: &mut Vec<&'a Weight>) {
        self.attention.weights(all);
        for (_, experts) in self.ffns() {
            all.extend([&experts.gate, &experts.up, &experts.down]);
        }
        match &self.ffn {
            Ffn::Dense(dense) => all.extend(&dense.input_gate),
            Ffn::Moe(moe) => {
                all.push(&moe.router);
                all.extend(moe.shared.iter().flat_map(|shared| &shared.input_gate));
            }
        }
    }

    /// The layer's feed-forward networks with their roles.
    pub fn ffns(&self) -> Vec<(&'static str, &Experts)> {
        match &self.ffn {
            Ffn::Dense(dense) => vec![("dense", &dense.experts)],
            Ffn::Moe(moe) => {
                let shared = moe.shared.iter().map(|s| ("shared", &s.experts));
                std::iter::once(("experts", &moe.experts)).chain(shared).collect()
            }
        }
    }
}

impl Dense {
    fn new(
        weights: &Weights<'_>,
        ffn: &spec::DenseFfn,
        n_embd: usize,
        plans: PlanOptions,
    ) -> Result<Dense, Error> {
        let parts = [&ffn.gate, &ffn.up, &ffn.down];
        Ok(Dense {
            experts: experts(weights, parts, 1, ffn.activation, n_embd, plans, false)?,
            input_gate: match &ffn.input_gate {
                Some(name) => Some(weights.row(name, n_embd)?),
                None => None,
            },
        })
    }
}

impl Moe {
    fn new(weights: &Weights<'_>, moe: &spec::Moe, n_embd: usize, plans: PlanOptions) -> Result<Moe, Error> {
        let r = &moe.routing;
        let parts = [&moe.gate, &moe.up, &moe.down];
        let in_range = (1..=r.n_expert).contains(&r.n_used)
            && r.n_group >= 1
            && r.n_expert.is_multiple_of(r.n_group)
            && (1..=r.n_group).contains(&r.n_group_used);
        if !in_range {
            return Err(Error::Spec { why: format!("impossible numbers of experts or groups: {r:?}") });
        }
        Ok(Moe {
            router: weights.linear(&r.router, n_embd, Some(r.n_expert), 1)?,
            routing: Routing {
                func: match r.func {
                    Func::Softmax => RoutingFunc::Softmax,
                    Func::Sigmoid => RoutingFunc::Sigmoid,
                    Func::SoftmaxChosen => RoutingFunc::SoftmaxChosen,
                },
                n_expert: r.n_expert,
                n_used: r.n_used,
                normalize: r.normalize,
                scale: r.scale,
                n_group: r.n_group,
                n_group_used: r.n_group_used,
            },
            selection_bias: match &r.selection_bias {
                Some(name) => Some(weights.floats(name, r.n_expert)?),
                None => None,
            },
            experts: experts(weights, parts, r.n_expert, moe.activation, n_embd, plans, true)?,
            shared: match &moe.shared {
                Some(ffn) => Some(Dense::new(weights, ffn, n_embd, plans)?),
                None => None,
            },
        })
    }
}

fn experts(
    weights: &Weights<'_>,
    [gate, up, down]: [&spec::Linear; 3],
    n_experts: usize,
    activation: spec::Activation,
    n_embd: usize,
    plans: PlanOptions,
    is_moe: bool,
) -> Result<Experts, Error> {
    let gate = weights.linear(gate, n_embd, None, n_experts)?;
    let up = weights.linear(up, n_embd, Some(gate.n_rows), n_experts)?;
    let down = weights.linear(down, up.n_rows, Some(n_embd), n_experts)?;
    let plan = Experts::plan(&gate, &up, is_moe, plans);
    let activation = match activation {
        spec::Activation::Silu => Activation::Silu,
        spec::Activation::GeluTanh => Activation::GeluTanh,
        spec::Activation::SwigluOai => Activation::SwigluOai,
    };
    Ok(Experts { gate, up, down, activation, plan })
}

/// All tensors that a model names.
pub fn tensor_names(model: &ModelSpec) -> BTreeSet<String> {
    let mut all = BTreeSet::from([model.token_embd.clone(), model.output_norm.clone()]);
    names_of(&model.output, &mut all);
    let dense = |ffn: &spec::DenseFfn, all: &mut BTreeSet<String>| {
        [&ffn.gate, &ffn.up, &ffn.down].into_iter().for_each(|l| names_of(l, all));
        all.extend(ffn.input_gate.clone());
    };
    for layer in &model.layers {
        all.extend([layer.attention_norm.clone(), layer.ffn_norm.clone()]);
        all.extend(layer.post_attention_norm.iter().chain(&layer.post_ffn_norm).cloned());
        attention::tensor_names(&layer.attention, &mut all);
        match &layer.ffn {
            spec::Ffn::Dense(ffn) => dense(ffn, &mut all),
            spec::Ffn::Moe(moe) => {
                let linears = [&moe.routing.router, &moe.gate, &moe.up, &moe.down];
                linears.into_iter().for_each(|l| names_of(l, &mut all));
                all.extend(moe.routing.selection_bias.clone());
                moe.shared.iter().for_each(|ffn| dense(ffn, &mut all));
            }
        }
    }
    all
}
