"""`Checkpoint`: a folder of `transformers` as a source of tensors and metadata."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ikq import _ikq
from ikq.arrays.quant_types import QuantType
from ikq.checkpoint.config import Config
from ikq.checkpoint.describe import describe
from ikq.checkpoint.rows import FloatKind, Matrix, f32_to_bf16, to_float32
from ikq.checkpoint.safetensors import Shards
from ikq.checkpoint.target import OutTensor, Target
from ikq.checkpoint.tokenizer import tokenizer_keys
from ikq.checkpoint.weights import Weights
from ikq.errors import FormatError, ShapeError, UnsupportedError
from ikq.files.gguf import GGUFReader, Metadata, Typed
from ikq.models import CHECKPOINTS, model_spec, mtp_spec

__all__ = ["Checkpoint", "Maker", "OutType", "architecture", "is_checkpoint"]

OutType = Literal["auto", "bf16", "f16", "f32"]
"""What matrices of floats become; `auto` keeps what the checkpoint has."""

# name, shape, type, and where the data lie: runs of bytes, their type, and the order of their rows
_Runs = tuple[list[tuple[int, int, int]], int, NDArray[np.uint32] | None]
_Entry = tuple[str, list[int], int, _Runs | None]

_KINDS: dict[str, FloatKind] = {"bf16": "BF16", "f16": "F16", "f32": "F32"}
# numbers of `general.file_type`
_FILE_TYPES = {"F32": 0, "F16": 1, "BF16": 32}
_FILE_TYPE_MXFP4 = 38


def is_checkpoint(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a folder, which is to be read as a checkpoint."""
    return Path(path).is_dir()


