//! Carries out a [`Plan`]: one queue of units for the whole model, and nothing done twice.
//!
//! ```text
//! before   what a journal, an older output or finished shards have of the result is looked up and seen to be good
//! reader   asks the system for the pages of coming units, at most READ_AHEAD bytes early
//! pool     takes units in order: decode -> encode -> into the partial file -> into the journal   (n threads)
//! keeper   has the disk begin with what is there, and makes it catch up every few seconds
//! teller   reports progress, in order of tensors
//! after    hashes into the header, files to their final names, the journal goes
//! ```
//! A thread writes its unit itself (the system's page cache is the queue behind it), so that a process that is
//! killed loses what its threads had in hand and no more. Memory in flight is one unit per thread, whatever the size
//! of the tensors. The bytes of the output depend on the plan alone: not on threads, order or interruptions. A file
//! under its final name is always whole.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use ikq_gguf::{Model, Tensor, Writer, partial_path, target_paths};
use ikq_pool::{Cancel, Pool, Stop};
use ikq_simd::IsaKind;

use crate::begin::{Begun, Reused, begin};
use crate::covariance::FactorCache;
use crate::error::Error;
use crate::found::{Found, Look, stopped};
use crate::hash;
use crate::journal::{self, Journal, Record, RunId};
use crate::plan::Plan;
use crate::range::Vanished;
use crate::recipe_hash;
use crate::remote::{self, Outside, Parcel};
use crate::tally::Tally;
use crate::units::{Units, Work};
use crate::work::{Buffers, How, work_off};

pub use crate::tally::{Event, Origin, TensorDone};

/// How far the reader runs in front of the workers.
const READ_AHEAD_BYTES: usize = 64 << 20;
/// How long what is done may wait until the system begins to write it to the disk.
const WRITE_INTERVAL: Duration = Duration::from_millis(200);
/// How long what is done may wait for the disk.
pub(crate) const SYNC_INTERVAL: Duration = Duration::from_secs(5);

/// How to run, beside what the plan says; none of it changes the output's bytes.
#[derive(Clone, Debug, Default)]
pub struct RunOptions {
    /// Begin anew: what an interrupted run has left is not looked at.
    pub restart: bool,
    /// Older outputs whose tensors serve where nothing about them has changed.
    pub reuse: Vec<PathBuf>,
    /// Finished shards of the output that are what this run would write stay.
    pub keep_finished: bool,
    /// Measure what encoding costs.
    pub measure_errors: bool,
    /// Cut off numbers that are larger than a tensor's type can keep, instead of refusing them.
    pub clamp: bool,
}

/// What a run works with.
#[derive(Clone, Copy)]
pub struct Means<'a> {
    pub pool: &'a Pool,
    pub isa: IsaKind,
    /// Ends the run early.
    pub cancel: &'a Cancel,
    /// Other processes, which work off what is not only copied.
    pub outside: Option<&'a dyn Outside>,
}

/// A finished run.
#[derive(Clone, Debug)]
pub struct Done {
    /// The files written.
    pub files: Vec<PathBuf>,
    /// Tensors, in order of the plan.
    pub tensors: Vec<TensorDone>,
    pub n_units: usize,
    /// Units that an interrupted run had done.
    pub n_resumed: usize,
    /// Units that it had noted and whose bytes were not there.
    pub n_damaged: usize,
}

