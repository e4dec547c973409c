"""Steps as graphs on a GPU (the stand-in): the bits of steps without, whatever moves between them.

The stand-in refuses graphs that were recorded with memory that is no longer there.
"""

import json

import numpy as np
import pytest
from emulator import FULL, needs_gxx, only_in_full
from model_files import NAMES, path, reader
from standin import environment, run
from test_whole_models_on_device import ALL

from ikq.models import model_spec

pytestmark = [needs_gxx, pytest.mark.timeout(1800)]

PROGRAM = """
import json, os, sys
import numpy as np, ikq
from ikq import _ikq
path, options, ids, out = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3]), sys.argv[4]
def steps(model):
    logits, counts = [], []
    def step(*entries, want="last"):
        before = _ikq.cuda_counts()
        logits.extend(a for a in model.step([(s, part, want) for s, part in entries]) if a is not None)
        counts.append({name: n - before[name] for name, n in _ikq.cuda_counts().items()})
    a = model.new_sequence()
    step((a, ids[:5]))
    for i in range(4):
        step((a, ids[i : i + 1]))
    # another page: the caches move
    b = model.new_sequence()
    step((b, ids[3:6]))
    for i in range(2):
        step((a, ids[i : i + 1]))
    for i in range(3):
        step((a, ids[i : i + 1]), (b, ids[i + 1 : i + 2]))
    # more tokens than in any step before: buffers move; and hidden states are wanted
    c = model.new_sequence()
    step((c, ids[:9]))
    for i in range(2):
        step((b, ids[i : i + 1]), (a, ids[i + 2 : i + 3]), want="hidden")
    step((b, ids[:1]), (c, ids[1:2]))
    step((c, ids[:1]))
    return logits, counts
found, told = {}, {}
for graphs in ("1", "0"):
    os.environ["IKQ_CUDA_GRAPHS"] = graphs
    with ikq.Model.load(path, n_ctx=64, n_threads=2, **options) as model:
        logits, told[graphs] = steps(model)
    found |= {f"{graphs} {i}": a for i, a in enumerate(logits)}
np.savez(out, **found)
print(json.dumps(told))
"""

IDS = list(range(3, 15))


def both(name, options, tmp_path, **more):
    """What calls the driver got per step with graphs, and without; results are the same bits."""
    out = tmp_path / "results.npz"
    env = environment(**more)
    told = json.loads(
        run(PROGRAM, env, str(path(name)), json.dumps(options), json.dumps(IDS), str(out), timeout=1500)
    )
    with np.load(out) as f:
        n = len(f.files) // 2
        assert n == 22
        for i in range(n):
            assert np.array_equal(f[f"1 {i}"], f[f"0 {i}"]), i
            assert np.isfinite(f[f"1 {i}"]).all()
    assert all(step["recorded"] == step["replays"] == 0 for step in told["0"])
    return told["1"], told["0"]


PLACES = {
    "all": ALL,
    "experts in RAM": ALL | {"cpu_moe": True},
    "cache in RAM": ALL | {"kv_offload": False},
    "two GPUs": {"devices": ["CPU", "CUDA0", "CUDA1"], "n_gpu_layers": 99, "tensor_split": [1, 1]},
    "rotated caches": ALL | {"cache_type_k": "q6_0", "cache_type_v": "q4_0"},
    "separate": ALL | {"fused_up_gate": False},
    "fewer experts": ALL | {"expert_reduction": (1, 0.5)},
}
QUICK = [("qwen2moe/qwen2moe-bf16", "experts in RAM"), ("qwen3next/qwen3next-bf16", "all")]
KINDS = ("qwen2moe/qwen2moe-bf16", "qwen3next/qwen3next-bf16", "deepseek3/deepseek3-bf16")
CASES = [*((n, "all") for n in NAMES), *((n, p) for n in KINDS for p in PLACES if p != "all")]


