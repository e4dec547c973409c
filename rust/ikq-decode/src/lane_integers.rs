//! Integer scales of sixteen rows, as bytes: what products take that scale sums while these are integers.
//!
//! [`Decode::lane_integers`](crate::Decode::lane_integers) gives words of four bytes, one word per row in each lane, in which
//! [`Integers`] says where each scale stands.

use ikq_simd::Isa;

/// Where the bytes of a type's integer scales stand in the words of [`LaneIntegers::scale`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Scale k is byte `k % 4` of word `k / 4`.
    InOrder,
    /// Of each eight scales the even ones are in a word, the odd ones in the next.
    InTurn,
    /// Scale k is byte 1 or 3 of word `k / 2`.
    UpperBytes,
    /// Each scale is the lowest byte of a word of its own.
    Own,
}

/// The integer scales of a type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Integers {
    /// Whether they may be negative; others are below 128.
    pub signed: bool,
    pub place: Place,
}

impl Integers {
    pub const fn unsigned(place: Place) -> Option<Integers> {
        Some(Integers { signed: false, place })
    }

    pub const fn signed(place: Place) -> Option<Integers> {
        Some(Integers { signed: true, place })
    }

    /// The word and the byte of scale `k`.
    #[inline(always)]
    pub const fn at(self, k: usize) -> (usize, usize) {
        match self.place {
            Place::InOrder => (k / 4, k % 4),
            Place::InTurn => (2 * (k / 8) + k % 2, k % 8 / 2),
            Place::UpperBytes => (k / 2, 1 + 2 * (k % 2)),
            Place::Own => (k, 0),
        }
    }
}

/// Factors of a unit of sixteen rows, one row per lane: integers and what they are multiplied by. There is an integer per 16
/// elements, or, unless [`crate::Decode::PER_16`], per 32.
#[derive(Clone, Copy)]
pub struct LaneIntegers<V, F> {
    /// The scales; [`Integers`] says where. Other bytes are unspecified.
    pub scale: [V; 8],
    /// The mins, four in a word in their order; unspecified where the type has none. They are below 128.
    pub min: [V; 4],
    /// The float scale of the unit; unspecified in types that have one in the row header.
    pub d: F,
    /// That of the mins.
    pub dmin: F,
}

impl<V: Copy, F: Copy> LaneIntegers<V, F> {
    /// Zeros, to be overwritten.
    #[inline(always)]
    pub fn new<I: Isa<I = V, F = F>>(isa: I) -> LaneIntegers<V, F> {
        let (zero, d) = (isa.splat_i(0), isa.splat_f(0.0));
        LaneIntegers { scale: [zero; 8], min: [zero; 4], d, dmin: d }
    }
}

/// The low and the high nibbles of a word's bytes.
#[inline(always)]
pub(crate) fn nibble_words<I: Isa>(isa: I, v: I::I) -> [I::I; 2] {
    let low = isa.splat_i(0x0f0f_0f0f);
    [isa.and_i(v, low), isa.and_i(isa.shr_i(v, 4), low)]
}

/// `2 x + 1` of each byte below 64.
#[inline(always)]
pub(crate) fn odd_bytes<I: Isa>(isa: I, v: I::I) -> I::I {
    isa.or_i(isa.shl_i(v, 1), isa.splat_i(0x0101_0101))
}

/// `x - less` of each byte.
#[inline(always)]
pub(crate) fn less_bytes<I: Isa>(isa: I, v: I::I, less: u8) -> I::I {
    isa.ints(isa.sub(isa.of_ints(v), isa.splat(less)))
}

/// The nibbles from bit `from` on, the first four of them, a byte each.
#[inline(always)]
pub(crate) fn spread_nibbles<I: Isa>(isa: I, v: I::I, from: u32) -> I::I {
    let v = isa.and_i(isa.shr_i(v, from), isa.splat_i(0xffff));
    let v = isa.and_i(isa.or_i(v, isa.shl_i(v, 8)), isa.splat_i(0x00ff_00ff));
    isa.and_i(isa.or_i(v, isa.shl_i(v, 4)), isa.splat_i(0x0f0f_0f0f))
}

/// Eight scales of six bits less 32, in turn: their low nibbles are those of `low`, the upper two bits of scale k stand from bit
/// `from + 2 k` of `high` on.
#[inline(always)]
pub(crate) fn six_bits_in_turn<I: Isa>(isa: I, low: I::I, high: I::I, from: u32) -> [I::I; 2] {
    let [even, odd] = nibble_words(isa, low);
    let high = spread_nibbles(isa, high, from);
    let even = isa.or_i(even, isa.and_i(isa.shl_i(high, 4), isa.splat_i(0x3030_3030)));
    let odd = isa.or_i(odd, isa.and_i(isa.shl_i(high, 2), isa.splat_i(0x3030_3030)));
    [less_bytes(isa, even, 32), less_bytes(isa, odd, 32)]
}
