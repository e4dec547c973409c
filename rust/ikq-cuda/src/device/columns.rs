//! [`ColumnData`]: what kernels need to know about the columns of a batch, such as positions, places in the KV
//! cache and angles. It is sent to the device in one copy per step.

use ikq_model::batch::{Batch, NO_PAGE, PAGE};
use ikq_model::network::{Network, RopeTable};

use super::parts::{Kind, Parts};
use crate::error::Error;
use crate::gpu::Gpu;
use crate::memory::{ALIGNMENT, Address, Arena};

/// Positions of a split of attention. How a column is split does not depend on the other columns of the step.
pub const SPAN: usize = PAGE;
/// About how many bytes the results of splits may take at a time.
const PARTIAL: usize = 64 << 20;

/// Data about the columns for the layers of one group, which share tables of pages.
#[derive(Clone, Copy, Debug)]
pub struct Group {
    /// One number per column each: the slot where its rows are stored, and the first position that it sees and the
    /// end of these positions.
    pub slots: Address,
    pub first: Address,
    pub end: Address,
    /// The page numbers of each column, `max_pages` of them; -1 where there is no page.
    pub pages: Address,
    pub max_pages: usize,
    pub n_splits: usize,
}

/// The columns of a step.
#[derive(Default)]
pub struct ColumnData {
    arena: Option<(Arena, Address)>,
    groups: Vec<Group>,
    runs: Address,
    run_of: Address,
    angles: Vec<Address>,
    zeros: Address,
    heads: Address,
    not_finite: Address,
    partial: Option<(Arena, Address)>,
}

/// The bytes of the copy, to which pieces are appended.
#[derive(Default)]
struct Packed(Vec<u8>);

impl Packed {
    /// Appends numbers. Returns their offset.
    fn add<const N: usize>(&mut self, numbers: impl Iterator<Item = [u8; N]>) -> usize {
        self.0.resize(self.0.len().next_multiple_of(ALIGNMENT), 0);
        let at = self.0.len();
        numbers.for_each(|n| self.0.extend(n));
        at
    }
}

impl ColumnData {
    /// Sends what the stages of `parts` need to know about a batch.
    ///
    /// # Errors
    /// Errors of the driver.
    pub fn send(
        &mut self,
        gpu: &Gpu,
        (network, parts, ropes): (&Network, &Parts, &[RopeTable]),
        batch: &Batch,
    ) -> Result<(), Error> {
        let n = batch.n();
        let mut packed = Packed::default();
        let zeros = packed.add((0..n).map(|_| 0i32.to_le_bytes()));
        let not_finite = packed.add((0..n).map(|_| (-1i32).to_le_bytes()));
        let attention = || parts.attention.iter().flatten();
        let most_heads =
            attention().filter_map(|a| if let Kind::Mla(a) = &a.kind { Some(a.n_head) } else { None });
        let heads = packed.add(latent_heads(n, most_heads));
        let runs = batch.runs.iter().flat_map(|run| {
            // states of sequences without recurrent layers are not read
            [run.columns.start, run.first, run.columns.len(), run.state.unwrap_or(0) as usize]
        });
        let runs = packed.add(runs.map(|n| (n as i32).to_le_bytes()));
        let run_of = batch.runs.iter().enumerate();
        let run_of = run_of.flat_map(|(i, run)| run.columns.clone().map(move |_| i as i32));
        let run_of = packed.add(run_of.map(i32::to_le_bytes));
        let (mut groups, mut angles) = (Vec::new(), Vec::new());
        if attention().next().is_some() {
            groups = (0..network.groups.len())
                .map(|g| Group::pack(&mut packed, batch, g, network.groups[g].window))
                .collect();
            let mut row = Vec::new();
            for rope in ropes {
                row.resize(rope.n_rot(), 0.0);
                let mut all = Vec::with_capacity(n * row.len());
                for position in &batch.positions {
                    rope.cos_sin(*position, &mut row);
                    all.extend_from_slice(&row);
                }
                angles.push(packed.add(all.iter().map(|v: &f32| v.to_le_bytes())));
            }
        }
        let bytes = packed.0.len();
        if self.arena.as_ref().is_none_or(|(arena, _)| arena.size() < bytes) {
            self.arena = None; // frees the old one before another is allocated
            let mut arena = Arena::new(gpu.context(), "columns", bytes + bytes / 4)?;
            let at = arena.take(bytes)?;
            self.arena = Some((arena, at));
        }
        let Some((_, base)) = &self.arena else { return Ok(()) };
        // SAFETY: the arena is as large
        unsafe { gpu.copy_in(*base, &packed.0) }?;
        let at = |offset: usize| base.offset(offset);
        self.groups = groups.iter().map(|g| g.moved(*base)).collect();
        self.angles = angles.into_iter().map(at).collect();
        (self.runs, self.run_of) = (at(runs), at(run_of));
        (self.zeros, self.heads, self.not_finite) = (at(zeros), at(heads), at(not_finite));
        self.make_partial(gpu, network, parts, n)
    }

