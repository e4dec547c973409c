//! Speed of products per type: GB/s of weights with one column, billions of multiply-adds per second with many.
//!
//! ```text
//! cargo run --release -p ikq-kernels --example matmul_speed [-- [isa] [compute=f32] [n=1,512] [file] [TYPE ...]]
//! ```
//! One thread, matrices in the device form (`file`: as they stand in files). With one column the matrices exceed the
//! caches, too; with many, the shape is that of an expert's. At last: GB/s at which rows are packed.
#![allow(clippy::print_stdout, reason = "a report on the terminal")]

use std::ops::{Deref, DerefMut};
use std::time::Instant;

use ikq_formats::QuantType;
use ikq_kernels::matmul::check::{random_columns, random_matrix};
use ikq_kernels::matmul::{Compute, Matrix, Scratch, lane_bytes, multiply, pack, speed};
use ikq_simd::IsaKind;

/// Bytes of the matrices that decoding with one column walks through.
const COLD_BYTES: usize = 400 << 20;

/// Repetitions of each measurement: short and many, so that some are not interrupted.
const ROUNDS: usize = 60;

/// Seconds of one run.
fn time(f: impl FnOnce()) -> f64 {
    let start = Instant::now();
    f();
    start.elapsed().as_secs_f64()
}

fn main() {
    let mut kind = ikq_simd::best();
    let mut types = Vec::new();
    let mut compute = Compute::Auto;
    let mut counts = vec![1, 2, 4, 8, 32, 512];
    let mut file = false;
    for arg in std::env::args().skip(1) {
        if let Some(k) = IsaKind::parse(&arg) {
            kind = k;
        } else if arg == "compute=f32" {
            compute = Compute::F32;
        } else if arg == "file" {
            file = true;
        } else if let Some(n) = arg.strip_prefix("n=") {
            counts = n.split(',').filter_map(|n| n.parse().ok()).collect();
        } else {
            types.extend(QuantType::ALL.iter().copied().filter(|t| t.info().name.eq_ignore_ascii_case(&arg)));
        }
    }
    if types.is_empty() {
        let all = QuantType::ALL.iter().copied();
        types = all.filter(|t| ikq_decode::facts(*t).is_some()).collect();
        types.extend([QuantType::F32, QuantType::F16, QuantType::BF16, QuantType::BF16_R16]);
    }
    println!(
        "{}, {compute:?}; n = 1: GB/s with rows of 2048 and of 768 (G multiply-adds/s, and from cache); else G multiply-adds/s (share of the dot instruction's peak)",
        kind.name()
    );
    for ty in types {
        let mut line = format!("{:10}", ty.info().name);
        let mut scratch = Scratch::default();
        let unit = 64;
        if counts.contains(&1) {
            for (n_rows, k) in [(768, 2048), (2048, 768)] {
                let one = stored(kind, ty, n_rows, k, file);
                let n = COLD_BYTES.div_ceil(one.len());
                let data = Lines::repeated(&one, n);
                let acts = random_columns(kind, k, 1, 2);
                let mut out = vec![0.0; unit];
                let mut seconds: Vec<f64> = Vec::new();
                for data in data.chunks_exact(one.len()) {
                    let matrix = matrix(ty, n_rows, k, data, file);
                    seconds.push(time(|| {
                        for r in (0..n_rows).step_by(unit) {
                            multiply(
                                kind,
                                compute,
                                &matrix,
                                r..r + unit,
                                &acts,
                                &[0],
                                &mut scratch,
                                &mut out,
                            );
                        }
                    }));
                }
                // of the quieter half, the middle
                seconds.sort_by(f64::total_cmp);
                let seconds = seconds[n / 4];
                let macs = (n_rows * k) as f64 / seconds / 1e9;
                let mut hot = f64::INFINITY;
                let few = unit;
                let near = stored(kind, ty, few, k, file);
                let matrix = matrix(ty, few, k, &near, file);
                for _ in 0..20 * ROUNDS {
                    hot = hot.min(time(|| {
                        multiply(kind, compute, &matrix, 0..few, &acts, &[0], &mut scratch, &mut out[..few]);
                    }));
                }
                let hot = (few * k) as f64 / hot / 1e9;
                line += &format!("  {:6.2} ({macs:5.1}, {hot:5.1})", one.len() as f64 / seconds / 1e9);
            }
        }
        let (n_rows, k) = (768, 2048);
        let data = stored(kind, ty, n_rows, k, file);
        let matrix = matrix(ty, n_rows, k, &data, file);
        let acts = random_columns(kind, k, 512, 2);
        for n in counts.iter().copied().filter(|n| *n > 1) {
            let columns: Vec<u32> = (0..n).map(|c| c * (512 / n)).collect();
            let mut out = vec![0.0; unit * columns.len()];
            let rounds = (128 / columns.len()).max(1);
            let mut peak = f64::INFINITY;
            let mut seconds = f64::INFINITY;
            // the clock of a shared machine changes: product and peak in turn
            for _ in 0..ROUNDS {
                if speed::has_peak(kind) {
                    peak = peak.min(time(|| speed::peak(kind)));
                }
                seconds = seconds.min(time(|| {
                    for _ in 0..rounds {
                        for r in (0..n_rows).step_by(unit) {
                            multiply(
                                kind,
                                compute,
                                &matrix,
                                r..r + unit,
                                &acts,
                                &columns,
                                &mut scratch,
                                &mut out,
                            );
                        }
                    }
                }));
            }
            let macs = (rounds * n_rows * k * columns.len()) as f64 / seconds / 1e9;
            let share = macs / (speed::PEAK_MULTIPLY_ADDS as f64 / peak / 1e9) * 100.0;
            line += &format!("  n={n} {macs:.1} ({share:.0}%)");
        }
        println!("{line}  pack {:.1}", packing(kind, ty, n_rows, k));
    }
}

