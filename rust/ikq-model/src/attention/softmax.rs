//! Attention over a cache, on all threads: how the work is cut.
//!
//! A unit is a key/value head and a tile of tokens. Where that makes too few units (one token), each is cut into
//! ranges of keys as well, whose partial results are merged in a second phase.

use std::ops::Range;

use ikq_cpu::attention::{self, Cache, KvHead, TILE_ROWS};
use ikq_cpu::ops::RopeTable;
use ikq_cpu::tiles::tiles;
use ikq_simd::IsaKind;

use crate::exec::Exec;
use crate::rope::RopeId;

pub use ikq_cpu::attention::Partial;

/// Queries, and the keys and values they attend to.
pub struct Heads<'a> {
    /// Token after token, head after head, every `q_stride` elements.
    pub queries: &'a [f32],
    /// Elements from one query head to the next; the first `head_dim` of them are the query.
    pub q_stride: usize,
    pub n_head: usize,
    pub head_dim: usize,
    pub head_dim_v: usize,
    pub keys: &'a Cache,
    /// `None`: values are the first elements of keys.
    pub values: Option<&'a Cache>,
    pub scale: f32,
    pub softcap: Option<f32>,
    /// One per query head.
    pub sinks: Option<&'a [f32]>,
    pub window: Option<usize>,
    /// Positions before the first token's.
    pub n_past: usize,
}

/// Fewest keys of a range: less is not worth a merge.
const FEWEST_KEYS: usize = 256;
/// Units per thread, so that threads end together.
const UNITS_PER_THREAD: usize = 2;

impl Heads<'_> {
    fn group(&self) -> usize {
        self.n_head / self.keys.n_head()
    }

    /// Positions that some of these tokens see.
    fn seen(&self, tokens: &Range<usize>) -> Range<usize> {
        let first = self.n_past + tokens.start + 1;
        first.saturating_sub(self.window.unwrap_or(usize::MAX))..self.n_past + tokens.end
    }

    /// Lays out the queries of `head`'s group for `tokens`.
    fn gather(&self, head: usize, tokens: &Range<usize>, scratch: &mut attention::Scratch) {
        let group = self.group();
        scratch.begin(tokens.len() * group, self.head_dim);
        for (i, token) in tokens.clone().enumerate() {
            for g in 0..group {
                let at = (token * self.n_head + head * group + g) * self.q_stride;
                scratch.set_query(i * group + g, &self.queries[at..at + self.head_dim], self.scale);
            }
        }
    }

    fn kv_head(&self, head: usize) -> KvHead<'_> {
        KvHead {
            keys: self.keys,
            values: self.values,
            head,
            head_dim_v: self.head_dim_v,
            softcap: self.softcap,
            window: self.window,
        }
    }

    /// What `keys` contribute to the queries of `head`'s group for `tokens`.
    fn attend(
        &self,
        kind: IsaKind,
        head: usize,
        tokens: &Range<usize>,
        keys: Range<usize>,
        scratch: &mut attention::Scratch,
        partial: &mut Partial,
    ) {
        self.gather(head, tokens, scratch);
        partial.reset(tokens.len() * self.group(), self.head_dim_v);
        let first = self.n_past + tokens.start;
        attention::attend(kind, &self.kv_head(head), self.group(), first, keys, scratch, partial);
    }

    /// Writes results of `head`'s group; `column` is a token's part of the output.
    fn finish(&self, head: usize, token: usize, partial: &Partial, column: &mut [f32]) {
        let group = self.group();
        for (g, out) in column.chunks_exact_mut(self.head_dim_v).enumerate() {
            let sink = self.sinks.map(|s| s[head * group + g]);
            partial.finish(token * group + g, sink, out);
        }
    }
}

