//! [`Rotation`]: heads turned by a Hadamard matrix, so that a few large elements do not spoil their blocks' scales.
//!
//! ```text
//! x' = H D x     H = Walsh-Hadamard / sqrt(n), D = fixed signs;  back: x = D H x'
//! ```
//! Scores do not change when queries and keys are turned alike, and the result of turned values is turned back. The
//! signs keep what models favour (a common offset of all elements, say) from ending up in one element.
//!
//! A head of 2^k times an odd number of elements is turned in runs of 2^k, each for itself. Quantized blocks have 32
//! elements, so a head that can be quantized has runs of at least one block.

use ikq_simd::{Isa, IsaKind, IsaOp, array, run};

/// Shortest run that is worth turning, and that fills the lanes.
const SHORTEST: usize = 16;

/// An orthogonal turn of heads of a given size.
#[derive(Clone, Debug, PartialEq)]
pub struct Rotation {
    /// Per element: its sign over the root of its run's length.
    factors: Vec<f32>,
    /// Lengths of the runs, powers of two.
    runs: Vec<usize>,
}

impl Rotation {
    /// The turn of heads of `d` elements; `None` where `d` is no multiple of 16.
    pub fn of(d: usize) -> Option<Rotation> {
        Rotation::of_parts(&[d])
    }

    /// The turn of rows that are several parts side by side, none mixed with another.
    pub fn of_parts(parts: &[usize]) -> Option<Rotation> {
        let mut rotation = Rotation { factors: Vec::new(), runs: Vec::new() };
        for &d in parts {
            let n = 1usize << d.trailing_zeros().min(usize::BITS - 1);
            if n < SHORTEST || d == 0 {
                return None;
            }
            rotation.runs.extend(std::iter::repeat_n(n, d / n));
            let size = (1.0 / (n as f64).sqrt()) as f32;
            let first = rotation.factors.len();
            rotation.factors.extend((first..first + d).map(|i| if is_negative(i) { -size } else { size }));
        }
        Some(rotation)
    }

    /// Elements of a row.
    pub fn d(&self) -> usize {
        self.factors.len()
    }

    /// Turns a row.
    ///
    /// # Panics
    /// When it is not as long as the rotation's rows.
    pub fn apply(&self, kind: IsaKind, row: &mut [f32]) {
        assert_eq!(row.len(), self.d(), "rows of {} elements", self.d());
        run(kind, Turn { rotation: self, row, back: false });
    }

    /// Turns a row back. It may be the first parts of a row.
    ///
    /// # Panics
    /// When it does not end where a run does.
    pub fn undo(&self, kind: IsaKind, row: &mut [f32]) {
        run(kind, Turn { rotation: self, row, back: true });
    }
}

/// The sign of element `i`: a bit of a fixed sequence without pattern.
fn is_negative(i: usize) -> bool {
    let x = (i as u32).wrapping_add(1).wrapping_mul(0x9e37_79b9);
    let x = (x ^ x >> 15).wrapping_mul(0x2c1b_3c6d);
    (x ^ x >> 12) & 1 == 1
}

struct Turn<'a> {
    rotation: &'a Rotation,
    row: &'a mut [f32],
    back: bool,
}

impl IsaOp for Turn<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Turn { rotation, row, back } = self;
        let (mut rest, mut factors) = (row, &rotation.factors[..]);
        for &n in &rotation.runs {
            if rest.is_empty() {
                return;
            }
            let (row, others) = rest.split_at_mut(n);
            let (f, other_factors) = factors.split_at(n);
            (rest, factors) = (others, other_factors);
            if !back {
                scale(isa, f, row);
            }
            walsh(isa, row);
            if back {
                scale(isa, f, row);
            }
        }
    }
}

#[inline(always)]
fn scale<I: Isa>(isa: I, factors: &[f32], row: &mut [f32]) {
    for (x, f) in row.as_chunks_mut::<16>().0.iter_mut().zip(factors.as_chunks::<16>().0) {
        isa.store_f(isa.mul_f(isa.load_f(x), isa.load_f(f)), x);
    }
}

