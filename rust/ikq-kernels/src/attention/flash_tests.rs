//! Attention against a plain f64 implementation.

use super::*;
use ikq_simd::available;

/// What is asked.
#[derive(Clone)]
struct Case {
    d: usize,
    dv: usize,
    group: usize,
    n_past: usize,
    n_tokens: usize,
    ty: CacheType,
    latent: bool,
    window: Option<usize>,
    softcap: Option<f32>,
    sink: Option<f32>,
    scale: f32,
}

const PLAIN: Case = Case {
    d: 64,
    dv: 64,
    group: 1,
    n_past: 0,
    n_tokens: 1,
    ty: CacheType::F32,
    latent: false,
    window: None,
    softcap: None,
    sink: None,
    scale: 0.125,
};

fn numbers(n: usize, seed: usize) -> Vec<f32> {
    let mut state = seed as u64 * 0x9e37_79b9 + 12345;
    let mut next = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / f32::powi(2.0, 23) - 1.0
    };
    (0..n).map(|_| next()).collect()
}

struct Set {
    case: Case,
    keys: Cache,
    values: Option<Cache>,
    /// Rows of queries, token after token.
    queries: Vec<f32>,
}

/// Head 1 of two is the one that is used.
const N_HEAD: usize = 2;
const HEAD: usize = 1;

fn fill(kind: IsaKind, ty: CacheType, d: usize, n: usize, seed: usize) -> Cache {
    let mut cache = Cache::new(ty, N_HEAD, d, n + 3).expect("fits");
    for (i, row) in numbers(n * N_HEAD * d, seed).chunks_exact(N_HEAD * d).enumerate() {
        cache.store(kind, i, row);
    }
    cache
}

impl Set {
    fn new(kind: IsaKind, case: &Case) -> Set {
        let n = case.n_past + case.n_tokens;
        let keys = fill(kind, case.ty, case.d, n, 1);
        let values = (!case.latent).then(|| fill(kind, case.ty, case.dv, n, 2));
        let queries = numbers(case.n_tokens * case.group * case.d, 3).into_iter().map(|q| q * 4.0).collect();
        Set { case: case.clone(), keys, values, queries }
    }

    fn head(&self) -> KvHead<'_> {
        KvHead {
            keys: &self.keys,
            values: self.values.as_ref(),
            head: HEAD,
            head_dim_v: self.case.dv,
            softcap: self.case.softcap,
            window: self.case.window,
        }
    }

    /// The result with the keys cut into runs, each its own partial result.
    fn run(&self, kind: IsaKind, cuts: &[usize]) -> Vec<f32> {
        let Case { d, dv, group, n_past, n_tokens, scale, .. } = self.case;
        let n_rows = n_tokens * group;
        let mut scratch = Scratch::default();
        scratch.begin(n_rows, d);
        for (row, query) in self.queries.chunks_exact(d).enumerate() {
            scratch.set_query(row, query, scale);
        }
        let mut ends = cuts.to_vec();
        ends.push(n_past + n_tokens);
        let mut whole = Partial::default();
        whole.reset(n_rows, dv);
        let mut from = 0;
        for to in ends {
            let mut partial = Partial::default();
            partial.reset(n_rows, dv);
            attend(kind, &self.head(), group, n_past, from..to, &mut scratch, &mut partial);
            whole.merge(&partial);
            from = to;
        }
        let mut out = vec![f32::NAN; n_rows * dv];
        for (row, out) in out.chunks_exact_mut(dv).enumerate() {
            whole.finish(row, self.case.sink, out);
        }
        out
    }

    /// The same in f64, and per row the size that errors are relative to.
    fn truth(&self, kind: IsaKind) -> Vec<f64> {
        let Case { d, dv, group, n_past, n_tokens, scale, softcap, window, sink, .. } = self.case;
        let n = n_past + n_tokens;
        let mut keys = vec![0.0; n * d];
        self.keys.decode(kind, HEAD, 0..n, &mut keys);
        let mut values = vec![0.0; n * dv];
        match &self.values {
            Some(cache) => cache.decode(kind, HEAD, 0..n, &mut values),
            None => {
                for (v, k) in values.chunks_exact_mut(dv).zip(keys.chunks_exact(d)) {
                    v.copy_from_slice(&k[..dv]);
                }
            }
        }
        let mut out = Vec::new();
        for (row, q) in self.queries.chunks_exact(d).enumerate() {
            let i = n_past + row / group;
            let seen = (0..=i).filter(|j| window.is_none_or(|w| i - j < w));
            let score = |j: usize| {
                let dot: f64 = q.iter().zip(&keys[j * d..]).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum();
                let s = dot * f64::from(scale);
                softcap.map_or(s, |c| f64::from(c) * (s / f64::from(c)).tanh())
            };
            let scores: Vec<(usize, f64)> = seen.map(|j| (j, score(j))).collect();
            let max = scores.iter().map(|s| s.1).chain(sink.map(f64::from)).fold(f64::NEG_INFINITY, f64::max);
            let mut sum = sink.map_or(0.0, |s| (f64::from(s) - max).exp());
            let mut row = vec![0.0; dv];
            for (j, s) in scores {
                let p = (s - max).exp();
                sum += p;
                row.iter_mut().zip(&values[j * dv..]).for_each(|(o, v)| *o += p * f64::from(*v));
            }
            out.extend(row.into_iter().map(|o| o / sum));
        }
        out
    }

    /// Errors of results that are means of values up to 1: scores up to 4 sqrt(d) scale carry roundings of
    /// their size, exponentials inherit them relatively, sums add a few more.
    fn check(&self, kind: IsaKind, found: &[f32]) {
        let Case { d, scale, .. } = self.case;
        let size = 4.0 * d as f64 * f64::from(scale);
        let bound = (size / 2.0 + 16.0) * f64::powi(2.0, -23);
        for (i, (found, truth)) in found.iter().zip(self.truth(kind)).enumerate() {
            assert!(
                (f64::from(*found) - truth).abs() <= bound,
                "{} {} d {} dv {} group {} {}+{} at {i}: {found} for {truth}",
                kind.name(),
                self.case.ty.name(),
                d,
                self.case.dv,
                self.case.group,
                self.case.n_past,
                self.case.n_tokens
            );
        }
    }
}

