// The KV cache on the device. It consists of pages of 256 positions, laid out as [page][head][position], with one row
// for each; all rows are of one type. A slot is page * 256 + the position in the page. Rows are in device form
// (types/form.cuh). Floats and all types with blocks of 32 elements can be read. Types with a `store_part` below can be
// written, too, with codes rounded to the nearest.
#pragma once
#include "quantized.cuh"
#include "rows.cuh"
#include "types/all.cuh"

constexpr int PAGE = 256;

template <class T> IKQ_DEV uint8_t *cache_row(uint8_t *cache, int64_t slot, int head, int n_heads, int n) {
    return cache + (((slot / PAGE) * n_heads + head) * PAGE + slot % PAGE) * row_bytes<T>(n);
}

// Reads 32 elements of a row, from element 32 * part on; behind the end of the row they are zeros.
template <class T> IKQ_DEV void read_part(const uint8_t *row, int n, int part, float (&out)[32]) {
    if constexpr (T::FLOAT) {
        constexpr int E = T::AT_ONCE;
#pragma unroll
        for (int i = 0; i < 32; i += E) {
            float some[E] = {};
            // rows are padded to 16 bytes, so a load that begins inside a row ends inside it
            if (32 * part + i < n) T::some(row, 32 * part + i, some);
#pragma unroll
            for (int k = 0; k < E; k++) out[i + k] = 32 * part + i + k < n ? some[k] : 0.0f;
        }
    } else {
        static_assert(T::BLOCK == 32 && T::RUN == 32, "rows of a cache have blocks of 32");
        const auto f = T::decode(fields_of<T>(row, n, part >> 3), part & 7);
#pragma unroll
        for (int i = 0; i < 32; i++) {
            const float x = f.scale[0] * float(int(int8_t(f.code[i / 4] >> (8 * (i & 3)))));
            out[i] = T::MINS == Mins::NONE ? x : x - f.min[0];
        }
    }
}

// The part of the dot product of a row and a query that comes from 32 elements, from element 32 * part on. Floats are
// loaded in small pieces, because 32 at once would take registers that the sums of attention need.
template <class T> IKQ_DEV float score_part(const uint8_t *row, int n, int part, const float *query) {
    float score = 0.0f;
    if constexpr (T::FLOAT) {
        constexpr int E = T::AT_ONCE;
#pragma unroll 2
        for (int i = 32 * part; i < 32 * part + 32; i += E) {
            float some[E] = {};
            if (i < n) T::some(row, i, some);
#pragma unroll
            for (int k = 0; k < E; k++) score += i + k < n ? some[k] * query[i + k] : 0.0f;
        }
    } else {
        float x[32];
        read_part<T>(row, n, part, x);
#pragma unroll
        for (int i = 0; i < 32; i++) score += x[i] * query[32 * part + i];
    }
    return score;
}

// A warp stores 32 elements of a row, one per lane; `in` says whether the row has the lane's element.
IKQ_DEV void store_part(f32, uint8_t *row, int, int part, float x, bool in) {
    if (in) reinterpret_cast<float *>(row)[32 * part + (threadIdx.x & 31)] = x;
}
IKQ_DEV void store_part(f16, uint8_t *row, int, int part, float x, bool in) {
    if (in) reinterpret_cast<uint16_t *>(row)[32 * part + (threadIdx.x & 31)] = f2h(x);
}
IKQ_DEV void store_part(bf16, uint8_t *row, int, int part, float x, bool in) {
    if (in) reinterpret_cast<uint16_t *>(row)[32 * part + (threadIdx.x & 31)] = f2bf(x);
}
// The half-precision bits of a block's scale; NaN for a block that is not finite.
IKQ_DEV uint16_t scale_bits(float d, bool finite) { return finite ? f2h(d) : uint16_t(0x7e00); }
// The inverse of a scale, or 0 for scales close to zero, so that such blocks become zeros.
IKQ_DEV float inverse_of(float d) { return fabsf(d) > 1e-30f ? 1.0f / d : 0.0f; }
// The code nearest to x + offset, from 0 to `most`; 0 for a block that is not finite.
IKQ_DEV int code_of(float x, int offset, int most, bool finite) {
    const int code = finite ? __float2int_rn(x) + offset : 0;
    return code < 0 ? 0 : code > most ? most : code;
}
// The element of largest magnitude in the warp, with its sign.
IKQ_DEV float extreme(float x) {
    const float high = warp_max(x), low = -warp_max(-x);
    return high > -low ? high : low;
}
// Stores the low four bits of 32 codes: byte i has those of elements i and i + 16.
IKQ_DEV void store_nibbles(uint8_t *plane, int part, int code) {
    const int lane = threadIdx.x & 31, upper = __shfl_xor_sync(ALL_LANES, code, 16);
    if (lane < 16) plane[16 * part + lane] = uint8_t((code & 15) | (upper & 15) << 4);
}

