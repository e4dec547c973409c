"""`--lora` and `--lora-scaled`: LoRA adapters beside a model, in the spellings of llama.cpp."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ikq.errors import RefusedError
from ikq.inference.lora import LoraAdapter

__all__ = ["add_lora"]


def add_lora(group: argparse._ActionsContainer) -> None:
    """Adds the options; both append to `lora`, in the order in which they are given."""
    group.set_defaults(lora=[])
    group.add_argument(
        "--lora",
        action=_Lora,
        nargs=1,
        metavar="FILE,...",
        help="LoRA adapters beside the model's weights (ikq convert writes them); may be repeated",
    )
    group.add_argument(
        "--lora-scaled",
        action=_Lora,
        nargs="+",
        dest="lora",
        metavar="FILE:SCALE,...",
        help="adapters with scales of their own, also as FILE SCALE; may be repeated",
    )


class _Lora(argparse.Action):
    """Appends adapters."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        """See `argparse.Action`."""
        assert values is not None
        words = [str(value) for value in values]
        try:
            found = _scaled(words) if option_string == "--lora-scaled" else _plain(words[0])
        except (RefusedError, ValueError) as error:
            raise argparse.ArgumentError(self, str(error)) from None
        namespace.lora = [*namespace.lora, *found]


def _plain(text: str) -> list[LoraAdapter]:
    # a file's name may have a comma, too
    return [LoraAdapter(file) for file in ([text] if Path(text).exists() else text.split(","))]


def _scaled(words: list[str]) -> list[LoraAdapter]:
    if len(words) == 2 and not words[0].endswith(","):
        return [LoraAdapter(words[0], _scale(words[1]))]
    if len(words) > 1:
        raise ValueError(f"{' '.join(words)}: expected FILE:SCALE,... or FILE SCALE")
    found = []
    for part in words[0].split(","):
        file, colon, scale = part.rpartition(":")
        if not (file and colon):
            raise ValueError(f"{part!r}: expected FILE:SCALE")
        found.append(LoraAdapter(file, _scale(scale)))
    return found


def _scale(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{text!r}: expected a number, the scale") from None