fn check(case: &Case) {
    for kind in available() {
        let set = Set::new(kind, case);
        set.check(kind, &set.run(kind, &[]));
    }
}

#[test]
fn head_sizes_and_groups() {
    for d in [8, 32, 64, 80, 96, 112, 128, 192, 256, 576] {
        for group in [1, 4, 7, 16] {
            let scale = 1.0 / (d as f32).sqrt();
            check(&Case { d, dv: d, group, n_past: 70, n_tokens: 1, scale, ..PLAIN });
            check(&Case { d, dv: d, group, n_past: 5, n_tokens: 3, scale, ty: CacheType::F16, ..PLAIN });
        }
    }
    check(&Case { d: 192, dv: 128, group: 4, n_past: 100, n_tokens: 5, scale: 0.07, ..PLAIN });
    check(&Case { d: 40, dv: 24, group: 3, n_past: 100, n_tokens: 5, ty: CacheType::BF16, ..PLAIN });
}

#[test]
fn every_cache_type_for_few_and_many_rows() {
    for ty in CacheType::ALL {
        for (group, n_tokens) in [(1, 1), (4, 1), (8, 1), (2, 9), (3, 40)] {
            check(&Case { d: 96, dv: 64, group, n_past: 130, n_tokens, ty, ..PLAIN });
        }
    }
}

#[test]
fn values_may_be_the_beginning_of_keys() {
    for ty in [CacheType::F32, CacheType::F16, CacheType::Q8_0] {
        for (group, n_tokens) in [(16, 1), (2, 1), (16, 6)] {
            let case = Case { d: 576, dv: 512, group, n_past: 90, n_tokens, ty, latent: true, ..PLAIN };
            check(&Case { scale: 0.05, ..case });
        }
    }
}

#[test]
fn prompts_are_causal() {
    for n_tokens in [1, 2, 16, 65, 200] {
        check(&Case { n_tokens, group: 2, ..PLAIN });
        check(&Case { n_tokens, n_past: 33, ty: CacheType::F16, ..PLAIN });
    }
}

#[test]
fn windows_have_their_edges() {
    for window in [1, 2, 16, 63, 64, 65, 100, 1000, usize::MAX] {
        for (n_past, n_tokens) in [(0, 1), (150, 1), (0, 150), (70, 9)] {
            check(&Case { window: Some(window), n_past, n_tokens, group: 2, ..PLAIN });
        }
    }
}

#[test]
fn sinks_and_soft_caps() {
    for sink in [-1e30, -5.0, 0.0, 3.0, 50.0, 1e30] {
        for softcap in [None, Some(2.0), Some(50.0)] {
            check(&Case { sink: Some(sink), softcap, n_past: 40, n_tokens: 3, group: 2, ..PLAIN });
        }
    }
    check(&Case { sink: Some(1.0), window: Some(4), n_past: 40, n_tokens: 30, ..PLAIN });
}

#[test]
fn long_contexts_rescale_and_huge_scores_stay_finite() {
    check(&Case { n_past: 9_999, group: 2, ..PLAIN });
    check(&Case { n_past: 9_990, n_tokens: 10, group: 2, ty: CacheType::F16, ..PLAIN });
    // scores up to some thousands: only the best counts, and whole blocks are nothing beside it
    for kind in available() {
        let case = Case { n_past: 3000, n_tokens: 8, scale: 100.0, ..PLAIN };
        let set = Set::new(kind, &case);
        let (found, truth) = (set.run(kind, &[]), set.truth(kind));
        // scores carry errors of 4000 * 2^-24 * 8, the exponentials' relative error
        assert!(found.iter().zip(truth).all(|(f, t)| (f64::from(*f) - t).abs() < 4e-3));
    }
}

#[test]
fn parts_make_the_whole() {
    for kind in available() {
        for (group, n_tokens, window) in [(1, 1, None), (8, 1, Some(100)), (3, 20, None), (1, 4, Some(7))] {
            let set = Set::new(kind, &Case { group, n_tokens, window, n_past: 500, ..PLAIN });
            for cuts in [vec![1], vec![100, 200, 300, 400], vec![256], vec![7, 7, 499]] {
                set.check(kind, &set.run(kind, &cuts));
            }
        }
    }
}

#[test]
fn nan_in_a_key_shows_in_who_sees_it() {
    for kind in available() {
        for group in [1, 6] {
            let case = Case { n_past: 100, n_tokens: 30, group, ..PLAIN };
            let mut set = Set::new(kind, &case);
            set.keys.store(kind, 110, &vec![f32::NAN; N_HEAD * case.d]);
            let found = set.run(kind, &[]);
            let rows: Vec<bool> = found.chunks_exact(case.dv).map(|r| r.iter().all(|x| x.is_nan())).collect();
            let expected: Vec<bool> = (0..rows.len()).map(|r| 100 + r / group >= 110).collect();
            assert_eq!(rows, expected, "{}", kind.name());
        }
    }
}
