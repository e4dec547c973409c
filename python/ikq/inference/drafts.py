"""How draft models are loaded of which only the file is given: `DraftOptions`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ikq.errors import RefusedError
from ikq.files.gguf import GGUFReader
from ikq.inference.devices import ALL_LAYERS
from ikq.inference.gpu_parts import rules_for_the_cpu
from ikq.models import model_spec

__all__ = ["SHARED", "DraftOptions", "last_device"]

SHARED = ("n_ubatch", "cache_type_k", "cache_type_v", "compute", "mmap")
"""Options of `Model.load` that a draft model has from its model, besides positions and threads."""


@dataclass(frozen=True)
class DraftOptions:
    """How draft models are loaded.

    Unless it is said where, a draft model is computed on one device as a whole, as far as that can: it is
    small, and its layers would wait for one another on several. Its model's last layers and logits are there.

    Attributes:
        shared: Keywords of `Model.load` that are those of the model.
        device: Where it is computed.
        given: Keywords that come before all these.
        rooms: How large their caches may become on GPUs, see `CacheRooms`.
    """

    shared: Mapping[str, Any] = field(default_factory=dict)
    device: str = "CPU"
    given: Mapping[str, Any] = field(default_factory=dict)
    rooms: tuple[tuple[str, int, int], ...] = ()

    def __post_init__(self) -> None:
        if "fit" in self.given:
            raise RefusedError(
                "draft_options: fit is an option of the model that is drafted for, and leaves room for drafts"
            )

    def of(self, path: str | os.PathLike[str]) -> dict[str, Any]:
        """Keywords of `Model.load` for a file.

        Raises:
            OSError, FormatError, UnsupportedError: as `Model.load`.
        """
        return {**self.shared, **self._placement(path), **self.given}

    def _placement(self, path: str | os.PathLike[str]) -> dict[str, Any]:
        if self.device == "CPU" or {"devices", "n_gpu_layers"} & self.given.keys():
            return {}
        with GGUFReader(path) as reader:
            staying = rules_for_the_cpu(model_spec(reader)) if self.device.startswith("CUDA") else ()
        return {
            "devices": ["CPU", self.device],
            "n_gpu_layers": ALL_LAYERS,
            "override_tensor": list(staying),
        }


def last_device(placed: Iterable[str]) -> str:
    """The last device beside the CPU on which stages of a model are, given those of all in order."""
    return next((name for name in reversed(list(placed)) if name != "CPU"), "CPU")
