// A stand-in for the CUDA driver library, for tests without a GPU: device memory is memory of this process, and
// kernels run in the emulator (../emu). It is stricter than a GPU in order to find mistakes:
//
//   - The work of a stream runs only when somebody waits for it, so results that are read too early are not there yet.
//     Copies from pageable memory read it at once, as the real driver does; copies from pinned memory read it later.
//   - Device memory is filled with 0xFF (NaN), and is followed by a page that cannot be accessed.
//   - Copies must lie within one allocation of the current context.
//   - While a thread records a graph, it must not wait for anything, nor allocate or free memory.
//   - A graph runs only while all memory that it was recorded with is there.
//   - After a kernel has failed, everything in its context fails.
//
// Environment variables set what it reports: IKQ_STANDIN_DEVICES (number of GPUs), _CUDA (version, 13000), _SM (compute
// capability, 90), _SHARED (bytes of shared memory that a block may ask for), _MEMORY (bytes), _USED (bytes of them that
// other programs have) and _INIT (what cuInit returns). _MEMORY and _USED may be lists, with a number for each GPU; the
// last holds for all further ones. It has only the functions that ikq calls.
//
// IKQ_STANDIN_ORDER is the order in which threads and blocks run: 0 ascending, 1 descending, else random from that seed on.
//
// The order in which streams run is free but for events. Streams of a context are numbered as they are made, those that
// were destroyed not counted; IKQ_STANDIN_EAGER=N has stream N run its work as soon as it gets it, so that it overtakes
// the others wherever no event keeps it back; IKQ_STANDIN_DEAF=N leaves out its waits for events. IKQ_STANDIN_LOG names a
// file, to which a line is written for all that streams get and that the host waits for; with IKQ_STANDIN_TIMES=1 it begins with the
// nanosecond at which the host asked for it, and the end of a wait is a line (`finished`), too.
#include <dlfcn.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include <elf.h>

#include "../emu/registry.h"
#include "work.h"

