// Q2_K to Q6_K: super-blocks of 256 elements.
#pragma once
#include "types/bits.cuh"
#include "types/form.cuh"

// The place of a lane of QuartersOf128: it decodes bytes 8 t to 8 t + 7 of the 32 bytes of half n of the unit.
struct Quarter {
    int n, t;
};
IKQ_DEV Quarter quarter(int l) { return {l >> 2, l & 3}; }
// The byte for run j, of eight bytes that have one for every 16 elements of a half.
IKQ_DEV uint32_t byte_of_run(const uint2 &bytes, Quarter at, int j) {
    return word(bytes, j >> 1) >> (8 * (at.t >> 1) + 16 * (j & 1)) & 255u;
}

struct q2_k : QuartersOf128 {
    static constexpr Mins MINS = Mins::RUNS;
    using Form = Planes<Seg<16, 64>, Seg<0, 16>, Seg<80, 4>>;
    IKQ_MEMBER Result decode(const Fields<Form> &unit, int l) {
        const Quarter at = quarter(l);
        const uint2 q = load_8(unit.field<0>() + 32 * at.n + 8 * at.t);
        const uint2 scales = load_8(unit.field<1>() + 8 * at.n);
        const uint32_t dm = load_u32(unit.field<2>());
        const float d = h2f(uint16_t(dm)), m = h2f(uint16_t(dm >> 16));
        Result f;
#pragma unroll
        for (int j = 0; j < 4; j++) {
            f.code[2 * j] = int(q.x >> (2 * j) & CRUMBS);
            f.code[2 * j + 1] = int(q.y >> (2 * j) & CRUMBS);
            const uint32_t s = byte_of_run(scales, at, j);
            f.scale[j] = d * float(int(s & 15));
            f.min[j] = m * float(int(s >> 4));
        }
        return f;
    }
};

struct q3_k : QuartersOf128 {
    using Result = IntegerFragment<8>;
    using Form = Planes<Seg<32, 64>, Seg<0, 32>, Seg<96, 12>, Seg<108, 2>>;
    IKQ_MEMBER Result decode(const Fields<Form> &unit, int l) {
        const Quarter at = quarter(l);
        const uint2 q = load_8(unit.field<0>() + 32 * at.n + 8 * at.t);
        const uint2 high = load_8(unit.field<1>() + 8 * at.t);
        const uint8_t *scales = unit.field<2>();
        const uint2 low = {load_u32(scales), load_u32(scales + 4)};
        const uint32_t upper = load_u32(scales + 8);
        Result f;
        f.d = load_half(unit.field<3>());
#pragma unroll
        for (int j = 0; j < 4; j++) {
#pragma unroll
            for (int i = 0; i < 2; i++) {
                // where the upper bit is 0, 4 is subtracted, which sets the upper six bits of a two-bit number (0xfc)
                const uint32_t missing = ~(word(high, i) >> (4 * at.n + j)) & ONES;
                f.code[2 * j + i] = int((word(q, i) >> (2 * j) & CRUMBS) | missing * 0xfcu);
            }
            const int byte = 8 * (at.t >> 1) + 16 * (j & 1);
            const uint32_t s = (word(low, j >> 1) >> (byte + 4 * at.n) & 15u) |
                               (upper >> (byte + 4 * at.n + 2 * (j >> 1)) & 3u) << 4;
            f.scale[j] = int(s) - 32;
        }
        return f;
    }
};

// The scales and mins of parts 2 c and 2 c + 1 (32 elements each) of a super-block, in the lower two bytes of the
// results. They have six bits each, and are packed into the twelve bytes of head.y, head.z and head.w.
IKQ_DEV void six_bit_pairs(const uint4 &head, int c, uint32_t &scale, uint32_t &min) {
    const int shift = 16 * (c & 1);
    const uint32_t x = head.y >> shift, y = head.z >> shift, z = head.w >> shift;
    const bool upper = c >= 2;
    scale = upper ? (z & 0x0f0fu) | (x & 0xc0c0u) >> 2 : x & 0x3f3fu;
    min = upper ? (z >> 4 & 0x0f0fu) | (y & 0xc0c0u) >> 2 : y & 0x3f3fu;
}

// The scales and mins of Q4_K and Q5_K.
template <class Result> IKQ_DEV void scales_and_mins(const uint4 &head, int c, Result &f) {
    uint32_t scale, min;
    six_bit_pairs(head, c, scale, min);
    const float d = h2f(uint16_t(head.x)), m = h2f(uint16_t(head.x >> 16));
    f.scale[0] = d * float(int(scale & 255u));
    f.scale[1] = d * float(int(scale >> 8));
    f.min[0] = m * float(int(min & 255u));
    f.min[1] = m * float(int(min >> 8));
}
IKQ_DEV void nibbles_of_64(const uint4 &w, int (&code)[8]) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        code[i] = int(word(w, i) & LOW_NIBBLES);
        code[4 + i] = int(word(w, i) >> 4 & LOW_NIBBLES);
    }
}
// Adds bit 4 to the codes: bits 2 c and 2 c + 1 of sixteen bytes.
IKQ_DEV void with_bits_of_64(const uint4 &bits, int c, int (&code)[8]) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const uint32_t x = word(bits, i) >> (2 * c);
        code[i] |= int((x & ONES) << 4);
        code[4 + i] |= int((x >> 1 & ONES) << 4);
    }
}

struct q4_k : HalvesOf64 {
    static constexpr Mins MINS = Mins::WHOLE;
    using Form = Planes<Seg<16, 128>, Seg<0, 16>>;
    IKQ_MEMBER Result decode(const Fields<Form> &unit, int l) {
        Result f;
        nibbles_of_64(load_16(unit.field<0>() + 16 * l), f.code);
        scales_and_mins(load_16(unit.field<1>()), l >> 1, f);
        return f;
    }
};

struct q5_k : HalvesOf64 {
    static constexpr Mins MINS = Mins::WHOLE;
    using Form = Planes<Seg<48, 128>, Seg<16, 32>, Seg<0, 16>>;
    IKQ_MEMBER Result decode(const Fields<Form> &unit, int l) {
        Result f;
        nibbles_of_64(load_16(unit.field<0>() + 16 * l), f.code);
        with_bits_of_64(load_16(unit.field<1>() + 16 * (l & 1)), l >> 1, f.code);
        scales_and_mins(load_16(unit.field<2>()), l >> 1, f);
        return f;
    }
};

struct q6_k : QuartersOf128 {
    using Result = IntegerFragment<8>;
    using Form = Planes<Seg<0, 128>, Seg<128, 64>, Seg<192, 16>, Seg<208, 2>>;
    IKQ_MEMBER Result decode(const Fields<Form> &unit, int l) {
        const Quarter at = quarter(l);
        const uint8_t *low = unit.field<0>() + 64 * at.n + 8 * at.t;
        const uint2 q[2] = {load_8(low), load_8(low + 32)};
        const uint2 high = load_8(unit.field<1>() + 32 * at.n + 8 * at.t);
        const uint2 scales = load_8(unit.field<2>() + 8 * at.n);
        Result f;
        f.d = load_half(unit.field<3>());
#pragma unroll
        for (int j = 0; j < 4; j++) {
#pragma unroll
            for (int i = 0; i < 2; i++) {
                const uint32_t x = (word(q[j & 1], i) >> (4 * (j >> 1)) & LOW_NIBBLES) |
                                   (word(high, i) >> (2 * j) & CRUMBS) << 4;
                f.code[2 * j + i] = int(less(x, 32));
            }
            f.scale[j] = int8_t(byte_of_run(scales, at, j));
        }
        return f;
    }
};
