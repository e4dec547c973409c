//! Plans how every kernel is launched: its specialisation, grid, block, shared memory and list of arguments. The
//! device, the tests of kernels and checks on GPUs all use these plans.
//!
//! The comments at the beginning of the files in `cuda/` say what kernels do with their arguments.

use ikq_formats::QuantType;
use ikq_formats::types::Family;

use crate::error::Error;
use crate::gpu::{Argument, Geometry};
use crate::memory::Address;
use crate::sources::Specialisation;

mod attention_tiles;
mod bands;
mod delta;
mod ffn;
mod hadamard;
mod heads;
mod kernel;
mod mmq;
mod products;

pub use attention_tiles::{AttendTiles, HeadTile};
pub use bands::band_bytes;
pub use delta::{CHUNK, Delta, DeltaKernel, DeltaSizes};
use ffn::GATE;
pub use ffn::{Down, Glu, GluCall, Router, UpGate};
pub use hadamard::{Runs, TurnRows};
pub use heads::{Attend, Combine, Heads, MOST_HEAD, Turn};
pub use kernel::Kernel;
pub use mmq::{Columns as TiledColumns, Grouped, Mmq, MmqUpGate, SumSlots, Tile};
pub use products::{Pairs, Products};

/// Rows in device form begin at multiples of this many bytes.
pub const ROW_ALIGNMENT: usize = 16;
/// Most columns of one matrix-vector product.
pub const MOST_COLUMNS: usize = 8;

/// Most blocks along the second and third axis of a grid.
pub const MOST_GRID: usize = 65535;

/// A kernel and the sizes that it is launched for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Call {
    /// Brings `n_rows` rows of `n` elements from the file's form to the device's.
    Repack { ty: QuantType, n_rows: usize, n: usize },
    /// Makes rows as files have them, for [`Call::Repack`], of the bands of `n_matrices` matrices that a CPU has.
    RowsOfBands { ty: QuantType, n_matrices: usize, n_rows: usize, n: usize },
    /// Decodes rows in device form to floats: all in order, or (`chosen`) those of a list.
    Dequantize { ty: QuantType, to: FloatType, n_rows: usize, n: usize, chosen: bool },
    /// Makes codes of `n` floats, in blocks of 32, as products read them.
    Quantize { n: usize },
    /// Makes bf16 of `n` floats, or of codes of so many.
    ToBf16 { n: usize, codes: bool },
    /// Writes for all columns what their sums begin with: a bias, and with `residual` other columns.
    BeginSums { n_rows: usize, n_columns: usize, residual: bool },
    /// Multiplies a matrix with a few columns.
    Products(Products),
    /// Multiplies a matrix, or those of experts, with many columns, in tiles.
    Mmq(Mmq),
    /// Computes the RMS norm of columns of `n` floats, as floats, and with `codes` also as products read them. With
    /// `add`, other columns are added first.
    Norm { n: usize, n_columns: usize, eps: f32, add: bool, codes: bool },
    /// Adds `n` floats to others; with `second`, the sum of two times `n` floats.
    Add { n: usize, second: bool },
    /// Replaces `n` floats with their sigmoids.
    Sigmoid { n: usize },
    /// Multiplies `n` logits with a factor and, with a cap other than 0, brings them below that.
    Cap { n: usize, scale: f32, cap: f32 },
    /// Finds the `k` largest of `n` logits of each column.
    Best { n: usize, n_columns: usize, k: usize },
    /// Computes up, gate and the activation together.
    UpGate(UpGate),
    /// The same for many columns, in tiles.
    MmqUpGate(MmqUpGate),
    /// Computes the activation of up and gate that were computed separately.
    Glu(GluCall),
    /// Computes the down projections of chosen experts, weighed and summed.
    Down(Down),
    /// Weighs and sums what the chosen experts of tokens made.
    SumSlots(SumSlots),
    /// Chooses the experts of tokens.
    Router(Router),
    /// Sorts pairs of a token and an expert by expert.
    Sort { n_pairs: usize, n_experts: usize },
    /// Prepares heads (norm and rotary embedding), and writes them to an output or to the KV cache.
    Heads(Heads),
    /// Computes attention in splits of the positions.
    Attend(Attend),
    /// The same in tiles of queries, on tensor cores.
    AttendTiles(AttendTiles),
    /// Combines the results of splits.
    Combine(Combine),
    /// Turns rows by a Hadamard matrix, or back.
    TurnRows(TurnRows),
    /// One of the steps of a gated delta-net layer.
    Delta(Delta),
}

