"""Probabilities of tokens in OpenAI's forms."""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from typing import Any

from ikq.serve.events import TokenLogprob
from ikq.serve.service import Reply

__all__ = ["chat_logprobs", "completion_logprobs", "finite", "token_entry"]

# JSON has no infinity; the original says this of what is impossible.
_LEAST = -9999.0


def finite(logprob: float) -> float:
    """The log of a probability, as JSON can say it."""
    return max(logprob, _LEAST)


def token_entry(reply: Reply, token: int, logprob: float) -> dict[str, Any]:
    """A token with its probability."""
    data = reply.token_bytes(token)
    return {
        "token": data.decode(errors="replace"),
        "bytes": list(data),
        "logprob": finite(logprob),
    }


def chat_logprobs(reply: Reply, tokens: Iterable[TokenLogprob]) -> list[dict[str, Any]]:
    """Tokens of a chat's reply: `logprobs.content`."""
    return [
        token_entry(reply, t.token, t.logprob) | {"top_logprobs": [token_entry(reply, *top) for top in t.top]}
        for t in tokens
    ]


def completion_logprobs(reply: Reply, tokens: Iterable[TokenLogprob], offset: int) -> dict[str, Any]:
    """Tokens of a completion. As in the original, the chosen one is among the most probable ones in any case.

    Args:
        reply: What they belong to.
        tokens: See there.
        offset: Characters of the text before them.
    """
    found: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    # tokens that are parts of a letter are all where it begins
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for t in tokens:
        data = reply.token_bytes(t.token)
        text = _spelled(data)
        top = {_spelled(reply.token_bytes(i)): finite(p) for i, p in t.top}
        top.setdefault(text, finite(t.logprob))
        found["tokens"].append(text)
        found["token_logprobs"].append(finite(t.logprob))
        found["top_logprobs"].append(top)
        found["text_offset"].append(offset)
        offset += len(decoder.decode(data))
    return found


def _spelled(data: bytes) -> str:
    """A token's text; where it is none by itself its bytes, as the original writes them."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)
