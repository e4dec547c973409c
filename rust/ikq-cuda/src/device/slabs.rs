//! [`Slabs`]: memory of a GPU through which experts go that another device has.

use ikq_formats::lanes::LANES;
use ikq_model::device::{Lent, Matrix};
use ikq_model::network::{Experts, Weight};
use ikq_pool::Team;

use super::parts::{Ffn, Linear};
use crate::environment;
use crate::error::Error;
use crate::event::{Event, Stream};
use crate::floats::as_bytes;
use crate::gpu::Gpu;
use crate::memory::{Address, Arena, HostUse, Pinned, arena_bytes};
use crate::plan::{self, Call};
use crate::products::launch;
use crate::staging::Piece;
use crate::weights;

/// About how many bytes a slab has: the time to copy it is long beside that of a launch, and short beside a layer's.
const SLAB: usize = 128 << 20;
/// Most bytes that are copied at once.
const PIECE: usize = 16 << 20;
/// About how many bytes a thread reads at once.
const UNIT: usize = 256 << 10;
/// Least bytes of a piece.
const LEAST_PIECE: usize = 64 << 10;

/// Most bytes of the experts in a slab, unless one expert has more: [`SLAB`], or what `IKQ_CUDA_SLAB_KIB` says.
///
/// # Errors
/// [`Error::Variable`].
pub fn most_bytes() -> Result<usize, Error> {
    Ok(environment::kib(environment::SLAB_KIB)?.unwrap_or(SLAB))
}

/// Bytes of the matrix of an expert in the file, in the CPU's bands, and in the device's form, and of its bias.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    file: usize,
    bands: usize,
    device: usize,
    bias: usize,
    /// Whether the device has rows as the file has them.
    is_file: bool,
}

impl Sizes {
    /// As it is copied, in either form.
    fn copied(&self) -> usize {
        self.file.max(self.bands)
    }
}

/// Where gate, up and down of so many experts lie, one matrix behind the other: in a slab, as they are copied, in rows as
/// the file has them, and in the device's form.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    pub n_experts: usize,
    sizes: [Sizes; 3],
}

impl Layout {
    /// The layout for as many experts as `most` bytes hold.
    ///
    /// # Errors
    /// [`Error::Plan`] for types and row lengths that kernels do not take.
    pub fn new(ffn: &Ffn, most: usize) -> Result<Layout, Error> {
        let of = |linear: &Linear| {
            let matrix = &linear.matrix;
            let row = ikq_formats::row::row_bytes(matrix.ty, matrix.n)
                .map_err(|e| Error::Plan { name: matrix.ty.name().into(), why: e.to_string() })?;
            Ok::<_, Error>(Sizes {
                file: row * matrix.n_rows,
                bands: plan::band_bytes(matrix.ty, matrix.n_rows, matrix.n)?,
                device: weights::matrix_bytes(matrix.ty, matrix.n_rows, matrix.n)?,
                bias: linear.bias.map_or(0, |_| 4 * matrix.n_rows),
                is_file: !plan::reads_codes(matrix.ty),
            })
        };
        let sizes = [of(&ffn.gate)?, of(&ffn.up)?, of(&ffn.down)?];
        let each: usize = sizes.iter().map(|s| s.copied() + s.bias).sum();
        let n_experts = (most / each.max(1)).clamp(1, ffn.n_experts.max(1));
        Ok(Layout { n_experts, sizes })
    }

    /// Bytes of a slab, and of the places for a matrix in rows and for all in the device's form.
    fn bytes(&self) -> [usize; 3] {
        let all = |of: fn(&Sizes) -> [usize; 2]| {
            arena_bytes(self.sizes.iter().flat_map(of).map(|n| n * self.n_experts))
        };
        let rows = self.sizes.iter().filter(|s| !s.is_file).map(|s| s.file * self.n_experts);
        let rows = rows.max().unwrap_or(0);
        [all(|s| [s.copied(), s.bias]), arena_bytes([rows]), all(|s| [s.device, s.bias])]
    }

    /// Where matrix and bias of gate, up and down begin.
    fn places(&self, at: Address, of: fn(&Sizes) -> usize) -> [(Address, Address); 3] {
        let mut at = at;
        self.sizes.map(|sizes| {
            let bias = at.offset(arena_bytes([of(&sizes) * self.n_experts]));
            let place = (at, bias);
            at = bias.offset(arena_bytes([sizes.bias * self.n_experts]));
            place
        })
    }
}

/// Bytes of the device that [`Slabs::new`] allocates for these layouts.
pub fn bytes<'a>(layouts: impl Iterator<Item = &'a Layout>) -> usize {
    let [slab, rows, form] = most(layouts);
    2 * slab + rows + form
}

