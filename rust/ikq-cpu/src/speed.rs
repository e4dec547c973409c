//! What products take on this machine: matrices of random codes on huge pages, as loaded models have them, more of them
//! than caches hold.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use ikq_formats::QuantType;
use ikq_gguf::PageBuffer;
use ikq_kernels::matmul::check::{random_columns, random_matrix};
use ikq_kernels::matmul::{Compute, Matrix, Scratch, lane_bytes, multiply, pack, speed};
use ikq_model::error::Error;
use ikq_pool::{Cancel, Pool, Stop};
use ikq_simd::IsaKind;

use crate::exec::{MANY_COLUMNS, MOST_ROWS, ROWS_OF_MANY_COLUMNS};

/// Rows of a matrix, and elements of a row: those of an expert.
pub const SHAPE: (usize, usize) = (768, 2048);

/// Bytes of matrices, at least and at most.
const MEMORY: (usize, usize) = (192 << 20, 1 << 30);

/// Where Linux tells how large the last cache is.
const LAST_CACHE: &str = "/sys/devices/system/cpu/cpu0/cache/index3/size";

/// Matrices of a phase, for each thread. Threads wait for the last one at its end, as between the products of a layer.
const OF_PHASE: usize = 2;

/// How long each figure is measured.
const BUDGET: Duration = Duration::from_millis(100);

/// Least repetitions, however long they take.
const FEWEST: usize = 3;

/// What products of a type take, in phases as steps of models have them: units that threads take in turn, then a wait
/// for the last. A thread that the system slows down holds up the others there, too.
#[derive(Clone, Debug)]
pub struct Speeds {
    /// Bytes of a matrix in the device's form.
    pub bytes: usize,
    /// Seconds of a thread for a matrix's product, with its share of the waits, for each number of columns.
    pub seconds: Vec<f64>,
    /// Bytes per second that all threads read of the same memory when they do nothing else.
    pub read: f64,
    /// Multiply-adds per second of all threads with codes from registers; none where there is no dot instruction.
    pub peak: Option<f64>,
}

/// Measures products of matrices of [`SHAPE`] with so many columns.
///
/// # Errors
/// [`Error::Format`] for types that such matrices cannot have, [`Error::Memory`]; [`Stop::Cancelled`].
///
/// # Panics
/// When a count is 0.
pub fn measure(
    kind: IsaKind,
    ty: QuantType,
    counts: &[usize],
    pool: &Pool,
    cancel: &Cancel,
) -> Result<Speeds, Stop<Error>> {
    let (n_rows, k) = SHAPE;
    let format = |source| Error::Format { tensor: format!("of type {}", ty.name()), source };
    ikq_formats::matrix_bytes(ty, n_rows, k).map_err(format)?;
    let file = random_matrix(ty, n_rows, k, 1);
    let file = Matrix::new(ty, n_rows, k, &file).map_err(format)?;
    let bytes = lane_bytes(ty, n_rows, k).map_err(format)?;
    let mut matrix = vec![0; bytes];
    pack(kind, ty, k, file.data(), &mut matrix);
    // cache lines are not shared by matrices
    let each = bytes.next_multiple_of(64);
    let n = (memory() / each).max(pool.n_threads());
    let refused = |e: std::io::Error| Error::Memory { needed: n * each, reason: e.to_string() };
    let mut buffer = PageBuffer::new(n * each).map_err(refused)?;
    buffer.as_mut_slice().chunks_exact_mut(each).for_each(|m| m[..bytes].copy_from_slice(&matrix));
    let memory = buffer.freeze().map_err(refused)?;

    let of_thread = |t: usize| t * n / pool.n_threads()..(t + 1) * n / pool.n_threads();
    let place = |mine: Range<usize>, i: usize| (mine.start + i % mine.len()) * each;
    let read = timed(
        pool,
        || (),
        |t, i, ()| {
            let at = place(of_thread(t), i);
            std::hint::black_box(speed::read(&memory[at..at + each]));
        },
    );
    let peak = speed::has_peak(kind).then(|| timed(pool, || (), |_, _, ()| speed::peak(kind)));
    let widest = counts.iter().copied().max().unwrap_or(1);
    let acts = random_columns(kind, k, widest, 2);
    let mut seconds = Vec::with_capacity(counts.len());
    for &count in counts {
        if cancel.is_cancelled() {
            return Err(Stop::Cancelled);
        }
        let columns: Vec<u32> = (0..count).map(|c| (c * (widest / count)) as u32).collect();
        let step = if count > MANY_COLUMNS { ROWS_OF_MANY_COLUMNS } else { MOST_ROWS }.min(n_rows);
        let of_matrix = n_rows.div_ceil(step);
        let n_matrices = OF_PHASE * pool.n_threads();
        let scratch = || (Scratch::default(), vec![0.0; step * count]);
        let phase = phases(pool, n_matrices * of_matrix, scratch, |unit, repetition, (scratch, out)| {
            let at = place(0..n, repetition * n_matrices + unit / of_matrix);
            let matrix = Matrix::lanes(ty, n_rows, k, &memory[at..at + bytes], file.scale()).expect("packed");
            let first = unit % of_matrix * step;
            let rows = first..n_rows.min(first + step);
            let out = &mut out[..rows.len() * count];
            multiply(kind, Compute::Auto, &matrix, rows, &acts, &columns, scratch, out);
        });
        seconds.push(phase / OF_PHASE as f64);
    }
    let n_threads = pool.n_threads() as f64;
    Ok(Speeds {
        bytes,
        seconds,
        read: n_threads * each as f64 / read,
        peak: peak.map(|seconds| n_threads * speed::PEAK_MULTIPLY_ADDS as f64 / seconds),
    })
}

