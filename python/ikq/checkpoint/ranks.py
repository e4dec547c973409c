"""Vocabularies that are tokens with ranks (tiktoken, tekken), as those of BPE: `RankedTokens`.

Such a tokenizer joins the two neighbours whose bytes together are the token of the lowest rank, the leftmost
of several, until no two make a token. BPE as GGUF files have it joins by a list of pairs instead. What
happens within the bytes of a token, until they are joined, is what happens to these bytes alone: so there is
at most one pair that a token is ever made of, the two parts that its own bytes come to. The list of these, in
the order of ranks, joins the same.

A token whose bytes come to more than two parts is never made of others; it stands for a word as a whole only.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping

from ikq.errors import FormatError
from ikq.tokenizer.bpe import byte_text

__all__ = ["RankedTokens"]

_N_BYTES = 256


class RankedTokens:
    """Tokens as bytes, with their ranks.

    Attributes:
        ranks: Ranks by token.
        source: What they are from, for messages.
    """

    def __init__(self, tokens: Iterable[tuple[bytes, int]], source: str) -> None:
        """Takes the tokens.

        Args:
            tokens: Each with its rank.
            source: What they are from, for messages.

        Raises:
            FormatError: A token or a rank is there twice, or a byte lacks its token.
        """
        self.source = source
        self.ranks: dict[bytes, int] = {}
        for token, rank in tokens:
            if not token or rank < 0:
                raise FormatError(f"{source}: {token!r:.60} with the rank {rank} is no token")
            if token in self.ranks:
                raise FormatError(f"{source}: the token {token!r:.60} is there twice")
            self.ranks[token] = rank
        if len(set(self.ranks.values())) < len(self.ranks):
            raise FormatError(f"{source}: two tokens have the same rank")
        lacking = [byte for byte in range(_N_BYTES) if bytes([byte]) not in self.ranks]
        if lacking:
            raise FormatError(f"{source}: there is no token for the byte {lacking[0]}")

    def texts(self) -> dict[int, str]:
        """Texts by rank, as byte-level BPE writes them: a character for each byte."""
        return {rank: byte_text(token) for token, rank in self.ranks.items()}

    def merges(self) -> list[str]:
        """For every token that is made of others the pair that it is made of, in the order of ranks."""
        return [f"{byte_text(a)} {byte_text(b)}" for a, b in filter(None, map(self._pair, self._longer()))]

    def all_merges(self) -> list[str]:
        """The same with all pairs of tokens that are a token together.

        Those of one token come in the order of the ranks of their parts. What is joined does not change:
        pairs that `merges` leaves out never meet.
        """
        found = []
        for token in self._longer():
            pairs = [
                (self.ranks[a], self.ranks[b], a, b)
                for i in range(1, len(token))
                if (a := token[:i]) in self.ranks and (b := token[i:]) in self.ranks
            ]
            found += [f"{byte_text(a)} {byte_text(b)}" for _, _, a, b in sorted(pairs)]
        return found

    def _longer(self) -> list[bytes]:
        """Tokens of more than a byte, in the order of ranks."""
        return [token for token in sorted(self.ranks, key=self.ranks.__getitem__) if len(token) > 1]

    def _pair(self, token: bytes) -> tuple[bytes, bytes] | None:
        """The two parts that a token's bytes come to; None where they come to more."""
        parts = _joined(token, self.ranks)
        return (parts[0], parts[1]) if len(parts) == 2 else None


def _joined(text: bytes, ranks: Mapping[bytes, int]) -> list[bytes]:
    """The parts that a text comes to before it may become one token.

    Takes time like the length of the text times its logarithm.
    """
    n = len(text)
    ends, before = list(range(1, n + 1)), list(range(-1, n - 1))
    pairs: list[tuple[int, int, int]] = []

    def look(start: int) -> None:
        middle = ends[start]
        if middle < n and (start, ends[middle]) != (0, n):
            rank = ranks.get(text[start : ends[middle]])
            if rank is not None:
                heapq.heappush(pairs, (rank, start, ends[middle]))

    for start in range(n):
        look(start)
    while pairs:
        _, start, end = heapq.heappop(pairs)
        middle = ends[start]
        # one of the two has been joined with another since; 0: it is no part's start any longer
        if not middle or middle >= n or ends[middle] != end:
            continue
        ends[start], ends[middle] = end, 0
        if end < n:
            before[end] = start
        look(start)
        if before[start] >= 0:
            look(before[start])
    found, start = [], 0
    while start < n:
        found.append(text[start : ends[start]])
        start = ends[start]
    return found
