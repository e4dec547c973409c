//! Multi-head latent attention, in its absorbed form: what is cached per token is one vector `[c | k_rot]`, the key
//! of all heads, whose first part is the value of all heads.
//!
//! ```text
//! q = [qn | qr] per head;  qa = k_b qn (length of c);  score = (qa . c + qr . k_rot) * scale
//! z = sum p c;  out = v_b z per head
//! ```
//! Columns of the per-head products stand head after head, tokens within a head.

use std::ops::Range;

use ikq_kernels::act::Activations;
use ikq_kernels::attention::Cache;
use ikq_kernels::ops;

use super::AttentionBuffers;
use super::softmax::{self, Heads};
use crate::error::Error;
use crate::exec::{Exec, Forms, Product, room};
use crate::rope::{RopeId, Ropes};
use crate::spec::{self, ModelSpec};
use crate::statistics::{Observed, Owner};
use crate::weights::{Weight, Weights};

/// The layer's weights and sizes.
pub struct Mla {
    n_head: usize,
    pub kv_rank: usize,
    n_nope: usize,
    head_dim_v: usize,
    q: Weight,
    /// Compression of queries and its norm.
    q_a: Option<(Weight, Vec<f32>)>,
    kv_a: Weight,
    kv_a_norm: Vec<f32>,
    /// Per head: `kv_rank` rows of `n_nope`.
    k_b: Weight,
    /// Per head: `head_dim_v` rows of `kv_rank`.
    v_b: Weight,
    /// The tensor of older files with the rows of both, whose input is the compressed vector itself.
    kv_b: Option<String>,
    output: Weight,
    scale: f32,
    norm_eps: f32,
    pub rope: RopeId,
}

impl Mla {
    pub fn new(
        weights: &Weights<'_>,
        a: &spec::Mla,
        model: &ModelSpec,
        ropes: &mut Ropes,
    ) -> Result<Mla, Error> {
        let rope = ropes.add(weights, &a.rope)?;
        if [a.n_head, a.kv_rank, a.n_nope, a.head_dim_v, a.n_rot].contains(&0) || rope.n_rot != a.n_rot {
            return Err(Error::Spec { why: format!("sizes of latent attention: {a:?}") });
        }
        let q_a = match (&a.q_a, &a.q_a_norm) {
            (Some(q_a), Some(norm)) => {
                let q_a = weights.linear(q_a, model.n_embd, None, 1)?;
                let norm = weights.floats(norm, q_a.n_rows)?;
                Some((q_a, norm))
            }
            _ => None,
        };
        let q_in = q_a.as_ref().map_or(model.n_embd, |(q_a, _)| q_a.n_rows);
        let (k_b, v_b) = match (&a.k_b, &a.v_b, &a.kv_b) {
            (Some(k_b), Some(v_b), _) => (
                weights.heads(k_b, a.n_nope, a.kv_rank, a.n_head)?,
                weights.heads(v_b, a.kv_rank, a.head_dim_v, a.n_head)?,
            ),
            (_, _, Some(kv_b)) => weights.split_kv_b(kv_b, a.kv_rank, a.n_nope, a.head_dim_v, a.n_head)?,
            _ => return Err(Error::Spec { why: "latent attention without k_b and v_b, or kv_b".into() }),
        };
        Ok(Mla {
            n_head: a.n_head,
            kv_rank: a.kv_rank,
            n_nope: a.n_nope,
            head_dim_v: a.head_dim_v,
            q: weights.linear(&a.q, q_in, Some(a.n_head * (a.n_nope + a.n_rot)), 1)?,
            q_a,
            kv_a: weights.linear(&a.kv_a, model.n_embd, Some(a.kv_rank + a.n_rot), 1)?,
            kv_a_norm: weights.floats(&a.kv_a_norm, a.kv_rank)?,
            k_b,
            v_b,
            kv_b: a.kv_b.clone().or_else(|| a.kv_b_twin.clone()),
            output: weights.linear(&a.output, a.n_head * a.head_dim_v, Some(model.n_embd), 1)?,
            scale: a.scale,
            norm_eps: model.norm_eps,
            rope,
        })
    }

    pub fn n_rot(&self) -> usize {
        self.rope.n_rot
    }

    pub fn input_weights(&self) -> Vec<&Weight> {
        vec![self.q_a.as_ref().map_or(&self.q, |(q_a, _)| q_a), &self.kv_a]
    }

    pub fn weights<'a>(&'a self, all: &mut Vec<&'a Weight>) {
        all.extend([&self.q, &self.kv_a, &self.k_b, &self.v_b, &self.output]);
        all.extend(self.q_a.iter().map(|(q_a, _)| q_a));
    }

    pub fn run(
        &self,
        exec: &Exec<'_>,
        acts: &Activations,
        cache: &mut Cache,
        n_past: usize,
        buffers: &mut AttentionBuffers,
        out: &mut [f32],
    ) {
        let n = acts.n_columns();
        let (n_head, rank, n_rot) = (self.n_head, self.kv_rank, self.n_rot());
        let AttentionBuffers { q, k, v, z, inner, outer, partial } = buffers;
        let all_q = room(q, n * self.q.n_rows);
        let keys = room(k, n * (rank + n_rot));
        match &self.q_a {
            None => exec.project(acts, vec![Product::new(&self.q, all_q), Product::new(&self.kv_a, keys)]),
            Some((q_a, norm)) => {
                let compressed = room(v, n * q_a.n_rows);
                exec.project(acts, vec![Product::new(q_a, compressed), Product::new(&self.kv_a, keys)]);
                exec.norm(compressed, norm, self.norm_eps, inner, Forms::of(exec.compute, [&self.q]));
                exec.project(inner, vec![Product::new(&self.q, all_q)]);
            }
        }
        self.keys(exec, keys);
        self.observe_compressed(exec, keys);
        softmax::store(exec, cache, keys, rank + n_rot, n_past);

        // queries of all heads against c: [qa | qr]
        inner.resize(self.n_nope, n * n_head);
        self.split_queries(exec, all_q, n, inner.floats_mut());
        exec.quantize(inner, Forms::of(exec.compute, [&self.k_b]));
        let by_head: Vec<(usize, Range<usize>)> = (0..n_head).map(|h| (h, h * n..(h + 1) * n)).collect();
        let columns: Vec<u32> = (0..(n * n_head) as u32).collect();
        if !self.is_split() {
            exec.observe_groups(&[&self.k_b], n_head, &by_head, &columns, inner);
        }
        let absorbed = room(v, n * n_head * rank);
        exec.grouped(&self.k_b, &by_head, &columns, inner, absorbed);
        let queries = room(z, n * n_head * (rank + n_rot));
        self.join_queries(exec, absorbed, all_q, n, queries);

        // attention gives z, a column per token of all heads' values
        let values = room(v, n * n_head * rank);
        let heads = Heads {
            queries,
            q_stride: rank + n_rot,
            n_head,
            head_dim: rank + n_rot,
            head_dim_v: rank,
            keys: cache,
            values: None,
            scale: self.scale,
            softcap: None,
            sinks: None,
            window: None,
            n_past,
        };
        softmax::attend(exec, &heads, values, partial);
        inner.resize(rank, n * n_head);
        transpose_heads(exec, values, n, n_head, rank, inner.floats_mut());
        exec.quantize(inner, Forms::of(exec.compute, [&self.v_b]));
        if !self.is_split() {
            exec.observe_groups(&[&self.v_b], n_head, &by_head, &columns, inner);
        }
        let results = room(k, n * n_head * self.head_dim_v);
        exec.grouped(&self.v_b, &by_head, &columns, inner, results);
        outer.resize(n_head * self.head_dim_v, n);
        join_heads(exec, results, n, n_head, self.head_dim_v, outer.floats_mut());
        exec.quantize(outer, Forms::of(exec.compute, [&self.output]));
        exec.project(outer, vec![Product { weight: &self.output, expert: 0, out, add: true }]);
    }

    /// Whether keys' and values' matrices are parts of one tensor of the file.
    fn is_split(&self) -> bool {
        self.kv_b.as_ref() == Some(&self.v_b.name)
    }

    /// Tells the collector of c, which is what `kv_b` is multiplied with where nothing is absorbed.
    fn observe_compressed(&self, exec: &Exec<'_>, k: &[f32]) {
        let (Some(collector), Some(name)) = (exec.collector, &self.kv_b) else { return };
        let (rank, stride) = (self.kv_rank, self.kv_rank + self.n_rot());
        let n = k.len() / stride;
        let input = Observed {
            k: rank,
            n_groups: 1,
            groups: &[(0, 0..n)],
            columns: &exec.all_columns[..n],
            floats: &|token| &k[token as usize * stride..][..rank],
        };
        collector.observe(exec.team, &[Owner { names: vec![name.clone()], pooled: false }], &input);
    }

    /// Norms c and rotates the shared key of each token.
    fn keys(&self, exec: &Exec<'_>, k: &mut [f32]) {
        let mut units: Vec<_> = k.chunks_exact_mut(self.kv_rank + self.n_rot()).enumerate().collect();
        exec.team.for_each(&mut units, |(token, k), _| {
            let (c, rotated) = k.split_at_mut(self.kv_rank);
            ops::rms_norm_in_place(exec.kind, c, &self.kv_a_norm, self.norm_eps);
            ops::rotate(exec.kind, self.rope.pairing, exec.angles[self.rope.index].of(*token), rotated);
        });
    }

    /// The parts of the queries that are not rotated, head after head.
    fn split_queries(&self, exec: &Exec<'_>, q: &[f32], n: usize, out: &mut [f32]) {
        let per_head = self.n_nope + self.n_rot();
        let mut heads: Vec<_> = out.chunks_exact_mut(n * self.n_nope).enumerate().collect();
        exec.team.for_each(&mut heads, |(head, out), _| {
            let tokens = q.chunks_exact(self.n_head * per_head);
            for (out, q) in out.chunks_exact_mut(self.n_nope).zip(tokens) {
                out.copy_from_slice(&q[*head * per_head..][..self.n_nope]);
            }
        });
    }

    /// `[qa | qr]` of every token's heads, qr rotated.
    fn join_queries(&self, exec: &Exec<'_>, absorbed: &[f32], q: &[f32], n: usize, out: &mut [f32]) {
        let (rank, n_rot) = (self.kv_rank, self.n_rot());
        let per_head = self.n_nope + n_rot;
        let mut tokens: Vec<_> = out.chunks_exact_mut(self.n_head * (rank + n_rot)).enumerate().collect();
        exec.team.for_each(&mut tokens, |(token, out), _| {
            let q = &q[*token * self.n_head * per_head..];
            for (head, out) in out.chunks_exact_mut(rank + n_rot).enumerate() {
                out[..rank].copy_from_slice(&absorbed[(head * n + *token) * rank..][..rank]);
                let rotated = &mut out[rank..];
                rotated.copy_from_slice(&q[head * per_head + self.n_nope..][..n_rot]);
                ops::rotate(exec.kind, self.rope.pairing, exec.angles[self.rope.index].of(*token), rotated);
            }
        });
    }
}

/// Columns per token (heads within) to columns per head (tokens within); `d` elements each.
fn transpose_heads(exec: &Exec<'_>, from: &[f32], n: usize, n_head: usize, d: usize, to: &mut [f32]) {
    let mut heads: Vec<_> = to.chunks_exact_mut(n * d).enumerate().collect();
    exec.team.for_each(&mut heads, |(head, to), _| {
        for (to, from) in to.chunks_exact_mut(d).zip(from.chunks_exact(n_head * d)) {
            to.copy_from_slice(&from[*head * d..][..d]);
        }
    });
}

/// The way back.
fn join_heads(exec: &Exec<'_>, from: &[f32], n: usize, n_head: usize, d: usize, to: &mut [f32]) {
    let mut tokens: Vec<_> = to.chunks_exact_mut(n_head * d).enumerate().collect();
    exec.team.for_each(&mut tokens, |(token, to), _| {
        for (head, to) in to.chunks_exact_mut(d).enumerate() {
            to.copy_from_slice(&from[(head * n + *token) * d..][..d]);
        }
    });
}
