"""Items of a conversation as messages with roles: `to_messages`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import TypeAdapter

from ikq.serve.responses.bodies import CallOutput, FunctionCall, Item, Message, Reasoning

__all__ = ["item_of", "output_messages", "to_messages"]

_ITEMS: TypeAdapter[list[Item]] = TypeAdapter(list[Item])


def to_messages(items: str | Iterable[Item]) -> list[dict[str, Any]]:
    """A conversation in the form of OpenAI's chat completions, which is what chat templates take.

    Thoughts, a message of the assistant and calls that follow one another are one message: they were one
    reply.

    Args:
        items: As the body has them, references to others replaced; a text is what the user says.
    """
    if isinstance(items, str):
        return [{"role": "user", "content": items}]
    messages: list[dict[str, Any]] = []
    for item in items:
        match item:
            case Message(role="assistant"):
                reply = _reply(messages, "reasoning_content")
                reply["content"] = _joined(item)
            case Message():
                messages.append({"role": item.role, "content": _content(item)})
            case Reasoning():
                _think(messages, item)
            case FunctionCall():
                calls = _reply(messages, "reasoning_content", "content", "tool_calls").setdefault(
                    "tool_calls", []
                )
                function = {"name": item.name, "arguments": item.arguments}
                calls.append({"id": item.call_id, "type": "function", "function": function})
            case CallOutput():
                output = item.output if isinstance(item.output, str) else "".join(p.text for p in item.output)
                messages.append({"role": "tool", "tool_call_id": item.call_id, "content": output})
    return messages


def output_messages(output: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The items that a response has put out, as messages.

    Args:
        output: As JSON.
    """
    return to_messages(_ITEMS.validate_python(list(output)))


def item_of(output: Mapping[str, Any]) -> Item:
    """An item that a response has put out, as one of a conversation.

    Args:
        output: As JSON.
    """
    (item,) = _ITEMS.validate_python([output])
    return item


def _reply(messages: list[dict[str, Any]], *before: str) -> dict[str, Any]:
    """The assistant's last message if it has nothing but what may come before, or else a new one."""
    if messages and messages[-1]["role"] == "assistant":
        reply = messages[-1]
        if all(name in before for name, value in reply.items() if name != "role" and value):
            return reply
    messages.append({"role": "assistant", "content": ""})
    return messages[-1]


def _think(messages: list[dict[str, Any]], item: Reasoning) -> None:
    thoughts = "".join(part.text for part in item.content or item.summary)
    if thoughts:
        reply = _reply(messages, "reasoning_content")
        reply["reasoning_content"] = reply.get("reasoning_content", "") + thoughts


def _texts(item: Message) -> list[str]:
    if isinstance(item.content, str):
        return [item.content]
    return [part.refusal if part.type == "refusal" else part.text for part in item.content]


def _joined(item: Message) -> str:
    return "".join(_texts(item))


def _content(item: Message) -> str | list[dict[str, str]]:
    """One text as it is, several as parts."""
    texts = _texts(item)
    return "".join(texts) if len(texts) < 2 else [{"type": "text", "text": text} for text in texts]