namespace {

enum Result {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NOT_INITIALIZED = 3,
    INVALID_DEVICE = 101,
    INVALID_IMAGE = 200,
    INVALID_CONTEXT = 201,
    NO_BINARY_FOR_GPU = 209,
    INVALID_HANDLE = 400,
    NOT_FOUND = 500,
    LAUNCH_OUT_OF_RESOURCES = 701,
    CAPTURE_UNSUPPORTED = 900,
    CAPTURE_INVALIDATED = 901,
    ILLEGAL_STATE = 401,
};

constexpr size_t PAGE = 4096, ALIGNMENT = 256;
constexpr unsigned USUAL_SHARED = 48 << 10, MOST_SHARED = 227 << 10;

long setting(const char *name, long otherwise) {
    const char *value = getenv(name);
    return value ? strtol(value, nullptr, 10) : otherwise;
}

// A device's number in a list that is joined by commas.
size_t setting_of(const char *name, int device, size_t otherwise) {
    const char *value = getenv(name);
    if (!value) return otherwise;
    for (; device > 0 && strchr(value, ','); device--) value = strchr(value, ',') + 1;
    return strtoull(value, nullptr, 10);
}

struct Context;
struct Allocation {
    Context *owner;
    size_t size;
    uint64_t id; // no two have the same, wherever they lie
    void *mapping;
    size_t mapped;
};
struct Context {
    int device = 0, retained = 0;
    size_t used = 0;
    int failed = SUCCESS;
};
using Work = std::function<int()>;
struct Pinned {
    size_t size;
    uint64_t id;
};
struct Graph {
    std::vector<Work> work;
    std::set<uint64_t> uses; // ids of allocations
};
struct Stream {
    Context *context;
    int number;
    std::deque<Work> queue;
    uint64_t queued = 0, done = 0;
    bool capturing = false, invalid = false, ended = false;
    Graph recorded;
};
struct Event {
    int number;
    Stream *stream = nullptr;
    uint64_t at = 0;
    std::chrono::steady_clock::time_point time;
};
struct Module {
    void *library;
    int file;
    decltype(&ikq_emu_find) find;
    decltype(&ikq_emu_launch) launch;
    decltype(&ikq_emu_n_args) n_args;
    decltype(&ikq_emu_arg_bytes) arg_bytes;
    decltype(&ikq_emu_max_threads) max_threads;
    decltype(&ikq_emu_set_order) set_order;
};
struct Function {
    Module *module;
    const ikq_emu_kernel *kernel;
    std::string name;
    unsigned shared = USUAL_SHARED;
};

std::recursive_mutex mutex;
bool initialized = false;
std::map<int, Context> contexts;
std::map<uint64_t, Allocation> allocations;
std::map<char *, Pinned> pinned;
uint64_t n_allocations = 0;
std::vector<Stream *> streams;
std::map<std::pair<Module *, const ikq_emu_kernel *>, Function> functions;
thread_local Context *current = nullptr;
thread_local Stream *capturing = nullptr;

int n_events = 0;

using Lock = std::lock_guard<std::recursive_mutex>;

int usable() {
    if (!initialized) return NOT_INITIALIZED;
    if (!current || !current->retained) return INVALID_CONTEXT;
    return current->failed;
}

// The check of functions that must not be called while this thread records a graph.
int waiting() {
    if (const int bad = usable()) return bad;
    if (!capturing) return SUCCESS;
    capturing->invalid = true;
    return CAPTURE_UNSUPPORTED;
}

// Writes a line, if somebody wants to read it.
template <class... T> void tell(const char *format, T... values) {
    static FILE *file = getenv("IKQ_STANDIN_LOG") ? fopen(getenv("IKQ_STANDIN_LOG"), "a") : nullptr;
    if (!file) return;
    const std::chrono::nanoseconds now = std::chrono::steady_clock::now().time_since_epoch();
    if (getenv("IKQ_STANDIN_TIMES")) fprintf(file, "%lld ", static_cast<long long>(now.count()));
    fprintf(file, format, values...), fflush(file);
}

// Runs the work of a stream up to number `until`.
int drain(Stream *stream, uint64_t until) {
    while (stream->done < until && !stream->queue.empty()) {
        Work work = std::move(stream->queue.front());
        stream->queue.pop_front();
        stream->done++;
        const int status = stream->context->failed ? stream->context->failed : work();
        if (status) stream->context->failed = status;
    }
    return stream->context->failed;
}

// The order of a launch's threads and blocks (emu/registry.h). A random one is another for each launch.
unsigned thread_order() {
    static unsigned n_launches = 0;
    const long order = setting("IKQ_STANDIN_ORDER", 0);
    return order < 2 ? unsigned(order) : unsigned(order) + n_launches++;
}

int drain_all(Context *context) {
    for (Stream *stream : streams)
        if (stream->context == context) drain(stream, stream->queued);
    return context->failed;
}

int enqueue(Stream *stream, Work work) {
    if (const int bad = usable()) return bad;
    if (!stream || stream->ended || stream->context != current) return INVALID_HANDLE;
    if (stream->capturing) {
        stream->recorded.work.push_back(std::move(work));
        return SUCCESS;
    }
    stream->queue.push_back(std::move(work));
    stream->queued++;
    // an error is found by whoever waits
    if (stream->number == setting("IKQ_STANDIN_EAGER", -1)) drain(stream, stream->queued);
    return SUCCESS;
}

// Whether `size` bytes from `address` on lie in one allocation of the current context.
bool is_device(uint64_t address, size_t size) {
    auto it = allocations.upper_bound(address);
    if (it == allocations.begin()) return false;
    --it;
    return it->second.owner == current && address + size <= it->first + it->second.size;
}

bool is_pinned(const void *pointer) {
    auto it = pinned.upper_bound(static_cast<char *>(const_cast<void *>(pointer)));
    if (it == pinned.begin()) return false;
    --it;
    return pointer < it->first + it->second.size;
}

// Notes the memory around an address (of a device, or pinned) for the graph that is being recorded.
void note(Stream *stream, uint64_t address) {
    if (!stream || !stream->capturing) return;
    if (auto it = allocations.upper_bound(address); it != allocations.begin() && address < (--it)->first + it->second.size)
        stream->recorded.uses.insert(it->second.id);
    char *pointer = reinterpret_cast<char *>(address);
    if (auto it = pinned.upper_bound(pointer); it != pinned.begin() && pointer < (--it)->first + it->second.size)
        stream->recorded.uses.insert(it->second.id);
}

// The size of a shared object, which ends with its table of sections.
size_t image_size(const void *image) {
    const auto *header = static_cast<const Elf64_Ehdr *>(image);
    if (memcmp(header->e_ident, ELFMAG, SELFMAG) != 0) return 0;
    return header->e_shoff + size_t(header->e_shnum) * header->e_shentsize;
}

template <class F> bool find(void *library, const char *name, F &f) {
    f = reinterpret_cast<F>(dlsym(library, name));
    return f != nullptr;
}

} // namespace

