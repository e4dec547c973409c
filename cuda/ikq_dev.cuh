// The device layer, the only file that depends on whether a kernel is compiled by NVRTC or for the CPU emulator.
//
// Kernels do not include CUDA headers; this file provides everything that they need beyond the language. No other
// kernel source has `asm`, `#ifdef IKQ_EMU` or keywords of a particular compiler.
#pragma once

#ifdef IKQ_EMU
#include "emu/emu.h"
#include "emu/tensor.h"
#define IKQ_DEV static inline
#define IKQ_MEMBER static inline
#define IKQ_METHOD inline
// declares a read-only table
#define IKQ_CONST static const
// declares words that the compiler must keep in registers
#define IKQ_OPAQUE static const
// declares a kernel with at most `threads` threads per block; `args` are the parameters in parentheses
// (and `blocks` of them side by side on a multiprocessor)
#define IKQ_KERNEL(threads, name, args) IKQ_KERNEL_(threads, name, args)
#define IKQ_KERNEL_OF(threads, blocks, name, args) IKQ_KERNEL_(threads, name, args)
#define IKQ_KERNEL_(threads, name, args)                                                                              \
    static void name args;                                                                                            \
    static const emu::Entry entry_of_##name = emu::Bound<&name>::entry(#name, threads);                               \
    static void name args
