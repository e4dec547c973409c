// Conversions of weights of one type (-DIKQ_TYPE): from the file's layout to the device form (types/form.cuh), and from
// the device form to floats.
//
//   repack_T(file, out, n_rows, n)        grid n_rows, block 128
//       file: rows as in the file (I2_S: all rows of the tensor, then its scale); out: n_rows rows in device form
//   dequant_T_f32/f16/bf16(w, rows, out, n)  grid number of rows wanted, block 128
//       w: rows in device form; rows: the numbers of the wanted rows (int32), or null for all rows in order; out: n
//       numbers per row
#include "names.cuh"
#include "repack.cuh"
#include "types/all.cuh"

#ifndef IKQ_ONCE_WEIGHTS
#define IKQ_ONCE_WEIGHTS
template <class T> struct HeaderElsewhere {
    static constexpr bool value = false;
};
template <> struct HeaderElsewhere<i2_s> {
    static constexpr bool value = true;
};

IKQ_DEV void put(float *out, int64_t i, float x) { out[i] = x; }
struct Half {
    uint16_t bits;
};
struct BFloat {
    uint16_t bits;
};
IKQ_DEV void put(Half *out, int64_t i, float x) { out[i].bits = f2h(x); }
IKQ_DEV void put(BFloat *out, int64_t i, float x) { out[i].bits = f2bf(x); }

template <class T, class Out>
IKQ_DEV void dequantize_row(const uint8_t *__restrict__ w, const int *rows, Out *__restrict__ out, int n) {
    const int64_t which = rows ? rows[blockIdx.x] : int(blockIdx.x);
    const uint8_t *row = w + which * row_bytes<T>(n);
    out += int64_t(blockIdx.x) * n;
    if constexpr (T::FLOAT) {
        for (int i = threadIdx.x; i < n; i += blockDim.x) put(out, i, T::one(row, i));
    } else {
        const int l = threadIdx.x & 7;
        for (int u = threadIdx.x >> 3; 256 * u < n; u += blockDim.x >> 3) {
            if (!has_fragment<T>(u, l, n)) continue;
            const auto f = T::decode(fields_of<T>(row, n, u), l);
#pragma unroll
            for (int r = 0; r < 32 / T::RUN; r++)
#pragma unroll
                for (int i = 0; i < T::RUN; i++) {
                    const int code = f.code[r * T::RUN / 4 + i / 4];
                    float x = scale_of(f, r) * float(int(int8_t(code >> (8 * (i & 3)))));
                    if constexpr (T::MINS != Mins::NONE) x -= f.min[r];
                    put(out, 256 * u + T::at(l, r) + i, x);
                }
        }
    }
}
#endif

IKQ_KERNEL(128, IKQ_NAME_2(repack, IKQ_TYPE), (const uint8_t *file, uint8_t *out, int n_rows, int n)) {
    using T = IKQ_TYPE;
    constexpr int header = T::Form::header_bytes, skipped = HeaderElsewhere<T>::value ? header : 0;
    const int64_t file_row = int64_t(n / T::BLOCK) * T::Form::block_bytes + header - skipped;
    const uint8_t *row = file + blockIdx.x * file_row;
    repack_row<T>(row, skipped ? file + n_rows * file_row : row, skipped, out + blockIdx.x * row_bytes<T>(n), n);
}

IKQ_KERNEL(128, IKQ_NAME_3(dequant, IKQ_TYPE, f32), (const uint8_t *w, const int *rows, float *out, int n)) {
    dequantize_row<IKQ_TYPE>(w, rows, out, n);
}
IKQ_KERNEL(128, IKQ_NAME_3(dequant, IKQ_TYPE, f16), (const uint8_t *w, const int *rows, Half *out, int n)) {
    dequantize_row<IKQ_TYPE>(w, rows, out, n);
}
IKQ_KERNEL(128, IKQ_NAME_3(dequant, IKQ_TYPE, bf16), (const uint8_t *w, const int *rows, BFloat *out, int n)) {
    dequantize_row<IKQ_TYPE>(w, rows, out, n);
}
