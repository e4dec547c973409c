// IQ1_S to IQ4_XS, which use codebooks or a non-linear table for codes of four bits. Codebook entries are packed
// (grids.cuh) with two or four bits per element, which a byte permute turns into values.
#pragma once
#include "types/bits.cuh"
#include "types/form.cuh"
#include "types/grids.cuh"

constexpr uint32_t IQ2_LEVELS = 0x002b1908u; // 8, 25, 43

// The eight values of a codebook entry, which has magnitudes, with the signs in the lower eight bits of `signs`, as two
// words of codes.
IKQ_DEV void entry_of_8(uint32_t entry, uint32_t signs, int &first, int &second) {
    uint32_t a, b;
    look_up_8(entry, IQ2_LEVELS, a, b);
    first = int(negated(a, spread(signs)));
    second = int(negated(b, spread(signs >> 4)));
}

struct iq2_xxs : Neighbours<32> {
    using Result = IntegerFragment<32>;
    using Form = Planes<Seg<2, 64>, Seg<0, 2>>;
    IKQ_MEMBER Result decode(const Fields<Form> &unit, int l) {
        Result f;
        const uint2 w = load_8(unit.field<0>() + 8 * l);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const uint32_t entry = load_u16(IQ2XXS_GRID + (w.x >> (8 * i) & 255u));
            entry_of_8(entry, even_signs(w.y >> (7 * i) & 127u), f.code[2 * i], f.code[2 * i + 1]);
        }
        f.scale[0] = int(2 * (w.y >> 28) + 1);
        f.d = load_half(unit.field<1>()) * 0.125f;
        return f;
    }
};

struct iq2_xs : Neighbours<16> {
    using Result = IntegerFragment<16>;
    using Form = Planes<Seg<2, 64>, Seg<66, 8>, Seg<0, 2>>;
    IKQ_MEMBER Result decode(const Fields<Form> &unit, int l) {
        Result f;
        const uint2 w = load_8(unit.field<0>() + 8 * l);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const uint32_t v = word(w, i >> 1) >> (16 * (i & 1)) & 0xffffu;
            entry_of_8(load_u16(IQ2XS_GRID + (v & 511u)), even_signs(v >> 9), f.code[2 * i], f.code[2 * i + 1]);
        }
        const uint32_t s = load_u8(unit.field<1>() + l);
        f.d = load_half(unit.field<2>()) * 0.125f;
        f.scale[0] = int(2 * (s & 15u) + 1);
        f.scale[1] = int(2 * (s >> 4) + 1);
        return f;
    }
};

struct iq2_s : Neighbours<16> {
    using Result = IntegerFragment<16>;
    using Form = Planes<Seg<2, 32>, Seg<34, 32>, Seg<66, 8>, Seg<74, 8>, Seg<0, 2>>;
    IKQ_MEMBER Result decode(const Fields<Form> &unit, int l) {
        Result f;
        const uint32_t low = load_u32(unit.field<0>() + 4 * l);
        const uint32_t signs = load_u32(unit.field<1>() + 4 * l);
        const uint32_t high = load_u8(unit.field<2>() + l);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const uint32_t index = (low >> (8 * i) & 255u) | (high >> (2 * i) & 3u) << 8;
            entry_of_8(load_u16(IQ2S_GRID + index), signs >> (8 * i), f.code[2 * i], f.code[2 * i + 1]);
        }
        const uint32_t s = load_u8(unit.field<3>() + l);
        f.d = load_half(unit.field<4>()) * 0.125f;
        f.scale[0] = int(2 * (s & 15u) + 1);
        f.scale[1] = int(2 * (s >> 4) + 1);
        return f;
    }
};

struct iq3_xxs : Neighbours<32> {
    using Result = IntegerFragment<32>;
    using Form = Planes<Seg<2, 64>, Seg<66, 32>, Seg<0, 2>>;
    IKQ_MEMBER Result decode(const Fields<Form> &unit, int l) {
        Result f;
        const uint2 w = load_8(unit.field<0>() + 8 * l);
        const uint32_t a = load_u32(unit.field<1>() + 4 * l);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const uint32_t entry = load_u16(IQ3XXS_GRID + (word(w, i >> 2) >> (8 * (i & 3)) & 255u));
            // 4, 12, 20, 28, 36, 44, 52, 62
            const uint32_t x = permute(0x1c140c04u, 0x3e342c24u, entry);
            const uint32_t signs = even_signs(a >> (7 * (i >> 1)) & 127u);
            f.code[i] = int(negated(x, spread(signs >> (4 * (i & 1)))));
        }
        f.scale[0] = int(2 * (a >> 28) + 1);
        f.d = load_half(unit.field<2>()) * 0.25f;
        return f;
    }
};

struct iq3_s : Neighbours<32> {
    using Result = IntegerFragment<32>;
    using Form = Planes<Seg<2, 64>, Seg<74, 32>, Seg<66, 8>, Seg<106, 4>, Seg<0, 2>>;
    IKQ_MEMBER Result decode(const Fields<Form> &unit, int l) {
        Result f;
        const uint2 w = load_8(unit.field<0>() + 8 * l);
        const uint32_t signs = load_u32(unit.field<1>() + 4 * l);
        const uint32_t high = load_u8(unit.field<2>() + l);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const uint32_t index = (word(w, i >> 2) >> (8 * (i & 3)) & 255u) | (high >> i & 1u) << 8;
            const uint32_t entry = load_u16(IQ3S_GRID + index);
            // 1, 3, 5, 7, 9, 11, 13, 15
            f.code[i] = int(negated(permute(0x07050301u, 0x0f0d0b09u, entry), spread(signs >> (4 * i))));
        }
        const uint32_t s = load_u8(unit.field<3>() + (l >> 1)) >> (4 * (l & 1)) & 15u;
        f.scale[0] = int(2 * s + 1);
        f.d = load_half(unit.field<4>());
        return f;
    }
};

