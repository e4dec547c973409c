//! Routing: which experts every token takes.

use ikq_kernels::act::Activations;
use ikq_kernels::ops::{Routing, RoutingFunc};
use ikq_model::device::{Choices, RouterFailed};
use ikq_model::network;
use ikq_model::spec::Func;

use crate::exec::{Exec, Product, room};
use crate::load::Loaded;
use crate::weight::Weight;

/// A router and its rule.
pub struct Router {
    pub weight: Weight,
    routing: Routing,
    selection_bias: Option<Vec<f32>>,
}

impl Router {
    /// The router of `moe`, taken from what was loaded.
    pub fn new(moe: &network::Moe, loaded: &mut Loaded) -> Router {
        let r = &moe.routing;
        Router {
            weight: loaded.take(&moe.router),
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
            selection_bias: moe.selection_bias.clone(),
        }
    }

    /// The choices of every column of `acts`. With `reduction` (k, t), experts after the first k are dropped whose
    /// weight is below t times the largest.
    ///
    /// # Errors
    /// [`RouterFailed`] with the first column whose scores are not finite.
    pub fn run(
        &self,
        exec: &Exec<'_>,
        acts: &Activations,
        reduction: Option<(usize, f32)>,
        scores: &mut Vec<f32>,
        choices: &mut Choices,
    ) -> Result<(), RouterFailed> {
        let (n, n_expert) = (acts.n_columns(), self.routing.n_expert);
        let scores = room(scores, n * n_expert);
        exec.project(acts, vec![Product::new(&self.weight, scores)]);
        choices.resize_with(n, Vec::new);
        let mut tokens: Vec<_> =
            scores.chunks_exact(n_expert).zip(choices.iter_mut()).map(|u| (u, true)).collect();
        let step = exec.runs(n).next().map_or(1, |r| r.len());
        let mut units: Vec<_> = tokens.chunks_mut(step).collect();
        exec.team.for_each(&mut units, |tokens, _| {
            for ((scores, chosen), fine) in tokens.iter_mut() {
                let bias = self.selection_bias.as_deref();
                *fine = self.routing.choose(scores, bias, reduction, chosen).is_ok();
            }
        });
        if let Some(column) = tokens.iter().position(|(_, fine)| !fine) {
            return Err(RouterFailed { column });
        }
        if let Some(collector) = exec.collector.filter(|c| c.options().choices) {
            collector.choose(&self.weight.name, choices);
        }
        Ok(())
    }
}
