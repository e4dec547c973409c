"""Keys that say what a model is: `general.*`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from ikq.checkpoint.target import OutTensor

__all__ = ["describe", "size_label"]

# `v2`, `7b`: written as they are
_VERSION = re.compile(r"v?\d")
# the head of a model card, and the line in it that names the licence by its identifier
_CARD, _LICENCE = (
    re.compile(r"---\s*\n(.*?\n)---\s*(?:\n|$)", re.DOTALL),
    re.compile(r"^license:[ \t]*([\"']?)([\w.+-]+)\1[ \t\r]*$", re.MULTILINE),
)
_CARD_BYTES = 1 << 16


def describe(folder: Path, tensors: list[OutTensor]) -> dict[str, object]:
    """Type, name (that of the folder), size and licence (that of the model card) of a model."""
    words = folder.resolve().name.replace("-", " ").split()
    name = " ".join(w.title() if w.islower() and not _VERSION.match(w) else w for w in words)
    found: dict[str, object] = {"general.type": "model"}
    if name:
        found["general.name"] = name
    found["general.size_label"] = size_label(tensors)
    licence = _licence(folder / "README.md")
    return {**found, "general.license": licence} if licence else found


def _licence(card: Path) -> str:
    """The identifier of a licence, such as `apache-2.0`; nothing where the card does not name one."""
    try:
        with card.open("rb") as file:
            head = file.read(_CARD_BYTES).decode(errors="replace")
    except OSError:  # no card, or none that can be read: it says nothing that a file needs
        return ""
    front = _CARD.match(head)
    line = _LICENCE.search(front[1]) if front else None
    return line[2] if line else ""


def size_label(tensors: Iterable[OutTensor]) -> str:
    """Parameters in words: `8x3.7M` for eight experts, each with everything else, `727K` without experts."""
    shared = one_expert = n_expert = 0
    for t in tensors:
        n = t.matrix.n_rows * t.matrix.n_per_row
        if t.name.endswith("_exps.weight"):
            n_expert = t.shape[0]
            one_expert += n // max(n_expert, 1)
        else:
            shared += n
    text = _two_digits(shared + one_expert)
    return f"{n_expert}x{text}" if n_expert else text


def _two_digits(n: int) -> str:
    """A number with a unit and at least two digits."""
    exponent, unit = next(((e, u) for e, u in ((12, "T"), (9, "B"), (6, "M")) if n > 10**e), (3, "K"))
    scaled = n / 10**exponent
    digits = len(str(round(scaled)).lstrip("0"))
    return f"{scaled:.{max(2 - digits, 0)}f}{unit}"
