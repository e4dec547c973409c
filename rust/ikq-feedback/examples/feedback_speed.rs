//! Measures the time per weight of encoding with error feedback, and that of the types' own encoders, on one
//! thread.
//!
//! ```text
//! cargo run --release -p ikq-feedback --example feedback_speed -- 2048 iq4_ks q4_k iq2_xxs ...
//! ```
//! The first argument is the number of columns; types follow, or none for all types with feedback. Times are the
//! medians of some for 128 rows, measured in turn: the type's own encoder, with feedback, with feedback and further rounds,
//! and the time with feedback over that of IQ4_KS's own encoder.

#![expect(clippy::print_stdout, reason = "a program that measures")]

use std::hint::black_box;
use std::time::Instant;

use ikq_covariance::{Factors, Wanted, add_products, triangle};
use ikq_encode::EncodeOptions;
use ikq_feedback::has_feedback;
use ikq_formats::{QuantType, matrix_bytes};
use ikq_simd::best;

const ROWS: usize = 128;
const TRIES: usize = 21;

fn noise(seed: u32, n: usize) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / 8_388_608.0 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

/// Nanoseconds per weight of one run of `work`.
fn time(k: usize, work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    1e9 * start.elapsed().as_secs_f64() / (ROWS * k) as f64
}

fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
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
    let wanted = Wanted { whole: true, cross: None };
    let whole = Factors::with(kind, &sums, k, 64.0, wanted).expect("a covariance");
    let factors = Factors::new(kind, &sums, k, 64.0).expect("a covariance");
    println!(
        "{k} columns; factors, with and without the covariance, in {:.2} s",
        start.elapsed().as_secs_f64()
    );
    let importance: Vec<f32> = (0..k).map(|i| sums[triangle(i) + i]).collect();
    let x = noise(2, ROWS * k);
    let own = |ty: QuantType, out: &mut [u8]| {
        time(k, || {
            ikq_encode::encode_rows(kind, ty, &x, k, Some(&importance), options, out).expect("floats");
            black_box(out);
        })
    };
    let mut measure = vec![0; matrix_bytes(QuantType::IQ4_KS, ROWS, k).expect("whole blocks")];
    for ty in QuantType::ALL.iter().filter(|ty| is_wanted(ty)) {
        let mut out = vec![0; matrix_bytes(*ty, ROWS, k).expect("whole blocks")];
        let mut times: [Vec<f64>; 5] = Default::default();
        for _ in 0..TRIES {
            let iq4_ks = own(QuantType::IQ4_KS, &mut measure);
            let [with, most] = [&factors, &whole].map(|factors| {
                time(k, || {
                    let importance = Some(&importance[..]);
                    ikq_feedback::encode_rows(kind, *ty, &x, importance, options, factors, &mut out)
                        .expect("floats");
                    black_box(&out);
                })
            });
            let own = own(*ty, &mut out);
            let found = [own, with, most, iq4_ks, with / iq4_ks];
            times.iter_mut().zip(found).for_each(|(all, one)| all.push(one));
        }
        let [own, with, most, iq4_ks, ratio] = times.each_mut().map(|times| median(times));
        println!(
            "{ty}: {own:.1} ns, with feedback {with:.1} ns, in rounds {most:.1} ns; with feedback {ratio:.2} of the {iq4_ks:.1} ns \
             of IQ4_KS"
        );
    }
}
