"""Turns of content blocks as messages with roles: `to_messages`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from ikq.serve.anthropic.bodies import (
    Block,
    Document,
    Message,
    SearchResult,
    Text,
    Thinking,
    ToolReference,
    ToolResult,
    ToolUse,
)
from ikq.serve.errors import ServiceError

__all__ = ["to_messages"]


def to_messages(turns: Sequence[Message], system: str | Sequence[Text] | None = None) -> list[dict[str, Any]]:
    """A conversation in the form of OpenAI's chat completions, which is what chat templates take.

    Turns of one role that follow one another are one turn. What tools answered comes before what the user
    says in the same turn.

    Args:
        turns: As the body has them.
        system: What the model is told before the conversation.

    Raises:
        ServiceError: a block is where its role cannot have it.
    """
    messages: list[dict[str, Any]] = []
    if system:
        messages.append({"role": "system", "content": _content(_texts(system))})
    for at, (role, blocks) in _merged(turns):
        if role == "assistant":
            messages.append(_assistant(blocks, at))
        else:
            messages += _user(role, blocks, at)
    return messages


def _merged(turns: Sequence[Message]) -> list[tuple[int, tuple[str, list[Block]]]]:
    """Turns of one role as one; with the place of the first."""
    merged: list[tuple[int, tuple[str, list[Block]]]] = []
    for at, turn in enumerate(turns):
        blocks = [Text(type="text", text=turn.content)] if isinstance(turn.content, str) else turn.content
        if merged and merged[-1][1][0] == turn.role:
            merged[-1][1][1].extend(blocks)
        else:
            merged.append((at, (turn.role, list(blocks))))
    return merged


def _assistant(blocks: Iterable[Block], at: int) -> dict[str, Any]:
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[dict[str, Any]] = []
    for block in blocks:
        match block:
            case Text():
                texts.append(block.text)
            case Thinking():
                thoughts.append(block.thinking)
            case ToolUse():
                arguments = json.dumps(block.input, ensure_ascii=False)
                function = {"name": block.name, "arguments": arguments}
                calls.append({"id": block.id, "type": "function", "function": function})
            case ToolResult() | Document() | SearchResult():
                raise _misplaced(block, "assistant", at)
    # the reply's own blocks were one text before they were cut
    message: dict[str, Any] = {"role": "assistant", "content": "".join(texts)}
    if thoughts:
        message["reasoning_content"] = "".join(thoughts)
    if calls:
        message["tool_calls"] = calls
    return message


def _user(role: str, blocks: Iterable[Block], at: int) -> list[dict[str, Any]]:
    texts: list[str] = []
    results: list[dict[str, Any]] = []
    for block in blocks:
        match block:
            case ToolResult() if role == "user":
                results.append({"role": "tool", "tool_call_id": block.tool_use_id, "content": _result(block)})
            case Text() | Document() | SearchResult():
                texts.append(_text(block))
            case _:
                raise _misplaced(block, role, at)
    return results + ([{"role": role, "content": _content(texts)}] if texts or not results else [])


def _result(block: ToolResult) -> str | list[dict[str, str]]:
    content = block.content if isinstance(block.content, str) else _content([_text(b) for b in block.content])
    if not block.is_error:
        return content
    # the mark of an error is not part of the form that templates take
    texts = [content] if isinstance(content, str) else [part["text"] for part in content]
    return _content([f"Error: {texts[0]}", *texts[1:]])


def _text(block: Text | Document | SearchResult | ToolReference) -> str:
    match block:
        case Text():
            return block.text
        case ToolReference():
            return block.tool_name
        case SearchResult():
            return "\n".join([block.title, block.source, *(text.text for text in block.content)])
        case Document():
            source = block.source
            text = source.data if source.type == "text" else "\n".join(_texts(source.content))
            return "\n".join([*filter(None, (block.title, block.context)), text])


def _texts(content: str | Iterable[Text]) -> list[str]:
    return [content] if isinstance(content, str) else [text.text for text in content]


def _content(texts: list[str]) -> str | list[dict[str, str]]:
    """One text as it is, several as parts."""
    return "".join(texts) if len(texts) < 2 else [{"type": "text", "text": text} for text in texts]


def _misplaced(block: Block, role: str, at: int) -> ServiceError:
    place = f"messages.{at}.content"
    sentence = f"{place}: `{block.type}` blocks cannot be in a turn of the role `{role}`"
    return ServiceError("invalid_request", sentence, parameter=place)
