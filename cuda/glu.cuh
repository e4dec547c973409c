// The gated activation functions of an FFN (GLU): they combine the outputs of the up and the gate projection into the
// input of the down projection.
#pragma once
#include "quantized.cuh"

enum { ACT_SILU = 0, ACT_GELU_TANH = 1, ACT_SWIGLU_OAI = 2 };

// alpha and limit are parameters of SWIGLU_OAI only (1.702 and 7).
IKQ_DEV float activated(float up, float gate, int act, float alpha, float limit) {
    if (act == ACT_GELU_TANH) {
        const float inner = 0.7978845608f * (gate + 0.044715f * gate * gate * gate);
        return up * 0.5f * gate * (1.0f + tanhf(inner));
    }
    if (act == ACT_SWIGLU_OAI) {
        gate = fminf(gate, limit);
        up = fmaxf(fminf(up, limit), -limit) + 1.0f;
    } else {
        alpha = 1.0f;
    }
    return up * gate / (1.0f + fast_exp(-alpha * gate));
}

// Stores element `row` of a column, as float in `y` if it is not null, and quantized in `q` and `ds` if they are not
// null (then n_rows is a multiple of 32). The lanes of a warp have 32 neighbouring rows.
IKQ_DEV void store_activation(float x, int row, int64_t column, int n_rows, float *y, int8_t *q, float2 *ds) {
    if (y && row < n_rows) y[column * n_rows + row] = x;
    if (q) quantize_32(x, q + column * n_rows + row, ds + ((column * n_rows + row) >> 5));
}
