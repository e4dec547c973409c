//! The recurrence of gated delta-net layers.
//!
//! ```text
//! S = decay S;  delta = beta (v - S^T k);  S = S + k delta^T;  o = S^T q
//! ```
//! The state S of a head is `dk` rows of `dv`. [`step`] does one token, [`advance`] many, in chunks.

mod chunk;

use ikq_simd::{Isa, IsaKind, IsaOp, run};

pub use chunk::{CHUNK, Scratch, Tokens, advance};

/// The convolution over time of token `token`, before its activation:
/// `out[ch] = sum over s of conv[ch * conv_kernel + s] * input[ch]`, `input` being that of the token
/// `conv_kernel - 1 - s` before it.
///
/// `u` are the inputs of this step's tokens, `before` the last `conv_kernel - 1` before them, oldest first;
/// `out.len()` channels each.
///
/// # Panics
/// When shapes do not fit together.
pub fn convolve(
    kind: IsaKind,
    conv: &[f32],
    conv_kernel: usize,
    before: &[f32],
    u: &[f32],
    token: usize,
    out: &mut [f32],
) {
    let n_channels = out.len();
    assert_eq!(conv.len(), conv_kernel * n_channels, "{conv_kernel} numbers per channel");
    assert_eq!(before.len(), (conv_kernel - 1) * n_channels, "the inputs before this step");
    // the input of tap s, `before` and `u` being one sequence
    let input = |s: usize| match (token + s).checked_sub(conv_kernel - 1) {
        None => &before[(token + s) * n_channels..][..n_channels],
        Some(at) => &u[at * n_channels..][..n_channels],
    };
    if conv_kernel == 4 {
        let inputs = [input(0), input(1), input(2), input(3)];
        return run(kind, FourTaps { conv, inputs, out });
    }
    out.fill(0.0);
    for s in 0..conv_kernel {
        for ((out, x), w) in out.iter_mut().zip(input(s)).zip(conv.iter().skip(s).step_by(conv_kernel)) {
            *out += x * w;
        }
    }
}

/// The convolution of four taps, which is that of all known models.
struct FourTaps<'a> {
    conv: &'a [f32],
    inputs: [&'a [f32]; 4],
    out: &'a mut [f32],
}

impl IsaOp for FourTaps<'_> {
    type Output = ();

    // plain code, vectorized by the compiler for the instruction set
    #[inline(always)]
    fn run<I: Isa>(self, _: I) {
        let FourTaps { conv, inputs: [a, b, c, d], out } = self;
        let inputs = a.iter().zip(b).zip(c).zip(d);
        for ((out, w), (((a, b), c), d)) in out.iter_mut().zip(conv.as_chunks::<4>().0).zip(inputs) {
            *out = (w[0] * a + w[1] * b) + (w[2] * c + w[3] * d);
        }
    }
}

/// Moves the inputs of a step into `state`, which keeps the last ones (as many as it has room for).
pub fn remember(u: &[f32], n_channels: usize, state: &mut [f32]) {
    debug_assert!(u.len().is_multiple_of(n_channels) && state.len().is_multiple_of(n_channels));
    match state.len().checked_sub(u.len()) {
        Some(kept) => {
            state.copy_within(u.len().., 0);
            state[kept..].copy_from_slice(u);
        }
        None => state.copy_from_slice(&u[u.len() - state.len()..]),
    }
}

/// One token of one head: the state moves on, `out` (`dv`) is what it gives for `q` (`dk`).
///
/// # Panics
/// When shapes do not fit together.
#[expect(clippy::too_many_arguments, reason = "the terms of the equation")]
pub fn step(
    kind: IsaKind,
    state: &mut [f32],
    q: &[f32],
    k: &[f32],
    v: &[f32],
    beta: f32,
    decay: f32,
    out: &mut [f32],
) {
    assert!(q.len() == k.len() && v.len() == out.len(), "query and key, value and output are of one length");
    assert_eq!(state.len(), k.len() * v.len(), "a state of dk x dv");
    run(kind, Step { state, q, k, v, beta, decay, out });
}

struct Step<'a> {
    state: &'a mut [f32],
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    beta: f32,
    decay: f32,
    out: &'a mut [f32],
}

impl IsaOp for Step<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(mut self, isa: I) {
        let dv = self.v.len();
        let mut at = 0;
        while at + 64 <= dv {
            self.columns::<I, 4>(isa, at);
            at += 64;
        }
        while at + 16 <= dv {
            self.columns::<I, 1>(isa, at);
            at += 16;
        }
        for j in at..dv {
            self.column(j);
        }
    }
}

