"""What `/v1/responses` accepts."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BeforeValidator, Discriminator, Field, Tag

from ikq.serve.validation import Body, Part

__all__ = [
    "AllowedTools",
    "CallOutput",
    "FunctionCall",
    "FunctionChoice",
    "FunctionTool",
    "Item",
    "ItemReference",
    "JsonSchemaFormat",
    "Message",
    "Reasoning",
    "ResponsesBody",
]


_MOST_METADATA = 16


def _no_number(value: object) -> object:
    """0 is equal to false, and is none."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        raise ValueError("expected false")
    return value


def _few(value: object) -> object:
    """Before each of them is looked at."""
    if isinstance(value, dict) and len(value) > _MOST_METADATA:
        raise ValueError(f"expected at most {_MOST_METADATA} keys")
    return value


class InputText(Part):
    """A text of a message, whoever wrote it."""

    type: Literal["input_text", "output_text", "text"]
    text: str


class Refusal(Part):
    """What a model wrote instead of an answer."""

    type: Literal["refusal"]
    refusal: str


Content: TypeAlias = Annotated[InputText | Refusal, Field(discriminator="type")]


class Message(Part):
    """What one of the speakers said."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[Content]


class FunctionCall(Part):
    """A function that the model called."""

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str


class CallOutput(Part):
    """What the function returned."""

    type: Literal["function_call_output"]
    call_id: str
    output: str | list[InputText]


class ReasoningText(Part):
    """A part of thoughts, or of their summary."""

    type: Literal["reasoning_text", "summary_text"]
    text: str


class Reasoning(Part):
    """Thoughts of an earlier response. Encrypted ones cannot be read and are left out."""

    type: Literal["reasoning"]
    summary: list[ReasoningText] = Field(default_factory=list)
    content: list[ReasoningText] | None = None


class ItemReference(Part):
    """An item of the output of an earlier response, by its name."""

    type: Literal["item_reference"]
    id: str


def _item_type(item: object) -> str:
    """The type of an item: a message's may be left out."""
    kind = item.get("type", "message") if isinstance(item, dict) else getattr(item, "type", "message")
    return kind if isinstance(kind, str) else "?"


Item: TypeAlias = Annotated[
    Annotated[Message, Tag("message")]
    | Annotated[FunctionCall, Tag("function_call")]
    | Annotated[CallOutput, Tag("function_call_output")]
    | Annotated[Reasoning, Tag("reasoning")]
    | Annotated[ItemReference, Tag("item_reference")],
    Discriminator(
        _item_type,
        custom_error_type="item_type",
        custom_error_message="Items of this type are not supported: expected 'message', 'function_call', "
        "'function_call_output', 'reasoning' or 'item_reference'",
    ),
]


class FunctionTool(Part):
    """A function of the client."""

    type: Literal["function"]
    name: str = Field(min_length=1, max_length=128)
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class FunctionChoice(Part):
    """This function is called."""

    type: Literal["function"]
    name: str


class AllowedTools(Part):
    """Some of the tools, one of which may or must be called."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: list[FunctionChoice]


Choice: TypeAlias = Annotated[FunctionChoice | AllowedTools, Field(discriminator="type")]


class PlainFormat(Part):
    """Any text, or any JSON object."""

    type: Literal["text", "json_object"]


class JsonSchemaFormat(Part):
    """JSON under this schema, whether `strict` or not."""

    type: Literal["json_schema"]
    name: str
    schema_: dict[str, Any] = Field(alias="schema")
    description: str | None = None
    strict: bool | None = None


class TextConfig(Part):
    """What the text should be."""

    format: Annotated[PlainFormat | JsonSchemaFormat, Field(discriminator="type")] | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class ReasoningConfig(Part):
    """How much the model thinks. Thoughts are told as they are, so there are no summaries."""

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None


class ResponsesBody(Body):
    """What is to be answered.

    Fields that are about accounts and machines of the original say nothing here and are only let through:
    `Any`. Those that can only be `None` or one value are wishes that cannot be fulfilled.
    """

    model: str | None = None
    input: str | list[Item] = Field(min_length=1)
    instructions: str | None = None
    previous_response_id: str | None = None
    store: bool | None = None
    stream: bool | None = None
    tools: list[FunctionTool] | None = None
    tool_choice: Literal["none", "auto", "required"] | Choice | None = None
    parallel_tool_calls: bool | None = None
    text: TextConfig | None = None
    reasoning: ReasoningConfig | None = None
    max_output_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    top_logprobs: int | None = Field(None, ge=0, le=20)
    include: list[str] | None = None
    metadata: Annotated[dict[str, Annotated[str, Field(max_length=512)]], BeforeValidator(_few)] | None = None
    truncation: Literal["disabled"] | None = None
    background: Annotated[Literal[False], BeforeValidator(_no_number)] | None = None
    conversation: None = None
    prompt: None = None
    # llama-server's names, for clients that can say more
    seed: int | None = Field(None, ge=-1, lt=2**64)
    top_k: int | None = Field(None, ge=0)
    min_p: float | None = Field(None, ge=0, le=1)
    chat_template_kwargs: dict[str, Any] | None = None
    access_programs: Any = None
    background_options: Any = None
    client_metadata: Any = None
    context_management: Any = None
    image: Any = None
    max_tool_calls: Any = None
    moderation: Any = None
    prompt_cache_key: Any = None
    prompt_cache_options: Any = None
    prompt_cache_retention: Any = None
    safety_identifier: Any = None
    service_tier: Any = None
    stream_options: Any = None
    user: Any = None
