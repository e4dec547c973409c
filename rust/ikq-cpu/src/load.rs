//! Weights into memory: the copy to huge pages in which they take the device's form, or the file's mapping as it is.
//!
//! The copy is made in parallel and lets go of the file's pages on the way, so that at no time two copies count as
//! this process's memory. What stays mapped is brought into the device's form at every use.

use std::collections::HashMap;

use ikq_formats::QuantType;
use ikq_formats::lanes::LANES;
use ikq_gguf::{Bytes, PageBuffer};
use ikq_kernels::matmul::{lane_bytes, pack};
use ikq_model::device::Memory;
use ikq_model::error::Error;
use ikq_model::network;
use ikq_pool::{Cancel, Pool, Stop, available_memory};
use ikq_simd::IsaKind;

use crate::low_rank::{self, LowRank};
use crate::weight::Weight;

/// Whether weights stay in the mapping of the file or are copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mmap {
    /// Copy where memory allows, else keep the mapping.
    Auto,
    /// Keep the mapping.
    On,
    /// Copy.
    Off,
}

/// Matrices start at multiples of this in the copy: a cache line.
const ALIGNMENT: usize = 64;
/// Bytes of the file that one unit of work reads, about.
const UNIT: usize = 4 << 20;
/// How many units are read ahead of the one that a thread takes.
const AHEAD: usize = 4;
/// Share of the available memory that weights may take in `Auto`; the rest is for the cache and others.
const SHARE: f64 = 0.8;

/// Loaded matrices, to be taken by role.
pub struct Loaded {
    /// By the address of the weight's description, which outlives this.
    matrices: HashMap<*const network::Weight, Placed>,
    pub memory: Memory,
}

/// The matrices of a weight (one per expert) where products read them.
struct Placed {
    matrices: Vec<Bytes>,
    in_lanes: bool,
    low_rank: Vec<LowRank>,
}

impl Loaded {
    /// The weight in its place. Weights that were not loaded are an error of the caller.
    ///
    /// # Panics
    /// When it was not among those loaded, or is taken a second time.
    pub fn take(&mut self, weight: &network::Weight) -> Weight {
        let placed =
            self.matrices.remove(&std::ptr::from_ref(weight)).expect("a weight of this device's stages");
        Weight::new(weight, placed.matrices, placed.in_lanes, placed.low_rank)
    }
}

/// Copies of matrices by the matrix in the file that they were made of, so that loading again finds them.
#[derive(Default)]
pub struct Copies(HashMap<Key, Copy>);

/// Address and length of a matrix in the file, and its type.
type Key = (usize, usize, QuantType);

/// A matrix as it stands in the file, which is kept so that no other memory has its address, and its copy.
struct Copy {
    _source: Bytes,
    lanes: Bytes,
}

impl Copies {
    fn key(source: &Bytes, ty: QuantType) -> Key {
        (source.as_ptr() as usize, source.len(), ty)
    }

    fn add(&mut self, weight: &network::Weight, copies: &[Bytes]) {
        for (e, lanes) in copies.iter().enumerate() {
            let source = weight.rows(e);
            let key = Copies::key(&source, weight.ty);
            self.0.insert(key, Copy { _source: source, lanes: lanes.clone() });
        }
    }

    /// The copies of all matrices of a weight.
    fn of(&self, weight: &network::Weight) -> Option<Vec<Bytes>> {
        let one = |e| self.0.get(&Copies::key(&weight.rows(e), weight.ty)).map(|c| c.lanes.clone());
        (0..weight.n_experts()).map(one).collect()
    }
}

/// Loads the matrices of `weights`. Of those that were copied before, and are in `copies`, nothing is read; afterwards
/// `copies` has those of `weights` and no others.
///
/// # Errors
/// [`Error::Memory`] when a copy is asked for that memory does not hold; [`Stop::Cancelled`].
pub fn load(
    weights: &[&network::Weight],
    copies: &mut Copies,
    mmap: Mmap,
    kind: IsaKind,
    pool: &Pool,
    cancel: &Cancel,
) -> Result<Loaded, Stop<Error>> {
    let before = std::mem::take(copies);
    let mut matrices = HashMap::new();
    let mut kept_bytes = 0;
    let mut fresh = Vec::new();
    for weight in weights {
        let Some(kept) = before.of(weight) else {
            fresh.push(*weight);
            continue;
        };
        kept_bytes += kept.iter().map(|m| m.len().next_multiple_of(ALIGNMENT)).sum::<usize>();
        copies.add(weight, &kept);
        matrices.insert(
            std::ptr::from_ref(*weight),
            Placed { matrices: kept, in_lanes: true, low_rank: Vec::new() },
        );
    }
    drop(before);
    let sizes = fresh.iter().map(|w| matrix_bytes(w)).collect::<Result<Vec<usize>, Error>>()?;
    let needed =
        fresh.iter().zip(&sizes).map(|(w, size)| w.n_experts() * size.next_multiple_of(ALIGNMENT)).sum();
    let (in_lanes, why) = decide(mmap, needed);
    let mut memory = Memory { why, copied_bytes: kept_bytes, ..Memory::default() };
    let loaded: Vec<Vec<Bytes>> = match in_lanes {
        true => {
            memory.copied_bytes += needed;
            let packed = packed(&fresh, &sizes, needed, kind, pool, cancel)?;
            fresh.iter().zip(&packed).for_each(|(w, p)| copies.add(w, p));
            packed
        }
        false => {
            memory.mapped_bytes = fresh.iter().map(|w| w.n_bytes()).sum();
            fresh.iter().map(|w| (0..w.n_experts()).map(|e| w.rows(e)).collect()).collect()
        }
    };
    let loaded = loaded.into_iter().map(|matrices| Placed { matrices, in_lanes, low_rank: Vec::new() });
    matrices.extend(fresh.iter().map(|w| std::ptr::from_ref(*w)).zip(loaded));
    let (low_rank, bytes) = low_rank::load(kind, weights)?;
    memory.copied_bytes += bytes;
    for (weight, low_rank) in weights.iter().zip(low_rank) {
        if let Some(placed) = matrices.get_mut(&std::ptr::from_ref(*weight)) {
            placed.low_rank = low_rank;
        }
    }
    Ok(Loaded { matrices, memory })
}

