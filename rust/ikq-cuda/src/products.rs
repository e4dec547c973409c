//! Products of matrices with columns: makes the columns' codes, and launches kernels for at most eight columns
//! each, or for tiles of many.

use ikq_formats::QuantType;

use crate::error::Error;
use crate::gpu::Gpu;
use crate::memory::{Address, arena_bytes};
use crate::plan::{
    Call, Grouped, MOST_COLUMNS, MOST_GRID, Mmq, Pairs, Plan, Products, TiledColumns, reads_codes,
};
use crate::weights::Matrix;

/// Columns in the forms that products read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Columns {
    /// Elements of a column, and the number of columns.
    pub n: usize,
    pub n_columns: usize,
    /// Floats, `n` per column.
    pub floats: Address,
    /// 8-bit codes and, for each block of 32, a scale and the scaled sum of the codes; [`quantize`] makes them.
    pub codes: Option<(Address, Address)>,
}

impl Columns {
    /// `n_columns` of the columns, from `first` on.
    #[must_use]
    pub fn part(&self, first: usize, n_columns: usize) -> Columns {
        let at = first * self.n;
        let codes = self.codes.map(|(q, ds)| (q.offset(at), ds.offset(at / 32 * 8)));
        Columns { n: self.n, n_columns, floats: self.floats.offset(4 * at), codes }
    }

    /// The buffers that products with weights of a type read.
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

/// Where results are written, and what is added to them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// `n_rows` floats per column.
    pub y: Address,
    /// `n_rows` floats.
    pub bias: Option<Address>,
    /// `n_rows` floats per column, which may be those of `y`.
    pub residual: Option<Address>,
}

/// Bytes of the codes, and of the scales, of columns.
pub fn code_bytes(n: usize, n_columns: usize) -> [usize; 2] {
    [n * n_columns, n / 32 * n_columns * 8]
}

/// Bytes of an arena for columns and their codes and scales.
pub fn columns_bytes(n: usize, n_columns: usize) -> usize {
    let [codes, scales] = code_bytes(n, n_columns);
    arena_bytes([n * n_columns * 4, codes, scales])
}

/// Makes the codes of columns, after everything that was launched before.
///
/// # Errors
/// Errors of the planner, the compiler and the driver.
///
/// # Safety
/// Floats must be at `columns.floats` (earlier launches may write them), and there must be room for codes and
/// scales.
pub unsafe fn quantize(gpu: &Gpu, columns: &Columns) -> Result<(), Error> {
    let Some((codes, scales)) = columns.codes else { return Ok(()) };
    let plan = Call::Quantize { n: columns.n * columns.n_columns }.plan()?;
    // SAFETY: the arguments are the planner's, and the caller promises the buffers
    unsafe { launch(gpu, &plan, &[("x", columns.floats), ("q", codes), ("ds", scales)]) }
}

/// Whether products of so many columns are computed in tiles, on tensor cores.
pub fn is_tiled(gpu: &Gpu, ty: QuantType, n_columns: usize) -> bool {
    has_tiles(gpu, ty) && n_columns >= gpu.tiles_from()
}

/// Whether products with weights of a type can be: floats need tensor cores that multiply tf32.
pub fn has_tiles(gpu: &Gpu, ty: QuantType) -> bool {
    reads_codes(ty) || gpu.facts().sm >= 80
}

/// Computes `y[c][r] = sum of matrix[r] * columns[c] (+ bias[r]) (+ residual[c][r])`, after everything that was
/// launched before.
///
/// # Errors
/// [`Error::Plan`] when lengths differ, or codes are missing that the type needs; errors of the compiler and the
/// driver.
///
/// # Safety
/// Matrix, columns, bias and residual must be at their addresses (earlier launches may write them), and there must
/// be room for the result.
pub unsafe fn multiply(gpu: &Gpu, matrix: &Matrix, columns: &Columns, to: &Target) -> Result<(), Error> {
    let wrong = |why: String| Error::Plan { name: "product".into(), why };
    if matrix.n != columns.n {
        return Err(wrong(format!("rows of {} elements and columns of {}", matrix.n, columns.n)));
    }
    if matrix.n_rows == 0 || columns.n_columns == 0 {
        return Ok(());
    }
    if let Some(blas) = gpu.blas().filter(|blas| blas.takes(matrix, columns.n_columns)) {
        // SAFETY: the caller's promises
        return unsafe { blas.multiply(gpu, matrix, columns, to) };
    }
    if is_tiled(gpu, matrix.ty, columns.n_columns) {
        // SAFETY: the caller's promises
        return unsafe { multiply_tiles(gpu, matrix, columns, to, None, matrix.n_rows) };
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
        // SAFETY: the arguments are the planner's, and the caller promises the buffers
        unsafe { launch(gpu, &plan, &buffers) }?;
    }
    Ok(())
}

