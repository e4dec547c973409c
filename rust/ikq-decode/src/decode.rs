//! [`Decode`]: the trait by which every block type gives its codes and scales.

use ikq_simd::{Isa, LaneIndices, TakeLanes, array};

use crate::lane_integers::{Integers, LaneIntegers};
use crate::lanes::{Decoding, LaneCodes, LaneScales, LaneUnit, by_rows};

/// Elements per unit, the number that is decoded at a time: one super-block, or 256 elements of small blocks.
pub const UNIT: usize = 256;

/// The scales of one unit, one entry per 16 elements.
///
/// Arrays always have 16 entries, so that code that is generic over types is the same for all of them; code that
/// gains from fewer scales looks at [`Decode::N_FLOAT_SCALES`] and [`Decode::SUB_BLOCK`]. After inlining, entries
/// that are not read are never computed.
#[derive(Clone, Copy, Debug)]
pub struct Scales {
    /// Float scale of the row, super-block or block that the sixteen elements belong to.
    pub d: [f32; 16],
    /// Integer scale of the sub-block; 1 where the format has none.
    pub s: [i16; 16],
    /// Float scale of the mins (0 unless [`Decode::HAS_MIN`]). Its sign is such that mins are subtracted.
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

    /// Float scales only: each of the `N` covers `256 / N` elements.
    #[inline(always)]
    pub fn floats<const N: usize>(d: [f32; N]) -> Scales {
        Scales { d: array(|k| d[k * N / 16]), s: [1; 16], dm: [0.0; 16], m: [0; 16] }
    }

    /// These scales with mins: `dm` times `m` per 16 elements.
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

/// Decodes a block type in units of 256 elements on instruction set `I`. Each type implements it once, generic over
/// `I`; an implementation for a single instruction set is for types that gain from an instruction that the traits
/// of [`ikq_simd`] lack.
///
/// All methods must be `#[inline(always)]` (see [`ikq_simd::IsaOp`]) and make arrays with
/// [`ikq_simd::array`] and [`ikq_simd::map`].
pub trait Decode<I: Isa>: Sized + 'static {
    /// Bytes of a unit of one row, without the row header.
    const UNIT_BYTES: usize;
    /// Bytes of one block. A row may end after any block of its last unit.
    const BLOCK_BYTES: usize;
    /// Bytes of the row header.
    const HEADER_BYTES: usize = 0;
    /// Elements that share an integer scale: 16 or 32 (256 where there is none).
    const SUB_BLOCK: usize;
    /// Float scales per unit: 1 for super-block types, 256 / block for small blocks.
    const N_FLOAT_SCALES: usize = 1;
    /// Whether mins are subtracted.
    const HAS_MIN: bool = false;
    /// Largest absolute value of a code. It decides how many products with 8-bit activations may be added in 16
    /// bits.
    const MAX_ABS_CODE: i32;
    /// Whether codes are never negative, so that they can be the unsigned operand of a dot-product instruction.
    const UNSIGNED: bool = false;
    /// Factor that matrix products, but not dequantizing, apply to the type's values.
    const PRODUCT_FACTOR: f32 = 1.0;

    /// Bytes of a block before its 32-bit words, as the device form (`ikq_formats::LaneForm`) divides it.
    const FRONT_BYTES: usize = 0;
    /// 32-bit words of a block in the device form.
    const BLOCK_WORDS: usize = (Self::BLOCK_BYTES - Self::FRONT_BYTES) / 4;
    /// Bytes of a block outside its words.
    const BLOCK_SMALLS: usize = Self::BLOCK_BYTES - 4 * Self::BLOCK_WORDS;
    /// Words of a unit in the device form.
    const UNIT_WORDS: usize = Self::UNIT_BYTES / Self::BLOCK_BYTES * Self::BLOCK_WORDS;
    /// Bytes of a unit outside its words.
    const UNIT_SMALLS: usize = Self::UNIT_BYTES / Self::BLOCK_BYTES * Self::BLOCK_SMALLS;
    /// Whether the bytes outside words are stored unit by unit, in front of the unit's words
    /// (`ikq_formats::LaneForm::by_unit`).
    const BY_UNIT: bool = Self::BLOCK_BYTES < Self::UNIT_BYTES
        && Self::UNIT_WORDS > 0
        && Self::UNIT_SMALLS > 0
        && (ikq_formats::LANES * Self::UNIT_SMALLS).is_multiple_of(64);
    /// Whether scales cover 16 elements; otherwise they cover 32 or more.
    const PER_16: bool = Self::SUB_BLOCK == 16 || Self::N_FLOAT_SCALES == 16;
    /// The form of the codes that [`Decode::lanes`] gives.
    const LANE_CODES: LaneCodes = if Self::UNSIGNED { LaneCodes::Plain } else { LaneCodes::Biased };

    /// How many of the vectors that [`Decode::lanes`] gives have codes so small that their products may be added in
    /// 16 bits (`ikq_simd::Products::pair_products`): 1, 2, 4 or 8; 1 where codes are biased.
    const SMALL: usize = Self::LANE_CODES.small(Self::MAX_ABS_CODE);

