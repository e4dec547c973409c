//! Compares every operation on every instruction set of this machine with the scalar one, which is the
//! definition; operands are seeded random bytes.

use ikq_simd::{Isa, IsaKind, IsaOp, Scalar, available, pair, run};

/// A small generator, so that the operands are the same everywhere.
fn bytes<const N: usize>(seed: u64) -> [u8; N] {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    std::array::from_fn(|_| {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        (x >> 32) as u8
    })
}

/// Runs all operations once and returns their results.
struct Everything(u64);

impl IsaOp for Everything {
    type Output = (Vec<[u8; 64]>, Vec<u32>);

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> Self::Output {
        let seed = self.0;
        let (a, b) = (bytes::<64>(seed), bytes::<64>(seed + 1));
        let (va, vb) = (isa.load(&a), isa.load(&b));
        let quarter = |k: u64| bytes::<16>(seed + 2 + k);
        let q = [quarter(0), quarter(1), quarter(2), quarter(3)];
        let half = [bytes::<32>(seed + 7), bytes::<32>(seed + 8)];
        let words: [u8; 64] = bytes(seed + 9);
        let u32s: [u32; 16] =
            std::array::from_fn(|i| u32::from_le_bytes(std::array::from_fn(|k| words[4 * i + k])));
        let u64s: [u64; 8] =
            std::array::from_fn(|i| u64::from_le_bytes(std::array::from_fn(|k| words[8 * i + k])));
        let table: [i8; 64] = bytes::<64>(seed + 10).map(|b| b as i8);
        let t16: [i8; 16] = std::array::from_fn(|i| table[i]);
        let t32: [i8; 32] = std::array::from_fn(|i| table[i]);
        let mult: [u32; 8] = std::array::from_fn(|i| u32s[i] | 1);
        let seeds8: [u32; 8] = std::array::from_fn(|i| u32s[8 + i]);
        let shift = |s: [u32; 4]| isa.bits_4x16(va, s, (0xff_u32 >> s.iter().max().unwrap()) as u8);
        let out = [
            va,
            isa.load_2x32(&half[0], &half[1]),
            isa.load_4x16([&q[0], &q[1], &q[2], &q[3]]),
            isa.splat(a[3]),
            isa.splat_4x16([a[0], a[1], a[2], a[3]]),
            isa.of_u64(u64s),
            isa.of_u32(u32s),
            isa.and(va, vb),
            isa.or(va, vb),
            isa.xor(va, vb),
            shift([0, 0, 4, 4]),
            shift([0, 4, 0, 4]),
            shift([6, 6, 6, 6]),
            shift([1, 2, 3, 7]),
            isa.shl(isa.and(va, isa.splat(15)), 4),
            isa.add(va, vb),
            isa.sub(va, vb),
            isa.abs(va),
            isa.lut16(&t16, isa.and(va, isa.splat(15))),
            isa.lut32(&t32, isa.and(va, isa.splat(31))),
            isa.lut64(&table, isa.and(va, isa.splat(63))),
            isa.mask_bytes(u64s[0], a[9]),
            isa.negate_where(va, u64s[1]),
            isa.trellis_8x8(seeds8, &mult),
            isa.trellis_16x4(u32s, &mult),
        ];
        let stored = out
            .into_iter()
            .map(|v| {
                let mut bytes = [0; 64];
                isa.store(v, &mut bytes);
                bytes
            })
            .collect();
        let scale: [f32; 4] = std::array::from_fn(|i| f32::from(a[i]) * 0.37);
        let min: [f32; 4] = std::array::from_fn(|i| f32::from(b[i]) * 1.13);
        let mut floats = [[0f32; 64]; 2];
        isa.store_scaled(va, scale, &mut floats[0]);
        isa.store_affine(va, scale, min, &mut floats[1]);
        let x: [f32; 16] = std::array::from_fn(|i| (u32s[i] as i32 as f32) * 1e-3);
        let y: [f32; 16] = std::array::from_fn(|i| f32::from(table[i]) * 0.5);
        let (fx, fy) = (isa.load_f(&x), isa.load_f(&y));
        let i32s = u32s.map(|u| u as i32);
        let vi = isa.load_i(&i32s);
        let points: [i16; 32] = std::array::from_fn(|i| (u32s[i / 2] >> (16 * (i % 2))) as i16);
        let lanes = [
            isa.splat_f(x[0]),
            isa.add_f(fx, fy),
            isa.sub_f(fx, fy),
            isa.mul_f(fx, fy),
            isa.div_f(fx, isa.splat_f(3.7)),
            isa.sqrt_f(isa.abs_f(fx)),
            isa.min_f(fx, fy),
            isa.max_f(fx, fy),
            isa.if_gt(fx, fy, fy, isa.splat_f(-0.0)),
            isa.mul_add_f(fx, fy, fx),
            isa.round(fy),
            isa.splat_f(isa.sum(fx)),
            isa.splat_f(isa.least(fx)),
            isa.splat_f(isa.bits_gt(fx, fy) as f32),
            isa.lut16_slot(fx, isa.slot(fy)),
            isa.slot_number(isa.slot(fy)),
            isa.f16_round(fx),
            isa.f16_round(isa.mul_f(fx, isa.splat_f(1e-9))),
            isa.load_f(&isa.f16_bits(isa.mul_f(fx, isa.splat_f(0.1))).map(f32::from)),
            isa.float_i(vi),
            isa.float_i(isa.splat_i(i32s[3])),
            isa.lut16_f(fx, isa.load_i(&i32s.map(|i| i & 15))),
            isa.lut8_f(fx, isa.load_i(&i32s.map(|i| i & 7))),
            isa.lut32_f([fx, fy], vi),
            isa.lut64_f([fx, fy, isa.abs_f(fx), isa.abs_f(fy)], vi),
            isa.float_i(isa.add_square_2(
                isa.load_i(&i32s.map(|i| i >> 8)),
                &points,
                pair(isa, [points[0], points[31]]),
                pair(isa, [16_000, points[7] & 0x3fff]),
            )),
        ];
        let mut floats: Vec<f32> = floats.into_iter().flatten().collect();
        floats.extend(lanes.into_iter().flat_map(|v| isa.array(v)));
        (stored, floats.iter().map(|f| f.to_bits()).collect())
    }
}