// declares an array in the shared memory of the block
#define IKQ_SHARED(type, name, count)                                                                                 \
    static const char tag_of_##name = 0;                                                                              \
    type *const name = static_cast<type *>(emu::shared_array(&tag_of_##name, sizeof(type) * (count)))
#define IKQ_DYNAMIC_SHARED(type, name) type *const name = static_cast<type *>(emu::dynamic_shared())

IKQ_DEV float h2f(uint16_t h) {
    _Float16 f;
    std::memcpy(&f, &h, 2);
    return float(f);
}
IKQ_DEV uint16_t f2h(float x) {
    const _Float16 f = _Float16(x);
    uint16_t h;
    std::memcpy(&h, &f, 2);
    return h;
}
// Selects four of the eight bytes of low (0 to 3) and high (4 to 7). The lower three bits of nibble i of the selector
// say which one becomes byte i; if bit 3 is set, the result is 255 or 0 by the sign of that byte.
IKQ_DEV uint32_t permute(uint32_t low, uint32_t high, uint32_t selector) { return emu::permute(low, high, selector); }
// Any function of the bits of three words, bit by bit: LUT is its value for a = 0xf0, b = 0xcc and c = 0xaa.
template <unsigned LUT> IKQ_DEV uint32_t bitwise(uint32_t a, uint32_t b, uint32_t c) {
    uint32_t out = 0;
    for (unsigned i = 0; i < 8; i++)
        if (LUT >> i & 1) out |= (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c);
    return out;
}
// a * b + c for each of the two halves of words, rounded once
IKQ_DEV uint32_t fma_halves(uint32_t a, uint32_t b, uint32_t c) {
    uint32_t out = 0;
    for (int i = 0; i < 32; i += 16)
        out |= uint32_t(emu::fma_half(uint16_t(a >> i), uint16_t(b >> i), uint16_t(c >> i))) << i;
    return out;
}
// the GPU's fast exponential is an approximation; this one is exact
IKQ_DEV float fast_exp(float x) { return std::exp(x); }
IKQ_DEV float fast_exp2(float x) { return std::exp2(x); }
// two floats as halves, the first one in the lower half of the word
IKQ_DEV uint32_t halves_of(float low, float high) { return uint32_t(f2h(low)) | uint32_t(f2h(high)) << 16; }

// Tensor cores and asynchronous copies; emu/tensor.h says what they do.
template <int N> IKQ_DEV void load_matrices(const void *row, uint32_t (&out)[N]) { emu::load_matrices(row, out); }
IKQ_DEV void load_transposed(const void *row, uint32_t (&out)[4]) { emu::load_transposed(row, out); }
IKQ_DEV void mma_s8_k32(int (&d)[4], const uint32_t *a, const uint32_t *b, const int (&c)[4]) { emu::mma_s8<32>(d, a, b, c); }
IKQ_DEV void mma_s8_k16(int (&d)[4], const uint32_t *a, const uint32_t *b, const int (&c)[4]) { emu::mma_s8<16>(d, a, b, c); }
IKQ_DEV void mma_tf32_k8(float (&c)[4], const uint32_t *a, const uint32_t *b) { emu::mma_tf32(c, a, b); }
IKQ_DEV void mma_f16_k16(float (&c)[4], const uint32_t *a, const uint32_t *b) { emu::mma_f16(c, a, b); }
IKQ_DEV void copy_async_16(void *to, const void *from) { emu::copy_async(to, from); }
IKQ_DEV void copy_async_commit() { emu::commit_copies(); }
template <int N> IKQ_DEV void copy_async_wait() { emu::wait_for_copies<N>(); }

typedef uint64_t shared_t;
IKQ_DEV shared_t shared_address(const void *p) { return reinterpret_cast<shared_t>(p); }
IKQ_DEV uint4 load_shared_16(shared_t p) { return *reinterpret_cast<const uint4 *>(p); }
IKQ_DEV void store_shared_16(shared_t p, const uint4 &v) { *reinterpret_cast<uint4 *>(p) = v; }

#else // NVRTC, or nvcc when somebody inspects a single file

#ifdef __CUDACC_RTC__
typedef signed char int8_t;
typedef unsigned char uint8_t;
typedef short int16_t;
typedef unsigned short uint16_t;
typedef int int32_t;
typedef unsigned int uint32_t;
typedef long long int64_t;
typedef unsigned long long uint64_t;
#define INFINITY __int_as_float(0x7f800000)
#else
#include <stdint.h>
#endif
#define IKQ_DEV static __device__ __forceinline__
#define IKQ_MEMBER static __device__ __forceinline__
#define IKQ_METHOD __device__ __forceinline__
#define IKQ_CONST static __device__ const
#define IKQ_OPAQUE static __constant__
// requiring only one block per multiprocessor keeps ptxas from spilling registers to make more blocks fit
#define IKQ_KERNEL(threads, name, args) IKQ_KERNEL_OF(threads, 1, name, args)
#define IKQ_KERNEL_OF(threads, blocks, name, args) IKQ_KERNEL_(threads, blocks, name, args)
#define IKQ_KERNEL_(threads, blocks, name, args) extern "C" __global__ void __launch_bounds__(threads, blocks) name args
#define IKQ_SHARED(type, name, count) __shared__ __align__(16) type name[count]
#define IKQ_DYNAMIC_SHARED(type, name) extern __shared__ __align__(16) type name[]

IKQ_DEV float h2f(uint16_t h) {
    float f;
    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(h));
    return f;
}
IKQ_DEV uint16_t f2h(float x) {
    uint16_t h;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(x));
    return h;
}
// not __byte_perm, because it clears bit 3 of all nibbles first, which takes an additional instruction
IKQ_DEV uint32_t permute(uint32_t low, uint32_t high, uint32_t selector) {
    uint32_t out;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(out) : "r"(low), "r"(high), "r"(selector));
    return out;
}
// compilers find the single instruction that this is for some expressions only
template <unsigned LUT> IKQ_DEV uint32_t bitwise(uint32_t a, uint32_t b, uint32_t c) {
    uint32_t out;
    asm("lop3.b32 %0, %1, %2, %3, %4;" : "=r"(out) : "r"(a), "r"(b), "r"(c), "n"(LUT));
    return out;
}
IKQ_DEV uint32_t fma_halves(uint32_t a, uint32_t b, uint32_t c) {
    uint32_t out;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(out) : "r"(a), "r"(b), "r"(c));
    return out;
}
IKQ_DEV float fast_exp(float x) { return __expf(x); }
// 2^x to two units in the last place; results below the normal numbers are zeros
IKQ_DEV float fast_exp2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// Tensor cores (sm_75 and later) and asynchronous copies (sm_80 and later). Addresses of shared memory are those of
// its own address space, 32 bits. emu/tensor.h says which elements the registers of a lane have.
typedef uint32_t shared_t;
IKQ_DEV shared_t shared_address(const void *p) { return uint32_t(__cvta_generic_to_shared(p)); }
// Loads and stores at addresses of shared memory, which are multiples of their size.
IKQ_DEV uint4 load_shared_16(shared_t p) {
    uint4 v;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(p) : "memory");
    return v;
}
IKQ_DEV void store_shared_16(shared_t p, const uint4 &v) {
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(p), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
}

