//! Statistics of what matrices are multiplied with: per column the sum of squares, per expert the number of tokens.
//!
//! They belong to a *site*, an input that one or several weights read (queries, keys and values; gate and up), and are
//! taken where the step has that input as floats, before any product of it is computed. How the products are computed
//! afterwards (fused, merged, separate, absorbed) therefore cannot change or lose them.
//!
//! Sums are in double precision, tokens in ascending order, each column by one thread: neither the number of threads
//! nor that of the tokens of a step shows in them.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use ikq_pool::Team;

use crate::covariance::{CovarianceCollector, Products};

/// What is collected besides the inputs of all layers' matrices.
#[derive(Clone, Copy, Debug, Default)]
pub struct CollectOptions {
    /// Every token counts for every expert, whichever were chosen; the model's output does not change.
    pub all_experts: bool,
    /// The cosines between what goes into a layer and what comes out.
    pub similarity: bool,
    /// The input of the output matrix, at every position.
    pub output: bool,
    /// Which experts every token was routed to.
    pub choices: bool,
}

/// Entries that a weight's statistics make: of one tensor, or of one per expert.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The tensor's name, or the names of the experts' tensors.
    pub names: Vec<String>,
    /// One tensor of two axes holds the matrices of all groups: they share an entry.
    pub pooled: bool,
}

/// The statistics of an input.
#[derive(Clone, Debug, PartialEq)]
pub struct Site {
    pub owners: Vec<Owner>,
    /// Number of columns of the input.
    pub k: usize,
    /// Sums of squares, group (expert or head) after group.
    pub sums: Vec<f64>,
    /// Tokens of each group.
    pub counts: Vec<u64>,
}

/// An entry as files hold it.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    pub name: String,
    /// Sums of squares, expert after expert.
    pub sums: Vec<f64>,
    /// Tokens of each expert.
    pub counts: Vec<u64>,
}

impl Site {
    fn new(owners: Vec<Owner>, k: usize, n_groups: usize) -> Site {
        Site { owners, k, sums: vec![0.0; k * n_groups], counts: vec![0; n_groups] }
    }

    /// Adds another's sums and forgets them there.
    fn take(&mut self, other: &mut Site) {
        let k = self.k.max(1);
        let groups = self.sums.chunks_exact_mut(k).zip(other.sums.chunks_exact_mut(k));
        let counts = self.counts.iter_mut().zip(&mut other.counts);
        for ((to, from), (n_to, n_from)) in groups.zip(counts).filter(|(_, (_, n))| **n > 0) {
            to.iter_mut().zip(from.iter()).for_each(|(to, from)| *to += from);
            from.fill(0.0);
            *n_to += std::mem::take(n_from);
        }
    }

    fn clear(&mut self) {
        self.sums.fill(0.0);
        self.counts.fill(0);
    }

    /// The entries of all owners.
    pub fn entries(&self) -> Vec<Entry> {
        let mut all = Vec::new();
        for owner in &self.owners {
            match (owner.pooled, owner.names.as_slice()) {
                (true, names) => {
                    let mut sums = vec![0.0; self.k];
                    for group in self.sums.chunks_exact(self.k.max(1)) {
                        sums.iter_mut().zip(group).for_each(|(to, from)| *to += from);
                    }
                    let name = names.first().cloned().unwrap_or_default();
                    all.push(Entry { name, sums, counts: vec![self.counts.iter().sum()] });
                }
                (false, [name]) => {
                    let (sums, counts) = (self.sums.clone(), self.counts.clone());
                    all.push(Entry { name: name.clone(), sums, counts });
                }
                (false, names) => {
                    let groups = self.sums.chunks_exact(self.k.max(1)).zip(&self.counts);
                    all.extend(names.iter().zip(groups).map(|(name, (sums, n))| Entry {
                        name: name.clone(),
                        sums: sums.to_vec(),
                        counts: vec![*n],
                    }));
                }
            }
        }
        all
    }
}

/// How much layers change what passes through them: sums over tokens of cosines between input and output.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Similarity {
    /// For each layer the sums of the whole layer, of its attention, and of its feed-forward network.
    pub layers: Vec<[f64; 3]>,
    pub n_tokens: u64,
}

/// Experts of tokens, in the order in which the model ran them.
pub type Choices = Vec<Vec<u32>>;

/// Collects statistics while an engine runs. What was collected since the last [`Collector::commit`] can be thrown
/// away, so that a text that was interrupted does not count in part.
#[derive(Debug, Default)]
pub struct Collector {
    options: CollectOptions,
    state: Mutex<State>,
    covariances: Option<CovarianceCollector>,
}

#[derive(Debug, Default)]
struct State {
    total: Vec<Site>,
    pending: Vec<Site>,
    by_name: HashMap<String, usize>,
    similarity: Similarity,
    similarity_pending: Similarity,
    /// Choices by router, in the order of the routers' first use.
    choices: Vec<(String, Choices)>,
    choices_pending: Vec<(String, Choices)>,
}

