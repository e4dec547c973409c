/* The seam between the CPU emulator and whoever launches kernels in it (a stand-in driver, tests).
 *
 * A module is a shared object made of one or more kernel sources compiled with -DIKQ_EMU and of emu.cpp.
 * It exports the functions below and nothing else; two modules loaded side by side (RTLD_LOCAL) do not
 * meet. Kernels have the names that they have in a cubin. Built so:
 *
 *   g++ -std=c++17 -O2 -ffp-contract=off -fPIC -shared -fvisibility=hidden -DIKQ_EMU -I cuda \
 *       -x c++ KERNEL.cu -D... -x c++ cuda/emu/emu.cpp -o MODULE.so
 *
 * Kernels of one module run one at a time: calls of ikq_emu_launch must not overlap. */
#ifndef IKQ_EMU_REGISTRY_H
#define IKQ_EMU_REGISTRY_H
#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif
#define IKQ_EMU_EXPORT __attribute__((visibility("default")))

typedef struct ikq_emu_kernel ikq_emu_kernel;
typedef struct {
    unsigned x, y, z;
} ikq_emu_dim3;

/* What ikq_emu_launch says; the numbers are those of CUresult. */
enum { IKQ_EMU_OK = 0, IKQ_EMU_INVALID_VALUE = 1, IKQ_EMU_LAUNCH_FAILED = 719 };

/* The kernel of this name, or NULL. */
IKQ_EMU_EXPORT const ikq_emu_kernel *ikq_emu_find(const char *name);
/* Kernel number i of the module, or NULL behind the last. */
IKQ_EMU_EXPORT const ikq_emu_kernel *ikq_emu_at(size_t i);
IKQ_EMU_EXPORT const char *ikq_emu_name(const ikq_emu_kernel *);
/* Parameters, and the bytes of each: what a launch that runs later must keep a copy of. */
IKQ_EMU_EXPORT size_t ikq_emu_n_args(const ikq_emu_kernel *);
IKQ_EMU_EXPORT size_t ikq_emu_arg_bytes(const ikq_emu_kernel *, size_t i);
/* The most threads a block may have (__launch_bounds__). */
IKQ_EMU_EXPORT unsigned ikq_emu_max_threads(const ikq_emu_kernel *);

/* Runs a kernel to its end. args[i] points to parameter i, as for cuLaunchKernel. A launch that a driver
 * would refuse (empty grid, too many threads, too much shared memory) is IKQ_EMU_INVALID_VALUE. What a
 * device could not go on from (divergent collectives, a barrier that not all reach) is told on stderr and
 * is IKQ_EMU_LAUNCH_FAILED. */
IKQ_EMU_EXPORT int ikq_emu_launch(const ikq_emu_kernel *, ikq_emu_dim3 grid, ikq_emu_dim3 block,
                                  size_t dynamic_shared_bytes, void **args);

/* In which order threads of a block and blocks of a grid run: 0 ascending, 1 descending, else a seed. */
IKQ_EMU_EXPORT void ikq_emu_set_order(unsigned order);

#ifdef __cplusplus
}
#endif
#endif
