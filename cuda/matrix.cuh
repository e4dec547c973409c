// Products of 128 rows of weights and up to 128 columns, computed by a block of 256 threads on int8 tensor cores.
//
// The eight warps are two by four: a warp has 64 rows and a fourth of the columns. Decoding of a step's weights, and
// copies of its columns, go on while the step before is multiplied.
//
// A sum of products with 32 (or 16) codes is an integer of at most 32 * 128 * 127, so below 2^22. The tensor cores add it
// to the bits of the float M = 3 * 2^22, whose last place is 1: read as a float f, the result is M plus the sum. With
// a column's scale s of 22 bits, M s is exact, so that fma(f, s, -M s) is s times the sum, rounded once; a second fma
// adds the product with the weights' scale. That is two instructions for each 32 (16) products; conversion would take
// three, of which one is slow.
//
// All terms of a result are added one after another, in the order of their elements: it depends neither on the number
// of columns, nor on where its column stands.
#pragma once
#include "tile.cuh"

constexpr int MAGIC_BITS = 0x4b400000; // the float 3 * 2^22
constexpr float MAGIC = 12582912.0f;

// Results of a lane: value i of [m][c] belongs to row 64 (warp / 4) + 16 m + g + 8 (i >> 1) of the tile and column
// 8 (N (warp % 4) + c) + 2 t + (i & 1), where the lane is 4 g + t.
template <int N> struct Results {
    float value[4][N][4];
};

// What a lane knows of 32 elements of its columns.
template <int N> struct ColumnPart {
    uint32_t codes[N][2];
    float scale[N][2], minus_magic[N][2]; // -M times the scale
};

template <int C, int N> IKQ_DEV void load_columns(const Tile<C> &tile, unsigned first, int j, ColumnPart<N> &part) {
    const unsigned lane = threadIdx.x & 31, row = lane & 7u, chunk = 2 * j + (lane >> 3 & 1u);
    if constexpr (N == 1) {
        load_matrices(tile.columns + chunk_of_row(first + row, chunk), part.codes[0]);
    } else {
#pragma unroll
        for (int c = 0; c < N; c += 2) {
            uint32_t four[4];
            load_matrices(tile.columns + chunk_of_row(first + 8 * (c + (lane >> 4)) + row, chunk), four);
#pragma unroll
            for (int i = 0; i < 4; i++) part.codes[c + (i >> 1)][i & 1] = four[i];
        }
    }
#pragma unroll
    for (int c = 0; c < N; c++) {
        const float2 s = *reinterpret_cast<const float2 *>(tile.column_scales + C * j + first + 8 * c + 2 * (lane & 3u));
        part.scale[c][0] = s.x;
        part.scale[c][1] = s.y;
        part.minus_magic[c][0] = -MAGIC * s.x;
        part.minus_magic[c][1] = -MAGIC * s.y;
    }
}

// A lane's floats for COUNT tiles of 16 rows: rows g and g + 8 of each.
template <int COUNT> IKQ_DEV void load_of_rows(const float *from, float (&to)[2 * COUNT]) {
#pragma unroll
    for (int i = 0; i < COUNT / 2; i++) {
        const float4 four = *reinterpret_cast<const float4 *>(from + 4 * i);
        to[4 * i] = four.x;
        to[4 * i + 1] = four.y;
        to[4 * i + 2] = four.z;
        to[4 * i + 3] = four.w;
    }
}

// Subtracts mins times sums of columns.
template <int FIRST, int COUNT, int N>
IKQ_DEV void subtract_mins(const float *of_rows, const float *sums, Results<N> &results) {
    float min[2 * COUNT];
    load_of_rows<COUNT>(of_rows, min);
#pragma unroll
    for (int c = 0; c < N; c++) {
        const float2 sum = *reinterpret_cast<const float2 *>(sums + 8 * c);
#pragma unroll
        for (int m = 0; m < COUNT; m++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                float &to = results.value[FIRST + m][c][i];
                to = fmaf(-min[2 * m + (i >> 1)], i & 1 ? sum.y : sum.x, to);
            }
    }
}

