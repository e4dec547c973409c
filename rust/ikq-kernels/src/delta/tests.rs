//! The recurrence against its equation in f64, and against itself cut otherwise.

use super::*;
use ikq_simd::{IsaKind, available};

fn numbers(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed + 77;
    let mut next = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / f32::powi(2.0, 23) - 1.0
    };
    (0..n).map(|_| next()).collect()
}

/// Queries and keys of unit length.
fn unit_rows(n: usize, d: usize, seed: u64) -> Vec<f32> {
    let mut rows = numbers(n * d, seed);
    for row in rows.chunks_exact_mut(d) {
        let norm = row.iter().map(|x| x * x).sum::<f32>().sqrt();
        row.iter_mut().for_each(|x| *x /= norm);
    }
    rows
}

/// Tokens of one head.
#[derive(Clone)]
struct Inputs {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    beta: Vec<f32>,
    log_decay: Vec<f32>,
}

impl Inputs {
    /// Decays are `exp(-strength x)`, x in 0..1.
    fn new(n: usize, dk: usize, dv: usize, strength: f32, seed: u64) -> Inputs {
        Inputs {
            q: unit_rows(n, dk, 10 * seed),
            k: unit_rows(n, dk, 10 * seed + 1),
            v: numbers(n * dv, 10 * seed + 2),
            beta: numbers(n, 10 * seed + 3).iter().map(|b| 0.5 + 0.49 * b).collect(),
            log_decay: numbers(n, 10 * seed + 4).iter().map(|g| -strength * g * g).collect(),
        }
    }

    fn tokens(&self, range: std::ops::Range<usize>) -> Tokens<'_> {
        let n = self.beta.len();
        let (dk, dv) = (self.q.len() / n, self.v.len() / n);
        Tokens {
            q: &self.q[range.start * dk..range.end * dk],
            k: &self.k[range.start * dk..range.end * dk],
            v: &self.v[range.start * dv..range.end * dv],
            beta: &self.beta[range.clone()],
            log_decay: &self.log_decay[range],
        }
    }
}

const CHANNELS: usize = 3;
const KERNEL: usize = 4;

fn shape(n_head: usize, dk: usize, dv: usize) -> Shape {
    Shape { n_head, dk, dv, n_channels: CHANNELS, conv_kernel: KERNEL }
}

/// A layer with its inputs: one head's tokens per head, and the inputs of the convolution.
struct Layer {
    kind: IsaKind,
    heads: Vec<Inputs>,
    u: Vec<f32>,
    conv: Vec<f32>,
    dv: usize,
}

impl Layer {
    fn new(kind: IsaKind, shape: Shape, n: usize, strength: f32) -> Layer {
        let head = |h| Inputs::new(n, shape.dk, shape.dv, strength, h as u64 + 1);
        Layer {
            kind,
            heads: (0..shape.n_head).map(head).collect(),
            u: numbers(n * CHANNELS, 8),
            conv: numbers(KERNEL * CHANNELS, 9),
            dv: shape.dv,
        }
    }

    /// One step of `n` tokens; per token what the heads gave, then what the convolution gave.
    fn step(&self, state: &mut State, n: usize, scratch: &mut Scratch) -> Vec<Vec<f32>> {
        let first = state.n_past();
        let u = &self.u[first * CHANNELS..(first + n) * CHANNELS];
        let mut results = vec![Vec::new(); n];
        for (head, inputs) in state.heads_mut().zip(&self.heads) {
            let mut head = head;
            let mut out = vec![f32::NAN; n * self.dv];
            advance(self.kind, &mut head, inputs.tokens(first..first + n), scratch, &mut out);
            results.iter_mut().zip(out.chunks_exact(self.dv)).for_each(|(r, o)| r.extend(o));
        }
        for (t, result) in results.iter_mut().enumerate() {
            let mut out = [f32::NAN; CHANNELS];
            convolve(self.kind, &self.conv, KERNEL, state.before(), u, t, &mut out);
            result.extend(out);
        }
        state.finish(u);
        results
    }
}

/// Equal to the bit, signs of zeros and kinds of NaN too.
fn same(a: &[Vec<f32>], b: &[Vec<f32>]) -> bool {
    let bits = |rows: &[Vec<f32>]| rows.concat().iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    bits(a) == bits(b)
}

fn written(state: &State) -> Vec<u8> {
    let mut bytes = Vec::new();
    state.write_to(&mut bytes);
    bytes
}

/// S of the only head, in f64: tokens of the unfinished chunk brought in.
fn matrix_of(state: &mut State) -> Vec<f64> {
    let mut head = state.heads_mut().next().expect("a head");
    let n = head.n;
    let (sizes, dv) = (head.sizes(), head.dv);
    let parts = &mut head.parts;
    let mut g = vec![0.0f64; n + 1];
    for i in (0..n).rev() {
        g[i] = g[i + 1] + f64::from(parts.log_decays[i]).max(-1e4);
    }
    let mut matrix = vec![0.0; sizes.dk * dv];
    for (at, width) in sizes.panels() {
        for l in 0..sizes.dk {
            for j in (0..width).filter(|j| at + j < dv) {
                let mut s = g[0].exp() * f64::from(parts.matrix[at * sizes.dk + l * width + j]);
                for t in 0..n {
                    let value = f64::from(parts.values[t * sizes.width + at + j]);
                    s += g[t + 1].exp()
                        * f64::from(parts.keys[(t / BLOCK * sizes.dk + l) * BLOCK + t % BLOCK])
                        * value;
                }
                matrix[l * dv + at + j] = s;
            }
        }
    }
    matrix
}

