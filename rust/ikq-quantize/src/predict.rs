//! What a run will need: memory, by counting, and time, by trying a few units of every kind.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use ikq_covariance::Factors;
use ikq_gguf::{Model, write_rate};
use ikq_pool::{Cancel, Pool, available_memory};
use ikq_simd::IsaKind;

use crate::covariance::{FactorCache, Feedback};
use crate::error::Error;
use crate::found::stopped;
use crate::hash;
use crate::plan::{Plan, Statistics};
use crate::run::SYNC_INTERVAL;
use crate::units::{PIECE_ELEMENTS, Units, Work};
use crate::work::{Buffers, How, carry_out};

/// Units of a kind that are tried, per thread.
const TRIES_PER_THREAD: usize = 5;

/// Program, stacks, queues and mapped pages beside those in work, as measured.
const FIXED: u64 = 8 << 20;

/// The threads that memory allows, and what they need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    pub n_workers: usize,
    /// Most bytes in work at a time.
    pub bytes: u64,
}

/// How many of `n_threads` threads can work at once within `max_ram` bytes; `None`: half of the memory that is
/// available.
///
/// # Errors
/// [`Error::Memory`] for a tensor that does not fit by itself.
pub fn memory(
    plan: &Plan,
    model: &Model,
    n_threads: usize,
    max_ram: Option<u64>,
    measure_errors: bool,
) -> Result<Memory, Error> {
    let units = Units::new(plan, model.tensors())?;
    let mut largest = (0, 0);
    for tensor in 0..plan.tensors.len() {
        // the first is as large as any
        if let Some(first) = units.of_tensor(tensor).next() {
            let feedback = feedback_memory(plan, tensor);
            largest = largest.max((units.get(first).memory(measure_errors) + feedback, tensor));
        }
    }
    let (each, tensor) = largest;
    let max_ram = max_ram.or_else(|| available_memory().map(|free| free / 2));
    if let Some(max) = max_ram
        && each > max
    {
        let t = &plan.tensors[tensor];
        let ty = t.encode.unwrap_or(ikq_formats::QuantType::I2_S);
        return Err(Error::Memory { tensor: t.name.clone(), ty, needed: each, max });
    }
    let fit = max_ram.map_or(u64::MAX, |max| max.saturating_sub(FIXED) / each.max(1));
    let n_workers = n_threads.min(usize::try_from(fit).unwrap_or(usize::MAX)).max(1);
    Ok(Memory { n_workers, bytes: FIXED + n_workers as u64 * each })
}

/// Memory that error feedback takes for a tensor, by thread: factors, what making them takes, and rows in work. The factors that
/// are kept for other tensors are in it as a second set.
fn feedback_memory(plan: &Plan, tensor: usize) -> u64 {
    match plan.tensors[tensor].feedback {
        Feedback::Site { index, .. } => {
            let k = plan.tensors[tensor].dims[0] as usize;
            let missing = plan.covariances.as_ref().and_then(|c| c.sites[index].missing());
            // rows turned, and aimed
            let aimed = if missing.is_some() { 8 * PIECE_ELEMENTS.max(16 * k) } else { 0 };
            let factors = 3 * Factors::bytes(k, missing, plan.in_rounds) + Factors::working_bytes(k, missing);
            (factors + aimed + ikq_feedback::working_bytes(k, plan.in_rounds)) as u64
        }
        Feedback::NotUsed | Feedback::Missing => 0,
    }
}

/// Seconds that a run with the threads of `pool` will take: a few units of every kind are encoded and thrown away, and a
/// nameless file in `folder` says how fast the disk is.
///
/// # Errors
/// [`Error::TensorNotFinite`], [`Error::Cancelled`].
pub fn seconds(
    plan: &Plan,
    model: &Model,
    folder: &Path,
    pool: &Pool,
    isa: IsaKind,
    cancel: &Cancel,
    measure_errors: bool,
) -> Result<f64, Error> {
    let work = working_seconds(plan, model, pool, isa, cancel, measure_errors)?;
    let disk = write_rate(folder).map_or(0.0, |rate| plan.layout.total_size() as f64 / rate);
    // the disk catches up at intervals while threads work; what came after the last one is waited for
    let interval = SYNC_INTERVAL.as_secs_f64();
    Ok(work.max(disk) + disk.min(work) * (interval / work.max(interval)))
}

/// Seconds of the threads alone.
fn working_seconds(
    plan: &Plan,
    model: &Model,
    pool: &Pool,
    isa: IsaKind,
    cancel: &Cancel,
    measure_errors: bool,
) -> Result<f64, Error> {
    let units = Units::new(plan, model.tensors())?;
    // kinds: types and whether there is importance; each with its tensors
    let mut kinds: BTreeMap<_, Vec<usize>> = BTreeMap::new();
    for (index, t) in plan.tensors.iter().enumerate() {
        let weighted = matches!(t.statistics, Statistics::Found { .. });
        let with_feedback = matches!(t.feedback, Feedback::Site { .. });
        kinds
            .entry((t.from.id(), t.to.id(), t.encode.is_some(), weighted, with_feedback))
            .or_default()
            .push(index);
    }
    let factors = FactorCache::new(plan, isa, pool.n_threads());
    let how = How { isa, encode: plan.encode, measure_errors, clamp: true, factors: factors.as_ref() };
    let buffers = Buffers::default();
    let mut total = 0.0;
    for tensors in kinds.values() {
        let numbers: Vec<usize> = tensors.iter().flat_map(|t| units.of_tensor(*t)).collect();
        let wanted = TRIES_PER_THREAD * pool.n_threads();
        // from the middle of equal parts of the whole
        let tried = (0..wanted.min(numbers.len())).map(|i| {
            numbers[((2 * i + 1) * numbers.len() / (2 * wanted.min(numbers.len()))).min(numbers.len() - 1)]
        });
        let tried: Vec<usize> = tried.collect();
        for number in &tried {
            let unit = units.get(*number);
            model.tensors()[plan.tensors[unit.tensor].source].will_need(unit.source);
        }
        let rates = Mutex::new(Vec::with_capacity(tried.len()));
        let done = pool.for_each(tried.iter(), cancel, |number| {
            let start = Instant::now();
            let unit = units.get(*number);
            let planned = &plan.tensors[unit.tensor];
            let t = &model.tensors()[planned.source];
            let source = t.read(unit.source.clone())?;
            let outcome = carry_out(&unit.work, source.clone(), (planned, t), how, &buffers)?;
            // what a run does with the bytes: two hashes and a copy to the system
            let copy = match unit.work {
                Work::Copy => (hash::of(&source), outcome.bytes.to_vec()),
                _ => (hash::of(&source) ^ hash::of(&outcome.bytes), outcome.bytes.to_vec()),
            };
            std::hint::black_box(copy);
            buffers.recycle(outcome.bytes);
            source.release();
            let rate = start.elapsed().as_secs_f64() / source.len().max(1) as f64;
            rates.lock().unwrap_or_else(PoisonError::into_inner).push(rate);
            Ok::<(), Error>(())
        });
        stopped(done)?;
        // the middle one: the first find no buffers and cold pages
        let mut rates = rates.into_inner().unwrap_or_else(PoisonError::into_inner);
        rates.sort_unstable_by(f64::total_cmp);
        let all: u64 = tensors.iter().map(|t| plan.tensors[*t].bytes_in).sum();
        total += rates.get(rates.len() / 2).map_or(0.0, |rate| rate * all as f64);
    }
    Ok(total / pool.n_threads() as f64)
}
