// Activations: 32 floats, one per lane, to int8 codes with one scale.
#pragma once
#include "ikq_dev.cuh"

// All lanes of a warp take part. `q`: where the lane's code goes; `ds`: where the block's scale and scale * sum go.
IKQ_DEV void quantize_32(float x, int8_t *q, float2 *ds) {
    const float most = warp_max(fabsf(x));
    // below this the inverse would overflow; such blocks are zeros
    const float inverse = most > 1e-30f ? 127.0f / most : 0.0f;
    const int code = __float2int_rn(x * inverse);
    *q = int8_t(code);
    const int sum = warp_sum(code);
    if ((threadIdx.x & 31) == 0) {
        const float d = inverse > 0.0f ? most / 127.0f : 0.0f;
        *ds = {d, d * float(sum)};
    }
}
