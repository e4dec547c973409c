// Activations: 32 floats, one per lane, to int8 codes with one scale.
#pragma once
#include "ikq_dev.cuh"

// Whether all lanes have a finite number.
IKQ_DEV bool all_finite(float x) { return __ballot_sync(ALL_LANES, !(fabsf(x) < INFINITY)) == 0; }

// All lanes of a warp take part. `q`: where the lane's code goes; `ds`: where the block's scale and scale * sum go. Blocks
// that hold NaN or infinity get the scale NaN, so that what went wrong shows in the result.
IKQ_DEV void quantize_32(float x, int8_t *q, float2 *ds) {
    const bool finite = all_finite(x);
    const float most = finite ? warp_max(fabsf(x)) : 0.0f;
    // below this the inverse would overflow; such blocks are zeros
    const float inverse = most > 1e-30f ? 127.0f / most : 0.0f;
    const int code = finite ? __float2int_rn(x * inverse) : 0;
    *q = int8_t(code);
    const int sum = warp_sum(code);
    if ((threadIdx.x & 31) == 0) {
        const float d = !finite ? not_a_number() : inverse > 0.0f ? most / 127.0f : 0.0f;
        *ds = {d, d * float(sum)};
    }
}
