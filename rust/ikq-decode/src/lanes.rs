//! Units of sixteen rows side by side, as decoders read them from the device form (`ikq_formats::lanes`).
//!
//! [`Decode::lanes`] gives codes as dot-product instructions take them, four neighbouring elements of sixteen rows
//! per vector, and [`Decode::lane_scales`] gives the factors of sixteen rows. [`by_rows`] computes the same with
//! the decoder of one row; tests compare the two.

use ikq_formats::LANES;
use ikq_simd::{Isa, array};

use crate::decode::{Decode, UNIT};

/// A unit of a band (sixteen rows in the device form): 256 elements of each row.
#[derive(Clone, Copy)]
pub struct LaneUnit<'a> {
    /// The 32-bit words of the unit's blocks, one block after another. Each entry has one word of all rows, that of
    /// row r in lane r.
    pub words: &'a [[u8; 64]],
    /// What is outside words: 16-bit and 8-bit pieces of the blocks, each for all sixteen rows (32 and 16 bytes).
    /// Within a block the 16-bit pieces come first.
    pub smalls: &'a [u8],
}

impl LaneUnit<'_> {
    /// Word `i` of each row.
    #[inline(always)]
    pub fn word<I: Isa>(&self, isa: I, i: usize) -> I::B64 {
        isa.load(&self.words[i])
    }

    /// Word `i` of each row as an integer.
    #[inline(always)]
    pub fn int<I: Isa>(&self, isa: I, i: usize) -> I::I {
        isa.ints(isa.load(&self.words[i]))
    }

    /// The 16-bit piece of each row at byte `at` of the row's smaller pieces, as an integer.
    #[inline(always)]
    pub fn half<I: Isa>(&self, isa: I, at: usize) -> I::I {
        isa.load_u16(self.small(at))
    }

    /// The f16 of each row at byte `at` of the row's smaller pieces, as a float.
    #[inline(always)]
    pub fn half_float<I: Isa>(&self, isa: I, at: usize) -> I::F {
        isa.load_f16(self.small(at))
    }

    /// The byte of each row at byte `at` of the row's smaller pieces.
    #[inline(always)]
    pub fn byte<I: Isa>(&self, isa: I, at: usize) -> I::I {
        isa.load_u8(self.small(at))
    }

    #[inline(always)]
    fn small<const N: usize>(&self, at: usize) -> &[u8; N] {
        self.smalls[LANES * at..].first_chunk().expect("a line of the unit")
    }
}

/// How [`Decode::lanes`] gives codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LaneCodes {
    /// As they are: none is negative (0..=127).
    Plain,
    /// With 2^n added, which puts all of them in 0..=127.
    Offset(u32),
    /// As `ikq_simd::Products::biased` makes them.
    Biased,
}

impl LaneCodes {
    /// [`Decode::SMALL`] of codes whose absolute values are at most `max_abs`.
    pub const fn small(self, max_abs: i32) -> usize {
        let max = match self {
            LaneCodes::Plain => max_abs,
            LaneCodes::Offset(n) => max_abs + (1 << n),
            LaneCodes::Biased => return 1,
        };
        match max {
            ..=16 => 8,
            17..=32 => 4,
            33..=64 => 2,
            _ => 1,
        }
    }
}

/// How much work decoding is compared with multiplying. It decides from how many columns on it pays to decode a
/// panel once for all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decoding {
    /// A few instructions per vector.
    Light,
    /// Bit planes are joined, or one of two tables is chosen.
    Moderate,
    /// Several bit planes and long tables, or a codebook or a generator.
    Heavy,
}

/// Factors of a unit of sixteen rows, one row per lane: 16 vectors, one per 16 elements, or, unless
/// [`Decode::PER_16`], one per 32 elements in the first eight entries.
#[derive(Clone, Copy)]
pub struct LaneScales<F> {
    /// [`crate::Scales::scale`].
    pub scale: [F; 16],
    /// [`crate::Scales::min`]; unspecified where the type has no mins.
    pub min: [F; 16],
}

impl<F: Copy> LaneScales<F> {
    /// Zeros, to be overwritten.
    #[inline(always)]
    pub fn new<I: Isa<F = F>>(isa: I) -> LaneScales<F> {
        LaneScales { scale: [isa.splat_f(0.0); 16], min: [isa.splat_f(0.0); 16] }
    }
}

/// The float scales in the row headers of sixteen rows, which a band stores side by side; 1 for types without
/// headers.
///
/// # Panics
/// When there are fewer bytes than sixteen headers.
#[inline(always)]
pub fn lane_header<I: Isa, D: Decode<I>>(isa: I, headers: &[u8]) -> I::F {
    match D::HEADER_BYTES {
        0 => isa.splat_f(1.0),
        2 => isa.load_f16(headers.first_chunk().expect("sixteen halves")),
        _ => isa.load_f32(headers.first_chunk().expect("sixteen words")),
    }
}

/// [`Decode::lanes`] and [`Decode::lane_scales`], computed row by row.
pub mod by_rows {
    use super::*;

