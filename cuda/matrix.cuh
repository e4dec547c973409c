// Products of 128 rows of weights and 32, 64 or 128 columns, computed by a block of 512 threads on int8 tensor cores.
//
// The sixteen warps are four by four: a warp has 32 rows and a fourth of the columns. Decoding of a step's weights, and
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

// Results of a lane: value i of [m][c] belongs to row 32 (warp / 4) + 16 m + g + 8 (i >> 1) of the tile and column
// 8 (N (warp % 4) + c) + 2 t + (i & 1), where the lane is 4 g + t.
template <int N> struct Results {
    float value[2][N][4];
};

// What a lane knows of 32 elements of G of its groups of eight columns: of two at a time, if it has as many, so that
// registers are enough.
template <int G> struct ColumnPart {
    uint32_t codes[G][2];
    float scale[G][2], minus_magic[G][2]; // -M times the scale
};

// Where a lane reads a tile: `weights` and `columns` are offsets of the codes of elements 0 to 31 in the arrays, as ldmatrix
// takes them from a lane; those of elements 32 j to 32 j + 31 are at the offset ^ 32 j. `scales` and `column` are where its
// numbers of rows and of columns begin.
struct Places {
    unsigned weights, columns, scales, column;
};
IKQ_DEV unsigned first_row_of_warp() { return 32 * (threadIdx.x >> 7); }
template <int N> IKQ_DEV Places places_of_lane() {
    const unsigned lane = threadIdx.x & 31, first_row = first_row_of_warp(), first_column = 8 * N * (threadIdx.x >> 5 & 3u);
    return {chunk_of_row(first_row + (lane & 15u), lane >> 4),
            chunk_of_row(first_column + (N == 1 ? 0 : 8 * (lane >> 4)) + (lane & 7u), lane >> 3 & 1u),
            first_row + 4 * (lane >> 2), first_column + 2 * (lane & 3u)};
}

// Loads elements 32 j to 32 j + 31 of the groups from number `first` on.
template <int C, int G>
IKQ_DEV void load_columns(const Tile<C> &tile, const Places &at, unsigned j, int first, ColumnPart<G> &part) {
    const int8_t *codes = tile.columns + (at.columns ^ 32 * j) + 8 * STEP * first;
    if constexpr (G == 1) {
        load_matrices(codes, part.codes[0]);
    } else {
        uint32_t four[4];
        load_matrices(codes, four);
#pragma unroll
        for (int i = 0; i < 4; i++) part.codes[i >> 1][i & 1] = four[i];
    }
#pragma unroll
    for (int c = 0; c < G; c++) {
        const float2 s = *reinterpret_cast<const float2 *>(tile.column_scales + C * j + at.column + 8 * (first + c));
        part.scale[c][0] = s.x;
        part.scale[c][1] = s.y;
        part.minus_magic[c][0] = -MAGIC * s.x;
        part.minus_magic[c][1] = -MAGIC * s.y;
    }
}

// A lane's floats of COUNT tiles of 16 rows: those of rows g and g + 8 of each.
template <int COUNT> IKQ_DEV void load_of_rows(const float *from, float (&to)[2 * COUNT]) {
    if constexpr (COUNT == 2) {
        const float4 four = *reinterpret_cast<const float4 *>(from);
        to[0] = four.x;
        to[1] = four.y;
        to[2] = four.z;
        to[3] = four.w;
    } else {
        const float2 two = *reinterpret_cast<const float2 *>(from);
        to[0] = two.x;
        to[1] = two.y;
    }
}

// What a lane knows of 32 elements of COUNT of the warp's two tiles of 16 rows, from FIRST on; they are of type T.
template <class T, int FIRST, int COUNT> struct RowPart {
    static constexpr int PARTS = 32 / Tiled<T>::SCALE;
    uint32_t codes[COUNT][4];
    float scale[PARTS][2 * COUNT];
};

