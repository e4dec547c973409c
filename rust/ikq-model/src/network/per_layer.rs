//! Embeddings that layers have of their own, as they are checked.

use crate::error::Error;
use crate::network::{Weight, Weights};
use crate::spec::{self, ModelSpec};

/// What all layers' embeddings are made of; see `PerLayer` in `python/ikq/models/spec.py`.
#[derive(Debug)]
pub struct PerLayer {
    /// Elements per layer.
    pub n: usize,
    /// Rows of the elements of all layers.
    pub embd: Weight,
    pub embd_scale: f32,
    pub proj: Weight,
    pub proj_scale: f32,
    /// Of the elements of each layer.
    pub norm: Vec<f32>,
    pub scale: f32,
}

/// How a layer adds its embedding.
#[derive(Debug)]
pub struct LayerEmbedding {
    pub gate: Weight,
    pub proj: Weight,
    pub norm: Vec<f32>,
}

impl PerLayer {
    pub(super) fn new(weights: &Weights<'_>, model: &ModelSpec) -> Result<Option<PerLayer>, Error> {
        let Some(p) = &model.per_layer else { return Ok(None) };
        if model.is_part || model.nextn.is_some() || p.n == 0 {
            let why = "embeddings of layers are run in whole models only".into();
            return Err(Error::Spec { why });
        }
        let all = p.n * model.layers.len();
        Ok(Some(PerLayer {
            n: p.n,
            embd: weights.matrix(&p.embd, all, model.n_vocab)?,
            embd_scale: p.embd_scale,
            proj: weights.linear(&p.proj, model.n_embd, Some(all), 1)?,
            proj_scale: p.proj_scale,
            norm: weights.floats(&p.norm, p.n)?,
            scale: p.scale,
        }))
    }

    /// Elements of all layers.
    pub fn n_all(&self) -> usize {
        self.proj.n_rows
    }
}

impl LayerEmbedding {
    pub(super) fn new(
        weights: &Weights<'_>,
        layer: &spec::Layer,
        model: &ModelSpec,
    ) -> Result<Option<LayerEmbedding>, Error> {
        let Some(e) = &layer.embedding else { return Ok(None) };
        let n = match &model.per_layer {
            Some(p) => p.n,
            None => return Err(Error::Spec { why: "a layer with an embedding of a model without".into() }),
        };
        Ok(Some(LayerEmbedding {
            gate: weights.linear(&e.gate, model.n_embd, Some(n), 1)?,
            proj: weights.linear(&e.proj, n, Some(model.n_embd), 1)?,
            norm: weights.floats(&e.norm, model.n_embd)?,
        }))
    }

    pub fn weights(&self) -> [&Weight; 2] {
        [&self.gate, &self.proj]
    }
}
