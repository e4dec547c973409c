// Attention on f16 tensor cores: a block has a tile of queries and goes through keys and values in shared memory. It is
// compiled for a type of keys (-DIKQ_TYPE) and a type of values (-DIKQ_VALUES) in the KV cache: f16, or blocks of 32.
//
//   attend_tiles_K_V_R(q, k, v, pages, first, end, runs, partial, n_runs, column_0, n_columns, n_heads, n_kv, n_k, n_v, n_v_row,
//                      max_pages, span, scale, cap)
//       grid (tiles, n_kv, splits), block 128; dynamic shared memory: see `Tile::bytes` of plan/attention.rs.
//       R says how many rows a tile has, and for which heads it is: r64 and r16 for up to 128 elements of a value, with 64 keys at
//       a time; w32 for up to 256, and w16 for up to 512, with 32 keys at a time.
//   q, k, v, pages, first, end, n_*, max_pages, scale, cap
//              as in attention.cu. n_k, n_v and n_v_row are multiples of 8, and of 32 for blocks. Positions that a column sees
//              begin and end no earlier than those of the column before it in its run.
//   runs       for each run four numbers: its first column, the position of that, how many columns it has, and another. The
//              columns of a run belong to one text: they have the same page numbers
//   column_0, n_columns
//              the columns that are computed: those of others are not written
//   span       the number of positions of a split, a multiple of 64
//   partial    [column - column_0][head][split]: as in attention.cu
//
// The rows of a tile are the columns of a run and, for each, the query heads of one head of the cache: so a key is read once for
// all of them. Rows of a run follow one another by column, then by head. There is a tile for every `rows` of them; blocks behind
// the last tile leave at once.
//
// Splits begin at multiples of `span` and keys are taken from multiples of 64 (32) on, whatever a column sees. Those that it does
// not see add zeros to its sums, which changes no bit: so a result does not depend on the other rows of its tile, nor on
// the tile's size. Splits are counted from the one on in which the first position lies that a column of the tile sees.
//
// Queries and weights are rounded to halves, and so are keys and values that are decoded. Weights are those of a softmax times
// 2^SHIFT, so that half precision has them down to 2^-26 of the largest with all its bits. Their sum is that of the rounded ones.
#include "half_tile.cuh"
#include "names.cuh"

#ifndef IKQ_ONCE_ATTEND_TILES
#define IKQ_ONCE_ATTEND_TILES
constexpr int ATTEND_THREADS = 128;
constexpr float LOG2_E = 1.44269504f, LN_2 = 0.69314718f, SHIFT = 12.0f;
constexpr uint32_t TWO_ONES = 0x3c003c00u; // halves

// The rows of a tile: `count` of them, whose columns begin at `column`; the first one is row `first` of the columns' rows.
struct TileOfRows {
    int column, first, count;
};

// Tile number `tile` of R rows, where columns have `per_column` rows each. `count` is 0 if there are fewer tiles. All lanes of
// a warp take part.
template <int R>
IKQ_DEV TileOfRows tile_of_runs(const int *runs, int n_runs, int column_0, int n_columns, int per_column, int tile) {
    const int lane = threadIdx.x & 31;
    int before = 0; // tiles of the runs before these 32
    for (int r0 = 0; r0 < n_runs; r0 += 32) {
        int begin = 0, end = 0;
        if (r0 + lane < n_runs) {
            begin = max(runs[4 * (r0 + lane)], column_0);
            end = min(runs[4 * (r0 + lane)] + runs[4 * (r0 + lane) + 2], column_0 + n_columns);
        }
        const int n_rows = end > begin ? (end - begin) * per_column : 0;
        const int own = (n_rows + R - 1) / R;
        const LaneItem found = item_of_lanes(own, tile, before);
        if (found.lane >= 0) {
            const int first = R * found.number;
            const int left = __shfl_sync(ALL_LANES, n_rows, found.lane) - first;
            return {__shfl_sync(ALL_LANES, begin, found.lane), first, left < R ? left : R};
        }
    }
    return {0, 0, 0};
}

