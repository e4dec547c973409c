//! Speed of products per type: GB/s of weights with one column, billions of multiply-adds per second with many.
//!
//! ```text
//! cargo run --release -p ikq-cpu --example matmul_speed [-- [isa] [TYPE ...]]
//! ```
//! One thread. With one column the matrices exceed the caches; with many, the shape is that of an expert's.
#![allow(clippy::print_stdout, reason = "a report on the terminal")]

use std::time::Instant;

use ikq_cpu::matmul::check::{random_columns, random_matrix};
use ikq_cpu::matmul::{Compute, Matrix, Scratch, multiply};
use ikq_formats::QuantType;
use ikq_simd::IsaKind;

/// Bytes of the matrices that decoding with one column walks through.
const COLD_BYTES: usize = 400 << 20;

/// Seconds of the fastest of some runs.
fn fastest(mut f: impl FnMut()) -> f64 {
    let run = |f: &mut dyn FnMut()| {
        let start = Instant::now();
        f();
        start.elapsed().as_secs_f64()
    };
    (0..5).map(|_| run(&mut f)).fold(f64::INFINITY, f64::min)
}

fn main() {
    let mut kind = ikq_simd::best();
    let mut types = Vec::new();
    let mut compute = Compute::Auto;
    for arg in std::env::args().skip(1) {
        if let Some(k) = IsaKind::parse(&arg) {
            kind = k;
        } else if arg == "f32" {
            compute = Compute::F32;
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
        "{:10} {:>9} {:>9} {:>9}   GMAC/s at n = 2, 4, 8, 32, 512; {}",
        "",
        "GB/s 2048",
        "GB/s 768",
        "GMAC/s",
        kind.name()
    );
    for ty in types {
        let mut line = format!("{:10}", ty.info().name);
        let mut scratch = Scratch::default();
        let unit = 64;
        let mut macs = 0.0;
        for (n_rows, k) in [(768, 2048), (2048, 768)] {
            let one = random_matrix(ty, n_rows, k, 1);
            let n = COLD_BYTES.div_ceil(one.len());
            let data: Vec<u8> = one.iter().copied().cycle().take(n * one.len()).collect();
            let acts = random_columns(kind, k, 1, 2);
            let mut out = vec![0.0; n_rows];
            let seconds = fastest(|| {
                for data in data.chunks_exact(one.len()) {
                    let matrix = Matrix::new(ty, n_rows, k, data).expect("its own bytes");
                    for r in (0..n_rows).step_by(unit) {
                        multiply(
                            kind,
                            compute,
                            &matrix,
                            r..r + unit,
                            &acts,
                            &[0],
                            &mut scratch,
                            &mut out[r..r + unit],
                        );
                    }
                }
            });
            line += &format!(" {:9.2}", data.len() as f64 / seconds / 1e9);
            macs = (n * n_rows * k) as f64 / seconds / 1e9;
        }
        line += &format!(" {macs:9.1}  ");
        let (n_rows, k) = (768, 2048);
        let data = random_matrix(ty, n_rows, k, 1);
        let matrix = Matrix::new(ty, n_rows, k, &data).expect("its own bytes");
        let acts = random_columns(kind, k, 512, 2);
        for n in [2, 4, 8, 32, 512] {
            let columns: Vec<u32> = (0..n).map(|c| c * (512 / n)).collect();
            let mut out = vec![0.0; unit * columns.len()];
            let rounds = (64 / columns.len()).max(1);
            let seconds = fastest(|| {
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
            });
            line += &format!(" {:7.1}", (rounds * n_rows * k * columns.len()) as f64 / seconds / 1e9);
        }
        println!("{line}");
    }
}
