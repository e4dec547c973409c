//! [`Lanes`]: operations on sixteen floats (or integers) at a time, as the encoders' searches use them.
//!
//! Encoders put sixteen sub-blocks (or sixteen candidates) side by side, one per lane. Every operation is one IEEE
//! operation per lane (two for [`Lanes::round`] and [`Lanes::mul_add_f`]), so a search gives the same codes on
//! every instruction set; [`Lanes::sum`] adds the lanes in a fixed order.

use core::arch::x86_64::*;

use crate::{Avx2, Avx512, Scalar};

/// Adding and then subtracting this rounds to the nearest integer, ties to even, for |x| < 2^22.
const ROUND: f32 = 12_582_912.0;

/// The largest finite half-precision number.
const F16_MAX: f32 = 65504.0;

/// Sixteen f32 lanes.
pub trait Lanes: Copy + Send + Sync + 'static {
    type F: Copy;
    /// Sixteen i32 lanes.
    type I: Copy;
    /// Whether a look-up among 32 or 64 floats is faster than ten arithmetic operations.
    const WIDE_LUT: bool;

    fn load_f(self, x: &[f32; 16]) -> Self::F;
    fn splat_f(self, x: f32) -> Self::F;
    fn store_f(self, v: Self::F, out: &mut [f32; 16]);
    fn add_f(self, a: Self::F, b: Self::F) -> Self::F;
    fn sub_f(self, a: Self::F, b: Self::F) -> Self::F;
    fn mul_f(self, a: Self::F, b: Self::F) -> Self::F;
    /// Division. x / 0 is that of IEEE; callers replace it afterwards where it matters.
    fn div_f(self, a: Self::F, b: Self::F) -> Self::F;
    fn sqrt_f(self, v: Self::F) -> Self::F;
    /// `a < b ? a : b` per lane (b where either is NaN).
    fn min_f(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a > b ? a : b` per lane (b where either is NaN).
    fn max_f(self, a: Self::F, b: Self::F) -> Self::F;
    fn abs_f(self, v: Self::F) -> Self::F;
    /// `a > b ? x : y` per lane (y where either is NaN).
    fn if_gt(self, a: Self::F, b: Self::F, x: Self::F, y: Self::F) -> Self::F;
    /// Bit i of the result tells whether `a > b` in lane i (0 where either is NaN).
    fn bits_gt(self, a: Self::F, b: Self::F) -> u32;

    /// Vector i of the result has element i of the sixteen rows.
    #[inline(always)]
    fn transpose(self, rows: [&[f32; 16]; 16]) -> [Self::F; 16] {
        let mut columns = [self.splat_f(0.0); 16];
        for (i, column) in columns.iter_mut().enumerate() {
            *column = self.load_f(&crate::array(|lane| rows[lane][i]));
        }
        columns
    }

    fn load_i(self, x: &[i32; 16]) -> Self::I;
    fn splat_i(self, x: i32) -> Self::I;
    /// The integers as floats, rounded to nearest.
    fn float_i(self, v: Self::I) -> Self::F;
    /// `table[index % 16]` per lane.
    fn lut16_f(self, table: Self::F, index: Self::I) -> Self::F;
    /// [`Lanes::lut16_f`] for indices below 8, which is half the work where registers hold 8 lanes.
    #[inline(always)]
    fn lut8_f(self, table: Self::F, index: Self::I) -> Self::F {
        self.lut16_f(table, index)
    }
    /// `table[index % 32]` per lane.
    fn lut32_f(self, table: [Self::F; 2], index: Self::I) -> Self::F;
    /// `table[index % 64]` per lane.
    fn lut64_f(self, table: [Self::F; 4], index: Self::I) -> Self::F;
    /// Adds a weighted squared distance in two coordinates to each lane: `acc + sum over both of e^2`, where
    /// `e = (p - target) * root / 2^15`. The two p of lane i are elements 2i and 2i + 1 of `points`; `target` and
    /// `root` are pairs that [`pair`] makes, where `root` is the positive square root of the weight. Differences
    /// saturate to i16, and e is rounded to the nearest integer (ties up). The caller must make sure that the sum
    /// fits i32.
    fn add_square_2(self, acc: Self::I, points: &[i16; 32], target: Self::I, root: Self::I) -> Self::I;

    /// The bits of the floats.
    fn bits_i(self, v: Self::F) -> Self::I;
    /// The bits of the nearest f16 numbers (ties to even); numbers beyond +-65504 become the largest finite
    /// one. No lane may be NaN.
    fn f16_bits(self, v: Self::F) -> [u16; 16];
    /// The numbers whose bits [`Lanes::f16_bits`] gives.
    fn f16_round(self, v: Self::F) -> Self::F;

    /// The nearest integer (ties to even) as a *slot*, an index for [`Lanes::lut16_slot`]: a large float whose
    /// lowest bits are that integer. Slots of neighbouring integers differ by 1.0;
    /// [`Lanes::slot_number`] gives the integer. |x| must be below 2^22.
    #[inline(always)]
    fn slot(self, v: Self::F) -> Self::F {
        self.add_f(v, self.splat_f(ROUND))
    }

    /// `table[slot % 16]` per lane.
    #[inline(always)]
    fn lut16_slot(self, table: Self::F, slots: Self::F) -> Self::F {
        self.lut16_f(table, self.bits_i(slots))
    }

    /// The lowest byte of each slot: its integer, in two's complement where it is negative.
    #[inline(always)]
    fn slot_bytes(self, slots: Self::F) -> [u8; 16] {
        crate::map(self.array(slots), |slot| slot.to_bits() as u8)
    }

    /// The integer of a slot.
    #[inline(always)]
    fn slot_number(self, slots: Self::F) -> Self::F {
        self.sub_f(slots, self.splat_f(ROUND))
    }

    /// `a * b + c`, rounded twice on every instruction set, never fused.
    #[inline(always)]
    fn mul_add_f(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        self.add_f(self.mul_f(a, b), c)
    }

    /// Nearest integer, ties to even; |x| must be below 2^22.
    #[inline(always)]
    fn round(self, v: Self::F) -> Self::F {
        let big = self.splat_f(ROUND);
        self.sub_f(self.add_f(v, big), big)
    }

    /// The lanes as an array.
    #[inline(always)]
    fn array(self, v: Self::F) -> [f32; 16] {
        let mut out = [0.0; 16];
        self.store_f(v, &mut out);
        out
    }

    /// The smallest lane. No lane may be NaN.
    #[inline(always)]
    fn least(self, v: Self::F) -> f32 {
        let a = self.array(v);
        let b: [f32; 8] = crate::array(|i| a[i].min(a[i + 8]));
        let c: [f32; 4] = crate::array(|i| b[i].min(b[i + 4]));
        c[0].min(c[2]).min(c[1].min(c[3]))
    }

    /// The sum of the lanes, added by halving: 16 -> 8 -> 4 -> 2 -> 1.
    #[inline(always)]
    fn sum(self, v: Self::F) -> f32 {
        let a = self.array(v);
        let b: [f32; 8] = crate::array(|i| a[i] + a[i + 8]);
        let c: [f32; 4] = crate::array(|i| b[i] + b[i + 4]);
        (c[0] + c[2]) + (c[1] + c[3])
    }
}

/// The same two i16 in every lane's i32, for [`Lanes::add_square_2`].
#[inline(always)]
pub fn pair<L: Lanes>(isa: L, [a, b]: [i16; 2]) -> L::I {
    isa.splat_i(i32::from(a as u16) | i32::from(b) << 16)
}

#[inline(always)]
fn zip(a: [f32; 16], b: [f32; 16], f: impl Fn(f32, f32) -> f32) -> [f32; 16] {
    std::array::from_fn(|i| f(a[i], b[i]))
}

impl Lanes for Scalar {
    type F = [f32; 16];
    type I = [i32; 16];
    const WIDE_LUT: bool = true;

    #[inline(always)]
    fn load_f(self, x: &[f32; 16]) -> [f32; 16] {
        *x
    }
    #[inline(always)]
    fn splat_f(self, x: f32) -> [f32; 16] {
        [x; 16]
    }
    #[inline(always)]
    fn store_f(self, v: [f32; 16], out: &mut [f32; 16]) {
        *out = v;
    }
    #[inline(always)]
    fn add_f(self, a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        zip(a, b, |a, b| a + b)
    }
    #[inline(always)]
    fn sub_f(self, a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        zip(a, b, |a, b| a - b)
    }
    #[inline(always)]
    fn mul_f(self, a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        zip(a, b, |a, b| a * b)
    }
    #[inline(always)]
    fn div_f(self, a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        zip(a, b, |a, b| a / b)
    }
    #[inline(always)]
    fn sqrt_f(self, v: [f32; 16]) -> [f32; 16] {
        v.map(f32::sqrt)
    }
    #[inline(always)]
    fn min_f(self, a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        zip(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    fn max_f(self, a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        zip(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn abs_f(self, v: [f32; 16]) -> [f32; 16] {
        v.map(f32::abs)
    }
    #[inline(always)]
    fn if_gt(self, a: [f32; 16], b: [f32; 16], x: [f32; 16], y: [f32; 16]) -> [f32; 16] {
        std::array::from_fn(|i| if a[i] > b[i] { x[i] } else { y[i] })
    }
    #[inline(always)]
    fn bits_gt(self, a: [f32; 16], b: [f32; 16]) -> u32 {
        a.iter().zip(&b).rev().fold(0, |bits, (a, b)| 2 * bits + u32::from(a > b))
    }
    #[inline(always)]
    fn load_i(self, x: &[i32; 16]) -> [i32; 16] {
        *x
    }
    #[inline(always)]
    fn splat_i(self, x: i32) -> [i32; 16] {
        [x; 16]
    }
    #[inline(always)]
    fn float_i(self, v: [i32; 16]) -> [f32; 16] {
        v.map(|x| x as f32)
    }
    #[inline(always)]
    fn lut16_f(self, table: [f32; 16], index: [i32; 16]) -> [f32; 16] {
        index.map(|i| table[(i & 15) as usize])
    }
    #[inline(always)]
    fn lut32_f(self, table: [[f32; 16]; 2], index: [i32; 16]) -> [f32; 16] {
        index.map(|i| table.as_flattened()[(i & 31) as usize])
    }
    #[inline(always)]
    fn lut64_f(self, table: [[f32; 16]; 4], index: [i32; 16]) -> [f32; 16] {
        index.map(|i| table.as_flattened()[(i & 63) as usize])
    }
    #[inline(always)]
    fn add_square_2(
        self,
        acc: [i32; 16],
        points: &[i16; 32],
        target: [i32; 16],
        root: [i32; 16],
    ) -> [i32; 16] {
        let term = |p: i16, t: i32, r: i32| {
            let e = (i32::from(p.saturating_sub(t as i16)) * i32::from(r as i16) + 0x4000) >> 15;
            e * e
        };
        std::array::from_fn(|i| {
            let (t, r) = (target[i], root[i]);
            acc[i] + term(points[2 * i], t, r) + term(points[2 * i + 1], t >> 16, r >> 16)
        })
    }
    #[inline(always)]
    fn bits_i(self, v: [f32; 16]) -> [i32; 16] {
        v.map(|x| x.to_bits() as i32)
    }
    #[inline(always)]
    fn f16_bits(self, v: [f32; 16]) -> [u16; 16] {
        v.map(f16_bits)
    }
    #[inline(always)]
    fn f16_round(self, v: [f32; 16]) -> [f32; 16] {
        v.map(|x| crate::scalar::f16_to_f32(f16_bits(x)))
    }
}

/// Converts single to half precision: to nearest, ties to even, saturating.
#[inline(always)]
fn f16_bits(x: f32) -> u16 {
    let sign = (x.to_bits() >> 16) as u16 & 0x8000;
    let magnitude = if x.abs() < F16_MAX { x.abs() } else { F16_MAX };
    // below 2^-14, where f16 numbers are subnormal: their steps are the last place of 0.5 as an f32
    let subnormal = (magnitude + 0.5).to_bits() - 0.5f32.to_bits();
    let bits = magnitude.to_bits();
    let normal = bits.wrapping_sub(112 << 23).wrapping_add(0xfff + (bits >> 13 & 1)) >> 13;
    sign | if magnitude < 6.103_515_6e-5 { subnormal } else { normal } as u16
}

/// The two registers of sixteen lanes.
type Pair = [__m256; 2];

/// One AVX instruction on both halves.
macro_rules! both {
    ($a:expr, $b:expr, $op:ident) => {{
        let (a, b) = ($a, $b);
        // SAFETY: in methods of `Avx2`, whose token proves the instructions.
        unsafe { [$op(a[0], b[0]), $op(a[1], b[1])] }
    }};
}

/// `one` where the bit of the index is set, else `zero`. Only for methods of `Avx2`.
#[inline(always)]
fn by_bit<const BIT: u32>(index: [__m256i; 2], zero: Pair, one: Pair) -> Pair {
    // SAFETY: called in methods of `Avx2`, whose token proves the instructions.
    unsafe {
        // a blend chooses by the sign bit
        let up = _mm_cvtsi32_si128(31 - BIT as i32);
        let lo = _mm256_castsi256_ps(_mm256_sll_epi32(index[0], up));
        let hi = _mm256_castsi256_ps(_mm256_sll_epi32(index[1], up));
        [_mm256_blendv_ps(zero[0], one[0], lo), _mm256_blendv_ps(zero[1], one[1], hi)]
    }
}

/// `table[index % 16]` of eight lanes.
///
/// # Safety
/// AVX2 must be there.
#[inline(always)]
unsafe fn lut16_8(table: Pair, index: __m256i) -> __m256 {
    // SAFETY: as promised.
    unsafe {
        // the permutation uses three bits of an index, and the blend the sign bit, to which bit 3 is moved
        let (lo, hi) = (_mm256_permutevar8x32_ps(table[0], index), _mm256_permutevar8x32_ps(table[1], index));
        _mm256_blendv_ps(lo, hi, _mm256_castsi256_ps(_mm256_slli_epi32::<28>(index)))
    }
}

/// Rounds to the nearest f16 numbers.
///
/// # Safety
/// F16C must be there.
#[inline(always)]
unsafe fn half_precision(v: Pair) -> [__m128i; 2] {
    // SAFETY: as promised.
    unsafe {
        [
            _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v[0]),
            _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v[1]),
        ]
    }
}

// There are no `map` and no closures around intrinsics below, because code that is not inlined lacks the
// instructions.
impl Lanes for Avx2 {
    type F = Pair;
    type I = [__m256i; 2];
    const WIDE_LUT: bool = false;

    #[inline(always)]
    fn load_f(self, x: &[f32; 16]) -> Pair {
        // SAFETY: the token proves AVX; `x` is 16 readable floats.
        unsafe { [_mm256_loadu_ps(x.as_ptr()), _mm256_loadu_ps(x[8..].as_ptr())] }
    }
    #[inline(always)]
    fn splat_f(self, x: f32) -> Pair {
        // SAFETY: the token proves AVX.
        unsafe { [_mm256_set1_ps(x); 2] }
    }
    #[inline(always)]
    fn store_f(self, v: Pair, out: &mut [f32; 16]) {
        // SAFETY: the token proves AVX; `out` is 16 writable floats.
        unsafe {
            _mm256_storeu_ps(out.as_mut_ptr(), v[0]);
            _mm256_storeu_ps(out[8..].as_mut_ptr(), v[1]);
        }
    }
    #[inline(always)]
    fn add_f(self, a: Pair, b: Pair) -> Pair {
        both!(a, b, _mm256_add_ps)
    }
    #[inline(always)]
    fn sub_f(self, a: Pair, b: Pair) -> Pair {
        both!(a, b, _mm256_sub_ps)
    }
    #[inline(always)]
    fn mul_f(self, a: Pair, b: Pair) -> Pair {
        both!(a, b, _mm256_mul_ps)
    }
    #[inline(always)]
    fn div_f(self, a: Pair, b: Pair) -> Pair {
        both!(a, b, _mm256_div_ps)
    }
    #[inline(always)]
    fn sqrt_f(self, v: Pair) -> Pair {
        // SAFETY: the token proves AVX.
        unsafe { [_mm256_sqrt_ps(v[0]), _mm256_sqrt_ps(v[1])] }
    }
    #[inline(always)]
    fn min_f(self, a: Pair, b: Pair) -> Pair {
        both!(a, b, _mm256_min_ps)
    }
    #[inline(always)]
    fn max_f(self, a: Pair, b: Pair) -> Pair {
        both!(a, b, _mm256_max_ps)
    }
    #[inline(always)]
    fn abs_f(self, v: Pair) -> Pair {
        both!(self.splat_f(-0.0), v, _mm256_andnot_ps)
    }
    #[inline(always)]
    fn if_gt(self, a: Pair, b: Pair, x: Pair, y: Pair) -> Pair {
        // SAFETY: the token proves AVX.
        unsafe {
            let m = [_mm256_cmp_ps::<_CMP_GT_OQ>(a[0], b[0]), _mm256_cmp_ps::<_CMP_GT_OQ>(a[1], b[1])];
            [_mm256_blendv_ps(y[0], x[0], m[0]), _mm256_blendv_ps(y[1], x[1], m[1])]
        }
    }
    #[inline(always)]
    fn bits_gt(self, a: Pair, b: Pair) -> u32 {
        // SAFETY: the token proves AVX.
        unsafe {
            let m = [_mm256_cmp_ps::<_CMP_GT_OQ>(a[0], b[0]), _mm256_cmp_ps::<_CMP_GT_OQ>(a[1], b[1])];
            _mm256_movemask_ps(m[0]) as u32 | (_mm256_movemask_ps(m[1]) as u32) << 8
        }
    }
    #[inline(always)]
    fn slot_bytes(self, slots: Pair) -> [u8; 16] {
        let mut out = [0; 16];
        // SAFETY: the token proves AVX2; `out` is 16 writable bytes.
        unsafe {
            // the low bytes of lanes are gathered within halves first, then those of the halves are joined
            let pick = _mm256_setr_epi8(
                0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, //
                -1, -1, -1, -1, 0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1,
            );
            let lo = _mm256_shuffle_epi8(_mm256_castps_si256(slots[0]), pick);
            let hi = _mm256_shuffle_epi8(_mm256_castps_si256(slots[1]), pick);
            let lo = _mm_or_si128(_mm256_castsi256_si128(lo), _mm256_extracti128_si256::<1>(lo));
            let hi = _mm_or_si128(_mm256_castsi256_si128(hi), _mm256_extracti128_si256::<1>(hi));
            let bytes = _mm_unpacklo_epi64(lo, hi);
            _mm_storeu_si128(out.as_mut_ptr().cast(), bytes);
        }
        out
    }
    #[inline(always)]
    fn bits_i(self, v: Pair) -> [__m256i; 2] {
        // SAFETY: the token proves AVX.
        unsafe { [_mm256_castps_si256(v[0]), _mm256_castps_si256(v[1])] }
    }
    #[inline(always)]
    fn f16_bits(self, v: Pair) -> [u16; 16] {
        let v = self.max_f(self.min_f(v, self.splat_f(F16_MAX)), self.splat_f(-F16_MAX));
        let mut out = [0; 16];
        // SAFETY: the token proves F16C; `out` is 16 writable u16.
        unsafe {
            let [lo, hi] = half_precision(v);
            _mm_storeu_si128(out.as_mut_ptr().cast(), lo);
            _mm_storeu_si128(out[8..].as_mut_ptr().cast(), hi);
        }
        out
    }
    #[inline(always)]
    fn f16_round(self, v: Pair) -> Pair {
        let v = self.max_f(self.min_f(v, self.splat_f(F16_MAX)), self.splat_f(-F16_MAX));
        // SAFETY: the token proves F16C.
        unsafe {
            let [lo, hi] = half_precision(v);
            [_mm256_cvtph_ps(lo), _mm256_cvtph_ps(hi)]
        }
    }
    #[inline(always)]
    fn least(self, v: Pair) -> f32 {
        // SAFETY: the token proves AVX.
        unsafe {
            let eight = _mm256_min_ps(v[0], v[1]);
            let four = _mm_min_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_min_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_min_ss(two, _mm_movehdup_ps(two)))
        }
    }
    #[inline(always)]
    fn transpose(self, rows: [&[f32; 16]; 16]) -> [Pair; 16] {
        // SAFETY: the token proves AVX.
        unsafe { crate::transpose::avx2(crate::transpose::starts(rows)) }
    }
    #[inline(always)]
    fn load_i(self, x: &[i32; 16]) -> [__m256i; 2] {
        // SAFETY: the token proves AVX; `x` is 16 readable integers.
        unsafe { [_mm256_loadu_si256(x.as_ptr().cast()), _mm256_loadu_si256(x[8..].as_ptr().cast())] }
    }
    #[inline(always)]
    fn splat_i(self, x: i32) -> [__m256i; 2] {
        // SAFETY: the token proves AVX.
        unsafe { [_mm256_set1_epi32(x); 2] }
    }
    #[inline(always)]
    fn float_i(self, v: [__m256i; 2]) -> Pair {
        // SAFETY: the token proves AVX.
        unsafe { [_mm256_cvtepi32_ps(v[0]), _mm256_cvtepi32_ps(v[1])] }
    }
    #[inline(always)]
    fn lut16_f(self, table: Pair, index: [__m256i; 2]) -> Pair {
        // SAFETY: the token proves AVX2.
        unsafe { [lut16_8(table, index[0]), lut16_8(table, index[1])] }
    }
    #[inline(always)]
    fn lut8_f(self, table: Pair, index: [__m256i; 2]) -> Pair {
        // SAFETY: the token proves AVX2.
        unsafe {
            [_mm256_permutevar8x32_ps(table[0], index[0]), _mm256_permutevar8x32_ps(table[0], index[1])]
        }
    }
    #[inline(always)]
    fn lut32_f(self, [a, b]: [Pair; 2], index: [__m256i; 2]) -> Pair {
        by_bit::<4>(index, self.lut16_f(a, index), self.lut16_f(b, index))
    }
    #[inline(always)]
    fn lut64_f(self, [a, b, c, d]: [Pair; 4], index: [__m256i; 2]) -> Pair {
        by_bit::<5>(index, self.lut32_f([a, b], index), self.lut32_f([c, d], index))
    }
    #[inline(always)]
    fn add_square_2(
        self,
        acc: [__m256i; 2],
        points: &[i16; 32],
        target: [__m256i; 2],
        root: [__m256i; 2],
    ) -> [__m256i; 2] {
        // SAFETY: the token proves AVX2; `points` is 64 readable bytes.
        unsafe {
            let (lo, hi) = (points.as_ptr().cast(), points[16..].as_ptr().cast());
            let lo = _mm256_subs_epi16(_mm256_loadu_si256(lo), target[0]);
            let hi = _mm256_subs_epi16(_mm256_loadu_si256(hi), target[1]);
            let (lo, hi) = (_mm256_mulhrs_epi16(lo, root[0]), _mm256_mulhrs_epi16(hi, root[1]));
            [
                _mm256_add_epi32(acc[0], _mm256_madd_epi16(lo, lo)),
                _mm256_add_epi32(acc[1], _mm256_madd_epi16(hi, hi)),
            ]
        }
    }
}

/// Runs AVX-512 intrinsics in methods of `Avx512`.
macro_rules! avx512 {
    ($($body:tt)*) => {
        // SAFETY: in methods of `Avx512`, whose token proves the instructions; memory operands are
        // references to arrays of 64 bytes.
        unsafe { $($body)* }
    };
}

impl Lanes for Avx512 {
    type F = __m512;
    type I = __m512i;
    const WIDE_LUT: bool = true;

    #[inline(always)]
    fn load_f(self, x: &[f32; 16]) -> __m512 {
        avx512! { _mm512_loadu_ps(x.as_ptr()) }
    }
    #[inline(always)]
    fn splat_f(self, x: f32) -> __m512 {
        avx512! { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    fn store_f(self, v: __m512, out: &mut [f32; 16]) {
        avx512! { _mm512_storeu_ps(out.as_mut_ptr(), v) }
    }
    #[inline(always)]
    fn add_f(self, a: __m512, b: __m512) -> __m512 {
        avx512! { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    fn sub_f(self, a: __m512, b: __m512) -> __m512 {
        avx512! { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    fn mul_f(self, a: __m512, b: __m512) -> __m512 {
        avx512! { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    fn div_f(self, a: __m512, b: __m512) -> __m512 {
        avx512! { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    fn sqrt_f(self, v: __m512) -> __m512 {
        avx512! { _mm512_sqrt_ps(v) }
    }
    #[inline(always)]
    fn min_f(self, a: __m512, b: __m512) -> __m512 {
        avx512! { _mm512_min_ps(a, b) }
    }
    #[inline(always)]
    fn max_f(self, a: __m512, b: __m512) -> __m512 {
        avx512! { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    fn abs_f(self, v: __m512) -> __m512 {
        avx512! { _mm512_abs_ps(v) }
    }
    #[inline(always)]
    fn if_gt(self, a: __m512, b: __m512, x: __m512, y: __m512) -> __m512 {
        avx512! { _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_GT_OQ>(a, b), y, x) }
    }
    #[inline(always)]
    fn bits_gt(self, a: __m512, b: __m512) -> u32 {
        avx512! { u32::from(_mm512_cmp_ps_mask::<_CMP_GT_OQ>(a, b)) }
    }
    #[inline(always)]
    fn least(self, v: __m512) -> f32 {
        avx512! { _mm512_reduce_min_ps(v) }
    }
    #[inline(always)]
    fn transpose(self, rows: [&[f32; 16]; 16]) -> [__m512; 16] {
        avx512! { crate::transpose::avx512(crate::transpose::starts(rows)) }
    }
    #[inline(always)]
    fn load_i(self, x: &[i32; 16]) -> __m512i {
        avx512! { _mm512_loadu_si512(x.as_ptr().cast()) }
    }
    #[inline(always)]
    fn splat_i(self, x: i32) -> __m512i {
        avx512! { _mm512_set1_epi32(x) }
    }
    #[inline(always)]
    fn float_i(self, v: __m512i) -> __m512 {
        avx512! { _mm512_cvtepi32_ps(v) }
    }
    #[inline(always)]
    fn lut16_f(self, table: __m512, index: __m512i) -> __m512 {
        avx512! { _mm512_permutexvar_ps(index, table) }
    }
    #[inline(always)]
    fn lut32_f(self, [a, b]: [__m512; 2], index: __m512i) -> __m512 {
        avx512! { _mm512_permutex2var_ps(a, index, b) }
    }
    #[inline(always)]
    fn lut64_f(self, [a, b, c, d]: [__m512; 4], index: __m512i) -> __m512 {
        avx512! {
            let high = _mm512_test_epi32_mask(index, _mm512_set1_epi32(32));
            _mm512_mask_blend_ps(high, _mm512_permutex2var_ps(a, index, b), _mm512_permutex2var_ps(c, index, d))
        }
    }
    #[inline(always)]
    fn add_square_2(self, acc: __m512i, points: &[i16; 32], target: __m512i, root: __m512i) -> __m512i {
        // the 32 i16 of `points` are the 64 bytes that are loaded
        avx512! {
            let d = _mm512_subs_epi16(_mm512_loadu_si512(points.as_ptr().cast()), target);
            let e = _mm512_mulhrs_epi16(d, root);
            _mm512_dpwssd_epi32(acc, e, e)
        }
    }
    #[inline(always)]
    fn slot_bytes(self, slots: __m512) -> [u8; 16] {
        let mut out = [0; 16];
        // SAFETY: the token proves AVX-512F; `out` is 16 writable bytes.
        unsafe {
            let bytes = _mm512_cvtepi32_epi8(_mm512_castps_si512(slots));
            _mm_storeu_si128(out.as_mut_ptr().cast(), bytes);
        }
        out
    }
    #[inline(always)]
    fn bits_i(self, v: __m512) -> __m512i {
        avx512! { _mm512_castps_si512(v) }
    }
    #[inline(always)]
    fn f16_bits(self, v: __m512) -> [u16; 16] {
        let v = self.max_f(self.min_f(v, self.splat_f(F16_MAX)), self.splat_f(-F16_MAX));
        let mut out = [0; 16];
        // SAFETY: the token proves AVX-512F; `out` is 16 writable u16.
        unsafe {
            let halves = _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v);
            _mm256_storeu_si256(out.as_mut_ptr().cast(), halves);
        }
        out
    }
    #[inline(always)]
    fn f16_round(self, v: __m512) -> __m512 {
        let v = self.max_f(self.min_f(v, self.splat_f(F16_MAX)), self.splat_f(-F16_MAX));
        avx512! { _mm512_cvtph_ps(_mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v)) }
    }
}
