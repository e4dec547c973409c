//! Gated delta-net: a recurrent layer. What it remembers is a matrix per value head and the last inputs of a short
//! convolution.
//!
//! ```text
//! u = qkv x;  m = silu(conv over time of u);  q, k, v = split m;  q, k of unit length, q / sqrt(head_dim_k)
//! beta = sigmoid(b);  decay = exp(a * softplus(alpha + dt));  state: see `ikq_kernels::delta`
//! y = output( norm(o) * silu(z) )
//! ```

use ikq_kernels::act::Activations;
use ikq_kernels::delta::{self, Shape, State, Tokens};
use ikq_kernels::ops;

use super::AttentionBuffers;
use crate::error::Error;
use crate::exec::{Exec, Forms, Product, ThreadScratch, room};
use crate::spec::{self, ModelSpec, ValueOrder};
use crate::weights::{Weight, Weights};

/// The layer's weights and sizes.
pub struct DeltaNet {
    n_head_k: usize,
    n_head_v: usize,
    head_dim_k: usize,
    head_dim_v: usize,
    conv_kernel: usize,
    value_order: ValueOrder,
    qkv: Weight,
    z: Option<Weight>,
    beta: Weight,
    alpha: Weight,
    ba_grouped: bool,
    /// `conv_kernel` numbers per channel.
    conv: Vec<f32>,
    dt: Vec<f32>,
    a: Vec<f32>,
    norm: Vec<f32>,
    norm_eps: f32,
    output: Weight,
}

impl DeltaNet {
    pub fn new(weights: &Weights<'_>, a: &spec::DeltaNet, model: &ModelSpec) -> Result<DeltaNet, Error> {
        let sizes = [a.n_head_k, a.n_head_v, a.head_dim_k, a.head_dim_v, a.conv_kernel];
        if sizes.contains(&0) || !a.n_head_v.is_multiple_of(a.n_head_k) || (a.z.is_none() != a.mixed) {
            return Err(Error::Spec { why: format!("sizes of a recurrent layer: {a:?}") });
        }
        let n_embd = model.n_embd;
        let n_values = a.n_head_v * a.head_dim_v;
        let n_channels = 2 * a.n_head_k * a.head_dim_k + n_values;
        let qkv_rows = n_channels + if a.mixed { n_values } else { 0 };
        let ba_rows = a.n_head_v * if a.ba_grouped { 2 } else { 1 };
        Ok(DeltaNet {
            n_head_k: a.n_head_k,
            n_head_v: a.n_head_v,
            head_dim_k: a.head_dim_k,
            head_dim_v: a.head_dim_v,
            conv_kernel: a.conv_kernel,
            value_order: a.value_order,
            qkv: weights.linear(&a.qkv, n_embd, Some(qkv_rows), 1)?,
            z: a.z.as_ref().map(|z| weights.linear(z, n_embd, Some(n_values), 1)).transpose()?,
            beta: weights.linear(&a.beta, n_embd, Some(ba_rows), 1)?,
            alpha: weights.linear(&a.alpha, n_embd, Some(ba_rows), 1)?,
            ba_grouped: a.ba_grouped,
            conv: weights.floats(&a.conv, a.conv_kernel * n_channels)?,
            dt: weights.floats(&a.dt, a.n_head_v)?,
            a: weights.floats(&a.a, a.n_head_v)?,
            norm: weights.floats(&a.norm, a.head_dim_v)?,
            norm_eps: model.norm_eps,
            output: weights.linear(&a.output, n_values, Some(n_embd), 1)?,
        })
    }

    fn n_channels(&self) -> usize {
        2 * self.n_head_k * self.head_dim_k + self.n_head_v * self.head_dim_v
    }

    fn shape(&self) -> Shape {
        Shape {
            n_head: self.n_head_v,
            dk: self.head_dim_k,
            dv: self.head_dim_v,
            n_channels: self.n_channels(),
            conv_kernel: self.conv_kernel,
        }
    }

    pub fn state(&self) -> State {
        State::new(self.shape())
    }

    pub fn state_bytes(&self) -> usize {
        self.shape().bytes()
    }

    pub fn input_weights(&self) -> Vec<&Weight> {
        let mut all = vec![&self.qkv, &self.beta, &self.alpha];
        all.extend(&self.z);
        all
    }