/// Attention of all heads into `out`: a column per token, the heads' results one after another.
pub fn attend(exec: &Exec<'_>, heads: &Heads<'_>, out: &mut [f32], partials: &mut Vec<Partial>) {
    let column = heads.n_head * heads.head_dim_v;
    let (n, n_kv, group) = (out.len() / column, heads.keys.n_head(), heads.group());
    let per_tile = (TILE_ROWS / group).max(1);
    let ranges: Vec<_> = (0..n).step_by(per_tile).map(|t| t..n.min(t + per_tile)).collect();
    // tiles come token range after token range, heads within
    let out = tiles(out, column, group * heads.head_dim_v, ranges.iter().cloned());
    let mut units: Vec<_> = out.into_iter().enumerate().map(|(i, tile)| (i % n_kv, tile)).collect();

    let longest = ranges.iter().map(|r| heads.seen(r).len()).max().unwrap_or(0);
    let wanted = (exec.team.n_threads() * UNITS_PER_THREAD).div_ceil(units.len().max(1));
    let n_parts = match exec.team.n_threads() {
        1 => 1,
        _ => wanted.min(longest / FEWEST_KEYS).max(1),
    };
    if n_parts == 1 {
        // later tokens see more keys: longest units first
        units.reverse();
        exec.team.for_each(&mut units, |(head, tile), thread| {
            let scratch = &mut exec.scratch(thread).attention;
            let mut partial = std::mem::take(&mut scratch.partial);
            let tokens = tile.columns();
            heads.attend(exec.kind, *head, &tokens, heads.seen(&tokens), scratch, &mut partial);
            for (i, token) in tokens.enumerate() {
                heads.finish(*head, i, &partial, tile.column(token));
            }
            scratch.partial = partial;
        });
        return;
    }

    partials.resize_with(partials.len().max(units.len() * n_parts), Partial::default);
    let partials = &mut partials[..units.len() * n_parts];
    let parts = partials.chunks_exact_mut(n_parts).zip(&units);
    let mut parts: Vec<_> = parts
        .flat_map(|(partials, (head, tile))| {
            let seen = heads.seen(&tile.columns());
            let step = seen.len().div_ceil(n_parts).next_multiple_of(64);
            partials.iter_mut().enumerate().map(move |(i, partial)| {
                let from = seen.end.min(seen.start + i * step);
                (*head, tile.columns(), from..seen.end.min(from + step), partial)
            })
        })
        .collect();
    exec.team.for_each(&mut parts, |(head, tokens, keys, partial), thread| {
        let scratch = &mut exec.scratch(thread).attention;
        heads.attend(exec.kind, *head, tokens, keys.clone(), scratch, partial);
    });
    drop(parts);
    let mut merges: Vec<_> = partials.chunks_exact_mut(n_parts).zip(&mut units).collect();
    exec.team.for_each(&mut merges, |(partials, (head, tile)), _| {
        if let Some((whole, others)) = partials.split_first_mut() {
            others.iter().for_each(|other| whole.merge(other));
            for (i, token) in tile.columns().enumerate() {
                heads.finish(*head, i, whole, tile.column(token));
            }
        }
    });
}

/// Stores columns of all heads (`d` elements each) at the positions from `n_past` on.
pub fn store(exec: &Exec<'_>, cache: &mut Cache, rows: &[f32], d: usize, n_past: usize) {
    let column = cache.n_head() * d;
    let n = rows.len() / column;
    let step = exec.runs(n).next().map_or(1, |r| r.len());
    let mut units = cache.rows_mut(n_past..n_past + n, step);
    exec.team.for_each(&mut units, |unit, _| {
        let tokens = unit.positions.start - n_past..unit.positions.end - n_past;
        unit.store(exec.kind, &rows[tokens.start * column..tokens.end * column]);
    });
}

/// Removes positions `gone` of `n_past`; what comes later moves down, and keys, whose rotated part begins at
/// `offset`, are turned back by as much.
pub fn remove(
    kind: IsaKind,
    cache: &mut Cache,
    rope: Option<(&RopeTable, RopeId)>,
    offset: usize,
    gone: Range<usize>,
    n_past: usize,
) {
    match rope {
        None => cache.remove(kind, gone, n_past, None),
        Some((table, id)) => {
            let mut cos_sin = vec![0.0; table.n_rot()];
            table.cos_sin_back(gone.len() as u32, &mut cos_sin);
            cache.remove(kind, gone, n_past, Some((id.pairing, &cos_sin, offset)));
        }
    }
}
