// The device layer, the only file that depends on whether a kernel is compiled by NVRTC or for the CPU emulator.
//
// Kernels do not include CUDA headers; this file provides everything that they need beyond the language. No other
// kernel source has `asm`, `#ifdef IKQ_EMU` or keywords of a particular compiler.
#pragma once

#ifdef IKQ_EMU
#include "emu/emu.h"
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