/// The type that [`Call::Dequantize`] writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FloatType {
    F32,
    F16,
    BF16,
}

/// A launch, complete except for the addresses of its buffers.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    pub kernel: Kernel,
    pub geometry: Geometry,
    /// The kernel's parameters in order, with their values; `None` is a buffer that [`Plan::bind`] fills in.
    pub arguments: Vec<(&'static str, Option<Argument>)>,
}

impl Plan {
    /// The arguments, with buffers at these addresses.
    ///
    /// # Errors
    /// [`Error::Plan`] for a buffer that is missing, or that the kernel does not have.
    pub fn bind(&self, buffers: &[(&str, Address)]) -> Result<Vec<Argument>, Error> {
        let wrong = |name: &str, what: &str| Error::Plan {
            name: self.kernel.name(),
            why: format!("the buffer {name} {what}"),
        };
        let is_wanted = |name: &str| self.arguments.iter().any(|(n, value)| *n == name && value.is_none());
        if let Some((name, _)) = buffers.iter().find(|(name, _)| !is_wanted(name)) {
            return Err(wrong(name, "is not among its arguments"));
        }
        let bound = self.arguments.iter().map(|(name, value)| match value {
            Some(value) => Ok(*value),
            None => {
                let found = buffers.iter().find(|(n, _)| n == name);
                found.map(|(_, a)| Argument::Address(*a)).ok_or_else(|| wrong(name, "is missing"))
            }
        });
        bound.collect()
    }

    /// The same launch with a buffer that it would do without.
    #[must_use]
    pub fn with(mut self, buffer: &str) -> Plan {
        self.arguments.iter_mut().filter(|(name, _)| *name == buffer).for_each(|(_, value)| *value = None);
        self
    }
}

const NULL: Option<Argument> = Some(Argument::Address(Address(0)));

