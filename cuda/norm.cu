// RMS norm, the tables for rotary positions (RoPE), and the largest logits.
//
//   rms_norm(x, add, weight, sum, y, q, ds, n, eps)             grid columns, block 256
//       x, add    n floats per column; add may be null
//       sum       where x + add is stored, or null; may be x or add
//       y, q, ds  the normalized sum times weight, as floats and quantized (then n is a multiple of 32); y, and q with
//                 ds, may be null
//   rope_table(positions, angles, cos_sin, n_pairs, magnitude)  grid columns, block 64
//       angles    the angle (double) by which pair i is rotated per position
//       cos_sin   for each column n_pairs cosines, then n_pairs sines, all times magnitude
//   argmax(logits, ids, values, n)                              grid columns, block 1024
//   top_k(logits, ids, values, n, k)                            the same grid; k results per column, the largest first
//       Of equal logits the one with the lower id comes first; NaN is never chosen. If there are fewer than k, the
//       other ids are -1
#include "quantized.cuh"

// The sum over all threads of a block (at most 32 warps); all threads get it.
IKQ_DEV float block_sum(float v) {
    IKQ_SHARED(float, sums, 32);
    v = warp_sum(v);
    if ((threadIdx.x & 31) == 0) sums[threadIdx.x >> 5] = v;
    __syncthreads();
    float total = 0.0f;
    for (unsigned w = 0; w < blockDim.x >> 5; w++) total += sums[w];
    return total;
}

IKQ_KERNEL(256, rms_norm, (const float *x, const float *add, const float *weight, float *sum, float *y, int8_t *q,
                           float2 *ds, int n, float eps)) {
    const int64_t column = int64_t(blockIdx.x) * n;
    x += column;
    if (add) add += column;
    float squares = 0.0f;
    for (int i = threadIdx.x; i < n; i += blockDim.x) {
        const float v = x[i] + (add ? add[i] : 0.0f);
        squares += v * v;
    }
    const float scale = 1.0f / sqrtf(block_sum(squares) / float(n) + eps);
    for (int i = threadIdx.x; i < n; i += blockDim.x) {
        const float v = x[i] + (add ? add[i] : 0.0f);
        if (sum) sum[column + i] = v;
        const float out = v * scale * weight[i];
        if (y) y[column + i] = out;
        // then n is a multiple of 32, so all lanes of a warp take part
        if (q) quantize_32(out, q + column + i, ds + ((column + i) >> 5));
    }
}

IKQ_KERNEL(64, rope_table, (const int *positions, const double *angles, float *cos_sin, int n_pairs, float magnitude)) {
    float *out = cos_sin + int64_t(blockIdx.x) * 2 * n_pairs;
    for (int i = threadIdx.x; i < n_pairs; i += blockDim.x) {
        // the angle in half turns: reducing those is exact, and needs no stack as reducing by pi does
        const double half_turns = double(positions[blockIdx.x]) * angles[i] * 0.31830988618379067154;
        out[i] = float(cospi(half_turns) * double(magnitude));
        out[n_pairs + i] = float(sinpi(half_turns) * double(magnitude));
    }
}

struct Best {
    float value;
    int id;
};
IKQ_DEV bool before(Best a, Best b) { return a.value > b.value || (a.value == b.value && a.id < b.id); }

// The best of n logits that comes after `last` in the order of `before`, or {-INFINITY, n} if there is none. All
// threads get it.
IKQ_DEV Best best_behind(const float *logits, int n, Best last) {
    IKQ_SHARED(float, values, 32);
    IKQ_SHARED(int, ids, 32);
    Best best = {-INFINITY, n};
    for (int i = threadIdx.x; i < n; i += blockDim.x) {
        const Best here = {logits[i], i};
        if (before(here, best) && before(last, here)) best = here;
    }
#pragma unroll
    for (int o = 16; o > 0; o >>= 1) {
        const Best other = {__shfl_xor_sync(ALL_LANES, best.value, o), __shfl_xor_sync(ALL_LANES, best.id, o)};
        if (before(other, best)) best = other;
    }
    __syncthreads(); // wait until all threads have read the results of the previous call
    if ((threadIdx.x & 31) == 0) {
        values[threadIdx.x >> 5] = best.value;
        ids[threadIdx.x >> 5] = best.id;
    }
    __syncthreads();
    for (unsigned w = 0; w < blockDim.x >> 5; w++) {
        const Best other = {values[w], ids[w]};
        if (before(other, best)) best = other;
    }
    return best;
}

IKQ_DEV void best_logits(const float *logits, int *ids, float *values, int n, int k) {
    logits += int64_t(blockIdx.x) * n;
    Best last = {INFINITY, -1};
    for (int i = 0; i < k; i++) {
        last = best_behind(logits, n, last);
        if (threadIdx.x == 0) {
            ids[int64_t(blockIdx.x) * k + i] = last.id < n ? last.id : -1;
            values[int64_t(blockIdx.x) * k + i] = last.value;
        }
    }
}
IKQ_KERNEL(1024, argmax, (const float *logits, int *ids, float *values, int n)) { best_logits(logits, ids, values, n, 1); }
IKQ_KERNEL(1024, top_k, (const float *logits, int *ids, float *values, int n, int k)) {
    best_logits(logits, ids, values, n, k);
}
