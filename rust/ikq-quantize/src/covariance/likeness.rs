//! Whether covariances and an imatrix are of the same inputs, and of enough tokens to tell.
//!
//! Both have the mean squares of an input's columns. Of one model these go together whatever the text, but single columns may be
//! far apart: a few tokens have very large activations in some of them, so means of squares hardly settle (the inputs of
//! `ffn_down`, experts above all). Their *logarithms* do. Between runs of 128 to 2048 tokens and longer ones, also of other text,
//! logarithms of an input of two models at hand had a correlation of 0.2 at least, and 0.75 to 0.98 at the median; with columns
//! in another order, as another model has them, at most that, and 0 at the median. So the input that is least alike tells:
//! among the sixteen of four layers of another model one is below [`ALIKE`]. (Cosines between the means themselves were 0.64 to
//! 0.99 and 0.31 to 0.98, and down to 0.45 for the same inputs of the other model.)

use std::fmt;
use std::path::PathBuf;

use super::{Covariances, Site};

/// Least correlation of the logarithms.
const ALIKE: f64 = 0.1;
/// Where columns are all nearly as loud, chance is all that there is to correlate: means that are no further apart than this
/// (standard deviation of the logarithm of their ratio) are the same. 128 tokens of flat inputs had 0.16.
const NEAR: f64 = 0.25;
/// Columns of which something is said.
const LEAST_COLUMNS: usize = 16;
/// Columns below this part of the mean are as quiet as it says.
const FLOOR: f64 = 1e-6;

/// How far two sets of mean squares are apart.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Likeness {
    /// Correlation of their logarithms.
    pub correlation: f64,
    /// Standard deviation of the logarithm of their ratio.
    pub apart: f64,
    /// Tokens that the covariance is of.
    pub n_tokens: f64,
}

impl Likeness {
    /// Whether both can be of the same inputs.
    pub fn is_same(&self) -> bool {
        self.correlation >= ALIKE || self.apart <= NEAR
    }
}

/// Covariances and an imatrix that are not of the same inputs.
#[derive(Clone, Debug)]
pub struct Foreign {
    /// The tensor whose input is the least alike.
    pub tensor: String,
    pub covariances: PathBuf,
    pub imatrix: PathBuf,
    pub likeness: Likeness,
    /// What the imatrix has of the input: tokens, or chunks of text.
    pub counted: f64,
    pub are_chunks: bool,
    /// The covariances are known to be of the model that is quantized.
    pub is_of_model: bool,
}

/// What was found, which of the files may be wrong, and what can be done.
impl fmt::Display for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Foreign { tensor, covariances, imatrix, likeness, counted, are_chunks, is_of_model } = self;
        let Likeness { correlation, apart, n_tokens } = likeness;
        write!(
            f,
            "the covariances of {} ({n_tokens:.0} tokens of the input of `{tensor}`) and the imatrix {} ({counted:.0} {}) are not of \
             the same inputs: the mean squares of the columns are typically {:.1} times apart, and their logarithms have a correlation of \
             {correlation:.2}, where two texts have 0.2 and more; ",
            covariances.display(),
            imatrix.display(),
            if *are_chunks { "chunks" } else { "tokens" },
            apart.exp(),
        )?;
        f.write_str(match is_of_model {
            true => "the covariances are of a model with this one's norms, so the imatrix is of another model, or changed. ",
            false => "one of both is of another model, or changed. ",
        })?;
        f.write_str("Collect both in the same run: `ikq imatrix -m MODEL -f TEXT -o IMATRIX --covariance COVARIANCES`")
    }
}

impl Covariances {
    /// How the covariances that a tensor uses compare with the mean squares `values` that an imatrix has for it: one for each
    /// column, or matrix after matrix. `None` where nothing can be said: none is used, or too few columns differ.
    pub(crate) fn likeness(&self, index: usize, group: Option<usize>, values: &[f32]) -> Option<Likeness> {
        let site = &self.sites[index];
        let groups: Vec<usize> = group.map_or_else(|| (0..site.n_groups()).collect(), |group| vec![group]);
        let known: Vec<usize> = groups.into_iter().filter(|g| site.is_known(*g)).collect();
        let n_tokens = known.iter().map(|g| f64::from(site.counts[*g])).sum();
        let is_each = group.is_none() && values.len() == site.k * site.n_groups();
        let matrices: Vec<&[f32]> = values.chunks_exact(site.k).collect();
        let theirs: Vec<&[f32]> =
            if is_each { known.iter().map(|g| matrices[*g]).collect() } else { matrices };
        let ours: Vec<Vec<f32>> = known.iter().map(|g| mean_squares(site, *g)).collect();
        let ours: Vec<&[f32]> = ours.iter().map(Vec::as_slice).collect();
        let (correlation, apart) = compared(&mean(&ours)?, &mean(&theirs)?)?;
        Some(Likeness { correlation, apart, n_tokens })
    }
}

