"""Chooses one type per tensor so that the sum of costs is smallest within the budgets.

A multiple-choice knapsack. Of each tensor's choices those on the lower convex hull of cost over bytes,
taken in order of what a byte saves, solve the relaxed problem exactly; its value is below that of every
real choice, which proves the gap that is stated. From there a local search uses the bytes that are left:
single changes, and pairs of one tensor that gives bytes and another that takes them. Budgets are by memory:
a tensor counts in one of them. Limits of time (seconds per token, say) are priced: a multiplier per limit,
found by bisection, turns them into costs, and the dual value remains a bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

__all__ = ["Choice", "Infeasible", "Limit", "Relaxed", "choose", "cost_curve"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class Infeasible(Exception):  # noqa: N818  # what there is no choice for
    """No choice is within the budgets.

    Attributes:
        memory: Number of the budget that cannot be kept, or None: it is a limit.
        least: The smallest number of bytes (or sum of a limit's amounts) that is possible.
        limit: Number of the limit, if it is one; None: limits that only exclude one another.
    """

    def __init__(self, memory: int | None, least: float, limit: int | None = None) -> None:
        super().__init__(f"the least that is possible is {least}")
        self.memory = memory
        self.least = least
        self.limit = limit


@dataclass(frozen=True)
class Limit:
    """A bound on a sum over all tensors, such as seconds per token.

    Attributes:
        amounts: As costs: tensors x choices.
        most: The largest sum.
    """

    amounts: Floats
    most: float


@dataclass(frozen=True)
class Choice:
    """What was chosen.

    Attributes:
        index: One choice per tensor.
        cost: Its sum of costs.
        bound: No choice within the budgets costs less than this.
        bytes: Bytes in each memory.
    """

    index: Ints
    cost: float
    bound: float
    bytes: Ints

    @property
    def gap(self) -> float:
        """The choice costs at most (1 + gap) times the best one."""
        if self.cost <= self.bound:
            return 0.0
        return self.cost / self.bound - 1 if self.bound > 0 else float("inf")


def choose(
    costs: Floats,
    sizes: Ints,
    budgets: Sequence[int],
    memories: Ints | None = None,
    limits: Sequence[Limit] = (),
) -> Choice:
    """Chooses.

    Args:
        costs: Tensors x choices, at least 0; what may not be chosen is infinite.
        sizes: Bytes of them.
        budgets: Most bytes in each memory.
        memories: In which memory each tensor lies; None: all in the first.
        limits: Bounds of other sums.

    Raises:
        Infeasible: The smallest choices do not fit.
    """
    n = len(costs)
    memories = np.zeros(n, np.int64) if memories is None else memories
    possible = np.isfinite(costs)
    for m, budget in enumerate(budgets):
        least = int(_least(sizes, possible)[memories == m].sum())
        if least > budget:
            raise Infeasible(m, least)
    found = _within_budgets(costs, sizes, budgets, memories)
    for limit in limits:
        if _sum(limit.amounts, found.index) > limit.most * (1 + 1e-12):
            return _within_limits(costs, sizes, budgets, memories, limits, found)
    return found


def _within_limits(
    costs: Floats,
    sizes: Ints,
    budgets: Sequence[int],
    memories: Ints,
    limits: Sequence[Limit],
    free: Choice,
) -> Choice:
    """One multiplier per limit, each raised until its limit holds."""
    prices = np.zeros(len(limits))
    bound, best = free.bound, None

    def solved(prices: Floats) -> Choice:
        priced = costs + sum(
            (p * limit.amounts for p, limit in zip(prices, limits, strict=True)), np.zeros_like(costs)
        )
        return _within_budgets(priced, sizes, budgets, memories)

    for _ in range(3 if len(limits) > 1 else 1):
        for i, limit in enumerate(limits):
            low, high = 0.0, max(1e-12, float(costs[np.isfinite(costs)].max()) / max(limit.most, 1e-30))
            for step in range(80):
                price = high if step < 24 and best is None else (low + high) / 2
                prices[i] = price
                found = solved(prices)
                offsets = sum(p * t.most for p, t in zip(prices, limits, strict=True))
                bound = max(bound, found.bound - offsets)
                cost = _sum(costs, found.index)
                if all(_sum(t.amounts, found.index) <= t.most for t in limits) and (
                    best is None or cost < best.cost
                ):
                    best = Choice(found.index, cost, 0.0, found.bytes)
                if _sum(limit.amounts, found.index) <= limit.most:
                    high = price
                elif step < 24 and best is None:
                    low, high = price, price * 8
                else:
                    low = price
                if high - low < 1e-6 * high:
                    break
            prices[i] = high
    if best is None:
        sums = []
        for limit in limits:
            amounts = np.where(np.isfinite(costs), limit.amounts, np.inf)
            sums.append(_within_budgets(amounts, sizes, budgets, memories).cost)
        over = [s / limit.most if limit.most > 0 else np.inf for s, limit in zip(sums, limits, strict=True)]
        worst = int(np.argmax(over))
        # each alone can be kept: then it is all of them together that cannot
        raise Infeasible(None, sums[worst], worst if over[worst] > 1 or len(limits) == 1 else None)
    return Choice(best.index, best.cost, min(bound, best.cost), best.bytes)


def _within_budgets(costs: Floats, sizes: Ints, budgets: Sequence[int], memories: Ints) -> Choice:
    """Memories do not compete: each is a problem of its own."""
    index = np.zeros(len(costs), np.int64)
    used = np.zeros(len(budgets), np.int64)
    bound = 0.0
    for m, budget in enumerate(budgets):
        mine = np.flatnonzero(memories == m)
        if len(mine):
            found, least = _one_memory(costs[mine], sizes[mine], int(budget))
            index[mine] = found
            bound += least
            used[m] = int(np.take_along_axis(sizes[mine], found[:, np.newaxis], 1).sum())
    return Choice(index, _sum(costs, index), bound, used)


def _one_memory(costs: Floats, sizes: Ints, budget: int) -> tuple[Ints, float]:
    """Choice and lower bound for one budget, which the smallest choices keep."""
    index, steps = _hulls(costs, sizes)
    used = int(np.take_along_axis(sizes, index[:, np.newaxis], 1).sum())
    cost = _sum(costs, index)
    tensor, target, more, gain = steps
    order = np.argsort(-gain / more, kind="stable")
    total = used + np.cumsum(more[order])
    n_whole = int(np.searchsorted(total, budget, side="right"))
    # of a tensor's steps the ratios fall, so they come in order and the last one counts
    whole = order[:n_whole]
    for i in whole:
        index[tensor[i]] = target[i]
    relaxed = cost - float(gain[whole].sum())
    if n_whole < len(order):
        next_step = order[n_whole]
        left = budget - (int(total[n_whole - 1]) if n_whole else used)
        relaxed -= float(gain[next_step]) * left / float(more[next_step])
    _improve(index, costs, sizes, budget)
    return index, max(0.0, min(relaxed, _sum(costs, index)))


def _hulls(costs: Floats, sizes: Ints) -> tuple[Ints, tuple[Ints, Ints, Ints, Floats]]:
    """The smallest choices, and steps along the hulls: tensor, choice, bytes more, cost less."""
    start = np.zeros(len(costs), np.int64)
    rows: list[tuple[int, int, int, float]] = []
    for t, (cost, size) in enumerate(zip(costs, sizes, strict=True)):
        hull = _hull(cost, size)
        start[t] = hull[0]
        for a, b in pairwise(hull):
            rows.append((t, b, int(size[b] - size[a]), float(cost[a] - cost[b])))
    tensor, target, more = (np.array([r[i] for r in rows], np.int64) for i in range(3))
    return start, (tensor, target, more, np.array([r[3] for r in rows], np.float64))


def _hull(cost: Floats, size: Ints) -> list[int]:
    """Choices on the lower convex hull, smallest first, each with a lower cost than the one before."""
    hull: list[int] = []
    best = np.inf
    for k in np.lexsort((cost, size)):
        if not cost[k] < best:
            continue
        best = cost[k]
        while len(hull) > 1:
            a, b = hull[-2], hull[-1]
            # b is above the line from a to k
            if (cost[a] - cost[b]) * (size[k] - size[b]) <= (cost[b] - cost[k]) * (size[b] - size[a]):
                hull.pop()
            else:
                break
        hull.append(int(k))
    return hull


def _improve(index: Ints, costs: Floats, sizes: Ints, budget: int, most_rounds: int = 2000) -> None:
    """Single changes and pairs of changes that lower the cost and fit, the best of each round."""
    n, n_choices = costs.shape
    rows = np.arange(n)
    tensors = np.repeat(rows, n_choices)
    choices = np.tile(np.arange(n_choices), n)
    for _ in range(most_rounds):
        now_cost, now_size = costs[rows, index], sizes[rows, index]
        left = budget - int(now_size.sum())
        more = (sizes - now_size[:, np.newaxis]).ravel()
        gain = (now_cost[:, np.newaxis] - costs).ravel()
        single = np.where(more <= left, gain, -np.inf)
        best = int(single.argmax())
        best_gain, moves = float(single[best]), [best]
        # pairs: of all changes that free bytes, the cheapest that frees enough
        freeing = np.flatnonzero((more < 0) & np.isfinite(gain))
        wanting = np.flatnonzero((gain > 0) & (more > left))
        if len(freeing) and len(wanting):
            by_freed = freeing[np.lexsort((-gain[freeing], more[freeing]))]
            # most freed first: the best gain among those that free at least as much
            running = np.maximum.accumulate(gain[by_freed])
            is_new = np.r_[True, running[1:] > running[:-1]]
            place = np.maximum.accumulate(np.where(is_new, np.arange(len(by_freed)), 0))
            found = np.searchsorted(more[by_freed], left - more[wanting], side="right") - 1
            usable = found >= 0
            partner = by_freed[place[np.maximum(found, 0)]]
            usable &= tensors[partner] != tensors[wanting]
            both = np.where(usable, gain[wanting] + gain[partner], -np.inf)
            pair = int(both.argmax())
            if both[pair] > max(best_gain, 0.0):
                best_gain, moves = float(both[pair]), [int(partner[pair]), int(wanting[pair])]
        scale = float(now_cost.sum())
        if not best_gain > 1e-12 * scale:
            return
        for move in moves:
            index[tensors[move]] = choices[move]


class Relaxed:
    """The relaxed problem for any budgets and division among memories: a bound that takes little time."""

    def __init__(self, costs: Floats, sizes: Ints) -> None:
        self._costs, self._sizes = costs, sizes
        self._start, (tensor, _, more, gain) = _hulls(costs, sizes)
        order = np.argsort(-gain / more, kind="stable")
        self._tensor, self._more, self._gain = tensor[order], more[order], gain[order]

    def bound(self, budgets: Sequence[int], memories: Ints) -> float:
        """No choice within the budgets costs less; infinite if the smallest choices do not fit."""
        rows = np.arange(len(self._start))
        sizes = self._sizes[rows, self._start]
        cost = _sum(self._costs, self._start)
        where = memories[self._tensor]
        for m, budget in enumerate(budgets):
            left = budget - int(sizes[memories == m].sum())
            if left < 0:
                return float("inf")
            more, gain = self._more[where == m], self._gain[where == m]
            total = np.cumsum(more)
            n = int(np.searchsorted(total, left, side="right"))
            cost -= float(gain[:n].sum())
            if n < len(more):
                cost -= float(gain[n]) * (left - (int(total[n - 1]) if n else 0)) / float(more[n])
        return max(0.0, cost)


def cost_curve(costs: Floats, sizes: Ints) -> tuple[Ints, Floats]:
    """Least cost over bytes, at the corners of the relaxed problem: what a plot of all budgets shows."""
    index, (_, _, more, gain) = _hulls(costs, sizes)
    order = np.argsort(-gain / more, kind="stable")
    used = int(np.take_along_axis(sizes, index[:, np.newaxis], 1).sum())
    return (
        np.r_[used, used + np.cumsum(more[order])],
        np.r_[_sum(costs, index), _sum(costs, index) - np.cumsum(gain[order])],
    )


def _least(sizes: Ints, possible: NDArray[np.bool_]) -> Ints:
    least: Ints = np.where(possible, sizes, np.iinfo(np.int64).max).min(axis=1)
    return least


def _sum(amounts: Floats, index: Ints) -> float:
    return float(amounts[np.arange(len(index)), index].sum())
