// What the stand-in driver offers to other stand-in libraries that give work to its streams.
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>

struct ikq_standin_work {
    // Whether the calling thread has a context.
    bool (*has_context)();
    // Whether so many bytes lie in one allocation of the current context.
    bool (*is_device)(uint64_t address, size_t bytes);
    bool (*is_recording)(void *stream);
    // Adds work to a stream, which the log names by `told`; returns 0 or an error of the driver.
    int (*enqueue)(void *stream, const char *told, const std::function<int()> &work);
};