#define API extern "C" __attribute__((visibility("default"))) int

API cuInit(unsigned flags) {
    if (flags) return INVALID_VALUE;
    if (const int status = int(setting("IKQ_STANDIN_INIT", 0))) return status;
    Lock lock(mutex);
    initialized = true;
    return SUCCESS;
}
API cuDriverGetVersion(int *version) { return *version = int(setting("IKQ_STANDIN_CUDA", 13000)), SUCCESS; }
extern "C" __attribute__((visibility("default"))) int cuGetErrorString(int status, const char **text) {
    static thread_local std::string buffer;
    buffer = "error " + std::to_string(status) + " of the stand-in driver";
    *text = buffer.c_str();
    return SUCCESS;
}

// ---- devices and contexts

API cuDeviceGetCount(int *count) {
    if (!initialized) return NOT_INITIALIZED;
    return *count = int(setting("IKQ_STANDIN_DEVICES", 1)), SUCCESS;
}
API cuDeviceGet(int *device, int ordinal) {
    if (!initialized) return NOT_INITIALIZED;
    *device = ordinal;
    return ordinal >= 0 && ordinal < setting("IKQ_STANDIN_DEVICES", 1) ? SUCCESS : INVALID_DEVICE;
}
API cuDeviceGetName(char *name, int size, int device) {
    snprintf(name, size_t(size), "ikq emulator %d", device);
    return SUCCESS;
}
API cuDeviceTotalMem_v2(size_t *bytes, int device) {
    return *bytes = setting_of("IKQ_STANDIN_MEMORY", device, 1UL << 30), SUCCESS;
}
API cuDeviceGetAttribute(int *value, int attribute, int) {
    const int sm = int(setting("IKQ_STANDIN_SM", 90));
    switch (attribute) {
    case 16: *value = 4; break;               // multiprocessors
    case 75: *value = sm / 10; break;         // compute capability
    case 76: *value = sm % 10; break;
    case 97: *value = int(setting("IKQ_STANDIN_SHARED", MOST_SHARED)); break; // shared memory of a block, when asked for
    case 115: *value = 0; break;              // no memory pools
    default: return INVALID_VALUE;
    }
    return SUCCESS;
}
API cuDevicePrimaryCtxRetain(Context **context, int device) {
    Lock lock(mutex);
    Context &it = contexts[device];
    it.device = device;
    it.retained++;
    *context = &it;
    return SUCCESS;
}
API cuDevicePrimaryCtxRelease_v2(int device) {
    Lock lock(mutex);
    Context &it = contexts[device];
    if (it.retained == 0) return INVALID_CONTEXT;
    it.retained--;
    return SUCCESS;
}
API cuCtxSetCurrent(Context *context) { return current = context, SUCCESS; }
API cuCtxGetCurrent(Context **context) { return *context = current, SUCCESS; }
API cuCtxSynchronize() {
    Lock lock(mutex);
    if (const int bad = waiting()) return bad;
    return drain_all(current);
}

// ---- memory

