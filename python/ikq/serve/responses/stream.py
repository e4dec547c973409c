"""Events of a reply as those of the Responses API: `ResponseStream`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

from ikq.serve.blocks import Added, BlockCutter, BlockEvent, Closed, Opened
from ikq.serve.errors import ErrorKind, ServiceError
from ikq.serve.events import Event, Finished, PieceKind, TokenLogprob, Usage
from ikq.serve.openai.logprobs import finite
from ikq.serve.responses.response import Item, Response

__all__ = ["ApiEvent", "ResponseStream"]

ApiEvent: TypeAlias = dict[str, Any]
"""An event's data; `type` is its name too."""

_DELTAS: dict[PieceKind, str] = {
    "content": "response.output_text",
    "reasoning": "response.reasoning_text",
    "tool_call": "response.function_call_arguments",
}

_ID_PREFIXES: dict[PieceKind, str] = {"content": "msg", "reasoning": "rs", "tool_call": "fc"}

_CODES: dict[ErrorKind, str] = {
    "overloaded": "rate_limit_exceeded",
    "invalid_request": "invalid_prompt",
    "context_length": "invalid_prompt",
}


class ResponseStream:
    """Turns a reply into items of a response, and tells every step in the order of the API."""

    def __init__(self, response: Response, write_token: Callable[[int], bytes] | None = None) -> None:
        """Begins.

        Args:
            response: What is filled.
            write_token: The bytes of a token, where probabilities are wanted.
        """
        self._response = response
        self._write_token = write_token
        self._cutter = BlockCutter()
        self._n_events = 0
        self._finished: Finished | None = None
        self._text: list[str] = []
        self._logprobs: list[dict[str, Any]] = []

    def start(self) -> Iterator[ApiEvent]:
        """What comes before anything is known."""
        yield self._told("response.created", response=self._response.as_object())
        yield self._told("response.in_progress", response=self._response.as_object())

    def feed(self, event: Event) -> Iterator[ApiEvent]:
        """What an event of the reply becomes."""
        if isinstance(event, Finished):
            self._finished = event
        changes = self._cutter.close() if isinstance(event, Finished) else self._cutter.feed(event)
        for change in changes:
            yield from self._changed(change)

    def finish(self, usage: Usage) -> Iterator[ApiEvent]:
        """What comes when the reply is over.

        Args:
            usage: All its tokens.
        """
        if self._finished is not None and self._finished.reason == "length":
            self._response.end("incomplete", usage, incomplete_reason="max_output_tokens")
            yield self._told("response.incomplete", response=self._response.as_object())
        else:
            self._response.end("completed", usage)
            yield self._told("response.completed", response=self._response.as_object())

    def fail(self, error: ServiceError, usage: Usage) -> Iterator[ApiEvent]:
        """What comes when the reply breaks off.

        Args:
            error: Why.
            usage: Tokens so far.
        """
        code = _CODES.get(error.kind, "server_error")
        self._response.end("failed", usage, error={"code": code, "message": error.sentence})
        yield self._told("response.failed", response=self._response.as_object())

    def _changed(self, change: BlockEvent) -> Iterator[ApiEvent]:
        match change:
            case Opened():
                yield from self._opened(change)
            case Added():
                yield from self._added(change)
            case Closed():
                yield from self._closed(change)

    def _opened(self, change: Opened) -> Iterator[ApiEvent]:
        self._text, self._logprobs = [], []
        number = len(self._response.output)
        suffix = f"{self._response.id.removeprefix('resp_')}_{number}"
        item = _new_item(f"{_ID_PREFIXES[change.kind]}_{suffix}", change)
        self._response.output.append(item)
        yield self._told("response.output_item.added", output_index=number, item=dict(item))
        if change.kind != "tool_call":
            yield self._of_item("response.content_part.added", content_index=0, part=self._part(change.kind))

    def _added(self, change: Added) -> Iterator[ApiEvent]:
        self._text.append(change.text)
        logprobs = [self._logprob(token) for token in change.tokens]
        self._logprobs += logprobs
        extra: dict[str, Any] = {"content": {"content_index": 0, "logprobs": logprobs}}.get(
            change.kind, {"content_index": 0} if change.kind == "reasoning" else {}
        )
        if change.text or logprobs:
            yield self._of_item(f"{_DELTAS[change.kind]}.delta", delta=change.text, **extra)

    def _closed(self, change: Closed) -> Iterator[ApiEvent]:
        text, part = "".join(self._text), self._part(change.kind)
        item = self._response.output[-1]
        done = f"{_DELTAS[change.kind]}.done"
        if change.kind == "tool_call":
            item["arguments"] = text
            yield self._of_item(done, arguments=text, name=item["name"])
        else:
            item["content"] = [part]
            extra = {"logprobs": part["logprobs"]} if change.kind == "content" else {}
            yield self._of_item(done, content_index=0, text=text, **extra)
            yield self._of_item("response.content_part.done", content_index=0, part=part)
        is_cut = self._finished is not None and self._finished.reason == "length"
        item["status"] = "incomplete" if is_cut else "completed"
        yield self._told(
            "response.output_item.done", output_index=len(self._response.output) - 1, item=dict(item)
        )

    def _part(self, kind: PieceKind) -> dict[str, Any]:
        text = "".join(self._text)
        if kind == "reasoning":
            return {"type": "reasoning_text", "text": text}
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": self._logprobs}

    def _logprob(self, token: TokenLogprob) -> dict[str, Any]:
        return self._written(token.token, token.logprob) | {
            "top_logprobs": [self._written(other, logprob) for other, logprob in token.top]
        }

    def _written(self, token: int, logprob: float) -> dict[str, Any]:
        as_bytes = b"" if self._write_token is None else self._write_token(token)
        return {
            "token": as_bytes.decode(errors="replace"),
            "bytes": list(as_bytes),
            "logprob": finite(logprob),
        }

    def _of_item(self, event: str, **fields: object) -> ApiEvent:
        """An event of the last item."""
        number = len(self._response.output) - 1
        return self._told(event, item_id=self._response.output[-1]["id"], output_index=number, **fields)

    def _told(self, event: str, **fields: object) -> ApiEvent:
        told = {"type": event, "sequence_number": self._n_events, **fields}
        self._n_events += 1
        return told


def _new_item(id: str, change: Opened) -> Item:
    begun = {"id": id, "status": "in_progress"}
    match change.kind:
        case "content":
            return {"type": "message", **begun, "role": "assistant", "content": []}
        case "reasoning":
            return {"type": "reasoning", **begun, "summary": [], "content": []}
        case "tool_call":
            call = {"call_id": change.call_id, "name": change.name, "arguments": ""}
            return {"type": "function_call", **begun, **call}
