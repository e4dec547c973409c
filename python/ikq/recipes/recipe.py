"""Making a recipe: `make_recipe`."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ikq import _ikq
from ikq.arrays.quant_types import QuantType
from ikq.errors import RefusedError
from ikq.quantizing.options import PathLike
from ikq.recipes.budget import Placement, Use, memories_of, placements
from ikq.recipes.choose import Choice, Infeasible, Limit, Relaxed, choose
from ikq.recipes.covariances import InputCovariances
from ikq.recipes.errors import Errors, measure_errors
from ikq.recipes.problem import DEFAULT_TYPES, Problem, TensorChoices, plan_of_types, read_problem
from ikq.recipes.rules import recipe_rules
from ikq.recipes.sensitivity import coefficients
from ikq.recipes.speed import SpeedModel, Speeds, speed_model
from ikq.statistics.imatrix import Imatrix

__all__ = ["Budget", "Costs", "Recipe", "check_size", "make_recipe", "measure_costs", "open_problem", "solve"]

Floats = NDArray[np.float64]

UNCERTAINTY = 2.5
"""Factor by which a divergence predicted from weights alone may be off either way: coefficients are right to
within a factor of two or so, and what they leave out is common to many tensors."""


@dataclass(frozen=True)
class Budget:
    """The limits of a recipe. Exactly one of `size`, `bpw` and `ram` is given.

    Attributes:
        size: Bytes of the file.
        bpw: Bits per weight, over all tensors; metadata come on top.
        ram: Bytes of main memory for weights, cache and buffers.
        vram: The same on a second device, with `ram`.
        min_tg: Least tokens per second of generation.
        min_pp: Least tokens per second of prompts.
        vram_bandwidth: Bytes per second that the second device reads.
    """

    size: int | None = None
    bpw: float | None = None
    ram: int | None = None
    vram: int | None = None
    min_tg: float | None = None
    min_pp: float | None = None
    vram_bandwidth: float | None = None

    def check(self) -> None:
        """Raises RefusedError if this is no budget."""
        given = [name for name in ("size", "bpw", "ram") if getattr(self, name) is not None]
        if self.vram is not None and self.ram is None:
            raise RefusedError("--vram goes with --ram: say how much of each there is")
        if len(given) != 1:
            raise RefusedError(
                "say how large the result may be: one of --size 240G, --bpw 3.4 and --ram 231G [--vram 11G]"
            )
        if self.vram is not None and self.min_tg is not None and self.vram_bandwidth is None:
            raise RefusedError(
                "--min-tg with --vram needs the bandwidth of that memory: --vram-bandwidth 500G, for example"
            )


@dataclass(frozen=True)
class Costs:
    """The predicted divergence and size for every tensor and type.

    Attributes:
        problem: The model and its choices.
        errors: Relative errors, as sampled.
        coefficients: Divergence per relative error, by tensor.
        divergence: Tensors x choices: KL divergence that a type costs there; infinite beyond its choices.
        uncertainty: Factor by which a sum of these may be off either way.
        origin: Where the coefficients are from, for people.
    """

    problem: Problem
    errors: Errors
    coefficients: Mapping[str, float]
    divergence: Floats
    uncertainty: float = UNCERTAINTY
    origin: str = "weights and activation statistics"

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Bytes, tensors x choices."""
        width = self.divergence.shape[1]
        rows = [np.r_[t.bytes, np.full(width - len(t.bytes), t.bytes[-1])] for t in self.problem.tensors]
        return np.array(rows, np.int64)


