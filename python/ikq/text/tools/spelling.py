"""How calls of tools are written: one class for each way, from `JsonCalls` to `Harmony`.

All have marks around the calls together (`section`), around each (`call`), and between them. White space in
marks is what a model writes; a reader does without. Marks may be control tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

__all__ = ["Harmony", "JsonCalls", "JsonReply", "NamedCalls", "ObjectCalls", "Spelling", "TaggedCalls"]

Marks: TypeAlias = tuple[str, str]
"""What opens something, and what closes it."""

NO_MARKS: Marks = ("", "")


@dataclass(frozen=True, kw_only=True)
class _Calls:
    """What all have in common.

    Attributes:
        section: Around all calls of a reply.
        call: Around each of them.
        between: Between two.
    """

    section: Marks = NO_MARKS
    call: Marks = NO_MARKS
    between: str = "\n"

    @property
    def trigger(self) -> str:
        """The text that says that calls come."""
        return (self.section[0] or self.call[0]).strip()


@dataclass(frozen=True, kw_only=True)
class JsonCalls(_Calls):
    """A call is a JSON object: `{"name": "f", "arguments": {"x": 1}}`.

    Attributes:
        name: Key of the function's name; nothing: the name is itself the key, of its arguments.
        arguments: Key of the arguments.
        id: Key of the call's id.
        is_list: The calls are a JSON list.
        is_bare: The object may begin the answer without any mark.
    """

    name: str = "name"
    arguments: str = "arguments"
    id: str = ""
    is_list: bool = False
    is_bare: bool = False


@dataclass(frozen=True, kw_only=True)
class JsonReply(JsonCalls):
    """The reply is a JSON object of calls or of an answer: no model is taught it, a system message tells it.

    Attributes:
        calls: Key of the list of calls.
        answer: Key of the answer.
    """

    section: Marks = ('{"tool_calls": [', "]}")
    between: str = ", "
    calls: str = "tool_calls"
    answer: str = "response"


@dataclass(frozen=True, kw_only=True)
class NamedCalls(_Calls):
    """A name, then the arguments as JSON: `[TOOL_CALLS]f[ARGS]{"x": 1}`.

    Attributes:
        heading: What the text before the arguments is: a pattern with the groups `name` and maybe `id`.
        before_name: What the model writes before the name, and ...
        after_name: ... behind it; in both `#` stands for a number.
        arguments: What ends the heading.
    """

    heading: str = "(?P<name>.*)"
    before_name: str = ""
    after_name: str = ""
    arguments: str


@dataclass(frozen=True, kw_only=True)
class ObjectCalls(_Calls):
    """A name, then the arguments as an object whose texts have marks: `call:f{x:<|"|>a<|"|>,n:1}`.

    Attributes:
        before_name: What is before the name, within the call.
        quote: Around texts, in which nothing is escaped.
    """

    before_name: str
    quote: str


@dataclass(frozen=True, kw_only=True)
class TaggedCalls(_Calls):
    """A name, then each argument between tags: `<function=f><parameter=x>1</parameter></function>`.

    Attributes:
        name: Around the name, within the call; its end may be the next tag.
        end: What comes behind the last argument, within the call.
        key: Around the name of an argument.
        key_heading: What the text within `key` is: a pattern with the groups `key` and maybe `string`
            (`true` if the value is a text) or `type`.
        key_written: What a model writes there: `{key}`, and `{string}` or `{type}`.
        value: Around its value; `{key}` stands for its name.
        nested: Values that are objects or lists have tags of their own, with this before each.
        is_padded: A value has a line end of its own on both sides, which are no part of it.
    """

    name: Marks
    end: str = ""
    key: Marks
    key_heading: str = "(?P<key>.*)"
    key_written: str = "{key}"
    name_heading: str = "(?P<name>.*)"
    name_written: str = "{name}"
    value: Marks
    nested: str = ""
    is_padded: bool = False


@dataclass(frozen=True, kw_only=True)
class Harmony(_Calls):
    """Messages on channels, of which one is the answer, and a call is a message to a function."""


Spelling: TypeAlias = JsonCalls | NamedCalls | ObjectCalls | TaggedCalls | Harmony
