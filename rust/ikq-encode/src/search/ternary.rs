//! Finds the scale of ternary values: the d (and with it the codes) for which `sum w (x - d t)^2` is least with t
//! of -1, 0, 1, over any number of elements.
//!
//! Elements whose magnitude exceeds a threshold get t = -1 or 1. For a given threshold, with S = `sum w |x|` and
//! W = `sum w` over the elements above it, the best d is S / W; it lowers the error by S^2 / W. The thresholds
//! tried are shares of the largest magnitude, multiples of the mean magnitude, then half the best d (at which
//! every element has its nearest code) and some around it.

use ikq_simd::Isa;

use crate::encode::weights::normalizer;

/// The first thresholds, as shares of the largest magnitude. One half serves values that are ternary already; the
/// negative one is below every magnitude, so that the best scale is the mean of them all.
const OF_PEAK: [f32; 4] = [0.5, 0.25, 0.12, -1.0];
/// Then multiples of the mean magnitude: 0.77 is best for normal data, less for uniform, more for sparse data.
const OF_MEAN: [f32; 2] = [0.65, 0.95];
/// Then multiples of half the best scale, because the error has more than one local minimum.
const AROUND: [f32; 3] = [1.0, 0.85, 1.17];
/// A scale whose relative distance from the largest magnitude is below this is taken to be that magnitude.
const SAME: f64 = 1e-5;
/// Elements whose sums are added up in single precision.
const CHUNK: usize = 2048;

/// S and W at some thresholds.
type Sums<const N: usize> = [[f64; 2]; N];

/// The best scale of rows `x` that all have the weights `w`: `(d, down, up)`, where d is normalised (`d * up` is
/// the scale) and 0 if all elements are.
#[inline(always)]
pub fn scale<I: Isa>(isa: I, x: &[f32], w: &[f32]) -> (f32, f32, f32) {
    let amax = f32::from_bits(x.iter().fold(0, |m, v| (v.to_bits() & 0x7fff_ffff).max(m)));
    let (down, up) = normalizer(&[amax]);
    let peak = amax * down;
    if peak == 0.0 {
        return (0.0, down, up);
    }
    let mut best = Best { gain: 0.0, d: 0.0 };
    let of_peak = sums(isa, x, w, down, &ikq_simd::map(OF_PEAK, |t| t * peak));
    best.improve(&of_peak);
    if !best.is(peak) {
        let [.., [s, n]] = of_peak;
        let mean = (s / n) as f32;
        best.improve(&sums(isa, x, w, down, &ikq_simd::map(OF_MEAN, |t| t * mean)));
        let half = 0.5 * best.d as f32;
        best.improve(&sums(isa, x, w, down, &ikq_simd::map(AROUND, |t| t * half)));
        best.improve(&sums(isa, x, w, down, &[0.5 * best.d as f32]));
    }
    (if best.is(peak) { peak } else { best.d as f32 }, down, up)
}

/// The weighted mean magnitude, normalised.
#[inline(always)]
pub fn mean<I: Isa>(isa: I, x: &[f32], w: &[f32], down: f32) -> f32 {
    // -1 is below every magnitude
    let [[s, n]] = sums(isa, x, w, down, &[-1.0]);
    (s / n) as f32
}

/// The best scale so far.
struct Best {
    gain: f64,
    d: f64,
}

impl Best {
    #[inline(always)]
    fn improve<const N: usize>(&mut self, sums: &Sums<N>) {
        for [s, n] in sums {
            if s * s > self.gain * n {
                *self = Best { gain: s * s / n, d: s / n };
            }
        }
    }

    /// Whether the scale is the largest magnitude, as far as the sums can tell.
    #[inline(always)]
    fn is(&self, peak: f32) -> bool {
        self.d > f64::from(peak) * (1.0 - SAME)
    }
}

#[inline(always)]
fn sums<I: Isa, const N: usize>(isa: I, x: &[f32], w: &[f32], down: f32, thresholds: &[f32; N]) -> Sums<N> {
    let mut total = [[0.0; 2]; N];
    for x in x.chunks_exact(w.len()) {
        for (x, w) in x.chunks(CHUNK).zip(w.chunks(CHUNK)) {
            let mut sums = [[isa.splat_f(0.0); 2]; N];
            let (x, x_rest) = x.as_chunks::<16>();
            let (w, w_rest) = w.as_chunks::<16>();
            for (x, w) in x.iter().zip(w) {
                add(isa, x, w, down, thresholds, &mut sums);
            }
            if !x_rest.is_empty() {
                let (mut x, mut w) = ([0.0; 16], [0.0; 16]);
                x[..x_rest.len()].copy_from_slice(x_rest);
                w[..w_rest.len()].copy_from_slice(w_rest);
                add(isa, &x, &w, down, thresholds, &mut sums);
            }
            for (total, sums) in total.iter_mut().zip(sums) {
                total[0] += f64::from(isa.sum(sums[0]));
                total[1] += f64::from(isa.sum(sums[1]));
            }
        }
    }
    total
}

