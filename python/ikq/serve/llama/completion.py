"""Replies as llama-server's `/completion` gives them, whole or in pieces."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from ikq.serve.errors import ServiceError
from ikq.serve.events import Finished, Piece, TokenLogprob
from ikq.serve.llama.bodies import LlamaBody
from ikq.serve.openai.logprobs import token_entry
from ikq.serve.openai.usage import timings_object
from ikq.serve.openai_errors import error_object
from ikq.serve.service import Reply
from ikq.serve.streams import event

__all__ = ["completion", "completion_pieces"]


async def completion(reply: Reply, body: LlamaBody) -> dict[str, Any]:
    """A reply as a whole. It is closed.

    Raises:
        ServiceError: it could not be completed.
    """
    text: list[str] = []
    ids: list[int] = []
    logprobs: list[TokenLogprob] = []
    end: Finished | None = None
    try:
        async for found in reply:
            if isinstance(found, Piece):
                text.append(found.text)
                ids += found.ids
                logprobs += found.tokens
            else:
                end = found
    finally:
        await reply.aclose()
    assert end is not None
    return _whole(reply, body, "".join(text), ids, logprobs, end)


async def completion_pieces(reply: Reply, body: LlamaBody) -> AsyncGenerator[bytes, None]:
    """A reply as events; the last one has what the whole has, but for the text. It is closed."""
    has_begun = False
    n = 0
    try:
        async for found in reply:
            if isinstance(found, Finished):
                yield event(_whole(reply, body, "", [], [], found))
                continue
            has_begun = True
            n += len(found.ids)
            part: dict[str, Any] = {
                "index": 0,
                "content": found.text,
                "tokens": list(found.ids),
                "stop": False,
                "id_slot": -1,
                "tokens_predicted": n,
                "tokens_evaluated": len(reply.prompt),
            }
            if body.n_probs:
                part["completion_probabilities"] = _probabilities(reply, found.tokens)
            yield event(part)
    except ServiceError as error:
        if not has_begun:
            raise
        yield event(error_object(error))
    finally:
        await reply.aclose()


def _whole(
    reply: Reply,
    body: LlamaBody,
    text: str,
    ids: list[int],
    logprobs: list[TokenLogprob],
    end: Finished,
) -> dict[str, Any]:
    stop_type = "limit" if end.reason == "length" else "word" if end.stop_text is not None else "eos"
    found: dict[str, Any] = {
        "index": 0,
        "content": text,
        "tokens": ids if body.return_tokens else [],
        "id_slot": -1 if body.id_slot is None else body.id_slot,
        "stop": True,
        "model": reply.model,
        "tokens_predicted": end.n_tokens,
        "tokens_evaluated": len(reply.prompt),
        "generation_settings": {**body.model_dump(exclude_none=True, exclude={"prompt"}), "seed": end.seed},
        "prompt": body.prompt,
        "has_new_line": "\n" in text,
        "truncated": False,
        "stop_type": stop_type,
        "stopping_word": end.stop_text or "",
        "tokens_cached": len(reply.prompt) + end.n_tokens,
        "timings": timings_object(reply.usage),
    }
    if body.n_probs:
        found["completion_probabilities"] = _probabilities(reply, logprobs)
    return found


def _probabilities(reply: Reply, tokens: list[TokenLogprob] | tuple[TokenLogprob, ...]) -> list[Any]:
    return [
        {
            "id": t.token,
            **token_entry(reply, t.token, t.logprob),
            "top_logprobs": [{"id": i, **token_entry(reply, i, p)} for i, p in t.top],
        }
        for t in tokens
    ]
