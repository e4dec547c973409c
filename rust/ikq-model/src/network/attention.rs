//! Attention layers as they are checked: weights by role and sizes.

use crate::error::Error;
use crate::network::ropes::{self, Rope, RopeId};
use crate::network::{Weight, Weights};
use crate::spec::{self, GateFunc, ModelSpec, QkNorm, Temperature, ValueOrder};

/// The attention of a layer.
#[derive(Debug)]
pub enum Attention {
    Gqa(Box<Gqa>),
    Mla(Box<Mla>),
    DeltaNet(Box<DeltaNet>),
}

/// Attention with grouped heads: several query heads share a key/value head.
#[derive(Debug)]
pub struct Gqa {
    pub n_head: usize,
    pub n_head_kv: usize,
    pub head_dim: usize,
    pub head_dim_v: usize,
    /// With `output_gate`, each head's query rows are followed by as many gate rows.
    pub q: Weight,
    /// Of keys and values; `None` where the layer reads those of `shares`.
    pub kv: Option<(Weight, Weight)>,
    /// The layer whose keys and values this one reads.
    pub shares: Option<usize>,
    pub output: Weight,
    pub scale: f32,
    pub rope: Option<RopeId>,
    pub q_norm: Option<Vec<f32>>,
    pub k_norm: Option<Vec<f32>>,
    /// A norm of value heads without numbers of its own, which are all 1.
    pub v_norm: Option<Vec<f32>>,
    pub window: Option<usize>,
    pub softcap: Option<f32>,
    pub sinks: Option<Vec<f32>>,
    pub output_gate: bool,
    pub qk_norm: QkNorm,
    /// Gates of the values' sums: a row per head, or per element.
    pub gate: Option<Weight>,
    pub gate_func: GateFunc,
    pub temperature: Option<Temperature>,
}

/// Latent attention, computed absorbed: scores and sums are over the compressed vector.
#[derive(Debug)]
pub struct Mla {
    pub n_head: usize,
    pub kv_rank: usize,
    pub n_nope: usize,
    pub head_dim_v: usize,
    pub q: Weight,
    /// The matrix that compresses queries and the norm behind it, in models that do.
    pub q_a: Option<(Weight, Vec<f32>)>,
    pub kv_a: Weight,
    pub kv_a_norm: Vec<f32>,
    /// The keys' part of every head: `kv_rank` rows of `n_nope` elements.
    pub k_b: Weight,
    /// The values' part of every head: `head_dim_v` rows of `kv_rank` elements.
    pub v_b: Weight,
    /// The tensor of older files with the rows of both, whose input is the compressed vector itself.
    pub kv_b: Option<String>,
    pub output: Weight,
    pub scale: f32,
    pub rope: RopeId,
    pub temperature: Option<Temperature>,
}

/// A gated delta-net: a recurrent layer instead of attention.
#[derive(Debug)]
pub struct DeltaNet {
    pub n_head_k: usize,
    pub n_head_v: usize,
    pub head_dim_k: usize,
    pub head_dim_v: usize,
    pub conv_kernel: usize,
    pub value_order: ValueOrder,
    pub qkv: Weight,
    pub z: Option<Weight>,
    pub beta: Weight,
    pub alpha: Weight,
    pub ba_grouped: bool,
    /// `conv_kernel` numbers per channel.
    pub conv: Vec<f32>,
    pub dt: Vec<f32>,
    pub a: Vec<f32>,
    pub norm: Vec<f32>,
    pub output: Weight,
}

impl Attention {
    pub(super) fn new(
        weights: &Weights<'_>,
        attention: &spec::Attention,
        model: &ModelSpec,
        ropes: &mut Vec<Rope>,
    ) -> Result<Attention, Error> {
        Ok(match attention {
            spec::Attention::Gqa(a) => Attention::Gqa(Box::new(Gqa::new(weights, a, model, ropes)?)),
            spec::Attention::Mla(a) => Attention::Mla(Box::new(Mla::new(weights, a, model, ropes)?)),
            spec::Attention::DeltaNet(a) => Attention::DeltaNet(Box::new(DeltaNet::new(weights, a, model)?)),
        })
    }

