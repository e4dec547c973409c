//! [`ColumnData`]: what kernels need to know about the columns of a batch, such as positions, places in the KV
//! cache and angles. It is sent to the device in one copy per step.

use std::sync::Arc;

use ikq_model::batch::{Batch, NO_PAGE, PAGE, Run};
use ikq_model::network::{Attention, Network, RopeTable};

use super::graphs;
use super::host::Host;
use super::parts::Parts;
use crate::error::Error;
use crate::gpu::{Gpu, tiles_from};
use crate::memory::{ALIGNMENT, Address, Arena};
use crate::plan::{HeadTile, MOST_GRID};
use crate::products::Sorted;

/// Positions of a split of attention. How a column is split does not depend on the other columns of the step.
pub const SPAN: usize = PAGE;
/// The same in tiles, where a step has so many columns that products are computed in tiles: then there are enough blocks
/// without short splits, whose results are written and read again.
const LONG_SPAN: usize = 4 * PAGE;
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
    /// Splits of attention in tiles: how many, and the positions of each, which begin at multiples of that number.
    pub tile_splits: usize,
    pub tile_span: usize,
}

/// The columns of a step.
#[derive(Default)]
pub struct ColumnData {
    arena: Option<(Arena, Address)>,
    pieces: Pieces,
    partial: Option<(Arena, Address)>,
}

/// Where the pieces of the copy are; offsets until they are sent.
#[derive(Clone, Default)]
struct Pieces {
    groups: Vec<Group>,
    runs: Address,
    run_of: Address,
    angles: Vec<Address>,
    zeros: Address,
    heads: Address,
    by_head: Sorted,
    not_finite: Address,
}

/// The bytes of the copy, to which pieces are appended.
#[derive(Default)]
struct Packed(Vec<u8>);

impl Packed {
    /// Appends numbers. Returns their offset.
    fn add<const N: usize>(&mut self, numbers: impl Iterator<Item = [u8; N]>) -> Address {
        self.0.resize(self.0.len().next_multiple_of(ALIGNMENT), 0);
        let at = self.0.len();
        numbers.for_each(|n| self.0.extend(n));
        Address(at as u64)
    }

    /// All that the stages of `parts` need to know about a batch.
    fn new((network, parts, ropes): Of<'_>, batch: &Batch, tile_span: usize) -> (Packed, Pieces) {
        let n = batch.n();
        let mut packed = Packed::default();
        let runs = batch.runs.iter().flat_map(|run| {
            // states of sequences without recurrent layers are not read
            [run.columns.start, run.first, run.columns.len(), run.state.unwrap_or(0) as usize]
        });
        // room for as many runs as columns: what a step takes must not depend on whose they are
        let runs = runs.chain(std::iter::repeat(0)).take(4 * n);
        let run_of = batch.runs.iter().enumerate();
        let run_of = run_of.flat_map(|(i, run)| run.columns.clone().map(move |_| i as i32));
        let n_heads = latent_heads(attention_of(network, parts));
        let (heads, bounds, list) = heads_of_columns(n, n_heads);
        let mut add = |numbers: Vec<i32>| packed.add(numbers.into_iter().map(i32::to_le_bytes));
        let heads = add(heads);
        let by_head = Sorted { bounds: add(bounds), list: add(list), n_experts: n_heads, n_pairs: None };
        let mut pieces = Pieces {
            heads,
            by_head,
            zeros: packed.add((0..n).map(|_| 0i32.to_le_bytes())),
            not_finite: packed.add((0..n).map(|_| (-1i32).to_le_bytes())),
            runs: packed.add(runs.map(|n| (n as i32).to_le_bytes())),
            run_of: packed.add(run_of.map(i32::to_le_bytes)),
            ..Pieces::default()
        };
        if attention_of(network, parts).next().is_some() {
            let groups = network.groups.iter().enumerate();
            pieces.groups =
                groups.map(|(g, x)| Group::pack(&mut packed, batch, (g, x.window), tile_span)).collect();
            let mut row = Vec::new();
            for rope in ropes {
                row.resize(rope.n_rot(), 0.0);
                let mut all = Vec::with_capacity(n * row.len());
                for position in &batch.positions {
                    rope.cos_sin(*position, &mut row);
                    all.extend_from_slice(&row);
                }
                pieces.angles.push(packed.add(all.iter().map(|v: &f32| v.to_le_bytes())));
            }
        }
        (packed, pieces)
    }
}

/// A network, the parts of it that a device has, and the tables of its rotary embeddings.
pub type Of<'a> = (&'a Network, &'a Parts, &'a [RopeTable]);

/// The attention of the layers whose cache a device has, and the group of each.
fn attention_of<'a>(
    network: &'a Network,
    parts: &'a Parts,
) -> impl Iterator<Item = (&'a Attention, Option<usize>)> {
    let layers = parts.attention.iter().zip(&network.layers);
    layers.filter(|(a, _)| a.is_some_and(|a| a.is_cached)).map(|(_, layer)| (&layer.attention, layer.group))
}