IKQ_DEV void store_part(q8_0, uint8_t *row, int n, int part, float x, bool) {
    const bool finite = all_finite(x);
    const float d = (finite ? warp_max(fabsf(x)) : 0.0f) / 127.0f;
    row[32 * part + (threadIdx.x & 31)] = uint8_t(finite ? __float2int_rn(x * inverse_of(d)) : 0);
    if ((threadIdx.x & 31) == 0) reinterpret_cast<uint16_t *>(row + n)[part] = scale_bits(d, finite);
}
// the element of largest magnitude becomes code 0, which stands for -8
IKQ_DEV void store_part(q4_0, uint8_t *row, int n, int part, float x, bool) {
    const bool finite = all_finite(x);
    const float d = extreme(x) / -8.0f;
    store_nibbles(row, part, code_of(x * inverse_of(d), 8, 15, finite));
    if ((threadIdx.x & 31) == 0) reinterpret_cast<uint16_t *>(row + n / 2)[part] = scale_bits(d, finite);
}
IKQ_DEV void store_part(q4_1, uint8_t *row, int n, int part, float x, bool) {
    const bool finite = all_finite(x);
    const float least = -warp_max(-x), d = (warp_max(x) - least) / 15.0f;
    store_nibbles(row, part, code_of((x - least) * inverse_of(d), 0, 15, finite));
    if ((threadIdx.x & 31) == 0) {
        uint16_t *dm = reinterpret_cast<uint16_t *>(row + n / 2) + 2 * part;
        dm[0] = scale_bits(d, finite);
        dm[1] = scale_bits(least, finite);
    }
}
IKQ_DEV void store_part(q6_0, uint8_t *row, int n, int part, float x, bool) {
    const bool finite = all_finite(x);
    const float d = extreme(x) / -32.0f;
    const int lane = threadIdx.x & 31, code = code_of(x * inverse_of(d), 32, 63, finite);
    store_nibbles(row, part, code);
    // byte t has the upper two bits of elements t, t + 16, t + 8, t + 24
    int high = code >> 4 << (4 * (lane >> 3 & 1) + 2 * (lane >> 4));
    high |= __shfl_xor_sync(ALL_LANES, high, 16);
    high |= __shfl_xor_sync(ALL_LANES, high, 8);
    if (lane < 8) row[n / 2 + 8 * part + lane] = uint8_t(high);
    if (lane == 0) reinterpret_cast<uint16_t *>(row + n / 2 + n / 4)[part] = scale_bits(d, finite);
}
// the element of largest magnitude becomes code 0, which stands for -127
IKQ_DEV void store_part(iq4_nl, uint8_t *row, int n, int part, float x, bool) {
    const bool finite = all_finite(x);
    const float d = extreme(x) / -127.0f, y = x * inverse_of(d);
    // the code is the number of bounds below y; the bounds are the midpoints between neighbouring values
    constexpr float BOUNDS[15] = {-115.5f, -93.5f, -74.0f, -57.0f, -42.0f, -28.5f, -16.0f, -4.5f,
                                  7.0f,    19.0f,  31.5f,  45.5f,  61.0f,  79.0f,  101.0f};
    int code = 0;
#pragma unroll
    for (int i = 0; i < 15; i++) code += y > BOUNDS[i];
    store_nibbles(row, part, code);
    if ((threadIdx.x & 31) == 0) reinterpret_cast<uint16_t *>(row + n / 2)[part] = scale_bits(d, finite);
}
