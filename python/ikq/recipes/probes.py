"""Sensitivities measured on the model's own output: a designed experiment, and a linear fit.

Tensors are put into groups of one kind in one range of layers. Each run quantizes the whole model at the
types of a recipe, but every group one step better or one step worse, as the rows of a Hadamard matrix say,
and measures the KL divergence on a few windows of text. Every group is worse in about half of the runs, and
any two groups go together in half of those, so that each run tells something about all groups, at the
damage that the recipe will have. Taking one tensor to its lowest type at a time tells of a damage that no
recipe has.

The divergence is then fitted as a sum over groups of a factor, at least 0, times what was predicted for the
group. Factors are drawn to one common factor as far as the runs do not tell otherwise.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ikq.errors import RefusedError
from ikq.evaluate import cut, text_tokens
from ikq.evaluate.windows import window_bos
from ikq.files.gguf import GGUFReader
from ikq.recipes.mixes import Meter, Mixes
from ikq.recipes.recipe import Costs, Recipe
from ikq.recipes.rules import recipe_rules
from ikq.tokenizer import Tokenizer

__all__ = [
    "Experiment",
    "Fit",
    "Group",
    "Probes",
    "check_runs",
    "concluded",
    "fit_factors",
    "hadamard",
    "plan_probe",
    "probe",
    "probe_groups",
    "spread_windows",
]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

N_WINDOWS = 8
"""Windows of text of each run. All runs see the same ones: their differences are surer than their values.
They are from all over the text: neighbours are of one subject, and factors that fit it fit no other."""

_FEWEST = 4
_N_RANGES = 4
_STEP = 3.0
_PRIOR = 0.7
"""Standard deviation of a factor before any run: coefficients are right to within a factor of two."""

_TEXTS = 1.5
"""Factor by which the divergence on another text may differ from that on the text of the runs; the choice is
also a little worse than it looks to what it was fitted to."""


@dataclass(frozen=True)
class Group:
    """Tensors whose coefficients get one factor.

    Attributes:
        name: Kind and layers, for people.
        members: Their places among the problem's tensors.
    """

    name: str
    members: Ints


@dataclass(frozen=True)
class Fit:
    """Factors of groups.

    Attributes:
        factors: One per group; at least 0.
        errors: Their standard errors.
        spread: Standard deviation of the logarithm of prediction over measurement, each run predicted by a
            fit to the others.
    """

    factors: Floats
    errors: Floats
    spread: float


@dataclass(frozen=True)
class Probes:
    """What the runs told.

    Attributes:
        costs: Predictions with the fitted coefficients.
        groups: What was perturbed.
        fit: The fit.
        predicted: What was predicted for each run before.
        measured: What was measured.
    """

    costs: Costs
    groups: tuple[Group, ...]
    fit: Fit
    predicted: Floats
    measured: Floats

    def lines(self) -> list[str]:
        """For people: factors with their errors."""
        out = [
            f"{len(self.measured)} runs; predictions of runs left out are off by {_percent(self.fit.spread)}"
        ]
        width = max(len(g.name) for g in self.groups)
        for g, factor, error in zip(self.groups, self.fit.factors, self.fit.errors, strict=True):
            out.append(f"{g.name:{width}} {factor:6.2f} ± {error:.2f} times what was predicted")
        return out


def _percent(spread: float) -> str:
    return f"{100 * math.expm1(spread):.0f} %"


def probe_groups(costs: Costs, n_ranges: int = _N_RANGES) -> tuple[Group, ...]:
    """Groups: kinds of tensors in ranges of layers, in the order of the file."""
    tensors = costs.problem.tensors
    n_layers = 1 + max((t.layer for t in tensors if t.layer is not None), default=0)
    n_ranges = min(n_ranges, n_layers)
    members: dict[tuple[str, int], list[int]] = {}
    for i, t in enumerate(tensors):
        if len(t.types) > 1:
            part = -1 if t.layer is None else t.layer * n_ranges // n_layers
            members.setdefault((t.kind, part), []).append(i)
    out = []
    for (kind, part), places in members.items():
        layers = [layer for i in places if (layer := tensors[i].layer) is not None]
        if part < 0:
            name = kind
        else:
            first, last = min(layers), max(layers)
            name = f"{kind}, layer {first}" if first == last else f"{kind}, layers {first}-{last}"
        out.append(Group(name, np.array(places, np.int64)))
    return tuple(out)


def hadamard(order: int) -> NDArray[np.int64]:
    """A matrix of -1 and 1 with orthogonal rows and columns; the order is a power of two (Sylvester)."""
    matrix = np.ones((1, 1), np.int64)
    while len(matrix) < order:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix


def _design(n_runs: int, n_groups: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Runs x groups: 1 where the group is worse. The matrix's first column (all alike) is not used."""
    order = 2
    while order < max(n_runs, n_groups + 1):
        order *= 2
    matrix = hadamard(order)
    columns = 1 + rng.permutation(order - 1)[:n_groups]
    rows = rng.permutation(order)[:n_runs]
    return matrix[np.ix_(rows, columns)]


