"""`Experiences`: what texts of a model have learned about drafting, for those that come after them."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

from ikq.speculation.depth import AdaptiveDepth, StepTimes

__all__ = ["Experience", "Experiences"]


@dataclass
class Experience:
    """Of one way to draft.

    Attributes:
        draft_times: Times of drafting.
        latest: What the latest text decides by.
    """

    draft_times: StepTimes = field(default_factory=lambda: StepTimes(from_zero=True))
    latest: AdaptiveDepth | None = None

    def depth(self, n_max: int, n_min: int, step_times: StepTimes) -> AdaptiveDepth:
        """For the next text."""
        self.latest = AdaptiveDepth(n_max, n_min, step_times, self.draft_times, self.latest)
        return self.latest


class Experiences:
    """Those of a model, by what drafts."""

    def __init__(self) -> None:
        self._by_drafter: dict[Hashable, Experience] = {}

    def of(self, drafter: Hashable) -> Experience:
        """What is known of a way to draft."""
        return self._by_drafter.setdefault(drafter, Experience())
