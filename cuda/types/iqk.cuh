// IQ2_K to IQ6_K. Codes are indices of a non-linear table in two variants; the second is the first plus a constant.
#pragma once
#include "types/bits.cuh"
#include "types/form.cuh"
#include "types/iquants.cuh"
#include "types/kquants.cuh"

constexpr uint32_t IQ2_SHIFT = 5, IQ3_SHIFT = 4, IQ4_SHIFT = 4, IQ5_SHIFT = 2, IQ6_SHIFT = 1;
constexpr uint32_t IQ2_VALUES = 0x1101f3e1u;                                 // -31 -13 1 17
constexpr uint32_t IQ3_VALUES = 0xf6e9d8c1u, IQ3_VALUES_UPPER = 0x2f1c0d01u; // -63 -40 -23 -10, 1 13 28 47

// What the variant that bit 0 of `second` chooses adds to four values. No value changes its sign, so there is no carry into
// another byte.
IKQ_DEV uint32_t shift_of(uint32_t second, uint32_t shift) { return (second & 1u) * (shift * ONES); }

// Looks up codes of three bits in the table. The lower two bits are the pairs of bits of x; the third bit of pair j of
// a byte is bit j of that byte of `high`. Byte i of out[j] is for pair j of byte i.
IKQ_DEV void look_up_three_bits(uint32_t x, uint32_t high, uint32_t (&out)[4]) {
    const uint32_t even = (x & 0x33333333u) | (high << 2 & 0x04040404u) | (high << 4 & 0x40404040u);
    const uint32_t odd = (x >> 2 & 0x33333333u) | (high << 1 & 0x04040404u) | (high << 3 & 0x40404040u);
    const uint32_t e0 = permute(IQ3_VALUES, IQ3_VALUES_UPPER, even);
    const uint32_t e1 = permute(IQ3_VALUES, IQ3_VALUES_UPPER, even >> 16);
    const uint32_t o0 = permute(IQ3_VALUES, IQ3_VALUES_UPPER, odd);
    const uint32_t o1 = permute(IQ3_VALUES, IQ3_VALUES_UPPER, odd >> 16);
    out[0] = permute(e0, e1, 0x6420u);
    out[1] = permute(o0, o1, 0x6420u);
    out[2] = permute(e0, e1, 0x7531u);
    out[3] = permute(o0, o1, 0x7531u);
}

// The codes of eight bytes of pairs of bits, which are four runs; bit 0 of second[j] is the variant of run j.
IKQ_DEV void codes_of_two_bits(const uint2 &q, const uint32_t (&second)[4], int (&code)[8]) {
    uint32_t tables[4];
#pragma unroll
    for (int j = 0; j < 4; j++) tables[j] = IQ2_VALUES + shift_of(second[j], IQ2_SHIFT);
#pragma unroll
    for (int i = 0; i < 2; i++) {
        uint32_t out[4];
        look_up_crumbs(word(q, i), tables, out);
#pragma unroll
        for (int j = 0; j < 4; j++) code[2 * j + i] = int(out[j]);
    }
}
IKQ_DEV void codes_of_three_bits(const uint2 &q, const uint2 &high, int n, const uint32_t (&second)[4], int (&code)[8]) {
    uint32_t a[4], b[4];
    look_up_three_bits(q.x, high.x >> (4 * n), a);
    look_up_three_bits(q.y, high.y >> (4 * n), b);
#pragma unroll
    for (int j = 0; j < 4; j++) {
        const uint32_t shift = shift_of(second[j], IQ3_SHIFT);
        code[2 * j] = int(a[j] + shift);
        code[2 * j + 1] = int(b[j] + shift);
    }
}

