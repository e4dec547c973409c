//! Column weights of the fit, from an imatrix or without one.

/// Added to every weight, as a share of the row's mean weight. Small enough not to move any figure
/// (1e-4 of the mean), large enough that columns the calibration never saw keep a meaning.
pub const FLOOR: f32 = 1e-4;

/// Writes the weights of one matrix's columns: the importance normalised to a mean of 1 plus
/// [`FLOOR`]; ones where there is no importance, or none that is positive.
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

/// Whether the weights are those without importance: all of them 1.
#[inline(always)]
pub fn are_ones(w: &[f32]) -> bool {
    // no early end: a loop that ends early is no vector loop
    w.iter().fold(0, |differ, w| differ | (w.to_bits() ^ 1.0f32.to_bits())) == 0
}

fn mean(v: &[f32]) -> f64 {
    // f64: importances span many decades and rows many thousand columns; eight sums, for a vector loop
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
    // magnitudes compare like their bits, and integers make a vector loop
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
    fn a_row_is_normalised_exactly() {
        for x in [2e-38f32, 1e-12, 0.3, 1.0, 65504.0, 1e38] {
            let (down, up) = normalizer(&[0.0, -x, x / 2.0]);
            assert!((1.0..2.0).contains(&(x * down)), "{x}");
            assert_eq!(x * down * up, x);
        }
        assert_eq!(normalizer(&[0.0; 3]), (1.0, 1.0));
    }
}
