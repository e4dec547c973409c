// Q4_0, Q4_1, Q5_0, Q5_1, Q6_0, Q8_0 and Q8_KV, with blocks of 32 elements. A constant that a type subtracts from
// its codes is treated as a min, so that codes are the bits of the file.
#pragma once
#include "types/bits.cuh"
#include "types/form.cuh"

struct Blocks32 : Neighbours<32> {
    static constexpr int BLOCK = 32;
};

// The codes in sixteen bytes of nibbles; the low nibbles are elements 0 to 15.
IKQ_DEV void nibbles_of_16(const uint4 &w, int (&code)[8]) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        code[i] = int(word(w, i) & LOW_NIBBLES);
        code[4 + i] = int(word(w, i) >> 4 & LOW_NIBBLES);
    }
}
// Adds bit 4 to the codes: that of element i is bit i of `bits`.
IKQ_DEV void with_fifth_bits(uint32_t bits, int (&code)[8]) {
#pragma unroll
    for (int i = 0; i < 8; i++) code[i] |= int(spread(bits >> (4 * i)) << 4);
}

struct q4_0 : Blocks32 {
    static constexpr Mins MINS = Mins::WHOLE;
    using Form = Planes<Seg<2, 16>, Seg<0, 2>>;
    IKQ_MEMBER Result decode(const Fields<Form> &unit, int l) {
        Result f;
        nibbles_of_16(load_16(unit.field<0>(l)), f.code);
        f.scale[0] = load_half(unit.field<1>(l));
        f.min[0] = 8.0f * f.scale[0];
        return f;
    }
};

struct q4_1 : Blocks32 {
    static constexpr Mins MINS = Mins::WHOLE;
    using Form = Planes<Seg<4, 16>, Seg<0, 4>>;
    IKQ_MEMBER Result decode(const Fields<Form> &unit, int l) {
        Result f;
        nibbles_of_16(load_16(unit.field<0>(l)), f.code);
        const uint32_t dm = load_u32(unit.field<1>(l));
        f.scale[0] = h2f(uint16_t(dm));
        f.min[0] = -h2f(uint16_t(dm >> 16));
        return f;
    }
};

struct q5_0 : Blocks32 {
    static constexpr Mins MINS = Mins::WHOLE;
    using Form = Planes<Seg<6, 16>, Seg<2, 4>, Seg<0, 2>>;
    IKQ_MEMBER Result decode(const Fields<Form> &unit, int l) {
        Result f;
        nibbles_of_16(load_16(unit.field<0>(l)), f.code);
        with_fifth_bits(load_u32(unit.field<1>(l)), f.code);
        f.scale[0] = load_half(unit.field<2>(l));
        f.min[0] = 16.0f * f.scale[0];
        return f;
    }
};

struct q5_1 : Blocks32 {
    static constexpr Mins MINS = Mins::WHOLE;
    using Form = Planes<Seg<8, 16>, Seg<4, 4>, Seg<0, 4>>;
    IKQ_MEMBER Result decode(const Fields<Form> &unit, int l) {
        Result f;
        nibbles_of_16(load_16(unit.field<0>(l)), f.code);
        with_fifth_bits(load_u32(unit.field<1>(l)), f.code);
        const uint32_t dm = load_u32(unit.field<2>(l));
        f.scale[0] = h2f(uint16_t(dm));
        f.min[0] = -h2f(uint16_t(dm >> 16));
        return f;
    }
};

struct q6_0 : Blocks32 {
    static constexpr Mins MINS = Mins::WHOLE;
    using Form = Planes<Seg<10, 16>, Seg<2, 8>, Seg<0, 2>>;
    IKQ_MEMBER Result decode(const Fields<Form> &unit, int l) {
        Result f;
        nibbles_of_16(load_16(unit.field<0>(l)), f.code);
        // byte t has the upper two bits of elements t, t + 16, t + 8, t + 24
        const uint2 high = load_8(unit.field<1>(l));
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const int shift = 4 * (i >> 1 & 1) + 2 * (i >> 2);
            f.code[i] |= int((word(high, i & 1) >> shift & CRUMBS) << 4);
        }
        f.scale[0] = load_half(unit.field<2>(l));
        f.min[0] = 32.0f * f.scale[0];
        return f;
    }
};

IKQ_DEV void bytes_of_32(const uint8_t *p, int (&code)[8]) {
    const uint4 a = load_16(p), b = load_16(p + 16);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        code[i] = int(word(a, i));
        code[4 + i] = int(word(b, i));
    }
}

struct q8_0 : Blocks32 {
    using Form = Planes<Seg<2, 32>, Seg<0, 2>>;
    IKQ_MEMBER Result decode(const Fields<Form> &unit, int l) {
        Result f;
        bytes_of_32(unit.field<0>(l), f.code);
        f.scale[0] = load_half(unit.field<1>(l));
        return f;
    }
};

struct q8_kv : Blocks32 {
    using Form = Planes<Seg<0, 32>, Head<8>>;
    IKQ_MEMBER Result decode(const Fields<Form> &unit, int l) {
        Result f;
        bytes_of_32(unit.field<0>(l), f.code);
        f.scale[0] = load_f32(unit.field<1>());
        return f;
    }
};
