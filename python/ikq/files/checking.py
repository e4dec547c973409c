"""What is wrong with a GGUF file, and who can use it."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np

from ikq import _ikq
from ikq.arrays.quant_types import QuantType
from ikq.arrays.tensor import QTensor
from ikq.errors import FormatError, IkqError, ShapeError, UnsupportedError
from ikq.files.blocks import blocks
from ikq.files.gguf import GGUFReader
from ikq.models import model_spec
from ikq.tokenizer import Tokenizer

__all__ = ["NotFinite", "Report", "check_file"]


@dataclass(frozen=True)
class NotFinite:
    """A tensor with values that are not numbers.

    Attributes:
        tensor: Its name.
        count: How many there are.
        place: Index of the first: experts, row, column.
        value: `nan`, `inf` or `-inf`.
    """

    tensor: str
    count: int
    place: tuple[int, ...]
    value: str

    def __str__(self) -> str:
        names = ("expert", "row", "column")[-len(self.place) :] if len(self.place) <= 3 else ()
        at = ", ".join(f"{n} {i}" for n, i in zip(names, self.place, strict=True)) or f"index {self.place}"
        return (
            f"tensor `{self.tensor}`: {self.count} values are not finite, the first is {self.value} at {at}"
        )


@dataclass(frozen=True)
class Report:
    """What was found."""

    problems: tuple[str, ...]
    """Everything that is wrong with the file."""
    structure: tuple[str, ...]
    """One line per file of the set."""
    architecture: str
    is_supported: bool
    """Whether ikq can run the model."""
    why_not: str
    tokenizer: str
    types: dict[str, int]
    """Number of tensors of each type."""
    loaded_by: tuple[str, ...]
    """Programs that know every type."""
    not_finite: tuple[NotFinite, ...]
    not_scanned: tuple[str, ...]
    """Tensors whose values could not be checked because their type cannot be decoded."""
    n_scanned: int
    n_hashed: int = 0
    """Tensors that were compared with the hash that ikq wrote into the file."""
    changed: tuple[str, ...] = ()
    """Tensors whose bytes do not match that hash."""

    @property
    def is_fine(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def check_file(path: str | os.PathLike[str], *, values: bool = False) -> Report:
    """Checks a file or split set.

    Opening it checks the structure: header, metadata, offsets, alignment, sizes, split keys; a file that
    fails there has this one problem. An architecture that ikq does not run is no problem.

    Args:
        path: The file, or any shard.
        values: Decode every tensor and look for values that are not finite; in files that ikq has quantized,
            also compare every tensor with the hash that was written with it.

    Raises:
        OSError: it cannot be read.
    """
    try:
        reader = GGUFReader(path)
    except FormatError as e:
        return Report((str(e),), (), "", False, "", "", {}, (), (), (), 0)
    with reader:
        problems: list[str] = []
        architecture, why_not = _architecture(reader, problems)
        tokenizer = _tokenizer(reader, problems)
        tensors = _tensors(reader, problems)
        types: dict[str, int] = {}
        known: list[set[str]] = []
        for name, tensor in tensors.items():
            if isinstance(tensor.type, QuantType):
                shown = tensor.type.name
                known.append(set(tensor.type.known_to))
            else:
                shown = f"unknown type {tensor.type}"
                known.append(set())
                problems.append(f"tensor `{name}` has type {tensor.type}, which ikq does not know")
            types[shown] = types.get(shown, 0) + 1
        not_finite: list[NotFinite] = []
        not_scanned: list[str] = []
        for name, tensor in tensors.items() if values else ():
            try:
                found = _scan(name, tensor)
            except UnsupportedError:
                not_scanned.append(name)
                continue
            if found is not None:
                not_finite.append(found)
                problems.append(str(found))
        n_hashed, changed = _ikq.changed_tensors(reader._opened(), n_threads=None) if values else (0, [])
        problems += [
            f"tensor `{name}` has other bytes than ikq wrote: damage, or another program has changed it"
            for name in changed
        ]
        structure = tuple(
            f"{s.path}: version {s.version}, alignment {s.alignment}, {s.n_tensors} tensors, {s.nbytes} bytes"
            for s in reader.shards
        )
        return Report(
            problems=tuple(problems),
            structure=structure,
            architecture=architecture,
            is_supported=not why_not,
            why_not=why_not,
            tokenizer=tokenizer,
            types=types,
            loaded_by=tuple(sorted(set.intersection(*known))) if known else (),
            not_finite=tuple(not_finite),
            not_scanned=tuple(not_scanned),
            n_scanned=len(tensors) - len(not_scanned) if values else 0,
            n_hashed=n_hashed,
            changed=tuple(changed),
        )


def _tensors(reader: GGUFReader, problems: list[str]) -> dict[str, QTensor]:
    """Tensors whose shapes arrays can have."""
    found = {}
    for name in reader.tensors:
        try:
            found[name] = reader.tensors[name]
        except ShapeError as e:
            problems.append(f"tensor `{name}`: {e}")
    return found


def _architecture(reader: GGUFReader, problems: list[str]) -> tuple[str, str]:
    """The architecture, and why ikq does not run it."""
    kind: object = reader.metadata.get("general.type", "model")
    if kind != "model":
        return f"none ({kind!s:.40} file)", "it holds no model"
    name = str(reader.metadata.get("general.architecture", "none"))
    try:
        model_spec(reader)
    except UnsupportedError as e:
        return name, str(e)
    except (FormatError, ShapeError) as e:
        problems.append(str(e))
        return name, str(e)
    return name, ""


def _tokenizer(reader: GGUFReader, problems: list[str]) -> str:
    if reader.metadata.get("tokenizer.ggml.model", "no_vocab") == "no_vocab":
        return "none"
    try:
        found = Tokenizer.from_reader(reader)
    except UnsupportedError as e:
        return f"not supported: {e}"
    except IkqError as e:
        problems.append(str(e))
        return "damaged"
    return f"{found.model}{f' ({found.pre})' if found.pre else ''}, {found.n_vocab} tokens"


def _scan(name: str, tensor: QTensor) -> NotFinite | None:
    count, value = 0, ""
    first: tuple[int, ...] = ()
    for start, values in blocks(tensor):
        wrong = ~np.isfinite(values)
        n = int(wrong.sum())
        if n and not count:
            row, column = divmod(int(wrong.argmax()), values.shape[-1])
            place = [*start]
            place[-1] = column
            if len(place) > 1:
                place[-2] += row
            first, value = tuple(place), str(values[row, column])
        count += n
    return NotFinite(name, count, first, value) if count else None
