// How the device keeps a weight matrix, and what a decoder gives.
//
// Device form: each row of the file is cut into planes. A plane has the same field of all blocks of the row side
// by side; planes follow one another in the order of the type's `Form`, and rows begin at multiples of 16 bytes.
// So a row takes its bytes in the file rounded up to 16, and every field can be loaded whole: planes whose field
// is a multiple of 16 bytes come first, then those of 8, 4, 2 and 1. `repack` (weights.cu) makes the form.
//
// A unit is 256 elements; eight lanes share one. Lane l of a unit decodes 32 elements, as 32 / RUN runs of RUN
// neighbours: run r begins at element `T::at(l, r)` of the unit, has one scale, and its codes are the bytes of
// RUN / 4 words. A type is a struct, named as the type in lower case:
//
//     BLOCK           elements of a block (rows may end behind any block)
//     RUN             8, 16 or 32
//     MINS            what is subtracted: Mins::NONE; WHOLE: one min per 32 elements; RUNS: one per run
//     FACTOR          what products, not dequantizing, multiply by
//     Form            planes
//     at(l, r)        where runs are
//     decode(row, n_blocks, u, l) -> Fragment: value = scale * code - min
//
// Types of plain floats (floats.cuh) have AT_ONCE, one() and some() in place of runs and decode.
#pragma once
#include "ikq_dev.cuh"

// SIZE bytes of every block, SOURCE bytes behind its beginning in the file
template <int SOURCE, int SIZE> struct Seg {
    static constexpr int source = SOURCE, size = SIZE;
    static constexpr bool head = false;
};
// the row header
template <int SIZE> struct Head {
    static constexpr int source = 0, size = SIZE;
    static constexpr bool head = true;
};

template <class... P> struct Planes;
template <> struct Planes<> {
    static constexpr int block_bytes = 0, header_bytes = 0;
};
template <class P, class... Rest> struct Planes<P, Rest...> {
    using First = P;
    using Others = Planes<Rest...>;
    static constexpr int block_bytes = (P::head ? 0 : P::size) + Others::block_bytes;
    static constexpr int header_bytes = (P::head ? P::size : 0) + Others::header_bytes;

    // bytes of the row in front of plane K; unsigned, because that adds to an address in fewer instructions
    template <int K> IKQ_MEMBER unsigned offset(int n_blocks) {
        if constexpr (K == 0)
            return 0;
        else
            return (P::head ? P::size : P::size * unsigned(n_blocks)) + Others::template offset<K - 1>(n_blocks);
    }
    // field K of a block; the row header if that is plane K
    template <int K> IKQ_MEMBER const uint8_t *field(const uint8_t *row, int n_blocks, int block) {
        return row + (offset<K>(n_blocks) + size<K>() * unsigned(block));
    }
    template <int K> IKQ_MEMBER unsigned size() {
        if constexpr (K == 0)
            return P::head ? 0 : P::size;
        else
            return Others::template size<K - 1>();
    }
};

enum class Mins { NONE, WHOLE, RUNS };

template <int RUN> struct Fragment {
    int code[8];
    float scale[32 / RUN];
    float min[32 / RUN];
};

// What most types are; a type overrides what differs.
struct Type {
    static constexpr int BLOCK = 256;
    static constexpr Mins MINS = Mins::NONE;
    static constexpr float FACTOR = 1.0f;
    static constexpr bool FLOAT = false;
};

// Runs of a lane: 32 neighbours, cut into runs
template <int R> struct Neighbours : Type {
    static constexpr int RUN = R;
    using Result = Fragment<R>;
    IKQ_MEMBER int at(int l, int r) { return 32 * l + R * r; }
};
// Nibbles of 32 bytes are 64 elements, the first half in the low ones: a lane has 16 of these bytes
struct HalvesOf64 : Type {
    static constexpr int RUN = 16;
    using Result = Fragment<16>;
    IKQ_MEMBER int at(int l, int r) { return 64 * (l >> 1) + 16 * (l & 1) + 32 * r; }
};
// Pairs of bits of 32 bytes are 128 elements, a quarter after the other: a lane has 8 of these bytes
struct QuartersOf128 : Type {
    static constexpr int RUN = 8;
    using Result = Fragment<8>;
    IKQ_MEMBER int at(int l, int r) { return 128 * (l >> 2) + 8 * (l & 3) + 32 * r; }
};

// Whether lane l of unit u has elements of the row: units may be cut off by its end.
template <class T> IKQ_DEV bool has_fragment(int u, int l, int n) {
    return T::BLOCK == 256 || 256 * u + T::at(l, 0) < n;
}
