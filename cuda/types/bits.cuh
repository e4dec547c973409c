// Small functions that decoders share. A word of 32 bits often has four codes, one per byte.
#pragma once
#include "ikq_dev.cuh"

constexpr uint32_t ONES = 0x01010101u, LOW_NIBBLES = 0x0f0f0f0fu, CRUMBS = 0x03030303u, SIGN_BITS = 0x80808080u;

// The arguments of `bitwise`, for writing its functions.
constexpr unsigned ARG_A = 0xf0, ARG_B = 0xcc, ARG_C = 0xaa;

IKQ_DEV uint32_t word(const uint2 &w, int i) { return i == 0 ? w.x : w.y; }
IKQ_DEV uint32_t word(const uint4 &w, int i) { return i == 0 ? w.x : i == 1 ? w.y : i == 2 ? w.z : w.w; }

// Bits 0 to 3 become bit 0 of bytes 0 to 3.
IKQ_DEV uint32_t spread(uint32_t bits) { return ((bits & 15u) * 0x00204081u) & ONES; }

// a + b for each byte, modulo 256, without carries between bytes.
IKQ_DEV uint32_t add_bytes(uint32_t a, uint32_t b) {
    return ((a & ~SIGN_BITS) + (b & ~SIGN_BITS)) ^ ((a ^ b) & SIGN_BITS);
}
// x - v for each byte of x; bytes of x must be below 128, and v at most 128.
IKQ_DEV uint32_t less(uint32_t x, uint32_t v) { return ((x | SIGN_BITS) - v * ONES) ^ SIGN_BITS; }

// Negates those bytes of x for which bit 0 of the byte of `signs` is set; bytes of x must be 1 to 127.
IKQ_DEV uint32_t negated(uint32_t x, uint32_t signs) { return (x ^ (signs * 255u)) + signs; }

// Adds the eighth sign bit to seven: it makes the number of minus signs even.
IKQ_DEV uint32_t even_signs(uint32_t seven) { return seven | (uint32_t(__popc(seven)) & 1u) << 7; }

// A table of sixteen bytes, for codes of four bits.
struct Table16 {
    uint32_t a, b, c, d;
};

// Looks up four nibbles in a table; the result has a byte for each. The lower four nibbles of `index` are the lower
// three bits of each. Nibble i of `upper` is i, plus 4 where the fourth bit of nibble i is set: it selects between the
// two halves of the table.
IKQ_DEV uint32_t look_up_4(uint32_t index, uint32_t upper, const Table16 &t) {
    return permute(permute(t.a, t.b, index), permute(t.c, t.d, index), upper);
}

// Looks up the eight nibbles of a word in a table: `low` gets the values of the low nibbles of its bytes, `high` those
// of the high nibbles.
IKQ_OPAQUE uint32_t HALF_OF_TABLE[2] = {0x44444444u, 0x32103210u};
IKQ_DEV void look_up(uint32_t nibbles, const Table16 &t, uint32_t &low, uint32_t &high) {
    const uint32_t index = nibbles & 0x77777777u, upper = (nibbles >> 1 & HALF_OF_TABLE[0]) | HALF_OF_TABLE[1];
    const uint32_t x = look_up_4(index, upper, t), y = look_up_4(index >> 16, upper >> 16, t);
    low = permute(x, y, 0x6420u);
    high = permute(x, y, 0x7531u);
}

// The same for nibbles in order (types/form.cuh): `first` gets the values of the lower four, `second` those of the others.
IKQ_DEV void look_up_in_order(uint32_t nibbles, const Table16 &t, int &first, int &second) {
    const uint32_t index = nibbles & 0x77777777u, upper = (nibbles >> 1 & HALF_OF_TABLE[0]) | HALF_OF_TABLE[1];
    first = int(look_up_4(index, upper, t));
    second = int(look_up_4(index >> 16, upper >> 16, t));
}

// A table of sixteen bytes in which both values of a pair of neighbours have the same sign: the first value of each pair,
// and what it must be increased by for the second one.
struct Pairs16 {
    uint32_t a, b, more_a, more_b;
};
// Looks up nibbles in order whose lower three bits are the pair, and whose bit 3 is set for the first one of it: permutes
// give 0 for it, because what is to be added is below 128. The sum causes no carry into another byte.
IKQ_DEV void look_up_pairs(uint32_t nibbles, const Pairs16 &of_first, const Pairs16 &of_second, int &first, int &second) {
    const uint32_t pair = nibbles & 0x77777777u;
    first = int(permute(of_first.a, of_first.b, pair) + permute(of_first.more_a, of_first.more_b, nibbles));
    second = int(permute(of_second.a, of_second.b, pair >> 16) + permute(of_second.more_a, of_second.more_b, nibbles >> 16));
}

IKQ_DEV int look_up_1(uint32_t nibble, const Table16 &t) { return int8_t(look_up_4(nibble & 7u, (nibble >> 1 & 4u) | 0x3210u, t) & 255u); }

// Looks up all sixteen pairs of bits of a word in tables of four bytes: byte i of out[j] is for pair j of byte i, which
// has tables[j].
IKQ_DEV void look_up_crumbs(uint32_t x, const uint32_t (&tables)[4], uint32_t (&out)[4]) {
    const uint32_t even = (x & 0x33333333u) | 0x40404040u, odd = (x >> 2 & 0x33333333u) | 0x40404040u;
    const uint32_t e0 = permute(tables[0], tables[2], even), e1 = permute(tables[0], tables[2], even >> 16);
    const uint32_t o0 = permute(tables[1], tables[3], odd), o1 = permute(tables[1], tables[3], odd >> 16);
    out[0] = permute(e0, e1, 0x6420u);
    out[1] = permute(o0, o1, 0x6420u);
    out[2] = permute(e0, e1, 0x7531u);
    out[3] = permute(o0, o1, 0x7531u);
}

// Looks up the eight pairs of bits of a 16-bit number in a table of four bytes: `first` is for pairs 0 to 3, `second`
// for pairs 4 to 7.
IKQ_DEV void look_up_8(uint32_t pairs, uint32_t table, uint32_t &first, uint32_t &second) {
    const uint32_t even = permute(table, table, pairs & 0x3333u);
    const uint32_t odd = permute(table, table, pairs >> 2 & 0x3333u);
    first = permute(even, odd, 0x5140u);
    second = permute(even, odd, 0x7362u);
}
