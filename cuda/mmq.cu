// Products of quantized weights of one type (-DIKQ_TYPE) and many columns on tensor cores: y = w x + bias + residual.
// With -DIKQ_TILE, only kernels for tiles of so many columns are compiled.
//
//   mmq_T_tC(w, expert_bytes, bounds, list, n_experts, k, x, ds, bias, residual, y, n_rows, n, n_columns, y_stride)
//       C is 32, 64 or 128, the columns of a tile; grid (ceil(n_rows / 128), tiles of columns), block 512, dynamic
//       shared memory 384 C + 49152. A result has the same bits for every C, and whatever other columns there are.
//   w             rows in device form (types/form.cuh)
//   x, ds         columns (products.cuh)
//   bias          n_rows floats (for experts: n_rows for each expert), or null
//   residual      laid out like y, or null; may be y itself
//   y             element r of column c is y[c * y_stride + r]
//   bounds        null for a single matrix. For experts, which begin at w + e * expert_bytes: pairs
//                 list[bounds[e]] to list[bounds[e + 1] - 1] are those of expert e (router.cu: moe_sort). Pair p reads column
//                 p / k and writes column p. Then n_columns is the number of pairs, and tiles of columns are
//                 ceil(n_columns / C) + n_experts; those that are not needed end at once.
#include "groups.cuh"
#include "matrix.cuh"
#include "names.cuh"

#ifndef IKQ_ONCE_MMQ
#define IKQ_ONCE_MMQ
template <class T, int C>
IKQ_DEV void mmq(const uint8_t *w, int64_t expert_bytes, const int *bounds, const int *list, int n_experts, int k,
                 const int8_t *x, const float2 *ds, const float *bias, const float *residual, float *y, int n_rows, int n,
                 int n_columns, int64_t y_stride) {
    constexpr int N = C / 32;
    IKQ_DYNAMIC_SHARED(uint8_t, shared);
    IKQ_SHARED(unsigned, blocks, C);
    IKQ_SHARED(Group, found, 1);
    if (!find_columns<C>(bounds, list, n_experts, k, n, n_columns, blocks, found)) return; // the whole block
    __syncthreads();
    const int first_row = TILE_ROWS * int(blockIdx.x);
    const int own = first_row + int(row_of_thread()), row = own < n_rows ? own : n_rows - 1;
    Results<N> results;
    multiply<T, T, false, C>(w + found->expert * expert_bytes + row * row_bytes<T>(n), {x, ds, blocks, n},
                             reinterpret_cast<Tile<C> *>(shared), results);

    const Group group = *found;
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
#pragma unroll
    for (int c = 0; c < N; c++)
#pragma unroll
        for (int side = 0; side < 2; side++) {
            const int column = 8 * (N * (warp & 3) + c) + 2 * (lane & 3) + side;
            if (column >= group.count) continue;
            const int64_t to = (bounds ? list[group.first + column] : group.first + column) * y_stride;
#pragma unroll
            for (int m = 0; m < 2; m++)
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    const int row = first_row + 32 * (warp >> 2) + 16 * m + 8 * half + (lane >> 2);
                    if (row >= n_rows) continue;
                    float sum = results.value[m][c][2 * half + side] * T::FACTOR;
                    if (bias) sum += bias[int64_t(group.expert) * n_rows + row];
                    y[to + row] = sum + (residual ? residual[to + row] : 0.0f);
                }
        }
}
#define IKQ_MMQ(C) IKQ_MMQ_(C)
#define IKQ_MMQ_(C)                                                                                                   \
    IKQ_KERNEL(TILE_THREADS, IKQ_NAME_3(mmq, IKQ_TYPE, t##C),                                                         \
               (const uint8_t *w, int64_t expert_bytes, const int *bounds, const int *list, int n_experts, int k,     \
                const int8_t *x, const float2 *ds, const float *bias, const float *residual, float *y, int n_rows,    \
                int n, int n_columns, int64_t y_stride)) {                                                            \
        if constexpr (C <= MOST_COLUMNS<IKQ_TYPE>)                                                                    \
            mmq<IKQ_TYPE, C>(w, expert_bytes, bounds, list, n_experts, k, x, ds, bias, residual, y, n_rows, n,        \
                             n_columns, y_stride);                                                                    \
    }
#endif

#ifdef IKQ_TILE
IKQ_MMQ(IKQ_TILE)
#else
IKQ_MMQ(32)
IKQ_MMQ(64)
IKQ_MMQ(128)
#endif
