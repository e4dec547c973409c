"""`config.json` of a checkpoint: values with a kind, and errors that name the key."""

from __future__ import annotations

import json
import math
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ikq.errors import FormatError

__all__ = ["MAX_JSON_BYTES", "Config", "check_file", "read_json", "read_limited"]

MAX_JSON_BYTES = 200_000_000
"""Longest file of JSON accepted."""


def check_file(path: Path, max_bytes: int) -> int:
    """Size of a small file.

    Raises:
        FormatError: it is longer than `max_bytes`, or no file (a pipe or device, which may never end).
        OSError: it is not there.
    """
    # looked at before opening: opening a pipe would wait for its other end
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise FormatError(f"{path} is not a regular file")
    if found.st_size > max_bytes:
        raise FormatError(f"{path}: {found.st_size} bytes are more than {max_bytes}")
    return found.st_size


def read_limited(path: Path, max_bytes: int) -> bytes:
    """All of a small file.

    Raises:
        FormatError: as `check_file`.
        OSError: it cannot be read.
    """
    n = check_file(path, max_bytes)
    with path.open("rb") as f:
        return f.read(n)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        FormatError: the file holds something else.
        OSError: it cannot be read.
    """
    text = read_limited(path, MAX_JSON_BYTES)
    try:
        loaded = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise FormatError(f"{path} is not JSON: {e}") from None
    if not isinstance(loaded, dict):
        raise FormatError(f"{path} is no JSON object")
    return loaded


class Config:
    """The part of `config.json` that describes the language model.

    Models that see as well have it under `text_config`; what is not there is looked for in the whole.

    Attributes:
        path: The file, for messages.
        whole: All of it.
    """

    def __init__(self, path: Path, whole: Mapping[str, Any]) -> None:
        self.path = path
        self.whole = whole
        text = whole.get("text_config")
        self._values: Mapping[str, Any] = {**whole, **text} if isinstance(text, dict) else whole

    @classmethod
    def read(cls, folder: Path) -> Config:
        """The configuration of a folder.

        Raises:
            FormatError: it is no JSON object.
            OSError: it cannot be read, or the folder is none of a checkpoint.
        """
        path = folder / "config.json"
        if not folder.exists():
            raise FileNotFoundError(
                2,
                "no such folder (what is on the Hub has to be downloaded first: `hf download`)",
                str(folder),
            )
        if not folder.is_dir():
            raise NotADirectoryError(
                20, "a file, not the folder of a checkpoint with config.json", str(folder)
            )
        if not path.exists():
            raise FileNotFoundError(2, "a directory without config.json: no checkpoint", str(folder))
        return cls(path, read_json(path))

    def with_defaults(self, defaults: Mapping[str, Any]) -> Config:
        """The same, with values for keys that are missing: what the model's class has for them."""
        given = {name: value for name, value in self._values.items() if value is not None}
        found = Config(self.path, self.whole)
        found._values = {**defaults, **given}
        return found

    def wrong(self, key: str, expected: str) -> FormatError:
        """The error for a value that cannot be meant."""
        return FormatError(f"{self.path}: `{key}` is {self._values.get(key)!r:.60}, expected {expected}")

    def get(self, *names: str) -> Any:  # noqa: ANN401  # JSON
        """The first of these keys that is there and not null."""
        return next((self._values[n] for n in names if self._values.get(n) is not None), None)

    def has(self, *names: str) -> bool:
        """Whether one of these keys is there and not null."""
        return self.get(*names) is not None

    def integer(self, *names: str, default: int | None = None, low: int = 0) -> int:
        """A number without fraction.

        Raises:
            FormatError: it is missing and has no default, or is something else.
        """
        name = next((n for n in names if self._values.get(n) is not None), None)
        if name is None:
            if default is None:
                raise FormatError(f"{self.path}: `{names[0]}` is missing")
            return default
        value = self._values[name]
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if type(value) is not int or not low <= value < 2**31:
            raise self.wrong(name, f"a number of at least {low}")
        return value

    def number(self, *names: str, default: float | None = None) -> float:
        """A finite number.

        Raises:
            FormatError: it is missing and has no default, or is something else.
        """
        name = next((n for n in names if self._values.get(n) is not None), None)
        if name is None:
            if default is None:
                raise FormatError(f"{self.path}: `{names[0]}` is missing")
            return default
        value = self._values[name]
        if type(value) not in (int, float) or not math.isfinite(value):
            raise self.wrong(name, "a number")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """A truth value.

        Raises:
            FormatError: it is something else.
        """
        value = self._values.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.wrong(name, "true or false")
        return value

    def texts(self, name: str) -> list[str]:
        """A list of texts; nothing where it is missing.

        Raises:
            FormatError: it is something else.
        """
        value = self._values.get(name)
        if value is None:
            return []
        if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
            raise self.wrong(name, "a list of texts")
        return value

    def numbers(self, name: str, none: float) -> list[float]:
        """A list of finite numbers; `none` where it has null.

        Raises:
            FormatError: it is something else.
        """
        value = self._values.get(name)
        if not isinstance(value, list) or not all(
            v is None or (type(v) in (int, float) and math.isfinite(v)) for v in value
        ):
            raise self.wrong(name, "a list of numbers")
        return [none if v is None else float(v) for v in value]

    def per_kind(self, kind: str, index: int) -> Config:
        """Rotary parameters of a kind of layers, which may stand in lists with a number for every layer.

        Args:
            kind: of layers, such as `full_attention`.
            index: a layer of this kind.

        Raises:
            FormatError: a list is too short.
        """
        found = dict(self._values)
        for name, listed in (
            ("rope_theta", "rope_theta"),
            ("partial_rotary_factor", "partial_rotary_factors"),
        ):
            values = found.get(listed)
            if isinstance(values, list):
                if index >= len(values):
                    raise self.wrong(listed, "a number for every layer")
                found[name] = values[index]
        return Config(self.path, found).rope(kind)

    def rope(self, kind: str | None = None) -> Config:
        """What is said about rotary positions, in its newer form (`rope_parameters`) whichever the file has.

        Args:
            kind: of layers, where they have parameters of their own (`full_attention`).

        Raises:
            FormatError: it is no object.
        """
        found: dict[str, Any] = {}
        for name in ("rope_scaling", "rope_parameters"):
            value = self._values.get(name)
            if value is None:
                continue
            if not isinstance(value, dict):
                raise self.wrong(name, "an object")
            inner = value.get(kind) if kind is not None else None
            found |= inner if isinstance(inner, dict) else value
        found.setdefault("rope_type", found.get("type", "default"))
        for name in ("rope_theta", "partial_rotary_factor", "original_max_position_embeddings"):
            if self._values.get(name) is not None:
                found.setdefault(name, self._values[name])
        return Config(self.path, found)
