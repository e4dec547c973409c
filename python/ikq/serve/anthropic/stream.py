"""Events of a reply as those of the Messages API: `MessageStream`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

from ikq.serve.blocks import Added, BlockCutter, BlockEvent, Closed, Opened
from ikq.serve.events import Event, Finished, PieceKind, Usage

__all__ = ["PING", "ApiEvent", "MessageStream", "usage_object"]

ApiEvent: TypeAlias = dict[str, Any]
"""An event's data; `type` is its name too."""

PING: ApiEvent = {"type": "ping"}

_SIGNATURE = "unsigned"

_DELTAS: dict[PieceKind, tuple[str, str]] = {
    "content": ("text_delta", "text"),
    "reasoning": ("thinking_delta", "thinking"),
    "tool_call": ("input_json_delta", "partial_json"),
}


class MessageStream:
    """Turns a reply into content blocks, in the order of the API.

    One block follows another: thoughts, text and tool calls are blocks of their own.
    """

    def __init__(
        self, id: str, model: str, *, n_prompt: int, max_tokens: int | None, shows_thinking: bool = True
    ) -> None:
        """Begins a message.

        Args:
            id: A name of the reply.
            model: Who answers.
            n_prompt: Tokens of the prompt.
            max_tokens: Most tokens that were asked for; `None`: no bound.
            shows_thinking: Thoughts are shown; otherwise their blocks are empty.
        """
        self._id = id if id.startswith("msg_") else f"msg_{id}"
        self._model = model
        self._n_prompt = n_prompt
        self._max_tokens = max_tokens
        self._shows_thinking = shows_thinking
        self._cutter = BlockCutter()
        self._index = -1
        self._stop_reason: str | None = None
        self._stop_sequence: str | None = None

    def start(self, usage: Usage) -> Iterator[ApiEvent]:
        """What comes before anything is known.

        Args:
            usage: Tokens so far.
        """
        yield {
            "type": "message_start",
            "message": {
                "id": self._id,
                "type": "message",
                "role": "assistant",
                "model": self._model,
                "content": [],
                "stop_reason": None,
                "stop_sequence": None,
                "usage": usage_object(usage, self._n_prompt),
            },
        }
        yield PING

    def feed(self, event: Event) -> Iterator[ApiEvent]:
        """What an event of the reply becomes."""
        if isinstance(event, Finished):
            self._stop_reason = _stop_reason(event, self._max_tokens)
            self._stop_sequence = event.stop_text
        changes = self._cutter.close() if isinstance(event, Finished) else self._cutter.feed(event)
        for change in changes:
            yield from self._event(change)

    def finish(self, usage: Usage) -> Iterator[ApiEvent]:
        """What comes when the reply is over.

        Args:
            usage: All its tokens.
        """
        yield {
            "type": "message_delta",
            "delta": {"stop_reason": self._stop_reason, "stop_sequence": self._stop_sequence},
            "usage": usage_object(usage, self._n_prompt),
        }
        yield {"type": "message_stop"}

    def _event(self, event: BlockEvent) -> Iterator[ApiEvent]:
        match event:
            case Opened():
                self._index += 1
                yield {"type": "content_block_start", "index": self._index, "content_block": _begun(event)}
            case Added():
                if event.text and (event.kind != "reasoning" or self._shows_thinking):
                    yield self._delta(_DELTAS[event.kind], event.text)
            case Closed():
                if event.kind == "reasoning":
                    yield self._delta(("signature_delta", "signature"), _SIGNATURE)
                yield {"type": "content_block_stop", "index": self._index}

    def _delta(self, names: tuple[str, str], text: str) -> ApiEvent:
        delta = {"type": names[0], names[1]: text}
        return {"type": "content_block_delta", "index": self._index, "delta": delta}


def _begun(event: Opened) -> dict[str, Any]:
    match event.kind:
        case "content":
            return {"type": "text", "text": ""}
        case "reasoning":
            return {"type": "thinking", "thinking": "", "signature": ""}
        case "tool_call":
            return {"type": "tool_use", "id": event.call_id, "name": event.name, "input": {}}


def usage_object(usage: Usage, n_prompt: int) -> dict[str, Any]:
    """Tokens as the API counts them: those of the prompt that were in the cache apart from the others."""
    return {
        "input_tokens": max(n_prompt - usage.n_cached, 0),
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.n_cached,
        "output_tokens": usage.n_completion,
        "output_tokens_details": {"thinking_tokens": usage.n_reasoning},
    }


def _stop_reason(finished: Finished, max_tokens: int | None) -> str:
    if finished.reason == "tool_calls":
        return "tool_use"
    if finished.reason == "length":
        is_bound = max_tokens is not None and finished.n_tokens >= max_tokens
        return "max_tokens" if is_bound else "model_context_window_exceeded"
    return "end_turn" if finished.stop_text is None else "stop_sequence"