    /// The sliding window; `None` where all positions are seen, or none are kept.
    pub fn window(&self) -> Option<usize> {
        match self {
            Attention::Gqa(a) => a.window,
            _ => None,
        }
    }

    /// The layer whose keys and values are read instead of the layer's own, if it has none.
    pub fn shares(&self) -> Option<usize> {
        match self {
            Attention::Gqa(a) => a.shares,
            _ => None,
        }
    }

    pub fn is_recurrent(&self) -> bool {
        matches!(self, Attention::DeltaNet(_))
    }

    /// Whether keys in the cache can be turned to other positions: not where they were normed after they were turned.
    pub fn can_turn(&self) -> bool {
        match self {
            Attention::Gqa(a) => a.k_norm.is_none() || a.qk_norm != QkNorm::RotatedHead,
            Attention::Mla(_) => true,
            Attention::DeltaNet(_) => false,
        }
    }

    /// What only some models have: the parts that not every device computes, in words.
    pub fn rare_part(&self) -> Option<&'static str> {
        let temperature = match self {
            Attention::Gqa(a) => {
                if matches!(a.qk_norm, QkNorm::RotatedHead | QkNorm::Row)
                    && (a.q_norm.is_some() || a.k_norm.is_some())
                {
                    return Some("norms of queries and keys over whole rows, or after the rotation");
                }
                if a.gate.is_some() {
                    return Some("attention with a gate of its own");
                }
                a.temperature
            }
            Attention::Mla(a) => a.temperature,
            Attention::DeltaNet(_) => None,
        };
        temperature.map(|_| "attention whose temperature depends on the position")
    }

    /// The layer's matrices.
    pub fn weights(&self) -> Vec<&Weight> {
        match self {
            Attention::Gqa(a) => {
                let kv = a.kv.iter().flat_map(|(k, v)| [k, v]);
                std::iter::once(&a.q).chain(kv).chain([&a.output]).chain(&a.gate).collect()
            }
            Attention::Mla(a) => {
                let mut all = vec![&a.q, &a.kv_a, &a.k_b, &a.v_b, &a.output];
                all.extend(a.q_a.iter().map(|(q_a, _)| q_a));
                all
            }
            Attention::DeltaNet(a) => {
                let mut all = vec![&a.qkv, &a.beta, &a.alpha, &a.output];
                all.extend(&a.z);
                all
            }
        }
    }
}

/// # Errors
/// [`Error::Spec`] for a length of 0.
fn check_temperature(temperature: Option<Temperature>) -> Result<(), Error> {
    match temperature {
        Some(t) if t.length == 0 => Err(Error::Spec { why: format!("{t:?}") }),
        _ => Ok(()),
    }
}

