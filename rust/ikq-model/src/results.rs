//! What a step gives: logits, hidden states, or only the largest logits, for those who choose from these.

use crate::batch::Batch;

/// Most logits of a position that may be wanted as its largest.
pub const MOST_BEST: usize = 64;

/// A token and its logit.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Best {
    pub id: u32,
    pub logit: f32,
}

/// What the last stage of a step writes.
pub struct Results<'a> {
    /// For each of the batch's columns whose logits are wanted, `n_vocab` floats.
    pub logits: &'a mut [f32],
    /// For each of those whose hidden states are wanted, `n_embd` floats.
    pub hidden: &'a mut [f32],
    /// For each of those whose largest logits are wanted, as many as the batch says, in the order of [`best`].
    pub best: &'a mut [Best],
}

/// What a step gives for the tokens of one sequence.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Output {
    /// Logits, `n_vocab` per position wanted, or hidden states, `n_embd`.
    pub floats: Vec<f32>,
    /// The largest logits, for each position wanted as many as were asked for, or all that there are.
    pub best: Vec<Best>,
}

/// What a step computes for all sequences, before each gets its own.
pub(crate) struct Computed {
    logits: Vec<f32>,
    hidden: Vec<f32>,
    best: Vec<Best>,
    n_vocab: usize,
    n_embd: usize,
    n_best: usize,
}

/// What an [`Output`] gets of the columns of its piece, of which there are so many.
#[derive(Clone, Copy)]
pub(crate) enum Share {
    Logits(usize),
    Hidden(usize),
    /// The second number is that of the logits of each.
    Best(usize, usize),
}

impl Computed {
    /// Room for what a batch wants.
    pub fn new(batch: &Batch, n_vocab: usize, n_embd: usize) -> Computed {
        Computed {
            logits: vec![0.0; batch.logits.len() * n_vocab],
            hidden: vec![0.0; batch.hidden.len() * n_embd],
            best: vec![Best::default(); batch.best.len() * batch.n_best],
            n_vocab,
            n_embd,
            n_best: batch.n_best,
        }
    }

    pub fn results(&mut self) -> Results<'_> {
        Results { logits: &mut self.logits, hidden: &mut self.hidden, best: &mut self.best }
    }

    /// The first column with a number that is infinite or none, and what it is.
    pub fn not_finite(&self, batch: &Batch) -> Option<(usize, String)> {
        let floats = |column: &u32, values: &[f32]| {
            let index = first_not_finite(values)?;
            Some((*column as usize, format!("number {index} is {}", values[index])))
        };
        let mut logits = batch.logits.iter().zip(self.logits.chunks_exact(self.n_vocab));
        let mut hidden = batch.hidden.iter().zip(self.hidden.chunks_exact(self.n_embd));
        let mut best = batch.best.iter().zip(self.best.chunks_exact(self.n_best.max(1)));
        let logits = logits.find_map(|(column, values)| floats(column, values));
        let hidden = || hidden.find_map(|(column, values)| floats(column, values));
        let best = || {
            let first = best.find(|(_, best)| !best[0].logit.is_finite());
            first.map(|(column, best)| {
                (*column as usize, format!("number {} is {}", best[0].id, best[0].logit))
            })
        };
        logits.or_else(best).or_else(hidden)
    }

    /// Appends what was computed for pieces, in their order, to what their entries get.
    pub fn hand_out(self, shares: impl Iterator<Item = (usize, Share)>, out: &mut [Output]) {
        let Computed { mut logits, hidden, best, n_vocab, n_embd, n_best } = self;
        let (mut n_logits, mut n_hidden, mut best) = (0, 0, best.chunks_exact(n_best.max(1)));
        for (entry, share) in shares {
            let to = &mut out[entry];
            let (from, at, len) = match share {
                // a generated token's logits are all there are: nothing is copied
                Share::Logits(n) if n * n_vocab == logits.len() && to.floats.is_empty() => {
                    to.floats = std::mem::take(&mut logits);
                    continue;
                }
                Share::Logits(n) => (&logits, &mut n_logits, n * n_vocab),
                Share::Hidden(n) => (&hidden, &mut n_hidden, n * n_embd),
                Share::Best(n, each) => {
                    best.by_ref().take(n).for_each(|best| to.best.extend(&best[..each]));
                    continue;
                }
            };
            to.floats.extend_from_slice(&from[*at..*at + len]);
            *at += len;
        }
    }
}

/// Finds the largest of a column's logits, the largest first and of equal ones the one with the lower id. There must be
/// as many logits as results.
///
/// A logit that is infinite or no number counts as larger than all others: if there is one, the first result has it.
#[expect(clippy::neg_cmp_op_on_partial_ord, reason = "NaN is of interest")]
pub fn best(logits: &[f32], out: &mut [Best]) {
    // blocks are skipped whose logits all come behind those that were found: what is asked of each is the same, and can be
    // asked of many at a time
    const BLOCK: usize = 64;
    let (mut n, mut bound) = (0, f32::NAN);
    for (block, values) in logits.chunks(BLOCK).enumerate() {
        let may_be_better = |v: &f32| !(*v <= bound) | (*v == f32::NEG_INFINITY);
        if values.iter().fold(0, |any, v| any | u32::from(may_be_better(v))) == 0 {
            continue;
        }
        for (i, logit) in values.iter().enumerate() {
            // later ones have higher ids: of equal ones they come last
            let (id, rank) = ((block * BLOCK + i) as u32, rank(*logit));
            if rank <= bound {
                continue;
            }
            let before = out[..n].partition_point(|b| self::rank(b.logit) >= rank);
            n = (n + 1).min(out.len());
            out.copy_within(before..n - 1, before + 1);
            out[before] = Best { id, logit: *logit };
            if n == out.len() {
                bound = self::rank(out[n - 1].logit);
            }
        }
    }
}

