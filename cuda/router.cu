// Chooses the experts of each token, and sorts the (token, slot) pairs by expert.
//
//   router(logits, bias, ids, weights, not_finite, layer, n_experts, n_used, func, normalize, scale, n_group,
//          n_group_used, n_least, threshold)                          grid tokens, block 32
//       logits       n_experts floats per token (at most 1024)
//       bias         is added to the scores by which experts are chosen, but not to their weights; or null
//       ids, weights n_used per token (at most 32), ordered by score, the best first, of equal ones the lower id. An
//                    expert that is dropped has id -1 and weight 0
//       not_finite   one int per token. If a score is NaN or infinite, all ids of the token are -1, and the int is set
//                    to `layer` unless it is the number of an earlier layer (it is negative at first)
//       func         scores are 0: the softmax over all experts, 1: the sigmoid, 2: the logits, with the softmax over
//                    the chosen experts as weights
//       normalize    whether weights are divided by their sum; then they are multiplied by scale
//       n_group      if above 1, experts are divided into so many groups, and are only chosen from the best
//                    n_group_used groups; a group is judged by the sum of its two best scores
//       n_least, threshold   beyond the n_least experts of largest weight, an expert is dropped unless its weight is
//                    more than threshold times the largest; n_least = n_used drops none
//   moe_sort(ids, bounds, rows, n, n_experts)                          grid 1, block 256
//       ids          the expert ids of n (token, slot) pairs; -1 means none
//       rows         the numbers of the pairs, ordered by expert and then ascending
//       bounds       n_experts + 1 ints: the pairs of expert e are rows[bounds[e]] up to rows[bounds[e + 1]], which is
//                    not included
#include "ikq_dev.cuh"

constexpr int MAX_EXPERTS = 1024;
enum { ROUTE_SOFTMAX = 0, ROUTE_SIGMOID = 1, ROUTE_SOFTMAX_CHOSEN = 2 };

// The largest of n values, and its index (of equal ones the first); all lanes get it. The index is n if no value is
// above -INFINITY.
IKQ_DEV int best_of(const float *x, int n, float &value) {
    int at = n;
    value = -INFINITY;
    for (int i = threadIdx.x & 31; i < n; i += 32)
        if (x[i] > value) {
            value = x[i];
            at = i;
        }
#pragma unroll
    for (int o = 16; o > 0; o >>= 1) {
        const float other = __shfl_xor_sync(ALL_LANES, value, o);
        const int other_at = __shfl_xor_sync(ALL_LANES, at, o);
        if (other > value || (other == value && other_at < at)) {
            value = other;
            at = other_at;
        }
    }
    return at;
}

// The softmax over the lanes of a warp; a lane with -INFINITY takes no part.
IKQ_DEV float softmax_of_lanes(float x) {
    const float e = expf(x - warp_max(x));
    return e / warp_sum(e);
}

