"""Hashes of tensor data, in the lines of llama-gguf-hash, and manifests of them.

Only the data count: metadata may change, and a split set has the hashes of the file it was made from. Each
tensor has a hash, and all of them together, in file order, as `FILE`. The UUID is one of version 5 in
llama.cpp's namespace.
"""

from __future__ import annotations

import hashlib
import os
import re
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ikq.errors import FormatError
from ikq.files.gguf import GGUFReader
from ikq.files.text_files import read_lines

__all__ = ["KINDS", "Checked", "Hash", "check_manifest", "hash_file"]

KINDS = ("sha256", "sha1", "uuid")
"""What ikq computes, safest first."""

# other programs' manifests have it as well
_KNOWN = (*KINDS, "xxh64")
# uuid5(NAMESPACE_URL, "en.wikipedia.org/wiki/Llama.cpp")
_NAMESPACE = uuid.UUID("ef001206-dadc-5f6d-a15f-3359e577d4e5")


class Hash(NamedTuple):
    """A line of a manifest.

    Attributes:
        kind: `sha256`, `sha1` or `uuid`.
        value: In hexadecimal.
        tensor: The tensor; None for all of the file.
    """

    kind: str
    value: str
    tensor: str | None

    def line(self, path: str | os.PathLike[str]) -> str:
        """As it stands in a manifest."""
        name = f"{os.fspath(path)}" if self.tensor is None else f"{os.fspath(path)}:{self.tensor}"
        return f"{self.kind:<8}  {self.value}  {name}"


def hash_file(
    reader: GGUFReader, kinds: Sequence[str] = ("sha256",), *, per_tensor: bool = True
) -> Iterator[Hash]:
    """Hashes of each tensor and, last, of all data.

    Args:
        reader: The file.
        kinds: Some of `KINDS`. UUIDs are of the whole file only.
        per_tensor: Whether each tensor has one.
    """
    whole = {kind: hashlib.sha256() if kind == "sha256" else hashlib.sha1() for kind in kinds}
    if "uuid" in whole:
        whole["uuid"].update(_NAMESPACE.bytes)
    for name, tensor in reader.tensors.items():
        data = np.ascontiguousarray(tensor.raw).data
        for kind in kinds:
            whole[kind].update(data)
            if per_tensor and kind != "uuid":
                one = hashlib.sha256(data) if kind == "sha256" else hashlib.sha1(data)
                yield Hash(kind, one.hexdigest(), name)
    for kind in kinds:
        digest = whole[kind]
        value = digest.hexdigest()
        if kind == "uuid":
            value = str(uuid.UUID(bytes=digest.digest()[:16], version=5))
        yield Hash(kind, value, None)


class Checked(NamedTuple):
    """A hash beside a manifest.

    Attributes:
        hash: What was found; of a tensor that is not in the file, what was expected.
        result: `Ok`, `Mismatch`, `Not Found` (in the manifest) or `Missing` (in the file).
    """

    hash: Hash
    result: str


def check_manifest(
    reader: GGUFReader,
    path: str | os.PathLike[str],
    manifest: str | os.PathLike[str],
    kinds: Sequence[str] | None = None,
) -> Iterator[Checked]:
    """Compares a file with a manifest. Folders in file names do not count.

    Args:
        reader: The file.
        path: Its name, as lines of the manifest have it.
        manifest: A text with one hash per line.
        kinds: Some of `KINDS`; the safest that the manifest has unless given.

    Raises:
        FormatError: a line is no hash, the manifest has none of these kinds, or nothing about the file.
    """
    entries = _read(manifest)
    present = [kind for kind in KINDS if any(h.kind == kind for h, _ in entries)]
    chosen = list(kinds or present[:1])
    if not chosen or not set(chosen) <= set(present):
        raise FormatError(f"{manifest} has no hash of kind {', '.join(chosen or KINDS)}")
    expected: dict[tuple[str, str | None], str] = {}
    base = Path(path).name
    about_it = re.compile(rf"(?:.*[/\\])?{re.escape(base)}(?::(.*))?")
    for entry, name in entries:
        match = about_it.fullmatch(name)
        if match:
            expected[entry.kind, match[1]] = entry.value
    if not any(kind in chosen for kind, _ in expected):
        raise FormatError(f"{manifest} says nothing about {base}")
    per_tensor = any(tensor is not None for kind, tensor in expected if kind in chosen)
    for found in hash_file(reader, chosen, per_tensor=per_tensor):
        wanted = expected.pop((found.kind, found.tensor), None)
        yield Checked(found, "Not Found" if wanted is None else "Ok" if wanted == found.value else "Mismatch")
    for (kind, tensor), value in expected.items():
        if kind in chosen:
            yield Checked(Hash(kind, value, tensor), "Missing")


def _read(manifest: str | os.PathLike[str]) -> list[tuple[Hash, str]]:
    """Hashes with the names behind them."""
    found = []
    for number, line in enumerate(read_lines(manifest), 1):
        words = line.split(maxsplit=2)
        if not words:
            continue
        if len(words) != 3 or words[0] not in _KNOWN:
            raise FormatError(
                f"{manifest}, line {number}: expected a kind ({', '.join(_KNOWN)}), a hash, a name"
            )
        found.append((Hash(words[0], words[1].lower(), None), words[2]))
    return found
