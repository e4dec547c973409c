//! [`Pages`]: keys or values of one layer, in pages that sequences share.
//!
//! A page holds [`PAGE`] positions of all heads, head after head; a head's positions stand in groups of 64. Within a
//! group there are two orders:
//! - *rows*: a position's elements side by side. Values are read so.
//! - *lanes*: positions side by side (`lanes` says how). Keys are stored so.
//!
//! Rows of floats and halves are filled up to a multiple of sixteen elements, which kernels then read whole.

use std::ops::Range;
use std::sync::Arc;

use ikq_simd::IsaKind;

use super::encode::{decode, encode};
use super::hadamard::Rotation;
use super::lanes::{self, LANES, VECTOR};
use super::scale::Fit;
use super::types::{CacheError, CacheType};

/// Positions of a page.
pub const PAGE: usize = 256;
/// Stands in a sequence's table for a page that no one reads any more.
pub const NO_PAGE: u32 = u32::MAX;
/// Pages start where cache lines do.
const ALIGN: usize = 64;

/// What a page holds: heads, row length, type, order. Bytes of pages may be copied between pages of equal shapes.
#[derive(Clone, Debug, PartialEq)]
pub struct PageShape {
    ty: CacheType,
    n_head: usize,
    d: usize,
    /// For latent rows, which are key and value at once: how many elements at a row's beginning are the value.
    rank: Option<usize>,
    in_lanes: bool,
    row_bytes: usize,
    rotation: Option<Rotation>,
    fit: Fit,
}

impl PageShape {
    /// Keys of `n_head` heads of `d` elements.
    ///
    /// # Errors
    /// [`CacheError::HeadSize`].
    pub fn keys(ty: CacheType, n_head: usize, d: usize) -> Result<PageShape, CacheError> {
        let row_bytes = ty.row_bytes(d).ok_or(CacheError::HeadSize { ty, d })?;
        Ok(PageShape {
            ty,
            n_head,
            d,
            rank: None,
            in_lanes: true,
            row_bytes,
            rotation: None,
            fit: Fit::SameScores,
        })
    }

    /// Values of `n_head` heads of `d` elements.
    ///
    /// # Errors
    /// [`CacheError::HeadSize`].
    pub fn values(ty: CacheType, n_head: usize, d: usize) -> Result<PageShape, CacheError> {
        let row_bytes = match ty.element_bytes() {
            Some(bytes) => d.next_multiple_of(VECTOR) * bytes,
            None => ty.row_bytes(d).ok_or(CacheError::HeadSize { ty, d })?,
        };
        Ok(PageShape {
            ty,
            n_head,
            d,
            rank: None,
            in_lanes: false,
            row_bytes,
            rotation: None,
            fit: Fit::Nearest,
        })
    }

    /// Rows of one head that are key and value: `rank` elements of both, then `n_rot` of the key only. They are
    /// stored as rows, since values read most of them and many query heads share the transposing for scores.
    ///
    /// # Errors
    /// [`CacheError::HeadSize`].
    pub fn latent(ty: CacheType, rank: usize, n_rot: usize) -> Result<PageShape, CacheError> {
        let shape = PageShape::values(ty, 1, rank + n_rot)?;
        Ok(PageShape { rank: Some(rank), ..shape })
    }

    /// The same with rows turned by a [`Rotation`] before they are stored, which everything that reads them takes
    /// into account. Latent rows are turned in two parts: results are made of the first, and the rotary part with
    /// its larger numbers stays out of it. Heads of a size without a rotation stay as they are.
    pub fn rotated(self) -> PageShape {
        let rotation = match self.rank {
            Some(rank) if rank < self.d => Rotation::of_parts(&[rank, self.d - rank]),
            _ => Rotation::of(self.d),
        };
        PageShape { rotation, ..self }
    }

    pub fn ty(&self) -> CacheType {
        self.ty
    }

    pub fn n_head(&self) -> usize {
        self.n_head
    }

    /// Elements of a head's row.
    pub fn d(&self) -> usize {
        self.d
    }

    /// Elements of a value that is the beginning of a key; `None` where rows are keys or values only.
    pub fn rank(&self) -> Option<usize> {
        self.rank
    }

    /// How rows are turned before they are stored.
    pub fn rotation(&self) -> Option<&Rotation> {
        self.rotation.as_ref()
    }

    /// Bytes of a page.
    pub fn page_bytes(&self) -> usize {
        self.n_head * self.head_bytes()
    }

    /// Whether pages store positions in lanes, as keys are, and not in rows.
    pub(super) fn in_lanes(&self) -> bool {
        self.in_lanes
    }

