"""Text files in the forms that occur: byte order marks, line ends of any system, other encodings.

Rules, manifests and keys are lines, and a mark in front of them means nothing (`read_lines`). Prompts and
calibration texts are taken literally, so there a mark is a character like any other (`read_literally`).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from ikq.errors import FormatError

__all__ = ["decode_literally", "read_lines", "read_literally"]

_MARK = "\ufeff"
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")


def read_lines(path: str | os.PathLike[str]) -> list[str]:
    """The lines of a file, without a byte order mark. UTF-8, or UTF-16 where its first two bytes say so.

    Raises:
        OSError: The file cannot be read.
        FormatError: It is in another encoding, or holds a NUL; names the line.
    """
    raw = Path(path).read_bytes()
    try:
        text = raw.decode("utf-16" if raw[:2] in _UTF_16 else "utf-8-sig")
    except UnicodeDecodeError as e:
        line = raw.count(b"\n", 0, e.start) + 1
        raise FormatError(
            f"{path}, line {line}: byte 0x{raw[e.start]:02x} is not UTF-8; save the file as UTF-8"
        ) from None
    if (at := text.find("\0")) >= 0:
        raise FormatError(f"{path}, line {text.count(chr(10), 0, at) + 1}: a NUL; this is not a text file")
    # not `splitlines`: it also ends lines at characters that are no line ends in files
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return lines[:-1] if lines[-1] == "" else lines


def decode_literally(data: bytes, where: object, note: Callable[[str], None] | None = None) -> str:
    """A text in UTF-8 as it is, every character of it.

    Args:
        data: Its bytes.
        where: What they are from, for messages.
        note: Called with a sentence when the text begins with a byte order mark, which few want in a prompt.

    Raises:
        FormatError: It is not UTF-8; names the byte.
    """
    if data[:2] in _UTF_16:
        raise FormatError(f"{where} is UTF-16; save it as UTF-8")
    try:
        text = data.decode()
    except UnicodeDecodeError as e:
        raise FormatError(f"{where} is not UTF-8 at byte {e.start}") from None
    if note is not None and text.startswith(_MARK):
        note(f"note: {where} begins with a byte order mark, which is taken as part of the text")
    return text


def read_literally(path: str | os.PathLike[str], note: Callable[[str], None] | None = None) -> str:
    """A file as `decode_literally` takes it.

    Raises:
        OSError: The file cannot be read.
        FormatError: As there.
    """
    return decode_literally(Path(path).read_bytes(), path, note)
