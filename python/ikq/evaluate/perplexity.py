"""Perplexity: `measure_perplexity`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ikq.evaluate.windows import Windows, scored
from ikq.inference.model import Model

__all__ = ["Perplexity", "Sink", "estimate", "measure_perplexity", "window_losses"]


class Perplexity(NamedTuple):
    """Perplexity so far.

    Attributes:
        value: exp of the mean negative log-likelihood.
        error: Its standard error, from the spread of the log-likelihoods.
        n_windows: Windows done.
        n_scored: Tokens scored.
    """

    value: float
    error: float
    n_windows: int
    n_scored: int


class Sink(Protocol):
    """Takes the distributions that perplexity is computed from; the writers of base files are sinks."""

    def write(self, log_p: NDArray[np.float32], targets: NDArray[np.int32]) -> None:
        """Takes the log-probabilities of some positions, and the tokens that follow them."""


def measure_perplexity(model: Model, windows: Windows, sink: Sink | None = None) -> Iterator[Perplexity]:
    """Perplexity after each window.

    Args:
        model: A model whose context holds a window.
        windows: The text.
        sink: Gets every distribution as well.

    Raises:
        FormatError: a logit is not a number.
    """
    losses: list[NDArray[np.float64]] = []
    for i in range(windows.n):
        losses.append(window_losses(model, windows, i, sink))
        yield estimate(np.concatenate(losses), i + 1)


def window_losses(
    model: Model, windows: Windows, number: int, sink: Sink | None = None
) -> NDArray[np.float64]:
    """Negative log-likelihoods of a window's scored tokens; otherwise as `measure_perplexity`."""
    losses = []
    for rows, log_p, loss in scored(model, windows, number):
        losses.append(loss)
        if sink is not None:
            sink.write(log_p, windows[number].targets[rows])
    return np.concatenate(losses)


def estimate(losses: NDArray[np.float64], n_windows: int) -> Perplexity:
    """Perplexity from negative log-likelihoods."""
    n = len(losses)
    value = math.exp(losses.mean())
    error = value * math.sqrt(losses.var() / (n - 1)) if n > 1 else 0.0
    return Perplexity(value, error, n_windows, n)
