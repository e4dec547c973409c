//! Measures the nanoseconds per weight of every encoder on every instruction set, with and without importance. The
//! ratio is the time with scales that undo the gain, which is the default, over that with scales as fitted:
//!
//! ```text
//! cargo run --release -p ikq-encode --example encode_speed [TYPE ...]
//! ```
//! It runs on one thread with rows of 4096 normal numbers, and gives medians of runs of a few milliseconds, both forms in
//! turn; the ratio is the median of those of neighbours. Times are those that the thread has had a core, so other programs make them
//! longer only by what they take of caches and clocks. Names of instruction sets among the arguments choose these.

use ikq_encode::{EncodeOptions, encodable, encode_rows};
use ikq_formats::{QuantType, matrix_bytes};
use ikq_simd::{IsaKind, available};
use rustix::time::{ClockId, clock_gettime};

const N_PER_ROW: usize = 4096;
const N_ROWS: usize = 16;
const N_PAIRS: usize = 41;

/// Nearly normal numbers from a fixed seed.
fn normals(n: usize) -> Vec<f32> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut uniform = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 24) as f32
    };
    (0..n).map(|_| (0..12).map(|_| uniform()).sum::<f32>() - 6.0).collect()
}

/// Seconds that this thread has computed.
fn seconds() -> f64 {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    now.tv_sec as f64 + now.tv_nsec as f64 / 1e9
}

/// Seconds that a run takes at least.
const RUN: f64 = 0.002;

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Nanoseconds per weight by default, and how many times as long as with scales as fitted.
fn measure(kind: IsaKind, ty: QuantType, x: &[f32], w: Option<&[f32]>) -> [f64; 2] {
    let mut out = vec![0; matrix_bytes(ty, N_ROWS, N_PER_ROW).expect("4096 fits every type")];
    let mut run = |n_rows: usize, biased: bool| {
        let (x, options) = (&x[..n_rows * N_PER_ROW], EncodeOptions { biased, ..EncodeOptions::default() });
        let out = &mut out[..matrix_bytes(ty, n_rows, N_PER_ROW).expect("4096 fits every type")];
        let start = seconds();
        let mut n_runs = 0;
        while n_runs == 0 || seconds() - start < RUN {
            encode_rows(kind, ty, x, N_PER_ROW, w, options, out).expect("finite rows can be encoded");
            n_runs += 1;
        }
        (seconds() - start) * 1e9 / (n_runs * x.len()) as f64
    };
    // as many rows as fill a run, of types whose rows may stand alone
    let least = ty.info().rows.max(1);
    let for_a_run = RUN * 1e9 / (run(least, false) * N_PER_ROW as f64);
    let n_rows = (for_a_run as usize / least * least).clamp(least, N_ROWS);
    let pairs: Vec<[f64; 2]> = (0..N_PAIRS).map(|_| [run(n_rows, false), run(n_rows, true)]).collect();
    [median(pairs.iter().map(|p| p[0]).collect()), median(pairs.iter().map(|p| p[0] / p[1]).collect())]
}

#[allow(clippy::print_stdout)]
fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).map(|name| name.to_uppercase()).collect();
    let x: Vec<f32> = normals(N_ROWS * N_PER_ROW).iter().map(|x| 0.02 * x).collect();
    let w: Vec<f32> = normals(N_PER_ROW).iter().map(|x| (1.5 * x).exp()).collect();
    println!(
        "{:10} {:8} {:>12} {:>7} {:>14} {:>7}",
        "type", "isa", "ns/weight", "ratio", "with imatrix", "ratio"
    );
    let kinds: Vec<IsaKind> = available().to_vec();
    let is_chosen = |kind: &IsaKind| wanted.iter().any(|name| *name == kind.name().to_uppercase());
    let some_are = kinds.iter().any(is_chosen);
    let names: Vec<&String> =
        wanted.iter().filter(|name| kinds.iter().all(|kind| **name != kind.name().to_uppercase())).collect();
    for ty in encodable().iter().copied() {
        if !names.is_empty() && !names.iter().any(|name| *name == ty.name()) {
            continue;
        }
        for kind in kinds.iter().copied().filter(|kind| !some_are || is_chosen(kind)) {
            let [[plain, a], [weighted, b]] = [measure(kind, ty, &x, None), measure(kind, ty, &x, Some(&w))];
            println!("{:10} {:8} {plain:12.2} {a:7.3} {weighted:14.2} {b:7.3}", ty.name(), kind.name());
        }
    }
}
