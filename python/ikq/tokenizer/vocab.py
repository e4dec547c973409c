"""The vocabulary of a GGUF file: `Vocab`."""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ikq.errors import FormatError

__all__ = ["TokenType", "Vocab", "read_bool", "read_id", "read_text"]

PREFIX = "tokenizer.ggml."


class TokenType(enum.IntEnum):
    """Kinds of tokens, numbered as in `tokenizer.ggml.token_type`."""

    UNDEFINED = 0
    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass
class Vocab:
    """Tokens by id.

    Attributes:
        texts: As in the file: byte-level BPE writes each byte as a character, SentencePiece a space
            as U+2581. Never empty.
        types: One per token.
        scores: One per token, or nothing.
        merges: Rules of BPE, most important first.
        ids: Ids by text.
    """

    texts: list[str]
    types: list[TokenType]
    scores: list[float]
    merges: list[tuple[str, str]]
    ids: dict[str, int]

    @classmethod
    def read(cls, metadata: Mapping[str, Any]) -> Vocab:
        """Reads and checks the arrays.

        Raises:
            FormatError: an array is missing, of the wrong kind or length, or a token is not UTF-8.
        """
        texts = _list(metadata, "tokens", str)
        if not texts:
            raise FormatError("`tokenizer.ggml.tokens` is missing or empty: the file has no vocabulary")
        # an empty token could not be told from none; the name is what other engines give it
        texts = [text or f"[EMPTY_{i}]" for i, text in enumerate(texts)]
        kinds = {int(kind): kind for kind in TokenType}
        types = [kinds.get(t, TokenType.UNDEFINED) for t in _list(metadata, "token_type", int)]
        scores = _list(metadata, "scores", float)
        for name, values in (("token_type", types), ("scores", scores)):
            if values and len(values) < len(texts):
                raise FormatError(f"`{PREFIX}{name}` has {len(values)} values for {len(texts)} tokens")
        if any(math.isnan(score) for score in scores):
            raise FormatError(f"`{PREFIX}scores` holds NaN")
        merges = [_halves(merge) for merge in _list(metadata, "merges", str)]
        ids = {text: token for token, text in enumerate(texts)}
        return cls(texts, types or [TokenType.NORMAL] * len(texts), scores, merges, ids)


def _halves(merge: str) -> tuple[str, str]:
    # the first character may itself be a space
    left, _, right = merge[1:].partition(" ")
    if not right:
        raise FormatError(f"`{PREFIX}merges`: rule {merge!r:.40} is not two tokens")
    return merge[0] + left, right


def _list(metadata: Mapping[str, Any], name: str, kind: type) -> list[Any]:
    values = metadata.get(PREFIX + name, [])
    if not isinstance(values, list):
        raise FormatError(f"`{PREFIX}{name}` is not an array")
    kinds = (float, int) if kind is float else (kind,)
    if set(map(type, values)).issubset(kinds):
        return values
    for i, value in enumerate(values):
        if type(value) not in kinds:
            what = "not UTF-8" if kind is str and isinstance(value, bytes) else f"no {kind.__name__}"
            raise FormatError(f"`{PREFIX}{name}`: value {i}, {value!r:.40}, is {what}")
    return values


def read_id(metadata: Mapping[str, Any], name: str, n_vocab: int) -> int | None:
    """The id of a special token.

    Returns:
        `None` if the file does not name one, or names one that is not in the vocabulary.

    Raises:
        FormatError: the value is no integer.
    """
    token = metadata.get(PREFIX + name)
    if token is None:
        return None
    if not isinstance(token, int) or isinstance(token, bool):
        raise FormatError(f"`{PREFIX}{name}` is {token!r:.40}, not an integer")
    return token if 0 <= token < n_vocab else None


def read_bool(metadata: Mapping[str, Any], name: str, default: bool) -> bool:
    """A switch.

    Raises:
        FormatError: the value is no bool.
    """
    value = metadata.get(PREFIX + name, default)
    if not isinstance(value, bool):
        raise FormatError(f"`{PREFIX}{name}` is {value!r:.40}, not true or false")
    return value


def read_text(metadata: Mapping[str, Any], key: str) -> str | None:
    """A text, or `None` if the file has none.

    Raises:
        FormatError: the value is no text or not UTF-8.
    """
    value = metadata.get(key)
    if value is not None and not isinstance(value, str):
        raise FormatError(f"`{key}` is {value!r:.40}, not a text")
    return value