@pytest.mark.parametrize(("name", "places"), CASES if FULL else QUICK)
def test_the_same_bits(name, places, tmp_path):
    graphs, plain = both(name, PLACES[places], tmp_path, IKQ_STANDIN_DEVICES="2")
    # the third step of a shape replays what the second has recorded
    assert graphs[1]["launches"] == plain[1]["launches"] > 0 == graphs[1]["replays"]
    assert graphs[2]["recorded"] == plain[2]["launches"] - graphs[2]["launches"] > 0
    assert graphs[3]["recorded"] == 0 < graphs[3]["replays"]
    assert graphs[3]["launches"] <= graphs[2]["launches"]
    if places == "all":
        assert {k: n for k, n in graphs[3].items() if k not in ("bytes_out", "blas_products")} == {
            "launches": 0, "recorded": 0, "replays": 1, "copies": 2, "waits": 1
        }  # fmt: skip
        # a replayed copy brings as much as a launched one
        assert [step["bytes_out"] for step in graphs] == [step["bytes_out"] for step in plain]
    if places == "experts in RAM":
        # the device is waited for once per layer with experts, for their input and for who gets it, and for the results
        n_mixtures = sum(layer.ffn.kind == "moe" for layer in model_spec(reader(name)).layers)
        assert graphs[3]["waits"] == n_mixtures + 1
        assert graphs[3]["launches"] == 0
    if places == "cache in RAM":
        assert graphs[3]["launches"] == 0 < graphs[3]["waits"] - 1
    # what has moved is recorded anew
    assert (graphs[6]["recorded"] > 0) == (places != "cache in RAM")
    assert graphs[7]["recorded"] == 0


@only_in_full
def test_they_can_be_switched_off(tmp_path):
    """Where every kernel is waited for, none is part of a graph."""
    graphs, _ = both("qwen2moe/qwen2moe-bf16", ALL, tmp_path, IKQ_CUDA_SYNC="1")
    assert all(step["recorded"] == step["replays"] == 0 for step in graphs)


LONG = """
import json, os, sys
import numpy as np, ikq
from ikq import _ikq
path, options, out = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]
ids = [3 + i * 7 % 40 for i in range(600)]
found, replays = {}, {}
for graphs in ("1", "0"):
    os.environ["IKQ_CUDA_GRAPHS"] = graphs
    with ikq.Model.load(path, n_ctx=640, n_threads=2, **options) as model:
        before = _ikq.cuda_counts()["replays"]
        long, short, logits = model.new_sequence(), model.new_sequence(), []
        model.step([(short, ids[:3], "none")])
        # two pages, and three, which are rounded up to four
        for at in (252, 508):
            model.step([(long, ids[long.n_past : at], "none")])
            for i in range(8):
                logits += model.step([(long, ids[at + i : at + i + 1], "last"), (short, ids[i : i + 1], "last")])
        replays[graphs] = _ikq.cuda_counts()["replays"] - before
    found |= {f"{graphs} {i}": a for i, a in enumerate(logits)}
np.savez(out, **found)
assert replays["1"] > 0 == replays["0"]
"""


@only_in_full
@pytest.mark.parametrize(
    "name", ["llama/llama-bf16", "gemma3/gemma3-bf16", "deepseek2-lite/deepseek2-lite-bf16"]
)
def test_texts_that_grow(name, tmp_path):
    """Pages and splits of attention become more while graphs are replayed, with and without windows."""
    out = tmp_path / "results.npz"
    run(LONG, environment(), str(path(name)), json.dumps(ALL), str(out), timeout=1500)
    with np.load(out) as f:
        for i in range(len(f.files) // 2):
            assert np.array_equal(f[f"1 {i}"], f[f"0 {i}"]), i


COPIED = """
import os, sys
import ikq
from ikq import _ikq
launches = []
with ikq.Model.load(sys.argv[1], n_ctx=64, n_threads=2, devices=["CPU", "CUDA0"], n_gpu_layers=99) as model:
    sequence = model.new_sequence()
    for token in (3, 4, 5, 6):
        before = _ikq.cuda_counts()
        model.step([(sequence, [token], "last")])
        launches.append(_ikq.cuda_counts()["launches"] - before["launches"])
print(*launches)
"""


def test_windows_copy_nothing():
    """A step writes on the page that a sequence alone has, also in layers with a window: copies would be launches."""
    told = run(COPIED, environment(IKQ_CUDA_GRAPHS="0"), str(path("gemma3/gemma3-bf16")), timeout=1500)
    assert len(set(told.split())) == 1, told