def _neighbours(costs: Costs, index: Ints) -> tuple[Ints, Ints]:
    """For each tensor the type with about a third of the error of the chosen one, and about three times."""
    better, worse = index.copy(), index.copy()
    for i, (t, k) in enumerate(zip(costs.problem.tensors, index, strict=True)):
        errors = costs.errors.relative[i, : len(t.types)]
        usable = np.flatnonzero(errors > 0)
        if not len(usable):
            continue
        here = max(float(errors[k]), float(errors[usable].min()))
        distance = np.log(errors[usable] / here)
        better[i] = usable[np.abs(distance + math.log(_STEP)).argmin()]
        worse[i] = usable[np.abs(distance - math.log(_STEP)).argmin()]
    return better, worse


def check_runs(n_runs: int) -> None:
    """Raises RefusedError if so few runs tell nothing."""
    if n_runs < _FEWEST:
        raise RefusedError(f"--probe {n_runs}: expected {_FEWEST} runs or more")


@dataclass(frozen=True)
class Experiment:
    """What is to be measured about a recipe.

    Attributes:
        recipe: Types that the runs are about.
        groups: What is perturbed.
        parts: Runs x groups: what is predicted.
        mixes: What the runs measure.
    """

    recipe: Recipe
    groups: tuple[Group, ...]
    parts: Floats
    mixes: Mixes


def plan_probe(
    recipe: Recipe, text: str, n_runs: int, *, n_windows: int = N_WINDOWS, n_ctx: int = 512
) -> Experiment:
    """Designs the experiment about a recipe; nothing is run yet.

    Args:
        recipe: As for `probe`, as for all that follows.
        text: See there.
        n_runs: See there.
        n_windows: See there.
        n_ctx: See there.

    Raises:
        ikq.errors.RefusedError: Too few runs, or a text of less than a window.
    """
    check_runs(n_runs)
    costs, problem = recipe.costs, recipe.costs.problem
    groups = probe_groups(costs)
    rng = np.random.default_rng(0)
    design = _design(n_runs, len(groups), rng)
    better, worse = _neighbours(costs, recipe.choice.index)
    rows = np.arange(len(problem.tensors))
    is_worse = np.zeros((n_runs, len(rows)), bool)
    parts = np.zeros((n_runs, len(groups)))
    for i in range(n_runs):
        for g, sign in zip(groups, design[i], strict=True):
            is_worse[i, g.members] = sign > 0
        values = costs.divergence[rows, np.where(is_worse[i], worse, better)]
        parts[i] = [values[g.members].sum() for g in groups]
    with GGUFReader(problem.source) as reader:
        tokenizer = Tokenizer.from_reader(reader)
    tokens = spread_windows(text_tokens(tokenizer, text), n_windows, n_ctx)
    mixes = Mixes(
        type=recipe.type,
        rules=(recipe_rules(problem.types_of(better)), recipe_rules(problem.types_of(worse))),
        names=tuple(t.name for t in problem.tensors),
        is_second=is_worse,
        windows=cut(tokens, n_ctx=n_ctx, chunks=n_windows, bos=window_bos(tokenizer)),
    )
    return Experiment(recipe, groups, parts, mixes)


def probe(
    recipe: Recipe,
    text: str,
    n_runs: int,
    *,
    n_windows: int = N_WINDOWS,
    n_ctx: int = 512,
    n_threads: int | None = None,
    folder: Path | None = None,
    progress: Callable[[int, float, float], None] | None = None,
) -> Probes:
    """Runs the experiment about a recipe.

    Args:
        recipe: Types that the runs are about.
        text: What divergences are measured on.
        n_runs: Runs; each measures the model. Two files are written.
        n_windows: Windows of the text, evenly over all of it.
        n_ctx: Tokens of a window.
        n_threads: Threads; None is one per CPU.
        folder: Where files are written meanwhile; None: the system's place for that.
        progress: Called after each run with its number, what was predicted and what was measured.

    Raises:
        ikq.errors.RefusedError: Too few runs, or a text of less than a window.
    """
    experiment = plan_probe(recipe, text, n_runs, n_windows=n_windows, n_ctx=n_ctx)
    problem = recipe.costs.problem
    with (
        tempfile.TemporaryDirectory(prefix="ikq-probe-", dir=folder) as scratch,
        Meter(experiment.mixes, problem.source, problem.imatrix, Path(scratch), n_threads) as meter,
    ):
        return concluded(experiment, map(meter, range(n_runs)), progress)


