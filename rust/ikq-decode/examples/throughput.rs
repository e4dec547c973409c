//! Speed of every decoder on one thread: `cargo run --release -p ikq-decode --example throughput`.
//! Arguments: names of types (none: all) and of instruction sets (none: all that the machine has).
//!
//! Each run decodes weights to 64 MiB of floats. It has its own copy of the weights, which half a GiB of reading
//! and writing has pushed out of the caches since it was last read. The table gives the median of the runs and, for
//! a busy machine, the best. Compare with the plain reading and writing speed printed first: 1 G weights/s writes 4
//! GB/s.

#![allow(clippy::print_stdout)]

use std::hint::black_box;
use std::time::Instant;

use ikq_decode::dequantize;
use ikq_formats::{QuantType, matrix_bytes};
use ikq_simd::{IsaKind, available};

const N_PER_ROW: usize = 4096;
const N_ROWS: usize = 4096;
const N_RUNS: usize = 7;

/// Seconds of the median and of the best of several runs; the first is not counted.
fn median_and_best(mut work: impl FnMut()) -> [f64; 2] {
    work();
    let mut seconds: Vec<f64> = (0..N_RUNS)
        .map(|_| {
            let start = Instant::now();
            work();
            start.elapsed().as_secs_f64()
        })
        .collect();
    seconds.sort_by(f64::total_cmp);
    [seconds[N_RUNS / 2], seconds[0]]
}

/// GB/s of adding up a buffer that no cache holds.
fn read_bandwidth() -> f64 {
    let data = vec![1_u64; 1 << 26];
    // eight sums, because each addition to a single one would wait for the last
    let [seconds, _] = median_and_best(|| {
        let mut sums = [0_u64; 8];
        for eight in black_box(&data).as_chunks::<8>().0 {
            sums = std::array::from_fn(|i| sums[i].wrapping_add(eight[i]));
        }
        black_box(sums);
    });
    size_of_val(&data[..]) as f64 / seconds / 1e9
}

/// GB/s of filling the output.
fn write_bandwidth(out: &mut [f32]) -> f64 {
    let [seconds, _] = median_and_best(|| black_box(&mut *out).fill(black_box(1.0)));
    size_of_val(out) as f64 / seconds / 1e9
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (mut types, mut kinds) = (Vec::new(), Vec::new());
    for name in std::env::args().skip(1) {
        match IsaKind::parse(&name) {
            Some(kind) => kinds.push(kind),
            None => types.push(QuantType::parse(&name)?),
        }
    }
    if types.is_empty() {
        types = QuantType::ALL.to_vec();
    }
    if kinds.is_empty() {
        kinds = available();
    }
    let mut out = vec![0.0; N_ROWS * N_PER_ROW];
    println!(
        "plain reading {:.1} GB/s, filling floats {:.1} GB/s\n",
        read_bandwidth(),
        write_bandwidth(&mut out)
    );
    println!("| type | set | weights read, GB/s | G weights/s | best run |");
    println!("|---|---|--:|--:|--:|");
    for ty in types {
        let mut state = 1_u32;
        let data: Vec<u8> = std::iter::repeat_with(|| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        })
        .take(matrix_bytes(ty, N_ROWS, N_PER_ROW)?)
        .collect();
        let copies = vec![data; N_RUNS + 1];
        let n_bytes = copies[0].len();
        for kind in &kinds {
            let mut failed = None;
            let mut turn = copies.iter().cycle();
            let [seconds, best] = median_and_best(|| {
                let data = turn.next().map_or(&[][..], |data| data);
                failed = dequantize(*kind, ty, black_box(data), N_ROWS, N_PER_ROW, &mut out).err();
                black_box(&mut out);
            });
            if let Some(error) = failed {
                return Err(error.into());
            }
            let read = n_bytes as f64 / seconds / 1e9;
            let weights = [seconds, best].map(|seconds| out.len() as f64 / seconds / 1e9);
            println!(
                "| {} | {} | {read:.2} | {:.2} | {:.2} |",
                ty.name(),
                kind.name(),
                weights[0],
                weights[1]
            );
        }
    }
    Ok(())
}
