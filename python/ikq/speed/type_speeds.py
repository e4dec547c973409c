"""The speed of products with each type on this machine, measured and stored.

Matrices of random codes, more of them than caches hold, are multiplied with some numbers of columns (tokens)
by the kernels that models run. What was measured is kept in a file of the user, by machine, instruction set
and number of threads: `ikq bench types` shows it, `ikq recipe` predicts speeds with it.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ikq import _ikq
from ikq.arrays.coding import isa as isa_in_use
from ikq.arrays.quant_types import QuantType, as_type
from ikq.errors import FormatError
from ikq.files.whole_file import whole_file

__all__ = ["COUNTS", "TypeSpeed", "kept_type_speeds", "machine_name", "measure_type_speeds"]

COUNTS = (1, 2, 4, 8, 32, 512)
"""Numbers of columns that products are measured with."""


@dataclass(frozen=True)
class TypeSpeed:
    """How long products with a type take.

    Attributes:
        type: The type.
        isa: The instruction set.
        n_threads: Threads that work at once, on common phases of a few matrices.
        bytes_per_weight: In memory, in the form that kernels read.
        seconds: Per weight, for each number of columns of `COUNTS`, all threads together, with their waits.
        read: Bytes per second that the threads read of the same memory when they do nothing else.
        peak: Multiply-adds per second of the dot instruction with operands in registers, if there is one.
    """

    type: QuantType
    isa: str
    n_threads: int
    bytes_per_weight: float
    seconds: tuple[float, ...]
    read: float
    peak: float | None

    def per_weight(self, n: float) -> float:
        """Seconds per weight of a product with `n` columns, which need be no whole number."""
        last = COUNTS[-1]
        return float(np.interp(min(n, last), COUNTS, self.seconds)) * max(n, last) / last

    def gmacs(self, n: int) -> float:
        """Billions of multiply-adds per second with `n` columns."""
        return n / self.per_weight(n) / 1e9

    def gbs(self, n: int) -> float:
        """Billions of bytes of weights per second with `n` columns."""
        return self.bytes_per_weight / self.per_weight(n) / 1e9

    def roofline(self, n: int) -> float:
        """Share of the roofline: what reading memory and multiplying take side by side over what it takes."""
        least = max(self.bytes_per_weight / self.read, 0.0 if self.peak is None else n / self.peak)
        return least / self.per_weight(n)

    def _to_json(self) -> dict[str, Any]:
        return {
            "bytes_per_weight": self.bytes_per_weight,
            "seconds": dict(zip(map(str, COUNTS), self.seconds, strict=True)),
            "read": self.read,
            "peak": self.peak,
        }


def machine_name() -> str:
    """The processor's name, as far as the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def kept_file(path: Path | None) -> Path:
    """`path`, or where speeds are kept: `ikq/type-speeds.json` in the user's cache."""
    if path is not None:
        return path
    folder = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(folder) / "ikq" / "type-speeds.json"


def kept_entries(isa: str | None, n_threads: int | None, path: Path | None) -> dict[str, Any]:
    """What is kept for this machine, an instruction set and a number of threads, as it stands in the file.

    Raises:
        ikq.errors.FormatError: The file is damaged.
    """
    file = kept_file(path)
    try:
        found = json.loads(file.read_text(encoding="utf-8")).get(_key(isa, n_threads), {})
        return dict(found)
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, AttributeError) as e:
        raise damaged(file, e) from None


def keep_entries(
    isa: str | None, n_threads: int | None, path: Path | None, entries: Mapping[str, Any]
) -> None:
    """Adds entries to those that are kept."""
    file = kept_file(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    everything = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    everything[_key(isa, n_threads)] = kept_entries(isa, n_threads, path) | dict(entries)
    with whole_file(file) as f:
        f.write(json.dumps(everything, indent=1).encode())


def damaged(file: Path, e: Exception) -> FormatError:
    """What to say of a file that is none."""
    return FormatError(f"{file} is damaged ({e}); remove it, and speeds are measured again")


def _key(isa: str | None, n_threads: int | None) -> str:
    return f"{machine_name()}, {isa or isa_in_use()}, {n_threads or os.cpu_count()} threads"


def kept_type_speeds(
    *, isa: str | None = None, n_threads: int | None = None, path: Path | None = None
) -> dict[QuantType, TypeSpeed]:
    """What was measured on this machine.

    Args:
        isa: The instruction set; `None`: the one in use.
        n_threads: Threads; `None`: one per CPU.
        path: The file; `None`: `ikq/type-speeds.json` in the user's cache.

    Raises:
        ikq.errors.FormatError: The file is damaged.
    """
    types = kept_entries(isa, n_threads, path).get("types", {})
    try:
        return {
            as_type(name): TypeSpeed(
                type=as_type(name),
                isa=isa or isa_in_use(),
                n_threads=n_threads or os.cpu_count() or 1,
                bytes_per_weight=float(found["bytes_per_weight"]),
                seconds=tuple(float(found["seconds"][str(n)]) for n in COUNTS),
                read=float(found["read"]),
                peak=None if found["peak"] is None else float(found["peak"]),
            )
            for name, found in types.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise damaged(kept_file(path), e) from None


def measure_type_speeds(
    types: Iterable[QuantType],
    *,
    isa: str | None = None,
    n_threads: int | None = None,
    again: bool = False,
    path: Path | None = None,
    progress: Callable[[TypeSpeed], None] | None = None,
) -> dict[QuantType, TypeSpeed]:
    """Measures types, about a second each, and keeps the result; those that are kept are not measured again.

    Other work on the machine makes the figures wrong.

    Args:
        types: The types.
        isa: As for `kept_type_speeds`.
        n_threads: As for `kept_type_speeds`.
        again: Measure all of them.
        path: As for `kept_type_speeds`.
        progress: Called after each type that was measured.

    Raises:
        ikq.errors.FormatError: The file is damaged, or products cannot have a type.
        ikq.errors.UnsupportedError: The machine lacks the instruction set.
    """
    found = kept_type_speeds(isa=isa, n_threads=n_threads, path=path)
    wanted = list(dict.fromkeys(types))
    threads = n_threads or os.cpu_count() or 1
    new: dict[QuantType, TypeSpeed] = {}
    try:
        for t in wanted:
            if t in found and not again:
                continue
            n_weights, n_bytes, seconds, read, peak = _ikq.product_speeds(t, list(COUNTS), n_threads, isa)
            new[t] = TypeSpeed(
                type=t,
                isa=isa or isa_in_use(),
                n_threads=threads,
                bytes_per_weight=n_bytes / n_weights,
                seconds=tuple(s / n_weights / threads for s in seconds),
                read=read,
                peak=peak,
            )
            if progress is not None:
                progress(new[t])
    finally:
        found |= new
        if new:
            kept = {t.name: s._to_json() for t, s in found.items()}
            keep_entries(isa, n_threads, path, {"types": kept})
    return {t: found[t] for t in wanted}
