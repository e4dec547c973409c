use super::{Codebook4, Codebook8, LaneIndices};
use crate::{Isa, IsaOp, available, run};

/// Sixty-four irregular bytes.
fn bytes(seed: u8) -> [u8; 64] {
    std::array::from_fn(|i| (i as u8).wrapping_mul(73).wrapping_add(seed) ^ (i as u8) << 3)
}

struct Moves;

impl IsaOp for Moves {
    type Output = [[i32; 16]; 9];

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> [[i32; 16]; 9] {
        let (x, y) = (bytes(1), bytes(200));
        let v = isa.load(&x);
        let small: &[u8; 32] = y.first_chunk().expect("64 bytes");
        let tiny: &[u8; 16] = y.first_chunk().expect("64 bytes");
        let mut out = [[0; 16]; 9];
        let mut put = |k: usize, v| isa.store_i(v, &mut out[k]);
        put(0, isa.ints(v));
        put(1, isa.ints(isa.of_ints(isa.ints(v))));
        put(2, isa.load_u8(tiny));
        put(3, isa.load_u16(small));
        put(4, isa.ints(isa.bits(v, 3, 0x1f)));
        put(5, isa.sra_i(isa.ints(v), 5));
        put(6, isa.where_bit(isa.ints(v), 9, 0x0404_0404));
        put(7, isa.bits_i(isa.float_of_f16(isa.and_i(isa.ints(v), isa.splat_i(-0x7c01)))));
        put(8, isa.where_bit(isa.ints(v), 31, -1));
        out
    }
}

/// Results of operations that must be the same on every set, where the scalar one defines them.
struct Same;

/// Entries whose levels differ in every element.
const BOOK_8: Codebook8<512> = {
    let mut bytes = [0; 512];
    let mut i = 0;
    while i < 256 {
        bytes[i] =
            ((i as u64).wrapping_mul(0x0123_4567_89ab_cdef) ^ (i as u64) << 21) & 0x0303_0303_0303_0303;
        i += 1;
    }
    Codebook8::new(bytes, [1, 2, 4, 8, -16, -32, -64, -128])
};
const BOOK_4: Codebook4<512> = {
    let mut bytes = [0; 512];
    let mut i = 0;
    while i < 512 {
        bytes[i] = (i as u32).wrapping_mul(0x9e37_79b9) >> 2 & 0x0707_0707;
        i += 1;
    }
    Codebook4::new(bytes, [0, 1, 2, 3, 4, 5, 6, 7, 100, 101, 102, 103, 104, 105, 106, 127])
};