IKQ_KERNEL(32, router, (const float *logits, const float *bias, int *ids, float *weights, int *not_finite,
                        int layer, int n_experts, int n_used, int func, int normalize, float scale, int n_group, int n_group_used,
                        int n_least, float threshold)) {
    IKQ_SHARED(float, scores, MAX_EXPERTS);
    IKQ_SHARED(float, choice, MAX_EXPERTS);
    IKQ_SHARED(float, groups, MAX_EXPERTS);
    const int lane = threadIdx.x;
    const int64_t token = blockIdx.x;
    logits += token * n_experts;

    float most = -INFINITY;
    int bad = 0;
    for (int e = lane; e < n_experts; e += 32) {
        most = fmaxf(most, logits[e]);
        bad |= !(fabsf(logits[e]) < INFINITY);
    }
    most = warp_max(most);
    float sum = 0.0f;
    for (int e = lane; e < n_experts; e += 32) {
        float s = logits[e];
        if (func == ROUTE_SOFTMAX) s = expf(s - most);
        if (func == ROUTE_SIGMOID) s = 1.0f / (1.0f + expf(-s));
        scores[e] = s;
        sum += s;
    }
    sum = warp_sum(sum);
    for (int e = lane; e < n_experts; e += 32) {
        if (func == ROUTE_SOFTMAX) scores[e] /= sum;
        choice[e] = scores[e] + (bias ? bias[e] : 0.0f);
        bad |= !(fabsf(choice[e]) < INFINITY);
    }
    __syncwarp();
    if (__ballot_sync(ALL_LANES, bad)) {
        if (lane < n_used) {
            ids[token * n_used + lane] = -1;
            weights[token * n_used + lane] = 0.0f;
        }
        if (lane == 0 && not_finite[token] < 0) not_finite[token] = layer;
        return; // the same in all lanes
    }

    if (n_group > 1) {
        const int per_group = n_experts / n_group;
        for (int g = lane; g < n_group; g += 32) {
            float first = -INFINITY, second = -INFINITY;
            for (int e = g * per_group; e < (g + 1) * per_group; e++) {
                const float c = choice[e];
                if (c > first) {
                    second = first;
                    first = c;
                } else if (c > second) {
                    second = c;
                }
            }
            groups[g] = second > -INFINITY ? first + second : first;
        }
        __syncwarp();
        // chosen groups are marked with +INFINITY, which cannot be a sum of scores
        for (int i = 0; i < n_group_used; i++) {
            float best = -INFINITY;
            int at = n_group;
            for (int g = lane; g < n_group; g += 32)
                if (groups[g] > best && groups[g] < INFINITY) {
                    best = groups[g];
                    at = g;
                }
#pragma unroll
            for (int o = 16; o > 0; o >>= 1) {
                const float other = __shfl_xor_sync(ALL_LANES, best, o);
                const int other_at = __shfl_xor_sync(ALL_LANES, at, o);
                if (other > best || (other == best && other_at < at)) {
                    best = other;
                    at = other_at;
                }
            }
            __syncwarp();
            if (lane == 0 && at < n_group) groups[at] = INFINITY;
            __syncwarp();
        }
        for (int e = lane; e < per_group * n_group; e += 32)
            if (groups[e / per_group] < INFINITY) choice[e] = -INFINITY;
        // experts that are left over after dividing into groups belong to none and are never chosen
        for (int e = per_group * n_group + lane; e < n_experts; e += 32) choice[e] = -INFINITY;
        __syncwarp();
    }

    // lane i keeps the i-th expert
    int mine = -1;
    float weight = 0.0f;
    for (int i = 0; i < n_used; i++) {
        float best;
        const int at = best_of(choice, n_experts, best);
        if (at >= n_experts) break; // the same in all lanes: there are fewer candidates than wanted
        if (lane == i) {
            mine = at;
            weight = scores[at];
        }
        __syncwarp();
        if (lane == 0) choice[at] = -INFINITY;
        __syncwarp();
    }
    if (func == ROUTE_SOFTMAX_CHOSEN) weight = softmax_of_lanes(mine >= 0 ? weight : -INFINITY);
    float factor = scale;
    if (normalize) factor /= fmaxf(warp_sum(weight), 6.1035156e-5f);
    weight *= factor;

    if (n_least < n_used) {
        const float largest = warp_max(mine >= 0 ? weight : -INFINITY);
        int rank = 0;
        for (int i = 0; i < n_used; i++) {
            const float other = __shfl_sync(ALL_LANES, weight, i);
            rank += other > weight || (other == weight && i < lane);
        }
        if (rank >= n_least && !(weight > threshold * largest)) {
            mine = -1;
            weight = 0.0f;
        }
    }
    if (lane < n_used) {
        ids[token * n_used + lane] = mine;
        weights[token * n_used + lane] = mine >= 0 ? weight : 0.0f;
    }
}

// Each warp sorts a part of the list: first it counts how many pairs of each expert are in its part, then it stores them
// behind those of the experts before, and those of the same expert in the parts before.
IKQ_KERNEL(256, moe_sort, (const int *ids, int *bounds, int *rows, int n, int n_experts)) {
    constexpr int WARPS = 8;
    // counts, then places, of [expert][warp]
    IKQ_SHARED(int, at, WARPS * MAX_EXPERTS);
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    const int part = (n + 32 * WARPS - 1) / (32 * WARPS) * 32;
    const int begin = warp * part, end = begin + part < n ? begin + part : n;
    for (int i = threadIdx.x; i < WARPS * n_experts; i += blockDim.x) at[i] = 0;
    __syncthreads();
    for (int i = begin + lane; i < end; i += 32)
        if (ids[i] >= 0) atomicAdd(&at[WARPS * ids[i] + warp], 1);
    __syncthreads();
    if (warp == 0) {
        int before = 0; // pairs of the experts before these 32
        for (int e0 = 0; e0 < n_experts; e0 += 32) {
            const int e = e0 + lane;
            int own = 0;
            for (int w = 0; w < WARPS; w++) own += e < n_experts ? at[WARPS * e + w] : 0;
            const int up_to = warp_sum_up_to(own);
            if (e < n_experts) {
                int place = before + up_to - own;
                bounds[e] = place;
                for (int w = 0; w < WARPS; w++) {
                    const int count = at[WARPS * e + w];
                    at[WARPS * e + w] = place;
                    place += count;
                }
            }
            before += __shfl_sync(ALL_LANES, up_to, 31);
        }
        if (lane == 0) bounds[n_experts] = before;
    }
    __syncthreads();
    for (int first = begin; first < end; first += 32) { // the same in all lanes
        const int i = first + lane, e = i < end ? ids[i] : -1;
        int rank = 0, last = lane; // pairs of the expert in the lanes before, and the last lane with one
        for (int o = 0; o < 32; o++)
            if (__shfl_sync(ALL_LANES, e, o) == e) {
                rank += o < lane;
                last = o;
            }
        const int place = e >= 0 ? at[WARPS * e + warp] + rank : 0;
        if (e >= 0) rows[place] = i;
        __syncwarp();
        if (e >= 0 && last == lane) at[WARPS * e + warp] = place + 1;
        __syncwarp();
    }
}
