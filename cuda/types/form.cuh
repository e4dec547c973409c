// How the device stores a weight matrix, and what a decoder returns.
//
// In device form, each row is divided into planes. A plane has the same field of all blocks of the row side by
// side. Planes follow one another in the order of the type's `Form`, and rows begin at multiples of 16 bytes.
// So a row takes as many bytes as in the file, rounded up to 16 (I2_S: plus the tensor's scale). Every field can be
// read with aligned loads, because planes whose field is a multiple of 16 bytes come first, then those of 8, 4, 2
// and 1. The kernel `repack` (weights.cu) converts to this form; where a plane says so, it also moves bits in words or
// gives other codes (Order, RECODED_BYTES).
//
// A unit is 256 elements of a row, which eight lanes decode together. Lane l of a unit decodes 32 elements, as
// 32 / RUN runs of RUN neighbours: run r begins at element `T::at(l, r)` of the unit, has one scale, and its codes
// are the bytes of RUN / 4 words. A type is a struct with the name of the type in lower case:
//
//     BLOCK           the number of elements of a block (a row may end after any block)
//     RUN             8, 16 or 32
//     MINS            which mins are subtracted: Mins::NONE; WHOLE: one per 32 elements; RUNS: one per run
//     FACTOR          a factor of products, which dequantizing does not apply
//     Form            the planes
//     at(l, r)        where the runs of a lane begin
//     decode(unit, l) -> Fragment: value = scale * code - min; or IntegerFragment: value = d * scale * code
//
// Types of plain floats (floats.cuh) have AT_ONCE, one() and some() instead of runs and decode().
#pragma once
#include "ikq_dev.cuh"

// The order of the bits of a word in a plane: that of the file, or another one, which byte permutes take as it is.
// NIBBLES: the low nibbles of the four bytes are the lower half, and the high nibbles the upper half.
// PAIRS: the same, and bit 0 of each nibble, inverted, is bit 3 behind the upper three (types/bits.cuh).
enum class Order { FILE, NIBBLES, PAIRS };

// A field of SIZE bytes of every block, which begins at byte SOURCE of the block in the file. If it has another order
// than the file, SIZE is a multiple of 16.
template <int SOURCE, int SIZE, Order ORDER = Order::FILE> struct Seg {
    static_assert(ORDER == Order::FILE || SIZE % 16 == 0, "words of a plane are reordered in groups of four");
    static constexpr int source = SOURCE, size = SIZE;
    static constexpr Order order = ORDER;
    static constexpr bool head = false;
};
// The row header, of SIZE bytes.
template <int SIZE> struct Head {
    static constexpr int source = 0, size = SIZE;
    static constexpr Order order = Order::FILE;
    static constexpr bool head = true;
};

template <class... P> struct Planes;
template <> struct Planes<> {
    static constexpr int block_bytes = 0, header_bytes = 0, planes = 0;
};
template <class P, class... Rest> struct Planes<P, Rest...> {
    using First = P;
    using Others = Planes<Rest...>;
    static constexpr int block_bytes = (P::head ? 0 : P::size) + Others::block_bytes;
    static constexpr int header_bytes = (P::head ? P::size : 0) + Others::header_bytes;
    static constexpr int planes = 1 + Others::planes;

    // The bytes of the row in front of plane K; unsigned, because adding that to an address takes fewer instructions.
    template <int K> IKQ_MEMBER unsigned offset(int n_blocks) {
        if constexpr (K == 0)
            return 0;
        else
            return (P::head ? P::size : P::size * unsigned(n_blocks)) + Others::template offset<K - 1>(n_blocks);
    }
    // The bytes that plane K has per block; a row header has none.
    template <int K> IKQ_MEMBER constexpr unsigned size() {
        if constexpr (K == 0)
            return P::head ? 0 : P::size;
        else
            return Others::template size<K - 1>();
    }
};