API cuMemGetInfo_v2(size_t *free_bytes, size_t *total) {
    Lock lock(mutex);
    if (const int bad = usable()) return bad;
    cuDeviceTotalMem_v2(total, current->device);
    *free_bytes = *total - setting_of("IKQ_STANDIN_USED", current->device, 0) - current->used;
    return SUCCESS;
}
API cuMemAlloc_v2(uint64_t *address, size_t size) {
    Lock lock(mutex);
    if (const int bad = waiting()) return bad;
    if (size == 0) return INVALID_VALUE;
    size_t free_bytes, total;
    cuMemGetInfo_v2(&free_bytes, &total);
    if (size > free_bytes) return OUT_OF_MEMORY;
    // there are guard pages on both sides; the allocation ends as close to the second as alignment allows
    const size_t held = (size + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT, pages = (held + PAGE - 1) / PAGE * PAGE;
    const size_t mapped = pages + 2 * PAGE;
    void *mapping = mmap(nullptr, mapped, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapping == MAP_FAILED) return OUT_OF_MEMORY;
    char *inside = static_cast<char *>(mapping) + PAGE;
    if (mprotect(inside, pages, PROT_READ | PROT_WRITE)) return OUT_OF_MEMORY;
    memset(inside, 0xFF, pages);
    *address = reinterpret_cast<uint64_t>(inside + pages - held);
    allocations[*address] = {current, size, ++n_allocations, mapping, mapped};
    current->used += size;
    return SUCCESS;
}
API cuMemFree_v2(uint64_t address) {
    Lock lock(mutex);
    if (const int bad = waiting()) return bad;
    auto it = allocations.find(address);
    if (it == allocations.end() || it->second.owner != current) return INVALID_VALUE;
    drain_all(current);
    munmap(it->second.mapping, it->second.mapped);
    current->used -= it->second.size;
    allocations.erase(it);
    return SUCCESS;
}
API cuMemHostAlloc(void **pointer, size_t size, unsigned) {
    Lock lock(mutex);
    if (const int bad = waiting()) return bad;
    if (posix_memalign(pointer, PAGE, size ? size : 1)) return OUT_OF_MEMORY;
    memset(*pointer, 0xFF, size);
    pinned[static_cast<char *>(*pointer)] = {size, ++n_allocations};
    return SUCCESS;
}
API cuMemFreeHost(void *pointer) {
    Lock lock(mutex);
    if (const int bad = waiting()) return bad;
    if (!pinned.erase(static_cast<char *>(pointer))) return INVALID_VALUE;
    drain_all(current);
    free(pointer);
    return SUCCESS;
}
API cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t size, Stream *stream) {
    Lock lock(mutex);
    if (const int bad = usable()) return bad;
    if (!is_device(to, size)) return INVALID_VALUE;
    note(stream, to), note(stream, reinterpret_cast<uint64_t>(from));
    if (stream) tell("copy %d %llu %zu\n", stream->number, static_cast<unsigned long long>(to), size);
    // the caller may change pageable memory as soon as the call returns, except while the copy is recorded
    if (is_pinned(from) || (stream && stream->capturing))
        return enqueue(stream, [=] { return memcpy(reinterpret_cast<void *>(to), from, size), SUCCESS; });
    auto bytes = std::make_shared<std::vector<char>>(static_cast<const char *>(from), static_cast<const char *>(from) + size);
    return enqueue(stream, [=] { return memcpy(reinterpret_cast<void *>(to), bytes->data(), size), SUCCESS; });
}
API cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t size, Stream *stream) {
    Lock lock(mutex);
    if (const int bad = usable()) return bad;
    if (!is_device(from, size)) return INVALID_VALUE;
    note(stream, from), note(stream, reinterpret_cast<uint64_t>(to));
    return enqueue(stream, [=] { return memcpy(to, reinterpret_cast<void *>(from), size), SUCCESS; });
}
API cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t size, Stream *stream) {
    Lock lock(mutex);
    if (const int bad = usable()) return bad;
    if (!is_device(from, size) || !is_device(to, size)) return INVALID_VALUE;
    note(stream, from), note(stream, to);
    if (stream)
        tell("kernel %d move %llu %llu\n", stream->number, static_cast<unsigned long long>(to),
             static_cast<unsigned long long>(from));
    return enqueue(stream, [=] {
        return memcpy(reinterpret_cast<void *>(to), reinterpret_cast<void *>(from), size), SUCCESS;
    });
}
API cuMemsetD8Async(uint64_t to, unsigned char value, size_t size, Stream *stream) {
    Lock lock(mutex);
    if (const int bad = usable()) return bad;
    if (!is_device(to, size)) return INVALID_VALUE;
    note(stream, to);
    return enqueue(stream, [=] { return memset(reinterpret_cast<void *>(to), value, size), SUCCESS; });
}

// ---- streams and events

