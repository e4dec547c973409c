// The emulator's scheduler: fibers, barriers, exchanges inside a warp, shared memory, and the module's table of
// kernels.
//
// This file is never compiled with a sanitizer that instruments memory accesses; under ThreadSanitizer
// (IKQ_TSAN) it tells the sanitizer about fibers and about the memory accesses that barriers order. Exchanges between
// lanes order no memory accesses.
#include "emu.h"
#include "registry.h"
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <vector>

#ifdef IKQ_TSAN
extern "C" {
void *__tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void *fiber);
void __tsan_switch_to_fiber(void *fiber, unsigned flags);
void *__tsan_get_current_fiber();
void __tsan_acquire(void *address);
void __tsan_release(void *address);
}
#else
static void *__tsan_create_fiber(unsigned) { return nullptr; }
static void __tsan_destroy_fiber(void *) {}
static void __tsan_switch_to_fiber(void *, unsigned) {}
static void *__tsan_get_current_fiber() { return nullptr; }
static void __tsan_acquire(void *) {}
static void __tsan_release(void *) {}
#endif
#ifdef IKQ_ASAN
extern "C" void __asan_poison_memory_region(const volatile void *address, size_t size);
extern "C" void __asan_unpoison_memory_region(const volatile void *address, size_t size);
#else
static void __asan_poison_memory_region(const volatile void *, size_t) {}
static void __asan_unpoison_memory_region(const volatile void *, size_t) {}
#endif

// Switches fibers: saves the callee-saved registers and the stack pointer in `save`, and continues the fiber whose
// stack pointer is `to`.
extern "C" void ikq_emu_switch(void **save, void *to);
#if !defined(__x86_64__)
#error "the emulator switches stacks with x86-64 instructions"
#endif
asm(R"(
.text
.hidden ikq_emu_switch
.globl ikq_emu_switch
.type ikq_emu_switch, @function
ikq_emu_switch:
    push %rbp
    push %rbx
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, (%rdi)
    mov %rsi, %rsp
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbx
    pop %rbp
    ret
.size ikq_emu_switch, .-ikq_emu_switch
)");

