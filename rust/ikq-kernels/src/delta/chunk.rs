//! The recurrence for many tokens at once: what is a chain of rank-one updates token by token are matrix products
//! chunk by chunk.
//!
//! With rows Q, K, V of a chunk, `G_i` the sum of the logarithms of its decays up to token i, and
//! `D[i, j] = exp(G_i - G_j)` for `j <= i`, else 0:
//!
//! ```text
//! T  = strictly lower part of diag(beta) (K K^T o D)
//! V' : (I + T) V' = diag(beta) (V - diag(exp G) K S)
//! O  = diag(exp G) Q S + (Q K^T o D) V'
//! S  = exp(G_last) S + (diag(exp(G_last - G)) K)^T V'
//! ```
//! Exponents are differences, at most 0: nothing overflows.

use std::marker::PhantomData;

use ikq_simd::{Isa, IsaKind, IsaOp, run};

use super::step;
use crate::ops::math;
use crate::ops::matrix::{ByElement, F32, Floats, Product, Shape, Stored, Transpose, bytes_of};

/// Tokens of a chunk, the best number to give [`advance`] at once: products with the state cost the same whatever it is, those within the chunk grow with it.
pub const CHUNK: usize = 32;
/// Tokens below which steps are as fast.
const FEWEST: usize = 8;
/// Logarithms of decays below it are as good as it: their exponentials are 0.
const LOWEST: f64 = -1e4;

/// Memory that a thread's heads reuse.
#[derive(Default)]
pub struct Scratch {
    /// K, then Q.
    rows: Vec<f32>,
    /// K transposed.
    columns: Vec<f32>,
    /// K S, then Q S.
    seen: Vec<f32>,
    /// K K^T, then Q K^T, masked and decayed.
    pairs: Vec<f32>,
    /// V'.
    values: Vec<f32>,
    decays: Vec<f32>,
}

/// Several tokens of one head.
#[derive(Clone, Copy)]
pub struct Tokens<'a> {
    /// `dk` per token, of unit length; queries scaled.
    pub q: &'a [f32],
    pub k: &'a [f32],
    /// `dv` per token.
    pub v: &'a [f32],
    pub beta: &'a [f32],
    /// Logarithms of the decays, at most 0.
    pub log_decay: &'a [f32],
}

impl<'a> Tokens<'a> {
    fn range(&self, from: usize, to: usize) -> Tokens<'a> {
        let n = self.beta.len();
        let part = |x: &'a [f32]| &x[x.len() / n * from..x.len() / n * to];
        Tokens {
            q: part(self.q),
            k: part(self.k),
            v: part(self.v),
            beta: part(self.beta),
            log_decay: part(self.log_decay),
        }
    }
}

/// The tokens one after another: the state (`dk x dv`) moves on, `out` has `dv` per token. Chunks where that is
/// faster, steps elsewhere.
///
/// # Panics
/// When shapes do not fit together.
pub fn advance(kind: IsaKind, state: &mut [f32], tokens: Tokens<'_>, scratch: &mut Scratch, out: &mut [f32]) {
    let n = tokens.beta.len();
    if n == 0 {
        return;
    }
    let (dk, dv) = (tokens.k.len() / n, tokens.v.len() / n);
    let fits = tokens.q.len() == n * dk && tokens.k.len() == n * dk && tokens.v.len() == n * dv;
    assert!(fits && tokens.log_decay.len() == n && out.len() == n * dv, "shapes of {n} tokens differ");
    assert_eq!(state.len(), dk * dv, "a state of dk x dv");
    let mut from = 0;
    while from < n {
        let to = n.min(from + CHUNK);
        let part = tokens.range(from, to);
        let out = &mut out[from * dv..to * dv];
        if to - from < FEWEST || !dk.is_multiple_of(16) || !dv.is_multiple_of(16) {
            for (i, out) in out.chunks_exact_mut(dv).enumerate() {
                let t = part.range(i, i + 1);
                step(kind, state, t.q, t.k, t.v, t.beta[0], t.log_decay[0].exp(), out);
            }
        } else {
            chunk(kind, state, part, [dk, dv], scratch, out);
        }
        from = to;
    }
}

