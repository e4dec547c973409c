//! [`Slabs`]: memory of a GPU through which experts go that another device has.

use ikq_model::device::{LENT_ROWS, Lent, Matrix};
use ikq_model::network::{Experts, Weight};
use ikq_pool::Team;

use super::parts::{Ffn, Linear};
use crate::error::Error;
use crate::event::{Event, Stream};
use crate::floats::as_bytes;
use crate::gpu::Gpu;
use crate::memory::{Address, Arena, HostUse, Pinned, arena_bytes};
use crate::plan::Call;
use crate::products::launch;
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
pub fn most_bytes() -> usize {
    let says = std::env::var("IKQ_CUDA_SLAB_KIB").ok().and_then(|n| n.parse::<usize>().ok());
    says.map_or(SLAB, |kib| kib << 10)
}

/// Bytes of the matrix of an expert in the file, and in the device's form, and of its bias.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    file: usize,
    device: usize,
    bias: usize,
}

/// Where gate, up and down of so many experts lie, one matrix behind the other: in a slab, as in the file, and in the
/// device's form.
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
                device: weights::matrix_bytes(matrix.ty, matrix.n_rows, matrix.n)?,
                bias: linear.bias.map_or(0, |_| 4 * matrix.n_rows),
            })
        };
        let sizes = [of(&ffn.gate)?, of(&ffn.up)?, of(&ffn.down)?];
        let each: usize = sizes.iter().map(|s| s.file + s.bias).sum();
        let n_experts = (most / each.max(1)).clamp(1, ffn.n_experts.max(1));
        Ok(Layout { n_experts, sizes })
    }

    /// Bytes of a slab, and of the place for the device's form.
    fn bytes(&self) -> (usize, usize) {
        let all = |of: fn(&Sizes) -> [usize; 2]| {
            arena_bytes(self.sizes.iter().flat_map(of).map(|n| n * self.n_experts))
        };
        (all(|s| [s.file, s.bias]), all(|s| [s.device, s.bias]))
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
    let (slab, form) = most(layouts);
    2 * slab + form
}

fn most<'a>(layouts: impl Iterator<Item = &'a Layout>) -> (usize, usize) {
    layouts.map(Layout::bytes).fold((0, 0), |a, b| (a.0.max(b.0), a.1.max(b.1)))
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
}

/// Pinned memory that is being filled or copied from.
#[derive(Debug)]
struct Piece {
    pinned: Pinned,
    copied: Event,
}

impl Drop for Piece {
    fn drop(&mut self) {
        // the device may still copy from it
        let _ = self.copied.wait();
    }
}

/// Two slabs, which take turns, and one place for the device's form.
#[derive(Debug)]
pub struct Slabs {
    copies: Stream,
    slabs: [Slab; 2],
    form: Address,
    pieces: [Piece; 2],
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
        let (slab, form) = most(layouts.clone());
        let mut arena = Arena::new(gpu.context(), "experts on the way", bytes(layouts))?;
        let mut one = || {
            let (copied, left) = (Event::new(gpu.context())?, Event::new(gpu.context())?);
            Ok::<_, Error>(Slab { at: arena.take(slab)?, copied, left })
        };
        let slabs = [one()?, one()?];
        let form = arena.take(form)?;
        let piece = || {
            let pinned = Pinned::new(gpu.context(), slab.clamp(LEAST_PIECE, PIECE), HostUse::Writes)?;
            Ok::<_, Error>(Piece { pinned, copied: Event::new(gpu.context())? })
        };
        Ok(Slabs {
            copies: Stream::new(gpu.context())?,
            slabs,
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
        let slab = &self.slabs[self.next];
        self.copies.wait_for(&slab.left)?;
        let places = layout.places(slab.at, |s| s.file);
        for ((matrix, weight), (sizes, (at, bias))) in
            each(source.experts).into_iter().zip(layout.sizes.iter().zip(places))
        {
            self.send_rows(gpu, source, (matrix, weight), sizes.file, experts, at)?;
            if let Some(all) = &weight.bias {
                let of = |e: &usize| &all[e * weight.n_rows..(e + 1) * weight.n_rows];
                let list: Vec<f32> = experts.iter().flat_map(of).copied().collect();
                self.send_piece(gpu, bias, 4 * list.len(), |to| to.copy_from_slice(as_bytes(&list)))?;
            }
        }
        self.copies.mark(&self.slabs[self.next].copied)
    }

    /// Copies the matrices of experts, one behind the other.
    fn send_rows(
        &mut self,
        gpu: &Gpu,
        source: &Source<'_>,
        (matrix, weight): (Matrix, &Weight),
        bytes: usize,
        experts: &[usize],
        at: Address,
    ) -> Result<(), Error> {
        let row = bytes / weight.n_rows.max(1);
        let rows_of_unit = (UNIT / row.max(1)).next_multiple_of(LENT_ROWS).max(LENT_ROWS);
        let of_expert = |e: &usize| {
            let e = *e;
            (0..weight.n_rows).step_by(rows_of_unit).map(move |first| (e, first))
        };
        let units: Vec<(usize, usize)> = experts.iter().flat_map(of_expert).collect();
        let n_rows = |first: usize| rows_of_unit.min(weight.n_rows - first);
        let most = self.pieces[0].pinned.size().max(rows_of_unit * row);
        let (mut at, mut rest) = (at, units.as_slice());
        while !rest.is_empty() {
            let mut n_bytes = 0;
            let fits = |(_, first): &&(usize, usize)| {
                n_bytes += n_rows(*first) * row;
                n_bytes <= most
            };
            let n = rest.iter().take_while(fits).count();
            let (now, behind) = rest.split_at(n);
            rest = behind;
            let n_bytes: usize = now.iter().map(|(_, first)| n_rows(*first) * row).sum();
            self.send_piece(gpu, at, n_bytes, |mut to| {
                let mut work = Vec::with_capacity(now.len());
                for &(expert, first) in now {
                    let n_rows = n_rows(first);
                    let (mine, behind) = to.split_at_mut(n_rows * row);
                    to = behind;
                    work.push(Unit { matrix, expert, first, n_rows, to: mine });
                }
                source.team.for_each(&mut work, |unit, _| {
                    let rows = unit.first..unit.first + unit.n_rows;
                    (source.lent)(unit.matrix, unit.expert, rows, unit.to);
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
        let from = layout.places(slab.at, |s| s.file);
        let to = layout.places(self.form, |s| s.device);
        let mut here = Ffn { n_experts: n, ..*ffn };
        let linears = [&mut here.gate, &mut here.up, &mut here.down];
        for (linear, ((from, to), sizes)) in linears.into_iter().zip(from.iter().zip(&to).zip(&layout.sizes))
        {
            linear.matrix.at = to.0;
            let n_rows = n * linear.matrix.n_rows;
            let plan = Call::Repack { ty: linear.matrix.ty, n_rows, n: linear.matrix.n }.plan()?;
            // SAFETY: the slab has the rows, and there is room for as many experts
            unsafe { launch(gpu, &plan, &[("file", from.0), ("out", to.0)]) }?;
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
