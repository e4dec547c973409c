//! Rules that some kinds of types keep besides those of all encoders: interleaved forms have the codes of
//! their plain type, ternary data comes back unchanged, symmetric Q4_0 does not use level -8.

use ikq_encode::{EncodeOptions, encodable, encode_rows, is_ternary};
use ikq_formats::{QuantType, RowForm, matrix_bytes, repack, row_form};
use ikq_simd::best;

fn noise(seed: u32, n: usize) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / 8_388_608.0 - 1.0
    };
    (0..n).map(|_| next() + next() + next()).collect()
}

fn encode(ty: QuantType, x: &[f32], n: usize, w: Option<&[f32]>, options: EncodeOptions) -> Vec<u8> {
    let mut out = vec![0; matrix_bytes(ty, x.len() / n, n).unwrap()];
    encode_rows(best(), ty, x, n, w, options, &mut out).unwrap();
    out
}

fn decode(ty: QuantType, bytes: &[u8], n_rows: usize, n: usize) -> Vec<f32> {
    let mut y = vec![0.0; n_rows * n];
    ikq_decode::dequantize(best(), ty, bytes, n_rows, n, &mut y).unwrap();
    y
}

#[test]
fn an_interleaved_type_has_the_codes_of_its_plain_type() {
    for ty in encodable().iter().copied() {
        let Some(RowForm::Plain(base)) = row_form(ty) else { continue };
        let (n, n_rows) = (512, 2 * ty.info().rows);
        let x = noise(1, n_rows * n);
        let w: Vec<f32> = noise(2, n).iter().map(|x| x.exp()).collect();
        for symmetric_q40 in [false, true] {
            let options = EncodeOptions { symmetric_q40, ..EncodeOptions::default() };
            let plain = encode(base, &x, n, Some(&w), options);
            let expected = repack(&plain, base, ty, n_rows, n).unwrap();
            assert_eq!(encode(ty, &x, n, Some(&w), options), expected, "{ty}");
        }
    }
}

#[test]
fn an_interleaved_type_can_be_written_where_its_plain_type_can() {
    for ty in QuantType::ALL.iter().filter(|ty| ty.is_interleaved()) {
        if let Some(base) = ty.info().base {
            assert_eq!(encodable().contains(ty), encodable().contains(&base), "{ty}");
        }
    }
}

#[test]
fn ternary_data_comes_back_as_it_was() {
    use QuantType::*;
    let n = 512;
    // 0.037 is not an f16 number
    for (types, d) in
        [(&[TQ1_0, TQ2_0, IQ1_BN, IQ2_BN, IQ2_BN_R4, I2_S, Q2_0][..], 0.0625), (&[IQ2_BN, I2_S], 0.037)]
    {
        let x: Vec<f32> = noise(3, 8 * n).iter().map(|x| d * x.clamp(-1.0, 1.0).round()).collect();
        let w: Vec<f32> = noise(4, n).iter().map(|x| x.exp()).collect();
        assert!(is_ternary(&x));
        for ty in types {
            for w in [None, Some(&w[..])] {
                let bytes = encode(*ty, &x, n, w, EncodeOptions::default());
                assert_eq!(decode(*ty, &bytes, 8, n), x, "{ty}, importance {}", w.is_some());
            }
        }
    }
    assert!(!is_ternary(&noise(3, n)));
}

#[test]
fn an_i2_s_matrix_has_one_scale() {
    let x = noise(5, 4 * 256);
    let bytes = encode(QuantType::I2_S, &x, 256, None, EncodeOptions::default());
    let y = decode(QuantType::I2_S, &bytes, 4, 256);
    let d = f32::from_le_bytes(bytes[256..260].try_into().unwrap());
    assert!(d > 0.0 && bytes[260..].iter().all(|b| *b == 0));
    assert!(y.iter().all(|y| [0.0, d, -d].contains(y)));
}

#[test]
fn symmetric_q4_0_has_no_eighth_level() {
    let (n, x) = (512, noise(6, 64 * 512));
    let w: Vec<f32> = noise(7, n).iter().map(|x| (2.0 * x).exp()).collect();
    let error = |y: &[f32], w: Option<&[f32]>| -> f64 {
        let terms = x.iter().zip(y).enumerate();
        terms.map(|(i, (x, y))| w.map_or(1.0, |w| f64::from(w[i % n])) * f64::from(x - y).powi(2)).sum()
    };
    // the largest magnitude on level 7, codes rounded, no importance
    let mut plain = Vec::new();
    for block in x.chunks(32) {
        let d = block.iter().fold(0.0f32, |m, x| m.max(x.abs())) / 7.0;
        plain.extend(block.iter().map(|x| d * (x / d).round()));
    }
    for w in [None, Some(&w[..])] {
        let bytes = encode(
            QuantType::Q4_0,
            &x,
            n,
            w,
            EncodeOptions { symmetric_q40: true, ..EncodeOptions::default() },
        );
        for block in bytes.chunks(18) {
            assert!(block[2..].iter().all(|q| q & 15 != 0 && q >> 4 != 0));
        }
        let y = decode(QuantType::Q4_0, &bytes, 64, n);
        let bound = if w.is_some() { 0.8 } else { 0.95 };
        assert!(error(&y, w) < bound * error(&plain, w), "importance {}", w.is_some());
    }
}
