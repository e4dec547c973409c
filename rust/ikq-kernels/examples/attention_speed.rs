//! Speed of attention and the other operations on one thread.
//!
//! `cargo run --release -p ikq-kernels --example attention_speed [ISA [TYPE]]`
//!
//! Prompts: floating-point operations of scores and values (masked halves not counted) per second, for 512 tokens at the
//! beginning and 96 after 8192 others. Single tokens: bytes of keys and values per second over 8192 positions of 8
//! heads, read again and again: where they fit the processor's last cache, that is what is measured, not memory. Best
//! of several runs.
#![allow(clippy::print_stdout)]

use std::time::Instant;

use ikq_kernels::attention::{
    At, Attention, CacheType, PAGE, PageShape, Pages, Partial, Place, Plan, Rotation, Scratch, Sequence, Work,
};
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
    while n < 3 || (started.elapsed().as_secs_f64() < 0.4 && n < 1000) {
        let start = Instant::now();
        work();
        best = best.min(start.elapsed().as_secs_f64());
        n += 1;
    }
    best
}

/// Pages that hold `n` positions, in order.
fn pages(kind: IsaKind, shape: PageShape, n: usize) -> Pages {
    let column = shape.n_head() * shape.d();
    let rows = numbers(64 * column, 1);
    let mut pages = Pages::new(shape);
    pages.grow(n.div_ceil(PAGE)).expect("fits");
    let table: Vec<u32> = (0..pages.n_pages() as u32).collect();
    let places: Vec<Place> =
        (0..n).map(|i| Place { at: At::of(&table, i), column: (i % 64) as u32 }).collect();
    pages.store(kind, &places, &rows);
    pages
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

/// A layer and what threads need, for one sequence.
struct Layer {
    keys: Pages,
    values: Option<Pages>,
    queries: Vec<f32>,
    n_head: usize,
    table: Vec<u32>,
    scratch: Scratch,
    partials: Vec<Partial>,
    out: Vec<f32>,
}

impl Layer {
    fn new(kind: IsaKind, ty: CacheType, shape: &Shape, n_kv: usize, n: usize) -> Option<Layer> {
        let Shape { d, dv, group, latent, .. } = *shape;
        let keys = if latent { PageShape::latent(ty, dv, d - dv) } else { PageShape::keys(ty, n_kv, d) };
        let keys = pages(kind, keys.ok()?, n);
        let values = match latent {
            true => None,
            false => Some(pages(kind, PageShape::values(ty, n_kv, dv).ok()?, n)),
        };
        let n_head = keys.shape().n_head() * group;
        let table = (0..keys.n_pages() as u32).collect();
        let (queries, out) = (numbers(512 * n_head * d, 2), vec![0.0; 512 * n_head * dv]);
        let (scratch, partials) = (Scratch::default(), Vec::new());
        Some(Layer { keys, values, queries, n_head, table, scratch, partials, out })
    }

    fn bytes(&self) -> f64 {
        (self.keys.bytes() + self.values.as_ref().map_or(0, Pages::bytes)) as f64
    }

    /// Attention of `n` tokens after `first` others.
    fn run(&mut self, kind: IsaKind, n: usize, first: usize) {
        let n_kv = self.keys.shape().n_head();
        let attention = Attention {
            queries: &self.queries,
            q_stride: self.keys.shape().d(),
            n_head: self.n_head,
            keys: &self.keys,
            values: self.values.as_ref(),
            scale: 0.09,
            softcap: None,
            sinks: None,
            window: None,
        };
        let out = &mut self.out[..n * self.n_head * attention.head_dim_v()];
        let plan = Plan::new(n_kv, self.n_head / n_kv, None, &[(n, first)], 1);
        let sequences = [Sequence { n, first, table: &self.table }];
        let mut work = Work::new(&plan, &attention, &sequences, out, &mut self.partials);
        work.units().iter_mut().for_each(|unit| unit.run(kind, &mut self.scratch));
    }
}

fn attention(kind: IsaKind, ty: CacheType, shape: &Shape) {
    let (n_past, n_kv) = (8192, if shape.latent { 1 } else { 8 });
    let Some(mut layer) = Layer::new(kind, ty, shape, n_kv, n_past + 96) else { return };
    let flops = |n: usize, first: usize| {
        let keys = n as f64 * (first as f64 + n as f64 / 2.0);
        2.0 * keys * (n_kv * shape.group * (shape.d + shape.dv)) as f64
    };
    let start = best(|| layer.run(kind, 512, 0));
    let deep = best(|| layer.run(kind, 96, n_past));
    let token = best(|| layer.run(kind, 1, n_past - 1));
    println!(
        "{:18} {:7} prompt {:6.1}, deep {:6.1} GFLOP/s   token {:5.2} GB/s  {:6.1} GFLOP/s",
        shape.name,
        ty.name(),
        flops(512, 0) / start * 1e-9,
        flops(96, n_past) / deep * 1e-9,
        layer.bytes() / token * 1e-9,
        flops(1, n_past) / token * 1e-9,
    );
}

/// Single tokens over half a GiB of keys and as much of values.
fn from_memory(kind: IsaKind, group: usize) {
    let n = 1 << 18;
    let shape = Shape { name: "", d: 128, dv: 128, group, latent: false };
    let Some(mut layer) = Layer::new(kind, CacheType::F16, &shape, 8, n) else { return };
    let seconds = best(|| layer.run(kind, 1, n - 1));
    println!("from memory, {group}:1   {:5.2} GB/s", layer.bytes() / seconds * 1e-9);
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
        let cos_sin = numbers(128, 5);
        say(&format!("rotate {pairing:?}"), &mut |out| {
            out.chunks_exact_mut(128).for_each(|h| ops::rotate(kind, pairing, &cos_sin, h));
        });
    }
    let rotation = Rotation::of(128).expect("a power of two");
    say("hadamard", &mut |out| out.chunks_exact_mut(128).for_each(|h| rotation.apply(kind, h)));
    for ty in CacheType::ALL {
        let mut keys = pages(kind, PageShape::keys(ty, n / 128, 128).expect("whole blocks"), 1);
        let place = [Place { at: At { page: 0, slot: 1 }, column: 0 }];
        say(&format!("store {}", ty.name()), &mut |_| keys.store(kind, &place, &x));
    }
    let conv = numbers(4 * n, 3);
    let before = numbers(3 * n, 4);
    say("convolve", &mut |out| delta::convolve(kind, &conv, 4, &before, &x, 0, out));
}

fn main() {
    let kind = std::env::args().nth(1).and_then(|a| IsaKind::parse(&a)).unwrap_or_else(ikq_simd::best);
    let only = std::env::args().nth(2).and_then(|a| CacheType::parse(&a));
    println!("{}", kind.name());
    for shape in &SHAPES {
        for ty in CacheType::ALL.into_iter().filter(|ty| only.is_none_or(|only| *ty == only)) {
            attention(kind, ty, shape);
        }
    }
    from_memory(kind, 1);
    from_memory(kind, 8);
    operations(kind);
}
