//! What the first tokens of texts count.
//!
//! They are unlike all other tokens. Nothing stands before them, so models use them as a place that attention goes to when it
//! finds nothing (*attention sink*): every later token reads their key and value, and an error there is an error of all. In the sums of
//! an attention's input they are one token among hundreds; here what they have in common, their mean, counts as many times as the texts
//! have tokens, times the square of their likeness. (Where they are such a place they are nearly equal: a likeness of 0.87 to 1 in the layers of
//! SmolLM2-135M after the first. In a small model without such a place it is 0 to 0.1, and if they counted as much there, that would
//! cost 2 % of the divergence.) Some layers, on the other hand, give them *massive activations*, squares thousands of times as large as those of other tokens. Such
//! an input would be all that the covariance has, and errors of all other tokens would not count; so outside attention's inputs
//! a first token counts at most as [`MOST`] others.

use ikq_covariance::{Starts, triangle};

use super::Site;
use crate::hash::Hasher;

/// How many times the mean of the squares of other tokens a first token counts at most.
///
/// SmolLM2-135M, `ffn_down` as IQ4_NL, divergence beside that without feedback (0.0129): 0.0095 with 1, 0.0094 with 16, 0.0097
/// with 128, 0.0100 without a bound.
const MOST: f64 = 16.0;

/// No first token counts less than this, so that what was rounded in its sums stays small beside what is left.
const LEAST: f64 = 1.0 / 4096.0;

/// Adds them to a hash; nothing where there are none, so that files without keep theirs.
pub(super) fn hash(Starts { groups, met, missing }: &Starts, hasher: &mut Hasher) {
    if !groups.is_empty() {
        groups.iter().for_each(|g| hasher.bytes(&g.to_le_bytes()));
        hasher.floats(met);
        hasher.floats(missing);
    }
}

/// Adds a row to the start of which floats stand.
fn add(floats: &mut [f32], row: &[f64]) {
    floats.iter_mut().zip(row).for_each(|(sum, more)| *sum = (f64::from(*sum) + more) as f32);
}

/// A token that a group's sums get more of, or less.
struct Change {
    /// How many times more than once it counts.
    more: f64,
    met: Vec<f64>,
    /// Empty where nothing else is wanted.
    missing: Vec<f64>,
}

impl Site {
    /// The triangle of a group's sums and, where other inputs are wanted, the matrix, with first tokens as often as they count.
    pub(super) fn weighed(&self, group: usize) -> (Vec<f32>, Option<Vec<f32>>) {
        let mut lower: Vec<f32> = self.triangle(group).collect();
        let mut cross: Option<Vec<f32>> = self.cross(group).map(Iterator::collect);
        let changes = self.changes(group, &lower);
        if changes.is_empty() {
            return (lower, cross);
        }
        let k = self.k;
        let mut row = vec![0.0; k];
        for i in 0..k {
            row.fill(0.0);
            for Change { more, met, .. } in &changes {
                let factor = more * met[i];
                row[..=i].iter_mut().zip(met).for_each(|(sum, v)| *sum += factor * v);
            }
            add(&mut lower[triangle(i)..][..=i], &row);
        }
        for (i, cross) in cross.iter_mut().flat_map(|cross| cross.chunks_exact_mut(k)).enumerate() {
            row.fill(0.0);
            for Change { more, met, missing } in changes.iter().filter(|c| !c.missing.is_empty()) {
                let factor = more * missing[i];
                row.iter_mut().zip(met).for_each(|(sum, v)| *sum += factor * v);
            }
            add(cross, &row);
        }
        (lower, cross)
    }

    /// What a group's first tokens count more or less than once.
    fn changes(&self, group: usize, lower: &[f32]) -> Vec<Change> {
        let k = self.k;
        let Starts { groups, met, missing } = &self.starts;
        let at: Vec<usize> = (0..groups.len()).filter(|i| groups[*i] as usize == group).collect();
        let (n, n_starts) = (f64::from(self.counts[group]), at.len() as f64);
        if at.is_empty() || n <= n_starts {
            return Vec::new();
        }
        // of as many floats as there are for each of all first tokens
        let of = |all: &[f32], i: usize| -> Vec<f64> {
            all.chunks_exact((all.len() / groups.len()).max(1))
                .nth(i)
                .unwrap_or_default()
                .iter()
                .copied()
                .map(f64::from)
                .collect()
        };
        let square = |x: &[f64]| x.iter().map(|v| v * v).sum::<f64>();
        let squares: Vec<f64> = at.iter().map(|i| square(&of(met, *i))).collect();
        let sum_of_squares = squares.iter().sum::<f64>();
        if self.is_read_by_attention() {
            let mean = |all: &[f32]| -> Vec<f64> {
                let mut sum = vec![0.0; all.len() / groups.len()];
                at.iter().for_each(|i| sum.iter_mut().zip(of(all, *i)).for_each(|(sum, v)| *sum += v));
                sum.iter().map(|v| v / n_starts).collect()
            };
            let common = mean(met);
            // unlike ones have 1 / n_starts of their squares in common by chance
            let share = n_starts * square(&common) / sum_of_squares;
            let likeness = if n_starts > 1.0 { (n_starts * share - 1.0) / (n_starts - 1.0) } else { 1.0 };
            // not above 0 nor below it where all inputs are 0
            if likeness > 0.0 {
                let more = (n - n_starts) * likeness.min(1.0).powi(2);
                return vec![Change { more, met: common, missing: mean(missing) }];
            }
            return Vec::new();
        }
        let all: f64 = (0..k).map(|i| f64::from(lower[triangle(i) + i])).sum();
        let most = MOST * (all - sum_of_squares).max(0.0) / (n - n_starts);
        let too_large = at.into_iter().zip(squares).filter(|(_, square)| *square > most);
        let less = |square: f64| (most / square).max(LEAST) - 1.0;
        too_large
            .map(|(i, square)| Change { more: less(square), met: of(met, i), missing: of(missing, i) })
            .collect()
    }

