// IQ1_KT to IQ4_KT. A code is the seed of a generator, which computes the values of eight (IQ4_KT: four) neighbours.
#pragma once
#include "types/bits.cuh"
#include "types/form.cuh"
#include "types/iquants.cuh"

constexpr uint32_t TRELLIS_STEP = 0xcbac1fedu, STATE_BYTES = 0x3f3f3f3fu;
constexpr int STATE_OFFSET = -126;
IKQ_DEV constexpr uint32_t power_of_step(int k) {
    uint32_t power = 1;
#pragma unroll
    for (int i = 0; i < 8; i++) power *= i < k ? TRELLIS_STEP : 1u;
    return power; // a constant, as loops over k are unrolled
}
// State k (from 1 on) of the generator that begins with a seed, without the bits that its value does not have. The value, from
// -126 to 126, is the sum of its bytes plus STATE_OFFSET. Each state is computed from the seed: so they do not wait for one
// another, and what is added to seeds takes no instruction. `power` is power_of_step(k).
IKQ_DEV uint32_t state(uint32_t seed, int k, uint32_t power) { return (seed * power + 4096u * power_of_step(k)) & STATE_BYTES; }
IKQ_DEV uint32_t state(uint32_t seed, int k) { return state(seed, k, power_of_step(k)); }
IKQ_DEV int value(uint32_t seed, int k) { return __dp4a(int(state(seed, k)), int(ONES), STATE_OFFSET); }
IKQ_DEV uint32_t four_bytes(int a, int b, int c, int d) {
    const uint32_t low = permute(uint32_t(a), uint32_t(b), 0x0040u);
    return permute(low, permute(uint32_t(c), uint32_t(d), 0x0040u), 0x5410u);
}
// Values 4 i to 4 i + 3 of a seed.
IKQ_DEV int four_values(uint32_t seed, int i) {
    const int k = 4 * i + 1;
    return int(four_bytes(value(seed, k), value(seed, k + 1), value(seed, k + 2), value(seed, k + 3)));
}

// What the types have in common that are computed together (together.cuh). They also have
//
//     VALUES            the number of values of a seed
//     of_lanes(unit, t) moves the addresses to what lanes t and 4 + t have of a unit
//     Packed            the bits of the 32 elements of lane t + 4 run
//     packed(unit, run) loads them from where of_lanes() has moved to
//     seed(packed, i)   seed i of them
//     scaled(packed, l) their scale; if SCALE_IN_SUMS, together.cuh computes it from words' sums
//     row_scale(unit)   d of the row
template <class T> struct Trellis : Neighbours<32> {
    static constexpr bool ROW_SCALE = true, TOGETHER = true;
    static constexpr bool SCALE_IN_SUMS = false;
    using Result = IntegerFragment<32>;
    template <class Fields> IKQ_MEMBER Result decode(const Fields &unit, int l) {
        Result f;
        Fields lanes = unit;
        T::of_lanes(lanes, l & 3);
        const auto packed = T::packed(lanes, l >> 2);
#pragma unroll
        for (int i = 0; i < 8; i++) f.code[i] = four_values(T::seed(packed, 4 * i / T::VALUES), i % (T::VALUES / 4));
        f.scale[0] = T::scaled(packed, l);
        f.d = T::row_scale(unit);
        return f;
    }
};

struct iq1_kt : Trellis<iq1_kt> {
    static constexpr int VALUES = 8;
    using Form = Planes<Seg<8, 32>, Seg<40, 16>, Seg<0, 8>, Head<4>>;
    struct Packed {
        uint32_t low, high, s;
    };
    IKQ_MEMBER void of_lanes(Fields<Form> &unit, int t) {
        unit.move<0>(4 * t);
        unit.move<1>(4 * t);
        unit.move<2>(t);
    }
    IKQ_MEMBER Packed packed(const Fields<Form> &unit, int run) {
        return {load_u32(unit.field<0>() + 16 * run), load_u32(unit.field<1>()) >> (4 * run),
                load_u8(unit.field<2>() + 4 * run)};
    }
    IKQ_MEMBER uint32_t seed(const Packed &p, int i) {
        return (p.low >> (8 * i) & 255u) | (p.high >> (8 * i) & 15u) << 8 | (p.s >> (4 + i) & 1u) << 12;
    }
    IKQ_MEMBER int scaled(const Packed &p, int) { return look_up_1(p.s, iq4_values()); }
    IKQ_MEMBER float row_scale(const Fields<Form> &unit) { return load_f32(unit.field<3>()); }
};

