"""Why every tensor has its type: the effect of the next larger or smaller type."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ikq.arrays.quant_types import QuantType
from ikq.recipes.recipe import Recipe

__all__ = ["Step", "Why", "explanation_lines", "reasons"]


@dataclass(frozen=True)
class Step:
    """Another type for a tensor.

    Attributes:
        type: The type.
        bytes: Bytes more than now (negative: fewer).
        divergence: Predicted divergence more than now.
        per_bit: Divergence that one bit per weight of this tensor buys (or costs) on the way there.
    """

    type: QuantType | int
    bytes: int
    divergence: float
    per_bit: float


@dataclass(frozen=True)
class Why:
    """A tensor's choice.

    Attributes:
        name: The tensor.
        type: Its type.
        bits_per_weight: Bits of its bytes per weight.
        coefficient: Divergence per relative squared error.
        error: Its relative squared error.
        divergence: Predicted part in the divergence.
        up: The next larger type that is worth its bytes best; None at the largest.
        down: The smaller type that costs least for what it frees; None at the smallest.
    """

    name: str
    type: QuantType | int
    bits_per_weight: float
    coefficient: float
    error: float
    divergence: float
    up: Step | None
    down: Step | None


def reasons(recipe: Recipe) -> list[Why]:
    """One per tensor, in the order of the file."""
    costs = recipe.costs
    out = []
    for i, (t, k) in enumerate(zip(costs.problem.tensors, recipe.choice.index, strict=True)):
        n = len(t.types)
        more = t.bytes - t.bytes[k]
        gain = costs.divergence[i, k] - costs.divergence[i, :n]
        bits = 8 * more / t.n_weights

        def step(
            j: int, more: np.ndarray = more, gain: np.ndarray = gain, bits: np.ndarray = bits, i: int = i
        ) -> Step:
            to = costs.problem.tensors[i].types[j]
            return Step(to, int(more[j]), -float(gain[j]), float(gain[j] / bits[j]))

        larger = [j for j in range(n) if more[j] > 0 and gain[j] > 0]
        smaller = [j for j in range(n) if more[j] < 0]
        out.append(
            Why(
                name=t.name,
                type=t.types[k],
                bits_per_weight=8 * int(t.bytes[k]) / t.n_weights,
                coefficient=costs.coefficients[t.name],
                error=float(costs.errors.relative[i, k]),
                divergence=float(costs.divergence[i, k]),
                up=step(max(larger, key=lambda j: gain[j] / bits[j])) if larger else None,
                down=step(min(smaller, key=lambda j: gain[j] / bits[j])) if smaller else None,
            )
        )
    return out


def explanation_lines(recipe: Recipe) -> Iterator[str]:
    """A table for people, tensors with the largest part in the divergence first."""
    yield (
        f"{'tensor':34} {'type':8} {'bits':>6} {'error':>9} {'matters':>9} {'KLD':>10}  "
        "one bit more buys (type) / one bit less costs (type)"
    )
    for w in sorted(reasons(recipe), key=lambda w: -w.divergence):
        up = "nothing larger helps" if w.up is None else f"-{w.up.per_bit:.2e} ({_name(w.up.type)})"
        down = "smallest" if w.down is None else f"+{w.down.per_bit:.2e} ({_name(w.down.type)})"
        yield (
            f"{w.name:34} {_name(w.type):8} {w.bits_per_weight:6.3f} {w.error:9.2e} {w.coefficient:9.2e} "
            f"{w.divergence:10.3e}  {up} / {down}"
        )


def _name(type: QuantType | int) -> str:
    return type.name if isinstance(type, QuantType) else f"type {type}"
