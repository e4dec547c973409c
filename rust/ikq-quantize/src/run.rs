//! Carries out a [`Plan`]: one queue of units for the whole model, and nothing done twice.
//!
//! ```text
//! before   what a journal, an older output or finished shards have of the result is looked up and seen to be good
//! reader   asks the system for the pages of coming units, at most READ_AHEAD bytes early
//! pool     takes units in order: decode -> encode -> into the partial file -> into the journal   (n threads)
//! keeper   makes the disk catch up every few seconds
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

use crate::error::Error;
use crate::found::{Found, Look, SameTensor, stopped};
use crate::hash;
use crate::journal::{Journal, Record};
use crate::plan::Plan;
use crate::recipe_hash;
use crate::tally::Tally;
use crate::units::Units;
use crate::work::{Buffers, How, Payload, carry_out};

pub use crate::tally::{Event, Origin, TensorDone};

/// How far the reader runs in front of the workers.
const READ_AHEAD_BYTES: usize = 64 << 20;
/// How long what is done may wait for the disk.
pub(crate) const SYNC_INTERVAL: Duration = Duration::from_secs(5);

/// How to run, beside what the plan says; none of it changes the output's bytes.
#[derive(Clone, Debug, Default)]
pub struct RunOptions {
    /// Begin anew: what an interrupted run has left is not looked at.
    pub restart: bool,
    /// An older output whose tensors serve where nothing about them has changed.
    pub reuse: Option<PathBuf>,
    /// Finished shards of the output that are what this run would write stay.
    pub keep_finished: bool,
    /// Measure what encoding costs.
    pub measure_errors: bool,
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
/// A non-finite source value, by tensor, expert, row and column; IO errors with path; [`Error::Busy`],
/// [`Error::OtherWork`]; [`Error::Cancelled`]. Files under final names are then untouched.
#[expect(clippy::too_many_arguments, reason = "what, where to, and by what means")]
pub fn run(
    plan: &Plan,
    model: &Model,
    target: &Path,
    pool: &Pool,
    isa: IsaKind,
    cancel: &Cancel,
    options: &RunOptions,
    mut progress: impl FnMut(Event) + Send,
) -> Result<Done, Error> {
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
    let what = Job { plan, tensors, units: &units, reused: &reused, writer: &writer, journal: &journal };
    let how = How { isa, encode: plan.encode, measure_errors: options.measure_errors };
    let n_new = AtomicUsize::new(0);
    let worked = what.work_off(pool, cancel, how, &mut found, &n_new, &mut tally, &mut progress);
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

/// A run whose files are open, with what was there already.
struct Begun<'a> {
    writer: Writer,
    found: Found,
    /// By tensor.
    reused: Vec<Option<Reused>>,
    tally: Tally<'a>,
    n_resumed: usize,
}

/// Looks for what is there of the output, and opens its files.
fn begin<'a>(
    look: &Look<'a>,
    recipes: &[u64],
    target: &Path,
    journal: &mut Journal,
    isa: IsaKind,
    options: &RunOptions,
    progress: &mut impl FnMut(Event),
) -> Result<Begun<'a>, Error> {
    let (plan, units) = (look.plan, look.units);
    let mut resumed = Vec::new();
    let measured = options.measure_errors.then_some(isa);
    let mut found = look.journal(journal, measured, |number, record| resumed.push((number, record)))?;
    let n_resumed = resumed.len();
    if n_resumed + found.n_damaged > 0 {
        let damaged = match found.n_damaged {
            0 => String::new(),
            n => format!("; {n} that were noted as done are not in the file and are done again"),
        };
        progress(Event::Note(format!("going on: {n_resumed} of {} items are done{damaged}", units.len())));
    }
    let mut kept = Vec::new();
    if options.keep_finished {
        kept = keep_finished(look, recipes, &mut found, progress)?;
    }
    let mut reused: Vec<Option<Reused>> = (0..plan.tensors.len()).map(|_| None).collect();
    for r in older_tensors(look, options, recipes, &found, progress)? {
        let index = r.index;
        reused[index] = Some(r);
    }
    let origin = |index: usize| reused[index].is_some() || kept.binary_search(&index).is_ok();
    let mut tally = Tally::new(plan, units, origin);
    for (number, record) in &resumed {
        progress(Event::Bytes(tally.add(*number, record)));
    }
    for index in &kept {
        tally.add_whole(*index);
        progress(Event::Bytes(plan.tensors[*index].bytes_in));
    }
    let writer = Writer::resume(target, plan.layout.clone(), &found.in_place)?;
    for number in (0..units.len()).filter(|n| found.records[*n].is_some()) {
        let unit = units.get(number);
        writer.mark(unit.tensor, unit.offset, unit.bytes_out as u64)?;
    }
    Ok(Begun { writer, found, reused, tally, n_resumed })
}

fn refuse_overwriting_input(target: &Path, model: &Model) -> Result<(), Error> {
    let Ok(path) = target.canonicalize() else { return Ok(()) };
    let same = |shard: &ikq_gguf::Shard| shard.path.canonicalize().is_ok_and(|p| p == path);
    match model.shards().iter().any(same) {
        true => Err(Error::OverInput { path: target.to_path_buf() }),
        false => Ok(()),
    }
}

/// A tensor that an older output gives, with the hashes of its units.
struct Reused {
    index: usize,
    old: Tensor,
    hashes: Vec<(u64, u64)>,
}

