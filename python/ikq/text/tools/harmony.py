"""Replies in the harmony format: messages on channels.

<|channel|>analysis<|message|>Thoughts.<|end|><|start|>assistant<|channel|>final<|message|>The answer.
<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"x": 1}<|call|>
"""

from __future__ import annotations

import re

from ikq.text.tools.delta import Delta
from ikq.text.tools.readers import Calls, nothing
from ikq.text.tools.scanning import Scanner, Steps

__all__ = ["begun_channel", "read_harmony"]

_ENDS = ("<|end|>", "<|call|>", "<|return|>", "<|start|>")
_RECIPIENT = re.compile(r"\bto=([^\s<]+)")
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)")


def begun_channel(prompt: str) -> str | None:
    """The channel of a message that a prompt has begun; nothing: there is none, or its text has not begun."""
    heading = _begun_heading(prompt)
    channel = None if heading is None else _CHANNEL.search(heading)
    return None if channel is None else channel.group(1)


def _begun_heading(prompt: str) -> str | None:
    begun = prompt[prompt.rfind("<|start|>") :]
    if "<|message|>" not in begun or any(end in begun for end in _ENDS[:3]):
        return None
    return begun[: begun.index("<|message|>")]


def read_harmony(text: Scanner, calls: Calls, *, prompt: str = "") -> Steps[None]:
    """Reads a reply.

    Args:
        text: The reply, with the names of its control tokens.
        calls: Those of the reply.
        prompt: What came before; it may have begun a message.
    """
    begun = _begun_heading(prompt)
    if begun is not None:
        yield from _body(text, calls, begun)
    while not (yield from text.at_end()):
        parts: list[str] = []
        place = text.keep()
        mark = yield from text.until(["<|message|>", *_ENDS[:3]], parts.append)
        heading = "".join(parts)
        if mark == "<|message|>":
            text.forget()
            yield from _body(text, calls, heading)
        elif mark or "<|channel|>" in heading or (text.is_cut and _begins_heading(heading)):
            text.forget()
        else:  # no markup at all
            text.back_to(place)
            yield Delta("content", text.rest())


def _begins_heading(text: str) -> bool:
    """Whether a text is, or may become, what comes before a message."""
    marks = ("<|channel|>", "<|start|>", " to=")
    return text.startswith(marks[1:]) or any(mark.startswith(text) for mark in marks)


def _body(text: Scanner, calls: Calls, heading: str) -> Steps[None]:
    """Reads a message behind its heading, and what ends it."""
    recipient = _RECIPIENT.search(heading)
    channel = _CHANNEL.search(heading)
    name = recipient.group(1).removeprefix("functions.") if recipient else ""
    if name and name in calls.tools:
        yield calls.begin(name)
        yield from text.space()
        if (yield from text.json(calls.arguments)):
            calls.end()
        yield from text.until(_ENDS, nothing)
    elif recipient or (channel and channel.group(1) == "analysis"):
        yield from text.until(_ENDS, lambda piece: Delta("reasoning", piece))
    else:
        yield from text.until(_ENDS, lambda piece: Delta("content", piece))
