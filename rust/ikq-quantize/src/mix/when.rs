//! Conditions of rules.

use std::fmt;

use super::Subject;

/// What must hold for a rule to apply. `i` is the tensor's layer (or number, see [`Subject`]), `n` the
/// number of layers; divisions are those of integers.
#[derive(Clone, Copy, Debug)]
pub(super) enum When {
    /// At least so many experts.
    Experts(u32),
    /// At least so many query heads per key head.
    Gqa(u32),
    /// `i < n / 8`.
    FirstEighth,
    /// `i < n / 16`.
    FirstSixteenth,
    /// `n / 8 <= i < 7 n / 8`.
    Middle,
    /// In the first or last eighth, or every third layer between.
    MoreBits,
    /// Among the first so many tensors of its kind.
    First(u32),
    /// The same for an eighth of the layers, also in models with experts.
    FirstEighthMet,
    Imatrix,
    NoImatrix,
    /// The loader's size class is 70B.
    Is70B,
    /// Vocabulary of at least 127999 and size class 8B or 70B.
    Llama3Like,
    Falcon,
    NotFalcon,
    NotDflash,
    Tied,
    /// The row is not a multiple of 256.
    OddRow,
    /// The first block.
    BlockZero,
}

impl When {
    pub(super) fn holds(self, s: &Subject) -> bool {
        let (i, n, facts) = (s.layer, s.n_layers, s.facts);
        match self {
            When::Experts(least) => facts.n_experts >= least,
            When::Gqa(least) => facts.gqa >= least,
            When::FirstEighth => i < n / 8,
            When::FirstSixteenth => i < n / 16,
            When::Middle => (n / 8..7 * n / 8).contains(&i),
            When::MoreBits => i < n / 8 || i >= 7 * n / 8 || (i - n / 8) % 3 == 2,
            When::First(count) => s.number < count,
            When::FirstEighthMet => s.number < n / 8,
            When::Imatrix => s.has_imatrix,
            When::NoImatrix => !s.has_imatrix,
            When::Is70B => facts.size == Some("70B"),
            When::Llama3Like => facts.n_vocab >= 127_999 && facts.size.is_some(),
            When::Falcon => facts.arch == "falcon",
            When::NotFalcon => facts.arch != "falcon",
            When::NotDflash => facts.arch != "dflash-draft",
            When::Tied => facts.is_tied,
            When::OddRow => !s.n_per_row.is_multiple_of(256),
            When::BlockZero => s.name.contains("blk.0."),
        }
    }
}

impl fmt::Display for When {
    /// As a reason says it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            When::Experts(n) => write!(f, "{n} experts or more"),
            When::Gqa(n) => write!(f, "{n} query heads per key head or more"),
            When::FirstEighth | When::FirstEighthMet => f.write_str("first eighth of the layers"),
            When::FirstSixteenth => f.write_str("first sixteenth of the layers"),
            When::Middle => f.write_str("neither first nor last eighth of the layers"),
            When::MoreBits => f.write_str("layer that gets more bits"),
            When::First(n) => write!(f, "one of the first {n}"),
            When::Imatrix => f.write_str("imatrix given"),
            When::NoImatrix => f.write_str("no imatrix"),
            When::Is70B => f.write_str("70B model"),
            When::Llama3Like => f.write_str("large vocabulary"),
            When::Falcon => f.write_str("Falcon"),
            When::NotFalcon => f.write_str("not Falcon"),
            When::NotDflash => f.write_str("not a DFlash draft"),
            When::Tied => f.write_str("tied"),
            When::OddRow => f.write_str("row no multiple of 256"),
            When::BlockZero => f.write_str("block 0"),
        }
    }
}
