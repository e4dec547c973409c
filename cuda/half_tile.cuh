// Rows of a cache, and queries, as halves in shared memory, as tensor cores read them.
#pragma once
#include "cache.cuh"

// How rows of n halves stand in shared memory, in chunks of 16 bytes; n is a multiple of 8. ldmatrix reads the same chunk of
// eight neighbouring rows, which must not meet in a bank: rows of a multiple of eight chunks have chunk c of row r in
// place c ^ (r & 7), others are an odd number of chunks apart.
struct HalfRows {
    unsigned stride, turn; // chunks from row to row, and which bits of a row's number move its chunks
};
IKQ_DEV HalfRows half_rows(int n) {
    // whole steps of 16 elements
    const unsigned chunks = unsigned(n + 15) / 16 * 2;
    return (chunks & 7u) == 0 ? HalfRows{chunks, 7u} : HalfRows{chunks | 1u, 0u};
}
IKQ_DEV unsigned chunk_at(HalfRows rows, unsigned row, unsigned chunk) {
    return 16 * (row * rows.stride + (chunk ^ (row & rows.turn)));
}

template <class T> constexpr bool IS_HALF = false;
template <> constexpr bool IS_HALF<f16> = true;

// A block of 128 threads brings ROWS neighbouring rows of a cache, of which `from` is the first and which are `stride` bytes apart,
// into shared memory: n elements of each. Rows below `first` and from `end` on are zeros, and are not read. Halves are copied,
// and arrive when the caller's asynchronous copies have; others are decoded.
template <class T, int ROWS>
IKQ_DEV void stage_rows(const uint8_t *from, unsigned stride, int first, int end, int n_row, int n, HalfRows rows, uint8_t *to) {
    if constexpr (IS_HALF<T>) {
// not unrolled: addresses of several rows take registers that sums need
#pragma unroll 1
        for (int i = 0; i < ROWS / 16; i++) {
            const int row = 16 * i + int(threadIdx.x >> 3);
            const bool there = row >= first && row < end;
            for (int chunk = int(threadIdx.x & 7u); 8 * chunk < n; chunk += 8) {
                uint8_t *at = to + chunk_at(rows, unsigned(row), unsigned(chunk));
                if (there)
                    copy_async_16(at, from + (unsigned(row) * stride + 16 * unsigned(chunk)));
                else
                    *reinterpret_cast<uint4 *>(at) = {0u, 0u, 0u, 0u};
            }
        }
    } else {
        for (int i = 0; i < ROWS / 32; i++) {
            const int row = 32 * i + int(threadIdx.x >> 2);
            const bool there = row >= first && row < end;
            for (int part = int(threadIdx.x & 3u); 32 * part < n; part += 4) {
                float x[32] = {};
                if (there) read_part<T>(from + unsigned(row) * stride, n_row, part, x);
#pragma unroll
                for (int c = 0; c < 4; c++)
                    *reinterpret_cast<uint4 *>(to + chunk_at(rows, unsigned(row), unsigned(4 * part + c))) = {
                        halves_of(x[8 * c], x[8 * c + 1]), halves_of(x[8 * c + 2], x[8 * c + 3]),
                        halves_of(x[8 * c + 4], x[8 * c + 5]), halves_of(x[8 * c + 6], x[8 * c + 7])};
            }
        }
    }
}

// Stores zeros in the last half of the step of 16 elements in which rows of n elements end.
template <int ROWS> IKQ_DEV void clear_ends(int n, HalfRows rows, uint8_t *to) {
    if ((n & 8) && threadIdx.x < unsigned(ROWS))
        *reinterpret_cast<uint4 *>(to + chunk_at(rows, threadIdx.x, unsigned(n) / 8)) = {0u, 0u, 0u, 0u};
}
