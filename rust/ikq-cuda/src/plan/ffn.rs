//! Launches of feed-forward networks: router, up and gate, down.

use ikq_formats::QuantType;
use ikq_model::spec::{Activation, Func};

use super::products::{Experts, expert_bytes};
use super::{
    Kernel, NULL, Pairs, Plan, check_row, compiled_columns, geometry, i32_of, optional, reads_codes,
    rows_of_block,
};
use crate::error::Error;
use crate::gpu::Argument;

/// The activation that joins up and gate; the numbers are those of `cuda/glu.cuh`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Glu {
    Silu = 0,
    GeluTanh = 1,
    SwigluOai = 2,
}

impl From<Activation> for Glu {
    fn from(activation: Activation) -> Glu {
        match activation {
            Activation::Silu => Glu::Silu,
            Activation::GeluTanh => Glu::GeluTanh,
            Activation::SwigluOai => Glu::SwigluOai,
        }
    }
}

impl Glu {
    /// The arguments of kernels: the activation, and slope and limit of [`Glu::SwigluOai`].
    pub(super) fn arguments(self) -> [(&'static str, Option<Argument>); 3] {
        [
            ("act", Some(Argument::I32(self as i32))),
            ("alpha", Some(Argument::F32(1.702))),
            ("limit", Some(Argument::F32(7.0))),
        ]
    }
}

/// The macro that tells the type of the gate.
pub(super) const GATE: &str = "IKQ_GATE";

/// The last arguments of kernels that compute up, gate and activation: where the results go, as codes or as floats, and
/// the sizes of the matrices (rows, and elements of a row).
pub(super) fn results(
    codes: bool,
    (n_rows, n): (usize, usize),
    n_columns: usize,
) -> Result<[(&'static str, Option<Argument>); 6], Error> {
    Ok([
        ("y", optional(!codes)),
        ("q", optional(codes)),
        ("q_ds", optional(codes)),
        ("n_rows", Some(i32_of(n_rows)?)),
        ("n", Some(i32_of(n)?)),
        ("n_columns", Some(i32_of(n_columns)?)),
    ])
}

/// Sizes and options of [`Call::UpGate`](super::Call::UpGate).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct UpGate {
    pub up: QuantType,
    pub gate: QuantType,
    /// Rows of each matrix, and elements of a row.
    pub n_rows: usize,
    pub n: usize,
    /// 1 to [`MOST_COLUMNS`](super::MOST_COLUMNS); 1 with `pairs`.
    pub n_columns: usize,
    /// The pairs of tokens and experts, if experts are chosen by a list of ids.
    pub pairs: Option<Pairs>,
    pub glu: Glu,
    pub bias_up: bool,
    pub bias_gate: bool,
    /// Whether results are written as codes, which products read; otherwise as floats.
    pub codes: bool,
}

impl UpGate {
    pub(super) fn plan(&self) -> Result<Plan, Error> {
        let wrong = |why: String| Error::Plan { name: "upgate".into(), why };
        let compiled = compiled_columns("upgate", self.n_columns)?;
        check_row(self.up, self.n)?;
        check_row(self.gate, self.n)?;
        let reads = reads_codes(self.up);
        if reads != reads_codes(self.gate) {
            return Err(wrong(format!("{} and {} read different columns", self.up.name(), self.gate.name())));
        }
        if (reads && !self.n.is_multiple_of(32)) || (self.codes && !self.n_rows.is_multiple_of(32)) {
            return Err(wrong(format!("{} rows of {} are no whole blocks of 32", self.n_rows, self.n)));
        }
        let by_expert = Experts::new("upgate", self.pairs, self.n_columns)?;
        let kernel = Kernel::of_type("upgate.cu", "upgate", self.up)?.and(GATE, self.gate)?;
        let mut arguments = vec![
            ("up", None),
            ("gate", None),
            ("expert_bytes_up", Some(by_expert.bytes(self.up, self.n_rows, self.n)?)),
            ("expert_bytes_gate", Some(by_expert.bytes(self.gate, self.n_rows, self.n)?)),
            ("ids", by_expert.ids),
            ("k", Some(by_expert.k)),
            ("x", None),
            ("ds", optional(reads)),
            ("bias_up", optional(self.bias_up)),
            ("bias_gate", optional(self.bias_gate)),
        ];
        arguments.extend(self.glu.arguments());
        arguments.extend(results(self.codes, (self.n_rows, self.n), self.n_columns)?);
        Ok(Plan {
            kernel: kernel.ending(compiled),
            geometry: geometry([self.n_rows.div_ceil(32), by_expert.grid_y, 1], 256)?,
            arguments,
        })
    }
}

/// Sizes and options of [`Call::Glu`](super::Call::Glu).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GluCall {
    pub n_rows: usize,
    pub n_columns: usize,
    pub glu: Glu,
    /// Whether columns have ids of experts; those with a negative id are skipped.
    pub ids: bool,
    /// Whether results are written as codes, which products read; otherwise as floats.
    pub codes: bool,
}

