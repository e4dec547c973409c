"""`Sampler`: the chain of steps from logits to a token."""

from __future__ import annotations

import math
import secrets
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ikq.errors import FormatError
from ikq.sampling import dry, penalties, temperature, truncation
from ikq.sampling.candidates import Candidates, Floats, Indices, Scores, log_probability
from ikq.sampling.feedback import AdaptiveP, Mirostat2
from ikq.sampling.history import History
from ikq.sampling.options import SamplingOptions

if TYPE_CHECKING:
    from ikq.grammar import Constraint

__all__ = ["Sampler"]

_PER_TOKEN = ("penalties", "dry")


class Sampler:
    """Chooses tokens. One object per text: it remembers the tokens so far and its random numbers.

    The random numbers are those of the Philox generator, whose stream numpy guarantees: logits and seed
    decide the text, whatever the version.

    Attributes:
        options: How tokens are chosen.
        seed: The seed in use, also where none was given.
        n_best: How many of the largest logits `sample` needs; `None`: all logits. That does not change.

    Examples:
        >>> import numpy as np
        >>> from ikq.sampling import Sampler, SamplingOptions
        >>> sampler = Sampler(SamplingOptions(temperature=0))
        >>> sampler.sample(np.array([0.5, 2.0, 1.0], np.float32))
        1
    """

    def __init__(
        self,
        options: SamplingOptions | None = None,
        *,
        vocabulary: dry.Vocabulary | None = None,
        constraint: Constraint | None = None,
    ) -> None:
        """Prepares the chain.

        Args:
            options: How tokens are chosen.
            vocabulary: The tokenizer, which DRY needs to find its sequence breakers; without it DRY has none.
            constraint: Restricts the text. Tokens that it does not allow are not among the candidates of any
                step; `accept` passes it the tokens.
        """
        self._constraint = constraint
        self.options = options or SamplingOptions()
        o = self.options
        self.seed: int = secrets.randbits(32) if o.seed is None else o.seed
        uses_dry = o.dry_multiplier > 0 and o.dry_penalty_last_n != 0 and "dry" in o.samplers
        self._breakers: dry.Breakers = {}
        if uses_dry and vocabulary is not None:
            self._breakers = dry.breakers(o.dry_sequence_breakers, vocabulary)
        self._uses_dry = uses_dry
        self._uses_penalties = (
            "penalties" in o.samplers
            and o.repeat_last_n != 0
            and (o.repeat_penalty, o.presence_penalty, o.frequency_penalty) != (1, 0, 0)
        )
        self._steps = [step for step in o.samplers if step not in _PER_TOKEN]
        self._min_keep = max(1, o.min_keep)
        self.n_best: int | None = self._enough()
        self.reset()

    def reset(self, tokens: ArrayLike = ()) -> None:
        """Forgets everything and restarts the random numbers; `tokens` count as generated before."""
        self._random = np.random.Philox(self.seed)
        self._history = History(tokens)
        self._mirostat = Mirostat2(self.options.mirostat_tau, self.options.mirostat_eta)
        self._adaptive = AdaptiveP(self.options.adaptive_target, self.options.adaptive_decay)

    def accept(self, token: int) -> None:
        """Tells what the next token is; penalties see it from now on.

        Raises:
            GrammarError: the constraint does not allow it.
        """
        self._history.append(token)
        if self._constraint is not None:
            self._constraint.accept(token)

    def sample(self, logits: Scores) -> int:
        """Chooses a token; does not `accept` it.

        Args:
            logits: float32 `(n_vocab,)`; not changed. Or only the largest ones, sorted, at least `n_best` of
                them (or all that there are): the token is the same.

        Raises:
            FormatError: a logit is NaN, or no token is possible.
            GrammarError: the constraint is too complex to go on with.
            ValueError: only the largest logits are given, but all are needed.
        """
        o = self.options
        if not isinstance(logits, Candidates):
            changed = Candidates.all(self._per_token(logits))
        elif self.n_best is None:
            raise ValueError("these options need the logits of all tokens, not only the largest ones")
        else:
            changed = logits
            _check_largest(changed.logits[0])
        if o.temperature == 0:
            return int(changed.ids[changed.logits.argmax()])
        c = self._narrowed(changed)
        p = c.probabilities()
        place = self._draw(p)
        token = int(c.ids[place])
        if o.mirostat == 2:
            self._mirostat.learn(float(p[place]))
        elif self._is_adaptive:
            self._adaptive.learn(
                float(self._adaptive.current[place])
                if o.adaptive_update_with_current
                else math.exp(log_probability(changed.logits, token))
            )
        return token

    def distribution(self, logits: NDArray[np.float32]) -> tuple[Indices, Floats]:
        """Tokens that `sample` would choose from now, with their probabilities, which sum to 1.

        Draws whether XTC applies, as `sample` does, and no more.
        """
        changed = self._per_token(logits)
        if self.options.temperature == 0:
            return np.array([changed.argmax()]), np.ones(1)
        c = self._narrowed(Candidates.all(changed))
        return c.ids, c.probabilities()

    @property
    def _is_adaptive(self) -> bool:
        return self.options.adaptive_target >= 0 and "adaptive_p" in self.options.samplers

    def _per_token(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits after bias, penalties and DRY; checked."""
        o = self.options
        recent = self._history.last(o.repeat_last_n if self._uses_penalties else 0)
        allowed = None if self._constraint is None else self._constraint.mask()
        if allowed is not None:
            logits = _masked(logits, allowed)
        elif o.logit_bias or len(recent) or self._uses_dry:
            logits = logits.copy()
        for token, bias in o.logit_bias.items():
            if token < len(logits):
                logits[token] += np.float32(bias)
        if len(recent):
            penalties.penalize(
                logits,
                recent,
                repeat=o.repeat_penalty,
                presence=o.presence_penalty,
                frequency=o.frequency_penalty,
            )
        if self._uses_dry:
            dry.penalize(
                logits,
                self._history.last(o.dry_penalty_last_n),
                multiplier=o.dry_multiplier,
                base=o.dry_base,
                allowed_length=o.dry_allowed_length,
                breakers=self._breakers,
            )
        _check_largest(logits.max(initial=-np.inf))
        return logits

    def _enough(self) -> int | None:
        """See `n_best`: what is done before that many are kept must not depend on the others."""
        o = self.options
        changes = self._constraint is not None or o.logit_bias or self._uses_penalties or self._uses_dry
        if changes:
            return None
        if o.temperature == 0:
            return 1
        if o.mirostat == 2 or (self._is_adaptive and not o.adaptive_update_with_current):
            return None
        is_idle = {
            "top_k": o.top_k == 0,
            "top_p": o.top_p == 1,
            "min_p": o.min_p == 0,
            "typical_p": o.typical_p == 1,
            "top_n_sigma": o.top_n_sigma <= 0,
            "xtc": o.xtc_probability == 0 or o.xtc_threshold > 0.5,
            "temperature": o.temperature == 1 and o.dynatemp_range == 0,
            "adaptive_p": True,  # the last one, wherever it stands
        }
        first = next((step for step in self._steps if not is_idle[step]), None)
        return max(o.top_k, self._min_keep) if first == "top_k" else None

    def _narrowed(self, c: Candidates) -> Candidates:
        o = self.options
        if o.mirostat == 2:
            return self._mirostat.narrow(temperature.scale(c, o.temperature))
        for step in self._steps:
            c = self._step(step, c)
        # whatever the order says, adaptive-p is the last one: its result are no probabilities of the model
        return self._adaptive.weigh(c) if self._is_adaptive else c

    def _step(self, step: str, c: Candidates) -> Candidates:
        o, min_keep = self.options, self._min_keep
        if step == "top_k":
            return truncation.top_k(c, o.top_k, min_keep)
        if step == "top_p":
            return truncation.top_p(c, o.top_p, min_keep)
        if step == "min_p":
            return truncation.min_p(c, o.min_p, min_keep)
        if step == "typical_p":
            return truncation.typical_p(c, o.typical_p, min_keep)
        if step == "top_n_sigma":
            return truncation.top_n_sigma(c, o.top_n_sigma)
        if step == "xtc":
            if o.xtc_probability <= 0 or o.xtc_threshold > 0.5 or self._uniform() >= o.xtc_probability:
                return c
            return truncation.xtc(c, o.xtc_threshold, min_keep)
        if step == "temperature":
            if o.dynatemp_range > 0:
                return temperature.dynamic(c, o.temperature, o.dynatemp_range, o.dynatemp_exponent)
            return temperature.scale(c, o.temperature)
        return c  # adaptive_p

    def _draw(self, probabilities: Floats) -> int:
        """A place, with these probabilities; never one of probability 0."""
        total = np.cumsum(probabilities)
        place = int(np.searchsorted(total, self._uniform() * total[-1], side="right"))
        if place == len(total):  # the product was rounded up to the whole
            place = int(np.flatnonzero(probabilities)[-1])
        return place

    def _uniform(self) -> float:
        """A number from 0 up to, not including, 1. Raw words: their stream is the same in every numpy."""
        return float(self._random.random_raw() >> 11) * 2.0**-53


def _check_largest(logit: float | np.floating[Any]) -> None:
    """Refuses logits from which nothing can be chosen, by the largest of them."""
    if not np.isfinite(logit):
        what = "is NaN or infinite" if logit != -np.inf else "allows no token: all are banned"
        raise FormatError(f"the model's output {what}")


def _masked(logits: NDArray[np.float32], allowed: NDArray[np.bool_]) -> NDArray[np.float32]:
    """A copy in which only allowed tokens are possible; a vocabulary may be shorter than a model's output."""
    masked = np.full_like(logits, -np.inf)
    n = min(len(logits), len(allowed))
    np.copyto(masked[:n], logits[:n], where=allowed[:n])
    return masked
