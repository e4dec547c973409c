//! [`Cuda`]: a GPU as a device that runs models. So far it has the stages of dense layers' FFNs and of the output;
//! what else a placement gives it is refused when it is loaded.
//!
//! The residual stream lies in scratch memory that grows with the largest batch. An error of the driver in the
//! middle of a step is kept, and told when the step is over ([`Device::failure`]).

use std::sync::Arc;

use ikq_formats::QuantType;
use ikq_model::batch::Batch;
use ikq_model::device::{Choices, Device, Loading, Memory, Move, RouterFailed, Stage, Step, Value};
use ikq_model::error::Error as ModelError;
use ikq_model::network::{self, Ffn, Layer, Network};
use ikq_model::placement::Placement;
use ikq_model::spec::Activation;
use ikq_pool::Stop;

use crate::error::Error;
use crate::gpu::Gpu;
use crate::loader::Runtime;
use crate::memory::{Address, Arena, arena_bytes};
use crate::plan::{Call, Glu, MOST_COLUMNS, UpGate, reads_codes};
use crate::products::{self, Columns, Target, code_bytes, launch};
use crate::weights::{self, Matrix};

/// A GPU.
pub struct Cuda {
    name: String,
    gpu: Gpu,
    network: Option<Arc<Network>>,
    parts: Parts,
    scratch: Option<Scratch>,
    batch: Batch,
    /// What was read back, for [`Device::get`].
    values: Vec<f32>,
    choices: Choices,
    failure: Option<Error>,
}

/// A matrix with what is added to its products.
#[derive(Clone, Copy, Debug)]
struct Linear {
    matrix: Matrix,
    bias: Option<Address>,
}

/// A dense layer's FFN.
#[derive(Clone, Copy, Debug)]
struct Dense {
    norm: Address,
    gate: Linear,
    up: Linear,
    down: Linear,
    glu: Glu,
}

/// The output.
#[derive(Clone, Copy, Debug)]
struct Head {
    norm: Address,
    output: Linear,
}

/// The weights of this device's stages. Addresses are in the arena, which lives as long.
#[derive(Default)]
struct Parts {
    arena: Option<Arena>,
    dense: Vec<Option<Dense>>,
    head: Option<Head>,
}

/// Memory of a step, for batches of at most `n_columns` columns.
struct Scratch {
    n_columns: usize,
    _arena: Arena,
    hidden: Address,
    /// Columns that the output is wanted of.
    chosen: Address,
    /// Norms, and activations of FFNs.
    normed: Columns,
    activated: Columns,
    logits: Address,
}

impl Cuda {
    /// `CUDA{index}`.
    ///
    /// # Errors
    /// There is no such device, or what the driver says.
    pub fn new(runtime: &'static Runtime, index: usize) -> Result<Cuda, Error> {
        Ok(Cuda {
            name: format!("CUDA{index}"),
            gpu: Gpu::open(runtime, index)?,
            network: None,
            parts: Parts::default(),
            scratch: None,
            batch: Batch::default(),
            values: Vec::new(),
            choices: Choices::new(),
            failure: None,
        })
    }

    /// Runs a part of a step, unless one before it has failed.
    fn attempt(&mut self, work: impl FnOnce(&mut Cuda) -> Result<(), Error>) {
        if self.failure.is_none() {
            self.failure = work(self).err();
        }
    }

    fn network(&self) -> Arc<Network> {
        self.network.clone().expect("`load` comes first")
    }

    /// Scratch memory for the batch.
    fn make_room(&mut self, n_columns: usize) -> Result<(), Error> {
        if self.scratch.as_ref().is_some_and(|s| s.n_columns >= n_columns) {
            return Ok(());
        }
        self.scratch = None; // before there is another
        let network = self.network();
        let n_embd = network.spec.n_embd;
        let n_ff = self.parts.dense.iter().flatten().map(|d| d.up.matrix.n_rows).max().unwrap_or(0);
        // layers of different widths share the place, and any of them may read codes
        let n_ff = n_ff.next_multiple_of(32);
        let n_vocab = self.parts.head.map_or(0, |h| h.output.matrix.n_rows);
        let floats = |n: usize| 4 * n * n_columns;
        let logits_bytes = 4 * n_vocab * MOST_COLUMNS;
        let size = arena_bytes([floats(n_embd), floats(n_embd), logits_bytes])
            + products::columns_bytes(n_embd, n_columns)
            + products::columns_bytes(n_ff, n_columns);
        let mut arena = Arena::new(self.gpu.context(), "a step", size)?;
        let (hidden, chosen) = (arena.take(floats(n_embd))?, arena.take(floats(n_embd))?);
        let normed = columns_in(&mut arena, n_embd, n_columns)?;
        let activated = columns_in(&mut arena, n_ff, n_columns)?;
        let logits = arena.take(logits_bytes)?;
        self.scratch = Some(Scratch { n_columns, _arena: arena, hidden, chosen, normed, activated, logits });
        Ok(())
    }