def concluded(
    experiment: Experiment,
    values: Iterable[float],
    progress: Callable[[int, float, float], None] | None = None,
) -> Probes:
    """What the runs of an experiment tell.

    Args:
        experiment: What was to be measured.
        values: The divergence of each run, in order, as they are measured.
        progress: As for `probe`.
    """
    parts, costs = experiment.parts, experiment.recipe.costs
    measured = np.zeros(len(parts))
    for i, value in enumerate(values):
        measured[i] = value
        if progress is not None:
            progress(i + 1, float(parts[i].sum()), float(value))
    fit = fit_factors(parts, measured)
    factors = np.ones(len(costs.problem.tensors))
    for g, factor in zip(experiment.groups, fit.factors, strict=True):
        factors[g.members] = max(float(factor), 1e-3)
    fitted = replace(
        costs,
        coefficients={
            t.name: costs.coefficients[t.name] * f
            for t, f in zip(costs.problem.tensors, factors, strict=True)
        },
        divergence=costs.divergence * factors[:, np.newaxis],
        uncertainty=max(_TEXTS, math.exp(2 * fit.spread)),
        origin=f"{len(parts)} runs of {experiment.mixes.windows.n} windows",
    )
    return Probes(fitted, experiment.groups, fit, parts.sum(axis=1), measured)


def spread_windows(tokens: NDArray[np.int32], n_windows: int, n_ctx: int) -> NDArray[np.int32]:
    """The windows of `n_ctx` tokens that lie evenly over a text, one behind the other.

    Args:
        tokens: The text.
        n_windows: How many are wanted; at least 1.
        n_ctx: Tokens of a window.

    Returns:
        Tokens of the windows; the text itself if it has no more of them.
    """
    n = len(tokens) // n_ctx
    if n <= n_windows:
        return tokens
    places = ((np.arange(n_windows) + 0.5) * n / n_windows).astype(np.int64)
    return tokens[: n * n_ctx].reshape(n, n_ctx)[places].ravel()


def fit_factors(parts: Floats, measured: Floats) -> Fit:
    """Factors f of at least 0 with parts @ f near what was measured.

    Errors count relative to the measurement. Each factor is drawn to the common one that fits all runs
    best, by the spread that coefficients have before; how much the measurements' own spread weighs against
    that is found from what is left of them.

    Args:
        parts: Runs x groups, what was predicted.
        measured: One divergence per run.
    """
    common = math.exp(float(np.mean(np.log(measured) - np.log(parts.sum(axis=1)))))
    x = common * parts / measured[:, np.newaxis]
    noise = 0.1
    for _ in range(3):
        factors, covariance = _ridge(x, noise)
        left = 1 - x @ factors
        # as many degrees of freedom are used as the data decide
        used = float(np.trace(x @ covariance @ x.T)) / noise**2
        noise = max(0.01, math.sqrt(float(left @ left) / max(1.0, len(left) - used)))
    factors, covariance = _ridge(x, noise)
    spreads = []
    for i in range(len(measured)):
        others = np.arange(len(measured)) != i
        without, _ = _ridge(x[others], noise)
        spreads.append(math.log(max(1e-6, float(x[i] @ without))))
    spread = math.sqrt(float(np.mean(np.square(spreads))))
    return Fit(common * factors, common * np.sqrt(np.diag(covariance)), spread)


def _ridge(x: Floats, noise: float) -> tuple[Floats, Floats]:
    """Least squares of 1 - x f with a prior of f about 1; what comes out negative is set to 0 in turn."""
    n = x.shape[1]
    precision = x.T @ x / noise**2 + np.eye(n) / _PRIOR**2
    right = x.sum(axis=0) / noise**2 + np.ones(n) / _PRIOR**2
    free = np.ones(n, bool)
    factors = np.zeros(n)
    for _ in range(n):
        factors[:] = 0
        factors[free] = np.linalg.solve(precision[np.ix_(free, free)], right[free])
        if (factors >= 0).all():
            break
        free &= factors > 0
    covariance: Floats = np.linalg.inv(precision).astype(np.float64)
    return np.maximum(factors, 0.0), covariance