/// Quantizes `model` as `plan` says into `target`.
///
/// On an error, and when interrupted, what is done stays in partial files beside the target; the same call goes on
/// with it. `progress` is called from one thread at a time.
///
/// # Errors
/// A source value that is not finite, or too large for its type, by tensor, expert, row and column; IO errors with path; [`Error::Busy`],
/// [`Error::OtherWork`]; [`Error::Cancelled`]. Files under final names are then untouched.
pub fn run(
    plan: &Plan,
    model: &Model,
    target: &Path,
    means: Means<'_>,
    options: &RunOptions,
    mut progress: impl FnMut(Event) + Send,
) -> Result<Done, Error> {
    let Means { pool, isa, cancel, outside } = means;
    refuse_overwriting_input(target, model)?;
    let tensors = model.tensors();
    let units = Units::new(plan, tensors)?;
    let targets = target_paths(target, &plan.layout)?;
    let recipes: Vec<u64> = plan.tensors.iter().map(|t| recipe_hash::of_tensor(t, plan)).collect();
    let id = recipe_hash::of_run(plan, model, &units, &recipes);
    let anchor = if plan.layout.is_split() { target } else { &targets[0] };
    let mut journal = Journal::open(anchor, id, options.restart)?;
    let started_over = journal.is_new;

    let look = Look { plan, model, units: &units, targets: &targets, pool, cancel };
    let begun = match begin(&look, &recipes, target, &mut journal, isa, options, &mut progress) {
        Ok(begun) => begun,
        Err(e) => {
            if started_over {
                // files that were begun, and hold nothing
                let partials = targets.iter().map(|target| partial_path(target));
                partials.for_each(|path| drop(std::fs::remove_file(path)));
                journal.remove();
            }
            return Err(e);
        }
    };
    let Begun { writer, mut found, reused, mut tally, n_resumed } = begun;
    let outside = outside.map(|o| remote::work_id(model, &units, &recipes).map(|id| (o, id))).transpose()?;
    let what =
        Job { plan, tensors, units: &units, reused: &reused, writer: &writer, journal: &journal, outside };
    let factors = FactorCache::new(plan, isa, pool.n_threads());
    let RunOptions { measure_errors, clamp, .. } = *options;
    let how = How { isa, encode: plan.encode, measure_errors, clamp, factors: factors.as_ref() };
    let n_new = AtomicUsize::new(0);
    let worked = what.work_off(means, how, &mut found, &n_new, &mut tally, &mut progress);
    let finished = worked.and_then(|()| {
        for (index, planned) in plan.tensors.iter().enumerate() {
            if !found.in_place[plan.layout.places()[index].shard] {
                let parts = &found.records[units.of_tensor(index)];
                let source = hash::joined(parts.iter().flatten().map(|h| h.0));
                let content = hash::joined(parts.iter().flatten().map(|h| h.1));
                let name = recipe_hash::of_name(&planned.name);
                writer.set_per_tensor(index, &[name, recipes[index], source, content])?;
            }
        }
        Ok(())
    });
    match finished {
        Ok(()) => {
            journal.sync()?;
            let files = writer.finish()?;
            journal.remove();
            let n_damaged = found.n_damaged;
            Ok(Done { files, tensors: tally.end(), n_units: units.len(), n_resumed, n_damaged })
        }
        Err(e) => {
            if started_over && n_new.load(Ordering::Relaxed) == 0 {
                // nothing to go on with
                writer.discard();
                journal.remove();
            }
            Err(e)
        }
    }
}

fn refuse_overwriting_input(target: &Path, model: &Model) -> Result<(), Error> {
    let Ok(path) = target.canonicalize() else { return Ok(()) };
    let same = |shard: &ikq_gguf::Shard| shard.path.canonicalize().is_ok_and(|p| p == path);
    match model.shards().iter().any(same) {
        true => Err(Error::OverInput { path: target.to_path_buf() }),
        false => Ok(()),
    }
}

/// What the threads of a run share.
struct Job<'a> {
    plan: &'a Plan,
    tensors: &'a [Tensor],
    units: &'a Units,
    /// By tensor.
    reused: &'a [Option<Reused>],
    writer: &'a Writer,
    journal: &'a Journal,
    /// Others that work, and what their records are bound to.
    outside: Option<(&'a dyn Outside, RunId)>,
}