/// `c = a b` or `c += a b` of floats; `b` has `b_stride` floats from row to row.
#[expect(clippy::too_many_arguments, reason = "the operands of a product")]
fn product(
    kind: IsaKind,
    a: &[f32],
    a_stride: usize,
    b: &[f32],
    b_stride: usize,
    c: &mut [f32],
    c_stride: usize,
    shape: Shape,
    add: bool,
) {
    let a = Floats { data: a, stride: a_stride };
    let b = Stored { data: bytes_of(b), stride: 4 * b_stride };
    let ty = PhantomData::<()>;
    Product { a, b, c, c_stride, shape, add, panel: &mut [], ty }.go::<F32>(kind);
}

fn chunk(
    kind: IsaKind,
    state: &mut [f32],
    tokens: Tokens<'_>,
    [dk, dv]: [usize; 2],
    scratch: &mut Scratch,
    out: &mut [f32],
) {
    let n = tokens.beta.len();
    let width = n.next_multiple_of(16);
    let Scratch { rows, columns, seen, pairs, values, decays } = scratch;
    // sums of logarithms
    let mut g = [0.0f64; CHUNK];
    let mut sum = 0.0;
    for (g, log) in g.iter_mut().zip(tokens.log_decay) {
        let log = f64::from(*log);
        // NaN stays
        sum += if log < LOWEST { LOWEST } else { log };
        *g = sum;
    }
    let g = &g[..n];

    rows.clear();
    rows.extend(tokens.k);
    rows.extend(tokens.q);
    resize(columns, dk * width);
    resize(seen, 2 * n * dv);
    resize(pairs, 2 * n * width);
    resize(decays, n * width);
    let b = Stored { data: bytes_of(tokens.k), stride: 4 * dk };
    let ty = PhantomData::<()>;
    Transpose { b, n, k: dk, out: &mut *columns, stride: width, ty }.go::<F32>(kind);
    product(kind, rows, dk, state, dv, seen, dv, Shape { m: 2 * n, n: dv, k: dk }, false);
    product(kind, rows, dk, columns, width, pairs, width, Shape { m: 2 * n, n: width, k: dk }, false);

    // D, a row per token; behind the last token 0
    for (i, row) in decays.chunks_exact_mut(width).enumerate() {
        for (j, d) in row.iter_mut().enumerate() {
            *d = if j <= i { (g[i] - g[j]) as f32 } else { f32::NEG_INFINITY };
        }
    }
    run(kind, Exp(decays));
    let (of_keys, of_queries) = pairs.split_at_mut(n * width);
    for i in 0..n {
        let d = &decays[i * width..][..width];
        of_queries[i * width..][..width].iter_mut().zip(d).for_each(|(p, d)| *p *= d);
        let t = &mut of_keys[i * width..][..width];
        t.iter_mut().zip(d).for_each(|(t, d)| *t *= -tokens.beta[i] * d);
    }

    // V', row after row; blocks of rows take what stands before them as a product
    values.clear();
    values.extend(tokens.v);
    let (of_keys_seen, of_queries_seen) = seen.split_at(n * dv);
    for (i, v) in values.chunks_exact_mut(dv).enumerate() {
        let (beta, decay) = (tokens.beta[i], g[i].exp() as f32);
        v.iter_mut().zip(&of_keys_seen[i * dv..]).for_each(|(v, s)| *v = beta * (*v - decay * s));
    }
    for first in (0..n).step_by(16) {
        let m = 16.min(n - first);
        let (before, these) = values.split_at_mut(first * dv);
        let t = &of_keys[first * width..];
        if first > 0 {
            product(kind, t, width, before, dv, these, dv, Shape { m, n: dv, k: first }, true);
        }
        run(kind, Substitute { t: &t[first..], stride: width, m, values: these, dv });
    }

    for (i, out) in out.chunks_exact_mut(dv).enumerate() {
        let decay = g[i].exp() as f32;
        out.iter_mut().zip(&of_queries_seen[i * dv..]).for_each(|(o, s)| *o = decay * s);
    }
    product(kind, of_queries, width, values, dv, out, dv, Shape { m: n, n: dv, k: n }, true);

    let last = g[n - 1];
    let decay = last.exp() as f32;
    state.iter_mut().for_each(|s| *s *= decay);
    let mut rest = [0.0; CHUNK];
    rest.iter_mut().zip(g).for_each(|(r, g)| *r = (last - g).exp() as f32);
    for row in columns.chunks_exact_mut(width) {
        row.iter_mut().zip(rest).for_each(|(x, r)| *x *= r);
    }
    product(kind, columns, width, values, dv, state, dv, Shape { m: dk, n: dv, k: n }, true);
}