    /// Statistics of inputs are taken on the CPU.
    fn not_observed(&self, is_observed: bool) -> Result<(), Error> {
        match is_observed {
            true => Err(Error::Plan {
                name: self.name.clone(),
                why: "activations are collected on the CPU only; load the model without this device".into(),
            }),
            false => Ok(()),
        }
    }

    fn scratch(&self) -> &Scratch {
        self.scratch.as_ref().expect("`begin` comes first")
    }

    /// Norms of `n_columns` columns at `x` into the scratch memory's place for them.
    fn norm(&self, x: Address, weight: Address, n_columns: usize) -> Result<Columns, Error> {
        let spec = &self.network().spec;
        let columns = self.scratch().normed.part(0, n_columns);
        let codes = columns.codes;
        let plan =
            Call::Norm { n: spec.n_embd, n_columns, eps: spec.norm_eps, codes: codes.is_some() }.plan()?;
        let mut buffers = vec![("x", x), ("weight", weight), ("y", columns.floats)];
        buffers.extend(codes.into_iter().flat_map(|(q, ds)| [("q", q), ("ds", ds)]));
        // SAFETY: scratch memory has room for the batch's columns, and the weight has as many floats
        unsafe { launch(&self.gpu, &plan, &buffers) }?;
        Ok(columns)
    }

    fn dense(&self, l: usize) -> Result<(), Error> {
        let dense = self.parts.dense[l].as_ref().expect("a stage of this device");
        let (n, scratch) = (self.batch.n(), self.scratch());
        let input = self.norm(scratch.hidden, dense.norm, n)?;
        let n_ff = dense.up.matrix.n_rows;
        let codes = reads_codes(dense.down.matrix.ty);
        // as wide as this layer's, of which others may be wider
        let activated = Columns { n: n_ff, n_columns: n, ..scratch.activated };
        for first in (0..n).step_by(MOST_COLUMNS) {
            let n_columns = MOST_COLUMNS.min(n - first);
            let (from, to) = (input.part(first, n_columns), activated.part(first, n_columns));
            let (up, gate) = (&dense.up, &dense.gate);
            let plan = Call::UpGate(UpGate {
                up: up.matrix.ty,
                gate: gate.matrix.ty,
                n_rows: n_ff,
                n: up.matrix.n,
                n_columns,
                glu: dense.glu,
                bias_up: up.bias.is_some(),
                bias_gate: gate.bias.is_some(),
                codes,
            })
            .plan()?;
            let mut buffers = vec![("up", up.matrix.at), ("gate", gate.matrix.at)];
            buffers.extend(up.bias.map(|a| ("bias_up", a)));
            buffers.extend(gate.bias.map(|a| ("bias_gate", a)));
            match (reads_codes(up.matrix.ty), from.codes) {
                (true, Some((q, ds))) => buffers.extend([("x", q), ("ds", ds)]),
                _ => buffers.push(("x", from.floats)),
            }
            match (codes, to.codes) {
                (true, Some((q, ds))) => buffers.extend([("q", q), ("q_ds", ds)]),
                _ => buffers.push(("y", to.floats)),
            }
            // SAFETY: scratch memory has room for these columns
            unsafe { launch(&self.gpu, &plan, &buffers) }?;
        }
        let to = Target { y: scratch.hidden, bias: dense.down.bias, residual: Some(scratch.hidden) };
        // SAFETY: as above
        unsafe { products::multiply(&self.gpu, &dense.down.matrix, &activated, &to) }
    }

    /// Logits of columns, to the host.
    fn output(&self, columns: &Columns, logits: &mut [f32]) -> Result<(), Error> {
        let head = self.parts.head.as_ref().expect("the output is on this device");
        let n_vocab = head.output.matrix.n_rows;
        let y = self.scratch().logits;
        for (i, out) in logits.chunks_mut(MOST_COLUMNS * n_vocab).enumerate() {
            let part = columns.part(i * MOST_COLUMNS, out.len() / n_vocab);
            let to = Target { y, bias: head.output.bias, residual: None };
            // SAFETY: there is room for the logits of so many columns
            unsafe {
                products::multiply(&self.gpu, &head.output.matrix, &part, &to)?;
                copy_floats(&self.gpu, out, y)?;
            }
        }
        if let Some(cap) = self.network().spec.final_softcap {
            logits.iter_mut().for_each(|v| *v = cap * (*v / cap).tanh());
        }
        Ok(())
    }

