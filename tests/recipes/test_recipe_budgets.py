"""Two memories, least speeds, and tensors that only some types fit."""

from __future__ import annotations

import gc
import re
import weakref
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import ikq
from ikq.errors import FormatError, RefusedError
from ikq.recipes import problem as problem_module
from ikq.recipes.budget import Use
from ikq.recipes.explain import reasons
from ikq.recipes.pareto import best_mixes, known_mixes
from ikq.recipes.problem import read_problem
from ikq.recipes.recipe import Budget, Costs, measure_costs, open_problem, solve
from ikq.recipes.speed import Speeds
from ikq.recipes.step_speeds import StepSpeeds
from ikq.speed.type_speeds import COUNTS, TypeSpeed

DATA = Path(__file__).resolve().parents[1] / "data"
IMATRIX = DATA / "imatrix-plain.dat"
TYPES = tuple(ikq.QuantType[n] for n in ("Q8_0", "Q5_K", "IQ4_K", "Q4_K", "IQ3_K", "IQ2_K", "IQ2_XXS"))


@pytest.fixture(scope="module")
def costs(tiny_moe: Path) -> Costs:
    return measure_costs(open_problem(tiny_moe, IMATRIX, types=TYPES))


def speeds(tg: float = 1e-10) -> Speeds:
    """Larger types slower, but for IQ4_K, which is slowest."""
    names = ikq.QuantType
    per_weight = {t: tg * t.bpw for t in (*TYPES, names.BF16, names.F32)} | {names.IQ4_K: 30 * tg}
    types = {
        t: TypeSpeed(t, "scalar", 1, t.bpw / 8, tuple(x * n**0.5 for n in COUNTS), 1e10, None)
        for t, x in per_weight.items()
    }
    return Speeds(types, StepSpeeds(0.0, 1e-6, 0.0, 1e-12, 1e-14))


@pytest.mark.parametrize(
    ("ram", "vram"), [(9_000_000, 3_000_000), (3_200_000, 8_000_000), (4_000_000, 4_000_000)]
)
def test_both_memories_hold_what_is_in_them(costs: Costs, ram: int, vram: int) -> None:
    use = Use(n_ctx=512, n_ubatch=32)
    found = solve(costs, Budget(ram=ram, vram=vram), use=use)
    placement = found.placement
    assert placement is not None
    for m, room in enumerate((ram, vram)):
        mine = placement.memories == m
        rows = np.flatnonzero(mine)
        used = int(costs.sizes[rows, found.choice.index[rows]].sum())
        assert used == found.choice.bytes[m]
        assert used + placement.reserved[m] <= room
    # the engine, given the options, places weights as the recipe says
    options = re.fullmatch(r"(?:-ngl (\d+)(?: --n-cpu-moe (\d+))?)?", placement.options)
    assert options is not None
    plan = ikq.Model.plan(
        costs.problem.source,
        n_ctx=512,
        devices=("CPU", "CPU1"),
        n_gpu_layers=int(options[1] or 0),
        n_cpu_moe=int(options[2] or 0),
    )
    on_second = {p.stage for p in plan.placement if p.device == "CPU1"}
    for t, m in zip(costs.problem.tensors, placement.memories, strict=True):
        if t.kind == "token_embd":
            stage = "embedding"
        elif t.kind == "output":
            stage = "output"
        else:
            stage = f"layer {t.layer}, {'experts' if t.kind.endswith('_exps') else 'attention'}"
        assert (stage in on_second) == bool(m), (t.name, stage)


def test_cache_and_context_are_part_of_the_budget(costs: Costs) -> None:
    short = solve(costs, Budget(ram=8_000_000), use=Use(n_ctx=256, n_ubatch=32))
    long = solve(costs, Budget(ram=8_000_000), use=Use(n_ctx=2048, n_ubatch=32))
    small = solve(costs, Budget(ram=8_000_000), use=Use(n_ctx=2048, n_ubatch=32, cache_type_k="q8_0"))
    assert short.divergence < small.divergence < long.divergence
    assert short.placement is not None
    assert long.placement is not None
    # four layers, two key and value heads of 64 in half precision
    assert long.placement.reserved[0] - short.placement.reserved[0] == (2048 - 256) * 4 * 2 * 2 * 64 * 2


