// A stand-in for cuBLAS, for tests without a GPU: products of bf16 with sums in double precision, rounded once, in the order
// of the stand-in driver's streams. It has only the functions that ikq calls, with only the values that ikq gives them, and
// is stricter than the library:
//
//   - A product needs a stream and a workspace of the caller's, settings for sums in full precision and no atomics.
//   - Operands must lie within allocations of the device, at multiples of 16 bytes, and so must their rows.
//   - While a graph is recorded, products are refused: ikq launches none there.
//   - With a beta of 0 the result's memory is not read, with 1 it must not be NaN.
//
// IKQ_STANDIN_CUBLAS plants an error: `short` leaves out the last element of sums, `now` does not wait for what was launched
// before, `fresh` takes every beta for 0. Products are told in the driver's log: `blas STREAM ROWS COLUMNS ELEMENTS`.
#include <dlfcn.h>

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>

#include "work.h"

namespace {

enum Status { SUCCESS = 0, NOT_INITIALIZED = 1, INVALID_VALUE = 7, EXECUTION_FAILED = 13, NOT_SUPPORTED = 15 };
enum { OP_N = 0, OP_T = 1, REAL_32F = 0, REAL_16BF = 14, COMPUTE_32F = 68, FULL_SUMS = 16, NO_ATOMICS = 0 };
constexpr uint64_t ALIGNMENT = 256, OPERAND = 16;

struct Handle {
    const ikq_standin_work *driver;
    void *stream = nullptr;
    bool workspace = false, full_sums = false, no_atomics = false;
};

// The stand-in driver, which is loaded already.
const ikq_standin_work *driver() {
    for (const char *name : {"libcuda.so", "libcuda.so.1"})
        if (void *library = dlopen(name, RTLD_NOW | RTLD_NOLOAD))
            if (void *offered = dlsym(library, "ikq_standin_work_of_driver"))
                return reinterpret_cast<const ikq_standin_work *(*)()>(offered)();
    return nullptr;
}

bool is_planted(const char *what) {
    const char *planted = getenv("IKQ_STANDIN_CUBLAS");
    return planted && strcmp(planted, what) == 0;
}

float of_bf16(uint16_t bits) {
    const uint32_t wide = uint32_t(bits) << 16;
    float x;
    memcpy(&x, &wide, sizeof x);
    return x;
}

} // namespace

#define API extern "C" __attribute__((visibility("default"))) int

API cublasGetProperty(int which, int *value) {
    const char *version = getenv("IKQ_STANDIN_CUBLAS_VERSION");
    int numbers[3] = {13, 1, 2};
    if (version) sscanf(version, "%d.%d.%d", &numbers[0], &numbers[1], &numbers[2]);
    if (which < 0 || which > 2) return INVALID_VALUE;
    return *value = numbers[which], SUCCESS;
}
extern "C" __attribute__((visibility("default"))) const char *cublasGetStatusString(int status) {
    static thread_local std::string text;
    return (text = "status " + std::to_string(status) + " of the stand-in cuBLAS").c_str();
}
API cublasCreate_v2(Handle **handle) {
    const ikq_standin_work *found = driver();
    if (!found || !found->has_context()) return NOT_INITIALIZED;
    return *handle = new Handle{found}, SUCCESS;
}
API cublasDestroy_v2(Handle *handle) { return delete handle, SUCCESS; }
API cublasSetStream_v2(Handle *handle, void *stream) {
    // the library forgets the workspace when it gets another stream
    return handle->stream = stream, handle->workspace = false, SUCCESS;
}
API cublasSetWorkspace_v2(Handle *handle, void *at, size_t bytes) {
    const auto address = reinterpret_cast<uint64_t>(at);
    if (address % ALIGNMENT || bytes < (4u << 20) || !handle->driver->is_device(address, bytes)) return INVALID_VALUE;
    return handle->workspace = true, SUCCESS;
}
API cublasSetMathMode(Handle *handle, int mode) { return handle->full_sums = mode == FULL_SUMS, SUCCESS; }
API cublasSetAtomicsMode(Handle *handle, int mode) { return handle->no_atomics = mode == NO_ATOMICS, SUCCESS; }
API cublasGemmEx(Handle *handle, int op_a, int op_b, int m, int n, int k, const void *alpha, const void *a, int type_a, int lda,
                 const void *b, int type_b, int ldb, const void *beta, void *c, int type_c, int ldc, int compute, int algorithm) {
    if (!handle->stream || !handle->workspace || !handle->full_sums || !handle->no_atomics) return NOT_INITIALIZED;
    if (op_a != OP_T || op_b != OP_N || type_a != REAL_16BF || type_b != REAL_16BF || type_c != REAL_32F ||
        compute != COMPUTE_32F || algorithm != -1)
        return NOT_SUPPORTED;
    if (m <= 0 || n <= 0 || k <= 0 || lda < k || ldb < k || ldc < m) return INVALID_VALUE;
    const auto place_a = reinterpret_cast<uint64_t>(a), place_b = reinterpret_cast<uint64_t>(b),
               place_c = reinterpret_cast<uint64_t>(c);
    if (place_a % OPERAND || place_b % OPERAND || place_c % sizeof(float) || lda * 2 % OPERAND || ldb * 2 % OPERAND)
        return INVALID_VALUE;
    const auto bytes = [](int columns, int stride, int used, size_t size) {
        return (size_t(columns - 1) * size_t(stride) + size_t(used)) * size;
    };
    if (!handle->driver->is_device(place_a, bytes(m, lda, k, 2)) || !handle->driver->is_device(place_b, bytes(n, ldb, k, 2)) ||
        !handle->driver->is_device(place_c, bytes(n, ldc, m, 4)))
        return INVALID_VALUE;
    if (handle->driver->is_recording(handle->stream)) return EXECUTION_FAILED;
    const float by = *static_cast<const float *>(alpha), old = *static_cast<const float *>(beta);
    const std::string told = std::to_string(m) + " " + std::to_string(n) + " " + std::to_string(k);
    const std::function<int()> work = [=] {
        const auto *w = static_cast<const uint16_t *>(a), *x = static_cast<const uint16_t *>(b);
        auto *y = static_cast<float *>(c);
        const int end = is_planted("short") ? k - 1 : k;
        for (int column = 0; column < n; column++)
            for (int row = 0; row < m; row++) {
                double sum = 0.0;
                for (int i = 0; i < end; i++)
                    sum += double(of_bf16(w[size_t(row) * lda + i])) * double(of_bf16(x[size_t(column) * ldb + i]));
                sum *= double(by);
                float &to = y[size_t(column) * ldc + row];
                if (old != 0.0f && !is_planted("fresh")) sum += double(old) * double(to);
                to = float(sum);
            }
        return 0;
    };
    if (is_planted("now")) return work(), SUCCESS;
    return handle->driver->enqueue(handle->stream, told.c_str(), work) ? EXECUTION_FAILED : SUCCESS;
}
