"""Text of a reply to deltas, while it comes in: `ReplyParser`."""

from __future__ import annotations

import secrets
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ikq.text.reasoning import ReasoningSplitter
from ikq.text.tools.delta import Delta
from ikq.text.tools.functions import parameters_of
from ikq.text.tools.harmony import read_harmony
from ikq.text.tools.json_reply import read_json_reply
from ikq.text.tools.object_calls import read_object_call
from ikq.text.tools.readers import Calls, read_json_calls, read_named_call, read_tagged_call
from ikq.text.tools.scanning import Scanner, Steps
from ikq.text.tools.spelling import Harmony, JsonCalls, JsonReply, NamedCalls, ObjectCalls, Spelling

__all__ = ["ReplyParser", "new_call_id"]

# how an answer begins that is a call without a mark before it
_BARE = '{"name"'
_LETTERS = string.ascii_letters + string.digits


def new_call_id() -> str:
    """A name for a call: nine letters and digits, which every template takes."""
    return "".join(secrets.choice(_LETTERS) for _ in range(9))


class ReplyParser:
    """Tells content, reasoning and calls apart. One object per reply.

    What comes out, pieces of the same kind and call taken together, does not depend on how the text was cut.

    Examples:
        >>> from ikq.text.tools.spelling import JsonCalls
        >>> form = JsonCalls(call=("<tool_call>", "</tool_call>"))
        >>> tools = [{"type": "function", "function": {"name": "now"}}]
        >>> parser = ReplyParser(form, tools, new_id=lambda: "call1")
        >>> parser.feed('I look.<tool_call>{"name": "now", "argu')
        [Delta(kind='content', text='I look.', index=None, id=None, name=None)]
        >>> deltas = [*parser.feed('ments": {}}</tool_call>'), *parser.finish()]
        >>> deltas[0].name, "".join(delta.text for delta in deltas)
        ('now', '{}')
    """

    def __init__(
        self,
        spelling: Spelling,
        tools: Sequence[Mapping[str, Any]] = (),
        *,
        prompt: str = "",
        separates_reasoning: bool = True,
        dropped: Sequence[str] = (),
        new_id: Callable[[], str] = new_call_id,
    ) -> None:
        """Begins a reply.

        Args:
            spelling: How calls are written.
            tools: Those that may be called, in OpenAI's form; none: calls are content like any other.
            prompt: What the reply continues. Some templates open the reasoning there.
            separates_reasoning: Otherwise it is content, marks and all.
            dropped: Marks that are no part of the content.
            new_id: Makes names for calls that the model gives none.
        """
        self._spelling = spelling
        self._calls = Calls(parameters_of(tools), new_id)
        self._text = Scanner()
        self._is_harmony = isinstance(spelling, Harmony) and separates_reasoning
        self._splitter = None if self._is_harmony or not separates_reasoning else ReasoningSplitter(prompt)
        self._dropped = tuple(dropped)
        self._reader = (
            read_harmony(self._text, self._calls, prompt=prompt) if self._is_harmony else self._read()
        )
        # inside something that is a call, or may become one from this place on
        self._is_in_call = False
        self._maybe_call: int | None = None
        self._held = {"content": "", "reasoning": ""}
        # white space at these beginnings is none of the text
        self._trims = {"content": False, "reasoning": True}

    @property
    def n_calls(self) -> int:
        """How many calls have begun."""
        return self._calls.n

    @property
    def is_call_open(self) -> bool:
        """Whether the last call has not come to its end."""
        return self._calls.is_open

    def feed(self, text: str) -> list[Delta]:
        """Takes more text; returns what is certain by now."""
        if self._splitter is None:
            return self._content(text)
        return self._split(self._splitter.push(text))

    def finish(self, *, is_cut: bool = False) -> list[Delta]:
        """The end of the reply: what was held back.

        Args:
            is_cut: The model had not ended: by a limit, or at a text that was to stop it. Marks and parts of
                marks of a call that was begun are not content then, and its arguments stay as far as they
                came.
        """
        deltas = [] if self._splitter is None else self._split(self._splitter.flush(is_cut=is_cut))
        is_call = is_cut and (self._is_in_call or self._begins_bare_call())
        self._text.is_final, self._text.is_cut = True, is_cut
        rest = self._content("")
        if is_call:
            return [*deltas, *(d for d in rest if d.kind == "tool_call")]
        deltas += rest
        held = self._held["content"]
        if held and not self._calls.n:
            deltas.append(Delta("content", held))
        return deltas

    def _begins_bare_call(self) -> bool:
        """Whether the answer so far is, or may become, a call that no mark begins."""
        if self._maybe_call is None:
            return False
        begun = self._text.since(self._maybe_call).lstrip()
        return bool(begun) and (begun.startswith(_BARE) or _BARE.startswith(begun))

    def _split(self, pieces: Sequence[tuple[str, bool, bool]]) -> list[Delta]:
        deltas: list[Delta] = []
        for text, is_reasoning, is_mark in pieces:
            if is_mark:
                self._trims["content"] = True
            elif is_reasoning:
                deltas += self._trimmed(Delta("reasoning", text))
            else:
                deltas += self._content(text)
        return deltas

    def _content(self, text: str) -> list[Delta]:
        """What becomes of text that is no reasoning."""
        self._text.push(text)
        deltas: list[Delta] = []
        for delta in self._reader:
            if delta is None:
                break
            if delta.kind == "tool_call":
                if delta.name is not None:
                    self._held["content"] = ""
                    self._trims["content"] = True
                if delta.text or delta.name is not None:
                    deltas.append(delta)
            else:
                deltas += self._trimmed(delta)
        return deltas

    def _trimmed(self, delta: Delta) -> list[Delta]:
        """A piece without white space that separates it from what is not of its kind."""
        kind = delta.kind
        text = delta.text.lstrip() if self._trims[kind] else delta.text
        if not text:
            return []
        self._trims[kind] = False
        text = self._held[kind] + text
        shown = text
        if kind == "reasoning" or self._calls.tools:
            shown = text.rstrip()
        self._held[kind] = text[len(shown) :]
        return [Delta(kind, shown)] if shown else []

    def _read(self) -> Steps[None]:
        """Reads content and calls."""
        form, text = self._spelling, self._text
        is_whole = isinstance(form, JsonReply)
        if isinstance(form, JsonReply) and self._calls.tools:
            self._is_in_call = True
            yield from read_json_reply(text, form, self._calls)
            self._is_in_call = False
        triggers = [form.trigger] if form.trigger and self._calls.tools and not is_whole else []
        marks = [*triggers, *self._dropped]
        if isinstance(form, JsonCalls) and form.is_bare and self._calls.tools:
            place = self._maybe_call = text.keep()
            yield from text.space()
            if (yield from text.peek()) == "{":
                yield from read_json_calls(text, form, self._calls)
            self._maybe_call = None
            if self._calls.n:
                text.forget()
            else:
                text.back_to(place)
        while True:
            mark = ""
            if marks:
                mark = yield from text.until(marks, _content)
            else:
                while not (yield from text.at_end()):
                    yield _content(text.rest())
            if not mark:
                return
            if mark not in triggers:
                continue
            self._is_in_call = True
            is_call = yield from self._read_calls()
            self._is_in_call = False
            if not is_call:
                yield _content(mark)

    def _read_calls(self) -> Steps[bool]:
        """Reads what comes behind the trigger; whether it was a call."""
        form, text, calls = self._spelling, self._text, self._calls
        if isinstance(form, Harmony):
            return False
        if isinstance(form, JsonCalls):
            return (yield from read_json_calls(text, form, calls))
        if not form.section[0]:
            return (yield from self._read_call())
        n = calls.n
        while True:
            place = text.keep()
            yield from text.space()
            close = form.section[1].strip()
            if close and (yield from text.take(close)):
                text.forget()
                return True
            if not (yield from text.take(form.call[0].strip())) or not (yield from self._read_call()):
                text.back_to(place)
                return calls.n > n
            text.forget()

    def _read_call(self) -> Steps[bool]:
        form = self._spelling
        if isinstance(form, NamedCalls):
            return (yield from read_named_call(self._text, form, self._calls))
        if isinstance(form, ObjectCalls):
            return (yield from read_object_call(self._text, form, self._calls))
        assert not isinstance(form, (JsonCalls, Harmony))
        return (yield from read_tagged_call(self._text, form, self._calls))


def _content(text: str) -> Delta:
    return Delta("content", text)