namespace emu {
namespace {

constexpr size_t STACK_BYTES = 64 * 1024;
// From one stack to the next: some lines of a cache more, as with a power of two all stacks would share a few of its sets.
constexpr size_t STACK_STRIDE = STACK_BYTES + 5 * 64;
constexpr unsigned MAX_THREADS = 1024;
constexpr size_t MAX_STATIC_SHARED = 48 * 1024, MAX_SHARED = 99 * 1024; // the smallest of all architectures: sm_120

struct Barrier {
    unsigned need = 0, arrived = 0, generation = 0;
    // the addresses identify the barrier to the sanitizer. There are two by turns: a thread that comes late out of a
    // barrier must not be ordered behind what others have done since, until the next one
    char order[2][8] = {};
};

struct Fiber : Thread {
    void *stack_pointer = nullptr;
    void *tsan = nullptr;
    const Barrier *waits_at = nullptr; // until its generation is another
    unsigned generation = 0;
    bool done = false;
    bool can_run() const { return !done && !(waits_at && waits_at->generation == generation); }
};

struct Shared {
    const void *tag;
    size_t bytes;
    unsigned char *data;
};
// Between the shared arrays of a block there are gaps that a kernel must not touch.
constexpr size_t GAP = 64, ARENA = MAX_STATIC_SHARED + 64 * GAP;

unsigned launch_order = 0;
std::vector<Entry> &table() {
    static std::vector<Entry> entries;
    return entries;
}

// The state of the launch that is running; there is only one at a time.
std::vector<Fiber> fibers;
std::vector<Barrier> warp_barriers;
Barrier the_block_barrier;
std::vector<uint64_t> words; // two per thread, for collectives by turns: the word that it passes to one
std::vector<Slot> slots;     // one per thread: the words that it shows to its warp
std::vector<Shared> shared;
alignas(256) unsigned char arena[ARENA];
size_t arena_used;
std::unique_ptr<unsigned char[]> dynamic;
size_t dynamic_bytes;
void *scheduler_stack, *scheduler_tsan;
void (*body)(void **);
void **body_args;
char launch_begin[8], thread_end[8];
bool failed;
unsigned long progress; // counts barriers passed and threads ended; it does not change in a deadlock

Fiber &running() { return *static_cast<Fiber *>(self); }

void give_way() {
    Fiber &f = running();
    __tsan_switch_to_fiber(scheduler_tsan, 1);
    ikq_emu_switch(&f.stack_pointer, scheduler_stack);
}

void thread_main() {
    __tsan_acquire(launch_begin);
    body(body_args);
    __tsan_release(thread_end);
    running().done = true;
    give_way();
    std::abort(); // not reached: a thread that ended is not run again
}

void open(Barrier &b) {
    b.arrived = 0;
    b.generation++;
    progress++;
}

template <bool ORDERS> void arrive(Barrier &b) {
    const unsigned generation = b.generation;
    if (ORDERS) __tsan_release(b.order[generation & 1]);
    if (++b.arrived == b.need)
        open(b);
    else {
        Fiber &f = running();
        f.waits_at = &b, f.generation = generation;
        give_way();
        f.waits_at = nullptr;
    }
    if (ORDERS) __tsan_acquire(b.order[generation & 1]);
}

void fail(const char *what, const Fiber &f) {
    if (!failed)
        std::fprintf(stderr, "emulator: %s (thread %u of block %u,%u,%u)\n", what, f.linear, block_index.x,
                     block_index.y, block_index.z);
    failed = true;
}

void make_ready(Fiber &f, unsigned i, char *stack) {
    f.linear = i;
    f.index = {i % block_dim.x, i / block_dim.x % block_dim.y, i / (block_dim.x * block_dim.y)};
    f.done = false;
    f.waits_at = nullptr;
    f.copies.clear();
    f.group = 0;
    __asan_unpoison_memory_region(stack, STACK_BYTES);
    void **top = reinterpret_cast<void **>((reinterpret_cast<uintptr_t>(stack) + STACK_BYTES) & ~uintptr_t(63));
    *--top = nullptr; // the return address of thread_main, which does not return
    *--top = reinterpret_cast<void *>(thread_main);
    for (int i = 0; i < 6; i++) *--top = nullptr;
    f.stack_pointer = top;
}

void ended(Fiber &f) {
    progress++;
    Barrier &warp = warp_barriers[f.linear / 32];
    if (warp.arrived) return fail("a thread ended while lanes of its warp wait at a collective", f);
    warp.need--;
    // threads that ended do not take part in __syncthreads any more
    if (--the_block_barrier.need && the_block_barrier.arrived == the_block_barrier.need) open(the_block_barrier);
}

void run_block(std::vector<unsigned> &order, char *stacks) {
    const unsigned n = unsigned(fibers.size());
    the_block_barrier = Barrier();
    the_block_barrier.need = n;
    for (unsigned w = 0; w < warp_barriers.size(); w++) {
        warp_barriers[w] = Barrier();
        warp_barriers[w].need = std::min(32u, n - 32 * w);
    }
    for (Shared &s : shared) std::memset(s.data, 0xff, s.bytes);
    if (dynamic_bytes) std::memset(dynamic.get(), 0xff, dynamic_bytes);
    for (unsigned i = 0; i < n; i++) make_ready(fibers[i], i, stacks + STACK_STRIDE * i);
    __tsan_release(launch_begin);
    for (unsigned left = n; left && !failed;) {
        const unsigned long before = progress;
        for (const unsigned i : order) {
            Fiber &f = fibers[i];
            if (!f.can_run()) continue;
            self = &f;
            __tsan_switch_to_fiber(f.tsan, 1);
            ikq_emu_switch(&scheduler_stack, f.stack_pointer);
            if (f.done) left--, ended(f);
            if (failed) return;
        }
        if (progress == before) {
            const auto waits = std::find_if(fibers.begin(), fibers.end(), [](const Fiber &f) { return !f.done; });
            return fail("no thread can go on: a barrier that not all reach", *waits);
        }
    }
    __tsan_acquire(thread_end);
}

} // namespace

Thread *self = nullptr;
dim3 block_index, block_dim, grid_dim;

Entry::Entry(const char *name, unsigned max_threads, size_t n_args, const size_t *arg_bytes, void (*call)(void **))
    : name(name), max_threads(max_threads), n_args(n_args), arg_bytes(arg_bytes), call(call) {
    table().push_back(*this);
}

void block_barrier() { arrive<true>(the_block_barrier); }
void warp_barrier() { arrive<true>(warp_barriers[self->linear / 32]); }

// The words of a warp's next collective. They are not those of the one before, which lanes may still have to read; all have
// read them when the next collective is over.
static uint64_t *next_words(const Barrier &warp) {
    return &words[(warp.generation & 1) * (words.size() / 2) + (self->linear & ~31u)];
}

uint64_t exchange(uint64_t word, unsigned source) {
    Barrier &warp = warp_barriers[self->linear / 32];
    uint64_t *of_lanes = next_words(warp);
    of_lanes[self->linear & 31] = word;
    arrive<false>(warp);
    return of_lanes[source & 31];
}

unsigned ballot(bool vote) {
    Barrier &warp = warp_barriers[self->linear / 32];
    uint64_t *of_lanes = next_words(warp);
    of_lanes[self->linear & 31] = vote;
    arrive<false>(warp);
    unsigned votes = 0;
    for (unsigned l = 0; l < 32; l++) votes |= unsigned(of_lanes[l] & 1) << l;
    return votes;
}

const Slot *show(const uint32_t (&mine)[SLOT_WORDS]) {
    std::memcpy(slots[self->linear].words, mine, sizeof mine);
    arrive<false>(warp_barriers[self->linear / 32]);
    return &slots[self->linear & ~31u];
}

void all_have_seen() { arrive<false>(warp_barriers[self->linear / 32]); }

void refuse(const char *why) {
    fail(why, running());
    give_way(); // does not return: the launch is over
}

void *shared_array(const void *tag, size_t bytes) {
    for (Shared &s : shared)
        if (s.tag == tag) return s.data;
    size_t of_block = dynamic_bytes + bytes;
    for (const Shared &s : shared) of_block += s.bytes;
    if (of_block > MAX_SHARED) refuse("more shared memory than a block may have");
    const size_t begin = arena_used + GAP;
    if (begin + bytes > ARENA) refuse("more static shared memory than a block may have");
    // nothing is written here, so that for the sanitizer it was the scheduler that initialized the array
    shared.push_back({tag, bytes, arena + begin});
    arena_used = (begin + bytes + GAP - 1) / GAP * GAP;
    __asan_unpoison_memory_region(arena + begin, bytes);
    return arena + begin;
}

void *dynamic_shared() { return dynamic.get(); }

} // namespace emu