/// Room for `len` elements; what they hold is unspecified.
fn resize(v: &mut Vec<f32>, len: usize) {
    v.resize(len, 0.0);
}

/// e^x of a multiple of sixteen elements.
struct Exp<'a>(&'a mut [f32]);

impl IsaOp for Exp<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        for x in self.0.as_chunks_mut::<16>().0 {
            let y = math::exp(isa, isa.load_f(x));
            isa.store_f(y, x);
        }
    }
}

/// `values[i] += sum over j < i of t[i, j] values[j]`, i ascending over `m` rows.
struct Substitute<'a> {
    t: &'a [f32],
    stride: usize,
    m: usize,
    values: &'a mut [f32],
    dv: usize,
}

impl IsaOp for Substitute<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        for i in 1..self.m {
            let (before, these) = self.values.split_at_mut(i * self.dv);
            let t = &self.t[i * self.stride..][..i];
            let these = these[..self.dv].as_chunks_mut::<16>().0;
            for (at, v) in these.iter_mut().enumerate() {
                let mut sum = isa.load_f(v);
                for (t, row) in t.iter().zip(before.chunks_exact(self.dv)) {
                    let x = isa.load_f(row[16 * at..16 * at + 16].as_array().expect("sixteen"));
                    sum = isa.fma(isa.splat_f(*t), x, sum);
                }
                isa.store_f(sum, v);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ikq_simd::available;

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
    fn chunks_are_steps() {
        let mut scratch = Scratch::default();
        for kind in available() {
            for (dk, dv) in [(16, 16), (128, 128), (32, 48), (20, 16)] {
                for n in [1, 7, 8, 16, 31, 32, 33, 63, 100] {
                    // decays from none to everything
                    for strength in [0.0, 0.1, 3.0, 1e6] {
                        let (q, k, v) = (unit_rows(n, dk, 1), unit_rows(n, dk, 2), numbers(n * dv, 3));
                        let beta: Vec<f32> = numbers(n, 4).iter().map(|b| 0.5 + 0.49 * b).collect();
                        let log_decay: Vec<f32> = numbers(n, 5).iter().map(|g| -strength * g * g).collect();
                        let tokens = Tokens { q: &q, k: &k, v: &v, beta: &beta, log_decay: &log_decay };
                        let mut state = numbers(dk * dv, 6);
                        let mut exact: Vec<f64> = state.iter().map(|s| f64::from(*s)).collect();
                        let mut out = vec![f32::NAN; n * dv];
                        advance(kind, &mut state, tokens, &mut scratch, &mut out);
                        let expected = truth(&mut exact, &tokens, dk, dv);
                        // states and results of a few units; sums of up to dk + n terms of size 1 / sqrt(dk),
                        // each rounded: their errors add like a random walk over n tokens
                        let bound = 2e-7 * ((dk + n) as f64).sqrt() * 4.0;
                        let near = |a: &[f32], b: &[f64]| {
                            a.iter().zip(b).all(|(a, b)| (f64::from(*a) - b).abs() <= bound)
                        };
                        let name = kind.name();
                        assert!(near(&out, &expected), "{name} {dk}x{dv} n {n} decay {strength}");
                        assert!(near(&state, &exact), "{name} {dk}x{dv} n {n} decay {strength}: state");
                    }
                }
            }
        }
    }

    #[test]
    fn a_decay_of_minus_infinity_forgets() {
        for kind in available() {
            let (q, k, v) = (unit_rows(12, 16, 1), unit_rows(12, 16, 2), numbers(12 * 16, 3));
            let mut log_decay = [-0.1; 12];
            (log_decay[5], log_decay[6]) = (f32::NEG_INFINITY, f32::NEG_INFINITY);
            let tokens = Tokens { q: &q, k: &k, v: &v, beta: &[0.5; 12], log_decay: &log_decay };
            let run = |first: f32| {
                let (mut state, mut out) = (vec![first; 256], vec![f32::NAN; 12 * 16]);
                advance(kind, &mut state, tokens, &mut Scratch::default(), &mut out);
                (state, out[5 * 16..].to_vec())
            };
            let (a, b) = (run(0.0), run(100.0));
            assert!(a.0.iter().chain(&a.1).all(|x| x.is_finite()));
            assert_eq!(a, b);
        }
    }
}
