// IQ1_BN, IQ2_BN, I2_S, TQ1_0, TQ2_0, Q1_0_G128 and Q2_0. All but Q1_0_G128 subtract 1 from the trits or bit pairs of
// the file. For types with half-precision scales a min does it. For types with float scales, whose multiples are not
// exact in float, the codes have it already.
#pragma once
#include "types/bits.cuh"
#include "types/form.cuh"

// One of the five trits in a byte; `power`, a power of three, says which.
IKQ_DEV uint32_t trit(uint32_t byte, uint32_t power) { return (byte * power & 255u) * 3u >> 8; }
// The same trit of each of the four bytes of a word.
IKQ_DEV uint32_t trits(uint32_t x, uint32_t power) {
    const uint32_t even = ((x & 0x00ff00ffu) * power & 0x00ff00ffu) * 3u >> 8 & 0x00030003u;
    const uint32_t odd = ((x >> 8 & 0x00ff00ffu) * power & 0x00ff00ffu) * 3u & 0x03000300u;
    return even | odd;
}

struct iq1_bn : Neighbours<32> {
    static constexpr int BLOCK = 64;
    static constexpr Mins MINS = Mins::WHOLE;
    using Form = Planes<Seg<0, 12>, Head<2>, Seg<12, 1>>;
    IKQ_MEMBER Result decode(const Fields<Form> &unit, int l) {
        Result f;
        const int block = l >> 1, half = l & 1;
        const uint8_t *p = unit.field<0>(block) + 6 * half;
        const uint32_t extra = load_u8(unit.field<2>(block));
        // there are two groups of 16 elements; fifteen of each are in three bytes, the last one is in `extra`
        const uint32_t low = load_u16(p), middle = load_u16(p + 2), high = load_u16(p + 4);
        const uint32_t bytes[6] = {low & 255u, low >> 8, middle & 255u, middle >> 8, high & 255u, high >> 8};
        constexpr uint32_t POWERS[5] = {81, 27, 9, 3, 1};
        const uint32_t last[2] = {trit(extra, half ? POWERS[2] : POWERS[0]), trit(extra, half ? POWERS[3] : POWERS[1])};
#pragma unroll
        for (int i = 0; i < 8; i++) {
            uint32_t w = 0;
#pragma unroll
            for (int k = 0; k < 4; k++) {
                const int r = 4 * (i & 3) + k; // in the group
                const uint32_t t = r < 15 ? trit(bytes[3 * (i >> 2) + (r < 15 ? r / 5 : 0)], POWERS[r % 5]) : last[i >> 2];
                w |= t << (8 * k);
            }
            f.code[i] = int(w);
        }
        f.scale[0] = f.min[0] = load_half(unit.field<1>());
        return f;
    }
};

struct iq2_bn : Neighbours<32> {
    static constexpr int BLOCK = 64;
    using Form = Planes<Seg<0, 16>, Head<4>>;
    IKQ_MEMBER Result decode(const Fields<Form> &unit, int l) {
        Result f;
        const uint4 w = load_16(unit.field<0>(l >> 1));
#pragma unroll
        for (int i = 0; i < 8; i++) f.code[i] = int(less(word(w, i & 3) >> (4 * (l & 1) + 2 * (i >> 2)) & CRUMBS, 1));
        f.scale[0] = load_f32(unit.field<1>());
        return f;
    }
};

// The device form has a copy of the tensor's scale in every row.
struct i2_s : QuartersOf128 {
    static constexpr int BLOCK = 128;
    using Form = Planes<Seg<0, 32>, Head<4>>;
    IKQ_MEMBER Result decode(const Fields<Form> &unit, int l) {
        Result f;
        const uint2 q = load_8(unit.field<0>(l >> 2) + 8 * (l & 3));
        const float d = load_f32(unit.field<1>());
#pragma unroll
        for (int j = 0; j < 4; j++) {
            f.code[2 * j] = int(less(q.x >> (6 - 2 * j) & CRUMBS, 1));
            f.code[2 * j + 1] = int(less(q.y >> (6 - 2 * j) & CRUMBS, 1));
            f.scale[j] = d;
        }
        return f;
    }
};

