"""Predicted speeds: products by type, what steps do besides, and what is kept of both."""

from __future__ import annotations

import json
import os
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import ikq
from ikq.errors import FormatError
from ikq.models import model_spec
from ikq.recipes import step_speeds
from ikq.recipes.recipe import measure_costs, open_problem
from ikq.recipes.speed import Speeds, kept_speeds, measure_speeds, predicted_speeds, speed_model
from ikq.recipes.step_speeds import LayerWork, StepSpeeds, layers_work
from ikq.speed.measure import Workload
from ikq.speed.type_speeds import (
    COUNTS,
    TypeSpeed,
    kept_type_speeds,
    machine_name,
    measure_type_speeds,
)

IMATRIX = Path(__file__).resolve().parents[1] / "data" / "imatrix-plain.dat"
Q8_0, Q4_K, BF16, F32 = (ikq.QuantType[n] for n in ("Q8_0", "Q4_K", "BF16", "F32"))
STEPS = StepSpeeds(step=1e-5, layer=1e-6, one_element=1e-9, element=1e-10, score=1e-12)


def type_speed(t: ikq.QuantType, per_weight: float) -> TypeSpeed:
    """Costs that grow with the square root of the columns."""
    return TypeSpeed(t, "scalar", 1, t.bpw / 8, tuple(per_weight * n**0.5 for n in COUNTS), 1e10, 1e11)


SPEEDS = Speeds({t: type_speed(t, t.bpw * 1e-10) for t in (Q8_0, Q4_K, BF16, F32)}, STEPS)


def test_speeds_of_a_type() -> None:
    s = type_speed(Q8_0, 1e-10)
    assert s.per_weight(1) == 1e-10
    assert s.per_weight(20) == pytest.approx(np.interp(20, COUNTS, s.seconds))
    # no more than the most that was measured: as many steps of that
    assert s.per_weight(1024) == pytest.approx(2 * s.seconds[-1])
    assert s.gbs(1) == pytest.approx(8.5 / 8 / 1e-10 / 1e9)
    assert s.gmacs(4) == pytest.approx(4 / 2e-10 / 1e9)
    # one column: memory, 8.5 bits at 10 GB/s; many: 512 multiply-adds at 100 G/s
    assert s.roofline(1) == pytest.approx(8.5 / 8 / 1e10 / 1e-10)
    assert s.roofline(512) == pytest.approx(512 / 1e11 / s.seconds[-1])


def test_times_count_what_a_step_reads(tiny_moe: Path) -> None:
    problem = open_problem(tiny_moe, IMATRIX, types=[Q8_0, Q4_K])
    model = speed_model(problem, SPEEDS, n_ubatch=32)
    by_name = {t.name: i for i, t in enumerate(problem.tensors)}

    def column(name: str) -> tuple[int, int]:
        i = by_name[name]
        return i, problem.tensors[i].types.index(Q8_0)

    i, k = column("blk.1.attn_q.weight")
    n = problem.tensors[i].n_weights
    assert model.tg[i, k] == pytest.approx(n * SPEEDS.per_weight(Q8_0, 1))
    assert model.pp[i, k] == pytest.approx(n * SPEEDS.per_weight(Q8_0, 32) / 32)
    # two of eight experts: of 32 tokens each expert sees 8, and all but few are seen at all
    i, k = column("blk.1.ffn_up_exps.weight")
    n = problem.tensors[i].n_weights
    assert model.tg[i, k] == pytest.approx(n / 4 * SPEEDS.per_weight(Q8_0, 1))
    assert model.pp[i, k] == pytest.approx(n * SPEEDS.per_weight(Q8_0, 8) / 32, rel=1e-3)
    i, k = column("output.weight")
    assert model.pp[i, k] == pytest.approx(model.tg[i, k] / 32)
    assert not model.tg[by_name["token_embd.weight"]].any()
    # besides: what a step takes once, and each layer with its router
    with ikq.GGUFReader(tiny_moe) as reader:
        work = layers_work(model_spec(reader), {name: t.shape for name, t in reader.tensors.items()})
    of_layer = STEPS.layer_seconds(work[0], 1) + 8 * 256 * SPEEDS.per_weight(F32, 1)
    assert model.tg_base == pytest.approx(1e-5 + len(work) * of_layer)
    # on a second device a token reads bytes, and prompts take nothing
    on_second = speed_model(
        problem, SPEEDS, memories=np.ones(len(problem.tensors), np.int64), vram_bandwidth=1e9
    )
    assert on_second.tg[i, k] == problem.tensors[i].bytes[k] / 1e9
    assert not on_second.pp.any()


def test_a_recipe_and_its_file_have_the_same_speed(tiny_moe: Path, tmp_path: Path) -> None:
    kept = tmp_path / "speeds.json"
    measure_with(kept)
    problem = open_problem(tiny_moe, IMATRIX, types=[Q8_0])
    costs = measure_costs(problem)
    index = np.array([t.types.index(Q8_0) for t in problem.tensors])
    out = tmp_path / "q.gguf"
    ikq.quantize_file(tiny_moe, out, "Q8_0", imatrix=IMATRIX, pure=True)
    speeds = kept_speeds([Q8_0, BF16], path=kept)
    assert speeds is not None
    predicted = speed_model(costs.problem, speeds).speeds(index)
    assert predicted_speeds(out, path=kept) == pytest.approx(predicted)


