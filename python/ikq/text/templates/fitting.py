"""Messages in OpenAI's form as a template wants them: `fit`."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ikq.errors import FormatError, TemplateLimit
from ikq.text.chat import ChatTemplate
from ikq.text.templates.abilities import Abilities, Message, abilities_of, as_parts
from ikq.text.templates.beginning import begun
from ikq.text.templates.telling import needs_telling, with_tools
from ikq.text.tools.functions import function_of
from ikq.text.tools.json_reply import written_answer, written_result

if TYPE_CHECKING:
    from ikq.text.tools import ReplyForm

__all__ = ["Fitted", "fit"]


@dataclass(frozen=True)
class Fitted:
    """A conversation as a template wants it.

    Attributes:
        template: The template.
        messages: The messages.
        tools: Descriptions of tools, as the template wants them.
        form: How the model will write its reply, if that was known before.
    """

    template: ChatTemplate
    messages: list[Message]
    tools: list[Message] | None
    form: ReplyForm | None = None

    def render(
        self,
        *,
        continues: bool = False,
        **options: Any,  # noqa: ANN401  # whatever the template reads
    ) -> str:
        """The prompt.

        Args:
            continues: The last message is the assistant's and unfinished: the prompt ends with it.
            **options: Further variables of the template, such as `enable_thinking=False`.

        Raises:
            TemplateLimit: the template refuses the conversation; the message is the template's.
        """
        messages = self.messages
        last = messages[-1] if continues and messages and messages[-1]["role"] == "assistant" else None
        if last is not None and self.form is not None and self.form.name == "json":
            raise TemplateLimit(
                "the model's chat template has no place for tools: with tools an answer cannot be continued"
            )
        if last is not None:
            messages = messages[:-1]
        try:
            prompt = self.template.render(messages, self.tools, **options)
        except TemplateLimit:
            raise
        except FormatError as e:
            raise TemplateLimit(f"the model's chat template does not take this conversation: {e}") from None
        return prompt if last is None else prompt + begun(last, prompt, self.form)


def fit(
    template: ChatTemplate,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None = None,
    *,
    form: ReplyForm | None = None,
    tells_tools: bool = False,
) -> Fitted:
    """Makes a conversation fit a template.

    Args:
        template: The template.
        messages: In the form of OpenAI's chat completions: `role`, `content` (a text, parts or nothing),
            `tool_calls` (arguments as JSON text or as a mapping), `tool_call_id`, `name`,
            `reasoning_content`.
        tools: Functions that the model may call, in the same form.
        form: How the model writes calls, for templates that show tools but no calls.
        tells_tools: Where the template has no place for tools, a system message tells them, and the model is
            to answer as JSON: whoever reads the reply does so in the `form` of the result.

    Returns:
        What to render; the arguments are not changed.

    Raises:
        TemplateLimit: the template cannot express it; the message says what.
        FormatError: a message is malformed.

    Examples:
        >>> from ikq.text.chat import CHATML, ChatTemplate
        >>> parts = [{"type": "text", "text": "Hello"}, {"type": "text", "text": "again"}]
        >>> print(fit(ChatTemplate(CHATML), [{"role": "developer", "content": parts}]).render())
        <|im_start|>system
        Hello
        again<|im_end|>
        <|im_start|>assistant
        <BLANKLINE>
    """
    abilities = abilities_of(template)
    if tells_tools and form is not None and needs_telling(abilities, messages, tools):
        fitter = _Fitter(template, abilities, form.as_json(), answers=bool(tools))
        if tools:
            messages = with_tools(messages, tools)
        return Fitted(
            template, fitter.messages(messages), fitter.tools(None), form.as_json() if tools else form
        )
    fitter = _Fitter(template, abilities, form)
    fitted = fitter.messages(messages)
    return Fitted(template, fitted, fitter.tools(tools), form)


class _Fitter:
    """Makes messages fit what a template can express."""

    def __init__(
        self, template: ChatTemplate, abilities: Abilities, form: ReplyForm | None, *, answers: bool = False
    ) -> None:
        self._source = template.source
        self._can = abilities
        self._form = form
        # a system message tells the tools: calls are JSON in the content, and so are answers
        self._is_json = form is not None and form.name == "json"
        self._answers_json = answers
        # names of called functions, by the calls' ids
        self._called: dict[str, str] = {}

    def tools(self, tools: Sequence[Mapping[str, Any]] | None) -> list[Message] | None:
        """Descriptions of tools."""
        if not tools:
            return [] if self._can.needs_tools else None
        if not self._can.tools:
            raise TemplateLimit("the model's chat template has no place for tools; leave `tools` out")
        return [self._tool(tool, i) for i, tool in enumerate(tools)]

    def _tool(self, tool: Mapping[str, Any], i: int) -> Message:
        function = function_of(tool, i)
        function.setdefault("description", "")
        parameters = dict(function["parameters"])
        parameters.setdefault("properties", {})
        if self._can.described:
            parameters["properties"] = {
                name: {"description": "", **schema} if isinstance(schema, Mapping) else schema
                for name, schema in parameters["properties"].items()
            }
        function["parameters"] = parameters
        return {"type": "function", "function": function}

    def messages(self, messages: Sequence[Mapping[str, Any]]) -> list[Message]:
        """All messages."""
        fitted = [self._message(message, i) for i, message in enumerate(messages)]
        fitted = self._without_systems(fitted)
        fitted = list(self._one_by_one(fitted))
        if self._can.alternates:
            fitted = _joined(fitted)
        return [self._finished(message) for message in fitted]

    def _message(self, given: Mapping[str, Any], i: int) -> Message:
        """One message, its content a text."""
        if not isinstance(given, Mapping):
            raise FormatError(f"messages[{i}] is no object")
        message = dict(given)
        role = message.get("role")
        if not isinstance(role, str):
            raise FormatError(f"messages[{i}] has no role")
        if role not in ROLES and not _is_named(self._source, role):
            known = ", ".join(ROLES)
            raise FormatError(f"messages[{i}]: there is no role `{role[:40]}`; roles are {known}")
        if role == "developer" and not self._can.developer:
            message["role"] = "system"
        message["content"] = _text_of(message.get("content"), i)
        calls = message.pop("tool_calls", None)
        if calls and not isinstance(calls, Sequence):
            raise FormatError(f"messages[{i}].tool_calls is no list")
        if calls:
            message["tool_calls"] = [self._call(call, i, j) for j, call in enumerate(calls)]
            self._write_calls(message)
        elif self._answers_json and role == "assistant" and message["content"]:
            message["content"] = written_answer(message["content"])
        if role in ("tool", "function"):
            self._result(message)
        self._name_thoughts(message)
        return message

    def _name_thoughts(self, message: Message) -> None:
        """Reasoning under the name that the template looks for."""
        thoughts = message.pop("reasoning_content", None) or message.pop("reasoning", None)
        if not isinstance(thoughts, str):
            return
        if self._can.thoughts == "thinking" and message.get("tool_calls") and message["content"]:
            # templates of the harmony format take one of both beside calls
            thoughts, message["content"] = f"{thoughts}\n\n{message['content']}", ""
        message[self._can.thoughts] = thoughts

    def _call(self, given: Mapping[str, Any], i: int, j: int) -> Message:
        place = f"messages[{i}].tool_calls[{j}]"
        function = given.get("function") if isinstance(given, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise FormatError(f"{place} calls no function by its name")
        arguments = function.get("arguments")
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments) if arguments.strip() else {}
            except (ValueError, RecursionError) as e:
                raise FormatError(f"{place}: the arguments are not JSON: {e}") from None
        arguments = {} if arguments is None else arguments
        if self._can.calls == "text":
            arguments = json.dumps(arguments, ensure_ascii=False)
        name = self._id(given.get("id") or f"call{i}_{j}")
        self._called[name] = function["name"]
        return {
            "id": name,
            "type": "function",
            "function": {**function, "arguments": arguments},
        }

    def _id(self, given: object) -> str:
        """A name of a call that the template takes."""
        text = str(given)
        if self._can.ids or (len(text) == 9 and text.isalnum()):
            return text
        return hashlib.sha256(text.encode()).hexdigest()[:9]

    def _write_calls(self, message: Message) -> None:
        """Calls as content, where the template shows none."""
        if self._can.calls is not None and not self._is_json:
            return
        can = self._can.tools or self._is_json
        written = self._form.written(message["tool_calls"]) if self._form is not None and can else None
        if written is None:
            raise TemplateLimit(
                "the model's chat template has no place for calls of tools, which this conversation has"
            )
        del message["tool_calls"]
        message["content"] = f"{message['content']}\n{written}" if message["content"] else written

    def _result(self, message: Message) -> None:
        if self._is_json:
            name = self._called.get(self._id(message.pop("tool_call_id", None)), message.pop("name", None))
            message.update(role="user", content=written_result(name, message["content"]))
            return
        if not self._can.results:
            raise TemplateLimit("the model's chat template has no place for results of tools (role `tool`)")
        message["role"] = "tool"
        if "tool_call_id" in message:
            message["tool_call_id"] = self._id(message["tool_call_id"])
            name = self._called.get(message["tool_call_id"])
            if name is not None:
                message.setdefault("name", name)

    def _without_systems(self, messages: list[Message]) -> list[Message]:
        """With one system message at the beginning, or with what it says where the template has a place."""
        first, rest = _split_systems(messages)
        if not first:
            return messages
        text = "\n\n".join(m["content"] for m in first if m["content"])
        if self._can.system:
            return [{**first[0], "content": text}, *rest]
        for i, message in enumerate(rest):
            if message["role"] == "user":
                changed = {
                    **message,
                    "content": f"{text}\n\n{message['content']}" if text else message["content"],
                }
                return [*rest[:i], changed, *rest[i + 1 :]]
        raise TemplateLimit(
            "the model's chat template has no place for a system message without one of the user"
        )

    def _one_by_one(self, messages: list[Message]) -> Iterator[Message]:
        """Messages with one call each, where the template takes no more."""
        waiting: list[Message] = []
        for message in messages:
            calls = message.get("tool_calls") or []
            if message["role"] == "tool" and waiting:
                i = next((i for i, m in enumerate(waiting) if _calls_id(m, message)), 0)
                yield waiting.pop(i)
                yield message
                continue
            yield from waiting
            waiting = []
            if len(calls) < 2 or self._can.parallel:
                yield message
                continue
            contents = [message["content"], *[""] * (len(calls) - 1)]
            waiting = [
                {**message, "content": c, "tool_calls": [call]}
                for c, call in zip(contents, calls, strict=True)
            ]
            for later in waiting[1:]:
                later.pop(self._can.thoughts, None)
        yield from waiting

    def _finished(self, message: Message) -> Message:
        """Content as the template wants it."""
        if message.get("tool_calls") and not message["content"] and self._can.empty != "text":
            if self._can.empty == "null":
                return {**message, "content": None}
            return {name: value for name, value in message.items() if name != "content"}
        return message if self._can.text else as_parts(message)


ROLES = ("system", "developer", "user", "assistant", "tool", "function")
"""Roles of messages that every conversation may have."""


def _is_named(source: str, role: str) -> bool:
    """Whether a template knows a role of its own: it compares roles with this name."""
    return re.search(rf"role[^%}}]*['\"]{re.escape(role)}['\"]", source) is not None


def _text_of(content: object, i: int) -> str:
    """Content as a text."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence):
        raise FormatError(f"messages[{i}]: the content is neither a text nor a list of parts")
    texts = []
    for part in content:
        if isinstance(part, str):
            texts.append(part)
            continue
        kind = part.get("type") if isinstance(part, Mapping) else None
        text = part.get("text", part.get("refusal")) if isinstance(part, Mapping) else None
        if not isinstance(text, str):
            raise TemplateLimit(f"messages[{i}] has a part of the type `{kind}`; models take only text here")
        texts.append(text)
    return "\n".join(texts)


def _split_systems(messages: list[Message]) -> tuple[list[Message], list[Message]]:
    """The system messages at the beginning, and what follows them."""
    n = next((i for i, m in enumerate(messages) if m["role"] not in ("system", "developer")), len(messages))
    return messages[:n], messages[n:]


def _calls_id(message: Message, result: Message) -> bool:
    return bool(message["tool_calls"][0]["id"] == result.get("tool_call_id"))


def _joined(messages: list[Message]) -> list[Message]:
    """Messages of the same role that follow each other as one."""
    joined: list[Message] = []
    for message in messages:
        last = joined[-1] if joined else None
        if (
            last is not None
            and last["role"] == message["role"] in ("user", "assistant")
            and not last.get("tool_calls")
            and not message.get("tool_calls")
        ):
            joined[-1] = {**last, "content": f"{last['content']}\n\n{message['content']}"}
        else:
            joined.append(message)
    return joined
