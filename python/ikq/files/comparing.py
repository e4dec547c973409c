"""What is different between two GGUF files: metadata, tensors, types, shapes, and values."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from ikq.arrays.quant_types import QuantType
from ikq.arrays.tensor import QTensor
from ikq.errors import UnsupportedError
from ikq.files.blocks import blocks, common_rows
from ikq.files.gguf import GGUFReader, Metadata

__all__ = ["Comparison", "TensorDifference", "compare_files"]


@dataclass(frozen=True)
class TensorDifference:
    """A tensor that both files have, and that is not the same in both."""

    name: str
    types: tuple[str, str]
    shapes: tuple[tuple[int, ...], tuple[int, ...]]
    relative_error: float | None
    """Root mean square of the differences over that of the first file's values; None if not compared."""
    largest: float | None
    """Largest difference of a value."""
    why_not: str
    """Why values were not compared."""


@dataclass(frozen=True)
class Comparison:
    """All differences."""

    added: dict[str, object] = field(default_factory=dict)
    """Metadata that only the second file has."""
    removed: dict[str, object] = field(default_factory=dict)
    """Metadata that only the first file has."""
    changed: dict[str, tuple[object, object]] = field(default_factory=dict)
    """Metadata whose value or type differs; in the latter case the type is given with the value."""
    only_first: tuple[str, ...] = ()
    """Tensors that only the first file has."""
    only_second: tuple[str, ...] = ()
    reordered: bool = False
    """Whether the tensors that both have come in another order."""
    tensors: tuple[TensorDifference, ...] = ()
    n_same: int = 0
    """Tensors that are the same, byte for byte."""

    @property
    def is_same(self) -> bool:
        """Whether there is no difference."""
        metadata = self.added or self.removed or self.changed
        tensors = self.only_first or self.only_second or self.tensors or self.reordered
        return not metadata and not tensors


def compare_files(
    first: GGUFReader, second: GGUFReader, *, values: bool = True, ignore: Iterable[str] = ()
) -> Comparison:
    """Compares two files, or split sets.

    Args:
        first: The one that errors are relative to.
        second: The other.
        values: Whether differing tensors are decoded; bytes are always compared.
        ignore: Metadata that do not count.
    """
    a, b = first.metadata, second.metadata
    keys = [[k for k in m if k not in set(ignore)] for m in (a, b)]
    both = [k for k in keys[0] if k in b]
    names = [list(r.tensors) for r in (first, second)]
    common = [n for n in names[0] if n in second.tensors]
    differences = []
    for name in common:
        x, y = first.tensors[name], second.tensors[name]
        if not x.equals(y):
            differences.append(_difference(name, x, y, values=values))
    return Comparison(
        added={k: b[k] for k in keys[1] if k not in a},
        removed={k: a[k] for k in keys[0] if k not in b},
        changed={
            k: _change(a, b, k)
            for k in both
            if (a.type_of(k), _nan_safe(a[k])) != (b.type_of(k), _nan_safe(b[k]))
        },
        only_first=tuple(n for n in names[0] if n not in second.tensors),
        only_second=tuple(n for n in names[1] if n not in first.tensors),
        reordered=common != [n for n in names[1] if n in first.tensors],
        tensors=tuple(differences),
        n_same=len(common) - len(differences),
    )


def _change(a: Metadata, b: Metadata, key: str) -> tuple[object, object]:
    if a.type_of(key) == b.type_of(key):
        return a[key], b[key]
    return f"{a.type_of(key)} {a[key]!r:.200}", f"{b.type_of(key)} {b[key]!r:.200}"


def _nan_safe(value: object) -> object:
    """NaN is equal to itself here."""
    if isinstance(value, float) and math.isnan(value):
        return "nan"
    return [_nan_safe(v) for v in value] if isinstance(value, list) and any(v != v for v in value) else value


def _difference(name: str, x: QTensor, y: QTensor, *, values: bool) -> TensorDifference:
    types, shapes = (type_name(x), type_name(y)), (x.shape, y.shape)
    if x.shape != y.shape:
        return TensorDifference(name, types, shapes, None, None, "shapes differ")
    if not values:
        return TensorDifference(name, types, shapes, None, None, "not asked for")
    error = norm = largest = 0.0
    together = common_rows(x, y)
    try:
        for p, q in zip(blocks(x, together=together), blocks(y, together=together), strict=True):
            a, b = p.values.astype(np.float64), q.values.astype(np.float64)
            # values that are the same, infinite ones too, differ by nothing
            with np.errstate(invalid="ignore"):
                d = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, a - b)
            error += float((d * d).sum())
            norm += float((a * a).sum())
            largest = max(largest, float(np.abs(d).max(initial=0)))
    except UnsupportedError as e:
        return TensorDifference(name, types, shapes, None, None, str(e))
    relative = math.sqrt(error / norm) if norm else (math.inf if error else 0.0)
    return TensorDifference(name, types, shapes, relative, largest, "")


def type_name(t: QTensor) -> str:
    """The type in lower case, or its number."""
    return t.type.name.lower() if isinstance(t.type, QuantType) else f"unknown type {t.type}"
