// IQ1_KT to IQ4_KT. A code is the seed of a generator, which computes the values of eight (IQ4_KT: four) neighbours.
#pragma once
#include "types/bits.cuh"
#include "types/form.cuh"
#include "types/iquants.cuh"

constexpr uint32_t TRELLIS_STEP = 0xcbac1fedu;
// The value of a state of the generator, from -126 to 126: the sum of four six-bit numbers in it, minus 126.
IKQ_DEV int value_of_state(uint32_t x) { return __dp4a(int(x & 0x3f3f3f3fu), int(ONES), -126); }
IKQ_DEV int next_value(uint32_t &x) {
    x *= TRELLIS_STEP;
    return value_of_state(x);
}
IKQ_DEV uint32_t four_bytes(int a, int b, int c, int d) {
    const uint32_t low = permute(uint32_t(a), uint32_t(b), 0x0040u);
    return permute(low, permute(uint32_t(c), uint32_t(d), 0x0040u), 0x5410u);
}
IKQ_DEV uint32_t next_four(uint32_t &x) {
    const int a = next_value(x), b = next_value(x), c = next_value(x), d = next_value(x);
    return four_bytes(a, b, c, d);
}
IKQ_DEV void eight_values(uint32_t code, int &first, int &second) {
    uint32_t x = code + 4096u;
    first = int(next_four(x));
    second = int(next_four(x));
}

struct iq1_kt : Neighbours<32> {
    using Result = IntegerFragment<32>;
    using Form = Planes<Seg<8, 32>, Seg<40, 16>, Seg<0, 8>, Head<4>>;
    IKQ_MEMBER Result decode(const Fields<Form> &unit, int l) {
        Result f;
        const uint32_t low = load_u32(unit.field<0>() + 4 * l);
        const uint32_t high = load_u32(unit.field<1>() + 4 * (l & 3)) >> (4 * (l >> 2));
        const uint32_t s = load_u8(unit.field<2>() + l);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const uint32_t code = (low >> (8 * i) & 255u) | (high >> (8 * i) & 15u) << 8 | (s >> (4 + i) & 1u) << 12;
            eight_values(code, f.code[2 * i], f.code[2 * i + 1]);
        }
        f.scale[0] = look_up_1(s, iq4_values());
        f.d = load_f32(unit.field<3>());
        return f;
    }
};

struct iq2_kt : Neighbours<32> {
    using Result = IntegerFragment<32>;
    static constexpr float FACTOR = 1.05f;
    using Form = Planes<Seg<4, 64>, Seg<0, 4>, Head<4>>;
    IKQ_MEMBER Result decode(const Fields<Form> &unit, int l) {
        Result f;
        const uint2 w = load_8(unit.field<0>() + 8 * l);
#pragma unroll
        for (int i = 0; i < 4; i++)
            eight_values(word(w, i >> 1) >> (16 * (i & 1)) & 0xffffu, f.code[2 * i], f.code[2 * i + 1]);
        const uint32_t s = load_u32(unit.field<1>()) >> (8 * (l & 3) + 4 * (l >> 2));
        f.scale[0] = look_up_1(s, iq4_values());
        f.d = load_f32(unit.field<2>());
        return f;
    }
};

struct iq3_kt : Neighbours<32> {
    using Result = IntegerFragment<32>;
    static constexpr float FACTOR = 1.01f;
    using Form = Planes<Seg<4, 64>, Seg<68, 32>, Seg<0, 4>, Head<4>>;
    IKQ_MEMBER Result decode(const Fields<Form> &unit, int l) {
        Result f;
        const uint2 w = load_8(unit.field<0>() + 8 * l);
        const uint4 signs[2] = {load_16(unit.field<1>()), load_16(unit.field<1>() + 16)};
#pragma unroll
        for (int i = 0; i < 8; i++) {
            uint32_t x = (word(w, i >> 2) >> (16 * (i >> 1 & 1)) & 0xffffu) + 4096u;
            // the second four values of a group of eight continue after the first four, which are skipped by
            // multiplying with the fourth power of the multiplier
            if (i & 1) x *= 0xe50c7d11u;
            int t[4];
#pragma unroll
            for (int k = 0; k < 4; k++) {
                const int v = next_value(x);
                t[k] = v < 0 ? -v : v;
            }
            const uint32_t minus = word(signs[i >> 2], i & 3) >> l & ONES;
            f.code[i] = int(add_bytes(four_bytes(t[0], t[1], t[2], t[3]) ^ (minus * 255u), minus));
        }
        const uint32_t s = load_u32(unit.field<2>()) >> (8 * (l & 3) + 4 * (l >> 2)) & 15u;
        f.scale[0] = int(s);
        f.d = load_f32(unit.field<3>());
        return f;
    }
};

// In the device form (repack.cuh), each of a lane's four words has two seeds, in bits 0 to 14 and 17 to 31, and between
// them two bits of the byte that has the scale and, in its lowest bit, the choice between two numbers that are added to
// seeds.
struct iq4_kt : Neighbours<32> {
    static constexpr int RECODED_BYTES = 128;
    using Result = IntegerFragment<32>;
    using Form = Planes<Seg<0, 128>, Head<4>>;
    IKQ_MEMBER Result decode(const Fields<Form> &unit, int l) {
        Result f;
        const uint4 w = load_16(unit.field<0>() + 16 * l);
        // what is added is multiplied beforehand, so that the first step of a seed is one multiplication and addition
        const uint32_t offset = w.x & 0x8000u ? (4096u + 32768u) * TRELLIS_STEP : 4096u * TRELLIS_STEP;
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const uint32_t seed = i & 1 ? word(w, i >> 1) >> 17 : word(w, i >> 1) & 0x7fffu;
            uint32_t x = seed * TRELLIS_STEP + offset;
            const int a = value_of_state(x), b = next_value(x), c = next_value(x), d = next_value(x);
            f.code[i] = int(four_bytes(a, b, c, d));
        }
        const uint32_t byte = (w.x >> 15 & 3u) | (w.y >> 13 & 12u) | (w.z >> 11 & 48u) | (w.w >> 9 & 192u);
        f.scale[0] = int(byte >> 1) - 64;
        f.d = load_f32(unit.field<1>());
        return f;
    }
};
