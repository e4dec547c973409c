//! How every kernel is launched: its specialisation, grid, block, shared memory and list of arguments. This is the one
//! place that knows; the device, the tests of kernels and checks on GPUs all ask it.
//!
//! What kernels do with their arguments stands at the head of their files in `cuda/`.

use ikq_formats::QuantType;
use ikq_formats::types::Family;

use crate::error::Error;
use crate::gpu::{Argument, Geometry};
use crate::memory::Address;
use crate::sources::Specialisation;

/// Rows in device form begin at multiples of this.
const ROW_ALIGNMENT: usize = 16;
/// Most columns of one matrix-vector product.
pub const MOST_COLUMNS: usize = 8;

/// A kernel and the sizes that it is launched for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Call {
    /// `n_rows` rows of `n` elements from the file's form to the device's.
    Repack { ty: QuantType, n_rows: usize, n: usize },
    /// Rows in device form to floats, all in order or those of a list.
    Dequantize { ty: QuantType, to: FloatType, n_rows: usize, n: usize, chosen: bool },
    /// `n` floats to what products read, in blocks of 32.
    Quantize { n: usize },
    /// A matrix and `n_columns` columns.
    Products(Products),
}

/// What [`Call::Dequantize`] makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FloatType {
    F32,
    F16,
    BF16,
}

/// Sizes of [`Call::Products`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Products {
    pub ty: QuantType,
    pub n_rows: usize,
    pub n: usize,
    /// 1 to [`MOST_COLUMNS`].
    pub n_columns: usize,
    /// Elements between the results of neighbouring columns.
    pub stride: usize,
    /// Whether there are biases, and values that are added.
    pub bias: bool,
    pub residual: bool,
}

/// A launch that lacks only the addresses of its buffers.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    pub of: Specialisation,
    pub kernel: String,
    pub geometry: Geometry,
    /// Names of the kernel's parameters in order; `None` is a buffer that [`Plan::bind`] is given.
    pub arguments: Vec<(&'static str, Option<Argument>)>,
}

impl Plan {
    /// The arguments with these addresses of buffers.
    ///
    /// # Errors
    /// [`Error::Plan`] for a buffer that is missing, or that the kernel does not have.
    pub fn bind(&self, buffers: &[(&str, Address)]) -> Result<Vec<Argument>, Error> {
        let wrong = |name: &str, what: &str| Error::Plan {
            name: self.kernel.clone(),
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
}

const NULL: Option<Argument> = Some(Argument::Address(Address(0)));

impl Call {
    /// The launch for these sizes.
    ///
    /// # Errors
    /// [`Error::Plan`] for sizes that the kernel does not take, and types that it has no decoder for.
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
                    of: of_type("weights.cu", ty)?,
                    kernel: format!("repack_{}", name(ty)),
                    geometry: geometry([n_rows, 1, 1], 128)?,
                    arguments: vec![
                        ("file", None),
                        ("out", None),
                        ("n_rows", Some(i32_of(n_rows)?)),
                        ("n", Some(i32_of(n)?)),
                    ],
                })
            }
            Call::Dequantize { ty, to, n_rows, n, chosen } => {
                let to = match to {
                    FloatType::F32 => "f32",
                    FloatType::F16 => "f16",
                    FloatType::BF16 => "bf16",
                };
                check_row(ty, n)?;
                Ok(Plan {
                    of: of_type("weights.cu", ty)?,
                    kernel: format!("dequant_{}_{to}", name(ty)),
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
                    of: Specialisation { file: "activations.cu".into(), defines: vec![] },
                    kernel: "quantize_act".into(),
                    geometry: geometry([n.div_ceil(256), 1, 1], 256)?,
                    arguments: vec![("x", None), ("q", None), ("ds", None), ("n", Some(i64_of(n)?))],
                })
            }
            Call::Products(products) => products.plan(),
        }
    }
}

