"""What recipes are worth: measured divergences on the tiny MoE, against mixes with names and controls."""

from __future__ import annotations

import argparse
import inspect
import math
import tempfile
import zipfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import ikq
from ikq.evaluate import BaseFile, base_writer, cut, measure_divergence, measure_perplexity, text_tokens
from ikq.recipes.choose import choose
from ikq.recipes.probes import fit_factors, hadamard, probe, probe_groups
from ikq.recipes.recipe import Budget, Costs, measure_costs, open_problem, solve
from ikq.recipes.rules import recipe_rules

ROOT = Path(__file__).resolve().parents[2]
IMATRIX = ROOT / "tests" / "data" / "imatrix-plain.dat"
N_WINDOWS = 12
"""At a near tie between two experts the smallest rounding decides, and one such token may diverge by 0.3: a tenth of the
mean of four windows."""

Measure = Callable[[str, list[str]], tuple[float, int]]


@pytest.fixture(scope="module")
def costs(tiny_moe: Path) -> Costs:
    return measure_costs(open_problem(tiny_moe, IMATRIX))


@pytest.fixture(scope="module")
def text() -> str:
    """Text of the kind that the model was trained on: held out if it is there, else Python's own source."""
    held_out = ROOT.parent / "shared" / "models" / "text" / "heldout.txt"
    if held_out.exists():
        return held_out.read_text(encoding="utf-8")[:40_000]
    return "".join(inspect.getsource(module) for module in (argparse, tempfile, zipfile))


@pytest.fixture(scope="module")
def measure(tiny_moe: Path, text: str, tmp_path_factory: pytest.TempPathFactory) -> Measure:
    folder = tmp_path_factory.mktemp("recipes")
    with ikq.Model.load(tiny_moe, n_ctx=512) as model:
        windows = cut(text_tokens(model.tokenizer, text), chunks=N_WINDOWS)
        with base_writer(folder / "base", windows, model.spec.n_vocab) as sink:
            for _ in measure_perplexity(model, windows, sink):
                pass
    base = BaseFile(folder / "base")

    def measured(type_name: str, rules: list[str]) -> tuple[float, int]:
        out = folder / "q.gguf"
        ikq.quantize_file(tiny_moe, out, type_name, imatrix=IMATRIX, tensor_type=rules, restart=True)
        with ikq.Model.load(out, n_ctx=512) as model:
            *_, found = measure_divergence(model, base, N_WINDOWS)
        return found.mean.value, out.stat().st_size

    return measured


def rules_of(costs: Costs, index: np.ndarray) -> list[str]:
    return recipe_rules(costs.problem.types_of(index))


@pytest.fixture(scope="module")
def recipes(costs: Costs, measure: Measure) -> dict[str, tuple[float, int, float, float]]:
    """By mix: its divergence and size, the recipe's divergence of the same size, and what was predicted."""
    found = {}
    for mix in ("Q2_K", "IQ2_M", "IQ3_XXS", "Q3_K_M", "IQ4_XS", "Q4_K_M", "Q5_K_M"):
        of_mix, size = measure(mix, [])
        recipe = solve(costs, Budget(size=size))
        kld, bytes_ = measure(recipe.type, recipe.rules)
        assert bytes_ == recipe.file_bytes <= size
        # types are steps of bytes; the budget is used to a thousandth
        assert bytes_ >= 0.999 * size
        found[mix] = of_mix, size, kld, recipe.divergence
    return found


def test_recipes_beat_mixes_of_their_size(recipes: dict[str, tuple[float, int, float, float]]) -> None:
    ratios = {mix: kld / of_mix for mix, (of_mix, _, kld, _) in recipes.items()}
    assert max(ratios.values()) <= 0.85, ratios
    assert math.exp(np.mean(np.log(list(ratios.values())))) <= 0.72, ratios


def test_delivered_divergence_falls_as_the_budget_rises(
    recipes: dict[str, tuple[float, int, float, float]],
) -> None:
    in_order = sorted(recipes.values(), key=lambda r: r[1])
    assert all(a[2] > b[2] for a, b in pairwise(in_order))


def test_predictions_are_within_what_is_stated(
    costs: Costs, recipes: dict[str, tuple[float, int, float, float]]
) -> None:
    for _, _, kld, predicted in recipes.values():
        assert predicted / costs.uncertainty <= kld <= predicted * costs.uncertainty


