"""Safetensors files: a strict reader of headers, with mapped views of the data.

```text
header size u64 | header: a JSON object | data
name -> {"dtype": "BF16", "shape": [rows, columns], "data_offsets": [begin, end]}   from the data's start
```
The `safetensors` package copies what it gives to numpy and knows no bfloat16 or 8-bit floats there, so
files are read here: nothing is allocated that the size of the file does not justify, and no tensor is
read before it is asked for.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ikq.checkpoint.config import read_limited
from ikq.errors import FormatError

__all__ = ["DTYPES", "SafeTensor", "SafetensorsFile", "Shards"]

DTYPES: Mapping[str, int] = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E5M2": 1,
    "F8_E4M3": 1,
    "F8_E8M0": 1,
    "I16": 2,
    "U16": 2,
    "F16": 2,
    "BF16": 2,
    "I32": 4,
    "U32": 4,
    "F32": 4,
    "I64": 8,
    "U64": 8,
    "F64": 8,
}
"""Bytes of an element by the name of its type."""

MAX_HEADER_BYTES = 100_000_000
"""Longest header accepted, as the reference reader has it."""

MAX_INDEX_BYTES = 500_000_000
"""Longest index file accepted."""

# the system maps cached pages around one that is touched, at most those of one page table
_FAULT_AROUND = 2 << 20
_MAX_DIMS = 8
_MAX_NESTING = 8
_DEPTH_CHUNK = 1 << 16
_ONE_KIND = bytes.maketrans(b"{}", b"[]")
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


@dataclass(frozen=True)
class SafeTensor:
    """A tensor's place in its file.

    Attributes:
        name: Its name.
        dtype: A name of `DTYPES`.
        shape: As in PyTorch.
        file: The file.
        offset: Where its bytes begin in the file.
        nbytes: How many there are.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: SafetensorsFile
    offset: int
    nbytes: int

    def raw(self) -> NDArray[np.uint8]:
        """The bytes: a read-only view of the mapped file."""
        return self.file.view(self.offset, self.nbytes)


