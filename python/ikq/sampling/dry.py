"""DRY: a penalty on tokens that would continue a repetition, growing with its length.

Definition: https://github.com/oobabooga/text-generation-webui/pull/5677. If the last n tokens occurred
before and were followed by t there, t is penalized by `multiplier * base ** (n - allowed_length)`, n being
the longest such match. Matches do not reach across a sequence breaker.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

__all__ = ["Breakers", "Vocabulary", "breakers", "penalize", "repeat_lengths"]

Breakers = Mapping[int, Sequence[tuple[int, ...]]]
"""By first token: the tokens that must follow it, none if the token holds a whole breaker."""

# Longest penalty, as a power of e, that float32 can hold.
_LARGEST = 88.0

_MOST_FOLLOWING = 20

# by vocabulary and texts, the latest last
_KNOWN: WeakKeyDictionary[Vocabulary, dict[tuple[str, ...], dict[int, list[tuple[int, ...]]]]]
_KNOWN = WeakKeyDictionary()
_LOCK = threading.Lock()
_MOST_KNOWN = 8


class Vocabulary(Protocol):
    """What breakers need of a tokenizer."""

    @property
    def n_vocab(self) -> int:
        """Number of tokens."""

    def token_bytes(self, token: int, /) -> bytes:
        """Text of a token."""

    def encode(self, text: str, /) -> list[int]:
        """Tokens of a text."""


def breakers(texts: Iterable[str], vocabulary: Vocabulary) -> dict[int, list[tuple[int, ...]]]:
    """Token sequences that contain one of `texts`.

    A breaker may begin inside a token and end inside a later one: for every token that ends with the
    beginning of a breaker, the rest of it is tokenized. That takes a while for a large vocabulary, so the
    latest ones are remembered.
    """
    key = tuple(texts)
    with _LOCK:
        known = _KNOWN.setdefault(vocabulary, {})
        if key in known:
            return known[key]
    found = _breakers(key, vocabulary)
    with _LOCK:
        while len(known) >= _MOST_KNOWN:
            del known[next(iter(known))]
        known[key] = found
    return found


def _breakers(texts: Iterable[str], vocabulary: Vocabulary) -> dict[int, list[tuple[int, ...]]]:
    wanted = [text.encode() for text in texts if text]
    # what follows each beginning of a breaker
    rests: dict[bytes, list[tuple[int, ...]]] = {}
    encoded: dict[bytes, tuple[int, ...]] = {}
    for text in wanted:
        for n in range(1, len(text)):
            rest = text[n:]
            if rest not in encoded:
                encoded[rest] = tuple(vocabulary.encode(rest.decode(errors="ignore")))[:_MOST_FOLLOWING]
            rests.setdefault(text[:n], []).append(encoded[rest])
    longest = max(map(len, rests), default=0)
    found: dict[int, list[tuple[int, ...]]] = {}
    for token in range(vocabulary.n_vocab):
        piece = vocabulary.token_bytes(token)
        if any(text in piece for text in wanted):
            found[token] = [()]
            continue
        ends = (piece[len(piece) - n :] for n in range(1, min(longest, len(piece)) + 1))
        following = [rest for end in ends for rest in rests.get(end, ()) if rest]
        if following:
            found[token] = list(dict.fromkeys(following))
    return found


def penalize(
    logits: NDArray[np.float32],
    tokens: NDArray[np.int64],
    *,
    multiplier: float,
    base: float,
    allowed_length: int,
    breakers: Breakers,
) -> None:
    """Lowers, in place, the logits of tokens that would continue a repetition in `tokens`."""
    # longer matches are punished no more
    growth = int(_LARGEST / math.log(base)) if base > 1.000001 else 0
    limit = min(_since_breaker(tokens, breakers), allowed_length + growth)
    if limit < allowed_length:
        return
    places, lengths = repeat_lengths(tokens, limit)
    longest: dict[int, int] = {}
    for place, length in zip(places.tolist(), lengths.tolist(), strict=True):
        if length >= allowed_length:
            token = int(tokens[place + 1])
            longest[token] = max(length, longest.get(token, 0))
    for token, length in longest.items():
        if () not in breakers.get(token, ()):
            logits[token] -= np.float32(min(multiplier * base ** (length - allowed_length), 3e38))


def repeat_lengths(tokens: NDArray[np.int64], limit: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Where the last token occurred before, and how many tokens up to there equal the last ones.

    Args:
        tokens: All tokens.
        limit: Lengths are cut off at it.
    """
    if not limit or len(tokens) < 2:
        return np.empty(0, np.intp), np.empty(0, np.intp)
    place = np.flatnonzero(tokens[:-1] == tokens[-1])
    length = np.ones(len(place), np.intp)
    alive = np.arange(len(place))
    for n in range(1, limit):
        # alive matches of n tokens; the ones that reach the beginning cannot grow
        alive = alive[place[alive] >= n]
        alive = alive[tokens[place[alive] - n] == tokens[-1 - n]]
        if not len(alive):
            break
        length[alive] = n + 1
    return place, length


def _since_breaker(tokens: NDArray[np.int64], breakers: Breakers) -> int:
    """Tokens after the last sequence breaker; all if there is none."""
    if not breakers:
        return len(tokens)
    # latest first; one element of a Python list is looked at in less time than one of an array
    recent = tokens[::-1].tolist()
    for back, token in enumerate(recent):
        fitting = [
            len(following)
            for following in breakers.get(token, ())
            if len(following) <= back
            and all(recent[back - 1 - i] == wanted for i, wanted in enumerate(following))
        ]
        if fitting:
            return back - max(fitting)
    return len(tokens)
