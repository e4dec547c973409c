//! Attention whose cache is on another device than its weights: products here, what lies between them there.

use ikq_kernels::act::Activations;
use ikq_model::network;

use super::paged::LayerPages;
use super::{Attention, AttentionBuffers, gqa};
use crate::cache::LayerCache;
use crate::exec::{Exec, room};

const WHOLE: &str = "the placement parts layers with grouped heads only";

/// The sizes of a layer that can be parted.
fn grouped(layer: &network::Layer) -> &network::Gqa {
    match &layer.attention {
        network::Attention::Gqa(a) => a,
        _ => unreachable!("{WHOLE}"),
    }
}

impl Attention {
    /// Computes queries, keys and values of the normed input `acts`.
    pub fn project(
        &self,
        exec: &Exec<'_>,
        layer: &network::Layer,
        acts: &Activations,
        buffers: &mut AttentionBuffers,
    ) {
        let Attention::Gqa(weights) = self else { unreachable!("{WHOLE}") };
        gqa::project(exec, grouped(layer), weights, acts, buffers);
    }

    /// Computes the output projection of the heads' results to `out`.
    pub fn output(&self, exec: &Exec<'_>, buffers: &mut AttentionBuffers, out: &mut [f32]) {
        let Attention::Gqa(weights) = self else { unreachable!("{WHOLE}") };
        gqa::output(exec, weights, buffers, out);
    }
}

/// Stores keys and values of `n` columns, and computes attention over the layer's pages.
pub fn attend(
    exec: &Exec<'_>,
    layer: &network::Layer,
    cache: &mut LayerCache,
    buffers: &mut AttentionBuffers,
    n: usize,
) {
    let LayerCache::KeysValues(keys, values) = cache else { unreachable!("{WHOLE}") };
    let group = layer.group.expect("layers with keys belong to a group");
    gqa::attend(exec, grouped(layer), LayerPages { group, keys, values: Some(values) }, buffers, n);
}

impl AttentionBuffers {
    /// Takes queries, keys and values of `n` columns, one behind the other.
    pub fn put_projected(&mut self, layer: &network::Layer, n: usize, columns: &[f32]) {
        let a = grouped(layer);
        let (q, rest) = columns.split_at(n * a.q.n_rows);
        let (k, v) = rest.split_at(n * a.n_head_kv * a.head_dim);
        room(&mut self.q, q.len()).copy_from_slice(q);
        room(&mut self.k, k.len()).copy_from_slice(k);
        room(&mut self.v, v.len()).copy_from_slice(v);
    }

    /// Queries, keys and values of `n` columns, one behind the other.
    pub fn projected(&self, layer: &network::Layer, n: usize) -> Vec<f32> {
        let a = grouped(layer);
        let n_kv = n * a.n_head_kv;
        [&self.q[..n * a.q.n_rows], &self.k[..n_kv * a.head_dim], &self.v[..n_kv * a.head_dim_v]].concat()
    }

    /// Takes the heads' results of `n` columns.
    pub fn put_attended(&mut self, n: usize, columns: &[f32]) {
        self.outer.resize(columns.len() / n, n);
        self.outer.floats_mut().copy_from_slice(columns);
    }
}
