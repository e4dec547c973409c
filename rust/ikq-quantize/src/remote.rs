//! Units that other processes work off: a [`Worker`] there, and [`Outside`], which is all that a run knows of them.
//!
//! A finished unit travels as a [`Parcel`]: its record in the journal's form, and its bytes. Whoever works makes the plan
//! anew from the same source, imatrix and options. Records are bound to the hash of all that decides the bytes of units
//! ([`Worker::identity`]), so that the work of another plan, version or source is refused, parcel by parcel.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use ikq_gguf::{Model, Tensor};
use ikq_simd::IsaKind;

use crate::covariance::FactorCache;
use crate::error::Error;
use crate::hash::{self, Hasher};
use crate::journal::{self, RunId, SLOT};
use crate::plan::Plan;
use crate::recipe_hash;
use crate::units::Units;
use crate::work::{Buffers, How, work_off};

/// Bytes of every tensor that tell one source from another with the same header.
const SAMPLE_BYTES: usize = 4096;

/// Whatever kept others from working.
pub type OutsideError = Box<dyn std::error::Error + Send + Sync>;

/// A finished unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parcel {
    pub number: usize,
    /// What the journal will have.
    pub record: [u8; SLOT],
    /// The result; `None` where the worker has written it into the partial file.
    pub bytes: Option<Vec<u8>>,
}

/// Others that work off the units of a run.
pub trait Outside: Sync {
    /// Takes the numbers of all units that are wanted, in order of the output.
    ///
    /// # Errors
    /// Whatever keeps them from being worked off.
    fn begin(&self, wanted: &[usize]) -> Result<(), OutsideError>;

    /// Units that were finished since, in any order; waits for a moment where there are none.
    ///
    /// # Errors
    /// As [`Outside::begin`].
    fn next(&self) -> Result<Vec<Parcel>, OutsideError>;
}

/// Works off single units of a plan for a run in another process.
pub struct Worker {
    plan: Arc<Plan>,
    model: Model,
    units: Units,
    id: RunId,
    isa: IsaKind,
    measure_errors: bool,
    clamp: bool,
    factors: Option<FactorCache>,
    buffers: Buffers,
}

impl Worker {
    /// Reads [`SAMPLE_BYTES`] of every tensor.
    ///
    /// # Errors
    /// Those of the source.
    pub fn new(
        plan: Arc<Plan>,
        model: Model,
        isa: IsaKind,
        measure_errors: bool,
        clamp: bool,
    ) -> Result<Worker, Error> {
        let units = Units::new(&plan, model.tensors())?;
        let recipes: Vec<u64> = plan.tensors.iter().map(|t| recipe_hash::of_tensor(t, &plan)).collect();
        let id = work_id(&model, &units, &recipes)?;
        let factors = FactorCache::new(&plan, isa, 1);
        let buffers = Buffers::default();
        Ok(Worker { plan, model, units, id, isa, measure_errors, clamp, factors, buffers })
    }

    /// Hash of all that decides the bytes of units: version, source (by its header and samples), types, statistics.
    pub fn identity(&self) -> u64 {
        self.id.plan
    }

    /// Number of units.
    pub fn n_units(&self) -> usize {
        self.units.len()
    }

    /// The output file that has a unit's bytes, by number, and where in it.
    ///
    /// # Panics
    /// Where there is no such unit.
    pub fn spot(&self, number: usize) -> (usize, u64) {
        let unit = self.units.get(number);
        let place = self.plan.layout.places()[unit.tensor];
        (place.shard, place.offset + unit.offset)
    }

    /// Works off a unit.
    ///
    /// # Errors
    /// As [`crate::run::run`].
    ///
    /// # Panics
    /// Where there is no such unit.
    pub fn unit(&self, number: usize) -> Result<Parcel, Error> {
        let start = Instant::now();
        let unit = self.units.get(number);
        let planned = &self.plan.tensors[unit.tensor];
        let t = &self.model.tensors()[planned.source];
        let how = How {
            isa: self.isa,
            encode: self.plan.encode,
            measure_errors: self.measure_errors,
            clamp: self.clamp,
            factors: self.factors.as_ref(),
        };
        let (payload, mut record) = work_off(&unit, (planned, t), how, &self.buffers)?;
        let bytes = payload.to_vec();
        self.buffers.recycle(payload);
        record.seconds = start.elapsed().as_secs_f32();
        Ok(Parcel { number, record: journal::slot(self.id, number, &record), bytes: Some(bytes) })
    }
}

/// What records of a run's units are bound to. The stamp says nothing here: times differ between copies of a file.
pub(crate) fn work_id(model: &Model, units: &Units, recipes: &[u64]) -> Result<RunId, Error> {
    let mut hasher = Hasher::new("work");
    hasher.bytes(env!("CARGO_PKG_VERSION").as_bytes());
    recipes.iter().for_each(|recipe| hasher.number(*recipe));
    for t in model.tensors() {
        hasher.bytes(t.name.as_bytes());
        hasher.number(t.file_offset);
        hasher.number(t.n_bytes() as u64);
        hasher.number(sample(t)?);
    }
    Ok(RunId { plan: hasher.end(), stamp: 0, n_units: units.len() })
}

/// Hash of some bytes of a tensor: not the same place in all, so that equal beginnings do not make them equal.
fn sample(t: &Tensor) -> Result<u64, Error> {
    let n = t.n_bytes().min(SAMPLE_BYTES);
    let n_places = (t.n_bytes() - n) as u64 + 1;
    let start = (hash::of(t.name.as_bytes()) % n_places) as usize;
    let bytes = t.read(start..start + n)?;
    let hash = hash::of(&bytes);
    bytes.release();
    Ok(hash)
}

/// Collects the units `wanted`; `accept` puts each into the output.
pub(crate) fn collect(
    wanted: &[usize],
    outside: &dyn Outside,
    is_cancelled: impl Fn() -> bool,
    mut accept: impl FnMut(Parcel) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut open: HashSet<usize> = wanted.iter().copied().collect();
    outside.begin(wanted).map_err(Error::Outside)?;
    while !open.is_empty() {
        if is_cancelled() {
            return Err(Error::Cancelled);
        }
        for parcel in outside.next().map_err(Error::Outside)? {
            // one that was repeated may come twice
            if open.remove(&parcel.number) {
                accept(parcel)?;
            }
        }
    }
    Ok(())
}
