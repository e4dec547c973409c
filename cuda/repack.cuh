// Converts rows from the layout of the file to the device form (types/form.cuh).
#pragma once
#include "rows.cuh"

// Where byte `at` of a device row is in the file's row, or -1 for padding. The recursion goes through the planes, while
// `block_bytes` and `header_bytes` stay those of the whole type. In the file, the blocks follow the row header.
template <class P> struct Source;
template <> struct Source<Planes<>> {
    IKQ_MEMBER int64_t of(int64_t, int, int, int) { return -1; }
};
template <class P, class... Rest> struct Source<Planes<P, Rest...>> {
    IKQ_MEMBER int64_t of(int64_t at, int n_blocks, int block_bytes, int header_bytes) {
        constexpr int size = P::size, source = P::source;
        const int64_t plane = P::head ? int64_t(size) : int64_t(size) * n_blocks;
        if (at >= plane) return Source<Planes<Rest...>>::of(at - plane, n_blocks, block_bytes, header_bytes);
        return P::head ? at : header_bytes + at / size * block_bytes + source + at % size;
    }
};

// Converts one row with all threads of a block; each thread writes sixteen bytes at a time. `skipped` is the number of
// header bytes that are missing in `row` because the header is elsewhere (I2_S).
template <class T> IKQ_DEV void repack_row(const uint8_t *row, const uint8_t *header, int skipped, uint8_t *out, int n) {
    constexpr int block = T::Form::block_bytes, header_bytes = T::Form::header_bytes;
    const int n_blocks = n / T::BLOCK;
    for (int64_t i = threadIdx.x; 16 * i < row_bytes<T>(n); i += blockDim.x) {
        uint32_t words[4];
#pragma unroll
        for (int w = 0; w < 4; w++) {
            words[w] = 0;
#pragma unroll
            for (int b = 0; b < 4; b++) {
                const int64_t at = Source<typename T::Form>::of(16 * i + 4 * w + b, n_blocks, block, header_bytes);
                const uint8_t *from = at < header_bytes ? header + at : row + at - skipped;
                if (at >= 0) words[w] |= load_u8(from) << (8 * b);
            }
        }
        reinterpret_cast<uint4 *>(out)[i] = {words[0], words[1], words[2], words[3]};
    }
}
