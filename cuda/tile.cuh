// Tiles of weights and columns in shared memory, as tensor cores read them.
//
// A block goes through 128 rows of weights and some columns in steps of 128 elements (half a unit). Codes are int8, 128
// bytes for each row and column; of row r, the 16 bytes of chunk c are at chunk c ^ (r & 7), so that neither stores
// nor ldmatrix meet in a bank. Scales and mins are floats, those of all rows for one run of elements side by side: the
// four that a lane needs are neighbours (`place_of_row`).
#pragma once
#include "products.cuh"

constexpr int STEP = 128, TILE_ROWS = 128, TILE_THREADS = 512;

// What a type's decoder does not say: how many elements have the same scale (32 or 16: a decoder's runs may be shorter
// than that), and the constant that is subtracted from codes where a decoder calls it a min.
template <int SHARING, int LESS = 0> struct Sharing {
    static constexpr int SCALE = SHARING, OFFSET = LESS;
};
template <class T> struct Tiled : Sharing<T::RUN == 32 ? 32 : 16> {};
template <> struct Tiled<q4_k> : Sharing<32> {};
template <> struct Tiled<q5_k> : Sharing<32> {};
template <> struct Tiled<iq5_ks> : Sharing<32> {};
template <> struct Tiled<iq2_ks> : Sharing<32> {};
template <> struct Tiled<iq3_ks> : Sharing<32> {};
template <> struct Tiled<i2_s> : Sharing<32> {};
template <> struct Tiled<tq2_0> : Sharing<32, 1> {};
template <> struct Tiled<tq1_0> : Sharing<32, 1> {};
template <> struct Tiled<q2_0> : Sharing<32, 1> {};
template <> struct Tiled<iq1_bn> : Sharing<32, 1> {};
template <> struct Tiled<q4_0> : Sharing<32, 8> {};
template <> struct Tiled<q5_0> : Sharing<32, 16> {};
template <> struct Tiled<q6_0> : Sharing<32, 32> {};

// The most columns that a tile may have. With scales of 16 elements, of which twice as many are held, 128 columns would take
// more registers than a thread can have, and with IQ3_S on some GPUs: the kernel for them is empty then, and the planner
// (plan/mmq.rs) does not launch it.
template <class T> constexpr int MOST_COLUMNS = Tiled<T>::SCALE == 32 ? 128 : 64;
template <> constexpr int MOST_COLUMNS<iq3_s> = 64;

// The elements that have a min of their own, or 0 if none is left to subtract.
template <class T>
constexpr int MIN_RUN = Tiled<T>::OFFSET || T::MINS == Mins::NONE ? 0 : T::MINS == Mins::WHOLE ? 32 : 16;

// The shared memory of a block with C columns; everything is there twice, for the step that is computed and the next.
template <int C> struct Tile {
    int8_t weights[TILE_ROWS * STEP];
    int8_t columns[C * STEP];
    float scales[8 * TILE_ROWS], mins[8 * TILE_ROWS];
    float column_scales[4 * C];
    // scales times sums of codes, of 32 and of 16 elements
    float sums_32[4 * C], sums_16[8 * C];
};

IKQ_DEV unsigned chunk_of_row(unsigned row, unsigned chunk) { return STEP * row + ((chunk ^ (row & 7u)) << 4); }
// Where the scale of a row of the tile stands. A warp computes 32 rows, and lane 4 g + t of it rows g, g + 8, g + 16, g + 24.
IKQ_DEV unsigned place_of_row(unsigned row) { return (row & 96u) + ((row & 7u) << 2) + (row >> 3 & 3u); }

// The 32 elements that lane l of 4 decodes in a step. Where the row has ended, they are the row's first ones with scales
// and mins of 0: that takes no branch.
template <class T> IKQ_DEV typename T::Result fetched(const uint8_t *row, int n, int step, int l) {
    int u = step >> 1, of_unit = 4 * (step & 1) + l;
    const bool there = has_fragment<T>(u, of_unit, n);
    u = there ? u : 0;
    of_unit = there ? of_unit : 0;
    typename T::Result f = T::decode(fields_of<T>(row, n, u), of_unit);
    if constexpr (T::Result::INTEGERS) {
        f.d = there ? f.d : 0.0f;
    } else {
#pragma unroll
        for (int r = 0; r < 32 / T::RUN; r++) {
            f.scale[r] = there ? f.scale[r] : 0.0f;
            if (MIN_RUN<T> != 0) f.min[r] = there ? f.min[r] : 0.0f;
        }
    }
    return f;
}

