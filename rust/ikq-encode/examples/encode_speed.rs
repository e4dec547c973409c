//! Measures the nanoseconds per weight of every encoder on every instruction set, with and without importance. The
//! ratio is the time with scales that undo the gain, which is the default, over that with scales as fitted:
//!
//! ```text
//! cargo run --release -p ikq-encode --example encode_speed [TYPE ...]
//! ```
//! It runs on one thread with rows of 4096 normal numbers, and gives the best of seven runs of at least 0.05 s,
//! both forms in turn.

use std::time::Instant;

use ikq_encode::{EncodeOptions, encodable, encode_rows};
use ikq_formats::{QuantType, matrix_bytes};
use ikq_simd::{IsaKind, available};

const N_PER_ROW: usize = 4096;
const N_ROWS: usize = 16;

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

/// Best nanoseconds per weight, by default and with scales as fitted.
fn measure(kind: IsaKind, ty: QuantType, x: &[f32], w: Option<&[f32]>) -> [f64; 2] {
    let mut out = vec![0; matrix_bytes(ty, N_ROWS, N_PER_ROW).expect("4096 fits every type")];
    let mut run = |biased: bool| {
        let options = EncodeOptions { biased, ..EncodeOptions::default() };
        let start = Instant::now();
        let mut n_runs = 0;
        while n_runs == 0 || start.elapsed().as_secs_f64() < 0.05 {
            encode_rows(kind, ty, x, N_PER_ROW, w, options, &mut out).expect("finite rows can be encoded");
            n_runs += 1;
        }
        start.elapsed().as_secs_f64() * 1e9 / (n_runs * x.len()) as f64
    };
    let mut best = [f64::INFINITY; 2];
    for _ in 0..7 {
        for (best, biased) in best.iter_mut().zip([false, true]) {
            *best = best.min(run(biased));
        }
    }
    best
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
    for ty in encodable().iter().copied() {
        if !wanted.is_empty() && !wanted.iter().any(|name| name == ty.name()) {
            continue;
        }
        for kind in available() {
            let [plain, weighted] = [measure(kind, ty, &x, None), measure(kind, ty, &x, Some(&w))];
            let [a, b] = [plain, weighted].map(|[default, biased]| default / biased);
            println!(
                "{:10} {:8} {:12.2} {a:7.3} {:14.2} {b:7.3}",
                ty.name(),
                kind.name(),
                plain[0],
                weighted[0]
            );
        }
    }
}