/// Where a logit stands among others.
fn rank(logit: f32) -> f32 {
    if logit.is_finite() { logit } else { f32::INFINITY }
}

/// Where the first infinity or NaN is.
pub(crate) fn first_not_finite(values: &[f32]) -> Option<usize> {
    // the largest bits without the sign, many at a time: nearly always there is none to look for
    let largest = values.iter().fold(0, |largest: i32, v| largest.max((v.to_bits() & 0x7fff_ffff) as i32));
    match largest < f32::INFINITY.to_bits() as i32 {
        true => None,
        false => values.iter().position(|v| !v.is_finite()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All ids in the order of results.
    fn sorted(logits: &[f32]) -> Vec<u32> {
        let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
        let size = |id: &u32| rank(logits[*id as usize]);
        ids.sort_by(|a, b| size(b).partial_cmp(&size(a)).expect("ranks are numbers")); // keeps the order of equal ones
        ids
    }

    /// Numbers with many equal ones among them.
    fn some(n: usize, seed: u32) -> Vec<f32> {
        let next = |x: &mut u32| {
            *x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            Some((*x >> 24) as f32 / 8.0 - 16.0)
        };
        let mut state = seed;
        std::iter::from_fn(|| next(&mut state)).take(n).collect()
    }

    fn ids(logits: &[f32], n: usize) -> Vec<u32> {
        let mut out = vec![Best::default(); n];
        best(logits, &mut out);
        assert!(out.iter().all(|b| b.logit.to_bits() == logits[b.id as usize].to_bits()));
        out.iter().map(|b| b.id).collect()
    }

    #[test]
    fn the_largest_come_in_order() {
        for seed in 0..50 {
            let logits = some(1 + seed as usize * 7, seed);
            for n in [1, 2, 5, MOST_BEST].map(|n| n.min(logits.len())) {
                assert_eq!(ids(&logits, n), sorted(&logits)[..n], "{n} of {}", logits.len());
            }
        }
    }

    #[test]
    fn every_entry_gets_its_own() {
        let batch =
            Batch { logits: vec![1, 4], hidden: vec![0], best: vec![2, 3, 5], n_best: 3, ..Batch::default() };
        let mut computed = Computed::new(&batch, 4, 2);
        let Results { logits, hidden, best } = computed.results();
        (0..8).for_each(|i| logits[i] = i as f32);
        hidden.copy_from_slice(&[8.0, 9.0]);
        (0..9).for_each(|i| best[i] = Best { id: i as u32, logit: 0.0 });
        assert_eq!(computed.not_finite(&batch), None);
        // the third has two columns, and wants fewer than others
        let shares = [
            (1, Share::Hidden(1)),
            (0, Share::Logits(1)),
            (2, Share::Best(2, 1)),
            (3, Share::Logits(1)),
            (4, Share::Best(1, 3)),
        ];
        let mut out = vec![Output::default(); 5];
        computed.hand_out(shares.into_iter(), &mut out);
        let floats: Vec<_> = out.iter().map(|o| o.floats.clone()).collect();
        assert_eq!(
            floats,
            [vec![0.0, 1.0, 2.0, 3.0], vec![8.0, 9.0], vec![], vec![4.0, 5.0, 6.0, 7.0], vec![]]
        );
        let ids: Vec<Vec<u32>> = out.iter().map(|o| o.best.iter().map(|b| b.id).collect()).collect();
        assert_eq!(ids, [vec![], vec![], vec![0, 3], vec![], vec![6, 7, 8]]);
    }

    #[test]
    fn what_is_not_finite_is_told() {
        let batch = Batch { logits: vec![1], best: vec![2, 3], n_best: 1, ..Batch::default() };
        let mut computed = Computed::new(&batch, 4, 2);
        computed.results().best[1] = Best { id: 7, logit: f32::NAN };
        assert_eq!(computed.not_finite(&batch), Some((3, "number 7 is NaN".into())));
        computed.results().logits[2] = f32::INFINITY;
        assert_eq!(computed.not_finite(&batch), Some((1, "number 2 is inf".into())));
    }

    #[test]
    fn zeros_are_equal() {
        let mut logits = vec![-1.0; 200];
        (logits[3], logits[70], logits[150]) = (-0.0, 0.0, -0.0);
        assert_eq!(ids(&logits, 3), [3, 70, 150]);
        assert_eq!(ids(&logits, 2), [3, 70]);
        (logits[3], logits[70]) = (0.0, -0.0);
        assert_eq!(ids(&logits, 1), [3]);
    }

    #[test]
    fn what_is_not_finite_comes_first() {
        for wrong in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut logits = some(300, 5);
            (logits[130], logits[200]) = (wrong, f32::NAN);
            for n in [1, 4] {
                assert_eq!(ids(&logits, n)[0], 130);
            }
        }
    }
}
