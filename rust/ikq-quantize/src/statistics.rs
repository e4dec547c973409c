//! Which statistics a tensor's columns are weighed by, and what experts get that have few or none.
//!
//! An expert that the calibration text never reached has values that are all zero (`.dat` files store no
//! counts per expert; GGUF files have a count of 0, and zeros). ik_llama.cpp's collector writes 1 for every
//! column of such an expert when it stores the entry all the same; that is recognised where the other experts'
//! values are not constant.
//!
//! ```text
//! pooled = mean of the experts' values, weighed by their tokens where the file counts them per expert
//! beta   = share of the variance of that mean over columns that experts have in common
//! prior  = mean + beta (pooled - mean)
//! values = prior                                          for an expert without tokens
//!          (n values + PRIOR_TOKENS prior) / (n + PRIOR_TOKENS)   with n tokens, fewer than WELL_COVERED
//!          values                                         else, bit for bit
//! ```
//! `beta` is what an analysis of variance says. Inputs of up and gate are one stream, whose loud columns are loud for
//! every expert (0.8 on the test model). Inputs of down are each expert's own hidden units, which have nothing in common
//! but their number, unless the experts began as copies of one network: there beta is 0.005, and pooled columns
//! would do more harm than equal weights. Measured in `benches/results/expert_statistics.md`.

use ikq_formats::{ImatrixUse, QuantType};
use ikq_gguf::Tensor;

use crate::error::Error;
use crate::imatrix::{Entry, Imatrix};

/// Where a tensor's importance comes from.
#[derive(Clone, Debug, PartialEq)]
pub enum Statistics {
    /// The tensor is copied or its type looks at none.
    NotUsed,
    /// No imatrix was given, or it has nothing for the tensor: all columns count the same.
    Missing,
    /// `values` has one number per column (for all matrices, or matrix after matrix).
    Found {
        values: Vec<f32>,
        /// The entry of another tensor that reads the same input.
        borrowed_from: Option<String>,
        /// Experts that the calibration text never reached; `values` has the others' pooled ones for them.
        unseen_experts: Vec<usize>,
        /// Experts that it reached with so few tokens that their own values are drawn to the pooled ones.
        thin_experts: Vec<usize>,
    },
}

/// The statistics of `t` when it becomes `to` (`None`: it is copied). `tied`: the embedding serves as output.
///
/// # Errors
/// [`Error::ImatrixShape`].
pub(crate) fn statistics(
    t: &Tensor,
    to: Option<QuantType>,
    imatrix: Option<&Imatrix>,
    tied: bool,
) -> Result<Statistics, Error> {
    if to.is_none_or(|to| to.info().imatrix == ImatrixUse::Ignored) {
        return Ok(Statistics::NotUsed);
    }
    // rows of an embedding are looked up, not multiplied: there is no input to have statistics of
    let looked_up = t.name == "token_embd.weight" && !tied || t.name == "per_layer_token_embd.weight";
    let missing = if looked_up { Statistics::NotUsed } else { Statistics::Missing };
    let Some((entry, borrowed_from)) = imatrix.and_then(|m| m.find(&t.name)) else {
        return Ok(missing);
    };
    let n_per_row = t.ne[0] as usize;
    let n_matrices = (t.ne[2] * t.ne[3]) as usize;
    let found = entry.values.len();
    if found != n_per_row && found != n_per_row * n_matrices {
        // an embedding is read by row: an entry under its name belongs to a tied output
        if t.name == "token_embd.weight" {
            return Ok(missing);
        }
        return Err(Error::ImatrixShape {
            tensor: t.name.clone(),
            entry: borrowed_from.unwrap_or_else(|| t.name.clone()),
            found,
            n_per_row,
            n_matrices,
        });
    }
    Ok(match filled(entry, n_per_row) {
        Some(Filled { values, unseen_experts, thin_experts }) => {
            Statistics::Found { values, borrowed_from, unseen_experts, thin_experts }
        }
        None => missing,
    })
}

/// Tokens that the prior weighs as much as.
const PRIOR_TOKENS: f64 = 64.0;
/// From this many tokens on an expert's values stand for themselves.
const WELL_COVERED: f64 = 1024.0;

