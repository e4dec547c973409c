"""What `/v1/messages` and `/v1/messages/count_tokens` accept."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field

from ikq.serve.validation import Body, Part

__all__ = [
    "Block",
    "CountBody",
    "Document",
    "Message",
    "MessagesBody",
    "RedactedThinking",
    "SearchResult",
    "Text",
    "Thinking",
    "ThinkingOn",
    "Tool",
    "ToolReference",
    "ToolResult",
    "ToolUse",
]


class Text(Part):
    """A text."""

    type: Literal["text"]
    text: str


class Thinking(Part):
    """Thoughts of an earlier turn. The signature says nothing here."""

    type: Literal["thinking"]
    thinking: str
    signature: str = ""


class RedactedThinking(Part):
    """Thoughts that another service hid; nobody can read them."""

    type: Literal["redacted_thinking"]
    data: str = ""


class ToolUse(Part):
    """A call of a tool by the assistant."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


class PlainText(Part):
    """A document's text."""

    type: Literal["text"]
    data: str
    media_type: Literal["text/plain"] = "text/plain"


class Blocks(Part):
    """A document of content blocks."""

    type: Literal["content"]
    content: str | list[Text]


class Document(Part):
    """A document. One that must be read by other means than as text is refused."""

    type: Literal["document"]
    source: Annotated[PlainText | Blocks, Field(discriminator="type")]
    title: str | None = None
    context: str | None = None


class SearchResult(Part):
    """A result of a search that the client made."""

    type: Literal["search_result"]
    source: str
    title: str
    content: list[Text]


class ToolReference(Part):
    """The name of a tool that a search for tools found."""

    type: Literal["tool_reference"]
    tool_name: str


ResultBlock: TypeAlias = Annotated[
    Text | Document | SearchResult | ToolReference, Field(discriminator="type")
]


class ToolResult(Part):
    """What a tool answered."""

    type: Literal["tool_result"]
    tool_use_id: str
    content: str | list[ResultBlock] = ""
    is_error: bool | None = None


Block: TypeAlias = Annotated[
    Text | Thinking | RedactedThinking | ToolUse | ToolResult | Document | SearchResult,
    Field(discriminator="type"),
]


class Message(Part):
    """A turn of the conversation."""

    role: Literal["user", "assistant", "system"]
    content: str | list[Block]


class Tool(Part):
    """A function of the client."""

    type: Literal["custom"] | None = None
    name: str = Field(min_length=1, max_length=128)
    description: str | None = None
    input_schema: dict[str, Any]
    strict: bool | None = None


class AutoChoice(Part):
    """Tools as the model likes."""

    # a body for each name: the description of a union says for each of its parts which name it has
    type: Literal["auto"]
    disable_parallel_tool_use: bool | None = None


class AnyChoice(Part):
    """At least one tool."""

    type: Literal["any"]
    disable_parallel_tool_use: bool | None = None


class NoChoice(Part):
    """No tool."""

    type: Literal["none"]
    disable_parallel_tool_use: bool | None = None


class NamedChoice(Part):
    """This tool."""

    type: Literal["tool"]
    name: str
    disable_parallel_tool_use: bool | None = None


AnyToolChoice = Annotated[AutoChoice | AnyChoice | NoChoice | NamedChoice, Field(discriminator="type")]


class ThinkingOn(Part):
    """The model thinks first."""

    type: Literal["enabled"]
    budget_tokens: int = Field(ge=1024)
    display: Literal["summarized", "omitted"] | None = None


class ThinkingOff(Part):
    """The model does not think."""

    type: Literal["disabled"]
    display: Literal["summarized", "omitted"] | None = None


class ThinkingAdaptive(Part):
    """The model thinks if it wants to."""

    type: Literal["adaptive"]
    display: Literal["summarized", "omitted"] | None = None


class ThinkingBetweenTools(Part):
    """The model thinks between calls of tools."""

    type: Literal["between_tools"]
    display: Literal["summarized", "omitted"] | None = None


AnyThinking = Annotated[
    ThinkingOn | ThinkingOff | ThinkingAdaptive | ThinkingBetweenTools, Field(discriminator="type")
]


class JsonFormat(Part):
    """The reply is JSON under this schema."""

    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(Part):
    """What the reply should be like."""

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: JsonFormat | None = None


class CountBody(Body):
    """A conversation whose tokens are counted.

    Fields that are about accounts and machines of the original, or about its cache, say nothing here and
    are only let through: `Any`.
    """

    model: str
    messages: list[Message] = Field(min_length=1, max_length=100_000)
    system: str | list[Text] | None = None
    tools: list[Tool] | None = None
    tool_choice: AnyToolChoice | None = None
    thinking: AnyThinking | None = None
    output_config: OutputConfig | None = None
    output_format: JsonFormat | None = None
    mcp_servers: Annotated[list[Any], Field(max_length=0)] | None = None
    billing_policy: Any = None
    cache_control: Any = None
    compaction: Any = None
    context_management: Any = None
    speed: Any = None
    user_profile_id: Any = None
    workspace_id: Any = None


class MessagesBody(CountBody):
    """A conversation that is answered."""

    max_tokens: int = Field(ge=1)
    stream: bool | None = None
    stop_sequences: Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=64)] | None = None
    temperature: float | None = Field(None, ge=0, le=1)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=0)
    container: None = None
    thread: None = None
    diagnostics: Any = None
    fallback_credit_token: Any = None
    fallbacks: Any = None
    inference_geo: Any = None
    metadata: Any = None
    service_tier: Any = None