struct iq2_k : QuartersOf128 {
    using Result = IntegerFragment<8>;
    using Form = Planes<Seg<12, 64>, Seg<4, 8>, Seg<0, 4>>;
    IKQ_MEMBER Result decode(const Fields<Form> &unit, int l) {
        const Quarter at = quarter(l);
        const uint2 q = load_8(unit.field<0>() + 32 * at.n + 8 * at.t);
        const uint32_t scales = load_u32(unit.field<1>() + 4 * at.n) >> (4 * (at.t >> 1));
        const uint32_t head = load_u32(unit.field<2>());
        const uint32_t extra = head >> (16 + 8 * at.n + (at.t >> 1));
        const uint32_t second[4] = {extra, extra >> 2, extra >> 4, extra >> 6};
        Result f;
        codes_of_two_bits(q, second, f.code);
#pragma unroll
        for (int j = 0; j < 4; j++) f.scale[j] = int(scales >> (8 * j) & 15u) - 8;
        f.d = h2f(uint16_t(head));
        return f;
    }
};

struct iq3_k : QuartersOf128 {
    using Result = IntegerFragment<8>;
    using Form = Planes<Seg<14, 64>, Seg<78, 32>, Seg<6, 8>, Seg<0, 6>>;
    IKQ_MEMBER Result decode(const Fields<Form> &unit, int l) {
        const Quarter at = quarter(l);
        const uint2 q = load_8(unit.field<0>() + 32 * at.n + 8 * at.t);
        const uint2 high = load_8(unit.field<1>() + 8 * at.t);
        const uint32_t scales = load_u32(unit.field<2>() + 4 * at.n) >> (4 * (at.t >> 1));
        const uint8_t *head = unit.field<3>();
        const int k = 8 * at.n + (at.t >> 1);
        const uint32_t extra = load_u16(head + 2) >> k, minus = load_u16(head + 4) >> k;
        const uint32_t second[4] = {extra, extra >> 2, extra >> 4, extra >> 6};
        Result f;
        f.d = load_half(head);
        codes_of_three_bits(q, high, at.n, second, f.code);
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const int s = int(2 * (scales >> (8 * j) & 15u) + 1);
            f.scale[j] = minus >> (2 * j) & 1u ? -s : s;
        }
        return f;
    }
};

// Scales k and k + DISTANCE (1 or 2) of IQ4_K and IQ5_K; k modulo 2 * DISTANCE is less than DISTANCE. head.x is d and the
// bits of the variants, head.y the upper two bits of the sixteen scales, head.z and head.w their lower four bits.
template <int DISTANCE> IKQ_DEV void six_bit_scales(const uint4 &head, int k, int (&scale)[2]) {
    // the two nibbles, 4 bits apart (then they are in one byte) or 8
    const uint32_t low = DISTANCE == 1 ? permute(head.z, head.w, unsigned(k >> 1))
                                       : permute(head.z, head.w, unsigned(k >> 1) * 0x11u + 0x10u) >> (4 * (k & 1));
    const uint32_t high = head.y >> (2 * k);
    scale[0] = int((low & 15u) | (high << 4 & 48u)) - 32;
    scale[1] = int((low >> (4 * DISTANCE) & 15u) | (high << (4 - 2 * DISTANCE) & 48u)) - 32;
}

// The table of IQ4_K in the variant that bit 0 of `second` chooses.
IKQ_DEV Pairs16 iq4_pairs_of(uint32_t second) {
    const Pairs16 t = iq4_pairs();
    const uint32_t shift = shift_of(second, IQ4_SHIFT);
    return {t.a + shift, t.b + shift, t.more_a, t.more_b};
}

struct iq4_k : Neighbours<16> {
    using Form = Planes<Seg<16, 128, Order::PAIRS>, Seg<0, 16>>;
    using Result = IntegerFragment<16>;
    IKQ_MEMBER Result decode(const Fields<Form> &unit, int l) {
        Result f;
        const uint4 w = load_16(unit.field<0>() + 16 * l);
        const uint4 head = load_16(unit.field<1>());
        f.d = h2f(uint16_t(head.x));
        const uint32_t second = head.x >> (16 + 2 * l);
        const Pairs16 of_low = iq4_pairs_of(second), of_high = iq4_pairs_of(second >> 1);
#pragma unroll
        for (int i = 0; i < 4; i++) look_up_pairs(word(w, i), of_low, of_high, f.code[i], f.code[4 + i]);
        six_bit_scales<1>(head, 2 * l, f.scale);
        return f;
    }
};

