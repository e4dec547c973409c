// Matrix-vector products (GEMV) with weights of one type (-DIKQ_TYPE) and 1 to 8 columns: y = w x + bias + residual.
//
//   mmv_T_cC(w, expert_bytes, ids, k, x, ds, bias, residual, y, n_rows, n, n_columns, y_stride)
//       C is 1, 2, 4 or 8, the largest number of columns; grid (ceil(n_rows / 4), 1 or number of pairs), block 128.
//       With one column and types that are computed together (together.cuh), a block has 32 rows, not 4
//   w             rows in device form (types/form.cuh)
//   x, ds         columns (products.cuh)
//   bias          n_rows floats (for experts: n_rows for each expert), or null
//   residual      laid out like y, or null; may be y itself
//   y             element r of column c is y[c * y_stride + r]
//   ids           null for a single matrix. For experts C is 1, and blockIdx.y is the number p of a (token, slot)
//                 pair, with k slots for each token. Expert e begins at w + e * expert_bytes. Pair p uses expert
//                 ids[p], reads column p / k and writes column p; if ids[p] is negative, its products are 0
#include "names.cuh"
#include "together.cuh"

#ifndef IKQ_ONCE_MMV
#define IKQ_ONCE_MMV
template <class T, int C>
IKQ_DEV void mmv(const uint8_t *w, int64_t expert_bytes, const int *ids, int k, const void *x, const float2 *ds,
                 const float *bias, const float *residual, float *y, int n_rows, int n, int n_columns, int64_t y_stride) {
    constexpr bool TOGETHER = C == 1 && T::TOGETHER;
    constexpr int LANES = TOGETHER ? 4 : 32; // that get the products of a row
    const int row = int(128 / LANES * blockIdx.x + threadIdx.x / LANES), lane = threadIdx.x % LANES;
    if constexpr (!TOGETHER) {
        if (row >= n_rows) return; // a whole warp
    }
    int expert = 0;
    int64_t from = 0, to = 0;
    if (C == 1 && ids) {
        to = blockIdx.y;
        from = blockIdx.y / unsigned(k);
        expert = ids[to];
        n_columns = 1;
    }
    float sum[C] = {};
    if (expert >= 0) {
        const uint8_t *rows = w + expert * expert_bytes;
        const Columns columns = columns_from(x, ds, n, from, T::FLOAT);
        if constexpr (TOGETHER) {
            IKQ_SHARED(Together, shared, 1);
            sum[0] = block_product<T>(rows, n_rows, columns, *shared);
        } else {
            int offset[C];
            column_offsets(n, n_columns, offset);
            row_products<T>(rows + row * row_bytes<T>(n), columns, offset, sum);
        }
        if (bias && row < n_rows) {
#pragma unroll
            for (int c = 0; c < C; c++) sum[c] += bias[int64_t(expert) * n_rows + row];
        }
    }
    // lane c stores column c
#pragma unroll
    for (int c = 0; c < C; c++) {
        const int64_t at = (to + c) * y_stride + row;
        if (lane == c && c < n_columns && row < n_rows) y[at] = sum[c] + (residual ? residual[at] : 0.0f);
    }
}
#define IKQ_MMV(C)                                                                                                    \
    IKQ_KERNEL(128, IKQ_NAME_3(mmv, IKQ_TYPE, c##C),                                                                  \
               (const uint8_t *w, int64_t expert_bytes, const int *ids, int k, const void *x, const float2 *ds,       \
                const float *bias, const float *residual, float *y, int n_rows, int n, int n_columns,                 \
                int64_t y_stride)) {                                                                                  \
        mmv<IKQ_TYPE, C>(w, expert_bytes, ids, k, x, ds, bias, residual, y, n_rows, n, n_columns, y_stride);          \
    }
#endif

IKQ_MMV(1)
IKQ_MMV(2)
IKQ_MMV(4)
IKQ_MMV(8)
