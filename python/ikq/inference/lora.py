"""LoRA adapters beside a model's matrices: `LoraAdapter`."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from ikq import _ikq
from ikq.errors import FormatError, RefusedError
from ikq.files.gguf import GGUFReader

__all__ = ["MAX_SCALE", "Adapters", "LoraAdapter", "Scales", "adapters_of"]

MAX_SCALE = float(np.finfo(np.float32).max)
"""The largest scale of an adapter."""
_NO_NUMBER = re.compile(r"`(.+\.lora_[ab])` holds ")

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
        if not os.fspath(self.path):
            raise RefusedError("a LoRA adapter without the name of its file")
        # products are scaled in float32
        if isinstance(self.scale, bool) or math.isnan(self.scale) or abs(self.scale) > MAX_SCALE:
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
        FormatError: it is not GGUF, or damaged, or has a pair of the rank 0.
    """
    found = []
    for adapter in adapters:
        reader = stack.enter_context(GGUFReader(adapter.path))
        for name, tensor in reader.tensors.items():
            if 0 in tensor.shape:
                raise FormatError(
                    f"LoRA adapter {os.fspath(adapter.path)}: `{name}` has the shape {list(tensor.shape)}, "
                    "which holds no number"
                )
        found.append((reader._opened(), os.fspath(adapter.path), float(adapter.scale)))
    return found


def with_file(error: FormatError, adapters: Iterable[LoraAdapter]) -> FormatError:
    """The same error with the adapter's file, where it is of a number in one of its matrices."""
    said = _NO_NUMBER.match(str(error))
    for adapter in adapters if said else ():
        assert said is not None
        with GGUFReader(adapter.path) as reader:
            tensor = reader.tensors.get(said[1])
            if tensor is not None and not np.isfinite(tensor.dequantize()).all():
                return FormatError(f"LoRA adapter {os.fspath(adapter.path)}: {error}")
    return error