class SafetensorsFile:
    """One file, mapped, with its header checked.

    Attributes:
        path: The file.
        tensors: By name, in order of the header.
        metadata: Texts that the writer left.
    """

    def __init__(self, path: Path) -> None:
        """Maps and checks a file; its descriptor is closed before this returns.

        Raises:
            FormatError: The file is no whole safetensors file; the message says what is wrong.
            OSError: It cannot be read.
        """
        self.path = path
        self._map = _map(path)
        if hasattr(mmap, "MADV_NOHUGEPAGE"):
            # a huge page counts whole when a row in it is read
            with contextlib.suppress(OSError):  # kernels without huge pages
                self._map.madvise(mmap.MADV_NOHUGEPAGE)
        self._data = np.frombuffer(self._map, np.uint8)
        self._address: int = self._data.ctypes.data
        try:
            self.tensors, self.metadata = self._parse()
        except FormatError as e:
            raise FormatError(f"{path}: {e}") from None
        self.release(0, 8)  # and the rest of the header with it, where the system maps large pages

    @property
    def nbytes(self) -> int:
        """Size of the file."""
        return len(self._data)

    def view(self, offset: int, nbytes: int) -> NDArray[np.uint8]:
        """A read-only view of a part of the file."""
        return self._data[offset : offset + nbytes]

    def release(self, offset: int, nbytes: int) -> None:
        """Tells the system that these bytes are not needed soon; views stay valid."""
        if not nbytes or not hasattr(mmap, "MADV_DONTNEED"):
            return
        # touching a page maps its neighbours too, those in front which were released before among them
        first = max((self._address + offset) // _FAULT_AROUND * _FAULT_AROUND, self._address) - self._address
        last = self._address + offset + nbytes
        end = -(-last // _FAULT_AROUND) * _FAULT_AROUND - self._address
        self._map.madvise(mmap.MADV_DONTNEED, first, min(end, len(self._map)) - first)

    def _parse(self) -> tuple[dict[str, SafeTensor], dict[str, str]]:
        if self.nbytes < 8:
            raise FormatError(f"a safetensors file has 8 bytes at least, this one {self.nbytes}")
        size = int.from_bytes(self._map[:8], "little")
        if size > MAX_HEADER_BYTES:
            raise FormatError(f"the header would have {size} bytes, more than {MAX_HEADER_BYTES}")
        if size > self.nbytes - 8:
            raise FormatError(
                f"the header would have {size} bytes, and {self.nbytes - 8} are left in the file; "
                "the download or copy may be incomplete"
            )
        header = _load_json(bytes(self._map[8 : 8 + size]), "the header")
        start = 8 + size
        texts = header.pop("__metadata__", {})
        if not isinstance(texts, dict) or not all(isinstance(v, str) for v in texts.values()):
            raise FormatError("`__metadata__` is not an object of texts")
        tensors = {name: self._tensor(name, entry, start) for name, entry in header.items()}
        end = 0
        for t in sorted(tensors.values(), key=lambda t: (t.offset, t.nbytes)):
            # the format has no holes; a tensor that overlaps another is a mistake or an attack
            if t.offset - start != end:
                raise FormatError(
                    f"tensor `{t.name:.100}` begins at byte {t.offset - start} of the data, where the one "
                    f"before it ends at {end}"
                )
            end += t.nbytes
        if start + end != self.nbytes:
            raise FormatError(
                f"the tensors end at byte {end} of the data, which has {self.nbytes - start}; "
                "the download or copy may be incomplete"
            )
        return tensors, texts

    def _tensor(self, name: str, entry: object, start: int) -> SafeTensor:
        what = f"tensor `{name:.100}`"
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise FormatError(f"{what}: its entry must have dtype, shape and data_offsets, and nothing else")
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(dtype, str) or dtype not in DTYPES:
            raise FormatError(f"{what}: unknown dtype {dtype!r:.40}; known are {', '.join(DTYPES)}")
        if not _are_sizes(shape) or len(shape) > _MAX_DIMS:
            raise FormatError(f"{what}: the shape {shape!r:.80} is no list of at most {_MAX_DIMS} sizes")
        if not _are_sizes(offsets) or len(offsets) != 2:
            raise FormatError(f"{what}: the offsets {offsets!r:.80} are not two numbers")
        begin, end = offsets
        if not begin <= end <= self.nbytes - start:
            raise FormatError(
                f"{what}: bytes {begin} to {end} are not in the {self.nbytes - start} bytes of data; "
                "the download or copy may be incomplete"
            )
        n = DTYPES[dtype]
        for extent in shape:
            n *= extent
        if n != end - begin:
            raise FormatError(f"{what}: {end - begin} bytes for the shape {shape} of {dtype}, expected {n}")
        return SafeTensor(name, dtype, tuple(shape), self, start + begin, end - begin)


class Shards(Mapping[str, SafeTensor]):
    """All safetensors files of a folder seen as one.

    Attributes:
        files: In order of their names.
    """

    def __init__(self, folder: Path) -> None:
        """Opens the files that the index names, or the one file that has none.

        Raises:
            FormatError: A file or the index is damaged, or they contradict each other.
            OSError: A file is missing or cannot be read.
        """
        index = folder / "model.safetensors.index.json"
        if index.exists():
            places = _read_index(index)
            names = sorted(set(places.values()))
        else:
            places = {}
            there = (p.name for p in folder.glob("*.safetensors"))
            # adapters, and what a download or a file manager hides
            names = sorted(n for n in there if not n.startswith((".", "adapter_")))
            if "model.safetensors" in names:
                # beside it, some folders have files of adapters or of other parts
                names = ["model.safetensors"]
        if not names:
            others = [p.name for end in ("bin", "pt", "pth", "gguf") for p in sorted(folder.glob(f"*.{end}"))]
            more = f"; {others[0]} is not read, only *.safetensors are" if others else ""
            raise FileNotFoundError(2, f"no safetensors file in this folder{more}", str(folder))
        missing = [name for name in names if not (folder / name).exists()]
        if missing:
            more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
            raise FileNotFoundError(
                2, f"shard is missing{more}: the index names it", str(folder / missing[0])
            )
        self.files = tuple(SafetensorsFile(folder / name) for name in names)
        self._tensors: dict[str, SafeTensor] = {}
        for file in self.files:
            for name, t in file.tensors.items():
                other = self._tensors.get(name)
                if other is not None:
                    raise FormatError(f"tensor `{name}` is in two files, {other.file.path} and {file.path}")
                self._tensors[name] = t
        for name, place in places.items():
            found = self._tensors.get(name)
            if found is None or found.file.path.name != place:
                where = f"it is in {found.file.path.name}" if found else "no file has it"
                raise FormatError(f"{index}: tensor `{name:.100}` should be in {place}, but {where}")

    def __getitem__(self, name: str) -> SafeTensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def _map(path: Path) -> mmap.mmap:
    # looked at before opening: opening a pipe would wait for its other end
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise FormatError(f"{path} is not a regular file")
    if found.st_size == 0:
        raise FormatError(f"{path} is empty")
    with path.open("rb") as f:
        return mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)


def _read_index(path: Path) -> dict[str, str]:
    """File by name of tensor."""
    text = read_limited(path, MAX_INDEX_BYTES)
    try:
        places = _load_json(text, "the index").get("weight_map")
    except FormatError as e:
        raise FormatError(f"{path}: {e}") from None
    if not isinstance(places, dict) or not places:
        raise FormatError(f"{path}: `weight_map` is missing or no object")
    for name, place in places.items():
        # a name with a folder in it could reach out of this one
        plain = isinstance(place, str) and place.endswith(".safetensors") and not set(place) & set("/\\\0")
        if not plain:
            raise FormatError(f"{path}: tensor `{name:.100}`: {place!r:.80} is no name of a safetensors file")
    return places


def _load_json(text: bytes, what: str) -> dict[str, Any]:
    """A JSON object without doubled names.

    Raises:
        FormatError: It is something else, or nested deeper than anything that is meant.
    """
    if _is_deeper(text, _MAX_NESTING):
        raise FormatError(f"{what} is nested deeper than {_MAX_NESTING} levels")
    try:
        loaded = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant, parse_int=_integer)
    except FormatError:
        raise
    except (ValueError, RecursionError) as e:
        raise FormatError(f"{what} is not JSON: {e}") from None
    if not isinstance(loaded, dict):
        raise FormatError(f"{what} is no JSON object")
    return loaded


