"""LoRA adapters of PEFT as GGUF files: `convert_adapter`.

For a matrix W of the base the adapter has A of [rank, columns] and B of [rows, rank]; B A, times alpha by
rank, is added to W. Where the rows of W change places on the way to a GGUF file so do those of B, and where
experts are stacked so are the matrices of all of them. What goes where the base's architecture says
(`BaseNames`).
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ikq.arrays.quant_types import QuantType
from ikq.arrays.tensor import QTensor
from ikq.checkpoint.base_names import BaseNames, Place
from ikq.checkpoint.config import read_json
from ikq.checkpoint.rows import Stored, f32_to_bf16, to_float32
from ikq.checkpoint.safetensors import SafeTensor, SafetensorsFile
from ikq.errors import FormatError, IkqError, RefusedError, UnsupportedError
from ikq.files.gguf import GGUFReader, GGUFWriter, Typed
from ikq.files.outputs import check_outputs

__all__ = ["ADAPTER_OUT_TYPES", "Adapter", "convert_adapter", "is_adapter", "read_adapter"]

ADAPTER_OUT_TYPES = ("auto", "bf16", "f16", "f32")
"""What matrices of adapters may become: their rows are as short as the rank, too short for blocks."""

_CONFIG, _TENSORS = "adapter_config.json", "adapter_model.safetensors"
_PAIR = re.compile(r"(?P<module>.+)\.lora_(?:(?P<part>[AB])\.weight|embedding_(?P<embedding>[AB]))")
# numbers of `general.file_type`
_FILE_TYPES = {"F32": 0, "F16": 1, "BF16": 32}
# what makes another sum than B A of it
_OTHERWISE = ("use_dora", "use_qalora", "lora_bias", "fan_in_fan_out")
_ONE_BY_ONE = ("alpha_pattern", "modules_to_save", "trainable_token_indices", "target_parameters")


@dataclass
class _Pair:
    """The two matrices of a module; `a` and `b` are both there once all is read."""

    a: SafeTensor | None = None
    b: SafeTensor | None = None
    is_embedding: bool = False


@dataclass
class _Output:
    """Pairs of one tensor of the base: one, or those of its experts by number."""

    place: Place
    pairs: dict[int, _Pair] = field(default_factory=dict)


@dataclass(frozen=True)
class Adapter:
    """An adapter as the GGUF file that it becomes.

    Attributes:
        metadata: Keys of the file.
        tensors: By name, in the order of the base's file.
        kind: F32, F16 or BF16.
    """

    metadata: dict[str, object]
    tensors: dict[str, QTensor | NDArray[np.generic]]
    kind: str


def is_adapter(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder holds an adapter of PEFT."""
    return (Path(folder) / _CONFIG).exists()


def convert_adapter(
    folder: str | os.PathLike[str],
    destination: str | os.PathLike[str] | None = None,
    base: str | os.PathLike[str] | None = None,
    out_type: str = "auto",
) -> Path:
    """Writes a LoRA adapter of PEFT as a GGUF file; what `ikq convert` runs for such a folder.

    Args:
        folder: With `adapter_config.json` and `adapter_model.safetensors`.
        destination: The file to write; None is `FOLDER-TYPE.gguf` in the folder.
        base: The checkpoint folder of the model that it is for; None: where `adapter_config.json` says.
        out_type: `f32`, `f16` or `bf16`; `auto` keeps what the adapter has.

    Returns:
        The file.

    Raises:
        ikq.errors.FormatError: A file is damaged, or the adapter does not fit the base.
        ikq.errors.UnsupportedError: An adapter of another kind, or of matrices that are parted or computed on
            the way to a GGUF file.
        ikq.errors.RefusedError: No base is known; the output would replace an input.
        OSError: Files that are missing, or cannot be read or written.
    """
    folder = Path(folder)
    adapter = read_adapter(folder, base, out_type)
    if destination is None:
        destination = folder / f"{folder.resolve().name}-{adapter.kind}.gguf"
    inputs = [(_CONFIG, folder / _CONFIG), (_TENSORS, folder / _TENSORS)]
    # an older adapter may be replaced; a model may not
    if not _is_converted(Path(destination)):
        check_outputs([("OUT.gguf", destination)], inputs, are_gguf=True)
    with GGUFWriter(destination, adapter.metadata) as writer:
        for name, tensor in adapter.tensors.items():
            writer.add_tensor(name, tensor)
    return Path(destination)


