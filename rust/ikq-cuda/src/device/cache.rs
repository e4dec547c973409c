//! Pages of the KV cache on the device; `cuda/cache.cuh` describes their layout.

use ikq_formats::QuantType;
use ikq_model::batch::PAGE;
use ikq_model::network::Attention;

use super::parts::Kind;
use super::states::States;
use crate::error::Error;
use crate::gpu::Gpu;
use crate::memory::{Address, Arena, arena_bytes};
use crate::plan::{Call, FloatType, Heads, Runs, Turn, TurnRows, device_row_bytes};
use crate::products::launch;

/// How keys and values are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheForm {
    pub keys: QuantType,
    pub values: QuantType,
    /// Whether rows of keys, and those of values, are turned by a Hadamard matrix. Latent rows count as keys.
    pub turns_keys: bool,
    pub turns_values: bool,
}

/// The rows of keys or of values of a layer.
#[derive(Debug)]
pub struct Rows {
    pub ty: QuantType,
    pub n_heads: usize,
    /// Elements of a row, and bytes of a row.
    pub n: usize,
    /// How rows are turned by a Hadamard matrix, if they are.
    pub runs: Option<Runs>,
    row_bytes: usize,
    arena: Option<Arena>,
    at: Address,
    n_pages: usize,
}

/// The rotation that keys get when they are moved to earlier positions.
#[derive(Clone, Copy, Debug)]
pub struct Back {
    pub turn: Turn,
    /// Cosines and sines; they are the same for all rows, but repeated for each.
    pub cos_sin: Address,
}

impl Rows {
    /// Rows of two parts, the second of which may have no elements, and whether they are turned; those of sizes that
    /// have no turn stay as they are.
    fn new(ty: QuantType, n_heads: usize, (first, rest): (usize, usize), turns: bool) -> Result<Rows, Error> {
        let n = first + rest;
        let runs = Runs::of_parts(first, rest).filter(|_| turns);
        let row_bytes = device_row_bytes(ty, n)?;
        Ok(Rows { ty, n_heads, n, runs, row_bytes, arena: None, at: Address::default(), n_pages: 0 })
    }

    pub fn page_bytes(&self) -> usize {
        self.n_heads * PAGE * self.row_bytes
    }

    pub fn n_pages(&self) -> usize {
        self.n_pages
    }

    /// The address of the first page.
    pub fn at(&self) -> Address {
        self.at
    }

    fn page(&self, page: u32) -> Address {
        self.at.offset(page as usize * self.page_bytes())
    }

    /// Makes room for pages `0..n`; the content of pages is kept.
    fn reserve(&mut self, gpu: &Gpu, n: usize) -> Result<(), Error> {
        if n <= self.n_pages {
            return Ok(());
        }
        let mut arena = Arena::new(gpu.context(), "the cache", n * self.page_bytes())?;
        let at = arena.take(n * self.page_bytes())?;
        // SAFETY: both addresses have at least as many pages
        unsafe { gpu.copy(at, self.at, self.n_pages * self.page_bytes()) }?;
        gpu.wait()?; // the old pages go
        (self.arena, self.at, self.n_pages) = (Some(arena), at, n);
        Ok(())
    }

    /// The index of a head's row at a place among the rows of all pages.
    fn row(&self, (page, slot): (u32, usize), head: usize) -> usize {
        (page as usize * self.n_heads + head) * PAGE + slot
    }

    /// Copies `n` neighbouring rows of all heads to another place, which may overlap. `scratch` has room for these
    /// rows of one head.
    fn move_plain(
        &self,
        gpu: &Gpu,
        from: (u32, usize),
        to: (u32, usize),
        n: usize,
        scratch: Address,
    ) -> Result<(), Error> {
        let bytes = n * self.row_bytes;
        for head in 0..self.n_heads {
            let at = |place| self.at.offset(self.row(place, head) * self.row_bytes);
            // SAFETY: rows of pages that there are
            unsafe {
                gpu.copy(scratch, at(from), bytes)?;
                gpu.copy(at(to), scratch, bytes)?;
            }
        }
        Ok(())
    }
}

/// What a layer remembers: keys and values, or the compressed vectors that are both; or the states of a recurrent
/// layer.
#[derive(Debug)]
pub struct LayerCache {
    pub rows: Vec<Rows>,
    pub states: Option<States>,
}

impl LayerCache {
    /// # Errors
    /// [`Error::Plan`] when a head does not fit a type.
    pub fn new(attention: &Attention, kind: &Kind, form: CacheForm) -> Result<LayerCache, Error> {
        let rows = match attention {
            Attention::Gqa(a) => vec![
                Rows::new(form.keys, a.n_head_kv, (a.head_dim, 0), form.turns_keys)?,
                Rows::new(form.values, a.n_head_kv, (a.head_dim_v, 0), form.turns_values)?,
            ],
            Attention::Mla(a) => vec![Rows::new(form.keys, 1, (a.kv_rank, a.rope.n_rot), form.turns_keys)?],
            Attention::DeltaNet(_) => Vec::new(),
        };
        let states = match kind {
            Kind::DeltaNet(a) => Some(States::new(a.sizes)),
            Kind::Gqa(_) | Kind::Mla(_) => None,
        };
        Ok(LayerCache { rows, states })
    }

