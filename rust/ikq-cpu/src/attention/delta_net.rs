//! Gated delta-net: a recurrent layer. What it remembers is a matrix per value head and the last inputs of a short
//! convolution.
//!
//! ```text
//! u = qkv x;  m = silu(conv over time of u);  q, k, v = split m;  q, k of unit length, q / sqrt(head_dim_k)
//! beta = sigmoid(b);  decay = exp(a * softplus(alpha + dt));  state: see `ikq_kernels::delta`
//! y = output( norm(o) * silu(z) )
//! ```

use ikq_kernels::act::Activations;
use ikq_kernels::delta::{self, State, Tokens};
use ikq_kernels::ops;
use ikq_kernels::tiles::tiles;
use ikq_model::network::DeltaNet;
use ikq_model::spec::ValueOrder;

use super::AttentionBuffers;
use crate::exec::{Exec, Forms, Product, ThreadScratch, room};
use crate::load::Loaded;
use crate::weight::Weight;

/// The layer's weights.
pub struct Weights {
    qkv: Weight,
    z: Option<Weight>,
    beta: Weight,
    alpha: Weight,
    output: Weight,
}

impl Weights {
    pub fn new(a: &DeltaNet, loaded: &mut Loaded) -> Weights {
        Weights {
            qkv: loaded.take(&a.qkv),
            z: a.z.as_ref().map(|z| loaded.take(z)),
            beta: loaded.take(&a.beta),
            alpha: loaded.take(&a.alpha),
            output: loaded.take(&a.output),
        }
    }

    pub fn inputs(&self) -> Vec<&Weight> {
        let mut all = vec![&self.qkv, &self.beta, &self.alpha];
        all.extend(&self.z);
        all
    }
}

pub fn run(
    exec: &Exec<'_>,
    a: &DeltaNet,
    weights: &Weights,
    acts: &Activations,
    states: &mut [State],
    buffers: &mut AttentionBuffers,
    out: &mut [f32],
) {
    let n = acts.n_columns();
    let n_values = a.n_head_v * a.head_dim_v;
    let AttentionBuffers { q: u, k: convolved, v: ba, z, outer, .. } = buffers;
    let u = room(u, n * weights.qkv.n_rows);
    let z = room(z, n * n_values);
    let ba_rows = weights.beta.n_rows;
    let (beta, alpha) = room(ba, 2 * n * ba_rows).split_at_mut(n * ba_rows);
    let mut products = vec![Product::new(&weights.qkv, u), Product::new(&weights.beta, beta)];
    if !a.ba_grouped {
        products.push(Product::new(&weights.alpha, alpha));
    }
    match &weights.z {
        Some(weight) => {
            products.push(Product::new(weight, z));
            exec.project(acts, products);
        }
        None => {
            exec.project(acts, products);
            unmix(a, u, z, convolved);
        }
    }
    // per token and value head: beta in 0..1, and the logarithm of the decay
    gates(a, beta, alpha);

    let u = &u[..n * a.n_channels()];
    let convolved = room(convolved, u.len());
    convolve(exec, a, u, states, convolved);

    outer.resize(n_values, n);
    let results = outer.floats_mut();
    recur(exec, a, convolved, (beta, alpha), states, results);
    for run in &exec.batch.runs {
        let columns = run.columns.start * a.n_channels()..run.columns.end * a.n_channels();
        states[state_of(run)].finish(&u[columns]);
    }
    let mut tokens: Vec<_> = results.chunks_exact_mut(n_values).zip(z.chunks_exact(n_values)).collect();
    exec.team.for_each(&mut tokens, |(out, z), _| {
        for (out, z) in out.chunks_exact_mut(a.head_dim_v).zip(z.chunks_exact(a.head_dim_v)) {
            ops::rms_norm_in_place(exec.kind, out, &a.norm, exec.norm_eps);
            ops::silu_gate(exec.kind, out, z);
        }
    });
    exec.quantize(outer, Forms::of(exec.compute, [&weights.output]));
    exec.project(outer, vec![Product::new(&weights.output, out)]);
}

fn state_of(run: &ikq_model::batch::Run) -> usize {
    run.state.expect("sequences of recurrent models have a state") as usize
}

/// Older files' rows (per key head: query, key, its values, its gates) to all queries, all keys, all values,
/// and the gates.
fn unmix(a: &DeltaNet, u: &mut [f32], z: &mut [f32], scratch: &mut Vec<f32>) {
    let (dk, per_key) = (a.head_dim_k, a.n_head_v / a.n_head_k * a.head_dim_v);
    let (n_mixed, n_channels) = (a.qkv.n_rows, a.n_channels());
    let group = 2 * dk + 2 * per_key;
    let mixed = room(scratch, u.len());
    mixed.copy_from_slice(u);
    let n_values = a.n_head_v * a.head_dim_v;
    for (token, mixed) in mixed.chunks_exact(n_mixed).enumerate() {
        let u = &mut u[token * n_channels..][..n_channels];
        let z = &mut z[token * n_values..][..n_values];
        let (q, rest) = u.split_at_mut(a.n_head_k * dk);
        let (k, v) = rest.split_at_mut(a.n_head_k * dk);
        for (h, mixed) in mixed.chunks_exact(group).enumerate() {
            q[h * dk..][..dk].copy_from_slice(&mixed[..dk]);
            k[h * dk..][..dk].copy_from_slice(&mixed[dk..2 * dk]);
            v[h * per_key..][..per_key].copy_from_slice(&mixed[2 * dk..2 * dk + per_key]);
            z[h * per_key..][..per_key].copy_from_slice(&mixed[2 * dk + per_key..]);
        }
    }
}

