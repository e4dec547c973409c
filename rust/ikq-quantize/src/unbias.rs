//! Unbiased scales: what a least-squares fit takes from the size of a row is given back by encoding a larger row.
//!
//! With x a row, y what its encoding decodes to and w the columns' importance (1 without), the gain of the row is
//! `g = sum w x y / sum w x^2`, and a fit has a g below 1. The encoding of `x / g` has a gain of about 1, at an error that
//! is larger by about 1 / sqrt(g). What it is for: where matrices of few bits and of many are added, as experts and
//! attention are in a mix, those of few bits no longer are the smaller ones (`benches/results/scale_factor.md`).

use ikq_formats::{Family, QuantType};

/// The largest factor is the inverse of this: of a row with less, nothing is left that could be made larger.
const LOWEST_GAIN: f64 = 0.5;

/// Rows with larger floats stay as they are: times the largest factor they might not decode to numbers.
const LARGEST: f32 = f32::MAX / 4.0;

/// Whether rows of a type are encoded twice. Not where there is nothing to undo or it cannot be undone:
///
/// | types | why not |
/// |---|---|
/// | floats, and integers of 8 bits | g is 1 |
/// | ternary and BitNet | what they are for has no error |
/// | MXFP4, NVFP4 | their scales are powers of two, or floats of 8 bits |
/// | IQ2_KT, IQ3_KT | products multiply them by 1.05 and 1.01, which undoes much of it (and see `scale_factor.md`) |
///
/// The codebook types of one and two bits, whose stored scales are larger than the fit already, are not harmed by a
/// second encoding: their g is below 1 all the same, and the divergence of IQ1_S and IQ2_XXS stays or becomes smaller.
pub(crate) fn applies(ty: QuantType) -> bool {
    use QuantType::*;
    let plain = ty.info().base.unwrap_or(ty);
    let has_eight_bits = matches!(plain, Q8_0 | Q8_KV | Q8_KV_R8 | Q8_K_R8 | Q8_K_R16);
    match plain.info().family {
        Family::Float | Family::Integer | Family::Activation | Family::Ternary | Family::Fp4 => false,
        _ => !has_eight_bits && !matches!(plain, IQ2_KT | IQ3_KT),
    }
}

/// Turns every row of `y`, the decoded encoding of `x`, into the row of `x` divided by its gain; false if all stay as
/// they are. A row stays where its gain is no number between 0 and 1 (a row of zeros), or a float is above [`LARGEST`].
pub(crate) fn divide_by_gains(
    x: &[f32],
    y: &mut [f32],
    n_per_row: usize,
    importance: Option<&[f32]>,
) -> bool {
    let mut changed = false;
    for (x, y) in x.chunks_exact(n_per_row).zip(y.chunks_exact_mut(n_per_row)) {
        let g = gain(x, y, importance);
        if g > 0.0 && g < 1.0 && x.iter().all(|v| v.abs() <= LARGEST) {
            let factor = (1.0 / g.max(LOWEST_GAIN)) as f32;
            y.iter_mut().zip(x).for_each(|(y, x)| *y = x * factor);
            changed = true;
        } else {
            y.copy_from_slice(x);
        }
    }
    changed
}

/// Sums are in double precision, element i in lane i mod [`LANES`] and the lanes in order at the end: the same numbers
/// on every machine.
const LANES: usize = 8;

fn gain(x: &[f32], y: &[f32], importance: Option<&[f32]>) -> f64 {
    let (mut product, mut norm) = ([0.0f64; LANES], [0.0f64; LANES]);
    let mut add = |lane: usize, wx: f64, x: f32, y: f32| {
        product[lane] += wx * f64::from(y);
        norm[lane] += wx * f64::from(x);
    };
    match importance {
        None => {
            for (x, y) in x.chunks(LANES).zip(y.chunks(LANES)) {
                for (lane, (x, y)) in x.iter().zip(y).enumerate() {
                    add(lane, f64::from(*x), *x, *y);
                }
            }
        }
        Some(w) => {
            for ((x, y), w) in x.chunks(LANES).zip(y.chunks(LANES)).zip(w.chunks(LANES)) {
                for (lane, ((x, y), w)) in x.iter().zip(y).zip(w).enumerate() {
                    add(lane, f64::from(*w) * f64::from(*x), *x, *y);
                }
            }
        }
    }
    product.iter().sum::<f64>() / norm.iter().sum::<f64>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_divided_by_what_they_lost() {
        let x = [1.0f32, -2.0, 4.0, 0.5, 0.0, 0.0, 1.0, 1.0, 3e38, 1.0, 2.0, 2.0];
        // shrunk, nothing, grown, too large to divide, shrunk below the lowest gain, decoded to nothing
        let mut y = [0.8f32, -1.6, 0.1, 0.1, 0.0, 0.0, 1.5, 1.5, 2e38, 0.5, 0.4, 0.4];
        assert!(divide_by_gains(&x, &mut y, 2, None));
        let expected = [1.25f32, -2.5];
        assert!(y[..2].iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6), "{y:?}");
        assert_eq!(y[2..4], [8.0, 1.0], "a gain of 0.03 counts as 0.5");
        assert_eq!(y[4..10], [0.0, 0.0, 1.0, 1.0, 3e38, 1.0]);
        assert_eq!(y[10..], [4.0, 4.0]);
        let mut nothing = [0.0f32; 2];
        assert!(!divide_by_gains(&x[..2], &mut nothing, 2, None));
        assert_eq!(nothing, x[..2]);
    }

    #[test]
    fn importance_weighs_columns() {
        let x: Vec<f32> = (0..20).map(|i| (i as f32 * 1.7).sin()).collect();
        let y: Vec<f32> = (0..20).map(|i| (i as f32 * 1.7).sin() * if i < 11 { 0.5 } else { 1.0 }).collect();
        let half: Vec<f32> = (0..20).map(|i| f32::from(u8::from(i < 11))).collect();
        assert_eq!(gain(&x, &y, Some(&half)), 0.5);
        let g = gain(&x, &y, None);
        assert!(g > 0.5 && g < 1.0);
        assert_eq!(gain(&x, &y, Some(&[4.0; 20])), g);
        assert!(gain(&x, &y, Some(&[0.0; 20])).is_nan());
    }

    #[test]
    fn interleaved_types_follow_their_plain_ones() {
        use QuantType::*;
        for ty in
            [Q2_K, Q2_K_R4, IQ2_KL, Q4_0, Q4_0_8_8, Q6_K, IQ4_KS_R4, IQ1_S, IQ1_S_R4, IQ2_XXS, IQ4_KT, Q6_0]
        {
            assert!(applies(ty), "{ty}");
        }
        for ty in
            [F16, BF16_R16, Q8_0, Q8_0_R8, Q8_KV, Q8_K_R16, I2_S, IQ2_BN_R4, TQ1_0, MXFP4_R8, NVFP4, IQ2_KT]
        {
            assert!(!applies(ty), "{ty}");
        }
        for ty in QuantType::ALL.iter().filter(|t| t.is_interleaved()) {
            assert!(ty.info().base.is_none_or(|base| applies(base) == applies(*ty)), "{ty}");
        }
    }
}