/// Columns of a unit of work.
const BLOCK: usize = 1024;

/// An input: the columns (by number) of its groups.
pub struct Observed<'a> {
    pub k: usize,
    pub n_groups: usize,
    /// Group and its range of `columns`; ascending, without overlap.
    pub groups: &'a [(usize, Range<usize>)],
    pub columns: &'a [u32],
    /// The token of each of `columns`: the same number where a token has a column.
    pub tokens: &'a [u32],
    /// The floats of a column.
    pub floats: &'a (dyn Fn(u32) -> &'a [f32] + Sync),
}

/// The sums of some columns of a group, and the first of these columns.
struct Unit<'a> {
    sums: &'a mut [f64],
    first: usize,
    tokens: Range<usize>,
}

impl Collector {
    pub fn new(options: CollectOptions) -> Collector {
        Collector { options, state: Mutex::default(), covariances: None }
    }

    /// A collector that takes covariances as well.
    pub fn with_covariances(options: CollectOptions, covariances: CovarianceCollector) -> Collector {
        Collector { covariances: Some(covariances), ..Collector::new(options) }
    }

    /// The collector of covariances, if they are taken.
    pub fn covariances(&self) -> Option<&CovarianceCollector> {
        self.covariances.as_ref()
    }

    pub fn options(&self) -> CollectOptions {
        self.options
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes an input of these weights. The first names the site: it is always the same one of a site's weights.
    pub fn observe(&self, team: &Team<'_>, owners: &[Owner], input: &Observed<'_>) {
        if let Some(covariances) = &self.covariances {
            covariances.observe(owners, input);
        }
        let state = &mut *self.lock();
        let Some(first) = owners.first().and_then(|o| o.names.first()) else { return };
        let index = state.by_name.get(first).copied().unwrap_or_else(|| {
            let mut once: Vec<Owner> = Vec::new();
            for owner in owners {
                // several roles may be rows of one tensor
                if !once.contains(owner) {
                    once.push(owner.clone());
                }
            }
            state.by_name.insert(first.clone(), state.total.len());
            state.total.push(Site::new(once, input.k, input.n_groups));
            state.total.len() - 1
        });
        while state.pending.len() < state.total.len() {
            let site = &state.total[state.pending.len()];
            state.pending.push(Site::new(Vec::new(), site.k, site.counts.len()));
        }
        let site = &mut state.pending[index];
        assert_eq!((site.k, site.counts.len()), (input.k, input.n_groups));
        let mut units = Vec::new();
        let mut groups = input.groups.iter().peekable();
        for (group, sums) in site.sums.chunks_exact_mut(input.k.max(1)).enumerate() {
            let Some((_, tokens)) = groups.next_if(|(g, _)| *g == group) else { continue };
            site.counts[group] += tokens.len() as u64;
            let blocks = sums.chunks_mut(BLOCK).enumerate();
            units.extend(blocks.map(|(i, sums)| Unit { sums, first: i * BLOCK, tokens: tokens.clone() }));
        }
        team.for_each(&mut units, |unit, _| {
            for column in &input.columns[unit.tokens.clone()] {
                let x = &(input.floats)(*column)[unit.first..][..unit.sums.len()];
                for (sum, x) in unit.sums.iter_mut().zip(x) {
                    let x = f64::from(*x);
                    *sum += x * x;
                }
            }
        });
    }

    /// Takes the residual stream before and after a part of a layer (0: all of it, 1: attention, 2: FFN).
    pub fn compare(
        &self,
        team: &Team<'_>,
        layer: usize,
        part: usize,
        before: &[f32],
        after: &[f32],
        k: usize,
    ) {
        let pairs = before.chunks_exact(k).zip(after.chunks_exact(k));
        let mut tokens: Vec<_> = pairs.map(|(a, b)| (a, b, 0.0)).collect();
        team.for_each(&mut tokens, |(a, b, cosine), _| *cosine = cosine_of(a, b));
        let similarity = &mut self.lock().similarity_pending;
        if similarity.layers.len() <= layer {
            similarity.layers.resize(layer + 1, [0.0; 3]);
        }
        similarity.layers[layer][part] += tokens.iter().map(|(_, _, c)| c).sum::<f64>();
        if (layer, part) == (0, 0) {
            similarity.n_tokens += tokens.len() as u64;
        }
    }

    /// Adds what a router has chosen: for each token its experts with their weights.
    pub fn choose(&self, router: &str, choices: &[Vec<(u32, f32)>]) {
        let tokens = choices.iter().map(|chosen| chosen.iter().map(|(expert, _)| *expert).collect());
        append(&mut self.lock().choices_pending, router, tokens);
    }

    /// What routers have chosen, of what was committed.
    pub fn choices(&self) -> Vec<(String, Choices)> {
        self.lock().choices.clone()
    }

    /// Counts what was collected since the last call.
    pub fn commit(&self) {
        if let Some(covariances) = &self.covariances {
            covariances.commit();
        }
        self.commit_statistics();
    }

    /// The same, covariances beside those inputs that `wanted` has collected of the same steps; it forgets them.
    pub fn commit_for(&self, wanted: &Collector, products: Option<Products<'_>>) {
        if let (Some(covariances), Some(wanted)) = (&self.covariances, &wanted.covariances) {
            covariances.commit_for(wanted, products);
        }
        wanted.discard();
        self.commit_statistics();
    }

    fn commit_statistics(&self) {
        let State { total, pending, similarity, similarity_pending, choices, choices_pending, .. } =
            &mut *self.lock();
        for (router, tokens) in std::mem::take(choices_pending) {
            append(choices, &router, tokens);
        }
        total.iter_mut().zip(pending).for_each(|(total, pending)| total.take(pending));
        let new = std::mem::take(similarity_pending);
        similarity.layers.resize(new.layers.len().max(similarity.layers.len()), [0.0; 3]);
        for (to, from) in similarity.layers.iter_mut().zip(&new.layers) {
            to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
        }
        similarity.n_tokens += new.n_tokens;
    }

    /// Forgets what was collected since [`Collector::commit`].
    pub fn discard(&self) {
        if let Some(covariances) = &self.covariances {
            covariances.discard();
        }
        let state = &mut *self.lock();
        state.pending.iter_mut().for_each(Site::clear);
        state.similarity_pending = Similarity::default();
        state.choices_pending.clear();
    }

    /// What was committed, in the order of first use, and how alike layers' inputs and outputs are.
    pub fn sites(&self) -> (Vec<Site>, Similarity) {
        let state = self.lock();
        (state.total.clone(), state.similarity.clone())
    }

    /// How alike layers' inputs and outputs are, of what was committed.
    pub fn similarity(&self) -> Similarity {
        self.lock().similarity.clone()
    }

    /// What was committed, as entries.
    pub fn entries(&self) -> Vec<Entry> {
        self.lock().total.iter().flat_map(Site::entries).collect()
    }

    /// Replaces all sums by what [`Collector::sites`] gave in an earlier run, to go on from there.
    pub fn restore(&self, sites: Vec<Site>, similarity: Similarity) {
        let name =
            |site: &Site| site.owners.first().and_then(|o| o.names.first()).cloned().unwrap_or_default();
        let by_name = sites.iter().enumerate().map(|(i, site)| (name(site), i)).collect();
        *self.lock() = State { total: sites, by_name, similarity, ..State::default() };
    }
}

fn append(all: &mut Vec<(String, Choices)>, router: &str, tokens: impl IntoIterator<Item = Vec<u32>>) {
    match all.iter_mut().find(|(name, _)| name == router) {
        Some((_, of_router)) => of_router.extend(tokens),
        None => all.push((router.to_string(), tokens.into_iter().collect())),
    }
}

/// 0 where one of both is zero.
fn cosine_of(a: &[f32], b: &[f32]) -> f64 {
    let dot =
        |a: &[f32], b: &[f32]| -> f64 { a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum() };
    let lengths = (dot(a, a) * dot(b, b)).sqrt();
    if lengths > 0.0 { dot(a, b) / lengths } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn site(owners: Vec<Owner>) -> Site {
        Site { owners, k: 2, sums: vec![1.0, 2.0, 4.0, 8.0], counts: vec![3, 5] }
    }

    fn owner(names: &[&str], pooled: bool) -> Owner {
        Owner { names: names.iter().map(|n| (*n).to_string()).collect(), pooled }
    }

    #[test]
    fn every_owner_gets_its_entries() {
        let owners = vec![owner(&["whole"], false), owner(&["a", "b"], false), owner(&["pooled"], true)];
        let found: Vec<_> = site(owners).entries().into_iter().map(|e| (e.name, e.sums, e.counts)).collect();
        let expected = [
            ("whole", vec![1.0, 2.0, 4.0, 8.0], vec![3, 5]),
            ("a", vec![1.0, 2.0], vec![3]),
            ("b", vec![4.0, 8.0], vec![5]),
            ("pooled", vec![5.0, 10.0], vec![8]),
        ];
        assert_eq!(found, expected.map(|(n, s, c)| (n.to_string(), s, c)));
    }

    #[test]
    fn what_is_taken_is_gone() {
        let mut total = Site::new(vec![owner(&["x"], false)], 2, 2);
        let mut pending = site(Vec::new());
        total.take(&mut pending);
        total.take(&mut pending);
        assert_eq!(total.sums, [1.0, 2.0, 4.0, 8.0]);
        assert_eq!(total.counts, [3, 5]);
        assert_eq!(pending.sums, [0.0; 4]);
    }

    #[test]
    fn cosines() {
        assert!((cosine_of(&[1.0, 0.0], &[1.0, 1.0]) - 0.5f64.sqrt()).abs() < 1e-15);
        assert_eq!(cosine_of(&[0.0, 0.0], &[1.0, 1.0]), 0.0);
    }
}
