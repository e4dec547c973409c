"""The knapsack: against trying everything, its stated gap, budgets to the byte, limits, and its speed."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ikq.recipes.choose import Infeasible, Limit, Relaxed, choose, cost_curve


def everything(costs, sizes, budgets, memories, limits=()):
    """The least cost over all choices, or None where none fits."""
    n, k = costs.shape
    index = np.indices((k,) * n).reshape(n, -1).T
    rows = np.arange(n)
    cost = costs[rows, index].sum(1)
    fits = np.isfinite(cost)
    for m, budget in enumerate(budgets):
        fits &= np.where(memories == m, sizes[rows, index], 0).sum(1) <= budget
    for limit in limits:
        fits &= limit.amounts[rows, index].sum(1) <= limit.most
    return float(cost[fits].min()) if fits.any() else None


@st.composite
def problems(draw):
    n, k = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    sizes = rng.integers(1, 60, (n, k)) * 32
    costs = rng.lognormal(0, 1.5, (n, k))
    # ties, zeros, types that cost more and are larger, and types that are not there
    costs[rng.random((n, k)) < 0.1] = 0.0
    costs[:, 1:][rng.random((n, k - 1)) < 0.1] = np.inf
    memories = rng.integers(0, 2, n)
    share = draw(st.floats(0.0, 1.1))
    low, high = sizes.min(1), sizes.max(1)
    budgets = [int((low + share * (high - low))[memories == m].sum()) for m in (0, 1)]
    return costs, sizes.astype(np.int64), budgets, memories


@given(problems())
def test_small_problems_against_trying_everything(problem) -> None:
    costs, sizes, budgets, memories = problem
    best = everything(costs, sizes, budgets, memories)
    if best is None:
        with pytest.raises(Infeasible) as e:
            choose(costs, sizes, budgets, memories)
        assert Relaxed(costs, sizes).bound(budgets, memories) == np.inf
        smallest = np.where(np.isfinite(costs), sizes, 10**9).min(1)[memories == e.value.memory].sum()
        assert e.value.least == smallest > budgets[e.value.memory]
        return
    found = choose(costs, sizes, budgets, memories)
    rows = np.arange(len(costs))
    used = [sizes[rows, found.index][memories == m].sum() for m in (0, 1)]
    assert list(found.bytes) == used
    assert all(u <= b for u, b in zip(used, budgets, strict=True))
    assert found.cost == pytest.approx(costs[rows, found.index].sum())
    relaxed = Relaxed(costs, sizes).bound(budgets, memories)
    assert relaxed == pytest.approx(found.bound) or relaxed <= found.bound
    # the proof: nothing is below the bound, and the choice is within the gap that is stated
    assert found.bound <= best * (1 + 1e-9) + 1e-12
    assert best <= found.cost * (1 + 1e-12)
    assert found.cost <= best * (1 + found.gap) * (1 + 1e-9) + 1e-12


def test_the_local_search_is_near_the_best() -> None:
    ratios = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        sizes = np.sort(rng.integers(1, 100, (6, 5)), 1).astype(np.int64)
        costs = -np.sort(-rng.lognormal(0, 1, (6, 5)), 1)
        budget = int(sizes.mean(1).sum())
        best = everything(costs, sizes, [budget], np.zeros(6, int))
        ratios.append(choose(costs, sizes, [budget]).cost / best)
    assert max(ratios) < 1.15
    assert np.mean(ratios) < 1.01


@given(problems(), st.floats(0.1, 1.0))
def test_limits_hold_and_their_bound_too(problem, share) -> None:
    costs, sizes, budgets, memories = problem
    rng = np.random.default_rng(int(sizes.sum()))
    amounts = rng.random(costs.shape)
    usual = np.where(np.isfinite(costs), amounts, 0).max(1).sum()
    limit = Limit(amounts, share * usual)
    best = everything(costs, sizes, budgets, memories, [limit])
    try:
        found = choose(costs, sizes, budgets, memories, [limit])
    except Infeasible:
        return
    assert amounts[np.arange(len(costs)), found.index].sum() <= limit.most * (1 + 1e-9)
    assert best is not None
    assert found.bound <= best * (1 + 1e-6) + 1e-9
    assert best <= found.cost * (1 + 1e-9)


def test_a_limit_that_nothing_keeps() -> None:
    costs, sizes = np.array([[2.0, 1.0], [2.0, 1.0]]), np.array([[1, 2], [1, 2]])
    limit = Limit(np.array([[1.0, 3.0], [1.0, 3.0]]), 1.5)
    with pytest.raises(Infeasible) as e:
        choose(costs, sizes, [10], limits=[limit])
    assert (e.value.memory, e.value.limit, e.value.least) == (None, 0, 2.0)


def test_limits_that_exclude_one_another() -> None:
    costs, sizes = np.array([[2.0, 1.0]]), np.array([[10, 20]])
    limits = [Limit(np.array([[1.0, 3.0]]), 2.0), Limit(np.array([[3.0, 1.0]]), 2.0)]
    with pytest.raises(Infeasible) as e:
        choose(costs, sizes, [100], limits=limits)
    assert (e.value.memory, e.value.limit) == (None, None)
    # what is spent in any case is more than there is
    limits[0] = Limit(limits[0].amounts, -1.0)
    with pytest.raises(Infeasible) as e:
        choose(costs, sizes, [100], limits=limits)
    assert (e.value.memory, e.value.limit, e.value.least) == (None, 0, 1.0)


def test_cost_falls_as_the_budget_rises() -> None:
    rng = np.random.default_rng(5)
    sizes = np.sort(rng.integers(1, 4000, (200, 20)), 1).astype(np.int64)
    costs = -np.sort(-rng.lognormal(0, 2, (200, 20)), 1)
    budgets = np.linspace(sizes.min(1).sum(), sizes.max(1).sum(), 30).astype(int)
    found = [choose(costs, sizes, [b]).cost for b in budgets]
    assert (np.diff(found) <= 0).all()
    at, least = cost_curve(costs, sizes)
    assert (np.diff(at) > 0).all()
    assert (np.diff(least) <= 1e-9).all()
    for budget, cost in zip(budgets, found, strict=True):
        assert cost >= np.interp(budget, at, least) * (1 - 1e-9)


def test_ten_thousand_tensors_in_seconds_and_to_the_byte() -> None:
    rng = np.random.default_rng(0)
    sizes = np.sort(rng.integers(1, 100_000, (10_000, 30)) * 32, 1).astype(np.int64)
    costs = np.sort(rng.random((10_000, 30)) * rng.lognormal(0, 2, (10_000, 1)), 1)[:, ::-1].copy()
    budget = int(sizes.mean(1).sum())
    start = time.process_time()
    found = choose(costs, sizes, [budget])
    assert time.process_time() - start < 10
    assert found.gap < 1e-6
    assert 0 <= budget - found.bytes[0] < 1e-6 * budget
