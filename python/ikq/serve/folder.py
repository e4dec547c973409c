"""Models of a folder: their names, their files, and whether these are still the same."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TypeAlias

__all__ = ["Stamp", "find_models", "is_whole", "stamp_of"]

Stamp: TypeAlias = tuple[tuple[int, int, int] | None, ...]
"""Of each file its time of change, size and number on its disk; `None`: it is not there."""

_SHARD = re.compile(r"(?P<set>.+)-(?P<number>[0-9]{5})-of-(?P<count>[0-9]{5})", re.DOTALL)


def find_models(folder: Path) -> dict[str, Path]:
    """Models of a folder and those in it, by the names that clients use; a split set is one.

    A name is that of the file without `.gguf`, with the folder before it where it is not in the first one.
    Clients' names are looked up here and never become paths.

    Raises:
        OSError: the folder cannot be read.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*.gguf")):
        name = path.relative_to(folder).with_suffix("").as_posix()
        if shard := _SHARD.fullmatch(name):
            if int(shard["number"]) != 1:
                continue
            name = shard["set"]
        if path.is_file():
            found[name] = path
    return found


def stamp_of(path: Path, also: Iterable[Path] = ()) -> Stamp:
    """What tells the file of a model, all files of a split set, from others that take their places later.

    Args:
        path: The file, the first one of a set.
        also: Further files that it is loaded with.
    """
    files = [path]
    if shard := _SHARD.fullmatch(path.stem):
        count = int(shard["count"])
        files += [path.with_stem(f"{shard['set']}-{i:05d}-of-{count:05d}") for i in range(2, count + 1)]
    return tuple(_file_stamp(file) for file in (*files, *also))


def is_whole(stamp: Stamp) -> bool:
    """Whether all files are there."""
    return None not in stamp


def _file_stamp(file: Path) -> tuple[int, int, int] | None:
    try:
        stat = file.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino
