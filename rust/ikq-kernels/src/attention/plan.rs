//! [`Plan`]: how the attention of a step is cut into units of work.
//!
//! A tile is some tokens of a sequence and some query heads that share a key/value head. Where there are too few tiles
//! for the threads, tiles become smaller; where a token is all there is, its keys are cut into runs of chunks whose
//! results are merged. Results do not depend on any of that (see `fold`), so a plan follows the number of threads.

use std::ops::Range;

use super::fold::{CHUNK, SPAN};

/// Most query rows of a tile: decoded keys serve so many rows.
const TILE_ROWS: usize = 96;
/// Most query heads of a token in one tile.
const MOST_HEADS: usize = 128;
/// Tiles of this many rows or fewer are not made smaller, because reading keys and values would then cost as much as
/// computing with them.
const FEW_ROWS: usize = 16;
/// Units per thread that keep all busy to the end.
const UNITS_PER_THREAD: usize = 4;
/// Cost of reading and decoding a key and its value, in units of what one query row computes with them.
const COST_OF_READING: usize = 8;
const CHUNKS_OF_A_SPAN: usize = SPAN / CHUNK;

/// How a step's attention is cut: the same for all layers with as many heads and the same window.
#[derive(Debug)]
pub struct Plan {
    pub(super) n_kv: usize,
    pub(super) group: usize,
    pub(super) window: usize,
    /// How each sequence is cut.
    pub(super) sequences: Vec<Cut>,
    /// The most expensive units first.
    pub(super) tiles: Vec<TilePlan>,
}

/// How the tiles of a sequence are cut.
#[derive(Debug)]
pub(super) struct Cut {
    pub n: usize,
    pub first: usize,
    /// Tokens and query heads of a tile.
    pub n_tokens: usize,
    pub n_heads: usize,
}

/// A tile: tokens of a sequence and query heads that are computed together.
#[derive(Debug)]
pub(super) struct TilePlan {
    pub sequence: usize,
    /// Number of the tile among all, in the order of sequences, tokens and heads.
    pub number: usize,
    /// Tokens of the sequence.
    pub tokens: Range<usize>,
    /// Query heads, all of one key/value head.
    pub heads: Range<usize>,
    /// Chunks of keys that some token sees.
    pub chunks: Range<usize>,
    /// How many chunks a unit of work has; units begin at multiples of it. `None`: one unit has all chunks.
    pub step: Option<usize>,
    cost: usize,
}

impl Plan {
    /// A plan for `n_kv` key/value heads, each shared by `group` query heads, that see `window` positions, and
    /// sequences of (tokens in this step, position of the first of them), on `n_threads` threads.
    ///
    /// # Panics
    /// When there are no heads, or the window is 0.
    pub fn new(
        n_kv: usize,
        group: usize,
        window: Option<usize>,
        sequences: &[(usize, usize)],
        n_threads: usize,
    ) -> Plan {
        assert!(n_kv > 0 && group > 0 && window != Some(0), "{n_kv} heads, {group} each, window {window:?}");
        let mut plan = Plan {
            n_kv,
            group,
            window: window.unwrap_or(usize::MAX),
            sequences: Vec::new(),
            tiles: Vec::new(),
        };
        let widest = largest_divisor(group, MOST_HEADS);
        for &(n, first) in sequences {
            plan.sequences.push(Cut { n, first, n_tokens: (TILE_ROWS / widest).max(1), n_heads: widest });
        }
        let total: usize = plan.sequences.iter().map(|cut| plan.cost_of_sequence(cut)).sum();
        // on one thread nothing needs to be even
        let most = if n_threads > 1 { total / (UNITS_PER_THREAD * n_threads) } else { usize::MAX };
        for i in 0..plan.sequences.len() {
            plan.refine(i, most.max(1));
            plan.add_tiles(i, most.max(1));
        }
        plan.tiles.sort_by_key(|t| std::cmp::Reverse(t.cost));
        plan
    }

