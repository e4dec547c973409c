//! Products of matrices and columns: the columns' codes, and launches of at most eight columns.

use ikq_formats::QuantType;

use crate::error::Error;
use crate::gpu::Gpu;
use crate::memory::{Address, arena_bytes};
use crate::plan::{Call, MOST_COLUMNS, MOST_GRID, Pairs, Plan, Products, reads_codes};
use crate::weights::Matrix;

/// Columns as products read them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Columns {
    /// Elements of a column, and how many there are.
    pub n: usize,
    pub n_columns: usize,
    /// Floats, `n` per column.
    pub floats: Address,
    /// Codes and, per block of 32, scale and scaled sum; made by [`quantize`].
    pub codes: Option<(Address, Address)>,
}

impl Columns {
    /// The columns from `first` on, `n_columns` of them.
    #[must_use]
    pub fn part(&self, first: usize, n_columns: usize) -> Columns {
        let at = first * self.n;
        let codes = self.codes.map(|(q, ds)| (q.offset(at), ds.offset(at / 32 * 8)));
        Columns { n: self.n, n_columns, floats: self.floats.offset(4 * at), codes }
    }

    /// The buffers that products with a type read.
    ///
    /// # Errors
    /// [`Error::Plan`] when codes are missing.
    pub fn read_by(&self, ty: QuantType) -> Result<Vec<(&'static str, Address)>, Error> {
        match (reads_codes(ty), self.codes) {
            (true, Some((q, ds))) => Ok(vec![("x", q), ("ds", ds)]),
            (true, None) => {
                Err(Error::Plan { name: "product".into(), why: "the columns have no codes".into() })
            }
            (false, _) => Ok(vec![("x", self.floats)]),
        }
    }
}

/// Where results go, and what is added to them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// `n_rows` floats per column.
    pub y: Address,
    /// `n_rows` floats.
    pub bias: Option<Address>,
    /// Laid out as `y`, which it may be.
    pub residual: Option<Address>,
}

/// Bytes of codes, and of scales, of these columns.
pub fn code_bytes(n: usize, n_columns: usize) -> [usize; 2] {
    [n * n_columns, n / 32 * n_columns * 8]
}

/// Bytes of an arena for columns and their codes.
pub fn columns_bytes(n: usize, n_columns: usize) -> usize {
    let [codes, scales] = code_bytes(n, n_columns);
    arena_bytes([n * n_columns * 4, codes, scales])
}

/// Makes the codes of columns, behind what was launched before.
///
/// # Errors
/// What planner, compiler and driver say.
///
/// # Safety
/// Floats are (or will be, by earlier launches) at `columns.floats`, and there is room for codes and scales.
pub unsafe fn quantize(gpu: &Gpu, columns: &Columns) -> Result<(), Error> {
    let Some((codes, scales)) = columns.codes else { return Ok(()) };
    let plan = Call::Quantize { n: columns.n * columns.n_columns }.plan()?;
    // SAFETY: the planner's arguments; the caller's word for the buffers
    unsafe { launch(gpu, &plan, &[("x", columns.floats), ("q", codes), ("ds", scales)]) }
}