    /// Bytes of a head's row, wherever they stand.
    pub(super) fn row_bytes(&self) -> usize {
        self.row_bytes
    }

    fn group_bytes(&self) -> usize {
        LANES * self.row_bytes
    }

    fn head_bytes(&self) -> usize {
        PAGE * self.row_bytes
    }

    /// By which rule scales of blocks are chosen.
    #[cfg(test)]
    pub(super) fn fit(&self) -> Fit {
        self.fit
    }

    /// Encodes a head's row, turned if that is the shape's way. `floats` and `bytes` are room.
    fn encode_row(&self, kind: IsaKind, row: &[f32], floats: &mut Vec<f32>, bytes: &mut Vec<u8>) {
        let row = match &self.rotation {
            None => row,
            Some(rotation) => {
                floats.clear();
                floats.extend_from_slice(row);
                rotation.apply(kind, floats);
                &floats[..]
            }
        };
        bytes.clear();
        bytes.resize(self.row_bytes, 0);
        let whole = self.ty.row_bytes(self.d).unwrap_or(self.row_bytes);
        encode(kind, self.ty, self.fit, row, &mut bytes[..whole]);
    }

    /// Decodes a head's row and turns it back.
    fn decode_row(&self, kind: IsaKind, bytes: &[u8], row: &mut [f32]) {
        let whole = self.ty.row_bytes(self.d).unwrap_or(self.row_bytes);
        decode(kind, self.ty, &bytes[..whole], row);
        if let Some(rotation) = &self.rotation {
            rotation.undo(kind, row);
        }
    }

    /// Puts an encoded row to its place in a group.
    fn put(&self, row: &[u8], lane: usize, group: &mut [u8]) {
        match self.in_lanes {
            true => lanes::put(self.ty, row, lane, group),
            false => group[lane * self.row_bytes..][..self.row_bytes].copy_from_slice(row),
        }
    }

    /// Takes an encoded row from its place in a group.
    fn take(&self, group: &[u8], lane: usize, row: &mut Vec<u8>) {
        row.resize(self.row_bytes, 0);
        match self.in_lanes {
            true => lanes::take(self.ty, group, lane, row),
            false => row.copy_from_slice(&group[lane * self.row_bytes..][..self.row_bytes]),
        }
    }
}

/// Where a position stands: a page and a place in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct At {
    pub page: u32,
    /// Place of the position in the page, below [`PAGE`].
    pub slot: u32,
}

impl At {
    /// Where position `position` of a sequence stands, whose table holds a page number per [`PAGE`] positions.
    ///
    /// # Panics
    /// When the table does not reach so far.
    pub fn of(table: &[u32], position: usize) -> At {
        At { page: table[position / PAGE], slot: (position % PAGE) as u32 }
    }
}

/// A column of a step and where it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub at: At,
    pub column: u32,
}

/// Pages that were allocated together.
struct Slab {
    /// Number of the first page.
    first: usize,
    n_pages: usize,
    /// Where the first page begins in `data`.
    start: usize,
    data: Vec<u8>,
}

/// Keys, values, or rows that are both, of one layer: pages by number.
///
/// All pages of one layer's keys or values. Memory is allocated when pages are added and first touched when they are
/// written.
pub struct Pages {
    shape: PageShape,
    slabs: Vec<Slab>,
    n_pages: usize,
}

impl Pages {
    /// A store of this shape without pages.
    pub fn new(shape: PageShape) -> Pages {
        Pages { shape, slabs: Vec::new(), n_pages: 0 }
    }

    pub fn shape(&self) -> &PageShape {
        &self.shape
    }

    /// How many pages there are. Their numbers are 0, 1, 2, ...
    pub fn n_pages(&self) -> usize {
        self.n_pages
    }

    /// Bytes of all pages.
    pub fn bytes(&self) -> usize {
        self.n_pages * self.shape.page_bytes()
    }

    /// Adds `n` pages of zeros in one piece of memory. Those there are keep their place.
    ///
    /// # Errors
    /// [`CacheError::Memory`].
    pub fn grow(&mut self, n: usize) -> Result<(), CacheError> {
        let PageShape { n_head, row_bytes, .. } = self.shape;
        let no_memory =
            CacheError::Memory { n_head, row_bytes, n_ctx: (self.n_pages + n).saturating_mul(PAGE) };
        if self.n_pages + n > NO_PAGE as usize {
            return Err(no_memory);
        }
        let bytes = n_head
            .checked_mul(row_bytes)
            .and_then(|b| b.checked_mul(PAGE))
            .and_then(|b| b.checked_mul(n))
            .and_then(|b| b.checked_add(ALIGN))
            .ok_or(no_memory)?;
        // asks whether there is so much; only `vec!` asks for zeroed memory without touching it
        Vec::<u8>::new().try_reserve_exact(bytes).map_err(|_| no_memory)?;
        let data = vec![0u8; bytes];
        let start = data.as_ptr().align_offset(ALIGN).min(ALIGN);
        self.slabs.push(Slab { first: self.n_pages, n_pages: n, start, data });
        self.n_pages += n;
        Ok(())
    }

