//! Measures the time per weight of encoding with error feedback, and that of the types' own encoders, on one
//! thread.
//!
//! ```text
//! cargo run --release -p ikq-feedback --example feedback_speed -- 2048 IQ4_KS Q4_K IQ2_XXS ...
//! ```
//! The first argument is the number of columns; types follow, or none for all types with feedback. Times are the
//! best of five, for 128 rows; the last column is the time with feedback over that of IQ4_KS's own encoder.

#![expect(clippy::print_stdout, reason = "a program that measures")]

use std::hint::black_box;
use std::time::Instant;

use ikq_covariance::{Factors, add_products, triangle};
use ikq_encode::EncodeOptions;
use ikq_feedback::has_feedback;
use ikq_formats::{QuantType, matrix_bytes};
use ikq_simd::best;

const ROWS: usize = 128;
const TRIES: usize = 5;

fn noise(seed: u32, n: usize) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / 8_388_608.0 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

/// Nanoseconds per weight.
fn time(k: usize, mut work: impl FnMut()) -> f64 {
    let mut least = f64::INFINITY;
    for _ in 0..TRIES {
        let start = Instant::now();
        work();
        least = least.min(start.elapsed().as_secs_f64());
    }
    1e9 * least / (ROWS * k) as f64
}

fn main() {
    let mut args = std::env::args().skip(1);
    let k: usize = args.next().and_then(|k| k.parse().ok()).unwrap_or(2048);
    let names: Vec<String> = args.collect();
    let is_wanted = |ty: &QuantType| {
        let is_plain = ty.info().base.is_none() && has_feedback(*ty);
        is_plain && (names.is_empty() || names.contains(&ty.to_string()))
    };
    let (kind, options) = (best(), EncodeOptions::default());
    let tokens = noise(1, 64 * k);
    let mut sums = vec![0.0; triangle(k)];
    add_products(kind, &tokens, k, 0..k, &mut sums);
    let start = Instant::now();
    let factors = Factors::new(kind, &sums, k, 64.0).expect("a covariance");
    println!("{k} columns; factors in {:.2} s", start.elapsed().as_secs_f64());
    let importance: Vec<f32> = (0..k).map(|i| sums[triangle(i) + i]).collect();
    let x = noise(2, ROWS * k);
    let own = |ty: QuantType| {
        let mut out = vec![0; matrix_bytes(ty, ROWS, k).expect("whole blocks")];
        time(k, || {
            ikq_encode::encode_rows(kind, ty, &x, k, Some(&importance), options, &mut out).expect("floats");
            black_box(&out);
        })
    };
    let iq4_ks = own(QuantType::IQ4_KS);
    for ty in QuantType::ALL.iter().filter(|ty| is_wanted(ty)) {
        let mut out = vec![0; matrix_bytes(*ty, ROWS, k).expect("whole blocks")];
        let with = time(k, || {
            let importance = Some(&importance[..]);
            ikq_feedback::encode_rows(kind, *ty, &x, importance, options, &factors, &mut out)
                .expect("floats");
            black_box(&out);
        });
        println!("{ty}: {:.1} ns, with feedback {with:.1} ns, {:.2} of IQ4_KS", own(*ty), with / iq4_ks);
    }
}
