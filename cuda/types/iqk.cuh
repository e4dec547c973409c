// IQ2_K to IQ6_K. Codes are indices of a non-linear table in two variants; the second is the first plus a constant.
#pragma once
#include "types/bits.cuh"
#include "types/form.cuh"
#include "types/iquants.cuh"
#include "types/kquants.cuh"

constexpr uint32_t IQ2_SHIFT = 5, IQ3_SHIFT = 4, IQ4_SHIFT = 4, IQ5_SHIFT = 2, IQ6_SHIFT = 1;
// The tables have values plus 128, so that adding the constant causes no carry into another byte.
constexpr uint32_t IQ2_VALUES = 0x1101f3e1u ^ SIGN_BITS;                                             // -31 -13 1 17
constexpr uint32_t IQ3_VALUES = 0xf6e9d8c1u ^ SIGN_BITS, IQ3_VALUES_UPPER = 0x2f1c0d01u ^ SIGN_BITS; // -63 -40 -23 -10, 1 13 28 47
IKQ_DEV Table16 plus_128(const Table16 &t) {
    return {t.a ^ SIGN_BITS, t.b ^ SIGN_BITS, t.c ^ SIGN_BITS, t.d ^ SIGN_BITS};
}

// Adds the constant of the second variant to codes if `second` is odd, and removes the 128 from them.
IKQ_DEV int shifted(uint32_t codes, uint32_t second, uint32_t shift) {
    return int((codes + (second & 1u) * (shift * ONES)) ^ SIGN_BITS);
}

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
    uint32_t a[4], b[4];
    look_up_crumbs(q.x, IQ2_VALUES, a);
    look_up_crumbs(q.y, IQ2_VALUES, b);
#pragma unroll
    for (int j = 0; j < 4; j++) {
        code[2 * j] = shifted(a[j], second[j], IQ2_SHIFT);
        code[2 * j + 1] = shifted(b[j], second[j], IQ2_SHIFT);
    }
}
IKQ_DEV void codes_of_three_bits(const uint2 &q, const uint2 &high, int n, const uint32_t (&second)[4], int (&code)[8]) {
    uint32_t a[4], b[4];
    look_up_three_bits(q.x, high.x >> (4 * n), a);
    look_up_three_bits(q.y, high.y >> (4 * n), b);
#pragma unroll
    for (int j = 0; j < 4; j++) {
        code[2 * j] = shifted(a[j], second[j], IQ3_SHIFT);
        code[2 * j + 1] = shifted(b[j], second[j], IQ3_SHIFT);
    }
}

struct iq2_k : QuartersOf128 {
    using Form = Planes<Seg<12, 64>, Seg<4, 8>, Seg<0, 4>>;
    IKQ_MEMBER Result decode(const uint8_t *row, int nb, int u, int l) {
        const Quarter at = quarter(l);
        const uint2 q = load_8(Form::field<0>(row, nb, u) + 32 * at.n + 8 * at.t);
        const uint32_t scales = load_u32(Form::field<1>(row, nb, u) + 4 * at.n) >> (4 * (at.t >> 1));
        const uint32_t head = load_u32(Form::field<2>(row, nb, u));
        const uint32_t extra = head >> (16 + 8 * at.n + (at.t >> 1));
        const uint32_t second[4] = {extra, extra >> 2, extra >> 4, extra >> 6};
        Result f;
        codes_of_two_bits(q, second, f.code);
#pragma unroll
        for (int j = 0; j < 4; j++) f.scale[j] = h2f(uint16_t(head)) * float(int(scales >> (8 * j) & 15u) - 8);
        return f;
    }
};

struct iq3_k : QuartersOf128 {
    using Form = Planes<Seg<14, 64>, Seg<78, 32>, Seg<6, 8>, Seg<0, 6>>;
    IKQ_MEMBER Result decode(const uint8_t *row, int nb, int u, int l) {
        const Quarter at = quarter(l);
        const uint2 q = load_8(Form::field<0>(row, nb, u) + 32 * at.n + 8 * at.t);
        const uint2 high = load_8(Form::field<1>(row, nb, u) + 8 * at.t);
        const uint32_t scales = load_u32(Form::field<2>(row, nb, u) + 4 * at.n) >> (4 * (at.t >> 1));
        const uint8_t *head = Form::field<3>(row, nb, u);
        const int k = 8 * at.n + (at.t >> 1);
        const uint32_t extra = load_u16(head + 2) >> k, minus = load_u16(head + 4) >> k;
        const uint32_t second[4] = {extra, extra >> 2, extra >> 4, extra >> 6};
        const float d = load_half(head);
        Result f;
        codes_of_three_bits(q, high, at.n, second, f.code);
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const int s = int(2 * (scales >> (8 * j) & 15u) + 1);
            f.scale[j] = d * float(minus >> (2 * j) & 1u ? -s : s);
        }
        return f;
    }
};

// Scale k of IQ4_K and IQ5_K. head.x is d and the bits of the variants, head.y the upper two bits of the sixteen
// scales, head.z and head.w their lower four bits.
IKQ_DEV float six_bit_scale(const uint4 &head, int k) {
    const uint32_t low = (k < 8 ? head.z : head.w) >> (4 * (k & 7)) & 15u;
    return h2f(uint16_t(head.x)) * float(int(low | (head.y >> (2 * k) & 3u) << 4) - 32);
}