@dataclass(frozen=True)
class Recipe:
    """A type for every tensor.

    Attributes:
        costs: What was predicted for all types.
        choice: The chosen types.
        type: The file type TYPE that is written to the file: that of most weights.
        file_bytes: Exact size of the file.
        budget: What was asked for.
        placement: Which tensors are in which memory, if memories were given.
        n_ctx: Positions that the cache is for, with a placement.
        use: How it will be run.
        speeds: Predicted tokens per second: of prompts, and of generation; None where nothing was measured.
        notes: Further remarks for the user.
        options: Further options that `ikq quantize` needs for this file.
    """

    costs: Costs
    choice: Choice
    type: str
    file_bytes: int
    budget: Budget
    placement: Placement | None = None
    n_ctx: int | None = None
    use: Use = field(default_factory=Use)
    speeds: tuple[float, float] | None = None
    notes: tuple[str, ...] = ()
    options: tuple[str, ...] = ()

    @property
    def types(self) -> dict[str, QuantType | int]:
        """The chosen types by tensor."""
        return self.costs.problem.types_of(self.choice.index)

    @property
    def rules(self) -> list[str]:
        """The same as rules `regex=type`."""
        return recipe_rules(self.types)

    @property
    def divergence(self) -> float:
        """Predicted KL divergence of the model's output, mean over tokens."""
        return self.choice.cost

    @property
    def interval(self) -> tuple[float, float]:
        """The interval that will contain the divergence in nine cases of ten."""
        return self.divergence / self.costs.uncertainty, self.divergence * self.costs.uncertainty

    @property
    def bits_per_weight(self) -> float:
        """Of all tensors."""
        problem = self.costs.problem
        fixed = sum(problem.fixed_bytes.values())
        return 8 * (int(self.choice.bytes.sum()) + fixed) / problem.n_weights


def open_problem(
    source: PathLike,
    imatrix: PathLike | Imatrix | None,
    *,
    types: Sequence[QuantType] = DEFAULT_TYPES,
    fix: Sequence[str] = (),
    allow_requantize: bool = False,
) -> Problem:
    """The choices that there are for a model; arguments and errors are those of `make_recipe`."""
    if Path(source).is_dir():
        raise RefusedError(f"{source} is a folder, and recipes are for GGUF files: `ikq convert` makes one")
    statistics = imatrix if imatrix is None or isinstance(imatrix, Imatrix) else Imatrix(imatrix)
    return read_problem(Path(source), statistics, types, fix=fix, allow_requantize=allow_requantize)


def measure_costs(
    problem: Problem,
    *,
    n_threads: int | None = None,
    sensitivities: Mapping[tuple[str, QuantType | None], float] | None = None,
    covariances: InputCovariances | None = None,
    progress: Callable[[TensorChoices], None] | None = None,
) -> Costs:
    """Samples the errors of all types and predicts what they cost.

    Args:
        problem: The model and its choices.
        n_threads: Threads; None is one per CPU.
        sensitivities: Measured values, as `read_sensitivities` gives them, used instead of predicted ones.
        covariances: Of the inputs of tensors: errors are measured under them.
        progress: Called after each tensor.

    Raises:
        ikq.errors.RefusedError: No statistics, values that name no tensor, covariances of another model.
        ikq.errors.UnsupportedError: The architecture is not known, and there are no values for its tensors.
        ikq.errors.FormatError: A weight that is not finite.
    """
    if covariances is not None and not covariances.names & {t.name for t in problem.tensors}:
        raise RefusedError("the covariances are of another model: they have none of its tensors")

    def measured() -> Errors:
        return measure_errors(problem, n_threads=n_threads, covariances=covariances, progress=progress)

    if sensitivities is None:
        found, origin = coefficients(problem), "weights and activation statistics"
        errors = measured()
        values = np.full_like(errors.relative, np.nan)
    else:
        _check_names(problem, sensitivities)
        errors = measured()
        found, values = _from_table(problem, errors, sensitivities)
        origin = "a table of measured sensitivities"
    predicted = np.array([found[t.name] for t in problem.tensors])[:, np.newaxis] * errors.relative
    divergence = np.where(np.isnan(values), predicted, values)
    return Costs(problem, errors, found, divergence, origin=origin)


