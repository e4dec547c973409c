"""LoRA adapters beside a model's matrices: `LoraAdapter`."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TypeAlias

from ikq import _ikq
from ikq.errors import RefusedError
from ikq.files.gguf import GGUFReader

__all__ = ["Adapters", "LoraAdapter", "Scales", "adapters_of"]

Scales: TypeAlias = tuple[float, ...]
"""A scale for each of a model's adapters, in their order."""


@dataclass(frozen=True)
class LoraAdapter:
    """A LoRA adapter of a model, which is added to its products and changes none of its weights.

    A matrix W with the adapter's A and B gives `W x + scale * alpha / rank * B (A x)`; where alpha is 0 the
    scale counts alone.

    Attributes:
        path: A GGUF file, as `convert_adapter` writes it.
        scale: The user's part of the scale; 0: the adapter is loaded and has no effect.
    """

    path: str | os.PathLike[str]
    scale: float = 1.0

    def __post_init__(self) -> None:
        if isinstance(self.scale, bool) or not math.isfinite(self.scale):
            raise RefusedError(f"LoRA adapter {os.fspath(self.path)}: a scale of {self.scale}")


Adapters: TypeAlias = Iterable[LoraAdapter | str | os.PathLike[str]]
"""Adapters, or only their files where the scale is 1."""


def adapters_of(lora: Adapters) -> tuple[LoraAdapter, ...]:
    """Adapters of what `Model.load` takes.

    Raises:
        RefusedError: a scale is no finite number.
    """
    if isinstance(lora, (str, os.PathLike)):
        lora = (lora,)
    return tuple(a if isinstance(a, LoraAdapter) else LoraAdapter(a) for a in lora)


def opened(adapters: Iterable[LoraAdapter], stack: ExitStack) -> list[tuple[_ikq.Model, str, float]]:
    """Adapters as the engine takes them; the stack closes their files.

    Raises:
        OSError: a file cannot be read.
        FormatError: it is not GGUF, or damaged.
    """
    found = []
    for adapter in adapters:
        reader = stack.enter_context(GGUFReader(adapter.path))
        found.append((reader._opened(), os.fspath(adapter.path), float(adapter.scale)))
    return found
