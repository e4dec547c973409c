"""Covariances of the inputs of matrices, for `quantize --error-feedback`: `Covariances`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from ikq import _ikq
from ikq.errors import RefusedError

__all__ = ["Covariances", "InputCovariance", "LayerBytes", "covariance_bytes", "covariance_passes"]

_BLOCK = re.compile(r"blk\.(\d+)\.(.+)\.weight")
# Projections of the attention's input, and of a stream that a feed-forward network reads.
_ATTENTION = re.compile(r"attn_(q|k|v|qkv|q_a|kv_a_mqa|gate)")
_STREAM = re.compile(r"ffn_(gate|up)")


class InputCovariance(NamedTuple):
    """The covariance of an input.

    Attributes:
        tensors: Tensors that read it, each with the group that it reads; None: its matrices read one each, or
            all of them the only one.
        counts: Tokens of each group (expert), float32 `(n_group,)`.
        sums: Sums over tokens of x x^T, float32 `(n_group, k, k)`.
        start_groups: Of the first token of each text the groups that it reached, uint32 `(n_start,)`.
        starts: What it was there, float32 `(n_start, k)`; a part of `sums`, too. Error feedback has what they
            have in common count as often as a text has tokens where keys and values are made of it, and each
            at most as much as 16 other tokens elsewhere. Files of older versions have none.
    """

    tensors: tuple[tuple[str, int | None], ...]
    counts: NDArray[np.float32]
    sums: NDArray[np.float32]
    start_groups: NDArray[np.uint32]
    starts: NDArray[np.float32]


class Covariances(Sequence[InputCovariance]):
    """A covariance file of `ikq imatrix --covariance`, as a sequence of inputs that are read one at a time.

    Args:
        path: The file.

    Attributes:
        datasets: Names of the texts.
        n_chunks, chunk_size: Chunks of text, and tokens of a chunk.

    Raises:
        OSError: The file cannot be read.
        ikq.errors.FormatError: It is of another kind, or damaged.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._core = _ikq.CovarianceFile.open(os.fspath(path))
        self.path = Path(path)
        self.datasets = self._core.datasets
        self.n_chunks = self._core.n_chunks
        self.chunk_size = self._core.chunk_size

    def __len__(self) -> int:
        return self._core.n_sites

    @overload
    def __getitem__(self, index: int) -> InputCovariance: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[InputCovariance]: ...
    def __getitem__(self, index: int | slice) -> InputCovariance | Sequence[InputCovariance]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"there are {len(self)} inputs, none with the number {index}")
        return self._site(index % len(self))

    def _site(self, index: int) -> InputCovariance:
        tensors, counts, triangles, start_groups, starts = self._core.site(index)
        k = (int((8 * triangles.shape[1] + 1) ** 0.5) - 1) // 2
        sums = np.zeros((len(counts), k, k), np.float32)
        rows, columns = np.tril_indices(k)
        sums[:, rows, columns] = triangles
        sums[:, columns, rows] = triangles
        return InputCovariance(tuple(tensors), counts, sums, start_groups, starts)

    @staticmethod
    def merge(paths: Iterable[str | os.PathLike[str]], out: str | os.PathLike[str]) -> None:
        """Adds files up, as if they came from one text; inputs that only some have are taken as they are.

        Raises:
            RefusedError: There are none.
            OSError: A file cannot be read or written.
            FormatError: A file is damaged, or of another model.
        """
        names = [os.fspath(p) for p in paths]
        if not names:
            raise RefusedError("nothing to merge")
        _ikq.merge_covariances(names, os.fspath(out))


class LayerBytes(NamedTuple):
    """Bytes of the covariances of a layer.

    Attributes:
        file: In a file.
        memory: While they are collected, with the activations of a chunk.
    """

    file: int
    memory: int


def covariance_bytes(
    shapes: Mapping[str, tuple[int, ...]], chunk_size: int, n_expert_used: int, n_chunks: int
) -> list[LayerBytes]:
    """Most bytes that the covariances of each layer can have.

    Args:
        shapes: Of the matrices that something is multiplied with, by name, as numpy has them.
        chunk_size: Tokens of a chunk.
        n_expert_used: Experts of a token.
        n_chunks: Chunks of the text; what each one's first token was is kept.
    """
    inputs: dict[int, dict[tuple[str, int], int]] = {}
    for name, shape in shapes.items():
        block = _BLOCK.fullmatch(name)
        if block is None or len(shape) < 2 or "ffn_gate_inp" in name:
            continue
        layer, role, k = int(block[1]), block[2], shape[-1]
        if _ATTENTION.fullmatch(role):
            of_layer, key, n_group = inputs.setdefault(layer, {}), "attention", 1
        elif _STREAM.match(role):
            of_layer, key, n_group = inputs.setdefault(layer, {}), "stream", 1
        else:
            of_layer, key, n_group = inputs.setdefault(layer, {}), role, int(np.prod(shape[:-2]))
        of_layer[key, k] = max(n_group, of_layer.get((key, k), 0))
    layers = []
    for layer in range(max(inputs, default=-1) + 1):
        file = memory = 0
        for (_, k), n_group in inputs.get(layer, {}).items():
            n_reached = min(n_group, n_expert_used)
            sums = 2 * k * (k + 1) * n_group + 4 * k * n_chunks * n_reached
            file += sums
            memory += sums + 4 * k * chunk_size * n_reached
        layers.append(LayerBytes(file, memory))
    return layers


def covariance_passes(layers: list[LayerBytes], max_ram: int | None) -> list[range]:
    """Cuts layers into runs whose covariances fit `max_ram` bytes together: one for every pass over the text.

    Raises:
        RefusedError: A layer does not fit by itself.
    """
    passes: list[range] = []
    start = taken = 0
    for number, layer in enumerate(layers):
        if max_ram is not None and layer.memory > max_ram:
            raise RefusedError(
                f"the covariances of layer {number} take {layer.memory} bytes, and --max-ram is {max_ram}: "
                "give it more memory, or smaller chunks (-c)"
            )
        if max_ram is not None and number > start and taken + layer.memory > max_ram:
            passes.append(range(start, number))
            start, taken = number, 0
        taken += layer.memory
    return [*passes, range(start, len(layers))] if layers else []
