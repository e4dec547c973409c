"""`Experiences`: what earlier texts of a model have shown about drafting, for later ones."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

from ikq.speculation.depth import AdaptiveDepth, StepTimes

__all__ = ["Experience", "Experiences"]


@dataclass
class Experience:
    """The experience with one way to draft.

    Attributes:
        draft_times: Times of drafting.
        latest: What the latest text decides by.
    """

    draft_times: StepTimes = field(default_factory=lambda: StepTimes(from_zero=True))
    latest: AdaptiveDepth | None = None

    def depth(self, n_max: int, n_min: int, step_times: StepTimes) -> AdaptiveDepth:
        """The depth of drafts for the next text."""
        self.latest = AdaptiveDepth(n_max, n_min, step_times, self.draft_times, self.latest)
        return self.latest


class Experiences:
    """The experiences of a model, for each way to draft."""

    def __init__(self) -> None:
        self._by_drafter: dict[Hashable, Experience] = {}

    def of(self, drafter: Hashable) -> Experience:
        """The experience with a way to draft."""
        return self._by_drafter.setdefault(drafter, Experience())
