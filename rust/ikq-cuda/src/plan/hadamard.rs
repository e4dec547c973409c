//! The turn of cached rows by a Hadamard matrix; `cuda/hadamard.cuh` describes it.

use super::{Kernel, MOST_HEAD, Plan, geometry, i32_of};
use crate::error::Error;
use crate::gpu::Argument;

/// Runs of fewer elements are not turned. The CPU's caches have the same limit.
const SHORTEST: usize = 16;

/// How a row is cut into runs, each of which is turned for itself: its first elements in runs of `first`, the others
/// in runs of `rest`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Runs {
    pub n_first: usize,
    pub first: usize,
    pub rest: usize,
}

impl Runs {
    /// The runs of rows of two parts, the second of which may have no elements. `None` where rows are not turned,
    /// because a part is no multiple of 16 elements.
    pub fn of_parts(first: usize, rest: usize) -> Option<Runs> {
        let run = |n: usize| 1 << n.trailing_zeros().min(usize::BITS - 1);
        let has_runs = |n: usize| n > 0 && n.is_multiple_of(SHORTEST);
        let rest_run = if rest == 0 { run(first) } else { run(rest) };
        let turns = has_runs(first) && (rest == 0 || has_runs(rest));
        turns.then(|| Runs { n_first: first, first: run(first), rest: rest_run })
    }

    /// The runs of the first part of a row, which results of latent attention are.
    #[must_use]
    pub fn first_part(self) -> Runs {
        Runs { rest: self.first, ..self }
    }
}

/// The arguments of a turn, if there is one.
pub(super) fn arguments(runs: Option<Runs>) -> Result<[(&'static str, Option<Argument>); 3], Error> {
    let Runs { n_first, first, rest } = runs.unwrap_or(Runs { n_first: 0, first: 0, rest: 0 });
    Ok([
        ("n_first", Some(i32_of(n_first)?)),
        ("first_run", Some(i32_of(first)?)),
        ("rest_run", Some(i32_of(rest)?)),
    ])
}

/// Sizes of [`Call::TurnRows`](super::Call::TurnRows).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TurnRows {
    pub n_rows: usize,
    /// Elements of a row.
    pub n: usize,
    pub runs: Runs,
    /// Whether rows that are turned are turned back.
    pub back: bool,
}

impl TurnRows {
    pub(super) fn plan(&self) -> Result<Plan, Error> {
        if self.n > MOST_HEAD {
            let why = format!("rows of {} elements; it takes up to {MOST_HEAD}", self.n);
            return Err(Error::Plan { name: "turn_rows".into(), why });
        }
        let mut arguments = vec![("x", None), ("n", Some(i32_of(self.n)?))];
        arguments.extend(self::arguments(Some(self.runs))?);
        arguments.push(("back", Some(Argument::I32(i32::from(self.back)))));
        Ok(Plan {
            kernel: Kernel::whole("turn.cu", "turn_rows"),
            geometry: geometry([self.n_rows, 1, 1], 128)?,
            arguments,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_the_largest_powers_of_two() {
        let runs = |n_first, first, rest| Some(Runs { n_first, first, rest });
        assert_eq!(Runs::of_parts(128, 0), runs(128, 128, 128));
        assert_eq!(Runs::of_parts(96, 0), runs(96, 32, 32));
        assert_eq!(Runs::of_parts(512, 64), runs(512, 512, 64));
        assert_eq!(Runs::of_parts(96, 64).map(Runs::first_part), runs(96, 32, 32));
        for (first, rest) in [(0, 0), (8, 0), (40, 0), (512, 24)] {
            assert_eq!(Runs::of_parts(first, rest), None);
        }
    }
}
