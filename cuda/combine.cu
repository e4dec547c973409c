// Combines the partial results of the splits of attention.cu.
//
//   attend_combine(partial, sinks, gate, gate_stride, y, q, ds, n_heads, n_v, n_splits, run)
//       grid (n_heads, columns), block 128; n_v is at most 1024
//   sinks      one score per head (attention sink) that takes part in the softmax but has no value; or null
//   gate       [column][head], gate_stride floats from head to head: the n_v results of a head are multiplied by the
//              sigmoid of its first n_v floats; or null
//   y, q, ds   the results as floats and quantized (then n_v is a multiple of 32); y, and q with ds, may be null
//   run        the run in which values were turned (hadamard.cuh), so that results are turned back; 0 means that they
//              were not
#include "hadamard.cuh"
#include "quantized.cuh"
#include "softmax.cuh"

IKQ_KERNEL(128, attend_combine, (const float *partial, const float *sinks, const float *gate, int gate_stride,
                                 float *y, int8_t *q, float2 *ds, int n_heads, int n_v, int n_splits, int run)) {
    IKQ_SHARED(float, values, 1024);
    const int64_t at = int64_t(blockIdx.y) * n_heads + blockIdx.x;
    partial += at * n_splits * (n_v + 2);
    float most = sinks ? sinks[blockIdx.x] : -INFINITY;
    for (int s = 0; s < n_splits; s++) most = fmaxf(most, partial[s * (n_v + 2) + n_v]);
    float total = sinks ? weight_of(sinks[blockIdx.x], most) : 0.0f;
    for (int s = 0; s < n_splits; s++)
        total += partial[s * (n_v + 2) + n_v + 1] * weight_of(partial[s * (n_v + 2) + n_v], most);
    const float factor = total > 0.0f ? 1.0f / total : 0.0f;
    for (int i = threadIdx.x; i < n_v; i += blockDim.x) {
        float x = 0.0f;
        for (int s = 0; s < n_splits; s++) x += partial[s * (n_v + 2) + i] * weight_of(partial[s * (n_v + 2) + n_v], most);
        values[i] = x * factor;
    }
    if (run) turn_row(values, n_v, Runs{n_v, run, run}, true);
    // without a turn a thread reads what it has written
    for (int i = threadIdx.x; i < n_v; i += blockDim.x) {
        float x = values[i];
        if (gate) x /= 1.0f + expf(-gate[at * gate_stride + i]);
        if (y) y[at * n_v + i] = x;
        if (q) quantize_32(x, q + at * n_v + i, ds + ((at * n_v + i) >> 5));
    }
}
