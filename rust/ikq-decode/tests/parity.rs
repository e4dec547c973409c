//! Random bytes: every instruction set gives the scalar decoder's values and codes, for rows that end
//! inside a unit of 256 too, and the constants of each decoder say the truth about its codes.

use ikq_decode::{
    BlockType, Decode, DecodeFacts, UNIT, Visitor, dequantize, dequantize_i2_s, facts, with_type,
};
use ikq_formats::{Family, QuantType, matrix_bytes};
use ikq_simd::{Isa, IsaKind, IsaOp, available, run};

/// SplitMix64: any sequence of well-mixed bytes will do.
fn random_bytes(n: usize, seed: u64) -> Vec<u8> {
    let mut state = seed;
    let next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ z >> 31).to_le_bytes()
    };
    let mut bytes: Vec<u8> = std::iter::repeat_with(next).take(n.div_ceil(8)).flatten().collect();
    bytes.truncate(n);
    bytes
}

/// The same bits, but for the payload of a NaN (random scales may be NaN).
fn same(a: f32, b: f32) -> bool {
    a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan()
}

fn decoded(kind: IsaKind, ty: QuantType, data: &[u8], n_rows: usize, n_per_row: usize) -> Vec<f32> {
    let mut out = vec![f32::NAN; n_rows * n_per_row];
    dequantize(kind, ty, data, n_rows, n_per_row, &mut out).expect("a matrix of the right size");
    out
}

#[test]
fn every_instruction_set_gives_the_scalar_values() {
    for ty in QuantType::ALL.iter().copied() {
        let t = ty.info();
        // one block, a row that ends inside a unit, whole units
        let n_blocks = [1, UNIT / t.block_size + 1, 3 * UNIT / t.block_size - 1, 4 * UNIT / t.block_size];
        for n_per_row in n_blocks.map(|n| n * t.block_size) {
            let n_per_row = match ty {
                QuantType::I2_S => n_per_row.next_multiple_of(128),
                QuantType::BF16_R16 => n_per_row.next_multiple_of(2),
                QuantType::Q8_K64 => n_per_row.max(512),
                _ => n_per_row,
            };
            let n_rows = 2 * t.rows;
            let n_bytes = matrix_bytes(ty, n_rows, n_per_row).expect("a shape that fits");
            let data = random_bytes(n_bytes, u64::from(ty.id()) << 32 | n_per_row as u64);
            let scalar = decoded(IsaKind::Scalar, ty, &data, n_rows, n_per_row);
            for kind in available() {
                let values = decoded(kind, ty, &data, n_rows, n_per_row);
                let wrong = (0..values.len()).find(|i| !same(values[*i], scalar[*i]));
                assert_eq!(wrong, None, "{ty} on {}, rows of {n_per_row}", kind.name());
            }
        }
    }
}

#[test]
fn a_short_row_has_the_values_of_a_longer_one() {
    for ty in QuantType::ALL.iter().copied() {
        let t = ty.info();
        // row-wide headers, interleaving and X4 groups do not let a row be cut
        let plain = t.rows == 1 && t.row_header_bytes == 0 && t.family != Family::Activation;
        if !plain || t.block_size == UNIT || ty == QuantType::I2_S {
            continue;
        }
        let n = 2 * UNIT;
        let data = random_bytes(n / t.block_size * t.block_bytes, u64::from(ty.id()));
        for kind in available() {
            let whole = decoded(kind, ty, &data, 1, n);
            let cut = n - t.block_size;
            let short = decoded(kind, ty, &data[..data.len() - t.block_bytes], 1, cut);
            assert!((0..cut).all(|i| same(short[i], whole[i])), "{ty} on {}", kind.name());
        }
    }
}

#[test]
fn i2_s_decodes_in_parts() {
    let (n_rows, n_per_row) = (3, 384);
    let data = random_bytes(n_rows * n_per_row / 4 + 32, 7);
    let scale = f32::from_le_bytes([data[288], data[289], data[290], data[291]]);
    for kind in available() {
        let whole = decoded(kind, QuantType::I2_S, &data, n_rows, n_per_row);
        let mut row = vec![0.0; n_per_row];
        dequantize_i2_s(kind, &data[96..192], scale, &mut row);
        assert!((0..n_per_row).all(|i| same(row[i], whole[n_per_row + i])));
    }
}

/// The codes of a unit.
struct Codes<'a, T> {
    unit: &'a [u8],
    ty: std::marker::PhantomData<T>,
}

impl<T: BlockType> IsaOp for Codes<'_, T> {
    type Output = [i8; UNIT];

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> [i8; UNIT] {
        let mut out = [0; UNIT];
        for (j, out) in out.chunks_exact_mut(64).enumerate() {
            let mut bytes = [0; 64];
            isa.store(T::Decoder::<I>::codes(isa, self.unit, j), &mut bytes);
            out.copy_from_slice(&bytes.map(|b| b as i8));
        }
        out
    }
}

/// [`Decode::factors`] of the unit, then what [`Decode::scales`] says they are.
struct Factors<'a, T> {
    unit: &'a [u8],
    ty: std::marker::PhantomData<T>,
}

