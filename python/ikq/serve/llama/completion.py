"""Replies as llama-server's `/completion` gives them, whole or in pieces."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from ikq.serve.events import Event, Finished, TokenLogprob
from ikq.serve.llama.bodies import LlamaBody
from ikq.serve.openai.completions import merged
from ikq.serve.openai.logprobs import token_entry
from ikq.serve.openai.usage import timings_object
from ikq.serve.service import Reply
from ikq.serve.streams import event

__all__ = ["completion_pieces", "completions"]

_MISSING = object()


async def completions(
    replies: Sequence[Reply], body: LlamaBody, chosen: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Replies as a whole, one for each prompt. They are closed.

    Args:
        replies: See there.
        body: What was asked for.
        chosen: How tokens are chosen, as `sampling_object` tells it.

    Raises:
        ServiceError: one could not be completed.
    """
    found = [_Made() for _ in replies]
    async with aclosing(merged(replies)) as events:
        async for i, event_ in events:
            found[i].add(event_)
    return [
        _whole(i, reply, body, chosen, made)
        for i, (reply, made) in enumerate(zip(replies, found, strict=True))
    ]


async def completion_pieces(
    replies: Sequence[Reply], body: LlamaBody, chosen: Mapping[str, Any]
) -> AsyncGenerator[bytes, None]:
    """Replies as events; the last one of each has what the whole has, but for the text. They are closed.

    Args:
        replies: See there.
        body: What was asked for.
        chosen: As for `completions`.

    Raises:
        ServiceError: the rest cannot be given.
    """
    found = [_Made() for _ in replies]
    events = merged(replies)
    try:
        async for i, event_ in events:
            reply, made = replies[i], found[i]
            if isinstance(event_, Finished):
                yield event(_whole(i, reply, body, chosen, _Made(end=event_)))
                continue
            made.add(event_)
            part: dict[str, Any] = {
                "index": i,
                "content": event_.text,
                "tokens": list(event_.ids),
                "stop": False,
                "id_slot": -1,
                "tokens_predicted": len(made.ids),
                "tokens_evaluated": len(reply.prompt),
            }
            if body.n_probs:
                part["completion_probabilities"] = _probabilities(reply, event_.tokens)
            if body.timings_per_token:
                part["timings"] = timings_object(reply.usage)
            yield event(part)
    finally:
        await events.aclose()
        for reply in replies:  # where nothing was taken
            await reply.aclose()


@dataclass
class _Made:
    """A text as it comes together."""

    text: list[str] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    end: Finished | None = None

    def add(self, found: Event) -> None:
        """Takes what comes."""
        if isinstance(found, Finished):
            self.end = found
            return
        self.text.append(found.text)
        self.ids += found.ids
        self.logprobs += found.tokens


def _whole(
    index: int, reply: Reply, body: LlamaBody, chosen: Mapping[str, Any], made: _Made
) -> dict[str, Any]:
    asked = body.model_dump(exclude_none=True, exclude={"prompt"})
    end = made.end
    assert end is not None
    text = "".join(made.text)
    stop_type = "limit" if end.reason == "length" else "word" if end.stop_text is not None else "eos"
    found: dict[str, Any] = {
        "index": index,
        "content": text,
        "tokens": made.ids if body.return_tokens else [],
        "id_slot": -1 if body.id_slot is None else body.id_slot,
        "stop": True,
        "model": reply.model,
        "tokens_predicted": end.n_tokens,
        "tokens_evaluated": len(reply.prompt),
        "generation_settings": {**asked, **chosen, "seed": end.seed},
        "prompt": body.prompt,
        "has_new_line": "\n" in text,
        "truncated": False,
        "stop_type": stop_type,
        "stopping_word": end.stop_text or "",
        "tokens_cached": len(reply.prompt) + end.n_tokens,
        "timings": timings_object(reply.usage),
    }
    if body.n_probs:
        found["completion_probabilities"] = _probabilities(reply, made.logprobs)
    return found if body.response_fields is None else _some_of(found, body.response_fields)


def _some_of(found: dict[str, Any], paths: Sequence[str]) -> dict[str, Any]:
    """Only these fields; `generation_settings/seed` is a field of a field, under this name."""
    some: dict[str, Any] = {}
    for path in paths:
        value: Any = found
        for name in path.split("/"):
            value = value.get(name, _MISSING) if isinstance(value, dict) else _MISSING
        if value is not _MISSING:
            some[path] = value
    return some


def _probabilities(reply: Reply, tokens: list[TokenLogprob] | tuple[TokenLogprob, ...]) -> list[Any]:
    return [
        {
            "id": t.token,
            **token_entry(reply, t.token, t.logprob),
            "top_logprobs": [{"id": i, **token_entry(reply, i, p)} for i, p in t.top],
        }
        for t in tokens
    ]
