//! Attention layers: grouped heads, latent (MLA), recurrent (gated delta-net).
//!
//! Every kind reads the normed input, adds its result to `out`, and keeps what it must remember in a
//! [`LayerState`].

mod delta_net;
mod gqa;
mod mla;
mod softmax;

use std::collections::BTreeSet;
use std::ops::Range;

use ikq_kernels::act::Activations;
use ikq_kernels::attention::{Cache, CacheType};
use ikq_kernels::matmul::Compute;
use ikq_simd::IsaKind;

use crate::error::Error;
use crate::exec::{Exec, Forms};
use crate::rope::Ropes;
use crate::spec::{self, ModelSpec};
use crate::weights::{Weight, Weights, names_of};

pub use delta_net::DeltaNet;
pub use gqa::Gqa;
pub use mla::Mla;

/// The attention of a layer.
pub enum Attention {
    Gqa(Box<Gqa>),
    Mla(Box<Mla>),
    DeltaNet(Box<DeltaNet>),
}

/// What a layer remembers of the tokens before.
pub enum LayerState {
    /// Keys, values.
    KeysValues(Cache, Cache),
    /// MLA: the compressed vector is key and value.
    Latent(Cache),
    Recurrent(Box<ikq_kernels::delta::State>),
}

/// Buffers between the phases of attention.
#[derive(Default)]
pub struct AttentionBuffers {
    pub q: Vec<f32>,
    pub k: Vec<f32>,
    pub v: Vec<f32>,
    pub z: Vec<f32>,
    /// A second input of products: compressed queries, values of all heads.
    pub inner: Activations,
    pub outer: Activations,
    pub partial: Vec<softmax::Partial>,
}

impl Attention {
    pub fn new(
        weights: &Weights<'_>,
        attention: &spec::Attention,
        model: &ModelSpec,
        ropes: &mut Ropes,
    ) -> Result<Attention, Error> {
        Ok(match attention {
            spec::Attention::Gqa(a) => Attention::Gqa(Box::new(Gqa::new(weights, a, model, ropes)?)),
            spec::Attention::Mla(a) => Attention::Mla(Box::new(Mla::new(weights, a, model, ropes)?)),
            spec::Attention::DeltaNet(a) => Attention::DeltaNet(Box::new(DeltaNet::new(weights, a, model)?)),
        })
    }

    /// A state of no tokens.
    ///
    /// # Errors
    /// [`Error::Cache`] when a head does not fit the cache's type.
    pub fn state(&self, n_ctx: usize, k: CacheType, v: CacheType) -> Result<LayerState, Error> {
        Ok(match self {
            Attention::Gqa(a) => LayerState::KeysValues(
                cache(k, a.n_head_kv, a.head_dim, n_ctx)?,
                cache(v, a.n_head_kv, a.head_dim_v, n_ctx)?,
            ),
            Attention::Mla(a) => LayerState::Latent(cache(k, 1, a.kv_rank + a.n_rot(), n_ctx)?),
            Attention::DeltaNet(a) => LayerState::Recurrent(Box::new(a.state())),
        })
    }

    /// Bytes of [`Attention::state`]; `None` when they are too many to count.
    pub fn state_bytes(&self, n_ctx: usize, (k, v): (CacheType, CacheType)) -> Option<usize> {
        let rows = |ty: CacheType, n_head: usize, d: usize| {
            ty.row_bytes(d).unwrap_or(4 * d).checked_mul(n_head)?.checked_mul(n_ctx)
        };
        match self {
            Attention::Gqa(a) => {
                rows(k, a.n_head_kv, a.head_dim)?.checked_add(rows(v, a.n_head_kv, a.head_dim_v)?)
            }
            Attention::Mla(a) => rows(k, 1, a.kv_rank + a.n_rot()),
            Attention::DeltaNet(a) => Some(a.state_bytes()),
        }
    }

    /// The forms of the normed input that its products read.
    pub fn input_forms(&self, compute: Compute) -> Forms {
        Forms::of(
            compute,
            match self {
                Attention::Gqa(a) => a.input_weights(),
                Attention::Mla(a) => a.input_weights(),
                Attention::DeltaNet(a) => a.input_weights(),
            },
        )
    }