// Adds the products of elements 32 j to 32 j + 31 of the step, for tiles FIRST to FIRST + COUNT - 1 of the warp's four
// tiles of 16 rows; they are of type T.
template <class T, int FIRST, int COUNT, int C, int N>
IKQ_DEV void add_products(const Tile<C> &tile, unsigned first_row, unsigned first_column, int j, const ColumnPart<N> &x,
                          Results<N> &results) {
    constexpr int PARTS = 32 / Tiled<T>::SCALE, MIN = MIN_RUN<T>;
    const unsigned lane = threadIdx.x & 31, place = first_row + 8 * (lane >> 2) + 2 * FIRST;
    uint32_t w[COUNT][4];
#pragma unroll
    for (int m = 0; m < COUNT; m++)
        load_matrices(tile.weights + chunk_of_row(first_row + 16 * (FIRST + m) + (lane & 15u), 2 * j + (lane >> 4)), w[m]);
#pragma unroll
    for (int p = 0; p < PARTS; p++) {
        float scale[2 * COUNT];
        load_of_rows<COUNT>(tile.scales + TILE_ROWS * (PARTS * j + p) + place, scale);
#pragma unroll
        for (int c = 0; c < N; c++)
#pragma unroll
            for (int m = 0; m < COUNT; m++) {
                int sum[4] = {MAGIC_BITS, MAGIC_BITS, MAGIC_BITS, MAGIC_BITS};
                if constexpr (PARTS == 1)
                    mma_s8_k32(sum, w[m], x.codes[c]);
                else
                    mma_s8_k16(sum, w[m] + 2 * p, x.codes[c] + p);
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const float scaled = fmaf(__int_as_float(sum[i]), x.scale[c][i & 1], x.minus_magic[c][i & 1]);
                    float &to = results.value[FIRST + m][c][i];
                    to = fmaf(scaled, scale[2 * m + (i >> 1)], to);
                }
            }
        if constexpr (MIN == 16)
            subtract_mins<FIRST, COUNT, N>(tile.mins + TILE_ROWS * (2 * j + p) + place,
                                           tile.sums_16 + C * (2 * j + p) + first_column + 2 * (lane & 3u), results);
    }
    if constexpr (MIN == 32)
        subtract_mins<FIRST, COUNT, N>(tile.mins + TILE_ROWS * j + place,
                                       tile.sums_32 + C * j + first_column + 2 * (lane & 3u), results);
}

// The 128 rows of a tile: 64 of `first` and 64 of `second`. If they are of two matrices, a lane has the same rows of
// both: value [m] belongs to the row of the first that [m + 2] belongs to of the second.
template <class A, class B, bool TWO> struct TileRows {
    const uint8_t *first, *second; // those of the thread, which decodes a row of each
    IKQ_MEMBER unsigned row_in_tile(unsigned row, int part) {
        return TWO ? 64 * (row >> 5) + 32 * part + (row & 31u) : 64 * part + row;
    }
};

template <class A, class B, bool TWO, int C>
IKQ_DEV void multiply(const TileRows<A, B, TWO> &rows, const Source &x, Tile<C> *tiles, Results<C / 32> &results) {
    constexpr int N = C / 32;
    constexpr bool SUMS_16 = MIN_RUN<A> == 16 || MIN_RUN<B> == 16;
    const unsigned warp = threadIdx.x >> 5, first_row = 64 * (warp >> 2), first_column = 8 * N * (warp & 3u);
    const unsigned row = threadIdx.x >> 2;
    const int l = threadIdx.x & 3;
    const int n_steps = (x.n + STEP - 1) / STEP;
#pragma unroll
    for (int m = 0; m < 4; m++)
#pragma unroll
        for (int c = 0; c < N; c++)
#pragma unroll
            for (int i = 0; i < 4; i++) results.value[m][c][i] = 0.0f;

    copy_columns(x, tiles[0], 0);
    typename A::Result a = fetched<A>(rows.first, x.n, 0, l);
    typename B::Result b = fetched<B>(rows.second, x.n, 0, l);
    ColumnScales<C, SUMS_16> scales;
    fetch_scales(x, 0, scales);
    for (int step = 0;; step++) {
        Tile<C> &tile = tiles[step & 1];
        store_fragment<A>(a, tile, rows.row_in_tile(row, 0), l);
        store_fragment<B>(b, tile, rows.row_in_tile(row, 1), l);
        store_scales(scales, tile);
        copy_async_wait<0>();
        // now the step's tile is whole, and nobody reads that of the step before any more
        __syncthreads();
        const bool last = step + 1 == n_steps;
        if (!last) {
            copy_columns(x, tiles[(step + 1) & 1], step + 1);
            a = fetched<A>(rows.first, x.n, step + 1, l);
            b = fetched<B>(rows.second, x.n, step + 1, l);
            fetch_scales(x, step + 1, scales);
        }
#pragma unroll
        for (int j = 0; j < 4; j++) {
            // without it, the compiler begins with all four parts at once, and has too few registers
            __syncwarp();
            ColumnPart<N> part;
            load_columns(tile, first_column, j, part);
            if constexpr (TWO) {
                add_products<A, 0, 2>(tile, first_row, first_column, j, part, results);
                add_products<B, 2, 2>(tile, first_row, first_column, j, part, results);
            } else {
                add_products<A, 0, 4>(tile, first_row, first_column, j, part, results);
            }
        }
        if (last) break;
    }
}
