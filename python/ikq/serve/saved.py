"""What is kept of texts, in files, so that it outlives the server."""

from __future__ import annotations

import hashlib
from collections.abc import Generator
from pathlib import Path

from ikq.errors import IkqError
from ikq.inference.model import Model
from ikq.serve.prefixes import PrefixCache
from ikq.serve.request_log import LOG

__all__ = ["folder_of", "load_prefixes", "save_prefixes"]

_ENDING = ".ikqseq"


def folder_of(folder: Path, model: Path) -> Path:
    """The folder for a model's texts in the folder for all."""
    digest = hashlib.sha256(str(model.resolve()).encode()).hexdigest()[:16]
    return folder / f"{model.stem[:64]}-{digest}"


def save_prefixes(prefixes: PrefixCache, folder: Path) -> int:
    """Writes what is kept; the number of texts.

    Each file is written whole or not at all, and those of an earlier run go when the new ones are there. What
    cannot be written is left out, and the log says so.

    Args:
        prefixes: See there; its thread has ended.
        folder: Of this model; made if it is not there.
    """
    new: list[Path] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        old = sorted(folder.glob(f"*{_ENDING}"))
        n_first = 1 + max((int(f.stem) for f in old if f.stem.isdigit()), default=-1)
        for i, sequence in enumerate(reversed(prefixes.sequences())):  # the oldest first
            file = folder / f"{n_first + i:08d}{_ENDING}"
            sequence.save(file)
            new.append(file)
        for file in old:
            file.unlink()
    except (OSError, IkqError, ValueError) as error:
        LOG.warning("texts cannot be kept in %s: %s", folder, error)
    return len(new)


def load_prefixes(model: Model, prefixes: PrefixCache, folder: Path) -> Generator[None, None, int]:
    """Reads what `save_prefixes` wrote, in the engine's thread; the number of texts.

    Files are verified: what is damaged, or belongs to another model or form of the cache, is removed.
    """
    n = 0
    for file in sorted(folder.glob("*")) if folder.is_dir() else ():
        try:
            if file.suffix != _ENDING:  # what a kill has left
                file.unlink()
                continue
            prefixes.add(model.load_sequence(file))
            n += 1
        except IkqError as error:
            LOG.warning("%s is no text of this model: %s", file, error)
            file.unlink(missing_ok=True)
        except OSError as error:
            LOG.warning("%s cannot be read: %s", file, error.strerror)
        yield
    return n
