//! [`Loader`]: copies the weights of a network to the device. The same code also counts the bytes that would be
//! copied, without a GPU.

use ikq_formats::QuantType;
use ikq_model::device::Stage;
use ikq_model::error::Error as ModelError;
use ikq_model::network::{self, Network, PlanKind};
use ikq_model::placement::Placement;
use ikq_model::spec::{NormKind, ValueOrder};

use super::borrowed::Borrowed;
use super::model_error;
use super::parts::{
    Attention, DeltaNet, Dense, Ffn, Gqa, Head, Kind, Linear, Mla, Parts, Router, latent_row,
};
use crate::error::Error;
use crate::floats::as_bytes;
use crate::gpu::Gpu;
use crate::memory::{Address, Arena, arena_bytes};
use crate::plan::{self, DeltaSizes, Glu, MOST_HEAD, reads_codes};
use crate::weights::{self, Matrix, Staging};

/// Takes pieces of device memory and fills them, or only counts their bytes.
pub struct Loader<'a> {
    n_bytes: usize,
    to: Option<(&'a Gpu, Arena, Staging)>,
    stage: Stage,
}

impl<'a> Loader<'a> {
    /// A loader that only counts bytes.
    pub fn counting() -> Loader<'a> {
        Loader { n_bytes: 0, to: None, stage: Stage::Head }
    }

    /// A loader that copies to an arena, which must have as many bytes as were counted.
    pub fn copying(gpu: &'a Gpu, arena: Arena) -> Loader<'a> {
        Loader { n_bytes: 0, to: Some((gpu, arena, Staging::default())), stage: Stage::Head }
    }

    /// Bytes of all pieces so far.
    pub fn n_bytes(&self) -> usize {
        self.n_bytes
    }

    /// The arena; waits until everything was copied.
    pub fn into_arena(self) -> Result<Option<Arena>, Error> {
        match self.to {
            Some((gpu, arena, _)) => {
                gpu.wait()?;
                Ok(Some(arena))
            }
            None => Ok(None),
        }
    }

    fn not_yet(&self, what: &str) -> ModelError {
        ModelError::Device(format!(
            "{}: {what} is not computed on GPUs yet; leave it on the CPU, for example by -ot '{}=CPU'",
            self.stage,
            match self.stage {
                Stage::Attention(l) => format!(r"blk\.{l}\.(attn|ssm)"),
                Stage::Head => "^output|^token_embd".to_string(),
                stage => stage.layer().map_or_else(String::new, |l| format!(r"blk\.{l}\.ffn")),
            }
        ))
    }

    fn take(&mut self, bytes: usize) -> Result<Address, Error> {
        self.n_bytes += arena_bytes([bytes]);
        match &mut self.to {
            Some((_, arena, _)) => arena.take(bytes),
            None => Ok(Address::default()),
        }
    }

    fn floats(&mut self, values: &[f32]) -> Result<Address, ModelError> {
        let at = self.take(4 * values.len()).map_err(model_error)?;
        if let Some((gpu, _, staging)) = &mut self.to {
            // SAFETY: the piece has room for the floats; `into_arena` waits for the copy
            unsafe { staging.send(gpu, at, as_bytes(values)) }.map_err(model_error)?;
        }
        Ok(at)
    }

    fn optional(&mut self, values: Option<&[f32]>) -> Result<Option<Address>, ModelError> {
        values.map(|v| self.floats(v)).transpose()
    }

    fn linear(&mut self, weight: &network::Weight) -> Result<Linear, ModelError> {
        let ty = plan::device_type(weight.ty).map_err(model_error)?;
        if weight.factors.is_some() {
            return Err(self.not_yet("a matrix with factors"));
        }
        if reads_codes(ty) && !weight.k.is_multiple_of(32) {
            return Err(self.not_yet(&format!("`{}`, whose rows are no whole blocks of 32,", weight.name)));
        }
        let matrix = self.matrix(weight, ty).map_err(model_error)?;
        Ok(Linear { matrix, bias: self.optional(weight.bias.as_deref())? })
    }

    fn matrix(&mut self, weight: &network::Weight, ty: QuantType) -> Result<Matrix, Error> {
        let (n_rows, n) = (weight.n_rows, weight.k);
        let size = weights::matrix_bytes(weight.ty, n_rows, n)?;
        let at = self.take(size * weight.n_experts())?;
        let Some((gpu, _, staging)) = &mut self.to else { return Ok(Matrix { at, ty, n_rows, n }) };
        for expert in 0..weight.n_experts() {
            let rows = weight.rows(expert);
            // the scale of an I2_S tensor follows its rows
            let with_scale = (weight.ty == QuantType::I2_S).then(|| {
                let mut bytes = rows.to_vec();
                bytes.extend(weight.scale.to_le_bytes());
                bytes.resize(rows.len() + ikq_formats::row::I2_S_TRAILER_BYTES, 0);
                bytes
            });
            let file = with_scale.as_deref().unwrap_or(&rows);
            let at = at.offset(expert * size);
            // SAFETY: the piece has the size of all matrices
            unsafe { weights::upload(gpu, staging, file, weight.ty, n_rows, n, at) }?;
        }
        Ok(Matrix { at, ty, n_rows, n })
    }

    fn ffn(
        &mut self,
        experts: &network::Experts,
        input_gate: Option<&network::Weight>,
    ) -> Result<Ffn, ModelError> {
        let (gate, up) = (self.linear(&experts.gate)?, self.linear(&experts.up)?);
        Ok(Ffn {
            gate,
            up,
            down: self.linear(&experts.down)?,
            n_experts: experts.down.n_experts(),
            glu: Glu::from(experts.activation),
            apart: experts.plan.kind == PlanKind::Separate || reads_codes(gate.ty()) != reads_codes(up.ty()),
            input_gate: input_gate.map(|w| self.linear(w)).transpose()?,
        })
    }

    fn attention(&mut self, layer: &network::Layer, is_cached: bool) -> Result<Attention, ModelError> {
        let kind = match &layer.attention {
            network::Attention::Gqa(a) => Kind::Gqa(self.gqa(a)?),
            network::Attention::Mla(a) => Kind::Mla(self.mla(a)?),
            network::Attention::DeltaNet(a) => Kind::DeltaNet(self.delta_net(a)?),
        };
        Ok(Attention {
            norm: self.floats(&layer.attention_norm)?,
            post_norm: self.optional(layer.post_attention_norm.as_deref())?,
            kind,
            is_cached,
        })
    }

    fn gqa(&mut self, a: &network::Gqa) -> Result<Gqa, ModelError> {
        if a.head_dim > MOST_HEAD || a.head_dim_v > MOST_HEAD {
            return Err(self.not_yet(&format!("a head of more than {MOST_HEAD} elements")));
        }
        let Some((k, v)) = &a.kv else {
            return Err(self.not_yet("a layer that reads the keys and values of another"));
        };
        if a.v_norm.is_some() {
            return Err(self.not_yet("a norm of values"));
        }
        Ok(Gqa {
            q: self.linear(&a.q)?,
            k: self.linear(k)?,
            v: self.linear(v)?,
            output: self.linear(&a.output)?,
            q_norm: self.optional(a.q_norm.as_deref())?,
            k_norm: self.optional(a.k_norm.as_deref())?,
            sinks: self.optional(a.sinks.as_deref())?,
        })
    }

    fn mla(&mut self, a: &network::Mla) -> Result<Mla, ModelError> {
        if latent_row(a) > MOST_HEAD || a.n_nope > MOST_HEAD {
            return Err(self.not_yet(&format!("a compressed vector of more than {MOST_HEAD} elements")));
        }
        let q_a = match &a.q_a {
            Some((q_a, norm)) => Some((self.linear(q_a)?, self.floats(norm)?)),
            None => None,
        };
        Ok(Mla {
            q: self.linear(&a.q)?,
            q_a,
            kv_a: self.linear(&a.kv_a)?,
            kv_a_norm: self.floats(&a.kv_a_norm)?,
            k_b: self.linear(&a.k_b)?,
            v_b: self.linear(&a.v_b)?,
            output: self.linear(&a.output)?,
        })
    }

    fn delta_net(&mut self, a: &network::DeltaNet) -> Result<DeltaNet, ModelError> {
        Ok(DeltaNet {
            sizes: DeltaSizes {
                n_head_k: a.n_head_k,
                n_head_v: a.n_head_v,
                head_dim_k: a.head_dim_k,
                head_dim_v: a.head_dim_v,
                conv_kernel: a.conv_kernel,
            },
            tiled: matches!(a.value_order, ValueOrder::Tiled),
            qkv: self.linear(&a.qkv)?,
            z: a.z.as_ref().map(|z| self.linear(z)).transpose()?,
            beta: self.linear(&a.beta)?,
            alpha: if a.ba_grouped { None } else { Some(self.linear(&a.alpha)?) },
            conv: self.floats(&a.conv)?,
            dt: self.floats(&a.dt)?,
            slope: self.floats(&a.a)?,
            norm: self.floats(&a.norm)?,
            output: self.linear(&a.output)?,
        })
    }

    /// Loads the weights of a stage of device `index`.
    ///
    /// # Errors
    /// [`ModelError::Device`] for stages that GPUs do not compute yet, and for errors of the driver.
    pub fn stage(
        &mut self,
        network: &Network,
        placement: &Placement,
        index: usize,
        stage: Stage,
        parts: &mut Parts,
    ) -> Result<(), ModelError> {
        self.stage = stage;
        if network.spec.norm_kind != NormKind::Rms {
            return Err(self.not_yet("a norm that subtracts the mean"));
        }
        let Some((l, layer)) = stage.layer().map(|l| (l, &network.layers[l])) else {
            if stage == Stage::Embed {
                return Err(self.not_yet("the embedding"));
            }
            parts.head = Some(Head {
                norm: self.optional(network.output_norm.as_deref())?,
                output: network.output.as_ref().map(|w| self.linear(w)).transpose()?,
            });
            return Ok(());
        };
        let rare = match stage {
            Stage::Attention(_) => layer.rare_attention(),
            _ => layer.rare_ffn(),
        };
        if let Some(what) = rare {
            return Err(self.not_yet(what));
        }
        match (stage, &layer.ffn) {
            (Stage::Attention(_), _) => {
                let is_cached = placement.device(Stage::Attend(l)) == index;
                parts.attention[l] = Some(self.attention(layer, is_cached)?);
            }
            (Stage::Dense(_), network::Ffn::Dense(dense)) => {
                parts.dense[l] = Some(Dense {
                    norm: self.floats(&layer.ffn_norm)?,
                    ffn: self.ffn(&dense.experts, dense.input_gate.as_ref())?,
                    post_norm: self.optional(layer.post_ffn_norm.as_deref())?,
                });
            }
            (Stage::Route(_), network::Ffn::Moe(moe)) => {
                if moe.norms.is_some() {
                    return Err(self.not_yet("a router with a norm of its own"));
                }
                parts.most_used = parts.most_used.max(moe.routing.n_used);
                parts.router[l] = Some(Router {
                    norm: self.floats(&layer.ffn_norm)?,
                    weight: self.linear(&moe.router)?,
                    bias: self.optional(moe.selection_bias.as_deref())?,
                    rule: moe.routing.clone(),
                    has_shared: moe.shared.is_some(),
                    post_norm: self.optional(layer.post_ffn_norm.as_deref())?,
                    is_read: placement.device(Stage::Experts(l)) != index,
                });
                parts.borrowed[l] = Borrowed::new(network, placement, index, l).map_err(model_error)?;
            }
            (Stage::Experts(_), network::Ffn::Moe(moe)) => {
                parts.most_used = parts.most_used.max(moe.routing.n_used);
                parts.experts[l] = Some(self.ffn(&moe.experts, None)?);
            }
            (Stage::Shared(_), network::Ffn::Moe(moe)) => {
                if let Some(shared) = &moe.shared {
                    parts.shared[l] = Some(self.ffn(&shared.experts, shared.input_gate.as_ref())?);
                }
            }
            _ => {}
        }
        Ok(())
    }
}