/// Bytes that are allocated where so many are needed: more, so that memory is allocated seldom while texts grow.
fn grown(bytes: usize) -> usize {
    bytes + bytes / 4
}

impl ColumnData {
    /// Sends what the stages of a device need to know about a batch.
    ///
    /// # Errors
    /// Errors of the driver.
    pub fn send(&mut self, gpu: &Gpu, host: &mut Host, of: Of<'_>, batch: &Batch) -> Result<(), Error> {
        let (Packed(packed), pieces) = Packed::new(of, batch, tile_span(batch.n(), gpu.tiles_from()));
        if self.arena.as_ref().is_none_or(|(arena, _)| arena.size() < packed.len()) {
            self.arena = None; // frees the old one before another is allocated
            let mut arena = Arena::new(gpu.context(), "columns", grown(packed.len()))?;
            let at = arena.take(packed.len())?;
            self.arena = Some((arena, at));
        }
        let Some((_, base)) = &self.arena else { return Ok(()) };
        // SAFETY: the arena is as large
        unsafe { host.send(gpu, *base, &packed) }?;
        self.pieces = pieces.moved(*base);
        let bytes = splits_bytes(of, &self.pieces.groups, batch.n());
        if self.partial.as_ref().map_or(0, |(arena, _)| arena.size()) < bytes {
            self.partial = None; // frees the old one before another is allocated
            let mut arena = Arena::new(gpu.context(), "attention", bytes)?;
            let at = arena.take(bytes)?;
            self.partial = Some((arena, at));
        }
        Ok(())
    }

    /// Bytes that [`ColumnData::send`] allocates at most for `n` columns of texts of at most `n_ctx` tokens.
    ///
    /// # Errors
    /// [`Error::Variable`].
    pub fn most_bytes(of: Of<'_>, n: usize, n_ctx: usize) -> Result<usize, Error> {
        let tiles_from = tiles_from()?;
        // of what no memory holds only the size of the page numbers is told, at least: laying it out would take as much
        let numbers = n.saturating_mul(n_ctx.div_ceil(PAGE).saturating_mul(of.0.groups.len().max(1)).max(1));
        if numbers > 1 << 28 {
            return Ok(numbers.saturating_mul(size_of::<u32>()));
        }
        // a step that is recorded may have more page numbers and splits than a larger one
        let sizes = [n, n.min(graphs::MOST_COLUMNS)].map(|n| {
            let batch = latest(n, n_ctx, of.0.groups.len());
            let (Packed(packed), pieces) = Packed::new(of, &batch, tile_span(n, tiles_from));
            (grown(packed.len()), splits_bytes(of, &pieces.groups, n))
        });
        let most = |of: fn(&(usize, usize)) -> usize| sizes.iter().map(of).max().unwrap_or(0);
        Ok(most(|s| s.0) + most(|s| s.1))
    }

    /// For each group the page numbers of a column, and the splits of attention without tiles and in tiles.
    pub fn shapes(&self) -> Vec<[usize; 3]> {
        self.pieces.groups.iter().map(|g| [g.max_pages, g.n_splits, g.tile_splits]).collect()
    }

    pub fn group(&self, group: usize) -> &Group {
        &self.pieces.groups[group]
    }

    /// For each run of the batch four numbers: its first column, the position of that, how many columns it has, and
    /// its state.
    pub fn runs(&self) -> Address {
        self.pieces.runs
    }

    /// For each column the number of its run.
    pub fn run_of(&self) -> Address {
        self.pieces.run_of
    }

    /// Cosines and sines of a rotary embedding, `n_rot` per column.
    pub fn angles(&self, rope: usize) -> Address {
        self.pieces.angles[rope]
    }

    /// A zero per column.
    pub fn zeros(&self) -> Address {
        self.pieces.zeros
    }

    /// For latent attention: the numbers 0, 1, ... of all heads, for each column.
    pub fn heads(&self) -> Address {
        self.pieces.heads
    }

    /// For latent attention: pairs of a column and a head, sorted by head.
    pub fn by_head(&self) -> Sorted {
        self.pieces.by_head
    }

    /// For each column the number of a layer whose router's scores were not finite, or -1.
    pub fn not_finite(&self) -> Address {
        self.pieces.not_finite
    }

    /// Where the results of splits are written, and for how many columns at a time there is room.
    pub fn partial(&self, n_head: usize, n_v: usize, n_splits: usize) -> (Address, usize) {
        match &self.partial {
            Some((arena, at)) => (*at, arena.size() / partial_bytes(n_head, n_v, n_splits)),
            None => (Address::default(), 0),
        }
    }
}

/// Positions of a split of attention in tiles, in steps of `n` columns.
fn tile_span(n: usize, tiles_from: usize) -> usize {
    if n >= tiles_from { LONG_SPAN } else { SPAN }
}

fn partial_bytes(n_head: usize, n_v: usize, n_splits: usize) -> usize {
    4 * n_head * n_splits * (n_v + 2)
}