def _is_deeper(text: bytes, most: int) -> bool:
    """Whether brackets outside of strings are nested more than `most` deep; takes linear time for any text.

    Where brackets are not closed, which is no JSON, this may say no if they are up to twice as deep.
    """
    # without escapes every quote begins or ends a string; pairs of backslashes first, as they are read
    plain = text.replace(b"\\\\", b"").replace(b'\\"', b"")
    brackets = bytearray()
    within = 0
    for at in range(0, len(plain), _DEPTH_CHUNK):
        parts = plain[at : at + _DEPTH_CHUNK].split(b'"')
        for part in parts[within::2]:
            brackets += part.translate(_ONE_KIND, _NO_BRACKETS)
        within = (within + len(parts) - 1) % 2
    for _ in range(most):
        brackets = brackets.replace(b"[]", b"")  # the innermost level
    return b"[]" in brackets or brackets.count(b"[") > most


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise FormatError(f"`{twice:.100}` appears twice")
    return found


def _no_constant(text: str) -> None:
    raise FormatError(f"{text} is no number of JSON")


def _integer(text: str) -> int:
    # no size or offset has more digits; long ones take quadratic time
    if len(text) > 20:
        raise FormatError(f"the number {text:.24}... is larger than any size")
    return int(text)


def _are_sizes(values: object) -> bool:
    return isinstance(values, list) and all(type(v) is int and v >= 0 for v in values)
