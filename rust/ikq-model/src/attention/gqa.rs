//! Attention with grouped key/value heads, and all that models add to it: norms of heads, sinks, windows, soft
//! caps, output gates.

use ikq_kernels::act::Activations;
use ikq_kernels::attention::Cache;
use ikq_kernels::ops;

use super::AttentionBuffers;
use super::softmax::{self, Heads};
use crate::error::Error;
use crate::exec::{Exec, Forms, Product, room};
use crate::rope::{RopeId, Ropes};
use crate::spec::{self, ModelSpec};
use crate::weights::{Weight, Weights};

/// The layer's weights and sizes.
pub struct Gqa {
    pub n_head: usize,
    pub n_head_kv: usize,
    pub head_dim: usize,
    pub head_dim_v: usize,
    pub q: Weight,
    pub k: Weight,
    pub v: Weight,
    pub output: Weight,
    scale: f32,
    pub rope: Option<RopeId>,
    q_norm: Option<Vec<f32>>,
    k_norm: Option<Vec<f32>>,
    norm_eps: f32,
    window: Option<usize>,
    softcap: Option<f32>,
    sinks: Option<Vec<f32>>,
    output_gate: bool,
}

impl Gqa {
    pub fn new(
        weights: &Weights<'_>,
        a: &spec::Gqa,
        model: &ModelSpec,
        ropes: &mut Ropes,
    ) -> Result<Gqa, Error> {
        let sound = a.n_head_kv > 0 && a.n_head > 0 && a.n_head.is_multiple_of(a.n_head_kv);
        if !sound || a.head_dim == 0 || a.head_dim_v == 0 {
            let why = format!(
                "{} query heads of {} over {} key/value heads of {}",
                a.n_head, a.head_dim, a.n_head_kv, a.head_dim_v
            );
            return Err(Error::Spec { why });
        }
        let rope = a.rope.as_ref().map(|r| ropes.add(weights, r)).transpose()?;
        if rope.is_some_and(|r| r.n_rot > a.head_dim) {
            return Err(Error::Spec { why: format!("more rotated elements than the head's {}", a.head_dim) });
        }
        let per_head = |name: &Option<String>, n| name.as_deref().map(|t| weights.floats(t, n)).transpose();
        let q_rows = a.n_head * a.head_dim * if a.output_gate { 2 } else { 1 };
        if a.output_gate && a.head_dim != a.head_dim_v {
            return Err(Error::Spec { why: "an output gate needs values as long as keys".into() });
        }
        Ok(Gqa {
            n_head: a.n_head,
            n_head_kv: a.n_head_kv,
            head_dim: a.head_dim,
            head_dim_v: a.head_dim_v,
            q: weights.linear(&a.q, model.n_embd, Some(q_rows), 1)?,
            k: weights.linear(&a.k, model.n_embd, Some(a.n_head_kv * a.head_dim), 1)?,
            v: weights.linear(&a.v, model.n_embd, Some(a.n_head_kv * a.head_dim_v), 1)?,
            output: weights.linear(&a.output, a.n_head * a.head_dim_v, Some(model.n_embd), 1)?,
            scale: a.scale,
            rope,
            q_norm: per_head(&a.q_norm, a.head_dim)?,
            k_norm: per_head(&a.k_norm, a.head_dim)?,
            norm_eps: model.norm_eps,
            window: a.window,
            softcap: a.softcap,
            sinks: per_head(&a.sinks, a.n_head)?,
            output_gate: a.output_gate,
        })
    }

    pub fn input_weights(&self) -> Vec<&Weight> {
        vec![&self.q, &self.k, &self.v]
    }

    /// Elements of a query head's row, gate included.
    fn q_stride(&self) -> usize {
        self.head_dim * if self.output_gate { 2 } else { 1 }
    }

    pub fn run(
        &self,
        exec: &Exec<'_>,
        acts: &Activations,
        (keys, values): (&mut Cache, &mut Cache),
        n_past: usize,
        buffers: &mut AttentionBuffers,
        out: &mut [f32],
    ) {
        let n = acts.n_columns();
        let AttentionBuffers { q, k, v, outer, partial, .. } = buffers;
        let q = room(q, n * self.q.n_rows);
        let k = room(k, n * self.k.n_rows);
        let v = room(v, n * self.v.n_rows);
        exec.project(
            acts,
            vec![Product::new(&self.q, q), Product::new(&self.k, k), Product::new(&self.v, v)],
        );
        self.position(exec, q, k);
        softmax::store(exec, keys, k, self.head_dim, n_past);
        softmax::store(exec, values, v, self.head_dim_v, n_past);

        outer.resize(self.n_head * self.head_dim_v, n);
        let heads = Heads {
            queries: q,
            q_stride: self.q_stride(),
            n_head: self.n_head,
            head_dim: self.head_dim,
            head_dim_v: self.head_dim_v,
            keys,
            values: Some(values),
            scale: self.scale,
            softcap: self.softcap,
            sinks: self.sinks.as_deref(),
            window: self.window,
            n_past,
        };
        softmax::attend(exec, &heads, outer.floats_mut(), partial);
        if self.output_gate {
            self.gate(exec, q, outer.floats_mut());
        }
        exec.quantize(outer, Forms::of(exec.compute, [&self.output]));
        exec.project(outer, vec![Product { weight: &self.output, expert: 0, out, add: true }]);
    }

    /// Norms and rotates queries and keys.
    fn position(&self, exec: &Exec<'_>, q: &mut [f32], k: &mut [f32]) {
        if self.rope.is_none() && self.q_norm.is_none() && self.k_norm.is_none() {
            return;
        }
        let tokens = q.chunks_exact_mut(self.q.n_rows).zip(k.chunks_exact_mut(self.k.n_rows)).enumerate();
        let mut tokens: Vec<_> = tokens.collect();
        let step = exec.runs(tokens.len()).next().map_or(1, |r| r.len());
        let mut units: Vec<_> = tokens.chunks_mut(step).collect();
        exec.team.for_each(&mut units, |tokens, _| {
            for (token, (q, k)) in tokens.iter_mut() {
                let q = q.chunks_exact_mut(self.q_stride()).map(|q| &mut q[..self.head_dim]);
                q.for_each(|q| self.head(exec, *token, q, self.q_norm.as_deref()));
                let k = k.chunks_exact_mut(self.head_dim);
                k.for_each(|k| self.head(exec, *token, k, self.k_norm.as_deref()));
            }
        });
    }

    fn head(&self, exec: &Exec<'_>, token: usize, head: &mut [f32], norm: Option<&[f32]>) {
        if let Some(norm) = norm {
            ops::rms_norm_in_place(exec.kind, head, norm, self.norm_eps);
        }
        if let Some(rope) = self.rope {
            ops::rotate(exec.kind, rope.pairing, exec.angles[rope.index].of(token), head);
        }
    }

    /// Multiplies each head's result with the sigmoid of its gate.
    fn gate(&self, exec: &Exec<'_>, q: &[f32], out: &mut [f32]) {
        let d = self.head_dim;
        let tokens = out.chunks_exact_mut(self.n_head * d).zip(q.chunks_exact(self.q.n_rows));
        let mut units: Vec<_> = tokens.collect();
        exec.team.for_each(&mut units, |(out, q), _| {
            for (out, q) in out.chunks_exact_mut(d).zip(q.chunks_exact(2 * d)) {
                ops::sigmoid_gate(exec.kind, out, &q[d..]);
            }
        });
    }
}