// Where a unit has its fields: an address in each plane. Loops over units move all of them by the same number of blocks,
// so that what a load adds to them is a constant.
template <class Form> struct Fields {
    const uint8_t *plane[Form::planes];

    // the field of a block of the unit in plane K, or the row header if plane K has that
    template <int K> IKQ_METHOD const uint8_t *field(int block = 0) const {
        return plane[K] + Form::template size<K>() * unsigned(block);
    }
    template <int K> IKQ_METHOD void move(unsigned bytes) { plane[K] += bytes; }
    template <int K = 0> IKQ_METHOD void skip(unsigned blocks) {
        if constexpr (K < Form::planes) {
            plane[K] += Form::template size<K>() * blocks;
            skip<K + 1>(blocks);
        }
    }
    template <int K = 0> IKQ_METHOD void begin(const uint8_t *row, int n_blocks) {
        if constexpr (K < Form::planes) {
            plane[K] = row + Form::template offset<K>(n_blocks);
            begin<K + 1>(row, n_blocks);
        }
    }
};

enum class Mins { NONE, WHOLE, RUNS };

template <int RUN> struct Fragment {
    static constexpr bool INTEGERS = false;
    int code[8];
    float scale[32 / RUN];
    float min[32 / RUN];
};
// The same for types whose scales are integers times d; products multiply with the integers before they use floats. They
// have no mins.
template <int RUN> struct IntegerFragment {
    static constexpr bool INTEGERS = true;
    int code[8];
    int scale[32 / RUN]; // -128 to 127
    float d;
};
template <int RUN> IKQ_DEV float scale_of(const Fragment<RUN> &f, int r) { return f.scale[r]; }
template <int RUN> IKQ_DEV float scale_of(const IntegerFragment<RUN> &f, int r) { return f.d * float(f.scale[r]); }

// The properties of most types; a type overrides those that differ.
struct Type {
    static constexpr int BLOCK = 256;
    static constexpr Mins MINS = Mins::NONE;
    static constexpr float FACTOR = 1.0f;
    static constexpr bool FLOAT = false;
    // whether d of integer scales is that of the row (decode()'s `d` is the same for all units): products multiply with it at
    // their end
    static constexpr bool ROW_SCALE = false;
    // whether the rows of a block are multiplied with a single column together (together.cuh)
    static constexpr bool TOGETHER = false;
    // how many bytes of a block have other codes in the device form than in the file (repack.cuh); they are whole planes,
    // the first ones
    static constexpr int RECODED_BYTES = 0;
};

template <class A, class B> constexpr bool SAME_TYPE = false;
template <class A> constexpr bool SAME_TYPE<A, A> = true;

// The elements of a lane are 32 neighbours, divided into runs.
template <int R> struct Neighbours : Type {
    static constexpr int RUN = R;
    using Result = Fragment<R>;
    IKQ_MEMBER int at(int l, int r) { return 32 * l + R * r; }
};
// The nibbles of 32 bytes are 64 elements, the first 32 of them in the low nibbles. A lane decodes 16 of these bytes.
struct HalvesOf64 : Type {
    static constexpr int RUN = 16;
    using Result = Fragment<16>;
    IKQ_MEMBER int at(int l, int r) { return 64 * (l >> 1) + 16 * (l & 1) + 32 * r; }
};
// The pairs of bits of 32 bytes are 128 elements, the first 32 of them in the lowest pairs, and so on. A lane decodes 8
// of these bytes.
struct QuartersOf128 : Type {
    static constexpr int RUN = 8;
    using Result = Fragment<8>;
    IKQ_MEMBER int at(int l, int r) { return 128 * (l >> 2) + 8 * (l & 3) + 32 * r; }
};

// The fields of unit u of a row of n elements.
template <class T> IKQ_DEV Fields<typename T::Form> fields_of(const uint8_t *row, int n, int u) {
    Fields<typename T::Form> unit;
    unit.begin(row, n / T::BLOCK);
    unit.skip(256 / T::BLOCK * unsigned(u));
    return unit;
}

// Whether lane l of unit u has elements to decode: the last unit of a row of n elements may be shorter.
template <class T> IKQ_DEV bool has_fragment(int u, int l, int n) {
    return T::BLOCK == 256 || 256 * u + T::at(l, 0) < n;
}
