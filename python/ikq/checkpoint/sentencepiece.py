"""`tokenizer.model` of SentencePiece: pieces with scores and kinds.

The file is a message of protocol buffers, of which a few fields matter; they are read here, since nothing
else of the library is needed:

```text
1  pieces, each a message:  1 text   2 score (float)   3 kind: 1 normal, 2 unknown, 3 control, 4 user-defined,
                            5 unused, 6 byte
2  trainer:                 3 kind of model (1 unigram, which is what a missing field means; 2 BPE)
3  normalizer:              3 a space is put before the text (true if missing)
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
_BPE = 2
_OTHERS = {
    1: (
        "unigram",
        ": they take the likeliest split of a text as a whole, and tokenizers of kind `llama` in GGUF files "
        "join pairs by their scores, which gives other tokens",
    ),
    3: ("words", ""),
    4: ("characters", ""),
}


@dataclass(frozen=True)
class SentencePieces:
    """Pieces by id.

    Attributes:
        texts: With U+2581 for spaces.
        scores: The higher, the earlier a pair merges.
        kinds: Numbered as in GGUF files.
        space_prefix: A space is put before the text.
    """

    texts: list[str]
    scores: list[float]
    kinds: list[int]
    space_prefix: bool


def read_sentencepiece(path: Path) -> SentencePieces:
    """Reads a model.

    Raises:
        FormatError: the file is damaged.
        UnsupportedError: the model is no BPE.
        OSError: it cannot be read.
    """
    data = read_limited(path, _MAX_BYTES)
    texts: list[str] = []
    scores: list[float] = []
    kinds: list[int] = []
    space_prefix, model = True, 1
    try:
        for field, value in _fields(data):
            if field == 1 and isinstance(value, bytes):
                piece = dict(_fields(value))
                texts.append(_bytes(piece.get(1, b"")).decode())
                scores.append(struct.unpack("<f", _bytes(piece.get(2, bytes(4))))[0])
                kinds.append(_int(piece.get(3, 1)))
            elif field == 2 and isinstance(value, bytes):
                model = _int(dict(_fields(value)).get(3, 1))
            elif field == 3 and isinstance(value, bytes):
                space_prefix = bool(_int(dict(_fields(value)).get(3, 1)))
    except (ValueError, IndexError, struct.error) as e:
        raise FormatError(f"{path} is no model of SentencePiece: {e}") from None
    if not texts:
        raise FormatError(f"{path} is no model of SentencePiece: it has no pieces")
    if model != _BPE:
        kind, why = _OTHERS.get(model, (f"kind {model}", ""))
        raise UnsupportedError(
            f"{path}: models of SentencePiece other than BPE ({kind}) are not converted{why}"
        )
    return SentencePieces(texts, scores, kinds, space_prefix)


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
