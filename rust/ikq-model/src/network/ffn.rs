//! Feed-forward networks as they are checked, and the plan by which gate, up and activation are computed.

use crate::error::Error;
use crate::network::{Weight, Weights};
use crate::spec::{self, Activation, Func};

/// How gate, up and activation are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlanKind {
    /// In one pass over the input.
    Fused,
    /// As one matrix of gate and up rows (a view: nothing is copied), in one pass.
    Merged,
    /// As two products and an activation.
    Separate,
}

impl PlanKind {
    /// Name for `explain`.
    pub fn name(self) -> &'static str {
        match self {
            PlanKind::Fused => "fused",
            PlanKind::Merged => "merged",
            PlanKind::Separate => "separate",
        }
    }
}

/// What was decided for an FFN at load time, and why.
#[derive(Clone, Debug)]
pub struct Plan {
    pub kind: PlanKind,
    pub why: String,
}

/// Options that decide plans.
#[derive(Clone, Copy, Debug)]
pub struct PlanOptions {
    pub fused_up_gate: bool,
    pub fused_moe: bool,
    pub merge_up_gate: bool,
}

/// Gate, up and down of one or many experts.
#[derive(Debug)]
pub struct Experts {
    pub gate: Weight,
    pub up: Weight,
    pub down: Weight,
    pub activation: Activation,
    /// Of `silu`: what gate and up are limited to.
    pub limit: Option<f32>,
    /// The input is multiplied with an expert's weight, not what it gives.
    pub weighs_input: bool,
    pub plan: Plan,
}

/// A feed-forward network.
#[derive(Debug)]
pub enum Ffn {
    Dense(Box<Dense>),
    Moe(Box<Moe>),
}

/// One expert that every token takes.
#[derive(Debug)]
pub struct Dense {
    pub experts: Experts,
    /// The result is multiplied with the sigmoid of this row's product.
    pub input_gate: Option<Weight>,
}

/// A mixture of experts.
#[derive(Debug)]
pub struct Moe {
    pub router: Weight,
    pub routing: Routing,
    pub selection_bias: Option<Vec<f32>>,
    pub experts: Experts,
    pub shared: Option<Dense>,
    pub norms: Option<Norms>,
}

/// Norms of a mixture whose router and shared FFN read x normed in a way of their own; the experts read the layer's.
#[derive(Debug)]
pub struct Norms {
    /// Of what the router reads, its factor included.
    pub router: Vec<f32>,
    pub shared: Vec<f32>,
    pub shared_output: Vec<f32>,
    pub experts_output: Vec<f32>,
}

/// The rule by which a token chooses experts; see `Routing` in `python/ikq/models/spec.py`.
#[derive(Clone, Debug)]
pub struct Routing {
    pub func: Func,
    pub n_expert: usize,
    pub n_used: usize,
    pub normalize: bool,
    pub scale: f32,
    pub n_group: usize,
    pub n_group_used: usize,
}

impl Experts {
    fn new(
        weights: &Weights<'_>,
        [gate, up, down]: [&spec::Linear; 3],
        n_experts: usize,
        (activation, limit): (Activation, Option<f32>),
        n_embd: usize,
        (options, is_moe): (PlanOptions, bool),
    ) -> Result<Experts, Error> {
        if limit.is_some_and(|l| activation != Activation::Silu || l.is_nan() || l <= 0.0) {
            return Err(Error::Spec { why: format!("a limit of {limit:?} for {activation:?}") });
        }
        let gate = weights.linear(gate, n_embd, None, n_experts)?;
        let up = weights.linear(up, n_embd, Some(gate.n_rows), n_experts)?;
        let down = weights.linear(down, up.n_rows, Some(n_embd), n_experts)?;
        let plan = Experts::plan(&gate, &up, is_moe, options);
        Ok(Experts { gate, up, down, activation, limit, weighs_input: false, plan })
    }

    /// Decides the plan.
    fn plan(gate: &Weight, up: &Weight, is_moe: bool, options: PlanOptions) -> Plan {
        let say = |kind, why: String| Plan { kind, why };
        let types = match gate.ty == up.ty {
            true => format!("gate and up are {}", gate.ty),
            false => format!("gate is {}, up is {}: different types fuse as well", gate.ty, up.ty),
        };
        if !options.fused_up_gate {
            return say(PlanKind::Separate, "fused_up_gate is off".to_string());
        }
        if is_moe && !options.fused_moe {
            return say(PlanKind::Separate, "fused_moe is off".to_string());
        }
        if gate.is_followed_by(up) {
            return say(PlanKind::Merged, format!("`{}` holds gate and up", gate.name));
        }
        match options.merge_up_gate && is_moe {
            true => say(
                PlanKind::Merged,
                format!("merging was asked for; {types}; a view of both, nothing is copied"),
            ),
            false => say(PlanKind::Fused, types),
        }
    }

    /// Rows of gate and up.
    pub fn n_ff(&self) -> usize {
        self.up.n_rows
    }

    pub fn weights(&self) -> [&Weight; 3] {
        [&self.gate, &self.up, &self.down]
    }
}

impl Ffn {
    pub(super) fn new(
        weights: &Weights<'_>,
        ffn: &spec::Ffn,
        n_embd: usize,
        plans: PlanOptions,
    ) -> Result<Ffn, Error> {
        Ok(match ffn {
            spec::Ffn::Dense(ffn) => Ffn::Dense(Box::new(Dense::new(weights, ffn, n_embd, plans)?)),
            spec::Ffn::Moe(moe) => Ffn::Moe(Box::new(Moe::new(weights, moe, n_embd, plans)?)),
        })
    }

    /// The networks with their roles.
    pub fn roles(&self) -> Vec<(&'static str, &Experts)> {
        match self {
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
            experts: Experts::new(weights, parts, 1, (ffn.activation, ffn.limit), n_embd, (plans, false))?,
            input_gate: match &ffn.input_gate {
                Some(name) => Some(weights.row(name, n_embd)?),
                None => None,
            },
        })
    }

    pub fn weights(&self) -> Vec<&Weight> {
        self.experts.weights().into_iter().chain(&self.input_gate).collect()
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
        let norms = match &moe.norms {
            Some(norms) if moe.shared.is_some() => {
                let mut router = weights.floats(&norms.router, n_embd)?;
                router.iter_mut().for_each(|w| *w *= norms.router_scale);
                Some(Norms {
                    router,
                    shared: weights.floats(&norms.shared, n_embd)?,
                    shared_output: weights.floats(&norms.shared_output, n_embd)?,
                    experts_output: weights.floats(&norms.experts_output, n_embd)?,
                })
            }
            Some(_) => return Err(Error::Spec { why: "norms of a shared expert that is not there".into() }),
            None => None,
        };
        let kind = (moe.activation, moe.limit);
        let mut experts = Experts::new(weights, parts, r.n_expert, kind, n_embd, (plans, true))?;
        experts.weighs_input = moe.weighs_input;
        if moe.weighs_input && (experts.gate.bias.is_some() || experts.up.bias.is_some()) {
            return Err(Error::Spec { why: "weighed inputs of experts with biases".into() });
        }
        Ok(Moe {
            norms,
            router: weights.linear(&r.router, n_embd, Some(r.n_expert), 1)?,
            routing: Routing {
                func: r.func,
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
            experts,
            shared: match &moe.shared {
                Some(ffn) => Some(Dense::new(weights, ffn, n_embd, plans)?),
                None => None,
            },
        })
    }
}