#[test]
fn every_set_gives_the_bits_of_the_scalar_one() {
    for seed in 0..200 {
        let expected = Everything(seed).run(Scalar);
        for kind in available() {
            let found = run(kind, Everything(seed));
            for (op, (e, f)) in expected.0.iter().zip(&found.0).enumerate() {
                assert_eq!(e, f, "operation {op} on {}, seed {seed}", kind.name());
            }
            assert_eq!(expected.1, found.1, "floats on {}, seed {seed}", kind.name());
        }
    }
}

#[test]
fn the_generator_gives_the_documented_values() {
    // codes 0 and 65535 with the offset 4096
    let mut m = [0xCBAC_1FED_u32; 8];
    for k in 1..8 {
        m[k] = m[k - 1].wrapping_mul(0xCBAC_1FED);
    }
    let v = Scalar.trellis_8x8([4096, 4096 + 65535, 0, 0, 0, 0, 0, 0], &m).map(|b| b as i8);
    assert_eq!(v[..8], [-47, -36, -39, -86, -38, -38, -47, -35]);
    assert_eq!(v[8..16], [26, -32, -16, -9, -25, -62, 17, 10]);
    assert!(available().contains(&IsaKind::Scalar));
}

/// Converts all 65536 f16 numbers; NaN payloads are not compared.
struct Halves;

impl IsaOp for Halves {
    type Output = Vec<f32>;

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> Vec<f32> {
        let eight = |k: u16| isa.f16_8(std::array::from_fn(|i| 8 * k + i as u16));
        (0..8192).flat_map(eight).chain([isa.f16(0x3555)]).collect()
    }
}

#[test]
fn halves_convert_exactly() {
    let expected = Halves.run(Scalar);
    // 2^-24, 2^-14, one third rounded, 65504
    assert_eq!([expected[1], expected[0x400]], [5.960_464_5e-8, 6.103_515_6e-5]);
    assert_eq!(
        [expected[0x3555], expected[0x7bff], expected[0xfc00]],
        [0.333_251_95, 65504.0, f32::NEG_INFINITY]
    );
    for kind in available() {
        for (i, (e, f)) in expected.iter().zip(run(kind, Halves)).enumerate() {
            assert!(e.to_bits() == f.to_bits() || e.is_nan() && f.is_nan(), "{i:#x} on {}", kind.name());
        }
    }
}