/// Bytes of the results of splits: of all columns, or of as many as fit [`PARTIAL`], but at least of one.
fn splits_bytes((network, parts, _): Of<'_>, groups: &[Group], n: usize) -> usize {
    let per_column = attention_of(network, parts).filter_map(|(attention, group)| {
        let n_splits = groups[group?].most_splits();
        match attention {
            Attention::Gqa(a) => Some(partial_bytes(a.n_head, a.head_dim_v, n_splits)),
            Attention::Mla(a) => Some(partial_bytes(a.n_head, a.kv_rank, n_splits)),
            Attention::DeltaNet(_) => None,
        }
    });
    let most = per_column.max().unwrap_or(0);
    (most * n).min(PARTIAL).max(most)
}

/// The batch of `n` columns of which there is most to tell: texts that end at position `n_ctx`.
fn latest(n: usize, n_ctx: usize, n_groups: usize) -> Batch {
    let n_ctx = n_ctx.max(1);
    let table: Arc<[u32]> = vec![0; n_ctx.div_ceil(PAGE)].into();
    let mut batch = Batch { tokens: vec![0; n], ..Batch::default() };
    while batch.positions.len() < n {
        let at = batch.positions.len();
        let length = n_ctx.min(n - at);
        let first = n_ctx - length;
        batch.positions.extend((first..first + length).map(|p| p as u32));
        let tables = vec![table.clone(); n_groups];
        batch.runs.push(Run { columns: at..at + length, first, tables, state: None });
    }
    batch
}

/// The heads of latent attention, of which all layers of a model have as many; 0 if there is none.
fn latent_heads<'a>(attention: impl Iterator<Item = (&'a Attention, Option<usize>)>) -> usize {
    let n_heads =
        attention.filter_map(|(a, _)| if let Attention::Mla(a) = a { Some(a.n_head) } else { None });
    n_heads.max().unwrap_or(0)
}

/// For `n` columns of so many heads each, pairs of a column and a head: the head of each pair, and the pairs sorted by
/// head, as bounds and a list.
fn heads_of_columns(n: usize, n_heads: usize) -> (Vec<i32>, Vec<i32>, Vec<i32>) {
    let number = |n: usize| n as i32;
    let heads = (0..n * n_heads).map(|pair| number(pair % n_heads)).collect();
    let bounds = (0..=n_heads).map(|head| number(head * n)).collect();
    let list = (0..n_heads).flat_map(|head| (0..n).map(move |column| number(column * n_heads + head)));
    (heads, bounds, list.collect())
}

impl Pieces {
    fn moved(self, base: Address) -> Pieces {
        let at = |offset: Address| Address(base.0 + offset.0);
        Pieces {
            groups: self.groups.into_iter().map(|g| g.moved(base)).collect(),
            runs: at(self.runs),
            run_of: at(self.run_of),
            angles: self.angles.into_iter().map(at).collect(),
            zeros: at(self.zeros),
            heads: at(self.heads),
            by_head: Sorted { bounds: at(self.by_head.bounds), list: at(self.by_head.list), ..self.by_head },
            not_finite: at(self.not_finite),
        }
    }
}

impl Group {
    /// Appends a group's data; the result has offsets instead of addresses.
    fn pack(
        packed: &mut Packed,
        batch: &Batch,
        (group, window): (usize, Option<usize>),
        tile_span: usize,
    ) -> Group {
        let tables = || batch.runs.iter().map(|run| (run, &run.tables[group]));
        // numbers that grow while texts do are rounded up, so that steps keep their shape
        let is_recorded = batch.n() <= graphs::MOST_COLUMNS;
        let rounded = |n: usize| if is_recorded { n.next_power_of_two() } else { n };
        let max_pages = rounded(tables().map(|(_, t)| t.len()).max().unwrap_or(1).max(1));
        let (mut slots, mut first, mut end, mut pages) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let (mut n_splits, mut tile_splits) = (1, 1);
        // so many positions that begin anywhere lie in at most as many splits
        let seen_by_tile = window.map_or(usize::MAX, |window| window + HeadTile::MOST_COLUMNS - 1);
        let most_of_tile = (seen_by_tile - 1) / tile_span + 2;
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
                tile_splits = tile_splits.max((position / tile_span + 1).min(most_of_tile));
            }
        }
        let mut add = |numbers: Vec<i32>| packed.add(numbers.into_iter().map(i32::to_le_bytes));
        let (slots, first, end, pages) = (add(slots), add(first), add(end), add(pages));
        let [n_splits, tile_splits] = [n_splits, tile_splits].map(|n| rounded(n).min(MOST_GRID));
        Group { slots, first, end, pages, max_pages, n_splits, tile_splits, tile_span }
    }

    fn most_splits(&self) -> usize {
        self.n_splits.max(self.tile_splits)
    }

    fn moved(self, base: Address) -> Group {
        let at = |offset: Address| Address(base.0 + offset.0);
        let (slots, first, end, pages) = (at(self.slots), at(self.first), at(self.end), at(self.pages));
        Group { slots, first, end, pages, ..self }
    }
}
