//! [`Blas`]: products by cuBLAS of weights that are decoded to bf16 before, a piece of the matrix at a time, and columns of
//! bf16. Which products these are is said by a [`Table`].
//!
//! bf16 has the range of floats: activations of some models, and scales of some weights, have none of f16's. Columns are made
//! of what tiles would read, codes where weights are quantized, so both compute the same sums but for the rounding to bf16.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use ikq_formats::QuantType;

use crate::blas_table::{Table, is_offered};
use crate::cublas::{self, Handle, Product};
use crate::environment;
use crate::error::Error;
use crate::gpu::Gpu;
use crate::memory::Address;
use crate::plan::{Call, FloatType, device_row_bytes, product_factor, reads_codes};
use crate::products::{Columns, Target, launch};
use crate::weights::Matrix;

/// Bytes of memory that cuBLAS has for itself, as much as it takes for the GPUs that need most.
const WORKSPACE: usize = 32 << 20;
/// Most bytes of decoded weights at a time, unless one row has more or the user says how many.
const PIECE: usize = 64 << 20;
/// Tensor cores read operands that begin, and whose rows begin, at multiples of so many numbers.
const MULTIPLE: usize = 8;
/// The oldest compute capability with tensor cores for bf16.
const OLDEST_SM: u32 = 80;

/// Most bytes of decoded weights: [`PIECE`], or what `IKQ_CUDA_BLAS_KIB` says.
///
/// # Errors
/// [`Error::Variable`].
pub fn most_bytes() -> Result<usize, Error> {
    Ok(environment::kib(environment::BLAS_KIB)?.unwrap_or(PIECE))
}

/// Bytes of the memory that products by cuBLAS need; there is none where none is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RoomBytes {
    pub workspace: usize,
    pub weights: usize,
    pub columns: usize,
}

impl RoomBytes {
    /// What all of these matrices need (type, rows, elements of a row), each with so many columns.
    pub fn of(
        table: &Table,
        matrices: impl Iterator<Item = (QuantType, [usize; 2])>,
        n_columns: usize,
    ) -> RoomBytes {
        let taken = matrices.filter(|(ty, sizes)| is_taken(table, *ty, *sizes, n_columns));
        taken.fold(RoomBytes::default(), |room, (ty, sizes)| {
            room.max(RoomBytes::one(ty, sizes, n_columns, table.piece()))
        })
    }

    /// What a matrix needs, of which at most `piece` bytes are decoded at a time.
    pub fn one(ty: QuantType, [n_rows, n]: [usize; 2], n_columns: usize, piece: usize) -> RoomBytes {
        let weights = match ty {
            QuantType::BF16 => 0,
            _ => 2 * n * n_rows.min((piece / (2 * n)).max(1)),
        };
        RoomBytes { workspace: WORKSPACE, weights, columns: 2 * n * n_columns }
    }

    fn max(self, other: RoomBytes) -> RoomBytes {
        RoomBytes {
            workspace: self.workspace.max(other.workspace),
            weights: self.weights.max(other.weights),
            columns: self.columns.max(other.columns),
        }
    }
}

/// Whether cuBLAS multiplies a matrix with so many columns, by this table.
pub fn is_taken(table: &Table, ty: QuantType, sizes: [usize; 2], n_columns: usize) -> bool {
    sizes[1].is_multiple_of(MULTIPLE) && table.takes(ty, sizes, n_columns)
}

/// The memory, in an arena of the caller's.
#[derive(Clone, Copy, Debug, Default)]
pub struct Room {
    pub bytes: RoomBytes,
    pub workspace: Address,
    pub weights: Address,
    pub columns: Address,
}

/// cuBLAS for a device, with what its products are.
#[derive(Debug)]
pub struct Blas {
    /// Without one, only [`Blas::multiply`] itself is of use.
    table: Option<Table>,
    handle: Handle,
    room: Mutex<Option<Room>>,
}

impl Blas {
    /// cuBLAS for the products that a table names, or for a measurement.
    ///
    /// # Errors
    /// [`Error::Table`] for the table of another device, [`Error::NoCublas`] where there is no library, and its errors.
    pub fn new(gpu: &Gpu, places: &[PathBuf], table: Option<Table>) -> Result<Blas, Error> {
        if let Some(table) = &table {
            table.check(gpu.facts())?;
        }
        if gpu.facts().sm < OLDEST_SM {
            let why = "products by cuBLAS need compute capability 8.0 (Ampere) or newer".into();
            return Err(Error::Plan { name: gpu.context().name().into(), why });
        }
        let library = Arc::new(cublas::find(places, gpu.major())?);
        Ok(Blas { table, handle: Handle::new(library, gpu)?, room: Mutex::default() })
    }

    /// The library, its file and its version.
    pub fn library(&self) -> &cublas::Cublas {
        &self.handle.library
    }