/// An entry's values with what experts without enough data get.
#[derive(Debug, PartialEq)]
struct Filled {
    values: Vec<f32>,
    unseen_experts: Vec<usize>,
    thin_experts: Vec<usize>,
}

/// `None`: no expert has data.
fn filled(entry: &Entry, n_per_row: usize) -> Option<Filled> {
    let experts: Vec<&[f32]> = entry.values.chunks_exact(n_per_row.max(1)).collect();
    let constant = |values: &[f32]| values.windows(2).all(|w| w[0] == w[1]);
    let some_vary = experts.iter().any(|v| !constant(v));
    let is_unseen = |v: &[f32]| match v.first() {
        Some(first) => constant(v) && (*first == 0.0 || *first == 1.0 && some_vary && experts.len() > 1),
        None => true,
    };
    let (unseen_experts, seen): (Vec<usize>, Vec<usize>) =
        (0..experts.len()).partition(|e| is_unseen(experts[*e]));
    if seen.is_empty() {
        return None;
    }
    // tokens per expert, where the file has them
    let tokens = |e: usize| match entry.counts.len() == experts.len() && experts.len() > 1 {
        true => Some(f64::from(entry.counts[e])).filter(|n| *n > 0.0),
        false => None,
    };
    let is_thin = |e: &usize| seen.len() > 1 && tokens(*e).is_some_and(|n| n < WELL_COVERED);
    let thin_experts: Vec<usize> = seen.iter().copied().filter(is_thin).collect();
    let mut values = entry.values.clone();
    if unseen_experts.is_empty() && thin_experts.is_empty() {
        return Some(Filled { values, unseen_experts, thin_experts });
    }
    let of_seen: Vec<(&[f32], f64)> = seen.iter().map(|e| (experts[*e], tokens(*e).unwrap_or(1.0))).collect();
    let prior = prior(&of_seen, n_per_row);
    for e in unseen_experts.iter().chain(&thin_experts) {
        // without tokens the prior alone; values are then zero or dummies
        let n = if is_unseen(experts[*e]) { 0.0 } else { tokens(*e).unwrap_or(0.0) };
        let own = &mut values[e * n_per_row..(e + 1) * n_per_row];
        for (v, p) in own.iter_mut().zip(&prior) {
            *v = ((n * f64::from(*v) + PRIOR_TOKENS * p) / (n + PRIOR_TOKENS)) as f32;
        }
    }
    Some(Filled { values, unseen_experts, thin_experts })
}

/// What is known of an expert's columns from the others: values and weights of those.
fn prior(experts: &[(&[f32], f64)], n_columns: usize) -> Vec<f64> {
    let total: f64 = experts.iter().map(|(_, weight)| weight).sum();
    let mut pooled = vec![0f64; n_columns];
    for (values, weight) in experts {
        pooled.iter_mut().zip(*values).for_each(|(p, v)| *p += weight / total * f64::from(*v));
    }
    let mean = pooled.iter().sum::<f64>() / n_columns as f64;
    let beta = in_common(experts, n_columns);
    pooled.iter_mut().for_each(|p| *p = mean + beta * (*p - mean));
    pooled
}

