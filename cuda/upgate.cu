// The up projection, the gate projection and the activation function of an FFN in one kernel, compiled for a type of up
// (-DIKQ_TYPE) and a type of gate (-DIKQ_GATE).
//
//   upgate_U_G_cC(up, gate, expert_bytes_up, expert_bytes_gate, ids, k, x, ds, bias_up, bias_gate, act, alpha, limit,
//                 y, q, q_ds, n_rows, n, n_columns)
//       C is 1, 2, 4 or 8, the largest number of columns; grid (ceil(n_rows / 32), 1 or number of pairs), block 256
//   up, gate        rows in device form (types/form.cuh); if both are in one tensor, two addresses in it
//   ids, k          as in mmv.cu; pair p writes column p
//   bias_*          n_rows floats (for experts: n_rows for each expert), or null
//   act             one of ACT_* of glu.cuh; alpha and limit are its parameters if it is ACT_SWIGLU_OAI
//   y               the results, n_rows floats per column; or null
//   q, q_ds         the results quantized, or null; then n_rows is a multiple of 32
// Both types read the same columns, so either both are floats or neither is.
#include "glu.cuh"
#include "names.cuh"
#include "together.cuh"

#ifndef IKQ_ONCE_UPGATE
#define IKQ_ONCE_UPGATE
// Whether four warps compute 32 rows of up, and four those of gate (together.cuh); that takes both types.
template <class U, class G, int C> constexpr bool IN_HALVES = C == 1 && U::TOGETHER && G::TOGETHER;

template <class U, class G, int C>
IKQ_DEV void upgate(const uint8_t *up, const uint8_t *gate, int64_t expert_bytes_up, int64_t expert_bytes_gate,
                    const int *ids, int k, const void *x, const float2 *ds, const float *bias_up, const float *bias_gate,
                    int act, float alpha, float limit, float *y, int8_t *q, float2 *q_ds, int n_rows, int n,
                    int n_columns) {
    static_assert(U::FLOAT == G::FLOAT, "up and gate read the same columns");
    IKQ_SHARED(float, values, C * 32);
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    int expert = 0;
    int64_t from = 0, to = 0;
    if (C == 1 && ids) {
        to = blockIdx.y;
        from = blockIdx.y / unsigned(k);
        expert = ids[to];
        n_columns = 1;
    }
    const Columns columns = columns_from(x, ds, n, from, U::FLOAT);
    const uint8_t *up_rows = up + expert * expert_bytes_up, *gate_rows = gate + expert * expert_bytes_gate;
    const auto result = [&](float u, float g, int row) {
        const int64_t at = int64_t(expert) * n_rows + row;
        const float bu = bias_up ? bias_up[at] : 0.0f, bg = bias_gate ? bias_gate[at] : 0.0f;
        return activated(u + bu, g + bg, act, alpha, limit);
    };
    if constexpr (IN_HALVES<U, G, C>) {
        IKQ_SHARED(Together, shared, 2);
        const int first = 32 * int(blockIdx.x), half = warp >> 2, i = int(threadIdx.x & 127u) >> 2, t = lane & 3;
        up_rows += first * row_bytes<U>(n);
        gate_rows += first * row_bytes<G>(n);
        if (expert >= 0) {
            if (SAME_TYPE<U, G> || half == 0)
                add_together<U>(half == 0 ? up_rows : gate_rows, n_rows - first, columns, warp & 3, shared[half]);
            else
                add_together<G>(gate_rows, n_rows - first, columns, warp & 3, shared[half]);
        }
        __syncthreads();
        if (half == 0) {
            float value = 0.0f;
            if (expert >= 0) {
                const float u = product_together<U>(shared[0], up_rows, n_rows - first, n, i, t);
                const float g = product_together<G>(shared[1], gate_rows, n_rows - first, n, i, t);
                if (first + i < n_rows) value = result(u, g, first + i);
            }
            if (t == 0) values[i] = value;
        }
    } else {
        // with more columns, registers would let only one block run
        constexpr int UNROLL = C == 1 ? 2 : 1;
        int offset[C];
        column_offsets(n, n_columns, offset);
        // each of the eight warps computes four of the block's 32 rows
        for (int i = warp; i < 32; i += 8) {
            const int row = 32 * int(blockIdx.x) + i;
            if (row < n_rows && expert >= 0) {
                float u[C], g[C];
                row_products<U, C, UNROLL>(up_rows + row * row_bytes<U>(n), columns, offset, u);
                row_products<G, C, UNROLL>(gate_rows + row * row_bytes<G>(n), columns, offset, g);
#pragma unroll
                for (int c = 0; c < C; c++)
                    if (lane == c) values[32 * c + i] = result(u[c], g[c], row);
            } else if (lane < C) {
                values[32 * lane + i] = 0.0f;
            }
        }
    }
    __syncthreads();
    if (warp < C && warp < n_columns)
        store_activation(values[32 * warp + lane], 32 * blockIdx.x + lane, to + warp, n_rows, y, q, q_ds);
}
#define IKQ_UPGATE(C)                                                                                                 \
    IKQ_KERNEL_OF(256, (C <= 2 && !IN_HALVES<IKQ_TYPE, IKQ_GATE, C> ? 2 : 1),                                         \
                  IKQ_NAME_4(upgate, IKQ_TYPE, IKQ_GATE, c##C),                                                       \
               (const uint8_t *up, const uint8_t *gate, int64_t expert_bytes_up, int64_t expert_bytes_gate,           \
                const int *ids, int k, const void *x, const float2 *ds, const float *bias_up, const float *bias_gate, \
                int act, float alpha, float limit, float *y, int8_t *q, float2 *q_ds, int n_rows, int n,              \
                int n_columns)) {                                                                                     \
        upgate<IKQ_TYPE, IKQ_GATE, C>(up, gate, expert_bytes_up, expert_bytes_gate, ids, k, x, ds, bias_up,           \
                                      bias_gate, act, alpha, limit, y, q, q_ds, n_rows, n, n_columns);                \
    }
#endif

IKQ_UPGATE(1)
IKQ_UPGATE(2)
IKQ_UPGATE(4)
IKQ_UPGATE(8)
