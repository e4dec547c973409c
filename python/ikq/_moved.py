"""Modules that were moved: `import ikq.gguf` still finds `ikq.files.gguf`, with a `DeprecationWarning`.

This works for one release. Type checkers only know the new places.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from importlib.abc import Loader

__all__ = ["MOVED", "install", "moved_module"]

MOVED = {
    "activations": "statistics.activations",
    "asynchronous": "text.asynchronous",
    "batching": "inference.batching",
    "calibrate": "statistics.calibrate",
    "chat": "text.chat",
    "covariance": "statistics.covariance",
    "coverage": "quantizing.coverage",
    "fields": "arrays.fields",
    "generate": "text.generate",
    "gguf": "files.gguf",
    "imatrix": "statistics.imatrix",
    "kept": "inference.kept",
    "kernels": "speed.kernels",
    "measure": "speed.measure",
    "model": "inference.model",
    "pipeline": "quantizing.pipeline",
    "quant_types": "arrays.quant_types",
    "quantize_options": "quantizing.options",
    "reasoning": "text.reasoning",
    "report": "quantizing.report",
    "sequence": "inference.sequence",
    "sequential": "quantizing.sequential",
    "steps": "inference.steps",
    "stopping": "text.stopping",
    "template_sandbox": "text.template_sandbox",
    "templates": "text.templates",
    "tensor": "arrays.tensor",
    "text_files": "files.text_files",
    "tools": "text.tools",
    "type_speeds": "speed.type_speeds",
    "whole_file": "files.whole_file",
}
"""Old place to new one, both within `ikq`; folders with all that is in them.

`ikq.arrays` and `ikq.text` became folders that still give the names which the modules had.
"""


def _place_now(name: str) -> str | None:
    """Where the module of that full name is now; `None`: it is not one that was moved."""
    package, _, path = name.partition(".")
    head, *rest = path.split(".")
    return ".".join([package, MOVED[head], *rest]) if package == "ikq" and head in MOVED else None


def _warn(name: str, now: str, stacklevel: int) -> None:
    # frames of the import system are not counted: the line that imports is the one to change
    text = f"{name} is {now} now; the old name goes with the next release"
    warnings.warn(text, DeprecationWarning, stacklevel)


class _MovedModules:
    """Finds and loads old names as the modules of the new ones: the same objects, so that patches hold."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        now = _place_now(name)
        if now is None:
            return None
        _warn(name, now, 3)
        return ModuleSpec(name, cast("Loader", self), origin=now)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = importlib.import_module(str(spec.origin))
        # importing sets the attribute below to what stands for the old name
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__ = module.__spec__.loader_state


def moved_module(name: str) -> ModuleType:
    """The module that `ikq.NAME` was, for the `__getattr__` of `ikq`; the warning points at its caller."""
    now = f"ikq.{MOVED[name]}"
    _warn(f"ikq.{name}", now, 4)
    return importlib.import_module(now)


def install() -> None:
    """Registers a finder of old names before all others, which would load a folder's modules twice."""
    if not any(isinstance(finder, _MovedModules) for finder in sys.meta_path):
        sys.meta_path.insert(0, _MovedModules())
