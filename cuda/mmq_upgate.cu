// The up projection, the gate projection and the activation function of an FFN for many columns, on tensor cores; compiled
// for a type of up (-DIKQ_TYPE) and a type of gate (-DIKQ_GATE), and with -DIKQ_TILE for one size of tiles only.
//
//   mmq_upgate_U_G_tC(up, gate, expert_bytes_up, expert_bytes_gate, bounds, list, n_experts, k, x, ds, bias_up, bias_gate,
//                     act, alpha, limit, y, q, q_ds, n_rows, n, n_columns)
//       C is 32, 64 or 128, the columns of a tile; grid (ceil(n_rows / 64), tiles of columns), block 512, dynamic
//       shared memory and tiles of columns as in mmq.cu. A block has 64 rows of up and the same of gate.
//   up, gate        rows in device form (types/form.cuh); if both are in one tensor, two addresses in it
//   bounds, list    as in mmq.cu, or null for a single matrix; pair p reads column p / k and writes column p. A pair that
//                   is not in the list gets no result.
//   the others      as in upgate.cu
#include "glu.cuh"
#include "groups.cuh"
#include "matrix.cuh"
#include "names.cuh"

#ifndef IKQ_ONCE_MMQ_UPGATE
#define IKQ_ONCE_MMQ_UPGATE
constexpr int PAIRED_ROWS = TILE_ROWS / 2;
// Floats from one column of results to the next in shared memory; so that lanes with other columns meet other banks.
constexpr int COLUMN_OF_RESULTS = PAIRED_ROWS + 4;

template <class U, class G, int C>
IKQ_DEV void mmq_upgate(const uint8_t *up, const uint8_t *gate, int64_t expert_bytes_up, int64_t expert_bytes_gate,
                        const int *bounds, const int *list, int n_experts, int k, const int8_t *x, const float2 *ds,
                        const float *bias_up, const float *bias_gate, int act, float alpha, float limit, float *y, int8_t *q,
                        float2 *q_ds, int n_rows, int n, int n_columns) {
    constexpr int N = C / 32;
    IKQ_DYNAMIC_SHARED(uint8_t, shared);
    IKQ_SHARED(unsigned, blocks, C);
    IKQ_SHARED(Group, found, 1);
    if (!find_columns<C>(bounds, list, n_experts, k, n, n_columns, blocks, found)) return; // the whole block
    __syncthreads();
    const int first_row = PAIRED_ROWS * int(blockIdx.x);
    const int own = first_row + int(row_of_thread() & (PAIRED_ROWS - 1)), row = own < n_rows ? own : n_rows - 1;
    const uint8_t *const at_row = decodes_second() ? gate + found->expert * expert_bytes_gate + row * row_bytes<G>(n)
                                                   : up + found->expert * expert_bytes_up + row * row_bytes<U>(n);
    Results<N> results;
    multiply<U, G, true, C>(at_row, {x, ds, blocks, n}, reinterpret_cast<Tile<C> *>(shared), results);

    const Group group = *found;
    float *values = reinterpret_cast<float *>(shared);
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    // now nobody reads the tiles any more, in whose place results are stored
    __syncthreads();
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int in_tile = 16 * (warp >> 2) + 8 * half + (lane >> 2);
        const int of_matrix = first_row + in_tile < n_rows ? first_row + in_tile : n_rows - 1;
        const int64_t at = int64_t(group.expert) * n_rows + of_matrix;
        const float bu = bias_up ? bias_up[at] : 0.0f, bg = bias_gate ? bias_gate[at] : 0.0f;
#pragma unroll
        for (int c = 0; c < N; c++)
#pragma unroll
            for (int side = 0; side < 2; side++) {
                const float u = results.value[0][c][2 * half + side] * U::FACTOR + bu;
                const float g = results.value[1][c][2 * half + side] * G::FACTOR + bg;
                const int column = 8 * (N * (warp & 3) + c) + 2 * (lane & 3) + side;
                values[COLUMN_OF_RESULTS * column + in_tile] = activated(u, g, act, alpha, limit);
            }
    }
    __syncthreads();
    for (int i = warp; i < 2 * group.count; i += TILE_THREADS / 32) {
        const int column = i >> 1, first = 32 * (i & 1);
        if (first_row + first >= n_rows) continue; // the same in all lanes
        const int to = bounds ? list[group.first + column] : group.first + column;
        store_activation(values[COLUMN_OF_RESULTS * column + first + lane], first_row + first + lane, to, n_rows, y, q, q_ds);
    }
}
#define IKQ_MMQ_UPGATE(C) IKQ_MMQ_UPGATE_(C)
#define IKQ_MMQ_UPGATE_(C)                                                                                            \
    IKQ_KERNEL(TILE_THREADS, IKQ_NAME_4(mmq_upgate, IKQ_TYPE, IKQ_GATE, t##C),                                        \
               (const uint8_t *up, const uint8_t *gate, int64_t expert_bytes_up, int64_t expert_bytes_gate,           \
                const int *bounds, const int *list, int n_experts, int k, const int8_t *x, const float2 *ds,          \
                const float *bias_up, const float *bias_gate, int act, float alpha, float limit, float *y, int8_t *q, \
                float2 *q_ds, int n_rows, int n, int n_columns)) {                                                    \
        if constexpr (C <= MOST_COLUMNS<IKQ_TYPE> && C <= MOST_COLUMNS<IKQ_GATE>)                                     \
            mmq_upgate<IKQ_TYPE, IKQ_GATE, C>(up, gate, expert_bytes_up, expert_bytes_gate, bounds, list, n_experts,  \
                                              k, x, ds, bias_up, bias_gate, act, alpha, limit, y, q, q_ds, n_rows, n, \
                                              n_columns);                                                             \
    }
#endif

#ifdef IKQ_TILE
IKQ_MMQ_UPGATE(IKQ_TILE)
#else
IKQ_MMQ_UPGATE(32)
IKQ_MMQ_UPGATE(64)
IKQ_MMQ_UPGATE(128)
#endif
