"""The stand-in driver by itself: it finds the mistakes that it is there to find."""

import json

import pytest
from emulator import needs_gxx
from standin import environment, run

pytestmark = needs_gxx

KERNELS = r"""
#include "ikq_dev.cuh"
IKQ_KERNEL(64, scale, (const float *x, float *y, float f, int n)) {
    const int i = int(blockIdx.x * blockDim.x + threadIdx.x);
    if (i < n) y[i] = f * x[i];
}
IKQ_KERNEL(64, unequal, (float *y)) {
    if (threadIdx.x < 5) y[0] = __shfl_sync(ALL_LANES, 1.0f, 0);
    y[threadIdx.x] = 0.0f;
}
IKQ_KERNEL(64, first, (int *y)) {
    if (*y < 0) *y = int(blockIdx.x * blockDim.x + threadIdx.x);
}
"""

BEGIN = """
import ctypes, os, sys
import numpy as np
cuda = ctypes.CDLL("libcuda.so")
nvrtc = ctypes.CDLL(os.environ["IKQ_NVRTC"])
u64, size, pointer = ctypes.c_uint64, ctypes.c_size_t, ctypes.c_void_p
for name in ("cuMemFree_v2",):
    getattr(cuda, name).argtypes = [u64]
cuda.cuMemAlloc_v2.argtypes = [pointer, size]
cuda.cuMemcpyHtoDAsync_v2.argtypes = [u64, pointer, size, pointer]
cuda.cuMemcpyDtoHAsync_v2.argtypes = [pointer, u64, size, pointer]
cuda.cuMemsetD8Async.argtypes = [u64, ctypes.c_ubyte, size, pointer]
cuda.cuLaunchKernel.argtypes = [pointer] + 7 * [ctypes.c_uint] + 3 * [pointer]
for name in ("cuStreamSynchronize", "cuModuleUnload", "cuStreamDestroy_v2", "cuCtxSetCurrent"):
    getattr(cuda, name).argtypes = [pointer]
cuda.cuStreamBeginCapture_v2.argtypes = [pointer, ctypes.c_int]
cuda.cuStreamEndCapture.argtypes = [pointer, pointer]
cuda.cuGraphInstantiateWithFlags.argtypes = [pointer, pointer, u64]
cuda.cuGraphLaunch.argtypes = [pointer, pointer]
cuda.cuEventRecord.argtypes = [pointer, pointer]
cuda.cuStreamWaitEvent.argtypes = [pointer, pointer, ctypes.c_uint]
cuda.cuModuleGetFunction.argtypes = [pointer, pointer, ctypes.c_char_p]
cuda.cuModuleLoadData.argtypes = [pointer, ctypes.c_char_p]
cuda.cuFuncSetAttribute.argtypes = [pointer, ctypes.c_int, ctypes.c_int]
nvrtc.nvrtcCompileProgram.argtypes = [pointer, ctypes.c_int, pointer]
nvrtc.nvrtcGetCUBINSize.argtypes = nvrtc.nvrtcGetCUBIN.argtypes = [pointer, pointer]


def made(function, *arguments, kind=pointer):
    out = kind()
    status = function(ctypes.byref(out), *arguments)
    assert status == 0, status
    return out.value


def alloc(n):
    return made(cuda.cuMemAlloc_v2, n, kind=u64)


def cubin(text, arch="sm_90"):
    program = made(nvrtc.nvrtcCreateProgram, text.encode(), b"test.cu", 0, None, None)
    options = (ctypes.c_char_p * 1)(f"-arch={arch}".encode())
    if nvrtc.nvrtcCompileProgram(program, 1, options):
        log = ctypes.create_string_buffer(10000)
        nvrtc.nvrtcGetProgramLog(pointer(program), log)
        raise AssertionError(log.value.decode())
    n = made(lambda out: nvrtc.nvrtcGetCUBINSize(program, out), kind=size)
    image = ctypes.create_string_buffer(n)
    assert nvrtc.nvrtcGetCUBIN(program, image) == 0
    return image.raw


def launch(f, grid, block, *arguments, shared=0):
    pointers = (pointer * len(arguments))(*(ctypes.addressof(a) for a in arguments))
    return cuda.cuLaunchKernel(f, grid, 1, 1, block, 1, 1, shared, stream, pointers, None)


assert cuda.cuDeviceGetCount(ctypes.byref(ctypes.c_int())) == 3, "not started"
assert cuda.cuInit(0) == 0
assert cuda.cuMemAlloc_v2(ctypes.byref(u64()), 8) == 201, "no context"
context = made(cuda.cuDevicePrimaryCtxRetain, 0)
cuda.cuCtxSetCurrent(context)
stream = made(cuda.cuStreamCreate, 1)
"""


