//! Functions of one or two vectors, element by element.

use ikq_simd::{Isa, IsaKind, IsaOp, run};

use super::{load_tail, math, store_tail};

/// What a gated feed-forward network does with gate and up.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Activation {
    /// `silu(gate) * up`.
    Silu,
    /// `g * u` with `g = silu(gate)` at most the limit, and `u = up` between it and its negative.
    SiluLimited(f32),
    /// `gelu(gate) * up`, the form with tanh.
    GeluTanh,
    /// `g sigmoid(1.702 g) (u + 1)` with `g` at most 7 and `u` in -7..=7 (gpt-oss).
    SwigluOai,
}

/// The clamp of [`Activation::SwigluOai`].
const OAI_LIMIT: f32 = 7.0;
const OAI_ALPHA: f32 = 1.702;

/// 1 / (1 + e^-x).
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

/// ln(1 + e^x); x itself above 20, where the difference is below its last bit.
pub fn softplus(x: f32) -> f32 {
    if x > 20.0 { x } else { x.exp().ln_1p() }
}

/// A function of two numbers, applied to lanes.
trait Binary: Copy {
    fn of<I: Isa>(self, isa: I, a: I::F, b: I::F) -> I::F;
}

/// `a[i] = op(a[i], b[i])`.
struct Update<'a, O> {
    a: &'a mut [f32],
    b: &'a [f32],
    op: O,
}

impl<O: Binary> IsaOp for Update<'_, O> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let (a, a_tail) = self.a.as_chunks_mut::<16>();
        let (b, b_tail) = self.b.as_chunks::<16>();
        for (a, b) in a.iter_mut().zip(b) {
            let y = self.op.of(isa, isa.load_f(a), isa.load_f(b));
            isa.store_f(y, a);
        }
        if !a_tail.is_empty() {
            let y = self.op.of(isa, load_tail(isa, a_tail), load_tail(isa, b_tail));
            store_tail(isa, y, a_tail);
        }
    }
}

/// `out[i] = op(a[i], b[i])`.
struct Combine<'a, O> {
    a: &'a [f32],
    b: &'a [f32],
    out: &'a mut [f32],
    op: O,
}

impl<O: Binary> IsaOp for Combine<'_, O> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let (a, a_tail) = self.a.as_chunks::<16>();
        let (b, b_tail) = self.b.as_chunks::<16>();
        let (out, out_tail) = self.out.as_chunks_mut::<16>();
        for ((a, b), out) in a.iter().zip(b).zip(out) {
            let y = self.op.of(isa, isa.load_f(a), isa.load_f(b));
            isa.store_f(y, out);
        }
        if !out_tail.is_empty() {
            let y = self.op.of(isa, load_tail(isa, a_tail), load_tail(isa, b_tail));
            store_tail(isa, y, out_tail);
        }
    }
}

/// A function of one number, applied to lanes.
trait Unary: Copy {
    fn of<I: Isa>(self, isa: I, x: I::F) -> I::F;
}

/// `x[i] = op(x[i])`.
struct Replace<'a, O> {
    x: &'a mut [f32],
    op: O,
}

impl<O: Unary> IsaOp for Replace<'_, O> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let (x, tail) = self.x.as_chunks_mut::<16>();
        for x in x {
            let y = self.op.of(isa, isa.load_f(x));
            isa.store_f(y, x);
        }
        if !tail.is_empty() {
            let y = self.op.of(isa, load_tail(isa, tail));
            store_tail(isa, y, tail);
        }
    }
}

#[derive(Clone, Copy)]
struct Silu;

impl Unary for Silu {
    #[inline(always)]
    fn of<I: Isa>(self, isa: I, x: I::F) -> I::F {
        math::silu(isa, x)
    }
}

#[derive(Clone, Copy)]
struct Softcap {
    cap: f32,
    inverse: f32,
}

impl Unary for Softcap {
    #[inline(always)]
    fn of<I: Isa>(self, isa: I, x: I::F) -> I::F {
        let y = math::tanh(isa, isa.mul_f(x, isa.splat_f(self.inverse)));
        isa.mul_f(y, isa.splat_f(self.cap))
    }
}

#[derive(Clone, Copy)]
struct TimesSigmoid;

impl Binary for TimesSigmoid {
    #[inline(always)]
    fn of<I: Isa>(self, isa: I, a: I::F, gate: I::F) -> I::F {
        isa.mul_f(a, math::sigmoid(isa, gate))
    }
}

