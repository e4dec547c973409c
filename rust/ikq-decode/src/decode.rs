//! [`Decode`]: what a type yields, for all families alike.

use ikq_simd::{Isa, array};

use crate::lanes::{Decoding, LaneCodes, LaneScales, LaneUnit, by_rows};

/// Elements per unit.
pub const UNIT: usize = 256;

/// The scales of one unit, one entry per 16 elements.
///
/// Arrays are always 16 long so that every body is the same for every type; a body that wants the
/// coarser truth asks [`Decode::N_FLOAT_SCALES`] and [`Decode::SUB_BLOCK`]. After inlining, what a
/// body does not read is never computed.
#[derive(Clone, Copy, Debug)]
pub struct Scales {
    /// Float scale: of the row, super-block or block the sixteen elements belong to.
    pub d: [f32; 16],
    /// Integer scale of the sub-block; 1 where the format has none.
    pub s: [i16; 16],
    /// Float scale of the mins (0 unless `HAS_MIN`); its sign is such that mins are subtracted.
    pub dm: [f32; 16],
    /// Integer min of the sub-block.
    pub m: [i16; 16],
}

impl Scales {
    /// One float scale for the unit, an integer scale per 16 elements.
    #[inline(always)]
    pub fn by_16(d: f32, s: [i16; 16]) -> Scales {
        Scales { d: [d; 16], s, dm: [0.0; 16], m: [0; 16] }
    }

    /// One float scale for the unit, an integer scale per 32 elements.
    #[inline(always)]
    pub fn by_32(d: f32, s: [i16; 8]) -> Scales {
        Scales::by_16(d, array(|k| s[k / 2]))
    }

    /// Float scales only: `N` of them share the unit evenly.
    #[inline(always)]
    pub fn floats<const N: usize>(d: [f32; N]) -> Scales {
        Scales { d: array(|k| d[k * N / 16]), s: [1; 16], dm: [0.0; 16], m: [0; 16] }
    }

    /// The same with mins: `dm` times `m` per 16 elements.
    #[inline(always)]
    pub fn with_min(self, dm: [f32; 16], m: [i16; 16]) -> Scales {
        Scales { dm, m, ..self }
    }

    /// `d * s`: the factor of each sixteen codes, rounded to f32.
    #[inline(always)]
    pub fn scale(&self) -> [f32; 16] {
        array(|k| self.d[k] * f32::from(self.s[k]))
    }

    /// `dm * m`: what is subtracted from each sixteen products.
    #[inline(always)]
    pub fn min(&self) -> [f32; 16] {
        array(|k| self.dm[k] * f32::from(self.m[k]))
    }
}