impl Job<'_> {
    /// Works off all units that are not there yet; `n_new` counts them.
    fn work_off(
        &self,
        Means { pool, cancel, .. }: Means<'_>,
        how: How<'_>,
        found: &mut Found,
        n_new: &AtomicUsize,
        tally: &mut Tally<'_>,
        progress: &mut (impl FnMut(Event) + Send),
    ) -> Result<(), Error> {
        let shard = |number: usize| self.plan.layout.places()[self.units.get(number).tensor].shard;
        let open = |n: &usize| found.records[*n].is_none() && !found.in_place[shard(*n)];
        let queue: Vec<usize> = (0..self.units.len()).filter(open).collect();
        let (queue, wanted): (Vec<usize>, Vec<usize>) =
            queue.into_iter().partition(|number| self.outside.is_none() || self.is_copy(*number));
        let buffers = Buffers::default();
        let (position, positions) = channel();
        let (finished, inbox) = channel();
        let (running, stop) = channel::<()>();
        let records = &mut found.records;
        thread::scope(|scope| {
            let queue = &queue;
            scope.spawn(move || self.read_ahead(queue, &positions));
            let keeper = scope.spawn(move || self.keep(&stop));
            let teller = scope.spawn(move || {
                tally.tell(progress);
                for (number, record) in inbox {
                    let record: Record = record;
                    records[number] = Some((record.source, record.content));
                    progress(Event::Bytes(tally.add(number, &record)));
                    tally.tell(progress);
                }
            });
            let worked = pool.for_each(queue.iter().enumerate(), cancel, |(at, number)| {
                // an error here means that the reader is done, which is no one's concern
                let _ = position.send(at);
                let record = self.unit(*number, how, &buffers)?;
                n_new.fetch_add(1, Ordering::Relaxed);
                let _ = finished.send((*number, record));
                Ok::<(), Error>(())
            });
            // what is only copied is in the output by now
            let worked = worked.and_then(|()| {
                let Some((outside, id)) = self.outside else { return Ok(()) };
                let collected = remote::collect(
                    &wanted,
                    outside,
                    || cancel.is_cancelled(),
                    |parcel| {
                        let number = parcel.number;
                        let record = self.accept(parcel, id)?;
                        n_new.fetch_add(1, Ordering::Relaxed);
                        let _ = finished.send((number, record));
                        Ok(())
                    },
                );
                collected.map_err(|e| match e {
                    Error::Cancelled => Stop::Cancelled,
                    e => Stop::Failed(e),
                })
            });
            drop((finished, position, running));
            teller.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            let kept = keeper.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            match worked {
                // what the disk said explains what the workers met
                Err(Stop::Cancelled) => kept.and(Err(Error::Cancelled)),
                worked => kept.and(stopped(worked)),
            }
        })
    }

    /// One unit, into the output and the journal.
    fn unit(&self, number: usize, how: How<'_>, buffers: &Buffers) -> Result<Record, Error> {
        let start = Instant::now();
        let unit = self.units.get(number);
        let planned = &self.plan.tensors[unit.tensor];
        let t = &self.tensors[planned.source];
        if let Some(reused) = &self.reused[unit.tensor] {
            let at = unit.offset as usize;
            let bytes = reused.old.data.slice(at..at + unit.bytes_out).expect("the sizes are equal");
            self.writer.write_at(unit.tensor, unit.offset, &bytes)?;
            bytes.release();
            let (source, content) = reused.hashes[number - self.units.of_tensor(unit.tensor).start];
            let seconds = start.elapsed().as_secs_f32();
            let record = Record {
                source,
                content,
                seconds,
                not_ternary: false,
                vanished: Vanished::default(),
                errors: None,
            };
            self.journal.put(number, &record)?;
            return Ok(record);
        }
        let (bytes, mut record) = work_off(&unit, (planned, t), how, buffers)?;
        self.writer.write_at(unit.tensor, unit.offset, &bytes)?;
        buffers.recycle(bytes);
        record.seconds = start.elapsed().as_secs_f32();
        self.journal.put(number, &record)?;
        Ok(record)
    }

    /// Whether a unit's bytes are there already: others would only send them.
    fn is_copy(&self, number: usize) -> bool {
        let unit = self.units.get(number);
        self.reused[unit.tensor].is_some() || unit.work == Work::Copy
    }

    /// One unit that others have worked off, into the output and the journal.
    fn accept(&self, parcel: Parcel, id: RunId) -> Result<Record, Error> {
        let unit = self.units.get(parcel.number);
        let wrong = |why| Error::Parcel { tensor: self.plan.tensors[unit.tensor].name.clone(), why };
        let record = journal::parse(id, parcel.number, &parcel.record);
        let record = record.ok_or_else(|| wrong("it is of another plan, source or version"))?;
        match parcel.bytes {
            Some(bytes) => {
                if bytes.len() != unit.bytes_out || hash::of(&bytes) != record.content {
                    return Err(wrong("its bytes are damaged"));
                }
                self.writer.write_at(unit.tensor, unit.offset, &bytes)?;
            }
            None => self.writer.mark(unit.tensor, unit.offset, unit.bytes_out as u64)?,
        }
        self.journal.put(parcel.number, &record)?;
        Ok(record)
    }

    /// Makes the disk catch up from time to time, until the run ends.
    fn keep(&self, stop: &Receiver<()>) -> Result<(), Error> {
        let mut synced = Instant::now();
        while let Err(RecvTimeoutError::Timeout) = stop.recv_timeout(WRITE_INTERVAL) {
            if synced.elapsed() < SYNC_INTERVAL {
                self.writer.begin_sync()?;
                continue;
            }
            self.writer.sync()?;
            self.journal.sync()?;
            synced = Instant::now();
        }
        Ok(())
    }

    /// Asks the system to read coming units while the workers are busy with earlier ones.
    fn read_ahead(&self, queue: &[usize], positions: &Receiver<usize>) {
        let mut next = 0;
        let mut ahead = 0;
        let mut counted = 0;
        loop {
            while next < queue.len() && ahead < READ_AHEAD_BYTES {
                let unit = self.units.get(queue[next]);
                let source = &self.tensors[self.plan.tensors[unit.tensor].source];
                source.will_need(unit.source.clone());
                ahead += unit.source.len();
                next += 1;
            }
            let Ok(at) = positions.recv() else { return };
            // units before `at` are in work or done: their bytes no longer count as ahead
            for number in &queue[counted.min(at)..at.min(next)] {
                ahead = ahead.saturating_sub(self.units.get(*number).source.len());
            }
            counted = counted.max(at.min(next));
        }
    }
}
