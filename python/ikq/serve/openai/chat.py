"""Replies as chat completions, whole or in chunks."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any

from ikq.serve.events import Finished, Piece, TokenLogprob
from ikq.serve.openai.logprobs import chat_logprobs
from ikq.serve.openai.usage import FINGERPRINT, timings_object, usage_object
from ikq.serve.service import Reply
from ikq.serve.streams import event

__all__ = ["chat_chunks", "chat_completion"]


@dataclass
class _Choice:
    """A text as it comes together."""

    content: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    calls: list[dict[str, Any]] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    reason: str | None = None

    def add(self, piece: Piece) -> None:
        """Takes a piece."""
        self.logprobs += piece.tokens
        if piece.kind == "content":
            self.content.append(piece.text)
        elif piece.kind == "reasoning":
            self.reasoning.append(piece.text)
        else:
            assert piece.call is not None
            if piece.call == len(self.calls):
                function = {"name": piece.name, "arguments": ""}
                self.calls.append({"id": piece.call_id, "type": "function", "function": function})
            self.calls[piece.call]["function"]["arguments"] += piece.text

    def message(self) -> dict[str, Any]:
        """The message of the assistant."""
        content = "".join(self.content)
        message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
        message["annotations"] = []
        if self.reasoning:
            message["reasoning_content"] = "".join(self.reasoning)
        if self.calls:
            message["tool_calls"] = self.calls
            message["content"] = content or None
        return message


async def chat_completion(reply: Reply, n: int, *, with_logprobs: bool) -> dict[str, Any]:
    """A reply as a whole.

    Args:
        reply: See there.
        n: How many texts it has.
        with_logprobs: Probabilities are wanted.

    Raises:
        ServiceError: it could not be completed.
    """
    choices = [_Choice() for _ in range(n)]
    async for found in reply:
        if isinstance(found, Piece):
            choices[found.index].add(found)
        else:
            choices[found.index].reason = found.reason
    return {
        "id": f"chatcmpl-{reply.id}",
        "object": "chat.completion",
        "created": reply.created,
        "model": reply.model,
        "system_fingerprint": FINGERPRINT,
        "choices": [
            {
                "index": i,
                "message": choice.message(),
                "logprobs": {"content": chat_logprobs(reply, choice.logprobs), "refusal": None}
                if with_logprobs
                else None,
                "finish_reason": choice.reason,
            }
            for i, choice in enumerate(choices)
        ],
        "usage": usage_object([reply.usage]),
        "timings": timings_object(reply.usage),
    }


async def chat_chunks(
    reply: Reply, n: int, *, with_logprobs: bool, with_usage: bool, with_timings: bool = False
) -> AsyncGenerator[bytes, None]:
    """A reply as events.

    Args:
        reply: See there; it is closed.
        n: How many texts it has.
        with_logprobs: Probabilities are wanted.
        with_usage: A last chunk with the numbers of tokens is wanted.
        with_timings: Every chunk tells the speed so far.

    Raises:
        ServiceError: the rest cannot be given.
    """
    common: dict[str, Any] = {
        "id": f"chatcmpl-{reply.id}",
        "object": "chat.completion.chunk",
        "created": reply.created,
        "model": reply.model,
        "system_fingerprint": FINGERPRINT,
    }

    def chunk(choices: list[dict[str, Any]], **more: object) -> bytes:
        usage = {"usage": None} if with_usage and "usage" not in more else {}
        return event({**common, "choices": choices, **usage, **more})

    def choice(index: int, delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}

    n_left = n
    begun: set[int] = set()
    try:
        async for found in reply:
            if found.index not in begun:
                begun.add(found.index)
                # as in the original, nothing where no content comes first
                content = "" if isinstance(found, Finished) or found.kind == "content" else None
                yield chunk([choice(found.index, {"role": "assistant", "content": content})])
            if isinstance(found, Finished):
                n_left -= 1
                more = {} if n_left else {"timings": timings_object(reply.usage)}
                yield chunk([choice(found.index, {}, found.reason)], **more)
                continue
            part = choice(found.index, _delta(found))
            if with_logprobs:
                part["logprobs"] = {"content": chat_logprobs(reply, found.tokens), "refusal": None}
            if found.text or found.kind == "tool_call" or (with_logprobs and found.tokens):
                yield chunk([part], **({"timings": timings_object(reply.usage)} if with_timings else {}))
        if with_usage:
            yield chunk([], usage=usage_object([reply.usage]))
        yield event("[DONE]")
    finally:
        await reply.aclose()


def _delta(piece: Piece) -> dict[str, Any]:
    if piece.kind == "content":
        return {"content": piece.text}
    if piece.kind == "reasoning":
        return {"reasoning_content": piece.text}
    call: dict[str, Any] = {"index": piece.call}
    if piece.call_id is not None:
        call |= {"id": piece.call_id, "type": "function"}
    call["function"] = {"name": piece.name} if piece.name is not None else {}
    call["function"]["arguments"] = piece.text
    return {"tool_calls": [call]}