impl GluCall {
    pub(super) fn plan(&self) -> Result<Plan, Error> {
        if self.codes && !self.n_rows.is_multiple_of(32) {
            let why = format!("{} rows are no whole blocks of 32", self.n_rows);
            return Err(Error::Plan { name: "glu_act".into(), why });
        }
        // the products have added the biases already
        let mut arguments = vec![
            ("up", None),
            ("gate", None),
            ("bias_up", NULL),
            ("bias_gate", NULL),
            ("ids", optional(self.ids)),
            ("y", optional(!self.codes)),
            ("q", optional(self.codes)),
            ("q_ds", optional(self.codes)),
            ("n_rows", Some(i32_of(self.n_rows)?)),
        ];
        arguments.extend(self.glu.arguments());
        Ok(Plan {
            kernel: Kernel::whole("activations.cu", "glu_act"),
            geometry: geometry([self.n_rows.div_ceil(32), self.n_columns, 1], 32)?,
            arguments,
        })
    }
}

/// Sizes and options of [`Call::Down`](super::Call::Down).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Down {
    pub ty: QuantType,
    /// Rows of an expert's matrix, and elements of a row.
    pub n_rows: usize,
    pub n: usize,
    pub pairs: Pairs,
    pub bias: bool,
    pub residual: bool,
}

impl Down {
    pub(super) fn plan(&self) -> Result<Plan, Error> {
        check_row(self.ty, self.n)?;
        let reads = reads_codes(self.ty);
        let Pairs { n_pairs, k } = self.pairs;
        if (reads && !self.n.is_multiple_of(32)) || k == 0 || !n_pairs.is_multiple_of(k) {
            let why = format!("rows of {} elements, {n_pairs} pairs of {k} experts each", self.n);
            return Err(Error::Plan { name: "down".into(), why });
        }
        let n_blocks = self.n_rows.div_ceil(rows_of_block(self.ty, 1));
        Ok(Plan {
            kernel: Kernel::of_type("down.cu", "down", self.ty)?,
            geometry: geometry([n_blocks, n_pairs / k, 1], 128)?,
            arguments: vec![
                ("w", None),
                ("expert_bytes", Some(expert_bytes(self.ty, self.n_rows, self.n)?)),
                ("ids", None),
                ("weights", None),
                ("k", Some(i32_of(k)?)),
                ("x", None),
                ("ds", optional(reads)),
                ("bias", optional(self.bias)),
                ("residual", optional(self.residual)),
                ("y", None),
                ("n_rows", Some(i32_of(self.n_rows)?)),
                ("n", Some(i32_of(self.n)?)),
            ],
        })
    }
}

/// The most experts, and the most chosen experts per token, that the router kernel takes.
pub(super) const MOST_EXPERTS: usize = 1024;
const MOST_USED: usize = 32;

/// Sizes and rule of [`Call::Router`](super::Call::Router).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Router {
    pub n_tokens: usize,
    pub n_experts: usize,
    pub n_used: usize,
    pub func: Func,
    pub bias: bool,
    pub normalize: bool,
    pub scale: f32,
    /// The number of groups of experts, and from how many of them a token may choose.
    pub groups: (usize, usize),
    /// Of a token's experts in order of weight, those after the first `.0` are dropped unless their weight exceeds
    /// `.1` times the largest.
    pub reduction: Option<(usize, f32)>,
    /// The number of the layer, which is written for tokens whose scores are not finite.
    pub layer: usize,
}

impl Router {
    pub(super) fn plan(&self) -> Result<Plan, Error> {
        let used = 1..=MOST_USED.min(self.n_experts);
        if self.n_experts > MOST_EXPERTS || !used.contains(&self.n_used) {
            let why = format!(
                "{} of {} experts; it takes up to {MOST_USED} of {MOST_EXPERTS}",
                self.n_used, self.n_experts
            );
            return Err(Error::Plan { name: "router".into(), why });
        }
        let func = match self.func {
            Func::Softmax => 0,
            Func::Sigmoid => 1,
            Func::SoftmaxChosen => 2,
        };
        let (least, threshold) = self.reduction.unwrap_or((self.n_used, 0.0));
        Ok(Plan {
            kernel: Kernel::whole("router.cu", "router"),
            geometry: geometry([self.n_tokens, 1, 1], 32)?,
            arguments: vec![
                ("logits", None),
                ("bias", optional(self.bias)),
                ("ids", None),
                ("weights", None),
                ("not_finite", None),
                ("layer", Some(i32_of(self.layer)?)),
                ("n_experts", Some(i32_of(self.n_experts)?)),
                ("n_used", Some(i32_of(self.n_used)?)),
                ("func", Some(Argument::I32(func))),
                ("normalize", Some(Argument::I32(i32::from(self.normalize)))),
                ("scale", Some(Argument::F32(self.scale))),
                ("n_group", Some(i32_of(self.groups.0)?)),
                ("n_group_used", Some(i32_of(self.groups.1)?)),
                ("n_least", Some(i32_of(least.min(self.n_used))?)),
                ("threshold", Some(Argument::F32(threshold))),
            ],
        })
    }
}
