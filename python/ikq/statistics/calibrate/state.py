"""The state that an interrupted run leaves beside its output, so that the next one can continue.

A state is an uncompressed `.npz` file: sums in double precision and counts as they stand in the collector,
the losses of the perplexity, and a JSON text with the rest, among it the identity of the run. It appears
under its name when it is complete.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ikq import _ikq
from ikq.errors import FormatError
from ikq.statistics.activations import ActivationCollector

__all__ = ["SavedRun", "load_state", "run_identity", "save_state", "state_path"]

_FORM = 2
# Places of a file that its identity looks at, and bytes of each.
_PLACES, _BYTES = 256, 4096


class SavedRun(NamedTuple):
    """A state as it was read.

    Attributes:
        identity: Of the run that left it.
        n_done: Chunks that are in it.
        losses: For `run_chunks`.
        collector: For `ActivationCollector.restore`.
    """

    identity: str
    n_done: int
    losses: NDArray[np.float64]
    collector: dict[str, object]


def state_path(output: str | os.PathLike[str]) -> Path:
    """The path of the state of a run with this output."""
    path = Path(output)
    return path.with_name(path.name + ".partial")


def run_identity(files: list[Path], tokens: NDArray[np.int32], options: Mapping[str, Any]) -> str:
    """What a run's result depends on, as a hash: the model, the text, options.

    A model is known by the sizes of its files, their beginnings and ends, and samples between.

    Args:
        files: The model's files.
        tokens: The text.
        options: Everything else; numbers, texts, and lists of them.
    """
    digest = hashlib.sha256(f"{_FORM} {_ikq.__version__}\n".encode())
    for file in files:
        size = file.stat().st_size
        digest.update(size.to_bytes(8, "little"))
        with file.open("rb") as f:
            digest.update(f.read(1 << 20))
            for i in range(_PLACES + 1):
                f.seek(max(0, size - _BYTES) * i // _PLACES)
                digest.update(f.read(_BYTES))
    digest.update(len(tokens).to_bytes(8, "little"))
    digest.update(np.ascontiguousarray(tokens, "<i4").tobytes())
    digest.update(json.dumps(options, sort_keys=True).encode())
    return digest.hexdigest()


def save_state(
    path: Path, identity: str, n_done: int, losses: NDArray[np.float64], collector: ActivationCollector
) -> None:
    """Writes a state.

    Raises:
        OSError: it cannot be written; what was there is still there.
    """
    state = collector.state()
    arrays: dict[str, NDArray[Any]] = {"losses": losses}
    pairs = state.pop("arrays")
    assert isinstance(pairs, list)
    for i, (sums, counts) in enumerate(pairs):
        arrays[f"sums{i}"], arrays[f"counts{i}"] = sums, counts
    head = {"form": _FORM, "identity": identity, "n_done": n_done, "n_sites": len(pairs)} | state
    arrays["head"] = np.frombuffer(json.dumps(head).encode(), np.uint8)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as f:
            np.savez(f, **arrays)  # type: ignore[arg-type]
            f.flush()
            os.fsync(f.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def load_state(path: Path) -> SavedRun | None:
    """Reads a state; `None` if there is none.

    Raises:
        OSError: it cannot be read.
        FormatError: it is damaged, or of another form.
    """
    try:
        with path.open("rb") as f, np.load(f, allow_pickle=False) as file:
            head = json.loads(bytes(file["head"]))
            if head["form"] != _FORM:
                raise FormatError(f"{path}: form {head['form']}, expected {_FORM}")
            n = int(head["n_sites"])
            head["arrays"] = [(file[f"sums{i}"], file[f"counts{i}"]) for i in range(n)]
            return SavedRun(str(head["identity"]), int(head["n_done"]), file["losses"], head)
    except FileNotFoundError:
        return None
    except FormatError:
        raise
    except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as e:
        raise FormatError(f"{path} is not a state of an interrupted run: {e}") from e