    pub fn weights<'a>(&'a self, all: &mut Vec<&'a Weight>) {
        all.extend(self.input_weights());
        all.push(&self.output);
    }

    pub fn run(
        &self,
        exec: &Exec<'_>,
        acts: &Activations,
        state: &mut State,
        buffers: &mut AttentionBuffers,
        out: &mut [f32],
    ) {
        let n = acts.n_columns();
        let n_values = self.n_head_v * self.head_dim_v;
        let AttentionBuffers { q: u, k: convolved, v: ba, z, outer, .. } = buffers;
        let u = room(u, n * self.qkv.n_rows);
        let z = room(z, n * n_values);
        let ba_rows = self.beta.n_rows;
        let (beta, alpha) = room(ba, 2 * n * ba_rows).split_at_mut(n * ba_rows);
        let mut products = vec![Product::new(&self.qkv, u), Product::new(&self.beta, beta)];
        if !self.ba_grouped {
            products.push(Product::new(&self.alpha, alpha));
        }
        match &self.z {
            Some(weight) => {
                products.push(Product::new(weight, z));
                exec.project(acts, products);
            }
            None => {
                exec.project(acts, products);
                self.unmix(u, z, convolved);
            }
        }
        // per token and value head: beta in 0..1, and the logarithm of the decay
        self.gates(beta, alpha);

        let u = &u[..n * self.n_channels()];
        let convolved = room(convolved, u.len());
        self.convolve(exec, u, state.before(), convolved);

        outer.resize(n_values, n);
        let results = outer.floats_mut();
        self.recur(exec, convolved, (beta, alpha), state, results);
        state.finish(u);
        let mut tokens: Vec<_> = results.chunks_exact_mut(n_values).zip(z.chunks_exact(n_values)).collect();
        exec.team.for_each(&mut tokens, |(out, z), _| {
            for (out, z) in out.chunks_exact_mut(self.head_dim_v).zip(z.chunks_exact(self.head_dim_v)) {
                ops::rms_norm_in_place(exec.kind, out, &self.norm, self.norm_eps);
                ops::silu_gate(exec.kind, out, z);
            }
        });
        exec.quantize(outer, Forms::of(exec.compute, [&self.output]));
        exec.project(outer, vec![Product { weight: &self.output, expert: 0, out, add: true }]);
    }

    /// Older files' rows (per key head: query, key, its values, its gates) to all queries, all keys, all values,
    /// and the gates.
    fn unmix(&self, u: &mut [f32], z: &mut [f32], scratch: &mut Vec<f32>) {
        let (dk, per_key) = (self.head_dim_k, self.n_head_v / self.n_head_k * self.head_dim_v);
        let (n_mixed, n_channels) = (self.qkv.n_rows, self.n_channels());
        let group = 2 * dk + 2 * per_key;
        let mixed = room(scratch, u.len());
        mixed.copy_from_slice(u);
        let n_values = self.n_head_v * self.head_dim_v;
        for (token, mixed) in mixed.chunks_exact(n_mixed).enumerate() {
            let u = &mut u[token * n_channels..][..n_channels];
            let z = &mut z[token * n_values..][..n_values];
            let (q, rest) = u.split_at_mut(self.n_head_k * dk);
            let (k, v) = rest.split_at_mut(self.n_head_k * dk);
            for (h, mixed) in mixed.chunks_exact(group).enumerate() {
                q[h * dk..][..dk].copy_from_slice(&mixed[..dk]);
                k[h * dk..][..dk].copy_from_slice(&mixed[dk..2 * dk]);
                v[h * per_key..][..per_key].copy_from_slice(&mixed[2 * dk..2 * dk + per_key]);
                z[h * per_key..][..per_key].copy_from_slice(&mixed[2 * dk + per_key..]);
            }
        }
    }

    /// What the two products gave, made into beta and the logarithm of the decay, `n_head_v` per token each.
    fn gates(&self, beta: &mut [f32], alpha: &mut [f32]) {
        let n_head = self.n_head_v;
        if self.ba_grouped {
            // rows per key head: betas of its value heads, then their alphas
            let r = n_head / self.n_head_k;
            let rows = 2 * n_head;
            let mixed = beta.to_vec();
            for (token, mixed) in mixed.chunks_exact(rows).enumerate() {
                for (h, pair) in mixed.chunks_exact(2 * r).enumerate() {
                    beta[token * n_head + h * r..][..r].copy_from_slice(&pair[..r]);
                    alpha[token * n_head + h * r..][..r].copy_from_slice(&pair[r..]);
                }
            }
        }
        let n = beta.len() / self.beta.n_rows;
        beta[..n * n_head].iter_mut().for_each(|b| *b = ops::sigmoid(*b));
        for alpha in alpha[..n * n_head].chunks_exact_mut(n_head) {
            for ((alpha, dt), a) in alpha.iter_mut().zip(&self.dt).zip(&self.a) {
                *alpha = a * ops::softplus(*alpha + dt);
            }
        }
    }

    /// The convolution over time and its activation, all channels of all tokens.
    fn convolve(&self, exec: &Exec<'_>, u: &[f32], before: &[f32], out: &mut [f32]) {
        let n_channels = self.n_channels();
        let mut tokens: Vec<_> = out.chunks_exact_mut(n_channels).enumerate().collect();
        exec.team.for_each(&mut tokens, |(token, out), _| {
            delta::convolve(exec.kind, &self.conv, self.conv_kernel, before, u, *token, out);
            ops::silu_in_place(exec.kind, out);
        });
    }

    /// The recurrence; units are value heads.
    fn recur(
        &self,
        exec: &Exec<'_>,
        convolved: &[f32],
        (beta, decay): (&[f32], &[f32]),
        state: &mut State,
        out: &mut [f32],
    ) {
        let (dk, dv, n_head) = (self.head_dim_k, self.head_dim_v, self.n_head_v);
        let n_keys = self.n_head_k * dk;
        let n_channels = self.n_channels();
        let n = convolved.len() / n_channels;
        // one tile of rows per head
        let tiles = ikq_kernels::tiles::tiles(out, n_head * dv, dv, std::iter::once(0..n));
        let mut heads: Vec<_> = tiles.into_iter().zip(state.heads_mut()).enumerate().collect();
        exec.team.for_each(&mut heads, |(head, (tile, state)), thread| {
            let key_head = match self.value_order {
                ValueOrder::Grouped => *head / (n_head / self.n_head_k),
                ValueOrder::Tiled => *head % self.n_head_k,
            };
            let ThreadScratch { first, second, delta, .. } = &mut *exec.scratch(thread);
            let scale = 1.0 / (dk as f32).sqrt();
            let mut from = 0;
            while from < n {
                let tokens = from..n.min(from + state.rest());
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
                    ops::l2_norm_in_place(exec.kind, q, self.norm_eps);
                    ops::l2_norm_in_place(exec.kind, k, self.norm_eps);
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
}
