//! The range of numbers that a type can hold: how large they may be before they are cut off, and how small before a whole
//! block of them becomes zero.
//!
//! Both follow from the format of a type's scales (half precision in most), and are found by encoding blocks of ever
//! smaller and one of huge numbers, so that no table of constants has to agree with the encoders.

use std::sync::OnceLock;

use ikq_encode::{EncodeOptions, can_encode, encode_rows};
use ikq_formats::QuantType;
use ikq_simd::{IsaKind, best};

/// The magnitudes that a type can keep.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Range {
    /// The least and the largest number, such as -65504 and 65504; infinite where an f32 of any size can be kept.
    pub least: f32,
    pub most: f32,
    /// A block whose largest magnitude is below this becomes zeros, whatever its signs; 0 where no f32 of normal size is
    /// that small.
    pub floor: f32,
    /// Numbers that share a scale of limited range: 1, a block, or 0 for a whole row.
    pub shared: usize,
}

/// Non-zero numbers of some rows, and those of them that became zero with their whole block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Vanished {
    pub n: u64,
    pub of: u64,
}

impl Vanished {
    pub fn add(&mut self, other: Vanished) {
        self.n += other.n;
        self.of += other.of;
    }

    /// The share of the non-zero numbers that became zero.
    pub fn share(&self) -> f64 {
        self.n as f64 / self.of.max(1) as f64
    }
}

/// A type that can hold this number can hold numbers of any size, because no scale in half precision goes so far.
const HUGE: f32 = 1e15;
/// A number above the reach by less than this share of it is rounded, not lost: half a step of an f16.
const ROUNDING: f32 = 1.0 / 4096.0;

/// The range of a type that can be encoded.
pub fn range(ty: QuantType) -> Range {
    static FOUND: [OnceLock<Range>; 512] = [const { OnceLock::new() }; 512];
    let find = || found(ty);
    match FOUND.get(ty as usize) {
        Some(known) => *known.get_or_init(find),
        None => find(),
    }
}

fn found(ty: QuantType) -> Range {
    let info = ty.info();
    let shared = if info.row_header_bytes > 0 { 0 } else { info.block_size };
    let everything = Range { least: f32::NEG_INFINITY, most: f32::INFINITY, floor: 0.0, shared };
    if !can_encode(ty) || matches!(ty, QuantType::F32 | QuantType::BF16 | QuantType::I2_S) {
        return everything;
    }
    let end = |sign: f32| {
        // far above the end every code is equally bad, so it is looked for from below
        let usual = largest(ty, sign);
        let mut end = 0.0f32;
        let mut magnitude = 2.0;
        while magnitude < HUGE {
            let found = largest(ty, sign * magnitude);
            end = end.max(found);
            if found < 0.75 * usual * magnitude {
                return sign * end;
            }
            magnitude *= 2.0;
        }
        sign * f32::INFINITY
    };
    // magnitudes are ordered as their bits are
    let (mut gone, mut kept) = (f32::MIN_POSITIVE.to_bits(), 1f32.to_bits());
    let is_some = |bits: u32| largest(ty, f32::from_bits(bits)).max(largest(ty, -f32::from_bits(bits))) > 0.0;
    if is_some(gone) {
        kept = 0;
    }
    while kept > gone + 1 {
        let middle = gone + (kept - gone) / 2;
        if is_some(middle) { kept = middle } else { gone = middle }
    }
    Range { least: end(-1.0), most: end(1.0), floor: f32::from_bits(kept), shared }
}

/// The largest magnitude that a row decodes to whose numbers are `x`, half of it, and 0.
fn largest(ty: QuantType, x: f32) -> f32 {
    let (n, rows) = (ty.info().block_size.next_multiple_of(32), ty.info().rows);
    let x: Vec<f32> = (0..n * rows).map(|i| [x, 0.0, 0.5 * x, x, 0.0][i % 5]).collect();
    let mut out = vec![0; ikq_formats::matrix_bytes(ty, rows, n).expect("whole blocks")];
    encode_rows(best(), ty, &x, n, None, EncodeOptions::default(), &mut out).expect("finite numbers");
    let mut y = vec![0.0f32; n * rows];
    ikq_decode::dequantize(best(), ty, &out, rows, n, &mut y).expect("what was encoded");
    y.iter().fold(0.0, |most, y| y.abs().max(most))
}

/// A number that is outside of what a type can keep.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Outside {
    /// Its index among the numbers that were looked at.
    pub at: usize,
    pub value: f32,
    /// The end of the range that it lies beyond, such as 65504.
    pub end: f32,
}

