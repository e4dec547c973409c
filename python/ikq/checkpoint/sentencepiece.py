"""`tokenizer.model` of SentencePiece: pieces with scores and kinds.

The file is a message of protocol buffers, of which a few fields matter; they are read here, since nothing
else of the library is needed:

```text
1  pieces, each a message:  1 text   2 score (float)   3 kind: 1 normal, 2 unknown, 3 control, 4 user-defined,
                            5 unused, 6 byte
2  trainer:                 3 kind of model (1 unigram, which is what a missing field means; 2 BPE)
                            24 that space stands behind the text instead (false if missing)
3  normalizer:              2 a table of replacements   3 a space is put before the text (true if missing)
                            4 runs of spaces become one (true if missing)   5 spaces are written as U+2581
                            (true if missing)
```
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ikq.checkpoint.config import read_limited
from ikq.errors import FormatError, UnsupportedError

__all__ = ["SentencePieces", "read_sentencepiece"]

_MAX_BYTES = 200_000_000
_UNIGRAM, _BPE = 1, 2
_OTHERS = {3: "words", 4: "characters"}


@dataclass(frozen=True)
class SentencePieces:
    """Pieces by id.

    Attributes:
        texts: With U+2581 for spaces.
        scores: The higher, the earlier a pair merges; of unigram models logarithms of probabilities.
        kinds: Numbered as in GGUF files.
        space_prefix: A space is put before the text.
        is_unigram: The model takes the likeliest split of a text; otherwise it is BPE.
        merge_spaces: Of unigram models: runs of spaces become one, those at both ends are dropped.
        charsmap: Of unigram models: the table of characters that are replaced; empty if none is.
    """

    texts: list[str]
    scores: list[float]
    kinds: list[int]
    space_prefix: bool
    is_unigram: bool = False
    merge_spaces: bool = False
    charsmap: bytes = b""


def read_sentencepiece(path: Path) -> SentencePieces:
    """Reads a model.

    Raises:
        FormatError: the file is damaged.
        UnsupportedError: the model is neither BPE nor unigram, or one whose spaces stand elsewhere.
        OSError: it cannot be read.
    """
    data = read_limited(path, _MAX_BYTES)
    texts: list[str] = []
    scores: list[float] = []
    kinds: list[int] = []
    trainer: dict[int, int | bytes] = {}
    rules: dict[int, int | bytes] = {}
    try:
        for field, value in _fields(data):
            if field == 1 and isinstance(value, bytes):
                piece = dict(_fields(value))
                texts.append(_bytes(piece.get(1, b"")).decode())
                scores.append(struct.unpack("<f", _bytes(piece.get(2, bytes(4))))[0])
                kinds.append(_int(piece.get(3, 1)))
            elif field == 2 and isinstance(value, bytes):
                trainer = dict(_fields(value))
            elif field == 3 and isinstance(value, bytes):
                rules = dict(_fields(value))
        model, behind = _int(trainer.get(3, _UNIGRAM)), _int(trainer.get(24, 0))
        charsmap = _bytes(rules.get(2, b""))
        space_prefix, merge_spaces, escaped = (bool(_int(rules.get(i, 1))) for i in (3, 4, 5))
    except (ValueError, IndexError, struct.error) as e:
        raise FormatError(f"{path} is no model of SentencePiece: {e}") from None
    if not texts:
        raise FormatError(f"{path} is no model of SentencePiece: it has no pieces")
    if model not in (_UNIGRAM, _BPE):
        kind = _OTHERS.get(model, f"kind {model}")
        raise UnsupportedError(
            f"{path}: models of SentencePiece other than BPE and unigram ({kind}) are not converted"
        )
    if model == _BPE:
        return SentencePieces(texts, scores, kinds, space_prefix)
    if behind or not escaped:
        what = "treat_whitespace_as_suffix" if behind else "escape_whitespaces off"
        raise UnsupportedError(f"{path}: unigram models with {what} are not converted")
    return SentencePieces(texts, scores, kinds, space_prefix, True, merge_spaces, charsmap)


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Numbers and values of a message's fields."""
    at, end = 0, len(message)
    while at < end:
        tag, at = _varint(message, at)
        wire = tag & 7
        value: int | bytes
        if wire == 0:
            value, at = _varint(message, at)
        else:
            if wire == 2:
                size, at = _varint(message, at)
            elif wire in (1, 5):
                size = 8 if wire == 1 else 4
            else:
                raise ValueError(f"a field of kind {wire} at byte {at}")
            if size > end - at:
                raise ValueError(f"a field of {size} bytes at byte {at} does not fit")
            value, at = message[at : at + size], at + size
        yield tag >> 3, value


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError(f"a number at byte {at} is too long")


def _bytes(value: int | bytes) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError("a number where a text is expected")
    return value


def _int(value: int | bytes) -> int:
    if not isinstance(value, int):
        raise ValueError("a text where a number is expected")
    return value