def test_recipes_beat_controls(
    costs: Costs, measure: Measure, recipes: dict[str, tuple[float, int, float, float]]
) -> None:
    problem, rng = costs.problem, np.random.default_rng(3)
    _, size, kld, _ = recipes["Q3_K_M"]
    is_choice = np.isfinite(costs.divergence)
    n_weights = np.array([t.n_weights for t in problem.tensors], float)[:, None]
    energy = np.array(
        [float(problem.imatrix[t.imatrix].values.mean()) if t.imatrix else 1.0 for t in problem.tensors]
    )
    bits = 8 * costs.sizes / n_weights
    for cost in (
        costs.errors.relative,
        costs.errors.relative * n_weights,
        energy[:, None] * n_weights * 4.0**-bits,
    ):
        index = choose(np.where(is_choice, cost, np.inf), costs.sizes, [size - problem.overhead]).index
        assert kld < measure("COPY", rules_of(costs, index))[0]
    for _ in range(4):
        assert kld < measure("COPY", rules_of(costs, random_mix(costs, size, rng)))[0]


def test_predictions_rank_mixes(
    costs: Costs, measure: Measure, recipes: dict[str, tuple[float, int, float, float]]
) -> None:
    rng = np.random.default_rng(7)
    predicted, measured = [r[3] for r in recipes.values()], [r[2] for r in recipes.values()]
    for _, size, _, _ in recipes.values():
        index = random_mix(costs, size, rng)
        predicted.append(float(costs.divergence[np.arange(len(index)), index].sum()))
        measured.append(measure("COPY", rules_of(costs, index))[0])
    ranks = [np.argsort(np.argsort(x)) for x in (predicted, measured)]
    assert np.corrcoef(*ranks)[0, 1] >= 0.93


def random_mix(costs: Costs, size: int, rng: np.random.Generator) -> np.ndarray:
    """Types at random, then changed by steps at random places until they fill the size to 1 %."""
    tensors = costs.problem.tensors
    index = np.array([rng.integers(0, len(t.types)) for t in tensors])
    while not 0.99 * size <= (now := costs.problem.total_bytes(index)) <= size:
        i = int(rng.integers(0, len(tensors)))
        index[i] = np.clip(index[i] + (-1 if now > size else 1), 0, len(tensors[i].types) - 1)
    return index


def test_probes(
    costs: Costs, measure: Measure, text: str, recipes: dict[str, tuple[float, int, float, float]]
) -> None:
    of_mix, size, _, _ = recipes["IQ3_XXS"]
    told = []
    found = probe(
        solve(costs, Budget(size=size)),
        text[20_000:],
        12,
        n_windows=2,
        progress=lambda *row: told.append(row),
    )
    assert len(told) == len(found.measured) == 12
    assert [row[2] for row in told] == list(found.measured)
    assert (found.fit.factors >= 0).all()
    assert (found.fit.errors > 0).all()
    assert len(found.lines()) == 1 + len(found.groups)
    recipe = solve(found.costs, Budget(size=size))
    assert measure(recipe.type, recipe.rules)[0] <= 0.8 * of_mix
    assert "12 runs" in recipe.costs.origin


def test_probe_groups_hold_every_tensor_once(costs: Costs) -> None:
    groups = probe_groups(costs, 2)
    members = np.concatenate([g.members for g in groups])
    assert sorted(members) == list(range(len(costs.problem.tensors)))
    assert "ffn_up_exps, layers 0-1" in {g.name for g in groups}
    assert {"output", "token_embd"} <= {g.name for g in groups}


def test_a_design_is_orthogonal() -> None:
    for order in (1, 2, 8, 40):
        matrix = hadamard(order)
        assert len(matrix) >= order
        assert np.array_equal(matrix @ matrix.T, len(matrix) * np.eye(len(matrix), dtype=int))


def test_a_fit_finds_factors_and_their_errors() -> None:
    rng = np.random.default_rng(0)
    true = np.array([0.0, 0.3, 0.8, 1.0, 1.5, 2.0])
    outside = 0
    for _ in range(20):
        parts = rng.choice([0.3, 3.0], (64, 6)) * rng.lognormal(0, 0.1, (64, 6))
        measured = parts @ true * (1 + 0.03 * rng.standard_normal(64))
        fit = fit_factors(parts, measured)
        assert (fit.factors >= 0).all()
        assert np.abs(fit.factors - true).max() < 0.15
        assert 0.01 < fit.spread < 0.08
        outside += int((np.abs(fit.factors - true) > 2 * fit.errors).sum())
    # of 120, one in twenty or so
    assert outside <= 15


def test_a_fit_without_enough_runs_keeps_what_was_predicted() -> None:
    parts = np.random.default_rng(1).choice([0.5, 2.0], (4, 30))
    fit = fit_factors(parts, 0.4 * parts.sum(axis=1))
    assert np.allclose(fit.factors, 0.4, atol=0.02)
