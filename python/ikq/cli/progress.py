"""One line on the terminal while something takes long; it vanishes afterwards."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["prompt_progress", "waiting"]

_CLEAR = "\r\x1b[K"

# Shorter prompts are done before a line about them could be read.
_LONG_PROMPT = 1024


@contextmanager
def waiting(text: str) -> Iterator[None]:
    """Shows `text` while the block runs, if standard error is a terminal."""
    shows = sys.stderr.isatty()
    if shows:
        print(text, end="", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        if shows:
            print(_CLEAR, end="", file=sys.stderr, flush=True)


def prompt_progress(done: int, total: int) -> None:
    """Shows how much of a long prompt is computed; for the beginning of a line."""
    if total < _LONG_PROMPT or not sys.stderr.isatty():
        return
    text = _CLEAR if done == total else f"\rprompt: {done} of {total} tokens"
    print(text, end="", file=sys.stderr, flush=True)
