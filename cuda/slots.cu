// Sums up what the experts of a token made, where mmq.cu has computed each of them.
//
//   sum_slots(products, ids, weights, k, residual, y, n_rows)
//       grid (ceil(n_rows / 256), tokens), block 256
//   y[t * n_rows + r] = residual + sum over slots s of weights[t * k + s] * products[(t * k + s) * n_rows + r]
//   residual        laid out like y, or null; may be y itself
// Slots are added in their order, as in down.cu. One with a negative id has no expert; its products are not read.
#include "ikq_dev.cuh"

IKQ_KERNEL(256, sum_slots, (const float *products, const int *ids, const float *weights, int k, const float *residual,
                            float *y, int n_rows)) {
    const int row = 256 * int(blockIdx.x) + int(threadIdx.x);
    if (row >= n_rows) return;
    const int64_t token = blockIdx.y;
    float total = 0.0f;
    for (int64_t pair = token * k; pair < (token + 1) * k; pair++)
        if (ids[pair] >= 0) total += weights[pair] * products[pair * n_rows + row];
    const int64_t at = token * n_rows + row;
    y[at] = total + (residual ? residual[at] : 0.0f);
}
