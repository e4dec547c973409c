"""Samplers that steer by what was drawn: Mirostat 2.0 and adaptive-p."""

from __future__ import annotations

import math

import numpy as np

from ikq.sampling.candidates import Candidates, Floats

__all__ = ["AdaptiveP", "Mirostat2"]


class Mirostat2:
    """Keeps the surprise of drawn tokens near a target (arXiv:2007.14966, version 2.0).

    Attributes:
        mu: Largest surprise in bits that a token may have now.
    """

    def __init__(self, tau: float, eta: float) -> None:
        self.tau = tau
        self.eta = eta
        self.mu = 2 * tau

    def narrow(self, c: Candidates) -> Candidates:
        """Drops tokens that are more surprising than `mu`, never all."""
        place = np.flatnonzero(c.probabilities() >= 2.0**-self.mu)
        return c.take(place, is_sorted=c.is_sorted) if len(place) else c.top(1)

    def learn(self, probability: float) -> None:
        """Moves `mu` after a token of this probability (among those that were left) was drawn."""
        self.mu -= self.eta * (-math.log2(probability) - self.tau)


class AdaptiveP:
    """Prefers tokens near a target probability, and moves the target against what was drawn lately.

    Definition: https://github.com/MrJackSpade/adaptive-p-docs, with the constants that ik_llama.cpp uses.
    """

    _PEAK = 5.0
    _WIDTH = 0.3
    _SHARPNESS = 10.0

    def __init__(self, target: float, decay: float) -> None:
        self.target = target
        self.decay = decay
        # as if tokens of the target's probability had been drawn for ever
        self._sum = target / (1 - decay)
        self._weight = 1 / (1 - decay)
        self.current: Floats = np.ones(1)
        """Probabilities of the candidates before the last `weigh`."""

    @property
    def adapted_target(self) -> float:
        """The probability that is preferred now."""
        return min(1.0, max(0.0, 2 * self.target - self._sum / self._weight))

    def weigh(self, c: Candidates) -> Candidates:
        """New logits: highest at the target, quadratic near it, falling linearly far from it."""
        # what cannot be drawn has no distance either
        c = c.take(np.flatnonzero(c.probabilities()))
        self.current = c.probabilities()
        distance = np.abs(self.current - self.adapted_target) / self._WIDTH
        logits: Floats = self._PEAK - self._SHARPNESS * distance**2 / (1 + distance)
        return Candidates(c.ids, logits, is_sorted=False)

    def learn(self, probability: float) -> None:
        """Remembers the probability of a token that was drawn."""
        if probability > 0:
            self._sum = self.decay * self._sum + probability
            self._weight = self.decay * self._weight + 1
