// Attention for single queries, compiled for a type of keys (-DIKQ_TYPE) and a type of values (-DIKQ_VALUES) in the KV
// cache. A column is one token; in a prompt, each column sees the positions before it and its own.
//
//   attend_K_V(q, k, v, pages, first, end, partial, n_heads, n_kv, n_k, n_v, n_v_row, max_pages, span, scale, cap)
//       grid (n_heads, splits, columns), block 128
//   q          [column][head][n_k] floats
//   k, v       caches (cache.cuh) of n_kv heads, with rows of n_k and n_v_row elements; a value is the first n_v
//              elements of its row (with compressed keys and values, MLA, there is one head, v = k and n_v_row = n_k).
//              n_k and n_v are at most 1024
//   pages      for each column max_pages page numbers
//   first, end column c sees the positions from first[c] to end[c], which is not included
//   span       the number of positions of a split
//   scale      the factor of the scores
//   cap        of a soft cap: a score becomes cap * tanh(score / cap); 0 means none
//   partial    [column][head][split]: n_v weighted sums of values, then the largest score and the sum of weights
//
// A split is a part of the positions that one block works on. Split s begins at position first + s * span, so that the
// splits of a column do not depend on the other columns of the step. A split behind the end sees no position: its sums
// are 0 and its largest score is -INFINITY. combine.cu combines all splits of a head.
#include "cache.cuh"
#include "names.cuh"
#include "softmax.cuh"

#ifndef IKQ_ONCE_ATTEND
#define IKQ_ONCE_ATTEND
// How many lanes share a row of n elements: each has 32 of them. The result is a power of two.
IKQ_DEV int lanes_for(int n) {
    int lanes = 1;
    while (32 * lanes < n) lanes *= 2;
    return lanes;
}

template <class K, class V>
IKQ_DEV void attend(const float *q, const uint8_t *k, const uint8_t *v, const int *pages, const int *first,
                    const int *end, float *partial, int n_heads, int n_kv, int n_k, int n_v, int n_v_row, int max_pages,
                    int span, float scale, float cap) {
    IKQ_SHARED(float, query, 1024);
    IKQ_SHARED(float, sums, 4 * 1024);
    IKQ_SHARED(float, mosts, 4);
    IKQ_SHARED(float, totals, 4);
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, head = blockIdx.x, kv_head = head / (n_heads / n_kv);
    const int64_t column = blockIdx.z;
    pages += column * max_pages;
    const int splits = gridDim.y, last = end[column];
    const int64_t begin = first[column] + int64_t(span) * blockIdx.y;
    const int from = begin < last ? int(begin) : last, to = last - from < span ? last : from + span;
    float *out = partial + ((column * n_heads + head) * splits + blockIdx.y) * (n_v + 2);
    if (from >= to) { // the whole block: launches have more splits than texts need
        for (int i = threadIdx.x; i < n_v; i += blockDim.x) out[i] = 0.0f;
        if (threadIdx.x == 0) {
            out[n_v] = -INFINITY;
            out[n_v + 1] = 0.0f;
        }
        return;
    }
    for (int i = threadIdx.x; i < 1024; i += blockDim.x)
        query[i] = i < n_k ? q[(column * n_heads + head) * n_k + i] : 0.0f;
    __syncthreads();
    const int wide = n_k > n_v ? n_k : n_v;
    const int lanes = lanes_for(wide), rows = 32 / lanes, part = lane & (lanes - 1), group = lane / lanes;
    // the largest score, the sum of weights and the weighted sum of values over the rows that this lane's group saw; a
    // warp works on 32 / lanes rows at a time, one per group
    float most = -INFINITY, sum = 0.0f, acc[32] = {};
    for (int base = from + warp * rows; base < to; base += 4 * rows) {
        const int position = base + group;
        const bool seen = position < to;
        const int at = seen ? position : to - 1;
        const int64_t slot = int64_t(pages[at / PAGE]) * PAGE + at % PAGE;
        float score = 0.0f;
        if (32 * part < n_k)
            score = score_part<K>(cache_row<K>(const_cast<uint8_t *>(k), slot, kv_head, n_kv, n_k), n_k, part, query);
        for (int o = 1; o < lanes; o *= 2) score += __shfl_xor_sync(ALL_LANES, score, o);
        score *= scale;
        if (cap > 0.0f) score = cap * tanhf(score / cap);
        if (!seen) continue; // no collective follows in this round
        const float now = fmaxf(most, score);
        const float keep = weight_of(most, now), weight = expf(score - now);
        most = now;
        sum = sum * keep + weight;
        if (32 * part < n_v) {
            float x[32];
            read_part<V>(cache_row<V>(const_cast<uint8_t *>(v), slot, kv_head, n_kv, n_v_row), n_v_row, part, x);
#pragma unroll
            for (int i = 0; i < 32; i++) acc[i] = acc[i] * keep + weight * x[i];
        }
    }
    __syncwarp();
    // combine the groups of the warp, and then the warps of the block
    const float top = warp_max(most), share = weight_of(most, top);
    sum *= share;
#pragma unroll
    for (int i = 0; i < 32; i++) acc[i] *= share;
    for (int o = lanes; o < 32; o *= 2) {
        sum += __shfl_xor_sync(ALL_LANES, sum, o);
#pragma unroll
        for (int i = 0; i < 32; i++) acc[i] += __shfl_xor_sync(ALL_LANES, acc[i], o);
    }
    if (lane == 0) {
        mosts[warp] = top;
        totals[warp] = sum;
    }
    if (group == 0) {
#pragma unroll
        for (int i = 0; i < 32; i++)
            if (32 * part + i < n_v) sums[1024 * warp + 32 * part + i] = acc[i];
    }
    __syncthreads();
    float best = mosts[0];
    for (int w = 1; w < 4; w++) best = fmaxf(best, mosts[w]);
    for (int i = threadIdx.x; i < n_v; i += blockDim.x) {
        float x = 0.0f;
        for (int w = 0; w < 4; w++) x += sums[1024 * w + i] * weight_of(mosts[w], best);
        out[i] = x;
    }
    if (threadIdx.x == 0) {
        float total = 0.0f;
        for (int w = 0; w < 4; w++) total += totals[w] * weight_of(mosts[w], best);
        out[n_v] = best;
        out[n_v + 1] = total;
    }
}
#endif

// four blocks on a multiprocessor: without that, the compiler takes up to 137 registers for sm_120
IKQ_KERNEL_OF(128, 4, IKQ_NAME_3(attend, IKQ_TYPE, IKQ_VALUES),
           (const float *q, const uint8_t *k, const uint8_t *v, const int *pages, const int *first, const int *end,
            float *partial, int n_heads, int n_kv, int n_k, int n_v, int n_v_row, int max_pages, int span,
            float scale, float cap)) {
    attend<IKQ_TYPE, IKQ_VALUES>(q, k, v, pages, first, end, partial, n_heads, n_kv, n_k, n_v, n_v_row, max_pages, span,
                                 scale, cap);
}
