//! Random matrices that hold finite weights, and the check of a machine's kernels with them.

use ikq_decode::{BlockType, Decode, UNIT, Visitor, with_type};
use ikq_formats::{Error, Family, QuantType, RowForm, deinterleave_group, interleave_group, row_form};
use ikq_simd::{Isa, IsaKind, Scalar};

use super::{Compute, Input, Matrix, Scratch, input, lane_bytes, multiply, pack};
use crate::act::Activations;

/// A generator of random numbers (SplitMix64).
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// Uniform in -1..1.
    pub fn float(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&self.bits().to_le_bytes()[..chunk.len()]);
        }
    }
}

/// Where the largest weight of a random block lies: subnormal products would be slow.
const PEAKS: std::ops::Range<f32> = 1e-6..1000.0;

/// A matrix of any type that weights are stored in, of random codes and scales.
///
/// # Panics
/// When the shape does not fit the type.
pub fn random_matrix(ty: QuantType, n_rows: usize, k: usize, seed: u64) -> Vec<u8> {
    let mut random = Random::new(seed ^ u64::from(ty.id()) << 40);
    let n_bytes = ikq_formats::matrix_bytes(ty, n_rows, k).expect("a shape that fits");
    let mut data = vec![0; n_bytes];
    if ty.is_interleaved() {
        let group = n_bytes / (n_rows / ty.info().rows);
        let mut rows = vec![0; group];
        for out in data.chunks_exact_mut(group) {
            random_rows(ty, ty.info().rows, k, &mut random, &mut rows);
            interleave_group(ty, &rows, k, out).expect("the shape was checked");
        }
    } else {
        random_rows(ty, n_rows, k, &mut random, &mut data);
    }
    data
}

/// Rows in their row form.
fn random_rows(ty: QuantType, n_rows: usize, k: usize, random: &mut Random, data: &mut [u8]) {
    let info = ty.info();
    let plain = info.base.unwrap_or(ty);
    if plain == QuantType::I2_S {
        let codes = n_rows * k / 4;
        random.fill(&mut data[..codes]);
        return data[codes..codes + 4].copy_from_slice(&0.1f32.to_le_bytes());
    }
    if plain.info().family == Family::Float {
        return random_floats(plain, random, data);
    }
    // an interleaved form without a plain twin: its scale stands in the header, or first in the block
    let own = matches!(row_form(ty), Some(RowForm::Own { .. }));
    for row in data.chunks_exact_mut(data.len() / n_rows) {
        let (head, blocks) = row.split_at_mut(info.row_header_bytes);
        let scale = 0.01 + random.float().abs();
        match head {
            [] => {}
            [a, b] => [*a, *b] = half::f16::from_f32(scale).to_le_bytes(),
            // behind a single may stand a sum, which no product reads
            [a, b, c, d, ..] => [*a, *b, *c, *d] = scale.to_le_bytes(),
            _ => {}
        }
        for block in blocks.chunks_exact_mut(info.block_bytes) {
            random.fill(block);
            if own && head.is_empty() {
                block[..2].copy_from_slice(&half::f16::from_f32(random.float()).to_le_bytes());
            }
            while !own && head.is_empty() && !moderate(plain, block) {
                random.fill(block);
            }
        }
    }
}

/// Whether a block without header holds finite weights, neither large nor tiny.
fn moderate(ty: QuantType, block: &[u8]) -> bool {
    let mut values = vec![0.0; ty.info().block_size];
    let n = values.len();
    ikq_decode::dequantize(IsaKind::Scalar, ty, block, 1, n, &mut values).expect("one block");
    let peak = values.iter().fold(0.0f32, |peak, v| if v.is_nan() { f32::NAN } else { peak.max(v.abs()) });
    PEAKS.contains(&peak)
}

fn random_floats(ty: QuantType, random: &mut Random, data: &mut [u8]) {
    for element in data.chunks_exact_mut(ty.info().block_bytes) {
        let x = random.float();
        match ty {
            QuantType::F64 => element.copy_from_slice(&f64::from(x).to_le_bytes()),
            QuantType::F32 => element.copy_from_slice(&x.to_le_bytes()),
            QuantType::F16 => element.copy_from_slice(&half::f16::from_f32(x).to_le_bytes()),
            _ => element.copy_from_slice(&half::bf16::from_f32(x).to_le_bytes()),
        }
    }
}