    /// Largest unit of all types (Q8_0: 8 blocks of 34 bytes).
    const MAX_UNIT_BYTES: usize = 272;

    /// The bytes of the unit of row `lane`, as a file stores them.
    #[inline(always)]
    pub fn row<I: Isa, D: Decode<I>>(unit: &LaneUnit<'_>, lane: usize, out: &mut [u8; MAX_UNIT_BYTES]) {
        let (words, small) = (D::BLOCK_WORDS, D::BLOCK_SMALLS);
        for block in 0..D::UNIT_BYTES / D::BLOCK_BYTES {
            let row = &mut out[block * D::BLOCK_BYTES..][..D::BLOCK_BYTES];
            for w in 0..words {
                let at = D::FRONT_BYTES + 4 * w;
                row[at..at + 4].copy_from_slice(&unit.words[block * words + w][4 * lane..4 * lane + 4]);
            }
            let (front, back) = (D::FRONT_BYTES, small - D::FRONT_BYTES);
            let end = D::BLOCK_BYTES - back;
            let mut from = LANES * block * small;
            for (at, n) in [(0, front), (end, back)] {
                if n >= 2 {
                    row[at..at + 2].copy_from_slice(&unit.smalls[from + 2 * lane..][..2]);
                    from += 2 * LANES;
                }
            }
            for (at, n) in [(0, front), (end, back)] {
                if n % 2 == 1 {
                    row[at + n - 1] = unit.smalls[from + lane];
                    from += LANES;
                }
            }
        }
    }

    /// Computes what [`Decode::lanes`] gives.
    #[inline(always)]
    pub fn lanes<I: Isa, D: Decode<I>>(isa: I, unit: &LaneUnit<'_>, b: usize) -> [I::B64; 8] {
        let mut rows = [[0; 64]; LANES];
        let mut bytes = [0; MAX_UNIT_BYTES];
        for (lane, out) in rows.iter_mut().enumerate() {
            row::<I, D>(unit, lane, &mut bytes);
            let codes = D::codes(isa, &bytes[..D::UNIT_BYTES], b / 2);
            let codes = match D::LANE_CODES {
                LaneCodes::Plain => codes,
                LaneCodes::Offset(n) => isa.add(codes, isa.splat(1 << n)),
                LaneCodes::Biased => isa.biased(codes),
            };
            isa.store(codes, out);
        }
        let turned = isa.transpose_fours(rows.each_ref());
        let mut half = [isa.splat(0); 8];
        for (i, half) in half.iter_mut().enumerate() {
            *half = turned[8 * (b % 2) + i];
        }
        half
    }

    /// Computes what [`Decode::lane_scales`] gives.
    #[inline(always)]
    pub fn lane_scales<I: Isa, D: Decode<I>>(
        isa: I,
        header: I::F,
        unit: &LaneUnit<'_>,
        out: &mut LaneScales<I::F>,
    ) {
        let headers = isa.array(header);
        let mut scales = [[0.0; 16]; LANES];
        let mut mins = [[0.0; 16]; LANES];
        let mut bytes = [0; MAX_UNIT_BYTES];
        for lane in 0..LANES {
            row::<I, D>(unit, lane, &mut bytes);
            let (scale, min) = D::factors(isa, headers[lane], &bytes[..D::UNIT_BYTES]);
            isa.store_f(scale, &mut scales[lane]);
            isa.store_f(min, &mut mins[lane]);
        }
        let step = if D::PER_16 { 1 } else { 2 };
        for (rows, out) in [(&scales, &mut out.scale), (&mins, &mut out.min)] {
            for (k, out) in out.iter_mut().take(16 / step).enumerate() {
                *out = isa.load_f(&array(|lane| rows[lane][step * k]));
            }
        }
    }
}

/// Passes the values of elements `32 b..32 b + 32` of sixteen rows to `put`, element after element, rounded as
/// dequantizing rounds.
#[inline(always)]
pub fn lane_values<I: Isa, D: Decode<I>>(
    isa: I,
    unit: &LaneUnit<'_>,
    scales: &LaneScales<I::F>,
    b: usize,
    mut put: impl FnMut(usize, I::F),
) {
    debug_assert!(b < UNIT / 32);
    let codes = D::lanes(isa, unit, b);
    for (i, four) in codes.into_iter().enumerate() {
        let k = if D::PER_16 { 2 * b + i / 4 } else { b };
        // the code of element e is shifted to the top byte of each lane, then down with its sign
        let signed = match D::LANE_CODES {
            LaneCodes::Plain => four,
            LaneCodes::Offset(n) => isa.sub(four, isa.splat(1 << n)),
            LaneCodes::Biased if I::CODE_BIAS != 0 => isa.xor(four, isa.splat(0x80)),
            LaneCodes::Biased => four,
        };
        let word = isa.ints(signed);
        for e in 0..4 {
            let code = isa.float_i(isa.sra_i(isa.shl_i(word, 24 - 8 * e as u32), 24));
            let value = isa.mul_f(code, scales.scale[k]);
            put(4 * i + e, if D::HAS_MIN { isa.sub_f(value, scales.min[k]) } else { value });
        }
    }
}
