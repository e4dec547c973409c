"""How tensors are divided among the files of a split: the plan that `GGUFWriter` follows, for dry runs."""

from __future__ import annotations

from typing import NamedTuple

from ikq.errors import RefusedError
from ikq.files.gguf import GGUFReader, Metadata

__all__ = ["SPLIT_KEYS", "PlannedShard", "plan_split"]

SPLIT_KEYS = ("split.no", "split.count", "split.tensors.count")

_SCALAR_BYTES = {
    "uint8": 1, "int8": 1, "bool": 1, "uint16": 2, "int16": 2, "uint32": 4, "int32": 4, "float32": 4,
    "uint64": 8, "int64": 8, "float64": 8,
}  # fmt: skip
# magic, version, two counts
_FIXED_BYTES = 24
# the three split keys with their values
_SPLIT_BYTES = sum(8 + len(key) + 4 for key in SPLIT_KEYS) + 2 + 2 + 4


class PlannedShard(NamedTuple):
    """One file of a set.

    Attributes:
        tensors: Names of its tensors.
        nbytes: Its size, to the byte.
    """

    tensors: tuple[str, ...]
    nbytes: int


def plan_split(
    reader: GGUFReader,
    *,
    max_bytes: int | None = None,
    max_tensors: int | None = None,
    no_tensor_first_split: bool = False,
) -> list[PlannedShard]:
    """The files that `GGUFWriter` would make of a model with the same options.

    Raises:
        RefusedError: not exactly one of the limits is given, or it is not positive.
    """
    if (max_bytes is None) == (max_tensors is None) or (max_bytes or max_tensors or 0) < 1:
        raise RefusedError("give one limit, a number of bytes or of tensors, of at least 1")
    alignment = reader.metadata.get("general.alignment", 32)
    assert isinstance(alignment, int)  # the reader has checked it
    metadata_bytes = sum(pair_bytes(reader.metadata, k) for k in reader.metadata if k not in SPLIT_KEYS)
    later_bytes = pair_bytes(reader.metadata, "general.alignment") if alignment != 32 else 0
    shards: list[PlannedShard] = []
    names: list[str] = []
    head = data = 0

    def begin() -> None:
        nonlocal names, head, data
        names, data = [], 0
        head = _FIXED_BYTES + _SPLIT_BYTES + (later_bytes if shards else metadata_bytes)

    def size(head: int, data: int) -> int:
        return _padded(head, alignment) + data

    def end() -> None:
        shards.append(PlannedShard(tuple(names), size(head, data)))
        begin()

    begin()
    if no_tensor_first_split:
        end()
    for name, tensor in reader.tensors.items():
        entry = 8 + len(name.encode()) + 4 + 8 * tensor.ndim + 4 + 8
        n_bytes = _padded(tensor.nbytes, alignment)
        too_many = max_tensors is not None and len(names) >= max_tensors
        too_large = max_bytes is not None and size(head + entry, data + n_bytes) > max_bytes
        if names and (too_many or too_large):
            end()
        names.append(name)
        head += entry
        data += n_bytes
    if names or not shards:
        end()
    return shards


def pair_bytes(metadata: Metadata, key: str) -> int:
    """Bytes of a key and its value in a file."""
    return 8 + len(key.encode()) + 4 + _value_bytes(metadata.type_of(key), metadata[key])


def _value_bytes(type_name: str, value: object) -> int:
    if type_name == "string":
        return 8 + len(value.encode() if isinstance(value, str) else bytes(value))  # type: ignore[call-overload]
    if type_name.startswith("array["):
        inner = type_name[len("array[") : -1]
        assert isinstance(value, list)
        if inner in _SCALAR_BYTES:
            return 12 + _SCALAR_BYTES[inner] * len(value)
        return 12 + sum(_value_bytes(inner, v) for v in value)
    return _SCALAR_BYTES[type_name]


def _padded(n: int, alignment: int) -> int:
    return -(-n // alignment) * alignment
