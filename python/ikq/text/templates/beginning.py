"""Replies that go on with what has been said: `begun`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ikq.text.templates.abilities import Message

if TYPE_CHECKING:
    from ikq.text.tools import ReplyForm

__all__ = ["begun"]


def begun(message: Message, prompt: str, form: ReplyForm | None) -> str:
    """What a reply says already that goes on with a message."""
    content = message.get("content") or ""
    if not isinstance(content, str):
        content = "".join(str(part.get("text", "")) for part in content)
    names = ("reasoning_content", "thinking", "reasoning")
    thoughts = next((message[name] for name in names if message.get(name)), "")
    if form is not None and form.name == "harmony":
        start, thinks = "<|channel|>final<|message|>", "<|channel|>analysis<|message|>"
        over = "<|end|><|start|>assistant"
        return f"{thinks}{thoughts}{over}{start}{content}" if thoughts else f"{start}{content}"
    marks = None if form is None else form.reasoning
    if marks is None or prompt.rstrip().endswith(marks[1]):
        return content
    if prompt.rstrip().endswith(marks[0]):
        return f"{thoughts}\n{marks[1]}\n\n{content}"
    return f"{marks[0]}\n{thoughts}\n{marks[1]}\n\n{content}" if thoughts else content