def _check_names(problem: Problem, table: Mapping[tuple[str, QuantType | None], float]) -> None:
    """Raises RefusedError if a table is of another model."""
    known = {t.name for t in problem.tensors} | problem.fixed_bytes.keys()
    unknown = sorted({name for name, _ in table} - known)
    if unknown:
        raise RefusedError(
            f"the table of sensitivities names {unknown[0]}, which the model does not have; "
            f"{problem.smallest}"
        )


def _from_table(
    problem: Problem, errors: Errors, table: Mapping[tuple[str, QuantType | None], float]
) -> tuple[dict[str, float], Floats]:
    """Coefficients, and the table's own values where it has them."""
    places = {t.name: i for i, t in enumerate(problem.tensors)}
    values = np.full_like(errors.relative, np.nan)
    direct: dict[str, float] = {}
    for (name, of_type), value in table.items():
        i = places.get(name)
        if i is None:
            continue
        if of_type is None:
            direct[name] = value
        elif (k := _choice_of(problem.tensors[i], of_type)) is not None:
            values[i, k] = value
    for name, i in places.items():
        known = np.isfinite(values[i]) & (errors.relative[i] > 0)
        if name not in direct and known.any():
            direct[name] = float(values[i][known].sum() / errors.relative[i][known].sum())
    if not direct:
        name, of_type = next(iter(table))
        raise RefusedError(
            "the table of sensitivities has no value for a tensor and a type that may be chosen, but for "
            f"{name} with {'all types' if of_type is None else of_type.name}; --types says what may be"
        )
    if len(direct) < len(places):
        # the others by prediction, on the table's scale
        predicted = coefficients(problem)
        ratios = [np.log(direct[n] / predicted[n]) for n in direct if direct[n] > 0]
        scale = float(np.exp(np.median(ratios))) if ratios else 1.0
        direct |= {n: scale * predicted[n] for n in places if n not in direct}
    return direct, values


def _choice_of(t: TensorChoices, wanted: QuantType) -> int | None:
    """A tensor's choice of that type, or of the plain one with the same bits (`IQ1_M` for `IQ1_M_R4`)."""
    names = [k.name if isinstance(k, QuantType) else "" for k in t.types]
    for name in (wanted.name, re.sub(r"_R\d+$", "", wanted.name)):
        if name in names:
            return names.index(name)
    return None


def make_recipe(
    source: PathLike,
    imatrix: PathLike | Imatrix | None,
    budget: Budget,
    *,
    types: Sequence[QuantType] = DEFAULT_TYPES,
    fix: Sequence[str] = (),
    allow_requantize: bool = False,
    n_threads: int | None = None,
    sensitivities: Mapping[tuple[str, QuantType | None], float] | None = None,
    covariances: InputCovariances | None = None,
    use: Use | None = None,
    speeds: Speeds | None = None,
) -> Recipe:
    """The mix with the least predicted divergence within a budget; what `ikq recipe` runs.

    Args:
        source: The model, or any shard of a split set.
        imatrix: Activation statistics, a file or an `Imatrix`.
        budget: What has to be kept.
        types: What may be chosen.
        fix: Rules `regex=type` for tensors that have no choice.
        allow_requantize: Accept tensors that are quantized already.
        n_threads: As for `measure_costs`.
        sensitivities: As for `measure_costs`.
        covariances: As for `measure_costs`.
        use: As for `solve`.
        speeds: As for `solve`.

    Raises:
        ikq.errors.RefusedError: What was asked makes no sense or cannot be kept; the message says what can.
        ikq.errors.UnsupportedError: The architecture is not known.
        ikq.errors.FormatError: A damaged file, a rule that is none, a weight that is not finite.
        OSError: Files that cannot be read.
    """
    problem = open_problem(source, imatrix, types=types, fix=fix, allow_requantize=allow_requantize)
    check_size(problem, budget)
    costs = measure_costs(problem, n_threads=n_threads, sensitivities=sensitivities, covariances=covariances)
    return solve(costs, budget, use=use, speeds=speeds)


