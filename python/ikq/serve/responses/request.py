"""A body of the Responses API as a `ChatRequest`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ikq.sampling import SamplingOptions
from ikq.serve.errors import ServiceError
from ikq.serve.requests import ChatRequest, Form, ToolChoice
from ikq.serve.responses.bodies import (
    AllowedTools,
    FunctionChoice,
    FunctionTool,
    JsonSchemaFormat,
    ResponsesBody,
)
from ikq.serve.responses.messages import to_messages
from ikq.serve.sampling import changed
from ikq.serve.settings import Settings

__all__ = ["LOGPROBS", "to_chat_request"]

LOGPROBS = "message.output_text.logprobs"
"""What `include` says where probabilities are wanted."""


def to_chat_request(
    body: ResponsesBody,
    settings: Settings | None = None,
    earlier: Sequence[Mapping[str, Any]] = (),
) -> ChatRequest:
    """What a body asks for.

    Args:
        body: Of `/v1/responses`.
        settings: What holds where the body says nothing.
        earlier: Messages of the conversation that `previous_response_id` names.

    Raises:
        ServiceError: fields do not fit together.
    """
    settings = settings or Settings()
    tools, choice = _tools(body)
    messages = [*earlier, *to_messages(body.input)]
    if body.instructions is not None:
        messages = [{"role": "system", "content": body.instructions}, *messages]
    return ChatRequest(
        model=body.model,
        messages=tuple(messages),
        tools=tuple(_chat_tool(tool) for tool in tools),
        tool_choice=choice,
        template_options=_template_options(body, settings.template_options),
        form=_form(body),
        sampling=_sampling(body, settings.sampling),
        max_tokens=settings.max_tokens if body.max_output_tokens is None else body.max_output_tokens,
        reasoning_budget=settings.reasoning_budget,
        logprobs=_logprobs(body),
    )


def _tools(body: ResponsesBody) -> tuple[list[FunctionTool], ToolChoice]:
    """The tools that may be called, and which of them."""
    tools = body.tools or []
    names = {tool.name for tool in tools}
    if len(names) < len(tools):
        raise _refused("tools: two functions have the same name", "tools")
    choice = body.tool_choice
    parallel = body.parallel_tool_calls is not False
    wanted: set[str] = set()
    if isinstance(choice, FunctionChoice):
        wanted = {choice.name}
    elif isinstance(choice, AllowedTools):
        wanted = {tool.name for tool in choice.tools}
        tools = [tool for tool in tools if tool.name in wanted]
    if missing := wanted - names:
        sentence = f"tool_choice: there is no function '{min(missing)}' in `tools`"
        raise _refused(sentence, "tool_choice")
    if choice not in (None, "auto", "none") and not tools:
        raise _refused("tool_choice: there are no tools that could be called", "tool_choice")
    match choice:
        case FunctionChoice():
            return tools, ToolChoice(mode="required", name=choice.name, parallel=parallel)
        case AllowedTools():
            return tools, ToolChoice(mode=choice.mode, parallel=parallel)
        case "none" | "required":
            return tools, ToolChoice(mode=choice, parallel=parallel)
    return tools, ToolChoice(parallel=parallel)


def _chat_tool(tool: FunctionTool) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.name}
    if tool.description is not None:
        function["description"] = tool.description
    function["parameters"] = (
        {"type": "object", "properties": {}} if tool.parameters is None else tool.parameters
    )
    if tool.strict:
        function["strict"] = True
    return {"type": "function", "function": function}


def _template_options(body: ResponsesBody, base: Mapping[str, Any]) -> dict[str, Any]:
    options = {**base, **(body.chat_template_kwargs or {})}
    reserved = {"messages", "tools", "add_generation_prompt"} & options.keys()
    if reserved:
        raise _refused(
            f"chat_template_kwargs: {min(reserved)} is no option of a template", "chat_template_kwargs"
        )
    effort = None if body.reasoning is None else body.reasoning.effort
    if effort is not None:
        options["enable_thinking"] = effort != "none"
        if effort != "none":
            options["reasoning_effort"] = effort
    return options


def _form(body: ResponsesBody) -> Form:
    form = None if body.text is None else body.text.format
    if isinstance(form, JsonSchemaFormat):
        return Form(json_schema=form.schema_, parameter="text.format")
    return Form(json_object=form is not None and form.type == "json_object", parameter="text.format")


def _sampling(body: ResponsesBody, base: SamplingOptions) -> SamplingOptions:
    names = ("temperature", "top_p", "top_k", "min_p", "seed")
    return changed(base, {name: getattr(body, name) for name in names})


def _logprobs(body: ResponsesBody) -> int | None:
    if LOGPROBS in (body.include or ()):
        return body.top_logprobs or 0
    return body.top_logprobs or None


def _refused(sentence: str, parameter: str) -> ServiceError:
    return ServiceError("invalid_request", sentence, parameter=parameter)