/// Bytes of one expert's matrix in the device's form.
pub fn matrix_bytes(weight: &network::Weight) -> Result<usize, Error> {
    lane_bytes(weight.ty, weight.n_rows, weight.k)
        .map_err(|source| Error::Format { tensor: weight.name.clone(), source })
}

/// Whether `needed` bytes of weights are copied, and why.
fn decide(mmap: Mmap, needed: usize) -> (bool, String) {
    let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
    match (mmap, available_memory()) {
        (Mmap::On, _) => (false, "mapped, as asked for: rows are re-arranged at every use".to_string()),
        (Mmap::Off, _) => (true, "copied to huge pages, as asked for".to_string()),
        (Mmap::Auto, None) => (false, "mapped: the system does not tell how much memory is free".to_string()),
        (Mmap::Auto, Some(free)) => {
            let (takes, has) = (gib(needed as u64), gib(free));
            match needed as f64 <= free as f64 * SHARE {
                true => {
                    (true, format!("copied to huge pages: {takes:.2} GiB of the {has:.2} GiB that are free"))
                }
                false => (
                    false,
                    format!(
                        "mapped: {takes:.2} GiB do not fit into {has:.2} GiB of free memory; rows are re-arranged at every use"
                    ),
                ),
            }
        }
    }
}

/// Some bands of a matrix, and where their device form is written.
struct Piece<'a> {
    weight: &'a network::Weight,
    source: Bytes,
    target: &'a mut [u8],
}

/// All matrices in the device's form, in one buffer.
fn packed(
    weights: &[&network::Weight],
    sizes: &[usize],
    needed: usize,
    kind: IsaKind,
    pool: &Pool,
    cancel: &Cancel,
) -> Result<Vec<Vec<Bytes>>, Stop<Error>> {
    let refused = |e: std::io::Error| Error::Memory { needed, reason: e.to_string() };
    let mut buffer = PageBuffer::new(needed).map_err(refused)?;
    let mut pieces = Vec::new();
    let mut rest = buffer.as_mut_slice();
    let mut places = Vec::new();
    let mut at = 0;
    for (weight, &bytes) in weights.iter().zip(sizes) {
        let mut of_experts = Vec::new();
        for expert in 0..weight.n_experts() {
            let (target, behind) = rest.split_at_mut(bytes.next_multiple_of(ALIGNMENT).min(rest.len()));
            rest = behind;
            of_experts.push(at..at + bytes);
            at += bytes.next_multiple_of(ALIGNMENT);
            cut(weight, weight.rows(expert), &mut target[..bytes], &mut pieces);
        }
        places.push(of_experts);
    }
    let sources: Vec<Bytes> = pieces.iter().map(|p| p.source.clone()).collect();
    sources.iter().take(AHEAD).for_each(Bytes::will_need);
    let units = pieces.into_iter().enumerate().map(|(i, piece)| {
        if let Some(ahead) = sources.get(i + AHEAD) {
            ahead.will_need();
        }
        piece
    });
    pool.for_each(units, cancel, |piece: Piece<'_>| -> Result<(), Error> {
        pack(kind, piece.weight.ty, piece.weight.k, &piece.source, piece.target);
        piece.source.release();
        Ok(())
    })?;
    let all = buffer.freeze().map_err(refused)?;
    let slice = |range| all.slice(range).expect("the buffer has all matrices");
    Ok(places.into_iter().map(|of_experts| of_experts.into_iter().map(slice).collect()).collect())
}

/// Cuts a matrix into runs of whole bands (and whole groups of interleaved rows).
fn cut<'a>(weight: &'a network::Weight, source: Bytes, target: &'a mut [u8], pieces: &mut Vec<Piece<'a>>) {
    let (n_rows, step) = (weight.n_rows, LANES.max(weight.row_step()));
    if n_rows == 0 {
        return;
    }
    let per_row = source.len() / n_rows;
    let per_band = target.len() / n_rows.div_ceil(LANES);
    let rows = (UNIT / per_row.max(1)).next_multiple_of(step).max(step);
    let mut target = target;
    for first in (0..n_rows).step_by(rows) {
        let last = n_rows.min(first + rows);
        let (mine, rest) = target.split_at_mut((last - first).div_ceil(LANES) * per_band);
        target = rest;
        let source = source.slice(first * per_row..last * per_row).expect("rows of the matrix");
        pieces.push(Piece { weight, source, target: mine });
    }
}
