"""Events of the Messages API as one message: `collect`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from ikq.serve.anthropic.stream import ApiEvent

__all__ = ["collect"]


def collect(events: Iterable[ApiEvent]) -> dict[str, Any]:
    """The message that a client has when it put all events of a stream together.

    Args:
        events: From `message_start` to `message_stop`.
    """
    message: dict[str, Any] = {}
    parts: list[str] = []
    for event in events:
        match event["type"]:
            case "message_start":
                message = {**event["message"], "content": []}
            case "content_block_start":
                message["content"].append({**event["content_block"]})
                parts = []
            case "content_block_delta":
                delta = event["delta"]
                if delta["type"] == "signature_delta":
                    message["content"][-1]["signature"] = delta["signature"]
                else:
                    parts.append(
                        delta["partial_json" if "partial_json" in delta else delta["type"].split("_")[0]]
                    )
            case "content_block_stop":
                _put(message["content"][-1], "".join(parts))
            case "message_delta":
                message |= event["delta"]
                message["usage"] = event["usage"]
    return message


def _put(block: dict[str, Any], text: str) -> None:
    if block["type"] != "tool_use":
        block[block["type"]] = text
        return
    try:
        arguments = json.loads(text or "{}")
    except ValueError:
        # the reply was cut off inside the call
        arguments = {}
    block["input"] = arguments if isinstance(arguments, dict) else {}
