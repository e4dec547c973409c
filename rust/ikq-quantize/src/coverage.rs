//! [`Coverage`]: what of a plan its imatrix has data for, and whether that is enough.
//!
//! What counts are the tensors whose type looks at importance. A tensor is covered by its own entry or by that of
//! one that reads the same input; complete is an imatrix that covers all of them, and at least
//! [`MIN_SEEN`] of each one's experts. What the user left out on purpose (`--include-weights`, `--exclude-weights`) is not held
//! against the imatrix.

use std::fmt;
use std::path::PathBuf;

use ikq_gguf::Model;

use crate::imatrix::Imatrix;
use crate::plan::TensorPlan;
use crate::statistics::Statistics;

/// The share of a tensor's experts that must have been seen.
pub const MIN_SEEN: f64 = 0.95;
/// Names that a message lists before it counts.
const LISTED: usize = 12;

/// A tensor with experts that were never seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partial {
    pub tensor: String,
    pub n_seen: usize,
    pub n_experts: usize,
}

impl Partial {
    /// Whether fewer experts than [`MIN_SEEN`] were seen.
    pub fn is_too_few(&self) -> bool {
        (self.n_seen as f64) < MIN_SEEN * self.n_experts as f64
    }
}

/// How much of a plan has statistics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Coverage {
    /// The imatrix.
    pub path: PathBuf,
    /// Tensors whose type looks at importance.
    pub n_tensors: usize,
    /// Those among them that have some.
    pub n_covered: usize,
    /// Experts of covered tensors that have entries per expert, and how many of them have data.
    pub n_experts: usize,
    pub n_experts_seen: usize,
    /// Tensors without data.
    pub missing: Vec<String>,
    /// Tensors that are absent from the file, and the entry of the same input that serves them.
    pub borrowed: Vec<(String, String)>,
    /// Tensors with experts that were never seen.
    pub partial: Vec<Partial>,
    /// Tensors whose entry the user's options leave out.
    pub left_out: Vec<String>,
}

impl Coverage {
    /// Compares the tensors of a plan for `model` with `imatrix`, which is as it was read, before options leave entries out.
    pub fn new(tensors: &[TensorPlan], model: &Model, imatrix: &Imatrix) -> Coverage {
        let mut of = Coverage {
            path: imatrix.path.clone(),
            n_tensors: 0,
            n_covered: 0,
            n_experts: 0,
            n_experts_seen: 0,
            missing: Vec::new(),
            borrowed: Vec::new(),
            partial: Vec::new(),
            left_out: Vec::new(),
        };
        for t in tensors {
            match &t.statistics {
                Statistics::NotUsed => continue,
                // by the source's name: the extra output matrix has the statistics of the output
                Statistics::Missing
                    if imatrix.find(&model.tensors()[t.source].name).is_some_and(has_data) =>
                {
                    of.left_out.push(t.name.clone());
                }
                Statistics::Missing => of.missing.push(t.name.clone()),
                Statistics::Found { values, borrowed_from, unseen_experts, .. } => {
                    of.n_covered += 1;
                    let n_per_row = t.dims.first().map_or(1, |n| *n as usize).max(1);
                    let n_experts = values.len() / n_per_row;
                    if n_experts > 1 {
                        of.n_experts += n_experts;
                        of.n_experts_seen += n_experts - unseen_experts.len();
                    }
                    if let Some(entry) = borrowed_from {
                        of.borrowed.push((t.name.clone(), entry.clone()));
                    }
                    if !unseen_experts.is_empty() {
                        let n_seen = n_experts - unseen_experts.len();
                        of.partial.push(Partial { tensor: t.name.clone(), n_seen, n_experts });
                    }
                }
            }
            of.n_tensors += 1;
        }
        of
    }

    /// Whether nothing is missing and enough experts of each tensor were seen.
    pub fn is_complete(&self) -> bool {
        self.missing.is_empty() && !self.partial.iter().any(Partial::is_too_few)
    }
}

fn has_data((entry, _): (&crate::imatrix::Entry, Option<String>)) -> bool {
    entry.values.iter().any(|v| *v > 0.0)
}

/// What is missing, and what can be done about it.
impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the imatrix {} is incomplete: ", self.path.display())?;
        let mut faults = Vec::new();
        if !self.missing.is_empty() {
            let n = self.missing.len();
            let names = listed(self.missing.iter().map(|name| format!("`{name}`")), n);
            faults.push(format!("it has no data for {n} of {} tensors ({names})", self.n_tensors));
        }
        let few: Vec<&Partial> = self.partial.iter().filter(|p| p.is_too_few()).collect();
        if !few.is_empty() {
            let names = few.iter().map(|p| format!("{} of {} of `{}`", p.n_seen, p.n_experts, p.tensor));
            faults.push(format!("it saw too few experts ({})", listed(names, few.len())));
        }
        if !self.borrowed.is_empty() {
            let n = self.borrowed.len();
            let names = self.borrowed.iter().map(|(name, entry)| format!("`{name}` by `{entry}`"));
            let names = listed(names, n);
            faults.push(format!("{n} more are absent and served by an entry of the same input ({names})"));
        }
        write!(f, "{}; `ikq imatrix` computes complete ones", faults.join("; "))?;
        if self.missing.iter().any(|name| name == "output.weight") {
            write!(f, ", --leave-output-tensor or --output-tensor-type q8_0 needs no data for the output")?;
        }
        write!(f, ", --allow-missing goes ahead without")
    }
}

/// Names separated by commas; where there are many, the first few and how many more there are.
fn listed(names: impl Iterator<Item = String>, n: usize) -> String {
    let shown: Vec<String> = names.take(LISTED).collect();
    match n.saturating_sub(shown.len()) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}
