"""Outputs that would overwrite what should stay: `check_outputs`, `is_same_file`."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from ikq.errors import IkqError, RefusedError
from ikq.files.gguf import GGUFReader

__all__ = ["check_outputs", "is_same_file"]

_PathLike = str | os.PathLike[str]
_GGUF_MAGIC = b"GGUF"


def check_outputs(
    outputs: Iterable[tuple[str, _PathLike | None]],
    inputs: Iterable[tuple[str, _PathLike | None]],
    *,
    are_gguf: bool = False,
) -> None:
    """Refuses outputs that cannot be written, or would replace an input, one another, or a model.

    It is called before the work that the outputs are of.

    Args:
        outputs: Pairs of an option as the user knows it and its file; `None` where it was not given.
        inputs: The same of what is read.
        are_gguf: Outputs may be GGUF files themselves, and replace older ones that are no models. Other
            outputs replace no GGUF file at all, and may be devices and pipes, which are written to.

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
        is_special = path.exists() and not path.is_file() and not path.is_dir()
        if is_special and are_gguf:
            raise RefusedError(f"{option} {file} is a device or a pipe, not a file; give another name")
        if not is_special and not os.access(folder, os.W_OK):
            raise RefusedError(f"{option} {file}: the folder {folder} cannot be written to")
        if path.is_dir():
            raise RefusedError(f"{option} {file} is a folder; name a file in it")
        for other, known in taken:
            if is_same_file(path, known):
                raise RefusedError(f"{option} {file}: that is the file of {other}; give another name")
        if _is_gguf(path) and not (are_gguf and not _is_model(path)):
            what = "a model" if are_gguf else "a GGUF file"
            raise RefusedError(f"{option} {file} is {what} and would be overwritten; give another name")
        taken.append((option, path))


def is_same_file(a: Path, b: Path) -> bool:
    """Whether both names mean one file, also where it does not exist yet."""
    if a.exists() and b.exists():
        return a.samefile(b)
    return a.resolve() == b.resolve()


def _is_gguf(path: Path) -> bool:
    if not path.is_file():  # to open a pipe is to wait for who writes to it
        return False
    try:
        with path.open("rb") as f:
            return f.read(len(_GGUF_MAGIC)) == _GGUF_MAGIC
    except OSError:
        return False


def _is_model(path: Path) -> bool:
    """Whether a GGUF file is a model or a part of a split one."""
    try:
        with GGUFReader(path) as reader:
            return any(key == "general.architecture" or key.startswith("split.") for key in reader.metadata)
    except (IkqError, OSError):
        return False
