"""Requests of all APIs in a common form: `ChatRequest`, `CompletionRequest`, `EmbeddingRequest`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from ikq.sampling import SamplingOptions
from ikq.speculation.options import SpeculationKeywords

__all__ = [
    "ChatRequest",
    "CompletionRequest",
    "EmbeddingRequest",
    "Form",
    "Pooling",
    "TextRequest",
    "ToolChoice",
]

Pooling: TypeAlias = Literal["mean", "last", "cls"]
"""How states of a text's tokens become one: their mean, the last one, the first one."""


@dataclass(frozen=True, kw_only=True)
class Form:
    """The form that a text must have; at most one of these is given.

    Attributes:
        json_object: Any JSON object.
        json_schema: JSON that is valid under this schema.
        gbnf: A grammar in llama.cpp's notation.
        lark: A grammar in Lark's notation.
        regex: A regular expression.
        parameter: Name of the request's field that says it, for errors.
    """

    json_object: bool = False
    json_schema: Mapping[str, Any] | bool | None = None
    gbnf: str | None = None
    lark: str | None = None
    regex: str | None = None
    parameter: str = field(default="response_format", compare=False)

    @property
    def keywords(self) -> dict[str, Any]:
        """Keywords of `ikq.grammar.compile_constraint`."""
        return {name: value for name, value in vars(self).items() if name != "parameter"}

    @property
    def is_free(self) -> bool:
        """Whether nothing is asked for."""
        return self == Form()


@dataclass(frozen=True, kw_only=True)
class ToolChoice:
    """Which tools a model may call.

    Attributes:
        mode: `auto`: as it likes; `none`: none; `required`: at least one.
        name: The tool that it must call, once, with `required`; `None`: any.
        parallel: It may call several in one reply.
    """

    mode: Literal["auto", "none", "required"] = "auto"
    name: str | None = None
    parallel: bool = True


@dataclass(frozen=True, kw_only=True)
class TextRequest:
    """What all requests for text have in common.

    Attributes:
        model: Name of the model; `None`: the one there is.
        sampling: How tokens are chosen. A seed of its own for each of `n` texts: `seed`, `seed + 1`, ...
        max_tokens: Most tokens of a text; `None`: until the model ends or the context is full.
        stop: Texts that end it; they are not part of it.
        n: How many texts.
        logprobs: Tell the log of each token's probability, and those of this many most probable ones.
        form: What the text must be.
        ignore_eos: Never choose a token that ends the text.
        special: Show control tokens in the text.
        cache_prompt: Whether it may reuse the KV caches of other requests, and others its own.
        slot: Number of the slot that the text shall have, as programs for llama-server say it; `None`: any.
        lora: Scales of the model's adapters by their number, 0 for those that are not named; `None`: as the
            server has them.
        timeout: Seconds after which the text ends as an error; `None`: the server's limit.
        speculation: Options of speculative decoding that override those of the server. The text is the same.
    """

    model: str | None = None
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    n: int = 1
    logprobs: int | None = None
    form: Form = field(default_factory=Form)
    ignore_eos: bool = False
    special: bool = False
    cache_prompt: bool = True
    slot: int | None = None
    lora: Mapping[int, float] | None = None
    timeout: float | None = None
    speculation: SpeculationKeywords | None = None


@dataclass(frozen=True, kw_only=True)
class ChatRequest(TextRequest):
    """A conversation to be answered.

    Attributes:
        messages: In the form of OpenAI's chat completions: `role`, `content` (text, parts or nothing),
            `tool_calls`, `tool_call_id`, `name`, `reasoning_content`.
        tools: Functions that may be called: `{"type": "function", "function": {"name", "description",
            "parameters"}}`.
        tool_choice: Which of them.
        template_options: Further variables of the template: `enable_thinking`, `reasoning_effort`, ...
        continues: The last message is the assistant's and unfinished: the reply goes on with it.
        reasoning_budget: Most tokens of thoughts; `None`: no limit.
        separates_reasoning: Thoughts come as `reasoning`; otherwise they are part of the content, marks and
            all.
    """

    messages: tuple[Mapping[str, Any], ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    tool_choice: ToolChoice = field(default_factory=ToolChoice)
    template_options: Mapping[str, Any] = field(default_factory=dict)
    continues: bool = False
    reasoning_budget: int | None = None
    separates_reasoning: bool = True


@dataclass(frozen=True, kw_only=True)
class CompletionRequest(TextRequest):
    """A text to be continued.

    Attributes:
        prompt: The text, or its tokens.
        parse_special: Names of control tokens in a text stand for these tokens.
    """

    prompt: str | tuple[int, ...]
    parse_special: bool = True


@dataclass(frozen=True, kw_only=True)
class EmbeddingRequest:
    """Texts whose embeddings are wanted.

    Attributes:
        model: As for text.
        inputs: Texts, or their tokens.
        pooling: How states become one; `None`: what the model's file says, or the mean.
        normalizes: Embeddings have length 1.
    """

    model: str | None = None
    inputs: tuple[str | tuple[int, ...], ...]
    pooling: Pooling | None = None
    normalizes: bool = True