    /// Whether keys and values of softmax attention are made of it, token by token. (`attn_k_b` and `attn_v_b` are absorbed: they read
    /// queries, and what attention has already summed up.)
    fn is_read_by_attention(&self) -> bool {
        let roles = || self.readers.iter().filter_map(|r| r.tensor.split('.').nth(2));
        let makes_keys = |role: &str| {
            let role = role.strip_prefix("attn_");
            matches!(role, Some("k" | "v" | "qkv" | "kv_a_mqa" | "kv_b"))
        };
        roles().any(makes_keys) && !roles().any(|role| role.starts_with("ssm_"))
    }
}

#[cfg(test)]
mod tests {
    use ikq_covariance::Missing;

    use super::super::Reader;
    use super::*;

    /// The site of an input of two columns: tokens, of which the first ones are starts.
    fn site(tensor: &str, tokens: &[[f32; 2]], n_starts: usize) -> Site {
        let sum = |a: usize, b: usize| tokens.iter().map(|x| x[a] * x[b]).sum::<f32>();
        let sums = [sum(0, 0), sum(1, 0), sum(1, 1)];
        let starts = Starts {
            groups: vec![0; n_starts],
            met: tokens[..n_starts].concat(),
            missing: vec![0.5; 2 * n_starts],
        };
        let floats = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
        Site {
            readers: vec![Reader { tensor: tensor.to_string(), group: None }],
            k: 2,
            counts: vec![tokens.len() as f32],
            sums: floats(&sums).into(),
            cross: Some((Missing::Inputs, floats(&[0.0; 4]).into())),
            starts,
            hash: 0,
        }
    }

    #[test]
    fn what_they_have_in_common_counts_as_all_tokens_where_keys_are_made() {
        let tokens = [[1.0, 2.0], [3.0, 1.0], [0.0, 1.0], [1.0, 0.0], [0.0, 2.0], [2.0, 2.0]];
        // two texts of three tokens: the mean of the starts, (2, 1.5), counts four times more; starts have 12.5 of 15 of their
        // squares in common, and without likeness it would be half
        let likeness = 2.0 * 12.5 / 15.0 - 1.0;
        let more = 4.0 * likeness * likeness;
        let (lower, cross) = site("blk.0.attn_k.weight", &tokens, 2).weighed(0);
        let near =
            |a: &[f32], b: &[f32]| a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-4);
        assert!(near(&lower, &[15.0 + more * 4.0, 9.0 + more * 3.0, 14.0 + more * 2.25]), "{lower:?}");
        assert!(near(&cross.expect("wanted"), &[more, 0.75 * more, more, 0.75 * more]));
        let unlike = [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]];
        assert_eq!(site("blk.0.attn_k.weight", &unlike, 2).weighed(0).0, [2.0, 1.0, 2.0]);
        assert_eq!(site("blk.0.attn_v.weight", &[[0.0; 2]; 3], 2).weighed(0).0, [0.0; 3]);
        let others = [
            "blk.0.attn_output.weight",
            "blk.0.ffn_up.weight",
            "blk.0.ssm_in.weight",
            "blk.0.attn_k_b.weight",
        ];
        for others in others {
            assert_eq!(site(others, &tokens, 2).weighed(0).0, [15.0, 9.0, 14.0], "{others}");
        }
    }

    #[test]
    fn massive_activations_count_no_more_than_some_tokens() {
        let down = "blk.0.ffn_down.weight";
        let tokens = [[100.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]];
        let (lower, cross) = site(down, &tokens, 1).weighed(0);
        // the squares of the others are 1
        assert!((lower[0] - (1.0 + MOST as f32)).abs() < 1e-3, "{lower:?}");
        assert_eq!(lower[1..], [0.0, 2.0]);
        let share = MOST as f32 / 1e4 - 1.0;
        assert!((cross.expect("wanted")[0] - 50.0 * share).abs() < 1e-3);
        // with squares a hundred million times those of the others, something has to be left
        let (lower, _) = site(down, &[[1e4, 0.0], [1.0, 0.0], [0.0, 1.0]], 1).weighed(0);
        assert!((lower[0] - 1e8 * LEAST as f32).abs() < 1e-6 * 1e8, "{lower:?}");
    }

    #[test]
    fn what_their_products_lack_counts_as_much() {
        let mut down = site("blk.0.ffn_down.weight", &[[100.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]], 1);
        let floats = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
        down.cross = Some((Missing::Products(3), floats(&[50.0, 0.0, 0.0, 7.0, 25.0, 0.0]).into()));
        down.starts.missing = vec![0.5, 0.0, 0.25];
        let cross = down.weighed(0).1.expect("wanted");
        let share = MOST as f32 / 1e4;
        let expected = [50.0 * share, 0.0, 0.0, 7.0, 25.0 * share, 0.0];
        assert!(cross.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-3), "{cross:?}");
    }

    #[test]
    fn where_only_first_tokens_were_they_are_all_that_counts() {
        let tokens = [[1.0, 2.0], [3.0, 1.0]];
        assert_eq!(site("blk.0.attn_v.weight", &tokens, 2).weighed(0).0, [10.0, 5.0, 5.0]);
    }
}
