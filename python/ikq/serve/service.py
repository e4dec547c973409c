"""`Service`: turns a request into events; the basis of the routes of all APIs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ikq.serve.events import Event, Usage
from ikq.serve.requests import ChatRequest, CompletionRequest, EmbeddingRequest

__all__ = ["Embeddings", "Reply", "Service"]


class Reply(Protocol):
    """Events of a request, as they come. Whoever stops before the end calls `aclose`, which cancels.

    It raises `ServiceError` where the rest cannot be given.

    Attributes:
        id: A name of the reply, letters and digits that no other one has.
        model: Name of the model that answers.
        created: When, in seconds since 1970.
        usage: Tokens and seconds so far; complete at the end.
        prompt: Tokens of the prompt.
    """

    id: str
    model: str
    created: int
    usage: Usage
    prompt: tuple[int, ...]

    def token_bytes(self, token: int) -> bytes:
        """What a token stands for."""

    def __aiter__(self) -> Reply:
        """Itself."""

    async def __anext__(self) -> Event:
        """The next event."""

    async def aclose(self) -> None:
        """Nobody wants the rest."""


@dataclass(frozen=True, kw_only=True)
class Embeddings:
    """Embeddings of texts.

    Attributes:
        model: Name of the model.
        vectors: float32 `(n_embd,)`, one per text.
        n_tokens: Tokens of all texts.
    """

    model: str
    vectors: list[NDArray[np.float32]]
    n_tokens: int


class Service(Protocol):
    """Answers requests. Awaiting a method raises all errors of a request before anything is computed."""

    async def chat(self, request: ChatRequest) -> Reply:
        """Answers a conversation.

        Raises:
            ServiceError: it cannot be answered.
        """

    async def complete(self, request: CompletionRequest) -> Reply:
        """Continues a text.

        Raises:
            ServiceError: it cannot be continued.
        """

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        """Embeddings of texts.

        Raises:
            ServiceError: they cannot be computed.
        """

    async def count_tokens(self, request: ChatRequest) -> int:
        """Tokens of the prompt that a conversation makes. Nothing is computed.

        Raises:
            ServiceError: the conversation cannot be made a prompt.
        """