class Checkpoint:
    """A checkpoint folder as the GGUF file that it would become.

    Weights are read when they are asked for, a few rows at a time, from the mapped shards.

    Attributes:
        folder: The folder.
        architecture: The value of `general.architecture`.
        metadata: Keys of the file.
        tensors: Its tensors.
        out_type: The type of matrices of floats.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        out_type: OutType = "auto",
        *,
        blocks: bool = True,
        fp8_as_floats: bool = False,
        exact: bool = False,
    ) -> None:
        """Reads configuration, headers and tokenizer; no weights.

        Args:
            folder: with `config.json`, safetensors files and tokenizer files.
            out_type: of matrices.
            blocks: MXFP4 stays MXFP4 where `out_type` is `auto`.
            fp8_as_floats: matrices that are stored as 8-bit floats become F32, which holds them as they are.
            exact: matrices that are stored in any quantized form become F32.

        Raises:
            FormatError: a file is damaged, or they do not fit together.
            UnsupportedError: an architecture, quantization method or tokenizer that is not known.
            OSError: a file is missing or cannot be read.
        """
        self.folder = Path(folder)
        config = Config.read(self.folder)
        name, write = architecture(config)
        weights = Weights(Shards(self.folder), config)
        self._shards = weights.shards
        target = Target(name, config, weights)
        write(target)
        if weights.unused:
            some = ", ".join(sorted(weights.unused)[:3])
            raise UnsupportedError(
                f"{self.folder}: {len(weights.unused)} tensors have no place in a file of architecture "
                f"`{name}`, such as {some}"
            )
        self.architecture = name
        self.tensors: Mapping[str, OutTensor] = target.tensors
        self.out_type = weights.natural() if out_type == "auto" else _KINDS[out_type]
        self._blocks = blocks and out_type == "auto"
        self._fp8_as_floats, self._exact = fp8_as_floats, exact
        self._order = list(self.tensors.values())
        self._types = [self._type(t) for t in self._order]
        file_type = _FILE_TYPES[self.out_type]
        if QuantType.MXFP4 in self._types:
            file_type = _FILE_TYPE_MXFP4
        self.metadata = Metadata(
            {
                "general.architecture": name,
                **describe(self.folder, list(self.tensors.values())),
                **target.keys,
                "general.file_type": Typed(file_type, "uint32"),
                "general.quantization_version": Typed(2, "uint32"),
                **tokenizer_keys(self.folder, target.config, name),
            }
        )
        self._check()

    def fp8_names(self) -> list[str]:
        """Names of matrices that are stored as 8-bit floats."""
        return [t.name for t in self._order if t.from_fp8]

    def model(self) -> _ikq.Model:
        """The tensors as a model that the pipeline reads.

        Raises:
            ShapeError: a matrix whose rows do not fit its type.
            OSError: a file became shorter meanwhile.
        """
        files = {str(f.path): i for i, f in enumerate(self._shards.files)}
        entries: list[_Entry] = []
        computed = {}
        for t, kind in zip(self._order, self._types, strict=True):
            found = t.matrix.runs() if kind.name in (t.matrix.kind, "F32") else None
            runs: _Runs | None = None
            if found is not None:
                pieces = [(files[str(p.file.path)], p.offset, p.nbytes) for p in found.pieces]
                order = None if found.order is None else np.ascontiguousarray(found.order)
                runs = pieces, int(QuantType[t.matrix.kind]), order
            else:
                computed[len(entries)] = t, kind
            entries.append((t.name, list(t.shape), int(kind), runs))
        # the journal looks at the files' times, and outputs may not take their places
        names = [*files, str(self.folder / "config.json")]
        return _ikq.Model.made(names, self.metadata._pairs, entries, Maker(computed).make)

    def reader(self) -> GGUFReader:
        """The same as a reader; a tensor that is asked for is made whole."""
        return GGUFReader._of(self.model())

    def _check(self) -> None:
        """Looks at the file to be as whoever runs it will.

        Raises:
            FormatError: its keys and tensors do not fit together.
            UnsupportedError: the model is a variant that is not run.
        """
        reader = self.reader()
        try:
            model_spec(reader)
            mtp_spec(reader)
        except (FormatError, ShapeError) as e:
            raise FormatError(
                f"{self.folder}: config.json and the tensors do not fit together: {e}"
            ) from None

    def _type(self, t: OutTensor) -> QuantType:
        if t.is_float32 or (self._fp8_as_floats and t.from_fp8):
            return QuantType.F32
        # what is computed is so in F32
        if self._exact and t.matrix.kind == "F32":
            return QuantType.F32
        if t.blocks is not None and self._blocks:
            return QuantType.MXFP4
        return QuantType[self.out_type]


class Maker:
    """Computes tensors for a model that is read, and holds no more than that takes."""

    def __init__(self, tensors: Mapping[int, tuple[OutTensor, QuantType]]) -> None:
        """Takes tensors by their numbers, with their types."""
        self._tensors = tensors

    def make(self, number: int, start: int, end: int) -> NDArray[np.uint8]:
        """Bytes `start` to `end` of a tensor; called from any thread.

        Raises:
            FormatError: a number that the type cannot hold.
        """
        t, kind = self._tensors[number]
        row_bytes = t.matrix.n_per_row // kind.block_size * kind.block_bytes
        first, last = start // row_bytes, -(-end // row_bytes)
        rows: NDArray[np.generic]
        try:
            if kind == QuantType.MXFP4:
                if t.blocks is None:
                    raise AssertionError(t.name)
                rows = t.blocks.rows(first, last - first)
            else:
                rows = _convert(t.matrix, first, last - first, kind)
        except FormatError as e:
            raise FormatError(f"tensor `{t.name}`: {e}") from None
        t.matrix.release(first, last - first)
        raw = np.ascontiguousarray(rows).view(np.uint8).reshape(-1)
        return raw[start - first * row_bytes : end - first * row_bytes]


def architecture(config: Config) -> tuple[str, Callable[[Target], None]]:
    """The architecture of the file, and what writes it.

    Raises:
        UnsupportedError: it is not known.
    """
    names = config.whole.get("architectures")
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise config.wrong("architectures", "the name of a class")
    found = CHECKPOINTS.get(names[0])
    if found is None:
        raise UnsupportedError(
            f"{config.path}: checkpoints of {names[0]:.80} are not converted; there are "
            f"{', '.join(CHECKPOINTS)}"
        )
    return found


def _convert(matrix: Matrix, first: int, n: int, type: QuantType) -> NDArray[np.generic]:
    """Rows as floats of a type."""
    rows = matrix.rows(first, n)
    if type.name == matrix.kind:
        return rows
    x = to_float32(rows, matrix.kind)
    if type == QuantType.F32:
        return x
    if type == QuantType.BF16:
        return f32_to_bf16(x)
    with np.errstate(over="ignore"):
        half = x.astype(np.float16)
    too_large = np.isinf(half) & np.isfinite(x)
    if too_large.any():
        raise FormatError(f"a weight of {np.abs(x[too_large]).max():g} is too large for F16; take bf16")
    return half
