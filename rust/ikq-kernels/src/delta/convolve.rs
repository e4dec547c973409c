//! The short convolution over time in front of the recurrence.

use ikq_simd::{Isa, IsaKind, IsaOp, run};

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

#[cfg(test)]
mod tests {
    use super::*;
    use ikq_simd::available;

    fn numbers(n: usize, seed: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 7919 + seed * 104_729 + 1) as f32 * 0.618).sin()).collect()
    }

    #[test]
    fn earlier_tokens_are_seen_in_this_step_and_before() {
        let (n_channels, n) = (37, 6);
        for kernel in [1, 2, 4, 5] {
            let conv = numbers(kernel * n_channels, 1);
            let u = numbers((kernel - 1 + n) * n_channels, 2);
            for kind in available() {
                // those before the step are the first of `u`, and more of them the later the step begins
                for first in 0..n {
                    let (before, these) = u.split_at((kernel - 1 + first) * n_channels);
                    let before = &before[first * n_channels..];
                    for t in 0..n - first {
                        let mut out = vec![f32::NAN; n_channels];
                        convolve(kind, &conv, kernel, before, these, t, &mut out);
                        for (ch, out) in out.iter().enumerate() {
                            let product = |s: usize| {
                                let x = u[(first + t + s) * n_channels + ch];
                                f64::from(conv[ch * kernel + s]) * f64::from(x)
                            };
                            let truth: f64 = (0..kernel).map(product).sum();
                            // at most 5 products below 1, 9 roundings
                            let bound = 9.0 * 5.0 * f64::powi(2.0, -24);
                            assert!((f64::from(*out) - truth).abs() < bound, "{} {t} {ch}", kind.name());
                        }
                    }
                }
            }
        }
    }
}
