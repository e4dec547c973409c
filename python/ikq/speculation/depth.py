"""How many tokens are worth drafting: `AdaptiveDepth`, from measured times and what was accepted so far.

A step over 1 + d tokens costs more than one over a single token, little where weights are only read once for
all, much where each token brings experts of its own; drafting costs time as well. Both are measured as they
happen. With the chance of each further drafted token to be accepted they give the tokens per second that a
depth is worth, and the best one is taken, 0 included.

Estimates err, and texts change, so a draft is a bet. Bets are paid from an account: rounds that gain time put
it there, rounds that lose take from it, and rounds without a draft add a small share of their time, for
trying again. Without funds there is no draft. However useless drafts are, a text therefore loses that share
of its time at most, and the first deposit. What a text has learned the next one begins with.
"""

from __future__ import annotations

from bisect import bisect, insort
from typing import Protocol

__all__ = ["AdaptiveDepth", "Depth", "FixedDepth", "StepTimes"]


class Depth(Protocol):
    """Decides how many tokens are drafted for a text."""

    @property
    def is_promising(self) -> bool:
        """Whether a prompt is worth being read, for drafts after it."""

    def choose(self, n_texts: int = 1, n_other: int = 0, read_seconds: float = 0.0) -> int:
        """Most tokens to draft now.

        Args:
            n_texts: Texts of the step that may be drafted for, this one among them.
            n_other: Other tokens of the step.
            read_seconds: What has to be done before anything can be drafted takes so long.
        """

    def done(
        self,
        n_drafted: int,
        n_accepted: int,
        seconds: float | None,
        draft_seconds: float,
        read_seconds: float = 0.0,
    ) -> None:
        """Tells how a round went.

        Args:
            n_drafted: Tokens of the draft.
            n_accepted: Those of them that the text took.
            seconds: Time of the step; `None`: it says nothing, because other things were done in it.
            draft_seconds: Time of drafting.
            read_seconds: Time of what had to be read before.
        """


class FixedDepth:
    """Always the same number."""

    is_promising = True

    def __init__(self, n: int) -> None:
        self._n = n

    def choose(self, n_texts: int = 1, n_other: int = 0, read_seconds: float = 0.0) -> int:
        """As `Depth.choose`."""
        return self._n

    def done(
        self,
        n_drafted: int,
        n_accepted: int,
        seconds: float | None,
        draft_seconds: float,
        read_seconds: float = 0.0,
    ) -> None:
        """As `Depth.done`."""


class StepTimes:
    """Seconds of steps by their number of tokens, as measured lately.

    Times grow with a text, alike for all numbers of tokens: a measurement also moves the others' estimates.

    Args:
        from_zero: A step over no tokens takes no time.
    """

    # Measurements of which the fastest counts: others may have been disturbed.
    _FIRST = 3
    # How far a later one moves the estimates of its number, and of all.
    _OWN, _ALL = 0.1, 0.1
    # What a further token costs, as a share of a step over one, before anything is known.
    _SLOPE = 0.1

    def __init__(self, *, from_zero: bool = False) -> None:
        self._level = 1.0
        self._shape: dict[int, float] = {0: 0.0} if from_zero else {}
        self._sizes = list(self._shape)  # in order
        self._counts: dict[int, int] = {}

    def add(self, n: int, seconds: float) -> None:
        """Notes what a step over `n` tokens took."""
        if n < 1 or seconds <= 0:
            return
        count = self._counts[n] = self._counts.get(n, 0) + 1
        if count == 1:
            insort(self._sizes, n)
        if count <= self._FIRST:
            self._shape[n] = min(self._shape.get(n, seconds / self._level), seconds / self._level)
            return
        ratio = min(2.0, max(0.5, seconds / (self._level * self._shape[n])))
        self._shape[n] *= ratio**self._OWN
        self._level *= ratio**self._ALL

    @property
    def n_measured(self) -> int:
        """Measurements so far."""
        return sum(self._counts.values())

    def estimate(self, n: int) -> float | None:
        """Seconds of a step over `n` tokens; `None` before any measurement."""
        if not self._counts:
            return None
        sizes, shape = self._sizes, self._shape
        place = bisect(sizes, n)
        if place == 0:
            return self._level * shape[sizes[0]]
        below = sizes[place - 1]
        if place < len(sizes):
            above = sizes[place]
            slope = (shape[above] - shape[below]) / (above - below)
        elif len(sizes) > 1:
            # what lies beyond grows as all that is known, but never falls
            slope = max(0.0, (shape[below] - shape[sizes[0]]) / (below - sizes[0]))
        else:
            slope = self._SLOPE * shape[below] / below
        return self._level * (shape[below] + slope * (n - below))


