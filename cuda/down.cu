// The down projection of the chosen experts of each token, multiplied by the router's weights and summed up. It is
// compiled for a type of weights (-DIKQ_TYPE).
//
//   down_T(w, expert_bytes, ids, weights, k, x, ds, bias, residual, y, n_rows, n)
//       grid (ceil(n_rows / 4), tokens), block 128; types that are computed together (together.cuh) have 32 rows in a
//       block, not 4
//   y[t * n_rows + r] = residual + sum over slots s of weights[t * k + s] * (w[ids[t * k + s]] x[t * k + s] + bias)
//   x, ds           a column per (token, slot), as upgate.cu writes them: quantized, or floats for float weights
//   bias            n_rows floats for each expert, or null
//   residual        laid out like y, or null; may be y itself
// A slot with a negative id has no expert and adds nothing.
#include "names.cuh"
#include "together.cuh"

#ifndef IKQ_ONCE_DOWN
#define IKQ_ONCE_DOWN
template <class T>
IKQ_DEV void down(const uint8_t *w, int64_t expert_bytes, const int *ids, const float *weights, int k, const void *x,
                  const float2 *ds, const float *bias, const float *residual, float *y, int n_rows, int n) {
    constexpr int LANES = T::TOGETHER ? 4 : 32; // that get the product of a row
    const int row = int(128 / LANES * blockIdx.x + threadIdx.x / LANES);
    if (!T::TOGETHER && row >= n_rows) return; // a whole warp
    const int64_t token = blockIdx.y;
    float total = 0.0f;
    for (int s = 0; s < k; s++) {
        const int64_t pair = token * k + s;
        const int64_t expert = ids[pair];
        if (expert < 0) continue;
        const uint8_t *rows = w + expert * expert_bytes;
        const Columns columns = columns_from(x, ds, n, pair, T::FLOAT);
        float sum[1];
        if constexpr (T::TOGETHER) {
            IKQ_SHARED(Together, shared, 1);
            sum[0] = block_product<T>(rows, n_rows, columns, *shared);
            __syncthreads(); // nobody reads the sums any more
        } else {
            const int offset[1] = {0};
            row_products<T>(rows + row * row_bytes<T>(n), columns, offset, sum);
        }
        total += weights[pair] * (sum[0] + (bias && row < n_rows ? bias[expert * n_rows + row] : 0.0f));
    }
    const int64_t at = token * n_rows + row;
    if (threadIdx.x % LANES == 0 && row < n_rows) y[at] = total + (residual ? residual[at] : 0.0f);
}
#endif

IKQ_KERNEL(128, IKQ_NAME_2(down, IKQ_TYPE),
           (const uint8_t *w, int64_t expert_bytes, const int *ids, const float *weights, int k, const void *x,
            const float2 *ds, const float *bias, const float *residual, float *y, int n_rows, int n)) {
    down<IKQ_TYPE>(w, expert_bytes, ids, weights, k, x, ds, bias, residual, y, n_rows, n);
}
