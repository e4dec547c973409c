//! Speed of the gated delta-net's recurrence on one thread.
//!
//! `cargo run --release -p ikq-kernels --example delta_speed [ISA]`
//!
//! Time per head and token, for one token after another and for several at once, with the states of one head (from
//! the nearest cache), of 32 heads (a layer) and of 768 (from memory: those of many layers). Times of a token differ
//! with its place in the chunk; they are means over whole chunks. Best of several runs.
#![allow(clippy::print_stdout)]

use std::time::Instant;

use ikq_kernels::delta::{CHUNK, Scratch, Shape, State, Tokens, advance};
use ikq_simd::IsaKind;

fn numbers(n: usize, size: f32) -> Vec<f32> {
    let mut state = 5u64;
    let mut next = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / f32::powi(2.0, 23) - 1.0
    };
    (0..n).map(|_| size * next()).collect()
}

/// Seconds per head and token of steps of `n` tokens.
fn seconds(kind: IsaKind, shape: Shape, n: usize) -> f64 {
    let Shape { n_head, dk, dv, .. } = shape;
    // about unit length
    let size = (3.0 / dk as f32).sqrt();
    let (q, k, v) = (numbers(n * dk, size), numbers(n * dk, size), numbers(n * dv, 1.0));
    let (beta, log_decay) = (vec![0.5; n], vec![-0.1; n]);
    let tokens = Tokens { q: &q, k: &k, v: &v, beta: &beta, log_decay: &log_decay };
    let (mut state, mut scratch) = (State::new(shape), Scratch::default());
    let (mut out, u) = (vec![0.0; n * dv], vec![0.0; n * shape.n_channels]);
    let steps = CHUNK.div_ceil(n);
    let mut best = vec![f64::INFINITY; steps];
    let started = Instant::now();
    let mut rounds = 0;
    while rounds < 4 || (started.elapsed().as_secs_f64() < 0.7 && rounds < 1000) {
        for best in &mut best {
            let start = Instant::now();
            for mut head in state.heads_mut() {
                advance(kind, &mut head, tokens, &mut scratch, &mut out);
            }
            state.finish(&u);
            *best = best.min(start.elapsed().as_secs_f64());
        }
        rounds += 1;
    }
    best.iter().sum::<f64>() / (steps * n * n_head) as f64
}

fn main() {
    let kind = std::env::args().nth(1).and_then(|a| IsaKind::parse(&a)).unwrap_or_else(ikq_simd::best);
    println!("{}: us per head and token", kind.name());
    let steps = [1, 2, 4, 8, 32, 512];
    println!("{:24}{}", "tokens per step", steps.map(|n| format!("{n:8}")).concat());
    for (dk, dv) in [(128, 128), (64, 64)] {
        for n_head in [1, 32, 768] {
            let shape = Shape { n_head, dk, dv, n_channels: 1, conv_kernel: 4 };
            let times = steps.map(|n| format!("{:8.2}", 1e6 * seconds(kind, shape, n)));
            println!("{:24}{}", format!("{dk}x{dv}, {n_head} heads"), times.concat());
        }
    }
}