struct iq4_k : Neighbours<16> {
    using Form = Planes<Seg<16, 128>, Seg<0, 16>>;
    IKQ_MEMBER Result decode(const uint8_t *row, int nb, int u, int l) {
        Result f;
        values_of_16(load_16(Form::field<0>(row, nb, u) + 16 * l), plus_128(iq4_values()), f.code);
        const uint4 head = load_16(Form::field<1>(row, nb, u));
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const uint32_t second = head.x >> (16 + 2 * l + r);
#pragma unroll
            for (int i = 0; i < 4; i++) f.code[4 * r + i] = shifted(uint32_t(f.code[4 * r + i]), second, IQ4_SHIFT);
            f.scale[r] = six_bit_scale(head, 2 * l + r);
        }
        return f;
    }
};

// The tables of 32 and 64 bytes, in parts of sixteen.
IKQ_DEV Table16 iq5_values(int part) {
    // -126 -114 -103 -92 -83 -74 -65 -57 -50 -43 -36 -30 -24 -18 -12 -6; -1 5 11 17 23 29 36 43 51 59 68 77 87 97 109 121
    return part == 0 ? Table16{0xa4998e82u, 0xc7bfb6adu, 0xe2dcd5ceu, 0xfaf4eee8u}
                     : Table16{0x110b05ffu, 0x2b241d17u, 0x4d443b33u, 0x796d6157u};
}
IKQ_DEV Table16 iq6_values(int part) {
    switch (part) {
    case 0: return {0x938d8781u, 0xa8a39e98u, 0xbab6b1acu, 0xcac6c2beu};  // -127 -121 -115 -109 ... -54
    case 1: return {0xd8d4d1cdu, 0xe4e1dedbu, 0xf0edeae7u, 0xfbf8f5f3u};  // -51 -47 -44 -40 ... -5
    case 2: return {0x060300feu, 0x110e0c09u, 0x1e1b1714u, 0x2c282421u};  // -2 0 3 6 ... 44
    default: return {0x3b37332fu, 0x4d48443fu, 0x625c5752u, 0x79736d67u}; // 47 51 55 59 ... 121
    }
}
// The bytes of b where the byte of `where` is odd, and those of a elsewhere.
IKQ_DEV uint32_t choose(uint32_t a, uint32_t b, uint32_t where) {
    const uint32_t mask = (where & ONES) * 255u;
    return (a & ~mask) | (b & mask);
}

// The values of a lane of HalvesOf64 with codes of five bits: sixteen bytes of nibbles, whose fifth bits are bits 2 c
// (of the low nibbles) and 2 c + 1 (of the high ones) of another sixteen bytes.
template <class Result> IKQ_DEV void values_of_five_bits(const uint4 &w, const uint4 &bits, int c, Result &f) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        uint32_t low[2], high[2];
#pragma unroll
        for (int p = 0; p < 2; p++) look_up(word(w, i), plus_128(iq5_values(p)), low[p], high[p]);
        const uint32_t fifth = word(bits, i) >> (2 * c);
        f.code[i] = int(choose(low[0], low[1], fifth));
        f.code[4 + i] = int(choose(high[0], high[1], fifth >> 1));
    }
}

struct iq5_k : HalvesOf64 {
    using Form = Planes<Seg<16, 128>, Seg<144, 32>, Seg<0, 16>>;
    IKQ_MEMBER Result decode(const uint8_t *row, int nb, int u, int l) {
        Result f;
        const int c = l >> 1;
        values_of_five_bits(load_16(Form::field<0>(row, nb, u) + 16 * l),
                            load_16(Form::field<1>(row, nb, u) + 16 * (l & 1)), c, f);
        const uint4 head = load_16(Form::field<2>(row, nb, u));
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const int k = 4 * c + (l & 1) + 2 * r;
#pragma unroll
            for (int i = 0; i < 4; i++)
                f.code[4 * r + i] = shifted(uint32_t(f.code[4 * r + i]), head.x >> (16 + k), IQ5_SHIFT);
            f.scale[r] = six_bit_scale(head, k);
        }
        return f;
    }
};

struct iq6_k : HalvesOf64 {
    using Form = Planes<Seg<20, 128>, Seg<148, 64>, Seg<4, 16>, Seg<0, 4>>;
    IKQ_MEMBER Result decode(const uint8_t *row, int nb, int u, int l) {
        Result f;
        const int c = l >> 1;
        const uint4 w = load_16(Form::field<0>(row, nb, u) + 16 * l);
        const uint4 high_bits = load_16(Form::field<1>(row, nb, u) + 32 * (c >> 1) + 16 * (l & 1));
        const uint4 scales = load_16(Form::field<2>(row, nb, u));
        const uint32_t head = load_u32(Form::field<3>(row, nb, u));
#pragma unroll
        for (int i = 0; i < 4; i++) {
            uint32_t low[4], high[4];
#pragma unroll
            for (int p = 0; p < 4; p++) look_up(word(w, i), plus_128(iq6_values(p)), low[p], high[p]);
            const uint32_t x = word(high_bits, i) >> (4 * (c & 1)), y = x >> 2;
            f.code[i] = int(choose(choose(low[0], low[1], x), choose(low[2], low[3], x), x >> 1));
            f.code[4 + i] = int(choose(choose(high[0], high[1], y), choose(high[2], high[3], y), y >> 1));
        }
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const int k = 4 * c + (l & 1) + 2 * r;
#pragma unroll
            for (int i = 0; i < 4; i++)
                f.code[4 * r + i] = shifted(uint32_t(f.code[4 * r + i]), head >> (16 + k), IQ6_SHIFT);
            const uint32_t s = word(scales, c) >> (8 * (k & 3)) & 255u;
            f.scale[r] = h2f(uint16_t(head)) * float(int(int8_t(s)));
        }
        return f;
    }
};
