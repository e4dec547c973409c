// RMS norm, the tables for rotary positions (RoPE), caps of logits, and the largest logits.
//
//   rms_norm(x, add, weight, sum, y, q, ds, n, eps)             grid columns, block 256
//       x, add    n floats per column; add may be null
//       sum       where x + add is stored, or null; may be x or add
//       y, q, ds  the normalized sum times weight, as floats and quantized (then n is a multiple of 32); y, and q with
//                 ds, may be null
//   rope_table(positions, angles, cos_sin, n_pairs, magnitude)  grid columns, block 64
//       angles    the angle (double) by which pair i is rotated per position
//       cos_sin   for each column n_pairs cosines, then n_pairs sines, all times magnitude
//   cap_logits(logits, n, scale, cap)                           grid n/256, block 256
//       times scale, and unless cap is 0 then cap * tanh(that / cap)
//   argmax(logits, ids, values, n)                              grid columns, block 32 to 1024 threads
//   top_k(logits, ids, values, n, k)                            the same grid; k results per column, the largest first
//       Of equal logits the one with the lower id comes first. One that is infinite or NaN counts as larger than all
//       others, so that the first result shows it. If there are fewer than k, the other ids are -1
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

IKQ_KERNEL(256, cap_logits, (float *logits, int64_t n, float scale, float cap)) {
    const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= n) return;
    const float v = logits[i] * scale;
    logits[i] = cap == 0.0f ? v : cap * tanhf(v / cap);
}

struct Best {
    float rank;
    int id;
};
IKQ_DEV bool before(Best a, Best b) { return a.rank > b.rank || (a.rank == b.rank && a.id < b.id); }
IKQ_DEV Best ranked(const float *logits, int id) {
    const float v = logits[id];
    return {fabsf(v) < INFINITY ? v : INFINITY, id};
}
IKQ_DEV Best best_of_warp(Best best) {
#pragma unroll
    for (int o = 16; o > 0; o >>= 1) {
        const Best other = {__shfl_xor_sync(ALL_LANES, best.rank, o), __shfl_xor_sync(ALL_LANES, best.id, o)};
        if (before(other, best)) best = other;
    }
    return best;
}

// Every thread knows the best one of every blockDim.x-th logit, from its own number on. When that is the block's best,
// its warp looks for the next one of them.
IKQ_DEV void best_logits(const float *logits, int *ids, float *values, int n, int k) {
    IKQ_SHARED(float, ranks, 64); // of each warp, in two halves that results use by turns
    IKQ_SHARED(int, places, 64);
    logits += int64_t(blockIdx.x) * n;
    ids += int64_t(blockIdx.x) * k;
    values += int64_t(blockIdx.x) * k;
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, n_threads = blockDim.x;
    const Best none = {-INFINITY, n};
    Best mine = none;
#pragma unroll 4
    for (int i = threadIdx.x; i < n; i += n_threads) {
        const Best here = ranked(logits, i);
        if (before(here, mine)) mine = here;
    }
    for (int i = 0; i < k; i++) {
        const int half = 32 * (i & 1);
        const Best of_warp = best_of_warp(mine);
        if (lane == 0) {
            ranks[half + warp] = of_warp.rank;
            places[half + warp] = of_warp.id;
        }
        __syncthreads();
        const Best best = best_of_warp(lane < n_threads >> 5 ? Best{ranks[half + lane], places[half + lane]} : none);
        if (threadIdx.x == 0) {
            ids[i] = best.id < n ? best.id : -1;
            values[i] = best.id < n ? logits[best.id] : -INFINITY;
        }
        const int owner = best.id % n_threads;
        if (best.id >= n || owner >> 5 != warp) continue;
        Best next = none;
        for (int j = owner + lane * n_threads; j < n; j += 32 * n_threads) {
            const Best here = ranked(logits, j);
            if (before(best, here) && before(here, next)) next = here;
        }
        next = best_of_warp(next);
        if (lane == (owner & 31)) mine = next;
    }
}
IKQ_KERNEL(1024, argmax, (const float *logits, int *ids, float *values, int n)) { best_logits(logits, ids, values, n, 1); }
IKQ_KERNEL(1024, top_k, (const float *logits, int *ids, float *values, int n, int k)) {
    best_logits(logits, ids, values, n, k);
}
