"""How deep drafts are, by what steps take and what is accepted: never slower than without."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest

from ikq.speculation import (
    AdaptiveDepth,
    StepTimes,
)


def test_times_of_steps():
    times = StepTimes()
    assert times.estimate(1) is None
    times.add(1, 2.0)
    assert times.estimate(1) == 2.0
    assert times.estimate(3) == pytest.approx(2.4)  # nothing is known of more tokens: a tenth for each
    times.add(5, 4.0)
    assert times.estimate(3) == pytest.approx(3.0)
    assert times.estimate(9) == pytest.approx(6.0)
    times.add(9, 3.0)  # a step over more tokens takes no less: what lies beyond never falls
    assert times.estimate(20) >= times.estimate(9)
    for _ in range(200):
        times.add(1, 4.0)
    # a longer text makes all steps longer
    assert times.estimate(1) == pytest.approx(4.0, rel=0.01)
    assert times.estimate(5) > 5.0
    zero = StepTimes(from_zero=True)
    zero.add(2, 1.0)
    assert (zero.estimate(0), zero.estimate(1), zero.estimate(4)) == (0.0, 0.5, pytest.approx(2.0))


def test_one_disturbed_measurement_does_little():
    times = StepTimes()
    for seconds in (9.0, 1.0, 1.0):
        times.add(1, seconds)
    assert times.estimate(1) == 1.0
    times.add(1, 100.0)
    assert times.estimate(1) < 1.2


class Simulated:
    """Rounds whose times and acceptance are known: a step over n tokens takes 1 + cost * (n - 1)."""

    def __init__(
        self, cost, accepted, draft_cost, *, n_max=8, noise=0.0, seed=0, after=None, offers=1.0, steps=None
    ):
        self.cost, self.accepted, self.draft_cost, self.offers = cost, accepted, draft_cost, offers
        self.noise, self.rng = noise, random.Random(seed)
        self.steps = StepTimes() if steps is None else steps
        self.drafts = StepTimes(from_zero=True)
        self.depth = AdaptiveDepth(n_max, 0, self.steps, self.drafts, after)
        self.n_max = n_max

    def seconds(self, exact):
        return exact * (1 + self.noise * abs(self.rng.gauss(0, 1)))

    def speed(self, n_tokens):
        """Tokens per second of the speed without drafts."""
        done = plain = total = 0
        while done < n_tokens:
            n = self.depth.choose()
            if self.rng.random() > self.offers:
                n = 0
            n_accepted = 0
            while n_accepted < n and self.rng.random() < self.accepted:
                n_accepted += 1
            step, draft = self.seconds(1 + self.cost * n), self.seconds(self.draft_cost * n)
            self.steps.add(1 + n, step)
            self.drafts.add(n, draft)
            self.depth.done(n, n_accepted, step, draft)
            done += n_accepted + 1
            total += step + draft
            plain += sum(self.seconds(1) for _ in range(n_accepted + 1))
        return plain / total

    def best(self):
        """The same of the best fixed depth, in the long run."""
        a = self.accepted
        return max(
            sum(a**i for i in range(n + 1)) / (1 + (self.cost + self.draft_cost) * n)
            for n in range(self.n_max + 1)
        )


COSTS = (0.02, 0.1, 0.3, 0.6, 1.0)
CHANCES = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)
DRAFT_COSTS = (0.0, 0.1, 0.3, 0.7)


@pytest.mark.parametrize("noise", [0.0, 0.1])
@pytest.mark.parametrize("n_tokens", [128, 512])
def test_speculation_is_never_slower(noise, n_tokens):
    """At least 0.98 of the speed without, however useless drafts are and whatever they cost."""
    for cost, accepted, draft_cost in itertools.product(COSTS, CHANCES, DRAFT_COSTS):
        found = Simulated(cost, accepted, draft_cost, noise=noise, seed=3).speed(n_tokens)
        # both times are sums of so many numbers, whose deviation is 0.6 * noise
        assert found >= 0.98 - 3 * 0.6 * noise * (2 / n_tokens) ** 0.5, (cost, accepted, draft_cost)


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_the_best_depth_is_found(noise):
    for cost, accepted, draft_cost in itertools.product(COSTS[::2], CHANCES[::2], DRAFT_COSTS[::2]):
        simulated = Simulated(cost, accepted, draft_cost, noise=noise)
        assert simulated.speed(3000) >= 0.9 * simulated.best(), (cost, accepted, draft_cost)


def test_drafts_that_fail_are_tried_again():
    simulated = Simulated(0.1, 0.0, 0.05)
    assert simulated.speed(2000) >= 0.98
    simulated.accepted = 0.9
    simulated.speed(500)  # it may have to wait
    assert simulated.speed(1000) >= 0.9 * simulated.best()


@pytest.mark.parametrize("every", [20, 100])
def test_disturbances_do_not_stop_what_pays(every):
    """Now and then another program takes the machine for the time of many steps."""
    simulated = Simulated(0.1, 0.8, 0.05)
    calm, count, rounds = simulated.seconds, itertools.count(1), []
    simulated.seconds = lambda exact: calm(exact) + (50.0 if exact and next(count) % every == 0 else 0.0)
    choose = simulated.depth.choose
    simulated.depth.choose = lambda: rounds.append(choose()) or rounds[-1]
    simulated.speed(3000)
    assert sum(n > 0 for n in rounds) > len(rounds) / 2


def test_looking_in_vain_is_paid_for():
    """A drafter that takes time and proposes nothing."""
    simulated = Simulated(0.1, 0.9, 0.0)
    steps, drafts, depth = simulated.steps, simulated.drafts, simulated.depth
    total = 0.0
    for _ in range(1000):
        draft = 0.2 if depth.choose() else 0.0
        steps.add(1, 1.0)
        drafts.add(0, draft)
        depth.done(0, 0, 1.0, draft)
        total += 1 + draft
    assert total < 1000 / 0.98


def test_a_text_begins_with_what_the_last_one_knew():
    first = Simulated(0.05, 0.9, 0.02)
    first.speed(500)
    second = Simulated(0.05, 0.9, 0.02, after=first.depth, steps=first.steps)
    second.drafts.add(1, 0.02)
    assert second.depth.choose() >= 4
    # and with its doubts
    bad = Simulated(0.5, 0.0, 0.3)
    bad.speed(500)
    speeds = []
    for seed in range(20):
        bad = Simulated(0.5, 0.0, 0.3, after=bad.depth, steps=bad.steps, seed=seed)
        speeds.append(bad.speed(32))
    assert np.mean(speeds) > 0.97


def test_what_must_be_read_before_is_part_of_the_price():
    steps, drafts = StepTimes(), StepTimes(from_zero=True)
    for _ in range(3):
        steps.add(1, 1.0)
    depth = AdaptiveDepth(8, 0, steps, drafts)
    assert depth.choose() > 0
    assert depth.choose(read_seconds=2.0) == 0
    for _ in range(200):
        depth.done(0, 0, 1.0, 0.0)
    assert depth.choose(read_seconds=2.0) > 0
    # and once it was paid there is less for the next one
    depth.done(1, 0, 1.1, 0.0, 2.0)
    assert depth.choose(read_seconds=2.0) == 0


def test_many_texts_at_once_draft_less():
    """Where each token costs the same, the tokens of other texts are the better bet."""
    steps, drafts = StepTimes(), StepTimes(from_zero=True)
    for n in range(1, 80):
        # up to 8 tokens cost little more than one, then each costs as much
        for _ in range(3):
            steps.add(n, 1 + 0.02 * n + max(0, n - 8) * 0.15)
    depth = AdaptiveDepth(8, 0, steps, drafts)
    chosen = {1: [], 8: []}
    for n_texts in chosen:
        for i in range(60):
            n = depth.choose(n_texts)
            depth.done(n, n * (i % 3 != 0), steps.estimate(n_texts * (1 + n)), 0.0)
            chosen[n_texts].append(n)
    assert np.mean(chosen[1][20:]) > 2 * np.mean(chosen[8][20:])