impl Step<'_> {
    /// Columns `at..at + 16 N` of the state.
    #[inline(always)]
    fn columns<I: Isa, const N: usize>(&mut self, isa: I, at: usize) {
        let dv = self.v.len();
        let mut seen = [isa.splat_f(0.0); N];
        for (row, k) in self.state.chunks_exact(dv).zip(self.k) {
            let k = isa.splat_f(*k);
            let row = row[at..at + 16 * N].as_chunks::<16>().0;
            for (seen, s) in seen.iter_mut().zip(row) {
                *seen = isa.fma(isa.load_f(s), k, *seen);
            }
        }
        let (decay, beta) = (isa.splat_f(self.decay), isa.splat_f(self.beta));
        let mut delta = [isa.splat_f(0.0); N];
        let v = self.v[at..at + 16 * N].as_chunks::<16>().0;
        for ((delta, seen), v) in delta.iter_mut().zip(seen).zip(v) {
            *delta = isa.mul_f(beta, isa.sub_f(isa.load_f(v), isa.mul_f(decay, seen)));
        }
        let mut out = [isa.splat_f(0.0); N];
        for ((row, k), q) in self.state.chunks_exact_mut(dv).zip(self.k).zip(self.q) {
            let (k, q) = (isa.splat_f(*k), isa.splat_f(*q));
            let row = row[at..at + 16 * N].as_chunks_mut::<16>().0;
            for ((s, delta), out) in row.iter_mut().zip(delta).zip(&mut out) {
                let new = isa.fma(delta, k, isa.mul_f(isa.load_f(s), decay));
                *out = isa.fma(new, q, *out);
                isa.store_f(new, s);
            }
        }
        let to = self.out[at..at + 16 * N].as_chunks_mut::<16>().0;
        for (to, out) in to.iter_mut().zip(out) {
            isa.store_f(out, to);
        }
    }

    /// Column `j` of the state.
    #[inline(always)]
    fn column(&mut self, j: usize) {
        let dv = self.v.len();
        let mut seen = 0.0;
        for (i, k) in self.k.iter().enumerate() {
            seen += self.state[i * dv + j] * k;
        }
        let delta = self.beta * (self.v[j] - self.decay * seen);
        let mut out = 0.0;
        for (i, (k, q)) in self.k.iter().zip(self.q).enumerate() {
            let s = &mut self.state[i * dv + j];
            *s = *s * self.decay + k * delta;
            out += *s * q;
        }
        self.out[j] = out;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ikq_simd::available;

    fn numbers(n: usize, seed: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 7919 + seed * 104_729 + 1) as f32 * 0.618).sin()).collect()
    }

    #[test]
    fn steps_follow_the_equation() {
        for kind in available() {
            for (dk, dv) in [(1, 1), (16, 32), (32, 17), (128, 128), (64, 100)] {
                let mut state = vec![0.0f32; dk * dv];
                let mut truth = vec![0.0f64; dk * dv];
                for t in 0..20 {
                    let unit = |seed| {
                        let mut x = numbers(dk, seed);
                        let norm = x.iter().map(|x| x * x).sum::<f32>().sqrt();
                        x.iter_mut().for_each(|x| *x /= norm);
                        x
                    };
                    let (q, k, v) = (unit(3 * t), unit(3 * t + 1), numbers(dv, 3 * t + 2));
                    let (beta, decay) = (0.5 + 0.4 * (t as f32).sin(), 0.9 + 0.09 * (t as f32).cos());
                    let mut out = vec![f32::NAN; dv];
                    step(kind, &mut state, &q, &k, &v, beta, decay, &mut out);
                    for j in 0..dv {
                        let column = |i: usize| i * dv + j;
                        let mut seen = 0.0;
                        for i in 0..dk {
                            truth[column(i)] *= f64::from(decay);
                            seen += truth[column(i)] * f64::from(k[i]);
                        }
                        let delta = f64::from(beta) * (f64::from(v[j]) - seen);
                        let mut o = 0.0;
                        for i in 0..dk {
                            truth[column(i)] += f64::from(k[i]) * delta;
                            o += truth[column(i)] * f64::from(q[i]);
                        }
                        // numbers below 2; errors of a step (dk roundings at most in a random walk, a few
                        // units) fade with the decay, over some ten steps
                        let bound = 10.0 * 8.0 * 2.0 * f64::powi(2.0, -24);
                        assert!((f64::from(out[j]) - o).abs() < bound, "{} {dk}x{dv}", kind.name());
                    }
                }
            }
        }
    }

    #[test]
    fn convolution_sees_earlier_tokens_in_this_step_and_before() {
        for kernel in [1, 2, 4, 5] {
            convolution(kernel);
        }
    }

    fn convolution(kernel: usize) {
        let (n_channels, n) = (37, 6);
        let conv = numbers(kernel * n_channels, 1);
        let u = numbers(n * n_channels, 2);
        for kind in available() {
            // in one step
            let zeros = vec![0.0; (kernel - 1) * n_channels];
            let mut whole = vec![f32::NAN; n * n_channels];
            for (t, out) in whole.chunks_exact_mut(n_channels).enumerate() {
                convolve(kind, &conv, kernel, &zeros, &u, t, out);
                for (ch, out) in out.iter().enumerate() {
                    let truth: f64 = (0..kernel)
                        .filter(|s| t + s >= kernel - 1)
                        .map(|s| {
                            let x = u[(t + s + 1 - kernel) * n_channels + ch];
                            f64::from(conv[ch * kernel + s]) * f64::from(x)
                        })
                        .sum();
                    assert!((f64::from(*out) - truth).abs() < 1e-6, "{} {t} {ch}", kind.name());
                }
            }
            // in steps of one, two and three tokens
            let mut state = zeros.clone();
            let mut pieces = Vec::new();
            let mut rest = &u[..];
            for len in [1, 2, 3] {
                let (part, after) = rest.split_at(len * n_channels);
                for t in 0..len {
                    let mut out = vec![f32::NAN; n_channels];
                    convolve(kind, &conv, kernel, &state, part, t, &mut out);
                    pieces.extend(out);
                }
                remember(part, n_channels, &mut state);
                rest = after;
            }
            assert_eq!(pieces, whole);
            assert_eq!(state, u[(n + 1 - kernel) * n_channels..]);
        }
    }
}
