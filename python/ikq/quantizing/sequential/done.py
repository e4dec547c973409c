"""Which layers are done, and by what: `read_done`, `write_done`, `contents`, `described`."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from ikq.arrays.quant_types import QuantType
from ikq.errors import FormatError
from ikq.files.gguf import GGUFReader
from ikq.quantizing.options import QuantizeOptions
from ikq.statistics.imatrix import Imatrix

__all__ = ["contents", "described", "read_done", "write_done"]

WAY = 2
"""Number of the way in which layers are made; folders of another are not gone on with."""


def described(type: str | QuantType, n_ctx: int, rounds: int, options: QuantizeOptions) -> dict[str, object]:
    """What decides the layers, besides model and text; files by their contents.

    Raises:
        OSError: A file that an option names cannot be read.
    """
    given: dict[str, object] = {}
    for name, value in sorted(options.items()):
        if name == "imatrix" and isinstance(value, Imatrix):
            value = value.path
        if name in ("imatrix", "recipe", "tensor_type_file") and isinstance(value, (str, Path)):
            value = hashlib.sha256(Path(value).read_bytes()).hexdigest()
        given[name] = str(value)
    return {"way": WAY, "type": str(type), "n_ctx": n_ctx, "rounds": rounds, "options": given}


def contents(file: Path) -> str:
    """A hash of what a layer's file says of the bytes of its tensors; `nothing` if there is no such file."""
    try:
        with GGUFReader(file) as reader:
            return hashlib.sha256(repr(reader.metadata.get("ikq.tensor_hashes")).encode()).hexdigest()
    except (OSError, FormatError):
        return "nothing"


def read_done(folder: Path) -> dict[int, tuple[str, str]]:
    """By layer, what the layers before it were when it was done, and what it was; nothing if nobody knows."""
    try:
        found = json.loads((folder / "done.json").read_text())
        return {int(layer): (str(before), str(after)) for layer, (before, after) in found.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def write_done(folder: Path, done: dict[int, tuple[str, str]]) -> None:
    """Writes what `read_done` reads."""
    path = folder / "done.json.new"
    path.write_text(json.dumps(done))
    path.replace(folder / "done.json")
