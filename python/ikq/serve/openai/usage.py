"""Tokens and times of replies, as OpenAI and llama-server tell them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ikq._ikq import __version__
from ikq.serve.events import Usage

__all__ = ["FINGERPRINT", "timings_object", "usage_object"]

FINGERPRINT = f"ikq-{__version__}"
"""What computes, which a seed's text depends on."""


def usage_object(usages: Sequence[Usage]) -> dict[str, Any]:
    """Tokens of one or several replies, in OpenAI's form."""
    n_prompt = sum(u.n_prompt for u in usages)
    n_completion = sum(u.n_completion for u in usages)
    return {
        "prompt_tokens": n_prompt,
        "completion_tokens": n_completion,
        "total_tokens": n_prompt + n_completion,
        "prompt_tokens_details": {"cached_tokens": sum(u.n_cached for u in usages)},
        "completion_tokens_details": {
            "reasoning_tokens": sum(u.n_reasoning for u in usages),
            "accepted_prediction_tokens": sum(u.n_accepted for u in usages),
            "rejected_prediction_tokens": sum(u.n_drafted - u.n_accepted for u in usages),
        },
    }


def timings_object(usage: Usage) -> dict[str, Any]:
    """Tokens and milliseconds of a reply, in llama-server's form."""
    n_read = usage.n_prompt - usage.n_cached
    # the first token comes with the prompt
    n_later = max(0, usage.n_completion - 1)
    read, later = usage.prompt_seconds * 1000, usage.completion_seconds * 1000
    found: dict[str, Any] = {
        "cache_n": usage.n_cached,
        "prompt_n": n_read,
        "prompt_ms": read,
        "prompt_per_token_ms": read / n_read if n_read else 0.0,
        "prompt_per_second": n_read / read * 1000 if read else 0.0,
        "predicted_n": usage.n_completion,
        "predicted_ms": later,
        "predicted_per_token_ms": later / n_later if n_later else 0.0,
        "predicted_per_second": n_later / later * 1000 if later else 0.0,
    }
    if usage.n_drafted:
        found |= {"draft_n": usage.n_drafted, "draft_n_accepted": usage.n_accepted}
    return found