/// The recurrence in f64.
fn truth(state: &mut [f64], t: &Tokens<'_>, dk: usize, dv: usize) -> Vec<f64> {
    let mut out = Vec::new();
    for i in 0..t.beta.len() {
        let (q, k, v) = (&t.q[i * dk..], &t.k[i * dk..], &t.v[i * dv..][..dv]);
        let decay = f64::from(t.log_decay[i]).exp();
        state.iter_mut().for_each(|s| *s *= decay);
        for (j, v) in v.iter().enumerate() {
            let at = |l: usize| l * dv + j;
            let seen: f64 = (0..dk).map(|l| state[at(l)] * f64::from(k[l])).sum();
            let delta = f64::from(t.beta[i]) * (f64::from(*v) - seen);
            (0..dk).for_each(|l| state[at(l)] += f64::from(k[l]) * delta);
            out.push((0..dk).map(|l| state[at(l)] * f64::from(q[l])).sum());
        }
    }
    out
}

#[test]
fn follows_the_equation() {
    let mut scratch = Scratch::default();
    for kind in available() {
        for (dk, dv) in [(16, 16), (128, 128), (64, 64), (32, 48), (20, 16), (16, 100), (33, 17), (1, 1)] {
            for n in [1, 7, 16, 31, 32, 33, 100] {
                // decays from none to everything
                for strength in [0.0, 0.1, 3.0, 1e6] {
                    let shape = shape(1, dk, dv);
                    let layer = Layer::new(kind, shape, 32 + n, strength);
                    let mut state = State::new(shape);
                    let mut exact = vec![0.0; dk * dv];
                    let inputs = &layer.heads[0];
                    // a chunk first, so that S is something
                    layer.step(&mut state, 32, &mut scratch);
                    truth(&mut exact, &inputs.tokens(0..32), dk, dv);
                    let out = layer.step(&mut state, n, &mut scratch);
                    let expected = truth(&mut exact, &inputs.tokens(32..32 + n), dk, dv);
                    // states and results of a few units; sums of up to dk + n terms of size 1 / sqrt(dk), each
                    // rounded: their errors add like a random walk over the tokens
                    let bound = 2e-7 * ((dk + 32 + n) as f64).sqrt() * 4.0;
                    let near = |a: f64, b: f64| (a - b).abs() <= bound;
                    let name = format!("{} {dk}x{dv} n {n} decay {strength}", kind.name());
                    let results = out.iter().flat_map(|row| &row[..dv]);
                    assert!(results.zip(&expected).all(|(a, b)| near(f64::from(*a), *b)), "{name}");
                    let matrix = matrix_of(&mut state);
                    assert!(matrix.iter().zip(&exact).all(|(a, b)| near(*a, *b)), "{name}: state");
                }
            }
        }
    }
}

/// Shapes whose panels, halves and remainders differ.
const SHAPES: [(usize, usize); 7] = [(16, 16), (128, 128), (32, 48), (20, 80), (64, 64), (33, 17), (16, 200)];

#[test]
fn bits_do_not_depend_on_the_cut() {
    let mut scratch = Scratch::default();
    let n = 101;
    for kind in available() {
        for (dk, dv) in SHAPES {
            for strength in [0.0, 0.5, 30.0] {
                let shape = shape(2, dk, dv);
                let layer = Layer::new(kind, shape, n, strength);
                let mut whole = State::new(shape);
                let expected = layer.step(&mut whole, n, &mut scratch);
                for cut in [1, 2, 3, 4, 5, 7, 15, 16, 17, 31, 32, 33, 64, 100] {
                    let mut state = State::new(shape);
                    let mut results = Vec::new();
                    while state.n_past() < n {
                        let len = cut.min(n - state.n_past());
                        results.extend(layer.step(&mut state, len, &mut scratch));
                    }
                    let name = format!("{} {dk}x{dv} decay {strength} by {cut}", kind.name());
                    assert!(same(&results, &expected), "{name}");
                    assert_eq!(written(&state), written(&whole), "{name}");
                }
            }
        }
    }
}