/// Converts every f32 that is an f16 number, lies in the middle between two, or just beside the middle, to f16.
struct ToHalves;

impl IsaOp for ToHalves {
    type Output = Vec<(f32, u16)>;

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> Self::Output {
        let mut out = Vec::new();
        for h in 0..0x7c00u16 {
            // the upper neighbour of the largest f16 number is where infinity would be
            let (a, b) = (isa.f16(h), if h == 0x7bff { 65536.0 } else { isa.f16(h + 1) });
            let middle = (a + b) / 2.0;
            let x = [a, middle.next_down(), middle, middle.next_up(), -a, -middle, b, -b];
            let x: [f32; 16] = std::array::from_fn(|i| if i < 8 { x[i] } else { x[i - 8] * 1.0e5 });
            out.extend(x.into_iter().zip(isa.f16_bits(isa.load_f(&x))));
        }
        out
    }
}

#[test]
fn halves_are_the_nearest_and_never_infinite() {
    let expected = ToHalves.run(Scalar);
    for kind in available() {
        assert_eq!(expected, run(kind, ToHalves), "{}", kind.name());
    }
    for (x, bits) in expected {
        let error = |bits: u16| (f64::from(x) - f64::from(Scalar.f16(bits))).abs();
        assert!(bits & 0x7fff < 0x7c00, "{x} became infinite");
        assert_eq!(bits >> 15 == 1, x.is_sign_negative());
        for other in [bits.wrapping_sub(1), bits + 1].into_iter().filter(|b| b & 0x7fff < 0x7c00) {
            assert!(
                error(bits) < error(other) || error(bits) == error(other) && bits & 1 == 0,
                "{x}: {bits:#x} or {other:#x}"
            );
        }
    }
}

/// Runs the operations of products that are exact; with the first seeds `x` and weights are at their bounds.
struct Sums(u64);

impl IsaOp for Sums {
    type Output = (Vec<[i32; 16]>, Vec<[u8; 64]>, Vec<u32>);

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> Self::Output {
        let (mut w, mut x) = (bytes::<64>(self.0), bytes::<64>(self.0 + 1).map(|b| (b as i8).max(-127)));
        if self.0 < 8 {
            w = [if self.0 & 1 == 0 { 0x80 } else { 0x7f }; 64];
            x = std::array::from_fn(|i| {
                if self.0 & 2 == 0 || self.0 & 4 == 0 && i % 2 == 0 { 127 } else { -127 }
            });
        }
        let acc: [i32; 16] = std::array::from_fn(|i| i32::from(w[i]) * 1_000_003);
        let four = |i: usize| [x[4 * i], x[4 * i + 1], x[4 * i + 2], x[4 * i + 3]];
        // sums start at minus what the bias adds
        let debt: [i32; 16] =
            std::array::from_fn(|i| acc[i] - I::CODE_BIAS * four(i).into_iter().map(i32::from).sum::<i32>());
        let debt_of_four: [i32; 16] =
            std::array::from_fn(|i| acc[i] - I::CODE_BIAS * four(3).into_iter().map(i32::from).sum::<i32>());
        let (vw, vx) = (isa.load(&w), isa.load_codes(&x));
        let dots = isa.dot4(isa.load_i(&debt), isa.biased(vw), vx);
        let splat = isa.dot4(isa.load_i(&debt_of_four), isa.biased(vw), isa.splat_4_codes(&four(3)));
        let unsigned = isa.dot4_unsigned(isa.load_i(&acc), isa.and(vw, isa.splat(127)), vx);
        let moved = isa.load_i8(&std::array::from_fn(|i| x[i]));
        let sums = isa.sums_of_4([dots, splat, unsigned, moved]);
        let twice = isa.twice_i8(std::array::from_fn(|i| x[i]));
        // weights of 0 and 16, the largest that eight vectors added in 16 bits may have; then of up to 32 and 15
        // for two vectors
        let small = |mask| isa.and(vw, isa.splat(mask));
        let fours: [[i8; 4]; 8] = std::array::from_fn(|i| four(2 * i));
        let pair = |weights, x: &[i8; 4]| isa.pair_products(weights, isa.splat_4_codes(x));
        let mut eight = pair(small(16), &fours[0]);
        for x in &fours[1..] {
            eight = isa.add_pairs(eight, pair(small(16), x));
        }
        let eight = isa.sum_pairs(isa.load_i(&acc), eight);
        let some = isa.add_pairs(pair(small(32), &four(1)), pair(small(15), &four(7)));
        let some = isa.sum_pairs(isa.load_i(&acc), some);
        let (wide_w, wide_x) = (isa.widened(vw), isa.widened(vx));
        let wide = isa.dot2(isa.load_i(&acc), wide_w[0], wide_x[0]);
        let wide = isa.dot2(wide, wide_w[1], wide_x[1]);
        let lanes = [dots, splat, unsigned, moved, sums, isa.add_i(dots, sums), twice, eight, some, wide]
            .map(|v| {
                let mut out = [0; 16];
                isa.store_i(v, &mut out);
                out
            });
        let rows: [[u8; 64]; 16] = std::array::from_fn(|r| bytes(self.0 + 5 + r as u64));
        let index: [u32; 16] = std::array::from_fn(|i| u32::from_le_bytes(*rows[i].first_chunk().unwrap()));
        let words: [u32; 32] = std::array::from_fn(|i| u32::from(w[i]).wrapping_mul(0x0107_0503));
        let pairs: [u64; 32] = std::array::from_fn(|i| u64::from(words[i]) << 29 | u64::from(w[i + 3]));
        let eight: [u32; 8] = std::array::from_fn(|i| index[i]);
        let gathered = [isa.gather_u32(&words, index), isa.gather_u64(&pairs, eight)];
        let turned = isa.transpose_fours(rows.each_ref()).into_iter().chain(gathered).map(|v| {
            let mut out = [0; 64];
            isa.store(v, &mut out);
            out
        });
        // NaN payloads differ between conversions, so exponents of all ones are made finite
        let finite = bytes::<32>(self.0 + 4).map(|b| b & 0xbf);
        let floats = [isa.load_bf16(&finite), isa.load_f16(&finite)];
        let floats = floats.into_iter().flat_map(|v| isa.array(v)).map(f32::to_bits).collect();
        (lanes.to_vec(), turned.collect(), floats)
    }
}