// Brings queries into shared memory as halves. Rows that a tile lacks are zeros.
template <int R>
IKQ_DEV void stage_queries(const float *q, TileOfRows tile, int per_column, int kv_head, int n_heads, int n_k, HalfRows rows,
                           uint8_t *to) {
    for (int row = int(threadIdx.x >> 3); row < R; row += 16) {
        const int of_run = tile.first + (row < tile.count ? row : 0), column = tile.column + of_run / per_column;
        const float *from = q + (int64_t(column) * n_heads + kv_head * per_column + of_run % per_column) * n_k;
        for (int chunk = int(threadIdx.x & 7u); 8 * chunk < ((n_k + 15) & ~15); chunk += 8) {
            uint4 eight = {0u, 0u, 0u, 0u};
            if (row < tile.count && 8 * chunk < n_k) {
                const float4 low = *reinterpret_cast<const float4 *>(from + 8 * chunk);
                const float4 high = *reinterpret_cast<const float4 *>(from + 8 * chunk + 4);
                eight = {halves_of(low.x, low.y), halves_of(low.z, low.w), halves_of(high.x, high.y), halves_of(high.z, high.w)};
            }
            *reinterpret_cast<uint4 *>(to + chunk_at(rows, unsigned(row), unsigned(chunk))) = eight;
        }
    }
}

// The scores of 16 rows and COUNT groups of eight keys, before they are scaled. Lane 4 g + t gets those of rows g and g + 8 and
// keys 2 t and 2 t + 1 of each group.
template <int COUNT>
IKQ_DEV void score(const uint8_t *queries, unsigned first_row, const uint8_t *keys, unsigned first_key, HalfRows rows, int steps,
                   float (&scores)[COUNT][4]) {
    const unsigned lane = threadIdx.x & 31;
#pragma unroll
    for (int c = 0; c < COUNT; c++)
#pragma unroll
        for (int i = 0; i < 4; i++) scores[c][i] = 0.0f;
    // eight neighbouring rows begin at a multiple of eight, so all rows that a lane passes move their chunks alike
    const unsigned turn = lane & rows.turn, next_8 = 128 * rows.stride;
    const uint8_t *const of_queries = queries + 16 * rows.stride * (first_row + (lane & 15u));
    if constexpr (COUNT == 1) {
        const uint8_t *const of_keys = keys + 16 * rows.stride * (first_key + (lane & 7u));
        int step = 0;
// not unrolled: the compiler would load more at a time than it has registers for
#pragma unroll 1
        for (; step + 1 < steps; step += 2) {
            uint32_t a[4], b[4];
            load_matrices(of_keys + 16 * ((unsigned(2 * step) + (lane >> 3)) ^ turn), b);
            load_matrices(of_queries + 16 * ((unsigned(2 * step) + (lane >> 4)) ^ turn), a);
            mma_f16_k16(scores[0], a, b);
            load_matrices(of_queries + 16 * ((unsigned(2 * step + 2) + (lane >> 4)) ^ turn), a);
            mma_f16_k16(scores[0], a, b + 2);
        }
        if (step < steps) {
            uint32_t a[4], b[2];
            load_matrices(of_keys + 16 * ((unsigned(2 * step) + (lane >> 3 & 1u)) ^ turn), b);
            load_matrices(of_queries + 16 * ((unsigned(2 * step) + (lane >> 4)) ^ turn), a);
            mma_f16_k16(scores[0], a, b);
        }
    } else {
        const uint8_t *const of_keys = keys + 16 * rows.stride * (first_key + 8 * (lane >> 4) + (lane & 7u));
#pragma unroll 1
        for (int step = 0; step < steps; step++) {
            uint32_t a[4];
            load_matrices(of_queries + 16 * ((unsigned(2 * step) + (lane >> 4)) ^ turn), a);
            const uint8_t *const at = of_keys + 16 * ((unsigned(2 * step) + (lane >> 3 & 1u)) ^ turn);
#pragma unroll
            for (int c = 0; c < COUNT; c += 2) {
                uint32_t b[4];
                load_matrices(at + next_8 * unsigned(c), b);
                mma_f16_k16(scores[c], a, b);
                mma_f16_k16(scores[c + 1], a, b + 2);
            }
        }
    }
}