def program(tmp_path, text: str, **env: str) -> str:
    (tmp_path / "kernels.cu").write_text(KERNELS)
    begin = BEGIN + f"KERNELS = open({str(tmp_path / 'kernels.cu')!r}).read()\n"
    return run(begin + text, environment(**env))


def test_copies_and_launches_happen_when_they_are_waited_for(tmp_path):
    program(
        tmp_path,
        """
x = np.arange(100, dtype=np.float32)
dx, dy = alloc(400), alloc(400)
module = made(cuda.cuModuleLoadData, cubin(KERNELS))
f = made(cuda.cuModuleGetFunction, module, b"scale")
assert cuda.cuModuleGetFunction(ctypes.byref(pointer()), module, b"nothing") == 500
y = np.zeros(100, np.float32)
n, factor = ctypes.c_int(100), ctypes.c_float(3)
assert cuda.cuMemcpyHtoDAsync_v2(dx, x.ctypes.data, 400, stream) == 0
x[:] = -1  # pageable memory has been read
assert launch(f, 2, 64, u64(dx), u64(dy), factor, n) == 0
factor.value = 5  # arguments, too
assert cuda.cuMemcpyDtoHAsync_v2(y.ctypes.data, dy, 400, stream) == 0
assert (y == 0).all(), "nobody has waited"
assert cuda.cuStreamSynchronize(stream) == 0
assert (y == 3 * np.arange(100)).all()
# what a driver refuses
assert launch(f, 0, 64, u64(dx), u64(dy), factor, n) == 1
assert launch(f, 1, 65, u64(dx), u64(dy), factor, n) == 701
assert launch(f, 1, 64, u64(dx), u64(dy), factor, n, shared=49153) == 1
assert cuda.cuFuncSetAttribute(f, 8, 100_000) == 0
assert launch(f, 1, 64, u64(dx), u64(dy), factor, n, shared=99_000) == 0
assert cuda.cuFuncSetAttribute(f, 8, 300_000) == 1
assert cuda.cuModuleUnload(module) == 0
""",
    )


def test_memory(tmp_path):
    program(
        tmp_path,
        """
d = alloc(1000)
y = np.zeros(250, np.float32)
assert d % 256 == 0
assert cuda.cuMemcpyDtoHAsync_v2(y.ctypes.data, d, 1000, stream) == 0 == cuda.cuStreamSynchronize(stream)
assert np.isnan(y).all(), "fresh memory is NaN"
assert cuda.cuMemcpyDtoHAsync_v2(y.ctypes.data, d + 1, 1000, stream) == 1
assert cuda.cuMemcpyHtoDAsync_v2(d, y.ctypes.data, 1001, stream) == 1
assert cuda.cuMemsetD8Async(d - 1, 0, 4, stream) == 1
assert cuda.cuMemFree_v2(d + 256) == 1
assert cuda.cuMemFree_v2(d) == 0 != cuda.cuMemFree_v2(d)
assert cuda.cuMemAlloc_v2(ctypes.byref(u64()), 1 << 40) == 2
assert cuda.cuMemAlloc_v2(ctypes.byref(u64()), 0) == 1
# the end is at a page that cannot be touched
d = alloc(1000)
if (child := os.fork()) == 0:
    ctypes.string_at(d + 1023, 1)
    ctypes.string_at(d + 1024, 1)
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -11
""",
    )