#[test]
fn sums_of_products_are_exact_on_every_set() {
    for seed in 0..200 {
        let expected = Sums(seed).run(Scalar);
        for kind in available() {
            assert_eq!(expected, run(kind, Sums(seed)), "{}, seed {seed}", kind.name());
        }
    }
    // checks the scalar definition itself: 4 * -128 * 127 on top of the accumulator, then sums of fours
    let (lanes, turned, _) = Sums(0).run(Scalar);
    assert_eq!(lanes[0][5], 128 * 1_000_003 - 4 * 128 * 127);
    assert_eq!(lanes[4][5], lanes[1][4] + lanes[1][5] + lanes[1][6] + lanes[1][7]);
    assert_eq!(turned[2][4 * 7 + 1], bytes::<64>(5 + 7)[4 * 2 + 1]);
}

/// `a * b + c` and `c - a * b`.
struct Fused([f32; 16], [f32; 16], [f32; 16]);

impl IsaOp for Fused {
    type Output = [[f32; 16]; 2];

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> Self::Output {
        let (a, b, c) = (isa.load_f(&self.0), isa.load_f(&self.1), isa.load_f(&self.2));
        [isa.array(isa.fused_add(a, b, c)), isa.array(isa.fused_sub(a, b, c))]
    }
}

#[test]
fn fused_operations_are_right_to_two_roundings() {
    for seed in 0..50 {
        let float = |s: u64| bytes::<16>(s).map(|b| f32::from(b as i8) * 0.123_456_7);
        let (a, b, c) = (float(seed), float(seed + 1), float(seed + 2));
        for kind in available() {
            let [add, sub] = run(kind, Fused(a, b, c));
            for i in 0..16 {
                let (p, c) = (f64::from(a[i]) * f64::from(b[i]), f64::from(c[i]));
                // half a last place of the product, and of the sum
                let bound = (p.abs() + (p.abs() + c.abs())) * f64::from(f32::EPSILON) / 2.0 * 1.0001;
                assert!((f64::from(add[i]) - (c + p)).abs() <= bound, "{}", kind.name());
                assert!((f64::from(sub[i]) - (c - p)).abs() <= bound, "{}", kind.name());
            }
        }
    }
}