impl Gqa {
    fn new(
        weights: &Weights<'_>,
        a: &spec::Gqa,
        model: &ModelSpec,
        ropes: &mut Vec<Rope>,
    ) -> Result<Gqa, Error> {
        let sound = a.n_head_kv > 0 && a.n_head > 0 && a.n_head.is_multiple_of(a.n_head_kv);
        if !sound || a.head_dim == 0 || a.head_dim_v == 0 {
            let why = format!(
                "{} query heads of {} over {} key/value heads of {}",
                a.n_head, a.head_dim, a.n_head_kv, a.head_dim_v
            );
            return Err(Error::Spec { why });
        }
        if a.window == Some(0) {
            return Err(Error::Spec { why: "a sliding window of 0 positions".into() });
        }
        let rope = a.rope.as_ref().map(|r| ropes::add(ropes, weights, r)).transpose()?;
        if rope.is_some_and(|r| r.n_rot > a.head_dim) {
            return Err(Error::Spec { why: format!("more rotated elements than the head's {}", a.head_dim) });
        }
        let per_head = |name: &Option<String>, n| name.as_deref().map(|t| weights.floats(t, n)).transpose();
        let ones = (a.qk_norm == QkNorm::Unit).then(|| vec![1.0; a.head_dim]);
        let normed = |n_head| if a.qk_norm == QkNorm::Row { n_head * a.head_dim } else { a.head_dim };
        let gate = a.gate.as_ref().map(|g| weights.linear(g, model.n_embd, None, 1)).transpose()?;
        if let Some(gate) = &gate
            && (a.output_gate || ![a.n_head, a.n_head * a.head_dim_v].contains(&gate.n_rows))
        {
            let why = format!("{} rows of gates for {} heads of {}", gate.n_rows, a.n_head, a.head_dim_v);
            return Err(Error::Spec { why });
        }
        check_temperature(a.temperature)?;
        if a.output_gate && (a.qk_norm == QkNorm::Row || a.temperature.is_some()) {
            return Err(Error::Spec { why: "norms or a temperature of queries with gates in them".into() });
        }
        let q_rows = a.n_head * a.head_dim * if a.output_gate { 2 } else { 1 };
        if a.output_gate && a.head_dim != a.head_dim_v {
            return Err(Error::Spec { why: "an output gate needs values as long as keys".into() });
        }
        let kv = match (&a.k, &a.v, a.shares) {
            (Some(k), Some(v), None) => Some((
                weights.linear(k, model.n_embd, Some(a.n_head_kv * a.head_dim), 1)?,
                weights.linear(v, model.n_embd, Some(a.n_head_kv * a.head_dim_v), 1)?,
            )),
            (None, None, Some(_)) => None,
            _ => {
                return Err(Error::Spec {
                    why: "attention with keys and values of its own and of another layer, or neither".into(),
                });
            }
        };
        Ok(Gqa {
            n_head: a.n_head,
            n_head_kv: a.n_head_kv,
            head_dim: a.head_dim,
            head_dim_v: a.head_dim_v,
            q: weights.linear(&a.q, model.n_embd, Some(q_rows), 1)?,
            kv,
            shares: a.shares,
            output: weights.linear(&a.output, a.n_head * a.head_dim_v, Some(model.n_embd), 1)?,
            scale: a.scale,
            rope,
            q_norm: ones.clone().or(per_head(&a.q_norm, normed(a.n_head))?),
            k_norm: ones.or(per_head(&a.k_norm, normed(a.n_head_kv))?),
            v_norm: a.v_norm.then(|| vec![1.0; a.head_dim_v]),
            window: a.window,
            softcap: a.softcap,
            sinks: per_head(&a.sinks, a.n_head)?,
            output_gate: a.output_gate,
            qk_norm: a.qk_norm,
            gate,
            gate_func: a.gate_func,
            temperature: a.temperature,
        })
    }
}

impl Mla {
    fn new(
        weights: &Weights<'_>,
        a: &spec::Mla,
        model: &ModelSpec,
        ropes: &mut Vec<Rope>,
    ) -> Result<Mla, Error> {
        let rope = ropes::add(ropes, weights, &a.rope)?;
        check_temperature(a.temperature)?;
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
        let (mut k_b, mut v_b) = match (&a.k_b, &a.v_b, &a.kv_b) {
            (Some(k_b), Some(v_b), _) => (
                weights.heads(k_b, a.n_nope, a.kv_rank, a.n_head)?,
                weights.heads(v_b, a.kv_rank, a.head_dim_v, a.n_head)?,
            ),
            (_, _, Some(kv_b)) => weights.split_kv_b(kv_b, a.kv_rank, a.n_nope, a.head_dim_v, a.n_head)?,
            _ => return Err(Error::Spec { why: "latent attention without k_b and v_b, or kv_b".into() }),
        };
        if let (Some(_), Some(twin)) = (&a.k_b, &a.kv_b_twin) {
            weights.add_twin(twin, &mut k_b, &mut v_b)?;
        }
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
            rope,
            temperature: a.temperature,
        })
    }

    /// Whether keys' and values' matrices are parts of one tensor of the file.
    pub fn is_split(&self) -> bool {
        self.kv_b.as_ref() == Some(&self.v_b.name)
    }
}

impl DeltaNet {
    fn new(weights: &Weights<'_>, a: &spec::DeltaNet, model: &ModelSpec) -> Result<DeltaNet, Error> {
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
            output: weights.linear(&a.output, n_values, Some(n_embd), 1)?,
        })
    }

    /// Channels of the convolution: all queries, keys and values.
    pub fn n_channels(&self) -> usize {
        2 * self.n_head_k * self.head_dim_k + self.n_head_v * self.head_dim_v
    }
}