impl<T: BlockType> IsaOp for Factors<'_, T> {
    type Output = [[f32; 16]; 4];

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> [[f32; 16]; 4] {
        let (scale, min) = T::Decoder::<I>::factors(isa, 0.37, self.unit);
        let scales = T::Decoder::<I>::scales(isa, 0.37, self.unit);
        [isa.array(scale), isa.array(min), scales.scale(), scales.min()]
    }
}

/// Checks that a type's factors are its scales, on every instruction set.
struct SameFactors(QuantType);

impl Visitor for SameFactors {
    type Output = ();

    fn visit<T: BlockType>(self) {
        fn unit_bytes<D: Decode<ikq_simd::Scalar>>() -> usize {
            D::UNIT_BYTES
        }
        let n = unit_bytes::<T::Decoder<ikq_simd::Scalar>>();
        for kind in available() {
            for unit in random_bytes(100 * n, 12).chunks_exact(n) {
                let [scale, min, scales, mins] =
                    run(kind, Factors::<T> { unit, ty: std::marker::PhantomData });
                let equal = (0..16).all(|k| same(scale[k], scales[k]) && same(min[k], mins[k]));
                assert!(equal, "{} on {}", self.0, kind.name());
            }
        }
    }
}

#[test]
fn factors_are_the_scales() {
    let n = QuantType::ALL.iter().filter(|ty| with_type(**ty, SameFactors(**ty)).is_some()).count();
    assert!(n > 70, "{n} types");
}

/// Checks a type's constants with the codes and scales of many random units.
struct Survey {
    ty: QuantType,
}

impl Visitor for Survey {
    type Output = ();

    fn visit<T: BlockType>(self) {
        fn unit_bytes<D: Decode<ikq_simd::Scalar>>() -> usize {
            assert_eq!(D::UNIT_BYTES % D::BLOCK_BYTES, 0);
            D::UNIT_BYTES
        }
        let n = unit_bytes::<T::Decoder<ikq_simd::Scalar>>();
        let facts = facts(self.ty).expect("a block type has facts");
        for kind in available() {
            let (mut min, mut max) = (i32::MAX, i32::MIN);
            for unit in random_bytes(4000 * n, 11).chunks_exact(n) {
                let codes = run(kind, Codes::<T> { unit, ty: std::marker::PhantomData });
                min = min.min(i32::from(*codes.iter().min().expect("256 codes")));
                max = max.max(i32::from(*codes.iter().max().expect("256 codes")));
            }
            let name = format!("{} on {}: codes {min}..={max}", self.ty, kind.name());
            // a million random codes meet every level of every type
            assert_eq!(facts.max_abs_code, max.max(-min), "{name}");
            assert_eq!(facts.unsigned, min >= 0, "{name}");
        }
        self.scales::<T>(n, &facts);
    }
}

impl Survey {
    /// Checks that scales change where the constants allow it, and only there.
    fn scales<T: BlockType>(&self, unit_bytes: usize, facts: &DecodeFacts) {
        let ty = self.ty;
        let (mut d_runs, mut s_runs, mut any_min) = (1, 1, false);
        for unit in random_bytes(200 * unit_bytes, 12).chunks_exact(unit_bytes) {
            let s = T::Decoder::<ikq_simd::Scalar>::scales(token(), 1.0, unit);
            let runs = |differ: &dyn Fn(usize) -> bool| 1 + (1..16).filter(|k| differ(*k)).count();
            d_runs = d_runs.max(runs(&|k| s.d[k].to_bits() != s.d[k - 1].to_bits()));
            let pair = |k: usize| (s.s[k], s.m[k]);
            s_runs = s_runs.max(runs(&|k| pair(k) != pair(k - 1)));
            any_min |= s.dm.iter().any(|m| *m != 0.0);
            let per_float = 16 / facts.n_float_scales;
            assert!((0..16).all(|k| same(s.d[k], s.d[k / per_float * per_float])), "{ty}");
            let per_sub = facts.sub_block / 16;
            assert!((0..16).all(|k| pair(k) == pair(k / per_sub * per_sub)), "{ty}");
        }
        assert_eq!((d_runs, any_min), (facts.n_float_scales, facts.has_min), "{ty}");
        assert_eq!(s_runs, UNIT / facts.sub_block, "{ty}");
    }
}

fn token() -> ikq_simd::Scalar {
    ikq_simd::Scalar
}

#[test]
fn constants_tell_the_truth() {
    let mut n_types = 0;
    for ty in QuantType::ALL.iter().copied() {
        n_types += usize::from(with_type(ty, Survey { ty }).is_some());
        assert_eq!(with_type(ty, Survey { ty }).is_some(), facts(ty).is_some());
    }
    // all but 8 plain arrays, 10 activation types and BF16_R16
    assert_eq!(n_types, QuantType::ALL.len() - 19);
}

#[test]
fn product_factors_are_those_of_two_types() {
    let with_factor = |ty: &&QuantType| facts(**ty).is_some_and(|f| f.product_factor != 1.0);
    let types: Vec<_> = QuantType::ALL.iter().filter(with_factor).collect();
    assert_eq!(types, [&QuantType::IQ2_KT, &QuantType::IQ3_KT]);
}
