"""Kernels of `cuda/` on the CPU: modules are compiled with g++, cached, and launched through ctypes."""

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pytest

CUDA = Path(__file__).resolve().parents[2] / "cuda"
GXX = shutil.which("g++")
needs_gxx = pytest.mark.skipif(GXX is None or os.uname().machine != "x86_64", reason="the emulator needs g++ on x86-64")
FLAGS = ("-std=c++17", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-DIKQ_EMU", f"-I{CUDA}")
# orders in which threads and blocks run
ORDERS = (0, 1, 5)


class Dim3(ctypes.Structure):
    _fields_ = (("x", ctypes.c_uint), ("y", ctypes.c_uint), ("z", ctypes.c_uint))


def cache_folder() -> Path:
    folder = Path(tempfile.gettempdir()) / f"ikq-emulator-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise RuntimeError(f"{folder} belongs to somebody else")
    return folder


@functools.cache
def sources_hash() -> str:
    """Of everything that a module may include."""
    h = hashlib.sha256()
    for path in sorted(p for p in CUDA.rglob("*") if p.suffix in (".cu", ".cuh", ".cpp", ".h") and "standin" not in p.parts):
        h.update(str(path.relative_to(CUDA)).encode() + path.read_bytes())
    return h.hexdigest()


def run_gxx(*args: str) -> None:
    done = subprocess.run([GXX, *args], capture_output=True, text=True)
    if done.returncode:
        raise AssertionError(f"g++ {' '.join(args)}\n{done.stderr[-4000:]}")


def build(text: str, *flags: str, program: bool = False, scheduler_flags: tuple[str, ...] = ()) -> Path:
    """A module (or a program) of a text that includes kernel sources, and of the scheduler.

    `flags` are for the kernels, `scheduler_flags` for the scheduler, which sanitizers do not instrument.
    """
    key = hashlib.sha256("\0".join([sources_hash(), text, *FLAGS, *flags, *scheduler_flags, str(program)]).encode())
    out = cache_folder() / f"{key.hexdigest()[:32]}{'' if program else '.so'}"
    if out.exists():
        return out
    with tempfile.TemporaryDirectory(dir=cache_folder()) as scratch:
        folder = Path(scratch)
        (folder / "kernels.cpp").write_text(text)
        common = (*FLAGS, "-fPIC", "-fvisibility=hidden")
        run_gxx(*common, "-O1", *flags, "-c", str(folder / "kernels.cpp"), "-o", str(folder / "kernels.o"))
        run_gxx(*common, "-O2", *scheduler_flags, "-c", str(CUDA / "emu/emu.cpp"), "-o", str(folder / "emu.o"))
        kind = () if program else ("-shared",)
        sanitizers = [f for f in flags if f.startswith("-fsanitize")]
        objects = (str(folder / "kernels.o"), str(folder / "emu.o"))
        run_gxx(*kind, *sanitizers, *objects, "-o", str(folder / "out"))
        (folder / "out").replace(out)
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


@functools.cache
def module(text: str) -> Module:
    return Module(build(text))


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