def measure_with(kept: Path) -> None:
    """Puts the made-up speeds into a file."""
    key = f"{machine_name()}, {ikq.isa()}, {os.cpu_count()} threads"
    types = {t.name: s._to_json() for t, s in SPEEDS.types.items()}
    kept.write_text(json.dumps({key: {"types": types, "steps": vars(STEPS)}}))


def test_work_of_layers(tiny_moe: Path) -> None:
    with ikq.GGUFReader(tiny_moe) as reader:
        shapes = {name: t.shape for name, t in reader.tensors.items()}
        spec = model_spec(reader)
    work = layers_work(spec, shapes)
    a = spec.layers[0].attention
    heads = a.n_head * a.head_dim
    n_ff = shapes["blk.0.ffn_down_exps.weight"][-1]
    assert work == [LayerWork(2 * 256 + heads + 2 * (n_ff + 256), heads)] * len(spec.layers)
    assert STEPS.layer_seconds(work[0], 1) == pytest.approx(1e-6 + work[0].elements * 1e-9)
    # each token meets half of the step on average
    assert STEPS.layer_seconds(work[0], 64) == pytest.approx(
        1e-6 + 64 * (work[0].elements * 1e-10 + heads * 32 * 1e-12)
    )


def test_constants_of_steps_are_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Times made of known constants, in place of the engine's, give these constants back."""
    product = type_speed(Q8_0, 1e-12)
    true = StepSpeeds(step=3e-5, layer=2e-6, one_element=4e-9, element=5e-10, score=6e-12)

    def timed(
        model: tuple[step_speeds._Shape, int], workload: Workload, *, repetitions: int, warm_up: bool
    ) -> SimpleNamespace:
        shape, n_layers = model
        n = workload.n_prompt
        scores = (n * n / 2 if n > 1 else 0.0) + n * workload.depth
        layer = shape.n_weights * product.per_weight(n) + shape.heads * scores * true.score
        # what a weight takes in steps of many is found with it: half as much again as was measured elsewhere
        layer += 0.5 * shape.n_weights * product.per_weight(n) * (n > 1)
        layer += true.layer + shape.elements * (true.one_element if n == 1 else n * true.element)
        # the machine is slow at first, and never again
        late = 3e-6 if warm_up else 0.0
        return SimpleNamespace(seconds=[true.step + n_layers * layer + late] * repetitions)

    made: dict[Path, tuple[step_speeds._Shape, int]] = {}
    monkeypatch.setattr(step_speeds, "_write_model", lambda file, *model: made.update({file: model}))
    monkeypatch.setattr(step_speeds.Model, "load", lambda file, **_: nullcontext(made[file]))
    monkeypatch.setattr(step_speeds, "bench", timed)
    found = step_speeds.measure_step_speeds(product, path=tmp_path / "speeds.json")
    # seconds are float64 and differences of sums some thousand times larger
    for name, value in vars(true).items():
        assert getattr(found, name) == pytest.approx(value, rel=1e-9), name


def test_speeds_are_measured_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, told = tmp_path / "new" / "speeds.json", []
    monkeypatch.setattr(step_speeds, "_REPETITIONS", dict.fromkeys(step_speeds._REPETITIONS, 1))
    monkeypatch.setattr(step_speeds, "_TURNS", 1)
    monkeypatch.setattr("ikq.speed.measure._WARM_UP_SECONDS", 0.0)
    assert kept_speeds([Q8_0], path=kept) is None
    found = measure_speeds([Q8_0], path=kept, progress=lambda s: told.append(s.type))
    assert set(told) == {Q8_0, F32}
    assert kept_speeds([Q8_0], path=kept) == found
    assert kept_speeds([Q4_K], path=kept) is None
    s = found.types[Q8_0]
    assert all(x > 0 for x in s.seconds)
    assert s.bytes_per_weight == pytest.approx(8.5 / 8, rel=0.1)
    # of one repetition on a busy machine: a difference of two times may be no more than 0, but each is a number
    assert all(np.isfinite(x) and x >= 0 for x in vars(found.steps).values())
    assert found.steps.step + found.steps.layer + found.steps.element + found.steps.score > 0
    measure_speeds([Q8_0], path=kept, progress=lambda s: told.append(s.type))
    assert len(told) == 2
    measure_type_speeds([Q8_0], path=kept, again=True, progress=lambda s: told.append(s.type))
    assert told[2:] == [Q8_0]
    # from before the step itself was measured: measured again, with no word
    everything = json.loads(kept.read_text())
    without = next(iter(everything.values()))["steps"]
    del without["step"]
    old = tmp_path / "old.json"
    old.write_text(json.dumps({key: value | {"steps": without} for key, value in everything.items()}))
    assert kept_speeds([Q8_0], path=old) is None
    # another number of threads is another machine
    assert kept_type_speeds(n_threads=63, path=kept) == {}
    key = next(iter(json.loads(kept.read_text())))
    for text in ("{", "[]", json.dumps({key: 1}), json.dumps({key: {"types": {"Q8_0": {}}}})):
        kept.write_text(text)
        with pytest.raises(FormatError, match="damaged"):
            kept_speeds([Q8_0], path=kept)
