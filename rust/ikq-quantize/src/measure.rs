//! What encoding costs: the error of a result against its source.

use ikq_decode::{dequantize, dequantize_i2_s};
use ikq_formats::QuantType;
use ikq_formats::row::I2_S_TRAILER_BYTES;
use ikq_simd::IsaKind;

/// Sums over elements x that became y, with the column's importance w (1 where there is none).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Errors {
    /// `sum (x - y)^2`
    pub square: f64,
    /// `sum x^2`
    pub norm: f64,
    /// `sum w (x - y)^2`
    pub weighted: f64,
    /// `sum w x^2`
    pub weighted_norm: f64,
}

impl Errors {
    pub(crate) fn to_array(self) -> [f64; 4] {
        [self.square, self.norm, self.weighted, self.weighted_norm]
    }

    pub(crate) fn from_array([square, norm, weighted, weighted_norm]: [f64; 4]) -> Errors {
        Errors { square, norm, weighted, weighted_norm }
    }

    /// Adds the sums of other elements.
    pub fn add(&mut self, other: &Errors) {
        self.square += other.square;
        self.norm += other.norm;
        self.weighted += other.weighted;
        self.weighted_norm += other.weighted_norm;
    }

    /// Relative root mean square error; 0 where everything is 0.
    pub fn relative(&self) -> f64 {
        ratio(self.square, self.norm)
    }

    /// The same with the columns' importance as weights.
    pub fn relative_weighted(&self) -> f64 {
        ratio(self.weighted, self.weighted_norm)
    }
}

fn ratio(square: f64, norm: f64) -> f64 {
    match norm > 0.0 {
        true => (square / norm).sqrt(),
        // zeros that did not stay zeros are infinitely wrong
        false if square > 0.0 => f64::INFINITY,
        false => 0.0,
    }
}

/// Measures rows `x` of `n_per_row` floats against their encoded form; `y` is room for as many floats.
///
/// # Errors
/// What keeps `encoded` from being rows of `ty`.
pub(crate) fn measure(
    isa: IsaKind,
    ty: QuantType,
    (x, encoded): (&[f32], &[u8]),
    n_per_row: usize,
    importance: Option<&[f32]>,
    y: &mut Vec<f32>,
) -> Result<Errors, ikq_formats::Error> {
    y.clear();
    y.resize(x.len(), 0.0);
    match ty {
        QuantType::I2_S => {
            let (codes, trailer) = encoded.split_at(encoded.len() - I2_S_TRAILER_BYTES);
            let scale = trailer.first_chunk().map_or(0.0, |b| f32::from_le_bytes(*b));
            dequantize_i2_s(isa, codes, scale, y);
        }
        _ => dequantize(isa, ty, encoded, x.len() / n_per_row.max(1), n_per_row, y)?,
    }
    let mut sums = Errors::default();
    for (x, y) in x.chunks_exact(n_per_row).zip(y.chunks_exact(n_per_row)) {
        sums.add(&match importance {
            None => row(x, y),
            Some(w) => weighted_row(x, y, w),
        });
    }
    Ok(sums)
}

/// Elements that are summed in single precision before the sum goes on in double precision: 16 sums in a row of lanes
/// lose less than 1e-6 of it.
const RUN: usize = 256;

fn row(x: &[f32], y: &[f32]) -> Errors {
    let mut sums = Errors::default();
    for (x, y) in x.chunks(RUN).zip(y.chunks(RUN)) {
        let (mut square, mut norm) = ([0.0f32; 16], [0.0f32; 16]);
        for (x, y) in x.chunks(16).zip(y.chunks(16)) {
            for (((x, y), square), norm) in x.iter().zip(y).zip(&mut square).zip(&mut norm) {
                *square += (x - y) * (x - y);
                *norm += x * x;
            }
        }
        let [square, norm] = [square, norm].map(total);
        sums.add(&Errors { square, norm, weighted: square, weighted_norm: norm });
    }
    sums
}

fn weighted_row(x: &[f32], y: &[f32], w: &[f32]) -> Errors {
    let mut sums = row(x, y);
    (sums.weighted, sums.weighted_norm) = (0.0, 0.0);
    for ((x, y), w) in x.chunks(RUN).zip(y.chunks(RUN)).zip(w.chunks(RUN)) {
        let (mut square, mut norm) = ([0.0f32; 16], [0.0f32; 16]);
        for ((x, y), w) in x.chunks(16).zip(y.chunks(16)).zip(w.chunks(16)) {
            for ((((x, y), w), square), norm) in x.iter().zip(y).zip(w).zip(&mut square).zip(&mut norm) {
                *square += w * (x - y) * (x - y);
                *norm += w * x * x;
            }
        }
        sums.weighted += total(square);
        sums.weighted_norm += total(norm);
    }
    sums
}

fn total(lanes: [f32; 16]) -> f64 {
    lanes.iter().map(|v| f64::from(*v)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_those_of_double_precision() {
        let n = 2 * RUN + 40;
        let values = |seed: u32| -> Vec<f32> {
            (0..3 * n as u32).map(|i| ((i * 747 + seed) % 1000) as f32 / 500.0 - 1.0).collect()
        };
        let (x, w) = (values(1), values(2)[..n].iter().map(|v| v.abs()).collect::<Vec<_>>());
        let bytes: Vec<u8> = values(3).iter().flat_map(|v| v.to_le_bytes()).collect();
        let mut y = Vec::new();
        let mut of = |w: Option<&[f32]>| {
            measure(ikq_simd::best(), QuantType::F32, (&x, &bytes), n, w, &mut y).expect("three rows")
        };
        let (plain, weighted) = (of(None), of(Some(&w)));
        let y = values(3);
        let mut exact = Errors::default();
        for (i, (x, y)) in x.iter().zip(&y).enumerate() {
            let (x, y, w) = (f64::from(*x), f64::from(*y), f64::from(w[i % n]));
            let square = (x - y) * (x - y);
            exact.add(&Errors { square, norm: x * x, weighted: w * square, weighted_norm: w * x * x });
        }
        let near = |a: f64, b: f64| (a / b - 1.0).abs() < 1e-5;
        assert!(near(plain.square, exact.square) && near(plain.norm, exact.norm));
        assert_eq!((plain.weighted, plain.weighted_norm), (plain.square, plain.norm));
        assert!(near(weighted.weighted, exact.weighted) && near(weighted.weighted_norm, exact.weighted_norm));
        assert_eq!(weighted.square, plain.square);
        assert!(near(weighted.relative_weighted(), (exact.weighted / exact.weighted_norm).sqrt()));
        assert_eq!(Errors::default().relative(), 0.0);
        assert_eq!(Errors { square: 1.0, ..Errors::default() }.relative(), f64::INFINITY);
    }
}