// Elements i below 160 are trit i / 32 of the first 32 bytes, elements below 240 are trit (i - 160) / 16 of the next 16
// bytes, and the other 16 are in four bytes.
struct tq1_0 : Neighbours<32> {
    static constexpr Mins MINS = Mins::WHOLE;
    using Form = Planes<Seg<0, 48>, Seg<48, 4>, Seg<52, 2>>;
    IKQ_MEMBER Result decode(const Fields<Form> &unit, int l) {
        Result f;
        const uint8_t *q = unit.field<0>();
        const uint32_t four = load_u32(unit.field<1>());
        const uint4 first = load_16(q + (l < 5 ? 0 : 32)), second = load_16(q + (l < 5 ? 16 : 32));
        constexpr auto power = [](int k) { return k == 0 ? 1u : k == 1 ? 3u : k == 2 ? 9u : k == 3 ? 27u : 81u; };
        const uint32_t a = power(l < 5 ? l : 2 * (l - 5)), b = power(l < 5 ? l : 2 * (l - 5) + 1);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            f.code[i] = int(trits(word(first, i), a));
            f.code[4 + i] = int(trits(l < 7 ? word(second, i) : four, l < 7 ? b : power(i)));
        }
        f.scale[0] = f.min[0] = load_half(unit.field<2>());
        return f;
    }
};

struct tq2_0 : QuartersOf128 {
    static constexpr Mins MINS = Mins::WHOLE;
    using Form = Planes<Seg<0, 64>, Seg<64, 2>>;
    IKQ_MEMBER Result decode(const Fields<Form> &unit, int l) {
        Result f;
        const uint2 q = load_8(unit.field<0>() + 32 * (l >> 2) + 8 * (l & 3));
        const float d = load_half(unit.field<1>());
#pragma unroll
        for (int j = 0; j < 4; j++) {
            f.code[2 * j] = int(q.x >> (2 * j) & CRUMBS);
            f.code[2 * j + 1] = int(q.y >> (2 * j) & CRUMBS);
            f.scale[j] = f.min[j] = d;
        }
        return f;
    }
};

// A bit stands for d or -d, which is computed as 2 d times the bit, minus d.
struct q1_0_g128 : Neighbours<32> {
    static constexpr int BLOCK = 128;
    static constexpr Mins MINS = Mins::WHOLE;
    using Form = Planes<Seg<2, 16>, Seg<0, 2>>;
    IKQ_MEMBER Result decode(const Fields<Form> &unit, int l) {
        Result f;
        const int block = l >> 2;
        const uint32_t bits = load_u32(unit.field<0>(block) + 4 * (l & 3));
#pragma unroll
        for (int i = 0; i < 8; i++) f.code[i] = int(spread(bits >> (4 * i)));
        f.min[0] = load_half(unit.field<1>(block));
        f.scale[0] = 2.0f * f.min[0];
        return f;
    }
};

struct q2_0 : Neighbours<32> {
    static constexpr int BLOCK = 64;
    static constexpr Mins MINS = Mins::WHOLE;
    using Form = Planes<Seg<2, 16>, Seg<0, 2>>;
    IKQ_MEMBER Result decode(const Fields<Form> &unit, int l) {
        Result f;
        const int block = l >> 1;
        const uint2 w = load_8(unit.field<0>(block) + 8 * (l & 1));
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const uint32_t x = word(w, i >> 2) >> (8 * (i & 3)) & 255u;
            f.code[i] = int((x | x << 6 | x << 12 | x << 18) & CRUMBS);
        }
        f.scale[0] = f.min[0] = load_half(unit.field<1>(block));
        return f;
    }
};
