//! Blocks of small numbers. Where the ideal super-scale is too small for half precision, encoders use a larger one
//! with smaller integer scales, so that blocks are encoded well down to the smallest that the format can hold.
//!
//! The least scale of a sub-block is `unit`, the smallest f16 number (2^-24) times the least integer scale. A block
//! whose largest magnitude is `unit` times the highest level is the smallest that still uses all levels: the
//! *limit* of the type. Above it, some multiple of `unit` is less than one `unit` larger than the scale `s` that
//! suits the block best. With it, steps are up to `1 + unit / s` times as wide as they should be, and so is the
//! error. Where the nearest multiple is below `s`, the largest values are clipped by at most `unit / 2s` of
//! themselves.

use ikq_encode::{EncodeOptions, encodable, encode_rows};
use ikq_formats::{Family, QuantType, matrix_bytes};
use ikq_simd::best;

/// The smallest positive f16 number.
const HALF: f32 = 1.0 / 16_777_216.0;

/// The least scale of a sub-block and the highest level; `None` where scales are f32 or powers of two, or the type has none.
fn unit_and_top(ty: QuantType) -> Option<(f32, f32)> {
    use QuantType::*;
    let halves = |least: f32, top: f32| Some((least * HALF, top));
    match ty.info().base.unwrap_or(ty) {
        Q8_0 | Q8_K_R8 | Q8_K_R16 => halves(1.0, 127.0),
        Q4_0 => halves(1.0, 8.0),
        Q5_0 => halves(1.0, 16.0),
        Q6_0 | Q6_K => halves(1.0, 32.0),
        Q3_K => halves(1.0, 4.0),
        // half of the codes are on either side of zero
        Q2_K => halves(1.0, 1.5),
        Q4_1 | Q4_K => halves(1.0, 7.5),
        Q5_1 | Q5_K => halves(1.0, 15.5),
        IQ4_NL | IQ4_XS | IQ4_K | IQ5_K | IQ6_K => halves(1.0, 127.0),
        IQ2_K | IQ2_KS => halves(1.0, 31.0),
        IQ3_K | IQ3_KS | IQ2_KL => halves(1.0, 63.0),
        IQ2_XXS | IQ2_XS | IQ2_S => halves(0.125, 43.0),
        IQ3_XXS => halves(0.25, 62.0),
        IQ3_S => halves(1.0, 15.0),
        // bell-shaped data fits ternary levels best where its largest elements are three times as far out
        IQ1_S | IQ1_M | IQ1_S_R4 | IQ1_M_R4 => halves(1.0, 3.0),
        Q2_0 => halves(1.0, 2.0),
        TQ1_0 | TQ2_0 | IQ1_BN | Q1_0_G128 => halves(1.0, 3.0),
        // scales are floats of eight bits, of which the least is 2^-9; values of codes are multiples of 0.5 up to 6
        NVFP4 => Some((1.0 / 512.0, 6.0)),
        _ => None,
    }
}

/// Nearly normal rows of 512, each block's largest magnitude exactly 1.
fn rows(ty: QuantType) -> Vec<f32> {
    let mut state = 7u64;
    let mut uniform = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    let mut x: Vec<f32> = (0..ty.info().rows.max(4) * 512).map(|_| (0..6).map(|_| uniform()).sum()).collect();
    for sub_block in x.chunks_mut(16) {
        let most = sub_block.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        sub_block.iter_mut().for_each(|v| *v /= most);
    }
    x
}

/// The relative error (not squared) of the rows times `size`.
fn error(ty: QuantType, x: &[f32], size: f32) -> f64 {
    let n_rows = x.len() / 512;
    let mut out = vec![0; matrix_bytes(ty, n_rows, 512).expect("512 fits every type")];
    let small: Vec<f32> = x.iter().map(|v| v * size).collect();
    encode_rows(best(), ty, &small, 512, None, EncodeOptions::default(), &mut out).expect("finite rows");
    let mut y = vec![0.0; x.len()];
    ikq_decode::dequantize(best(), ty, &out, n_rows, 512, &mut y).expect("what was encoded");
    let sum = |f: &dyn Fn(f64, f64) -> f64| -> f64 {
        small.iter().zip(&y).map(|(x, y)| f(f64::from(*x), f64::from(*y))).sum()
    };
    (sum(&|x, y| (x - y) * (x - y)) / sum(&|x, _| x * x)).sqrt()
}

#[test]
fn small_blocks_keep_their_shape_down_to_the_limit() {
    let mut wrong = Vec::new();
    for ty in encodable().iter().copied().filter(|ty| ty.info().family != Family::Float) {
        let x = rows(ty);
        let ordinary = error(ty, &x, 1.0);
        let (unit, top) = unit_and_top(ty).unwrap_or((0.0, 1.0));
        let base = ty.info().base.unwrap_or(ty);
        let limit = unit * top;
        let sizes = [1e-3, 1e-4, 1e-5, 1e-6].into_iter().filter(|size| *size >= limit);
        for size in sizes.chain([1.0, 1.4, 2.0, 3.0, 4.0, 8.0, 16.0, 64.0].map(|n| n * limit)) {
            if size == 0.0 {
                continue;
            }
            let found = error(ty, &x, size);
            let coarse = f64::from(unit / (size / top));
            let bound = match base {
                QuantType::Q4_K | QuantType::Q5_K => SCALE_AND_MIN,
                // where scales are powers of two, the error depends on where between two of them the best scale
                // lies
                _ if unit == 0.0 => 2.0 * ordinary,
                _ => (ordinary * (1.0 + coarse)).hypot(coarse / 2.0) * SLACK,
            };
            if found > bound {
                wrong.push(format!(
                    "{ty} at {size:.2e}, {:.2} limits: {found:.4} for {ordinary:.4}, more than {bound:.4}",
                    size / limit
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Factor on the bound: searches for small halves are shorter, and a wider step does not fit all levels alike.
const SLACK: f64 = 1.15;

/// Bound on the relative error of types whose scales and mins have a half each. These are not searched together, so
/// that at magnitudes of 5e-6 to 1e-5 up to 0.45 of the values is lost; without trying larger halves all of it
/// would be.
const SCALE_AND_MIN: f64 = 0.5;