API cuStreamCreate(Stream **stream, unsigned) {
    Lock lock(mutex);
    if (const int bad = usable()) return bad;
    const auto own = std::count_if(streams.begin(), streams.end(), [](Stream *s) { return s->context == current; });
    *stream = new Stream{current, int(own), {}, 0, 0, false, false, false, {}};
    streams.push_back(*stream);
    return SUCCESS;
}
API cuStreamDestroy_v2(Stream *stream) {
    Lock lock(mutex);
    drain(stream, stream->queued);
    std::erase(streams, stream);
    stream->ended = true; // it stays in memory: events that were recorded in it may be waited for
    return SUCCESS;
}
API cuStreamSynchronize(Stream *stream) {
    Lock lock(mutex);
    // this applies to any thread that waits, not only to the one that records
    if (stream && stream->capturing) return stream->invalid = true, CAPTURE_UNSUPPORTED;
    if (const int bad = waiting()) return bad;
    if (stream) tell("finish %d\n", stream->number);
    const int status = stream ? drain(stream, stream->queued) : drain_all(current);
    if (stream && getenv("IKQ_STANDIN_TIMES")) tell("finished %d\n", stream->number);
    return status;
}
API cuStreamWaitEvent(Stream *stream, Event *event, unsigned) {
    Lock lock(mutex);
    if (!event->stream || stream->number == setting("IKQ_STANDIN_DEAF", -1)) return SUCCESS;
    tell("wait %d %d\n", stream->number, event->number);
    return enqueue(stream, [from = event->stream, at = event->at] { return drain(from, at); });
}
API cuEventCreate(Event **event, unsigned) {
    Lock lock(mutex);
    if (const int bad = usable()) return bad;
    *event = new Event{n_events++, nullptr, 0, {}};
    return SUCCESS;
}
API cuEventDestroy_v2(Event *event) {
    delete event;
    return SUCCESS;
}
API cuEventRecord(Event *event, Stream *stream) {
    Lock lock(mutex);
    if (stream) tell("record %d %d\n", stream->number, event->number);
    const int status = enqueue(stream, [=] { return event->time = std::chrono::steady_clock::now(), SUCCESS; });
    if (status == SUCCESS && !stream->capturing) event->stream = stream, event->at = stream->queued;
    return status;
}
API cuEventSynchronize(Event *event) {
    Lock lock(mutex);
    if (const int bad = waiting()) return bad;
    if (event->stream) tell("finish-event %d\n", event->number);
    return event->stream ? drain(event->stream, event->at) : SUCCESS;
}
API cuEventElapsedTime(float *milliseconds, Event *from, Event *to) {
    Lock lock(mutex);
    if (!from->stream || !to->stream) return INVALID_HANDLE;
    *milliseconds = std::chrono::duration<float, std::milli>(to->time - from->time).count();
    return SUCCESS;
}

// ---- modules and launches

API cuModuleLoadData(Module **module, const void *image) {
    Lock lock(mutex);
    if (const int bad = waiting()) return bad;
    const size_t size = image_size(image);
    if (size == 0) return INVALID_IMAGE;
    // the file stays open so that its name is unique: the loader takes two files of the same name for one
    const int file = memfd_create("module", 0);
    if (file < 0 || write(file, image, size) != ssize_t(size)) return OUT_OF_MEMORY;
    void *library = dlopen(("/proc/self/fd/" + std::to_string(file)).c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!library) return fprintf(stderr, "%s\n", dlerror()), close(file), INVALID_IMAGE;
    Module it{library, file, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr};
    const char *arch = static_cast<const char *>(dlsym(library, "ikq_standin_arch"));
    const std::string wanted = "sm_" + std::to_string(setting("IKQ_STANDIN_SM", 90));
    if (!arch || wanted != arch || !find(library, "ikq_emu_find", it.find) || !find(library, "ikq_emu_launch", it.launch) ||
        !find(library, "ikq_emu_n_args", it.n_args) || !find(library, "ikq_emu_arg_bytes", it.arg_bytes) ||
        !find(library, "ikq_emu_max_threads", it.max_threads) || !find(library, "ikq_emu_set_order", it.set_order))
        return dlclose(library), close(file), NO_BINARY_FOR_GPU;
    *module = new Module(it);
    return SUCCESS;
}
API cuModuleUnload(Module *module) {
    Lock lock(mutex);
    if (const int bad = waiting()) return bad;
    drain_all(current);
    std::erase_if(functions, [=](const auto &it) { return it.first.first == module; });
    dlclose(module->library);
    close(module->file);
    delete module;
    return SUCCESS;
}
API cuModuleGetFunction(Function **function, Module *module, const char *name) {
    Lock lock(mutex);
    const ikq_emu_kernel *kernel = module->find(name);
    if (!kernel) return NOT_FOUND;
    *function = &functions.insert({{module, kernel}, {module, kernel, name}}).first->second;
    return SUCCESS;
}
API cuFuncGetAttribute(int *value, int, Function *) { return *value = 0, SUCCESS; }
API cuFuncSetAttribute(Function *function, int attribute, int value) {
    if (attribute != 8) return INVALID_VALUE; // largest dynamic shared memory
    if (value < 0 || value > setting("IKQ_STANDIN_SHARED", MOST_SHARED)) return INVALID_VALUE;
    function->shared = unsigned(value);
    return SUCCESS;
}
API cuLaunchKernel(Function *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, Stream *stream, void **arguments, void **) {
    Lock lock(mutex);
    if (const int bad = usable()) return bad;
    const uint64_t threads = uint64_t(bx) * by * bz;
    if (!gx || !gy || !gz || !threads || threads > 1024 || gx > 0x7fffffff || gy > 0xffff || gz > 0xffff || bz > 64)
        return INVALID_VALUE;
    Module *module = function->module;
    if (shared > function->shared) return INVALID_VALUE;
    if (threads > module->max_threads(function->kernel)) return LAUNCH_OUT_OF_RESOURCES;
    // arguments are copied now, because the launch happens later
    std::string told;
    auto values = std::make_shared<std::vector<std::vector<char>>>();
    for (size_t i = 0; i < module->n_args(function->kernel); i++) {
        const char *bytes = static_cast<char *>(arguments[i]);
        values->emplace_back(bytes, bytes + module->arg_bytes(function->kernel, i));
        uint64_t address = 0;
        if (values->back().size() == sizeof address) memcpy(&address, bytes, sizeof address), note(stream, address), told += " " + std::to_string(address);
    }
    if (stream) tell("kernel %d %s%s\n", stream->number, function->name.c_str(), told.c_str());
    return enqueue(stream, [=, kernel = function->kernel] {
        std::vector<void *> pointers;
        for (auto &value : *values) pointers.push_back(value.data());
        module->set_order(thread_order());
        return module->launch(kernel, {gx, gy, gz}, {bx, by, bz}, shared, pointers.data());
    });
}