impl Call {
    /// The plan of the launch for these sizes.
    ///
    /// # Errors
    /// [`Error::Plan`] for sizes that the kernel does not take, and types that kernels have no decoder for.
    pub fn plan(&self) -> Result<Plan, Error> {
        match *self {
            Call::Repack { ty, n_rows, n } => {
                let wrong =
                    |why: &str| Error::Plan { name: format!("repack of {}", ty.name()), why: why.into() };
                if ty.info().family == Family::Float {
                    return Err(wrong("floats are in device form but for the padding of rows"));
                }
                check_row(ty, n)?;
                Ok(Plan {
                    kernel: Kernel::of_type("weights.cu", "repack", ty)?,
                    geometry: geometry([n_rows, 1, 1], 128)?,
                    arguments: vec![
                        ("file", None),
                        ("out", None),
                        ("n_rows", Some(i32_of(n_rows)?)),
                        ("n", Some(i32_of(n)?)),
                    ],
                })
            }
            Call::RowsOfBands { ty, n_matrices, n_rows, n } => bands::plan(ty, n_matrices, n_rows, n),
            Call::Dequantize { ty, to, n_rows, n, chosen } => {
                let to = match to {
                    FloatType::F32 => "_f32",
                    FloatType::F16 => "_f16",
                    FloatType::BF16 => "_bf16",
                };
                check_row(ty, n)?;
                Ok(Plan {
                    kernel: Kernel::of_type("weights.cu", "dequant", ty)?.ending(to),
                    geometry: geometry([n_rows, 1, 1], 128)?,
                    arguments: vec![
                        ("w", None),
                        ("rows", if chosen { None } else { NULL }),
                        ("out", None),
                        ("n", Some(i32_of(n)?)),
                    ],
                })
            }
            Call::Quantize { n } => {
                if !n.is_multiple_of(32) {
                    let why = format!("{n} numbers are no whole blocks of 32");
                    return Err(Error::Plan { name: "quantize_act".into(), why });
                }
                Ok(Plan {
                    kernel: Kernel::whole("activations.cu", "quantize_act"),
                    geometry: geometry([n.div_ceil(256), 1, 1], 256)?,
                    arguments: vec![("x", None), ("q", None), ("ds", None), ("n", Some(i64_of(n)?))],
                })
            }
            Call::ToBf16 { n, codes } => {
                let kernel = if codes { "bf16_of_codes" } else { "bf16_of_floats" };
                let mut arguments = vec![("x", None), ("out", None), ("n", Some(i64_of(n)?))];
                if codes {
                    arguments.insert(1, ("ds", None));
                }
                let geometry = geometry([n.div_ceil(256), 1, 1], 256)?;
                Ok(Plan { kernel: Kernel::whole("blas.cu", kernel), geometry, arguments })
            }
            Call::BeginSums { n_rows, n_columns, residual } => Ok(Plan {
                kernel: Kernel::whole("blas.cu", "begin_sums"),
                geometry: geometry([n_columns, n_rows.div_ceil(256), 1], 256)?,
                arguments: vec![
                    ("bias", None),
                    ("residual", optional(residual)),
                    ("y", None),
                    ("n_rows", Some(i32_of(n_rows)?)),
                ],
            }),
            Call::Products(products) => products.plan(),
            Call::Mmq(mmq) => mmq.plan(),
            Call::Norm { n, n_columns, eps, add, codes } => {
                if codes && !n.is_multiple_of(32) {
                    let why = format!("{n} numbers are no whole blocks of 32");
                    return Err(Error::Plan { name: "rms_norm".into(), why });
                }
                Ok(Plan {
                    kernel: Kernel::whole("norm.cu", "rms_norm"),
                    geometry: geometry([n_columns, 1, 1], 256)?,
                    arguments: vec![
                        ("x", None),
                        ("add", optional(add)),
                        ("weight", None),
                        ("sum", NULL),
                        ("y", None),
                        ("q", optional(codes)),
                        ("ds", optional(codes)),
                        ("n", Some(i32_of(n)?)),
                        ("eps", Some(Argument::F32(eps))),
                    ],
                })
            }
            Call::Add { n, second } => Ok(Plan {
                kernel: Kernel::whole("activations.cu", "add_to"),
                geometry: geometry([n.div_ceil(256), 1, 1], 256)?,
                arguments: vec![("x", None), ("a", None), ("b", optional(second)), ("n", Some(i64_of(n)?))],
            }),
            Call::Sigmoid { n } => Ok(Plan {
                kernel: Kernel::whole("activations.cu", "sigmoid_of"),
                geometry: geometry([n.div_ceil(256), 1, 1], 256)?,
                arguments: vec![("x", None), ("n", Some(i64_of(n)?))],
            }),
            Call::Cap { n, scale, cap } => Ok(Plan {
                kernel: Kernel::whole("norm.cu", "cap_logits"),
                geometry: geometry([n.div_ceil(256), 1, 1], 256)?,
                arguments: vec![
                    ("logits", None),
                    ("n", Some(i64_of(n)?)),
                    ("scale", Some(Argument::F32(scale))),
                    ("cap", Some(Argument::F32(cap))),
                ],
            }),
            Call::Best { n, n_columns, k } => {
                let mut arguments =
                    vec![("logits", None), ("ids", None), ("values", None), ("n", Some(i32_of(n)?))];
                if k != 1 {
                    arguments.push(("k", Some(i32_of(k)?)));
                }
                // a thread has some logits to look at, so that few are the result of another
                let threads = (n / 16).next_multiple_of(32).clamp(32, 1024) as u32;
                Ok(Plan {
                    kernel: Kernel::whole("norm.cu", if k == 1 { "argmax" } else { "top_k" }),
                    geometry: geometry([n_columns, 1, 1], threads)?,
                    arguments,
                })
            }
            Call::UpGate(upgate) => upgate.plan(),
            Call::MmqUpGate(upgate) => upgate.plan(),
            Call::Glu(glu) => glu.plan(),
            Call::Down(down) => down.plan(),
            Call::SumSlots(sum) => sum.plan(),
            Call::Router(router) => router.plan(),
            Call::Sort { n_pairs, n_experts } => mmq::sort(n_pairs, n_experts),
            Call::Heads(heads) => heads.plan(),
            Call::Attend(attend) => attend.plan(),
            Call::AttendTiles(attend) => attend.plan(),
            Call::Combine(combine) => combine.plan(),
            Call::TurnRows(turn) => turn.plan(),
            Call::Delta(delta) => delta.plan(),
        }
    }
}

/// The argument of a buffer that may be left out, which is null then.
fn optional(is_there: bool) -> Option<Argument> {
    if is_there { None } else { NULL }
}

/// The end of the names of kernels for the smallest number of columns that they are compiled for and that is enough:
/// 1, 2, 4 or 8.
fn compiled_columns(kernel: &str, n_columns: usize) -> Result<&'static str, Error> {
    match n_columns {
        1 => Ok("_c1"),
        2 => Ok("_c2"),
        3..=4 => Ok("_c4"),
        5..=MOST_COLUMNS => Ok("_c8"),
        _ => Err(Error::Plan {
            name: kernel.into(),
            why: format!("{n_columns} columns; it takes 1 to {MOST_COLUMNS}"),
        }),
    }
}

