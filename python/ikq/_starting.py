"""Ctrl-C while the command `ikq` starts: it ends at once, where Python would show where it was importing.

`import ikq` begins with this module. Programs that use ikq as a library keep their own way with signals.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

__all__ = ["begin", "end"]

_INTERRUPTED = 130


def begin() -> None:
    """Ends the process quietly on Ctrl-C from now on, if it is the command and nobody has another wish."""
    if _is_command() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)


def end() -> None:
    """Ctrl-C is Python's KeyboardInterrupt again."""
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _is_command() -> bool:
    """Whether this process was started as `ikq` or `python -m ikq`, as far as its command line tells.

    `sys.argv` does not: processes that a program starts for its own work take over that of the program.
    """
    words = sys.orig_argv[1:]
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word == "-m":
            return following == "ikq"
        if not word.startswith("-"):
            return word.rpartition(os.sep)[2] == "ikq"
    return False


def _leave(number: int, frame: FrameType | None) -> None:
    # nothing but imports has happened
    os.write(2, b"error: interrupted\n")
    os._exit(_INTERRUPTED)
