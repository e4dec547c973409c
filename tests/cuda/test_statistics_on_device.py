"""Statistics of what weights are multiplied with, collected on a GPU (the stand-in), against those of the CPU."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from emulator import FULL, needs_gxx, only_in_full
from model_files import NAMES, path
from standin import environment, ikq_command, run
from test_borrowed_experts import SLABS
from test_prompts_on_device import quantized
from test_whole_models_on_device import ALL, EXACT, SPLITS, allowed

import ikq

pytestmark = [needs_gxx, pytest.mark.timeout(1800)]

FLOATS = {k: v for k, v in EXACT.items() if k != "compute"} | ALL

PROGRAM = """
import json, os, sys
import numpy as np, ikq
path, cases, folder = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]
ids = [3 + i * i % 500 for i in range(40)]
told = {}
for name, (options, collecting) in cases.items():
    os.environ["IKQ_CUDA_STREAM_FROM"] = str(options.pop("from", 0))
    layers = collecting.pop("covariance_layers", None)
    with ikq.Model.load(path, n_ctx=64, n_threads=2, n_ubatch=32, **options) as model:
        plain = model.logits(ids)
        again = layers if layers is None else range(layers)
        with model.collect_activations(**collecting, covariance_layers=again) as collector:
            watched = model.logits(ids)
            watched = model.logits(ids)
        collector.statistics().write(f"{folder}/{name}.gguf")
        if layers is not None:
            collector.write_covariances(f"{folder}/{name}.cov")
        told[name] = {
            "same": bool(np.array_equal(plain, watched)),
            "devices": sorted({p.device for p in model.explain().placement}),
            "choices": {k: [sorted(c) for c in v] for k, v in collector.expert_choices().items()},
            "similarity": [list(s) for s in collector.layer_similarity()],
        }
print(json.dumps(told))
"""


@dataclass
class Found:
    """What was collected in a case."""

    statistics: ikq.ActivationStatistics
    covariances: ikq.Covariances | None
    same: bool
    devices: list[str]
    choices: dict[str, list[list[int]]]
    similarity: list[list[float]]


def collected(file, cases, folder, **more):
    """By case: keywords of `Model.load`, and of `collect_activations`."""
    told = json.loads(
        run(PROGRAM, environment(**more), str(file), json.dumps(cases), str(folder), timeout=1700)
    )

    def covariances(name):
        file = Path(folder) / f"{name}.cov"
        return ikq.Covariances(file) if file.exists() else None

    statistics = {name: ikq.ActivationStatistics.open(folder / f"{name}.gguf") for name in cases}
    return {name: Found(statistics[name], covariances(name), **told[name]) for name in cases}


def distance(a, b):
    """Of sums of squares, relative to all of them: at most 2 |x - y| / |y| of what is squared, by Cauchy and Schwarz."""
    return np.abs(a - b).sum() / max(b.sum(), np.finfo(np.float64).tiny)


def same(found, cpu, most):
    """Each tensor and count that the CPU has, and sums that near."""
    assert found.same, "a collector shows in logits"
    assert "CUDA0" in found.devices
    assert list(found.statistics) == list(cpu.statistics)
    for name, entry in cpu.statistics.items():
        there = found.statistics[name]
        assert np.array_equal(there.counts, entry.counts), name
        assert distance(there.sums, entry.sums) <= most, name


# the tensors of models whose heads have matrices of their own, and whose keys and values are of one tensor
@pytest.mark.parametrize("name", NAMES if FULL else ["llama/llama-bf16"])
def test_statistics(name, tmp_path):
    """In floats the CPU's."""
    cases = {"cpu": (EXACT, {}), "gpu": (FLOATS, {})}
    if name.endswith("mxfp4"):  # products of codes on either device
        del cases["cpu"]
        cases["cpu"] = (FLOATS | {"devices": ["CPU"], "n_gpu_layers": 0}, {})
    found = collected(path(name), cases, tmp_path)
    same(found["gpu"], found["cpu"], 2 * allowed(name))


BORROWED = {"cpu_moe": True, "from": 1}


@pytest.mark.parametrize("name", ["qwen2moe/qwen2moe-bf16", *(["deepseek3/deepseek3-bf16"] if FULL else [])])
def test_placements(name, tmp_path):
    """Nothing is collected twice, and nothing is lost, wherever it is computed."""
    splits = SPLITS if FULL else {"experts": SPLITS["experts"]}
    reduced = {"expert_reduction": (1, 0.5)}
    cases = {"cpu": (EXACT, {}), "reduced": (EXACT | reduced, {})}
    cases |= {split: (FLOATS | options, {}) for split, options in splits.items()}
    found = collected(path(name), cases, tmp_path)
    for split in splits:
        cpu = found["reduced" if split == "without small experts" else "cpu"]
        same(found[split], cpu, 2 * allowed(name))


