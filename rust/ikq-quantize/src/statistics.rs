//! Which statistics a tensor's columns are weighed by, and what experts get that have none.
//!
//! An expert that the calibration text never reached has values that are all zero (`.dat` files store no
//! counts per expert; GGUF files have a count of 0, and zeros). ik_llama.cpp's collector writes 1 for every
//! column of such an expert when it stores the entry all the same; that is recognised where the other experts'
//! values are not constant. Experts without data take the pooled statistics of the others: the mean of their
//! mean squares, weighed by their tokens where the file counts them per expert. The experts of a layer read the same
//! stream (for `ffn_down_exps`: activations of the same kind), so its loud columns are the best guess for theirs.

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
        Some((values, unseen_experts)) => Statistics::Found { values, borrowed_from, unseen_experts },
        None => missing,
    })
}

/// An entry's values, experts without data having the pooled ones, and which these are. `None`: all of them.
fn filled(entry: &Entry, n_per_row: usize) -> Option<(Vec<f32>, Vec<usize>)> {
    let experts: Vec<&[f32]> = entry.values.chunks_exact(n_per_row.max(1)).collect();
    let constant = |values: &[f32]| values.windows(2).all(|w| w[0] == w[1]);
    let some_vary = experts.iter().any(|v| !constant(v));
    let is_unseen = |v: &[f32]| match v.first() {
        Some(first) => constant(v) && (*first == 0.0 || *first == 1.0 && some_vary && experts.len() > 1),
        None => true,
    };
    let unseen: Vec<usize> = (0..experts.len()).filter(|e| is_unseen(experts[*e])).collect();
    if unseen.len() == experts.len() {
        return None;
    }
    let mut values = entry.values.clone();
    if unseen.is_empty() {
        return Some((values, unseen));
    }
    let mut pooled = vec![0f64; n_per_row];
    let mut total = 0f64;
    for (e, seen) in experts.iter().enumerate().filter(|(e, _)| !unseen.contains(e)) {
        let weight = match entry.counts.get(e) {
            Some(count) if entry.counts.len() == experts.len() && *count > 0.0 => f64::from(*count),
            _ => 1.0,
        };
        total += weight;
        pooled.iter_mut().zip(*seen).for_each(|(p, v)| *p += weight * f64::from(*v));
    }
    for e in &unseen {
        let own = &mut values[e * n_per_row..(e + 1) * n_per_row];
        own.iter_mut().zip(&pooled).for_each(|(v, p)| *v = (p / total) as f32);
    }
    Some((values, unseen))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(values: &[f32], counts: &[f32]) -> Entry {
        Entry { values: values.to_vec(), counts: counts.to_vec() }
    }

    #[test]
    fn unseen_experts_take_the_mean_of_the_others() {
        let plain = entry(&[1.0, 2.0, 0.0, 0.0, 3.0, 4.0], &[20.0]);
        assert_eq!(filled(&plain, 2), Some((vec![1.0, 2.0, 2.0, 3.0, 3.0, 4.0], vec![1])));
        let counted = entry(&[1.0, 2.0, 0.0, 0.0, 3.0, 4.0], &[30.0, 0.0, 10.0]);
        assert_eq!(filled(&counted, 2), Some((vec![1.0, 2.0, 1.5, 2.5, 3.0, 4.0], vec![1])));
    }

    #[test]
    fn dummies_of_ones_are_no_data_where_others_have_some() {
        let dummies = entry(&[0.5, 2.0, 1.0, 1.0], &[20.0]);
        assert_eq!(filled(&dummies, 2), Some((vec![0.5, 2.0, 0.5, 2.0], vec![1])));
        let ones = entry(&[1.0; 4], &[20.0]);
        assert_eq!(filled(&ones, 2), Some((vec![1.0; 4], vec![])));
        let one_matrix = entry(&[1.0, 1.0], &[20.0]);
        assert_eq!(filled(&one_matrix, 2), Some((vec![1.0; 2], vec![])));
    }

    #[test]
    fn an_entry_without_a_token_is_none() {
        assert_eq!(filled(&entry(&[0.0; 6], &[0.0, 0.0, 0.0]), 2), None);
        assert_eq!(filled(&entry(&[0.0; 2], &[0.0]), 2), None);
    }

    #[test]
    fn full_entries_stay_as_they_are() {
        let full = entry(&[0.1, 0.2, 0.3, 0.4], &[5.0, 6.0]);
        assert_eq!(filled(&full, 2), Some((full.values.clone(), vec![])));
    }
}