/// Bytes of matrices: twice what the last cache holds, where the system tells that.
fn memory() -> usize {
    let told = std::fs::read_to_string(LAST_CACHE).ok();
    let kib: Option<usize> = told.and_then(|size| size.trim().strip_suffix('K')?.parse().ok());
    (kib.unwrap_or(0) << 11).clamp(MEMORY.0, MEMORY.1)
}

/// Seconds that `work(thread, repetition, state)` takes while all threads work: the mean of repetitions, since a token
/// waits for slow ones, too, without the slowest twentieth, which something else may have stopped.
fn timed<S: Send>(pool: &Pool, state: impl Fn() -> S, work: impl Fn(usize, usize, &mut S) + Sync) -> f64 {
    let mut units: Vec<_> =
        (0..pool.n_threads()).map(|thread| (thread, state(), Vec::<f64>::new())).collect();
    pool.step(|team| {
        let end = Instant::now() + BUDGET;
        team.for_each(&mut units, |(thread, state, seconds), _| {
            while seconds.len() < FEWEST || Instant::now() < end {
                let start = Instant::now();
                work(*thread, seconds.len(), state);
                seconds.push(start.elapsed().as_secs_f64());
            }
        });
    });
    let n = units.len() as f64;
    units.into_iter().map(|(_, _, seconds)| usual(seconds)).sum::<f64>() / n
}

/// Seconds of a phase of `n_units` units, `work(unit, repetition, state of the thread)`; of repetitions as [`timed`].
fn phases<S: Send>(
    pool: &Pool,
    n_units: usize,
    state: impl Fn() -> S,
    work: impl Fn(usize, usize, &mut S) + Sync,
) -> f64 {
    let states: Vec<_> = (0..pool.n_threads()).map(|_| Mutex::new(state())).collect();
    let mut units: Vec<usize> = (0..n_units).collect();
    let mut seconds = Vec::new();
    pool.step(|team| {
        let end = Instant::now() + BUDGET;
        while seconds.len() < FEWEST || Instant::now() < end {
            let start = Instant::now();
            team.for_each(&mut units, |unit, thread| {
                // only that thread asks, so the lock is free
                let mut state = states[thread].lock().unwrap_or_else(PoisonError::into_inner);
                work(*unit, seconds.len(), &mut state);
            });
            seconds.push(start.elapsed().as_secs_f64());
        }
    });
    usual(seconds)
}

/// The mean without the slowest twentieth.
fn usual(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds.truncate(seconds.len() - seconds.len() / 20);
    seconds.iter().sum::<f64>() / seconds.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_columns_take_longer_and_no_product_beats_the_roof() {
        let pool = Pool::new(1).expect("a thread");
        for kind in ikq_simd::available() {
            let found = measure(kind, QuantType::Q4_K, &[1, 64], &pool, &Cancel::new()).expect("Q4_K");
            let (n_rows, k) = SHAPE;
            assert_eq!(found.bytes, lane_bytes(QuantType::Q4_K, n_rows, k).expect("a shape that fits"));
            assert!(found.seconds[0] < found.seconds[1]);
            assert!(found.read > 0.0);
            // a machine at work changes its clock: a factor of two is left for that
            if let Some(peak) = found.peak {
                assert!(((n_rows * k * 64) as f64 / found.seconds[1]) < 2.0 * peak);
            }
        }
    }

    #[test]
    fn types_that_no_matrix_has_are_refused() {
        let pool = Pool::new(1).expect("a thread");
        let stopped = Cancel::new();
        stopped.cancel();
        let kind = ikq_simd::best();
        assert!(matches!(measure(kind, QuantType::Q8_0, &[1], &pool, &stopped), Err(Stop::Cancelled)));
    }
}
