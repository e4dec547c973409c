// Converts rows from the layout of the file to the device form (types/form.cuh).
#pragma once
#include "rows.cuh"
#include "types/iqk.cuh"

// Where byte `at` of a device row is in the file's row, or -1 for padding. The recursion goes through the planes, while
// `block_bytes` and `header_bytes` stay those of the whole type. In the file, the blocks follow the row header.
template <class P> struct Source;
template <> struct Source<Planes<>> {
    IKQ_MEMBER int64_t of(int64_t, int, int, int) { return -1; }
    IKQ_MEMBER Order order(int64_t, int) { return Order::FILE; }
};
template <class P, class... Rest> struct Source<Planes<P, Rest...>> {
    IKQ_MEMBER int64_t of(int64_t at, int n_blocks, int block_bytes, int header_bytes) {
        constexpr int size = P::size, source = P::source;
        const int64_t plane = P::head ? int64_t(size) : int64_t(size) * n_blocks;
        if (at >= plane) return Source<Planes<Rest...>>::of(at - plane, n_blocks, block_bytes, header_bytes);
        return P::head ? at : header_bytes + at / size * block_bytes + source + at % size;
    }
    // the order of the plane in which byte `at` is
    IKQ_MEMBER Order order(int64_t at, int n_blocks) {
        const int64_t plane = P::head ? int64_t(P::size) : int64_t(P::size) * n_blocks;
        return at < plane ? P::order : Source<Planes<Rest...>>::order(at - plane, n_blocks);
    }
};

// Exchanges the second and the third of each four groups of `size` bits; `second` has the bits of the second ones.
IKQ_DEV uint32_t inner_exchanged(uint32_t x, uint32_t second, int size) {
    const uint32_t difference = (x ^ x >> size) & second;
    return x ^ difference ^ difference << size;
}
IKQ_DEV uint32_t nibbles_in_order(uint32_t x) {
    return inner_exchanged(inner_exchanged(x, 0x00f000f0u, 4), 0x0000ff00u, 8);
}

// Sixteen bytes of the first two planes of a row with codes of five bits, which get the codes of the device form
// (types/iqk.cuh): the nibbles of a lane, or the fifth bits of four lanes. `chunk` is their number in the row.
template <class T> IKQ_DEV void recoded(const uint8_t *blocks, int n_blocks, int64_t chunk, uint32_t (&words)[4]) {
    constexpr int low_at = T::Form::First::source, high_at = T::Form::Others::First::source;
    const bool nibbles = chunk < 8 * int64_t(n_blocks);
    if (!nibbles) chunk -= 8 * int64_t(n_blocks);
    const uint8_t *block = blocks + chunk / (nibbles ? 8 : 2) * T::Form::block_bytes;
    for (int w = 0; w < 4; w++) {
        const int lane = nibbles ? int(chunk & 7) : 4 * int(chunk & 1) + w;
        uint32_t lower[4], fifth = 0;
        for (int v = 0; v < 4; v++) {
            lower[v] = 0;
            for (int i = 0; i < 8; i++) {
                const int byte = 4 * v + (i & 3);
                const uint32_t low = load_u8(block + low_at + 16 * lane + byte) >> (4 * (i >> 2)) & 15u;
                const uint32_t high = load_u8(block + high_at + 16 * (lane & 1) + byte) >> (2 * (lane >> 1) + (i >> 2)) & 1u;
                const uint32_t code = load_u8(IQ5_CODES + (low | high << 4));
                lower[v] |= (code & 15u) << (4 * i);
                fifth |= (code >> 4) << (4 * i + v);
            }
        }
        words[w] = !nibbles ? fifth : w == 0 ? lower[0] : w == 1 ? lower[1] : w == 2 ? lower[2] : lower[3];
    }
}

// Converts one row with all threads of a block; each thread writes sixteen bytes at a time. `skipped` is the number of
// header bytes that are missing in `row` because the header is elsewhere (I2_S).
template <class T> IKQ_DEV void repack_row(const uint8_t *row, const uint8_t *header, int skipped, uint8_t *out, int n) {
    constexpr int block = T::Form::block_bytes, header_bytes = T::Form::header_bytes;
    const int n_blocks = n / T::BLOCK;
    for (int64_t i = threadIdx.x; 16 * i < row_bytes<T>(n); i += blockDim.x) {
        uint32_t words[4];
        if constexpr (T::RECODED) {
            if (i < 10 * int64_t(n_blocks)) {
                recoded<T>(row + header_bytes, n_blocks, i, words);
                reinterpret_cast<uint4 *>(out)[i] = {words[0], words[1], words[2], words[3]};
                continue;
            }
        }
#pragma unroll
        for (int w = 0; w < 4; w++) {
            words[w] = 0;
#pragma unroll
            for (int b = 0; b < 4; b++) {
                const int64_t at = Source<typename T::Form>::of(16 * i + 4 * w + b, n_blocks, block, header_bytes);
                const uint8_t *from = at < header_bytes ? header + at : row + at - skipped;
                if (at >= 0) words[w] |= load_u8(from) << (8 * b);
            }
            if (Source<typename T::Form>::order(16 * i, n_blocks) == Order::NIBBLES) words[w] = nibbles_in_order(words[w]);
        }
        reinterpret_cast<uint4 *>(out)[i] = {words[0], words[1], words[2], words[3]};
    }
}