    /// What it computes; nothing without a table.
    pub fn table(&self) -> Option<&Table> {
        self.table.as_ref()
    }

    /// Whether it computes a product.
    pub fn takes(&self, matrix: &Matrix, n_columns: usize) -> bool {
        let sizes = [matrix.n_rows, matrix.n];
        self.table.as_ref().is_some_and(|table| is_taken(table, matrix.ty, sizes, n_columns))
    }

    /// Says where products have their memory from now on; `None`: there is none.
    ///
    /// # Errors
    /// Errors of the library.
    ///
    /// # Safety
    /// The memory must be there until this is called again, or no product runs any more.
    pub unsafe fn set_room(&self, room: Option<Room>) -> Result<(), Error> {
        let room = room.filter(|room| room.bytes.workspace > 0);
        if let Some(room) = &room {
            // SAFETY: the caller promises the memory
            unsafe { self.handle.set_workspace(room.workspace, room.bytes.workspace) }?;
        }
        *self.room.lock().unwrap_or_else(PoisonError::into_inner) = room;
        Ok(())
    }

    /// Computes what [`crate::products::multiply`] does, with sums in another order.
    ///
    /// # Errors
    /// [`Error::Plan`] when there is too little room, or columns are missing; errors of cuBLAS, the compiler and the driver.
    ///
    /// # Safety
    /// As for [`crate::products::multiply`].
    pub unsafe fn multiply(
        &self,
        gpu: &Gpu,
        matrix: &Matrix,
        columns: &Columns,
        to: &Target,
    ) -> Result<(), Error> {
        let Matrix { ty, n_rows, n, at } = *matrix;
        let wrong = |why: &str| Error::Plan { name: "product by cuBLAS".into(), why: why.into() };
        if !is_offered(ty) || !n.is_multiple_of(MULTIPLE) {
            return Err(wrong("it does not take this matrix"));
        }
        let room = *self.room.lock().unwrap_or_else(PoisonError::into_inner);
        let room = room.ok_or_else(|| wrong("it has no memory"))?;
        let row_bytes = device_row_bytes(ty, n)?;
        let is_read_in_place = ty == QuantType::BF16;
        let at_once = if is_read_in_place { n_rows } else { (room.bytes.weights / (2 * n)).min(n_rows) };
        if at_once == 0 || 2 * n * columns.n_columns > room.bytes.columns {
            return Err(wrong("it has too little memory"));
        }
        // SAFETY: the arguments are the planner's; the caller promises matrix, columns and result, and the room is there
        unsafe {
            let halves = Call::ToBf16 { n: n * columns.n_columns, codes: reads_codes(ty) };
            let mut buffers = columns.read_by(ty)?;
            buffers.push(("out", room.columns));
            launch(gpu, &halves.plan()?, &buffers)?;
            let beta = begin_sums(gpu, n_rows, columns.n_columns, to)?;
            for first in (0..n_rows).step_by(at_once) {
                let rows = at_once.min(n_rows - first);
                let stored = at.offset(first * row_bytes);
                let w = if is_read_in_place { stored } else { room.weights };
                if !is_read_in_place {
                    let plan = Call::Dequantize { ty, to: FloatType::BF16, n_rows: rows, n, chosen: false }
                        .plan()?;
                    launch(gpu, &plan, &[("w", stored), ("out", room.weights)])?;
                }
                let product = Product {
                    w,
                    pitch: if is_read_in_place { row_bytes / 2 } else { n },
                    n_rows: rows,
                    n,
                    x: room.columns,
                    n_columns: columns.n_columns,
                    y: to.y.offset(4 * first),
                    stride: n_rows,
                    alpha: product_factor(ty),
                    beta,
                };
                self.handle.multiply(gpu, &product)?;
                gpu.count_product_by_blas();
            }
        }
        Ok(())
    }
}

/// Brings to the result what sums are added to, and gives the factor that says whether there is something.
///
/// # Safety
/// As for [`Blas::multiply`].
unsafe fn begin_sums(gpu: &Gpu, n_rows: usize, n_columns: usize, to: &Target) -> Result<f32, Error> {
    match (to.bias, to.residual) {
        (None, None) => return Ok(0.0),
        (None, Some(residual)) if residual == to.y => {}
        (None, Some(residual)) => {
            // SAFETY: the caller promises both
            unsafe { gpu.copy(to.y, residual, 4 * n_rows * n_columns) }?;
        }
        (Some(bias), residual) => {
            let plan = Call::BeginSums { n_rows, n_columns, residual: residual.is_some() }.plan()?;
            let mut buffers = vec![("bias", bias), ("y", to.y)];
            buffers.extend(residual.map(|a| ("residual", a)));
            // SAFETY: as above
            unsafe { launch(gpu, &plan, &buffers) }?;
        }
    }
    Ok(1.0)
}
