"""Calls whose arguments are an object with marks of its own around texts: reading them, and grammars.

Gemma 4 writes `call:f{x:<|"|>a "b"<|"|>,y:[1,true],z:{k:<|"|>c<|"|>}}`: JSON but for the marks of texts,
within which nothing is escaped, and for keys, which have no marks or the same.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from ikq.errors import GrammarError
from ikq.text.tools.delta import Delta
from ikq.text.tools.readers import Calls
from ikq.text.tools.scanning import Scanner, Steps
from ikq.text.tools.spelling import ObjectCalls
from ikq.text.tools.values import as_json

__all__ = ["argument_rules", "check_enforced", "read_object_call", "value_rules"]

_DEEPEST = 100


def read_object_call(text: Scanner, form: ObjectCalls, calls: Calls) -> Steps[bool]:
    """Reads a call behind its opening mark; if it is none, nothing is read."""
    start = text.keep()
    yield from text.space()
    parts: list[str] = []
    is_call = yield from text.take(form.before_name)
    end = form.call[1].strip()
    mark = (yield from text.until(["{", end], parts.append)) if is_call else ""
    name = "".join(parts).strip()
    if mark != "{" or not name:
        text.back_to(start)
        return False
    text.forget()
    yield calls.begin(name)
    yield calls.arguments("{")
    if (yield from _members(text, form.quote, calls, 0)):
        calls.end()
    yield from text.space()
    yield from text.take(end)
    return True


def _members(text: Scanner, quote: str, calls: Calls, depth: int) -> Steps[bool]:
    """Reads an object behind its `{`; whether it came to its end."""
    n = 0
    while True:
        yield from text.space()
        if (yield from text.take("}")):
            yield calls.arguments("}")
            return True
        if n and (yield from text.take(",")):
            yield from text.space()
        key = yield from _key(text, quote)
        if key is None:
            break
        yield calls.arguments((", " if n else "") + json.dumps(key, ensure_ascii=False) + ": ")
        n += 1
        if not (yield from _value(text, quote, calls, depth + 1)):
            break
    return (yield from _cut_short(text, calls, "}"))


def _key(text: Scanner, quote: str) -> Steps[str | None]:
    parts: list[str] = []
    if (yield from text.take(quote)):
        if not (yield from text.until([quote], parts.append)):
            return None
        yield from text.space()
        return "".join(parts) if (yield from text.take(":")) else None
    mark = yield from text.until([":", "}"], parts.append)
    return "".join(parts).strip().strip('"') if mark == ":" else None


def _value(text: Scanner, quote: str, calls: Calls, depth: int) -> Steps[bool]:
    """Reads a value, and gives it as JSON; whether it came to its end."""
    yield from text.space()
    if (yield from text.take(quote)):
        yield calls.arguments('"')

        def piece(new: str) -> Delta:
            return calls.arguments(json.dumps(new, ensure_ascii=False)[1:-1])

        mark = yield from text.until([quote], piece)
        if mark:
            yield calls.arguments('"')
            return True
        return (yield from _cut_short(text, calls, '"'))
    c = yield from text.peek()
    if c == "{" and depth < _DEEPEST:
        yield from text.take("{")
        yield calls.arguments("{")
        return (yield from _members(text, quote, calls, depth))
    if c == "[" and depth < _DEEPEST:
        yield from text.take("[")
        yield calls.arguments("[")
        return (yield from _elements(text, quote, calls, depth))
    if c == '"':
        # a text as JSON has it
        return (yield from text.json(calls.arguments))
    word = yield from text.json_text()
    if not word or (text.is_cut and (yield from text.at_end())):
        return False  # nothing, or not all of it
    yield calls.arguments(as_json(word))
    return True


def _elements(text: Scanner, quote: str, calls: Calls, depth: int) -> Steps[bool]:
    n = 0
    while True:
        yield from text.space()
        if (yield from text.take("]")):
            yield calls.arguments("]")
            return True
        if n:
            yield from text.take(",")
            yield from text.space()
            c = yield from text.peek()
            if not c:
                return (yield from _cut_short(text, calls, "]"))
            if c == "]":
                continue
            yield calls.arguments(", ")
        n += 1
        if not (yield from _value(text, quote, calls, depth + 1)):
            return (yield from _cut_short(text, calls, "]"))


def _cut_short(text: Scanner, calls: Calls, close: str) -> Steps[bool]:
    """What is open when the text ends, or goes on as nothing that is known."""
    if not text.is_cut:
        yield calls.arguments(close)
        return True
    return False


# Grammars


def value_rules(form: ObjectCalls, mark: Callable[[str], str], until: Callable[[str], str]) -> dict[str, str]:
    """Rules for values of any kind, in Lark's notation.

    Args:
        form: How they are written.
        mark: A text, its control tokens as such.
        until: Any text up to a mark, and the mark.
    """
    comma, member = mark(","), "object_key object_value"
    return {
        "object_text": f"{mark(form.quote)} {until(form.quote)}",
        "object_key": f'(/[^:{{}}\\[\\],<\\s"]+/ | object_text) {mark(":")}',
        "object_object": f"{mark('{')} ({member} ({comma} {member})*)? {mark('}')}",
        "object_list": f"{mark('[')} (object_value ({comma} object_value)*)? {mark(']')}",
        "object_scalar": r"/-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?|true|false|null/",
        "object_value": "object_text | object_object | object_list | object_scalar",
    }


_SCALARS = {
    "integer": r"/-?(0|[1-9][0-9]*)/",
    "number": r"/-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?/",
    "boolean": "/true|false/",
    "null": "/null/",
}
# what a strict schema may say, as it holds
_ENFORCED = {"type", "properties", "required", "items", "enum", "const", "additionalProperties"}
_COMMENTS = {"title", "description", "default", "examples"}


def check_enforced(schema: Mapping[str, Any], place: str = "") -> None:
    """Finds out whether arguments of this schema can be kept to it.

    Raises:
        GrammarError: they cannot; it names the keyword and its place.
    """
    for keyword in schema:
        if keyword not in _ENFORCED | _COMMENTS:
            raise GrammarError(
                f"the JSON schema has the keyword `{keyword}` at {place}/{keyword}, which cannot be enforced "
                "in arguments as this model writes them; leave it out, or say it in another way",
                keyword=keyword,
                place=f"{place}/{keyword}",
            )
    for name, inner in (schema.get("properties") or {}).items():
        if isinstance(inner, Mapping):
            check_enforced(inner, f"{place}/properties/{name}")
    if isinstance(schema.get("items"), Mapping):
        check_enforced(schema["items"], f"{place}/items")


def argument_rules(form: ObjectCalls, schema: Mapping[str, Any], mark: Callable[[str], str]) -> str:
    """An object of this schema, its keys in the order of the schema.

    Kinds, keys and lists of values hold; other keywords do not.

    Args:
        form: How it is written.
        schema: With `properties`.
        mark: A text, its control tokens as such.
    """
    required = schema.get("required") or ()
    written = [
        (f"{mark(key + ':')} {_value_rule(form, inner, mark)}", key in required)
        for key, inner in (schema.get("properties") or {}).items()
    ]
    comma = mark(",")
    members = ""
    for j in reversed(range(len(written))):
        # the first that is there, and what may follow
        more = [f"{comma} {rule}" if needed else f"({comma} {rule})?" for rule, needed in written[j + 1 :]]
        here = " ".join([written[j][0], *more])
        optional = f"({here} | {members})" if members else f"({here})?"
        members = here if written[j][1] else optional
    return f"{mark('{')} {members} {mark('}')}"


def _value_rule(form: ObjectCalls, schema: object, mark: Callable[[str], str]) -> str:
    if not isinstance(schema, Mapping):
        return "object_value"
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    if isinstance(values, list) and values and not any(isinstance(v, (dict, list)) for v in values):
        texts = [form.quote + v + form.quote if isinstance(v, str) else json.dumps(v) for v in values]
        return "(" + " | ".join(map(mark, texts)) + ")"
    kind = schema.get("type")
    if kind == "string":
        return "object_text"
    if kind == "object":
        return argument_rules(form, schema, mark) if schema.get("properties") else "object_object"
    if kind == "array":
        item = _value_rule(form, schema.get("items"), mark)
        return f"{mark('[')} ({item} ({mark(',')} {item})*)? {mark(']')}"
    return _SCALARS.get(kind, "object_value") if isinstance(kind, str) else "object_value"
