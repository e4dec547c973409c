//! Attention over pages against a plain f64 implementation, and against itself cut in other ways.

use super::*;
use crate::attention::{At, CacheType, NO_PAGE, PAGE, PageShape, Place};
use ikq_simd::available;

/// A layer and a sequence.
#[derive(Clone, Debug)]
struct Case {
    d: usize,
    /// 0: values are the beginning of latent keys, all but 64 elements.
    dv: usize,
    n_kv: usize,
    group: usize,
    ty: CacheType,
    rotated: bool,
    window: Option<usize>,
    softcap: Option<f32>,
    sink: Option<f32>,
    /// Length of the sequence.
    n: usize,
}

const PLAIN: Case = Case {
    d: 64,
    dv: 64,
    n_kv: 2,
    group: 2,
    ty: CacheType::F16,
    rotated: false,
    window: None,
    softcap: None,
    sink: None,
    n: 300,
};

fn numbers(n: usize, seed: usize) -> Vec<f32> {
    let mut state = seed as u64 * 0x9e37_79b9 + 12345;
    let mut next = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / f32::powi(2.0, 23) - 1.0
    };
    (0..n).map(|_| next()).collect()
}

/// A case with its numbers and storage.
struct Set {
    case: Case,
    /// Queries, keys, values: a column per position.
    columns: [Vec<f32>; 3],
    sinks: Option<Vec<f32>>,
    keys: Pages,
    values: Option<Pages>,
    table: Vec<u32>,
}

impl Set {
    fn new(case: &Case) -> Set {
        let Case { d, dv, n_kv, group, ty, n, .. } = *case;
        let turned = |shape: PageShape| if case.rotated { shape.rotated() } else { shape };
        let keys = match dv {
            0 => PageShape::latent(ty, d - 64, 64),
            _ => PageShape::keys(ty, n_kv, d),
        };
        let keys = Pages::new(turned(keys.expect("whole blocks")));
        let values = (dv > 0).then(|| PageShape::values(ty, n_kv, dv).expect("whole blocks"));
        let values = values.map(|shape| Pages::new(turned(shape)));
        let n_pages = n.div_ceil(PAGE);
        // pages in no order, some unused, in several pieces of memory
        let table = (0..n_pages as u32).rev().map(|p| 2 * p + 1).collect();
        let queries = numbers(n * n_kv * group * d, 3).into_iter().map(|q| 4.0 * q).collect();
        let columns = [queries, numbers(n * n_kv * d, 1), numbers(n * n_kv * dv, 2)];
        let sinks = case.sink.map(|s| (0..n_kv * group).map(|h| s + h as f32 / 8.0).collect());
        let mut set = Set { case: case.clone(), columns, sinks, keys, values, table };
        for pages in set.all_pages() {
            for _ in 0..=n_pages {
                pages.grow(2).expect("fits");
            }
        }
        set
    }

    fn all_pages(&mut self) -> Vec<&mut Pages> {
        std::iter::once(&mut self.keys).chain(&mut self.values).collect()
    }

    fn scale(&self) -> f32 {
        1.0 / (self.case.d as f32).sqrt()
    }

    fn dv(&self) -> usize {
        if self.case.dv == 0 { self.case.d - 64 } else { self.case.dv }
    }

    /// Stores the keys and values of positions.
    fn store(&mut self, kind: IsaKind, positions: Range<usize>) {
        let table = self.table.clone();
        let places: Vec<Place> =
            positions.map(|p| Place { at: At::of(&table, p), column: p as u32 }).collect();
        let [_, k, v] = &self.columns;
        for (pages, columns) in [&mut self.keys].into_iter().chain(&mut self.values).zip([k, v]) {
            pages.store(kind, &places, columns);
        }
    }

    /// Attention of runs of positions in one step, each as a sequence of its own, on `n_threads` threads as far as
    /// the plan is concerned.
    fn attend(&self, kind: IsaKind, queries: &[f32], runs: &[Range<usize>], n_threads: usize) -> Vec<f32> {
        let Case { d, n_kv, group, softcap, window, .. } = self.case;
        let n_head = n_kv * group;
        let of_step: Vec<f32> =
            runs.iter().flat_map(|r| &queries[r.start * n_head * d..r.end * n_head * d]).copied().collect();
        let attention = Attention {
            queries: &of_step,
            q_stride: d,
            n_head,
            keys: &self.keys,
            values: self.values.as_ref(),
            scale: self.scale(),
            softcap,
            sinks: self.sinks.as_deref(),
            window,
        };
        let table = &self.table[..];
        let sequences: Vec<_> = runs.iter().map(|r| Sequence { n: r.len(), first: r.start, table }).collect();
        let sizes: Vec<_> = runs.iter().map(|r| (r.len(), r.start)).collect();
        let plan = Plan::new(n_kv, group, window, &sizes, n_threads);
        let n: usize = runs.iter().map(Range::len).sum();
        let mut out = vec![f32::NAN; n * n_head * self.dv()];
        let mut partials = Vec::new();
        // what earlier work left in these must not matter
        let mut scratch = Scratch::default();
        let mut work = Work::new(&plan, &attention, &sequences, &mut out, &mut partials);
        let mut units = work.units();
        // any order
        units.reverse();
        units.iter_mut().for_each(|unit| unit.run(kind, &mut scratch));
        drop(units);
        work.merges().iter_mut().for_each(|merge| merge.run(kind, &mut scratch));
        drop(work);
        out
    }