    /// Norms of some of the batch's columns.
    fn chosen(&self, columns: &[u32]) -> Result<Columns, Error> {
        let bytes = 4 * self.network().spec.n_embd;
        let scratch = self.scratch();
        for (i, c) in columns.iter().enumerate() {
            let from = scratch.hidden.offset(*c as usize * bytes);
            // SAFETY: both have room for the batch's columns, of which these are some
            unsafe { self.gpu.copy(scratch.chosen.offset(i * bytes), from, bytes) }?;
        }
        let head = self.parts.head.as_ref().expect("the output is on this device");
        self.norm(scratch.chosen, head.norm, columns.len())
    }
}

/// Places for columns and their codes.
fn columns_in(arena: &mut Arena, n: usize, n_columns: usize) -> Result<Columns, Error> {
    let [codes, scales] = code_bytes(n, n_columns);
    let floats = arena.take(4 * n * n_columns)?;
    let codes = (arena.take(codes)?, arena.take(scales)?);
    Ok(Columns { n, n_columns, floats, codes: n.is_multiple_of(32).then_some(codes) })
}

/// # Safety
/// There are as many floats at `from`.
unsafe fn copy_floats(gpu: &Gpu, to: &mut [f32], from: Address) -> Result<(), Error> {
    // SAFETY: a float is four bytes of any value
    let bytes = unsafe { std::slice::from_raw_parts_mut(to.as_mut_ptr().cast::<u8>(), 4 * to.len()) };
    // SAFETY: the caller's word
    unsafe { gpu.copy_out(bytes, from) }
}

/// # Safety
/// There is room for as many floats at `to`.
unsafe fn copy_in_floats(gpu: &Gpu, to: Address, from: &[f32]) -> Result<(), Error> {
    // SAFETY: floats are bytes
    let bytes = unsafe { std::slice::from_raw_parts(from.as_ptr().cast::<u8>(), 4 * from.len()) };
    // SAFETY: the caller's word
    unsafe { gpu.copy_in(to, bytes) }
}

fn model_error(e: Error) -> ModelError {
    ModelError::Device(e.to_string())
}

/// The weights of a dense stage or of the output, with the floats beside them.
struct Wanted<'a> {
    weights: Vec<&'a network::Weight>,
    floats: Vec<&'a [f32]>,
}

/// What a stage needs of the file.
///
/// # Errors
/// [`ModelError::Device`] for what is not computed on GPUs yet.
fn wanted(network: &Network, stage: Stage) -> Result<Wanted<'_>, ModelError> {
    let not_yet = |what: &str| {
        Err(ModelError::Device(format!(
            "{stage}: {what} is not computed on GPUs yet; leave it on the CPU, for example by -ot 'attn|exps|shexp|gate_inp=CPU'"
        )))
    };
    let (weights, mut floats) = match (stage, stage.layer().map(|l| &network.layers[l])) {
        (Stage::Dense(_), Some(Layer { ffn: Ffn::Dense(dense), ffn_norm, post_ffn_norm, .. })) => {
            if post_ffn_norm.is_some() || dense.input_gate.is_some() {
                return not_yet("a norm or a gate behind an FFN");
            }
            (dense.experts.weights().to_vec(), vec![ffn_norm.as_slice()])
        }
        (Stage::Head, _) => {
            let (Some(norm), Some(_)) = (&network.output_norm, &network.output) else {
                return not_yet("a part of a model without its output matrix");
            };
            (network.output.iter().collect(), vec![norm.as_slice()])
        }
        (Stage::Attention(_), _) => return not_yet("attention"),
        _ => return not_yet("a mixture of experts"),
    };
    for weight in &weights {
        if weight.n_experts() != 1 || weight.factors.is_some() {
            return not_yet("a matrix with factors");
        }
        if reads_codes(device_type(weight)?) && !weight.k.is_multiple_of(32) {
            return not_yet(&format!("`{}`, whose rows are no whole blocks of 32,", weight.name));
        }
        floats.extend(weight.bias.as_deref());
    }
    if let Stage::Dense(_) = stage {
        let codes: Vec<bool> =
            weights.iter().map(|w| Ok(reads_codes(device_type(w)?))).collect::<Result<_, ModelError>>()?;
        if codes[0] != codes[1] {
            return not_yet("gate and up of which one is of floats");
        }
    }
    Ok(Wanted { weights, floats })
}

