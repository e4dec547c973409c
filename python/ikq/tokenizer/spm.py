"""SentencePiece vocabularies ("llama"): the pair with the best score is merged first.

A text begins as its characters. As long as two neighbours together are a token, the pair whose token
has the highest score is merged (of equal ones the leftmost). What is no token at the end becomes
byte tokens, `<0xE2>` and so on.

    "▁the" -> ▁ t h e -> ▁t h e -> ▁t he -> ▁the        (scores of "▁t", "he", "▁the")

This is not the search of the best total score that SentencePiece calls unigram, nor BPE with a list
of rules, where equal tokens made of different halves rank apart.
"""

from __future__ import annotations

import heapq
from functools import lru_cache

from ikq.errors import FormatError
from ikq.tokenizer.vocab import TokenType, Vocab

__all__ = ["SPACE", "SpmEncoder"]

SPACE = "\u2581"
"""How a vocabulary writes a space."""

_CACHED, _WORD = 1 << 15, 64


class SpmEncoder:
    """Encodes pieces of text."""

    def __init__(self, vocab: Vocab, unk: int | None, add_space_prefix: bool) -> None:
        """Prepares the search.

        Args:
            vocab: The tokens; as many scores.
            unk: The token for what is no other, in vocabularies without byte tokens.
            add_space_prefix: Texts begin with a space.

        Raises:
            FormatError: there are no scores.
        """
        if not vocab.scores:
            raise FormatError("`tokenizer.ggml.scores` is missing; a SentencePiece vocabulary needs it")
        self._ids = vocab.ids
        self._scores = vocab.scores
        self._unk = unk
        self._add_space_prefix = add_space_prefix
        # two characters that stand side by side in no token are never joined: the text is cut there
        self._pairs = {text[i : i + 2] for text in vocab.texts for i in range(len(text) - 1)}
        self._merge_word = lru_cache(maxsize=_CACHED)(self._merge)

    def encode(self, text: str, *, begins: bool) -> list[int]:
        """Ids of a text without special tokens.

        Args:
            text: Any text.
            begins: It stands at the start of the prompt or behind a special token.
        """
        text = text.replace(" ", SPACE)
        if begins and self._add_space_prefix:
            text = SPACE + text
        ids: list[int] = []
        start = 0
        for i in range(1, len(text)):
            if text[i - 1 : i + 1] not in self._pairs:
                ids += self._chunk(text[start:i])
                start = i
        ids += self._chunk(text[start:])
        return ids

    def _chunk(self, chunk: str) -> tuple[int, ...]:
        # words come again, long runs hardly ever do
        return self._merge_word(chunk) if len(chunk) <= _WORD else self._merge(chunk)

    def _merge(self, chunk: str) -> tuple[int, ...]:
        known = self._ids.get(chunk)
        if known is not None and len(chunk) == 1:
            return (known,)
        n = len(chunk)
        # symbol i covers chunk[i : i + length[i]]; a length of 0: merged into another
        length = [1] * n
        after = list(range(1, n + 1))
        before = list(range(-1, n - 1))
        heap: list[tuple[float, int, int, int]] = []

        def consider(left: int, right: int) -> None:
            size = length[left] + length[right]
            token = self._ids.get(chunk[left : left + size])
            if token is not None:
                heapq.heappush(heap, (-self._scores[token], left, right, size))

        for i in range(n - 1):
            consider(i, i + 1)
        while heap:
            _, left, right, size = heapq.heappop(heap)
            if not length[left] or not length[right] or length[left] + length[right] != size:
                continue  # one of them has been merged meanwhile
            length[left], length[right] = size, 0
            behind = after[left] = after[right]
            if behind < n:
                before[behind] = left
                consider(left, behind)
            if before[left] >= 0:
                consider(before[left], left)
        return tuple(t for i in range(n) if length[i] for t in self._symbol(chunk[i : i + length[i]]))

    def _symbol(self, symbol: str) -> list[int]:
        token = self._ids.get(symbol)
        if token is not None:
            return [token]
        ids = [self._ids.get(f"<0x{byte:02X}>", self._unk) for byte in symbol.encode()]
        if None in ids:
            raise FormatError(f"the vocabulary has neither {symbol!r} nor its bytes nor an unknown token")
        return [token for token in ids if token is not None]


def token_bytes(text: str, kind: TokenType) -> bytes:
    """What a token stands for.

    Args:
        text: As in the vocabulary.
        kind: Normal tokens write spaces as U+2581, byte tokens are `<0xE2>`, others are literal.
    """
    if kind == TokenType.BYTE:
        return byte_of(text)
    return text.replace(SPACE, " ").encode() if kind == TokenType.NORMAL else text.encode()


def byte_of(text: str) -> bytes:
    """The byte of a byte token, or the text itself if it is not written like one."""
    try:
        return bytes([int(text[3:5], 16)]) if len(text) == 6 and text[:3] == "<0x" else text.encode()
    except ValueError:
        return text.encode()
