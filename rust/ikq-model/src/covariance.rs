//! Covariances of what matrices are multiplied with: per input the sum of x x^T, for error feedback.
//!
//! ```text
//! observe   keeps the floats of the chunk that is being run
//! commit    adds their products, in single precision over the chunk, to sums in single precision
//! discard   forgets the floats: an interrupted chunk leaves nothing
//! ```
//! Where a model that is quantized in part meets other inputs than the whole one, [`CovarianceCollector::commit_for`] adds, beside
//! them, the sums of (wanted - met) met^T, over the tokens that an input has in both models; of matrices of which it is known what
//! their products lack ([`Products`]), the sums of that times met^T.
//! Inputs of gate and up projections of experts are one stream, of which a token is a part once, whatever the number of its
//! experts: they have one covariance. All other inputs of several groups (hidden units of experts, heads) have one for each.
//! The first token of each chunk is kept besides ([`Starts`]): it is unlike all others, and what it should count is decided later.
//! Tokens are added in ascending order, an element by one thread: neither threads nor the tokens of a step show.

use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use ikq_covariance::{Missing, Starts, add_cross_products, add_products, triangle};
use ikq_pool::{Cancel, Pool, StartError};
use ikq_simd::IsaKind;

use crate::statistics::{Observed, Owner};

/// Step and number of a chunk's first token.
const FIRST: (u32, u32) = (0, 0);

/// Rows of a triangle that are a unit of work.
const ROWS: usize = 64;

/// A tensor that reads an input: all groups of it in order, or one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InputReader {
    pub tensor: String,
    pub group: Option<usize>,
}

/// The covariance of an input.
#[derive(Debug)]
pub struct InputSums {
    pub readers: Vec<InputReader>,
    /// Number of columns of the input.
    pub k: usize,
    /// How many tokens each group has seen.
    pub counts: Vec<u64>,
    /// Lower triangle of each group; empty where there was no token.
    pub sums: Vec<Vec<f32>>,
    /// Matrix of each group, of rows of `k`: sums with what was `missing`; empty where that was never said.
    pub cross: Vec<Vec<f32>>,
    pub missing: Missing,
    pub starts: Starts,
    pending: Vec<Pending>,
    /// In how many steps of the chunk it was observed.
    n_steps: u32,
}

/// What a chunk of text adds to a group.
#[derive(Clone, Debug, Default)]
struct Pending {
    /// Step and number of each token, ascending.
    tokens: Vec<(u32, u32)>,
    /// Floats, token after token.
    floats: Vec<f32>,
}

impl Pending {
    fn add(&mut self, step: u32, token: u32, floats: &[f32]) {
        self.tokens.push((step, token));
        self.floats.extend_from_slice(floats);
    }

    fn clear(&mut self) {
        self.tokens.clear();
        self.floats.clear();
    }

    /// Tokens that `wanted` has, too: what is wanted less what was met, and what was met.
    fn beside(&self, wanted: &Pending, k: usize) -> (Vec<f32>, Vec<f32>) {
        let (mut missing, mut met) = (Vec::new(), Vec::new());
        let mut others = wanted.tokens.iter().zip(wanted.floats.chunks_exact(k)).peekable();
        for (token, own) in self.tokens.iter().zip(self.floats.chunks_exact(k)) {
            while others.next_if(|(other, _)| *other < token).is_some() {}
            if let Some((_, other)) = others.next_if(|(other, _)| *other == token) {
                missing.extend(other.iter().zip(own).map(|(other, own)| other - own));
                met.extend_from_slice(own);
            }
        }
        (missing, met)
    }
}

/// What products of matrices lack, token by token of a chunk that is a single step.
#[derive(Clone, Copy, Debug)]
pub struct Products<'a> {
    /// The matrices, by the first tensor that reads their input.
    pub tensors: &'a [String],
    /// Floats of a token.
    pub n_rows: usize,
    /// Floats, token after token.
    pub missing: &'a [f32],
}

impl Products<'_> {
    /// What a token lacks.
    fn of(&self, (step, token): (u32, u32)) -> &[f32] {
        assert_eq!(step, 0, "what products lack is known of a single step");
        &self.missing[token as usize * self.n_rows..][..self.n_rows]
    }
}

/// Keeps what a chunk's first token was for a group, if it has reached it.
fn add_start(starts: &mut Starts, group: usize, pending: &Pending, (k, n_missing): (usize, usize)) {
    if pending.tokens.first() == Some(&FIRST) {
        starts.groups.push(group as u32);
        starts.met.extend_from_slice(&pending.floats[..k]);
        if !starts.missing.is_empty() {
            let n = starts.missing.len().max(n_missing * starts.groups.len());
            starts.missing.resize(n, 0.0);
        }
    }
}

