//! Carries out a [`Plan`]: one queue of units for the whole model.
//!
//! ```text
//! reader thread   asks the system for the pages of coming units, at most READ_AHEAD bytes early
//! pool            takes units in order: decode -> encode -> buffer        (n threads)
//! writer thread   puts finished buffers in place in the output            (a bounded queue)
//! ```
//! Memory in flight: one unit of floats and bytes per thread plus the queue, whatever the size of
//! the tensors. The bytes of the output depend on the plan alone: a unit's result does not know who
//! made it or when. The output appears under its name when it is whole; on any error, and when
//! interrupted, nothing is left behind.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use ikq_encode::{EncodeOptions, encode_rows, is_ternary};
use ikq_formats::row::I2_S_TRAILER_BYTES;
use ikq_formats::{Family, QuantType};
use ikq_gguf::{Bytes, Model, Tensor, Writer};
use ikq_pool::{Cancel, Pool, Stop};
use ikq_simd::IsaKind;

use crate::error::Error;
use crate::plan::{Plan, Statistics, TensorPlan};
use crate::units::{Unit, Work, units};

/// How far the reader runs in front of the workers.
const READ_AHEAD_BYTES: usize = 64 << 20;

/// What a run reports on the way.
#[derive(Clone, Copy, Debug)]
pub enum Event {
    /// That many more bytes of the source are done.
    Bytes(u64),
    /// A tensor is in the output file.
    Tensor {
        /// Index in the plan; these events come in order, without gaps.
        index: usize,
        /// Seconds of work of all threads together on this tensor.
        seconds: f64,
        /// Its type is ternary and its weights are not.
        not_ternary: bool,
    },
}

/// Quantizes `model` as `plan` says into `target`; returns the names of the files.
///
/// `progress` is called from one thread.
///
/// # Errors
/// A non-finite source value, by tensor, expert, row and column; IO errors with path;
/// [`Error::Cancelled`]. Existing files are then untouched and nothing new is left.
pub fn run(
    plan: &Plan,
    model: &Model,
    target: &Path,
    pool: &Pool,
    isa: IsaKind,
    cancel: &Cancel,
    progress: impl FnMut(Event) + Send,
) -> Result<Vec<PathBuf>, Error> {
    refuse_overwriting_input(target, model)?;
    let tensors = model.tensors();
    let units = units(plan, tensors)?;
    let writer = Writer::create(target, plan.layout.clone())?;

    let (finished, inbox) = sync_channel(2 * pool.n_threads() + 2);
    let buffers = Buffers::default();
    let (position, positions) = channel();
    let worked = thread::scope(|scope| {
        let (units, buffers, writer) = (&units, &buffers, &writer);
        scope.spawn(move || read_ahead(plan, units, tensors, &positions));
        let behind = scope.spawn(move || write_behind(plan, units, writer, buffers, &inbox, progress));
        let worked = pool.for_each(units.iter().enumerate(), cancel, |(number, unit)| {
            // an error here means that the reader is done, which is no one's concern
            let _ = position.send(number);
            let planned = &plan.tensors[unit.tensor];
            let what = (planned, &tensors[planned.source]);
            work_on(unit, what, (isa, plan.encode), buffers, &finished)
        });
        drop((finished, position));
        // a write error is the cause of what the workers met afterwards
        match (behind.join(), worked) {
            (Ok(Err(e)), _) => Err(e),
            (Ok(Ok(())), Ok(())) => Ok(()),
            (_, Err(Stop::Failed(Some(e)))) => Err(e),
            (_, Err(_)) => Err(Error::Cancelled),
            (Err(panic), _) => std::panic::resume_unwind(panic),
        }
    });
    worked?;
    Ok(writer.finish()?)
}

fn refuse_overwriting_input(target: &Path, model: &Model) -> Result<(), Error> {
    let Ok(path) = target.canonicalize() else { return Ok(()) };
    let same = |shard: &ikq_gguf::Shard| shard.path.canonicalize().is_ok_and(|p| p == path);
    match model.shards().iter().any(same) {
        true => Err(Error::OverInput { path: target.to_path_buf() }),
        false => Ok(()),
    }
}

/// A unit's result on its way to the writer.
struct Finished {
    tensor: usize,
    offset: u64,
    bytes: Payload,
    /// Bytes of the source that the unit had.
    bytes_in: usize,
    took: Duration,
    /// Weights that are not ternary for a type that is.
    not_ternary: bool,
}

enum Payload {
    Buffer(Vec<u8>),
    Source(Bytes),
}

/// Working memory that travels between threads, so that a run allocates a handful of buffers.
#[derive(Default)]
struct Buffers {
    floats: Mutex<Vec<Vec<f32>>>,
    bytes: Mutex<Vec<Vec<u8>>>,
}

fn take<T>(stash: &Mutex<Vec<Vec<T>>>) -> Vec<T> {
    stash.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default()
}

fn give<T>(stash: &Mutex<Vec<Vec<T>>>, buffer: Vec<T>) {
    stash.lock().unwrap_or_else(PoisonError::into_inner).push(buffer);
}

/// One unit, start to queue. `Err(None)`: the writer has stopped, its error tells why.
fn work_on(
    unit: &Unit,
    (planned, t): (&TensorPlan, &Tensor),
    how: (IsaKind, EncodeOptions),
    buffers: &Buffers,
    finished: &SyncSender<Finished>,
) -> Result<(), Option<Error>> {
    let start = Instant::now();
    let source = t.data.slice(unit.source.clone()).expect("units were cut to the tensor's bytes");
    let (bytes, not_ternary) = match &unit.work {
        Work::Copy => (Payload::Source(source), false),
        work => {
            let (bytes, not_ternary) = encode_unit(work, &source, (planned, t), how, buffers)?;
            (Payload::Buffer(bytes), not_ternary)
        }
    };
    let (tensor, offset, bytes_in) = (unit.tensor, unit.offset, unit.source.len());
    let done = Finished { tensor, offset, bytes, bytes_in, took: start.elapsed(), not_ternary };
    finished.send(done).map_err(|_| None)
}

