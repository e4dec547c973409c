"""What a chat template can express: `Abilities`.

A template does not say it. It is given small conversations with words that occur nowhere else, and what it
makes of them tells: a word that is missing was dropped, and braces of Python mean that it did not expect a
list there.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias
from weakref import WeakKeyDictionary

from ikq.errors import FormatError
from ikq.text.chat import ChatTemplate

__all__ = ["Abilities", "Empty", "Message", "abilities_of"]

Message: TypeAlias = dict[str, Any]

Empty: TypeAlias = Literal["text", "null", "absent"]
"""How a message that has calls and no content is given: an empty text, `null`, or without `content`."""


@dataclass(frozen=True, kw_only=True)
class Abilities:
    """What a template can express.

    Attributes:
        text: Content that is a text.
        parts: Content that is a list of parts.
        system: A system message; `None` if it has no place for one.
        developer: Messages of the role `developer`.
        tools: Descriptions of tools.
        calls: Calls of an assistant; their arguments as a mapping or as JSON text; `None` if it shows none.
        parallel: Several calls in one message.
        empty: How a message with calls and no content is given.
        results: Messages of the role `tool`.
        ids: Any name for a call; otherwise nine letters and digits.
        alternates: Messages of user and assistant have to alternate.
        needs_tools: A list of tools, even if there are none.
        described: Every parameter of a tool needs a description.
        thoughts: Under which name a message's reasoning is looked for.
        refusal: What the template itself says about calls that it does not take.
    """

    text: bool
    parts: bool
    system: bool
    developer: bool
    tools: bool
    calls: Literal["mapping", "text"] | None
    parallel: bool
    empty: Empty
    results: bool
    ids: bool
    alternates: bool
    needs_tools: bool
    described: bool
    thoughts: str = "reasoning_content"
    refusal: str = ""


_USER: Message = {"role": "user", "content": "Aardvark?"}
_ANSWER: Message = {"role": "assistant", "content": "Bittern."}
_WORD, _OTHER = "Capybara", "Dormouse"
_ID, _NEXT_ID = "abcdefgh1", "abcdefgh2"
# what is left of values that were printed and not written
_PRINTED = ("None", "{'", "[{'", "undefined")


def _tool(described: bool) -> Message:
    parameter = {"type": "string", "description": "Its name."} if described else {"type": "string"}
    parameters = {"type": "object", "properties": {_OTHER: parameter}, "required": [_OTHER]}
    function = {"name": _WORD, "description": "Finds one.", "parameters": parameters}
    return {"type": "function", "function": function}


def _call(arguments: object, id: str = _ID) -> Message:
    return {"id": id, "type": "function", "function": {"name": _WORD, "arguments": arguments}}


def _calls(calls: Sequence[Message], empty: Empty) -> list[Message]:
    """A conversation with calls and their results."""
    content: dict[Empty, Message] = {"text": {"content": ""}, "null": {"content": None}, "absent": {}}
    results = [
        {"role": "tool", "tool_call_id": call["id"], "name": _WORD, "content": f"Echidna {call['id']}."}
        for call in calls
    ]
    return [_USER, {"role": "assistant", **content[empty], "tool_calls": list(calls)}, *results]


class _Probe:
    """Tries conversations on a template."""

    def __init__(self, template: ChatTemplate) -> None:
        self._template = template
        self._no_tools: list[Message] | None = None
        self._with_text: Callable[[Message], Message] = dict
        self.refusal = ""

    def render(self, messages: Sequence[Message], tools: Sequence[Message] | None = None) -> str | None:
        """What the template makes of a conversation; `None` if it fails."""
        try:
            return self._template.render([self._with_text(m) for m in messages], tools or self._no_tools)
        except FormatError as e:
            self.refusal = str(e)
            return None

    def shows(
        self, words: Sequence[str], messages: Sequence[Message], tools: Sequence[Message] | None = None
    ) -> bool:
        """Whether all words are in it, and nothing that Python would print."""
        text = self.render(messages, tools)
        if text is None or any(word not in text for word in words):
            return False
        plain = self.render([_USER], tools) or ""
        return not any(text.count(sign) > plain.count(sign) for sign in _PRINTED)

    def abilities(self) -> Abilities:
        """All of them."""
        word = {"role": "user", "content": _WORD}
        parts = {
            "role": "user",
            "content": [{"type": "text", "text": _WORD}, {"type": "text", "text": _OTHER}],
        }
        if self.render([_USER]) is None:
            self._no_tools = []
            if self.render([_USER]) is None:
                self._no_tools = None
        takes_text = self.shows([_WORD], [word])
        takes_parts = self.shows([_WORD, _OTHER], [parts])
        if not takes_text and takes_parts:
            self._with_text = as_parts
        described = self.shows([_WORD], [_USER], [_tool(True)]) and not self.shows(
            [_WORD], [_USER], [_tool(False)]
        )
        tools = [_tool(True)]
        system = self.shows([_WORD], [{"role": "system", "content": _WORD}, _USER])
        developer = self.shows([_WORD], [{"role": "developer", "content": _WORD}, _USER])
        is_ignored = self._is_ignored("developer")
        calls, empty, ids, refusal = self._calls(tools)
        return Abilities(
            text=takes_text or not takes_parts,
            parts=takes_parts,
            system=system,
            developer=developer and not is_ignored,
            tools=self.shows([_WORD], [_USER], tools),
            calls=calls,
            parallel=calls is not None and self._takes_two(calls, empty, tools),
            empty=empty,
            results=self.shows(["Echidna"], [*_calls([_call(_arguments(calls))], empty)], tools),
            ids=ids,
            alternates=self.render([_USER, _ANSWER, _USER, _USER]) is None,
            needs_tools=self._no_tools is not None,
            described=described,
            thoughts=self._thoughts(calls, empty, tools),
            refusal=refusal,
        )

    def _is_ignored(self, role: str) -> bool:
        """Whether a message of a role looks like one of a role that no template knows."""
        texts = [self.render([{"role": r, "content": _WORD}, _USER]) for r in (role, "nobody")]
        return texts[0] is not None and texts[1] is not None and texts[0] == texts[1].replace("nobody", role)

    def _calls(self, tools: Sequence[Message]) -> tuple[Literal["mapping", "text"] | None, Empty, bool, str]:
        """Form of arguments, of no content, whether any id goes, and what the template says if none does."""
        empties: tuple[Empty, ...] = ("text", "null", "absent")
        forms: tuple[Literal["mapping", "text"], ...] = ("mapping", "text")
        self.refusal = ""
        before = self.render([_USER], tools) or ""
        for form, empty, n in itertools.product(forms, empties, (None, 2)):
            # some templates leave out what comes last
            conversation = _calls([_call(_arguments(form))], empty)[:n]
            text = self.render(conversation, tools)
            if text is not None and self.shows([_WORD], conversation, tools) and _has_call(text, before):
                longer = _calls([_call(_arguments(form), "call_" + "x" * 24)], empty)
                return form, empty, self.render(longer, tools) is not None, ""
        return None, "text", True, self.refusal

    def _thoughts(
        self, form: Literal["mapping", "text"] | None, empty: Empty, tools: Sequence[Message]
    ) -> str:
        """The name of reasoning; the usual one if none is shown."""
        for name in ("reasoning_content", "thinking", "reasoning"):
            conversation = _calls([_call(_arguments(form))], empty)
            conversation[1][name] = "Ibis."
            if self.shows(["Ibis."], conversation, tools):
                return name
        return "reasoning_content"

    def _takes_two(self, form: Literal["mapping", "text"], empty: Empty, tools: Sequence[Message]) -> bool:
        two = [_call(_arguments(form, "Gecko")), _call(_arguments(form, "Heron"), _NEXT_ID)]
        return self.shows(["Gecko", "Heron"], _calls(two, empty), tools)


def _has_call(text: str, before: str) -> bool:
    """Whether a call is shown, with its arguments as they are and not as a text within JSON."""
    return text.count(_WORD) > before.count(_WORD) and "Flamingo" in text and f'\\"{_OTHER}' not in text


def _arguments(form: str | None, value: str = "Flamingo") -> object:
    return f'{{"{_OTHER}": "{value}"}}' if form == "text" else {_OTHER: value}


def as_parts(message: Mapping[str, Any]) -> Message:
    """The same message with content that is a list of parts."""
    content = message.get("content")
    if not isinstance(content, str):
        return dict(message)
    return {**message, "content": [{"type": "text", "text": content}] if content else []}


_known: WeakKeyDictionary[ChatTemplate, Abilities] = WeakKeyDictionary()
_lock = threading.Lock()


def abilities_of(template: ChatTemplate) -> Abilities:
    """What a template can express; found out once, which takes some milliseconds."""
    with _lock:
        found = _known.get(template)
        if found is None:
            found = _known[template] = _Probe(template).abilities()
        return found
