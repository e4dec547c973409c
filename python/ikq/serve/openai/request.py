"""OpenAI's requests in ikq's own terms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict, TypeGuard

from ikq.sampling import SamplingOptions
from ikq.serve.errors import ServiceError
from ikq.serve.openai.bodies import ChatBody, CompletionBody, TextBody
from ikq.serve.openai.messages import check_messages, continues
from ikq.serve.openai.sampling import sampling_of
from ikq.serve.requests import ChatRequest, CompletionRequest, Form, ToolChoice
from ikq.serve.service import Reply, Service
from ikq.serve.settings import Settings

__all__ = [
    "MOST_PROMPTS",
    "CommonFields",
    "all_replies",
    "chat_request",
    "check_inputs",
    "common_fields",
    "completion_request",
    "form_of",
    "limit_of",
    "split_inputs",
    "stop_of",
]

# OpenAI takes 4; programs for llama-server send more.
_MOST_STOPS = 64

MOST_PROMPTS = 256
"""Prompts of a request; more than this is a mistake."""

# as in the original
_MOST_INPUTS = 2048


class CommonFields(TypedDict):
    """Fields of `TextRequest` but `logprobs`."""

    model: str | None
    sampling: SamplingOptions
    max_tokens: int | None
    stop: tuple[str, ...]
    n: int
    form: Form
    ignore_eos: bool
    cache_prompt: bool
    slot: int | None
    lora: Mapping[int, float] | None
    timeout: float | None


def chat_request(body: ChatBody, settings: Settings) -> ChatRequest:
    """A conversation to be answered.

    Raises:
        ServiceError: values do not go together, or are out of range.
    """
    check_messages(body.messages)
    if body.functions:
        raise ServiceError("unsupported", "functions is not offered: use tools", parameter="functions")
    if body.top_logprobs and not body.logprobs:
        raise ServiceError("invalid_request", "top_logprobs needs logprobs", parameter="top_logprobs")
    template_options = {**settings.template_options, **(body.chat_template_kwargs or {})}
    if body.reasoning_effort is not None:
        template_options["reasoning_effort"] = body.reasoning_effort
        if body.reasoning_effort == "none":
            template_options.setdefault("enable_thinking", False)
    if body.enable_thinking is not None:
        template_options["enable_thinking"] = body.enable_thinking
    reserved = {"messages", "tools", "add_generation_prompt"} & template_options.keys()
    if reserved:
        sentence = f"chat_template_kwargs: {min(reserved)} is a field of its own"
        raise ServiceError("invalid_request", sentence, parameter="chat_template_kwargs")
    goes_on = continues(body.messages, body.continue_final_message, by_default=settings.prefill_assistant)
    if body.add_generation_prompt is False and not goes_on:
        template_options["add_generation_prompt"] = False
    tools, choice = _tools(body.tools), _tool_choice(body)
    if _is_allowed(body.tool_choice):
        allowed = _allowed(body.tool_choice)
        tools = tuple(t for t in tools if t["function"]["name"] in allowed)
    limit = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
    return ChatRequest(
        **common_fields(body, settings, limit),
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        messages=tuple(body.messages),
        tools=tools,
        tool_choice=choice,
        template_options=template_options,
        continues=goes_on,
        reasoning_budget=_budget(body, settings),
        separates_reasoning=(body.reasoning_format or settings.reasoning_format) != "none",
    )


def completion_request(
    body: CompletionBody, prompt: str | tuple[int, ...], settings: Settings
) -> CompletionRequest:
    """A text to be continued.

    Args:
        body: The request.
        prompt: One of its prompts.
        settings: See there.

    Raises:
        ServiceError: as `chat_request`.
    """
    if body.suffix:
        raise ServiceError("unsupported", "suffix is not offered", parameter="suffix")
    if body.best_of is not None and body.best_of != (body.n or 1):
        raise ServiceError("unsupported", "best_of is not offered, but as n", parameter="best_of")
    if body.echo and body.logprobs is not None:
        raise ServiceError("unsupported", "echo with logprobs is not offered", parameter="echo")
    # the original's limit, where none is said
    limit = 16 if body.max_tokens is None and body.n_predict is None else body.max_tokens
    return CompletionRequest(**common_fields(body, settings, limit), logprobs=body.logprobs, prompt=prompt)


def check_inputs(inputs: Sequence[object], parameter: str) -> None:
    """Refuses more texts to be embedded than a request may have.

    Raises:
        ServiceError: there are more.
    """
    if len(inputs) > _MOST_INPUTS:
        sentence = f"{parameter}: {len(inputs)} texts, expected at most {_MOST_INPUTS}"
        raise ServiceError("invalid_request", sentence, parameter=parameter)


async def all_replies(service: Service, requests: Sequence[CompletionRequest]) -> list[Reply]:
    """A reply for each request, or none at all.

    Raises:
        ServiceError: one of them cannot be answered.
    """
    replies: list[Reply] = []
    try:
        for request in requests:
            replies.append(await service.complete(request))
    except BaseException:
        for reply in replies:
            await reply.aclose()
        raise
    return replies


def split_inputs(given: str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]]) -> list[Any]:
    """One or several texts, or their tokens, as a list of texts or tuples of tokens."""
    if isinstance(given, str):
        return [given]
    if given and all(isinstance(x, int) for x in given):
        return [tuple(given)]
    return [x if isinstance(x, str) else tuple(x) for x in given if not isinstance(x, int)]


def limit_of(given: int | None, parameter: str = "max_tokens") -> int | None:
    """Most tokens; -1 stands for no limit.

    Raises:
        ServiceError: it is below that.
    """
    if given is None or given == -1:
        return None
    if given < 0:
        sentence = f"{parameter}={given}: expected 0 or more"
        raise ServiceError("invalid_request", sentence, parameter=parameter)
    return given


def stop_of(given: str | list[str] | None) -> tuple[str, ...]:
    """Texts that end a text.

    Raises:
        ServiceError: one is empty, or there are very many.
    """
    texts = (given,) if isinstance(given, str) else tuple(given or ())
    if len(texts) > _MOST_STOPS:
        sentence = f"stop: {len(texts)} texts, expected at most {_MOST_STOPS}"
        raise ServiceError("invalid_request", sentence, parameter="stop")
    return tuple(text for text in texts if text)


def form_of(body: TextBody) -> Form:
    """What a text must be.

    Raises:
        ServiceError: several things are asked for at once.
    """
    forms: list[tuple[str, Form]] = []
    wanted = body.response_format
    if wanted is not None and wanted.type != "text":
        schema = wanted.schema_ if wanted.json_schema is None else wanted.json_schema.schema_
        if schema is not None:
            forms.append(("response_format", Form(json_schema=schema)))
        elif wanted.type == "json_object":
            forms.append(("response_format", Form(json_object=True)))
        else:
            sentence = "response_format.json_schema.schema: field required"
            raise ServiceError("invalid_request", sentence, parameter="response_format.json_schema.schema")
    if body.json_schema is not None:
        forms.append(("json_schema", Form(json_schema=body.json_schema, parameter="json_schema")))
    if body.grammar:
        forms.append(("grammar", Form(gbnf=body.grammar, parameter="grammar")))
    if body.regex:
        forms.append(("regex", Form(regex=body.regex, parameter="regex")))
    if len(forms) > 1:
        sentence = f"{' and '.join(name for name, _ in forms)} cannot be had at once"
        raise ServiceError("invalid_request", sentence, parameter=forms[1][0])
    return forms[0][1] if forms else Form()


def common_fields(body: TextBody, settings: Settings, limit: int | None) -> CommonFields:
    """What all requests for text have in common.

    Args:
        body: The request.
        settings: See there.
        limit: Most tokens, where not `n_predict` says it.

    Raises:
        ServiceError: a value is out of range, or some do not go together.
    """
    # -2: until the context is full, which ends a text in any case
    n_predict = -1 if body.n_predict == -2 else body.n_predict
    return {
        "model": body.model,
        "sampling": sampling_of(body, settings.sampling),
        "max_tokens": limit_of(_first(limit, n_predict, settings.max_tokens)),
        "stop": stop_of(body.stop),
        "n": 1 if body.n is None else body.n,
        "form": form_of(body),
        "ignore_eos": bool(body.ignore_eos),
        "cache_prompt": settings.cache_prompt if body.cache_prompt is None else body.cache_prompt,
        "slot": body.id_slot if body.id_slot != -1 else None,
        "lora": None if body.lora is None else {entry.id: entry.scale for entry in body.lora},
        "timeout": body.timeout,
    }


def _budget(body: ChatBody, settings: Settings) -> int | None:
    """Most tokens of thoughts; -1 stands for what the server was started with, as in llama-server."""
    name, budget = "reasoning_budget_tokens", body.reasoning_budget_tokens
    if budget is None:
        name, budget = "thinking_budget_tokens", body.thinking_budget_tokens
    if budget is None or budget == -1:
        return settings.reasoning_budget
    if budget < 0:
        sentence = f"{name}={budget}: expected 0 or more, or -1"
        raise ServiceError("invalid_request", sentence, parameter=name)
    return budget


def _first(*values: int | None) -> int | None:
    return next((value for value in values if value is not None), None)


def _tools(given: list[dict[str, Any]] | None) -> tuple[Mapping[str, Any], ...]:
    names: set[str] = set()
    for i, tool in enumerate(given or ()):
        function = tool.get("function")
        if tool.get("type", "function") != "function" or not isinstance(function, dict):
            sentence = f"tools.{i}: expected a function"
            raise ServiceError("invalid_request", sentence, parameter=f"tools.{i}")
        if not isinstance(function.get("name"), str) or not function["name"]:
            sentence = f"tools.{i}.function.name: expected a text"
            raise ServiceError("invalid_request", sentence, parameter=f"tools.{i}.function.name")
        if function["name"] in names:
            sentence = f"tools.{i}.function.name: there is another function `{function['name'][:64]}`"
            raise ServiceError("invalid_request", sentence, parameter=f"tools.{i}.function.name")
        names.add(function["name"])
    return tuple(given or ())


def _tool_choice(body: ChatBody) -> ToolChoice:
    parallel = body.parallel_tool_calls is not False
    choice = body.tool_choice
    if choice is None:
        return ToolChoice(parallel=parallel)
    if isinstance(choice, str):
        if choice in ("auto", "none"):
            return ToolChoice(mode="auto" if choice == "auto" else "none", parallel=parallel)
        if choice == "required" and body.tools:
            return ToolChoice(mode="required", parallel=parallel)
    elif _is_allowed(choice):
        mode = choice["allowed_tools"].get("mode")
        names = {t["function"]["name"] for t in _tools(body.tools)}
        if mode in ("auto", "required") and _allowed(choice) and _allowed(choice) <= names:
            return ToolChoice(mode="auto" if mode == "auto" else "required", parallel=parallel)
    else:
        function = choice.get("function")
        name = function.get("name") if isinstance(function, dict) else choice.get("name")
        if isinstance(name, str) and any(t["function"]["name"] == name for t in _tools(body.tools)):
            return ToolChoice(mode="required", name=name, parallel=parallel)
    sentence = "tool_choice: expected auto, none, required with tools, or one of the tools"
    raise ServiceError("invalid_request", sentence, parameter="tool_choice")


def _is_allowed(choice: str | dict[str, Any] | None) -> TypeGuard[dict[str, Any]]:
    """Whether a choice names some of the tools, one of which may be called."""
    return (
        isinstance(choice, dict)
        and choice.get("type") == "allowed_tools"
        and isinstance(choice.get("allowed_tools"), dict)
    )


def _allowed(choice: dict[str, Any]) -> set[str]:
    given = choice["allowed_tools"].get("tools")
    functions = [t.get("function") for t in given if isinstance(t, dict)] if isinstance(given, list) else []
    return {f["name"] for f in functions if isinstance(f, dict) and isinstance(f.get("name"), str)}