// ---- graphs

API cuStreamBeginCapture_v2(Stream *stream, int) {
    Lock lock(mutex);
    if (const int bad = usable()) return bad;
    if (!stream || stream->capturing) return INVALID_VALUE;
    stream->capturing = true, stream->invalid = false;
    stream->recorded = {};
    capturing = stream;
    return SUCCESS;
}
API cuStreamIsCapturing(Stream *stream, int *status) {
    return *status = !stream->capturing ? 0 : stream->invalid ? 2 : 1, SUCCESS;
}
API cuStreamEndCapture(Stream *stream, Graph **graph) {
    Lock lock(mutex);
    if (!stream->capturing) return ILLEGAL_STATE;
    stream->capturing = false;
    capturing = nullptr;
    *graph = nullptr;
    if (stream->invalid) return CAPTURE_INVALIDATED;
    *graph = new Graph(std::move(stream->recorded));
    return SUCCESS;
}
API cuGraphInstantiateWithFlags(Graph **executable, Graph *graph, unsigned long long) {
    return *executable = new Graph(*graph), SUCCESS;
}
API cuGraphUpload(Graph *, Stream *) { return SUCCESS; }
API cuGraphLaunch(Graph *executable, Stream *stream) {
    Lock lock(mutex);
    std::set<uint64_t> there;
    for (const auto &it : allocations) there.insert(it.second.id);
    for (const auto &it : pinned) there.insert(it.second.id);
    if (!std::includes(there.begin(), there.end(), executable->uses.begin(), executable->uses.end()))
        return fprintf(stderr, "a graph uses memory that was freed\n"), INVALID_VALUE;
    tell("graph %d\n", stream->number);
    return enqueue(stream, [work = executable->work] {
        for (const Work &step : work)
            if (const int status = step()) return status;
        return int(SUCCESS);
    });
}
API cuGraphExecDestroy(Graph *executable) { return delete executable, SUCCESS; }
API cuGraphDestroy(Graph *graph) { return delete graph, SUCCESS; }

// ---- other stand-in libraries

namespace {
const ikq_standin_work offered = {
    [] {
        Lock lock(mutex);
        return usable() == SUCCESS;
    },
    [](uint64_t address, size_t bytes) {
        Lock lock(mutex);
        return is_device(address, bytes);
    },
    [](void *stream) { return static_cast<Stream *>(stream)->capturing; },
    [](void *stream, const char *told, const std::function<int()> &work) {
        Lock lock(mutex);
        tell("blas %d %s\n", static_cast<Stream *>(stream)->number, told);
        return enqueue(static_cast<Stream *>(stream), work);
    },
};
} // namespace

extern "C" __attribute__((visibility("default"))) const ikq_standin_work *ikq_standin_work_of_driver() { return &offered; }
