//! Covariances of inputs, for error feedback: their files (`file.rs`), what first tokens count (`starts.rs`), what a run makes of
//! them (`factors.rs`), and whether they are of the model (`origin.rs`) and of the imatrix's inputs (`likeness.rs`).
//!
//! An input (*site*) is stored once, whatever the number of matrices that read it. Sites of experts have a covariance per
//! expert (*group*) or one for all. An expert that few tokens reached is not believed to the letter, as
//! [`ikq_covariance::damping`] has it; below [`LEAST_TOKENS`] it is encoded without.

mod factors;
mod file;
mod likeness;
mod origin;
mod starts;

use std::path::PathBuf;

use ikq_covariance::{Missing, Starts};
use ikq_formats::QuantType;
use ikq_gguf::{Bytes, Tensor};

pub(crate) use factors::FactorCache;
pub use file::{Cross, SiteSums, Written, merge, restore, write};
pub use likeness::{Foreign, Likeness};
pub use origin::origin;

use crate::error::Error;
use crate::imatrix::same_inputs;

/// Number of what error feedback writes, as [`crate::ENCODERS`] is of encoders.
pub const FEEDBACK: u64 = 3;

/// The version of the rounds in which `ikq_feedback` chooses codes and scales again.
pub const ROUNDS: u64 = 1;

/// Tokens for each column that a covariance has to be of to be used. Of fewer, what it says of how columns go together
/// is chance: on text that nothing was chosen by, experts with a quarter to half as many tokens as columns had up to 3 %
/// more error of products with it than without, those with fewer up to 16 %; from a half on none had more. Drawing
/// them to the pooled covariance of all experts was worse than either, as the columns of `ffn_down_exps` are each expert's own.
pub const LEAST_TOKENS: f32 = 0.5;

/// A tensor that reads a site.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reader {
    pub tensor: String,
    /// The group that it reads; `None`: its matrices read one each, or all of them the only one.
    pub group: Option<usize>,
}

/// The covariance of an input.
#[derive(Clone, Debug)]
pub struct Site {
    pub readers: Vec<Reader>,
    /// Number of columns of the input.
    pub k: usize,
    /// Tokens of each group.
    pub counts: Vec<f32>,
    /// Lower triangles of sums of products, group after group: floats, little endian.
    sums: Bytes,
    /// Where more is wanted than products of the inputs that were met: sums of what each token lacks times met^T,
    /// matrix after matrix.
    cross: Option<(Missing, Bytes)>,
    /// Inputs of the first tokens of texts; none in older files.
    pub starts: Starts,
    /// Hash of counts, sums and starts.
    pub(crate) hash: u64,
}

/// A file of covariances.
#[derive(Clone, Debug)]
pub struct Covariances {
    pub path: PathBuf,
    pub sites: Vec<Site>,
    pub datasets: Vec<String>,
    pub n_chunks: u32,
    pub chunk_size: u32,
    /// The model that they are of ([`origin()`]), if that is known.
    pub origin: Option<String>,
    /// What the run that wrote it depends on, if it was interrupted.
    pub identity: Option<String>,
}

/// What a tensor has of a file of covariances.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feedback {
    /// No file was given, the tensor is copied, or its type is encoded without ([`ikq_feedback::has_feedback`]).
    NotUsed,
    /// The file has nothing about its input.
    Missing,
    /// The index of its site, and the group of all its matrices where each does not have its own.
    Site { index: usize, group: Option<usize> },
}

impl Site {
    /// Number of groups.
    pub fn n_groups(&self) -> usize {
        self.counts.len()
    }

    /// Whether a group has as many tokens as are needed to say anything.
    pub fn is_known(&self, group: usize) -> bool {
        self.counts[group] > 0.0 && self.counts[group] >= LEAST_TOKENS * self.k as f32
    }

    /// The lower triangle of a group's sums, row after row.
    fn triangle(&self, group: usize) -> impl Iterator<Item = f32> {
        let n = 4 * ikq_covariance::triangle(self.k);
        self.sums[group * n..(group + 1) * n].as_chunks().0.iter().map(|b| f32::from_le_bytes(*b))
    }

    /// What tokens lack beside the inputs that were met, if that is known.
    pub fn missing(&self) -> Option<Missing> {
        self.cross.as_ref().map(|(missing, _)| *missing)
    }

    /// The matrix of a group's sums with what is missing, if there is anything.
    fn cross(&self, group: usize) -> Option<impl Iterator<Item = f32>> {
        let (missing, bytes) = self.cross.as_ref()?;
        let n = 4 * missing.n_rows(self.k) * self.k;
        let bytes = &bytes[group * n..(group + 1) * n];
        Some(bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)))
    }

    /// Sums of squares of a group, which an imatrix has, too.
    fn diagonal(&self, group: usize) -> Vec<f32> {
        let n = ikq_covariance::triangle(self.k);
        let at = |i: usize| 4 * (group * n + ikq_covariance::triangle(i) + i);
        let float = |at: usize| self.sums[at..].first_chunk().map_or(0.0, |b| f32::from_le_bytes(*b));
        (0..self.k).map(|i| float(at(i))).collect()
    }
}

impl Covariances {
    /// What the tensor `t` has, when it becomes `to`.
    ///
    /// # Errors
    /// [`Error::CovarianceShape`]: its input has another size.
    pub(crate) fn of(&self, t: &Tensor, to: Option<QuantType>) -> Result<Feedback, Error> {
        if !to.is_some_and(ikq_feedback::has_feedback) {
            return Ok(Feedback::NotUsed);
        }
        let find = |name: &str| {
            let readers =
                self.sites.iter().enumerate().flat_map(|(i, s)| s.readers.iter().map(move |r| (i, r)));
            readers.into_iter().find(|(_, r)| r.tensor == name).map(|(i, r)| (i, r.group))
        };
        let found = find(&t.name).or_else(|| same_inputs(&t.name).find_map(|name| find(&name)));
        let Some((index, group)) = found else { return Ok(Feedback::Missing) };
        let (site, n_matrices) = (&self.sites[index], (t.ne[2] * t.ne[3]) as usize);
        let group = group.or((site.n_groups() == 1).then_some(0));
        let fits = group.map_or(site.n_groups() == n_matrices, |group| group < site.n_groups());
        if let Some(Missing::Products(n_rows)) = site.missing()
            && n_rows as u64 != t.ne[1]
        {
            let what = format!("the products of `{}` have {} floats, and not {n_rows}", t.name, t.ne[1]);
            return Err(Error::NoCovariances { path: self.path.clone(), what });
        }
        if site.k as u64 != t.ne[0] || !fits {
            return Err(Error::CovarianceShape {
                tensor: t.name.clone(),
                path: self.path.clone(),
                found: site.k,
                n_groups: site.n_groups(),
                n_per_row: t.ne[0] as usize,
                n_matrices,
            });
        }
        Ok(Feedback::Site { index, group })
    }

    /// Matrices of a tensor that are encoded without feedback because too few tokens reached them: their indices.
    pub fn too_few(&self, feedback: Feedback, n_matrices: usize) -> Vec<usize> {
        let Feedback::Site { index, group } = feedback else { return Vec::new() };
        (0..n_matrices).filter(|e| !self.sites[index].is_known(group.unwrap_or(*e))).collect()
    }
}
