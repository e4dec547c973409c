//! Speed of attention and the other operations on one thread.
//!
//! `cargo run --release -p ikq-kernels --example attention_speed [ISA]`
//!
//! Prompts: floating-point operations of scores and values (masked halves not counted) per second. Single tokens:
//! bytes of keys and values per second over 4096 positions of 8 heads, read again and again: where they fit the
//! processor's last cache (16 MiB for f16 heads of 128), that is what is measured, not memory. Best of several runs.
#![allow(clippy::print_stdout)]

use std::time::Instant;

use ikq_kernels::attention::{Cache, CacheType, KvHead, Partial, Scratch, TILE_ROWS, attend};
use ikq_kernels::{delta, ops};
use ikq_simd::IsaKind;

fn numbers(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let mut next = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / f32::powi(2.0, 23) - 1.0
    };
    (0..n).map(|_| next()).collect()
}

/// Best seconds of several runs.
fn best(mut work: impl FnMut()) -> f64 {
    let mut best = f64::INFINITY;
    let started = Instant::now();
    let mut n = 0;
    while n < 3 || (started.elapsed().as_secs_f64() < 0.7 && n < 1000) {
        let start = Instant::now();
        work();
        best = best.min(start.elapsed().as_secs_f64());
        n += 1;
    }
    best
}

fn cache(kind: IsaKind, ty: CacheType, n_head: usize, d: usize, n: usize) -> Cache {
    let mut cache = Cache::new(ty, n_head, d, n).expect("fits");
    let rows = numbers(64 * n_head * d, 1);
    for i in 0..n {
        let row = &rows[i % 64 * n_head * d..][..n_head * d];
        cache.store(kind, i, row);
    }
    cache
}

struct Shape {
    name: &'static str,
    d: usize,
    dv: usize,
    group: usize,
    latent: bool,
}

const SHAPES: [Shape; 7] = [
    Shape { name: "d 128, 8:1", d: 128, dv: 128, group: 8, latent: false },
    Shape { name: "d 128, 7:1", d: 128, dv: 128, group: 7, latent: false },
    Shape { name: "d 128, 5:1", d: 128, dv: 128, group: 5, latent: false },
    Shape { name: "d 128, 4:1", d: 128, dv: 128, group: 4, latent: false },
    Shape { name: "d 128, 1:1", d: 128, dv: 128, group: 1, latent: false },
    Shape { name: "d 64, 8:1", d: 64, dv: 64, group: 8, latent: false },
    Shape { name: "latent 576, 16:1", d: 576, dv: 512, group: 16, latent: true },
];

fn attention(kind: IsaKind, ty: CacheType, shape: &Shape) {
    let Shape { name, d, dv, group, latent } = *shape;
    if ty.row_bytes(d).is_none() {
        return;
    }
    // a prompt's tile against 2048 earlier tokens
    let (n, n_head) = (2048, 8);
    let keys = cache(kind, ty, n_head, d, n * 2);
    let values = (!latent).then(|| cache(kind, ty, n_head, dv, n * 2));
    let head = |head| KvHead {
        keys: &keys,
        values: values.as_ref(),
        head,
        head_dim_v: dv,
        softcap: None,
        window: None,
    };
    let mut scratch = Scratch::default();
    let mut partial = Partial::default();
    let tokens = (TILE_ROWS / group).max(1);
    let rows = tokens * group;
    let queries = numbers(rows * d, 2);
    let mut run = |rows: usize, heads: std::ops::Range<usize>, n: usize| {
        for h in heads {
            scratch.begin(rows, d);
            for (row, q) in queries.chunks_exact(d).take(rows).enumerate() {
                scratch.set_query(row, q, 0.09);
            }
            partial.reset(rows, dv);
            attend(kind, &head(h), group, n - 1, 0..n, &mut scratch, &mut partial);
        }
    };
    let seconds = best(|| run(rows, 0..1, n));
    let flops = (2 * rows * n * (d + dv)) as f64;
    let decode = best(|| run(group, 0..n_head, 2 * n));
    let bytes = keys.bytes() + values.as_ref().map_or(0, Cache::bytes);
    println!(
        "{:18} {:7} prompt {:6.1} GFLOP/s   token {:5.2} GB/s  {:6.1} GFLOP/s",
        name,
        ty.name(),
        flops / seconds * 1e-9,
        bytes as f64 / decode * 1e-9,
        (2 * group * n_head * 2 * n * (d + dv)) as f64 / decode * 1e-9,
    );
}