#[derive(Clone, Copy)]
struct TimesSilu;

impl Binary for TimesSilu {
    #[inline(always)]
    fn of<I: Isa>(self, isa: I, a: I::F, gate: I::F) -> I::F {
        isa.mul_f(a, math::silu(isa, gate))
    }
}

#[derive(Clone, Copy)]
struct TimesGelu;

impl Binary for TimesGelu {
    #[inline(always)]
    fn of<I: Isa>(self, isa: I, a: I::F, gate: I::F) -> I::F {
        isa.mul_f(a, math::gelu_tanh(isa, gate))
    }
}

#[derive(Clone, Copy)]
struct Oai;

impl Binary for Oai {
    #[inline(always)]
    fn of<I: Isa>(self, isa: I, up: I::F, gate: I::F) -> I::F {
        let (low, high) = (isa.splat_f(-OAI_LIMIT), isa.splat_f(OAI_LIMIT));
        // limits first: NaN stays
        let gate = isa.min_f(high, gate);
        let up = isa.min_f(high, isa.max_f(low, up));
        let e = math::exp(isa, isa.mul_f(gate, isa.splat_f(-OAI_ALPHA)));
        let one = isa.splat_f(1.0);
        isa.mul_f(isa.div_f(gate, isa.add_f(one, e)), isa.add_f(up, one))
    }
}

/// The limit of [`Activation::SiluLimited`].
#[derive(Clone, Copy)]
struct Limited(f32);

impl Binary for Limited {
    #[inline(always)]
    fn of<I: Isa>(self, isa: I, up: I::F, gate: I::F) -> I::F {
        let (low, high) = (isa.splat_f(-self.0), isa.splat_f(self.0));
        // limits first: NaN stays
        let gate = isa.min_f(high, math::silu(isa, gate));
        isa.mul_f(gate, isa.min_f(high, isa.max_f(low, up)))
    }
}

/// `x = silu(x)`.
pub fn silu_in_place(kind: IsaKind, x: &mut [f32]) {
    run(kind, Replace { x, op: Silu });
}

/// `x = cap tanh(x / cap)`.
pub fn softcap(kind: IsaKind, x: &mut [f32], cap: f32) {
    run(kind, Replace { x, op: Softcap { cap, inverse: 1.0 / cap } });
}

/// `out *= sigmoid(gate)`.
///
/// # Panics
/// When lengths differ.
pub fn sigmoid_gate(kind: IsaKind, out: &mut [f32], gate: &[f32]) {
    assert_eq!(out.len(), gate.len(), "a gate per element");
    run(kind, Update { a: out, b: gate, op: TimesSigmoid });
}

/// `out *= silu(z)`.
///
/// # Panics
/// When lengths differ.
pub fn silu_gate(kind: IsaKind, out: &mut [f32], z: &[f32]) {
    assert_eq!(out.len(), z.len(), "a gate per element");
    run(kind, Update { a: out, b: z, op: TimesSilu });
}

