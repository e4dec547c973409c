// The cache of keys and values on the device: pages of 256 positions, [page][head][position], a row of one type for each.
// A slot is page * 256 + the position in it. Rows are in device form (types/form.cuh), with 32 elements per block, or
// floats: any type of blocks of 32 can be read; those with `encode_32` below can be written.
#pragma once
#include "quantized.cuh"
#include "rows.cuh"
#include "types/all.cuh"

constexpr int PAGE = 256;

template <class T> IKQ_DEV uint8_t *cache_row(uint8_t *cache, int64_t slot, int head, int n_heads, int n) {
    return cache + (((slot / PAGE) * n_heads + head) * PAGE + slot % PAGE) * row_bytes<T>(n);
}

// Elements 32 part to 32 part + 32 of a row; zeros behind its end.
template <class T> IKQ_DEV void read_part(const uint8_t *row, int n, int part, float (&out)[32]) {
    if constexpr (T::FLOAT) {
        constexpr int E = T::AT_ONCE;
#pragma unroll
        for (int i = 0; i < 32; i += E) {
            float some[E] = {};
            // rows are padded to 16 bytes: a load that begins inside stays inside
            if (32 * part + i < n) T::some(row, 32 * part + i, some);
#pragma unroll
            for (int k = 0; k < E; k++) out[i + k] = 32 * part + i + k < n ? some[k] : 0.0f;
        }
    } else {
        static_assert(T::BLOCK == 32 && T::RUN == 32, "rows of a cache have blocks of 32");
        const auto f = T::decode(row, n / 32, part >> 3, part & 7);
#pragma unroll
        for (int i = 0; i < 32; i++) {
            const float x = f.scale[0] * float(int(int8_t(f.code[i / 4] >> (8 * (i & 3)))));
            out[i] = T::MINS == Mins::NONE ? x : x - f.min[0];
        }
    }
}

// A warp stores 32 elements of a row, one per lane (`in`: whether the row has that element).
IKQ_DEV void store_part(f32, uint8_t *row, int, int part, float x, bool in) {
    if (in) reinterpret_cast<float *>(row)[32 * part + (threadIdx.x & 31)] = x;
}
IKQ_DEV void store_part(f16, uint8_t *row, int, int part, float x, bool in) {
    if (in) reinterpret_cast<uint16_t *>(row)[32 * part + (threadIdx.x & 31)] = f2h(x);
}
IKQ_DEV void store_part(bf16, uint8_t *row, int, int part, float x, bool in) {
    if (in) reinterpret_cast<uint16_t *>(row)[32 * part + (threadIdx.x & 31)] = f2bf(x);
}
IKQ_DEV void store_part(q8_0, uint8_t *row, int n, int part, float x, bool) {
    const float most = warp_max(fabsf(x)), d = most / 127.0f;
    const float inverse = most > 1e-30f ? 127.0f / most : 0.0f;
    row[32 * part + (threadIdx.x & 31)] = uint8_t(__float2int_rn(x * inverse));
    if ((threadIdx.x & 31) == 0) reinterpret_cast<uint16_t *>(row + n)[part] = f2h(d);
}
// the element of largest magnitude becomes code 0, which stands for -8
IKQ_DEV void store_part(q4_0, uint8_t *row, int n, int part, float x, bool) {
    const int lane = threadIdx.x & 31;
    const float high = warp_max(x), low = -warp_max(-x);
    const float d = (high > -low ? high : low) / -8.0f;
    const float inverse = fabsf(d) > 1e-30f ? 1.0f / d : 0.0f;
    int code = __float2int_rn(x * inverse) + 8;
    code = code < 0 ? 0 : code > 15 ? 15 : code;
    const int upper = __shfl_xor_sync(ALL_LANES, code, 16);
    if (lane < 16) row[16 * part + lane] = uint8_t(code | upper << 4);
    if (lane == 0) reinterpret_cast<uint16_t *>(row + n / 2)[part] = f2h(d);
}