fn most<'a>(layouts: impl Iterator<Item = &'a Layout>) -> [usize; 3] {
    layouts.map(Layout::bytes).fold([0; 3], |a, b| std::array::from_fn(|i| a[i].max(b[i])))
}

/// Where experts come from.
pub struct Source<'a> {
    pub experts: &'a Experts,
    pub lent: &'a Lent<'a>,
    pub team: &'a Team<'a>,
}

/// Memory for experts in the file's form.
#[derive(Debug)]
struct Slab {
    at: Address,
    /// When a part was copied to it, and when it has left it.
    copied: Event,
    left: Event,
    /// Whether gate, up and down of the part are in bands.
    in_bands: [bool; 3],
}

/// Two slabs, which take turns, and a place for rows and one for the device's form.
#[derive(Debug)]
pub struct Slabs {
    slabs: [Slab; 2],
    rows: Address,
    form: Address,
    pieces: [Piece; 2],
    /// Goes behind what waits for events of it.
    copies: Stream,
    next_piece: usize,
    /// The slab of the next part.
    next: usize,
    /// Which share of the experts of the latest layer was chosen.
    pub share: f64,
    _arena: Arena,
}

/// Some rows of an expert's matrix, and where they are written.
struct Unit<'a> {
    matrix: Matrix,
    expert: usize,
    first: usize,
    n_rows: usize,
    to: &'a mut [u8],
}