/// The first number that is too large for the type. NaN and infinities are passed over; encoders refuse them.
pub fn out_of_range(ty: QuantType, x: &[f32]) -> Option<Outside> {
    let Range { least, most, .. } = range(ty);
    let (low, high) = (least * (1.0 + ROUNDING), most * (1.0 + ROUNDING));
    let (smallest, largest) = x.iter().fold((0.0f32, 0.0f32), |(a, b), v| (a.min(*v), b.max(*v)));
    if low < smallest && largest < high {
        return None;
    }
    let at = x.iter().position(|v| v.is_finite() && !(low < *v && *v < high))?;
    Some(Outside { at, value: x[at], end: if x[at] < 0.0 { least } else { most } })
}

/// Counts what has become zero in rows of `n_per_row` numbers, of which `encoded` was made, because it is too small for the
/// type's scales. `y` is working memory; its content does not matter.
///
/// # Errors
/// None for rows that were encoded as this type.
pub fn vanished(
    kind: IsaKind,
    ty: QuantType,
    (x, encoded): (&[f32], &[u8]),
    n_per_row: usize,
    y: &mut Vec<f32>,
) -> Result<Vanished, ikq_formats::Error> {
    let Range { floor, shared, .. } = range(ty);
    let together = if shared == 0 { n_per_row } else { shared };
    let non_zero = |x: &[f32]| x.iter().filter(|v| **v != 0.0).count() as u64;
    let mut found = Vanished { n: 0, of: non_zero(x) };
    // only what could have vanished is decoded: ends of one sign can be higher than the floor
    let suspect = 64.0 * floor;
    let is_small = |x: &[f32]| {
        let most = x.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        most > 0.0 && most < suspect
    };
    if floor == 0.0
        || n_per_row == 0
        || !x.chunks_exact(n_per_row).flat_map(|r| r.chunks(together)).any(is_small)
    {
        return Ok(found);
    }
    y.resize(x.len(), 0.0);
    ikq_decode::dequantize(kind, ty, encoded, x.len() / n_per_row, n_per_row, y)?;
    for (x, y) in x.chunks_exact(n_per_row).zip(y.chunks_exact(n_per_row)) {
        for (x, y) in x.chunks(together).zip(y.chunks(together)) {
            if y.iter().all(|v| *v == 0.0) {
                found.n += non_zero(x);
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(ty: QuantType, x: &[f32]) -> Vanished {
        let mut out = vec![0; ikq_formats::matrix_bytes(ty, 1, x.len()).expect("whole blocks")];
        encode_rows(best(), ty, x, x.len(), None, EncodeOptions::default(), &mut out)
            .expect("finite numbers");
        vanished(best(), ty, (x, &out), x.len(), &mut Vec::new()).expect("what was encoded")
    }

    #[test]
    fn half_precision_keeps_what_ieee_754_says() {
        let f16 = range(QuantType::F16);
        // below or at half of the smallest subnormal, 2^-24, numbers are rounded to zero
        assert_eq!((f16.least, f16.most, f16.floor), (-65504.0, 65504.0, 2f32.powi(-25).next_up()));
        let x = [0.0, 2f32.powi(-25), -2f32.powi(-26), 2f32.powi(-24), 65519.0, -65504.0, 1.0];
        assert_eq!(out_of_range(QuantType::F16, &x), None);
        assert_eq!(counted(QuantType::F16, &x), Vanished { n: 2, of: 6 });
        let outside = Outside { at: 2, value: -65520.0, end: -65504.0 };
        assert_eq!(out_of_range(QuantType::F16, &[1.0, f32::NAN, -65520.0, f32::INFINITY]), Some(outside));
        assert_eq!(range(QuantType::BF16).most, f32::INFINITY);
    }

    #[test]
    fn scales_in_half_precision_bound_their_blocks() {
        // the scale of Q8_0 is an f16, its codes go to 127
        let q8_0 = range(QuantType::Q8_0);
        assert_eq!((q8_0.least, q8_0.most), (-65504.0 * 127.0, 65504.0 * 127.0));
        // the smallest of them is 2^-24, of which codes round halves up
        assert_eq!(q8_0.floor, 2f32.powi(-25).next_up());
        let mut x = [1e-9; 64];
        x[40] = 1.0;
        assert_eq!(counted(QuantType::Q8_0, &x), Vanished { n: 32, of: 64 });
    }

    #[test]
    fn every_type_keeps_weights_of_usual_size() {
        for ty in ikq_encode::encodable() {
            let found = range(*ty);
            // the least of them is NVFP4, whose scales are floats of eight bits
            assert!(
                found.most >= 2688.0 && found.least <= -2688.0 && found.floor < 1e-2,
                "{ty:?}: {found:?}"
            );
        }
    }
}
