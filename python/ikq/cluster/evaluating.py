"""Perplexity and divergence, by nodes: `perplexity_on_cluster`, `divergence_on_cluster`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ikq.cluster.chunks import chunk_values
from ikq.cluster.files import NodeFile, NodeModel, tokenizer_of
from ikq.cluster.growing import Growing
from ikq.cluster.paths import PathRule
from ikq.errors import FormatError, RefusedError, UnsupportedError
from ikq.evaluate.base_file import Base, ModelBase
from ikq.evaluate.divergence import (
    Divergence,
    Part,
    check_vocabulary,
    joined,
    open_base,
    window_parts,
)
from ikq.evaluate.perplexity import Perplexity, estimate, window_losses
from ikq.evaluate.windows import Windows, window_bos
from ikq.inference.model import Model

__all__ = ["divergence_on_cluster", "perplexity_on_cluster"]


@dataclass(frozen=True)
class _Scoring:
    """What every node needs for the perplexity of a model.

    Attributes:
        model: The model.
        windows: The text.
    """

    model: NodeModel
    windows: Windows

    def __call__(self, names: Sequence[str]) -> Callable[[int], NDArray[np.float64]]:
        """Loads the model; gives what makes the losses of a window."""
        model = self.model.loaded(names)
        return lambda number: window_losses(model, self.windows, number)


@dataclass(frozen=True)
class _Comparing:
    """What every node needs for the distance of a model from a base.

    Attributes:
        model: The model.
        base: The base: a file of distributions, or a model, which is loaded as the other one.
        windows: The text.
    """

    model: NodeModel
    base: NodeFile
    windows: Windows

    def __call__(self, names: Sequence[str]) -> Callable[[int], list[Part]]:
        """Loads the models; gives what makes the parts of a window."""
        # both files are looked at before the first one is loaded, which may take minutes
        path = self.base.on_node(self.model.rules, names)
        model = self.model.loaded(names)
        base: Base
        if self.base.is_model:
            base = ModelBase(Model.load(path, **self.model.load), self.windows)
        else:
            base = open_base(path, self.windows.bos)
        check_vocabulary(model, base)
        return lambda number: window_parts(model, base, number)


def perplexity_on_cluster(
    model: str | os.PathLike[str],
    windows: Windows,
    address: str,
    *,
    load: Mapping[str, Any] | None = None,
    path_map: Sequence[PathRule] = (),
    n_cpus: int | None = None,
    on_note: Callable[[str], None] | None = None,
) -> Iterator[Perplexity]:
    """`measure_perplexity` on the nodes of a Ray cluster: the same results, bit for bit.

    Every node loads the model and runs windows; those of a node that dies are run by others.

    Args:
        model: The model's file, which every node has.
        windows: The text, from `cut`.
        address: `local`, or `HOST:PORT` of the head of a cluster.
        load: Keywords of `Model.load`; the context is always that of a window.
        path_map: Where files lie on nodes that have them elsewhere.
        n_cpus: CPUs of a `local` cluster.
        on_note: Called with what the user should know, among it how fast nodes are.

    Raises:
        ikq.errors.UnsupportedError: Ray is not installed.
        ikq.errors.RefusedError: No cluster is there; a node has another model.
        ikq.errors.IkqError: As `Model.load` and `measure_perplexity`, by node; workers die again and again.
        OSError: A file is not there on a node, by name.
    """
    job = _Scoring(_node_model(model, load, path_map, windows), windows)
    losses = Growing()
    values = chunk_values(job, 0, windows.n, address, n_tokens=windows.n_ctx, n_cpus=n_cpus, on_note=on_note)
    for i, found in enumerate(values):
        yield estimate(losses.add(found), i + 1)


def divergence_on_cluster(
    model: str | os.PathLike[str],
    base: str | os.PathLike[str],
    address: str,
    *,
    windows: Windows | None = None,
    chunks: int = -1,
    load: Mapping[str, Any] | None = None,
    path_map: Sequence[PathRule] = (),
    n_cpus: int | None = None,
    on_note: Callable[[str], None] | None = None,
) -> Iterator[Divergence]:
    """`measure_divergence` on the nodes of a Ray cluster: the same results, bit for bit.

    Args:
        model: The model's file, which every node has.
        base: What it is compared with, which every node has, too: a base file, or a model if `windows` are
            given.
        address: As for `perplexity_on_cluster`.
        windows: The text, from `cut`, without a stride; a base file has it itself.
        chunks: Most windows; all if negative.
        load: As for `perplexity_on_cluster`, of both models.
        path_map: As there.
        n_cpus: As there.
        on_note: As there.

    Raises:
        ikq.errors.IkqError, OSError: As `perplexity_on_cluster`, and `open_base`.
    """
    if windows is None:
        known = NodeFile.other(base)
        # a file that is none is refused before the model's is looked at
        open_base(base)
        windows = open_base(base, _bos(model, load)).windows
    else:
        known = NodeFile.model(base)
    n = windows.n if chunks < 0 else min(chunks, windows.n)
    if not n:
        raise RefusedError("0 windows: nothing to measure")
    job = _Comparing(_node_model(model, load, path_map, windows), known, windows)
    parts: list[Part] = []
    values = chunk_values(job, 0, n, address, n_tokens=windows.n_ctx, n_cpus=n_cpus, on_note=on_note)
    for i, found in enumerate(values):
        parts += found
        yield joined(parts, i + 1)


def _node_model(
    model: str | os.PathLike[str],
    load: Mapping[str, Any] | None,
    path_map: Sequence[PathRule],
    windows: Windows,
) -> NodeModel:
    return NodeModel(NodeFile.model(model), {**(load or {}), "n_ctx": windows.n_ctx}, tuple(path_map))


def _bos(model: str | os.PathLike[str], load: Mapping[str, Any] | None) -> int | None:
    """The token that windows begin with; none where the file has no tokenizer."""
    try:
        return window_bos(tokenizer_of(model, (load or {}).get("override_kv")))
    except (FormatError, UnsupportedError):
        return None
