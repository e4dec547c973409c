"""A body of the Messages API as a `ChatRequest`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ikq.sampling import SamplingOptions
from ikq.serve.anthropic.bodies import CountBody, MessagesBody, ThinkingOn, Tool
from ikq.serve.anthropic.messages import to_messages
from ikq.serve.errors import ServiceError
from ikq.serve.requests import ChatRequest, Form, ToolChoice
from ikq.serve.sampling import changed
from ikq.serve.settings import Settings

__all__ = ["shows_thinking", "to_chat_request"]


def to_chat_request(body: CountBody, settings: Settings | None = None) -> ChatRequest:
    """What a body asks for.

    Args:
        body: Of `/v1/messages`, or of `/v1/messages/count_tokens`, which has no part of what follows the
            prompt.
        settings: What holds where the body says nothing.

    Raises:
        ServiceError: fields do not fit together.
    """
    settings = settings or Settings()
    tools = _tools(body.tools or ())
    messages = to_messages(body.messages, body.system)
    last = messages[-1]
    if last.get("tool_calls"):
        calls = ", ".join(call["id"] for call in last["tool_calls"])
        raise _refused(
            f"messages.{len(body.messages) - 1}: `tool_use` blocks need `tool_result` blocks next: {calls}",
            "messages",
        )
    answered = body if isinstance(body, MessagesBody) else None
    return ChatRequest(
        model=body.model,
        messages=tuple(messages),
        tools=tools,
        tool_choice=_tool_choice(body),
        template_options=_template_options(body, settings.template_options),
        reasoning_budget=body.thinking.budget_tokens
        if isinstance(body.thinking, ThinkingOn)
        else settings.reasoning_budget,
        continues=last["role"] == "assistant",
        form=_form(body),
        sampling=settings.sampling if answered is None else _sampling(answered, settings.sampling),
        max_tokens=None if answered is None else answered.max_tokens,
        stop=() if answered is None else tuple(answered.stop_sequences or ()),
    )


def shows_thinking(body: CountBody) -> bool:
    """Whether thoughts are shown; otherwise their blocks are empty."""
    return body.thinking is None or body.thinking.display != "omitted"


def _tools(tools: Sequence[Tool]) -> tuple[dict[str, Any], ...]:
    names = [tool.name for tool in tools]
    if len(set(names)) < len(names):
        raise _refused("tools: Tool names must be unique.", "tools")
    return tuple(
        {
            "type": "function",
            "function": {
                "name": tool.name,
                **({} if tool.description is None else {"description": tool.description}),
                "parameters": tool.input_schema,
                **({"strict": True} if tool.strict else {}),
            },
        }
        for tool in tools
    )


def _tool_choice(body: CountBody) -> ToolChoice:
    choice = body.tool_choice
    if choice is None:
        return ToolChoice()
    parallel = not choice.disable_parallel_tool_use
    names = [tool.name for tool in body.tools or ()]
    if choice.type == "tool":
        if choice.name not in names:
            raise _refused(
                f"tool_choice.name: Tool '{choice.name}' not found in provided tools", "tool_choice.name"
            )
        return ToolChoice(mode="required", name=choice.name, parallel=parallel)
    if choice.type == "none":
        return ToolChoice(mode="none")
    if not names:
        raise _refused("tool_choice: tools are not given, so none can be chosen", "tool_choice")
    return ToolChoice(mode="required" if choice.type == "any" else "auto", parallel=parallel)


def _template_options(body: CountBody, base: Mapping[str, Any]) -> dict[str, Any]:
    """As in the original, who does not ask for thoughts gets none, where the template can do without."""
    thinking = body.thinking
    options: dict[str, Any] = {"enable_thinking": False, **base}
    if thinking is not None:
        options["enable_thinking"] = thinking.type != "disabled"
    budget = thinking.budget_tokens if isinstance(thinking, ThinkingOn) else 0
    if isinstance(body, MessagesBody) and budget >= body.max_tokens:
        raise _refused(
            "thinking.budget_tokens: it is a part of `max_tokens`, which must be greater",
            "thinking.budget_tokens",
        )
    if body.output_config is not None and body.output_config.effort is not None:
        options["reasoning_effort"] = body.output_config.effort
    return options


def _form(body: CountBody) -> Form:
    form = body.output_format
    if body.output_config is not None and body.output_config.format is not None:
        form = body.output_config.format
    return Form() if form is None else Form(json_schema=form.schema_, parameter="output_config.format")


def _sampling(body: MessagesBody, base: SamplingOptions) -> SamplingOptions:
    return changed(base, {"temperature": body.temperature, "top_p": body.top_p, "top_k": body.top_k})


def _refused(sentence: str, parameter: str) -> ServiceError:
    return ServiceError("invalid_request", sentence, parameter=parameter)
