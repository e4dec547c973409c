//! Decodes rows of the 8-bit activation types (the forms in which matrix products read their input) to floats. Only
//! tests and tools do so, which is why this is plain Rust without vector code.
//!
//! | type | one row |
//! |---|---|
//! | Q8_1 | blocks of 32: f16 d, f16 sum, codes |
//! | Q8_K, Q8_K32, Q8_KR8 | blocks of 256: f32 d, f32 sum, codes, 32 bytes of sums |
//! | Q8_K128 | blocks of 128: f32 d, i16 sums[4], codes |
//! | Q8_0_X4, Q8_1_X4, Q8_2_X4 | four blocks of 32: d[4], sums[4] (not Q8_0_X4), codes; 1 to 3 single blocks at the end |
//! | Q8_K64 | f32 d[4], f32 sums[4], codes; element j belongs to scale j / 4 % 4 |
//! | Q8_K16 | f32 d[4], f32 sum, codes; element j belongs to scale j / 16 % 4 |
//!
//! Every value is one product `d * code`. d is f16, in Q8_2_X4 bf16.

use ikq_formats::{Error, QuantType, row_bytes};

use crate::decode::{u16_at, u32_at};

/// Decodes rows of an activation type; `Ok(false)` when `ty` is not one of the types above.
///
/// `data` and `out` must hold the same number of rows of `n_per_row` elements.
///
/// # Errors
/// [`Error::ByteCount`] for a Q8_K64 row whose 68 bytes per 64 elements cannot hold its header
/// (fewer than 512 elements).
pub fn dequantize_activations(
    ty: QuantType,
    data: &[u8],
    n_per_row: usize,
    out: &mut [f32],
) -> Result<bool, Error> {
    let row: fn(&[u8], &mut [f32]) = match ty {
        QuantType::Q8_1 => |row, out| blocks(row, out, 32, 36, |b| (f16_at(b, 0), &b[4..])),
        QuantType::Q8_K | QuantType::Q8_K32 | QuantType::Q8_KR8 => {
            |row, out| blocks(row, out, 256, 296, |b| (f32_at(b, 0), &b[8..]))
        }
        QuantType::Q8_K128 => |row, out| blocks(row, out, 128, 140, |b| (f32_at(b, 0), &b[12..])),
        QuantType::Q8_0_X4 => |row, out| fours(row, out, 2, f16_at),
        QuantType::Q8_1_X4 => |row, out| fours(row, out, 4, f16_at),
        QuantType::Q8_2_X4 => |row, out| fours(row, out, 4, bf16_at),
        QuantType::Q8_K64 => |row, out| classes(row, out, 32, 4),
        QuantType::Q8_K16 => |row, out| classes(row, out, 20, 16),
        _ => return Ok(false),
    };
    let row_bytes = row_bytes(ty, n_per_row)?;
    if ty == QuantType::Q8_K64 && row_bytes < n_per_row + 32 {
        let (expected, found) = (n_per_row + 32, row_bytes);
        return Err(Error::ByteCount { ty, n_rows: 1, n_per_row, expected, found });
    }
    if !out.is_empty() {
        for (data, out) in data.chunks_exact(row_bytes).zip(out.chunks_exact_mut(n_per_row)) {
            row(data, out);
        }
    }
    Ok(true)
}

fn f16_at(b: &[u8], at: usize) -> f32 {
    half::f16::from_bits(u16_at(b, at)).to_f32()
}

fn bf16_at(b: &[u8], at: usize) -> f32 {
    f32::from_bits(u32::from(u16_at(b, at)) << 16)
}

fn f32_at(b: &[u8], at: usize) -> f32 {
    f32::from_bits(u32_at(b, at))
}

fn scale(d: f32, codes: &[u8], out: &mut [f32]) {
    for (y, q) in out.iter_mut().zip(codes) {
        *y = d * f32::from(*q as i8);
    }
}

/// Blocks of `n` elements in `bytes` bytes; `read` gives a block's scale and where its codes start.
fn blocks(row: &[u8], out: &mut [f32], n: usize, bytes: usize, read: impl Fn(&[u8]) -> (f32, &[u8])) {
    for (block, out) in row.chunks_exact(bytes).zip(out.chunks_exact_mut(n)) {
        let (d, codes) = read(block);
        scale(d, codes, out);
    }
}

