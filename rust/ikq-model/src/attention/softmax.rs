//! Attention over a cache, on all threads: how the work is cut.
//!
//! A unit is a key/value head and a tile of tokens. Where that makes too few units (one token), each is cut into
//! ranges of keys as well, whose partial results are merged in a second phase.

use std::ops::Range;

use ikq_kernels::attention::{self, Cache, KvHead, TILE_ROWS};
use ikq_kernels::ops::RopeTable;
use ikq_kernels::tiles::tiles;
use ikq_simd::IsaKind;

use crate::exec::Exec;
use crate::rope::RopeId;

pub use ikq_kernels::attention::Partial;

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

/// Keys of a range: fewer are not worth a merge.
const KEYS_OF_A_PART: usize = 512;
/// Units that keep any number of threads busy without ranges.
const FEW_UNITS: usize = 64;

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
    // by the work alone, not by the threads: where sums are cut decides their last bits
    let n_parts = match units.len() < FEW_UNITS {
        true => (longest / KEYS_OF_A_PART).max(1),
        false => 1,
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

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use ikq_kernels::attention::CacheType;
    use ikq_kernels::matmul::Compute;
    use ikq_pool::Pool;

    use super::*;

    fn numbers(n: usize, seed: u64) -> Vec<f32> {
        let mut state = seed + 77;
        let mut next = move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / f32::powi(2.0, 23) - 1.0
        };
        (0..n).map(|_| next()).collect()
    }

    /// Attention of `n` tokens after `n_past`, keys and values stored and read by `n_threads`.
    fn run(n_threads: usize, n_past: usize, n: usize, window: Option<usize>) -> Vec<f32> {
        let (n_head, n_kv, d, dv) = (6, 2, 32, 16);
        let pool = Pool::new(n_threads).expect("threads");
        let kind = ikq_simd::best();
        let mut keys = Cache::new(CacheType::F32, n_kv, d, n_past + n).expect("fits");
        let mut values = Cache::new(CacheType::F32, n_kv, dv, n_past + n).expect("fits");
        let threads: Vec<Mutex<_>> = (0..n_threads).map(|_| Mutex::default()).collect();
        // queries stand apart, as where gates follow them
        let (queries, sinks) = (numbers(n * n_head * 2 * d, 1), numbers(n_head, 2));
        let mut out = vec![f32::NAN; n * n_head * dv];
        pool.step(|team| {
            let exec = Exec {
                team,
                kind,
                compute: Compute::F32,
                threads: &threads,
                all_columns: &[],
                angles: &[],
                collector: None,
            };
            let (k, v) = (numbers((n_past + n) * n_kv * d, 3), numbers((n_past + n) * n_kv * dv, 4));
            // the cache is filled in two steps
            store(&exec, &mut keys, &k[..n_past * n_kv * d], d, 0);
            store(&exec, &mut keys, &k[n_past * n_kv * d..], d, n_past);
            store(&exec, &mut values, &v, dv, 0);
            let heads = Heads {
                queries: &queries,
                q_stride: 2 * d,
                n_head,
                head_dim: d,
                head_dim_v: dv,
                keys: &keys,
                values: Some(&values),
                scale: 0.2,
                softcap: None,
                sinks: Some(&sinks),
                window,
                n_past,
            };
            attend(&exec, &heads, &mut out, &mut Vec::new());
            for (token, out) in out.chunks_exact(n_head * dv).enumerate() {
                check(token + n_past, &queries[token * n_head * 2 * d..], &sinks, [&k, &v], window, out);
            }
        });
        out
    }

    /// One token against f64: means of values up to 1; scores up to 6 carry a few roundings, which exponentials
    /// inherit relatively.
    fn check(
        position: usize,
        queries: &[f32],
        sinks: &[f32],
        [k, v]: [&[f32]; 2],
        window: Option<usize>,
        out: &[f32],
    ) {
        let (n_kv, d, dv) = (2, 32, 16);
        for (head, out) in out.chunks_exact(dv).enumerate() {
            let q = &queries[head * 2 * d..][..d];
            let from = window.map_or(0, |w| (position + 1).saturating_sub(w));
            let mut sum = f64::from(sinks[head]).exp();
            let mut mean = vec![0.0; dv];
            for j in from..=position {
                let row = j * n_kv + head / 3;
                let dot: f64 =
                    q.iter().zip(&k[row * d..]).map(|(q, k)| f64::from(q * 0.2) * f64::from(*k)).sum();
                sum += dot.exp();
                mean.iter_mut().zip(&v[row * dv..]).for_each(|(m, v)| *m += dot.exp() * f64::from(*v));
            }
            for (found, mean) in out.iter().zip(mean) {
                assert!((f64::from(*found) - mean / sum).abs() < 4e-6, "position {position} head {head}");
            }
        }
    }

    #[test]
    fn threads_and_parts_do_not_matter() {
        // one token with enough keys for parts, prompts of one and several tiles, both with windows
        for (n_past, n) in [(0, 1), (1500, 1), (1500, 3), (0, 100), (600, 70)] {
            for window in [None, Some(1), Some(40), Some(700)] {
                let one = run(1, n_past, n, window);
                for n_threads in [2, 3, 7] {
                    let same = one == run(n_threads, n_past, n, window);
                    assert!(same, "{n_past}+{n} on {n_threads} threads, window {window:?}");
                }
            }
        }
    }

    #[test]
    fn a_latent_cache_is_keys_and_values() {
        let (n_head, d, dv, n) = (4, 48, 32, 5);
        let pool = Pool::new(2).expect("threads");
        let mut cache = Cache::new(CacheType::F32, 1, d, n).expect("fits");
        let threads: Vec<Mutex<_>> = (0..2).map(|_| Mutex::default()).collect();
        let (rows, queries) = (numbers(n * d, 1), numbers(n * n_head * d, 2));
        let mut out = vec![f32::NAN; n * n_head * dv];
        pool.step(|team| {
            let kind = ikq_simd::best();
            let exec = Exec {
                team,
                kind,
                compute: Compute::F32,
                threads: &threads,
                all_columns: &[],
                angles: &[],
                collector: None,
            };
            store(&exec, &mut cache, &rows, d, 0);
            let heads = Heads {
                queries: &queries,
                q_stride: d,
                n_head,
                head_dim: d,
                head_dim_v: dv,
                keys: &cache,
                values: None,
                scale: 0.1,
                softcap: None,
                sinks: None,
                window: None,
                n_past: 0,
            };
            attend(&exec, &heads, &mut out, &mut Vec::new());
        });
        // the first token sees itself only: its value is the result of every head
        assert!(out[..n_head * dv].chunks_exact(dv).all(|o| o == &rows[..dv]));
        // what is removed is as if it had never been
        let (table, id) = (RopeTable::new(16, 1e4, 1.0, None, None), rope_id(16));
        remove(ikq_simd::best(), &mut cache, Some((&table, id)), dv, 0..2, n);
        let mut moved = vec![0.0; 3 * d];
        cache.decode(ikq_simd::best(), 0, 0..3, &mut moved);
        let mut back = vec![0.0; 16];
        table.cos_sin_back(2, &mut back);
        for (moved, row) in moved.chunks_exact(d).zip(rows[2 * d..].chunks_exact(d)) {
            let mut expected = row.to_vec();
            ikq_kernels::ops::rotate(ikq_simd::best(), id.pairing, &back, &mut expected[dv..]);
            assert_eq!(moved, expected);
        }
    }

    fn rope_id(n_rot: usize) -> RopeId {
        RopeId { index: 0, pairing: ikq_kernels::ops::Pairing::Norm, n_rot }
    }
}