/// Bytes of a row in device form.
///
/// # Errors
/// [`Error::Plan`] when rows of the type do not have this many elements.
pub fn device_row_bytes(ty: QuantType, n: usize) -> Result<usize, Error> {
    let ty = device_type(ty)?;
    let bytes = ikq_formats::row::row_bytes(ty, n)
        .map_err(|e| Error::Plan { name: ty.name().into(), why: e.to_string() })?;
    // the scale of an I2_S tensor is stored with every row
    let scale = if ty == QuantType::I2_S { 4 } else { 0 };
    Ok((bytes + scale).next_multiple_of(ROW_ALIGNMENT))
}

/// The type that a tensor has on the device: its own, or the plain twin of an interleaved type.
///
/// # Errors
/// [`Error::Plan`] for types that kernels have no decoder for.
pub fn device_type(ty: QuantType) -> Result<QuantType, Error> {
    let wrong = |why: &str| Error::Plan { name: ty.name().into(), why: why.into() };
    if !ty.is_storable() {
        return Err(wrong("no type of weights"));
    }
    match ty.is_interleaved() {
        true => ty.info().base.ok_or_else(|| wrong("it has no plain twin, which GPU kernels read")),
        false => Ok(ty),
    }
}

/// Whether products with the type read quantized columns (8-bit codes); otherwise they read floats.
pub fn reads_codes(ty: QuantType) -> bool {
    ty.info().family != Family::Float
}

/// What products with a type are multiplied with beside the decoded weights: `FACTOR` of the decoders in `cuda/types`.
pub fn product_factor(ty: QuantType) -> f32 {
    match ty {
        QuantType::IQ2_KT => 1.05,
        QuantType::IQ3_KT => 1.01,
        _ => 1.0,
    }
}

/// Rows that a block of `mmv` or `down` computes. Of types that `cuda/together.cuh` is for, rows are multiplied with a
/// single column together; otherwise each of four warps has a row.
fn rows_of_block(ty: QuantType, n_columns: usize) -> usize {
    let together = matches!(ty, QuantType::IQ1_KT | QuantType::IQ2_KT | QuantType::IQ4_KT);
    if together && n_columns == 1 { 32 } else { 4 }
}

/// All specialisations that models with weights of these types need, with a KV cache of f16.
///
/// # Errors
/// As [`device_type`].
pub fn specialisations(types: &[QuantType]) -> Result<Vec<Specialisation>, Error> {
    // one kernel of each file
    let whole = ["activations.cu", "bands.cu", "combine.cu", "delta.cu", "norm.cu", "router.cu", "slots.cu"];
    let mut all: Vec<Specialisation> = whole.iter().map(|file| Kernel::whole(file, "").of()).collect();
    for cached in [QuantType::F16, QuantType::F32] {
        all.push(Kernel::of_type("heads.cu", "", cached)?.of());
    }
    for file in ["attention.cu", "attention_tiles.cu"] {
        all.push(Kernel::of_type(file, "", QuantType::F16)?.and(heads::VALUES, QuantType::F16)?.of());
    }
    for ty in types {
        let ty = device_type(*ty)?;
        if ty.info().family != Family::Float {
            all.push(Kernel::of_type("weights.cu", "", ty)?.of());
            all.push(Kernel::of_type("mmq.cu", "", ty)?.of());
            all.push(Kernel::of_type("mmq_upgate.cu", "", ty)?.and(GATE, ty)?.of());
        } else {
            all.push(Kernel::of_type("mmf.cu", "", ty)?.of());
        }
        all.push(Kernel::of_type("mmv.cu", "", ty)?.of());
        all.push(Kernel::of_type("down.cu", "", ty)?.of());
        // pairs of different types are compiled when they are used
        all.push(Kernel::of_type("upgate.cu", "", ty)?.and(GATE, ty)?.of());
    }
    all.sort();
    all.dedup();
    Ok(all)
}

fn check_row(ty: QuantType, n: usize) -> Result<(), Error> {
    device_row_bytes(ty, n).map(|_| ())
}

fn geometry(grid: [usize; 3], threads: u32) -> Result<Geometry, Error> {
    let size = |n: usize, most: u32| {
        let n = u32::try_from(n).ok().filter(|n| *n > 0 && *n <= most);
        n.ok_or_else(|| Error::Plan { name: "grid".into(), why: format!("{grid:?} blocks") })
    };
    let [x, y, z] = grid;
    // limits of CUDA
    let (wide, narrow) = (i32::MAX.cast_unsigned(), MOST_GRID as u32);
    Ok(Geometry {
        grid: [size(x, wide)?, size(y, narrow)?, size(z, narrow)?],
        block: [threads, 1, 1],
        shared_bytes: 0,
    })
}

