//! What encoding costs: the error of a result against its source.

use ikq_decode::{dequantize, dequantize_i2_s};
use ikq_formats::QuantType;
use ikq_formats::row::I2_S_TRAILER_BYTES;
use ikq_simd::IsaKind;

/// Sums over elements x that became y, with the column's importance w (1 where there is none).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Errors {
    pub plain: Sums,
    pub weighted: Sums,
}

/// Sums of one weighing, w being 1 or the importance.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sums {
    /// `sum w (x - y)^2`
    pub square: f64,
    /// `sum w x^2`
    pub norm: f64,
    /// `sum w x (x - y)`: what y is short of x, along x
    pub lost: f64,
}

impl Errors {
    pub(crate) fn to_array(self) -> [f64; 6] {
        let [a, b] = [self.plain, self.weighted].map(|s| [s.square, s.norm, s.lost]);
        [a[0], a[1], a[2], b[0], b[1], b[2]]
    }

    pub(crate) fn from_array(
        [square, norm, lost, weighted, weighted_norm, weighted_lost]: [f64; 6],
    ) -> Errors {
        Errors {
            plain: Sums { square, norm, lost },
            weighted: Sums { square: weighted, norm: weighted_norm, lost: weighted_lost },
        }
    }

    /// Adds the sums of other elements.
    pub fn add(&mut self, other: &Errors) {
        self.plain.add(&other.plain);
        self.weighted.add(&other.weighted);
    }
}

impl Sums {
    fn add(&mut self, other: &Sums) {
        self.square += other.square;
        self.norm += other.norm;
        self.lost += other.lost;
    }

    /// Relative root mean square error; 0 where everything is 0.
    pub fn relative(&self) -> f64 {
        ratio(self.square, self.norm)
    }

    /// The same without the gain: of the multiple of y that is nearest to x. What is left is the error of the codes, whatever
    /// was stored as their scale.
    pub fn without_gain(&self) -> f64 {
        if self.norm <= 0.0 {
            return self.relative();
        }
        // with g the gain: |x - c y|^2 is least at c = g |x|^2 / |y|^2
        let y = self.norm - 2.0 * self.lost + self.square;
        let across = (self.square - self.lost * self.lost / self.norm).max(0.0);
        if y > 0.0 { (across / y).sqrt() } else { 1.0 }
    }

    /// `sum w x y / sum w x^2`; 1 where everything is 0.
    pub fn gain(&self) -> f64 {
        if self.norm > 0.0 { 1.0 - self.lost / self.norm } else { 1.0 }
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
    let mut sums = Sums::default();
    for (x, y) in x.chunks(RUN).zip(y.chunks(RUN)) {
        let mut lanes = [[0.0f32; 16]; 3];
        for (x, y) in x.chunks(16).zip(y.chunks(16)) {
            let [square, norm, lost] = &mut lanes;
            for ((((x, y), square), norm), lost) in x.iter().zip(y).zip(square).zip(norm).zip(lost) {
                let e = x - y;
                *square += e * e;
                *norm += x * x;
                *lost += x * e;
            }
        }
        sums.add(&total(lanes));
    }
    Errors { plain: sums, weighted: sums }
}

fn weighted_row(x: &[f32], y: &[f32], w: &[f32]) -> Errors {
    let mut sums = Sums::default();
    for ((x, y), w) in x.chunks(RUN).zip(y.chunks(RUN)).zip(w.chunks(RUN)) {
        let mut lanes = [[0.0f32; 16]; 3];
        for ((x, y), w) in x.chunks(16).zip(y.chunks(16)).zip(w.chunks(16)) {
            let [square, norm, lost] = &mut lanes;
            let sums = square.iter_mut().zip(norm).zip(lost);
            for (((x, y), w), ((square, norm), lost)) in x.iter().zip(y).zip(w).zip(sums) {
                let e = x - y;
                *square += w * e * e;
                *norm += w * x * x;
                *lost += w * x * e;
            }
        }
        sums.add(&total(lanes));
    }
    Errors { plain: row(x, y).plain, weighted: sums }
}

fn total(lanes: [[f32; 16]; 3]) -> Sums {
    let [square, norm, lost] = lanes.map(|lanes| lanes.iter().map(|v| f64::from(*v)).sum());
    Sums { square, norm, lost }
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
            let plain = Sums { square: (x - y) * (x - y), norm: x * x, lost: x * (x - y) };
            let Sums { square, norm, lost } = plain;
            exact.add(&Errors {
                plain,
                weighted: Sums { square: w * square, norm: w * norm, lost: w * lost },
            });
        }
        let near = |a: f64, b: f64| (a / b - 1.0).abs() < 1e-5;
        let all_near =
            |a: Sums, b: Sums| near(a.square, b.square) && near(a.norm, b.norm) && near(a.lost, b.lost);
        assert!(all_near(plain.plain, exact.plain));
        assert_eq!(plain.weighted, plain.plain);
        assert!(all_near(weighted.weighted, exact.weighted));
        assert_eq!(weighted.plain, plain.plain);
        assert!(near(weighted.weighted.relative(), (exact.weighted.square / exact.weighted.norm).sqrt()));
        assert_eq!(Sums::default().relative(), 0.0);
        assert_eq!(Sums { square: 1.0, ..Sums::default() }.relative(), f64::INFINITY);
    }

    #[test]
    fn the_gain_is_told_from_the_rest() {
        // of x = (3, 4): a third of it and something across, which are all that y has
        let of = |y: [f64; 2]| {
            let x = [3.0, 4.0];
            let e = [x[0] - y[0], x[1] - y[1]];
            Sums { square: e[0] * e[0] + e[1] * e[1], norm: 25.0, lost: x[0] * e[0] + x[1] * e[1] }
        };
        let sums = of([1.0 - 0.4, 4.0 / 3.0 + 0.3]);
        assert!((sums.gain() - 1.0 / 3.0).abs() < 1e-12);
        // the sine of the angle between x and y
        let (along, across) = (5.0 / 3.0, 0.5);
        assert!((sums.without_gain() - across / f64::hypot(along, across)).abs() < 1e-12);
        let shrunk = of([0.6, 0.8]);
        assert!((shrunk.relative() - 0.8).abs() < 1e-12 && shrunk.without_gain() < 1e-7);
        assert_eq!((of([0.0; 2]).without_gain(), of([0.0; 2]).gain()), (1.0, 0.0));
        assert_eq!((Sums::default().without_gain(), Sums::default().gain()), (0.0, 1.0));
    }
}