// Codes of IQ1 are eight times the values, which are the grid's -1, 0 or 1, shifted by plus or minus 1/8.
IKQ_DEV void entry_of_ternary(uint32_t entry, bool minus, int &first, int &second) {
    uint32_t a, b;
    look_up_8(entry, minus ? 0x0007fff7u : 0x000901f9u, a, b);
    first = int(a);
    second = int(b);
}

struct iq1_s : Neighbours<32> {
    using Result = IntegerFragment<32>;
    using Form = Planes<Seg<2, 32>, Seg<34, 16>, Seg<0, 2>>;
    IKQ_MEMBER Result decode(const Fields<Form> &unit, int l) {
        Result f;
        const uint32_t low = load_u32(unit.field<0>() + 4 * l);
        const uint32_t h = load_u16(unit.field<1>() + 2 * l);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const uint32_t index = (low >> (8 * i) & 255u) | (h >> (3 * i) & 7u) << 8;
            entry_of_ternary(load_u16(IQ1S_GRID + index), h >> 15, f.code[2 * i], f.code[2 * i + 1]);
        }
        f.scale[0] = int(2 * (h >> 12 & 7u) + 1);
        f.d = load_half(unit.field<2>()) * 0.125f;
        return f;
    }
};

struct iq1_m : Neighbours<16> {
    using Result = IntegerFragment<16>;
    using Form = Planes<Seg<0, 32>, Seg<32, 16>, Seg<48, 8>>;
    IKQ_MEMBER Result decode(const Fields<Form> &unit, int l) {
        Result f;
        const uint32_t low = load_u32(unit.field<0>() + 4 * l);
        const uint32_t h = load_u16(unit.field<1>() + 2 * l);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const uint32_t index = (low >> (8 * i) & 255u) | (h >> (4 * i) & 7u) << 8;
            entry_of_ternary(load_u16(IQ1S_GRID + index), h >> (4 * i + 3) & 1u, f.code[2 * i], f.code[2 * i + 1]);
        }
        // the half-precision scale is spread over the top four bits of the four 16-bit words that have the other scales
        const uint2 s = load_8(unit.field<2>());
        const uint32_t half = (s.x >> 12 & 15u) | (s.x >> 28) << 4 | (s.y >> 12 & 15u) << 8 | (s.y >> 28) << 12;
        f.d = h2f(uint16_t(half)) * 0.125f;
        const uint32_t three = word(s, l >> 2) >> (16 * (l >> 1 & 1) + 6 * (l & 1));
        f.scale[0] = int(2 * (three & 7u) + 1);
        f.scale[1] = int(2 * (three >> 3 & 7u) + 1);
        return f;
    }
};

// -127 -104 -83 -65, -49 -35 -22 -10, 1 13 25 38, 53 69 89 113
IKQ_OPAQUE uint32_t IQ4_VALUES[4] = {0xbfad9881u, 0xf6eaddcfu, 0x26190d01u, 0x71594535u};
IKQ_DEV Table16 iq4_values() { return {IQ4_VALUES[0], IQ4_VALUES[1], IQ4_VALUES[2], IQ4_VALUES[3]}; }

IKQ_DEV void values_of_16(const uint4 &w, const Table16 &table, int (&code)[8]) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        uint32_t low, high;
        look_up(word(w, i), table, low, high);
        code[i] = int(low);
        code[4 + i] = int(high);
    }
}

// The same table as pairs.
IKQ_OPAQUE uint32_t IQ4_PAIRS[4] = {0xeacfad81u, 0x59351901u, 0x0c0e1217u, 0x18100d0cu};
IKQ_DEV Pairs16 iq4_pairs() { return {IQ4_PAIRS[0], IQ4_PAIRS[1], IQ4_PAIRS[2], IQ4_PAIRS[3]}; }

IKQ_DEV void values_of_pairs(const uint4 &w, const Pairs16 &table, int (&code)[8]) {
#pragma unroll
    for (int i = 0; i < 4; i++) look_up_pairs(word(w, i), table, table, code[i], code[4 + i]);
}

// Its nibbles have the order of the file, because caches of this type are written on the device (cache.cuh).
struct iq4_nl : Neighbours<32> {
    static constexpr int BLOCK = 32;
    using Form = Planes<Seg<2, 16>, Seg<0, 2>>;
    IKQ_MEMBER Result decode(const Fields<Form> &unit, int l) {
        Result f;
        values_of_16(load_16(unit.field<0>(l)), iq4_values(), f.code);
        f.scale[0] = load_half(unit.field<1>(l));
        return f;
    }
};

struct iq4_xs : Neighbours<32> {
    using Result = IntegerFragment<32>;
    using Form = Planes<Seg<8, 128, Order::PAIRS>, Seg<0, 8>>;
    IKQ_MEMBER Result decode(const Fields<Form> &unit, int l) {
        Result f;
        values_of_pairs(load_16(unit.field<0>() + 16 * l), iq4_pairs(), f.code);
        const uint2 head = load_8(unit.field<1>());
        const uint32_t s = (head.y >> (4 * l) & 15u) | (head.x >> (16 + 2 * l) & 3u) << 4;
        f.scale[0] = int(s) - 32;
        f.d = h2f(uint16_t(head.x));
        return f;
    }
};
