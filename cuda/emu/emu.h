// The part of CUDA that kernels use, for running them on the CPU: there is one fiber per CUDA thread, and blocks run
// one after another. Only ikq_dev.cuh includes this file. Overloads are as strict as those of NVRTC, so that code that
// compiles here compiles there, too.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <tuple>
#include <utility>
#include <vector>

struct dim3 {
    unsigned x, y, z;
};
struct alignas(8) int2 {
    int x, y;
};
struct alignas(16) int4 {
    int x, y, z, w;
};
struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};

namespace emu {

// An asynchronous copy of 16 bytes that has not landed yet.
struct Copy {
    void *to;
    const void *from;
    unsigned group;
};

// A CUDA thread; `self` is the running one, which the scheduler sets.
struct Thread {
    dim3 index;
    unsigned linear;
    std::vector<Copy> copies;
    unsigned group; // the one that the next copies belong to
};
extern Thread *self;
extern dim3 block_index, block_dim, grid_dim;

void block_barrier();
void warp_barrier();
// Each lane passes a word and gets the word of lane `source` of its warp.
uint64_t exchange(uint64_t word, unsigned source);
unsigned ballot(bool vote);
// Each lane shows some words to all lanes of its warp, which are done with them when they call all_have_seen.
constexpr int SLOT_WORDS = 12;
struct Slot {
    uint32_t words[SLOT_WORDS];
};
const Slot *show(const uint32_t (&words)[SLOT_WORDS]);
void all_have_seen();
// Ends the launch with an error.
void refuse(const char *why);
// The block's copy of a shared array, which `tag` identifies.
void *shared_array(const void *tag, size_t bytes);
void *dynamic_shared();
inline unsigned lane() { return self->linear & 31; }

template <class T> T shuffle(T value, unsigned source) {
    static_assert(sizeof(T) <= 8);
    uint64_t word = 0;
    std::memcpy(&word, &value, sizeof value);
    word = exchange(word, source);
    std::memcpy(&value, &word, sizeof value);
    return value;
}

inline unsigned permute(unsigned low, unsigned high, unsigned selector) {
    const uint64_t both = uint64_t(high) << 32 | low;
    unsigned out = 0;
    for (int i = 0; i < 4; i++) {
        const unsigned s = selector >> (4 * i) & 15;
        unsigned byte = unsigned(both >> (8 * (s & 7))) & 255;
        if (s & 8) byte = byte & 128 ? 255 : 0;
        out |= byte << (8 * i);
    }
    return out;
}

// a * b + c of halves, rounded once. The product is exact as a double. The sum may not be; it is rounded to odd, so that
// rounding it again gives what rounding once would.
inline uint16_t fma_half(uint16_t a, uint16_t b, uint16_t c) {
    _Float16 x, y, z;
    std::memcpy(&x, &a, 2);
    std::memcpy(&y, &b, 2);
    std::memcpy(&z, &c, 2);
    const double product = double(x) * double(y), addend = double(z);
    double sum = product + addend;
    const double other = sum - product, error = (product - (sum - other)) + (addend - other);
    uint64_t word;
    std::memcpy(&word, &sum, 8);
    if (std::isfinite(sum) && error != 0 && (word & 1) == 0) sum = std::nextafter(sum, error > 0 ? INFINITY : -INFINITY);
    const _Float16 rounded = _Float16(sum);
    uint16_t out;
    std::memcpy(&out, &rounded, 2);
    return out;
}

// A kernel in the module's table; `call` takes the pointers to its arguments that a launch passes.
struct Entry {
    const char *name;
    unsigned max_threads;
    size_t n_args;
    const size_t *arg_bytes;
    void (*call)(void **args);
    Entry(const char *name, unsigned max_threads, size_t n_args, const size_t *arg_bytes, void (*call)(void **));
};

template <auto F> struct Bound;
template <class... A, void (*F)(A...)> struct Bound<F> {
    static constexpr size_t bytes[] = {sizeof(A)..., 0};
    template <size_t... I> static void unpack(void **args, std::index_sequence<I...>) {
        F(*static_cast<A *>(args[I])...);
    }
    static void call(void **args) { unpack(args, std::index_sequence_for<A...>{}); }
    static Entry entry(const char *name, unsigned max_threads) {
        return {name, max_threads, sizeof...(A), bytes, call};
    }
};

} // namespace emu

#define threadIdx (emu::self->index)
#define blockIdx (emu::block_index)
#define blockDim (emu::block_dim)
#define gridDim (emu::grid_dim)
#define __syncthreads() emu::block_barrier()
#define __syncwarp() emu::warp_barrier()
#define __restrict__ __restrict

// Kernels must always pass the full mask, so masks are ignored; the scheduler detects lanes that do not take part.
template <class T> T __shfl_xor_sync(unsigned, T value, int mask) { return emu::shuffle(value, emu::lane() ^ unsigned(mask)); }
template <class T> T __shfl_sync(unsigned, T value, int source) { return emu::shuffle(value, unsigned(source) & 31); }
template <class T> T __shfl_up_sync(unsigned, T value, unsigned delta) {
    return emu::shuffle(value, emu::lane() < delta ? emu::lane() : emu::lane() - delta);
}
inline unsigned __ballot_sync(unsigned, int vote) { return emu::ballot(vote != 0); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __float_as_int(float x) {
    int i;
    std::memcpy(&i, &x, 4);
    return i;
}
inline float __int_as_float(int i) {
    float x;
    std::memcpy(&x, &i, 4);
    return x;
}
inline int __float2int_rn(float x) { return int(std::nearbyintf(x)); }

inline int __dp4a(int a, int b, int c) {
    for (int i = 0; i < 32; i += 8) c += int(int8_t(a >> i)) * int(int8_t(b >> i));
    return c;
}
int __dp4a(unsigned, unsigned, unsigned) = delete; // mixed calls are ambiguous for NVRTC, so kernels pass signed words

template <class T> T __ldg(const T *p) { return *p; }
inline int atomicAdd(int *p, int v) { return __atomic_fetch_add(p, v, __ATOMIC_RELAXED); }
inline double cospi(double x) { return std::cos(M_PI * std::remainder(x, 2.0)); }
inline double sinpi(double x) { return std::sin(M_PI * std::remainder(x, 2.0)); }
using std::max;
using std::min;
