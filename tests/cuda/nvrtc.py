"""Kernels of `cuda/` compiled by NVRTC for a real architecture, where it is installed (no GPU is needed)."""

import ctypes
import functools
import importlib.util
import os
import re
from dataclasses import dataclass
from pathlib import Path

from emulator import CUDA
from weights import TYPES

ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)
FLOATS = ("f32", "f16", "bf16")
CACHES = ("f32", "f16", "bf16", "q8_0", "q6_0", "q4_0", "q4_1", "iq4_nl")
# sources that do not depend on a type
WHOLE = (
    "activations.cu",
    "bands.cu",
    "blas.cu",
    "combine.cu",
    "delta.cu",
    "norm.cu",
    "router.cu",
    "slots.cu",
    "turn.cu",
)
# one module per line: source and defines
Specialisation = tuple[str, tuple[str, ...]]


def candidates() -> list[Path]:
    folders = [Path(os.environ["IKQ_NVRTC"])] if "IKQ_NVRTC" in os.environ else []
    spec = importlib.util.find_spec("nvidia")
    for place in (spec.submodule_search_locations or ()) if spec else ():
        folders += [Path(place) / "cu13/lib", Path(place) / "cuda_nvrtc/lib"]
    return [
        f
        for folder in folders
        for f in (sorted(folder.glob("libnvrtc.so.*")) if folder.is_dir() else [folder])
    ]


@functools.cache
def library() -> ctypes.CDLL | None:
    for path in candidates():
        try:
            # not all wheels find this one by themselves
            for builtins in path.parent.glob("libnvrtc-builtins.so.*"):
                ctypes.CDLL(str(builtins))
            return ctypes.CDLL(str(path))
        except OSError:
            continue
    return None


def version() -> tuple[int, int]:
    """Of the compiler, which has to be there."""
    lib, major, minor = library(), ctypes.c_int(), ctypes.c_int()
    assert lib is not None
    assert not lib.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    return major.value, minor.value


@functools.cache
def headers() -> dict[str, str]:
    return {str(p.relative_to(CUDA)): p.read_text() for p in CUDA.rglob("*.cuh")}


def per_type(source: str, types) -> list[Specialisation]:
    return [
        (source, (f"IKQ_TYPE={t}", f"IKQ_GATE={t}") if source.endswith("upgate.cu") else (f"IKQ_TYPE={t}",))
        for t in types
    ]


def specialisations() -> list[Specialisation]:
    """Every one that a model can need, but for pairs of types in `upgate.cu`, of which there are some."""
    types = (*FLOATS, *TYPES)
    out: list[Specialisation] = [(f, ()) for f in WHOLE]
    out += [s for f in ("weights.cu", "mmv.cu", "down.cu", "upgate.cu") for s in per_type(f, types)]
    out += [s for f in ("mmq.cu", "mmq_upgate.cu") for s in per_type(f, TYPES)]
    out += per_type("mmf.cu", FLOATS)
    for f in ("upgate.cu", "mmq_upgate.cu"):
        out.append((f, ("IKQ_TYPE=iq4_ks", "IKQ_GATE=q6_k")))
        out.append((f, ("IKQ_TYPE=q8_0", "IKQ_GATE=iq1_m")))
    out += per_type("heads.cu", CACHES)
    out += [("attention.cu", (f"IKQ_TYPE={k}", f"IKQ_VALUES={v}")) for k in CACHES for v in CACHES]
    # caches of floats with more bits than halves have are not computed in tiles
    tiled = [cache for cache in CACHES if cache not in ("f32", "bf16")]
    out += [("attention_tiles.cu", (f"IKQ_TYPE={k}", f"IKQ_VALUES={v}")) for k in tiled for v in tiled]
    return out


@dataclass(frozen=True)
class Kernel:
    name: str
    stack: int
    spills: int
    registers: int


def compile_(special: Specialisation, architecture: int) -> tuple[list[Kernel], bytes]:
    """What ptxas says of each kernel, and the cubin.

    Raises:
        AssertionError: with the compiler's log.
    """
    lib = library()
    assert lib is not None
    source, defines = special
    program = ctypes.c_void_p()
    names = (ctypes.c_char_p * len(headers()))(*(n.encode() for n in headers()))
    texts = (ctypes.c_char_p * len(headers()))(*(t.encode() for t in headers().values()))
    text = (CUDA / source).read_text().encode()
    assert not lib.nvrtcCreateProgram(
        ctypes.byref(program), text, source.encode(), len(headers()), texts, names
    )
    flags = [f"-arch=sm_{architecture}", "-std=c++17", "--ptxas-options=-v", *(f"-D{d}" for d in defines)]
    options = (ctypes.c_char_p * len(flags))(*(f.encode() for f in flags))
    code = lib.nvrtcCompileProgram(program, len(flags), options)
    log = text_of(lib.nvrtcGetProgramLogSize, lib.nvrtcGetProgramLog, program).decode(errors="replace")
    assert code == 0, f"{special} for sm_{architecture}:\n{log[:4000]}"
    cubin = text_of(lib.nvrtcGetCUBINSize, lib.nvrtcGetCUBIN, program)
    lib.nvrtcDestroyProgram(ctypes.byref(program))
    return kernels_of(log), cubin


def text_of(size_of, read, program) -> bytes:
    size = ctypes.c_size_t()
    assert not size_of(program, ctypes.byref(size))
    buffer = ctypes.create_string_buffer(size.value)
    assert not read(program, buffer)
    return buffer.raw[: size.value]


def kernels_of(log: str) -> list[Kernel]:
    out = []
    for part in log.split("Compiling entry function '")[1:]:
        sizes = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", part)
        registers = re.search(r"Used (\d+) registers", part)
        assert sizes, part
        assert registers, part
        out.append(
            Kernel(part.split("'")[0], int(sizes[1]), int(sizes[2]) + int(sizes[3]), int(registers[1]))
        )
    return out