    /// The sequence from position `first` on in steps of `step` tokens, each stored before it is attended to.
    fn in_steps(&mut self, kind: IsaKind, first: usize, step: usize, n_threads: usize) -> Vec<f32> {
        let queries = self.columns[0].clone();
        self.store(kind, 0..first);
        let mut out = Vec::new();
        for from in (first..self.case.n).step_by(step) {
            let to = self.case.n.min(from + step);
            self.store(kind, from..to);
            out.extend(self.attend(kind, &queries, &[from..to], n_threads));
        }
        out
    }

    /// The rows of a head as they are read.
    fn rows(&self, kind: IsaKind, pages: &Pages, head: usize) -> Vec<f32> {
        let d = pages.shape().d();
        let mut rows = vec![0.0; self.case.n * d];
        for (page, rows) in self.table.iter().zip(rows.chunks_mut(PAGE * d)) {
            pages.decode(kind, head, *page, 0..rows.len() / d, rows);
        }
        rows
    }

    /// The same from position `first` on in f64.
    fn truth(&self, kind: IsaKind, queries: &[f32], first: usize) -> Vec<f64> {
        let Case { d, n_kv, group, window, softcap, n, .. } = self.case;
        let (n_head, dv) = (n_kv * group, self.dv());
        let mut out = vec![0.0; (n - first) * n_head * dv];
        for head in 0..n_head {
            let keys = self.rows(kind, &self.keys, head / group);
            let values = match &self.values {
                Some(pages) => self.rows(kind, pages, head / group),
                None => keys.chunks_exact(d).flat_map(|k| &k[..dv]).copied().collect(),
            };
            let sink = self.sinks.as_ref().map(|s| f64::from(s[head]));
            for i in first..n {
                let q = &queries[(i * n_head + head) * d..][..d];
                let score = |j: usize| {
                    let products = q.iter().zip(&keys[j * d..]).map(|(q, k)| f64::from(*q) * f64::from(*k));
                    let s = products.sum::<f64>() * f64::from(self.scale());
                    softcap.map_or(s, |c| f64::from(c) * (s / f64::from(c)).tanh())
                };
                let from = (i + 1).saturating_sub(window.unwrap_or(n));
                let scores: Vec<f64> = (from..=i).map(score).collect();
                let max = scores.iter().copied().chain(sink).fold(f64::NEG_INFINITY, f64::max);
                let mut sum = sink.map_or(0.0, |s| (s - max).exp());
                let row = &mut out[((i - first) * n_head + head) * dv..][..dv];
                for (s, v) in scores.iter().zip(values[from * dv..].chunks_exact(dv)) {
                    let p = (s - max).exp();
                    sum += p;
                    row.iter_mut().zip(v).for_each(|(o, v)| *o += p * f64::from(*v));
                }
                row.iter_mut().for_each(|o| *o /= sum);
            }
        }
        out
    }
}

fn same_bits(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits())
}

/// From position `first` on: against f64, and bits token by token against steps of other sizes and other plans.
fn check(case: &Case, first: usize) {
    for kind in available() {
        let mut set = Set::new(case);
        let queries = set.columns[0].clone();
        let one = set.in_steps(kind, first, 1, 1);
        // means of values up to 1 (6 where they were turned and back): scores up to 4 sqrt(d) carry roundings of their
        // size, exponentials inherit them relatively, sums add a few more
        let size = 4.0 * (case.d as f64).sqrt();
        let turned = if case.rotated { 16.0 } else { 1.0 };
        let bound = turned * (size / 2.0 + 16.0) * f64::powi(2.0, -23);
        for (i, (found, truth)) in one.iter().zip(set.truth(kind, &queries, first)).enumerate() {
            let error = (f64::from(*found) - truth).abs();
            assert!(error <= bound, "{} {case:?} at {i}: {found} for {truth}", kind.name());
        }
        let steps = [(2, 1), (3, 5), (7, 64), (64, 2), (100, 1), (case.n, 16)];
        // the slow one: some of them
        let steps = if kind == IsaKind::Scalar { &steps[2..4] } else { &steps[..] };
        for &(step, n_threads) in steps {
            if first + step > case.n.next_multiple_of(step) {
                continue;
            }
            let mut fresh = Set::new(case);
            let many = fresh.in_steps(kind, first, step, n_threads);
            assert!(same_bits(&one, &many), "{} {case:?} in steps of {step}", kind.name());
        }
        // one token on many threads
        let (last, row) = (case.n - 1, one.len() / (case.n - first));
        let alone = set.attend(kind, &queries, &[last..case.n], 64);
        assert!(same_bits(&one[one.len() - row..], &alone), "{} {case:?} on 64 threads", kind.name());
    }
}