/// How far the mean over experts tells columns apart: 1 - (mean square within columns) / (between them), at least 0.
/// Each expert's values are taken relative to their mean. A single expert is all there is to know: 1.
fn in_common(experts: &[(&[f32], f64)], n_columns: usize) -> f64 {
    let n = experts.len() as f64;
    if experts.len() < 2 || n_columns < 2 {
        return 1.0;
    }
    let (mut sums, mut squares) = (vec![0f64; n_columns], vec![0f64; n_columns]);
    for (values, _) in experts {
        let mean = values.iter().map(|v| f64::from(*v)).sum::<f64>() / n_columns as f64;
        for ((sum, square), v) in sums.iter_mut().zip(&mut squares).zip(*values) {
            let relative = f64::from(*v) / mean;
            *sum += relative;
            *square += relative * relative;
        }
    }
    // relative to their means, all values have the mean 1
    let between = sums.iter().map(|s| n * (s / n - 1.0).powi(2)).sum::<f64>() / (n_columns - 1) as f64;
    let within =
        sums.iter().zip(&squares).map(|(s, q)| q - s * s / n).sum::<f64>() / (n - 1.0) / n_columns as f64;
    match between > 0.0 {
        true => (1.0 - within / between).clamp(0.0, 1.0),
        false => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(values: &[f32], counts: &[f32]) -> Entry {
        Entry { values: values.to_vec(), counts: counts.to_vec() }
    }

    fn found(entry: &Entry) -> Option<(Vec<f32>, Vec<usize>, Vec<usize>)> {
        filled(entry, 4).map(|f| (f.values, f.unseen_experts, f.thin_experts))
    }

    /// Columns that are alike for all experts: the prior is the pooled mean.
    const LOUD: [f32; 4] = [1.0, 2.0, 3.0, 10.0];
    const LOUDER: [f32; 4] = [2.0, 4.0, 6.0, 20.0];
    const NONE: [f32; 4] = [0.0; 4];

    #[test]
    fn unseen_experts_take_what_the_others_have_in_common() {
        let three = [LOUD, NONE, LOUDER].concat();
        let expected = |middle: [f32; 4]| Some(([LOUD, middle, LOUDER].concat(), vec![1], vec![]));
        assert_eq!(found(&entry(&three, &[20.0])), expected([1.5, 3.0, 4.5, 15.0]));
        let counted = entry(&three, &[3000.0, 0.0, 1000.0 * 9.0]);
        assert_eq!(found(&counted), expected([1.75, 3.5, 5.25, 17.5]));
    }

    #[test]
    fn columns_that_have_nothing_in_common_count_the_same() {
        let own = [[1.0, 9.0, 1.0, 9.0], [1.0, 1.0, 9.0, 9.0], [9.0, 9.0, 1.0, 1.0], [9.0, 1.0, 9.0, 1.0]];
        let all = [&own[..], &[NONE]].concat().concat();
        let (values, unseen, _) = found(&entry(&all, &[20.0])).expect("some data");
        assert_eq!((&values[16..], unseen), (&[5.0; 4][..], vec![4]));
        assert_eq!(values[..16], all[..16]);
    }

    #[test]
    fn few_tokens_are_drawn_to_the_others_and_many_are_not() {
        let other = [10.0, 3.0, 2.0, 1.0];
        let counts = [1024.0, 64.0, 1e6];
        let (values, unseen, thin) =
            found(&entry(&[LOUD, other, LOUD].concat(), &counts)).expect("some data");
        assert_eq!((unseen, thin), (vec![], vec![1]));
        assert_eq!((&values[..4], &values[8..]), (&LOUD[..], &LOUD[..]));
        let (of_seen, half) =
            ([(&LOUD[..], 1024.0), (&other[..], 64.0), (&LOUD[..], 1e6)], |a: f32, b: f64| {
                ((f64::from(a) + b) / 2.0) as f32
            });
        let expected: Vec<f32> = prior(&of_seen, 4).iter().zip(other).map(|(p, v)| half(v, *p)).collect();
        assert_eq!(values[4..8], expected);
        // one number of calls for all experts says nothing about any of them
        assert_eq!(found(&entry(&[LOUD, other].concat(), &[3.0])).map(|f| f.2), Some(vec![]));
        assert_eq!(found(&entry(&LOUD, &[3.0])).map(|f| f.2), Some(vec![]));
    }

    #[test]
    fn dummies_of_ones_are_no_data_where_others_have_some() {
        let ones = [1.0; 4];
        let dummies = entry(&[LOUD, ones].concat(), &[20.0]);
        assert_eq!(found(&dummies), Some(([LOUD, LOUD].concat(), vec![1], vec![])));
        let all = [ones, ones].concat();
        assert_eq!(found(&entry(&all, &[20.0])), Some((all, vec![], vec![])));
        assert_eq!(found(&entry(&ones, &[20.0])), Some((ones.to_vec(), vec![], vec![])));
    }

    #[test]
    fn an_entry_without_a_token_is_none() {
        assert_eq!(found(&entry(&[NONE, NONE].concat(), &[0.0, 0.0])), None);
        assert_eq!(found(&entry(&NONE, &[0.0])), None);
    }

    #[test]
    fn full_entries_stay_as_they_are() {
        let full = entry(&[LOUD, LOUDER].concat(), &[5000.0, 6000.0]);
        assert_eq!(found(&full), Some((full.values.clone(), vec![], vec![])));
    }
}
