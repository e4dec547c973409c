"""What a node is told of a run: `Job`; what it answers: `Batch`, `Failure`."""

from __future__ import annotations

import builtins
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ikq import errors
from ikq.cluster.paths import PathRule, whole
from ikq.quantizing.options import QuantizeOptions
from ikq.statistics.imatrix import Imatrix

__all__ = ["FILES", "Batch", "Failure", "Job", "travelling"]

FILES = ("imatrix", "error_feedback", "recipe", "tensor_type_file")
"""Options that name files, which nodes read."""


@dataclass(frozen=True)
class Job:
    """A run, as every node needs it.

    Attributes:
        key: Tells it from other runs.
        source: The source, an absolute path of the driver.
        type: TYPE.
        options: As `travelling` makes them.
        rules: Where the driver's paths lie on nodes.
        measure_errors, clamp: As in `QuantizePlan.run`.
        identity: Hash of all that decides the bytes; a node that has another one must not work.
        partials: Files that nodes write into, in order; empty where they send what they made.
        probe: A file beside them that is there for this run only.
    """

    key: str
    source: str
    type: str
    options: QuantizeOptions
    rules: tuple[PathRule, ...]
    measure_errors: bool
    clamp: bool
    identity: int
    partials: tuple[str, ...] = ()
    probe: str = ""


@dataclass(frozen=True)
class Failure:
    """An exception of a node, in words that the driver raises again.

    Attributes:
        kind: Name of a class of `ikq.errors`, or of Python's own.
        words: What it is made of.
    """

    kind: str
    words: tuple[Any, ...]

    @classmethod
    def of(cls, error: BaseException, node: str) -> Failure:
        """What happened, with the node that it happened on."""
        if isinstance(error, OSError) and error.errno is not None:
            return cls(
                type(error).__name__, (error.errno, f"{error.strerror} on node {node}", error.filename)
            )
        return cls(type(error).__name__, (f"node {node}: {error}",))

    def exception(self) -> Exception:
        """The exception; of a class that is not known, `IkqError`."""
        found = getattr(errors, self.kind, None) or getattr(builtins, self.kind, None)
        if isinstance(found, type) and issubclass(found, (errors.IkqError, OSError, MemoryError)):
            return found(*self.words)
        return errors.IkqError(*self.words)


@dataclass(frozen=True)
class Batch:
    """What a node made of some units.

    Attributes:
        node: Its name.
        seconds: Time that it took.
        n_bytes: Bytes of results, sent or written.
        units: Number, record and bytes of each; no bytes where they are written.
        failure: What kept it from the next one.
    """

    node: str
    seconds: float = 0.0
    n_bytes: int = 0
    units: list[tuple[int, bytes, bytes | None]] = field(default_factory=list)
    failure: Failure | None = None


def travelling(options: Mapping[str, Any]) -> QuantizeOptions:
    """Options for nodes: paths are absolute, an `Imatrix` is its path, and nothing is about output files."""
    # nodes may hold the files under other names, and their plans are not what is written
    left_out = ("split_max_size", "split_max_tensors", "no_tensor_first_split", "keep_split")
    kept: dict[str, Any] = {name: value for name, value in options.items() if name not in left_out}
    for name in FILES:
        value = kept.get(name)
        if value is not None:
            kept[name] = whole(value.path if isinstance(value, Imatrix) else value)
    travels: QuantizeOptions = kept  # type: ignore[assignment]  # the same keys, without some
    return travels