#[test]
fn head_sizes_and_groups() {
    for (d, dv) in [(8, 8), (40, 24), (64, 64), (80, 80), (96, 96), (128, 128), (192, 128), (256, 256)] {
        for (n_kv, group) in [(2, 1), (1, 4), (1, 7), (1, 9)] {
            check(&Case { d, dv, n_kv, group, n: 140, ..PLAIN }, 60);
        }
    }
    for group in [2, 3, 5, 6, 8, 16] {
        check(&Case { n_kv: 1, group, n: 140, ..PLAIN }, 60);
    }
}

#[test]
fn every_type() {
    for ty in CacheType::ALL {
        for group in [1, 3] {
            check(&Case { d: 96, dv: 64, group, ty, ..PLAIN }, 200);
        }
        check(&Case { d: 128, dv: 128, n_kv: 1, group: 8, ty, rotated: true, ..PLAIN }, 230);
    }
}

#[test]
fn latent_keys_are_values_too() {
    for ty in [CacheType::F32, CacheType::F16, CacheType::BF16, CacheType::Q8_0, CacheType::Q4_0] {
        for (rotated, group) in [(false, 1), (false, 16), (true, 6)] {
            let case = Case { d: 192, dv: 0, n_kv: 1, group, ty, rotated, ..PLAIN };
            check(&case, 200);
        }
    }
    check(&Case { d: 576, dv: 0, n_kv: 1, group: 16, n: 70, ..PLAIN }, 30);
    // a rank that is no multiple of sixteen, and more heads than a tile has
    check(&Case { d: 64 + 40, dv: 0, n_kv: 1, group: 160, n: 80, ..PLAIN }, 60);
}

#[test]
fn windows_sinks_and_soft_caps() {
    for window in [1, 2, 16, 63, 64, 65, 100, 1000, usize::MAX] {
        check(&Case { window: Some(window), ..PLAIN }, 150);
        check(&Case { window: Some(window), n: 150, ty: CacheType::F32, ..PLAIN }, 0);
    }
    for sink in [-1e30, -5.0, 0.0, 50.0] {
        for softcap in [None, Some(2.0), Some(50.0)] {
            check(&Case { sink: Some(sink), softcap, n: 100, ..PLAIN }, 40);
        }
    }
    check(&Case { sink: Some(1.0), window: Some(4), softcap: Some(3.0), n: 100, ..PLAIN }, 40);
}

#[test]
fn chunks_and_spans_do_not_show() {
    let case = Case { n_kv: 1, n: 1300, d: 32, dv: 32, ..PLAIN };
    check(&case, 1100);
    check(&Case { window: Some(600), ..case.clone() }, 1180);
    let long = Case { n: 3 * 8192 + 100, d: 16, dv: 16, ..case };
    for kind in available() {
        for window in [None, Some(9000)] {
            let mut set = Set::new(&Case { window, ..long.clone() });
            let queries = set.columns[0].clone();
            let n = long.n;
            set.store(kind, 0..n);
            let one = set.attend(kind, &queries, &[n - 5..n], 1);
            for (found, truth) in one.iter().zip(set.truth(kind, &queries, n - 5)) {
                // as above, and sums over many more keys
                assert!((f64::from(*found) - truth).abs() < 8e-6, "{found} {truth}");
            }
            for n_threads in [2, 3, 4, 6, 8, 16, 200] {
                for runs in [vec![n - 5..n], vec![n - 5..n - 1, n - 1..n], vec![n - 5..n - 3, n - 3..n]] {
                    let other = set.attend(kind, &queries, &runs, n_threads);
                    assert!(same_bits(&one, &other), "{} {n_threads} {runs:?} {window:?}", kind.name());
                }
            }
        }
    }
}

#[test]
fn other_sequences_of_a_step_do_not_matter() {
    for kind in available() {
        for ty in [CacheType::F16, CacheType::Q8_0] {
            let mut set = Set::new(&Case { ty, n: 900, group: 3, ..PLAIN });
            let queries = set.columns[0].clone();
            set.store(kind, 0..900);
            let runs = [700..701, 0..130, 899..900, 300..305, 512..512, 640..720];
            for n_threads in [1, 4, 32] {
                let together = set.attend(kind, &queries, &runs, n_threads);
                let alone = runs.iter().flat_map(|r| set.attend(kind, &queries, std::slice::from_ref(r), 1));
                assert!(same_bits(&together, &alone.collect::<Vec<_>>()), "{} {n_threads}", kind.name());
            }
        }
    }
}

