//! Launches of attention: preparing heads and storing them in the KV cache, and attention over it.

use ikq_formats::QuantType;

use super::hadamard::{self, Runs};
use super::{Kernel, NULL, Plan, check_row, geometry, i32_of, i64_of, optional};
use crate::error::Error;
use crate::gpu::Argument;

/// The most elements of a head that kernels take.
pub const MOST_HEAD: usize = 1024;

/// Which elements of a head a rotary embedding rotates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn {
    /// The first of these elements, and how many there are.
    pub at: usize,
    pub n: usize,
    /// Whether elements of the two halves are paired (NeoX); otherwise neighbours are.
    pub neox: bool,
}

/// Sizes and options of [`Call::Heads`](super::Call::Heads).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Heads {
    /// Type of the cache; F32 where nothing is cached.
    pub ty: QuantType,
    pub n_columns: usize,
    pub n_heads: usize,
    /// Elements of a head.
    pub n: usize,
    /// Floats from one column to the next, and from one head to the next.
    pub stride: usize,
    pub head_stride: usize,
    /// How many elements, from the first on, an RMS norm covers, if there is one.
    pub norm: Option<usize>,
    pub eps: f32,
    pub turn: Option<Turn>,
    /// Floats from one head to the next in the output, if results are written to one.
    pub out: Option<usize>,
    /// Whether results are stored in the KV cache.
    pub cached: bool,
    /// How heads are turned by a Hadamard matrix at last, if they are.
    pub runs: Option<Runs>,
}

impl Heads {
    pub(super) fn plan(&self) -> Result<Plan, Error> {
        check_head("heads", self.ty, self.n)?;
        let runs = hadamard::arguments(self.runs)?;
        Ok(Plan {
            kernel: Kernel::of_type("heads.cu", "heads", self.ty)?,
            geometry: geometry([self.n_heads, self.n_columns, 1], 32)?,
            arguments: vec![
                ("x", None),
                ("x_stride", Some(i64_of(self.stride)?)),
                ("head_stride", Some(i32_of(self.head_stride)?)),
                ("n_heads", Some(i32_of(self.n_heads)?)),
                ("n", Some(i32_of(self.n)?)),
                ("weight", optional(self.norm.is_some())),
                ("n_norm", Some(i32_of(self.norm.unwrap_or(0))?)),
                ("eps", Some(Argument::F32(self.eps))),
                ("cos_sin", optional(self.turn.is_some())),
                ("rot_at", Some(i32_of(self.turn.map_or(0, |t| t.at))?)),
                ("n_rot", Some(i32_of(self.turn.map_or(0, |t| t.n))?)),
                ("neox", Some(Argument::I32(i32::from(self.turn.is_some_and(|t| t.neox))))),
                ("y", optional(self.out.is_some())),
                ("y_stride", Some(i32_of(self.out.unwrap_or(0))?)),
                ("cache", optional(self.cached)),
                ("slots", optional(self.cached)),
            ]
            .into_iter()
            .chain(runs)
            .collect(),
        })
    }
}

/// The macro that tells the type of cached values.
pub(super) const VALUES: &str = "IKQ_VALUES";

/// Sizes and options of [`Call::Attend`](super::Call::Attend).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attend {
    pub keys: QuantType,
    pub values: QuantType,
    pub n_columns: usize,
    pub n_heads: usize,
    pub n_kv: usize,
    /// Elements of keys, of values, and of the cached rows at whose beginning the values are.
    pub n_k: usize,
    pub n_v: usize,
    pub n_v_row: usize,
    /// How many page numbers each column has.
    pub max_pages: usize,
    /// Positions of a split, and the number of splits.
    pub span: usize,
    pub n_splits: usize,
    pub scale: f32,
    pub softcap: Option<f32>,
}

impl Attend {
    /// The plan of the kernel that computes splits; [`Combine`] joins them.
    pub(super) fn plan(&self) -> Result<Plan, Error> {
        self.check("attend")?;
        let mut arguments = vec![
            ("q", None),
            ("k", None),
            ("v", None),
            ("pages", None),
            ("first", None),
            ("end", None),
            ("partial", None),
        ];
        arguments.extend(self.sizes()?);
        Ok(Plan {
            kernel: Kernel::of_type("attention.cu", "attend", self.keys)?.and(VALUES, self.values)?,
            geometry: geometry([self.n_heads, self.n_splits, self.n_columns], 128)?,
            arguments,
        })
    }