// The table of IQ5_K is -126 -114 -103 -92 -83 -74 -65 -57 -50 -43 -36 -30 -24 -18 -12 -6, -1 5 11 17 23 29 36 43 51 59 68
// 77 87 97 109 121. Looked up in four parts, it would take four byte permutes for four values, and more that choose between
// them. The device form has other codes, for which three are enough: a value is the sum of some of three numbers, which
// the lower three bits of a code choose; the upper two choose which of the three are added (tools/make_cuda_codes.py).
//
//     bits 4 and 3    11     10      01      00
//     value + 127     x      x + y   x + z   y + z
IKQ_OPAQUE uint32_t IQ5_X[2] = {0x2c014d79u, 0x73235b0du}, IQ5_Y[2] = {0x3b176d05u, 0x234a2f28u},
                    IQ5_Z[2] = {0x773d7f7fu, 0x6d797b39u};
IKQ_OPAQUE uint32_t FOURTH_BITS = 0x88888888u;
// the device form's code for each of the file's
IKQ_CONST uint8_t IQ5_CODES[32] = {26, 28, 18, 30, 27, 20, 10, 12, 25, 2, 29, 4, 19, 22, 31, 24, 16, 0, 21, 7, 23, 14, 11, 5, 3, 17, 6, 9, 13, 15, 1, 8};

// The values of eight codes of five bits, whose fifth bits are bits 3 of the nibbles of `fifth`; both are in order
// (form.cuh). `plus` is added to the values of each half. A permute gives 0 where bit 3 of the selector is set, because
// all numbers are below 128, and no sum is above 255.
IKQ_DEV void values_of_five_bits(uint32_t nibbles, uint32_t fifth, const uint32_t (&plus)[2], int &first, int &second) {
    // which of bits 3 are set where a number is not added
    const uint32_t x = bitwise<(ARG_A & ~ARG_C) | (~(ARG_A | ARG_B) & ARG_C)>(nibbles, fifth, FOURTH_BITS);
    const uint32_t y = nibbles, z = bitwise<(ARG_A & ~ARG_C) | (ARG_B & ARG_C)>(nibbles, fifth, FOURTH_BITS);
    const auto four = [](uint32_t x, uint32_t y, uint32_t z, uint32_t plus) {
        const uint32_t sum = permute(IQ5_X[0], IQ5_X[1], x) + permute(IQ5_Y[0], IQ5_Y[1], y) + permute(IQ5_Z[0], IQ5_Z[1], z);
        return int((sum + plus) ^ SIGN_BITS);
    };
    first = four(x, y, z, plus[0]);
    second = four(x >> 16, y >> 16, z >> 16, plus[1]);
}
// What makes 128 of the 127 in four values, and is added in the variant that bit 0 of `second` chooses.
IKQ_DEV uint32_t iq5_plus(uint32_t second) { return second & 1u ? (1 + IQ5_SHIFT) * ONES : ONES; }

// The values of a lane of HalvesOf64: the halves of words are for its two runs. Bits i of the nibbles of `fifth` belong to
// word i.
template <class Result>
IKQ_DEV void values_of_five_bits(const uint4 &w, uint32_t fifth, const uint32_t (&plus)[2], Result &f) {
#pragma unroll
    for (int i = 0; i < 4; i++) values_of_five_bits(word(w, i), fifth << (3 - i), plus, f.code[i], f.code[4 + i]);
}

struct FiveBits : HalvesOf64 {
    static constexpr int RECODED_BYTES = 160;
    using Result = IntegerFragment<16>;
};
struct iq5_k : FiveBits {
    using Form = Planes<Seg<16, 128>, Seg<144, 32>, Seg<0, 16>>;
    IKQ_MEMBER Result decode(const Fields<Form> &unit, int l) {
        Result f;
        const int k = 4 * (l >> 1) + (l & 1);
        const uint4 head = load_16(unit.field<2>());
        const uint32_t second = head.x >> (16 + k);
        values_of_five_bits(load_16(unit.field<0>() + 16 * l), load_u32(unit.field<1>() + 4 * l),
                            {iq5_plus(second), iq5_plus(second >> 2)}, f);
        f.d = h2f(uint16_t(head.x));
        six_bit_scales<2>(head, k, f.scale);
        return f;
    }
};

