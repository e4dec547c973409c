// Products of weights that are floats (-DIKQ_TYPE=f32, f16 or bf16) and many columns on tensor cores: y = w x + bias + residual.
//
//   mmf_T(w, expert_bytes, bounds, list, n_experts, k, x, bias, residual, y, n_rows, n, n_columns, y_stride)
//       grid (ceil(n_rows / 64), tiles of columns), block 128. A tile has 64 columns; it needs sm_80.
//   w             rows of n floats (types/floats.cuh)
//   x             n floats of each column
//   the others    as in mmq.cu
//
// Tensor cores multiply floats of eleven bits (tf32). A float is the sum of two such, its nearest and what is left, up to
// 2^-21 of it. Weights of f16 and bf16 are exact in one. So a product of two floats is the sum of two (f32: three) products; what
// is left out is at most 2^-19 of its size. Results have the same bits whatever other columns there are.
#include "groups.cuh"
#include "names.cuh"
#include "types/all.cuh"
#include "rows.cuh"

#ifndef IKQ_ONCE_MMF
#define IKQ_ONCE_MMF
constexpr int SIDE = 64;                // rows and columns of a tile
constexpr int DEPTH = 32, PITCH = 36;   // elements of a step; floats from row to row in shared memory, so that lanes meet no bank
constexpr int EACH = SIDE * DEPTH / 128; // elements of a step that a thread fetches

// Elements `at` to `at` + 15 of a row of n; zeros behind its end.
template <class T> IKQ_DEV void fetch_floats(const uint8_t *row, int n, int at, float (&out)[EACH]) {
    if (n % T::AT_ONCE == 0) {
#pragma unroll
        for (int i = 0; i < EACH; i += T::AT_ONCE) {
            float some[T::AT_ONCE] = {};
            if (at + i < n) T::some(row, at + i, some);
#pragma unroll
            for (int k = 0; k < T::AT_ONCE; k++) out[i + k] = some[k];
        }
    } else {
#pragma unroll
        for (int i = 0; i < EACH; i++) out[i] = at + i < n ? T::one(row, at + i) : 0.0f;
    }
}

IKQ_DEV void store_floats(const float (&from)[EACH], float *to) {
#pragma unroll
    for (int i = 0; i < EACH; i += 4) *reinterpret_cast<float4 *>(to + i) = {from[i], from[i + 1], from[i + 2], from[i + 3]};
}

// The nearest float of eleven bits, and what is left; tensor cores ignore the lower bits of the latter.
IKQ_DEV void in_two(float x, uint32_t &high, uint32_t &low) {
    high = (uint32_t(__float_as_int(x)) + 0x1000u) & 0xffffe000u;
    low = uint32_t(__float_as_int(x - __int_as_float(int(high))));
}

template <class T>
IKQ_DEV void mmf(const uint8_t *w, int64_t expert_bytes, const int *bounds, const int *list, int n_experts, int k,
                 const float *x, const float *bias, const float *residual, float *y, int n_rows, int n, int n_columns,
                 int64_t y_stride) {
    constexpr bool EXACT = T::AT_ONCE == 8; // two bytes: at most eleven bits
    IKQ_SHARED(float, weights, SIDE *PITCH);
    IKQ_SHARED(float, columns, SIDE *PITCH);
    const Group group = bounds ? group_of_tile<SIDE>(bounds, n_experts, int(blockIdx.y))
                               : group_of_matrix<SIDE>(n_columns, int(blockIdx.y));
    if (group.count <= 0) return; // the whole block
    // what this thread fetches: half of a step of a row, and of a column. Those that are missing are the last one.
    const int own = threadIdx.x >> 1, half = EACH * int(threadIdx.x & 1);
    const int first_row = SIDE * int(blockIdx.x), row = first_row + own < n_rows ? first_row + own : n_rows - 1;
    const int in_list = group.first + (own < group.count ? own : group.count - 1);
    const int64_t column = bounds ? unsigned(list[in_list]) / unsigned(k) : unsigned(in_list);
    const uint8_t *const at_row = w + group.expert * expert_bytes + row * row_bytes<T>(n);
    const uint8_t *const at_column = reinterpret_cast<const uint8_t *>(x + column * n);
    float *const to_weights = weights + PITCH * own + half, *const to_columns = columns + PITCH * own + half;

    // a warp has 32 rows and 32 columns
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
    const float *const a_of_lane = weights + PITCH * (32 * (warp >> 1) + g) + t;
    const float *const b_of_lane = columns + PITCH * (32 * (warp & 1) + g) + t;
    float sum[2][4][4] = {};
    float next_weights[EACH], next_columns[EACH];
    fetch_floats<T>(at_row, n, half, next_weights);
    fetch_floats<f32>(at_column, n, half, next_columns);
    for (int first = 0; first < n; first += DEPTH) {
        store_floats(next_weights, to_weights);
        store_floats(next_columns, to_columns);
        __syncthreads();
        if (first + DEPTH < n) {
            fetch_floats<T>(at_row, n, first + DEPTH + half, next_weights);
            fetch_floats<f32>(at_column, n, first + DEPTH + half, next_columns);
        }
#pragma unroll
        for (int e = 0; e < DEPTH; e += 8) {
            uint32_t a[2][4], a_low[2][4], b[4][2], b_low[4][2];
#pragma unroll
            for (int m = 0; m < 2; m++)
#pragma unroll
                for (int i = 0; i < 4; i++)
                    in_two(a_of_lane[PITCH * (16 * m + 8 * (i & 1)) + e + 4 * (i >> 1)], a[m][i], a_low[m][i]);
#pragma unroll
            for (int c = 0; c < 4; c++)
#pragma unroll
                for (int i = 0; i < 2; i++) in_two(b_of_lane[PITCH * 8 * c + e + 4 * i], b[c][i], b_low[c][i]);
#pragma unroll
            for (int m = 0; m < 2; m++)
#pragma unroll
                for (int c = 0; c < 4; c++) {
                    if (!EXACT) mma_tf32_k8(sum[m][c], a_low[m], b[c]);
                    mma_tf32_k8(sum[m][c], a[m], b_low[c]);
                    mma_tf32_k8(sum[m][c], a[m], b[c]);
                }
        }
        // nobody reads the step any more
        __syncthreads();
    }
#pragma unroll
    for (int c = 0; c < 4; c++)
#pragma unroll
        for (int side = 0; side < 2; side++) {
            const int of_tile = 32 * (warp & 1) + 8 * c + 2 * t + side;
            if (of_tile >= group.count) continue;
            const int64_t to = (bounds ? list[group.first + of_tile] : group.first + of_tile) * y_stride;
#pragma unroll
            for (int m = 0; m < 2; m++)
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    const int r = first_row + 32 * (warp >> 1) + 16 * m + 8 * h + g;
                    if (r >= n_rows) continue;
                    float result = sum[m][c][2 * h + side];
                    if (bias) result += bias[int64_t(group.expert) * n_rows + r];
                    y[to + r] = result + (residual ? residual[to + r] : 0.0f);
                }
        }
}
#endif

IKQ_KERNEL(128, IKQ_NAME_2(mmf, IKQ_TYPE),
           (const uint8_t *w, int64_t expert_bytes, const int *bounds, const int *list, int n_experts, int k, const float *x,
            const float *bias, const float *residual, float *y, int n_rows, int n, int n_columns, int64_t y_stride)) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
    mmf<IKQ_TYPE>(w, expert_bytes, bounds, list, n_experts, k, x, bias, residual, y, n_rows, n, n_columns, y_stride);
#endif
}