fn device_type(weight: &network::Weight) -> Result<QuantType, ModelError> {
    crate::plan::device_type(weight.ty).map_err(model_error)
}

impl Wanted<'_> {
    /// Bytes on the device.
    fn bytes(&self) -> Result<usize, ModelError> {
        let matrices = self.weights.iter().map(|w| weights::matrix_bytes(w.ty, w.n_rows, w.k));
        let matrices = matrices.collect::<Result<Vec<_>, _>>().map_err(model_error)?;
        Ok(arena_bytes(matrices.into_iter().chain(self.floats.iter().map(|f| 4 * f.len()))))
    }
}

/// What a GPU would hold, without loading it: bytes of its weights.
///
/// # Errors
/// [`ModelError::Device`] for what is not computed on GPUs.
pub fn predict(network: &Network, placement: &Placement, index: usize) -> Result<usize, ModelError> {
    placement.of(index).map(|stage| wanted(network, stage)?.bytes()).sum()
}

/// Copies weights into an arena.
struct Loader<'a> {
    gpu: &'a Gpu,
    arena: Arena,
}

impl Loader<'_> {
    fn linear(&mut self, weight: &network::Weight) -> Result<Linear, Error> {
        let size = weights::matrix_bytes(weight.ty, weight.n_rows, weight.k)?;
        let at = self.arena.take(size)?;
        let rows = weight.rows(0);
        // the one scale of I2_S stands behind the rows
        let with_scale = (weight.ty == QuantType::I2_S).then(|| {
            let mut bytes = rows.to_vec();
            bytes.extend(weight.scale.to_le_bytes());
            bytes.resize(rows.len() + ikq_formats::row::I2_S_TRAILER_BYTES, 0);
            bytes
        });
        let file = with_scale.as_deref().unwrap_or(&rows);
        // SAFETY: the piece has the size of the matrix
        let matrix = unsafe { weights::upload(self.gpu, file, weight.ty, weight.n_rows, weight.k, at) }?;
        let bias = weight.bias.as_deref().map(|b| self.floats(b)).transpose()?;
        Ok(Linear { matrix, bias })
    }

    fn floats(&mut self, values: &[f32]) -> Result<Address, Error> {
        let at = self.arena.take(4 * values.len())?;
        // SAFETY: the piece is as large
        unsafe { copy_in_floats(self.gpu, at, values) }?;
        Ok(at)
    }
}

impl Device for Cuda {
    fn name(&self) -> &str {
        &self.name
    }

    fn load(&mut self, loading: &Loading<'_>) -> Result<Memory, Stop<ModelError>> {
        let network = &loading.network;
        self.parts = Parts::default(); // frees what was loaded before
        self.scratch = None;
        self.failure = None;
        let stages: Vec<Stage> = loading.placement.of(loading.index).collect();
        let size = predict(network, loading.placement, loading.index)?;
        let arena = Arena::new(self.gpu.context(), "weights", size).map_err(model_error)?;
        let mut loader = Loader { gpu: &self.gpu, arena };
        let mut parts = Parts::default();
        parts.dense.resize_with(network.layers.len(), || None);
        for stage in stages {
            if loading.cancel.is_cancelled() {
                return Err(Stop::Cancelled);
            }
            match (stage, stage.layer().map(|l| (l, &network.layers[l]))) {
                (Stage::Dense(_), Some((l, Layer { ffn: Ffn::Dense(dense), ffn_norm, .. }))) => {
                    let experts = &dense.experts;
                    let mut load = || {
                        Ok(Dense {
                            norm: loader.floats(ffn_norm)?,
                            gate: loader.linear(&experts.gate)?,
                            up: loader.linear(&experts.up)?,
                            down: loader.linear(&experts.down)?,
                            glu: match experts.activation {
                                Activation::Silu => Glu::Silu,
                                Activation::GeluTanh => Glu::GeluTanh,
                                Activation::SwigluOai => Glu::SwigluOai,
                            },
                        })
                    };
                    parts.dense[l] = Some(load().map_err(model_error)?);
                }
                _ => {
                    let (Some(norm), Some(output)) = (&network.output_norm, &network.output) else {
                        continue;
                    };
                    let mut load = || Ok(Head { norm: loader.floats(norm)?, output: loader.linear(output)? });
                    parts.head = Some(load().map_err(model_error)?);
                }
            }
        }
        parts.arena = Some(loader.arena);
        self.parts = parts;
        self.network = Some(network.clone());
        let why = format!("copied to {} ({})", self.name, self.gpu.facts().name);
        Ok(Memory { mapped_bytes: 0, copied_bytes: size, why })
    }

