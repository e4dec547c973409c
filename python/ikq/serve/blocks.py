"""Pieces of a reply as blocks, one after another: `BlockCutter`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

from ikq.serve.events import Piece, PieceKind, TokenLogprob

__all__ = ["Added", "BlockCutter", "BlockEvent", "Closed", "Opened"]


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A block begins.

    Attributes:
        kind: What it is.
        call_id: The name of a tool call in the conversation.
        name: The function that it calls.
    """

    kind: PieceKind
    call_id: str = ""
    name: str = ""


@dataclass(frozen=True, kw_only=True)
class Added:
    """More of the block that is open.

    Attributes:
        kind: What the block is.
        text: May be empty where a token adds none.
        tokens: What the text is made of, where probabilities are wanted.
    """

    kind: PieceKind
    text: str
    tokens: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Closed:
    """The block is over.

    Attributes:
        kind: What it was.
    """

    kind: PieceKind


BlockEvent: TypeAlias = Opened | Added | Closed


class BlockCutter:
    """Cuts one text of a reply into thoughts, text and tool calls.

    White space around thoughts and calls is no block: clients would send it back as a text without words.

    Examples:
        >>> cutter = BlockCutter()
        >>> pieces = [Piece(index=0, kind="reasoning", text="2+2"), Piece(index=0, kind="content", text=" 4")]
        >>> [type(event).__name__ for piece in pieces for event in cutter.feed(piece)]
        ['Opened', 'Added', 'Closed', 'Opened', 'Added']
        >>> list(cutter.close())
        [Closed(kind='content')]
    """

    def __init__(self) -> None:
        self._open: tuple[PieceKind, int | None] | None = None
        self._held: list[Piece] = []

    def feed(self, piece: Piece) -> Iterator[BlockEvent]:
        """What a piece changes."""
        key = (piece.kind, piece.call)
        if self._open == key:
            yield from _added(piece)
        elif piece.kind == "tool_call":
            yield from self.close()
            self._open = key
            yield Opened(kind=piece.kind, call_id=piece.call_id or "", name=piece.name or "")
            yield from _added(piece)
        elif not piece.text.strip():
            self._held = [*(held for held in self._held if held.kind == piece.kind), piece]
        else:
            held = [held for held in self._held if held.kind == piece.kind]
            yield from self.close()
            self._open = key
            yield Opened(kind=piece.kind)
            for part in [*held, piece]:
                yield from _added(part)

    def close(self) -> Iterator[BlockEvent]:
        """The end of the block that is open."""
        self._held = []
        if self._open is not None:
            kind, self._open = self._open[0], None
            yield Closed(kind=kind)


def _added(piece: Piece) -> Iterator[Added]:
    if piece.text or piece.tokens:
        yield Added(kind=piece.kind, text=piece.text, tokens=piece.tokens)