impl Products {
    fn plan(&self) -> Result<Plan, Error> {
        let compiled = (0..4).map(|i| 1 << i).find(|c| *c >= self.n_columns);
        let (Some(compiled), true) = (compiled, self.n_columns > 0) else {
            let why = format!("{} columns; it takes 1 to {MOST_COLUMNS}", self.n_columns);
            return Err(Error::Plan { name: "mmv".into(), why });
        };
        check_row(self.ty, self.n)?;
        if reads_codes(self.ty) && !self.n.is_multiple_of(32) {
            let why = format!("rows of {} elements are no whole blocks of 32", self.n);
            return Err(Error::Plan { name: "mmv".into(), why });
        }
        let optional = |is_there| if is_there { None } else { NULL };
        Ok(Plan {
            of: of_type("mmv.cu", self.ty)?,
            kernel: format!("mmv_{}_c{compiled}", name(self.ty)),
            geometry: geometry([self.n_rows.div_ceil(4), 1, 1], 128)?,
            arguments: vec![
                ("w", None),
                ("expert_bytes", Some(Argument::I64(0))),
                ("ids", NULL),
                ("k", Some(Argument::I32(1))),
                ("x", None),
                ("ds", optional(reads_codes(self.ty))),
                ("bias", optional(self.bias)),
                ("residual", optional(self.residual)),
                ("y", None),
                ("n_rows", Some(i32_of(self.n_rows)?)),
                ("n", Some(i32_of(self.n)?)),
                ("n_columns", Some(i32_of(self.n_columns)?)),
                ("y_stride", Some(i64_of(self.stride)?)),
            ],
        })
    }
}

/// Bytes of a row in device form.
///
/// # Errors
/// [`Error::Plan`] when rows of the type do not have this many elements.
pub fn device_row_bytes(ty: QuantType, n: usize) -> Result<usize, Error> {
    let ty = device_type(ty)?;
    if ty == QuantType::I2_S {
        // the tensor's one scale goes with every row
        return Ok((n / 4 + 4).next_multiple_of(ROW_ALIGNMENT));
    }
    let bytes = ikq_formats::row::row_bytes(ty, n)
        .map_err(|e| Error::Plan { name: ty.name().into(), why: e.to_string() })?;
    Ok(bytes.next_multiple_of(ROW_ALIGNMENT))
}

/// The type whose device form a type of files takes: itself, or the plain twin of an interleaved one.
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

/// Whether products with the type read quantized columns; else they read floats.
pub fn reads_codes(ty: QuantType) -> bool {
    ty.info().family != Family::Float
}

/// All specialisations that products with weights of these types need.
///
/// # Errors
/// As [`device_type`].
pub fn specialisations(types: &[QuantType]) -> Result<Vec<Specialisation>, Error> {
    let mut all = vec![Specialisation { file: "activations.cu".into(), defines: vec![] }];
    for ty in types {
        let ty = device_type(*ty)?;
        if ty.info().family != Family::Float {
            all.push(of_type("weights.cu", ty)?);
        }
        all.push(of_type("mmv.cu", ty)?);
    }
    all.sort();
    all.dedup();
    Ok(all)
}

fn of_type(file: &str, ty: QuantType) -> Result<Specialisation, Error> {
    if device_type(ty)? != ty {
        let why = "kernels are for plain types; its rows are taken apart when they are loaded".to_string();
        return Err(Error::Plan { name: ty.name().into(), why });
    }
    Ok(Specialisation { file: file.into(), defines: vec![("IKQ_TYPE".into(), name(ty))] })
}

fn name(ty: QuantType) -> String {
    ty.name().to_ascii_lowercase()
}

fn check_row(ty: QuantType, n: usize) -> Result<(), Error> {
    device_row_bytes(ty, n).map(|_| ())
}

fn geometry(grid: [usize; 3], threads: u32) -> Result<Geometry, Error> {
    let size = |n: usize| {
        let n = u32::try_from(n).ok().filter(|n| *n > 0 && *n <= i32::MAX.cast_unsigned());
        n.ok_or_else(|| Error::Plan { name: "grid".into(), why: format!("{grid:?} blocks") })
    };
    let [x, y, z] = grid;
    Ok(Geometry { grid: [size(x)?, size(y)?, size(z)?], block: [threads, 1, 1], shared_bytes: 0 })
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
        Products { ty, n_rows: 10, n: 256, n_columns, stride: 10, bias: false, residual: false }
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
            assert_eq!((plan.kernel.as_str(), plan.geometry.grid), (kernel, [3, 1, 1]));
        }
        for n_columns in [0, 9] {
            assert!(Call::Products(products(QuantType::Q4_K, n_columns)).plan().is_err());
        }
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
