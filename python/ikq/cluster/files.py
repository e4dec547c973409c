"""Files and models that nodes read, known by samples: `NodeFile`, `NodeModel`; and `tokenizer_of`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ikq.cluster.paths import PathRule, mapped, whole
from ikq.errors import RefusedError
from ikq.files.gguf import GGUFReader
from ikq.inference.model import Model
from ikq.statistics.calibrate.state import run_identity
from ikq.tokenizer import Tokenizer

__all__ = ["NodeFile", "NodeModel", "tokenizer_of"]


class NodeFile(NamedTuple):
    """A file, or a model of several, as every node must have it.

    Attributes:
        path: An absolute path of the driver.
        is_model: A GGUF model; all its files count.
        identity: Hash of samples of the files, and of the version of ikq.
    """

    path: str
    is_model: bool
    identity: str

    @classmethod
    def model(cls, path: str | os.PathLike[str]) -> NodeFile:
        """A model.

        Raises:
            FormatError, OSError: it is none, or cannot be read.
        """
        return cls(whole(path), True, _identity(whole(path), is_model=True))

    @classmethod
    def other(cls, path: str | os.PathLike[str]) -> NodeFile:
        """A single file of another kind.

        Raises:
            OSError: it cannot be read.
        """
        return cls(whole(path), False, _identity(whole(path), is_model=False))

    def on_node(self, rules: Iterable[PathRule], names: Sequence[str]) -> str:
        """The path on a node with these names, where the file is the driver's.

        Raises:
            RefusedError: it is another one.
            FormatError, OSError: it cannot be read.
        """
        path = mapped(self.path, rules, names)
        if _identity(path, is_model=self.is_model) != self.identity:
            raise RefusedError(f"{path} is not what the driver has, or its version of ikq differs")
        return path


@dataclass(frozen=True)
class NodeModel:
    """A model that every node loads.

    Attributes:
        file: Its file.
        load: Keywords of `Model.load`.
        rules: Where the driver's paths lie on nodes.
    """

    file: NodeFile
    load: Mapping[str, Any]
    rules: tuple[PathRule, ...]

    def loaded(self, names: Sequence[str]) -> Model:
        """The model, on a node with these names.

        Raises:
            RefusedError: The node has another one.
            IkqError, OSError: As `Model.load`.
        """
        return Model.load(self.file.on_node(self.rules, names), **self.load)


def tokenizer_of(
    model: str | os.PathLike[str], overrides: Mapping[str, bool | int | float | str] | None = None
) -> Tokenizer:
    """The tokenizer of a model's file, where nodes load the model and this process does not.

    Args:
        model: The file.
        overrides: As `override_kv` of `Model.load`.

    Raises:
        FormatError, UnsupportedError: it is damaged or of a kind that ikq does not know.
        OSError: the file cannot be read.
    """
    with GGUFReader(model) as reader:
        reader.metadata.update(overrides or {})
        return Tokenizer.from_reader(reader)


def _identity(path: str, *, is_model: bool) -> str:
    files = [Path(path)]
    if is_model:
        with GGUFReader(path) as reader:
            files = [Path(shard.path) for shard in reader.shards]
    return run_identity(files, np.zeros(0, np.int32), {})