class AdaptiveDepth:
    """The number of tokens that is expected to give most tokens per second.

    Args:
        n_max: Most tokens of a draft.
        n_min: Fewest.
        steps: Times of the model's steps; shared by its texts.
        drafts: Times of drafting, by number of tokens.
        after: That of an earlier text, whose experience is the start.
    """

    # What a round without a draft adds to the account, as a share of its time; the deposit, the most that
    # it holds, and the most that a text owes at its start, in such rounds.
    _SHARE, _DEPOSIT, _MOST, _DEBT = 0.012, 1.0, 8.0, 1.0
    # Of acceptance before anything is known, and how many tokens that is worth. What is known fades.
    _PRIOR, _WEIGHT, _FADES = 0.75, 3.0, 0.97
    # What an earlier text's experience is worth in tokens.
    _CARRIED = 4.0
    # While drafts do not seem to pay: rounds until another one, doubled each time.
    _WAITS = (16, 256)
    # Drafts in a row after which a round without one measures what that takes; and how often a draft is one
    # token deeper than seems best.
    _IN_A_ROW, _DEEPER = 48, 12

    def __init__(
        self,
        n_max: int,
        n_min: int,
        steps: StepTimes,
        drafts: StepTimes,
        after: AdaptiveDepth | None = None,
    ) -> None:
        self._n_max, self._n_min = n_max, max(1, n_min)
        self._steps, self._drafts = steps, drafts
        self._account = self._DEPOSIT
        self._tried = [0.0] * n_max
        self._accepted = [0.0] * n_max
        self._deepest = 0
        self._wait = self._WAITS[0]
        if after is not None:
            self._account = min(self._account, max(-self._DEBT, after._account))
            self._deepest = after._deepest
            self._wait = max(self._wait, after._wait // 2)
            for i, (tried, accepted) in enumerate(zip(after._tried[:n_max], after._accepted, strict=False)):
                faded = min(1.0, self._CARRIED / max(tried, 1e-9))
                self._tried[i], self._accepted[i] = faded * tried, faded * accepted
        self._n_texts, self._n_other = 1, 0
        self._waited = 0
        self._in_a_row = 0
        self._is_trial = False

    def acceptance(self, depth: int) -> float:
        """Estimated chance that the token of this depth (from 1) is accepted if those before it were."""
        p = self._PRIOR
        for accepted, tried in zip(self._accepted[:depth], self._tried[:depth], strict=True):
            p = (accepted + self._WEIGHT * p) / (tried + self._WEIGHT)
        return p

    @property
    def is_promising(self) -> bool:
        """As `Depth.is_promising`: not while the latest attempts have failed."""
        return self._wait == self._WAITS[0]

    def choose(self, n_texts: int = 1, n_other: int = 0, read_seconds: float = 0.0) -> int:
        """As `Depth.choose`."""
        self._n_texts, self._n_other = n_texts, n_other
        if self._is_trial and self._waited < self._wait:
            return 0  # nothing has changed
        self._is_trial = False
        plain = self._steps.estimate(n_texts + n_other)
        if plain is None or self._steps.n_measured < StepTimes._FIRST:
            return 0
        if self._in_a_row >= self._IN_A_ROW:
            self._in_a_row = 0
            return 0
        best, best_rate = 0, 0.0
        expected, chance = 1.0, 1.0
        # what was never tried is tried in small steps
        deepest = min(self._n_max, max(self._n_min, 2 * self._deepest))
        for depth in range(1, deepest + 1):
            chance *= self.acceptance(depth)
            expected += chance
            seconds = self._step_seconds(depth, plain) + (self._drafts.estimate(depth) or 0.0)
            affordable = (seconds + read_seconds) / plain - 1 <= self._account
            if depth >= self._n_min and affordable and expected / seconds > best_rate:
                best, best_rate = depth, expected / seconds
        if best and best_rate * plain <= 1:
            self._is_trial = True
            if self._waited < self._wait:
                return 0
        elif best and self._in_a_row % self._DEEPER == self._DEEPER - 1:
            return min(best + 1, deepest)
        return best

    def _step_seconds(self, depth: int, plain: float) -> float:
        """Expected time of a step in which all texts have drafts of this depth."""
        step = self._steps.estimate(self._n_texts * (1 + depth) + self._n_other)
        return plain if step is None else step

    def done(
        self,
        n_drafted: int,
        n_accepted: int,
        seconds: float | None,
        draft_seconds: float,
        read_seconds: float = 0.0,
    ) -> None:
        """As `Depth.done`."""
        plain = self._steps.estimate(self._n_texts + self._n_other)
        if plain is None:
            return
        # twice the usual time is a disturbance, and so is more than doing without drafts takes
        usual, most = self._step_seconds(n_drafted, plain), (1 + n_drafted) * plain
        seconds = usual if seconds is None else min(seconds, 2 * usual, most)
        usual_draft = self._drafts.estimate(n_drafted) if n_drafted else None
        draft_seconds = min(draft_seconds, 2 * (usual_draft or most), most)
        if n_drafted:
            gain = n_accepted + 1 - (seconds + draft_seconds + read_seconds) / plain
            self._learn(n_drafted, n_accepted, gain)
        else:
            # looking for a draft in vain is paid for, too
            gain = self._SHARE - (draft_seconds + read_seconds) / plain
            self._waited += 1
            if gain < -self._SHARE:
                self._wait = min(2 * self._wait, self._WAITS[1])
        self._account = max(-self._MOST, min(self._MOST, self._account + gain))

    def _learn(self, n_drafted: int, n_accepted: int, gain: float) -> None:
        """Notes what became of a draft, and whether it gained time."""
        for i in range(min(n_accepted + 1, n_drafted)):
            self._tried[i] = self._FADES * self._tried[i] + 1
            self._accepted[i] = self._FADES * self._accepted[i] + (i < n_accepted)
        self._deepest = max(self._deepest, n_drafted)
        self._in_a_row += 1
        self._waited = 0
        self._wait = min(2 * self._wait, self._WAITS[1]) if self._is_trial and gain <= 0 else self._WAITS[0]
        self._is_trial = False