/// The bytes of a unit, and whether its weights are not ternary though its type is.
fn encode_unit(
    work: &Work,
    source: &[u8],
    (planned, t): (&TensorPlan, &Tensor),
    (isa, options): (IsaKind, EncodeOptions),
    buffers: &Buffers,
) -> Result<(Vec<u8>, bool), Error> {
    let Work::Encode { from, to, n_rows, n_per_row, matrix, first_row, bytes_out } = *work else {
        return Ok((source.to_vec(), false));
    };
    if planned.repack {
        return Ok((ikq_formats::repack(source, from, to, n_rows, n_per_row)?, false));
    }
    let mut x = take(&buffers.floats);
    x.resize(n_rows * n_per_row, 0.0);
    match from {
        QuantType::I2_S => ikq_decode::dequantize_i2_s(isa, source, i2_s_scale(t), &mut x),
        _ => ikq_decode::dequantize(isa, from, source, n_rows, n_per_row, &mut x)?,
    }
    let mut out = take(&buffers.bytes);
    out.resize(bytes_out, 0);
    let importance = importance(planned, matrix, n_per_row);
    let for_ternary = to.info().base.unwrap_or(to).info().family == Family::Ternary;
    let not_ternary = for_ternary && !x.chunks(n_per_row).all(is_ternary);
    let encoded = encode_rows(isa, to, &x, n_per_row, importance, options, &mut out);
    give(&buffers.floats, x);
    match encoded {
        Ok(()) => Ok((out, not_ternary)),
        Err(ikq_encode::Error::NotFinite { row, column, value }) => {
            // a unit of I2_S has the rows of all matrices
            let (row, rows_per_matrix) = (first_row + row, t.ne[1] as usize);
            Err(Error::TensorNotFinite {
                tensor: planned.name.clone(),
                expert: matrix + row / rows_per_matrix,
                row: row % rows_per_matrix,
                column,
                value,
            })
        }
        Err(e) => Err(e.into()),
    }
}

/// The scale of an I2_S tensor, which stands behind its rows.
fn i2_s_scale(t: &Tensor) -> f32 {
    let trailer = t.data.len() - I2_S_TRAILER_BYTES;
    f32::from_le_bytes(t.data[trailer..].first_chunk().copied().expect("the reader has checked the size"))
}

/// The importance of a matrix's columns: its own, or the one that all matrices share.
fn importance(planned: &TensorPlan, matrix: usize, n_per_row: usize) -> Option<&[f32]> {
    match &planned.statistics {
        Statistics::Found { values, .. } => {
            let own = values.get(matrix * n_per_row..(matrix + 1) * n_per_row);
            Some(own.unwrap_or(values))
        }
        _ => None,
    }
}

/// Asks the system to read coming units while the workers are busy with earlier ones.
fn read_ahead(plan: &Plan, units: &[Unit], tensors: &[Tensor], positions: &Receiver<usize>) {
    let mut next = 0;
    let mut ahead = 0;
    let mut counted = 0;
    loop {
        while next < units.len() && ahead < READ_AHEAD_BYTES {
            let unit = &units[next];
            let source = &tensors[plan.tensors[unit.tensor].source];
            if let Some(range) = source.data.slice(unit.source.clone()) {
                range.will_need();
            }
            ahead += unit.source.len();
            next += 1;
        }
        let Ok(number) = positions.recv() else { return };
        // units before `number` are in work or done: their bytes no longer count as ahead
        for unit in &units[counted.min(number)..number.min(next)] {
            ahead = ahead.saturating_sub(unit.source.len());
        }
        counted = counted.max(number.min(next));
    }
}

/// What is known of a tensor while its units are at work.
#[derive(Clone, Copy, Default)]
struct Tally {
    n_open: usize,
    seconds: f64,
    not_ternary: bool,
}

/// Puts results in place and reports tensors in order as they become whole.
fn write_behind(
    plan: &Plan,
    units: &[Unit],
    writer: &Writer,
    buffers: &Buffers,
    inbox: &Receiver<Finished>,
    mut progress: impl FnMut(Event),
) -> Result<(), Error> {
    let mut tensors = vec![Tally::default(); plan.tensors.len()];
    units.iter().for_each(|u| tensors[u.tensor].n_open += 1);
    let mut reported = 0;
    let mut report = |tensors: &[Tally], n_bytes: u64| {
        progress(Event::Bytes(n_bytes));
        while let Some(Tally { n_open: 0, seconds, not_ternary }) = tensors.get(reported).copied() {
            progress(Event::Tensor { index: reported, seconds, not_ternary });
            reported += 1;
        }
    };
    report(&tensors, 0);
    for done in inbox {
        match done.bytes {
            Payload::Source(bytes) => {
                writer.write_at(done.tensor, done.offset, &bytes)?;
            }
            Payload::Buffer(bytes) => {
                writer.write_at(done.tensor, done.offset, &bytes)?;
                give(&buffers.bytes, bytes);
            }
        }
        let tally = &mut tensors[done.tensor];
        tally.n_open -= 1;
        tally.seconds += done.took.as_secs_f64();
        tally.not_ternary |= done.not_ternary;
        report(&tensors, done.bytes_in as u64);
    }
    Ok(())
}