/// Sums and differences of elements that are 1, 2, 4, ... apart.
#[inline(always)]
fn walsh<I: Isa>(isa: I, row: &mut [f32]) {
    let row = row.as_chunks_mut::<16>().0;
    for x in row.iter_mut() {
        let mut v = isa.load_f(x);
        for apart in [1, 2, 4, 8] {
            // the partner of every lane, plus the lane itself or minus it
            let index: [i32; 16] = array(|i| i as i32 ^ apart);
            let signs: [f32; 16] = array(|i| if i as i32 & apart == 0 { 1.0 } else { -1.0 });
            v = isa.fma(v, isa.load_f(&signs), isa.lut16_f(v, isa.load_i(&index)));
        }
        isa.store_f(v, x);
    }
    let mut apart = 1;
    while apart < row.len() {
        for pair in row.chunks_exact_mut(2 * apart) {
            let (a, b) = pair.split_at_mut(apart);
            for (a, b) in a.iter_mut().zip(b) {
                let (u, v) = (isa.load_f(a), isa.load_f(b));
                isa.store_f(isa.add_f(u, v), a);
                isa.store_f(isa.sub_f(u, v), b);
            }
        }
        apart *= 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ikq_simd::available;

    fn numbers(n: usize, seed: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 31 + seed * 17 + 1) as f32 * 0.618).sin() * 3.0).collect()
    }

    #[test]
    fn it_is_the_matrix_with_signs() {
        for (d, n) in [(16, 16), (64, 64), (80, 16), (96, 32), (128, 128), (192, 64), (576, 64)] {
            let rotation = Rotation::of(d).expect("a multiple of 16");
            let x = numbers(d, d);
            for kind in available() {
                let mut found = x.clone();
                rotation.apply(kind, &mut found);
                for (i, found) in found.iter().enumerate() {
                    let first = i / n * n;
                    // an element of the Hadamard matrix is -1 where the indices share an odd number of bits
                    let truth: f64 = (0..n)
                        .map(|j| {
                            let odd = ((i - first) & j).count_ones() % 2 == 1;
                            let x = f64::from(x[first + j]);
                            if odd != is_negative(first + j) { -x } else { x }
                        })
                        .sum::<f64>()
                        / (n as f64).sqrt();
                    // log2(n) + 2 roundings of partial sums, which are up to 3 sqrt(n)
                    let bound = 3.0 * (n as f64).sqrt() * 9.0 * f64::powi(2.0, -24);
                    assert!((f64::from(*found) - truth).abs() < bound, "{} {d} {i}", kind.name());
                }
            }
        }
    }

    #[test]
    fn back_undoes_it_and_parts_stay_apart() {
        for kind in available() {
            for parts in [&[64][..], &[80], &[128], &[256], &[512, 64]] {
                let rotation = Rotation::of_parts(parts).expect("multiples of 16");
                let d = parts.iter().sum();
                assert_eq!(rotation.d(), d);
                let x = numbers(d, 3);
                let mut y = x.clone();
                rotation.apply(kind, &mut y);
                let size = |x: &[f32]| x.iter().map(|x| f64::from(x * x)).sum::<f64>();
                assert!((size(&x) / size(&y) - 1.0).abs() < 1e-5);
                let mut part = y[..parts[0]].to_vec();
                rotation.undo(kind, &mut part);
                rotation.undo(kind, &mut y);
                assert_eq!(part, y[..parts[0]]);
                // twice nine roundings of sums up to 3 sqrt(512), over the root
                for (x, y) in x.iter().zip(&y) {
                    assert!((x - y).abs() < 2e-5, "{} {x} {y}", kind.name());
                }
            }
        }
    }

    #[test]
    fn a_large_element_and_a_common_offset_are_spread() {
        let rotation = Rotation::of(128).expect("a power of two");
        let mut one = vec![0.0; 128];
        one[77] = 16.0;
        let mut same = vec![1.0; 128];
        for row in [&mut one, &mut same] {
            let root = row.iter().map(|x| x * x).sum::<f32>().sqrt();
            rotation.apply(IsaKind::Scalar, row);
            assert!(row.iter().all(|x| x.abs() < 0.4 * root), "{row:?}");
        }
    }

    #[test]
    fn sizes_without_a_turn() {
        assert!([0, 8, 40, 100].iter().all(|&d| Rotation::of(d).is_none()));
        assert!(Rotation::of_parts(&[512, 24]).is_none());
    }
}
