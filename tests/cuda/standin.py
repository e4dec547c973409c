"""The stand-in driver, compiler and cuBLAS (`cuda/standin`), and programs that run with them in front.

The loader decides at the first call which driver it is, for the whole process, so every case is a process of its own.
"""

import functools
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from emulator import CUDA, cache_folder, run_gxx, sources_hash

import ikq

STANDIN = CUDA / "standin"


@functools.cache
def libraries() -> Path:
    """A folder with `driver/libcuda.so`, `cublas/libcublas.so.13`, `libnvrtc.so.13` and what the latter needs; built when first asked for."""
    texts = b"".join((STANDIN / f).read_bytes() for f in ("driver.cpp", "nvrtc.cpp", "cublas.cpp", "work.h"))
    key = hashlib.sha256(texts + sources_hash(CUDA).encode() + str(CUDA).encode()).hexdigest()[:24]
    folder = cache_folder() / f"standin-{key}"
    if not folder.exists():
        scratch = cache_folder() / f"standin-{key}-{os.getpid()}"
        (scratch / "driver").mkdir(parents=True)
        (scratch / "cublas").mkdir()
        flags = ("-O1", "-Wall", "-Wextra", "-Werror", "-fPIC")
        for source, out in (("driver.cpp", "driver/libcuda.so"), ("cublas.cpp", "cublas/libcublas.so.13")):
            files = (str(STANDIN / source), "-o", str(scratch / out))
            run_gxx("-std=c++20", *flags, "-shared", *files, "-ldl", "-pthread")
        folder_of_kernels = f'-DIKQ_CUDA_FOLDER="{CUDA}"'
        run_gxx(
            "-std=c++17",
            *flags,
            "-shared",
            folder_of_kernels,
            str(STANDIN / "nvrtc.cpp"),
            "-o",
            str(scratch / "libnvrtc.so.13"),
            "-ldl",
        )
        emulator = (
            "-std=c++17",
            "-O2",
            "-ffp-contract=off",
            "-fPIC",
            "-fvisibility=hidden",
            "-DIKQ_EMU",
            f"-I{CUDA}",
        )
        run_gxx(*emulator, "-c", str(CUDA / "emu/emu.cpp"), "-o", str(scratch / "emu.o"))
        try:
            scratch.rename(folder)
        except OSError:  # another process was faster
            shutil.rmtree(scratch)
    return folder


def environment(cache: Path | None = None, **more: str | None) -> dict[str, str]:
    """Variables under which the stand-ins are found; `more` sets others, or removes them."""
    folder = libraries()
    env = {k: v for k, v in os.environ.items() if not k.startswith(("IKQ_", "CUDA_"))}
    env |= {
        "LD_LIBRARY_PATH": str(folder / "driver"),
        "IKQ_NVRTC": str(folder / "libnvrtc.so.13"),
        "IKQ_CUBLAS": str(folder / "cublas"),
        "IKQ_CACHE_DIR": str(cache or folder / "cubins"),  # a module has parts of the emulator in it
        "PYTHONPATH": os.pathsep.join([str(Path(ikq.__file__).parents[1]), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]),
    }  # fmt: skip
    return {k: v for k, v in (env | more).items() if v is not None}


def run(code: str, env: dict[str, str], *args: str, returncode: int = 0, timeout: float = 300) -> str:
    """Standard output of a Python program."""
    done = subprocess.run(
        [sys.executable, "-c", code, *args], env=env, capture_output=True, text=True, timeout=timeout
    )
    assert done.returncode == returncode, done.stderr
    return done.stdout


def status(env: dict[str, str]) -> dict:
    """What `ikq.cuda.status()` says there."""
    return json.loads(run("import ikq.cuda, json; print(json.dumps(ikq.cuda.status(), default=str))", env))


def ikq_command(env: dict[str, str], *args: str) -> subprocess.CompletedProcess[str]:
    """The command line there."""
    command = [sys.executable, "-m", "ikq", *map(str, args)]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
