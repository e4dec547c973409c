//! The stages of a layer on this device, each a function of the values that it reads.

use ikq_kernels::act::Activations;
use ikq_kernels::matmul::Compute;
use ikq_kernels::ops::{self, Activation, glu};
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

/// Norms all columns.
pub fn norm_in_place(exec: &Exec<'_>, x: &mut [f32], norm: &[f32]) {
    let mut columns: Vec<_> = x.chunks_exact_mut(norm.len()).collect();
    exec.team.for_each(&mut columns, |x, _| ops::rms_norm_in_place(exec.kind, x, norm, exec.norm_eps));
}

/// The embeddings of all layers for the batch's tokens, whose scaled embeddings are `x`: columns of those of all layers,
/// written to `out`.
pub fn layer_embeddings(
    exec: &Exec<'_>,
    (per_layer, embd, proj): (&network::PerLayer, &network::Weight, &Weight),
    x: &[f32],
    (acts, rows): (&mut Activations, &mut Vec<f32>),
    out: &mut Vec<f32>,
) {
    let n = exec.batch.n();
    let n_all = per_layer.n_all();
    acts.resize(x.len() / n, n);
    acts.floats_mut().copy_from_slice(x);
    exec.quantize(acts, Forms::of(exec.compute, [proj]));
    let out = room(out, n * n_all);
    exec.project(acts, vec![Product::new(proj, out)]);
    let columns = out.chunks_exact_mut(n_all).zip(room(rows, n * n_all).chunks_exact_mut(n_all));
    let mut columns: Vec<_> = columns.zip(&exec.batch.tokens).collect();
    exec.team.for_each(&mut columns, |((out, row), token), _| {
        embd.decode_row(exec.kind, **token as usize, row);
        out.iter_mut().for_each(|v| *v *= per_layer.proj_scale);
        for part in out.chunks_exact_mut(per_layer.n) {
            ops::rms_norm_in_place(exec.kind, part, &per_layer.norm, exec.norm_eps);
        }
        let sum = |v: f32, e: f32| per_layer.scale * (per_layer.embd_scale * e + v);
        out.iter_mut().zip(row.iter()).for_each(|(v, e)| *v = sum(*v, *e));
    });
}

/// How a layer adds its embedding.
pub struct End {
    gate: Weight,
    proj: Weight,
}

impl End {
    /// The weights of `e`, taken from those loaded.
    pub fn new(e: &network::LayerEmbedding, loaded: &mut Loaded) -> End {
        End { gate: loaded.take(&e.gate), proj: loaded.take(&e.proj) }
    }

    /// What layer `l` adds to `x` before it is normed, written to `out`; `embeddings` are those of all layers.
    pub fn run(
        &self,
        exec: &Exec<'_>,
        (per_layer, l): (&network::PerLayer, usize),
        embeddings: &[f32],
        x: &[f32],
        (acts, mid, out): (&mut Activations, &mut Activations, &mut Vec<f32>),
    ) {
        let n = exec.batch.n();
        acts.resize(x.len() / n, n);
        acts.floats_mut().copy_from_slice(x);
        exec.quantize(acts, Forms::of(exec.compute, [&self.gate]));
        let gates = room(out, n * per_layer.n);
        exec.project(acts, vec![Product::new(&self.gate, gates)]);
        mid.resize(per_layer.n, n);
        let columns = mid.floats_mut().chunks_exact_mut(per_layer.n);
        let columns = columns.zip(gates.chunks_exact(per_layer.n));
        for ((mid, gate), all) in columns.zip(embeddings.chunks_exact(per_layer.n_all())) {
            glu(exec.kind, Activation::GeluTanh, gate, &all[l * per_layer.n..][..per_layer.n], mid);
        }
        exec.quantize(mid, Forms::of(exec.compute, [&self.proj]));
        exec.project(mid, vec![Product::new(&self.proj, room(out, x.len()))]);
    }
}
