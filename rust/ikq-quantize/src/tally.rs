//! Counts the progress of a run by tensor, and makes the events that report it.

use crate::journal::Record;
use crate::measure::Errors;
use crate::plan::Plan;
use crate::range::Vanished;
use crate::units::{Units, Work};

/// What a run reports on the way. All come from one thread.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The number of source bytes that were worked off since the last such event.
    Bytes(u64),
    /// All bytes of a tensor are in the output file.
    Tensor {
        /// Index in the plan; these events come in order, without gaps.
        index: usize,
        /// Seconds of work of all threads together on this tensor, in earlier runs too.
        seconds: f64,
        /// Its type is ternary and its weights are not.
        not_ternary: bool,
        /// Non-zero weights, and those that are zero now because the type's scales do not go that low.
        vanished: Vanished,
    },
    /// Something that the user should know: what was found of an earlier run, what was not good in it.
    Note(String),
}

/// How the bytes of a tensor came about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    Encoded,
    /// Its rows were put into groups, or taken apart.
    Repacked,
    Copied,
    /// From an older output.
    Reused,
}

/// What is known of a tensor that is finished.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorDone {
    pub origin: Origin,
    /// Seconds of work of all threads together, in earlier runs too.
    pub seconds: f64,
    /// Its type is ternary and its weights are not.
    pub not_ternary: bool,
    /// Non-zero weights, and those that are zero now because the type's scales do not go that low.
    pub vanished: Vanished,
    /// Errors of each matrix (expert), where every unit was measured.
    pub errors: Option<Vec<Errors>>,
}

/// The progress of all tensors of a run.
pub(crate) struct Tally<'a> {
    units: &'a Units,
    tensors: Vec<TensorDone>,
    /// By tensor: how many of its units are not in the output yet.
    n_open: Vec<usize>,
    /// Tensors of which events were told.
    n_told: usize,
}

impl<'a> Tally<'a> {
    /// A tally of a run that has done nothing yet. `reused` says of each tensor whether an older file gives its bytes.
    pub fn new(plan: &Plan, units: &'a Units, reused: impl Fn(usize) -> bool) -> Tally<'a> {
        let tensors = plan.tensors.iter().enumerate().map(|(index, planned)| TensorDone {
            origin: match planned.encode {
                _ if reused(index) => Origin::Reused,
                Some(_) if planned.repack => Origin::Repacked,
                Some(_) => Origin::Encoded,
                None => Origin::Copied,
            },
            seconds: 0.0,
            not_ternary: false,
            vanished: Vanished::default(),
            errors: planned.encode.is_some().then(|| {
                let n_matrices = planned.dims.get(2..).map_or(1, |d| d.iter().product::<u64>());
                vec![Errors::default(); n_matrices as usize]
            }),
        });
        let n_open = (0..plan.tensors.len()).map(|i| units.of_tensor(i).len()).collect();
        Tally { units, tensors: tensors.collect(), n_open, n_told: 0 }
    }

    /// Counts a unit as done; the bytes of the source that it had.
    pub fn add(&mut self, number: usize, record: &Record) -> u64 {
        let unit = self.units.get(number);
        let t = &mut self.tensors[unit.tensor];
        self.n_open[unit.tensor] -= 1;
        t.seconds += f64::from(record.seconds);
        t.not_ternary |= record.not_ternary;
        t.vanished.add(record.vanished);
        match (&unit.work, record.errors, &mut t.errors) {
            (Work::Encode { rows, .. }, Some(errors), Some(all)) => {
                if let Some(sums) = all.get_mut(rows.matrix) {
                    sums.add(&errors);
                }
            }
            _ => t.errors = None,
        }
        unit.source.len() as u64
    }

    /// Counts all units of a tensor as done that an older file has given as it is.
    pub fn add_whole(&mut self, tensor: usize) {
        self.n_open[tensor] = 0;
        self.tensors[tensor].errors = None;
    }

    /// Tells of tensors that have become whole, in order.
    pub fn tell(&mut self, progress: &mut impl FnMut(Event)) {
        while let (Some(0), Some(t)) = (self.n_open.get(self.n_told), self.tensors.get(self.n_told)) {
            let TensorDone { seconds, not_ternary, vanished, .. } = *t;
            progress(Event::Tensor { index: self.n_told, seconds, not_ternary, vanished });
            self.n_told += 1;
        }
    }

    pub fn end(self) -> Vec<TensorDone> {
        self.tensors
    }
}
