//! Weights of elements in the error that encoders minimise, from an imatrix or without one.

use ikq_simd::Isa;

/// Added to every weight, as a share of the row's mean weight. It is small enough not to change results
/// noticeably, and large enough that columns that calibration never activated are still encoded sensibly.
pub const FLOOR: f32 = 1e-4;

/// Writes the weights of a matrix's columns: the importance normalised to a mean of 1, plus
/// [`FLOOR`]; all 1 where there is no importance, or none that is positive.
///
/// `importance` must be finite and not negative, one value per column.
pub fn column_weights(importance: Option<&[f32]>, out: &mut [f32]) {
    let mean = importance.map_or(0.0, mean);
    match importance {
        Some(v) if mean > 0.0 => {
            let per_mean = 1.0 / mean;
            for (w, x) in out.iter_mut().zip(v) {
                *w = (f64::from(*x) * per_mean) as f32 + FLOOR;
            }
        }
        _ => out.fill(1.0),
    }
}

/// The weights of one row's elements: those of the columns times `sqrt(1 + x^2 / mean x^2)`.
///
/// The reference has these weights. On the small trained model of `docs/quality.md` they lower the divergence of
/// IQ2_XS by 3 %, but raise that of IQ1_S, IQ3_XXS, IQ2_K and Q3_K by up to 4 %.
#[inline(always)]
pub fn by_size<'a, I: Isa>(isa: I, x: &[f32], w: &[f32], out: &'a mut Vec<f32>) -> &'a [f32] {
    let (down, _) = normalizer(x);
    let mut sums = isa.splat_f(0.0);
    let (sixteens, rest) = x.as_chunks::<16>();
    let down_all = isa.splat_f(down);
    for x in sixteens {
        let x = isa.mul_f(isa.load_f(x), down_all);
        sums = isa.mul_add_f(x, x, sums);
    }
    let mean = (isa.sum(sums) + rest.iter().map(|x| x * down * (x * down)).sum::<f32>()) / x.len() as f32;
    // for a row of zeros any weights will do
    let per_mean = if mean > 0.0 { 1.0 / mean } else { 0.0 };
    out.clear();
    out.extend(x.iter().zip(w).map(|(x, w)| {
        let x = x * down;
        w * (1.0 + x * x * per_mean).sqrt()
    }));
    out
}

/// Whether the weights are those without importance: all of them 1.
#[inline(always)]
pub fn are_ones(w: &[f32]) -> bool {
    // does not end early, so that the compiler can vectorize the loop
    w.iter().fold(0, |differ, w| differ | (w.to_bits() ^ 1.0f32.to_bits())) == 0
}

fn mean(v: &[f32]) -> f64 {
    // f64, because importances span many decades and rows have many thousand columns; eight sums, to be vectorized
    let mut sums = [0.0; 8];
    let (eights, rest) = v.as_chunks::<8>();
    for eight in eights {
        for (sum, x) in sums.iter_mut().zip(eight) {
            *sum += f64::from(*x);
        }
    }
    let sum = sums.iter().sum::<f64>() + rest.iter().map(|x| f64::from(*x)).sum::<f64>();
    sum / v.len() as f64
}

/// The power of two that brings the largest |x| of a row into [1, 2), and its inverse; both 1 for a
/// row of zeros. Multiplying by either is exact (but for subnormal results). At the ends of
/// f32's range (below 2^-126, from 2^127) the result is outside [1, 2) but never 0 or infinite.
pub fn normalizer(x: &[f32]) -> (f32, f32) {
    // magnitudes compare like their bits, and the compiler vectorizes a loop over integers
    let amax = x.iter().fold(0, |m, v| (v.to_bits() & 0x7fff_ffff).max(m));
    if amax == 0 {
        return (1.0, 1.0);
    }
    // exponents limited so that both factors are normal numbers
    let exponent = ((amax >> 23) as i32 - 127).clamp(-126, 126);
    let power = |e: i32| f32::from_bits(((e + 127) as u32) << 23);
    (power(-exponent), power(exponent))
}

#[cfg(test)]
mod tests {
    use ikq_simd::Scalar;

    use super::*;

    #[test]
    fn weights_have_mean_one_and_no_zeros() {
        let mut w = [0.0; 4];
        column_weights(Some(&[0.0, 1.0, 0.0, 3.0]), &mut w);
        assert_eq!(w, [FLOOR, 1.0 + FLOOR, FLOOR, 3.0 + FLOOR]);
        column_weights(Some(&[0.0; 4]), &mut w);
        assert_eq!(w, [1.0; 4]);
        column_weights(None, &mut w);
        assert_eq!(w, [1.0; 4]);
        assert!(are_ones(&w) && are_ones(&[1.0; 33]));
        assert!(!are_ones(&[1.0 + FLOOR; 4]) && !are_ones(&[1.0, 1.0, 1.0, 0.5]));
    }

    #[test]
    fn large_elements_weigh_more() {
        let x = [1e-30f32, -1e30, 2e30, 0.0, 2e30];
        let w = [1.0, 1.0, 0.5, 3.0, 1.0];
        let mut row = Vec::new();
        // mean square 9 / 5
        let expected = [
            1.0,
            (1.0f32 + 5.0 / 9.0).sqrt(),
            0.5 * (1.0f32 + 20.0 / 9.0).sqrt(),
            3.0,
            (1.0f32 + 20.0 / 9.0).sqrt(),
        ];
        for (found, expected) in by_size(Scalar, &x, &w, &mut row).iter().zip(expected) {
            assert!((found - expected).abs() < 1e-6, "{found}, not {expected}");
        }
        assert_eq!(by_size(Scalar, &[0.0; 5], &w, &mut row), w);
        // a whole vector and a part of one; powers of two change nothing
        let x: Vec<f32> = (0..21).map(|i| (i as f32 * 1.7).sin()).collect();
        let w = [1.0; 21];
        let first = by_size(Scalar, &x, &w, &mut row).to_vec();
        let mean = x.iter().map(|x| x * x).sum::<f32>() / 21.0;
        assert!(first.iter().zip(&x).all(|(w, x)| (w - (1.0 + x * x / mean).sqrt()).abs() < 1e-5));
        let eighths: Vec<f32> = x.iter().map(|x| x / 8.0).collect();
        assert_eq!(by_size(Scalar, &eighths, &w, &mut row), first);
    }

    #[test]
    fn a_row_is_normalised_exactly() {
        for x in [2e-38f32, 1e-12, 0.3, 1.0, 65504.0, 1e38] {
            let (down, up) = normalizer(&[0.0, -x, x / 2.0]);
            assert!((1.0..2.0).contains(&(x * down)), "{x}");
            assert_eq!(x * down * up, x);
        }
        assert_eq!(normalizer(&[0.0; 3]), (1.0, 1.0));
    }
}