def test_least_speeds(costs: Costs) -> None:
    budget = Budget(size=5_500_000)
    free = solve(costs, budget, speeds=speeds())
    assert free.speeds is not None
    pp, tg = free.speeds
    faster = solve(costs, Budget(size=5_500_000, min_tg=1.2 * tg, min_pp=1.1 * pp), speeds=speeds())
    assert faster.speeds is not None
    assert faster.speeds[0] >= 1.1 * pp
    assert faster.speeds[1] >= 1.2 * tg
    assert free.divergence < faster.divergence
    with pytest.raises(RefusedError, match=r"--min-tg 1e\+12 .* the fastest mix .* tokens per second"):
        solve(costs, Budget(size=5_500_000, min_tg=1e12), speeds=speeds())
    with pytest.raises(RefusedError, match="measured speeds"):
        solve(costs, Budget(size=5_500_000, min_tg=1.0))


def test_what_a_bit_buys_is_dearer_than_what_one_frees(costs: Costs) -> None:
    recipe = solve(costs, Budget(bpw=4.0))
    why = reasons(recipe)
    assert sum(w.divergence for w in why) == pytest.approx(recipe.divergence)
    for w in why:
        if w.up is not None:
            assert w.up.bytes > 0
            assert w.up.divergence < 0 < w.up.per_bit
        if w.down is not None:
            assert w.down.bytes < 0 < w.down.divergence
    # per byte: no step up of one tensor gains more than another's step down costs, for as many bytes
    ups = [-w.up.divergence / w.up.bytes for w in why if w.up is not None]
    downs = [w.down.divergence / -w.down.bytes for w in why if w.down is not None]
    assert np.median(ups) < np.median(downs)


def test_points_of_the_page(costs: Costs) -> None:
    best = best_mixes(costs, 12)
    assert len(best) > 6
    assert all(a.bytes < b.bytes and a.divergence > b.divergence for a, b in pairwise(best))
    known = known_mixes(costs, ("IQ2_XXS", "Q8_0", "NO_SUCH_MIX", "Q4_K"))
    # others use types that were not sampled
    assert [p.label for p in known] == ["Q8_0"]
    for p in known:
        mine = solve(costs, Budget(size=p.bytes))
        assert mine.divergence <= p.divergence


def test_rows_that_few_types_fit(tmp_path: Path) -> None:
    """Rows of 96: blocks of 256 fall back, as the quantizer does it; sizes and choices are those types'."""
    file = tmp_path / "m.gguf"
    x = np.random.default_rng(0).standard_normal((64, 96), dtype=np.float32)
    with ikq.GGUFWriter(file, {"general.architecture": "llama"}) as writer:
        writer.add_tensor("blk.0.attn_q.weight", x)
        writer.add_tensor("blk.0.attn_norm.weight", x[0])
    problem = read_problem(file, None, [ikq.QuantType.Q4_K, ikq.QuantType.Q8_0, ikq.QuantType.IQ4_XS])
    (t,) = problem.tensors
    assert t.source_type == ikq.QuantType.F32
    for k, n in zip(t.types, t.bytes, strict=True):
        assert n == -(-ikq.tensor_bytes(k, (64, 96)) // 32) * 32
    assert ikq.QuantType.Q4_K not in t.types
    assert set(problem.fixed_bytes) == {"blk.0.attn_norm.weight"}
    with pytest.raises(RefusedError, match="no tensor"):
        read_problem(file, None, TYPES, fix=["attn_k=q8_0"])
    with pytest.raises(FormatError, match="REGEX=TYPE"):
        read_problem(file, None, TYPES, fix=["attn_k"])
    with pytest.raises(FormatError, match=r"\("):
        read_problem(file, None, TYPES, fix=["(=q8_0"])


def test_one_plan_is_held_at_a_time(tiny_moe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has the statistics of all experts, 0.1 GB for a model of 30 billion weights."""
    plan, made = problem_module.plan_of_types, []

    def watched(*args, **options):
        gc.collect()
        assert not any(one() for one in made)
        found = plan(*args, **options)
        made.append(weakref.ref(found))
        return found

    monkeypatch.setattr(problem_module, "plan_of_types", watched)
    read_problem(tiny_moe, ikq.Imatrix(IMATRIX), TYPES)
    assert len(made) == len(TYPES)


def test_a_model_without_a_choice(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    with ikq.GGUFWriter(file, {"general.architecture": "llama"}) as writer:
        writer.add_tensor("blk.0.attn_norm.weight", np.ones(256, np.float32))
    with pytest.raises(RefusedError, match="no tensor whose type could be chosen"):
        read_problem(file, None, TYPES)