def solve(costs: Costs, budget: Budget, *, use: Use | None = None, speeds: Speeds | None = None) -> Recipe:
    """Chooses types within a budget.

    Args:
        costs: Predicted divergences.
        budget: What has to be kept.
        use: How the model will be run, for budgets of memory and speed.
        speeds: Of this machine, for least speeds, and for predicted ones.

    Raises:
        ikq.errors.RefusedError: Nothing fits; names the smallest size, or the fastest speed, that is
        possible.
    """
    use = use or Use()
    budget.check()
    if speeds is None and (budget.min_tg is not None or budget.min_pp is not None):
        raise RefusedError("least speeds need measured speeds of types")
    if budget.ram is not None:
        return _solve_memories(costs, budget, use, speeds)
    problem = costs.problem
    times = None if speeds is None else speed_model(problem, speeds, n_ubatch=use.n_ubatch)
    limits = _limits(budget, times)
    allowed = _file_bytes(problem, budget)
    spare = 0
    for _ in range(4):
        try:
            choice = choose(
                costs.divergence, costs.sizes, [allowed - spare - problem.overhead], limits=limits
            )
        except Infeasible as e:
            raise _refusal(problem, budget, e, times) from None
        recipe = replace(_finished(costs, choice, budget, times), use=use)
        if recipe.file_bytes <= allowed:
            return recipe
        spare += recipe.file_bytes - allowed
    raise RefusedError(f"no choice of types makes a file of at most {allowed} bytes")


def check_size(problem: Problem, budget: Budget) -> None:
    """Raises RefusedError if no file is as small as that, before anything is sampled."""
    budget.check()
    if budget.ram is None and problem.least_bytes > _file_bytes(problem, budget):
        raise _too_small(problem, budget)


def _file_bytes(problem: Problem, budget: Budget) -> int:
    if budget.size is not None:
        return budget.size
    metadata = problem.overhead - sum(problem.fixed_bytes.values())
    return int((budget.bpw or 0) * problem.n_weights / 8) + metadata


def _limits(budget: Budget, times: SpeedModel | None) -> list[Limit]:
    """Least speeds as most seconds per token; what is spent in any case is taken off."""
    out = []
    if times is not None and budget.min_tg is not None:
        out.append(Limit(times.tg, 1 / budget.min_tg - times.tg_base))
    if times is not None and budget.min_pp is not None:
        out.append(Limit(times.pp, 1 / budget.min_pp - times.pp_base))
    return out


def _refusal(problem: Problem, budget: Budget, e: Infeasible, times: SpeedModel | None) -> RefusedError:
    if e.memory is None and e.limit is None:
        return RefusedError(
            f"no mix within the budget reaches both --min-tg {budget.min_tg or 0:g} and "
            f"--min-pp {budget.min_pp or 0:g}; {problem.smallest}"
        )
    if e.memory is None:
        is_tg = budget.min_tg is not None and e.limit == 0
        base = 0.0 if times is None else times.tg_base if is_tg else times.pp_base
        asked = f"--min-tg {budget.min_tg:g}" if is_tg else f"--min-pp {budget.min_pp or 0:g}"
        return RefusedError(
            f"{asked} is too fast: the fastest mix within the budget is predicted to reach "
            f"{1 / (e.least + base):.4g} tokens per second; {problem.smallest}"
        )
    return _too_small(problem, budget)


def _too_small(problem: Problem, budget: Budget) -> RefusedError:
    asked = f"--size {budget.size}" if budget.size is not None else f"--bpw {budget.bpw}"
    return RefusedError(f"{asked} is too small: {problem.smallest}")