    /// Makes room for the results of splits, for at least one column at a time.
    fn make_partial(&mut self, gpu: &Gpu, network: &Network, parts: &Parts, n: usize) -> Result<(), Error> {
        let layers = parts.attention.iter().zip(&network.layers);
        let per_column = layers.filter_map(|(a, layer)| {
            let (n_head, n_v) = match &a.as_ref()?.kind {
                Kind::Gqa(a) => (a.n_head, a.head_dim_v),
                Kind::Mla(a) => (a.n_head, a.kv_rank),
                Kind::DeltaNet(_) => return None,
            };
            Some(partial_bytes(n_head, n_v, self.groups[layer.group?].n_splits))
        });
        let most = per_column.max().unwrap_or(0);
        let bytes = (most * n).min(PARTIAL).max(most);
        if self.partial.as_ref().map_or(0, |(arena, _)| arena.size()) < bytes {
            self.partial = None; // frees the old one before another is allocated
            let mut arena = Arena::new(gpu.context(), "attention", bytes)?;
            let at = arena.take(bytes)?;
            self.partial = Some((arena, at));
        }
        Ok(())
    }

    pub fn group(&self, group: usize) -> &Group {
        &self.groups[group]
    }

    /// For each run of the batch four numbers: its first column, the position of that, how many columns it has, and
    /// its state.
    pub fn runs(&self) -> Address {
        self.runs
    }

    /// For each column the number of its run.
    pub fn run_of(&self) -> Address {
        self.run_of
    }

    /// Cosines and sines of a rotary embedding, `n_rot` per column.
    pub fn angles(&self, rope: usize) -> Address {
        self.angles[rope]
    }

    /// A zero per column.
    pub fn zeros(&self) -> Address {
        self.zeros
    }

    /// For latent attention: the numbers 0, 1, ... of all heads, for each column.
    pub fn heads(&self) -> Address {
        self.heads
    }

    /// For each column the number of a layer whose router's scores were not finite, or -1.
    pub fn not_finite(&self) -> Address {
        self.not_finite
    }

    /// Where the results of splits are written, and for how many columns at a time there is room.
    pub fn partial(&self, n_head: usize, n_v: usize, n_splits: usize) -> (Address, usize) {
        match &self.partial {
            Some((arena, at)) => (*at, arena.size() / partial_bytes(n_head, n_v, n_splits)),
            None => (Address::default(), 0),
        }
    }
}

fn partial_bytes(n_head: usize, n_v: usize, n_splits: usize) -> usize {
    4 * n_head * n_splits * (n_v + 2)
}

/// The numbers of all heads, for each of `n` columns. All layers of a model with latent attention have as many
/// heads.
fn latent_heads(n: usize, n_heads: impl Iterator<Item = usize>) -> impl Iterator<Item = [u8; 4]> {
    let n_heads = n_heads.max().unwrap_or(0);
    (0..n * n_heads).map(move |i| ((i % n_heads) as i32).to_le_bytes())
}

impl Group {
    /// Appends a group's data; the result has offsets instead of addresses.
    fn pack(packed: &mut Packed, batch: &Batch, group: usize, window: Option<usize>) -> Group {
        let tables = || batch.runs.iter().map(|run| (run, &run.tables[group]));
        let max_pages = tables().map(|(_, t)| t.len()).max().unwrap_or(1).max(1);
        let (mut slots, mut first, mut end, mut pages) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut n_splits = 1;
        for (run, table) in tables() {
            let row: Vec<i32> = (0..max_pages)
                .map(|i| table.get(i).filter(|p| **p != NO_PAGE).map_or(-1, |p| *p as i32))
                .collect();
            for position in run.first..run.first + run.columns.len() {
                let seen_from = (position + 1).saturating_sub(window.unwrap_or(usize::MAX));
                slots.push(row[position / PAGE] * PAGE as i32 + (position % PAGE) as i32);
                first.push(seen_from as i32);
                end.push(position as i32 + 1);
                pages.extend_from_slice(&row);
                n_splits = n_splits.max((position + 1 - seen_from).div_ceil(SPAN));
            }
        }
        let mut add = |numbers: Vec<i32>| {
            let at = packed.add(numbers.into_iter().map(i32::to_le_bytes));
            Address(at as u64)
        };
        let (slots, first, end, pages) = (add(slots), add(first), add(end), add(pages));
        Group { slots, first, end, pages, max_pages, n_splits }
    }

    fn moved(self, base: Address) -> Group {
        let at = |offset: Address| Address(base.0 + offset.0);
        let (slots, first, end, pages) = (at(self.slots), at(self.first), at(self.end), at(self.pages));
        Group { slots, first, end, pages, ..self }
    }
}
