"""What a GPU does at most: products on its tensor cores, and copies, measured on the card itself. A group of `gpu_check.py`.

The kernels (`gpu_peaks.cu`) are no part of ikq, so they are compiled and launched here, through the driver's and the compiler's
libraries that ikq uses.
"""

from __future__ import annotations

import argparse
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from gpu_cards import sheet
from numpy.typing import NDArray

from ikq import cuda

Row = dict[str, Any]

HERE = Path(__file__).resolve().parent
THREADS, CHAINS, REPEATS = 512, 8, 4  # of gpu_peaks.cu
SCHEDULERS = 4
OPERATIONS = {"int8": 2 * 16 * 8 * 32, "f16": 2 * 16 * 8 * 16}
"""Of a product."""
KERNELS = {"int8": "peak_s8", "f16": "peak_f16"}
SECONDS = 0.02
"""That a timed run takes at least."""


class Compiler:
    """NVRTC."""

    def __init__(self, path: Path) -> None:
        for beside in path.parent.glob("libnvrtc-builtins.so.*"):
            ctypes.CDLL(str(beside))
        self.library = ctypes.CDLL(str(path))

    def checked(self, name: str, *args: Any) -> None:
        """Calls a function."""
        status = getattr(self.library, name)(*args)
        if status:
            raise RuntimeError(f"{name}: error {status}")

    def text(self, name: str, program: ctypes.c_void_p) -> bytes:
        """What a pair of functions gives: the size, and the bytes."""
        size = ctypes.c_size_t()
        self.checked(f"{name}Size", program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        self.checked(name, program, buffer)
        return buffer.raw[: size.value]

    def cubin(self, architecture: str) -> bytes:
        """The kernels for an architecture, such as sm_90."""
        folder = Path(os.environ.get("IKQ_CUDA_SRC", HERE.parent / "cuda"))
        # only that one is included; the emulator's headers are where its compiler finds them
        header = (folder / "ikq_dev.cuh").read_bytes()
        program = ctypes.c_void_p()
        names, texts = (ctypes.c_char_p * 1)(b"ikq_dev.cuh"), (ctypes.c_char_p * 1)(header)
        source = (HERE / "gpu_peaks.cu").read_bytes()
        self.checked("nvrtcCreateProgram", ctypes.byref(program), source, b"gpu_peaks.cu", 1, texts, names)
        flags = (ctypes.c_char_p * 2)(f"-arch={architecture}".encode(), b"-std=c++17")
        if self.library.nvrtcCompileProgram(program, 2, flags):
            raise RuntimeError(self.text("nvrtcGetProgramLog", program).decode(errors="replace")[:2000])
        return self.text("nvrtcGetCUBIN", program)


class Card:
    """The first GPU, with the kernels loaded."""

    def __init__(self) -> None:
        found = cuda.require()
        device = next(d for d in found["devices"] if d["usable"])
        self.n_multiprocessors = device["n_multiprocessors"]
        free = device["free_bytes"] or 0
        self.n_bytes = 1 << 16 if found["emulated"] else min(1 << 30, free // 4) // 4096 * 4096
        self.emulated = found["emulated"]
        assert found["nvrtc"] is not None
        cubin = Compiler(found["nvrtc"]).cubin("sm_" + device["compute_capability"].replace(".", ""))
        self.library = ctypes.CDLL("libcuda.so.1") if not self.emulated else ctypes.CDLL("libcuda.so")
        number, context, self.module = found["devices"].index(device), ctypes.c_void_p(), ctypes.c_void_p()
        handle, self.stream = ctypes.c_int(), ctypes.c_void_p()
        self.call("cuInit", 0)
        self.call("cuDeviceGet", ctypes.byref(handle), number)
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), handle)
        self.call("cuCtxSetCurrent", context)
        self.call("cuModuleLoadData", ctypes.byref(self.module), cubin)
        self.call("cuStreamCreate", ctypes.byref(self.stream), 1)
        self.events = (ctypes.c_void_p(), ctypes.c_void_p())
        for event in self.events:
            self.call("cuEventCreate", ctypes.byref(event), 0)

    def call(self, name: str, *args: Any) -> None:
        """A function of the driver."""
        status = getattr(self.library, name)(*args)
        if status:
            text = ctypes.c_char_p()
            self.library.cuGetErrorString(status, ctypes.byref(text))
            raise RuntimeError(f"{name}: {(text.value or b'error').decode()} ({status})")

    def memory(self, n_bytes: int) -> ctypes.c_uint64:
        """So many bytes of the device, all of them 1."""
        address = ctypes.c_uint64()
        self.call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(n_bytes))
        self.call("cuMemsetD8Async", address, ctypes.c_ubyte(1), ctypes.c_size_t(n_bytes), self.stream)
        return address

    def free(self, *addresses: ctypes.c_uint64) -> None:
        """Gives memory back."""
        for address in addresses:
            self.call("cuMemFree_v2", address)

    def bytes_of(self, address: ctypes.c_uint64, n_bytes: int) -> NDArray[np.uint8]:
        """What stands there."""
        out = np.empty(n_bytes, np.uint8)
        to = out.ctypes.data_as(ctypes.c_void_p)
        self.call("cuMemcpyDtoHAsync_v2", to, address, ctypes.c_size_t(n_bytes), self.stream)
        self.call("cuStreamSynchronize", self.stream)
        return out

    def seconds(self, kernel: str, grid: int, *args: Any) -> float:
        """Of a launch, as the device's events tell."""
        function = ctypes.c_void_p()
        self.call("cuModuleGetFunction", ctypes.byref(function), self.module, kernel.encode())
        pointers = (ctypes.c_void_p * len(args))(*(ctypes.addressof(a) for a in args))
        self.call("cuEventRecord", self.events[0], self.stream)
        self.call("cuLaunchKernel", function, grid, 1, 1, THREADS, 1, 1, 0, self.stream, pointers, None)
        self.call("cuEventRecord", self.events[1], self.stream)
        self.call("cuEventSynchronize", self.events[1])
        took = ctypes.c_float()
        self.call("cuEventElapsedTime", ctypes.byref(took), *self.events)
        # the stand-in's clock may not have moved
        return max(took.value * 1e-3, 1e-9)


