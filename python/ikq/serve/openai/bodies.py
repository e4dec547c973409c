"""Bodies of OpenAI's requests. Fields that ikq does not know are ignored, as chat programs expect."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, WithJsonSchema

from ikq.inference.lora import MAX_SCALE
from ikq.serve.openai.sampling import SamplingBody
from ikq.serve.validation import Part
from ikq.text.templates.fitting import ROLES

__all__ = ["ChatBody", "CompletionBody", "EmbeddingBody", "ResponseFormat", "StreamOptions", "TextBody"]


# What is wrong with a message is found where its template is known; this is how the description tells it.
_MESSAGES = {
    "type": "array",
    "minItems": 1,
    "items": {
        "type": "object",
        "properties": {
            "role": {"enum": list(ROLES)},
            "content": {"type": ["string", "array", "null"]},
        },
        "required": ["role"],
    },
}
Messages: TypeAlias = Annotated[list[dict[str, Any]], WithJsonSchema(_MESSAGES)]


class StreamOptions(Part):
    """What a stream tells beside its pieces."""

    include_usage: bool | None = None


class SchemaFormat(Part):
    """`response_format.json_schema`."""

    name: str | None = None
    description: str | None = None
    strict: bool | None = None
    # `schema` is a method's name in pydantic
    schema_: dict[str, Any] | bool | None = Field(None, alias="schema")


class ResponseFormat(Part):
    """`response_format`."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: SchemaFormat | None = None
    schema_: dict[str, Any] | bool | None = Field(None, alias="schema")


class LoraScale(Part):
    """An entry of `lora`: the scale of an adapter, by its number."""

    id: int = Field(ge=0)
    # products are scaled in float32
    scale: float = Field(ge=-MAX_SCALE, le=MAX_SCALE)


class TextBody(SamplingBody):
    """What chats and completions have in common."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    n_predict: int | None = None
    n: int | None = None
    stop: str | list[str] | None = None
    response_format: ResponseFormat | None = None
    grammar: str | None = None
    json_schema: dict[str, Any] | bool | None = None
    regex: str | None = None
    ignore_eos: bool | None = None
    cache_prompt: bool | None = None
    id_slot: int | None = None
    lora: list[LoraScale] | None = None
    timings_per_token: bool | None = None
    timeout: float | None = Field(None, gt=0)


class ChatBody(TextBody):
    """`POST /v1/chat/completions`."""

    messages: Messages
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    functions: list[Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None
    enable_thinking: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    reasoning_format: Literal["auto", "deepseek", "none"] | None = None
    reasoning_budget_tokens: int | None = None
    thinking_budget_tokens: int | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None


class CompletionBody(TextBody):
    """`POST /v1/completions`."""

    prompt: str | list[str] | list[int] | list[list[int]]
    logprobs: int | None = Field(None, ge=0, le=20)
    echo: bool | None = None
    suffix: str | None = None
    best_of: int | None = None


class EmbeddingBody(Part):
    """`POST /v1/embeddings`."""

    model: str | None = None
    input: str | list[str] | list[int] | list[list[int]]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(None, ge=1)