/// Bytes that start a cache line, as loaded weights do: a load of 64 bytes across two lines takes twice as long.
struct Lines {
    data: Vec<u8>,
    start: usize,
    len: usize,
}

/// Bytes of a cache line.
const LINE: usize = 64;

impl Lines {
    fn zeroed(len: usize) -> Self {
        let data = vec![0; len + LINE];
        let start = data.as_ptr().align_offset(LINE).min(LINE);
        Self { data, start, len }
    }

    /// The same bytes so often, one behind the other.
    fn repeated(one: &[u8], n: usize) -> Self {
        let mut all = Self::zeroed(n * one.len());
        for copy in all.chunks_exact_mut(one.len()) {
            copy.copy_from_slice(one);
        }
        all
    }
}

impl Deref for Lines {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.data[self.start..][..self.len]
    }
}

impl DerefMut for Lines {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.data[self.start..][..self.len]
    }
}

/// A random matrix in either form.
fn stored(kind: IsaKind, ty: QuantType, n_rows: usize, k: usize, file: bool) -> Lines {
    let data = random_matrix(ty, n_rows, k, 1);
    if file {
        return Lines::repeated(&data, 1);
    }
    let rows = Matrix::new(ty, n_rows, k, &data).expect("its own bytes").data();
    let mut bands = Lines::zeroed(lane_bytes(ty, n_rows, k).expect("a shape that fits"));
    pack(kind, ty, k, rows, &mut bands);
    bands
}

fn matrix(ty: QuantType, n_rows: usize, k: usize, data: &[u8], file: bool) -> Matrix<'_> {
    match file {
        true => Matrix::new(ty, n_rows, k, data).expect("its own bytes"),
        false => Matrix::lanes(ty, n_rows, k, data, 1.0).expect("its own bytes"),
    }
}

/// GB/s at which rows are packed.
fn packing(kind: IsaKind, ty: QuantType, n_rows: usize, k: usize) -> f64 {
    let data = random_matrix(ty, n_rows, k, 1);
    let rows = Matrix::new(ty, n_rows, k, &data).expect("its own bytes").data();
    let mut bands = vec![0; lane_bytes(ty, n_rows, k).expect("a shape that fits")];
    let mut seconds = f64::INFINITY;
    for _ in 0..ROUNDS {
        seconds = seconds.min(time(|| pack(kind, ty, k, rows, &mut bands)));
    }
    rows.len() as f64 / seconds / 1e9
}
