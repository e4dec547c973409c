"""Outputs that would overwrite what should stay: `check_outputs`."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from ikq.errors import RefusedError

__all__ = ["check_outputs"]

_PathLike = str | os.PathLike[str]
_GGUF_MAGIC = b"GGUF"


def check_outputs(
    outputs: Iterable[tuple[str, _PathLike | None]], inputs: Iterable[tuple[str, _PathLike | None]]
) -> None:
    """Refuses outputs of text that would replace an input, one another, or a GGUF file.

    Args:
        outputs: Pairs of an option as the user knows it and its file; `None` where it was not given.
        inputs: The same of what is read.

    Raises:
        ikq.errors.RefusedError: Such an output, or one in a folder that does not exist.
    """
    taken = [(option, Path(file)) for option, file in inputs if file is not None]
    for option, file in outputs:
        if file is None:
            continue
        path = Path(file)
        folder = path.absolute().parent
        if not folder.is_dir():
            raise RefusedError(f"{option} {file}: there is no folder {folder}")
        if path.is_dir():
            raise RefusedError(f"{option} {file} is a folder; give the name of a file")
        for other, known in taken:
            if _is_same(path, known):
                raise RefusedError(f"{option} {file}: that is the file of {other}; give another name")
        if _is_gguf(path):
            raise RefusedError(f"{option} {file} is a GGUF file and would be overwritten; give another name")
        taken.append((option, path))


def _is_same(a: Path, b: Path) -> bool:
    """Whether both names mean one file, also where it does not exist yet."""
    if a.exists() and b.exists():
        return a.samefile(b)
    return a.resolve() == b.resolve()


def _is_gguf(path: Path) -> bool:
    try:
        with path.open("rb") as f:
            return f.read(len(_GGUF_MAGIC)) == _GGUF_MAGIC
    except OSError:
        return False
