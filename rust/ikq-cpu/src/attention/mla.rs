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
use ikq_kernels::attention::Attention;
use ikq_kernels::ops;
use ikq_model::network::Mla;
use ikq_model::statistics::{Observed, Owner};

use super::AttentionBuffers;
use super::paged::{self, LayerPages};
use crate::exec::{Exec, Forms, Product, room};
use crate::load::Loaded;
use crate::rope::pairing;
use crate::weight::Weight;

/// The layer's weights.
pub struct Weights {
    q: Weight,
    /// The matrix that compresses queries, in models that do.
    q_a: Option<Weight>,
    kv_a: Weight,
    k_b: Weight,
    v_b: Weight,
    output: Weight,
}

impl Weights {
    pub fn new(a: &Mla, loaded: &mut Loaded) -> Weights {
        Weights {
            q: loaded.take(&a.q),
            q_a: a.q_a.as_ref().map(|(q_a, _)| loaded.take(q_a)),
            kv_a: loaded.take(&a.kv_a),
            k_b: loaded.take(&a.k_b),
            v_b: loaded.take(&a.v_b),
            output: loaded.take(&a.output),
        }
    }

    pub fn inputs(&self) -> Vec<&Weight> {
        vec![self.q_a.as_ref().unwrap_or(&self.q), &self.kv_a]
    }
}

/// Runs the layer on the normed input `acts`: projections, attention over its pages, and the output projection to `out`.
pub fn run(
    exec: &Exec<'_>,
    a: &Mla,
    weights: &Weights,
    acts: &Activations,
    pages: LayerPages<'_>,
    buffers: &mut AttentionBuffers,
    out: &mut [f32],
) {
    let LayerPages { group, keys: pages, .. } = pages;
    let n = acts.n_columns();
    let (n_head, rank, n_rot) = (a.n_head, a.kv_rank, a.rope.n_rot);
    let AttentionBuffers { q, k, v, z, inner, outer, partial } = buffers;
    let all_q = room(q, n * weights.q.n_rows);
    let rows = room(k, n * (rank + n_rot));
    match (&weights.q_a, &a.q_a) {
        (Some(q_a), Some((_, norm))) => {
            let compressed = room(v, n * q_a.n_rows);
            exec.project(acts, vec![Product::new(q_a, compressed), Product::new(&weights.kv_a, rows)]);
            exec.norm(compressed, norm, exec.norm_eps, inner, Forms::of(exec.compute, [&weights.q]));
            exec.project(inner, vec![Product::new(&weights.q, all_q)]);
        }
        _ => {
            let products = vec![Product::new(&weights.q, all_q), Product::new(&weights.kv_a, rows)];
            exec.project(acts, products);
        }
    }
    keys(exec, a, rows);
    observe_compressed(exec, a, rows);
    paged::store(exec, group, pages, rows);

    // queries of all heads against c: [qa | qr]
    inner.resize(a.n_nope, n * n_head);
    split_queries(exec, a, all_q, n, inner.floats_mut());
    exec.quantize(inner, Forms::of(exec.compute, [&weights.k_b]));
    let by_head: Vec<(usize, Range<usize>)> = (0..n_head).map(|h| (h, h * n..(h + 1) * n)).collect();
    let columns: Vec<u32> = (0..(n * n_head) as u32).collect();
    let tokens: Vec<u32> = columns.iter().map(|c| c % n as u32).map(|t| exec.tokens[t as usize]).collect();
    if !a.is_split() {
        exec.observe_groups(&[&weights.k_b], n_head, &by_head, (&columns, &columns), inner);
    }
    let absorbed = room(v, n * n_head * rank);
    exec.grouped(&weights.k_b, &by_head, (&columns, &tokens), inner, absorbed);
    let queries = room(z, n * n_head * (rank + n_rot));
    join_queries(exec, a, absorbed, all_q, n, queries);

    // attention gives the heads' sums of c, a column per token
    let sums = room(v, n * n_head * rank);
    let attention = Attention {
        queries,
        q_stride: rank + n_rot,
        n_head,
        keys: pages,
        values: None,
        scale: a.scale,
        softcap: None,
        sinks: None,
        window: None,
    };
    paged::attend(exec, group, &attention, partial, sums);
    inner.resize(rank, n * n_head);
    transpose_heads(exec, sums, n, n_head, rank, inner.floats_mut());
    exec.quantize(inner, Forms::of(exec.compute, [&weights.v_b]));
    if !a.is_split() {
        exec.observe_groups(&[&weights.v_b], n_head, &by_head, (&columns, &columns), inner);
    }
    let results = room(k, n * n_head * a.head_dim_v);
    exec.grouped(&weights.v_b, &by_head, (&columns, &tokens), inner, results);
    outer.resize(n_head * a.head_dim_v, n);
    join_heads(exec, results, n, n_head, a.head_dim_v, outer.floats_mut());
    exec.quantize(outer, Forms::of(exec.compute, [&weights.output]));
    exec.project(outer, vec![Product::new(&weights.output, out)]);
}