// Four warps, which are ROW_WARPS times 16 rows. Where several have the same rows, each scores a part of the keys, and they tell
// one another the largest scores and the weights; then each sums a part of the values' elements. So all sums have the
// order that they have in a single warp.
template <class K, class V, int ROW_WARPS, int KEYS>
IKQ_DEV void attend_tiles(const float *q, const uint8_t *k, const uint8_t *v, const int *pages, const int *first, const int *end,
                          const int *runs, float *partial, int n_runs, int column_0, int n_columns, int n_heads, int n_kv,
                          int n_k, int n_v, int n_v_row, int max_pages, int span, float scale, float cap) {
    constexpr int ROWS = 16 * ROW_WARPS, PARTS = 4 / ROW_WARPS, GROUPS = KEYS / 8 / PARTS;
    constexpr int SUMMED = (KEYS == 64 ? 16 : ROW_WARPS == 2 ? 32 : 64) / PARTS; // groups of eight elements of values of a warp
    constexpr unsigned WEIGHT_BYTES = 2 * KEYS + 16;                             // from row to row: an odd number of chunks
    IKQ_DYNAMIC_SHARED(uint8_t, shared);
    IKQ_SHARED(float, tops, PARTS == 1 ? 4 : ROWS * PARTS);
    IKQ_SHARED(uint8_t, weights, PARTS == 1 ? 16 : ROWS * WEIGHT_BYTES);
    IKQ_SHARED(int2, sees, ROWS);
    const int per_column = n_heads / n_kv, kv_head = blockIdx.y, split = blockIdx.z, n_splits = gridDim.z;
    // a text's last tiles see most: they begin first
    const TileOfRows tile = tile_of_runs<ROWS>(runs, n_runs, column_0, n_columns, per_column, int(gridDim.x - 1 - blockIdx.x));
    if (tile.count <= 0) return; // the whole block
    const int first_column = tile.column + tile.first / per_column;
    const int last_column = tile.column + (tile.first + tile.count - 1) / per_column;
    const int tile_begin = first[first_column], tile_end = end[last_column];
    const int split_begin = tile_begin / span * span + split * span;
    const int from = max(tile_begin, split_begin), to = min(tile_end, split_begin + span);

    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
    const int part = warp & (PARTS - 1), first_row = 16 * (warp / PARTS);
    // the positions that rows see; none for rows that are not there
    for (int row = threadIdx.x; row < ROWS; row += ATTEND_THREADS) {
        const int column = tile.column + (tile.first + (row < tile.count ? row : 0)) / per_column;
        sees[row] = {first[column], row < tile.count ? end[column] : 0};
    }
    // the elements of values that this warp sums, in groups of eight; two groups are read together
    const int groups_v = n_v / 8, per_part = ((groups_v + PARTS - 1) / PARTS + 1) & ~1, first_group = part * per_part;
    const int own_groups = min(per_part, groups_v - first_group);

    float acc[SUMMED][4] = {}, sums[4] = {}, most[2] = {-INFINITY, -INFINITY};
    if (from < to) {
        const bool latent = v == k; // then values are the first elements of keys
        const HalfRows rows_k = half_rows(n_k), rows_v = latent ? rows_k : half_rows(n_v);
        const int bytes_k = 16 * KEYS * int(rows_k.stride);
        uint8_t *const queries = shared, *const keys = shared + 16 * ROWS * rows_k.stride, *const values = keys + bytes_k;
        const unsigned stride_k = unsigned(row_bytes<K>(n_k)), stride_v = unsigned(row_bytes<V>(n_v_row));
        pages += int64_t(first_column) * max_pages;
        // the row of a position in the cache; KEYS neighbours from a multiple of KEYS on are in one page
        const auto place = [&](int position) { return (int64_t(pages[position / PAGE]) * n_kv + kv_head) * PAGE + position % PAGE; };
        const auto stage_keys = [&](int position, uint8_t *where) {
            stage_rows<K, KEYS>(k + place(position) * stride_k, stride_k, from - position, to - position, n_k, n_k, rows_k, where);
            copy_async_commit();
        };
        clear_ends<KEYS>(n_k, rows_k, keys);
        if (latent) clear_ends<KEYS>(n_k, rows_k, values);
        const int begin = from & ~(KEYS - 1);
        stage_keys(begin, keys);
        stage_queries<ROWS>(q, tile, per_column, kv_head, n_heads, n_k, rows_k, queries);
        // of scores as logarithms to base 2; a soft cap gives such ones
        const float factor = cap > 0.0f ? 1.0f : scale * LOG2_E;
        // positions that all rows see
        const int all_from = first[last_column], all_to = end[first_column];
        int turn = 0; // which of the two places of latent rows has the keys
        for (int at = begin; at < to; at += KEYS) {
            copy_async_wait<0>();
            __syncthreads(); // the keys are there, and nobody reads the values before them any more
            const bool goes_on = at + KEYS < to;
            const uint8_t *const now_keys = latent && turn ? values : keys;
            if (!latent) {
                stage_rows<V, KEYS>(v + place(at) * stride_v, stride_v, from - at, to - at, n_v_row, n_v, rows_v, values);
                copy_async_commit();
            } else if (goes_on) {
                stage_keys(at + KEYS, turn ? keys : values);
            }
            float scores[GROUPS][4];
            score<GROUPS>(queries, unsigned(first_row), now_keys, unsigned(8 * GROUPS * part), rows_k, (n_k + 15) / 16, scores);

            if (cap > 0.0f) {
                const float of_cap = scale / cap, cap_2 = cap * LOG2_E;
#pragma unroll
                for (int c = 0; c < GROUPS; c++)
#pragma unroll
                    for (int i = 0; i < 4; i++) scores[c][i] = cap_2 * tanhf(scores[c][i] * of_cap);
            }
            if (at < all_from || at + KEYS > all_to) {
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    const int2 seen = sees[first_row + g + 8 * half];
#pragma unroll
                    for (int c = 0; c < GROUPS; c++)
#pragma unroll
                        for (int side = 0; side < 2; side++) {
                            const int position = at + 8 * (GROUPS * part + c) + 2 * t + side;
                            if (position < seen.x || position >= seen.y) scores[c][2 * half + side] = -INFINITY;
                        }
                }
            }
            float top[2] = {-INFINITY, -INFINITY};
#pragma unroll
            for (int c = 0; c < GROUPS; c++)
#pragma unroll
                for (int i = 0; i < 4; i++) top[i >> 1] = fmaxf(top[i >> 1], scores[c][i]);
#pragma unroll
            for (int half = 0; half < 2; half++) {
                top[half] = fmaxf(top[half], __shfl_xor_sync(ALL_LANES, top[half], 1));
                top[half] = fmaxf(top[half], __shfl_xor_sync(ALL_LANES, top[half], 2));
                if (PARTS > 1 && t == 0) tops[PARTS * (first_row + g + 8 * half) + part] = top[half];
            }
            if constexpr (PARTS > 1) {
                __syncthreads();
#pragma unroll
                for (int half = 0; half < 2; half++)
#pragma unroll
                    for (int p = 0; p < PARTS; p++) top[half] = fmaxf(top[half], tops[PARTS * (first_row + g + 8 * half) + p]);
            }
            float keep[2], lift[2];
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const float now = fmaxf(most[half], top[half] * factor);
                keep[half] = most[half] > -INFINITY ? fast_exp2(most[half] - now) : 0.0f;
                lift[half] = now > -INFINITY ? SHIFT - now : 0.0f;
                most[half] = now;
            }
            uint32_t word[GROUPS][2];
#pragma unroll
            for (int c = 0; c < GROUPS; c++)
#pragma unroll
                for (int half = 0; half < 2; half++)
                    word[c][half] = halves_of(fast_exp2(fmaf(scores[c][2 * half], factor, lift[half])),
                                              fast_exp2(fmaf(scores[c][2 * half + 1], factor, lift[half])));
            if constexpr (PARTS > 1) {
#pragma unroll
                for (int c = 0; c < GROUPS; c++)
#pragma unroll
                    for (int half = 0; half < 2; half++)
                        *reinterpret_cast<uint32_t *>(weights + WEIGHT_BYTES * unsigned(first_row + g + 8 * half) +
                                                      16 * unsigned(GROUPS * part + c) + 4 * unsigned(t)) = word[c][half];
            }
            // most blocks of keys have no larger score than those before them
            if (__ballot_sync(ALL_LANES, keep[0] != 1.0f || keep[1] != 1.0f)) {
#pragma unroll
                for (int i = 0; i < 4; i++) sums[i] *= keep[i >> 1];
#pragma unroll
                for (int d = 0; d < SUMMED; d++)
#pragma unroll
                    for (int i = 0; i < 4; i++) acc[d][i] *= keep[i >> 1];
            }
            if (!latent) copy_async_wait<0>();
            __syncthreads(); // the values (and weights) are there, and nobody reads the keys any more
            if (!latent && goes_on) stage_keys(at + KEYS, keys);

            const unsigned turned = unsigned(lane) & rows_v.turn;
            const uint8_t *const of_values = (latent ? now_keys : values) + 16 * rows_v.stride * unsigned(lane & 15);
#pragma unroll
            for (int step = 0; step < KEYS / 16; step++) {
                uint32_t a[4];
                if constexpr (PARTS > 1)
                    load_matrices(weights + WEIGHT_BYTES * unsigned(first_row + (lane & 15)) + 32 * unsigned(step) + 16 * unsigned(lane >> 4), a);
                else
#pragma unroll
                    for (int i = 0; i < 4; i++) a[i] = word[2 * step + (i >> 1)][i & 1];
                const uint32_t ones[2] = {TWO_ONES, TWO_ONES};
                mma_f16_k16(sums, a, ones);
                const uint8_t *const at_step = of_values + 256 * rows_v.stride * unsigned(step);
#pragma unroll
                for (int d = 0; d < SUMMED; d += 2)
                    if (d < own_groups) {
                        uint32_t b[4];
                        load_transposed(at_step + 16 * ((unsigned(first_group + d) + unsigned(lane >> 4)) ^ turned), b);
                        mma_f16_k16(acc[d], a, b);
                        mma_f16_k16(acc[d + 1], a, b + 2);
                    }
            }
            turn ^= 1;
        }
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int row = first_row + g + 8 * half, of_run = tile.first + row;
        if (row >= tile.count) continue; // no collective follows
        const int64_t column = tile.column + of_run / per_column - column_0;
        const int head = kv_head * per_column + of_run % per_column;
        float *out = partial + ((column * n_heads + head) * n_splits + split) * (n_v + 2);