/// Columns of random floats, with their 8-bit form.
pub fn random_columns(kind: IsaKind, k: usize, n: usize, seed: u64) -> Activations {
    let mut random = Random::new(seed);
    let mut acts = Activations::default();
    acts.resize(k, n);
    for (c, mut column) in acts.columns_mut().into_iter().enumerate() {
        // runs of 32 of different size, one of zeros, one of a lone number
        for (b, run) in column.floats.chunks_mut(32).enumerate() {
            let size = [1.0, 0.0, 30.0, 1e-3][(b * b + c) % 4];
            run.fill_with(|| size * random.float());
            if (b + c) % 7 == 6 {
                run[1..].fill(0.0);
            }
        }
        column.quantize(kind);
    }
    acts
}

/// What computes products of a type, for people: instruction set, form of the activations, and for how many
/// elements a scale (and a min) holds.
pub fn kernel_name(kind: IsaKind, ty: QuantType, compute: Compute) -> String {
    let how = match (input(ty, compute), ikq_decode::facts(ty)) {
        (Input::Q8, Some(facts)) => {
            let per = if facts.per_16 { 16 } else { 32 };
            format!("int8 products, scales per {per}{}", if facts.has_min { " with mins" } else { "" })
        }
        _ => "float32 products".into(),
    };
    format!("{}: {how}", kind.name())
}

/// Rows of the matrices of [`self_test`]: more than a band, no whole number of bands where the type allows it.
const TEST_ROWS: usize = 20;

/// Checks all kernels of an instruction set for a type with seeded random data. Returns the largest error as a
/// share of its bound, the bound being what rounding in float32 may do; a result above 1 is a fault.
///
/// The reference is a sum in f64 of what the plain decoder and the plain quantization of activations give.
///
/// # Errors
/// As [`Matrix::new`] for types that no rows of 768 elements can be stored in.
pub fn self_test(kind: IsaKind, ty: QuantType) -> Result<f64, Error> {
    let (n_rows, k, n_columns) = (TEST_ROWS.next_multiple_of(ty.info().rows), 3 * UNIT, 21);
    ikq_formats::matrix_bytes(ty, n_rows, k)?;
    let data = random_matrix(ty, n_rows, k, 77);
    let file = Matrix::new(ty, n_rows, k, &data)?;
    let mut bands = vec![0; lane_bytes(ty, n_rows, k)?];
    pack(kind, ty, k, file.data(), &mut bands);
    let matrix = Matrix::lanes(ty, n_rows, k, &bands, file.scale())?;
    let acts = random_columns(kind, k, n_columns, 78);
    let plain = random_columns(IsaKind::Scalar, k, n_columns, 78);
    let all: Vec<u32> = (0..n_columns as u32).rev().collect();
    let mut worst = 0.0f64;
    for compute in [Compute::Auto, Compute::F32] {
        let expected = match input(ty, compute) {
            Input::Q8 => integer_sums(&file, &plain)?,
            Input::Floats => float_sums(&file, &plain)?,
        };
        // one column, few, and all of them go different ways
        for columns in [&all[..1], &all[..3], &all] {
            let mut out = vec![f32::NAN; n_rows * columns.len()];
            multiply(kind, compute, &matrix, 0..n_rows, &acts, columns, &mut Scratch::default(), &mut out);
            for (out, column) in out.chunks_exact(n_rows).zip(columns) {
                for (out, (sum, bound)) in out.iter().zip(&expected[*column as usize * n_rows..]) {
                    let share = (f64::from(*out) - sum).abs() / bound;
                    worst = worst.max(if share.is_nan() { f64::INFINITY } else { share });
                }
            }
        }
    }
    Ok(worst)
}

/// Half a last place of a float.
const HALF_ULP: f64 = 1.0 / (1 << 24) as f64;

/// Bounds of sums that are zero.
const LEAST_BOUND: f64 = 1e-37;