/// Keeps what it lacks: all zeros, if it lacks nothing.
fn add_missing_start(starts: &mut Starts, pending: &Pending, n: usize, missing: impl FnOnce() -> Vec<f32>) {
    if pending.tokens.first() == Some(&FIRST) {
        let missing = missing();
        let before = starts.missing.len().max(n * starts.groups.len());
        starts.missing.resize(before, 0.0);
        starts.missing.extend(missing);
        starts.missing.resize(before + n, 0.0);
    }
}

/// What the input of a chunk's first token lacks. Where `wanted` does not reach the group, nothing is asked for.
fn missing_start(pending: &Pending, wanted: &Pending, k: usize) -> Vec<f32> {
    let is_there = wanted.tokens.first() == Some(&FIRST);
    let n = if is_there { k } else { 0 };
    wanted.floats.iter().zip(&pending.floats).take(n).map(|(wanted, met)| wanted - met).collect()
}

impl InputSums {
    /// The sums of an input, to which more is added.
    pub fn new(
        readers: Vec<InputReader>,
        k: usize,
        counts: Vec<u64>,
        sums: Vec<Vec<f32>>,
        starts: Starts,
    ) -> InputSums {
        let n = counts.len();
        let (cross, pending) = (vec![Vec::new(); n], vec![Pending::default(); n]);
        let missing = Missing::Inputs;
        InputSums { readers, k, counts, sums, cross, missing, starts, pending, n_steps: 0 }
    }

    fn clear(&mut self) {
        self.pending.iter_mut().for_each(Pending::clear);
        self.n_steps = 0;
    }
}

/// Collects the covariances of some layers.
#[derive(Debug)]
pub struct CovarianceCollector {
    layers: Range<usize>,
    kind: IsaKind,
    pool: Pool,
    sites: Mutex<Vec<InputSums>>,
}

