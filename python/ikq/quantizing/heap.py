"""Freed memory, given back to the system: `give_back`."""

from __future__ import annotations

import ctypes
import sys

__all__ = ["give_back"]


def give_back() -> None:
    """Gives back what was freed and lies between what is still used; the C library keeps it otherwise.

    Does nothing where the C library has no call for it (others than that of GNU).
    """
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(ctypes.c_size_t(0))
