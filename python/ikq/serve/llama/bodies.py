"""Bodies of llama-server's requests."""

from __future__ import annotations

from pydantic import Field, RootModel

from ikq.serve.openai.bodies import LoraScale, TextBody
from ikq.serve.validation import Part

__all__ = [
    "DetokenizeBody",
    "LlamaBody",
    "LlamaEmbeddingBody",
    "LoraBody",
    "NameBody",
    "SlotBody",
    "TokenizeBody",
]


class LlamaBody(TextBody):
    """`POST /completion`."""

    prompt: str | list[int] | list[int | str] | list[str | list[int | str]]
    n_probs: int | None = Field(None, ge=0, le=100)
    return_tokens: bool | None = None
    response_fields: list[str] | None = None
    post_sampling_probs: bool | None = None


class LlamaEmbeddingBody(Part):
    """`POST /embedding`."""

    model: str | None = None
    content: str | list[str] | list[int] | list[list[int]]


class LoraBody(RootModel[list[LoraScale]]):
    """`POST /lora-adapters`."""


class NameBody(Part):
    """`POST /models/load` and `/models/unload`."""

    model: str


class TokenizeBody(Part):
    """`POST /tokenize`."""

    model: str | None = None
    content: str
    add_special: bool | None = None
    parse_special: bool | None = None
    with_pieces: bool | None = None


class DetokenizeBody(Part):
    """`POST /detokenize`."""

    model: str | None = None
    tokens: list[int]


class SlotBody(Part):
    """`POST /slots/N`."""

    model: str | None = None
    filename: str | None = None