    // ---- no layer's cache is here

    fn page_bytes(&self, _: usize) -> usize {
        0
    }
    fn reserve(&mut self, _: usize, _: usize) -> Result<(), ModelError> {
        Ok(())
    }
    fn copy_page(&mut self, _: usize, _: u32, _: u32) {}
    fn move_rows(&mut self, _: usize, _: &[Move]) {}
    fn cache_form(&self) -> String {
        String::new()
    }
    fn layer_page_bytes(&self, _: usize) -> usize {
        0
    }
    fn export_page(&self, _: usize, _: u32, _: &mut Vec<u8>) {}
    fn import_page(&mut self, _: usize, _: u32, _: &[u8]) {}
    fn state_bytes(&self) -> usize {
        0
    }
    fn reserve_states(&mut self, _: usize) -> Result<(), ModelError> {
        Ok(())
    }
    fn clear_state(&mut self, _: u32) {}
    fn copy_state(&mut self, _: u32, _: u32) {}
    fn state_chunk(&self) -> usize {
        1
    }
    fn truncate_state(&mut self, _: u32, _: usize) {}
    fn export_state(&self, _: usize, _: u32, _: &mut Vec<u8>) {}
    fn import_state(&mut self, _: usize, _: u32, _: usize, _: &[u8]) -> Result<(), String> {
        Err("no recurrent layer is on this device".into())
    }

    // ---- a step

    fn begin(&mut self, batch: &Batch) {
        self.batch.clone_from(batch);
        self.attempt(|it| it.make_room(it.batch.n()));
    }

    fn put(&mut self, value: Value, columns: &[f32]) {
        debug_assert_eq!(value, Value::Hidden, "no other stage is on this device");
        // SAFETY: there is room for the batch's columns
        self.attempt(|it| unsafe { copy_in_floats(&it.gpu, it.scratch().hidden, columns) });
    }

    fn get(&mut self, value: Value) -> &[f32] {
        debug_assert_eq!(value, Value::Hidden, "no other stage is on this device");
        let n = self.batch.n() * self.network().spec.n_embd;
        let mut values = std::mem::take(&mut self.values);
        values.clear();
        values.resize(n, 0.0);
        // SAFETY: there are the batch's columns
        self.attempt(|it| unsafe { copy_floats(&it.gpu, &mut values, it.scratch().hidden) });
        self.values = values;
        &self.values
    }

    fn put_choices(&mut self, choices: &Choices) {
        self.choices.clone_from(choices);
    }

    fn choices(&self) -> &Choices {
        &self.choices
    }

    fn run(&mut self, stage: Stage, step: Step<'_>) -> Result<(), RouterFailed> {
        match stage {
            Stage::Dense(l) => self.attempt(|it| {
                it.not_observed(step.collector.is_some())?;
                it.dense(l)
            }),
            _ => unreachable!("`load` refuses all other stages"),
        }
        Ok(())
    }

    fn head(&mut self, step: Step<'_>, logits: &mut [f32], hidden: &mut [f32]) {
        self.attempt(|it| {
            it.not_observed(step.collector.is_some_and(|c| c.options().output))?;
            if !it.batch.hidden.is_empty() {
                let normed = it.chosen(&it.batch.hidden)?;
                // SAFETY: these columns were normed a moment ago
                unsafe { copy_floats(&it.gpu, hidden, normed.floats) }?;
            }
            match it.batch.logits.is_empty() {
                true => Ok(()),
                false => it.output(&it.chosen(&it.batch.logits)?, logits),
            }
        });
    }

    fn project(&mut self, _: Step<'_>, hidden: &[f32], logits: &mut [f32]) {
        self.attempt(|it| {
            let n = hidden.len() / it.network().spec.n_embd;
            it.make_room(n)?;
            let columns = it.scratch().normed.part(0, n);
            // SAFETY: there is room for as many columns
            unsafe {
                copy_in_floats(&it.gpu, columns.floats, hidden)?;
                products::quantize(&it.gpu, &columns)?;
            }
            it.output(&columns, logits)
        });
    }

    fn failure(&mut self) -> Option<ModelError> {
        self.failure.take().map(model_error)
    }
}