template <class T, int FIRST, int COUNT, int C>
IKQ_DEV void load_rows(const Tile<C> &tile, const Places &at, unsigned j, RowPart<T, FIRST, COUNT> &part) {
    constexpr int PARTS = RowPart<T, FIRST, COUNT>::PARTS;
    const int8_t *codes = tile.weights + (at.weights ^ 32 * j);
#pragma unroll
    for (int m = 0; m < COUNT; m++) load_matrices(codes + 16 * STEP * (FIRST + m), part.codes[m]);
#pragma unroll
    for (int p = 0; p < PARTS; p++)
        load_of_rows<COUNT>(tile.scales + TILE_ROWS * (PARTS * j + p) + at.scales + 2 * FIRST, part.scale[p]);
}

// Subtracts mins times sums of columns, of G groups from number `first` on.
template <int FIRST, int COUNT, int G, int N>
IKQ_DEV void subtract_mins(const float *mins, const float *sums, const Places &at, int first, Results<N> &results) {
    float min[2 * COUNT];
    load_of_rows<COUNT>(mins + at.scales + 2 * FIRST, min);
#pragma unroll
    for (int c = 0; c < G; c++) {
        const float2 sum = *reinterpret_cast<const float2 *>(sums + at.column + 8 * (first + c));
#pragma unroll
        for (int m = 0; m < COUNT; m++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                float &to = results.value[FIRST + m][first + c][i];
                to = fmaf(-min[2 * m + (i >> 1)], i & 1 ? sum.y : sum.x, to);
            }
    }
}

// Adds the products of elements 32 j to 32 j + 31 of the step with the groups of columns from number `first` on.
template <class T, int FIRST, int COUNT, int C, int G, int N>
IKQ_DEV void add_products(const Tile<C> &tile, const Places &at, unsigned j, const RowPart<T, FIRST, COUNT> &w, int first,
                          const ColumnPart<G> &x, const int (&magic)[4], Results<N> &results) {
    constexpr int PARTS = RowPart<T, FIRST, COUNT>::PARTS, MIN = MIN_RUN<T>;
#pragma unroll
    for (int p = 0; p < PARTS; p++) {
#pragma unroll
        for (int c = 0; c < G; c++)
#pragma unroll
            for (int m = 0; m < COUNT; m++) {
                int sum[4];
                if constexpr (PARTS == 1)
                    mma_s8_k32(sum, w.codes[m], x.codes[c], magic);
                else
                    mma_s8_k16(sum, w.codes[m] + 2 * p, x.codes[c] + p, magic);
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const float scaled = fmaf(__int_as_float(sum[i]), x.scale[c][i & 1], x.minus_magic[c][i & 1]);
                    float &to = results.value[FIRST + m][first + c][i];
                    to = fmaf(scaled, w.scale[p][2 * m + (i >> 1)], to);
                }
            }
        if constexpr (MIN == 16)
            subtract_mins<FIRST, COUNT, G>(tile.mins + TILE_ROWS * (2 * j + p), tile.sums_16 + C * (2 * j + p), at, first, results);
    }
    if constexpr (MIN == 32)
        subtract_mins<FIRST, COUNT, G>(tile.mins + TILE_ROWS * j, tile.sums_32 + C * j, at, first, results);
}

// The rows of a tile: 128 rows of one matrix, or 64 rows each of two. A thread decodes one of them (`row`), with three
// neighbours: of the first matrix, or, in the upper half of the block, of the second. A warp computes the same 16 rows of
// either matrix: value [0] of a lane's results belongs to the row of the first that value [1] belongs to of the second.
IKQ_DEV unsigned row_of_thread() { return threadIdx.x >> 2; }
IKQ_DEV bool decodes_second() { return threadIdx.x >= TILE_THREADS / 2; }
IKQ_DEV unsigned place_of_two(unsigned row) { return 32 * (row >> 4 & 3u) + 16 * (row >> 6) + (row & 15u); }

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
constexpr bool STARTS_ARE_KEPT = false;
#else
constexpr bool STARTS_ARE_KEPT = true;
#endif