    /// The slab of a page and where the page begins in it.
    fn find(&self, page: u32) -> (usize, usize) {
        let page = page as usize;
        assert!(page < self.n_pages, "page {page} of {}", self.n_pages);
        let slab = self.slabs.partition_point(|s| s.first + s.n_pages <= page);
        let Slab { first, start, .. } = self.slabs[slab];
        (slab, start + (page - first) * self.shape.page_bytes())
    }

    /// The bytes of a page.
    ///
    /// # Panics
    /// When there is no such page.
    pub fn page(&self, page: u32) -> &[u8] {
        let (slab, start) = self.find(page);
        &self.slabs[slab].data[start..start + self.shape.page_bytes()]
    }

    /// The bytes of a page, to be restored.
    ///
    /// # Panics
    /// When there is no such page.
    pub fn page_mut(&mut self, page: u32) -> &mut [u8] {
        let (slab, start) = self.find(page);
        &mut self.slabs[slab].data[start..start + self.shape.page_bytes()]
    }

    /// Makes page `to` the same as page `from`.
    ///
    /// # Panics
    /// When there are no such pages.
    pub fn copy(&mut self, from: u32, to: u32) {
        let (a, b) = (self.find(from), self.find(to));
        let n = self.shape.page_bytes();
        match self.slabs.get_disjoint_mut([a.0, b.0]) {
            Ok([source, target]) => target.data[b.1..b.1 + n].copy_from_slice(&source.data[a.1..a.1 + n]),
            Err(_) => self.slabs[a.0].data.copy_within(a.1..a.1 + n, b.1),
        }
    }

    /// The bytes of `slots` of a head in a page: its rows, or whole groups where positions are in lanes.
    pub(super) fn slots(&self, head: usize, page: u32, slots: Range<usize>) -> &[u8] {
        assert!(head < self.shape.n_head && slots.end <= PAGE, "head {head}, slots {slots:?}");
        let (slab, start) = self.find(page);
        let at = |slot: usize| start + head * self.shape.head_bytes() + slot * self.shape.row_bytes;
        &self.slabs[slab].data[at(slots.start)..at(slots.end)]
    }

    /// Rows of a head as floats, as they were before they were stored but for rounding.
    ///
    /// # Panics
    /// When there is no such page or head, or `out` does not hold the rows.
    pub fn decode(&self, kind: IsaKind, head: usize, page: u32, slots: Range<usize>, out: &mut [f32]) {
        let d = self.shape.d;
        assert_eq!(out.len(), slots.len() * d, "{d} floats per position");
        let mut bytes = Vec::new();
        for (slot, out) in slots.zip(out.chunks_exact_mut(d)) {
            let first = slot / LANES * LANES;
            let group = self.slots(head, page, first..first + LANES);
            self.shape.take(group, slot - first, &mut bytes);
            self.shape.decode_row(kind, &bytes, out);
        }
    }