def fastest(card: Card, kernel: str, grid: int, *args: Any) -> float:
    """Seconds of the quickest of five runs, behind one that wakes the card."""
    return min(card.seconds(kernel, grid, *args) for _ in range(2 if card.emulated else 6))


def tensor_cores(card: Card, what: str) -> Row:
    """Operations per second, and clocks of a product per scheduler."""
    n = card.n_multiprocessors
    n_bytes = n * THREADS * CHAINS * 4 * 4
    sums, clocks = card.memory(n_bytes), card.memory(8 * n)

    def run(turns: int) -> tuple[float, NDArray[Any]]:
        seconds = fastest(card, KERNELS[what], n, ctypes.c_int(turns), sums, clocks)
        return seconds, card.bytes_of(sums, n_bytes).view(np.int32 if what == "int8" else np.float32)

    of_one = run(1)[1].astype(np.float64)
    turns = 2
    seconds, found = run(turns)
    right = bool((found == turns * of_one).all()) and bool((of_one > 0).all())
    while not card.emulated and seconds < SECONDS and turns < 1 << 20:
        turns *= 4
        seconds, found = run(turns)
    per_warp = turns * CHAINS * REPEATS
    rate = n * (THREADS // 32) * per_warp * OPERATIONS[what] / seconds
    each = float(np.median(card.bytes_of(clocks, 8 * n).view(np.int64)))
    card.free(sums, clocks)
    row: Row = {"name": f"peak {what} mma", "ok": right, what: rate, "us": seconds * 1e6}
    row["clocks"] = each * SCHEDULERS / (per_warp * (THREADS // 32)) or None
    told = f"{rate / 1e12:.1f} Tops/s" + (f", {row['clocks']:.2f} clocks each" if row["clocks"] else "")
    return row | {"why": told + beside(what, rate)}


def beside(what: str, rate: float) -> str:
    """What the data sheet says to it."""
    of_sheet = sheet(what)
    return f", {rate / of_sheet:.2f} of the data sheet's" if of_sheet else ", no data sheet is known here"


def bandwidth(card: Card) -> Iterator[Row]:
    """Bytes per second of a copy, read and written ones, and of reading only."""
    n, grid = ctypes.c_int64(card.n_bytes // 16), card.n_multiprocessors * 4
    from_, to = card.memory(card.n_bytes), card.memory(max(card.n_bytes, 16 * THREADS * grid))
    for name, kernel, share in (("copy", "peak_copy", 2), ("read", "peak_read", 1)):
        seconds = fastest(card, kernel, grid, from_, to, n)
        rate = share * card.n_bytes / seconds
        there = card.bytes_of(to, min(card.n_bytes, 1 << 20))
        right = bool((there == 1).all()) if name == "copy" else True
        key = "bandwidth" if name == "copy" else "reading"
        told = f"{rate / 1e9:.0f} GB/s{beside('bandwidth', rate)}"
        yield {"name": f"peak {name}", "ok": right, key: rate, "us": seconds * 1e6, "why": told}
    card.free(from_, to)


def peaks(_: argparse.Namespace) -> Iterator[Row]:
    """All of it."""
    card = Card()
    for what in KERNELS:
        yield tensor_cores(card, what)
    yield from bandwidth(card)