    pub(super) fn check(&self, kernel: &str) -> Result<(), Error> {
        check_head(kernel, self.keys, self.n_k)?;
        check_head(kernel, self.values, self.n_v_row)?;
        match self.n_v <= self.n_v_row && self.n_kv > 0 && self.n_heads.is_multiple_of(self.n_kv) {
            true => Ok(()),
            false => {
                let why =
                    format!("{} heads, {} of the cache; values of {}", self.n_heads, self.n_kv, self.n_v);
                Err(Error::Plan { name: kernel.into(), why })
            }
        }
    }

    /// The arguments at the end of both kernels' lists.
    pub(super) fn sizes(&self) -> Result<[(&'static str, Option<Argument>); 9], Error> {
        Ok([
            ("n_heads", Some(i32_of(self.n_heads)?)),
            ("n_kv", Some(i32_of(self.n_kv)?)),
            ("n_k", Some(i32_of(self.n_k)?)),
            ("n_v", Some(i32_of(self.n_v)?)),
            ("n_v_row", Some(i32_of(self.n_v_row)?)),
            ("max_pages", Some(i32_of(self.max_pages)?)),
            ("span", Some(i32_of(self.span)?)),
            ("scale", Some(Argument::F32(self.scale))),
            ("cap", Some(Argument::F32(self.softcap.unwrap_or(0.0)))),
        ])
    }
}

/// Sizes and options of [`Call::Combine`](super::Call::Combine).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Combine {
    pub n_columns: usize,
    pub n_heads: usize,
    pub n_v: usize,
    pub n_splits: usize,
    pub sinks: bool,
    /// Floats from one head's gate to the next, if results are multiplied with sigmoids of gates.
    pub gate: Option<usize>,
    /// Whether codes are made of the results too, as products read them.
    pub codes: bool,
    /// How values were turned by a Hadamard matrix, if they were: results are turned back.
    pub runs: Option<Runs>,
}

impl Combine {
    pub(super) fn plan(&self) -> Result<Plan, Error> {
        if self.codes && !self.n_v.is_multiple_of(32) {
            let why = format!("{} numbers are no whole blocks of 32", self.n_v);
            return Err(Error::Plan { name: "attend_combine".into(), why });
        }
        if self.runs.is_some_and(|r| r.n_first != self.n_v) {
            let why = format!("results of {} elements, turned as {:?}", self.n_v, self.runs);
            return Err(Error::Plan { name: "attend_combine".into(), why });
        }
        Ok(Plan {
            kernel: Kernel::whole("combine.cu", "attend_combine"),
            geometry: geometry([self.n_heads, self.n_columns, 1], 128)?,
            arguments: vec![
                ("partial", None),
                ("sinks", optional(self.sinks)),
                ("gate", optional(self.gate.is_some())),
                ("gate_stride", Some(i32_of(self.gate.unwrap_or(0))?)),
                ("y", None),
                ("q", if self.codes { None } else { NULL }),
                ("ds", if self.codes { None } else { NULL }),
                ("n_heads", Some(i32_of(self.n_heads)?)),
                ("n_v", Some(i32_of(self.n_v)?)),
                ("n_splits", Some(i32_of(self.n_splits)?)),
                ("run", Some(i32_of(self.runs.map_or(0, |r| r.first))?)),
            ],
        })
    }
}

/// # Errors
/// [`Error::Plan`] for heads that do not fit the kernels or the type.
fn check_head(kernel: &str, ty: QuantType, n: usize) -> Result<(), Error> {
    match (1..=MOST_HEAD).contains(&n) {
        true => check_row(ty, n),
        false => {
            let why = format!("heads of {n} elements; it takes up to {MOST_HEAD}");
            Err(Error::Plan { name: kernel.into(), why })
        }
    }
}
