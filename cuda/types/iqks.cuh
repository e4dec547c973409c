// IQ2_KS to IQ5_KS, IQ4_KSS and IQ2_KL. They have one scale (F16 or F32) per row, in the row header, and an integer
// scale per 32 elements; all but IQ2_KL use the tables of IQ2_K to IQ5_K.
#pragma once
#include "types/iqk.cuh"

// The scale in the upper seven bits of a byte, which is always odd; bit 0 chooses the variant of the table.
IKQ_DEV int odd_scale(uint32_t byte) { return int(byte & 254u) - 127; }

struct iq4_ks : Neighbours<32> {
    using Result = IntegerFragment<32>;
    using Form = Planes<Seg<8, 128, Order::PAIRS>, Seg<0, 8>, Head<4>>;
    IKQ_MEMBER Result decode(const Fields<Form> &unit, int l) {
        Result f;
        const uint32_t c = load_u8(unit.field<1>() + l);
        values_of_pairs(load_16(unit.field<0>() + 16 * l), iq4_pairs_of(c), f.code);
        f.scale[0] = odd_scale(c);
        f.d = load_f32(unit.field<2>());
        return f;
    }
};

struct iq5_ks : FiveBits {
    using Form = Planes<Seg<8, 128>, Seg<136, 32>, Seg<0, 8>, Head<4>>;
    IKQ_MEMBER Result decode(const Fields<Form> &unit, int l) {
        Result f;
        const uint32_t scales = load_u16(unit.field<2>() + (l & ~1));
        values_of_five_bits(load_16(unit.field<0>() + 16 * l), load_u32(unit.field<1>() + 4 * l),
                            {iq5_plus(scales), iq5_plus(scales >> 8)}, f);
        f.d = load_f32(unit.field<3>());
        f.scale[0] = odd_scale(scales);
        f.scale[1] = odd_scale(scales >> 8);
        return f;
    }
};

// The sixteen bits of four codes have even parity, so fifteen bits are enough: they are stored as a Gray code in the
// upper fifteen bits of a 16-bit word. The lowest bits of eight such words are the scale byte. In the device form
// (repack.cuh) it is so, too, for nibbles as Order::PAIRS has them; the four of bytes 0 and 1, the low ones first, share a
// 16-bit word, and those of bytes 2 and 3.
struct iq4_kss : Neighbours<32> {
    static constexpr int RECODED_BYTES = 128;
    using Result = IntegerFragment<32>;
    using Form = Planes<Seg<0, 128>, Head<4>>;
    IKQ_MEMBER Result decode(const Fields<Form> &unit, int l) {
        Result f;
        const uint4 w = load_16(unit.field<0>() + 16 * l);
        // The lowest bits of the halves of two words are moved to four bytes, for a product with the values that they have
        // in the scale. The negated values fit into bytes; bit 0, which has no value, chooses the table.
        const auto lowest = [](uint32_t a, uint32_t b) { return int(permute(a, b, 0x6240u) & ONES); };
        const int minus = __dp4a(lowest(w.x, w.y), int(0xf8fefc00u), __dp4a(lowest(w.z, w.w), int(0x80e0c0f0u), 127));
        const auto nibbles = [](uint32_t x) {
            x &= 0xfffefffeu;
            x ^= x >> 1;
            return permute(x, x, 0x3120u);
        };
        values_of_pairs({nibbles(w.x), nibbles(w.y), nibbles(w.z), nibbles(w.w)}, iq4_pairs_of(w.x), f.code);
        f.scale[0] = -minus;
        f.d = load_f32(unit.field<1>());
        return f;
    }
};

struct iq2_ks : QuartersOf128 {
    using Result = IntegerFragment<8>;
    using Form = Planes<Seg<6, 64>, Seg<2, 4>, Seg<0, 2>, Head<2>>;
    IKQ_MEMBER Result decode(const Fields<Form> &unit, int l) {
        const Quarter at = quarter(l);
        const uint2 q = load_8(unit.field<0>() + 32 * at.n + 8 * at.t);
        const uint32_t scales = load_u32(unit.field<1>()) >> (16 * at.n);
        const uint32_t extra = load_u16(unit.field<2>()) >> (4 * at.n);
        const uint32_t second[4] = {extra, extra >> 1, extra >> 2, extra >> 3};
        Result f;
        f.d = load_half(unit.field<3>());
        codes_of_two_bits(q, second, f.code);
#pragma unroll
        for (int j = 0; j < 4; j++)
            f.scale[j] = int((scales >> (4 * j) & 15u) | (extra >> (8 + j) & 1u) << 4) - 16;
        return f;
    }
};

struct iq3_ks : QuartersOf128 {
    using Result = IntegerFragment<8>;
    using Form = Planes<Seg<6, 64>, Seg<70, 32>, Seg<2, 4>, Seg<0, 2>, Head<2>>;
    IKQ_MEMBER Result decode(const Fields<Form> &unit, int l) {
        const Quarter at = quarter(l);
        const uint2 q = load_8(unit.field<0>() + 32 * at.n + 8 * at.t);
        const uint2 high = load_8(unit.field<1>() + 8 * at.t);
        const uint32_t scales = load_u32(unit.field<2>()) >> (4 * at.n);
        const uint32_t extra = load_u16(unit.field<3>()) >> (4 * at.n);
        const uint32_t second[4] = {extra >> 8, extra >> 9, extra >> 10, extra >> 11};
        Result f;
        f.d = load_half(unit.field<4>());
        codes_of_three_bits(q, high, at.n, second, f.code);
#pragma unroll
        for (int j = 0; j < 4; j++)
            f.scale[j] = int((scales >> (8 * j) & 15u) | (extra >> j & 1u) << 4) - 16;
        return f;
    }
};

// Five bits are the index of a pair of values, for two neighbouring elements.
struct iq2_kl : Neighbours<32> {
    using Result = IntegerFragment<32>;
    using Form = Planes<Seg<6, 64>, Seg<70, 16>, Seg<2, 4>, Seg<0, 2>, Head<2>>;
    IKQ_MEMBER Result decode(const Fields<Form> &unit, int l) {
        Result f;
        const uint4 low = load_16(unit.field<0>() + 16 * (l >> 1));
        const uint4 high = load_16(unit.field<1>());
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const uint32_t pairs = (word(low, i) >> (4 * (l & 1)) & LOW_NIBBLES) | (word(high, i) >> l & ONES) << 4;
            const uint32_t a = load_u16(IQ2KL_VALUES + (pairs & 255u)), b = load_u16(IQ2KL_VALUES + (pairs >> 8 & 255u));
            const uint32_t c = load_u16(IQ2KL_VALUES + (pairs >> 16 & 255u)), d = load_u16(IQ2KL_VALUES + (pairs >> 24));
            f.code[2 * i] = int(a | b << 16);
            f.code[2 * i + 1] = int(c | d << 16);
        }
        const uint32_t scales = load_u32(unit.field<2>()), upper = load_u16(unit.field<3>());
        const uint32_t s = (scales >> (8 * (l & 3) + 4 * (l >> 2)) & 15u) | (upper >> (2 * l) & 3u) << 4;
        f.scale[0] = int(s) - 32;
        f.d = load_half(unit.field<4>());
        return f;
    }
};
