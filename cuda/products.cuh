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

// A sum of a lane and the integer product of 32 elements whose activations have scale d. It is rounded once: kernels that
// add the same have the same bits.
IKQ_DEV float with_run(float sum, int product, float d) { return fmaf(d, float(product), sum); }

// The product of a row from the sum of its lanes.
template <class T> IKQ_DEV float scaled_by_row(float sum, const uint8_t *row, int n) {
    if constexpr (T::ROW_SCALE) sum *= T::row_scale(fields_of<T>(row, n, 0));
    return sum * T::FACTOR;
}

// Adds the products of the 32 elements that this lane decodes (types/form.cuh). `codes` and `ds` are where the first
// column has the first of them, and columns begin `offset` elements behind that.
template <class T, int C>
IKQ_DEV void add_fragment(const typename T::Result &f, const int8_t *x, const float2 *ds, const unsigned (&offset)[C],
                          int l, float (&sum)[C]) {
    constexpr int RUN = T::RUN;
    // runs are at the same distances for all lanes
    constexpr auto distance = [](int run) { return T::at(0, run); };
#pragma unroll
    for (int c = 0; c < C; c++) {
        float total = 0.0f;
        int so_far = 0; // in the current 32 activations
#pragma unroll
        for (int r = 0; r < 32 / RUN; r++) {
            int codes[RUN / 4];
            load_codes<RUN>(x + offset[c] + distance(r), codes);
            const uint2 raw = load_8(ds + (offset[c] >> 5) + (distance(r) >> 5));
            const float d = __int_as_float(int(raw.x)), d_sum = __int_as_float(int(raw.y));
            int dot = 0;
#pragma unroll
            for (int i = 0; i < RUN / 4; i++) dot = __dp4a(f.code[r * RUN / 4 + i], codes[i], dot);
            if constexpr (T::Result::INTEGERS) {
                so_far += f.scale[r] * dot;
                if constexpr (T::ROW_SCALE) {
                    static_assert(RUN == 32, "one scale for all activations with the same scale");
                    sum[c] = with_run(sum[c], so_far, d);
                } else if (r + 1 == 32 / RUN || distance(r) >> 5 != distance(r + 1) >> 5) {
                    total += d * float(so_far);
                    so_far = 0;
                }
            } else {
                sum[c] += f.scale[r] * d * float(dot);
            }
            if constexpr (T::MINS == Mins::WHOLE) {
                // the stored sum is that of all 32 elements, so only the run with the first of them subtracts
                if (RUN == 32 || (T::at(l, r) & 31) == 0) sum[c] -= f.min[r] * d_sum;
            }
            if constexpr (T::MINS == Mins::RUNS) {
                int ones = 0;
#pragma unroll
                for (int i = 0; i < RUN / 4; i++) ones = __dp4a(0x01010101, codes[i], ones);
                sum[c] -= f.min[r] * d * float(ones);
            }
        }
        if constexpr (T::Result::INTEGERS && !T::ROW_SCALE) sum[c] += f.d * total;
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

// The products of a row in device form and C columns; all lanes of the warp get them. The loop over units is unrolled
// UNROLL times, which shares its addresses and has more loads under way, but takes registers.
template <class T, int C, int UNROLL = C <= 2 ? 2 : 1>
IKQ_DEV void row_products(const uint8_t *row, const Columns &x, const int (&offset)[C], float (&sum)[C]) {
    const int lane = threadIdx.x & 31;
#pragma unroll
    for (int c = 0; c < C; c++) sum[c] = 0.0f;
    if constexpr (T::FLOAT) {
        add_floats<T>(row, x, offset, lane, sum);
    } else {
        const int l = lane & 7, first = 256 * (lane >> 3) + T::at(l, 0);
        unsigned from[C];
#pragma unroll
        for (int c = 0; c < C; c++) from[c] = unsigned(offset[c]);
        auto unit = fields_of<T>(row, x.n, lane >> 3);
        const int8_t *codes = static_cast<const int8_t *>(x.x) + first;
        const float2 *ds = x.ds + (first >> 5);
        constexpr int UNITS = 4; // of a warp at a time
#pragma unroll UNROLL
        for (int i = first; i < x.n; i += 256 * UNITS) {
            add_fragment<T>(T::decode(unit, l), codes, ds, from, l, sum);
            unit.skip(UNITS * 256 / T::BLOCK);
            codes += 256 * UNITS;
            ds += 8 * UNITS;
        }
    }
#pragma unroll
    for (int c = 0; c < C; c++) sum[c] = scaled_by_row<T>(warp_sum(sum[c]), row, x.n);
}
