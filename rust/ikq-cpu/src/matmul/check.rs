//! Random matrices that hold finite weights, and the check of a machine's kernels with them.

use ikq_formats::{Family, QuantType, RowForm, interleave_group, row_form};
use ikq_simd::IsaKind;

use crate::act::Activations;

/// SplitMix64.
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

/// Weights of random blocks stay below this.
const LARGEST: f32 = 1000.0;

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
        return data[codes..codes + 4].copy_from_slice(&0.037f32.to_le_bytes());
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

/// Whether a block without header holds finite weights that are not large.
fn moderate(ty: QuantType, block: &[u8]) -> bool {
    let mut values = vec![0.0; ty.info().block_size];
    let n = values.len();
    ikq_decode::dequantize(IsaKind::Scalar, ty, block, 1, n, &mut values).expect("one block");
    values.iter().all(|v| v.abs() < LARGEST)
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
