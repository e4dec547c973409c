"""Replies as JSON objects: for models whose chat template has no place for tools.

The tools are told in a system message, and the whole reply is an object: calls, or an answer.

{"tool_calls": [{"name": "f", "arguments": {"x": 1}}]}
{"response": "The answer."}
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ikq.text.tools.delta import Delta
from ikq.text.tools.functions import function_of
from ikq.text.tools.readers import Calls, nothing, read_json_call
from ikq.text.tools.scanning import Scanner, Steps
from ikq.text.tools.spelling import JsonReply

__all__ = ["read_json_reply", "told", "written_answer", "written_result"]

_FORM = JsonReply()


def told(tools: Sequence[Mapping[str, Any]]) -> str:
    """What a system message says about tools.

    Raises:
        FormatError: one is no function with a name.
    """
    return "\n".join(_told(tools))


def _told(tools: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield "You can call functions. Each line is one of them, with a JSON schema of its arguments:"
    for i, tool in enumerate(tools):
        function = function_of(tool, i)
        fields = ("name", "description", "parameters")
        yield json.dumps({k: function[k] for k in fields if function.get(k)}, ensure_ascii=False)
    yield "Your whole reply is one JSON object. To call functions, whose results you will then be told:"
    call = {_FORM.name: "NAME", _FORM.arguments: {"ARGUMENT": "VALUE"}}
    yield json.dumps({_FORM.calls: [call]})
    yield "To answer, when you need no function or know their results:"
    yield json.dumps({_FORM.answer: "YOUR ANSWER"})


def written_answer(text: str) -> str:
    """An earlier answer, as the model wrote it."""
    return json.dumps({_FORM.answer: text}, ensure_ascii=False)


def written_result(name: str | None, content: str) -> str:
    """A result of a call, as the user tells it."""
    return f"Result of {'the function' if name is None else name}:\n{content}"


def read_json_reply(text: Scanner, form: JsonReply, calls: Calls) -> Steps[bool]:
    """Reads a reply; whether it was such an object. If not, nothing is read."""
    start = text.keep()
    yield from text.space()
    key = None
    if (yield from text.take("{")):
        yield from text.space()
        key = yield from text.json_string()
        yield from text.space()
        if not (yield from text.take(":")):
            key = None
        yield from text.space()
    if key == form.calls and (yield from text.take("[")):
        text.forget()
        while True:
            yield from text.space()
            if (yield from text.take(",")):
                continue
            if (yield from text.peek()) != "{" or not (yield from read_json_call(text, form, calls)):
                break
    elif key == form.answer:
        text.forget()
        if (yield from text.peek()) == '"':
            yield from text.decoded(_content)
        else:
            yield from text.json(_content)
    else:
        text.back_to(start)
        return False
    while not (yield from text.at_end()):
        nothing(text.rest())
    return True


def _content(text: str) -> Delta:
    return Delta("content", text)