/// Groups of four blocks of 32 with `head` bytes (d, sum) per block; then single blocks.
fn fours(row: &[u8], out: &mut [f32], head: usize, d: impl Fn(&[u8], usize) -> f32) {
    let (groups, singles) = row.split_at(out.len() / 128 * 4 * (head + 32));
    let (out, out_singles) = out.split_at_mut(out.len() / 128 * 128);
    for (group, out) in groups.chunks_exact(4 * (head + 32)).zip(out.chunks_exact_mut(128)) {
        let codes = &group[4 * head..];
        for (k, out) in out.chunks_exact_mut(32).enumerate() {
            scale(d(group, 2 * k), &codes[32 * k..], out);
        }
    }
    blocks(singles, out_singles, 32, head + 32, |b| (d(b, 0), &b[head..]));
}

/// A row with four scales in all: codes begin at byte `at`, and each scale in turn serves `run` neighbours.
fn classes(row: &[u8], out: &mut [f32], at: usize, run: usize) {
    for (k, (out, codes)) in out.chunks_mut(run).zip(row[at..].chunks(run)).enumerate() {
        scale(f32_at(row, 4 * (k % 4)), codes, out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Element i of every layout has code i, scale k the value k + 1 (in the type's float format).
    #[test]
    fn each_element_meets_its_scale() {
        let f16 = |k: usize| half::f16::from_f32(k as f32 + 1.0).to_bits().to_le_bytes();
        let bf16 = |k: usize| half::bf16::from_f32(k as f32 + 1.0).to_bits().to_le_bytes();
        let f32s = |n: usize| (0..n).flat_map(|k| (k as f32 + 1.0).to_le_bytes());
        let codes = |r: std::ops::Range<usize>| r.map(|i| i as u8);

        // 160 elements: one group of four and one single block
        let mut x4 = [vec![], vec![], vec![]];
        for (t, head) in [2, 4, 4].into_iter().enumerate() {
            let d = |k: usize| if t == 2 { bf16(k) } else { f16(k) };
            x4[t].extend((0..4).flat_map(d));
            x4[t].extend(vec![0xee; 4 * (head - 2)]);
            x4[t].extend(codes(0..128));
            x4[t].extend(d(4));
            x4[t].extend(vec![0xee; head - 2]);
            x4[t].extend(codes(128..160));
        }
        let [x4_0, x4_1, x4_2] = x4;
        let mut k64: Vec<u8> = f32s(8).chain(codes(0..512)).collect();
        k64.resize(512 / 64 * 68, 0xee);
        let q8_k = |k: usize| {
            let mut b = (k as f32 + 1.0).to_le_bytes().to_vec();
            b.extend([0xee; 4]);
            b.extend(codes(0..256));
            b.extend([0xee; 32]);
            b
        };
        let k128 = |k: usize| {
            let mut b = (k as f32 + 1.0).to_le_bytes().to_vec();
            b.extend([0xee; 8]);
            b.extend(codes(128 * k..128 * k + 128));
            b
        };
        type Case = (QuantType, usize, Vec<u8>, fn(usize) -> usize);
        let cases: [Case; 8] = [
            (QuantType::Q8_0_X4, 160, x4_0, |i| i / 32),
            (QuantType::Q8_1_X4, 160, x4_1, |i| i / 32),
            (QuantType::Q8_2_X4, 160, x4_2, |i| i / 32),
            (QuantType::Q8_K64, 512, k64, |i| i / 4 % 4),
            (QuantType::Q8_K16, 128, f32s(5).chain(codes(0..128)).collect(), |i| i / 16 % 4),
            (QuantType::Q8_K, 512, [q8_k(0), q8_k(1)].concat(), |i| i / 256),
            (QuantType::Q8_K128, 256, [k128(0), k128(1)].concat(), |i| i / 128),
            (
                QuantType::Q8_1,
                32,
                [&f16(0)[..], &[0xee; 2], &codes(0..32).collect::<Vec<_>>()].concat(),
                |_| 0,
            ),
        ];
        for (ty, n, data, scale) in cases {
            let mut out = vec![0.0; 2 * n];
            assert_eq!(dequantize_activations(ty, &[&data[..], &data].concat(), n, &mut out), Ok(true));
            for (i, y) in out.iter().enumerate() {
                let i = i % n;
                assert_eq!(*y, (scale(i) + 1) as f32 * f32::from(i as u8 as i8), "{ty} element {i}");
            }
        }
    }

    #[test]
    fn a_short_q8_k64_row_is_refused() {
        let r = dequantize_activations(QuantType::Q8_K64, &[0; 68], 64, &mut [0.0; 64]);
        assert!(matches!(r, Err(Error::ByteCount { expected: 96, found: 68, .. })));
    }
}
