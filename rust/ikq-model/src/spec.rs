//! The description of a model, as `python/ikq/models/spec.py` writes it; the fields are explained there.

use serde::Deserialize;

use crate::error::Error;

/// A matrix product `scale * (W x) + bias`, or one per expert.
#[derive(Clone, Debug, Deserialize)]
pub struct Linear {
    pub weight: Names,
    /// One number per row of `weight`, of which `n_rows` from `first_row` on are used.
    pub bias: Option<String>,
    pub scale: Option<String>,
    #[serde(default)]
    pub first_row: usize,
    pub n_rows: Option<usize>,
}

/// One tensor, or one per expert.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum Names {
    One(String),
    Each(Vec<String>),
}

impl Names {
    /// The name, or the first of them.
    pub fn first(&self) -> &str {
        match self {
            Names::One(name) => name,
            Names::Each(names) => names.first().map_or("", String::as_str),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
pub struct Yarn {
    pub factor: f64,
    pub n_ctx_orig: u64,
    pub beta_fast: f64,
    pub beta_slow: f64,
    pub magnitude: f64,
    pub truncate: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pairing {
    Norm,
    Neox,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Rope {
    pub pairing: Pairing,
    pub n_rot: usize,
    pub base: f64,
    pub linear: f64,
    pub factors: Option<String>,
    pub yarn: Option<Yarn>,
    /// Numbers of `factors` where there are more than pairs: the first ones count.
    #[serde(default)]
    pub n_factors: Option<usize>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Attention {
    Gqa(Box<Gqa>),
    Mla(Box<Mla>),
    DeltaNet(Box<DeltaNet>),
}

/// What the norms of queries and keys are taken over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QkNorm {
    /// Each head, before it is rotated.
    #[default]
    Head,
    /// Each head, after it is rotated.
    RotatedHead,
    /// All heads together, before they are rotated.
    Row,
    /// Each head, by weights of 1: it does not matter whether it is rotated before or after.
    Unit,
}

/// The kind of all norms of the residual stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NormKind {
    #[default]
    Rms,
    /// The mean is subtracted first.
    Layer,
}

/// What a gate's numbers become before they are multiplied with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GateFunc {
    #[default]
    Sigmoid,
    Softplus,
}

/// Queries are multiplied with `1 + scale ln(1 + floor((position + offset) / length))`.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
pub struct Temperature {
    pub scale: f32,
    pub length: u32,
    pub offset: u32,
}

impl Temperature {
    /// The factor of queries at a position.
    pub fn at(self, position: u32) -> f32 {
        let steps = (u64::from(position) + u64::from(self.offset)) / u64::from(self.length);
        (1.0 + f64::from(self.scale) * ((1 + steps) as f64).ln()) as f32
    }
}

#[derive(Clone, Debug, Deserialize)]
pub struct Gqa {
    pub n_head: usize,
    pub n_head_kv: usize,
    pub head_dim: usize,
    pub head_dim_v: usize,
    pub q: Linear,
    pub k: Option<Linear>,
    pub v: Option<Linear>,
    pub output: Linear,
    pub scale: f32,
    pub rope: Option<Rope>,
    pub q_norm: Option<String>,
    pub k_norm: Option<String>,
    pub window: Option<usize>,
    pub softcap: Option<f32>,
    pub sinks: Option<String>,
    pub output_gate: bool,
    #[serde(default)]
    pub qk_norm: QkNorm,
    /// One row per head, or per element of the values.
    #[serde(default)]
    pub gate: Option<Linear>,
    #[serde(default)]
    pub gate_func: GateFunc,
    #[serde(default)]
    pub temperature: Option<Temperature>,
    #[serde(default)]
    pub v_norm: bool,
    #[serde(default)]
    pub shares: Option<usize>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Mla {
    pub n_head: usize,
    pub kv_rank: usize,
    pub n_rot: usize,
    pub n_nope: usize,
    pub head_dim_v: usize,
    pub q: Linear,
    pub kv_a: Linear,
    pub kv_a_norm: String,
    pub output: Linear,
    pub scale: f32,
    pub rope: Rope,
    pub q_a: Option<Linear>,
    pub q_a_norm: Option<String>,
    pub k_b: Option<String>,
    pub v_b: Option<String>,
    pub kv_b: Option<String>,
    pub kv_b_twin: Option<String>,
    #[serde(default)]
    pub temperature: Option<Temperature>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ValueOrder {
    Grouped,
    Tiled,
}

#[derive(Clone, Debug, Deserialize)]
pub struct DeltaNet {
    pub n_head_k: usize,
    pub n_head_v: usize,
    pub head_dim_k: usize,
    pub head_dim_v: usize,
    pub conv_kernel: usize,
    pub qkv: Linear,
    pub z: Option<Linear>,
    pub beta: Linear,
    pub alpha: Linear,
    pub value_order: ValueOrder,
    pub conv: String,
    pub dt: String,
    pub a: String,
    pub norm: String,
    pub output: Linear,
    pub mixed: bool,
    pub ba_grouped: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    Silu,
    GeluTanh,
    SwigluOai,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Ffn {
    Dense(Box<DenseFfn>),
    Moe(Box<Moe>),
}

#[derive(Clone, Debug, Deserialize)]
pub struct DenseFfn {
    pub gate: Linear,
    pub up: Linear,
    pub down: Linear,
    pub activation: Activation,
    pub input_gate: Option<String>,
    /// Of `silu`: what gate and up are limited to.
    #[serde(default)]
    pub limit: Option<f32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Func {
    Softmax,
    Sigmoid,
    SoftmaxChosen,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Routing {
    pub n_expert: usize,
    pub n_used: usize,
    pub router: Linear,
    pub func: Func,
    pub selection_bias: Option<String>,
    pub normalize: bool,
    pub scale: f32,
    pub n_group: usize,
    pub n_group_used: usize,
}

#[derive(Clone, Debug, Deserialize)]
pub struct MoeNorms {
    pub router: String,
    pub router_scale: f32,
    pub shared: String,
    pub shared_output: String,
    pub experts_output: String,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Moe {
    pub routing: Routing,
    pub gate: Linear,
    pub up: Linear,
    pub down: Linear,
    pub activation: Activation,
    pub shared: Option<DenseFfn>,
    #[serde(default)]
    pub limit: Option<f32>,
    /// An expert's input is multiplied with its weight, not what it gives.
    #[serde(default)]
    pub weighs_input: bool,
    #[serde(default)]
    pub norms: Option<MoeNorms>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct LayerEmbedding {
    pub gate: Linear,
    pub proj: Linear,
    pub norm: String,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Layer {
    pub attention_norm: String,
    pub attention: Attention,
    pub ffn_norm: String,
    pub ffn: Ffn,
    pub post_attention_norm: Option<String>,
    pub post_ffn_norm: Option<String>,
    /// Factors of what the branches add.
    #[serde(default = "one")]
    pub attention_factor: f32,
    #[serde(default = "one")]
    pub ffn_factor: f32,
    /// The FFN reads what attention reads, not what it made of it.
    #[serde(default)]
    pub parallel: bool,
    #[serde(default)]
    pub embedding: Option<LayerEmbedding>,
    #[serde(default)]
    pub scale: Option<String>,
}

fn one() -> f32 {
    1.0
}

/// Embeddings that each layer has of its own.
#[derive(Clone, Debug, Deserialize)]
pub struct PerLayer {
    pub n: usize,
    pub embd: String,
    pub embd_scale: f32,
    pub proj: Linear,
    pub proj_scale: f32,
    pub norm: String,
    pub scale: f32,
}

/// What the block of a multi-token prediction head reads: `eh_proj [enorm(embedding); hnorm(hidden state)]`.
#[derive(Clone, Debug, Deserialize)]
pub struct Nextn {
    pub enorm: String,
    pub hnorm: String,
    pub eh_proj: Linear,
}

#[derive(Clone, Debug, Deserialize)]
pub struct ModelSpec {
    pub architecture: String,
    pub n_vocab: usize,
    pub n_embd: usize,
    pub n_ctx_train: usize,
    pub norm_eps: f32,
    #[serde(default)]
    pub norm_kind: NormKind,
    pub token_embd: String,
    pub output_norm: String,
    /// `None`: a head whose hidden states another model's output reads.
    pub output: Option<Linear>,
    pub layers: Vec<Layer>,
    #[serde(default)]
    pub nextn: Option<Nextn>,
    #[serde(default)]
    pub per_layer: Option<PerLayer>,
    pub embd_scale: f32,
    #[serde(default = "one")]
    pub logit_scale: f32,
    pub final_softcap: Option<f32>,
    /// Most positions for which what is computed is the model: behind them its attention leaves some out.
    #[serde(default)]
    pub n_ctx_most: Option<usize>,
    /// Some layers of a model: the first is given hidden states, and the last gives them, as they are. Embedding, last norm and
    /// output are not looked at.
    #[serde(default)]
    pub is_part: bool,
}

impl ModelSpec {
    /// Reads what `ModelSpec.to_json` of the Python package wrote.
    ///
    /// # Errors
    /// [`Error::Spec`].
    pub fn from_json(text: &str) -> Result<ModelSpec, Error> {
        serde_json::from_str(text).map_err(|e| Error::Spec { why: e.to_string() })
    }
}
