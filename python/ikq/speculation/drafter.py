"""`Drafter`: proposes how a text continues; and drafting for several texts in common steps."""

from __future__ import annotations

from collections.abc import Generator, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ikq.sampling.candidates import Candidates

__all__ = [
    "MANY_UNREAD",
    "N_COMPARED",
    "Ask",
    "Drafter",
    "Drafting",
    "Runner",
    "draft_together",
    "most_probable",
    "n_compared",
]


class Runner(Hashable, Protocol):
    """Computes steps for drafters; those of several texts may share one."""

    def run(self, asks: Sequence[Ask]) -> Sequence[Any]:
        """Computes all asks in one step and answers each."""


@dataclass(frozen=True)
class Ask:
    """A drafter's part of a step.

    Attributes:
        runner: Who computes it.
        sequence: A sequence of the runner's.
        tokens: Tokens to be computed behind what the sequence holds.
        n_best: How many of the largest logits after the last of them are wanted; 0: none.
        hidden: For a head: hidden states, float32 `(len(tokens), n_embd)`.
    """

    runner: Runner
    sequence: Any
    tokens: list[int]
    n_best: int = 1
    hidden: NDArray[np.float32] | None = None


Drafting: TypeAlias = Generator[Ask, Any, list[int]]
"""A draft in the making: yields what it needs to have computed, takes the answer, returns tokens."""


class Drafter(Protocol):
    """Proposes how one text goes on. Not for several threads at a time.

    A draft never changes the text: tokens that the text does not choose are dropped.
    """

    @property
    def needs_hidden(self) -> bool:
        """Whether `observe` wants what the model's last norm gives."""

    def n_unread(self, tokens: Sequence[int]) -> int:
        """Tokens of a text that have to be computed before the next one can be drafted."""

    def read(self, tokens: Sequence[int], n: int) -> Drafting:
        """Computes what is unread, if that is much; drafts nothing.

        Args:
            tokens: As for `propose`.
            n: How many of them the model has computed, if they are a prompt; or all.
        """

    def propose(self, tokens: Sequence[int], n: int) -> Drafting:
        """Drafts up to `n` tokens that may follow.

        Args:
            tokens: The text so far, at least one token, all of which are certain. Since the last call it has
                only grown behind what `keep` said.
            n: Most tokens to propose, at least 1.
        """

    def observe(self, tokens: Sequence[int], first: int, hidden: NDArray[np.float32]) -> None:
        """Tells hidden states of the model, where they are needed.

        Args:
            tokens: The text, a list that grows with it.
            first: Position of the first of them.
            hidden: float32 `(n, n_embd)`: what the last norm gave after the tokens from there on, those of a
                draft included.
        """

    def keep(self, n: int) -> None:
        """Of the last proposal's text with its draft, the first `n` tokens are those of the text."""

    def shift(self, n_keep: int, n_discard: int) -> None:
        """The text has lost `n_discard` tokens after the first `n_keep`."""

    def close(self) -> None:
        """The text is over; `keep` was called for the last draft."""


MANY_UNREAD = 64
"""Tokens that are much to read."""

N_COMPARED = 16
"""A token's probability is that among so many of the most probable ones. The others need not be copied from a
GPU, and are not worth summing up: who is sure of a token gives them nearly nothing."""


def draft_together(draftings: Sequence[Drafting]) -> list[list[int]]:
    """Completes drafts; what they ask of the same runner at the same time is computed in one step."""
    drafts: list[list[int]] = [[] for _ in draftings]
    asked: list[tuple[int, Ask]] = []

    def go_on(i: int, answer: Any) -> None:  # noqa: ANN401
        try:
            asked.append((i, draftings[i].send(answer)))
        except StopIteration as done:
            drafts[i] = done.value

    for i in range(len(draftings)):
        go_on(i, None)
    while asked:
        now, asked = asked, []
        by_runner: dict[Runner, list[tuple[int, Ask]]] = {}
        for i, ask in now:
            by_runner.setdefault(ask.runner, []).append((i, ask))
        for runner, group in by_runner.items():
            answers = runner.run([ask for _, ask in group])
            for (i, _), answer in zip(group, answers, strict=True):
                go_on(i, answer)
    return drafts


def n_compared(p_min: float) -> int:
    """How many of the largest logits tell whether a token is as probable as that."""
    return 1 if p_min == 0 else N_COMPARED


def most_probable(best: Candidates) -> tuple[int, float]:
    """The most probable token, and its probability among these candidates."""
    return int(best.ids[0]), 1 / float(np.exp(best.logits - best.logits[0]).sum(dtype=np.float64))