    /// Positions that at least one of these tokens sees.
    fn seen(&self, cut: &Cut, tokens: &Range<usize>) -> Range<usize> {
        (cut.first + tokens.start + 1).saturating_sub(self.window)..cut.first + tokens.end
    }

    fn cost(&self, cut: &Cut, tokens: &Range<usize>, n_heads: usize) -> usize {
        self.seen(cut, tokens).len() * (tokens.len() * n_heads + COST_OF_READING)
    }

    fn token_ranges(cut: &Cut) -> impl Iterator<Item = Range<usize>> {
        let (n, step) = (cut.n, cut.n_tokens);
        (0..n).step_by(step).map(move |t| t..n.min(t + step))
    }

    fn cost_of_sequence(&self, cut: &Cut) -> usize {
        let tiles = self.n_kv * (self.group / cut.n_heads);
        Plan::token_ranges(cut).map(|tokens| tiles * self.cost(cut, &tokens, cut.n_heads)).sum()
    }

    /// Makes a sequence's tiles smaller until none costs more than `most`, or cutting their keys is better.
    fn refine(&mut self, sequence: usize, most: usize) {
        let Cut { n, first, mut n_tokens, mut n_heads } = self.sequences[sequence];
        loop {
            let cut = Cut { n, first, n_tokens, n_heads };
            let last = n.saturating_sub(n_tokens)..n;
            let (cost, rows) = (self.cost(&cut, &last, n_heads), n_heads * last.len());
            let chunks = self.seen(&cut, &last).len().div_ceil(CHUNK).max(1);
            if cost <= most || rows <= FEW_ROWS {
                break;
            }
            if last.len() > 1 {
                n_tokens = last.len().div_ceil(2);
            } else if cost / chunks > most {
                n_heads = largest_divisor(self.group, n_heads - 1);
            } else {
                break;
            }
        }
        self.sequences[sequence] = Cut { n, first, n_tokens, n_heads };
    }

    fn add_tiles(&mut self, sequence: usize, most: usize) {
        let cut = &self.sequences[sequence];
        let (n_heads, all_heads) = (cut.n_heads, self.n_kv * self.group);
        let mut tiles = Vec::new();
        for tokens in Plan::token_ranges(cut) {
            let seen = self.seen(cut, &tokens);
            let chunks = seen.start / CHUNK..seen.end.div_ceil(CHUNK);
            let mut cost = self.cost(cut, &tokens, n_heads);
            let n_parts = cost.div_ceil(most).min(chunks.len());
            let step = (n_parts > 1).then(|| step_of(chunks.len() / n_parts));
            if let Some(step) = step {
                cost = cost * step / chunks.len().max(step);
            }
            for head in (0..all_heads).step_by(n_heads) {
                let (tokens, heads, chunks) = (tokens.clone(), head..head + n_heads, chunks.clone());
                let number = self.tiles.len() + tiles.len();
                tiles.push(TilePlan { sequence, number, tokens, heads, chunks, step, cost });
            }
        }
        self.tiles.append(&mut tiles);
    }
}

/// The largest divisor of `n` that is at most `most`.
fn largest_divisor(n: usize, most: usize) -> usize {
    (1..=most.min(n)).rev().find(|d| n.is_multiple_of(*d)).unwrap_or(1)
}

/// A number of chunks such that its multiples never lie within a span that others cut: a power of two, or whole spans.
fn step_of(n: usize) -> usize {
    if n >= CHUNKS_OF_A_SPAN { n / CHUNKS_OF_A_SPAN * CHUNKS_OF_A_SPAN } else { 1 << n.max(1).ilog2() }
}

impl TilePlan {
    /// Runs of chunks that are units, in ascending order.
    pub fn units(&self) -> impl Iterator<Item = Range<usize>> {
        runs(self.chunks.clone(), self.step.unwrap_or(usize::MAX))
    }

    /// Runs of chunks with a partial result each: chunks, or spans where units are whole spans.
    pub fn partials(&self) -> impl Iterator<Item = Range<usize>> {
        self.partials_of(self.chunks.clone())
    }