fn i32_of(n: usize) -> Result<Argument, Error> {
    i32::try_from(n)
        .map(Argument::I32)
        .map_err(|_| Error::Plan { name: "size".into(), why: format!("{n} is too large") })
}

fn i64_of(n: usize) -> Result<Argument, Error> {
    i64::try_from(n)
        .map(Argument::I64)
        .map_err(|_| Error::Plan { name: "size".into(), why: format!("{n} is too large") })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn products(ty: QuantType, n_columns: usize) -> Products {
        let (bias, residual) = (false, false);
        Products { ty, n_rows: 10, n: 256, n_columns, stride: 10, pairs: None, bias, residual }
    }

    #[test]
    fn columns_choose_the_kernel() {
        for (n_columns, kernel) in [
            (1, "mmv_q4_k_c1"),
            (2, "mmv_q4_k_c2"),
            (3, "mmv_q4_k_c4"),
            (5, "mmv_q4_k_c8"),
            (8, "mmv_q4_k_c8"),
        ] {
            let plan = Call::Products(products(QuantType::Q4_K, n_columns)).plan().expect("a plan");
            assert_eq!((plan.kernel.name().as_str(), plan.geometry.grid), (kernel, [3, 1, 1]));
        }
        for n_columns in [0, 9] {
            assert!(Call::Products(products(QuantType::Q4_K, n_columns)).plan().is_err());
        }
    }

    #[test]
    fn rows_of_trellis_types_are_computed_together() {
        for (ty, n_columns, blocks) in [
            (QuantType::IQ4_KT, 1, 2),
            (QuantType::IQ2_KT, 1, 2),
            (QuantType::IQ4_KT, 2, 9),
            (QuantType::IQ3_KT, 1, 9),
        ] {
            let call = Products { n_rows: 33, stride: 33, ..products(ty, n_columns) };
            let plan = Call::Products(call).plan().expect("a plan");
            assert_eq!((plan.geometry.grid, plan.geometry.block), ([blocks, 1, 1], [128, 1, 1]), "{ty:?}");
        }
    }

    #[test]
    fn rows_have_the_bytes_that_kernels_count() {
        // codes of I2_S come 128 at a time, and the scale follows each row
        assert_eq!(device_row_bytes(QuantType::I2_S, 256).ok(), Some(80));
        assert!(device_row_bytes(QuantType::I2_S, 192).is_err());
        assert_eq!(device_row_bytes(QuantType::Q4_0, 64).ok(), Some(48));
    }

    #[test]
    fn buffers_are_bound_by_name() {
        let plan = Call::Products(products(QuantType::F16, 1)).plan().expect("a plan");
        let (w, x, y) = (("w", Address(1)), ("x", Address(2)), ("y", Address(3)));
        let bound = plan.bind(&[y, w, x]).expect("all buffers");
        assert_eq!(bound[0], Argument::Address(Address(1)));
        assert_eq!(bound[4], Argument::Address(Address(2)));
        assert_eq!(bound[5], Argument::Address(Address(0)), "floats have no scales");
        assert!(plan.bind(&[w, x]).expect_err("one is missing").to_string().contains("buffer y is missing"));
        assert!(plan.bind(&[w, x, y, ("ds", Address(4))]).is_err());
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let rows = |ty, n_rows, n| Call::Repack { ty, n_rows, n }.plan();
        assert!(rows(QuantType::Q4_K, 4, 256).is_ok());
        assert!(rows(QuantType::Q4_K, 4, 255).is_err());
        assert!(rows(QuantType::Q4_K, 0, 256).is_err());
        assert!(rows(QuantType::F16, 4, 256).is_err());
        assert!(rows(QuantType::Q4_K_R4, 4, 256).is_err());
        assert!(Call::Quantize { n: 33 }.plan().is_err());
        assert_eq!(device_type(QuantType::Q4_K_R4).expect("a twin"), QuantType::Q4_K);
        assert!(device_type(QuantType::IQ1_S_R4).is_err());
    }

    #[test]
    fn rows_take_their_bytes_rounded_up() {
        for (ty, n, bytes) in [
            (QuantType::Q4_K, 256, 144),
            (QuantType::Q6_K, 512, 432),
            (QuantType::Q8_0, 32, 48),
            (QuantType::F32, 3, 16),
            (QuantType::IQ4_KS, 256, 144),
        ] {
            assert_eq!(device_row_bytes(ty, n).expect("a row"), bytes, "{}", ty.name());
        }
    }
}