#pragma unroll
        for (int d = 0; d < SUMMED; d++)
            if (d < own_groups)
                *reinterpret_cast<float2 *>(out + 8 * (first_group + d) + 2 * t) = {acc[d][2 * half], acc[d][2 * half + 1]};
        if (part == 0 && t == 0) {
            out[n_v] = most[half] > -INFINITY ? (most[half] - SHIFT) * LN_2 : -INFINITY;
            out[n_v + 1] = sums[2 * half];
        }
    }
}

// three blocks on a multiprocessor; decoding takes more registers than leave room for so many
#define IKQ_ATTEND_TILES(end_of_name, row_warps, keys)                                                                        \
    IKQ_KERNEL_OF(ATTEND_THREADS, (IS_HALF<IKQ_TYPE> && IS_HALF<IKQ_VALUES> ? 3 : 2),                                      \
                  IKQ_NAME_4(attend_tiles, IKQ_TYPE, IKQ_VALUES, end_of_name),                                                \
                  (const float *q, const uint8_t *k, const uint8_t *v, const int *pages, const int *first, const int *end,   \
                   const int *runs, float *partial, int n_runs, int column_0, int n_columns, int n_heads, int n_kv, int n_k, \
                   int n_v, int n_v_row, int max_pages, int span, float scale, float cap)) {                                 \
        attend_tiles<IKQ_TYPE, IKQ_VALUES, row_warps, keys>(q, k, v, pages, first, end, runs, partial, n_runs, column_0,      \
                                                            n_columns, n_heads, n_kv, n_k, n_v, n_v_row, max_pages, span,    \
                                                            scale, cap);                                                     \
    }
#endif

IKQ_ATTEND_TILES(r64, 4, 64)
IKQ_ATTEND_TILES(r16, 1, 64)
IKQ_ATTEND_TILES(w32, 2, 32)
IKQ_ATTEND_TILES(w16, 1, 32)