// Loads 2 or 4 matrices of eight rows of 16 bytes from shared memory; lanes 8 m to 8 m + 7 pass the rows of matrix m.
IKQ_DEV void load_matrices(const void *row, uint32_t (&out)[2]) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(out[0]), "=r"(out[1])
                 : "r"(shared_address(row))
                 : "memory");
}
IKQ_DEV void load_matrices(const void *row, uint32_t (&out)[4]) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// The same for four matrices of halves that are transposed on the way.
IKQ_DEV void load_transposed(const void *row, uint32_t (&out)[4]) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(shared_address(row))
                 : "memory");
}

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
// the registers of larger products are those of the smaller ones side by side
IKQ_DEV void mma_s8_8x8(int *d, uint32_t a, uint32_t b, const int *c) {
    asm("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0, %1}, {%2}, {%3}, {%4, %5};"
        : "=r"(d[0]), "=r"(d[1])
        : "r"(a), "r"(b), "r"(c[0]), "r"(c[1]));
}
IKQ_DEV void mma_s8_k16(int (&d)[4], const uint32_t *a, const uint32_t *b, const int (&c)[4]) {
    mma_s8_8x8(d, a[0], b[0], c);
    mma_s8_8x8(d + 2, a[1], b[0], c + 2);
}
IKQ_DEV void mma_s8_k32(int (&d)[4], const uint32_t *a, const uint32_t *b, const int (&c)[4]) {
    int half[4];
    mma_s8_k16(half, a, b, c);
    mma_s8_k16(d, a + 2, b + 1, half);
}
IKQ_DEV void mma_f16_k8(float (&c)[4], const uint32_t *a, uint32_t b) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(b));
}
IKQ_DEV void mma_f16_k16(float (&c)[4], const uint32_t *a, const uint32_t *b) {
    mma_f16_k8(c, a, b[0]);
    mma_f16_k8(c, a + 2, b[1]);
}
IKQ_DEV uint32_t halves_of(float low, float high) { return uint32_t(f2h(low)) | uint32_t(f2h(high)) << 16; }
IKQ_DEV void copy_async_16(void *to, const void *from) { *static_cast<uint4 *>(to) = *static_cast<const uint4 *>(from); }
IKQ_DEV void copy_async_commit() {}
template <int N> IKQ_DEV void copy_async_wait() {}
#else
IKQ_DEV void mma_s8_k32(int (&d)[4], const uint32_t *a, const uint32_t *b, const int (&c)[4]) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};"
        : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(c[0]), "r"(c[1]), "r"(c[2]), "r"(c[3]));
}
IKQ_DEV void mma_s8_k16(int (&d)[4], const uint32_t *a, const uint32_t *b, const int (&c)[4]) {
    asm("mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%7, %8, %9, %10};"
        : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(b[0]), "r"(c[0]), "r"(c[1]), "r"(c[2]), "r"(c[3]));
}
IKQ_DEV void mma_tf32_k8(float (&c)[4], const uint32_t *a, const uint32_t *b) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
IKQ_DEV void mma_f16_k16(float (&c)[4], const uint32_t *a, const uint32_t *b) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// two floats as halves, the first one in the lower half of the word
IKQ_DEV uint32_t halves_of(float low, float high) {
    uint32_t word;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    return word;
}
// Copies 16 bytes from global to shared memory; both addresses are multiples of 16.
IKQ_DEV void copy_async_16(void *to, const void *from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to)), "l"(from) : "memory");
}
IKQ_DEV void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most N groups of this thread's copies are under way. Other threads see what landed behind a barrier.
template <int N> IKQ_DEV void copy_async_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }
#endif
#endif

