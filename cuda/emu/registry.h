/* The interface between the CPU emulator and the code that launches kernels in it (the stand-in driver, tests).
 *
 * A module is a shared object made of one or more kernel sources compiled with -DIKQ_EMU and of emu.cpp.
 * It exports only the functions below, so two modules can be loaded side by side (RTLD_LOCAL). Kernels
 * have the same names as in a cubin. A module is built with:
 *
 *   g++ -std=c++17 -O2 -ffp-contract=off -fPIC -shared -fvisibility=hidden -DIKQ_EMU -I cuda \
 *       -x c++ KERNEL.cu -D... -x c++ cuda/emu/emu.cpp -o MODULE.so
 *
 * A module runs one kernel at a time: calls of ikq_emu_launch must not overlap. */
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

/* The results of ikq_emu_launch, which are numbered like CUresult. */
enum { IKQ_EMU_OK = 0, IKQ_EMU_INVALID_VALUE = 1, IKQ_EMU_LAUNCH_FAILED = 719 };

/* The kernel of this name, or NULL if there is none. */
IKQ_EMU_EXPORT const ikq_emu_kernel *ikq_emu_find(const char *name);
/* Kernel number i of the module, or NULL if there are fewer. */
IKQ_EMU_EXPORT const ikq_emu_kernel *ikq_emu_at(size_t i);
IKQ_EMU_EXPORT const char *ikq_emu_name(const ikq_emu_kernel *);
/* The number of parameters, and the size of parameter i in bytes. A caller that launches later copies the arguments
 * with them. */
IKQ_EMU_EXPORT size_t ikq_emu_n_args(const ikq_emu_kernel *);
IKQ_EMU_EXPORT size_t ikq_emu_arg_bytes(const ikq_emu_kernel *, size_t i);
/* The largest number of threads that a block may have (__launch_bounds__). */
IKQ_EMU_EXPORT unsigned ikq_emu_max_threads(const ikq_emu_kernel *);

/* Runs a kernel to its end. args[i] points to parameter i, as for cuLaunchKernel. Returns IKQ_EMU_INVALID_VALUE for
 * a launch that a driver would refuse (empty grid, too many threads, too much shared memory). After an error in the
 * kernel (a collective operation or a barrier that not all threads reach), it prints a message to stderr and
 * returns IKQ_EMU_LAUNCH_FAILED. */
IKQ_EMU_EXPORT int ikq_emu_launch(const ikq_emu_kernel *, ikq_emu_dim3 grid, ikq_emu_dim3 block,
                                  size_t dynamic_shared_bytes, void **args);

/* Sets the order in which the threads of a block and the blocks of a grid run: 0 is ascending, 1 descending, and any
 * other number is the seed of a random order. */
IKQ_EMU_EXPORT void ikq_emu_set_order(unsigned order);

#ifdef __cplusplus
}
#endif
#endif