// The table of IQ6_K is -127 -121 -115 -109 -104 -98 -93 -88 ... 87 92 98 103 109 115 121, which are roundings of a
// polynomial. It is computed in half precision, two codes at a time, because a table of 64 takes more instructions. The
// constants (tools/make_cuda_codes.py) are such that the result is right for each code. They are in both halves of words.
// A factor and a summand, which make x = 0.9990234375 code - 35 of 1024 plus a code, and the same of 1024 plus 16 codes:
IKQ_OPAQUE uint32_t SIX_X[2] = {0x3bfe3bfeu, 0xe422e422u}, SIX_X_16[2] = {0x2bfe2bfeu, 0xd62fd62fu};
IKQ_OPAQUE uint32_t SIX_COEFFICIENTS[3] = {0x419b419bu, 0x23082308u, 0x14f714f7u};
// 1536 plus the constant term; the lower byte of a half from 1024 to 2047 is that of the integer
constexpr uint32_t SIX_FIRST = 0x66066606u;
IKQ_OPAQUE uint32_t SIX_1024[1] = {0x64006400u};

// The values of two codes in the lower bytes of halves; `plus` is the constant term.
IKQ_DEV uint32_t six_bit_values(uint32_t x, uint32_t plus) {
    const uint32_t square = fma_halves(SIX_COEFFICIENTS[2], x, SIX_COEFFICIENTS[1]);
    return fma_halves(fma_halves(square, x, SIX_COEFFICIENTS[0]), x, plus);
}

// The device form has six words for the 32 codes of a lane (repack.cuh). Their halves have 16 pairs of codes: pair i in
// bits 4 to 9 of word i, pair 6 + i in bits 10 to 15; pair 12 + i has its lower four bits in bits 0 to 3 of word i, and
// the upper two in those of words 4 and 5.
struct iq6_k : HalvesOf64 {
    static constexpr int RECODED_BYTES = 192;
    using Result = IntegerFragment<16>;
    using Form = Planes<Seg<20, 128>, Seg<148, 64>, Seg<4, 16>, Seg<0, 4>>;
    IKQ_MEMBER Result decode(const Fields<Form> &unit, int l) {
        Result f;
        const uint4 lower = load_16(unit.field<0>() + 16 * l);
        const uint2 upper = load_8(unit.field<1>() + 8 * l);
        const uint32_t words[6] = {lower.x, lower.y, lower.z, lower.w, upper.x, upper.y};
        const uint32_t head = load_u32(unit.field<3>());
        const int k = 4 * (l >> 1) + (l & 1);
        const uint32_t second = head >> (16 + k);
        const uint32_t plus[2] = {second & 1u ? SIX_FIRST + IQ6_SHIFT * 0x00010001u : SIX_FIRST,
                                  second & 4u ? SIX_FIRST + IQ6_SHIFT * 0x00010001u : SIX_FIRST};
        uint32_t values[16];
#pragma unroll
        for (int i = 0; i < 16; i++) {
            uint32_t x;
            if (i < 6) {
                x = (words[i] & 0x03f003f0u) | SIX_1024[0];
                x = fma_halves(x, SIX_X_16[0], SIX_X_16[1]);
            } else {
                if (i < 12) {
                    x = (words[i - 6] >> 10 & 0x003f003fu) | SIX_1024[0];
                } else {
                    x = (words[i - 12] & 0x000f000fu) | SIX_1024[0];
                    x |= words[4 + (i - 12) / 2] << (i & 1 ? 2 : 4) & 0x00300030u;
                }
                x = fma_halves(x, SIX_X[0], SIX_X[1]);
            }
            values[i] = six_bit_values(x, plus[i / 8]);
        }
#pragma unroll
        for (int i = 0; i < 8; i++) f.code[i] = int(permute(values[2 * i], values[2 * i + 1], 0x6420u));
        f.d = h2f(uint16_t(head));
        f.scale[0] = load_s8(unit.field<2>() + k);
        f.scale[1] = load_s8(unit.field<2>() + k + 2);
        return f;
    }
};