/// Sums in f64 of decoded weights times floats, and what float32 may make of them.
fn float_sums(matrix: &Matrix<'_>, acts: &Activations) -> Result<Vec<(f64, f64)>, Error> {
    let (n_rows, k) = (matrix.n_rows(), matrix.k());
    let mut weights = vec![0.0; n_rows * k];
    if matrix.ty() == QuantType::I2_S {
        ikq_decode::dequantize_i2_s(IsaKind::Scalar, matrix.data(), matrix.scale(), &mut weights);
    } else {
        ikq_decode::dequantize(IsaKind::Scalar, matrix.ty(), matrix.data(), n_rows, k, &mut weights)?;
    }
    // the product, a sum of a quarter of the products, and the sum of four of them
    let roundings = (1 + k.div_ceil(4) + 2 + 1) as f64 * HALF_ULP;
    let mut out = Vec::new();
    for c in 0..acts.n_columns() {
        for row in weights.chunks_exact(k) {
            let products = row.iter().zip(acts.floats(c)).map(|(w, x)| f64::from(*w) * f64::from(*x));
            let (sum, size) = products.fold((0.0, 0.0), |(s, m), p| (s + p, m + p.abs()));
            out.push((sum, size * roundings + LEAST_BOUND));
        }
    }
    Ok(out)
}

/// The same of weights and activations as codes and scales.
fn integer_sums(matrix: &Matrix<'_>, acts: &Activations) -> Result<Vec<(f64, f64)>, Error> {
    let (ty, n_rows, k) = (matrix.ty(), matrix.n_rows(), matrix.k());
    let facts = ikq_decode::facts(ty).ok_or(Error::NoLayout { ty })?;
    let mut rows = matrix.data().to_vec();
    if ty.is_interleaved() {
        let group = rows.len() / (n_rows / ty.info().rows);
        for (data, rows) in matrix.data().chunks_exact(group).zip(rows.chunks_exact_mut(group)) {
            deinterleave_group(ty, data, k, rows)?;
        }
    }
    // an addition per 32 elements, and one or two for mins; the product with a scale, the addition of a half, the row's
    // scale times the factor, and its product with the sum; two roundings of the weight itself
    let mins = usize::from(facts.has_min) * if facts.per_16 { 2 } else { 1 };
    let roundings = (8 * k.div_ceil(UNIT) * (1 + mins) + 6) as f64 * HALF_ULP;
    let header = (ty == QuantType::I2_S).then_some(matrix.scale());
    let mut out = vec![(0.0, 0.0); n_rows * acts.n_columns()];
    for (r, row) in rows.chunks_exact(rows.len() / n_rows).enumerate() {
        let weights = with_type(ty, Weights { row, header, k }).ok_or(Error::NoLayout { ty })?;
        for c in 0..acts.n_columns() {
            let (mut sum, mut size) = (0.0, 0.0);
            for (i, (weight, magnitude)) in weights.iter().enumerate() {
                let x = &acts.units(c)[i / UNIT][i % UNIT / 32];
                let x = f64::from(x.codes[i % 32]) * f64::from(x.d);
                sum += weight * x;
                size += magnitude * x.abs();
            }
            out[c * n_rows + r] = (sum, size * roundings + LEAST_BOUND);
        }
    }
    Ok(out)
}

/// The weights of a row as products see them, by the plain decoder, and of each the sum of magnitudes that it is
/// the difference of.
struct Weights<'a> {
    row: &'a [u8],
    header: Option<f32>,
    k: usize,
}

impl Visitor for Weights<'_> {
    type Output = Vec<(f64, f64)>;

    fn visit<T: BlockType>(self) -> Vec<(f64, f64)> {
        self.of::<T::Decoder<Scalar>>()
    }
}

impl Weights<'_> {
    fn of<D: Decode<Scalar>>(&self) -> Vec<(f64, f64)> {
        let (head, blocks) = self.row.split_at(D::HEADER_BYTES);
        let header = self.header.unwrap_or_else(|| D::header(head));
        let mut out = Vec::new();
        for data in blocks.chunks(D::UNIT_BYTES) {
            let mut unit = vec![0; D::UNIT_BYTES];
            unit[..data.len()].copy_from_slice(data);
            let scales = D::scales(Scalar, header, &unit);
            let (scale, min) = (scales.scale(), scales.min());
            for j in 0..UNIT / 64 {
                let mut codes = [0; 64];
                Scalar.store(D::codes(Scalar, &unit, j), &mut codes);
                for (i, code) in codes.into_iter().enumerate() {
                    let k = 4 * j + i / 16;
                    let weight = f64::from(scale[k] * D::PRODUCT_FACTOR) * f64::from(code as i8);
                    out.push((weight - f64::from(min[k]), weight.abs() + f64::from(min[k]).abs()));
                }
            }
        }
        out.truncate(self.k);
        out
    }
}
