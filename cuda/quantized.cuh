// Quantizes activations: 32 floats, one per lane, become int8 codes with one scale.
#pragma once
#include "ikq_dev.cuh"

// Whether x is finite in all lanes.
IKQ_DEV bool all_finite(float x) { return __ballot_sync(ALL_LANES, !(fabsf(x) < INFINITY)) == 0; }

// Quantizes a block of 32 floats; all lanes of a warp must take part. `q` is where the lane's code is stored, and `ds`
// where the block's scale and the scale times the sum of the codes are stored. A block with NaN or infinity gets the
// scale NaN, so that the error shows in the result.
IKQ_DEV void quantize_32(float x, int8_t *q, float2 *ds) {
    const bool finite = all_finite(x);
    const float most = finite ? warp_max(fabsf(x)) : 0.0f;
    // for blocks so close to zero that the inverse could overflow, all codes are 0
    const float inverse = most > 1e-30f ? 127.0f / most : 0.0f;
    const int code = finite ? __float2int_rn(x * inverse) : 0;
    *q = int8_t(code);
    const int sum = warp_sum(code);
    if ((threadIdx.x & 31) == 0) {
        const float d = !finite ? not_a_number() : inverse > 0.0f ? most / 127.0f : 0.0f;
        *ds = {d, d * float(sum)};
    }
}