impl IsaOp for Same {
    type Output = Vec<[u8; 64]>;

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> Vec<[u8; 64]> {
        let mut out = Vec::new();
        let mut put = |v: I::B64| {
            let mut bytes = [0; 64];
            isa.store(v, &mut bytes);
            out.push(bytes);
        };
        let (v, w) = (isa.load(&bytes(7)), isa.load(&bytes(90)));
        let int = isa.ints(v);
        for (from, to, mask) in [(0, 4, 1), (7, 2, 1), (4, 0, 15), (2, 4, 3), (6, 4, 3), (3, 3, 1)] {
            put(isa.bit_field(v, from, to, mask));
        }
        for i in 0..8 {
            put(isa.spread_bits(int, i, i as u32));
            put(isa.spread_crumbs(int, i / 2));
            put(isa.negate_where_bit(w, v, i as u32));
        }
        put(isa.pick(v, [3, 0, 0, 2]));
        for k in 0..4 {
            put(isa.of_ints(isa.byte(int, k)));
        }
        put(isa.of_ints(isa.with_parity(int)));
        put(isa.trits(v, [81, 27, 9, 3]));
        put(isa.trits(w, [1, 81, 1, 27]));
        let (mut indices, mut codes) = (LaneIndices::default(), [v; 8]);
        let low = [bytes(90), bytes(33)];
        isa.indices_4(&low, isa.ints(w), &mut indices);
        isa.codebook_4(&BOOK_4, &low, isa.ints(w), &indices, int, &mut codes);
        for v in codes {
            put(v);
        }
        // upper index bits of 0 and 1
        let high = isa.and_i(isa.shr_i(isa.ints(w), 1), isa.splat_i(0x0101_0101));
        isa.indices_8(&low[0], high, &mut indices);
        isa.codebook_8(&BOOK_8, &low[0], high, &indices, int, &mut codes);
        for v in codes {
            put(v);
        }
        // the generator's values without the bias of weights
        let values = isa.trellis(isa.and_i(int, isa.splat_i(0xffff)), &[3, 0x1234_5671, 77, 0x8000_0001]);
        put(if I::CODE_BIAS == 0 { values } else { isa.xor(values, isa.splat(0x80)) });
        for k in 0..64 {
            put(isa.spread_bits(int, k % 8, k as u32 / 8));
        }
        for k in [[0, 0], [1, 3], [2, 1], [3, 3]] {
            put(isa.of_ints(isa.two_bytes::<false>(int, k)));
            put(isa.of_ints(isa.two_bytes::<true>(int, k)));
        }
        put(isa.of_ints(isa.join_16(int, isa.ints(w))));
        put(isa.of_ints(isa.shl_16(int, 5)));
        put(isa.mul_16(v, w));
        // activations are above -128
        let x = isa.load(&bytes(33).map(|x| if x == 0x80 { 0x81 } else { x }));
        let scale = isa.two_bytes::<true>(int, [2; 2]);
        put(isa.of_ints(isa.scaled_pairs(
            int,
            isa.pair_products(isa.load(&bytes(7).map(|w| w / 2)), x),
            scale,
        )));
        let pairs = isa.biased_pair_products(isa.biased(w), x);
        let mut sum = isa.scaled_pairs(isa.splat_i(-77), pairs, scale);
        if I::CODE_BIAS != 0 {
            let less = isa.two_bytes::<true>(isa.ints(isa.sub(isa.splat(0), isa.of_ints(int))), [2; 2]);
            sum = isa.scaled_pairs(sum, isa.pair_products(isa.splat(I::CODE_BIAS as u8), x), less);
        }
        put(isa.of_ints(sum));
        out
    }
}

#[test]
fn every_set_gives_the_bits_of_the_scalar_one() {
    let expected = run(crate::IsaKind::Scalar, Same);
    for kind in available() {
        for (i, (found, expected)) in run(kind, Same).iter().zip(&expected).enumerate() {
            assert_eq!(found, expected, "result {i} on {}", kind.name());
        }
    }
    // the scalar results of a few elements, computed here in another way
    let x = bytes(7);
    assert_eq!(expected[2][9], x[9] >> 4);
    assert_eq!(expected[6][3], x[0] >> 3 & 1);
    // lane 3 of the last one
    let (x, w) = (bytes(33).map(|x| if x == 0x80 { -127 } else { x as i8 }), bytes(90).map(|w| w as i8));
    let sum: i32 = (12..16).map(|i| i32::from(w[i]) * i32::from(x[i])).sum();
    let scale = i32::from(bytes(7)[14] as i8);
    let found = expected.last().expect("results");
    assert_eq!(i32::from_le_bytes(*found[12..].first_chunk().expect("a lane")), sum * scale - 77);
}

#[test]
fn words_are_read_as_the_language_reads_them() {
    let (x, y) = (bytes(1), bytes(200));
    let word = |i: usize| i32::from_le_bytes(*x[4 * i..].first_chunk().expect("a word"));
    for kind in available() {
        let found = run(kind, Moves);
        for i in 0..16 {
            let halves = word(i) & -0x7c01;
            let expected = [
                word(i),
                word(i),
                i32::from(y[i]),
                i32::from(u16::from_le_bytes([y[2 * i], y[2 * i + 1]])),
                (word(i) as u32 >> 3) as i32 & 0x1f1f_1f1f,
                word(i) >> 5,
                if word(i) >> 9 & 1 == 1 { 0x0404_0404 } else { 0 },
                crate::scalar::f16_to_f32(halves as u16).to_bits() as i32,
                if word(i) < 0 { -1 } else { 0 },
            ];
            assert_eq!(found.map(|v| v[i]), expected, "lane {i} on {}", kind.name());
        }
    }
}