/// A block type as 256-element units on instruction set `I`. Implemented once per type, generic
/// over `I`; implement it per set only where a type gains from an instruction the vocabulary lacks.
///
/// All methods must be `#[inline(always)]` (see [`ikq_simd::IsaOp`]) and make arrays with
/// [`ikq_simd::array`] and [`ikq_simd::map`].
pub trait Decode<I: Isa>: Sized + 'static {
    /// Bytes of a unit (of one row's share; row header not included).
    const UNIT_BYTES: usize;
    /// Bytes of one block: the step at which a row may end inside a unit.
    const BLOCK_BYTES: usize;
    /// Bytes of the row header.
    const HEADER_BYTES: usize = 0;
    /// Elements that share an integer scale: 16 or 32 (256 where there is none).
    const SUB_BLOCK: usize;
    /// Float scales per unit: 1 for super-block types, 256 / block for small blocks.
    const N_FLOAT_SCALES: usize = 1;
    /// Whether mins are subtracted.
    const HAS_MIN: bool = false;
    /// Largest |code|: 8-bit products of two codes saturate 16 bits above 128 * 127.
    const MAX_ABS_CODE: i32;
    /// Codes are never negative: they may be the unsigned operand of a dot instruction as they are.
    const UNSIGNED: bool = false;
    /// Factor that matrix products (not dequantize) apply to the type's values.
    const PRODUCT_FACTOR: f32 = 1.0;

    /// Bytes of a block in front of the words of the device form (`ikq_formats::LaneForm`).
    const FRONT_BYTES: usize = 0;
    /// Words of a block in the device form.
    const BLOCK_WORDS: usize = (Self::BLOCK_BYTES - Self::FRONT_BYTES) / 4;
    /// Bytes of a block outside its words.
    const BLOCK_SMALLS: usize = Self::BLOCK_BYTES - 4 * Self::BLOCK_WORDS;
    /// Words of a unit in the device form.
    const UNIT_WORDS: usize = Self::UNIT_BYTES / Self::BLOCK_BYTES * Self::BLOCK_WORDS;
    /// Bytes of a unit outside its words.
    const UNIT_SMALLS: usize = Self::UNIT_BYTES / Self::BLOCK_BYTES * Self::BLOCK_SMALLS;
    /// The smaller pieces of a unit stand in front of its words (`ikq_formats::LaneForm::by_unit`).
    const BY_UNIT: bool = Self::BLOCK_BYTES < Self::UNIT_BYTES
        && Self::UNIT_WORDS > 0
        && Self::UNIT_SMALLS > 0
        && (ikq_formats::LANES * Self::UNIT_SMALLS).is_multiple_of(64);
    /// Scales differ between neighbouring sixteens; else they belong to 32 elements or more.
    const PER_16: bool = Self::SUB_BLOCK == 16 || Self::N_FLOAT_SCALES == 16;
    /// The form of the codes that [`Decode::lanes`] gives.
    const LANE_CODES: LaneCodes = if Self::UNSIGNED { LaneCodes::Plain } else { LaneCodes::Biased };

    /// How many values of [`Decode::lanes`] may be products of small codes together
    /// (`ikq_simd::Products::dots_of_small`): 1, 2, 4 or 8; 1 where codes are biased.
    const SMALL: usize = Self::LANE_CODES.small(Self::MAX_ABS_CODE);

    /// What [`Decode::lanes`] costs.
    const DECODING: Decoding = Decoding::Moderate;

    /// Lines of words are asked for ahead of products with one column or two (with more of them, always). Where lines are
    /// read in order and little is done with them, the machine sees to it itself, and asking only takes time.
    const ASKS_AHEAD: bool = !Self::BY_UNIT;

    /// Neighbouring parts of 32 elements that are decoded side by side, as their codes share words or look-ups: 1, 2, 4 or 8.
    const TOGETHER: usize = 1;

    /// The row header as the float scale it holds; 1 for types without.
    #[inline(always)]
    fn header(_header: &[u8]) -> f32 {
        1.0
    }

    /// The unit's scales; `header` is what [`Decode::header`] gave for the row.
    fn scales(isa: I, header: f32, unit: &[u8]) -> Scales;

    /// [`Scales::scale`] and [`Scales::min`] as lanes. Types override it where lanes are made in fewer steps
    /// than the arrays.
    #[inline(always)]
    fn factors(isa: I, header: f32, unit: &[u8]) -> (I::F, I::F) {
        let scales = Self::scales(isa, header, unit);
        (isa.load_f(&scales.scale()), isa.load_f(&scales.min()))
    }

    /// Codes of elements `64 * j..64 * j + 64` as `i8`, j in 0..4.
    fn codes(isa: I, unit: &[u8], j: usize) -> I::B64;

    /// Codes of elements `32 b..32 b + 32` of sixteen rows, b in 0..8: value i has elements `4 i..4 i + 4` of
    /// them, row r's in bytes `4 r..4 r + 4`, in the form that [`Decode::LANE_CODES`] says.
    #[inline(always)]
    fn lanes(isa: I, unit: &LaneUnit<'_>, b: usize) -> [I::B64; 8] {
        by_rows::lanes::<I, Self>(isa, unit, b)
    }

    /// The factors of a unit of sixteen rows; `header` holds what [`Decode::header`] gives for each.
    #[inline(always)]
    fn lane_scales(isa: I, header: I::F, unit: &LaneUnit<'_>, out: &mut LaneScales<I::F>) {
        by_rows::lane_scales::<I, Self>(isa, header, unit, out);
    }
}

/// `N` bytes of a unit from `at` on.
#[inline(always)]
pub(crate) fn bytes<const N: usize>(unit: &[u8], at: usize) -> &[u8; N] {
    unit[at..at + N].as_array().expect("the range has N bytes")
}

/// The little-endian u16 at byte `at`.
#[inline(always)]
pub(crate) fn u16_at(unit: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(*bytes(unit, at))
}

/// The little-endian u32 at byte `at`.
#[inline(always)]
pub(crate) fn u32_at(unit: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(*bytes(unit, at))
}

/// Nibble `n` of a byte.
#[inline(always)]
pub(crate) fn nib(byte: u8, n: usize) -> u8 {
    byte >> (4 * n) & 15
}
