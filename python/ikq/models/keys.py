"""Metadata of a model: typed access whose errors name the key, its value and what was expected."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence

from ikq.errors import FormatError

__all__ = ["Keys"]

# Counts and lengths: far above any model, and small enough that products of a few fit 64 bits.
_LARGEST = 2**31 - 1
_FLOAT32_MAX = 3.4028234663852886e38


class Keys:
    """The keys of one architecture, named without its prefix.

    Every method raises `FormatError` for a value of the wrong kind or outside its limits, and, where it takes
    no default, for a missing key.

    Attributes:
        architecture: the prefix.
    """

    def __init__(self, metadata: Mapping[str, object], architecture: str) -> None:
        self.architecture = architecture
        self._metadata = metadata

    def full_name(self, key: str) -> str:
        """The key as it stands in the file."""
        return f"{self.architecture}.{key}"

    def has(self, key: str) -> bool:
        """Whether the file has the key."""
        return self.full_name(key) in self._metadata

    def _find(self, key: str) -> object:
        return self._metadata.get(self.full_name(key))

    def _required(self, key: str) -> object:
        value = self._find(key)
        if value is None:
            raise FormatError(f"architecture `{self.architecture}`: key `{self.full_name(key)}` is missing")
        return value

    def wrong(self, key: str, value: object, expected: str) -> FormatError:
        """The error for a value that is not what it should be."""
        return FormatError(f"key `{self.full_name(key)}` is {reprlib.repr(value)}, expected {expected}")

    def integer(self, key: str, default: int | None = None, *, low: int = 0, high: int = _LARGEST) -> int:
        """A count or length in `low..high`."""
        if default is not None and not self.has(key):
            return default
        return self._check_integer(key, self._required(key), low, high)

    def optional_integer(self, key: str, *, low: int = 0, high: int = _LARGEST) -> int | None:
        """A count or length, `None` where the key is missing."""
        return self.integer(key, low=low, high=high) if self.has(key) else None

    def _check_integer(self, key: str, value: object, low: int, high: int) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise self.wrong(key, value, f"an integer of {low} to {high}")
        return value

    def integers(self, key: str, n: int, default: int | None = None, *, low: int = 0) -> tuple[int, ...]:
        """One value per block: an array of `n`, or one number for all of them."""
        if default is not None and not self.has(key):
            return (default,) * n
        value = self._required(key)
        if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
            return (self._check_integer(key, value, low, _LARGEST),) * n
        if len(value) != n:
            raise self.wrong(key, value, f"one number, or one per block ({n})")
        return tuple(self._check_integer(key, v, low, _LARGEST) for v in value)

    def numbers(self, key: str, n: int, default: float) -> tuple[float, ...]:
        """One value per block that is not negative: an array of `n`, or one number for all of them."""
        if not self.has(key):
            return (default,) * n
        value = self._required(key)
        if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
            return (self.number(key),) * n
        if len(value) != n or not all(
            isinstance(v, (int, float)) and not isinstance(v, bool) and 0 <= v <= _FLOAT32_MAX for v in value
        ):
            raise self.wrong(key, value, f"one number that is not negative per block ({n})")
        return tuple(float(v) for v in value)

    def flags(self, key: str, n: int) -> tuple[bool, ...] | None:
        """One truth value per block, `None` where the key is missing or holds no array."""
        value = self._find(key)
        if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
            return None
        # written as an array of bool, or of 0 and 1
        if len(value) != n or not all(isinstance(v, (bool, int)) and v in (0, 1) for v in value):
            raise self.wrong(key, value, f"one truth value per block ({n})")
        return tuple(bool(v) for v in value)

    def number(self, key: str, default: float | None = None, *, positive: bool = False) -> float:
        """A finite number that float32 can hold."""
        if default is not None and not self.has(key):
            return default
        value = self._required(key)
        expected = "a positive number" if positive else "a number that is not negative"
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise self.wrong(key, value, expected)
        if not 0 <= value <= _FLOAT32_MAX or (positive and not value):  # NaN is in no range
            raise self.wrong(key, value, expected)
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """A truth value."""
        value = self._find(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.wrong(key, value, "true or false")
        return value

    def text(self, key: str, default: str) -> str:
        """A string."""
        value = self._find(key)
        if value is None:
            return default
        if not isinstance(value, str):
            raise self.wrong(key, value, "a string")
        return value

    def check(self, key: str, found: int, where: str) -> None:
        """Compares a key, if the file has it, with what tensors say.

        Args:
            key: a length.
            found: the length in the file's tensors.
            where: the tensor that says so.
        """
        value = self.optional_integer(key)
        if value is not None and value != found:
            raise self.wrong(key, value, f"{found} as in tensor `{where}`")
