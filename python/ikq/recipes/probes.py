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
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from ikq.errors import RefusedError
from ikq.evaluate import (
    BaseFile,
    CompactBase,
    base_writer,
    compact_writer,
    cut,
    measure_divergence,
    measure_perplexity,
    text_tokens,
)
from ikq.evaluate.windows import window_bos
from ikq.files.gguf import GGUFReader
from ikq.inference.model import Model
from ikq.quantizing.pipeline import quantize_file
from ikq.recipes.recipe import Costs, Recipe
from ikq.recipes.rules import recipe_rules

__all__ = [
    "Fit",
    "Group",
    "Probes",
    "check_runs",
    "fit_factors",
    "hadamard",
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
_FULL_VOCABULARY = 16384
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
    check_runs(n_runs)
    costs = recipe.costs
    groups = probe_groups(costs)
    rng = np.random.default_rng(0)
    design = _design(n_runs, len(groups), rng)
    better, worse = _neighbours(costs, recipe.choice.index)
    parts = np.zeros((n_runs, len(groups)))
    measured = np.zeros(n_runs)
    rows = np.arange(len(costs.problem.tensors))
    with (
        tempfile.TemporaryDirectory(prefix="ikq-probe-", dir=folder) as scratch,
        _Meter(recipe, (better, worse), text, n_windows, n_ctx, n_threads, Path(scratch)) as meter,
    ):
        for i in range(n_runs):
            is_worse = np.zeros(len(rows), bool)
            for g, sign in zip(groups, design[i], strict=True):
                is_worse[g.members] = sign > 0
            values = costs.divergence[rows, np.where(is_worse, worse, better)]
            parts[i] = [values[g.members].sum() for g in groups]
            measured[i] = meter(is_worse)
            if progress is not None:
                progress(i + 1, float(parts[i].sum()), float(measured[i]))
    fit = fit_factors(parts, measured)
    factors = np.ones(len(rows))
    for g, factor in zip(groups, fit.factors, strict=True):
        factors[g.members] = max(float(factor), 1e-3)
    fitted = replace(
        costs,
        coefficients={
            t.name: costs.coefficients[t.name] * f
            for t, f in zip(costs.problem.tensors, factors, strict=True)
        },
        divergence=costs.divergence * factors[:, np.newaxis],
        uncertainty=max(_TEXTS, math.exp(2 * fit.spread)),
        origin=f"{n_runs} runs of {n_windows} windows",
    )
    return Probes(fitted, groups, fit, parts.sum(axis=1), measured)


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


class _Meter:
    """Measures the divergence of mixes of two files from the source.

    In every run a tensor has one of two types, so two files have all that is needed: the model of a run
    is made of tensors of either, and only those that changed since the last run are loaded.
    """

    def __init__(
        self,
        recipe: Recipe,
        indices: tuple[Ints, Ints],
        text: str,
        n_windows: int,
        n_ctx: int,
        n_threads: int | None,
        folder: Path,
    ) -> None:
        self._problem = recipe.costs.problem
        self._n_threads, self._n_windows = n_threads, n_windows
        base = folder / "base"
        with Model.load(self._problem.source, n_ctx=n_ctx, n_threads=n_threads) as model:
            tokenizer = model.tokenizer
            bos = window_bos(tokenizer)
            tokens = spread_windows(text_tokens(tokenizer, text), n_windows, n_ctx)
            windows = cut(tokens, n_ctx=n_ctx, chunks=n_windows, bos=bos)
            n_vocab = model.spec.n_vocab
            is_small = n_vocab <= _FULL_VOCABULARY
            with (base_writer if is_small else compact_writer)(base, windows, n_vocab) as sink:
                for _ in measure_perplexity(model, windows, sink):
                    pass
        self._base = BaseFile(base, bos) if is_small else CompactBase(base, bos)
        first, second = folder / "first.gguf", folder / "second.gguf"
        self._write(first, recipe.type, indices[0])
        # tensors that are the same in both are not encoded twice
        self._write(second, recipe.type, indices[1], reuse=first)
        self._first, self._second = GGUFReader(first), GGUFReader(second)
        self._model = Model.load(first, n_ctx=n_ctx, n_threads=n_threads)

    def _write(self, file: Path, type_name: str, index: Ints, reuse: Path | None = None) -> None:
        problem = self._problem
        quantize_file(
            problem.source,
            file,
            type_name,
            imatrix=problem.imatrix,
            tensor_type=recipe_rules(problem.types_of(index)),
            allow_missing=True,
            ignore_imatrix_rules=True,
            allow_requantize=True,
            n_threads=self._n_threads,
            reuse=reuse,
            restart=True,
        )

    def __call__(self, of_second: NDArray[np.bool_]) -> float:
        """The mean divergence with tensors of the first file, or of the second where that is said."""
        tensors = self._problem.tensors
        names = [t.name for t, second in zip(tensors, of_second, strict=True) if second]
        with self._first.with_tensors_of(self._second, names) as reader:
            self._model = self._model.exchange(reader)
        *_, found = measure_divergence(self._model, self._base, self._n_windows)
        return max(found.mean.value, 1e-12)

    def __enter__(self) -> _Meter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._model.close()
        self._first.close()
        self._second.close()


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