/// `out = activation(gate) * up`.
///
/// # Panics
/// When lengths differ.
pub fn glu(kind: IsaKind, activation: Activation, gate: &[f32], up: &[f32], out: &mut [f32]) {
    assert!(gate.len() == out.len() && up.len() == out.len(), "gate, up and output are of one length");
    match activation {
        Activation::Silu => run(kind, Combine { a: up, b: gate, out, op: TimesSilu }),
        Activation::SiluLimited(limit) => run(kind, Combine { a: up, b: gate, out, op: Limited(limit) }),
        Activation::GeluTanh => run(kind, Combine { a: up, b: gate, out, op: TimesGelu }),
        Activation::SwigluOai => run(kind, Combine { a: up, b: gate, out, op: Oai }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ikq_simd::available;

    /// Six units of the last place: exp, a division, and up to four roundings of products and sums.
    fn near(found: f32, truth: f64) -> bool {
        (f64::from(found) - truth).abs() <= truth.abs() * 6.0 * f64::powi(2.0, -23) + 1e-37
    }

    fn sigmoid64(x: f64) -> f64 {
        1.0 / (1.0 + (-x).exp())
    }

    fn gelu64(x: f64) -> f64 {
        let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
        // 0.5 (1 + tanh u) without its cancellation
        x * sigmoid64(2.0 * u)
    }

    fn numbers(n: usize) -> Vec<f32> {
        (0..n).map(|i| (i as f32 * 0.37).sin() * 12.0).collect()
    }

    #[test]
    fn gates_agree_with_f64_for_every_length() {
        for kind in available() {
            for n in [0, 1, 15, 16, 17, 100] {
                let x = numbers(n);
                let z: Vec<f32> = numbers(2 * n)[n..].to_vec();
                let pairs: Vec<(f64, f64)> =
                    x.iter().zip(&z).map(|(a, b)| (f64::from(*a), f64::from(*b))).collect();
                let check = |what: &str, found: &[f32], truth: &dyn Fn(f64, f64) -> f64| {
                    for (found, (a, b)) in found.iter().zip(&pairs) {
                        assert!(near(*found, truth(*a, *b)), "{} {what}({a}, {b}) = {found}", kind.name());
                    }
                };
                let mut y = x.clone();
                sigmoid_gate(kind, &mut y, &z);
                check("sigmoid gate", &y, &|a, b| a * sigmoid64(b));
                let mut y = x.clone();
                silu_gate(kind, &mut y, &z);
                check("silu gate", &y, &|a, b| a * b * sigmoid64(b));
                let mut y = x.clone();
                silu_in_place(kind, &mut y);
                check("silu", &y, &|a, _| a * sigmoid64(a));
                let mut y = x.clone();
                softcap(kind, &mut y, 7.5);
                check("softcap", &y, &|a, _| 7.5 * (a / 7.5).tanh());
                let mut y = vec![f32::NAN; n];
                glu(kind, Activation::Silu, &x, &z, &mut y);
                check("swiglu", &y, &|g, u| g * sigmoid64(g) * u);
                glu(kind, Activation::SiluLimited(2.5), &x, &z, &mut y);
                check("limited swiglu", &y, &|g, u| (g * sigmoid64(g)).min(2.5) * u.clamp(-2.5, 2.5));
                glu(kind, Activation::GeluTanh, &x, &z, &mut y);
                for (found, (g, u)) in y.iter().zip(&pairs) {
                    // the argument of exp carries its rounding: relative error grows with its size
                    let truth = gelu64(*g) * u;
                    let argument = 1.6 * (g + 0.044715 * g * g * g).abs();
                    let bound = truth.abs() * (6.0 + 3.0 * argument) * f64::powi(2.0, -23) + 1e-36;
                    assert!((f64::from(*found) - truth).abs() <= bound, "{} gelu({g}) * {u}", kind.name());
                }
            }
        }
    }

    #[test]
    fn the_clamped_activation_has_its_published_values() {
        let cases = [
            ((10.0, 9.0), 55.999625),
            ((10.0, -9.0), -41.999719),
            ((-3.0, -8.5), 0.108428),
            ((-20.0, 2.0), -9.880231e-14),
        ];
        for kind in available() {
            for ((gate, up), expected) in cases {
                let mut out = [0.0];
                glu(kind, Activation::SwigluOai, &[gate], &[up], &mut out);
                // as many digits as the values are given with; the last has an argument of 34
                assert!((out[0] / expected - 1.0).abs() < 1e-5, "{} {gate} {up}: {}", kind.name(), out[0]);
            }
        }
    }

    #[test]
    fn huge_inputs_have_limits() {
        for kind in available() {
            let mut out = [1.0, 1.0, 2.0, 2.0];
            sigmoid_gate(kind, &mut out, &[1e4, -1e4, f32::INFINITY, f32::NEG_INFINITY]);
            assert_eq!(out, [1.0, 0.0, 2.0, 0.0]);
            let mut out = [1e4, -1e4, 1e30, -1e30];
            softcap(kind, &mut out, 30.0);
            assert_eq!(out, [30.0, -30.0, 30.0, -30.0]);
            let mut out = [0.0; 2];
            glu(kind, Activation::GeluTanh, &[1e4, -1e4], &[1.0, 1.0], &mut out);
            assert_eq!(out, [1e4, 0.0]);
        }
        assert_eq!((sigmoid(1e4), sigmoid(-1e4), softplus(1e4), softplus(-1e4)), (1.0, 0.0, 1e4, 0.0));
        assert!((softplus(0.5) - 0.974_077).abs() < 1e-6);
    }
}
