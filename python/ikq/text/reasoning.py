"""Separates the reasoning of a model from its answer: `ReasoningSplitter`."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Piece", "ReasoningSplitter"]


class Piece(NamedTuple):
    """A piece of what a model wrote.

    Attributes:
        text: Not empty.
        reasoning: It belongs to the thoughts before the answer, or is a mark around them.
        is_mark: It is such a mark.
    """

    text: str
    reasoning: bool
    is_mark: bool = False


class _Marks(NamedTuple):
    """How reasoning is marked.

    Attributes:
        open: Begins it.
        close: Ends it.
        anywhere: It may begin anywhere, not only at the start.
    """

    open: str
    close: str
    anywhere: bool = False


_MARKS = (
    _Marks("<think>", "</think>"),
    _Marks("<thinking>", "</thinking>"),
    _Marks("<thought>", "</thought>"),
    _Marks("<reasoning>", "</reasoning>"),
    _Marks("<seed:think>", "</seed:think>"),
    _Marks("<mm:think>", "</mm:think>"),
    _Marks("<think:opensource>", "</think:opensource>"),
    _Marks("\u25c1think\u25b7", "\u25c1/think\u25b7"),
    _Marks("[THINK]", "[/THINK]"),
    _Marks("<|START_THINKING|>", "<|END_THINKING|>"),
    _Marks("<|channel>thought", "<channel|>"),
    _Marks("<|inner_prefix|>", "<|inner_suffix|>"),
    _Marks("<|open|>think<|sep|>", "<|close|>think<|sep|>"),
    # harmony: messages on several channels, of which one is the answer
    _Marks("<|channel|>analysis", "<|channel|>final<|message|>", anywhere=True),
    _Marks("<|channel|>commentary", "<|channel|>final<|message|>", anywhere=True),
    _Marks("<|channel|>final", "<|message|>", anywhere=True),
)


class ReasoningSplitter:
    """Separates reasoning from the answer while the text comes in.

    The pieces together are the whole text, marks included. A mark may come in several parts; what may
    still become one is held back.

    Examples:
        >>> splitter = ReasoningSplitter()
        >>> pieces = [*splitter.push("<think>easy</th"), *splitter.push("ink>4"), *splitter.flush()]
        >>> [(piece.text, piece.reasoning) for piece in pieces]
        [('<think>', True), ('easy', True), ('</think>', True), ('4', False)]
    """

    def __init__(self, prompt: str = "") -> None:
        """Begins an answer.

        Args:
            prompt: What came before it. Some templates open the reasoning there.
        """
        self._held = ""
        self._started = False
        self._inside = next((m for m in _MARKS if prompt.rstrip().endswith(m.open)), None)

    def push(self, text: str) -> list[Piece]:
        """Takes more text; returns the pieces that are certain by now."""
        self._held += text
        return self._pieces(final=False)

    def flush(self, *, is_cut: bool = False) -> list[Piece]:
        """The end of the text: what was held back.

        Args:
            is_cut: The model had not ended: what may have become a mark around the reasoning is left out.
        """
        begins = not self._started or self._inside is not None
        return self._pieces(final=not (is_cut and begins))

    def _pieces(self, final: bool) -> list[Piece]:
        pieces = []
        while found := self._next_mark():
            at, mark, inside = found
            pieces += [*self._take(at), Piece(mark, True, True)]
            self._held = self._held[len(mark) :]
            self._inside = inside
            self._started = True
        return pieces + self._take(len(self._held) - (0 if final else self._unfinished()))

    def _marks(self) -> list[_Marks]:
        """What may begin reasoning from here on."""
        return [m for m in _MARKS if m.anywhere or not self._started]

    def _next_mark(self) -> tuple[int, str, _Marks | None] | None:
        """Place and text of the first mark, and what is open behind it."""
        if self._inside is not None:
            at = self._held.find(self._inside.close)
            return (at, self._inside.close, None) if at >= 0 else None
        found = []
        for m in self._marks():
            at = self._held.find(m.open)
            if at >= 0 and (m.anywhere or not self._held[:at].strip()):
                found.append((at, m.open, m))
        return min(found, default=None, key=lambda f: (f[0], -len(f[1])))

    def _unfinished(self) -> int:
        """Length of the end of the text that may become a mark."""
        marks = [m.open for m in self._marks()] if self._inside is None else [self._inside.close]
        longest = min(max(map(len, marks)) - 1, len(self._held))
        tails = (self._held[-n:] for n in range(longest, 0, -1))
        return next((len(tail) for tail in tails if any(mark.startswith(tail) for mark in marks)), 0)

    def _take(self, n: int) -> list[Piece]:
        """Lets go of the first `n` characters."""
        text, self._held = self._held[:n], self._held[n:]
        if text.strip():
            self._started = True
        return [Piece(text, self._inside is not None)] if text else []
