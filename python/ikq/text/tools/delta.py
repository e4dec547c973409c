"""`Delta`: a piece of a reply."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

__all__ = ["Delta", "Kind"]

Kind: TypeAlias = Literal["content", "reasoning", "tool_call"]


@dataclass(frozen=True)
class Delta:
    """A piece of a reply.

    Attributes:
        kind: What it is a piece of.
        text: New text; of a call a piece of its arguments, which are JSON when all are together.
        index: Which of the reply's calls, from 0.
        id: The call's name in the conversation, in its first piece.
        name: The function that is called, in the call's first piece.
    """

    kind: Kind
    text: str
    index: int | None = None
    id: str | None = None
    name: str | None = None
