// Prepares the heads of queries, keys and values after their projections: applies the norm and RoPE, and stores them as
// floats or in the KV cache. It is compiled for a type of the cache (-DIKQ_TYPE).
//
//   heads_T(x, x_stride, head_stride, n_heads, n, weight, n_norm, eps, cos_sin, rot_at, n_rot, neox, y, y_stride, cache,
//           slots, n_first, first_run, rest_run)
//       grid (n_heads, columns), block 32
//   x         head h of column c is n floats (at most 1024) from x[c * x_stride + h * head_stride] on
//   weight    n_norm weights of an RMS norm over the first n_norm elements of each head; or null
//   cos_sin   n_rot floats per column (norm.cu, rope_table), which rotate n_rot elements from rot_at on; or null
//   neox      a rotated pair is elements i and i + n_rot / 2 if not 0, else two neighbours
//   y         [column][head], y_stride floats from head to head; or null. May be x if the strides are the same
//   cache     the KV cache (cache.cuh), or null
//   slots     the slot of each column in the cache; -1 stores nothing
//   n_first, first_run, rest_run    the parts and runs in which heads are turned at last (hadamard.cuh); first_run 0
//             means that they are not
#include "cache.cuh"
#include "hadamard.cuh"
#include "names.cuh"

#ifndef IKQ_ONCE_HEADS
#define IKQ_ONCE_HEADS
template <class T>
IKQ_DEV void heads(const float *x, int64_t x_stride, int head_stride, int n_heads, int n, const float *weight,
                   int n_norm, float eps, const float *cos_sin, int rot_at, int n_rot, int neox, float *y, int y_stride,
                   uint8_t *cache, const int *slots, Runs runs) {
    IKQ_SHARED(float, values, 1024);
    const int lane = threadIdx.x, head = blockIdx.x;
    const int64_t column = blockIdx.y;
    x += column * x_stride + int64_t(head) * head_stride;
    if (!weight) n_norm = 0;
    float squares = 0.0f;
    for (int i = lane; i < n_norm; i += 32) squares += x[i] * x[i];
    const float scale = weight ? 1.0f / sqrtf(warp_sum(squares) / float(n_norm) + eps) : 1.0f;
    for (int i = lane; i < n; i += 32) values[i] = i < n_norm ? x[i] * scale * weight[i] : x[i];
    __syncwarp();
    if (cos_sin) {
        const float *cosines = cos_sin + column * n_rot, *sines = cosines + n_rot / 2;
        float *turned = values + rot_at;
        for (int i = lane; i < n_rot / 2; i += 32) {
            const int a = neox ? i : 2 * i, b = neox ? i + n_rot / 2 : 2 * i + 1;
            const float u = turned[a], v = turned[b];
            turned[a] = u * cosines[i] - v * sines[i];
            turned[b] = u * sines[i] + v * cosines[i];
        }
        __syncwarp();
    }
    if (runs.first) turn_row(values, n, runs, false);
    if (y)
        for (int i = lane; i < n; i += 32) y[(column * n_heads + head) * y_stride + i] = values[i];
    const int slot = cache ? slots[column] : -1;
    if (slot >= 0) {
        uint8_t *row = cache_row<T>(cache, slot, head, n_heads, n);
        for (int part = 0; 32 * part < n; part++) {
            const int i = 32 * part + lane;
            store_part(T{}, row, n, part, i < n ? values[i] : 0.0f, i < n);
        }
    }
}
#endif

IKQ_KERNEL(32, IKQ_NAME_2(heads, IKQ_TYPE),
           (const float *x, int64_t x_stride, int head_stride, int n_heads, int n, const float *weight, int n_norm,
            float eps, const float *cos_sin, int rot_at, int n_rot, int neox, float *y, int y_stride, uint8_t *cache,
            const int *slots, int n_first, int first_run, int rest_run)) {
    heads<IKQ_TYPE>(x, x_stride, head_stride, n_heads, n, weight, n_norm, eps, cos_sin, rot_at, n_rot, neox, y, y_stride,
                    cache, slots, Runs{n_first, first_run, rest_run});
}