/// Tells the collector of c, which is what `kv_b` is multiplied with where nothing is absorbed.
fn observe_compressed(exec: &Exec<'_>, a: &Mla, k: &[f32]) {
    let (Some(collector), Some(name)) = (exec.collector, &a.kv_b) else { return };
    let (rank, stride) = (a.kv_rank, a.kv_rank + a.rope.n_rot);
    let n = k.len() / stride;
    let input = Observed {
        k: rank,
        n_groups: 1,
        groups: &[(0, 0..n)],
        columns: &exec.all_columns[..n],
        tokens: &exec.all_columns[..n],
        floats: &|token| &k[token as usize * stride..][..rank],
    };
    collector.observe(exec.team, &[Owner { names: vec![name.clone()], pooled: false }], &input);
}

/// Norms c and rotates the shared key of each token.
fn keys(exec: &Exec<'_>, a: &Mla, k: &mut [f32]) {
    let mut units: Vec<_> = k.chunks_exact_mut(a.kv_rank + a.rope.n_rot).enumerate().collect();
    exec.team.for_each(&mut units, |(token, k), _| {
        let (c, rotated) = k.split_at_mut(a.kv_rank);
        ops::rms_norm_in_place(exec.kind, c, &a.kv_a_norm, exec.norm_eps);
        ops::rotate(exec.kind, pairing(a.rope), exec.angles[a.rope.index].of(*token), rotated);
    });
}

/// Copies the parts of the queries that are not rotated, head after head.
fn split_queries(exec: &Exec<'_>, a: &Mla, q: &[f32], n: usize, out: &mut [f32]) {
    let per_head = a.n_nope + a.rope.n_rot;
    let mut heads: Vec<_> = out.chunks_exact_mut(n * a.n_nope).enumerate().collect();
    exec.team.for_each(&mut heads, |(head, out), _| {
        let tokens = q.chunks_exact(a.n_head * per_head);
        for (out, q) in out.chunks_exact_mut(a.n_nope).zip(tokens) {
            out.copy_from_slice(&q[*head * per_head..][..a.n_nope]);
        }
    });
}

/// Writes `[qa | qr]` of every token's heads, with qr rotated.
fn join_queries(exec: &Exec<'_>, a: &Mla, absorbed: &[f32], q: &[f32], n: usize, out: &mut [f32]) {
    let (rank, n_rot) = (a.kv_rank, a.rope.n_rot);
    let per_head = a.n_nope + n_rot;
    let mut tokens: Vec<_> = out.chunks_exact_mut(a.n_head * (rank + n_rot)).enumerate().collect();
    exec.team.for_each(&mut tokens, |(token, out), _| {
        let q = &q[*token * a.n_head * per_head..];
        for (head, out) in out.chunks_exact_mut(rank + n_rot).enumerate() {
            out[..rank].copy_from_slice(&absorbed[(head * n + *token) * rank..][..rank]);
            let rotated = &mut out[rank..];
            rotated.copy_from_slice(&q[head * per_head + a.n_nope..][..n_rot]);
            ops::rotate(exec.kind, pairing(a.rope), exec.angles[a.rope.index].of(*token), rotated);
        }
        if let Some(temperature) = a.temperature {
            let factor = temperature.at(exec.batch.positions[*token]);
            out.iter_mut().for_each(|q| *q *= factor);
        }
    });
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

/// The inverse of [`transpose_heads`]: columns per head to columns per token.
fn join_heads(exec: &Exec<'_>, from: &[f32], n: usize, n_head: usize, d: usize, to: &mut [f32]) {
    let mut tokens: Vec<_> = to.chunks_exact_mut(n_head * d).enumerate().collect();
    exec.team.for_each(&mut tokens, |(token, to), _| {
        for (head, to) in to.chunks_exact_mut(d).enumerate() {
            to.copy_from_slice(&from[(head * n + *token) * d..][..d]);
        }
    });
}
