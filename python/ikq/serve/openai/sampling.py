"""Fields of requests that say how tokens are chosen: `SamplingBody`, `sampling_of`."""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

from pydantic import Field

from ikq.sampling import SamplingOptions
from ikq.serve.errors import ServiceError
from ikq.serve.sampling import changed
from ikq.serve.validation import Part

__all__ = ["SamplingBody", "bias_of", "sampling_of"]

# Far beyond what any logit is.
_MOST_BIAS = 1_000_000


# Steps that llama-server had once, or has for text in the middle only.
_GONE_STEPS = frozenset(("tfs_z", "tail_free", "infill"))

# The whole vocabulary is searched for them.
_MOST_BREAKERS, _LONGEST_BREAKER = 64, 64

Breaker: TypeAlias = Annotated[str, Field(max_length=_LONGEST_BREAKER)]


class SamplingBody(Part):
    """Names are those of OpenAI's API and of llama-server; what is not given is as the server was started."""

    seed: int | None = None
    temperature: float | None = None
    dynatemp_range: float | None = None
    dynatemp_exponent: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    top_n_sigma: float | None = None
    xtc_probability: float | None = None
    xtc_threshold: float | None = None
    repeat_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repeat_last_n: int | None = None
    dry_multiplier: float | None = None
    dry_base: float | None = None
    dry_allowed_length: int | None = None
    dry_penalty_last_n: int | None = None
    dry_sequence_breakers: Annotated[list[Breaker], Field(max_length=_MOST_BREAKERS)] | None = None
    mirostat: int | None = None
    mirostat_tau: float | None = None
    mirostat_eta: float | None = None
    adaptive_target: float | None = None
    adaptive_decay: float | None = None
    min_keep: int | None = None
    samplers: list[str] | str | None = None
    # `bias_of` looks at what is inside
    logit_bias: dict[str, Any] | list[list[Any]] | None = None


def sampling_of(body: SamplingBody, base: SamplingOptions) -> SamplingOptions:
    """How tokens are chosen.

    Args:
        body: What the request says.
        base: What holds where it says nothing.

    Raises:
        ServiceError: a value is out of range.
    """
    given = {name: getattr(body, name) for name in SamplingBody.model_fields if name != "logit_bias"}
    if isinstance(body.samplers, list):
        given["samplers"] = _steps(body.samplers)
    if body.logit_bias is not None:
        given["logit_bias"] = {**base.logit_bias, **bias_of(body.logit_bias)}
    return changed(base, given)


def _steps(names: list[str]) -> list[str]:
    """Without what chat programs send along for other versions of llama-server, which ignores it as well."""
    other = {*_GONE_STEPS, "typical_p"} if "typ_p" in names else _GONE_STEPS
    return [name for name in names if name not in other]


def bias_of(given: dict[str, Any] | list[list[Any]]) -> dict[int, float]:
    """Biases by token: from OpenAI's mapping, or llama-server's pairs, where `false` bans a token.

    Raises:
        ServiceError: it is neither.
    """
    pairs: list[tuple[object, object]]
    if isinstance(given, dict):
        pairs = list(given.items())
    else:
        wrong = ServiceError("invalid_request", "logit_bias: expected [TOKEN, BIAS]", parameter="logit_bias")
        if any(len(pair) != 2 for pair in given):
            raise wrong
        pairs = [(pair[0], pair[1]) for pair in given]
    found: dict[int, float] = {}
    for token, bias in pairs:
        is_id = isinstance(token, int) or (isinstance(token, str) and token.isascii() and token.isdigit())
        if not is_id or isinstance(token, bool) or len(str(token)) > 12:
            sentence = f"logit_bias: {str(token)[:40]!r} is no token id"
            raise ServiceError("invalid_request", sentence, parameter="logit_bias")
        if bias is False:
            bias = float("-inf")
        if isinstance(bias, bool) or not isinstance(bias, (int, float)) or not _is_bias(bias):
            sentence = f"logit_bias of token {token}: expected a number up to {_MOST_BIAS}, or false"
            raise ServiceError("invalid_request", sentence, parameter="logit_bias")
        found[int(str(token))] = float(bias)
    return found


def _is_bias(bias: float) -> bool:
    return bias == float("-inf") or abs(bias) <= _MOST_BIAS
