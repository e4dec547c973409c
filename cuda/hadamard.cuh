// Turns rows by a Hadamard matrix with fixed signs, which spreads a few large elements over all: caches of few bits hold
// rows that are turned. Scores do not change when queries and keys are turned alike; the result of turned values is
// turned back.
//
//   x' = H D x     H = Walsh-Hadamard / sqrt(n), D = the signs;  back: x = D H x'
//
// It is the turn of the CPU's caches: with the same runs and the same signs.
#pragma once
#include "ikq_dev.cuh"

// How rows are cut: elements before `n_first` are turned in runs of `first`, those from there on in runs of `rest`. Runs
// are powers of two from 16 on; the parts are whole runs.
struct Runs {
    int n_first, first, rest;
};

// The factor of element i: its sign, a bit of a fixed sequence without pattern, over the root of its run's length.
IKQ_DEV float turn_factor(int i, int run) {
    uint32_t x = (uint32_t(i) + 1) * 0x9e3779b9u;
    x = (x ^ x >> 15) * 0x2c1b3c6du;
    const float size = 1.0f / sqrtf(float(run));
    return (x ^ x >> 12) & 1 ? -size : size;
}

// Turns the n elements of `row`, which is in shared memory and which all threads of the block have written, or turns it
// back. All threads of the block must take part, whole warps; all may read the result.
IKQ_DEV void turn_row(float *row, int n, Runs runs, bool back) {
    const int lane = threadIdx.x & 31;
    __syncthreads();
    for (int part = threadIdx.x >> 5; 32 * part < n; part += blockDim.x >> 5) {
        const int i = 32 * part + lane, run = i < runs.n_first ? runs.first : runs.rest;
        float x = i < n ? row[i] : 0.0f;
        if (!back) x *= turn_factor(i, run);
        // parts begin at multiples of 16, and where one does not begin at a multiple of 32 its runs have 16 elements
#pragma unroll
        for (int apart = 1; apart < 32; apart *= 2) {
            const float other = __shfl_xor_sync(ALL_LANES, x, apart);
            if (apart < run) x = lane & apart ? other - x : x + other;
        }
        if (i < n) row[i] = x;
    }
    const int longest = runs.first > runs.rest ? runs.first : runs.rest;
    for (int apart = 32; apart < longest; apart *= 2) {
        __syncthreads();
        for (int i = threadIdx.x; i < n; i += blockDim.x) {
            const bool before = i < runs.n_first;
            if (apart >= (before ? runs.first : runs.rest) || (before ? i : i - runs.n_first) & apart) continue;
            const float a = row[i], b = row[i + apart];
            row[i] = a + b;
            row[i + apart] = a - b;
        }
    }
    __syncthreads();
    if (!back) return;
    for (int i = threadIdx.x; i < n; i += blockDim.x)
        row[i] *= turn_factor(i, i < runs.n_first ? runs.first : runs.rest);
    __syncthreads();
}