def _is_converted(path: Path) -> bool:
    """Whether there is a file that is an adapter."""
    try:
        with GGUFReader(path) as reader:
            return reader.metadata.get("general.type") == "adapter"
    except (IkqError, OSError):
        return False


def read_adapter(folder: Path, base: str | os.PathLike[str] | None = None, out_type: str = "auto") -> Adapter:
    """Reads an adapter; arguments and errors are those of `convert_adapter`."""
    if out_type not in ADAPTER_OUT_TYPES:
        raise RefusedError(
            f"matrices of adapters cannot become {out_type!r:.40}, for their rows are as short as the rank; "
            f"take one of {', '.join(ADAPTER_OUT_TYPES)}"
        )
    config = read_json(folder / _CONFIG)
    alpha = _alpha(folder, config)
    if not (folder / _TENSORS).exists() and (folder / "adapter_model.bin").exists():
        raise UnsupportedError(f"{folder / 'adapter_model.bin'}: only {_TENSORS} is read")
    stored = SafetensorsFile(folder / _TENSORS)
    names = BaseNames(_base(folder, config, base))
    outputs: dict[str, _Output] = {}
    for module, pair in _pairs(stored, alpha.rank).items():
        place = names.place(f"{module}.weight")
        outputs.setdefault(place.name, _Output(place)).pairs[place.expert or 0] = pair
    kind = _kind(stored) if out_type == "auto" else out_type.upper()
    tensors: dict[str, QTensor | NDArray[np.generic]] = {}
    for name in sorted(outputs, key=names.order.__getitem__):
        for part, x in zip(("a", "b"), _matrices(outputs[name]), strict=True):
            tensors[f"{name}.lora_{part}"] = _as(x, kind, f"{name}.lora_{part}")
    metadata: dict[str, object] = {
        "general.architecture": names.architecture,
        "general.type": "adapter",
        "general.name": folder.resolve().name,
        "general.file_type": Typed(_FILE_TYPES[kind], "uint32"),
        "general.quantization_version": Typed(2, "uint32"),
        "adapter.type": "lora",
        "adapter.lora.alpha": Typed(alpha.value, "float32"),
    }
    if alpha.invocation:
        metadata["adapter.alora.invocation_tokens"] = Typed(alpha.invocation, "array[uint32]")
    return Adapter(metadata, tensors, kind)


@dataclass(frozen=True)
class _Alpha:
    """What the configuration says.

    Attributes:
        value: B A is added times this by the rank.
        rank: The only one that there may be, if that matters.
        invocation: Tokens from which on the adapter works; empty: always.
    """

    value: float
    rank: int | None
    invocation: list[int]


def _alpha(folder: Path, config: Mapping[str, Any]) -> _Alpha:
    path = folder / _CONFIG
    if config.get("peft_type") != "LORA":
        raise UnsupportedError(
            f"{path}: adapters of kind {config.get('peft_type')!r:.40} are not converted; LORA is"
        )
    for name in (*_OTHERWISE, *_ONE_BY_ONE):
        if config.get(name):
            raise UnsupportedError(f"{path}: adapters with `{name}` have no form in GGUF files")
    if config.get("bias") not in (None, "none"):
        raise UnsupportedError(f"{path}: adapters with biases (`bias`) have no form in GGUF files")
    alpha, rank = config.get("lora_alpha"), config.get("r")
    if type(rank) is not int or not 0 < rank < 2**16:
        raise FormatError(f"{path}: `r` is {rank!r:.40}, expected the rank")
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not 0 < alpha < 1e30:
        raise FormatError(f"{path}: `lora_alpha` is {alpha!r:.40}, expected a number above 0")
    if config.get("use_rslora"):
        # there the sum counts alpha by the root of the rank times
        if config.get("rank_pattern"):
            raise UnsupportedError(
                f"{path}: adapters with `use_rslora` and several ranks have no form in GGUF files"
            )
        return _Alpha(alpha * math.sqrt(rank), rank, _invocation(path, config))
    return _Alpha(float(alpha), None, _invocation(path, config))


def _invocation(path: Path, config: Mapping[str, Any]) -> list[int]:
    tokens = config.get("alora_invocation_tokens") or []
    if not isinstance(tokens, list) or not all(type(t) is int and 0 <= t < 2**32 for t in tokens):
        raise FormatError(f"{path}: `alora_invocation_tokens` is {tokens!r:.40}, expected tokens")
    if config.get("invocation_string") and not tokens:
        raise UnsupportedError(f"{path}: `invocation_string` is read as `alora_invocation_tokens` only")
    return tokens


