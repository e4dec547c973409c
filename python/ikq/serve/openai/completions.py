"""Replies as completions, whole or in chunks. A request may have several prompts, each with a reply."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from ikq.serve.events import Event, Finished, Piece, TokenLogprob
from ikq.serve.openai.logprobs import completion_logprobs
from ikq.serve.openai.usage import FINGERPRINT, timings_object, usage_object
from ikq.serve.service import Reply
from ikq.serve.streams import event

__all__ = ["completion", "completion_chunks", "merged"]


@dataclass
class _Choice:
    text: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    reason: str | None = None


async def merged(replies: Sequence[Reply]) -> AsyncGenerator[tuple[int, Event], None]:
    """Events of several replies as they come, with the reply's number. All are closed at the end.

    Raises:
        ServiceError: the first of them that raises.
    """
    waiting = {asyncio.ensure_future(anext(aiter(reply))): i for i, reply in enumerate(replies)}
    try:
        while waiting:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                i = waiting.pop(task)
                try:
                    found = task.result()
                except StopAsyncIteration:
                    continue
                waiting[asyncio.ensure_future(anext(aiter(replies[i])))] = i
                yield i, found
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        for reply in replies:
            await reply.aclose()


async def completion(
    replies: Sequence[Reply], n: int, *, echoes: Sequence[str], with_logprobs: bool
) -> dict[str, Any]:
    """Replies as a whole.

    Args:
        replies: See there; they are closed.
        n: How many texts each has.
        echoes: What comes before the texts of each.
        with_logprobs: Probabilities are wanted.

    Raises:
        ServiceError: one could not be completed.
    """
    choices = [_Choice([echo]) for echo in echoes for _ in range(n)]
    async with aclosing(merged(replies)) as events:
        async for i, found in events:
            choice = choices[i * n + found.index]
            if isinstance(found, Piece):
                choice.text.append(found.text)
                choice.logprobs += found.tokens
            else:
                choice.reason = found.reason
    first = replies[0]
    return {
        "id": f"cmpl-{first.id}",
        "object": "text_completion",
        "created": first.created,
        "model": first.model,
        "system_fingerprint": FINGERPRINT,
        "choices": [
            {
                "index": k,
                "text": "".join(choice.text),
                "logprobs": completion_logprobs(replies[k // n], choice.logprobs, 0)
                if with_logprobs
                else None,
                "finish_reason": choice.reason,
            }
            for k, choice in enumerate(choices)
        ],
        "usage": usage_object([reply.usage for reply in replies]),
        "timings": timings_object(first.usage),
    }


async def completion_chunks(
    replies: Sequence[Reply], n: int, *, echoes: Sequence[str], with_logprobs: bool, with_usage: bool
) -> AsyncGenerator[bytes, None]:
    """Replies as events; arguments as for `completion`, and as for `chat_chunks`.

    Raises:
        ServiceError: the rest cannot be given.
    """
    first = replies[0]
    common: dict[str, Any] = {
        "id": f"cmpl-{first.id}",
        "object": "text_completion",
        "created": first.created,
        "model": first.model,
        "system_fingerprint": FINGERPRINT,
    }

    def chunk(choices: list[dict[str, Any]], **more: object) -> bytes:
        usage = {"usage": None} if with_usage and "usage" not in more else {}
        return event({**common, "choices": choices, **usage, **more})

    lengths: dict[int, int] = {}
    events = merged(replies)
    try:
        async for i, found in events:
            k = i * n + found.index
            choice: dict[str, Any] = {"index": k, "text": "", "logprobs": None, "finish_reason": None}
            if k not in lengths:
                lengths[k] = len(echoes[i])
                choice["text"] = echoes[i]
            if isinstance(found, Finished):
                choice["finish_reason"] = found.reason
                yield chunk([choice])
                continue
            choice["text"] += found.text
            if with_logprobs:
                choice["logprobs"] = completion_logprobs(replies[i], found.tokens, lengths[k])
            lengths[k] += len(found.text)
            if choice["text"] or (with_logprobs and found.tokens):
                yield chunk([choice])
        if with_usage:
            yield chunk([], usage=usage_object([reply.usage for reply in replies]))
        yield event("[DONE]")
    finally:
        await events.aclose()
        for reply in replies:  # where nothing was taken
            await reply.aclose()