using namespace emu;
struct ikq_emu_kernel : Entry {};

extern "C" {

const ikq_emu_kernel *ikq_emu_at(size_t i) {
    return i < table().size() ? static_cast<const ikq_emu_kernel *>(&table()[i]) : nullptr;
}

const ikq_emu_kernel *ikq_emu_find(const char *name) {
    for (const Entry &e : table())
        if (!std::strcmp(e.name, name)) return static_cast<const ikq_emu_kernel *>(&e);
    return nullptr;
}

const char *ikq_emu_name(const ikq_emu_kernel *k) { return k->name; }
size_t ikq_emu_n_args(const ikq_emu_kernel *k) { return k->n_args; }
size_t ikq_emu_arg_bytes(const ikq_emu_kernel *k, size_t i) { return i < k->n_args ? k->arg_bytes[i] : 0; }
unsigned ikq_emu_max_threads(const ikq_emu_kernel *k) { return k->max_threads; }
void ikq_emu_set_order(unsigned order) { launch_order = order; }

int ikq_emu_launch(const ikq_emu_kernel *kernel, ikq_emu_dim3 grid, ikq_emu_dim3 block, size_t dynamic_shared_bytes,
                   void **args) {
    const uint64_t n = uint64_t(block.x) * block.y * block.z;
    const bool grid_fits = grid.x && grid.y && grid.z && grid.y < 65536 && grid.z < 65536 && grid.x < 1u << 31;
    if (!kernel || !grid_fits || !n || n > std::min(MAX_THREADS, kernel->max_threads) || dynamic_shared_bytes > MAX_SHARED)
        return IKQ_EMU_INVALID_VALUE;
    grid_dim = {grid.x, grid.y, grid.z};
    block_dim = {block.x, block.y, block.z};
    body = kernel->call;
    body_args = args;
    failed = false;
    shared.clear();
    arena_used = 0;
    __asan_unpoison_memory_region(arena, ARENA);
    std::memset(arena, 0xff, ARENA);
    __asan_poison_memory_region(arena, ARENA);
    dynamic.reset(new unsigned char[dynamic_shared_bytes + 1]);
    dynamic_bytes = dynamic_shared_bytes;
    fibers.assign(n, Fiber());
    words.assign((n + 31) / 32 * 64, 0);
    slots.assign((n + 31) / 32 * 32, Slot());
    warp_barriers.assign((n + 31) / 32, Barrier());
    scheduler_tsan = __tsan_get_current_fiber();
    for (Fiber &f : fibers) f.tsan = __tsan_create_fiber(0);
    std::unique_ptr<char[]> stacks(new char[STACK_STRIDE * n]);

    std::vector<unsigned> threads(n);
    for (unsigned i = 0; i < n; i++) threads[i] = i;
    std::mt19937 random(launch_order);
    if (launch_order == 1) std::reverse(threads.begin(), threads.end());
    if (launch_order > 1) std::shuffle(threads.begin(), threads.end(), random);
    std::vector<uint64_t> blocks(uint64_t(grid.x) * grid.y * grid.z);
    for (uint64_t b = 0; b < blocks.size(); b++) blocks[b] = b;
    if (launch_order == 1) std::reverse(blocks.begin(), blocks.end());
    if (launch_order > 1) std::shuffle(blocks.begin(), blocks.end(), random);
    for (const uint64_t b : blocks) {
        if (failed) break;
        block_index = {unsigned(b % grid.x), unsigned(b / grid.x % grid.y), unsigned(b / grid.x / grid.y)};
        run_block(threads, stacks.get());
    }
    for (Fiber &f : fibers) __tsan_destroy_fiber(f.tsan);
    shared.clear();
    return failed ? IKQ_EMU_LAUNCH_FAILED : IKQ_EMU_OK;
}
}
