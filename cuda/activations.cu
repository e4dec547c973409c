// Elementwise kernels on activations: quantization, gated activation functions (GLU), additions.
//
//   quantize_act(x, q, ds, n)    grid ceil(n / 256), block 256
//       x: n floats, all columns one after another, the length of each a multiple of 32; q: n int8 codes;
//       ds: n / 32 float2, the scale and the scale times the sum of the codes for each block of 32
//   glu_act(up, gate, bias_up, bias_gate, ids, y, q, ds, n_rows, act, alpha, limit)
//       grid (ceil(n_rows / 32), columns), block 32
//       does what the fused kernel of upgate.cu does after its products, for products that were computed separately
//   add_to(x, a, b, n)           grid ceil(n / 256), block 256: x += a + b; b may be null
//   sigmoid_of(x, n)             the same grid: replaces x by its sigmoid
#include "glu.cuh"

IKQ_KERNEL(256, quantize_act, (const float *__restrict__ x, int8_t *__restrict__ q, float2 *__restrict__ ds, int64_t n)) {
    const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    // n is a multiple of 32, so either all lanes of a warp take part or none
    if (i < n) quantize_32(x[i], q + i, ds + (i >> 5));
}

IKQ_KERNEL(32, glu_act, (const float *up, const float *gate, const float *bias_up, const float *bias_gate,
                         const int *ids, float *y, int8_t *q, float2 *ds, int n_rows, int act, float alpha, float limit)) {
    const int row = 32 * blockIdx.x + threadIdx.x, in = row < n_rows ? row : n_rows - 1;
    const int64_t column = int64_t(blockIdx.y) * n_rows;
    // an expert that the router has dropped has id -1; its result is 0, as in upgate.cu
    const int id = ids ? ids[blockIdx.y] : 0;
    const int64_t expert = int64_t(id < 0 ? 0 : id) * n_rows;
    const float u = up[column + in] + (bias_up ? bias_up[expert + in] : 0.0f);
    const float g = gate[column + in] + (bias_gate ? bias_gate[expert + in] : 0.0f);
    store_activation(id < 0 ? 0.0f : activated(u, g, act, alpha, limit), row, blockIdx.y, n_rows, y, q, ds);
}

IKQ_KERNEL(256, add_to, (float *x, const float *a, const float *b, int64_t n)) {
    const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < n) x[i] += b ? a[i] + b[i] : a[i];
}

IKQ_KERNEL(256, sigmoid_of, (float *x, int64_t n)) {
    const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < n) x[i] = 1.0f / (1.0f + expf(-x[i]));
}