// How many times 32 elements are written out one after another. With more, the compiler would begin with all of them at once,
// and have too few registers.
template <class A, class B, int N>
constexpr int WRITTEN_OUT = N < 4 && RowPart<A, 0, 1>::PARTS == 1 && RowPart<B, 0, 1>::PARTS == 1 ? 2 : 1;

template <class A, class B, bool TWO, int C>
IKQ_DEV void multiply(const uint8_t *row, const Source &x, Tile<C> *tiles, Results<C / 32> &results) {
    constexpr int N = C / 32, GROUPS = N < 2 ? N : 2;
    constexpr bool SUMS_16 = MIN_RUN<A> == 16 || MIN_RUN<B> == 16;
    const Places at = places_of_lane<N>();
    const unsigned own = TWO ? place_of_two(row_of_thread()) : row_of_thread();
    const int l = threadIdx.x & 3;
    const int n_steps = (x.n + STEP - 1) / STEP;
#pragma unroll
    for (int m = 0; m < 2; m++)
#pragma unroll
        for (int c = 0; c < N; c++)
#pragma unroll
            for (int i = 0; i < 4; i++) results.value[m][c][i] = 0.0f;

    // decodes what this thread has of a step
    const auto decode = [&](int step, Tile<C> &tile) {
        ColumnScales<C, SUMS_16> scales;
        fetch_scales(x, step, scales);
        if (SAME_TYPE<A, B> || !decodes_second())
            store_fragment<A>(fetched<A>(row, x.n, step, l), tile, own, l);
        else
            store_fragment<B>(fetched<B>(row, x.n, step, l), tile, own, l);
        store_scales(scales, tile);
    };
    copy_columns(x, tiles[0], 0);
    decode(0, tiles[0]);
    // Half of the warps of each scheduler decode before they multiply, the others behind it: so one half has loads to wait
    // for, and integers to compute with, while the other keeps the tensor cores busy.
    const int turn = int(threadIdx.x >> 7 & 1u);
    for (int step = 0; step < n_steps; step++) {
        const Tile<C> &tile = tiles[step & 1];
        Tile<C> &other = tiles[(step + 1) & 1];
        copy_async_wait<0>();
        // now the step's tile is whole, and nobody reads the other one any more
        __syncthreads();
        const bool last = step + 1 == n_steps;
        if (!last) copy_columns(x, other, step + 1);
#pragma unroll 1
        for (int part = 0; part < 2; part++) {
            if (part == turn) {
                if (!last) decode(step + 1, other);
                continue;
            }
            // What sums start from. Before sm_90, the compiler writes a constant, and copies of one variable, into the registers
            // of each sum again; of four variables it keeps each in a register, since it does not know that nothing is added
            // (n is small). They are made in each step, so that decoding has those registers.
            int magic[4] = {MAGIC_BITS, MAGIC_BITS, MAGIC_BITS, MAGIC_BITS};
            if constexpr (STARTS_ARE_KEPT) {
                uint32_t length = uint32_t(x.n);
                asm volatile("" : "+r"(length));
#pragma unroll
                for (int i = 0; i < 4; i++) magic[i] += int((length + uint32_t(i)) >> 31);
            }
#pragma unroll(WRITTEN_OUT<A, B, N>)
            for (unsigned j = 0; j < 4; j++) {
                RowPart<A, 0, TWO ? 1 : 2> w;
                RowPart<B, 1, 1> second; // not used if there is one matrix
                load_rows(tile, at, j, w);
                if constexpr (TWO) load_rows(tile, at, j, second);
#pragma unroll
                for (int c = 0; c < N; c += GROUPS) {
                    ColumnPart<GROUPS> columns;
                    load_columns(tile, at, j, c, columns);
                    add_products(tile, at, j, w, c, columns, magic, results);
                    if constexpr (TWO) add_products(tile, at, j, second, c, columns, magic, results);
                }
            }
        }
    }
}
