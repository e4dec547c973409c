//! The stages of a layer on this device, each a function of the values that it reads.

use ikq_kernels::act::Activations;
use ikq_kernels::matmul::Compute;
use ikq_kernels::ops;
use ikq_model::device::Choices;
use ikq_model::network;

use crate::exec::{Exec, Forms, Product, room};
use crate::ffn::{self, Experts, FfnBuffers};
use crate::load::Loaded;
use crate::weight::Weight;

/// One expert that every token takes.
pub struct Dense {
    pub experts: Experts,
    input_gate: Option<Weight>,
}

impl Dense {
    /// The weights of `dense`, taken from those loaded.
    pub fn new(dense: &network::Dense, loaded: &mut Loaded) -> Dense {
        Dense {
            experts: Experts::new(&dense.experts, loaded),
            input_gate: dense.input_gate.as_ref().map(|w| loaded.take(w)),
        }
    }

    /// The forms in which its products read the input.
    pub fn input_forms(&self, compute: Compute) -> Forms {
        let gate = Forms::of(compute, &self.input_gate);
        Forms { q8: gate.q8 || self.experts.input_forms(compute).q8 }
    }

    /// The network's result for every column of `acts`, written to `out`.
    pub fn run(
        &self,
        exec: &Exec<'_>,
        acts: &Activations,
        buffers: &mut FfnBuffers,
        gates: &mut Vec<f32>,
        out: &mut [f32],
    ) {
        let n = acts.n_columns();
        match &self.input_gate {
            None => buffers.groups.all_to_one(std::iter::repeat_n(1.0, n)),
            Some(gate) => {
                let gates = room(gates, n);
                exec.project(acts, vec![Product::new(gate, gates)]);
                buffers.groups.all_to_one(gates.iter().map(|g| ops::sigmoid(*g)));
            }
        }
        out.fill(0.0);
        ffn::run(exec, &self.experts, acts, buffers, out);
    }
}

/// The weighted sum of the chosen experts for every column of `acts`, written to `out`.
pub fn experts(
    exec: &Exec<'_>,
    experts: &Experts,
    acts: &Activations,
    choices: &Choices,
    buffers: &mut FfnBuffers,
    out: &mut [f32],
) {
    let all = exec.collector.filter(|c| c.options().all_experts).is_some();
    if all {
        ffn::collect_all(exec, experts, acts, buffers);
    }
    buffers.groups.assign(choices, experts.up.n_experts());
    out.fill(0.0);
    let unseen = Exec { collector: None, ..*exec };
    ffn::run(if all { &unseen } else { exec }, experts, acts, buffers, out);
}

/// Adds a branch to the residual stream, normed first where the model says so, times a factor.
pub fn add_branch(
    exec: &Exec<'_>,
    x: &mut [f32],
    branch: &mut [f32],
    (norm, factor): (Option<&[f32]>, f32),
    n_embd: usize,
) {
    let mut columns: Vec<_> = x.chunks_exact_mut(n_embd).zip(branch.chunks_exact_mut(n_embd)).collect();
    let step = exec.runs(columns.len()).next().map_or(1, |r| r.len());
    let mut units: Vec<_> = columns.chunks_mut(step).collect();
    exec.team.for_each(&mut units, |columns, _| {
        for (x, branch) in columns.iter_mut() {
            if let Some(norm) = norm {
                ops::rms_norm_in_place(exec.kind, branch, norm, exec.norm_eps);
            }
            match factor == 1.0 {
                true => x.iter_mut().zip(branch.iter()).for_each(|(x, b)| *x += b),
                false => x.iter_mut().zip(branch.iter()).for_each(|(x, b)| *x += factor * b),
            }
        }
    });
}