def test_graphs(tmp_path):
    program(
        tmp_path,
        """
dx, dy = alloc(400), alloc(400)
x, y = np.ones(100, np.float32), np.zeros(100, np.float32)
module = made(cuda.cuModuleLoadData, cubin(KERNELS))
f = made(cuda.cuModuleGetFunction, module, b"scale")
assert cuda.cuStreamBeginCapture_v2(stream, 1) == 0
assert launch(f, 2, 64, u64(dx), u64(dy), ctypes.c_float(2), ctypes.c_int(100)) == 0
graph = made(lambda out: cuda.cuStreamEndCapture(stream, out))
executable = made(cuda.cuGraphInstantiateWithFlags, graph, 0)
for value in (1, 7):
    x[:] = value
    cuda.cuMemcpyHtoDAsync_v2(dx, x.ctypes.data, 400, stream)
    assert cuda.cuGraphLaunch(executable, stream) == 0
    cuda.cuMemcpyDtoHAsync_v2(y.ctypes.data, dy, 400, stream)
    assert cuda.cuStreamSynchronize(stream) == 0
    assert (y == 2 * value).all()
# what was freed is no longer there for a graph, even if something else lies in its place
assert cuda.cuMemFree_v2(dy) == 0
assert cuda.cuGraphLaunch(executable, stream) == 1
dy = alloc(400)
assert cuda.cuGraphLaunch(executable, stream) == 1
# waiting or allocating while calls are recorded spoils the graph
for call, arguments in ((cuda.cuStreamSynchronize, (stream,)), (cuda.cuMemAlloc_v2, (ctypes.byref(u64()), 8))):
    assert cuda.cuStreamBeginCapture_v2(stream, 1) == 0
    assert call(*arguments) == 900
    assert cuda.cuStreamEndCapture(stream, ctypes.byref(pointer())) == 901
assert cuda.cuStreamSynchronize(stream) == 0
""",
    )


def test_streams_wait_for_events(tmp_path):
    program(
        tmp_path,
        """
other, event = made(cuda.cuStreamCreate, 1), made(cuda.cuEventCreate, 0)
cuda.cuEventRecord.argtypes = [pointer, pointer]
d, y = alloc(4), np.zeros(4, np.uint8)
assert cuda.cuMemsetD8Async(d, 7, 4, other) == 0
assert cuda.cuEventRecord(event, other) == 0
assert cuda.cuMemsetD8Async(d, 9, 4, other) == 0
# without the event the copy would come before both
assert cuda.cuStreamWaitEvent(stream, event, 0) == 0
assert cuda.cuMemcpyDtoHAsync_v2(y.ctypes.data, d, 4, stream) == 0
assert cuda.cuStreamSynchronize(stream) == 0
assert (y == 7).all()
""",
    )


def test_a_kernel_that_fails_spoils_the_context(tmp_path):
    program(
        tmp_path,
        """
module = made(cuda.cuModuleLoadData, cubin(KERNELS))
f = made(cuda.cuModuleGetFunction, module, b"unequal")
d = alloc(256)
assert launch(f, 1, 64, u64(d)) == 0
assert cuda.cuStreamSynchronize(stream) == 719
assert cuda.cuMemAlloc_v2(ctypes.byref(u64()), 8) == 719
""",
    )


def test_threads_run_in_the_order_that_is_asked_for(tmp_path):
    """The first thread writes its number; a random one is another for each launch."""
    text = """
module = made(cuda.cuModuleLoadData, cubin(KERNELS))
f = made(cuda.cuModuleGetFunction, module, b"first")
d, found = alloc(4), []
for _ in range(8):
    y = np.full(1, -1, np.int32)
    assert cuda.cuMemcpyHtoDAsync_v2(d, y.ctypes.data, 4, stream) == 0
    assert launch(f, 4, 64, u64(d)) == 0
    assert cuda.cuMemcpyDtoHAsync_v2(y.ctypes.data, d, 4, stream) == 0 == cuda.cuStreamSynchronize(stream)
    found.append(int(y[0]))
print(found)
"""
    first = {order: json.loads(program(tmp_path, text, IKQ_STANDIN_ORDER=order)) for order in ("0", "1", "7")}
    assert first["0"] == [0] * 8
    assert first["1"] == [255] * 8
    assert len(set(first["7"])) > 3


@pytest.mark.parametrize(("arch", "status"), [("sm_90", 0), ("sm_80", 209)])
def test_modules_are_for_their_architecture(tmp_path, arch, status):
    program(
        tmp_path,
        f"""
assert cuda.cuModuleLoadData(ctypes.byref(pointer()), b"no image" * 16) == 200
assert cuda.cuModuleLoadData(ctypes.byref(pointer()), cubin(KERNELS, {arch!r})) == {status}
""",
    )