/// `y[c][r] = sum of matrix[r] * columns[c] (+ bias[r]) (+ residual[c][r])`, behind what was launched before.
///
/// # Errors
/// [`Error::Plan`] when lengths differ, or codes are missing that the type reads; what compiler and driver say.
///
/// # Safety
/// Matrix, columns and what is added are (or will be) where they say, and there is room for the result.
pub unsafe fn multiply(gpu: &Gpu, matrix: &Matrix, columns: &Columns, to: &Target) -> Result<(), Error> {
    let wrong = |why: String| Error::Plan { name: "product".into(), why };
    if matrix.n != columns.n {
        return Err(wrong(format!("rows of {} elements and columns of {}", matrix.n, columns.n)));
    }
    if matrix.n_rows == 0 {
        return Ok(());
    }
    for first in (0..columns.n_columns).step_by(MOST_COLUMNS) {
        let n_columns = MOST_COLUMNS.min(columns.n_columns - first);
        let part = columns.part(first, n_columns);
        let plan = Call::Products(Products {
            ty: matrix.ty,
            n_rows: matrix.n_rows,
            n: matrix.n,
            n_columns,
            stride: matrix.n_rows,
            pairs: None,
            bias: to.bias.is_some(),
            residual: to.residual.is_some(),
        })
        .plan()?;
        let at = first * matrix.n_rows * 4;
        let mut buffers = vec![("w", matrix.at), ("y", to.y.offset(at))];
        buffers.extend(to.bias.map(|a| ("bias", a)));
        buffers.extend(to.residual.map(|a| ("residual", a.offset(at))));
        buffers.extend(part.read_by(matrix.ty)?);
        // SAFETY: the planner's arguments; the caller's word for the buffers
        unsafe { launch(gpu, &plan, &buffers) }?;
    }
    Ok(())
}

/// What a list of experts is multiplied with.
#[derive(Clone, Copy, Debug)]
pub struct Chosen {
    /// An id for each pair; a negative one is no expert.
    pub ids: Address,
    pub pairs: Pairs,
}

impl Chosen {
    /// Parts of whole tokens that fit a launch: the first token, and the part.
    pub fn parts(self) -> impl Iterator<Item = (usize, Chosen)> {
        let Pairs { n_pairs, k } = self.pairs;
        let at_once = (MOST_GRID / k).max(1);
        let n_tokens = n_pairs / k;
        (0..n_tokens).step_by(at_once).map(move |first| {
            let pairs = Pairs { n_pairs: at_once.min(n_tokens - first) * k, k };
            (first, Chosen { ids: self.ids.offset(4 * first * k), pairs })
        })
    }
}

/// `y[p * stride + r] = sum of expert ids[p] row r * column p / k (+ bias of the expert)`, behind what was launched
/// before; `matrix` is that of the first expert.
///
/// # Errors
/// As [`multiply`].
///
/// # Safety
/// As [`multiply`]; ids are those of experts.
pub unsafe fn multiply_chosen(
    gpu: &Gpu,
    (matrix, bias): (&Matrix, Option<Address>),
    chosen: Chosen,
    columns: &Columns,
    (y, stride): (Address, usize),
) -> Result<(), Error> {
    for (first, Chosen { ids, pairs }) in chosen.parts() {
        let plan = Call::Products(Products {
            ty: matrix.ty,
            n_rows: matrix.n_rows,
            n: matrix.n,
            n_columns: 1,
            stride,
            pairs: Some(pairs),
            bias: bias.is_some(),
            residual: false,
        })
        .plan()?;
        let y = y.offset(4 * first * pairs.k * stride);
        let mut buffers = vec![("w", matrix.at), ("ids", ids), ("y", y)];
        buffers.extend(bias.map(|a| ("bias", a)));
        buffers.extend(columns.part(first, pairs.n_pairs / pairs.k).read_by(matrix.ty)?);
        // SAFETY: the planner's arguments; the caller's word for the buffers
        unsafe { launch(gpu, &plan, &buffers) }?;
    }
    Ok(())
}

/// Launches what was planned, with these buffers.
///
/// # Errors
/// What planner, compiler and driver say.
///
/// # Safety
/// Buffers hold what the kernel reads, and have room for what it writes.
pub unsafe fn launch(gpu: &Gpu, plan: &Plan, buffers: &[(&str, Address)]) -> Result<(), Error> {
    let kernel = gpu.function(&plan.of, &plan.kernel)?;
    let bound = plan.bind(buffers)?;
    // SAFETY: arguments are the planner's, whose order and types are the kernel's
    unsafe { gpu.launch(&kernel, plan.geometry, &bound) }
}
