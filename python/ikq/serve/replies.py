"""What a model wrote, as parts of a reply: reasoning, content, tool calls."""

from __future__ import annotations

from typing import Protocol

from ikq.serve.events import Piece
from ikq.text.tools import Delta
from ikq.text.tools import ReplyParser as FormParser

__all__ = ["ChatParser", "PlainParser", "ReplyParser"]


class ReplyParser(Protocol):
    """Takes the text of a reply as it comes, and tells its parts.

    Attributes:
        sees_special: It wants to see control tokens.
        is_reasoning: What came last belongs to thoughts.
    """

    sees_special: bool
    is_reasoning: bool

    @property
    def n_calls(self) -> int:
        """Tool calls so far."""

    @property
    def is_call_open(self) -> bool:
        """Whether the last of them has not come to its end."""

    def feed(self, text: str, index: int) -> list[Piece]:
        """Takes more text.

        Args:
            text: May be empty.
            index: The text's number, for the pieces.
        """

    def finish(self, index: int, *, is_cut: bool) -> list[Piece]:
        """The end of the text: what was held back.

        Args:
            index: As for `feed`.
            is_cut: The model had not ended: a limit or a stop text did.
        """


class PlainParser:
    """All is content."""

    sees_special = False
    is_reasoning = False
    n_calls = 0
    is_call_open = False

    def feed(self, text: str, index: int) -> list[Piece]:
        """See `ReplyParser`, as for all others."""
        return [Piece(index=index, kind="content", text=text)] if text else []

    def finish(self, index: int, *, is_cut: bool) -> list[Piece]:
        """See there."""
        return []


class ChatParser:
    """A chat's reply, in the form that the model was taught.

    Args:
        parser: Of the form.
    """

    sees_special = True

    def __init__(self, parser: FormParser) -> None:
        self._parser = parser
        self.is_reasoning = False

    @property
    def n_calls(self) -> int:
        """See `ReplyParser`, as for all others."""
        return self._parser.n_calls

    @property
    def is_call_open(self) -> bool:
        """See there."""
        return self._parser.is_call_open

    def feed(self, text: str, index: int) -> list[Piece]:
        """See there."""
        return self._pieces(self._parser.feed(text), index) if text else []

    def finish(self, index: int, *, is_cut: bool) -> list[Piece]:
        """See there."""
        return self._pieces(self._parser.finish(is_cut=is_cut), index)

    def _pieces(self, deltas: list[Delta], index: int) -> list[Piece]:
        if deltas:
            self.is_reasoning = deltas[-1].kind == "reasoning"
        return [
            Piece(index=index, kind=d.kind, text=d.text, call=d.index, call_id=d.id, name=d.name)
            for d in deltas
        ]
