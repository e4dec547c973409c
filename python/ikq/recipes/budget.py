"""Budgets: how many bytes a file may have, and what lies in which memory.

With one memory the budget is the file's size. With two, matrices lie where the engine's placement options put
them, and each memory also holds its part of the cache and of the buffers that a step computes in.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ikq.errors import RefusedError
from ikq.files.gguf import GGUFReader
from ikq.inference.model import Model
from ikq.recipes.problem import Problem

__all__ = ["ALL_LAYERS", "Memories", "Placement", "Use", "memories_of", "parse_bytes", "placements"]

ALL_LAYERS = 999
"""`-ngl` of a placement with everything but the embedding on the second device, as people write it."""

RAM, VRAM = 0, 1


def parse_bytes(text: str | int) -> int:
    """Bytes of `240G`, `3.5G`, `11GiB`, or of a number such as `4000000` or `4e6`.

    Units without `i` are powers of 1000.

    Raises:
        ValueError: Not a positive size.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?(?:e\+?\d{1,2})?)\s*([KMGT]?)(i?)B?\s*", str(text), re.IGNORECASE)
    if match:
        unit = 1024 if match[3] else 1000
        n = int(float(match[1]) * unit ** " KMGT".index(match[2].upper() or " "))
        if 0 < n < 2**63 and not (match[3] and not match[2]):
            return n
    raise ValueError(f"{text!r} is not a size; write a number with K, M, G or T, such as 240G or 11GiB")


@dataclass(frozen=True)
class Use:
    """How the model will be run, as far as it takes memory.

    Attributes:
        n_ctx: Positions that the cache holds; None: as trained.
        cache_type_k: Type of cached keys.
        cache_type_v: Type of cached values.
        n_ubatch: Most tokens of a step.
    """

    n_ctx: int | None = None
    cache_type_k: str = "f16"
    cache_type_v: str = "f16"
    n_ubatch: int = 512


class Placement(NamedTuple):
    """What lies where.

    Attributes:
        n_gpu_layers: Layers on the second device, the last ones; `ALL_LAYERS` the output, too.
        n_cpu_moe: Layers whose experts stay on the CPU, the first ones.
        memories: 0 for RAM and 1 for VRAM, per tensor of the problem.
        reserved: Bytes in each that weights of the problem cannot have: cache, buffers, small tensors.
    """

    n_gpu_layers: int
    n_cpu_moe: int
    memories: NDArray[np.int64]
    reserved: tuple[int, int]

    @property
    def options(self) -> str:
        """For the command line that runs it."""
        if self.n_gpu_layers == 0:
            return ""
        experts = f" --n-cpu-moe {self.n_cpu_moe}" if self.n_cpu_moe else ""
        return f"-ngl {self.n_gpu_layers}{experts}"


@dataclass(frozen=True)
class Memories:
    """What a model takes besides the weights that are chosen for, by layer.

    Attributes:
        n_layers: Layers.
        cache: Bytes of the cache, all layers.
        layer_buffers: Bytes that a step of the widest layer computes in.
        logit_buffer: Bytes of a step's logits.
        layer_bytes: Bytes of tensors without a choice, by layer; what belongs to none is under -1.
        n_ctx: Positions that the cache is for.
    """

    n_layers: int
    cache: int
    layer_buffers: int
    logit_buffer: int
    layer_bytes: dict[int, int]
    n_ctx: int


def memories_of(problem: Problem, use: Use) -> Memories:
    """What the model takes besides weights.

    Raises:
        ikq.errors.UnsupportedError: An architecture that ikq does not run.
        ikq.errors.RefusedError: A context that makes no sense.
    """
    if use.n_ctx is not None and use.n_ctx < 1:
        raise RefusedError(f"-c {use.n_ctx}: expected 1 or more")
    if use.n_ubatch < 1:
        raise RefusedError(f"-ub {use.n_ubatch}: expected 1 or more")
    plan = Model.plan(
        problem.source, n_ctx=use.n_ctx, cache_type_k=use.cache_type_k, cache_type_v=use.cache_type_v
    )
    with GGUFReader(problem.source) as reader:
        architecture = str(reader.metadata["general.architecture"])
        n_used = int(str(reader.metadata.get(f"{architecture}.expert_used_count", 1)))
    n_embd = next(t.shape[-1] for t in problem.tensors if t.layer is not None)
    widths: dict[int, int] = {}
    n_vocab = 0
    for t in problem.tensors:
        if t.layer is None:
            n_vocab = max(n_vocab, t.shape[-2])
        else:
            rows = t.shape[-2] * (n_used if len(t.shape) > 2 else 1)
            widths[t.layer] = widths.get(t.layer, 0) + rows
    layer_bytes: dict[int, int] = {}
    for name, n in problem.fixed_bytes.items():
        match = re.match(r"blk\.(\d+)\.", name)
        layer = int(match[1]) if match else -1
        layer_bytes[layer] = layer_bytes.get(layer, 0) + n
    return Memories(
        n_layers=1 + max((t.layer for t in problem.tensors if t.layer is not None), default=-1),
        cache=plan.cache,
        layer_buffers=4 * use.n_ubatch * (max(widths.values(), default=0) + 4 * n_embd),
        logit_buffer=4 * use.n_ubatch * n_vocab,
        layer_bytes=layer_bytes,
        n_ctx=plan.n_ctx,
    )


def placements(problem: Problem, memories: Memories, *, has_vram: bool) -> Iterator[Placement]:
    """Placements, those with most on the second device first: experts leave it first, then whole layers."""
    if not has_vram:
        yield _placed(problem, memories, 0, 0)
        return
    expert_layers = sorted({t.layer for t in problem.tensors if _is_expert(t.kind) and t.layer is not None})
    for n_cpu_moe in range(len(expert_layers) + 1):
        yield _placed(problem, memories, ALL_LAYERS, n_cpu_moe, expert_layers[:n_cpu_moe])
    for n_gpu_layers in range(memories.n_layers, -1, -1):
        yield _placed(problem, memories, n_gpu_layers, len(expert_layers), expert_layers)


def _is_expert(kind: str) -> bool:
    return kind.endswith("_exps")


def _placed(
    problem: Problem,
    memories: Memories,
    n_gpu_layers: int,
    n_cpu_moe: int,
    cpu_experts: list[int] | None = None,
) -> Placement:
    n_layers = memories.n_layers
    first = max(0, n_layers - n_gpu_layers)
    has_output = n_gpu_layers > n_layers
    names = {t.name for t in problem.tensors}
    is_tied = "output.weight" not in names
    where = []
    for t in problem.tensors:
        if t.layer is None:
            is_output = t.kind == "output" or (is_tied and t.kind == "token_embd")
            where.append(VRAM if has_output and is_output else RAM)
        elif t.layer < first or (_is_expert(t.kind) and t.layer in (cpu_experts or ())):
            where.append(RAM)
        else:
            where.append(VRAM)
    on_gpu = n_layers - first
    cache = memories.cache * on_gpu // max(1, n_layers)
    small = sum(n for layer, n in memories.layer_bytes.items() if layer >= first)
    all_small = sum(memories.layer_bytes.values())
    vram = cache + small + (memories.layer_buffers if on_gpu else 0)
    ram = memories.cache - cache + all_small - small + memories.layer_buffers
    if has_output:
        vram += memories.logit_buffer
    else:
        ram += memories.logit_buffer
    return Placement(n_gpu_layers, n_cpu_moe, np.array(where, np.int64), (ram, vram if n_gpu_layers else 0))
