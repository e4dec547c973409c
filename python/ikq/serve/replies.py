"""What a model wrote, as parts of a reply: reasoning, content, tool calls."""

from __future__ import annotations

from typing import Protocol

from ikq.reasoning import MARKS, ReasoningSplitter
from ikq.reasoning import Piece as ReasoningPiece
from ikq.serve.events import Piece

__all__ = ["PlainParser", "ReasoningParser", "ReplyParser"]


class ReplyParser(Protocol):
    """Takes the text of a reply as it comes, and tells its parts.

    Attributes:
        sees_special: It wants to see control tokens.
        is_reasoning: What comes next belongs to thoughts, as far as is known.
        n_calls: Tool calls so far.
    """

    sees_special: bool
    is_reasoning: bool
    n_calls: int

    def feed(self, text: str, index: int) -> list[Piece]:
        """Takes more text.

        Args:
            text: May be empty.
            index: The text's number, for the pieces.
        """

    def end_text(self, token: str) -> str:
        """What the token that ended the text adds to it, given the token's name."""

    def finish(self, index: int) -> list[Piece]:
        """The end of the text: what was held back."""


class PlainParser:
    """All is content."""

    sees_special = False
    is_reasoning = False
    n_calls = 0

    def feed(self, text: str, index: int) -> list[Piece]:
        """See `ReplyParser`, as for all others."""
        return [Piece(index=index, kind="content", text=text)] if text else []

    def end_text(self, token: str) -> str:
        """See there."""
        return ""

    def finish(self, index: int) -> list[Piece]:
        """See there."""
        return []


class ReasoningParser:
    """Thoughts apart from the answer; the marks around them and the space behind these belong to neither.

    Args:
        prompt: What came before the text; some templates open the thoughts there.
    """

    sees_special = False
    n_calls = 0

    def __init__(self, prompt: str) -> None:
        self._splitter = ReasoningSplitter(prompt)
        self.is_reasoning = self._splitter.is_inside
        # white space behind a mark, which belongs to it
        self._strips = self.is_reasoning

    def feed(self, text: str, index: int) -> list[Piece]:
        """See `ReplyParser`, as for all others."""
        return self._pieces(self._splitter.push(text), index)

    def end_text(self, token: str) -> str:
        """See there."""
        return ""

    def finish(self, index: int) -> list[Piece]:
        """See there."""
        return self._pieces(self._splitter.flush(), index)

    def _pieces(self, parts: list[ReasoningPiece], index: int) -> list[Piece]:
        found = []
        for part in parts:
            if part.reasoning and part.text in MARKS:
                self._strips = True
                continue
            text = part.text.lstrip() if self._strips else part.text
            if text:
                self._strips = False
                found.append(Piece(index=index, kind="reasoning" if part.reasoning else "content", text=text))
        self.is_reasoning = self._splitter.is_inside
        return found