fn mean_squares(site: &Site, group: usize) -> Vec<f32> {
    site.diagonal(group).iter().map(|sum| sum / site.counts[group]).collect()
}

/// The mean of rows.
fn mean(rows: &[&[f32]]) -> Option<Vec<f64>> {
    let mut sums = vec![0.0; rows.first()?.len()];
    for row in rows {
        sums.iter_mut().zip(*row).for_each(|(sum, v)| *sum += f64::from(*v));
    }
    Some(sums.iter().map(|sum| sum / rows.len() as f64).collect())
}

/// The correlation of the logarithms of `a` and `b`, and the standard deviation of that of their ratio.
fn compared(a: &[f64], b: &[f64]) -> Option<(f64, f64)> {
    let floor = |v: &[f64]| FLOOR * v.iter().sum::<f64>() / v.len() as f64;
    let (floor_a, floor_b) = (floor(a), floor(b));
    // columns that are always 0 are so in both
    let pairs: Vec<(f64, f64)> = a
        .iter()
        .zip(b)
        .filter(|(a, b)| **a > 0.0 || **b > 0.0)
        .map(|(a, b)| (a.max(floor_a).ln(), b.max(floor_b).ln()))
        .filter(|(a, b)| a.is_finite() && b.is_finite())
        .collect();
    if pairs.len() < LEAST_COLUMNS {
        return None;
    }
    let n = pairs.len() as f64;
    let mean = |of: &dyn Fn(&(f64, f64)) -> f64| pairs.iter().map(of).sum::<f64>() / n;
    let (mean_a, mean_b) = (mean(&|p| p.0), mean(&|p| p.1));
    let (aa, bb) = (mean(&|p| (p.0 - mean_a).powi(2)), mean(&|p| (p.1 - mean_b).powi(2)));
    let ab = mean(&|p| (p.0 - mean_a) * (p.1 - mean_b));
    // an imatrix of ones, or one value for all columns, says nothing
    let is_flat = aa < 1e-12 || bb < 1e-12;
    (!is_flat).then(|| (ab / (aa * bb).sqrt(), (aa + bb - 2.0 * ab).max(0.0).sqrt()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Mean squares of `n` tokens of a model, whose columns have loudnesses of their own: products of two numbers, as what
    /// `ffn_down` reads.
    fn of_tokens(model: u64, text: u64, n: usize) -> Vec<f64> {
        const K: usize = 256;
        let normals = |seed: u64| {
            let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
            let mut uniform = move || {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state >> 40) as f64 / (1u64 << 24) as f64
            };
            move || (0..12).map(|_| uniform()).sum::<f64>() - 6.0
        };
        let (mut of_model, mut of_text) = (normals(model), normals(1000 + text));
        let loud: Vec<f64> = (0..K).map(|_| (0.6 * of_model()).exp()).collect();
        let mut sums = vec![0.0; K];
        for _ in 0..n {
            for (sum, loud) in sums.iter_mut().zip(&loud) {
                *sum += (loud * of_text() * of_text() * of_text()).powi(2);
            }
        }
        sums.iter().map(|sum| sum / n as f64).collect()
    }

    fn is_same(a: &[f64], b: &[f64]) -> bool {
        let (correlation, apart) = compared(a, b).expect("columns that differ");
        Likeness { correlation, apart, n_tokens: 0.0 }.is_same()
    }

    #[test]
    fn few_tokens_of_one_model_are_told_from_many_of_another() {
        let whole = of_tokens(1, 1, 4000);
        for text in 2..8 {
            assert!(is_same(&whole, &of_tokens(1, text, 128)), "text {text}");
            // by one input or the other
            let mut inputs = (0..4).map(|input| of_tokens(10 * text + input, text, 4000));
            assert!(inputs.any(|other| !is_same(&whole, &other)), "model {text}");
        }
    }

    #[test]
    fn columns_as_loud_as_one_another_are_the_same_as_far_as_chance_goes() {
        let chance = |at: usize, by: f64| 1.0 + by * ((at * 37 % 101) as f64 / 50.0 - 1.0);
        let (a, b): (Vec<f64>, Vec<f64>) = (0..256).map(|i| (chance(i, 0.2), chance(i * 3 + 1, 0.2))).unzip();
        assert!(is_same(&a, &b));
        assert!(compared(&a, &[1.0; 256]).is_none());
        assert!(compared(&a[..8], &b[..8]).is_none());
    }
}