/// Turns the results of the two products into beta and the logarithm of the decay, in place; each has `n_head_v`
/// numbers per token.
fn gates(a: &DeltaNet, beta: &mut [f32], alpha: &mut [f32]) {
    let n_head = a.n_head_v;
    if a.ba_grouped {
        // rows per key head: betas of its value heads, then their alphas
        let r = n_head / a.n_head_k;
        let rows = 2 * n_head;
        let mixed = beta.to_vec();
        for (token, mixed) in mixed.chunks_exact(rows).enumerate() {
            for (h, pair) in mixed.chunks_exact(2 * r).enumerate() {
                beta[token * n_head + h * r..][..r].copy_from_slice(&pair[..r]);
                alpha[token * n_head + h * r..][..r].copy_from_slice(&pair[r..]);
            }
        }
    }
    let n = beta.len() / a.beta.n_rows;
    beta[..n * n_head].iter_mut().for_each(|b| *b = ops::sigmoid(*b));
    for alpha in alpha[..n * n_head].chunks_exact_mut(n_head) {
        for ((alpha, dt), slope) in alpha.iter_mut().zip(&a.dt).zip(&a.a) {
            *alpha = slope * ops::softplus(*alpha + dt);
        }
    }
}

/// Computes the convolution over time and its activation for all channels of all tokens.
fn convolve(exec: &Exec<'_>, a: &DeltaNet, u: &[f32], states: &[State], out: &mut [f32]) {
    let n_channels = a.n_channels();
    let mut tokens = Vec::new();
    let mut out = out.chunks_exact_mut(n_channels);
    for run in &exec.batch.runs {
        let state = &states[state_of(run)];
        let u = &u[run.columns.start * n_channels..run.columns.end * n_channels];
        tokens.extend(out.by_ref().take(run.columns.len()).enumerate().map(|(i, out)| (state, u, i, out)));
    }
    exec.team.for_each(&mut tokens, |(state, u, token, out), _| {
        delta::convolve(exec.kind, &a.conv, a.conv_kernel, state.before(), u, *token, out);
        ops::silu_in_place(exec.kind, out);
    });
}

/// Runs the recurrence; a unit of work is one value head of one sequence.
fn recur(
    exec: &Exec<'_>,
    a: &DeltaNet,
    convolved: &[f32],
    (beta, decay): (&[f32], &[f32]),
    states: &mut [State],
    out: &mut [f32],
) {
    let (dk, dv, n_head) = (a.head_dim_k, a.head_dim_v, a.n_head_v);
    let n_keys = a.n_head_k * dk;
    let n_channels = a.n_channels();
    // a tile of rows per sequence and head
    let mut tiles =
        tiles(out, n_head * dv, dv, exec.batch.runs.iter().map(|r| r.columns.clone())).into_iter();
    let mut by_slot: Vec<Option<&mut State>> = states.iter_mut().map(Some).collect();
    let mut units = Vec::new();
    for run in &exec.batch.runs {
        let state = by_slot[state_of(run)].take().expect("a state belongs to one sequence");
        units.extend(state.heads_mut().zip(tiles.by_ref()).enumerate());
    }
    exec.team.for_each(&mut units, |(head, (state, tile)), thread| {
        let key_head = match a.value_order {
            ValueOrder::Grouped => *head / (n_head / a.n_head_k),
            ValueOrder::Tiled => *head % a.n_head_k,
        };
        let ThreadScratch { first, second, delta, .. } = &mut *exec.scratch(thread);
        let scale = 1.0 / (dk as f32).sqrt();
        let columns = tile.columns();
        let mut from = columns.start;
        while from < columns.end {
            let tokens = from..columns.end.min(from + state.rest());
            from = tokens.end;
            let len = tokens.len();
            let (q, rest) = room(first, len * (2 * dk + dv)).split_at_mut(len * dk);
            let (k, v) = rest.split_at_mut(len * dk);
            let (results, gates) = room(second, len * (dv + 2)).split_at_mut(len * dv);
            let (betas, log_decays) = gates.split_at_mut(len);
            for (i, token) in tokens.clone().enumerate() {
                let m = &convolved[token * n_channels..][..n_channels];
                let (q, k) = (&mut q[i * dk..][..dk], &mut k[i * dk..][..dk]);
                q.copy_from_slice(&m[key_head * dk..][..dk]);
                k.copy_from_slice(&m[n_keys + key_head * dk..][..dk]);
                ops::l2_norm_in_place(exec.kind, q, exec.norm_eps);
                ops::l2_norm_in_place(exec.kind, k, exec.norm_eps);
                q.iter_mut().for_each(|q| *q *= scale);
                v[i * dv..][..dv].copy_from_slice(&m[2 * n_keys + *head * dv..][..dv]);
                let at = token * n_head + *head;
                (betas[i], log_decays[i]) = (beta[at], decay[at]);
            }
            let inputs = Tokens { q, k, v, beta: betas, log_decay: log_decays };
            delta::advance(exec.kind, state, inputs, delta, results);
            for (token, result) in tokens.zip(results.chunks_exact(dv)) {
                tile.column(token).copy_from_slice(result);
            }
        }
    });
}