impl CovarianceCollector {
    /// For layers (blocks) in a range; products are added by `n_threads` threads, 0 of them meaning one per CPU.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn new(
        layers: Range<usize>,
        kind: IsaKind,
        n_threads: usize,
    ) -> Result<CovarianceCollector, StartError> {
        let pool = Pool::new(n_threads)?;
        Ok(CovarianceCollector { layers, kind, pool, sites: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, Vec<InputSums>> {
        self.sites.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an input of these weights to the current chunk.
    pub(crate) fn observe(&self, owners: &[Owner], input: &Observed<'_>) {
        let is_stream = input.n_groups > 1 && owners.iter().all(reads_the_stream);
        let readers = readers(owners, is_stream);
        let Some(first) = readers.first() else { return };
        if !layer(&first.tensor).is_some_and(|layer| self.layers.contains(&layer)) {
            return;
        }
        let mut sites = self.lock();
        let index = sites.iter().position(|s| s.readers[0] == *first).unwrap_or_else(|| {
            let n_groups = if is_stream { 1 } else { input.n_groups };
            let sums = vec![Vec::new(); n_groups];
            sites.push(InputSums::new(readers, input.k, vec![0; n_groups], sums, Starts::default()));
            sites.len() - 1
        });
        let site = &mut sites[index];
        let step = site.n_steps;
        site.n_steps += 1;
        if is_stream {
            let mut columns: Vec<u32> =
                input.groups.iter().flat_map(|(_, range)| &input.columns[range.clone()]).copied().collect();
            columns.sort_unstable();
            columns.dedup();
            columns.iter().for_each(|c| site.pending[0].add(step, *c, (input.floats)(*c)));
        } else {
            for (group, range) in input.groups {
                for (column, token) in input.columns[range.clone()].iter().zip(&input.tokens[range.clone()]) {
                    site.pending[*group].add(step, *token, (input.floats)(*column));
                }
            }
        }
    }

    /// Counts what was observed since the last call.
    pub(crate) fn commit(&self) {
        self.add(&mut self.lock());
    }

    /// The same beside what `wanted` has observed of the same steps, which it forgets. Of some matrices it may be known
    /// what their products lack; then that counts, and not what their inputs lack.
    pub(crate) fn commit_for(&self, wanted: &CovarianceCollector, products: Option<Products<'_>>) {
        let mut sites = self.lock();
        let mut others = wanted.lock();
        for site in sites.iter_mut() {
            let k = site.k;
            if let Some(products) = products.filter(|p| p.tensors.contains(&site.readers[0].tensor)) {
                self.add_products_for(site, products);
                continue;
            }
            let other = others.iter().find(|o| o.readers == site.readers && o.k == k);
            let Some(other) = other.filter(|o| o.pending.len() == site.pending.len()) else { continue };
            for ((cross, met), wanted) in site.cross.iter_mut().zip(&site.pending).zip(&other.pending) {
                cross.resize(k * k, 0.0);
                add_missing_start(&mut site.starts, met, k, || missing_start(met, wanted, k));
                let (missing, met) = met.beside(wanted, k);
                self.add_cross((&missing, k), (&met, k), cross);
            }
        }
        others.iter_mut().for_each(InputSums::clear);
        self.add(&mut sites);
    }

    /// Adds what products with an input lack.
    fn add_products_for(&self, site: &mut InputSums, products: Products<'_>) {
        let (k, n) = (site.k, products.n_rows);
        site.missing = Missing::Products(n);
        for (cross, met) in site.cross.iter_mut().zip(&site.pending) {
            cross.resize(n * k, 0.0);
            add_missing_start(&mut site.starts, met, n, || products.of(FIRST).to_vec());
            let missing: Vec<f32> = met.tokens.iter().flat_map(|t| products.of(*t)).copied().collect();
            self.add_cross((&missing, n), (&met.floats, k), cross);
        }
    }

    /// Adds the products of what tokens lack and what was met to a matrix.
    fn add_cross(&self, (missing, n): (&[f32], usize), (met, k): (&[f32], usize), cross: &mut [f32]) {
        let units = cross.chunks_mut(ROWS * k).enumerate();
        let units = units.map(|(i, part)| (i * ROWS..n.min((i + 1) * ROWS), part));
        self.for_each(units.collect(), |(rows, part)| {
            add_cross_products(self.kind, (missing, n), (met, k), rows, part);
        });
    }

    fn add(&self, sites: &mut [InputSums]) {
        for site in sites {
            let k = site.k;
            for (group, pending) in site.pending.iter().enumerate() {
                add_start(&mut site.starts, group, pending, (k, site.missing.n_rows(k)));
            }
            let mut units = Vec::new();
            let groups = site.sums.iter_mut().zip(&mut site.counts).zip(&site.pending);
            for ((sums, count), pending) in groups.filter(|(_, p)| !p.tokens.is_empty()) {
                *count += pending.tokens.len() as u64;
                sums.resize(triangle(k), 0.0);
                let mut rest = &mut sums[..];
                for first in (0..k).step_by(ROWS) {
                    let rows = first..k.min(first + ROWS);
                    let (part, others) = rest.split_at_mut(triangle(rows.end) - triangle(first));
                    rest = others;
                    units.push((&pending.floats, rows, part));
                }
            }
            self.for_each(units, |(x, rows, part)| add_products(self.kind, x, k, rows, part));
            site.clear();
        }
    }

    fn for_each<U: Send>(&self, units: Vec<U>, work: impl Fn(U) + Sync + Send) {
        let done = self.pool.for_each(units, &Cancel::new(), |unit| {
            work(unit);
            Ok::<(), std::convert::Infallible>(())
        });
        assert!(done.is_ok(), "nobody cancels");
    }

    /// Forgets what was observed since the last [`CovarianceCollector::commit`].
    pub(crate) fn discard(&self) {
        self.lock().iter_mut().for_each(InputSums::clear);
    }

    /// Looks at what was committed, in the order of first use.
    pub fn look<T>(&self, at: impl FnOnce(&[InputSums]) -> T) -> T {
        at(&self.lock())
    }

    /// Replaces all sums by those of an earlier run, to go on from there.
    pub fn restore(&self, sites: Vec<InputSums>) {
        *self.lock() = sites;
    }
}

/// The block that a tensor belongs to.
fn layer(tensor: &str) -> Option<usize> {
    tensor.strip_prefix("blk.")?.split('.').next()?.parse().ok()
}

/// Whether these are gate or up projections, or a router.
fn reads_the_stream(owner: &Owner) -> bool {
    let role = owner.names.first().and_then(|name| name.split('.').nth(2)).unwrap_or_default();
    role.starts_with("ffn_gate") || role.starts_with("ffn_up")
}

/// Tensors that read an input. Those with the matrices of several groups in two axes read no single covariance, and a
/// router alone wants none.
fn readers(owners: &[Owner], is_stream: bool) -> Vec<InputReader> {
    let mut readers: Vec<InputReader> = Vec::new();
    for owner in owners.iter().filter(|o| !o.pooled) {
        let is_one = owner.names.len() == 1;
        for (group, tensor) in owner.names.iter().enumerate() {
            let group = match (is_one, is_stream) {
                (true, _) => None,
                (false, true) => Some(0),
                (false, false) => Some(group),
            };
            let reader = InputReader { tensor: tensor.clone(), group };
            if !tensor.contains("ffn_gate_inp") && !readers.contains(&reader) {
                readers.push(reader);
            }
        }
    }
    readers
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(names: &[&str], pooled: bool) -> Owner {
        Owner { names: names.iter().map(|n| (*n).to_string()).collect(), pooled }
    }

    fn observe(c: &CovarianceCollector, owners: &[Owner], groups: &[(usize, Range<usize>)], columns: &[u32]) {
        observe_of(c, owners, groups, columns, columns, &[[1.0, 2.0], [3.0, -1.0], [0.5, 0.0]]);
    }

    fn observe_of(
        c: &CovarianceCollector,
        owners: &[Owner],
        groups: &[(usize, Range<usize>)],
        columns: &[u32],
        tokens: &[u32],
        x: &[[f32; 2]; 3],
    ) {
        let floats = &|column: u32| &x[column as usize][..];
        c.observe(owners, &Observed { k: 2, n_groups: 2, groups, columns, tokens, floats });
    }

    fn found(c: &CovarianceCollector) -> Vec<(Vec<u64>, Vec<Vec<f32>>)> {
        c.look(|sites| sites.iter().map(|s| (s.counts.clone(), s.sums.clone())).collect())
    }

    #[test]
    fn experts_have_their_own_hidden_units_and_one_stream() {
        let c = CovarianceCollector::new(1..2, ikq_simd::best(), 2).expect("threads");
        let down = [owner(&["blk.1.ffn_down_exps.weight"], false)];
        let up = [owner(&["blk.1.ffn_up_exps.weight"], false), owner(&["blk.1.ffn_gate_exps.weight"], false)];
        let groups = [(0, 0..2), (1, 2..4)];
        observe(&c, &down, &groups, &[0, 1, 1, 2]);
        observe(&c, &up, &groups, &[0, 1, 1, 2]);
        observe(&c, &[owner(&["blk.0.ffn_down_exps.weight"], false)], &groups, &[0, 1, 1, 2]);
        observe(&c, &[owner(&["output.weight"], false)], &groups, &[0, 1, 1, 2]);
        assert_eq!(found(&c), [(vec![0, 0], vec![vec![], vec![]]), (vec![0], vec![vec![]])]);
        c.commit();
        let of_down = (vec![2, 2], vec![vec![10.0, -1.0, 5.0], vec![9.25, -3.0, 1.0]]);
        // every token once
        let of_up = (vec![3], vec![vec![10.25, -1.0, 5.0]]);
        assert_eq!(found(&c), [of_down.clone(), of_up.clone()]);
        observe(&c, &down, &groups, &[0, 1, 1, 2]);
        c.discard();
        c.commit();
        assert_eq!(found(&c), [of_down, of_up]);
    }

    #[test]
    fn what_is_wanted_is_set_beside_what_was_met_token_by_token() {
        let new = || CovarianceCollector::new(1..2, ikq_simd::best(), 2).expect("threads");
        let (met, wanted) = (new(), new());
        let down = [owner(&["blk.1.ffn_down_exps.weight"], false)];
        // token 0 of expert 0 is the only one that has it in both; the second step has a number of its own
        observe(&met, &down, &[(0, 0..2)], &[0, 1]);
        observe(&met, &down, &[(1, 0..1)], &[2]);
        // columns are of pairs of a token and an expert here
        let x = [[9.0, 9.0], [2.0, 2.0], [0.0, 0.0]];
        observe_of(&wanted, &down, &[(0, 0..2), (1, 2..3)], &[1, 2, 0], &[0, 2, 2], &x);
        observe_of(&wanted, &down, &[(0, 0..1)], &[0], &[2], &x);
        met.commit_for(&wanted, None);
        let cross = met.look(|sites| sites[0].cross.clone());
        // (2 - 1, 2 - 2) times (1, 2)
        assert_eq!(cross, [vec![1.0, 2.0, 0.0, 0.0], vec![0.0; 4]]);
        assert_eq!(found(&met), [(vec![2, 1], vec![vec![10.0, -1.0, 5.0], vec![0.25, 0.0, 0.0]])]);
        // nothing is left of the chunk
        met.commit_for(&wanted, None);
        assert_eq!(met.look(|sites| sites[0].cross.clone()), cross);
    }

    #[test]
    fn what_products_lack_is_set_beside_what_was_met() {
        let new = || CovarianceCollector::new(1..2, ikq_simd::best(), 2).expect("threads");
        let (met, wanted) = (new(), new());
        let name = "blk.1.ffn_down_exps.weight".to_string();
        let down = [owner(&[&name], false)];
        observe(&met, &down, &[(0, 0..2), (1, 2..3)], &[0, 1, 2]);
        // another expert's tokens: what products lack does not depend on them
        observe(&wanted, &down, &[(1, 0..1)], &[0]);
        let tensors = [name];
        let missing = [1.0, 0.0, 2.0, 0.0, 1.0, -1.0, 4.0, 0.0, 0.0];
        met.commit_for(&wanted, Some(Products { tensors: &tensors, n_rows: 3, missing: &missing }));
        // inputs are (1, 2), (3, -1), and (0.5, 0) of the other expert
        let of_first = vec![1.0, 2.0, 3.0, -1.0, -1.0, 5.0];
        met.look(|sites| {
            assert_eq!(sites[0].cross, [of_first, vec![2.0, 0.0, 0.0, 0.0, 0.0, 0.0]]);
            assert_eq!(sites[0].missing, Missing::Products(3));
            let Starts { groups, met, missing } = &sites[0].starts;
            assert_eq!((groups, met, missing), (&vec![0], &vec![1.0, 2.0], &vec![1.0, 0.0, 2.0]));
        });
        assert_eq!(found(&met)[0].0, [2, 1]);
        // the next text begins in both experts
        observe(&met, &down, &[(0, 0..1), (1, 1..2)], &[0, 0]);
        met.commit_for(&wanted, Some(Products { tensors: &tensors, n_rows: 3, missing: &missing[3..6] }));
        met.look(|sites| {
            assert_eq!(sites[0].starts.groups, [0, 0, 1]);
            assert_eq!(sites[0].starts.missing, [1.0, 0.0, 2.0, 0.0, 1.0, -1.0, 0.0, 1.0, -1.0]);
        });
    }

    #[test]
    fn first_tokens_of_chunks_are_kept() {
        let new = || CovarianceCollector::new(1..2, ikq_simd::best(), 2).expect("threads");
        let (met, wanted) = (new(), new());
        let down = [owner(&["blk.1.ffn_down_exps.weight"], false)];
        let starts = |c: &CovarianceCollector| {
            c.look(|s| (s[0].starts.groups.clone(), s[0].starts.met.clone(), s[0].starts.missing.clone()))
        };
        // token 0 reaches expert 1; in the second step of the chunk, and in a chunk of its own where it was discarded, it is none
        observe(&met, &down, &[(0, 1..3), (1, 0..1)], &[0, 1, 2]);
        observe(&met, &down, &[(0, 0..1)], &[0]);
        met.commit();
        assert_eq!(starts(&met), (vec![1], vec![1.0, 2.0], vec![]));
        observe(&met, &down, &[(0, 0..1)], &[0]);
        met.discard();
        // the next chunk's is in both experts, and wanted in one; of the first nothing is wanted
        observe(&met, &down, &[(0, 0..1), (1, 0..1)], &[0]);
        observe_of(&wanted, &down, &[(1, 0..1)], &[0], &[0], &[[2.0, 1.0], [0.0; 2], [0.0; 2]]);
        met.commit_for(&wanted, None);
        let floats = [1.0, 2.0].repeat(3);
        assert_eq!(starts(&met), (vec![1, 0, 1], floats, vec![0.0, 0.0, 0.0, 0.0, 1.0, -1.0]));
    }

    #[test]
    fn who_reads_what() {
        let names = |owners: &[Owner], is_stream| -> Vec<(String, Option<usize>)> {
            readers(owners, is_stream).into_iter().map(|r| (r.tensor, r.group)).collect()
        };
        let experts = [owner(&["blk.0.ffn_up.0.weight", "blk.0.ffn_up.1.weight"], false)];
        let expected =
            |a, b| vec![("blk.0.ffn_up.0.weight".to_string(), a), ("blk.0.ffn_up.1.weight".to_string(), b)];
        assert_eq!(names(&experts, false), expected(Some(0), Some(1)));
        assert_eq!(names(&experts, true), expected(Some(0), Some(0)));
        assert_eq!(names(&[owner(&["blk.0.ffn_gate_inp.weight"], false), owner(&["x"], true)], false), []);
        assert_eq!((layer("blk.12.attn_q.weight"), layer("output.weight")), (Some(12), None));
    }
}
