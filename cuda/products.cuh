// Dot products of one row of weights with up to C columns, computed by a warp. All matrix-vector kernels are made of
// them.
//
// Quantized columns are stored in two arrays (activations.cu): n int8 codes per column, and a float2 per 32 codes,
// which is their scale and the scale times their sum. The latter is for types with mins. n is a multiple of 32 then.
// For float weights, columns are floats.
#pragma once
#include "rows.cuh"
#include "types/all.cuh"

struct Columns {
    const void *x;     // int8 codes, or floats for float weights
    const float2 *ds;  // not read for float weights
    int n;             // number of elements of a column
};

// Where C columns begin, in elements. If there are only `count`, the last one stands for those that are missing.
template <int C> IKQ_DEV void column_offsets(int n, int count, int (&offset)[C]) {
#pragma unroll
    for (int c = 0; c < C; c++) offset[c] = n * (c < count ? c : count - 1);
}
IKQ_DEV Columns columns_from(const void *x, const float2 *ds, int n, int64_t first, bool floats) {
    return {static_cast<const int8_t *>(x) + first * n * (floats ? 4 : 1), floats ? ds : ds + first * (n / 32), n};
}

// Loads N neighbouring codes as words of four; N is 8 or a multiple of 16.
template <int N> IKQ_DEV void load_codes(const int8_t *p, int (&word)[N / 4]) {
    if constexpr (N == 8) {
        const uint2 w = load_8(p);
        word[0] = int(w.x);
        word[1] = int(w.y);
    } else {
#pragma unroll
        for (int i = 0; i < N / 16; i++) {
            const uint4 w = load_16(p + 16 * i);
            word[4 * i] = int(w.x);
            word[4 * i + 1] = int(w.y);
            word[4 * i + 2] = int(w.z);
            word[4 * i + 3] = int(w.w);
        }
    }
}

// Adds the products of the 32 elements of unit u that this lane decodes (types/form.cuh).
template <class T, int C>
IKQ_DEV void add_fragment(const typename T::Result &f, const Columns &x, const int (&offset)[C], int u, int l,
                          float (&sum)[C]) {
    constexpr int RUN = T::RUN;
#pragma unroll
    for (int c = 0; c < C; c++) {
#pragma unroll
        for (int r = 0; r < 32 / RUN; r++) {
            const unsigned at = unsigned(offset[c] + 256 * u + T::at(l, r));
            int codes[RUN / 4];
            load_codes<RUN>(static_cast<const int8_t *>(x.x) + at, codes);
            const uint2 raw = load_8(x.ds + (at >> 5));
            const float d = __int_as_float(int(raw.x)), ds = __int_as_float(int(raw.y));
            int dot = 0;
#pragma unroll
            for (int i = 0; i < RUN / 4; i++) dot = __dp4a(f.code[r * RUN / 4 + i], codes[i], dot);
            sum[c] += f.scale[r] * d * float(dot);
            if constexpr (T::MINS == Mins::WHOLE) {
                // the stored sum is that of all 32 elements, so only the run with the first of them subtracts
                if (RUN == 32 || (T::at(l, r) & 31) == 0) sum[c] -= f.min[r] * ds;
            }
            if constexpr (T::MINS == Mins::RUNS) {
                int total = 0;
#pragma unroll
                for (int i = 0; i < RUN / 4; i++) total = __dp4a(0x01010101, codes[i], total);
                sum[c] -= f.min[r] * d * float(total);
            }
        }
    }
}

// Adds the lane's share of the products of a row of floats.
template <class T, int C>
IKQ_DEV void add_floats(const uint8_t *row, const Columns &x, const int (&offset)[C], int lane, float (&sum)[C]) {
    constexpr int E = T::AT_ONCE;
    const float *columns = static_cast<const float *>(x.x);
    if (x.n % E == 0) {
        for (int i = E * lane; i < x.n; i += 32 * E) {
            float w[E];
            T::some(row, i, w);
#pragma unroll
            for (int c = 0; c < C; c++)
#pragma unroll
                for (int k = 0; k < E; k += 4) {
                    float v[4];
                    f32::some(reinterpret_cast<const uint8_t *>(columns + offset[c]), i + k, v);
#pragma unroll
                    for (int j = 0; j < 4; j++) sum[c] += w[k + j] * v[j];
                }
        }
    } else {
        for (int i = lane; i < x.n; i += 32) {
            const float w = T::one(row, i);
#pragma unroll
            for (int c = 0; c < C; c++) sum[c] += w * load_f32(columns + offset[c] + i);
        }
    }
}

// The products of a row in device form and C columns; all lanes of the warp get them.
template <class T, int C>
IKQ_DEV void row_products(const uint8_t *row, const Columns &x, const int (&offset)[C], float (&sum)[C]) {
    const int lane = threadIdx.x & 31;
#pragma unroll
    for (int c = 0; c < C; c++) sum[c] = 0.0f;
    if constexpr (T::FLOAT) {
        add_floats<T>(row, x, offset, lane, sum);
    } else {
        const int l = lane & 7;
        for (int u = lane >> 3; 256 * u < x.n; u += 4)
            if (has_fragment<T>(u, l, x.n)) add_fragment<T>(T::decode(row, x.n / T::BLOCK, u, l), x, offset, u, l, sum);
    }
#pragma unroll
    for (int c = 0; c < C; c++) sum[c] = warp_sum(sum[c]) * T::FACTOR;
}