#[test]
fn nan_and_infinity_reach_those_who_see_them_only() {
    for kind in available() {
        // a key, a value
        for (which, bad) in [(1, f32::NAN), (2, f32::NAN), (2, f32::INFINITY)] {
            for (group, window) in [(1, None), (6, Some(40)), (6, None)] {
                let case = Case { n_kv: 1, group, window, ty: CacheType::BF16, n: 140, ..PLAIN };
                let (mut set, mut well) = (Set::new(&case), Set::new(&case));
                set.columns[which][110 * 64..111 * 64].fill(bad);
                let queries = set.columns[0].clone();
                set.store(kind, 0..140);
                well.store(kind, 0..140);
                let found = set.attend(kind, &queries, &[80..140, 130..140], 1);
                let well = well.attend(kind, &queries, &[80..140, 130..140], 1);
                let row = group * 64;
                let rows = found.chunks_exact(row).zip(well.chunks_exact(row));
                let positions = (80..140).chain(130..140);
                for ((found, well), p) in rows.zip(positions) {
                    let sees = p >= 110 && window.is_none_or(|w| p - 110 < w);
                    match sees {
                        true => assert!(found.iter().all(|x| !x.is_finite()), "{} {p}", kind.name()),
                        false => assert!(same_bits(found, well), "{} {p} {which}", kind.name()),
                    }
                }
            }
        }
    }
}

#[test]
fn nothing_behind_the_window_or_after_the_sequence_is_touched() {
    for kind in available() {
        let case = Case { n: 1000, window: Some(300), ty: CacheType::F32, ..PLAIN };
        let mut set = Set::new(&case);
        let queries = set.columns[0].clone();
        set.store(kind, 0..1000);
        let expected = set.attend(kind, &queries, &[990..1000], 3);
        // 990 sees 691 and later
        let (table, bad) = (set.table.clone(), f32::NAN.to_le_bytes());
        for pages in set.all_pages() {
            for page in &table[..2] {
                pages.page_mut(*page).as_chunks_mut::<4>().0.fill(bad);
            }
        }
        (set.table[0], set.table[1]) = (NO_PAGE, NO_PAGE);
        let places: Vec<Place> = (1000..1024).map(|p| Place { at: At::of(&table, p), column: 0 }).collect();
        for pages in set.all_pages() {
            let column = pages.shape().n_head() * pages.shape().d();
            pages.store(kind, &places, &vec![f32::NAN; column]);
        }
        let found = set.attend(kind, &queries, &[990..1000], 3);
        assert!(same_bits(&expected, &found), "{}", kind.name());
    }
}

#[test]
fn huge_scores_stay_finite() {
    for kind in available() {
        let case = Case { n: 700, ty: CacheType::F32, ..PLAIN };
        let mut set = Set::new(&case);
        // scores up to some thousands: only the best counts, and whole blocks are nothing beside it
        let queries: Vec<f32> = set.columns[0].iter().map(|q| 100.0 * q).collect();
        set.store(kind, 0..700);
        let found = set.attend(kind, &queries, &[650..700], 1);
        let truth = set.truth(kind, &queries, 650);
        // scores carry errors of 3000 * 2^-24 * 8, the exponentials' relative error
        assert!(found.iter().zip(truth).all(|(f, t)| (f64::from(*f) - t).abs() < 4e-3));
    }
}

#[test]
fn turning_rows_helps_where_elements_are_large() {
    let kind = ikq_simd::best();
    let mut errors = Vec::new();
    for rotated in [false, true] {
        let case = Case { d: 128, dv: 128, ty: CacheType::Q4_0, rotated, n: 200, ..PLAIN };
        let (mut set, mut exact) =
            (Set::new(&case), Set::new(&Case { ty: CacheType::F32, rotated: false, ..case }));
        let mut queries = set.columns[0].clone();
        // as keys of models are: an element of each block is much larger, and queries nearly ignore it
        for columns in &mut set.columns[1..] {
            columns.chunks_exact_mut(32).for_each(|c| c[5] *= 30.0);
        }
        queries.chunks_exact_mut(32).for_each(|c| c[5] /= 30.0);
        exact.columns = set.columns.clone();
        set.store(kind, 0..200);
        exact.store(kind, 0..200);
        let found = set.attend(kind, &queries, &[100..200], 1);
        let truth = exact.truth(kind, &queries, 100);
        let square = |(f, t): (&f32, f64)| (f64::from(*f) - t).powi(2);
        errors.push(found.iter().zip(truth).map(square).sum::<f64>());
    }
    assert!(errors[1] < 0.2 * errors[0], "{errors:?}");
}