def _solve_memories(costs: Costs, budget: Budget, use: Use, speeds: Speeds | None) -> Recipe:
    problem, sizes = costs.problem, costs.sizes
    memories = memories_of(problem, use)
    room = (budget.ram or 0, budget.vram or 0)
    relaxed = Relaxed(costs.divergence, sizes)
    candidates: list[tuple[float, int, Placement, list[int]]] = []
    least: tuple[int, int] | None = None

    def lacking(needed: tuple[int, int]) -> int:
        return sum(max(0, n - r) for n, r in zip(needed, room, strict=True))

    for placement in placements(problem, memories, has_vram=budget.vram is not None):
        budgets = [r - taken for r, taken in zip(room, placement.reserved, strict=True)]
        bound = relaxed.bound(budgets, placement.memories)
        if math.isfinite(bound):
            candidates.append((bound, len(candidates), placement, budgets))
            continue
        smallest = [int(sizes[placement.memories == m].min(axis=1).sum()) for m in (0, 1)]
        needed = smallest[0] + placement.reserved[0], smallest[1] + placement.reserved[1]
        if least is None or (lacking(needed), sum(needed)) < (lacking(least), sum(least)):
            least = needed
    best: tuple[Choice, Placement, SpeedModel | None] | None = None
    too_slow: tuple[Infeasible, SpeedModel | None] | None = None
    # the most promising first; those that cannot be better than what was found need not be solved
    for bound, _, placement, budgets in sorted(candidates, key=lambda c: c[:2]):
        if best is not None and bound >= best[0].cost * (1 - 1e-9):
            break
        times = None
        if speeds is not None:
            times = speed_model(
                problem,
                speeds,
                n_ubatch=use.n_ubatch,
                memories=placement.memories,
                vram_bandwidth=budget.vram_bandwidth,
            )
        try:
            choice = choose(costs.divergence, sizes, budgets, placement.memories, _limits(budget, times))
        except Infeasible as e:
            if too_slow is None or e.least < too_slow[0].least:
                too_slow = e, times
            continue
        if best is None or choice.cost < best[0].cost * (1 - 1e-9):
            best = choice, placement, times
    if best is None:
        if too_slow is not None:
            raise _refusal(problem, budget, *too_slow)
        ram, vram = least or (0, 0)
        words = f"--ram {ram} ({ram / 1e9:.3f} GB)"
        if budget.vram is not None:
            words += f" and --vram {vram} ({vram / 1e9:.3f} GB)" if vram else " without --vram"
        raise RefusedError(
            f"weights do not fit: the smallest mix with these types, the cache of {memories.n_ctx} positions "
            f"and buffers take {words} (the file alone {problem.least_bytes} bytes)"
        )
    choice, placement, times = best
    recipe = _finished(costs, choice, budget, times)
    return replace(recipe, placement=placement, n_ctx=memories.n_ctx, use=use)


def _finished(costs: Costs, choice: Choice, budget: Budget, times: SpeedModel | None) -> Recipe:
    """With the exact size, from the plan of the file itself."""
    problem = costs.problem
    types = problem.types_of(choice.index)
    weights: dict[str, int] = {}
    for t in problem.tensors:
        to = types[t.name]
        name = _ikq.ftype_of_type(int(to)) if isinstance(to, QuantType) else None
        if name is not None:
            weights[name] = weights.get(name, 0) + t.n_weights
    type_name = max(weights, key=lambda n: weights[n], default="COPY")
    plan = plan_of_types(
        problem.source, problem.imatrix, recipe_rules(types), type=type_name, allow_requantize=True
    )
    speeds = None if times is None else times.speeds(choice.index)
    notes, options = [], []
    if plan.coverage is not None and not plan.coverage.is_complete:
        covered = f"{plan.coverage.n_covered} of {plan.coverage.n_tensors}"
        notes.append(
            f"the imatrix is incomplete: it has data for {covered} tensors; the others are encoded, and "
            "predicted, as if all their inputs were alike"
        )
        options.append("--allow-missing")
    if any(not t.copied and not _is_float(t.from_type) for t in plan.tensors):
        notes.append("the source is quantized: what that lost is not in the predicted divergence")
        options.append("--allow-requantize")
    return Recipe(
        costs,
        choice,
        type_name,
        plan.total_bytes,
        budget,
        speeds=speeds,
        notes=tuple(notes),
        options=tuple(options),
    )


def _is_float(t: QuantType | int) -> bool:
    return isinstance(t, QuantType) and t.family == "float"
