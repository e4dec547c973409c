"""How far a model is from a base: KL divergence, perplexities, the top token, probabilities of tokens."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ikq.errors import FormatError
from ikq.evaluate import base_file, compact
from ikq.evaluate.base_file import Base, BaseFile, Compared
from ikq.evaluate.compact import CompactBase
from ikq.evaluate.windows import scored
from ikq.inference.model import Model

__all__ = [
    "Divergence",
    "Part",
    "Uncertain",
    "check_vocabulary",
    "joined",
    "measure_divergence",
    "open_base",
    "window_parts",
]

Part = tuple[NDArray[np.float64], NDArray[np.int64], Compared]
"""Of some positions: losses, most likely tokens, and what the base says."""


class Uncertain(NamedTuple):
    """A mean and its standard error."""

    value: float
    error: float


class Divergence(NamedTuple):
    """The statistics of every position that was scored so far.

    Attributes:
        n_windows: Windows done.
        divergence: KL divergence from the base.
        loss: Negative log-likelihood of the text's token.
        loss_base: The base's.
        same_top: Whether both find the same token most likely.
        least: Lower bound of `divergence`.
        variance: Of `divergence` as an estimate; 0 where the base has whole distributions.
    """

    n_windows: int
    divergence: NDArray[np.float64]
    loss: NDArray[np.float64]
    loss_base: NDArray[np.float64]
    same_top: NDArray[np.bool_]
    least: NDArray[np.float64]
    variance: NDArray[np.float64]

    @property
    def mean(self) -> Uncertain:
        """Mean KL divergence; the error is that of the text."""
        return mean_of(self.divergence)

    @property
    def form_error(self) -> float:
        """Standard error that a compact base adds to the mean."""
        return math.sqrt(self.variance.sum()) / len(self.variance)

    @property
    def least_mean(self) -> float:
        """What the mean is at least."""
        return float(self.least.mean())

    @property
    def ppl(self) -> Uncertain:
        """Perplexity."""
        return _exp(mean_of(self.loss))

    @property
    def ppl_base(self) -> Uncertain:
        """Perplexity of the base."""
        return _exp(mean_of(self.loss_base))

    @property
    def log_ratio(self) -> Uncertain:
        """ln(PPL(Q)/PPL(base)); the error counts that both read the same text."""
        return mean_of(self.loss - self.loss_base)

    @property
    def ratio(self) -> Uncertain:
        """PPL(Q)/PPL(base)."""
        return _exp(self.log_ratio)

    @property
    def difference(self) -> Uncertain:
        """PPL(Q)-PPL(base)."""
        q, base = self.ppl.value, self.ppl_base.value
        return Uncertain(q - base, mean_of(q * self.loss - base * self.loss_base).error)

    @property
    def correlation(self) -> float:
        """Between the log-likelihoods of both."""
        spread = float(self.loss.std() * self.loss_base.std())
        covariance = float(np.mean((self.loss - self.loss.mean()) * (self.loss_base - self.loss_base.mean())))
        return covariance / spread if spread else 1.0

    @property
    def probability_differences(self) -> NDArray[np.float64]:
        """Of the text's tokens: Q's probability minus the base's."""
        return np.exp(-self.loss) - np.exp(-self.loss_base)

    @property
    def rms(self) -> Uncertain:
        """Root of the mean square of `probability_differences`."""
        square = mean_of(self.probability_differences**2)
        root = math.sqrt(square.value)
        return Uncertain(root, 0.5 * square.error / root if root else 0.0)

    @property
    def top(self) -> Uncertain:
        """Share of positions with the same most likely token."""
        share, n = float(self.same_top.mean()), len(self.same_top)
        return Uncertain(share, math.sqrt(share * (1 - share) / (n - 1)) if n > 1 else 0.0)


def open_base(path: str | os.PathLike[str], bos: int | None = None) -> Base:
    """A base file in either form.

    Args:
        path: The file.
        bos: BOS of models that want it in each window's first place; the file does not say it.

    Raises:
        FormatError: it is neither, or not whole.
    """
    with Path(path).open("rb") as f:
        magic = f.read(8)
    if magic == base_file.MAGIC:
        return BaseFile(path, bos)
    if magic == compact.MAGIC:
        return CompactBase(path, bos)
    raise FormatError(f"{path}: neither a base file of llama-perplexity nor a compact one")


def measure_divergence(model: Model, base: Base, chunks: int = -1) -> Iterator[Divergence]:
    """Distance from a base after each of its windows.

    Args:
        model: A model whose context holds a window.
        base: The base.
        chunks: The largest number of windows; all if negative.

    Raises:
        FormatError: the vocabularies differ, or a logit is not a number.
    """
    check_vocabulary(model, base)
    parts: list[Part] = []
    n = base.windows.n if chunks < 0 else min(chunks, base.windows.n)
    for i in range(n):
        parts += window_parts(model, base, i)
        yield joined(parts, i + 1)


def check_vocabulary(model: Model, base: Base) -> None:
    """Refuses a base of another vocabulary.

    Raises:
        FormatError: as said.
    """
    if base.n_vocab != model.spec.n_vocab:
        raise FormatError(
            f"the base has a vocabulary of {base.n_vocab} tokens, the model one of {model.spec.n_vocab}"
        )


def window_parts(model: Model, base: Base, number: int) -> list[Part]:
    """What is found at the scored positions of a window.

    Raises:
        FormatError: a logit is not a number.
    """
    parts: list[Part] = []
    for rows, log_q, loss in scored(model, base.windows, number):
        compared = base.compare(number, rows, log_q)
        if not np.isfinite(compared.divergence).all():
            raise FormatError(f"window {number + 1}: the base's log-probabilities are not finite")
        parts.append((loss, log_q.argmax(axis=1), compared))
    return parts


def joined(parts: list[Part], n_windows: int) -> Divergence:
    """What was found in the first windows, from their parts in order."""
    found = Compared(*(np.concatenate(column) for column in zip(*(c for _, _, c in parts), strict=True)))
    loss = np.concatenate([loss for loss, _, _ in parts])
    same = np.concatenate([top for _, top, _ in parts]) == found.top
    return Divergence(n_windows, found.divergence, loss, -found.log_p, same, found.least, found.variance)


def mean_of(x: NDArray[np.float64]) -> Uncertain:
    """Mean and standard error."""
    error = math.sqrt(float(x.var()) / (len(x) - 1)) if len(x) > 1 else 0.0
    return Uncertain(float(x.mean()), error)


def _exp(log: Uncertain) -> Uncertain:
    value = math.exp(log.value)
    return Uncertain(value, value * log.error)