/// Adds sixteen elements to S and W of every threshold.
#[inline(always)]
fn add<I: Isa, const N: usize>(
    isa: I,
    x: &[f32; 16],
    w: &[f32; 16],
    down: f32,
    thresholds: &[f32; N],
    sums: &mut [[I::F; 2]; N],
) {
    let zero = isa.splat_f(0.0);
    let w = isa.load_f(w);
    let magnitude = isa.abs_f(isa.mul_f(isa.load_f(x), isa.splat_f(down)));
    let wx = isa.mul_f(w, magnitude);
    for (sums, threshold) in sums.iter_mut().zip(thresholds) {
        let threshold = isa.splat_f(*threshold);
        sums[0] = isa.add_f(sums[0], isa.if_gt(magnitude, threshold, wx, zero));
        sums[1] = isa.add_f(sums[1], isa.if_gt(magnitude, threshold, w, zero));
    }
}

/// Codes 0, 1, 2 (for -d, 0, d) at the normalised scale d.
#[inline(always)]
pub fn codes<I: Isa>(isa: I, x: &[f32], (d, down): (f32, f32), out: &mut [u32]) {
    // at scale 0 no element exceeds the threshold
    let half = isa.splat_f(if d > 0.0 { 0.5 * d } else { f32::INFINITY });
    let down = isa.splat_f(down);
    let (x, x_rest) = x.as_chunks::<16>();
    let (out, out_rest) = out.as_chunks_mut::<16>();
    for (x, out) in x.iter().zip(out) {
        sixteen_codes(isa, isa.mul_f(isa.load_f(x), down), half, out);
    }
    if !x_rest.is_empty() {
        let (mut last, mut codes) = ([0.0; 16], [0; 16]);
        last[..x_rest.len()].copy_from_slice(x_rest);
        sixteen_codes(isa, isa.mul_f(isa.load_f(&last), down), half, &mut codes);
        out_rest.copy_from_slice(&codes[..x_rest.len()]);
    }
}

#[inline(always)]
fn sixteen_codes<I: Isa>(isa: I, x: I::F, half: I::F, out: &mut [u32; 16]) {
    let (zero, one) = (isa.splat_f(0.0), isa.splat_f(1.0));
    let above = isa.if_gt(x, half, isa.splat_f(2.0), one);
    let code = isa.if_gt(isa.sub_f(zero, half), x, zero, above);
    let slots = isa.array(isa.slot(code));
    for (out, slot) in out.iter_mut().zip(&slots) {
        *out = slot.to_bits() & 3;
    }
}

#[cfg(test)]
mod tests {
    use ikq_simd::{IsaOp, available, run};

    use super::*;

    struct Scale<'a>(&'a [f32], &'a [f32]);

    impl IsaOp for Scale<'_> {
        type Output = f32;

        #[inline(always)]
        fn run<I: Isa>(self, isa: I) -> f32 {
            let (d, _, up) = scale(isa, self.0, self.1);
            d * up
        }
    }

    fn noise(seed: u32, n: usize) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / 8_388_608.0 - 1.0
        };
        (0..n).map(|_| next() + next() + next()).collect()
    }

    fn error(x: &[f32], w: &[f32], d: f32) -> f64 {
        let terms = x.iter().zip(w.iter().cycle());
        terms.map(|(x, w)| f64::from(*w) * f64::from(x.abs().min((x.abs() - d).abs())).powi(2)).sum()
    }

    #[test]
    fn the_scale_is_nearly_the_best_of_all() {
        for seed in 0..50 {
            let x: Vec<f32> = noise(seed, 512).iter().map(|x| x.powi(1 + 2 * (seed as i32 % 3))).collect();
            let w: Vec<f32> = noise(seed + 99, 256).iter().map(|x| x.exp()).collect();
            let found = run(ikq_simd::best(), Scale(&x, &w));
            for kind in available() {
                assert_eq!(run(kind, Scale(&x, &w)), found);
            }
            let least = (1..4000).map(|k| error(&x, &w, k as f32 / 200.0)).fold(f64::INFINITY, f64::min);
            let found = error(&x, &w, found);
            assert!(found <= 1.005 * least, "seed {seed}: {found} for {least}");
        }
    }

    #[test]
    fn ternary_values_keep_their_magnitude() {
        for n in [64, 130, 100_000] {
            let x: Vec<f32> = (0..n).map(|i| [0.0, 0.037, -0.037][i * i % 7 % 3]).collect();
            let w: Vec<f32> = (0..n).map(|i| 0.1 + (i % 13) as f32).collect();
            assert_eq!(run(ikq_simd::best(), Scale(&x, &w)), 0.037);
        }
        assert_eq!(run(ikq_simd::best(), Scale(&[0.0; 64], &[1.0; 64])), 0.0);
    }
}
