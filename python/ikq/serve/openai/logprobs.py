"""Probabilities of tokens in OpenAI's forms."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ikq.serve.events import TokenLogprob
from ikq.serve.service import Reply

__all__ = ["chat_logprobs", "completion_logprobs", "token_entry"]

# JSON has no infinity; the original says this of what is impossible.
_LEAST = -9999.0


def token_entry(reply: Reply, token: int, logprob: float) -> dict[str, Any]:
    """A token with its probability."""
    data = reply.token_bytes(token)
    return {
        "token": data.decode(errors="replace"),
        "bytes": list(data),
        "logprob": max(logprob, _LEAST),
    }


def chat_logprobs(reply: Reply, tokens: Iterable[TokenLogprob]) -> list[dict[str, Any]]:
    """Tokens of a chat's reply: `logprobs.content`."""
    return [
        token_entry(reply, t.token, t.logprob) | {"top_logprobs": [token_entry(reply, *top) for top in t.top]}
        for t in tokens
    ]


def completion_logprobs(reply: Reply, tokens: Iterable[TokenLogprob], offset: int) -> dict[str, Any]:
    """Tokens of a completion.

    Args:
        reply: What they belong to.
        tokens: See there.
        offset: Characters of the text before them.
    """
    found: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for t in tokens:
        text = reply.token_bytes(t.token).decode(errors="replace")
        top = {reply.token_bytes(i).decode(errors="replace"): max(p, _LEAST) for i, p in t.top}
        found["tokens"].append(text)
        found["token_logprobs"].append(max(t.logprob, _LEAST))
        found["top_logprobs"].append(top)
        found["text_offset"].append(offset)
        offset += len(text)
    return found