struct iq2_kt : Trellis<iq2_kt> {
    static constexpr int VALUES = 8;
    static constexpr float FACTOR = 1.05f;
    using Form = Planes<Seg<4, 64>, Seg<0, 4>, Head<4>>;
    struct Packed {
        uint2 seeds;
        uint32_t scales;
    };
    IKQ_MEMBER void of_lanes(Fields<Form> &unit, int t) { unit.move<0>(8 * t); }
    IKQ_MEMBER Packed packed(const Fields<Form> &unit, int run) {
        return {load_8(unit.field<0>() + 32 * run), load_u32(unit.field<1>())};
    }
    IKQ_MEMBER uint32_t seed(const Packed &p, int i) { return word(p.seeds, i >> 1) >> (16 * (i & 1)) & 0xffffu; }
    IKQ_MEMBER int scaled(const Packed &p, int l) {
        return look_up_1(p.scales >> (8 * (l & 3) + 4 * (l >> 2)), iq4_values());
    }
    IKQ_MEMBER float row_scale(const Fields<Form> &unit) { return load_f32(unit.field<2>()); }
};

struct iq3_kt : Neighbours<32> {
    using Result = IntegerFragment<32>;
    static constexpr float FACTOR = 1.01f;
    static constexpr bool ROW_SCALE = true;
    using Form = Planes<Seg<4, 64>, Seg<68, 32>, Seg<0, 4>, Head<4>>;
    IKQ_MEMBER Result decode(const Fields<Form> &unit, int l) {
        Result f;
        const uint2 w = load_8(unit.field<0>() + 8 * l);
        const uint4 signs[2] = {load_16(unit.field<1>()), load_16(unit.field<1>() + 16)};
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const uint32_t seed = word(w, i >> 2) >> (16 * (i >> 1 & 1)) & 0xffffu;
            int t[4];
#pragma unroll
            for (int k = 0; k < 4; k++) {
                const int v = value(seed, 4 * (i & 1) + k + 1);
                t[k] = v < 0 ? -v : v;
            }
            const uint32_t minus = word(signs[i >> 2], i & 3) >> l & ONES;
            f.code[i] = int(add_bytes(four_bytes(t[0], t[1], t[2], t[3]) ^ (minus * 255u), minus));
        }
        const uint32_t s = load_u32(unit.field<2>()) >> (8 * (l & 3) + 4 * (l >> 2)) & 15u;
        f.scale[0] = int(s);
        f.d = row_scale(unit);
        return f;
    }
    IKQ_MEMBER float row_scale(const Fields<Form> &unit) { return load_f32(unit.field<3>()); }
};

// In the device form (repack.cuh), each of a lane's four words has two seeds, in bits 0 to 14 and 17 to 31. Bit 15 of the
// first word is the highest bit of all seeds. The seven bits that are left, 15 and 16 of words, are such that SCALE_BITS have
// the scale in the exclusive or of two sums: of the bytes of the first and the third word times SCALE_FACTORS, and of those of
// the second and the fourth. Whatever seeds add to the sums, each of the seven changes a bit of the scale and none below it. So
// tensor cores gather it from words as they are.
struct iq4_kt : Trellis<iq4_kt> {
    static constexpr int RECODED_BYTES = 128, VALUES = 4;
    using Form = Planes<Seg<0, 128>, Head<4>>;
    using Packed = uint4;
    IKQ_MEMBER void of_lanes(Fields<Form> &unit, int t) { unit.move<0>(16 * t); }
    IKQ_MEMBER Packed packed(const Fields<Form> &unit, int run) { return load_16(unit.field<0>() + 64 * run); }
    IKQ_MEMBER uint32_t seed(const Packed &p, int i) {
        const uint32_t w = word(p, i >> 1), highest = p.x & 0x8000u;
        return i & 1 ? (w >> 17) + highest : (w & 0x7fffu) | highest;
    }
    static constexpr bool SCALE_IN_SUMS = true;
    // bits 16 change bits 3 to 6 of the sum, bits 15 (-128 as a byte has them) bits 7 to 9
    static constexpr uint32_t SCALE_FACTORS[4] = {0x00080000u, 0x00100100u, 0x00200200u, 0x00400400u};
    static constexpr uint32_t SCALE_BITS = 0x3f8u;
    static constexpr int SCALE_SHIFT = 3, SCALE_ZERO = 64;
    IKQ_MEMBER int sum_of_scale(uint32_t first, uint32_t second, int i) {
        return __dp4a(int(second), int(SCALE_FACTORS[i + 2]), __dp4a(int(first), int(SCALE_FACTORS[i]), 0));
    }
    IKQ_MEMBER uint32_t scale_bits(const Packed &p) {
        return uint32_t(sum_of_scale(p.x, p.z, 0) ^ sum_of_scale(p.y, p.w, 1)) & SCALE_BITS;
    }
    IKQ_MEMBER int scaled(const Packed &p, int) { return int(scale_bits(p) >> SCALE_SHIFT) - SCALE_ZERO; }
    IKQ_MEMBER float row_scale(const Fields<Form> &unit) { return load_f32(unit.field<1>()); }
};