#[test]
fn bits_do_not_depend_on_random_cuts_and_ways_back() {
    let mut scratch = Scratch::default();
    let n = 160;
    let mut random = 1u64;
    let mut below = |limit: usize| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) as usize % limit
    };
    for kind in available() {
        for (dk, dv) in SHAPES {
            let shape = shape(2, dk, dv);
            let mut layer = Layer::new(kind, shape, n, 0.3);
            let mut whole = State::new(shape);
            let expected = layer.step(&mut whole, n, &mut scratch);
            for _ in 0..6 {
                let (mut state, mut kept) = (State::new(shape), State::new(shape));
                // what was there before is of no importance
                layer.step(&mut state, 39, &mut scratch);
                state.clear();
                let mut results = vec![Vec::new(); n];
                while state.n_past() < n {
                    let first = state.n_past();
                    let len = (1 + below(40)).min(n - first);
                    let out = layer.step(&mut state, len, &mut scratch);
                    results[first..first + len].clone_from_slice(&out);
                    match below(4) {
                        // tokens that are taken back, full of NaN
                        0 => {
                            let to = state.n_in_chunk();
                            let wrong = below(CHUNK - to);
                            let end = state.n_past() + wrong;
                            if end <= n {
                                let right = layer.heads.clone();
                                let inputs = layer.u.clone();
                                for h in &mut layer.heads {
                                    let from = state.n_past();
                                    h.v[from * dv..].fill(f32::NAN);
                                    h.k[from * dk..].fill(f32::NAN);
                                    h.log_decay[from..].fill(f32::NAN);
                                }
                                layer.u[state.n_past() * CHANNELS..].fill(f32::NAN);
                                layer.step(&mut state, wrong, &mut scratch);
                                (layer.heads, layer.u) = (right, inputs);
                                state.truncate(to);
                            }
                        }
                        1 => {
                            let to = below(state.n_in_chunk() + 1);
                            state.truncate(to);
                        }
                        2 => {
                            let bytes = written(&state);
                            state = State::new(shape);
                            state.read_from(&bytes).expect("a state");
                        }
                        _ => {
                            kept.copy_from(&state);
                            layer.step(&mut state, below(50).min(n - kept.n_past()), &mut scratch);
                            std::mem::swap(&mut state, &mut kept);
                        }
                    }
                }
                assert!(same(&results, &expected), "{} {dk}x{dv}", kind.name());
                assert_eq!(written(&state), written(&whole), "{} {dk}x{dv}", kind.name());
            }
        }
    }
}

#[test]
fn a_head_takes_its_tokens_in_pieces() {
    let (dk, dv, n) = (32, 48, 90);
    for kind in available() {
        let layer = Layer::new(kind, shape(1, dk, dv), n, 0.2);
        let run = |pieces: &mut dyn FnMut(&Head<'_>) -> usize| {
            let mut state = State::new(shape(1, dk, dv));
            state.finish(&[]);
            let mut head = state.heads_mut().next().expect("a head");
            let (mut out, mut from, mut scratch) = (vec![f32::NAN; n * dv], 0, Scratch::default());
            while from < n {
                let to = n.min(from + pieces(&head));
                let tokens = layer.heads[0].tokens(from..to);
                advance(kind, &mut head, tokens, &mut scratch, &mut out[from * dv..to * dv]);
                from = to;
            }
            out
        };
        let whole = run(&mut |_| n);
        assert_eq!(run(&mut |head| head.rest()), whole, "{}", kind.name());
        assert_eq!(run(&mut |_| 13), whole, "{}", kind.name());
    }
}

#[test]
fn a_decay_of_minus_infinity_forgets() {
    for kind in available() {
        for cut in [1, 12] {
            let mut inputs = Inputs::new(32 + 12, 16, 16, 0.1, 1);
            (inputs.log_decay[37], inputs.log_decay[38]) = (f32::NEG_INFINITY, f32::NEG_INFINITY);
            let run = |first: f32| {
                let mut inputs = inputs.clone();
                inputs.v[..37 * 16].fill(first);
                let mut state = State::new(shape(1, 16, 16));
                let mut head = state.heads_mut().next().expect("a head");
                let (mut scratch, mut out) = (Scratch::default(), vec![f32::NAN; 44 * 16]);
                for from in (0..44).step_by(cut) {
                    let to = 44.min(from + cut);
                    let out = &mut out[from * 16..to * 16];
                    advance(kind, &mut head, inputs.tokens(from..to), &mut scratch, out);
                }
                out[37 * 16..].to_vec()
            };
            let (a, b) = (run(0.0), run(100.0));
            assert!(a.iter().all(|x| x.is_finite()), "{}", kind.name());
            assert_eq!(a, b, "{}", kind.name());
        }
    }
}

#[test]
fn a_token_that_is_not_a_number_leaves_earlier_ones_alone() {
    for kind in available() {
        let shape = shape(1, 32, 48);
        let mut layer = Layer::new(kind, shape, 40, 0.1);
        let mut scratch = Scratch::default();
        let expected = layer.step(&mut State::new(shape), 40, &mut scratch);
        layer.heads[0].v[20 * 48..].fill(f32::NAN);
        layer.heads[0].k[20 * 32..].fill(f32::INFINITY);
        layer.heads[0].log_decay[20..].fill(f32::NAN);
        let results = layer.step(&mut State::new(shape), 40, &mut scratch);
        assert!(same(&results[..20], &expected[..20]), "{}", kind.name());
        assert!(results[20..].iter().all(|row| row[..48].iter().all(|x| x.is_nan())), "{}", kind.name());
    }
}
