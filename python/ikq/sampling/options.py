"""`SamplingOptions`: the options of sampling, checked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypedDict

__all__ = ["DEFAULT_ORDER", "SamplingKeywords", "SamplingOptions", "parse_samplers"]

DEFAULT_ORDER: tuple[str, ...] = (
    "penalties",
    "dry",
    "top_n_sigma",
    "top_k",
    "typical_p",
    "top_p",
    "min_p",
    "xtc",
    "temperature",
    "adaptive_p",
)
"""The usual order. Steps that are switched off cost nothing."""

_ALIASES = {
    "penalty": "penalties",
    "typical": "typical_p",
    "typ_p": "typical_p",
    "nucleus": "top_p",
    "temp": "temperature",
    "top_nsigma": "top_n_sigma",
    "adaptive": "adaptive_p",
}

_LETTERS = {
    "e": "penalties",
    "d": "dry",
    "n": "top_n_sigma",
    "s": "top_n_sigma",
    "k": "top_k",
    "y": "typical_p",
    "p": "top_p",
    "m": "min_p",
    "x": "xtc",
    "t": "temperature",
    "w": "adaptive_p",
}

_SEED_AT_RANDOM = (-1, 0xFFFFFFFF)


class SamplingKeywords(TypedDict, total=False):
    """The fields of `SamplingOptions` as keywords of `Model.generate` and `Model.chat`, all optional."""

    seed: int | None
    temperature: float
    dynatemp_range: float
    dynatemp_exponent: float
    top_k: int
    top_p: float
    min_p: float
    typical_p: float
    top_n_sigma: float
    xtc_probability: float
    xtc_threshold: float
    repeat_penalty: float
    presence_penalty: float
    frequency_penalty: float
    repeat_last_n: int
    dry_multiplier: float
    dry_base: float
    dry_allowed_length: int
    dry_penalty_last_n: int
    dry_sequence_breakers: Sequence[str]
    mirostat: int
    mirostat_tau: float
    mirostat_eta: float
    adaptive_target: float
    adaptive_decay: float
    adaptive_update_with_current: bool
    logit_bias: Mapping[int, float]
    samplers: str | Sequence[str]
    min_keep: int


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """How tokens are chosen; defaults are those that users of llama.cpp know.

    Attributes:
        seed: Start of the random numbers; `None` or -1: another one each time.
        temperature: Logits are divided by it; 0 takes the most probable token after bias, penalties and DRY.
        dynatemp_range: The temperature varies by up to this with the entropy of the candidates; 0: off.
        dynatemp_exponent: How the entropy, as a share of the largest possible, maps to that range.
        top_k: Keep the k most probable; 0: off.
        top_p: Keep the fewest that have this probability together; 1: off.
        min_p: Drop those less probable than this share of the most probable one; 0: off.
        typical_p: Keep those whose surprise is closest to the entropy, up to this probability; 1: off.
        top_n_sigma: Drop logits more than n standard deviations below the largest; 0: off.
        xtc_probability: How often XTC removes top choices; 0: off.
        xtc_threshold: XTC leaves only the least probable of those at least this probable; over 0.5: off.
        repeat_penalty: Divides positive and multiplies negative logits of repeated tokens; 1: off.
        presence_penalty: Taken from the logits of tokens that occurred; 0: off.
        frequency_penalty: The same once per occurrence; 0: off.
        repeat_last_n: Tokens that these three look back at; 0: off, -1: the whole context.
        dry_multiplier: Strength of DRY's penalty on continued repetitions; 0: off.
        dry_base: The penalty grows by this factor per repeated token.
        dry_allowed_length: Repetitions shorter than this are free.
        dry_penalty_last_n: Tokens that DRY looks back at; 0: off, -1: the whole context.
        dry_sequence_breakers: Texts that repetitions are not followed across.
        mirostat: 2: Mirostat 2.0 instead of the steps that narrow down; 0: off.
        mirostat_tau: Its target surprise in bits.
        mirostat_eta: Its learning rate.
        adaptive_target: Prefer tokens near this probability; negative: off.
        adaptive_decay: How long adaptive-p remembers what it chose, below 1.
        adaptive_update_with_current: It remembers probabilities among candidates instead of among all tokens.
        logit_bias: Added to logits, by token; `-inf` bans a token.
        samplers: Order of the steps: names, names joined by `;`, or letters (`edskypmxtw`).
        min_keep: No step leaves fewer candidates than this.

    Raises:
        ValueError: a value is out of range; the message has the option and the value.
    """

    seed: int | None = None
    temperature: float = 0.8
    dynatemp_range: float = 0.0
    dynatemp_exponent: float = 1.0
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    typical_p: float = 1.0
    top_n_sigma: float = 0.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    repeat_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repeat_last_n: int = 64
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = -1
    dry_sequence_breakers: Sequence[str] = ("\n", ":", '"', "*")
    mirostat: int = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    adaptive_target: float = -1.0
    adaptive_decay: float = 0.9
    adaptive_update_with_current: bool = False
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    samplers: str | Sequence[str] = DEFAULT_ORDER
    min_keep: int = 1

    def __post_init__(self) -> None:
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise ValueError(f"{name}={value!r}: expected a number")
            if not low <= value <= high:  # NaN is in no range
                raise ValueError(f"{name}={value}: expected {_range_text(low, high)}")
        for name in _INTEGERS:
            value = getattr(self, name)
            if not isinstance(value, int):
                raise ValueError(f"{name}={value!r}: expected an integer")
        if self.seed is not None and (not isinstance(self.seed, int) or not -1 <= self.seed < 2**64):
            raise ValueError(f"seed={self.seed!r}: expected an integer from 0 to 2**64 - 1, or -1")
        if self.seed in _SEED_AT_RANDOM:
            object.__setattr__(self, "seed", None)
        if self.mirostat not in (0, 2):
            raise ValueError(f"mirostat={self.mirostat}: expected 0 (off) or 2; version 1 is not offered")
        if isinstance(self.dry_sequence_breakers, str):
            raise ValueError("dry_sequence_breakers is one str; expected a sequence of them")
        for token, bias in self.logit_bias.items():
            if not isinstance(token, int) or token < 0:
                raise ValueError(f"logit_bias: {token!r} is no token id")
            if math.isnan(bias) or bias == math.inf:
                raise ValueError(f"logit_bias of token {token} is {bias}: expected a number or -inf")
        object.__setattr__(self, "samplers", parse_samplers(self.samplers))


_INFINITE = math.inf

_RANGES: dict[str, tuple[float, float]] = {
    "temperature": (0, 1e6),
    "dynatemp_range": (0, 1e6),
    "dynatemp_exponent": (0, 1e6),
    "top_k": (0, _INFINITE),
    "top_p": (0, 1),
    "min_p": (0, 1),
    "typical_p": (0, 1),
    "top_n_sigma": (-1, 1e6),
    "xtc_probability": (0, 1),
    "xtc_threshold": (0, 1),
    "repeat_penalty": (1e-6, 1e6),
    "presence_penalty": (-1e6, 1e6),
    "frequency_penalty": (-1e6, 1e6),
    "repeat_last_n": (-1, _INFINITE),
    "dry_multiplier": (0, 1e6),
    "dry_base": (1, 1e6),
    "dry_allowed_length": (1, _INFINITE),
    "dry_penalty_last_n": (-1, _INFINITE),
    "mirostat_tau": (0, 1e6),
    "mirostat_eta": (0, 1e6),
    "adaptive_target": (-_INFINITE, 1),
    "adaptive_decay": (0, 0.99),
    "min_keep": (0, _INFINITE),
}

_INTEGERS = ("top_k", "repeat_last_n", "dry_allowed_length", "dry_penalty_last_n", "mirostat", "min_keep")


def _range_text(low: float, high: float) -> str:
    if high == _INFINITE:
        return f"at least {low:g}"
    if low == -_INFINITE:
        return f"at most {high:g}"
    return f"{low:g} to {high:g}"


def parse_samplers(given: str | Sequence[str]) -> tuple[str, ...]:
    """Names of steps from names (`"top_k;top_p;temperature"`, with `-` or `_`) or letters (`"kpt"`).

    Raises:
        ValueError: a name or letter that is none, or one given twice.
    """
    if isinstance(given, str):
        words = [w.strip() for w in given.replace(",", ";").split(";") if w.strip()]
        if len(words) == 1 and _name(words[0]) is None:
            unknown = [c for c in words[0] if c not in _LETTERS]
            if unknown:
                raise ValueError(
                    f"samplers={given!r}: neither a name nor letters; names are {', '.join(DEFAULT_ORDER)}"
                )
            words = [_LETTERS[c] for c in words[0]]
    else:
        words = list(given)
    names: list[str] = []
    for word in words:
        name = _name(word)
        if name is None:
            raise ValueError(f"samplers: no step is called {word!r}; there are {', '.join(DEFAULT_ORDER)}")
        if name in names:
            raise ValueError(f"samplers: {name} is given twice")
        names.append(name)
    return tuple(names)


def _name(word: str) -> str | None:
    plain = word.lower().replace("-", "_")
    plain = _ALIASES.get(plain, plain)
    return plain if plain in DEFAULT_ORDER else None
