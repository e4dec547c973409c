// What products by cuBLAS read, and what their sums begin with.
//
//   bf16_of_codes(x, ds, out, n)     grid ceil(n / 256), block 256
//       x: n codes, all columns one after another; ds: float2 for each block of 32, of which the scale is read; out: n bf16
//   bf16_of_floats(x, out, n)        the same grid; x: n floats
//   begin_sums(bias, residual, y, n_rows)   grid (columns, ceil(n_rows / 256)), block 256
//       y: n_rows floats for each column: the row's bias and, unless it is null, the residual, which may be y itself
#include "ikq_dev.cuh"

IKQ_KERNEL(256, bf16_of_codes, (const int8_t *__restrict__ x, const float2 *__restrict__ ds, uint16_t *__restrict__ out,
                                int64_t n)) {
    const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < n) out[i] = f2bf(float(x[i]) * ds[i >> 5].x);
}

IKQ_KERNEL(256, bf16_of_floats, (const float *__restrict__ x, uint16_t *__restrict__ out, int64_t n)) {
    const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < n) out[i] = f2bf(x[i]);
}

IKQ_KERNEL(256, begin_sums, (const float *__restrict__ bias, const float *residual, float *y, int n_rows)) {
    const int row = int(blockIdx.y * blockDim.x + threadIdx.x);
    const int64_t i = int64_t(blockIdx.x) * n_rows + row;
    if (row < n_rows) y[i] = bias[row] + (residual ? residual[i] : 0.0f);
}