impl Slabs {
    /// # Errors
    /// [`Error::Memory`], and errors of the driver.
    pub fn new<'a>(gpu: &Gpu, layouts: impl Iterator<Item = &'a Layout> + Clone) -> Result<Slabs, Error> {
        let [slab, rows, form] = most(layouts.clone());
        let mut arena = Arena::new(gpu.context(), "experts on the way", bytes(layouts))?;
        let mut one = || {
            let (copied, left) = (Event::new(gpu.context())?, Event::new(gpu.context())?);
            Ok::<_, Error>(Slab { at: arena.take(slab)?, copied, left, in_bands: [false; 3] })
        };
        let slabs = [one()?, one()?];
        let (rows, form) = (arena.take(rows)?, arena.take(form)?);
        let piece = || {
            let pinned = Pinned::new(gpu.context(), slab.clamp(LEAST_PIECE, PIECE), HostUse::Writes)?;
            Ok::<_, Error>(Piece { pinned, copied: Event::new(gpu.context())? })
        };
        Ok(Slabs {
            copies: Stream::new(gpu.context())?,
            slabs,
            rows,
            form,
            pieces: [piece()?, piece()?],
            next_piece: 0,
            next: 0,
            share: 0.0,
            _arena: arena,
        })
    }

    /// Copies experts to the next slab, as soon as the part before has left it. The copies run beside the device's other
    /// work.
    ///
    /// # Errors
    /// Errors of the driver.
    pub fn send(
        &mut self,
        gpu: &Gpu,
        layout: &Layout,
        source: &Source<'_>,
        experts: &[usize],
    ) -> Result<(), Error> {
        let slab = &mut self.slabs[self.next];
        self.copies.wait_for(&slab.left)?;
        slab.in_bands = source.lent.in_bands;
        let places = layout.places(slab.at, Sizes::copied);
        for (i, (matrix, weight)) in each(source.experts).into_iter().enumerate() {
            let (sizes, (at, bias)) = (layout.sizes[i], places[i]);
            let unit = match source.lent.in_bands[i] {
                true => (LANES, sizes.bands / weight.n_rows.div_ceil(LANES).max(1)),
                false => (1, sizes.file / weight.n_rows.max(1)),
            };
            self.send_rows(gpu, source, (matrix, weight), unit, experts, at)?;
            if let Some(all) = &weight.bias {
                let of = |e: &usize| &all[e * weight.n_rows..(e + 1) * weight.n_rows];
                let list: Vec<f32> = experts.iter().flat_map(of).copied().collect();
                self.send_piece(gpu, bias, 4 * list.len(), |to| to.copy_from_slice(as_bytes(&list)))?;
            }
        }
        self.copies.mark(&self.slabs[self.next].copied)
    }

    /// Copies the matrices of experts, one behind the other. `bytes` are those of `step` rows.
    fn send_rows(
        &mut self,
        gpu: &Gpu,
        source: &Source<'_>,
        (matrix, weight): (Matrix, &Weight),
        (step, bytes): (usize, usize),
        experts: &[usize],
        at: Address,
    ) -> Result<(), Error> {
        let rows_of_unit = (UNIT * step / bytes.max(1)).next_multiple_of(LANES).max(LANES);
        let of_expert = |e: &usize| {
            let e = *e;
            (0..weight.n_rows).step_by(rows_of_unit).map(move |first| (e, first))
        };
        let units: Vec<(usize, usize)> = experts.iter().flat_map(of_expert).collect();
        let n_rows = |first: usize| rows_of_unit.min(weight.n_rows - first);
        let bytes_of = |first: usize| n_rows(first).div_ceil(step) * bytes;
        let most = self.pieces[0].pinned.size().max(rows_of_unit / step * bytes);
        let (mut at, mut rest) = (at, units.as_slice());
        while !rest.is_empty() {
            let mut n_bytes = 0;
            let fits = |(_, first): &&(usize, usize)| {
                n_bytes += bytes_of(*first);
                n_bytes <= most
            };
            let n = rest.iter().take_while(fits).count();
            let (now, behind) = rest.split_at(n);
            rest = behind;
            let n_bytes: usize = now.iter().map(|(_, first)| bytes_of(*first)).sum();
            self.send_piece(gpu, at, n_bytes, |mut to| {
                let mut work = Vec::with_capacity(now.len());
                for &(expert, first) in now {
                    let n_rows = n_rows(first);
                    let (mine, behind) = to.split_at_mut(bytes_of(first));
                    to = behind;
                    work.push(Unit { matrix, expert, first, n_rows, to: mine });
                }
                source.team.for_each(&mut work, |unit, _| {
                    let rows = unit.first..unit.first + unit.n_rows;
                    (source.lent.read)(unit.matrix, unit.expert, rows, unit.to);
                });
            })?;
            at = at.offset(n_bytes);
        }
        Ok(())
    }

    /// Copies `n` bytes that `fill` writes.
    fn send_piece(
        &mut self,
        gpu: &Gpu,
        to: Address,
        n: usize,
        fill: impl FnOnce(&mut [u8]),
    ) -> Result<(), Error> {
        let piece = &mut self.pieces[self.next_piece];
        self.next_piece = 1 - self.next_piece;
        piece.copied.wait()?;
        if piece.pinned.size() < n {
            piece.pinned = Pinned::new(gpu.context(), n, HostUse::Writes)?;
        }
        fill(&mut piece.pinned.bytes_mut()[..n]);
        // SAFETY: the layout has room for the bytes; the piece is not written again before they were copied
        unsafe { self.copies.copy_in(to, &piece.pinned, n) }?;
        self.copies.mark(&piece.copied)
    }

    /// Brings the `n` experts that were sent last into the device's form; the slab is free behind that. Returns them.
    ///
    /// # Errors
    /// Errors of the planner, the compiler and the driver.
    pub fn take(&mut self, gpu: &Gpu, layout: &Layout, ffn: &Ffn, n: usize) -> Result<Ffn, Error> {
        let slab = &self.slabs[self.next];
        self.next = 1 - self.next;
        gpu.wait_for(&slab.copied)?;
        let from = layout.places(slab.at, Sizes::copied);
        let to = layout.places(self.form, |s| s.device);
        let mut here = Ffn { n_experts: n, ..*ffn };
        let linears = [&mut here.gate, &mut here.up, &mut here.down];
        for (i, linear) in linears.into_iter().enumerate() {
            let (from, to, sizes) = (from[i], to[i], layout.sizes[i]);
            let weights::Matrix { ty, n_rows, n: n_row, .. } = linear.matrix;
            linear.matrix.at = to.0;
            let rows = match (sizes.is_file, slab.in_bands[i]) {
                (_, false) => from.0,
                (false, true) => self.rows,
                (true, true) => to.0,
            };
            if slab.in_bands[i] {
                let plan = Call::RowsOfBands { ty, n_matrices: n, n_rows, n: n_row }.plan()?;
                // SAFETY: the slab has the bands, and there is room for the rows of as many experts
                unsafe { launch(gpu, &plan, &[("bands", from.0), ("rows", rows)]) }?;
            }
            if sizes.is_file {
                if rows != to.0 {
                    // SAFETY: the rows are there, and there is room for as many experts
                    unsafe { gpu.copy(to.0, rows, n * sizes.file) }?;
                }
            } else {
                let plan = Call::Repack { ty, n_rows: n * n_rows, n: n_row }.plan()?;
                // SAFETY: as above
                unsafe { launch(gpu, &plan, &[("file", rows), ("out", to.0)]) }?;
            }
            if linear.bias.is_some() {
                linear.bias = Some(to.1);
                // SAFETY: as above
                unsafe { gpu.copy(to.1, from.1, n * sizes.bias) }?;
            }
        }
        gpu.mark(&slab.left)?;
        Ok(here)
    }
}

/// The matrices of experts by the names that lenders know.
fn each(experts: &Experts) -> [(Matrix, &Weight); 3] {
    [(Matrix::Gate, &experts.gate), (Matrix::Up, &experts.up), (Matrix::Down, &experts.down)]
}