    pub fn page_bytes(&self) -> usize {
        self.rows.iter().map(Rows::page_bytes).sum()
    }

    /// Bytes that its pages and states take.
    pub fn bytes(&self) -> usize {
        let pages: usize = self.rows.iter().map(|rows| rows.n_pages() * rows.page_bytes()).sum();
        pages + self.states.as_ref().map_or(0, |s| s.n() * s.bytes())
    }

    pub fn n_pages(&self) -> usize {
        self.rows.iter().map(Rows::n_pages).min().unwrap_or(0)
    }

    pub fn reserve(&mut self, gpu: &Gpu, n: usize) -> Result<(), Error> {
        self.rows.iter_mut().try_for_each(|rows| rows.reserve(gpu, n))
    }

    pub fn copy_page(&self, gpu: &Gpu, from: u32, to: u32) -> Result<(), Error> {
        for rows in &self.rows {
            // SAFETY: the caller reserved both pages
            unsafe { gpu.copy(rows.page(to), rows.page(from), rows.page_bytes()) }?;
        }
        Ok(())
    }

    /// Moves `n` rows of keys and values to another place. Keys (or compressed vectors) are rotated by `back`.
    /// `scratch` has [`LayerCache::move_bytes`] bytes, which are in use until the device has done its work.
    pub fn move_rows(
        &self,
        gpu: &Gpu,
        (from, to, n): ((u32, usize), (u32, usize), usize),
        back: Option<Back>,
        scratch: Address,
    ) -> Result<(), Error> {
        for (i, rows) in self.rows.iter().enumerate() {
            match back.filter(|_| i == 0) {
                Some(back) => rows.move_turned(gpu, (from, to, n), back, scratch)?,
                None => rows.move_plain(gpu, from, to, n, scratch)?,
            }
        }
        Ok(())
    }

    /// Bytes that moving `n` rows takes besides the cache.
    pub fn move_bytes(&self, n: usize) -> usize {
        let most = self.rows.iter().map(|rows| (n * rows.row_bytes).max(arena_bytes(rows.turned_pieces(n))));
        most.max().unwrap_or(0)
    }

    /// Appends the bytes of a page to `out`.
    pub fn export_page(&self, gpu: &Gpu, page: u32, out: &mut Vec<u8>) -> Result<(), Error> {
        for rows in &self.rows {
            let first = out.len();
            out.resize(first + rows.page_bytes(), 0);
            // SAFETY: there is such a page
            unsafe { gpu.copy_out(&mut out[first..], rows.page(page)) }?;
        }
        Ok(())
    }

    pub fn import_page(&self, gpu: &Gpu, page: u32, mut bytes: &[u8]) -> Result<(), Error> {
        for rows in &self.rows {
            let (mine, rest) = bytes.split_at(rows.page_bytes());
            // SAFETY: there is such a page
            unsafe { gpu.copy_in(rows.page(page), mine) }?;
            bytes = rest;
        }
        Ok(())
    }
}

impl Rows {
    /// Bytes of the pieces that turning `n` rows takes: numbers of rows and of slots, and floats.
    fn turned_pieces(&self, n: usize) -> [usize; 2] {
        let n_rows = n * self.n_heads;
        [4 * (n_rows + n), 4 * n_rows * self.n]
    }

    /// Decodes rows, rotates them, and stores them at another place.
    fn move_turned(
        &self,
        gpu: &Gpu,
        (from, to, n): ((u32, usize), (u32, usize), usize),
        back: Back,
        scratch: Address,
    ) -> Result<(), Error> {
        let n_rows = n * self.n_heads;
        let rows =
            (0..n).flat_map(|i| (0..self.n_heads).map(move |h| self.row((from.0, from.1 + i), h) as i32));
        let slots = (0..n).map(|i| (to.0 as usize * PAGE + to.1 + i) as i32);
        let numbers: Vec<i32> = rows.chain(slots).collect();
        let [first, _] = self.turned_pieces(n);
        let (places, floats) = (scratch.offset(4 * n_rows), scratch.offset(arena_bytes([first])));
        let decode =
            Call::Dequantize { ty: self.ty, to: FloatType::F32, n_rows, n: self.n, chosen: true }.plan()?;
        let store = Call::Heads(Heads {
            ty: self.ty,
            n_columns: n,
            n_heads: self.n_heads,
            n: self.n,
            stride: self.n_heads * self.n,
            head_stride: self.n,
            norm: None,
            eps: 0.0,
            turn: Some(back.turn),
            out: None,
            cached: true,
            runs: self.runs,
        })
        .plan()?;
        let undo = self.runs.map(|runs| TurnRows { n_rows, n: self.n, runs, back: true });
        let undo = undo.map(|turn| Call::TurnRows(turn).plan()).transpose()?;
        // SAFETY: pieces have the sizes of what is in them; rows and slots are in pages that there are
        unsafe {
            gpu.copy_in_floats(scratch, &numbers)?;
            launch(gpu, &decode, &[("w", self.at), ("rows", scratch), ("out", floats)])?;
            if let Some(undo) = undo {
                launch(gpu, &undo, &[("x", floats)])?;
            }
            let cache = [("x", floats), ("cos_sin", back.cos_sin), ("cache", self.at), ("slots", places)];
            launch(gpu, &store, &cache)
        }
    }
}