template <class T, int C> IKQ_DEV void store_fragment(const typename T::Result &f, Tile<C> &tile, unsigned row, int l) {
    constexpr int RUN = T::RUN, SCALE = Tiled<T>::SCALE, OFFSET = Tiled<T>::OFFSET, MIN = MIN_RUN<T>;
    const unsigned place = place_of_row(row);
#pragma unroll
    for (int r = 0; r < 32 / RUN; r++) {
        const unsigned at = unsigned(T::at(l, r));
        uint32_t word[RUN / 4];
#pragma unroll
        for (int i = 0; i < RUN / 4; i++) {
            word[i] = uint32_t(f.code[r * RUN / 4 + i]);
            if (OFFSET) word[i] = less(word[i], OFFSET);
        }
        int8_t *to = tile.weights + chunk_of_row(row, at >> 4);
        if constexpr (RUN == 8) {
            *reinterpret_cast<uint2 *>(to + (at & 8u)) = {word[0], word[1]};
        } else {
            *reinterpret_cast<uint4 *>(to) = {word[0], word[1], word[2], word[3]};
            if constexpr (RUN == 32)
                *reinterpret_cast<uint4 *>(tile.weights + chunk_of_row(row, (at >> 4) + 1)) = {word[4], word[5], word[6], word[7]};
        }
        if (RUN >= SCALE || (at & (SCALE - 1)) == 0) tile.scales[at / SCALE * TILE_ROWS + place] = scale_of(f, r);
        if constexpr (MIN != 0)
            if (RUN >= MIN || (at & (MIN - 1)) == 0) tile.mins[at / MIN * TILE_ROWS + place] = f.min[r];
    }
}

// The columns of a block: codes, scales and sums as in products.cuh, and which columns they are.
struct Source {
    const int8_t *x;
    const float2 *ds;
    const unsigned *blocks; // the first block of 32 of each column, in shared memory
    int n;
};

// Begins to copy the codes of a step.
template <int C> IKQ_DEV void copy_columns(const Source &from, Tile<C> &tile, int step) {
#pragma unroll
    for (int i = 0; i < (8 * C + TILE_THREADS - 1) / TILE_THREADS; i++) {
        const unsigned item = threadIdx.x + TILE_THREADS * i, column = item >> 3, chunk = item & 7u;
        const int at = STEP * step + 16 * int(chunk);
        if (column < unsigned(C) && at < from.n)
            copy_async_16(tile.columns + chunk_of_row(column, chunk), from.x + (int64_t(from.blocks[column]) * 32 + at));
    }
    copy_async_commit();
}

// The scales of a step that a thread fetches, for 32 elements of a column each, and with SUMS_16 sums of 16 elements.
template <int C, bool SUMS_16> struct ColumnScales {
    static constexpr int COUNT = (4 * C + TILE_THREADS - 1) / TILE_THREADS;
    float2 ds[COUNT];
    float sums[SUMS_16 ? 2 * COUNT : 1];

    IKQ_MEMBER void places(int i, unsigned &column, unsigned &block) {
        const unsigned item = threadIdx.x + TILE_THREADS * i;
        column = item >> 2;
        block = item & 3u;
    }
};

template <int C, bool SUMS_16> IKQ_DEV void fetch_scales(const Source &from, int step, ColumnScales<C, SUMS_16> &s) {
#pragma unroll
    for (int i = 0; i < s.COUNT; i++) {
        unsigned column, block;
        s.places(i, column, block);
        const int at = STEP * step + 32 * int(block);
        // threads without a column do as the first one, and blocks behind the end as the first block, with scales of 0
        const bool there = column < unsigned(C) && at < from.n;
        const int64_t at_block = int64_t(from.blocks[column < unsigned(C) ? column : 0]) + (there ? at / 32 : 0);
        const uint2 raw = load_8(from.ds + at_block);
        s.ds[i] = {there ? __int_as_float(int(raw.x)) : 0.0f, there ? __int_as_float(int(raw.y)) : 0.0f};
        if constexpr (SUMS_16) {
            int codes[8], total[2] = {};
            load_codes<32>(from.x + 32 * at_block, codes);
#pragma unroll
            for (int k = 0; k < 8; k++) total[k >> 2] = __dp4a(0x01010101, codes[k], total[k >> 2]);
            s.sums[2 * i] = s.ds[i].x * float(total[0]);
            s.sums[2 * i + 1] = s.ds[i].x * float(total[1]);
        }
    }
}

// A scale with 22 significant bits, rounded to nearest: 3 * 2^22 times it is exact (matrix.cuh).
IKQ_DEV float with_22_bits(float x) { return __int_as_float(int((uint32_t(__float_as_int(x)) + 2u) & ~3u)); }

template <int C, bool SUMS_16> IKQ_DEV void store_scales(const ColumnScales<C, SUMS_16> &s, Tile<C> &tile) {
#pragma unroll
    for (int i = 0; i < s.COUNT; i++) {
        unsigned column, block;
        s.places(i, column, block);
        if (column >= unsigned(C)) continue;
        tile.column_scales[C * block + column] = with_22_bits(s.ds[i].x);
        tile.sums_32[C * block + column] = s.ds[i].y;
        if constexpr (SUMS_16) {
            tile.sums_16[C * 2 * block + column] = s.sums[2 * i];
            tile.sums_16[C * (2 * block + 1) + column] = s.sums[2 * i + 1];
        }
    }
}
