"""Messages of OpenAI's chat completions: what is wrong with them, whatever the template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ikq.serve.errors import ServiceError

__all__ = ["check_messages", "continues"]


def check_messages(messages: Sequence[Mapping[str, Any]]) -> None:
    """Refuses messages that say nothing.

    Raises:
        ServiceError: one has no role, or no content where only calls of tools could do without.
    """
    for i, message in enumerate(messages):
        place = f"messages.{i}"
        role = message.get("role")
        if not isinstance(role, str):
            raise _refused(f"{place}.role", "expected a text")
        if "content" in message:
            continue
        if role != "assistant":
            raise _refused(f"{place}.content", "field required")
        if not message.get("tool_calls") and not message.get("reasoning_content"):
            raise _refused(f"{place}.content", "field required in a message without tool_calls")


def continues(messages: Sequence[Mapping[str, Any]], said: bool | None, *, by_default: bool) -> bool:
    """Whether a reply goes on with the last message.

    Args:
        messages: They have been checked.
        said: `continue_final_message` of the request.
        by_default: A last message of the assistant is continued if the request does not say.

    Raises:
        ServiceError: the last message cannot be continued.
    """
    last = messages[-1] if messages else {}
    is_assistant = last.get("role") == "assistant"
    wanted = said if said is not None else by_default and is_assistant
    if not wanted:
        return False
    if not is_assistant:
        role = str(last.get("role"))[:40]
        sentence = f"the last message is of the role `{role}`, and only one of the assistant can be continued"
        raise _refused("continue_final_message", sentence)
    if last.get("tool_calls"):
        place = "continue_final_message" if said else f"messages.{len(messages) - 1}.tool_calls"
        raise _refused(place, "a message with calls of tools is not continued; their results come next")
    return True


def _refused(parameter: str, sentence: str) -> ServiceError:
    return ServiceError("invalid_request", f"{parameter}: {sentence}", parameter=parameter)