    /// The runs of [`TilePlan::partials`] that lie in `chunks`.
    pub fn partials_of(&self, chunks: Range<usize>) -> impl Iterator<Item = Range<usize>> {
        runs(chunks, if self.are_spans() { CHUNKS_OF_A_SPAN } else { 1 })
    }

    /// Whether a partial result covers a whole span rather than a chunk.
    pub fn are_spans(&self) -> bool {
        self.step.is_some_and(|s| s >= CHUNKS_OF_A_SPAN)
    }
}

/// Cuts `chunks` at multiples of `step`.
fn runs(chunks: Range<usize>, step: usize) -> impl Iterator<Item = Range<usize>> {
    let mut from = chunks.start;
    std::iter::from_fn(move || {
        let to = chunks.end.min((from / step).saturating_add(1).saturating_mul(step));
        let run = from..to;
        from = to;
        (!run.is_empty()).then_some(run)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pair_of_token_and_head_is_in_one_tile_and_every_chunk_in_one_unit() {
        let steps: [&[(usize, usize)]; 6] = [
            &[(1, 0)],
            &[(1, 8191)],
            &[(512, 0)],
            &[(1, 100_000), (1, 7), (30, 3000)],
            &[(7, 131_072), (0, 5)],
            &[(1, 400); 40],
        ];
        for sequences in steps {
            for (n_kv, group) in [(8, 4), (1, 128), (1, 16), (2, 7), (4, 1), (1, 192)] {
                for window in [None, Some(1), Some(1000)] {
                    for n_threads in [1, 2, 64] {
                        let plan = Plan::new(n_kv, group, window, sequences, n_threads);
                        check(&plan, sequences);
                    }
                }
            }
        }
    }

    fn check(plan: &Plan, sequences: &[(usize, usize)]) {
        let n_heads = plan.n_kv * plan.group;
        let mut seen: Vec<_> = sequences.iter().map(|(n, _)| vec![0; n * n_heads]).collect();
        let mut numbers = vec![];
        for tile in &plan.tiles {
            numbers.push(tile.number);
            assert_eq!(tile.heads.start / plan.group, (tile.heads.end - 1) / plan.group);
            for token in tile.tokens.clone() {
                tile.heads.clone().for_each(|h| seen[tile.sequence][token * n_heads + h] += 1);
            }
            let units: Vec<_> = tile.units().collect();
            assert!(units.windows(2).all(|u| u[0].end == u[1].start));
            assert_eq!(units.first().map(|u| u.start), Some(tile.chunks.start));
            assert_eq!(units.last().map(|u| u.end), Some(tile.chunks.end));
            let parts: Vec<_> = units.into_iter().flat_map(|u| tile.partials_of(u)).collect();
            assert_eq!(parts, tile.partials().collect::<Vec<_>>());
        }
        numbers.sort_unstable();
        assert!(numbers.into_iter().eq(0..plan.tiles.len()));
        assert!(seen.iter().flatten().all(|&n| n == 1));
    }

    #[test]
    fn threads_get_even_shares_and_one_thread_whole_tiles() {
        let even = |n_kv, group, sequences: &[(usize, usize)], n_threads: usize| {
            let plan = Plan::new(n_kv, group, None, sequences, n_threads);
            let units = plan.tiles.iter().flat_map(|t| t.units().map(|_| t.cost));
            let (total, largest) = units.fold((0, 0), |(sum, most), c| (sum + c, most.max(c)));
            assert!(largest * n_threads <= total, "{sequences:?} on {n_threads}: {largest} of {total}");
        };
        even(8, 4, &[(1, 8000)], 16);
        even(1, 128, &[(1, 8000)], 64);
        even(1, 128, &[(1, 600)], 8);
        even(8, 4, &[(512, 0)], 64);
        even(8, 4, &[(1, 30_000), (1, 100), (1, 5000)], 16);
        even(2, 8, &[(1, 1_000_000)], 64);
        let one = Plan::new(2, 8, None, &[(1, 1_000_000), (40, 0)], 1);
        assert!(one.tiles.iter().all(|t| t.step.is_none()));
        assert_eq!(one.tiles.len(), 2 + 2 * 4);
    }
}