// bfloat16 is the upper half of a float; it is rounded to nearest even, and NaN stays NaN
IKQ_DEV float bf2f(uint16_t h) { return __int_as_float(int(uint32_t(h) << 16)); }
IKQ_DEV uint16_t f2bf(float x) {
    const uint32_t u = uint32_t(__float_as_int(x));
    if ((u & 0x7fffffffu) > 0x7f800000u) return uint16_t(u >> 16 | 64);
    return uint16_t((u + 0x7fffu + (u >> 16 & 1)) >> 16);
}

IKQ_DEV float not_a_number() { return __int_as_float(0x7fc00000); }

// Loads from read-only memory; p must be aligned to the number of bytes loaded.
IKQ_DEV uint32_t load_u8(const void *p) { return __ldg(static_cast<const unsigned char *>(p)); }
IKQ_DEV int load_s8(const void *p) { return __ldg(static_cast<const signed char *>(p)); }
IKQ_DEV uint32_t load_u16(const void *p) { return __ldg(static_cast<const unsigned short *>(p)); }
IKQ_DEV uint32_t load_u32(const void *p) { return __ldg(static_cast<const unsigned int *>(p)); }
IKQ_DEV uint2 load_8(const void *p) { return __ldg(static_cast<const uint2 *>(p)); }
IKQ_DEV uint4 load_16(const void *p) { return __ldg(static_cast<const uint4 *>(p)); }
IKQ_DEV float load_f32(const void *p) { return __ldg(static_cast<const float *>(p)); }
IKQ_DEV float load_half(const void *p) { return h2f(uint16_t(load_u16(p))); }

constexpr unsigned ALL_LANES = 0xffffffffu;

// A value that the compiler keeps in a register: where it has few left, it would compute addresses again in each turn of a
// loop. It cannot know what comes from a lane. All lanes of a warp must take part.
template <class V> IKQ_DEV V kept(V value) { return __shfl_sync(ALL_LANES, value, int(threadIdx.x & 31)); }

IKQ_DEV float warp_sum(float v) {
#pragma unroll
    for (int o = 16; o > 0; o >>= 1) v += __shfl_xor_sync(ALL_LANES, v, o);
    return v;
}
IKQ_DEV float warp_max(float v) {
#pragma unroll
    for (int o = 16; o > 0; o >>= 1) v = fmaxf(v, __shfl_xor_sync(ALL_LANES, v, o));
    return v;
}
IKQ_DEV int warp_sum(int v) {
#pragma unroll
    for (int o = 16; o > 0; o >>= 1) v += __shfl_xor_sync(ALL_LANES, v, o);
    return v;
}
// The sum of the lanes up to this one.
IKQ_DEV int warp_sum_up_to(int v) {
    const int lane = threadIdx.x & 31;
#pragma unroll
    for (unsigned o = 1; o < 32; o <<= 1) {
        const int other = __shfl_up_sync(ALL_LANES, v, o);
        if (lane >= int(o)) v += other;
    }
    return v;
}
struct LaneItem {
    int lane, number;
};
// Items stand one lane's behind the other's, each lane's `own` of them, and `before` in front of all: which lane has item
// `item`, and which of its items that is. The lane is -1 if the item is behind them all; `before` counts them then.
IKQ_DEV LaneItem item_of_lanes(int own, int item, int &before) {
    const int up_to = warp_sum_up_to(own);
    const unsigned behind = __ballot_sync(ALL_LANES, before + up_to > item);
    if (behind) {
        const int lane = __popc((behind & (0u - behind)) - 1u);
        return {lane, item - before - __shfl_sync(ALL_LANES, up_to - own, lane)};
    }
    before += __shfl_sync(ALL_LANES, up_to, 31);
    return {-1, 0};
}