def _base(folder: Path, config: Mapping[str, Any], base: str | os.PathLike[str] | None) -> Path:
    if base is not None:
        return Path(base)
    named = config.get("base_model_name_or_path")
    for path in (Path(named), folder / named) if isinstance(named, str) and named else ():
        if (path / "config.json").exists():
            return path
    raise RefusedError(
        f"{folder / _CONFIG}: the base model {named!r:.80} is no folder here; name its checkpoint folder "
        "with --base FOLDER"
    )


def _pairs(stored: SafetensorsFile, rank: int | None) -> dict[str, _Pair]:
    """Matrices by module of the base."""
    pairs: dict[str, _Pair] = {}
    for name, tensor in stored.tensors.items():
        # the base's own embedding, which PEFT may save beside its adapter; its shape is that of `a` and `b`
        if name.endswith(".base_layer.weight"):
            continue
        found = _PAIR.fullmatch(name)
        if found is None:
            raise UnsupportedError(f"{stored.path}: tensor `{name:.120}` is no part of a LoRA adapter")
        pair = pairs.setdefault(found["module"].removeprefix("base_model.model."), _Pair())
        pair.is_embedding = found["embedding"] is not None
        if (found["part"] or found["embedding"]) == "A":
            pair.a = tensor
        else:
            pair.b = tensor
    for module, pair in pairs.items():
        a, b = pair.a, pair.b
        if a is None or b is None:
            raise FormatError(f"{stored.path}: `{module}` has only one of lora_A and lora_B")
        if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1] or not a.shape[0]:
            raise FormatError(
                f"{stored.path}: `{module}` has A of {list(a.shape)} and B of {list(b.shape)}, expected "
                "[rank, columns] and [rows, rank]"
            )
        if rank is not None and a.shape[0] != rank:
            raise FormatError(f"{stored.path}: `{module}` has the rank {a.shape[0]}, expected {rank}")
    if not pairs:
        raise FormatError(f"{stored.path}: there is no matrix of an adapter")
    return pairs


def _matrices(output: _Output) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """A and B of a tensor, in float32 as the file has them, with a leading axis where experts are stacked."""
    place, found = output.place, []
    for number in range(place.n_experts or 1):
        pair = output.pairs.get(number)
        if pair is None:
            raise UnsupportedError(
                f"`{place.name}`: the adapter has no matrices for expert {number}, and a file's are of all"
            )
        assert pair.a is not None
        assert pair.b is not None
        a, b = _floats(pair.a), _floats(pair.b)
        if pair.is_embedding:
            # of the transposed matrix: [rank, tokens] and [columns, rank]
            shape, a = (a.shape[1], b.shape[0]), np.ascontiguousarray(a.T)
        else:
            shape = (b.shape[0], a.shape[1])
        if shape != place.shape:
            raise FormatError(
                f"`{pair.a.name}` is for a matrix of {list(shape)}, and that of the base has "
                f"{list(place.shape)}"
            )
        if place.rows is not None:
            if pair.is_embedding:
                raise UnsupportedError(f"`{place.name}`: rows of an embedding change places")
            b = b[place.rows]
        found.append((a, b))
    if place.n_experts is None:
        return found[0]
    ranks = {a.shape[0] for a, _ in found}
    if len(ranks) > 1:
        raise UnsupportedError(f"`{place.name}`: experts have adapters of the ranks {sorted(ranks)}")
    return np.stack([a for a, _ in found]), np.stack([b for _, b in found])


def _floats(tensor: SafeTensor) -> NDArray[np.float32]:
    matrix = Stored(tensor)
    return to_float32(matrix.rows(0, matrix.n_rows), matrix.kind)


def _kind(stored: SafetensorsFile) -> str:
    """The narrowest floats that hold all tensors as they are."""
    kinds = {t.dtype for name, t in stored.tensors.items() if not name.endswith(".base_layer.weight")}
    return kinds.pop() if len(kinds) == 1 and kinds <= {"F16", "BF16"} else "F32"


def _as(x: NDArray[np.float32], kind: str, name: str) -> QTensor | NDArray[np.generic]:
    if kind == "F32":
        return x
    if kind == "BF16":
        return QTensor(f32_to_bf16(x).view(np.uint8), QuantType.BF16, x.shape, name)
    with np.errstate(over="ignore"):
        half = x.astype(np.float16)
    if (np.isinf(half) & np.isfinite(x)).any():
        raise FormatError(f"tensor `{name}`: a weight is too large for F16; take bf16")
    return half