    /// Runs the layer for the tokens in `acts`, which follow `n_past` others, and adds to `out`.
    pub fn run(
        &self,
        exec: &Exec<'_>,
        acts: &Activations,
        state: &mut LayerState,
        n_past: usize,
        buffers: &mut AttentionBuffers,
        out: &mut [f32],
    ) {
        match (self, state) {
            (Attention::Gqa(a), LayerState::KeysValues(k, v)) => {
                a.run(exec, acts, (k, v), n_past, buffers, out)
            }
            (Attention::Mla(a), LayerState::Latent(cache)) => a.run(exec, acts, cache, n_past, buffers, out),
            (Attention::DeltaNet(a), LayerState::Recurrent(state)) => a.run(exec, acts, state, buffers, out),
            _ => unreachable!("`state` made the state of this kind"),
        }
    }

    /// Removes positions `gone` of `n_past`; keys of later ones are rotated to their new places.
    pub fn shift(
        &self,
        state: &mut LayerState,
        kind: IsaKind,
        ropes: &Ropes,
        gone: Range<usize>,
        n_past: usize,
    ) {
        match (self, state) {
            (Attention::Gqa(a), LayerState::KeysValues(k, v)) => {
                let rope = a.rope.map(|id| (ropes.table(id), id));
                softmax::remove(kind, k, rope, 0, gone.clone(), n_past);
                softmax::remove(kind, v, None, 0, gone, n_past);
            }
            (Attention::Mla(a), LayerState::Latent(cache)) => {
                let rope = Some((ropes.table(a.rope), a.rope));
                softmax::remove(kind, cache, rope, a.kv_rank, gone, n_past);
            }
            _ => {}
        }
    }

    /// Adds the layer's weights to `all`.
    pub fn weights<'a>(&'a self, all: &mut Vec<&'a Weight>) {
        match self {
            Attention::Gqa(a) => all.extend([&a.q, &a.k, &a.v, &a.output]),
            Attention::Mla(a) => a.weights(all),
            Attention::DeltaNet(a) => a.weights(all),
        }
    }
}

fn cache(ty: CacheType, n_head: usize, d: usize, n_ctx: usize) -> Result<Cache, Error> {
    Cache::new(ty, n_head, d, n_ctx)
        .map_err(|e| Error::Cache { name: ty.name().to_string(), why: e.to_string() })
}

impl LayerState {
    pub fn bytes(&self) -> usize {
        match self {
            LayerState::KeysValues(k, v) => k.bytes() + v.bytes(),
            LayerState::Latent(cache) => cache.bytes(),
            LayerState::Recurrent(state) => state.bytes(),
        }
    }

    pub fn is_recurrent(&self) -> bool {
        matches!(self, LayerState::Recurrent(_))
    }

    /// Forgets positions from `n` on. Caches need nothing done: what is behind the end is never read.
    pub fn truncate(&mut self, n: usize) {
        if let LayerState::Recurrent(state) = self {
            debug_assert_eq!(n, 0, "recurrent states only start anew");
            state.clear();
        }
    }
}

/// Adds the tensors that an attention names.
pub fn tensor_names(attention: &spec::Attention, all: &mut BTreeSet<String>) {
    let mut linears = Vec::new();
    match attention {
        spec::Attention::Gqa(a) => {
            linears.extend([&a.q, &a.k, &a.v, &a.output]);
            all.extend(a.q_norm.iter().chain(&a.k_norm).chain(&a.sinks).cloned());
            all.extend(a.rope.iter().filter_map(|r| r.factors.clone()));
        }
        spec::Attention::Mla(a) => {
            linears.extend([&a.q, &a.kv_a, &a.output]);
            linears.extend(&a.q_a);
            all.extend(a.q_a_norm.iter().chain(&a.k_b).chain(&a.v_b).chain(&a.kv_b).cloned());
            all.extend([a.kv_a_norm.clone()]);
            all.extend(a.rope.factors.clone());
        }
        spec::Attention::DeltaNet(a) => {
            linears.extend([&a.qkv, &a.beta, &a.alpha, &a.output]);
            linears.extend(&a.z);
            all.extend([&a.conv, &a.dt, &a.a, &a.norm].map(String::clone));
        }
    }
    linears.into_iter().for_each(|l| names_of(l, all));
}
