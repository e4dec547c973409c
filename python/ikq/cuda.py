"""NVIDIA GPUs: which ones can be used, or why none can.

No CUDA library is loaded before a function of this module is called, so importing ikq costs nothing, and
processes may be forked. Kernels are compiled for the GPU that is there by NVRTC, which
`pip install ikq[cuda]` brings (`ikq[cuda12]` for drivers older than 580), and kept in a folder.

Environment: `IKQ_CUDA=0` switches GPUs off, `IKQ_NVRTC` is a file or folder to take the compiler from,
`IKQ_CACHE_DIR` the folder of caches, `IKQ_CUDA_SRC` a folder of kernel files to be used instead of those of
this package, `IKQ_CUDA_SYNC=1` waits for every kernel, so that an error is reported where it arises,
`IKQ_CUDA_GRAPHS=0` launches every kernel by itself instead of replaying steps as CUDA graphs, and
`IKQ_CUDA_MMQ_FROM` is the number of tokens of a step from which on weights are multiplied on tensor
cores, and attention is cut as for prompts: 9, if it is not set; 1 gives bits that do not depend on how many
there are. `IKQ_CUDA_BLAS` is a file of `ikq bench cuda -o`, by which products of many tokens are computed by
NVIDIA's cuBLAS where that is quicker; without it none are. `IKQ_CUBLAS` is a file or folder to take cuBLAS
from. A value that is no number, or no switch, is an error that names the variable.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TypedDict

from ikq import _ikq
from ikq.errors import DeviceError

__all__ = ["Device", "Status", "architecture", "architectures", "require", "status", "usable_devices", "warm"]

_NEWEST = 13
"""CUDA of the newest NVRTC that is asked for where there is no driver to fit."""


class Device(TypedDict):
    """A GPU, as its driver describes it."""

    name: str
    compute_capability: str
    memory_bytes: int
    """Of its memory, all of them."""
    free_bytes: int | None
    """Those that are free beside a context of the driver; `None`: not asked for, or not told."""
    n_multiprocessors: int
    usable: bool
    """New enough: compute capability 7.5 or more."""


class Status(TypedDict):
    """The result of `status`."""

    usable: bool
    """Models can be computed on a GPU."""
    reason: str | None
    """Why none can be used, and what to do about it."""
    reason_code: str | None
    """The reason as a single word: `disabled`, `no-driver`, `not-a-driver`, `stub`, `old-driver`, `init`,
    `no-device`, `old-devices`, `no-nvrtc`, `forked`, or `variable` for a value of `IKQ_CUDA` that is none."""
    driver: str | None
    """Version of the driver, where the system tells it."""
    cuda_version: str | None
    """CUDA version of the driver."""
    devices: list[Device]
    emulated: bool
    """A device is the tests' stand-in, which computes on the CPU."""
    nvrtc: Path | None
    """The compiler."""
    nvrtc_version: str | None
    cache: Path | None
    """The folder in which compiled kernels are kept."""


def status(*, memory: bool = True) -> Status:
    """Which GPUs can be used here; never raises an error, whatever is installed. A process searches once.

    Args:
        memory: Ask how much memory is free at the moment. The driver makes a context on each GPU for that,
            which takes a part of a second.
    """
    found = _ikq.cuda_status(places_of_nvrtc(), places_of_cublas(), memory)
    return Status(
        usable=found["usable"],
        reason=found["reason"],
        reason_code=found["reason_code"],
        driver=found["driver"],
        cuda_version=found["cuda_version"],
        devices=found["devices"],
        emulated=found["emulated"],
        nvrtc=found["nvrtc"],
        nvrtc_version=found["nvrtc_version"],
        cache=found["cache"],
    )


def require(*, memory: bool = True) -> Status:
    """Returns the same as `status`, but raises an error if no GPU can be used.

    Args:
        memory: As for `status`.

    Raises:
        DeviceError: no GPU is usable; the message says why and how to get one.
    """
    found = status(memory=memory)
    if not found["usable"]:
        raise DeviceError(f"no GPU is usable: {found['reason']}")
    return found


def usable_devices(*, memory: bool = True) -> dict[str, Device]:
    """The GPUs that can be used by their names, `CUDA0`, `CUDA1`, ...; there may be none.

    Args:
        memory: As for `status`.
    """
    found = status(memory=memory)
    devices = [d for d in found["devices"] if d["usable"]] if found["usable"] else []
    return {f"CUDA{i}": device for i, device in enumerate(devices)}


def architectures() -> list[str]:
    """The compiler's names of the usable GPUs here, each once: `["sm_90"]`.

    Raises:
        DeviceError: no GPU is usable.
    """
    devices = (d["compute_capability"] for d in require(memory=False)["devices"] if d["usable"])
    return list(dict.fromkeys("sm_" + c.replace(".", "") for c in devices))


def warm(types: Iterable[int | str], arch: str) -> list[tuple[str, bool]]:
    """Compiles the kernels for products with weights of some types, and keeps them in `status()["cache"]`.

    Needs NVRTC, but no GPU.

    Args:
        types: Types of weights.
        arch: An architecture: `sm_90`, `90` or `9.0`.

    Returns:
        The name of each kernel module, and whether it had been compiled before.

    Raises:
        DeviceError: there is no NVRTC.
        UsageError: there is no such architecture; the message has those that there are.
        FormatError: there is no such type.
        IkqError: kernels do not read a type.
    """
    ids = [_ikq.parse_type(t) if isinstance(t, str) else int(t) for t in types]
    return _ikq.cuda_warm(places_of_nvrtc(), _major(), ids, architecture(arch))


def architecture(text: str) -> str:
    """The compiler's name of an architecture, `sm_90`, which may also be written as `90` or `9.0`.

    Raises:
        DeviceError: there is no NVRTC.
        UsageError: kernels are not written for it, or NVRTC does not know it; the message has those that
            there are.
    """
    return _ikq.cuda_architecture(places_of_nvrtc(), _major(), text)


def _major() -> int:
    """The newest CUDA that an NVRTC may have."""
    version = status(memory=False)["cuda_version"]
    return _NEWEST if version is None else int(version.split(".")[0])


def places_of_nvrtc() -> list[Path]:
    """Files and folders that may hold NVRTC, the preferred ones first.

    What `IKQ_NVRTC` names and nothing else, or NVIDIA's packages that are installed and the toolkit that
    `CUDA_HOME` or `CUDA_PATH` names.
    """
    return _places("IKQ_NVRTC", "cuda_nvrtc")


def places_of_cublas() -> list[Path]:
    """The same of cuBLAS; `IKQ_CUBLAS` names it."""
    return _places("IKQ_CUBLAS", "cublas")


def _places(variable: str, package: str) -> list[Path]:
    """Of a library that a variable names, and whose folder in packages of CUDA 12 has this name."""
    if named := os.environ.get(variable):
        return [Path(named).absolute()]
    places = []
    # a namespace of folders, which is found without importing anything
    try:
        spec = importlib.util.find_spec("nvidia")
    except (ImportError, ValueError):
        spec = None
    for folder in (spec and spec.submodule_search_locations) or ():
        places += [Path(folder, "cu13", "lib"), Path(folder, package, "lib")]
    for name in ("CUDA_HOME", "CUDA_PATH"):
        if toolkit := os.environ.get(name):
            places.append(Path(toolkit, "lib64"))
    return [place.absolute() for place in places]
