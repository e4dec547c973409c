"""Sentences for the user beside a command's output."""

from __future__ import annotations

import sys

__all__ = ["note_on_stderr"]


def note_on_stderr(text: str) -> None:
    """Prints a sentence where it does not mix with what the command writes."""
    print(text, file=sys.stderr, flush=True)
