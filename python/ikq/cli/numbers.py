"""Numbers and sizes on the command line, for `type=` of an option: what is none is refused in a sentence.

`whole_number`, `number` and `size`; `at_least` bounds whole numbers.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

from ikq.quantizing.options import parse_size

__all__ = ["VALUES_WITH_A_SIGN", "at_least", "number", "positive_number", "size", "whole_number"]

VALUES_WITH_A_SIGN = r"-(\.?\d|(inf|infinity|nan)$)"
"""What begins so is the value of an option before it, such as -1 or -1G, and no option."""

_MOST = 2**63


def whole_number(text: str) -> int:
    """A whole number, of either sign, that fits into 64 bits."""
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
    if not -_MOST <= value < _MOST:
        raise argparse.ArgumentTypeError(f"{text} is beyond 64 bits")
    return value


def at_least(low: int) -> Callable[[str], int]:
    """Whole numbers of at least `low`."""

    def bounded(text: str) -> int:
        value = whole_number(text)
        if value < low:
            raise argparse.ArgumentTypeError(f"{text}: expected {low} or more")
        return value

    return bounded


def number(text: str) -> float:
    """A number, of either sign; it may be infinite."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if math.isnan(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number")
    return value


def positive_number(text: str) -> float:
    """A finite number above 0."""
    value = number(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text}: expected a number above 0")
    return value


def size(text: str) -> int:
    """A number of bytes, such as 4G."""
    try:
        return parse_size(text)
    except ValueError as e:
        raise argparse.ArgumentTypeError(str(e)) from None
