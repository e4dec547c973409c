"""Which devices compute a model, and how many of its layers go to them: what options say together.

Names are read by the core (`_ikq.named_devices`), in one spelling for plans and for loading.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

from ikq import _ikq, cuda
from ikq.errors import DeviceError

__all__ = ["ALL_LAYERS", "Devices", "chosen_devices", "count", "layer_count", "shares"]

ALL_LAYERS = 2**31 - 1
"""More layers than there are; reports write it as `all`."""


class Devices(NamedTuple):
    """The devices of a model.

    Attributes:
        names: Those that layers go to, the CPU first; the core adds those that only rules name.
        n_gpu_layers: How many layers, the last ones, go to those beside the CPU.
        assumed: GPUs that this machine does not have, or cannot use.
        fit: Whether the memory of GPUs is to be filled: neither the CPU alone is named, nor no layers.
    """

    names: list[str]
    n_gpu_layers: int
    assumed: tuple[str, ...] = ()
    fit: bool = False

    @property
    def keywords(self) -> dict[str, Any]:
        """Keywords of `Model.load` that say the same."""
        return {"devices": self.names, "n_gpu_layers": self.n_gpu_layers}


def chosen_devices(
    devices: Sequence[str] | str | None,
    n_gpu_layers: int | None,
    override_tensor: Sequence[str] = (),
    *,
    fit: bool = False,
    is_plan: bool = False,
) -> Devices:
    """The devices that options mean.

    Without `devices`, layers go to all GPUs that can be used, if a number of layers is given. With `devices`,
    all layers go there unless a number is given. Devices that only rules name get what rules say.

    Args:
        devices: As for `Model.load`.
        n_gpu_layers: As for `Model.load`.
        override_tensor: Rules, as for `Model.load`.
        fit: GPUs are to be filled: which they are, and with how many layers, is found out later.
        is_plan: Where no GPU can be used, those that are named are taken to be there.

    Raises:
        DeviceError: a GPU is needed and none is usable, or a GPU is named that there is not.
        RefusedError: a name or a rule is none.
        ValueError, TypeError: `n_gpu_layers` is no number of layers.
    """
    n = None if n_gpu_layers is None else layer_count("n_gpu_layers", n_gpu_layers, least=-1)
    if devices is not None and not isinstance(devices, (str, Sequence)):
        raise TypeError(f"devices={devices!r}: expected names of devices, such as ['CUDA0']")
    given = devices.split(",") if isinstance(devices, str) else [*(devices or ())]
    named = _ikq.named_devices(given, [])
    # what is to be filled is no CPU
    fit = fit and n != 0 and (devices is None or named != ["CPU"])
    if devices is None and n and not fit:
        try:
            cuda.require(memory=False)
        except DeviceError as error:
            raise DeviceError(f"n_gpu_layers={n_gpu_layers}: {error}") from None
        named += cuda.usable_devices(memory=False)
    assumed = _missing(_ikq.named_devices(named, [*override_tensor]), is_plan=is_plan)
    if n is None:
        n = ALL_LAYERS if len(named) > 1 and not fit else 0
    return Devices(named, n, assumed, fit)


def _missing(names: Sequence[str], *, is_plan: bool) -> tuple[str, ...]:
    """GPUs among these that are taken to be there.

    Raises:
        DeviceError: a GPU is not there.
    """
    gpus = [name for name in names if name.startswith("CUDA")]
    there = cuda.usable_devices(memory=False) if gpus else {}
    missing = [name for name in gpus if name not in there]
    if not missing or (is_plan and not there):
        return tuple(missing)
    if not there:
        try:
            cuda.require(memory=False)
        except DeviceError as error:
            raise DeviceError(f"{', '.join(missing)}: {error}") from None
    raise DeviceError(f"there is no device {missing[0]}; there are {', '.join(['CPU', *there])}")


def layer_count(option: str, value: int, *, least: int = 0) -> int:
    """A number of layers; -1, where it may be that, means all.

    Raises:
        ValueError: it is less than `least`.
        TypeError: it is no whole number.
    """
    expected = "expected a number of layers" + (", or -1 for all" if least < 0 else "")
    try:
        n = operator.index(value)
    except TypeError:
        raise TypeError(f"{option}={value!r}: {expected}") from None
    if n < least:
        raise ValueError(f"{option}={n}: {expected}")
    return ALL_LAYERS if n < 0 else min(n, ALL_LAYERS)


def count(option: str, value: int | None, *, least: int = 1) -> None:
    """Refuses what is no number of so many things.

    Raises:
        ValueError: it is less than `least`, or larger than any machine holds.
        TypeError: it is no whole number.
    """
    if value is None:
        return
    try:
        n = operator.index(value)
    except TypeError:
        raise TypeError(f"{option}={value!r}: expected a whole number") from None
    if not least <= n < 2**63:
        raise ValueError(
            f"{option}={n}: expected {least} or more" if n < least else f"{option}={n} is too large"
        )


def shares(devices: Sequence[str], n_gpu_layers: int, tensor_split: Sequence[float]) -> list[float]:
    """In which proportions layers are divided over the devices beside the CPU.

    Args:
        devices: Their names, the CPU first.
        n_gpu_layers: How many layers there are to divide.
        tensor_split: As asked for. Where there is nothing, it is the MiB of each device that are free.
    """
    if isinstance(tensor_split, str):
        raise TypeError(f"tensor_split={tensor_split!r}: expected numbers, such as [3, 1]")
    others = devices[1:]
    if tensor_split or len(others) < 2 or not n_gpu_layers:
        return [float(share) for share in tensor_split]
    gpus = cuda.usable_devices() if any(name.startswith("CUDA") for name in others) else {}
    return [float(max(_free_bytes(gpus.get(name)) >> 20, 1)) for name in others]


def _free_bytes(gpu: cuda.Device | None) -> int:
    """Of a GPU's memory, or of this machine's."""
    if gpu is None:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return gpu["memory_bytes"] if gpu["free_bytes"] is None else gpu["free_bytes"]
