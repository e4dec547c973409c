"""The divergence of mixes of two files from their source: `Mixes`, `Meter`.

In every run of an experiment a tensor has one of two types, so two files have all that is needed: the model
of a run is made of tensors of either, and only those that changed since the last run are loaded.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from ikq.evaluate import (
    BaseFile,
    CompactBase,
    Windows,
    base_writer,
    compact_writer,
    measure_divergence,
    measure_perplexity,
)
from ikq.files.gguf import GGUFReader
from ikq.inference.model import Model
from ikq.quantizing.pipeline import quantize_file
from ikq.statistics.imatrix import Imatrix

__all__ = ["Meter", "Mixes"]

_FULL_VOCABULARY = 16384


@dataclass(frozen=True)
class Mixes:
    """Runs, each a choice between two types for every tensor.

    Attributes:
        type: File type of both files.
        rules: Rules `regex=type` of the first file and of the second.
        names: Tensors that have a choice.
        is_second: Runs x tensors: the tensor is of the second file.
        windows: What divergences are measured on.
    """

    type: str
    rules: tuple[list[str], list[str]]
    names: tuple[str, ...]
    is_second: NDArray[np.bool_]
    windows: Windows


class Meter:
    """Measures runs. A context manager."""

    def __init__(
        self,
        mixes: Mixes,
        source: str | os.PathLike[str],
        imatrix: str | os.PathLike[str] | Imatrix | None,
        folder: Path,
        n_threads: int | None = None,
    ) -> None:
        """Writes what the runs need: the two files, and the distributions of the source.

        Files of the folder stay open as long as they are needed; they can be removed once this is done.

        Args:
            mixes: The runs.
            source: The model.
            imatrix: Its activation statistics.
            folder: Where files are written.
            n_threads: Threads; None is one per CPU.

        Raises:
            ikq.errors.IkqError, OSError: As `Model.load` and `quantize_file`.
        """
        self._mixes, self._n_threads = mixes, n_threads
        windows, base = mixes.windows, folder / "base"
        with Model.load(source, n_ctx=windows.n_ctx, n_threads=n_threads) as model:
            n_vocab = model.spec.n_vocab
            is_small = n_vocab <= _FULL_VOCABULARY
            with (base_writer if is_small else compact_writer)(base, windows, n_vocab) as sink:
                for _ in measure_perplexity(model, windows, sink):
                    pass
        self._base = BaseFile(base, windows.bos) if is_small else CompactBase(base, windows.bos)
        first, second = folder / "first.gguf", folder / "second.gguf"
        self._write(source, imatrix, first, mixes.rules[0])
        # tensors that are the same in both are not encoded twice
        self._write(source, imatrix, second, mixes.rules[1], reuse=first)
        self._first, self._second = GGUFReader(first), GGUFReader(second)
        self._model = Model.load(first, n_ctx=windows.n_ctx, n_threads=n_threads)

    def _write(
        self,
        source: str | os.PathLike[str],
        imatrix: str | os.PathLike[str] | Imatrix | None,
        file: Path,
        rules: list[str],
        reuse: Path | None = None,
    ) -> None:
        quantize_file(
            source,
            file,
            self._mixes.type,
            imatrix=imatrix,
            tensor_type=rules,
            allow_missing=True,
            ignore_imatrix_rules=True,
            allow_requantize=True,
            n_threads=self._n_threads,
            reuse=reuse,
            restart=True,
        )

    def __call__(self, run: int) -> float:
        """The mean divergence of the model of a run; more than 0."""
        chosen = self._mixes.is_second[run]
        names = [name for name, is_second in zip(self._mixes.names, chosen, strict=True) if is_second]
        with self._first.with_tensors_of(self._second, names) as reader:
            self._model = self._model.exchange(reader)
        *_, found = measure_divergence(self._model, self._base, self._mixes.windows.n)
        return max(found.mean.value, 1e-12)

    def __enter__(self) -> Meter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._model.close()
        self._first.close()
        self._second.close()
