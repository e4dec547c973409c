// Tensor cores and asynchronous copies of the emulator. Fragments are laid out as the PTX manual says: lane 4 g + t of a
// warp has g from 0 to 7 and t from 0 to 3. These functions are compiled with the kernels, so that sanitizers see their
// memory accesses.
#pragma once
#include "emu/emu.h"

namespace emu {

inline uint32_t word_at(uint64_t address) {
    uint32_t word;
    std::memcpy(&word, reinterpret_cast<const void *>(address), 4);
    return word;
}

// Matrix m of N has eight rows of 16 bytes, whose addresses lanes 8 m to 8 m + 7 pass. A lane gets word t of row g of
// every matrix. Addresses are multiples of 16, as the GPU demands.
template <int N> void load_matrices(const void *row, uint32_t (&out)[N]) {
    const uint64_t address = reinterpret_cast<uint64_t>(row);
    if (lane() < 8 * N && address & 15) refuse("ldmatrix of a row that is not at a multiple of 16 bytes");
    const uint32_t mine[SLOT_WORDS] = {uint32_t(address), uint32_t(address >> 32)};
    const Slot *all = show(mine);
    for (int m = 0; m < N; m++) {
        const uint32_t *at = all[8 * m + lane() / 4].words;
        out[m] = word_at((uint64_t(at[1]) << 32 | at[0]) + 4 * (lane() & 3));
    }
    all_have_seen();
}

inline uint16_t half_at(uint64_t address) {
    uint16_t half;
    std::memcpy(&half, reinterpret_cast<const void *>(address), 2);
    return half;
}

// The same for four matrices of halves that are transposed on the way: a lane gets half g of rows 2 t and 2 t + 1.
inline void load_transposed(const void *row, uint32_t (&out)[4]) {
    const uint64_t address = reinterpret_cast<uint64_t>(row);
    if (address & 15) refuse("ldmatrix of a row that is not at a multiple of 16 bytes");
    const uint32_t mine[SLOT_WORDS] = {uint32_t(address), uint32_t(address >> 32)};
    const Slot *all = show(mine);
    const unsigned g = lane() / 4, t = lane() & 3;
    for (unsigned m = 0; m < 4; m++) {
        out[m] = 0;
        for (unsigned i = 0; i < 2; i++) {
            const uint32_t *at = all[8 * m + 2 * t + i].words;
            out[m] |= uint32_t(half_at((uint64_t(at[1]) << 32 | at[0]) + 2 * g)) << (16 * i);
        }
    }
    all_have_seen();
}

// The product of a tile A of 16 rows and a tile B of 8 columns, K elements of int8 each (16 or 32), plus C becomes D.
// Register i of A has elements 16 (i >> 1) + 4 t to + 3 of row g + 8 (i & 1); register i of B has elements 16 i + 4 t to
// + 3 of column g; C has elements (g, 2 t), (g, 2 t + 1), (g + 8, 2 t), (g + 8, 2 t + 1).
template <int K> void mma_s8(int (&d)[4], const uint32_t *a, const uint32_t *b, const int (&c)[4]) {
    uint32_t mine[SLOT_WORDS] = {};
    for (int i = 0; i < K / 8; i++) mine[i] = a[i];
    for (int i = 0; i < K / 16; i++) mine[4 + i] = b[i];
    const Slot *all = show(mine);
    const unsigned g = lane() / 4, t = lane() & 3;
    for (unsigned i = 0; i < 4; i++) {
        int sum = c[i];
        for (unsigned k = 0; k < K / 4; k++) {
            const uint32_t x = all[4 * g + (k & 3)].words[2 * (k >> 2) + (i >> 1)];
            const uint32_t y = all[4 * (2 * t + (i & 1)) + (k & 3)].words[4 + (k >> 2)];
            sum = __dp4a(int(x), int(y), sum);
        }
        d[i] = sum;
    }
    all_have_seen();
}

// A product with tf32 and K = 8, added to C: register i of A is element t + 4 (i >> 1) of row g + 8 (i & 1), register i of B element
// t + 4 i of column g. The lower 13 bits of operands are ignored. The GPU does not say in which order it adds, or how
// it rounds sums; here it is in double precision and rounded once.
inline void mma_tf32(float (&c)[4], const uint32_t *a, const uint32_t *b) {
    const uint32_t mine[SLOT_WORDS] = {a[0], a[1], a[2], a[3], b[0], b[1]};
    const Slot *all = show(mine);
    const auto value = [](uint32_t word) { return double(__int_as_float(int(word & 0xffffe000u))); };
    const unsigned g = lane() / 4, t = lane() & 3;
    for (unsigned i = 0; i < 4; i++) {
        double sum = double(c[i]);
        for (unsigned k = 0; k < 8; k++)
            sum += value(all[4 * g + (k & 3)].words[2 * (k >> 2) + (i >> 1)]) *
                   value(all[4 * (2 * t + (i & 1)) + (k & 3)].words[4 + (k >> 2)]);
        c[i] = float(sum);
    }
    all_have_seen();
}

// A product of halves with K = 16, added to C: register i of A has elements 8 (i >> 1) + 2 t and 2 t + 1 behind it, of row
// g + 8 (i & 1); register i of B has elements 8 i + 2 t and the next of column g. Sums are those of mma_tf32. Lanes show
// halves as floats, so that each is converted once.
inline void mma_f16(float (&c)[4], const uint32_t *a, const uint32_t *b) {
    const uint32_t words[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
    uint32_t mine[SLOT_WORDS];
    for (int i = 0; i < 12; i++) {
        const uint16_t half = uint16_t(words[i / 2] >> (16 * (i & 1)));
        _Float16 x;
        std::memcpy(&x, &half, 2);
        mine[i] = uint32_t(__float_as_int(float(x)));
    }
    const Slot *all = show(mine);
    const auto value = [](uint32_t word) { return __int_as_float(int(word)); };
    const unsigned g = lane() / 4, t = lane() & 3;
    for (unsigned i = 0; i < 4; i++) {
        double sum = double(c[i]);
        for (unsigned k = 0; k < 8; k++) {
            const uint32_t *x = all[4 * g + (k & 3)].words + 4 * (k >> 2) + 2 * (i >> 1);
            const uint32_t *y = all[4 * (2 * t + (i & 1)) + (k & 3)].words + 8 + 2 * (k >> 2);
            // a product of halves is exact as a float
            sum += double(value(x[0]) * value(y[0])) + double(value(x[1]) * value(y[1]));
        }
        c[i] = float(sum);
    }
    all_have_seen();
}

// An asynchronous copy lands at the wait for its group and not earlier. It could land any time after it was issued, so
// what stood at its destination is lost then.
inline void copy_async(void *to, const void *from) {
    if ((reinterpret_cast<uint64_t>(to) | reinterpret_cast<uint64_t>(from)) & 15)
        refuse("an asynchronous copy that is not aligned to 16 bytes");
    std::memset(to, 0xff, 16);
    self->copies.push_back({to, from, self->group});
}
inline void commit_copies() { self->group++; }
// Lets the copies of all groups land but for those of the newest N.
template <unsigned N> void wait_for_copies() {
    auto &copies = self->copies;
    size_t kept = 0;
    for (const Copy &copy : copies)
        if (copy.group + N < self->group)
            std::memcpy(copy.to, copy.from, 16);
        else
            copies[kept++] = copy;
    copies.resize(kept);
}

} // namespace emu
