// What a GPU does at most, measured by kernels that do nothing else. Compiled by gpu_peaks.py; no part of the package.
//
//   peak_s8(turns, sums, clocks), peak_f16(turns, sums, clocks)     grid multiprocessors, block 512
//       Four warps of each scheduler multiply on tensor cores: a warp has CHAINS sums of 16 x 8, none of which waits for
//       another one, and adds REPEATS * CHAINS products of 16 x 8 x 32 codes, or 16 x 8 x 16 halves, in each turn.
//       sums      CHAINS * 4 numbers of each thread; all are `turns` times those of one turn
//       clocks    of each block, from its first product to the last one
//   peak_copy(from, to, n), peak_read(from, to, n)                  block 512
//       n blocks of 16 bytes are copied, or read; a thread's exclusive or of what it read is one of `to`.
#include "ikq_dev.cuh"

constexpr int CHAINS = 8, REPEATS = 4;

#ifdef IKQ_EMU
IKQ_DEV int64_t clock_now() { return 0; }
#else
IKQ_DEV int64_t clock_now() { return clock64(); }
#endif

// Bytes from 0 to 7 that differ between lanes: what tensor cores take in power hangs on the numbers.
IKQ_DEV uint32_t some_bytes(uint32_t i) { return (threadIdx.x * 0x9e3779b1u + i * 0x85ebca6bu) >> 3 & 0x07070707u; }
// Two halves from 1 to 1.75, of which sums of thousands are exact.
IKQ_DEV uint32_t some_halves(uint32_t i) { return 0x3c003c00u | (some_bytes(i) & 0x00030003u) << 8; }

IKQ_DEV void add(int (&sum)[4], const uint32_t *a, const uint32_t *b) { mma_s8_k32(sum, a, b, sum); }
IKQ_DEV void add(float (&sum)[4], const uint32_t *a, const uint32_t *b) { mma_f16_k16(sum, a, b); }

template <class N> IKQ_DEV void multiply(const uint32_t (&a)[4], const uint32_t (&b)[2], int turns, N *sums, int64_t *clocks) {
    N sum[CHAINS][4] = {};
    __syncthreads();
    const int64_t start = clock_now();
#pragma unroll 1
    for (int turn = 0; turn < turns; turn++)
#pragma unroll
        for (int i = 0; i < REPEATS; i++)
#pragma unroll
            for (int c = 0; c < CHAINS; c++) add(sum[c], a, b);
    __syncthreads();
    if (threadIdx.x == 0) clocks[blockIdx.x] = clock_now() - start;
    N *const to = sums + 4 * CHAINS * (int64_t(blockIdx.x) * blockDim.x + threadIdx.x);
#pragma unroll
    for (int c = 0; c < CHAINS; c++)
#pragma unroll
        for (int i = 0; i < 4; i++) to[4 * c + i] = sum[c][i];
}

IKQ_KERNEL(512, peak_s8, (int turns, int *sums, int64_t *clocks)) {
    const uint32_t a[4] = {some_bytes(0), some_bytes(1), some_bytes(2), some_bytes(3)}, b[2] = {some_bytes(4), some_bytes(5)};
    multiply(a, b, turns, sums, clocks);
}
IKQ_KERNEL(512, peak_f16, (int turns, float *sums, int64_t *clocks)) {
    const uint32_t a[4] = {some_halves(0), some_halves(1), some_halves(2), some_halves(3)}, b[2] = {some_halves(4), some_halves(5)};
    multiply(a, b, turns, sums, clocks);
}

constexpr int AT_ONCE = 4; // loads of a thread under way
IKQ_KERNEL(512, peak_copy, (const uint4 *from, uint4 *to, int64_t n)) {
    const int64_t all = int64_t(gridDim.x) * blockDim.x;
    for (int64_t at = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; at < n; at += AT_ONCE * all) {
        uint4 some[AT_ONCE];
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++)
            if (at + i * all < n) some[i] = load_16(from + at + i * all);
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++)
            if (at + i * all < n) to[at + i * all] = some[i];
    }
}
IKQ_KERNEL(512, peak_read, (const uint4 *from, uint4 *to, int64_t n)) {
    const int64_t all = int64_t(gridDim.x) * blockDim.x, first = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    uint4 found = {0u, 0u, 0u, 0u};
    for (int64_t at = first; at < n; at += AT_ONCE * all)
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++)
            if (at + i * all < n) {
                const uint4 some = load_16(from + at + i * all);
                found = {found.x ^ some.x, found.y ^ some.y, found.z ^ some.z, found.w ^ some.w};
            }
    to[first] = found;
}