/// Single tokens over half a GiB of keys and as much of values.
fn from_memory(kind: IsaKind, group: usize) {
    let (d, n_head, n) = (128, 8, 1 << 18);
    let keys = cache(kind, CacheType::F16, n_head, d, n);
    let values = cache(kind, CacheType::F16, n_head, d, n);
    let (mut scratch, mut partial) = (Scratch::default(), Partial::default());
    let queries = numbers(group * d, 2);
    let mut seconds = f64::INFINITY;
    for _ in 0..3 {
        let start = Instant::now();
        for head in 0..n_head {
            let head = KvHead {
                keys: &keys,
                values: Some(&values),
                head,
                head_dim_v: d,
                softcap: None,
                window: None,
            };
            scratch.begin(group, d);
            for (row, q) in queries.chunks_exact(d).enumerate() {
                scratch.set_query(row, q, 0.09);
            }
            partial.reset(group, d);
            attend(kind, &head, group, n - 1, 0..n, &mut scratch, &mut partial);
        }
        seconds = seconds.min(start.elapsed().as_secs_f64());
    }
    println!("from memory, {group}:1   {:5.2} GB/s", 2.0 * keys.bytes() as f64 / seconds * 1e-9);
}

fn operations(kind: IsaKind) {
    let n = 4096;
    let (x, w) = (numbers(n, 1), numbers(n, 2));
    let mut out = vec![0.0; n];
    let mut say = |name: &str, work: &mut dyn FnMut(&mut [f32])| {
        let seconds = best(|| (0..100).for_each(|_| work(&mut out))) / 100.0;
        println!("{name:18} {:6.2} G elements/s", n as f64 / seconds * 1e-9);
    };
    say("rms_norm", &mut |out| ops::rms_norm(kind, &x, &w, 1e-6, out));
    say("glu silu", &mut |out| ops::glu(kind, ops::Activation::Silu, &x, &w, out));
    say("glu gelu", &mut |out| ops::glu(kind, ops::Activation::GeluTanh, &x, &w, out));
    say("softcap", &mut |out| ops::softcap(kind, out, 30.0));
    for pairing in [ops::Pairing::Norm, ops::Pairing::Neox] {
        let table = ops::RopeTable::new(128, 1e6, 1.0, None, None);
        let mut cos_sin = vec![0.0; 128];
        table.cos_sin(77, &mut cos_sin);
        say(&format!("rotate {pairing:?}"), &mut |out| {
            out.chunks_exact_mut(128).for_each(|h| ops::rotate(kind, pairing, &cos_sin, h));
        });
    }
    for ty in CacheType::ALL {
        let mut cache = Cache::new(ty, n / 128, 128, 4).expect("fits");
        say(&format!("store {}", ty.name()), &mut |_| cache.store(kind, 1, &x));
    }
    let conv = numbers(4 * n, 3);
    let before = numbers(3 * n, 4);
    say("convolve", &mut |out| delta::convolve(kind, &conv, 4, &before, &x, 0, out));
}

fn main() {
    let kind = std::env::args().nth(1).and_then(|a| IsaKind::parse(&a)).unwrap_or_else(ikq_simd::best);
    println!("{}", kind.name());
    for shape in &SHAPES {
        for ty in CacheType::ALL {
            attention(kind, ty, shape);
        }
    }
    from_memory(kind, 1);
    from_memory(kind, 8);
    operations(kind);
}
