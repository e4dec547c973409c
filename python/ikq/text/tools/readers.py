"""Readers of calls, one for each kind of spelling."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from ikq.text.tools.delta import Delta
from ikq.text.tools.scanning import Scanner, Steps, loaded
from ikq.text.tools.spelling import JsonCalls, NamedCalls, TaggedCalls
from ikq.text.tools.values import as_json, is_text, nested_as_json

__all__ = [
    "Calls",
    "nothing",
    "read_json_call",
    "read_json_calls",
    "read_named_call",
    "read_tagged_call",
]


class Calls:
    """The calls of a reply so far.

    Attributes:
        n: How many have begun.
        is_open: The last one has not come to its end.
        tools: Parameters of each function that may be called, as a JSON schema.
    """

    def __init__(self, tools: Mapping[str, Any], new_id: Callable[[], str]) -> None:
        self.n = 0
        self.is_open = False
        self.tools = tools
        self._new_id = new_id

    def begin(self, name: str, id: str | None = None) -> Delta:
        """A call begins."""
        self.n += 1
        self.is_open = True
        return Delta("tool_call", "", self.n - 1, id or self._new_id(), name)

    def arguments(self, text: str) -> Delta:
        """More of its arguments."""
        return Delta("tool_call", text, self.n - 1)

    def end(self) -> None:
        """Its arguments are whole."""
        self.is_open = False


def nothing(text: str) -> None:
    """What becomes of text that is only skipped."""


def read_json_calls(text: Scanner, form: JsonCalls, calls: Calls) -> Steps[bool]:
    """Reads calls behind the trigger; whether there was one at least."""
    close = (form.section[1] or form.call[1]).strip()
    n = 0
    while True:
        start = text.keep()
        yield from text.space()
        if close and (yield from text.take(close)):
            text.forget()
            return True
        c = yield from text.peek()
        if c == "{":
            text.forget()
            if not (yield from read_json_call(text, form, calls)):
                return n > 0
            n += 1
            if not close and not form.is_list and not form.is_bare:
                return True
        elif c and c in ("[,]" if form.is_list else ",;" if form.is_bare else ","):
            text.forget()
            yield from text.take(c)
            if c == "]" and not close:
                return True
        else:
            text.back_to(start)
            return n > 0


def read_json_call(text: Scanner, form: JsonCalls, calls: Calls) -> Steps[bool]:
    """Reads one call; if it is none, nothing is read, and the result is `False`."""
    start = text.keep()
    yield from text.take("{")
    name, named, held = None, None, None
    is_begun = is_closed = False
    while True:
        yield from text.space()
        if (yield from text.take("}")):
            is_closed = True
            break
        yield from text.take(",")
        yield from text.space()
        key = yield from text.json_string()
        yield from text.space()
        if key is None or not (yield from text.take(":")):
            break
        yield from text.space()
        if key == form.arguments or (not form.name and name is None):
            name = name if form.name else key
            if name is None:
                held = yield from text.json_text()
            else:
                if not is_begun:
                    if form.is_bare and name not in calls.tools:
                        break
                    is_begun = True
                    text.forget()
                    yield calls.begin(name, named)
                yield from _arguments(text, calls)
        elif key == form.name:
            name = yield from text.json_string()
            if name is None:
                break
        elif key == form.id:
            value = loaded((yield from text.json_text()))
            named = None if value is None else str(value)
        else:
            yield from text.json_text()
    if is_begun:
        return True
    if name is None or (form.is_bare and name not in calls.tools):
        text.back_to(start)
        return False
    text.forget()
    yield calls.begin(name, named)
    if held or is_closed or not text.is_cut:
        yield calls.arguments(held or "{}")
        calls.end()
    return True


def _arguments(text: Scanner, calls: Calls) -> Steps[None]:
    """Reads arguments: JSON, or a JSON string of it."""
    if (yield from text.peek()) == '"':
        inner = yield from text.json_string()
        if inner is None and text.is_cut:
            return
        yield calls.arguments(inner or "{}")
    elif not (yield from text.json(calls.arguments)):
        return
    calls.end()


def read_named_call(text: Scanner, form: NamedCalls, calls: Calls) -> Steps[bool]:
    """Reads a call behind its opening mark; if it is none, nothing is read."""
    start = text.keep()
    parts: list[str] = []
    end = form.call[1].strip()
    marks = [form.arguments.strip() or "{", *([end] if end else [])]
    mark = yield from text.until(marks, parts.append)
    found = re.fullmatch(form.heading, "".join(parts).strip(), re.DOTALL)
    if mark != marks[0] or found is None or not found["name"].strip():
        text.back_to(start)
        return False
    text.forget()
    yield calls.begin(found["name"].strip(), found.groupdict().get("id") or None)
    if not form.arguments.strip():
        yield calls.arguments("{")  # ... which has been read
    yield from text.space()
    if (yield from text.json(calls.arguments)):
        calls.end()
    if end:
        yield from text.space()
        yield from text.take(end)
    return True


def read_tagged_call(text: Scanner, form: TaggedCalls, calls: Calls) -> Steps[bool]:
    """Reads a call behind its opening mark; if it is none, nothing is read."""
    start = text.keep()
    yield from text.space()
    if form.name[0] and not (yield from text.take(form.name[0].strip())):
        text.back_to(start)
        return False
    ends = [m for m in (form.end.strip(), form.call[1].strip()) if m]
    key_opens = form.key[0].strip()
    parts: list[str] = []
    name_ends = [form.name[1].strip()] if form.name[1].strip() else [key_opens, *ends]
    mark = yield from text.until(name_ends, parts.append)
    found = re.fullmatch(form.name_heading, "".join(parts).strip(), re.DOTALL)
    if not mark or found is None or not found["name"].strip():
        text.back_to(start)
        return False
    text.forget()
    name = found["name"].strip()
    yield calls.begin(name)
    parameters = calls.tools.get(name) or {}
    yield calls.arguments("{")
    n = 0
    is_open = mark == key_opens
    while True:
        if not is_open:
            if mark not in ends:
                mark = yield from text.until([key_opens, *ends], nothing)
            if mark != key_opens:
                break
        is_open, mark = False, ""
        if not (yield from _argument(text, form, calls, parameters, is_first=n == 0)):
            break
        n += 1
    if mark in ends or not text.is_cut:
        yield calls.arguments("}")
        calls.end()
    if mark == form.end.strip() and form.call[1].strip():
        yield from text.space()
        yield from text.take(form.call[1].strip())
    return True


def _argument(
    text: Scanner, form: TaggedCalls, calls: Calls, parameters: Mapping[str, Any], *, is_first: bool
) -> Steps[bool]:
    """Reads an argument behind the tag that opens its name; whether it came to its end."""
    parts: list[str] = []
    if not (yield from text.until([form.key[1].strip()], parts.append)):
        return False
    found = re.fullmatch(form.key_heading, "".join(parts).strip(), re.DOTALL)
    key = found["key"] if found else "".join(parts).strip()
    said = found.groupdict() if found else {}
    if form.value[0].strip() and not (yield from text.until([form.value[0].strip()], nothing)):
        return False
    yield calls.arguments(("" if is_first else ", ") + json.dumps(key, ensure_ascii=False) + ": ")
    close = form.value[1].strip().replace("{key}", key)
    if is_text(parameters, key, said):
        yield calls.arguments('"')
        is_whole = yield from _text_value(text, form, calls, close)
        if is_whole or not text.is_cut:
            yield calls.arguments('"')
        return is_whole
    value: list[str] = []
    is_whole = bool((yield from text.until([close], value.append)))
    whole = "".join(value)
    if not is_whole and text.is_cut:
        return False
    yield calls.arguments(nested_as_json(whole, form.nested) if form.nested else as_json(whole))
    return is_whole


def _text_value(text: Scanner, form: TaggedCalls, calls: Calls, close: str) -> Steps[bool]:
    """Reads a text as it is, but for the line ends around it."""
    held = ""
    is_begun = not form.is_padded

    def piece(new: str) -> Delta:
        nonlocal held, is_begun
        if not is_begun:
            new = new.removeprefix("\n")
            is_begun = True
        new = held + new
        held = ""
        if form.is_padded and new.endswith("\n"):
            new, held = new[:-1], "\n"
        return calls.arguments(json.dumps(new, ensure_ascii=False)[1:-1])

    mark = yield from text.until([close], piece)
    if not mark and held and not text.is_cut:
        yield calls.arguments("\\n")
    return bool(mark)
