//! Attention with grouped key/value heads, and all that models add to it: norms of heads, sinks, windows, soft
//! caps, output gates.

use ikq_kernels::act::Activations;
use ikq_kernels::attention::Attention;
use ikq_kernels::ops;
use ikq_model::network::Gqa;
use ikq_model::spec::{GateFunc, QkNorm};

use super::AttentionBuffers;
use super::paged::{self, LayerPages};
use crate::exec::{Exec, Forms, Product, room};
use crate::load::Loaded;
use crate::rope::pairing;
use crate::weight::Weight;

/// The layer's weights.
pub struct Weights {
    q: Weight,
    /// `None` where the layer reads another's keys and values.
    kv: Option<(Weight, Weight)>,
    output: Weight,
    gate: Option<Weight>,
}

impl Weights {
    pub fn new(a: &Gqa, loaded: &mut Loaded) -> Weights {
        Weights {
            q: loaded.take(&a.q),
            kv: a.kv.as_ref().map(|(k, v)| (loaded.take(k), loaded.take(v))),
            output: loaded.take(&a.output),
            gate: a.gate.as_ref().map(|g| loaded.take(g)),
        }
    }

    pub fn inputs(&self) -> Vec<&Weight> {
        let kv = self.kv.iter().flat_map(|(k, v)| [k, v]);
        std::iter::once(&self.q).chain(kv).chain(&self.gate).collect()
    }
}

/// Elements from one query head to the next: a head's query, and its gate where the model has one.
fn q_stride(a: &Gqa) -> usize {
    a.head_dim * if a.output_gate { 2 } else { 1 }
}

/// Computes queries, keys, values and gates of the normed input `acts`, as far as the layer has them.
pub fn project(
    exec: &Exec<'_>,
    a: &Gqa,
    weights: &Weights,
    acts: &Activations,
    buffers: &mut AttentionBuffers,
) {
    let n = acts.n_columns();
    let AttentionBuffers { q, k, v, z, .. } = buffers;
    let mut products = vec![Product::new(&weights.q, room(q, n * a.q.n_rows))];
    if let Some((of_keys, of_values)) = &weights.kv {
        products.push(Product::new(of_keys, room(k, n * of_keys.n_rows)));
        products.push(Product::new(of_values, room(v, n * of_values.n_rows)));
    }
    products.extend(weights.gate.as_ref().map(|g| Product::new(g, room(z, n * g.n_rows))));
    exec.project(acts, products);
}

/// Stores keys and values of `n` columns, and computes attention over the layer's pages.
pub fn attend(exec: &Exec<'_>, a: &Gqa, pages: LayerPages<'_>, buffers: &mut AttentionBuffers, n: usize) {
    let LayerPages { group, keys, values } = pages;
    let values = values.expect("keys and values are stored apart");
    let AttentionBuffers { q, k, v, z, outer, partial, .. } = buffers;
    let q = room(q, n * a.q.n_rows);
    match &a.kv {
        // the layer that has them has run, and stored those of this batch too
        None => position(exec, a, q, &mut [], &mut []),
        Some((of_keys, of_values)) => {
            let k = room(k, n * of_keys.n_rows);
            let v = room(v, n * of_values.n_rows);
            position(exec, a, q, k, v);
            paged::store(exec, group, keys, k);
            paged::store(exec, group, values, v);
        }
    }

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
    if let Some(weight) = &a.gate {
        apply_gates(exec, a, weight.n_rows, room(z, n * weight.n_rows), outer.floats_mut());
    }
}

/// Computes the output projection of the heads' results to `out`.
pub fn output(exec: &Exec<'_>, weights: &Weights, buffers: &mut AttentionBuffers, out: &mut [f32]) {
    exec.quantize(&mut buffers.outer, Forms::of(exec.compute, [&weights.output]));
    exec.project(&buffers.outer, vec![Product::new(&weights.output, out)]);
}

/// Applies the norms of heads, and to queries and keys the rotary embedding, in place. Keys and values are empty where the
/// layer has none.
fn position(exec: &Exec<'_>, a: &Gqa, q: &mut [f32], k: &mut [f32], v: &mut [f32]) {
    if a.rope.is_none()
        && a.q_norm.is_none()
        && a.k_norm.is_none()
        && a.v_norm.is_none()
        && a.temperature.is_none()
    {
        return;
    }
    let mut k = k.chunks_exact_mut(a.n_head_kv * a.head_dim);
    let mut v = v.chunks_exact_mut(a.n_head_kv * a.head_dim_v);
    let tokens = q.chunks_exact_mut(a.q.n_rows);
    let tokens = tokens.map(|q| (q, k.next().unwrap_or_default(), v.next().unwrap_or_default()));
    let mut tokens: Vec<_> = tokens.enumerate().collect();
    let step = exec.runs(tokens.len()).next().map_or(1, |r| r.len());
    let mut units: Vec<_> = tokens.chunks_mut(step).collect();
    exec.team.for_each(&mut units, |tokens, _| {
        for (token, (q, k, v)) in tokens.iter_mut() {
            let (mut q_norm, mut k_norm) = (a.q_norm.as_deref(), a.k_norm.as_deref());
            if a.qk_norm == QkNorm::Row {
                for (row, norm) in [(&mut **q, q_norm.take()), (&mut **k, k_norm.take())] {
                    if let Some(norm) = norm {
                        ops::rms_norm_in_place(exec.kind, row, norm, exec.norm_eps);
                    }
                }
            }
            let heads = q.chunks_exact_mut(q_stride(a)).map(|q| &mut q[..a.head_dim]);
            heads.for_each(|q| head(exec, a, *token, q, q_norm));
            let heads = k.chunks_exact_mut(a.head_dim);
            heads.for_each(|k| head(exec, a, *token, k, k_norm));
            if let Some(temperature) = a.temperature {
                let factor = temperature.at(exec.batch.positions[*token]);
                q.iter_mut().for_each(|q| *q *= factor);
            }
            if let Some(norm) = &a.v_norm {
                let v = v.chunks_exact_mut(a.head_dim_v);
                v.for_each(|v| ops::rms_norm_in_place(exec.kind, v, norm, exec.norm_eps));
            }
        }
    });
}

fn head(exec: &Exec<'_>, a: &Gqa, token: usize, head: &mut [f32], norm: Option<&[f32]>) {
    let rotate = |head: &mut [f32]| {
        if let Some(rope) = a.rope {
            ops::rotate(exec.kind, pairing(rope), exec.angles[rope.index].of(token), head);
        }
    };
    if a.qk_norm == QkNorm::RotatedHead {
        rotate(head);
    }
    if let Some(norm) = norm {
        ops::rms_norm_in_place(exec.kind, head, norm, exec.norm_eps);
    }
    if a.qk_norm != QkNorm::RotatedHead {
        rotate(head);
    }
}

/// Multiplies the result with what the layer's own gates give: one per head, or per element.
fn apply_gates(exec: &Exec<'_>, a: &Gqa, n_gates: usize, gates: &[f32], out: &mut [f32]) {
    let n_out = a.n_head * a.head_dim_v;
    let mut tokens: Vec<_> = out.chunks_exact_mut(n_out).zip(gates.chunks_exact(n_gates)).collect();
    exec.team.for_each(&mut tokens, |(out, gates), _| {
        for (out, gate) in out.chunks_exact_mut(n_out / n_gates).zip(gates.iter()) {
            let factor = match a.gate_func {
                GateFunc::Sigmoid => ops::sigmoid(*gate),
                GateFunc::Softplus => ops::softplus(*gate),
            };
            out.iter_mut().for_each(|v| *v *= factor);
        }
    });
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