def test_what_else_is_collected(tmp_path):
    """Choices, similarities, covariances, and inputs of experts that no token takes."""
    name = "qwen2moe/qwen2moe-bf16"
    all_of_it = {"choices": True, "similarity": True, "covariance_layers": 2}
    everyone = {"all_experts": True, "output": False}
    cases = {
        "cpu": (EXACT, all_of_it),
        "gpu": (FLOATS, all_of_it),
        "cpu everyone": (EXACT, everyone),
        "gpu everyone": (FLOATS, everyone),
        "lent everyone": (FLOATS | {"cpu_moe": True}, everyone),
    }
    if not FULL:
        del cases["lent everyone"]
    most = 2 * allowed(name)
    found = collected(path(name), cases, tmp_path)
    same(found["gpu"], found["cpu"], most)
    for case in cases:
        if case.endswith(" everyone") and not case.startswith("cpu"):
            same(found[case], found["cpu everyone"], most)
            assert min(found[case].statistics["blk.0.ffn_down_exps.weight"].counts) == 80
    gpu, cpu = found["gpu"], found["cpu"]
    assert gpu.choices == cpu.choices
    assert len(gpu.choices) > 0
    # cosines of vectors whose directions are off by so much
    assert np.abs(np.array(gpu.similarity) - cpu.similarity).max() <= most
    assert len(gpu.covariances) == len(cpu.covariances) > 0
    for there, here in zip(gpu.covariances, cpu.covariances, strict=True):
        assert there.tensors == here.tensors
        assert np.array_equal(there.counts, here.counts)
        for group in np.flatnonzero(here.counts):
            a, b = (x.sums[group].astype(np.float64) for x in (there, here))
            # |x'x - y'y| is at most 2 |x - y| |y| or so, and |y|^2 is the trace of y'y
            assert np.linalg.norm(a - b) <= most * np.trace(b), here.tensors


@only_in_full
@pytest.mark.parametrize("apart", [False, True])
def test_borrowed_experts(apart, tmp_path):
    """Experts in RAM that the GPU computes, in parts, have the statistics of those that it has: the same bits."""
    name = "qwen2moe/qwen2moe-bf16"
    # matrices of floats are not borrowed
    file = quantized(name, "Q8_0", tmp_path)
    options = FLOATS | {"fused_up_gate": not apart}
    cases = {
        "there": (options, {}),
        "lent": (options | BORROWED, {}),
        "cpu": (options | {"cpu_moe": True}, {}),
    }
    found = collected(file, cases, tmp_path, IKQ_CUDA_MMQ_FROM="1", **SLABS)
    for name, entry in found["there"].statistics.items():
        lent = found["lent"].statistics[name]
        assert np.array_equal(lent.counts, entry.counts), name
        assert np.array_equal(lent.sums, entry.sums), name
    assert found["lent"].same
    assert list(found["there"].statistics) == list(found["lent"].statistics) == list(found["cpu"].statistics)


@pytest.mark.parametrize(
    ("name", "ftype"),
    [
        ("llama/llama-bf16", "IQ4_KS"),
        *([("llama/llama-bf16", "Q8_0"), ("deepseek2-lite/deepseek2-lite-bf16", "Q8_0")] if FULL else []),
    ],
)
@pytest.mark.parametrize("from_", ["1", *(["1000"] if FULL else [])])
def test_statistics_of_codes(name, ftype, from_, tmp_path):
    """Products of 8-bit codes, in tiles and without: inputs are as far from those of exact products as the CPU's are."""
    file = quantized(name, ftype, tmp_path)
    cases = {"exact": (EXACT, {}), "cpu": ({}, {}), "gpu": (ALL, {})}
    found = collected(file, cases, tmp_path, IKQ_CUDA_MMQ_FROM=from_)
    assert found["gpu"].same
    exact, cpu, gpu = (found[case].statistics for case in cases)
    assert list(gpu) == list(exact)
    for tensor in exact:
        assert gpu[tensor].counts.sum() == exact[tensor].counts.sum(), tensor
    if "deepseek" in name:  # another expert may be chosen, on either device
        return
    apart = max(distance(cpu[tensor].sums, exact[tensor].sums) for tensor in exact)
    for tensor in exact:
        assert distance(gpu[tensor].sums, exact[tensor].sums) <= 2 * apart + 2 * allowed(name), tensor


def test_the_command(tiny_moe, tmp_path):
    """`ikq imatrix -ngl 99` gives a whole imatrix, and `ikq perplexity -ngl 99` the CPU's value."""
    text = tmp_path / "text.txt"
    text.write_text(
        "".join(f"The function number {i} returns a list of module {i % 7}.\n" for i in range(12))
    )
    env = environment()
    arguments = ("-m", tiny_moe, "-f", text, "-c", 32, "--chunks", 1)
    found = {}
    for device, options in {"cpu": (), "gpu": ("-ngl", "99")}.items():
        out = tmp_path / f"{device}.gguf"
        done = ikq_command(env, "imatrix", *arguments, "-o", out, *options)
        assert done.returncode == 0, done.stderr
        found[device] = ikq.ActivationStatistics.open(out)
    assert list(found["gpu"]) == list(found["cpu"])
    assert len(found["gpu"]) == 33
    for name, entry in found["cpu"].items():
        assert np.array_equal(found["gpu"][name].counts, entry.counts), name
        # keys and values of 16 bits are rounded alike
        assert distance(found["gpu"][name].sums, entry.sums) <= 1e-3, name
