"""The answer to a request, piece by piece: `Piece`, `Finished`; and `Usage`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

__all__ = ["Event", "FinishReason", "Finished", "Piece", "PieceKind", "TokenLogprob", "Usage"]

PieceKind: TypeAlias = Literal["content", "reasoning", "tool_call"]

FinishReason: TypeAlias = Literal["stop", "length", "tool_calls"]
"""The model ended it or a stop text came; `max_tokens` or the end of the context; it calls tools."""


@dataclass(frozen=True, kw_only=True)
class TokenLogprob:
    """A token with the probability that the model gives it, before any sampler.

    Attributes:
        token: Its id.
        logprob: Log of the probability.
        top: The most probable tokens at its place, with theirs.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A part of a text.

    Attributes:
        index: Which of the `n` texts.
        kind: What it is part of.
        text: New text; of a tool call a part of its arguments, which are JSON when all are together. May be
            empty where a token adds none yet, or where a call begins.
        call: Which of the reply's tool calls, from 0.
        call_id: Its name in the conversation, in its first piece.
        name: The function that is called, in the call's first piece.
        tokens: The tokens that are new with this piece, where probabilities are wanted.
        ids: The tokens that are new with this piece.
    """

    index: int
    kind: PieceKind
    text: str
    call: int | None = None
    call_id: str | None = None
    name: str | None = None
    tokens: tuple[TokenLogprob, ...] = ()
    ids: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A text is over. When all `n` are, the reply is.

    Attributes:
        index: Which of them.
        reason: Why.
        stop_text: The stop text that came.
        n_tokens: Tokens that were chosen, the one that ended it included.
        seed: The seed it was chosen with.
    """

    index: int
    reason: FinishReason
    stop_text: str | None = None
    n_tokens: int = 0
    seed: int = 0


Event: TypeAlias = Piece | Finished


@dataclass
class Usage:
    """Tokens and seconds of a reply so far.

    Attributes:
        n_prompt: Tokens of the prompt.
        n_cached: Those of them that were computed before.
        n_completion: Tokens chosen, of all `n` texts.
        n_reasoning: Those of them that are thoughts.
        n_drafted: Tokens that were drafted and compared.
        n_accepted: Those of them that were chosen.
        queue_seconds: From the request to its first step.
        prompt_seconds: From there to the first token.
        completion_seconds: From there to the last.
    """

    n_prompt: int = 0
    n_cached: int = 0
    n_completion: int = 0
    n_reasoning: int = 0
    n_drafted: int = 0
    n_accepted: int = 0
    queue_seconds: float = 0.0
    prompt_seconds: float = 0.0
    completion_seconds: float = 0.0