/// A matrix, or those of experts, times all columns in one launch.
///
/// # Safety
/// As for [`multiply`] and [`multiply_chosen`].
unsafe fn multiply_tiles(
    gpu: &Gpu,
    matrix: &Matrix,
    columns: &Columns,
    to: &Target,
    sorted: Option<(Sorted, Pairs)>,
    stride: usize,
) -> Result<(), Error> {
    let tiled =
        sorted.map_or(TiledColumns::Plain(columns.n_columns), |(sorted, pairs)| sorted.columns(pairs));
    let plan = Call::Mmq(Mmq {
        ty: matrix.ty,
        n_rows: matrix.n_rows,
        n: matrix.n,
        columns: tiled,
        tile: tiled.tile(&[matrix.ty], matrix.n_rows, gpu.facts()),
        stride,
        bias: to.bias.is_some(),
        residual: to.residual.is_some(),
    })
    .plan()?;
    let mut buffers = vec![("w", matrix.at), ("y", to.y)];
    buffers.extend(to.bias.map(|a| ("bias", a)));
    buffers.extend(to.residual.map(|a| ("residual", a)));
    buffers.extend(columns.read_by(matrix.ty)?);
    buffers.extend(sorted.into_iter().flat_map(|(sorted, _)| sorted.buffers()));
    // SAFETY: the arguments are the planner's, and the caller promises the buffers
    unsafe { launch(gpu, &plan, &buffers) }
}

/// A list of chosen experts.
#[derive(Clone, Copy, Debug)]
pub struct Chosen {
    /// The id of the expert of each pair; a pair with a negative id is skipped.
    pub ids: Address,
    pub pairs: Pairs,
    /// The pairs by expert, where products are computed in tiles.
    pub sorted: Option<Sorted>,
}

/// Pairs sorted by expert: those of expert e are `list[bounds[e]]` to `list[bounds[e + 1] - 1]`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sorted {
    pub bounds: Address,
    pub list: Address,
    pub n_experts: usize,
    /// How many pairs these experts have, where they are not all of the list.
    pub n_pairs: Option<usize>,
}

impl Sorted {
    /// The columns of these pairs, for plans.
    pub fn columns(self, Pairs { n_pairs, k }: Pairs) -> TiledColumns {
        // launches have whole tokens
        let n_pairs = self.n_pairs.map_or(n_pairs, |n| n.next_multiple_of(k));
        TiledColumns::Grouped(Grouped { n_pairs, k, n_experts: self.n_experts })
    }

    pub fn buffers(self) -> [(&'static str, Address); 2] {
        [("bounds", self.bounds), ("list", self.list)]
    }
}

impl Chosen {
    /// Divides the list into parts of whole tokens that fit a launch, not sorted; each comes with its first token.
    pub fn parts(self) -> impl Iterator<Item = (usize, Chosen)> {
        let Pairs { n_pairs, k } = self.pairs;
        let at_once = (MOST_GRID / k).max(1);
        let n_tokens = n_pairs / k;
        (0..n_tokens).step_by(at_once).map(move |first| {
            let pairs = Pairs { n_pairs: at_once.min(n_tokens - first) * k, k };
            (first, Chosen { ids: self.ids.offset(4 * first * k), pairs, sorted: None })
        })
    }
}

/// Computes `y[p * stride + r] = sum of matrix[ids[p]][r] * columns[p / k] (+ bias[ids[p]][r])` for every pair p,
/// after everything that was launched before. `matrix` is that of the first expert. Pairs without an expert get no result
/// if they are sorted, else zeros.
///
/// # Errors
/// As [`multiply`].
///
/// # Safety
/// As for [`multiply`]; ids must be those of experts, or negative.
pub unsafe fn multiply_chosen(
    gpu: &Gpu,
    (matrix, bias): (&Matrix, Option<Address>),
    chosen: Chosen,
    columns: &Columns,
    (y, stride): (Address, usize),
) -> Result<(), Error> {
    if let Some(sorted) = chosen.sorted.filter(|_| has_tiles(gpu, matrix.ty)) {
        let to = Target { y, bias, residual: None };
        // SAFETY: the caller's promises
        return unsafe { multiply_tiles(gpu, matrix, columns, &to, Some((sorted, chosen.pairs)), stride) };
    }
    for (first, Chosen { ids, pairs, .. }) in chosen.parts() {
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
        // SAFETY: the arguments are the planner's, and the caller promises the buffers
        unsafe { launch(gpu, &plan, &buffers) }?;
    }
    Ok(())
}

/// Launches a plan with these buffers.
///
/// # Errors
/// Errors of the planner, the compiler and the driver.
///
/// # Safety
/// Buffers must have the data that the kernel reads, and room for what it writes.
pub unsafe fn launch(gpu: &Gpu, plan: &Plan, buffers: &[(&str, Address)]) -> Result<(), Error> {
    let kernel = gpu.function(plan.kernel)?;
    let bound = plan.bind(buffers)?;
    // SAFETY: the planner's arguments have the order and types of the kernel's parameters
    unsafe { gpu.launch(&kernel, plan.geometry, &bound) }
}