fn older_tensors(
    look: &Look<'_>,
    options: &RunOptions,
    recipes: &[u64],
    found: &Found,
    progress: &mut impl FnMut(Event),
) -> Result<Vec<Reused>, Error> {
    let mut olds = Vec::new();
    if let Some(path) = &options.reuse {
        let old = Model::open(path)?;
        if (0..old.shards().len()).all(|shard| recipe_hash::read(&old, shard).is_empty()) {
            return Err(Error::NoHashes { path: path.clone() });
        }
        olds.push(old);
    }
    if options.keep_finished {
        // of shards that do not stay whole, single tensors may serve
        let shards = look.targets.iter().zip(&found.in_place).filter(|(_, in_place)| !**in_place);
        olds.extend(shards.filter_map(|(path, _)| Model::open_file(path).ok()));
    }
    let mut all: Vec<Reused> = Vec::new();
    for old in &olds {
        let wanted = |index: usize| {
            let undone = look.units.of_tensor(index).any(|n| found.records[n].is_none());
            let in_place = found.in_place[look.plan.layout.places()[index].shard];
            undone && !in_place && all.iter().all(|r| r.index != index)
        };
        let wanted: Vec<bool> = (0..look.plan.tensors.len()).map(wanted).collect();
        for SameTensor { index, hashes } in look.same_tensors(old, recipes, |i| wanted[i])? {
            let t = old.tensor(&look.plan.tensors[index].name).cloned();
            all.extend(t.map(|old| Reused { index, old, hashes }));
        }
    }
    if !olds.is_empty() {
        let n = all.iter().filter(|r| look.plan.tensors[r.index].encode.is_some()).count();
        let of = look.plan.tensors.iter().filter(|t| t.encode.is_some()).count();
        progress(Event::Note(format!("reusing {n} of the {of} tensors that would be encoded")));
    }
    Ok(all)
}

/// Shards under their final names that are what this run would write: they stay. The tensors in them.
fn keep_finished(
    look: &Look<'_>,
    recipes: &[u64],
    found: &mut Found,
    progress: &mut impl FnMut(Event),
) -> Result<Vec<usize>, Error> {
    let mut kept = Vec::new();
    for (shard, path) in look.targets.iter().enumerate().filter(|(_, path)| path.exists()) {
        let planned = &look.plan.layout.shards()[shard];
        if found.in_place[shard] {
            continue;
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let model = match Model::open_file(path) {
            Ok(model) => model,
            Err(e) => {
                progress(Event::Note(format!("{name} is done again: {e}")));
                continue;
            }
        };
        let is_alike = model.total_size() == planned.size && same_header(&model, planned);
        let tensors = planned.tensors.clone();
        let n_same = match is_alike {
            true => look.same_tensors(&model, recipes, |i| tensors.contains(&i))?.len(),
            false => 0,
        };
        found.in_place[shard] = is_alike && n_same == tensors.len();
        progress(Event::Note(match (found.in_place[shard], is_alike) {
            (true, _) => format!("{name} stays: it is what this command writes"),
            (false, true) => format!(
                "{name} is done again: {} of its {} tensors are not what this command writes",
                tensors.len() - n_same,
                tensors.len()
            ),
            (false, false) => format!("{name} is done again: it has other tensors, types or metadata"),
        }));
        if found.in_place[shard] {
            kept.extend(tensors);
        }
    }
    Ok(kept)
}

/// Whether a file begins with the planned header, but for the numbers that come with the data.
fn same_header(model: &Model, planned: &ikq_gguf::ShardLayout) -> bool {
    let Some(found) = model.shards()[0].file.get(..planned.header.len()) else { return false };
    let numbers = planned
        .per_tensor
        .map_or(0..0, |start| start..start + 8 * recipe_hash::room().n_numbers * planned.tensors.len());
    found[..numbers.start] == planned.header[..numbers.start]
        && found[numbers.end..] == planned.header[numbers.end..]
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
}

impl Job<'_> {
    /// Works off all units that are not there yet; `n_new` counts them.
    #[expect(clippy::too_many_arguments, reason = "means, state and reports")]
    fn work_off(
        &self,
        pool: &Pool,
        cancel: &Cancel,
        how: How,
        found: &mut Found,
        n_new: &AtomicUsize,
        tally: &mut Tally<'_>,
        progress: &mut (impl FnMut(Event) + Send),
    ) -> Result<(), Error> {
        let shard = |number: usize| self.plan.layout.places()[self.units.get(number).tensor].shard;
        let open = |n: &usize| found.records[*n].is_none() && !found.in_place[shard(*n)];
        let queue: Vec<usize> = (0..self.units.len()).filter(open).collect();
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
    fn unit(&self, number: usize, how: How, buffers: &Buffers) -> Result<Record, Error> {
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
            let record = Record { source, content, seconds, not_ternary: false, errors: None };
            self.journal.put(number, &record)?;
            return Ok(record);
        }
        let source = t.data.slice(unit.source.clone()).expect("units were cut to the tensor's bytes");
        let outcome = carry_out(&unit.work, source.clone(), (planned, t), how, buffers)?;
        let source_hash = hash::of(&source);
        let content = match &outcome.bytes {
            Payload::Mapped(_) => source_hash,
            Payload::Buffer(bytes) => hash::of(bytes),
        };
        self.writer.write_at(unit.tensor, unit.offset, &outcome.bytes)?;
        buffers.recycle(outcome.bytes);
        source.release();
        let record = Record {
            source: source_hash,
            content,
            seconds: start.elapsed().as_secs_f32(),
            not_ternary: outcome.not_ternary,
            errors: outcome.errors,
        };
        self.journal.put(number, &record)?;
        Ok(record)
    }

    /// Makes the disk catch up from time to time, until the run ends.
    fn keep(&self, stop: &Receiver<()>) -> Result<(), Error> {
        while let Err(RecvTimeoutError::Timeout) = stop.recv_timeout(SYNC_INTERVAL) {
            self.writer.sync()?;
            self.journal.sync()?;
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
                if let Some(range) = source.data.slice(unit.source.clone()) {
                    range.will_need();
                }
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
