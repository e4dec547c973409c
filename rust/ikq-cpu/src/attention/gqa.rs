//! Attention with grouped key/value heads, and all that models add to it: norms of heads, sinks, windows, soft
//! caps, output gates.

use ikq_kernels::act::Activations;
use ikq_kernels::attention::Attention;
use ikq_kernels::ops;
use ikq_model::network::Gqa;

use super::AttentionBuffers;
use super::paged::{self, LayerPages};
use crate::exec::{Exec, Forms, Product, room};
use crate::load::Loaded;
use crate::rope::pairing;
use crate::weight::Weight;

/// The layer's weights.
pub struct Weights {
    q: Weight,
    k: Weight,
    v: Weight,
    output: Weight,
}

impl Weights {
    pub fn new(a: &Gqa, loaded: &mut Loaded) -> Weights {
        Weights {
            q: loaded.take(&a.q),
            k: loaded.take(&a.k),
            v: loaded.take(&a.v),
            output: loaded.take(&a.output),
        }
    }

    pub fn inputs(&self) -> Vec<&Weight> {
        vec![&self.q, &self.k, &self.v]
    }
}

/// Elements from one query head to the next: a head's query, and its gate where the model has one.
fn q_stride(a: &Gqa) -> usize {
    a.head_dim * if a.output_gate { 2 } else { 1 }
}

/// Computes queries, keys and values of the normed input `acts`.
pub fn project(
    exec: &Exec<'_>,
    a: &Gqa,
    weights: &Weights,
    acts: &Activations,
    buffers: &mut AttentionBuffers,
) {
    let n = acts.n_columns();
    let AttentionBuffers { q, k, v, .. } = buffers;
    let products = vec![
        Product::new(&weights.q, room(q, n * a.q.n_rows)),
        Product::new(&weights.k, room(k, n * a.k.n_rows)),
        Product::new(&weights.v, room(v, n * a.v.n_rows)),
    ];
    exec.project(acts, products);
}

/// Stores keys and values of `n` columns, and computes attention over the layer's pages.
pub fn attend(exec: &Exec<'_>, a: &Gqa, pages: LayerPages<'_>, buffers: &mut AttentionBuffers, n: usize) {
    let LayerPages { group, keys, values } = pages;
    let values = values.expect("keys and values are stored apart");
    let AttentionBuffers { q, k, v, outer, partial, .. } = buffers;
    let q = room(q, n * a.q.n_rows);
    let k = room(k, n * a.k.n_rows);
    let v = room(v, n * a.v.n_rows);
    position(exec, a, q, k);
    paged::store(exec, group, keys, k);
    paged::store(exec, group, values, v);

    outer.resize(a.n_head * a.head_dim_v, n);
    let attention = Attention {
        queries: q,
        q_stride: q_stride(a),
        n_head: a.n_head,
        keys,
        values: Some(values),
        scale: a.scale,
        softcap: a.softcap,
        sinks: a.sinks.as_deref(),
        window: a.window,
    };
    paged::attend(exec, group, &attention, partial, outer.floats_mut());
    if a.output_gate {
        gate(exec, a, q, outer.floats_mut());
    }
}

/// Computes the output projection of the heads' results to `out`.
pub fn output(exec: &Exec<'_>, weights: &Weights, buffers: &mut AttentionBuffers, out: &mut [f32]) {
    exec.quantize(&mut buffers.outer, Forms::of(exec.compute, [&weights.output]));
    exec.project(&buffers.outer, vec![Product::new(&weights.output, out)]);
}

/// Applies the norms of heads and the rotary embedding to queries and keys, in place.
fn position(exec: &Exec<'_>, a: &Gqa, q: &mut [f32], k: &mut [f32]) {
    if a.rope.is_none() && a.q_norm.is_none() && a.k_norm.is_none() {
        return;
    }
    let tokens = q.chunks_exact_mut(a.q.n_rows).zip(k.chunks_exact_mut(a.k.n_rows)).enumerate();
    let mut tokens: Vec<_> = tokens.collect();
    let step = exec.runs(tokens.len()).next().map_or(1, |r| r.len());
    let mut units: Vec<_> = tokens.chunks_mut(step).collect();
    exec.team.for_each(&mut units, |tokens, _| {
        for (token, (q, k)) in tokens.iter_mut() {
            let q = q.chunks_exact_mut(q_stride(a)).map(|q| &mut q[..a.head_dim]);
            q.for_each(|q| head(exec, a, *token, q, a.q_norm.as_deref()));
            let k = k.chunks_exact_mut(a.head_dim);
            k.for_each(|k| head(exec, a, *token, k, a.k_norm.as_deref()));
        }
    });
}

fn head(exec: &Exec<'_>, a: &Gqa, token: usize, head: &mut [f32], norm: Option<&[f32]>) {
    if let Some(norm) = norm {
        ops::rms_norm_in_place(exec.kind, head, norm, exec.norm_eps);
    }
    if let Some(rope) = a.rope {
        ops::rotate(exec.kind, pairing(rope), exec.angles[rope.index].of(token), head);
    }
}

/// Multiplies each head's result with the sigmoid of its gate.
fn gate(exec: &Exec<'_>, a: &Gqa, q: &[f32], out: &mut [f32]) {
    let d = a.head_dim;
    let tokens = out.chunks_exact_mut(a.n_head * d).zip(q.chunks_exact(a.q.n_rows));
    let mut units: Vec<_> = tokens.collect();
    exec.team.for_each(&mut units, |(out, q), _| {
        for (out, q) in out.chunks_exact_mut(d).zip(q.chunks_exact(2 * d)) {
            ops::sigmoid_gate(exec.kind, out, &q[d..]);
        }
    });
}
