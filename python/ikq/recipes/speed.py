"""Predicted speeds of a mix on this machine: what its types take, and what steps take besides.

A step multiplies every matrix with the tokens that meet it: all of them, of experts the share that is routed
there. Seconds per weight of each type and number of tokens are those of `ikq bench types`
(`ikq.speed.type_speeds`), so that reading memory and computing are both in them; what steps do besides is
`ikq.recipes.step_speeds`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ikq.arrays.quant_types import QuantType, as_type
from ikq.errors import UnsupportedError
from ikq.files.gguf import GGUFReader
from ikq.models import model_spec
from ikq.quantizing.report.records import kind_and_layer
from ikq.recipes.problem import Problem
from ikq.recipes.step_speeds import (
    PROBE_TYPE,
    LayerWork,
    StepSpeeds,
    kept_step_speeds,
    layers_work,
    measure_step_speeds,
)
from ikq.speed.type_speeds import TypeSpeed, kept_type_speeds, measure_type_speeds

__all__ = ["SpeedModel", "Speeds", "kept_speeds", "measure_speeds", "predicted_speeds", "speed_model"]

_ROUTER = QuantType.F32


@dataclass(frozen=True)
class Speeds:
    """The speed of a machine.

    Attributes:
        types: Products, by type.
        steps: What steps do besides.
    """

    types: Mapping[QuantType, TypeSpeed]
    steps: StepSpeeds

    def per_weight(self, type: QuantType | int, n: float) -> float:
        """Seconds per weight of a product with so many tokens.

        Raises:
            KeyError: The type was not measured.
        """
        return self.types[as_type(type)].per_weight(n)


def kept_speeds(
    types: Iterable[QuantType], *, n_threads: int | None = None, path: Path | None = None
) -> Speeds | None:
    """What was measured before; `None` unless all of it was.

    Raises:
        ikq.errors.FormatError: The file is damaged.
    """
    found = kept_type_speeds(n_threads=n_threads, path=path)
    steps = kept_step_speeds(n_threads, path)
    is_whole = steps is not None and {*types, _ROUTER} <= found.keys()
    return Speeds(found, steps) if is_whole and steps is not None else None


def measure_speeds(
    types: Iterable[QuantType],
    *,
    n_threads: int | None = None,
    path: Path | None = None,
    progress: Callable[[TypeSpeed], None] | None = None,
) -> Speeds:
    """Measures what was not measured before, and keeps it.

    Args:
        types: The types of a model's matrices.
        n_threads: Threads; `None` is one per CPU.
        path: As for `ikq.speed.type_speeds.measure_type_speeds`, as are the errors.
        progress: As there.
    """
    wanted = [*dict.fromkeys([*types, _ROUTER, PROBE_TYPE])]
    found = measure_type_speeds(wanted, n_threads=n_threads, path=path, progress=progress)
    return Speeds(found, measure_step_speeds(found[PROBE_TYPE], n_threads=n_threads, path=path))


@dataclass(frozen=True)
class SpeedModel:
    """Predicted times of a model, by tensor and choice.

    Attributes:
        tg: Tensors x choices: seconds of a token of generation, in an empty cache.
        pp: The same of a token of a prompt, in steps of `n_ubatch`.
        tg_base: Seconds of a token besides.
        pp_base: The same for prompts.
    """

    tg: NDArray[np.float64]
    pp: NDArray[np.float64]
    tg_base: float
    pp_base: float

    def speeds(self, index: NDArray[np.int64]) -> tuple[float, float]:
        """Tokens per second of prompts, and of generation."""
        rows = np.arange(len(index))
        return (
            1 / (self.pp_base + float(self.pp[rows, index].sum())),
            1 / (self.tg_base + float(self.tg[rows, index].sum())),
        )


@dataclass(frozen=True)
class _Facts:
    """What times depend on besides types."""

    shapes: Mapping[str, tuple[int, ...]]
    n_used: int
    work: list[LayerWork]
    routers: int
    """Weights of all routers."""

    @classmethod
    def of(cls, reader: GGUFReader) -> _Facts:
        a = str(reader.metadata["general.architecture"])
        shapes = {name: t.shape for name, t in reader.tensors.items()}
        try:
            work = layers_work(model_spec(reader), shapes)
        except UnsupportedError:
            # not ours to run: only its products are predicted
            work = []
        routers = sum(int(np.prod(s)) for n, s in shapes.items() if n.endswith("ffn_gate_inp.weight"))
        return cls(shapes, int(str(reader.metadata.get(f"{a}.expert_used_count", 1))), work, routers)

    def is_output(self, name: str) -> bool:
        kind, _ = kind_and_layer(name)
        return kind == "output" or (kind == "token_embd" and "output.weight" not in self.shapes)

    def seconds(self, name: str, type: QuantType | int, speeds: Speeds, n_tokens: int) -> float:
        """Of a tensor in a step of so many tokens; only the last token has logits."""
        kind, layer = kind_and_layer(name)
        shape = self.shapes[name]
        is_output = self.is_output(name)
        if layer is None and not is_output:
            return 0.0
        n_weights = float(np.prod(shape))
        if not kind.endswith("_exps"):
            return n_weights * speeds.per_weight(type, 1 if is_output else n_tokens)
        # experts that some token is routed to, and the tokens of each
        share = self.n_used / shape[0]
        met = 1 - (1 - share) ** n_tokens
        return n_weights * met * speeds.per_weight(type, n_tokens * share / met)

    def besides(self, speeds: Speeds, n_tokens: int) -> float:
        """Of a step besides products of matrices that have a choice of types."""
        layers = sum(speeds.steps.layer_seconds(work, n_tokens) for work in self.work)
        return speeds.steps.step + layers + self.routers * speeds.per_weight(_ROUTER, n_tokens)


def speed_model(
    problem: Problem,
    speeds: Speeds,
    *,
    n_ubatch: int = 512,
    memories: NDArray[np.int64] | None = None,
    vram_bandwidth: float | None = None,
) -> SpeedModel:
    """Times of a model's tensors.

    Args:
        problem: The model and its choices; all its types were measured.
        speeds: Of this machine.
        n_ubatch: Tokens of a step of a prompt.
        memories: 1 for tensors on a second device.
        vram_bandwidth: Bytes per second that it reads; a token of generation reads its weights once, a
            prompt's products there count as nothing beside the CPU's.
    """
    with GGUFReader(problem.source) as reader:
        facts = _Facts.of(reader)
    width = max(len(t.types) for t in problem.tensors)
    tg, pp = np.zeros((len(problem.tensors), width)), np.zeros((len(problem.tensors), width))
    for i, t in enumerate(problem.tensors):
        for k, to in enumerate(t.types):
            if memories is not None and memories[i]:
                share = facts.n_used / t.shape[0] if t.kind.endswith("_exps") else 1.0
                tg[i, k] = 0.0 if vram_bandwidth is None else int(t.bytes[k]) * share / vram_bandwidth
                continue
            tg[i, k] = facts.seconds(t.name, to, speeds, 1)
            pp[i, k] = facts.seconds(t.name, to, speeds, n_ubatch) / n_ubatch
    return SpeedModel(tg, pp, facts.besides(speeds, 1), facts.besides(speeds, n_ubatch) / n_ubatch)


def predicted_speeds(
    file: Path, *, n_tokens: int = 512, n_threads: int | None = None, path: Path | None = None
) -> tuple[float, float]:
    """Tokens per second of a file as it is: of a prompt in one step of `n_tokens`, and of generation.

    Args:
        file: The model.
        n_tokens: Tokens of the prompt.
        n_threads: As for `measure_speeds`; types that were not measured are.
        path: As there.
    """
    with GGUFReader(file) as reader:
        facts = _Facts.of(reader)
        types = {
            name: QuantType(t.type)
            for name, t in reader.tensors.items()
            if t.ndim > 1 and not name.endswith("ffn_gate_inp.weight")
        }
    speeds = measure_speeds(types.values(), n_threads=n_threads, path=path)

    def seconds(n: int) -> float:
        products = sum(facts.seconds(name, t, speeds, n) for name, t in types.items())
        return facts.besides(speeds, n) + products

    return n_tokens / seconds(n_tokens), 1 / seconds(1)
