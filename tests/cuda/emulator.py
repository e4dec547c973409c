"""Kernels of `cuda/` on the CPU: modules are compiled with g++, cached in a folder of the user's for temporary files, and launched.

Modules are shared objects that are called through ctypes. With IKQ_EMULATOR=thread or =address they are programs under
that sanitizer instead, one run per launch: the same tests then look for missing barriers, or for accesses out of bounds
and misaligned ones.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import stat
import struct
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pytest

CUDA = Path(__file__).resolve().parents[2] / "cuda"
GXX = shutil.which("g++")
needs_gxx = pytest.mark.skipif(
    GXX is None or platform.machine() != "x86_64" or os.name != "posix",
    reason="the emulator needs g++ on x86-64",
)
FLAGS = (
    "-std=c++17",
    "-ffp-contract=off",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wno-unknown-pragmas",
    "-DIKQ_EMU",
)
# what takes minutes runs with IKQ_CUDA_TESTS=all (`make test-cuda`)
FULL = os.environ.get("IKQ_CUDA_TESTS") == "all"
only_in_full = pytest.mark.skipif(not FULL, reason="a part of `make test-cuda`")
# flags of the kernels, and of the scheduler, which is not instrumented
SANITIZERS = {
    "thread": (("-fsanitize=thread", "-g"), ("-DIKQ_TSAN",)),
    "address": (
        ("-fsanitize=address,alignment", "-fno-sanitize-recover=alignment", "-g"),
        ("-DIKQ_ASAN", "-fsanitize=address"),
    ),
}
# orders in which threads and blocks run
ORDERS = (0, 1, 5)


class Dim3(ctypes.Structure):
    _fields_ = (("x", ctypes.c_uint), ("y", ctypes.c_uint), ("z", ctypes.c_uint))


def cache_folder() -> Path:
    folder = Path(tempfile.gettempdir()) / f"ikq-emulator-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise RuntimeError(f"{folder} is not a folder that only this user can write to")
    return folder


@functools.cache
def sources_hash(folder: Path) -> str:
    """Of everything that a module may include."""
    h = hashlib.sha256()
    for path in sorted(
        p for p in folder.rglob("*") if p.suffix in (".cu", ".cuh", ".cpp", ".h") and "standin" not in p.parts
    ):
        h.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return h.hexdigest()


def run_gxx(*args: str) -> None:
    done = subprocess.run([GXX, *args], capture_output=True, text=True)
    if done.returncode:
        raise AssertionError(f"g++ {' '.join(args)}\n{done.stderr[-4000:]}")


def build(text: str, sanitizer: str | None = None, folder: Path = CUDA) -> Path:
    """A module of a text that includes kernel sources; with a sanitizer a program that runs one launch.

    `folder`: where the sources are.
    """
    flags, scheduler_flags = SANITIZERS[sanitizer] if sanitizer else ((), ())
    key = hashlib.sha256("\0".join([sources_hash(folder), text, *FLAGS, *flags, *scheduler_flags]).encode())
    out = cache_folder() / f"{key.hexdigest()[:32]}{'' if sanitizer else '.so'}"
    if out.exists():
        return out
    with tempfile.TemporaryDirectory(dir=cache_folder()) as scratch:
        here = Path(scratch)
        (here / "kernels.cpp").write_text(text)
        common = (*FLAGS, f"-I{folder}", "-fPIC", "-fvisibility=hidden", "-c")
        run_gxx(*common, "-O1", *flags, str(here / "kernels.cpp"), "-o", str(here / "kernels.o"))
        run_gxx(*common, "-O2", *scheduler_flags, str(folder / "emu/emu.cpp"), "-o", str(here / "emu.o"))
        objects = [str(here / "kernels.o"), str(here / "emu.o")]
        if sanitizer:
            run_gxx(*common, *scheduler_flags, str(folder / "emu/runner.cpp"), "-o", str(here / "runner.o"))
            objects.append(str(here / "runner.o"))
        run_gxx(*(flags if sanitizer else ("-shared",)), *objects, "-o", str(here / "out"))
        (here / "out").replace(out)
    return out


class Module:
    """A compiled module and its kernels."""

    def __init__(self, path: Path) -> None:
        self.library = lib = ctypes.CDLL(str(path))
        for name in ("ikq_emu_find", "ikq_emu_at"):
            getattr(lib, name).restype = ctypes.c_void_p
        lib.ikq_emu_at.argtypes = [ctypes.c_size_t]
        lib.ikq_emu_name.argtypes = lib.ikq_emu_n_args.argtypes = [ctypes.c_void_p]
        lib.ikq_emu_name.restype = ctypes.c_char_p
        lib.ikq_emu_n_args.restype = lib.ikq_emu_arg_bytes.restype = ctypes.c_size_t
        lib.ikq_emu_arg_bytes.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
        lib.ikq_emu_launch.argtypes = [ctypes.c_void_p, Dim3, Dim3, ctypes.c_size_t, ctypes.c_void_p]

    def names(self) -> list[str]:
        kernels = iter(self.library.ikq_emu_at(i) for i in range(1 << 16))
        return [self.library.ikq_emu_name(k).decode() for k in iter(lambda: next(kernels), None)]

    def launch(self, name: str, grid, block, *args, shared: int = 0, order: int = 0) -> int:
        """Runs a kernel: arrays (or None) are pointers, ints and floats take the size that the kernel has.

        Returns what the driver would: 0 when all went well.
        """
        kernel = self.library.ikq_emu_find(name.encode())
        assert kernel, f"{name} is not among {self.names()}"
        assert len(args) == self.library.ikq_emu_n_args(kernel), name
        values = []
        for i, value in enumerate(args):
            n_bytes = self.library.ikq_emu_arg_bytes(kernel, i)
            if value is None or isinstance(value, np.ndarray):
                assert n_bytes == 8, f"argument {i} of {name} is no pointer"
                assert value is None or value.flags.c_contiguous
                values.append(ctypes.c_void_p(None if value is None else value.ctypes.data))
            elif isinstance(value, float):
                values.append(ctypes.c_float(value))
            else:
                values.append({4: ctypes.c_int32, 8: ctypes.c_int64}[n_bytes](value))
            assert ctypes.sizeof(values[-1]) == n_bytes, f"argument {i} of {name}"
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(v) for v in values))
        self.library.ikq_emu_set_order(order)
        return self.library.ikq_emu_launch(kernel, dim3(grid), dim3(block), shared, pointers)

    def run(self, name: str, grid, block, *args, shared: int = 0, order: int = 0) -> None:
        assert self.launch(name, grid, block, *args, shared=shared, order=order) == 0, name


def dim3(n) -> Dim3:
    return Dim3(*((n, 1, 1) if isinstance(n, int) else (*n, 1, 1)[:3]))


class Program:
    """What a module is under a sanitizer: `run` and `launch` as there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.report = ""

    def launch(self, name: str, grid, block, *args, shared: int = 0, order: int = 0) -> int:
        """0, or the exit status of the program; `report` is what it had to say."""
        numbers = [getattr(dim3(d), axis) for d in (grid, block) for axis in "xyz"]
        out = struct.pack("<Q", len(name)) + name.encode() + struct.pack("<8Q", *numbers, shared, len(args))
        buffers: dict[int, tuple[int, np.ndarray]] = {}
        for i, value in enumerate(args):
            if value is None:
                out += struct.pack("<2Q", 2, 0)
            elif isinstance(value, np.ndarray):
                at = value.ctypes.data
                if at in buffers:
                    out += struct.pack("<2Q", 3, buffers[at][0])
                else:
                    buffers[at] = (i, value)
                    out += struct.pack("<2Q", 1, value.nbytes) + value.tobytes()
            else:
                # eight bytes serve both sizes of a number
                raw = struct.pack("<f4x", value) if isinstance(value, float) else struct.pack("<q", value)
                out += struct.pack("<2Q", 0, 8) + raw
        with tempfile.TemporaryDirectory(dir=cache_folder()) as scratch:
            files = [Path(scratch) / "in", Path(scratch) / "out"]
            files[0].write_bytes(out)
            # the thread sanitizer wants the memory layout that there is without randomization
            command = ["setarch", "-R", str(self.path), *map(str, files), str(order)]
            options = {
                "TSAN_OPTIONS": "exitcode=66",
                "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",
            }
            done = subprocess.run(command, capture_output=True, text=True, env=os.environ | options)
            self.report = done.stderr
            if done.returncode == 0:
                after = files[1].read_bytes()
                for _, array in buffers.values():
                    array[...] = np.frombuffer(after[: array.nbytes], array.dtype).reshape(array.shape)
                    after = after[array.nbytes :]
        return done.returncode

    def run(self, name: str, grid, block, *args, shared: int = 0, order: int = 0) -> None:
        code = self.launch(name, grid, block, *args, shared=shared, order=order)
        assert code == 0, f"{name}: {code}\n{self.report[:6000]}"


@functools.cache
def module(text: str) -> Module | Program:
    sanitizer = os.environ.get("IKQ_EMULATOR")
    return Program(build(text, sanitizer)) if sanitizer else Module(build(text))


def for_types(source: str, types, **more: str) -> str:
    """The text of a module that has a source once for each of some types."""
    return "".join(f'#define IKQ_TYPE {t}\n#include "{source}"\n#undef IKQ_TYPE\n' for t in types)


def aligned(shape, dtype, fill: int | None = 0xFF) -> np.ndarray:
    """An array at a multiple of 256 bytes, as device memory is, filled with bytes that are NaN as floats."""
    n = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.empty(n + 256, np.uint8)
    start = -raw.ctypes.data % 256
    raw[start : start + n] = fill
    return raw[start : start + n].view(dtype).reshape(shape)


def on_device(a: np.ndarray) -> np.ndarray:
    out = aligned(a.shape, a.dtype)
    out[...] = a
    return out
