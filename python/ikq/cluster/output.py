"""Ray's own words beside a command's output: `rays_words_on_stderr`."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

__all__ = ["rays_words_on_stderr"]

_THREADS = "ray_"


class _Output:
    """Standard output as it was, but for what Ray's threads write."""

    def __init__(self, own: TextIO) -> None:
        self._own = own

    def write(self, text: str) -> int:
        """Writes where the thread's words belong."""
        is_rays = threading.current_thread().name.startswith(_THREADS)
        return (sys.stderr if is_rays else self._own).write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)


@contextmanager
def rays_words_on_stderr() -> Iterator[None]:
    """While the block runs, Ray's threads in this process write on standard error.

    Ray prints what it has to say about nodes that die, their last log lines among it, on standard output,
    where a program may read JSON or figures.
    """
    before = sys.stdout
    output = _Output(before)
    sys.stdout = output
    try:
        yield
    finally:
        # whoever took its place meanwhile keeps it
        if sys.stdout is output:
            sys.stdout = before