    /// Units for threads that store columns of a step at `places`: 64 positions of a head of a page at most. Where
    /// two columns go to one place, the later one stays.
    ///
    /// # Panics
    /// When there are no such places.
    pub fn rows_mut(&mut self, places: &[Place]) -> Vec<PageRows<'_>> {
        let mut sorted = places.to_vec();
        sorted.sort_by_key(|p| p.at);
        let last = sorted.last().map_or(0, |p| p.at.page as usize);
        assert!(sorted.is_empty() || last < self.n_pages, "page {last} of {}", self.n_pages);
        let sorted: Arc<[Place]> = sorted.into();
        let shape = &self.shape;
        let mut pages = runs(&sorted, 0..sorted.len(), |p| p.at.page).into_iter().peekable();
        let mut units = Vec::new();
        for slab in &mut self.slabs {
            let mut rest = &mut slab.data[slab.start..];
            let mut first = slab.first;
            let last = slab.first + slab.n_pages;
            while let Some(places) = pages.next_if(|p| (sorted[p.start].at.page as usize) < last) {
                let page = sorted[places.start].at.page as usize;
                let (_, from_page) = rest.split_at_mut((page - first) * shape.page_bytes());
                let (bytes, behind) = from_page.split_at_mut(shape.page_bytes());
                (rest, first) = (behind, page + 1);
                rows_of_page(shape, bytes, &sorted, places, &mut units);
            }
        }
        units
    }

    /// Stores columns of a step (all heads of a position each) at `places`, on this thread.
    ///
    /// # Panics
    /// When there are no such places or columns.
    pub fn store(&mut self, kind: IsaKind, places: &[Place], columns: &[f32]) {
        for mut rows in self.rows_mut(places) {
            rows.store(kind, columns);
        }
    }

    /// Reads an encoded row.
    pub(super) fn take(&self, head: usize, at: At, row: &mut Vec<u8>) {
        let first = at.slot as usize / LANES * LANES;
        let group = self.slots(head, at.page, first..first + LANES);
        self.shape.take(group, at.slot as usize - first, row);
    }

    /// Writes an encoded row.
    pub(super) fn put(&mut self, head: usize, at: At, row: &[u8]) {
        let (slab, start) = self.find(at.page);
        let (group, lane) = (at.slot as usize / LANES, at.slot as usize % LANES);
        assert!(head < self.shape.n_head && group < PAGE / LANES, "head {head}, slot {}", at.slot);
        let n = self.shape.group_bytes();
        let start = start + head * self.shape.head_bytes() + group * n;
        self.shape.put(row, lane, &mut self.slabs[slab].data[start..start + n]);
    }

    /// Decodes an encoded row, hands it to `change`, and encodes it again.
    pub(super) fn change_row(
        &self,
        kind: IsaKind,
        row: &mut Vec<u8>,
        floats: &mut [Vec<f32>; 2],
        change: impl FnOnce(&mut [f32]),
    ) {
        let [plain, room] = floats;
        plain.resize(self.shape.d, 0.0);
        self.shape.decode_row(kind, row, plain);
        change(plain);
        self.shape.encode_row(kind, plain, room, row);
    }
}

/// Runs of places with the same key.
fn runs<K: PartialEq>(all: &[Place], of: Range<usize>, key: impl Fn(&Place) -> K) -> Vec<Range<usize>> {
    let mut start = of.start;
    let same = all[of].chunk_by(|a, b| key(a) == key(b));
    same.map(|run| {
        start += run.len();
        start - run.len()..start
    })
    .collect()
}

/// What of one page is to be written, by group and head. `places` is the page's range of `all`.
fn rows_of_page<'a>(
    shape: &'a PageShape,
    page: &'a mut [u8],
    all: &Arc<[Place]>,
    places: Range<usize>,
    units: &mut Vec<PageRows<'a>>,
) {
    let group_of = |p: &Place| p.at.slot as usize / LANES;
    let last = all[places.clone()].last().map_or(0, group_of);
    assert!(last < PAGE / LANES, "slots from {} on", last * LANES);
    let of_groups = runs(all, places, group_of);
    for (head, bytes) in page.chunks_exact_mut(shape.head_bytes()).enumerate() {
        let mut groups = bytes.chunks_exact_mut(shape.group_bytes()).enumerate();
        for places in &of_groups {
            let group = group_of(&all[places.start]);
            if let Some((_, bytes)) = groups.find(|(g, _)| *g == group) {
                units.push(PageRows { shape, head, all: all.clone(), places: places.clone(), bytes });
            }
        }
    }
}

/// Some positions of a head in a page, to be written.
pub struct PageRows<'a> {
    shape: &'a PageShape,
    head: usize,
    /// The places of all columns of the step; `places` says which of them are written here.
    all: Arc<[Place]>,
    places: Range<usize>,
    /// The bytes of the group that holds them.
    bytes: &'a mut [u8],
}

impl PageRows<'_> {
    /// Stores the head's part of the columns: `columns` holds all of the step's, all heads of a position each.
    ///
    /// # Panics
    /// When columns are missing.
    pub fn store(&mut self, kind: IsaKind, columns: &[f32]) {
        let PageShape { n_head, d, .. } = *self.shape;
        let (mut floats, mut row) = (Vec::new(), Vec::new());
        for Place { at, column } in &self.all[self.places.clone()] {
            let from = (*column as usize * n_head + self.head) * d;
            self.shape.encode_row(kind, &columns[from..from + d], &mut floats, &mut row);
            self.shape.put(&row, at.slot as usize % LANES, self.bytes);
        }
    }
}

#[cfg(test)]
#[path = "pages_tests.rs"]
mod tests;