    /// How much work [`Decode::lanes`] is.
    const DECODING: Decoding = Decoding::Moderate;

    /// Whether products with one or two columns prefetch cache lines of words on instruction sets of many registers; with more columns,
    /// and with fewer registers, they always do. Where lines are read in order and little is computed with them, such
    /// processors prefetch by themselves, and doing it again only takes time.
    const ASKS_AHEAD: bool = !Self::BY_UNIT;

    /// How many neighbouring parts of 32 elements are decoded together because their codes share words or look-ups:
    /// 1, 2, 4 or 8.
    const TOGETHER: usize = 1;

    /// The float scale that the row header holds; 1 for types without a header.
    #[inline(always)]
    fn header(_header: &[u8]) -> f32 {
        1.0
    }

    /// The unit's scales; `header` is what [`Decode::header`] gave for the row.
    fn scales(isa: I, header: f32, unit: &[u8]) -> Scales;

    /// [`Scales::scale`] and [`Scales::min`] as vectors. Types override it where vectors take fewer steps than the
    /// arrays.
    #[inline(always)]
    fn factors(isa: I, header: f32, unit: &[u8]) -> (I::F, I::F) {
        let scales = Self::scales(isa, header, unit);
        (isa.load_f(&scales.scale()), isa.load_f(&scales.min()))
    }

    /// Codes of elements `64 * j..64 * j + 64` as `i8`, j in 0..4.
    fn codes(isa: I, unit: &[u8], j: usize) -> I::B64;

    /// Codes of elements `32 b..32 b + 32` of sixteen rows, b in 0..8. Vector i has elements `4 i..4 i + 4` of
    /// them: those of row r in its bytes `4 r..4 r + 4`, in the form that [`Decode::LANE_CODES`] says.
    #[inline(always)]
    fn lanes(isa: I, unit: &LaneUnit<'_>, b: usize) -> [I::B64; 8] {
        if Self::CODEBOOK == 0 {
            return by_rows::lanes::<I, Self>(isa, unit, b);
        }
        let mut indices = LaneIndices::default();
        Self::lane_indices(isa, unit, b, &mut indices);
        let mut out = [isa.splat(0); 8];
        // taken out of the registers that were stored they would take twice as long
        let indices = if Self::CODEBOOK > I::LOOKED_UP { std::hint::black_box(&indices) } else { &indices };
        Self::lanes_in_turn(isa, unit, b, indices, &mut out);
        out
    }

    /// For types with two tables of which the second is the first plus a constant, and whose codes have an offset: that constant; else
    /// 0. Products may take the codes by the first table ([`Decode::lanes_by_first`]), and add the constant to sums.
    const SECOND: u8 = 0;

    /// Where [`Decode::SECOND`] is not 0: bit k of each lane says whether elements `16 k..16 k + 16` of the row use the second table.
    /// Bits from 16 on are 0.
    #[inline(always)]
    fn lane_seconds(isa: I, _unit: &LaneUnit<'_>) -> I::I {
        isa.splat_i(0)
    }

    /// [`Decode::lanes`] as if all elements used the first table.
    #[inline(always)]
    fn lanes_by_first(isa: I, unit: &LaneUnit<'_>, b: usize) -> [I::B64; 8] {
        Self::lanes(isa, unit, b)
    }

    /// Entries of the type's codebook; 0 for types that have none. Those that have one implement [`Decode::lanes_in_turn`] and get
    /// [`Decode::lanes`] from it.
    const CODEBOOK: usize = 0;

    /// Puts the indices of a codebook together that [`Decode::lanes_in_turn`] reads, where they have more than eight bits.
    #[inline(always)]
    fn lane_indices(_: I, _unit: &LaneUnit<'_>, _b: usize, _out: &mut LaneIndices) {}

    /// Passes the vectors of [`Decode::lanes`] on one after another, for types whose vectors are so much work that it pays to
    /// use each before the next is made.
    #[inline(always)]
    fn lanes_in_turn(
        isa: I,
        unit: &LaneUnit<'_>,
        b: usize,
        _indices: &LaneIndices,
        take: &mut impl TakeLanes<I>,
    ) {
        for (i, codes) in Self::lanes(isa, unit, b).into_iter().enumerate() {
            take.take(isa, i, codes);
        }
    }

    /// The factors of a unit of sixteen rows; `header` holds what [`Decode::header`] gives for each.
    #[inline(always)]
    fn lane_scales(isa: I, header: I::F, unit: &LaneUnit<'_>, out: &mut LaneScales<I::F>) {
        by_rows::lane_scales::<I, Self>(isa, header, unit, out);
    }

    /// The integer scales that [`Decode::lane_integers`] gives; `None` for types of small blocks, which have float scales alone, and for
    /// those whose products are not faster with them (figures in docs/kernels.md).
    const INTEGERS: Option<Integers> = None;

    /// The factors of [`Decode::lane_scales`] as integers and floats apart: [`Scales::s`], [`Scales::m`], [`Scales::d`] and
    /// [`Scales::dm`].
    #[inline(always)]
    fn lane_integers(_: I, _unit: &LaneUnit<'_>, _out: &mut LaneIntegers<I::I, I::F>) {}
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
